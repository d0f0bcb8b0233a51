"""`simulate_star`: what LAMOST publishes of a star, from a template and a known instrumental profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import InverseVariance
from astropy.time import Time
from scipy.optimize import brentq
from specutils import Spectrum

from lamost_lsf.convolution import convolve
from lamost_lsf.io.frames import check_heliocentric
from lamost_lsf.io.headers import build_meta
from lamost_lsf.lsf import LSF
from lamost_lsf.models.archive import IPArchive
from lamost_lsf.models.base import IPModel
from lamost_lsf.simulation._random import generator
from lamost_lsf.simulation.exposures import _check, _shift
from lamost_lsf.simulation.ip import ARM_LIMITS, SimulatedIP
from lamost_lsf.simulation.lines import sky_lines
from lamost_lsf.simulation.observatory import Observatory
from lamost_lsf.time import lmjm_to_time, time_to_lmjm
from lamost_lsf.units import SPEED_OF_LIGHT, air_to_vacuum, doppler_factor, to_angstrom

__all__ = ["lamost_axis", "simulate_star", "throughput"]

_ARM_BOUNDARY = float(air_to_vacuum(5800.0))
#: Offsets on which a simulated LSF is sampled: wider and finer than LAMOST's window, so that nothing is cut off.
_OFFSET = np.linspace(-22.0, 22.0, 1101)
_SITE = (117.58, 40.39)


def lamost_axis(arm: str = "both") -> u.Quantity:
    """Wavelengths of LAMOST's low-resolution products, ``10 ** (3.5682 + 1e-4 n)`` vacuum Angstrom.

    Parameters
    ----------
    arm : {"both", "blue", "red"}
        "both" ends at 9060 A, "blue" at 5900 A; "red" begins at 5700 A.

    Examples
    --------
    >>> print(f"{lamost_axis()[0]:.3f}")
    3699.986 Angstrom
    """
    if arm not in ("both", "blue", "red"):
        raise ValueError(f"arm must be 'both', 'blue' or 'red', got {arm!r}")
    wavelength = 10.0 ** (3.5682 + 1e-4 * np.arange(3890))
    low, high = {"both": (0.0, np.inf), "blue": (0.0, 5900.0), "red": (5700.0, np.inf)}[arm]
    return wavelength[(wavelength >= low) & (wavelength <= high)] * u.AA


def throughput(wavelength: np.ndarray, arm: str = "both") -> np.ndarray:
    """Efficiency of telescope, dichroic, gratings and detectors, peak 1, shaped after LAMOST's signal-to-noise ratios.

    Parameters
    ----------
    wavelength : ndarray
        Vacuum Angstrom.
    arm : {"both", "blue", "red"}
        "both" adds the light of the two, as their combination does where they overlap.
    """
    w = np.asarray(wavelength, dtype=np.float64)
    dichroic = 1.0 / (1.0 + np.exp((w - 5880.0) / 55.0))
    blue = 0.75 * np.exp(-0.5 * ((w - 5250.0) / 800.0) ** 2) * dichroic
    red = np.exp(-0.5 * ((w - 7300.0) / np.where(w < 7300.0, 1150.0, 1300.0)) ** 2) * (1.0 - dichroic)
    if arm == "both":
        return blue + red
    return blue if arm == "blue" else red


def simulate_star(
    template: Spectrum,
    ip: IPModel | IPArchive,
    *,
    time: Time,
    fiber: int,
    velocity: u.Quantity = 0.0 * u.km / u.s,
    snr: float = 50.0,
    spectrograph: int | None = None,
    arm: str | None = None,
    wavelength: u.Quantity | None = None,
    center: str | Callable = "zero",
    ra: u.Quantity | None = None,
    dec: u.Quantity | None = None,
    helio_rv: u.Quantity | None = None,
    drift: u.Quantity = 0.0 * u.AA,
    cosmic_rate: float = 0.0,
    noise: bool = True,
    seed: int | tuple[int, ...] | np.random.Generator = 0,
) -> Spectrum:
    """A star as LAMOST publishes it: vacuum, heliocentric, on the log grid, with the ``meta`` of the LAMOST loaders.

    The template is Doppler-shifted (relativistically) and convolved with the IP, on the detector's wavelengths, by
    `lamost_lsf.convolve`: the kernel is that of the true wavelength.

    Parameters
    ----------
    template : `~specutils.Spectrum`
        Rest frame, vacuum, of high resolution.
    ip : IPModel or IPArchive
        The truth: `Observatory` (or an archive of trained models) gives both arms, joined at 5800 A (air; blue
        pixels up to there), a `SimulatedIP`
        its arm.
    time : `~astropy.time.Time`
        The exposure's, or those of the exposures of a co-add, which then has the mean of their IPs.
    fiber : int
    velocity : `~astropy.units.Quantity`
        Heliocentric radial velocity, positive receding.
    snr : float
        Median signal-to-noise ratio per pixel. It varies along the spectrum with the star's flux, the throughput and
        the
        lines of the sky.
    spectrograph : int, optional
        1 by default, or the IP's own.
    arm : {"both", "blue", "red"}, optional
        By default what ``ip`` has.
    wavelength : `~astropy.units.Quantity`, optional
        Axis of the result, vacuum, heliocentric; `lamost_axis` by default.
    center : str or callable
        Line centre that the published wavelengths rest on; LAMOST's is "sersic".
    ra, dec : `~astropy.units.Quantity`, optional
        Target, FK5. With both, ``helio_rv`` is that of the time and target.
    helio_rv : `~astropy.units.Quantity`, optional
        HELIO_RV, *minus* the heliocentric correction: ``w_detector = w (1 + HELIO_RV / c)``. 0 by default.
    drift : `~astropy.units.Quantity`
        Shift of the light on the detector between arc and star, to the red: length or velocity.
    cosmic_rate : float
        Unflagged spikes per pixel.
    noise : bool
        False leaves the flux noiseless (the uncertainty stays).
    seed : int, tuple of int, or Generator

    Returns
    -------
    `~specutils.Spectrum`
        Flux in the template's unit, `~astropy.nddata.InverseVariance` (true), mask where the template does not
        reach, meta
        with all keys of the LAMOST loaders and ``truth``: ``velocity``, ``drift``, ``noiseless``, ``cosmic``, ``seed``.

    Raises
    ------
    TypeError, ValueError
        Arguments that are not what is described; a template that does not reach the axis.
    OutOfRangeError
        A fibre that the IP does not have.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.time import Time
    >>> from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template
    >>> star = simulate_star(synthetic_template(6000), Observatory(), time=Time("2017-01-10T15:00"), fiber=31,
    ...                      velocity=-25 * u.km / u.s, snr=60)
    >>> star.meta["arm"], star.meta["fiber"], star.meta["frame"]
    ('both', 31, 'heliocentric')
    """
    if not isinstance(template, Spectrum):
        raise TypeError(f"template must be a specutils Spectrum, got {type(template).__name__}")
    if template.flux.ndim != 1:
        raise ValueError(f"template must be one spectrum, got flux of shape {template.flux.shape}")
    if template.meta.get("wavelength_medium", "vacuum") != "vacuum":
        raise ValueError("template must have vacuum wavelengths")
    if not isinstance(time, Time) or time.size == 0:
        raise TypeError(f"time must be an astropy Time, got {time!r}")
    _check("cosmic_rate", cosmic_rate, 0.0, 0.1)
    if not (np.isscalar(snr) and 0 < snr < np.inf):
        raise ValueError(f"snr must be a positive number, got {snr!r}")
    speed = _velocity("velocity", velocity)
    lsfs, spectrograph = _true_lsfs(ip, time, fiber, spectrograph, arm)
    arm = next(iter(lsfs)) if len(lsfs) == 1 else "both"
    axis = lamost_axis(arm) if wavelength is None else u.Quantity(wavelength)
    published = to_angstrom(axis, "wavelength")
    meta = _meta(time, fiber, spectrograph, arm, ra, dec, helio_rv, center)
    to_detector = 1.0 + meta["helio_rv"].to_value(u.km / u.s) / SPEED_OF_LIGHT

    # On the detector, the light of the star at rest wavelength w lies at w * (1 + z) * to_detector, plus the drift.
    detector = published * to_detector
    rest = to_angstrom(template.spectral_axis, "the template's axis")
    source_axis = rest * float(doppler_factor(speed)) * to_detector
    source = Spectrum(flux=template.flux, spectral_axis=source_axis * u.AA, mask=template.mask)
    true = detector - _shift(drift, detector)
    noiseless, bad = np.zeros(published.size), np.ones(published.size, dtype=bool)
    for name, lsf in lsfs.items():
        # Either arm takes the light of both sides of 5800 A; they are joined pixel by pixel.
        here = (true >= source_axis[0]) & (true <= source_axis[-1])
        if len(lsfs) > 1:
            here &= (detector < _ARM_BOUNDARY) == (name == "blue")
        if np.count_nonzero(here) < 2:
            continue
        model = convolve(source, lsf, true[here] * u.AA, center=center)
        noiseless[here], bad[here] = model.flux.value, model.mask
    if np.all(bad):
        raise ValueError("the template does not cover any pixel of the spectrum")
    noiseless[bad] = 0.0
    sigma = _sigma(noiseless, bad, published, arm, float(snr))
    rng = generator(seed)
    flux = noiseless.copy()
    if noise:
        flux = flux + sigma * rng.normal(size=flux.size)
    cosmic = rng.uniform(size=flux.size) < cosmic_rate
    flux = flux + np.where(cosmic, sigma * rng.lognormal(np.log(15.0), 0.7, flux.size), 0.0)
    flux[bad] = 0.0
    with np.errstate(divide="ignore"):
        ivar = np.where(bad, 0.0, 1.0 / sigma**2)
    meta["snr"] = _band_ratios(published, noiseless, sigma, bad)
    meta["truth"] = {
        "velocity": speed * u.km / u.s,
        "drift": drift,
        "noiseless": noiseless,
        "cosmic": cosmic & ~bad,
        "template": template.meta.get("name"),
        "seed": None if isinstance(seed, np.random.Generator) else seed,
    }
    return Spectrum(
        flux=flux * template.flux.unit,
        spectral_axis=published * u.AA,
        uncertainty=InverseVariance(ivar),
        mask=bad,
        meta=meta,
    )


# -- inside ---------------------------------------------------------------------------------------------------


def _velocity(name: str, value: u.Quantity) -> float:
    """km/s of a scalar velocity below light's."""
    if not isinstance(value, u.Quantity) or not value.isscalar or not value.unit.is_equivalent(u.km / u.s):
        raise TypeError(f"{name} must be a scalar velocity, e.g. -25 * u.km / u.s, got {value!r}")
    speed = float(value.to_value(u.km / u.s))
    if not abs(speed) < SPEED_OF_LIGHT:
        raise ValueError(f"{name} must be finite and below the speed of light, got {value}")
    return speed


class _WideLSF(LSF):
    """A simulated LSF on offsets that cut nothing off, with its centres taken on the window of the IP.

    Sersic's centre has a background in it and depends on the window: arcs, archives and stars must use the same one.
    """

    def __init__(self, wide: LSF, window: LSF) -> None:
        super().__init__(wide.meta)
        self._wide, self._window = wide, window
        self.offset = wide.offset

    def _sample(self, wavelength: np.ndarray) -> np.ndarray:
        return self._wide.sample(wavelength)

    def zero_point(self, wavelength: np.ndarray, center: str | Callable | None = None) -> np.ndarray:
        return self._window.zero_point(wavelength, center)


def _arm_lsf(ip: IPModel, time: Time, fiber: int) -> LSF:
    labels = {"time": time if ip.needs_time else None, "fiber": fiber if ip.needs_fiber else None}
    lsf = ip.at(**labels, extrapolate=True)
    if isinstance(ip, SimulatedIP):
        return _WideLSF(ip.with_offset(_OFFSET * u.AA).at(**labels, extrapolate=True), lsf)
    return lsf


def _true_lsfs(
    ip: IPModel | IPArchive, time: Time, fiber: int, spectrograph: int | None, arm: str | None
) -> tuple[dict[str, LSF], int]:
    """LSFs by arm in the detector's frame, and the spectrograph; one called "both" where the IP knows of no arms."""
    if arm not in (None, "both", "blue", "red"):
        raise ValueError(f"arm must be 'both', 'blue' or 'red', got {arm!r}")
    if isinstance(ip, IPArchive):
        spectrograph = 1 if spectrograph is None else spectrograph
        arms = ("blue", "red") if arm in (None, "both") else (arm,)
        if isinstance(ip, Observatory):
            return {name: _arm_lsf(ip.ip(spectrograph, name), time, fiber) for name in arms}, int(spectrograph)
        labels = {"spectrograph": spectrograph, "time": time, "fiber": fiber, "extrapolate": True}
        return {name: ip.lsf(arm=name, **labels) for name in arms}, int(spectrograph)
    if not isinstance(ip, IPModel):
        raise TypeError(f"ip must be an IPModel, an Observatory or an IPArchive, got {type(ip).__name__}")
    own = ip.meta.get("arm")
    if own in ARM_LIMITS and arm not in (None, own):
        raise ValueError(f"the IP is that of the {own} arm, arm={arm!r} was asked for; pass an Observatory for both")
    spectrograph = spectrograph if spectrograph is not None else int(ip.meta.get("spectrograph", 1))
    return {arm or own or "both": _arm_lsf(ip, time, fiber)}, spectrograph


def _sigma(flux: np.ndarray, bad: np.ndarray, wavelength: np.ndarray, arm: str, snr: float) -> np.ndarray:
    """1-sigma noise per pixel: the star's photons, the sky's, and the detector's."""
    response = np.maximum(throughput(wavelength, arm), 1e-3)
    mean = np.mean(np.abs(flux[~bad]))
    if not mean > 0:
        raise ValueError("the template is 0 everywhere on the spectrum's axis")
    light = np.maximum(flux, 0.0) / mean * response
    width = np.gradient(np.log(wavelength)) * 1e4
    # the sky, relative to a star that the survey observes at a signal-to-noise ratio of 30, in units of that star's
    # light
    sky = 0.15 * np.ones_like(wavelength)
    for line in sky_lines():
        fwhm = 2.7 if line.vacuum < _ARM_BOUNDARY else 4.0
        sky += 8.0 * line.intensity * np.exp(-4.0 * np.log(2.0) * ((wavelength - line.vacuum) / fwhm) ** 2)
    sky = 1800.0 * sky * response * width
    detector = 150.0

    def variance(electrons: float) -> np.ndarray:
        return electrons * light * width + sky + detector

    def excess(log_electrons: float) -> float:
        electrons = np.exp(log_electrons)
        ratio = electrons * light * width / np.sqrt(variance(electrons))
        return float(np.median(ratio[~bad])) - snr

    electrons = np.exp(brentq(excess, -10.0, 60.0))
    return np.sqrt(variance(electrons)) / (electrons * response * width) * mean


def _band_ratios(wavelength: np.ndarray, flux: np.ndarray, sigma: np.ndarray, bad: np.ndarray) -> dict[str, float]:
    bands = {"u": (3700, 4000), "g": (4000, 5500), "r": (5500, 6900), "i": (6900, 8200), "z": (8200, 9100)}
    ratios = {}
    for band, (low, high) in bands.items():
        here = (wavelength >= low) & (wavelength < high) & ~bad
        if np.any(here):
            ratios[band] = round(float(np.median(flux[here] / sigma[here])), 2)
    return ratios


def _meta(
    time: Time,
    fiber: int,
    spectrograph: int,
    arm: str,
    ra: u.Quantity | None,
    dec: u.Quantity | None,
    helio_rv: u.Quantity | None,
    center: str | Callable,
) -> dict[str, Any]:
    """The loaders' own ``meta`` of a header with what a simulation knows."""
    lmjm = np.atleast_1d(time_to_lmjm(time))
    header = fits.Header()
    header["ORIGIN"] = ("lamost_lsf", "simulation")
    header["TELESCOP"] = "SIMULATION"
    header["LONGITUD"], header["LATITUDE"] = _SITE
    header["LMJMLIST"] = "-".join(f"{minute:.0f}" for minute in lmjm)
    if (ra is None) != (dec is None):
        raise ValueError("give both ra and dec, or neither")
    if ra is not None:
        header["RA"], header["DEC"] = (float(u.Quantity(angle).to_value(u.deg)) for angle in (ra, dec))
    header["FIBERID"], header["SPID"] = int(fiber), int(spectrograph)
    header["FIBERTYP"], header["FIBERMAS"] = "Obj", 0
    for code in ("B", "R"):
        if arm in ("both", {"B": "blue", "R": "red"}[code]):
            header[f"NEXP_{code}"] = int(lmjm.size)
    header["HELIO"], header["VACUUM"] = True, True
    if helio_rv is not None:
        speed = _velocity("helio_rv", helio_rv)
    elif ra is not None:
        known = {"time": lmjm_to_time(lmjm), "ra": header["RA"] * u.deg, "dec": header["DEC"] * u.deg}
        known["site"] = tuple(angle * u.deg for angle in _SITE)
        speed = float(check_heliocentric(known, warn=False).computed.to_value(u.km / u.s))
    else:
        speed = 0.0
    header["HELIO_RV"] = speed
    meta = build_meta(header, survey="LRS", wavelength_grid="header")
    # whole minutes are a header's; the IP was taken at the very time
    meta["lmjm"], meta["time"] = lmjm, lmjm_to_time(lmjm)
    meta["arm"] = arm
    meta["helio_rv"] = speed * u.km / u.s
    meta["wavelength_center"] = center if isinstance(center, str) else getattr(center, "name", center)
    return meta
