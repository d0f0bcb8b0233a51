"""Centres of arc lines on the detector, by any centre definition; lines that should not be trusted say why."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from lamost_lsf.errors import FitWarning
from lamost_lsf.plugins import apply_center, center_uncertainty

__all__ = ["REASONS", "CenteredLines", "center_lines"]

#: Why a line is not used, by the number in `CenteredLines.why`.
REASONS = (
    "",
    "off the detector",
    "bad pixels",
    "saturated",
    "no line found",
    "faint",
    "blend",
    "too broad",
    "too narrow",
    "no centre",
    "not where expected",
)
_OFF, _BAD, _SATURATED, _MISSING, _FAINT, _BLEND, _BROAD, _NARROW, _NO_CENTER, _ELSEWHERE = range(1, 11)


@dataclass(frozen=True)
class CenteredLines:
    """Lines of m spectra (or m lines of one), measured.

    Attributes
    ----------
    pixel : ndarray (m,)
        Centre; NaN where there is none.
    error : ndarray (m,)
        Standard deviation, pixels, that the noise of the pixels leaves; NaN where unknown.
    peak : ndarray (m,)
        Highest pixel above the background.
    fwhm : ndarray (m,)
        Full width at half maximum, pixels; NaN where a side does not fall to half.
    why : ndarray of int (m,)
        Index into `REASONS`; 0 is a good line.
    """

    pixel: np.ndarray
    error: np.ndarray
    peak: np.ndarray
    fwhm: np.ndarray
    why: np.ndarray

    @property
    def reason(self) -> np.ndarray:
        """Texts of `REASONS`, "" for a good line."""
        return np.array(REASONS, dtype=object)[self.why].astype(str)


@njit(cache=True, error_model="numpy")
def _cut(flux, noise, bad, row, expected, low, high, search, fwhm, saturation, min_snr, max_valley,
         profile, sigma, masked, origin, peak, width, why):  # fmt: skip
    """Cut a background-subtracted window around each line.

    The window reaches from ``low`` to ``high`` pixels about the line's highest pixel. Beyond the valley towards a
    neighbouring line, pixels are masked; a shallow valley makes a blend.
    """
    n_pix = flux.shape[1]
    for k in range(expected.size):
        r = row[k]
        y = flux[r]
        why[k] = 0
        profile[k] = 0.0
        sigma[k] = 1.0
        masked[k] = True
        peak[k] = np.nan
        width[k] = np.nan
        origin[k] = 0
        where = expected[k]
        if not (where > -0.5 and where < n_pix - 0.5):
            why[k] = _OFF
            continue
        first = max(int(np.ceil(where - search)), 1)
        last = min(int(np.floor(where + search)), n_pix - 2)
        # the highest local maximum of the range, not the flank of a brighter neighbour
        top = -1
        for j in range(first, last + 1):
            if bad[r, j] or y[j] < y[j - 1] or y[j] < y[j + 1]:
                continue
            if top < 0 or y[j] > y[top]:
                top = j
        if top < 0:
            why[k] = _MISSING
            for j in range(max(first, 0), min(last, n_pix - 1) + 1):
                if bad[r, j]:
                    why[k] = _BAD
            continue
        # a plateau: its middle
        end = top
        while end + 1 < n_pix and y[end + 1] == y[top]:
            end += 1
        flat = end - top + 1
        top = (top + end) // 2
        begin, stop = top + low, top + high
        origin[k] = top
        if begin < 0 or stop > n_pix - 1:
            # a window that the edge cuts unevenly shifts every centre
            why[k] = _OFF
            continue
        full = y[top] >= saturation or flat >= 3
        for j in range(begin, stop + 1):
            if y[j] >= saturation:
                full = True
        # limits: the valley towards a neighbour
        core = max(int(np.ceil(0.75 * fwhm)), 1)
        limit = np.empty(2, np.int64)
        valley = np.empty(2)
        shallow = 0.0
        for side in range(2):
            step = -1 if side == 0 else 1
            edge = begin if side == 0 else stop
            lowest, at = y[top], top
            j = top
            found = edge
            while j != edge:
                j += step
                if bad[r, j]:
                    continue
                if y[j] <= lowest:
                    lowest, at = y[j], j
                elif y[j] - lowest > max(4.0 * np.sqrt(noise[r, j] ** 2 + noise[r, at] ** 2), 0.02 * (y[top] - lowest)):
                    found = at
                    break
            limit[side] = found
            valley[side] = lowest
        # background: the straight line through the lowest place of either side. Three pixels each: the lowest single
        # one of many is low by noise.
        left, right = -1, -1
        left_level, right_level = 0.0, 0.0
        for side in range(2):
            first, last = (limit[0], top - 1) if side == 0 else (top + 1, limit[1])
            for j in range(first, last + 1):
                if bad[r, j]:
                    continue
                total, count = 0.0, 0
                for i in range(max(j - 1, first), min(j + 1, last) + 1):
                    if not bad[r, i]:
                        total += y[i]
                        count += 1
                mean = total / count
                if side == 0 and (left < 0 or mean < left_level):
                    left, left_level = j, mean
                if side == 1 and (right < 0 or mean < right_level):
                    right, right_level = j, mean
        if left < 0 or right < 0:
            why[k] = _BAD
            continue
        # a side that is cut short by a neighbour has no background to show: that of the other side holds for both
        short_left, short_right = top - left < core + 1, right - top < core + 1
        slope = (right_level - left_level) / (right - left)
        level = left_level - slope * left
        if (short_left or limit[0] > begin) and left_level > right_level and limit[1] == stop:
            slope, level = 0.0, right_level
        elif (short_right or limit[1] < stop) and right_level > left_level and limit[0] == begin:
            slope, level = 0.0, left_level
        height = y[top] - level - slope * top
        peak[k] = height
        # cut to the same distance on both sides: one wing without the other would shift the centre
        reach_left, reach_right = top - begin, stop - top
        if limit[0] > begin:
            reach_right = min(reach_right, max(top - limit[0], core + 1))
        if limit[1] < stop:
            reach_left = min(reach_left, max(limit[1] - top, core + 1))
        if not height > 0.0 or height < min_snr * noise[r, top]:
            why[k] = _FAINT
            continue
        for side in range(2):
            at = limit[side]
            edge = begin if side == 0 else stop
            if at != edge:
                shallow = max(shallow, (valley[side] - level - slope * at) / height)
        missing = False
        for j in range(begin, stop + 1):
            i = j - begin
            profile[k, i] = y[j] - level - slope * j
            sigma[k, i] = noise[r, j]
            masked[k, i] = bad[r, j] or j < limit[0] or j > limit[1] or top - j > reach_left or j - top > reach_right
            if bad[r, j] and abs(j - top) <= core:
                missing = True
        # width at half maximum, by straight lines
        half = 0.5 * height
        span = 0.0
        whole = True
        for side in range(2):
            step = -1 if side == 0 else 1
            j = top
            edge = limit[side]
            ok = False
            while j != edge:
                a = y[j] - level - slope * j
                j += step
                b = y[j] - level - slope * j
                if b <= half:
                    span += abs(j - top) - 1.0 + (a - half) / (a - b)
                    ok = True
                    break
            whole = whole and ok
        if whole:
            width[k] = span
        if full:
            why[k] = _SATURATED
        elif missing:
            why[k] = _BAD
        elif shallow > max_valley or not whole:
            why[k] = _BLEND


def center_lines(
    flux: np.ndarray,
    noise: np.ndarray,
    bad: np.ndarray,
    row: np.ndarray,
    expected: np.ndarray,
    *,
    center: str | Callable,
    window: tuple[int, int],
    search: float,
    fwhm: float,
    saturation: float = np.inf,
    min_snr: float = 8.0,
    max_valley: float = 0.4,
    width_limits: tuple[float, float] | None = (0.6, 1.5),
) -> CenteredLines:
    """Measure lines near expected pixels.

    Parameters
    ----------
    flux, noise : ndarray (n_row, n_pix)
        Spectra, and standard deviations of their pixels.
    bad : ndarray of bool (n_row, n_pix)
        Pixels that do not count.
    row : ndarray of int (m,)
        Spectrum of each line.
    expected : ndarray (m,)
        Pixel where each line should be.
    center : str or callable
        Centre definition. Fits weigh all pixels alike, as they do on the profiles of an IP: the centre of an asymmetric
        line depends on the weights.
    window : (int, int)
        First and last pixel of the window, relative to a line's highest pixel.
    search : float
        Largest distance, pixels, of the highest pixel from where it is expected.
    fwhm : float
        Typical full width at half maximum, pixels.
    saturation : float
        Counts at which a pixel is full.
    min_snr : float
        Least height of the highest pixel, in its standard deviations.
    max_valley : float
        Highest valley towards a neighbour, relative to the line.
    width_limits : (float, float), optional
        Least and largest width, relative to the median width of good lines in the same row (all rows, where a row has
        few). None: not looked at.

    Returns
    -------
    CenteredLines
    """
    m = expected.size
    low, high = window
    size = high - low + 1
    profile, sigma = np.empty((m, size)), np.empty((m, size))
    masked = np.empty((m, size), dtype=np.bool_)
    origin, why = np.empty(m, dtype=np.int64), np.empty(m, dtype=np.int64)
    peak, width = np.empty(m), np.empty(m)
    _cut(
        np.ascontiguousarray(flux), np.ascontiguousarray(noise), np.ascontiguousarray(bad), np.asarray(row, np.int64),
        np.asarray(expected, np.float64), low, high, float(search), float(fwhm), float(saturation), float(min_snr),
        float(max_valley), profile, sigma, masked, origin, peak, width, why,
    )  # fmt: skip
    if width_limits is not None and m:
        typical = _typical_widths(row, width, why)
        with np.errstate(invalid="ignore"):
            why[(why == 0) & (width > width_limits[1] * typical)] = _BROAD
            why[(why == 0) & (width < width_limits[0] * typical)] = _NARROW
    pixel, error = np.full(m, np.nan), np.full(m, np.nan)
    x = np.arange(low, high + 1, dtype=np.float64)
    # lines that were rejected are centred too, where they can be: their residuals tell the user something
    tried = np.flatnonzero((why == 0) | np.isin(why, (_BAD, _SATURATED, _BLEND, _BROAD, _NARROW)))
    if tried.size:
        scale = peak[tried, None]
        shape, noise_shape, hidden = profile[tried] / scale, sigma[tried] / scale, masked[tried]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # each line that fails says so itself
            value = np.asarray(apply_center(center, x, shape, mask=hidden), dtype=np.float64)
            inside = np.isfinite(value) & (np.abs(value) <= max(search, fwhm))
            pixel[tried] = np.where(inside, origin[tried] + value, np.nan)
            why[tried[~inside & (why[tried] == 0)]] = _NO_CENTER
            good = np.isfinite(noise_shape) & (noise_shape > 0)
            spread = center_uncertainty(center, x, shape, error=np.where(good, noise_shape, 1.0), mask=hidden)
            # what a background that is off by one standard deviation of a wing's pixel would do
            wing = np.median(np.where(hidden, np.nan, noise_shape)[:, [0, 1, 2, -3, -2, -1]], axis=1)
            wing = np.where(np.isfinite(wing), wing, np.median(noise_shape, axis=1))
            raised = np.asarray(apply_center(center, x, shape + wing[:, None], mask=hidden), dtype=np.float64)
            spread = np.hypot(spread, np.where(np.isfinite(raised), raised - value, 0.0))
        error[tried] = np.where(inside & np.all(good | hidden, axis=1), spread, np.nan)
    with np.errstate(invalid="ignore"):
        why[(why == 0) & (np.abs(pixel - expected) > search + 1.0)] = _ELSEWHERE
    return CenteredLines(pixel, error, peak, width, why)


def _typical_widths(row: np.ndarray, width: np.ndarray, why: np.ndarray) -> np.ndarray:
    """Median width of the good lines of each line's own row; of all rows where a row has fewer than five."""
    good = (why == 0) & np.isfinite(width)
    result = np.full(width.shape, np.median(width[good]) if np.any(good) else np.nan)
    rows, inverse = np.unique(row, return_inverse=True)
    for k in range(rows.size):
        own = (inverse == k) & good
        if np.count_nonzero(own) >= 5:
            result[inverse == k] = np.median(width[own])
    return result
