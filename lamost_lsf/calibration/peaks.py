"""Lines of an arc spectrum, before anybody knows which they are: positions, heights, widths."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter1d, grey_opening, uniform_filter1d
from scipy.signal import find_peaks, peak_widths

__all__ = ["ArcPeaks", "clean_spectrum", "find_arc_lines", "pixel_noise"]

#: Smallest and largest FWHM, pixels, that a search for lines takes for the lines' own.
_WIDTHS = (1.2, 60.0)
#: Bright lines that the width is measured on.
_TYPICAL_LINES = 40


@dataclass(frozen=True)
class ArcPeaks:
    """Lines found in one spectrum, in order of pixel.

    Attributes
    ----------
    pixel : ndarray (n,)
        Top of a parabola through the three highest pixels; whole numbers are centres of pixels.
    height : ndarray (n,)
        Above the local background.
    prominence : ndarray (n,)
        Above the higher of the valleys on either side.
    fwhm : float
        Typical full width at half maximum of a single line, pixels.
    noise : ndarray (n_pixel,)
        Standard deviation of each pixel.
    background : ndarray (n_pixel,)
        What lies below the lines.
    """

    pixel: np.ndarray
    height: np.ndarray
    prominence: np.ndarray
    fwhm: float
    noise: np.ndarray
    background: np.ndarray

    def __len__(self) -> int:
        return self.pixel.size

    def strongest(self, n: int) -> ArcPeaks:
        """The n most prominent lines."""
        keep = np.sort(np.argsort(-self.prominence, kind="stable")[:n])
        return ArcPeaks(
            self.pixel[keep], self.height[keep], self.prominence[keep], self.fwhm, self.noise, self.background
        )


def clean_spectrum(
    flux: ArrayLike, ivar: ArrayLike | None = None, mask: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Flux with bad pixels bridged by straight lines, and where they are.

    Parameters
    ----------
    flux : array_like (n,)
    ivar : array_like (n,), optional
        Inverse variance; 0 or not finite is bad.
    mask : array_like of bool (n,), optional
        True is bad.

    Returns
    -------
    flux : ndarray (n,)
    bad : ndarray of bool (n,)

    Raises
    ------
    ValueError
        Fewer than half of the pixels are good.
    """
    flux = np.array(flux, dtype=np.float64)
    bad = ~np.isfinite(flux)
    if mask is not None:
        bad |= np.asarray(mask, dtype=bool)
    if ivar is not None:
        ivar = np.asarray(ivar, dtype=np.float64)
        bad |= ~(np.isfinite(ivar) & (ivar > 0))
    if 2 * np.count_nonzero(bad) > flux.size:
        raise ValueError(f"{np.count_nonzero(bad)} of {flux.size} pixels are bad: too few are left to find lines in")
    if np.any(bad):
        index = np.arange(flux.size)
        flux[bad] = np.interp(index[bad], index[~bad], flux[~bad])
    return flux, bad


def pixel_noise(flux: np.ndarray) -> float:
    """Standard deviation of pixels without lines, from second differences (lines are few, or smooth)."""
    if flux.size < 8:
        return 0.0
    # var(f[i-1] - 2 f[i] + f[i+1]) = 6 sigma^2; the lower half of the pixels is that without lines
    second = np.abs(flux[:-2] - 2.0 * flux[1:-1] + flux[2:])
    level = uniform_filter1d(flux, 5)[1:-1]
    quiet = second[level <= np.median(level)]
    noise = np.median(quiet) / (0.6745 * np.sqrt(6.0))
    if noise == 0.0:
        # whole numbers, or a spectrum padded with a constant
        positive = quiet[quiet > 0]
        noise = np.median(positive) / (0.6745 * np.sqrt(6.0)) if positive.size > 8 else 1e-6 * np.ptp(flux)
    return float(noise)


def _background(flux: np.ndarray, fwhm: float) -> np.ndarray:
    """Lower envelope on scales above a few line widths, unbiased by noise as far as the smoothing allows."""
    size = int(max(15, round(7 * fwhm))) | 1
    # mirrored ends of a spectrum would hold half lines
    smooth = gaussian_filter1d(flux, max(fwhm / 2.3548, 0.8), mode="nearest")
    return uniform_filter1d(grey_opening(smooth, size=size, mode="nearest"), size, mode="nearest")


@njit(cache=True, error_model="numpy")
def _parabola(flux, peak, out):
    for k in range(peak.size):
        i = peak[k]
        a, b, c = flux[i - 1], flux[i], flux[i + 1]
        curvature = a - 2.0 * b + c
        out[k] = i + (0.5 * (a - c) / curvature if curvature < 0.0 else 0.0)


def _typical_width(flux: np.ndarray, peaks: np.ndarray, prominence: np.ndarray) -> float:
    """Median FWHM of the brighter lines, blends and cosmic rays being the fewer; NaN without lines."""
    if not peaks.size:
        return np.nan
    bright = peaks[np.argsort(-prominence, kind="stable")[:_TYPICAL_LINES]]
    # peaks of a smoothed spectrum may be a pixel off the pixels' own
    near = np.clip(bright[:, None] + np.arange(-1, 2), 0, flux.size - 1)
    top = near[np.arange(bright.size), np.argmax(flux[near], axis=1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no peak after all: its width is 0
        widths = peak_widths(flux, top, rel_height=0.5)[0]
    widths = widths[(widths >= 0.8) & (widths <= _WIDTHS[1])]
    # bright lines may be saturated or blended, which widens: somewhat below the median
    return float(np.clip(np.percentile(widths, 40), *_WIDTHS)) if widths.size else np.nan


def find_arc_lines(
    flux: ArrayLike,
    *,
    ivar: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    fwhm: float | None = None,
    min_snr: float = 5.0,
    min_relative: float = 0.0,
) -> ArcPeaks:
    """Emission lines of a spectrum.

    Parameters
    ----------
    flux : array_like (n_pixel,)
        Counts; a background is allowed.
    ivar : array_like (n_pixel,), optional
        Inverse variance. None: the noise is estimated from the pixels.
    mask : array_like of bool (n_pixel,), optional
        True is bad.
    fwhm : float, optional
        Full width at half maximum of a line, pixels; measured on the bright lines by default.
    min_snr : float
        Least prominence, in standard deviations of a pixel.
    min_relative : float
        Least prominence relative to that of the tenth most prominent line (the most prominent ones may be far above).

    Returns
    -------
    ArcPeaks
        Possibly without lines.

    Raises
    ------
    ValueError
        Not a spectrum: another shape, too few good pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.calibration import find_arc_lines
    >>> pixel = np.arange(300)
    >>> flux = sum(1000 * np.exp(-0.5 * ((pixel - c) / 2.0) ** 2) for c in (50.3, 120.8, 240.1))
    >>> print(find_arc_lines(flux + 20.0, ivar=1 / (flux + 25)).pixel.round(1))
    [ 50.3 120.8 240.1]
    """
    flux = np.asarray(flux, dtype=np.float64)
    if flux.ndim != 1 or flux.size < 16:
        raise ValueError(f"flux must be one spectrum of at least 16 pixels, got shape {flux.shape}")
    clean, bad = clean_spectrum(flux, ivar, mask)
    floor = pixel_noise(clean)
    if ivar is None:
        noise = np.full(flux.size, floor)
    else:
        good = ~bad
        noise = np.full(flux.size, np.inf)
        noise[good] = 1.0 / np.sqrt(np.asarray(ivar, dtype=np.float64)[good])
        noise[bad] = np.median(noise[good])
    noise = np.maximum(noise, 1e-12 * max(np.ptp(clean), 1e-300))

    width = 3.0 if fwhm is None else float(fwhm)
    if not (np.isfinite(width) and width > 0):
        raise ValueError(f"fwhm must be a positive number of pixels, got {fwhm!r}")
    # Pixels' noise would break a broad line into several: smooth by a part of the width, first guessed, then known.
    for _ in range(1 if fwhm is not None else 3):
        sigma = 0.35 * width / 2.3548
        smooth = gaussian_filter1d(clean, sigma, mode="nearest") if sigma > 0.3 else clean
        peaks, properties = find_peaks(smooth, prominence=min_snr * np.min(noise))
        prominence = properties["prominences"]
        significant = (prominence >= min_snr * noise[peaks]) & ~bad[peaks]
        peaks, prominence = peaks[significant], prominence[significant]
        if fwhm is None:
            measured = _typical_width(clean, peaks, prominence)
            width = measured if np.isfinite(measured) else width
    # ripples on a bright line's wing
    if peaks.size and min_relative > 0:
        reference = np.sort(prominence)[::-1][min(9, peaks.size - 1)]
        keep = prominence >= min_relative * reference
        peaks, prominence = peaks[keep], prominence[keep]
    background = _background(clean, width)
    inner = (peaks > 0) & (peaks < flux.size - 1)
    peaks, prominence = peaks[inner], prominence[inner]
    pixel = np.empty(peaks.size)
    _parabola(smooth, peaks, pixel)
    return ArcPeaks(pixel, clean[peaks] - background[peaks], prominence, width, noise, background)
