"""From the frame of a published spectrum back to the detector's.

LAMOST publishes wavelengths corrected to the Sun. The header's ``HELIO_RV`` is *minus* the velocity that
`astropy.coordinates.SkyCoord.radial_velocity_correction` gives, so that
``w_detector = w_file * (1 + HELIO_RV / c)``. The instrumental profile belongs to the detector's wavelength.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import FK5, EarthLocation, SkyCoord
from astropy.time import Time
from astropy.utils import iers
from astropy.utils.exceptions import AstropyWarning

from ..errors import FrameWarning
from ..units import SPEED_OF_LIGHT, to_angstrom

__all__ = ["HeliocentricCheck", "check_heliocentric", "detector_factor", "detector_wavelength"]

_SITE = (117.575, 40.393)  # deg east, deg north
_SITE_HEIGHT = 960.0  # m
_KMS = u.km / u.s


def _meta(spectrum_or_meta: Any) -> Mapping[str, Any]:
    meta = getattr(spectrum_or_meta, "meta", spectrum_or_meta)
    if not isinstance(meta, Mapping):
        raise TypeError(f"expected a spectrum or its meta, got {type(spectrum_or_meta).__name__}")
    return meta


def _velocity(meta: Mapping[str, Any]) -> float | None:
    """Header's heliocentric velocity in km/s, None where there is none."""
    value = meta.get("helio_rv")
    if value is None:
        return None
    try:
        velocity = float(u.Quantity(value).to_value(_KMS))
    except u.UnitConversionError:
        raise ValueError(f"meta['helio_rv'] must be a velocity, got {value}") from None
    return velocity if np.isfinite(velocity) else None


def detector_factor(meta: Any) -> float:
    """Factor from the wavelengths of a spectrum to those on the detector.

    Parameters
    ----------
    meta : mapping or `~specutils.Spectrum`
        With ``frame`` and ``helio_rv``, as from `read_lamost`.

    Returns
    -------
    float
        ``1 + HELIO_RV / c`` where the frame is heliocentric, 1 where it is topocentric.

    Raises
    ------
    ValueError
        Where the frame, or its velocity, is not known.

    Examples
    --------
    >>> import astropy.units as u
    >>> detector_factor({"frame": "heliocentric", "helio_rv": 29.9792458 * u.km / u.s})
    1.0001
    >>> detector_factor({"frame": "topocentric"})
    1.0
    """
    meta = _meta(meta)
    frame = meta.get("frame")
    if frame == "topocentric":
        return 1.0
    if frame != "heliocentric":
        raise ValueError(
            f"meta['frame'] must be 'heliocentric' or 'topocentric' to find the detector's wavelengths, got {frame!r}"
        )
    velocity = _velocity(meta)
    if velocity is None:
        raise ValueError("meta['helio_rv'] is missing: the detector's wavelengths are unknown")
    return float(1.0 + velocity / SPEED_OF_LIGHT)


def detector_wavelength(spectrum: Any) -> u.Quantity:
    """Vacuum wavelengths of a spectrum's pixels in the detector's (topocentric) frame.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        As from `read_lamost`: vacuum, with ``frame`` and ``helio_rv`` in its meta.

    Returns
    -------
    `~astropy.units.Quantity` (n_pix,), Angstrom
        Vacuum, topocentric.

    Raises
    ------
    ValueError
        As `detector_factor`.

    Examples
    --------
    >>> import astropy.units as u
    >>> from specutils import Spectrum
    >>> spectrum = Spectrum(
    ...     flux=[1, 1, 1] * u.one, spectral_axis=[5000, 5001, 5002] * u.AA,
    ...     meta={"frame": "heliocentric", "helio_rv": -29.9792458 * u.km / u.s})
    >>> detector_wavelength(spectrum)
    <Quantity [4999.5   , 5000.4999, 5001.4998] Angstrom>
    """
    axis = u.Quantity(spectrum.spectral_axis)
    return to_angstrom(axis, "spectral_axis") * detector_factor(spectrum) * u.AA


@dataclass(frozen=True)
class HeliocentricCheck:
    """The header's heliocentric velocity beside the one that its time and target imply.

    Attributes
    ----------
    helio_rv : `~astropy.units.Quantity` or None
        The header's, km/s.
    computed : `~astropy.units.Quantity`
        Minus astropy's heliocentric correction at the mean of the exposures' minutes, km/s.
    difference : `~astropy.units.Quantity` or None
        Header minus computed, km/s.
    agrees : bool
        Whether the difference is within the tolerance; False where the header has no velocity.
    """

    helio_rv: u.Quantity | None
    computed: u.Quantity
    difference: u.Quantity | None
    agrees: bool


def check_heliocentric(
    spectrum_or_meta: Any, tolerance: u.Quantity = 0.1 * u.km / u.s, *, warn: bool = True
) -> HeliocentricCheck:
    """Compare a header's HELIO_RV with the velocity that its time, target and site imply.

    Nothing is downloaded: the Earth's orientation comes from the tables that astropy carries, which is
    good to far better than the comparison needs.

    Parameters
    ----------
    spectrum_or_meta : `~specutils.Spectrum` or mapping
        As from `read_lamost`; needs ``time``, ``ra``, ``dec``. The site is the header's, LAMOST's where it
        has none.
    tolerance : `~astropy.units.Quantity`
        Largest difference that passes in silence, velocity. Real low-resolution headers agree to 0.03 km/s.
        A single medium-resolution exposure may differ by 0.25 km/s: its header has one velocity for the whole
        file, its wavelengths were corrected each with its own.
    warn : bool
        Whether a disagreement warns.

    Returns
    -------
    HeliocentricCheck

    Raises
    ------
    ValueError
        Where the time or the target is not known, or the tolerance is not positive.
    TypeError
        Where ``tolerance`` has no unit of velocity.

    Warns
    -----
    FrameWarning
        Where header and computed velocity disagree.

    Examples
    --------
    >>> from lamost_lsf.time import lmjm_to_time
    >>> meta = {"helio_rv": 25.11536 * u.km / u.s, "time": lmjm_to_time([80436692, 80436737, 80436775]),
    ...         "ra": 332.202274 * u.deg, "dec": -2.056767 * u.deg}
    >>> check_heliocentric(meta).agrees
    True
    """
    meta = _meta(spectrum_or_meta)
    if not isinstance(tolerance, u.Quantity) or not tolerance.unit.is_equivalent(u.km / u.s):
        raise TypeError(f"tolerance must be a Quantity with a unit of velocity, got {tolerance!r}")
    limit = float(tolerance.to_value(u.km / u.s))
    if not limit > 0.0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    time = meta.get("time")
    if not isinstance(time, Time):
        raise ValueError("meta['time'] is missing: no velocity can be computed")
    if meta.get("ra") is None or meta.get("dec") is None:
        raise ValueError("meta['ra'] and meta['dec'] are missing: no velocity can be computed")
    computed = _computed_velocity(meta, time)
    velocity = _velocity(meta)
    difference = None if velocity is None else velocity - computed
    agrees = difference is not None and abs(difference) <= limit
    if warn and not agrees:
        name = meta.get("filename") or "header"
        found = "no HELIO_RV" if velocity is None else f"HELIO_RV = {velocity:.3f} km/s"
        warnings.warn(f"{name}: {found}, but time and target imply {computed:.3f} km/s", FrameWarning, stacklevel=2)
    unit = u.km / u.s
    return HeliocentricCheck(
        helio_rv=None if velocity is None else velocity * unit,
        computed=computed * unit,
        difference=None if difference is None else difference * unit,
        agrees=agrees,
    )


def _computed_velocity(meta: Mapping[str, Any], time: Time) -> float:
    """Minus the heliocentric correction at the mean time, km/s."""
    longitude, latitude = meta.get("site") or (u.Quantity(value, u.deg) for value in _SITE)
    site = EarthLocation.from_geodetic(longitude, latitude, _SITE_HEIGHT * u.m)
    target = SkyCoord(meta["ra"], meta["dec"], frame=FK5())
    with (
        iers.conf.set_temp("auto_download", False),
        iers.conf.set_temp("iers_degraded_accuracy", "ignore"),
        warnings.catch_warnings(),
    ):
        # Beyond the carried tables polar motion is taken as its mean: metres, not metres per second.
        warnings.simplefilter("ignore", AstropyWarning)
        mean = Time(time.utc.mjd.mean(), format="mjd", scale="utc")
        correction = target.radial_velocity_correction("heliocentric", obstime=mean, location=site)
    return -float(correction.to_value(u.km / u.s))
