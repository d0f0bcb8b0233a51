"""Drift of a wavelength scale since its arc, from the night sky's emission lines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable
from scipy.interpolate import make_interp_spline

from lamost_lsf.calibration.centering import CenteredLines, center_lines
from lamost_lsf.calibration.inputs import ArcArrays, arc_arrays, check_center, check_lines, rough_scale
from lamost_lsf.calibration.matching import predict_pixels
from lamost_lsf.calibration.peaks import pixel_noise
from lamost_lsf.lines import LineList
from lamost_lsf.units import SPEED_OF_LIGHT

__all__ = ["Drift", "measure_drift", "sky_lines"]

# Air wavelengths: [O I] and Na I, NIST; Hg I of street lamps, NIST; OH, Osterbrock et al. (1996, PASP 108, 277), those
# of which no other line of comparable strength lies within 5 A; doublets that are not resolved in the mean.
_SKY = (
    ("Hg I", 4046.565), ("Hg I", 4358.335), ("Hg I", 5460.750), ("[O I]", 5577.338), ("Na I", 5889.951),
    ("Na I", 5895.924), ("[O I]", 6300.304), ("[O I]", 6363.776), ("OH", 6863.955), ("OH", 6923.220),
    ("OH", 7276.405), ("OH", 7340.885), ("OH", 7750.640), ("OH", 7794.112), ("OH", 7821.503), ("OH", 7913.708),
    ("OH", 7964.650), ("OH", 7993.332), ("OH", 8344.602), ("OH", 8399.170), ("OH", 8430.174), ("OH", 8465.36),
    ("OH", 8827.096), ("OH", 8885.850), ("OH", 8919.641), ("OH", 8943.395), ("OH", 9375.961), ("OH", 9439.660),
    ("OH", 9872.137),
)  # fmt: skip
#: FWHM of a line, pixels, before it is known.
_FIRST_WIDTH = 4.0


def sky_lines(*, city: bool = True, sodium: bool = True) -> LineList:
    """Lines of the night sky, 4000-9900 A, that stand alone at R = 1000-5000.

    Parameters
    ----------
    city : bool
        With the mercury lines of street lamps, which not every site has.
    sodium : bool
        With the Na D lines, which lie on absorption lines in the spectra of stars.

    Examples
    --------
    >>> from lamost_lsf.calibration import sky_lines
    >>> lines = sky_lines(city=False)
    >>> str(lines.species[0]), float(lines.air[0])
    ('[O I]', 5577.338)
    """
    rows = [r for r in _SKY if (city or r[0] != "Hg I") and (sodium or r[0] != "Na I")]
    return LineList.from_wavelengths(
        np.array([r[1] for r in rows]) * u.AA, medium="air", species=np.array([r[0] for r in rows]), name="night sky"
    )


@dataclass(frozen=True, eq=False)
class Drift:
    """How far sky lines lie from where the wavelength scale expects them; n spectra, m lines.

    Positive means: light has moved, since the scale was made, to where the scale reads *larger* wavelengths.

    Attributes
    ----------
    wavelength : ndarray (m,)
        Vacuum Angstrom.
    label : ndarray of str (m,)
    velocity, velocity_error : ndarray (n, m)
        Line by line, km/s; NaN where a line could not be measured.
    pixel, pixel_error : ndarray (n, m)
        The same in pixels of the detector, towards larger pixel numbers.
    reason : ndarray of str (n, m)
        Why a line is not used, "" where it is.
    center : str
        Definition of the centres.
    fiber : ndarray of int (n,)
    """

    wavelength: np.ndarray
    label: np.ndarray
    velocity: np.ndarray
    velocity_error: np.ndarray
    pixel: np.ndarray
    pixel_error: np.ndarray
    reason: np.ndarray
    center: str
    fiber: np.ndarray

    def __repr__(self) -> str:
        value, _, number = self.mean("velocity")
        typical = np.nanmedian(value) if np.any(np.isfinite(value)) else np.nan
        return (
            f"<Drift center={self.center!r}: {len(value)} spectra, {number.min()}-{number.max()} lines, "
            f"median {typical:+.2f} km/s>"
        )

    def mean(self, of: str = "pixel", *, exclude: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean of the lines of each spectrum, weighted and without outliers.

        Parameters
        ----------
        of : {"pixel", "velocity"}
            Flexure moves all lines by the same number of pixels; a wrong frame by the same velocity.
        exclude : array_like of bool (m,), optional
            Lines to leave out.

        Returns
        -------
        value, error : ndarray (n,)
            Pixels or km/s; NaN without lines. The error is the larger of what the lines' errors and their scatter say.
        number : ndarray of int (n,)
            Lines used.

        Raises
        ------
        ValueError
            Another quantity, a mask of another shape.
        """
        if of not in ("pixel", "velocity"):
            raise ValueError(f'of must be "pixel" or "velocity", got {of!r}')
        values, errors = (self.pixel, self.pixel_error) if of == "pixel" else (self.velocity, self.velocity_error)
        keep = np.ones(self.wavelength.size, dtype=bool)
        if exclude is not None:
            exclude = np.asarray(exclude, dtype=bool)
            if exclude.shape != keep.shape:
                raise ValueError(f"exclude must have one entry for each of {keep.size} lines, got {exclude.shape}")
            keep = ~exclude
        usable = np.isfinite(values) & np.isfinite(errors) & (errors > 0) & keep
        n = values.shape[0]
        mean, sigma, number = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, dtype=int)
        for i in range(n):
            mean[i], sigma[i], number[i] = _robust_mean(values[i][usable[i]], errors[i][usable[i]])
        return mean, sigma, number

    @classmethod
    def concatenate(cls, drifts: Sequence[Drift]) -> Drift:
        """Drifts of several exposures as one; a line that an exposure does not have is NaN there.

        Raises
        ------
        ValueError
            None given, or different centres.
        """
        drifts = list(drifts)
        if not drifts:
            raise ValueError("no drifts were given")
        if len({d.center for d in drifts}) > 1:
            raise ValueError(f"the drifts were measured by different centres, {sorted({d.center for d in drifts})}")
        keys = sorted({(float(w), str(label)) for d in drifts for w, label in zip(d.wavelength, d.label, strict=True)})
        place = {key: i for i, key in enumerate(keys)}
        n = sum(len(d.fiber) for d in drifts)
        parts = {k: np.full((n, len(keys)), np.nan) for k in ("velocity", "velocity_error", "pixel", "pixel_error")}
        reason = np.full((n, len(keys)), "off the detector", dtype=object)
        first = 0
        for d in drifts:
            rows = np.arange(first, first + len(d.fiber))
            columns = [place[float(w), str(label)] for w, label in zip(d.wavelength, d.label, strict=True)]
            for name, values in parts.items():
                values[np.ix_(rows, columns)] = getattr(d, name)
            reason[np.ix_(rows, columns)] = d.reason
            first += len(d.fiber)
        return cls(
            wavelength=np.array([k[0] for k in keys]),
            label=np.array([k[1] for k in keys], dtype=str),
            **parts,
            reason=reason.astype(str),
            center=drifts[0].center,
            fiber=np.concatenate([d.fiber for d in drifts]),
        )

    def relative(self) -> Drift:
        """The same less each line's median over the spectra.

        What a line is off by in all of them is no drift: a blend at this resolution, or a scale that is wrong there.
        """
        parts = {}
        for name in ("velocity", "pixel"):
            values = getattr(self, name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a line that no spectrum has
                parts[name] = values - np.nanmedian(values, axis=0)
        return replace(self, **parts)

    def to_table(self) -> QTable:
        """One row a spectrum and line: fibre, label, wavelength, velocity, pixel, errors, reason."""
        n, m = self.velocity.shape
        return QTable(
            {
                "fiber": np.repeat(self.fiber, m),
                "label": np.tile(self.label, n),
                "wavelength": np.tile(self.wavelength, n) * u.AA,
                "velocity": self.velocity.ravel() * u.km / u.s,
                "velocity_error": self.velocity_error.ravel() * u.km / u.s,
                "pixel": self.pixel.ravel() * u.pix,
                "pixel_error": self.pixel_error.ravel() * u.pix,
                "reason": self.reason.ravel(),
            },
            meta={"center": self.center},
        )


def _robust_mean(value: np.ndarray, error: np.ndarray) -> tuple[float, float, int]:
    """Weighted mean about the median, without what is 4 sigma off; errors take the scatter that they leave in."""
    if not value.size:
        return np.nan, np.nan, 0
    # what the scatter has beyond the errors goes to all lines alike: a bright line must not decide alone
    extra = 0.0
    keep = np.ones(value.size, dtype=bool)
    for _ in range(5):
        sigma = np.hypot(error, extra)
        weight = np.where(keep, 1.0 / sigma**2, 0.0)
        mean = np.sum(weight * value) / np.sum(weight)
        if value.size > 2:
            middle = np.median(value)
            scatter = 1.4826 * np.median(np.abs(value - middle)) * np.sqrt(value.size / (value.size - 1.0))
            extra = np.sqrt(max(scatter**2 - np.median(error**2), 0.0))
            keep = np.abs(value - middle) <= 4.0 * np.hypot(error, max(extra, 1e-12))
            if not np.any(keep):
                keep = np.ones(value.size, dtype=bool)
    return float(mean), float(1.0 / np.sqrt(np.sum(weight))), int(np.count_nonzero(keep))


def measure_drift(
    spectrum: Any,
    lines: LineList | u.Quantity | None = None,
    *,
    center: str | Callable = "half",
    scale: Any = None,
    ivar: Any = None,
    mask: Any = None,
    medium: str | None = None,
    velocity: u.Quantity = 0.0 * u.km / u.s,
    max_drift: float = 3.0,
    fwhm: float | None = None,
    window: u.Quantity | None = None,
    min_snr: float = 8.0,
) -> Drift:
    """Shift of sky lines against a wavelength scale.

    Parameters
    ----------
    spectrum : ArcExposure, SimulatedExposure, `~specutils.Spectrum`, Quantity or array_like
        Spectra with the sky in them: before its subtraction, or the sky itself; (n_pix,) or (n_fiber, n_pix).
    lines : LineList or `~astropy.units.Quantity`, optional
        `sky_lines` by default.
    center : str or callable
        Definition of a line's centre: that of the wavelength scale. Another one measures the difference of the two,
        which for an asymmetric profile is kilometres per second.
    scale : WavelengthSolution, ExposureCalibration, callable or `~astropy.units.Quantity`, optional
        Vacuum wavelengths of the pixels; what the spectrum carries by default.
    ivar, mask, medium
        As for `calibrate`.
    velocity : `~astropy.units.Quantity`
        By which the scale was moved off the observatory's frame: the detector's wavelengths are the scale's times
        ``1 + velocity / c``. LAMOST's ``HELIO_RV`` for its published spectra, 0 for spectra in the detector's frame.
    max_drift : float
        Largest drift looked for, pixels.
    fwhm : float, optional
        Of a line, pixels; measured by default.
    window : `~astropy.units.Quantity` (2,), optional
        In pixels, about a line; twice the FWHM to either side by default.
    min_snr : float
        Least height of a line over the noise of its highest pixel.

    Returns
    -------
    Drift

    Raises
    ------
    TypeError, ValueError
        Bad arguments; ``center="zero"``; spectra without a scale; no sky line on the scale.

    Examples
    --------
    >>> from astropy.time import Time
    >>> import astropy.units as u
    >>> from lamost_lsf.calibration import measure_drift
    >>> from lamost_lsf.simulation import SimulatedIP, simulate_sky
    >>> sky = simulate_sky(SimulatedIP("red"), Time("2018-01-10T15:00"), fiber=[100], drift=10 * u.km / u.s)
    >>> value, error, number = measure_drift(sky, center="half").mean("velocity")
    >>> print(f"{value[0]:.0f} km/s")      # 10, and what separates the half-flux point from the scale's own zero
    16 km/s
    """
    name = check_center(center)
    data = arc_arrays(spectrum, ivar, mask)
    listed = sky_lines() if lines is None else check_lines(lines, medium)
    if not isinstance(velocity, u.Quantity) or not velocity.unit.is_equivalent(u.km / u.s) or not velocity.isscalar:
        raise TypeError(f"velocity must be a scalar with a unit of velocity, got {velocity!r}")
    for key, value in (("max_drift", max_drift), ("min_snr", min_snr), ("fwhm", fwhm)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"{key} must be a positive number, got {value!r}")
    if scale is None and data.scale is None:
        raise ValueError("the spectrum carries no wavelengths: pass scale=")
    axis = rough_scale(scale if scale is not None else data.scale * u.AA, *data.flux.shape)
    axis = axis * (1.0 + velocity.to_value(u.km / u.s) / SPEED_OF_LIGHT)
    predicted = np.array([predict_pixels(row, listed.vacuum) for row in axis])
    on = np.any(np.isfinite(predicted), axis=0)
    if not np.any(on):
        raise ValueError(f"no sky line lies on the scale, {np.nanmin(axis):.0f} to {np.nanmax(axis):.0f} A (vacuum)")
    listed, predicted = listed[np.flatnonzero(on)], predicted[:, on]
    measured = _measure(data, predicted, center, fwhm, window, max_drift, min_snr)
    good = (measured.why == 0).reshape(predicted.shape)
    pixel = np.where(good, measured.pixel.reshape(predicted.shape), np.nan)
    error = np.where(good, measured.error.reshape(predicted.shape), np.nan)
    read, slope = np.full(predicted.shape, np.nan), np.full(predicted.shape, np.nan)
    for r in range(len(pixel)):
        # a solution knows the wavelength between pixels; a tabulated scale is smooth enough for a cubic
        finite = np.flatnonzero(np.isfinite(axis[r]))
        curve = make_interp_spline(finite, axis[r][finite], k=3)
        inside = good[r]
        read[r, inside] = curve(pixel[r, inside])
        slope[r, inside] = curve(pixel[r, inside], 1)
    shift = (read - listed.vacuum) / listed.vacuum
    return Drift(
        wavelength=listed.vacuum,
        label=listed.species,
        velocity=SPEED_OF_LIGHT * shift,
        velocity_error=SPEED_OF_LIGHT * np.abs(slope) * error / listed.vacuum,
        pixel=(read - listed.vacuum) / slope,
        pixel_error=error,
        reason=measured.reason.reshape(predicted.shape),
        center=name,
        fiber=np.array(data.fiber),
    )


def _measure(
    data: ArcArrays,
    predicted: np.ndarray,
    center: str | Callable,
    fwhm: float | None,
    window: u.Quantity | None,
    max_drift: float,
    min_snr: float,
) -> CenteredLines:
    """Centres of the sky lines, flat over spectra and lines."""
    n_row, n_line = predicted.shape
    flux = np.where(np.isfinite(data.flux), data.flux, 0.0)
    noise = np.empty(flux.shape)
    for r in range(n_row):
        good = ~data.bad[r]
        if data.ivar is not None and np.any(good):
            noise[r] = np.where(good, 1.0 / np.sqrt(np.where(good, data.ivar[r], 1.0)), 1.0)
        else:
            noise[r] = max(pixel_noise(flux[r]), 1e-12 * max(np.ptp(flux[r]), 1e-300))
    rows = np.repeat(np.arange(n_row), n_line)
    width = _FIRST_WIDTH if fwhm is None else float(fwhm)
    # the width first, then the window that goes with it
    for last in (False, True) if fwhm is None else (True,):
        cut = _window(window, width)
        measured = center_lines(
            flux, noise, data.bad, rows, np.nan_to_num(predicted, nan=-10.0).ravel(),
            center=center if last else "max", window=cut, search=max_drift, fwhm=width, min_snr=min_snr,
            width_limits=(0.6, 1.4),
        )  # fmt: skip
        good = (measured.why == 0) & np.isfinite(measured.fwhm)
        if not last and np.count_nonzero(good) >= 2:
            width = float(np.clip(np.median(measured.fwhm[good]), 1.2, 40.0))
    return measured


def _window(window: u.Quantity | None, width: float) -> tuple[int, int]:
    if window is None:
        reach = int(np.ceil(max(2.0 * width, 3.0)))
        return -reach, reach
    if not isinstance(window, u.Quantity) or window.unit != u.pix or window.shape != (2,):
        raise TypeError("window must be two offsets in pix, e.g. (-8, 8) * u.pix")
    low, high = int(np.floor(window[0].value)), int(np.ceil(window[1].value))
    if low > -3 or high < 3:
        raise ValueError(f"the window about a line must reach 3 pixels to either side, got {low} to {high}")
    return low, high
