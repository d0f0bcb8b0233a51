"""`extract_profiles`: from an arc exposure to line profiles, with a named reason for each that is rejected."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from os import PathLike

import astropy.units as u
import numpy as np
from astropy.table import Table
from numba import njit
from scipy.interpolate import CubicSpline

from lamost_lsf.arcs.exposure import ArcExposure
from lamost_lsf.arcs.profiles import EXPOSURE_COLUMNS, ProfileSet
from lamost_lsf.arcs.quality import ProfileFlag, find_cosmic_rays, reference_shapes
from lamost_lsf.instruments import Instrument, Quality, get_instrument
from lamost_lsf.lines import LineList
from lamost_lsf.spline import _stationary, _system

__all__ = ["extract_profiles"]

_LOW_FLUX = int(ProfileFlag.LOW_FLUX)
_NOT_SINGLE_PEAKED = int(ProfileFlag.NOT_SINGLE_PEAKED)
_COSMIC_RAY = int(ProfileFlag.COSMIC_RAY)
_SATURATED = int(ProfileFlag.SATURATED)
_BLEND = int(ProfileFlag.BLEND)
_GAP = int(ProfileFlag.GAP)
_BACKGROUND_SLOPE = int(ProfileFlag.BACKGROUND_SLOPE)
_OFF_CHIP = int(ProfileFlag.OFF_CHIP)

#: Pixels beyond the window that the spline leans on, so that its ends are not extrapolated.
_MARGIN = 4
#: Fewest good pixels of a profile.
_LEAST_PIXELS = 8
#: A second maximum must exceed the valley by this many standard deviations.
_PEAK_SIGMA = 5.0
#: Equal highest pixels that make a flat top.
_FLAT_TOP = 3


@lru_cache(maxsize=1)
def _spline_variance() -> float:
    """Variance of a cubic spline through independent unit-variance pixels, in the mean between them.

    The integral of the square of the cardinal spline.
    """
    pixel = np.arange(-30.0, 31.0)
    cardinal = CubicSpline(pixel, pixel == 0.0)
    fine = np.linspace(-30.0, 30.0, 60 * 64 + 1)
    return float(np.sum(cardinal(fine) ** 2) / 64.0)


# -- one profile --------------------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy")
def _background(x, y, good, low, high):
    """Peak pixel, and the line (level at 0, slope) through the lowest pixels on either side; peak -1 on failure."""
    n = x.size
    peak, top = -1, 0.0
    for j in range(n):
        if not good[j] or x[j] < 0.5 * low or x[j] > 0.5 * high:
            continue
        if peak < 0 or y[j] > top:
            peak, top = j, y[j]
    if peak < 0:
        return -1, 0.0, 0.0
    # a broad line may have its highest pixel just beyond the inner half
    for _ in range(2):
        for j in (peak - 1, peak + 1):
            if 0 <= j < n and good[j] and low <= x[j] <= high and y[j] > y[peak]:
                peak = j
                break
    left, right = -1, -1
    for j in range(n):
        if not good[j] or x[j] < low or x[j] > high:
            continue
        if j < peak and (left < 0 or y[j] < y[left]):
            left = j
        if j > peak and (right < 0 or y[j] < y[right]):
            right = j
    if left < 0 or right < 0:
        return -1, 0.0, 0.0
    slope = (y[right] - y[left]) / (x[right] - x[left])
    return peak, y[left] - slope * x[left], slope


@njit(cache=True, error_model="numpy")
def _spline(x, y, n, second):
    """Second derivatives of the not-a-knot spline through the first n knots; see `lamost_lsf.spline._system`."""
    h = np.diff(x[:n])
    lower, diagonal, upper = _system(h)
    m = n - 2
    for i in range(m):
        second[i + 1] = 6.0 * ((y[i + 2] - y[i + 1]) / h[i + 1] - (y[i + 1] - y[i]) / h[i])
    for i in range(1, m):
        ratio = lower[i] / diagonal[i - 1]
        diagonal[i] -= ratio * upper[i - 1]
        second[i + 1] -= ratio * second[i]
    second[m] /= diagonal[m - 1]
    for i in range(m - 2, -1, -1):
        second[i + 1] = (second[i + 1] - upper[i] * second[i + 2]) / diagonal[i]
    second[0] = second[1] - (second[2] - second[1]) * h[0] / h[1]
    second[n - 1] = second[n - 2] + (second[n - 2] - second[n - 3]) * h[n - 2] / h[n - 3]


@njit(cache=True, error_model="numpy")
def _cubic(x, y, second, i):
    """Power-basis coefficients of interval i."""
    h = x[i + 1] - x[i]
    p, q = second[i], second[i + 1]
    return y[i], (y[i + 1] - y[i]) / h - h * (2.0 * p + q) / 6.0, 0.5 * p, (q - p) / (6.0 * h)


@njit(cache=True, error_model="numpy")
def _height(x, y, second, n, at):
    """Highest value of the spline around knot ``at``."""
    best = y[at]
    for i in range(max(at - 1, 0), min(at + 1, n - 1)):
        a, b, c, d = _cubic(x, y, second, i)
        h = x[i + 1] - x[i]
        one, two = _stationary(b, c, d, h)
        for t in (one, two):
            best = max(best, a + t * (b + t * (c + t * d)))
    return best


@njit(cache=True, error_model="numpy")
def _evaluate(x, y, second, n, low, step, scale, out):
    """Spline times ``scale`` at ``low + step * k``."""
    i = 0
    a, b, c, d = _cubic(x, y, second, 0)
    for k in range(out.size):
        at = low + step * k
        moved = False
        while i < n - 2 and at >= x[i + 1]:
            i += 1
            moved = True
        if moved:
            a, b, c, d = _cubic(x, y, second, i)
        t = at - x[i]
        out[k] = scale * (a + t * (b + t * (c + t * d)))


@njit(cache=True, error_model="numpy")
def _profile(x, y, good, low, high, step, knots, values, second, out):
    """Profile of one line: background, spline, peak normalisation.

    Returns the peak pixel (-1 on failure), the peak's height, and level and slope of the background.
    """
    peak, level, slope = _background(x, y, good, low, high)
    if peak < 0:
        return -1, 0.0, 0.0, 0.0
    n, at = 0, 0
    for j in range(x.size):
        if good[j]:
            if j == peak:
                at = n
            knots[n] = x[j]
            values[n] = y[j] - level - slope * x[j]
            n += 1
    if n < _LEAST_PIXELS:
        return -1, 0.0, 0.0, 0.0
    _spline(knots, values, n, second)
    height = _height(knots, values, second, n, at)
    if not height > 0.0:
        return -1, 0.0, 0.0, 0.0
    _evaluate(knots, values, second, n, low, step, 1.0 / height, out)
    return peak, height, level, slope


@njit(cache=True, error_model="numpy")
def _second_maximum(x, y, ivar, good, peak, height, low, high, share):
    """Whether the window has another significant maximum.

    ``y`` is background-subtracted. A flank that rises towards the window's end counts: it is the next line's. So does a
    peak that is the highest pixel only because nothing beyond the window's inner half was looked at.
    """
    for direction in (-1, 1):
        valley, j = peak, peak + direction
        while 0 <= j < x.size and low <= x[j] <= high:
            if good[j]:
                if y[j] < y[valley]:
                    valley = j
                else:
                    error = np.sqrt(1.0 / ivar[j] + 1.0 / ivar[valley])
                    if y[j] - y[valley] > max(share * height, _PEAK_SIGMA * error):
                        return True
            j += direction
    return False


# -- all profiles of an exposure ----------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy")
def _first_pass(wavelength, flux, bad, lines, low, high, span, shapes, height, peak_error, ivar):
    """Peak-normalised shapes on a coarse grid, and the peaks' heights; NaN where there is no profile."""
    n_fiber, n_pix = flux.shape
    step = (high - low) / (shapes.shape[2] - 1.0)
    size = span + 2 * _MARGIN + 4
    x, good = np.empty(size), np.empty(size, dtype=np.bool_)
    knots, values, second = np.empty(size), np.empty(size), np.empty(size)
    for f in range(n_fiber):
        axis = wavelength[f]
        for line in range(lines.size):
            w = lines[line]
            height[f, line] = np.nan
            peak_error[f, line] = np.nan
            shapes[f, line] = np.nan
            if axis[0] > w + low or axis[n_pix - 1] < w + high:
                continue
            first = max(np.searchsorted(axis, w + low) - _MARGIN, 0)
            last = min(np.searchsorted(axis, w + high, side="right") + _MARGIN, n_pix)
            n = last - first
            for j in range(n):
                x[j] = axis[first + j] - w
                good[j] = not bad[f, first + j]
            peak, top, _, _ = _profile(
                x[:n], flux[f, first:last], good[:n], low, high, step, knots, values, second, shapes[f, line]
            )
            if peak < 0:
                shapes[f, line] = np.nan
                continue
            height[f, line] = top
            peak_error[f, line] = 1.0 / np.sqrt(ivar[f, first + peak])


@njit(cache=True, error_model="numpy")
def _second_pass(
    wavelength, flux, ivar, bad, lines, blend, low, high, low_fiber, saturation, typical, scatter,
    min_snr, share, max_slope, max_gap, cosmic_sigma, floor, variance,
    profile, noise, native_offset, native_flux, native_ivar, flag, clip,
):  # fmt: skip
    n_fiber, n_pix = flux.shape
    n_line, n_out, n_grid = lines.size, profile.shape[1], typical.shape[2]
    step, coarse = (high - low) / (n_out - 1.0), (high - low) / (n_grid - 1.0)
    size = native_offset.shape[1] + 2 * _MARGIN + 4
    x, y = np.empty(size), np.empty(size)
    good, hit = np.empty(size, dtype=np.bool_), np.empty(size, dtype=np.bool_)
    knots, values, second, out = np.empty(size), np.empty(size), np.empty(size), np.empty(n_out)
    for f in range(n_fiber):
        axis = wavelength[f]
        for line in range(n_line):
            k = f * n_line + line
            w = lines[line]
            profile[k] = np.nan
            noise[k] = np.nan
            why = _BLEND if blend[line] else 0
            begin = np.searchsorted(axis, w + low)
            end = np.searchsorted(axis, w + high, side="right")
            for j in range(begin, end):
                native_offset[k, j - begin] = axis[j] - w
                native_flux[k, j - begin] = flux[f, j]
                full = flux[f, j] >= saturation
                native_ivar[k, j - begin] = 0.0 if bad[f, j] or full else ivar[f, j]
            if axis[0] > w + low or axis[n_pix - 1] < w + high:
                flag[k] = why | _OFF_CHIP | (_LOW_FLUX if low_fiber[f] else 0)
                continue
            if low_fiber[f]:
                why |= _LOW_FLUX
            first, last = max(begin - _MARGIN, 0), min(end + _MARGIN, n_pix)
            n = last - first
            run, top = 0, -1
            for j in range(n):
                at = first + j
                x[j] = axis[at] - w
                full = flux[f, at] >= saturation
                good[j] = not (bad[f, at] or full)
                inside = begin <= at < end
                if inside and full:
                    why |= _SATURATED
                if inside and not bad[f, at] and (top < 0 or flux[f, at] > flux[f, top]):
                    top = at
                run = run + 1 if inside and bad[f, at] and not full else 0
                if run > 0 and (run > max_gap or 0.5 * low <= x[j] <= 0.5 * high):
                    why |= _GAP
            raw = flux[f, first:last]
            # saturated pixels are knots all the same: a hole at the top would be bridged by anything
            for j in range(n):
                if flux[f, first + j] >= saturation and not bad[f, first + j]:
                    good[j] = True
            peak, height, level, slope = _profile(x[:n], raw, good[:n], low, high, step, knots, values, second, out)
            if peak < 0:
                # nothing to normalise: no light, unless pixels are missing
                flag[k] = why if why & (_GAP | _SATURATED) else why | _LOW_FLUX
                continue
            if not why & (_LOW_FLUX | _SATURATED | _GAP) and np.isfinite(typical[f, line, 0]):
                for j in range(n):
                    y[j] = raw[j] - level - slope * x[j]
                    hit[j] = good[j] and begin <= first + j < end
                found = find_cosmic_rays(
                    x[:n], y[:n], ivar[f, first:last], hit[:n].copy(), typical[f, line], scatter[f, line],
                    low, coarse, cosmic_sigma, floor, hit[:n],
                )  # fmt: skip
                if found > 0:
                    why |= _COSMIC_RAY
                    for j in range(n):
                        if hit[j]:
                            good[j] = False
                            native_ivar[k, first + j - begin] = 0.0
                    peak, height, level, slope = _profile(
                        x[:n], raw, good[:n], low, high, step, knots, values, second, out
                    )
                    if peak < 0:
                        flag[k] = why
                        continue
            if height * np.sqrt(ivar[f, first + peak]) < min_snr and not why & _SATURATED:
                why |= _LOW_FLUX
            if not why & (_LOW_FLUX | _SATURATED):
                equal = 0
                j = top
                while j < end and flux[f, j] == flux[f, top] and not bad[f, j]:
                    equal += 1
                    j += 1
                if equal >= _FLAT_TOP:
                    why |= _SATURATED
            if not why & (_LOW_FLUX | _GAP | _BLEND):
                for j in range(n):
                    y[j] = raw[j] - level - slope * x[j]
                if not why & _SATURATED and _second_maximum(
                    x[:n], y[:n], ivar[f, first:last], good[:n], peak, height, low, high, share
                ):
                    why |= _NOT_SINGLE_PEAKED
                elif abs(slope) * (high - low) > max_slope * height:
                    why |= _BACKGROUND_SLOPE
            total, count = 0.0, 0
            for j in range(begin, end):
                if good[j - first]:
                    total += 1.0 / ivar[f, j]
                    count += 1
            square = 0.0
            for j in range(n_out):
                square += out[j] * out[j]
                profile[k, j] = max(out[j], 0.0) if clip else out[j]
            count = max(count, 1)
            # The peak that is divided by is noisy, too: its noise is common to all samples, in proportion to them, and
            # the samples within a pixel of the peak share it (a spline's autocorrelation integrates to one pixel).
            top = max(variance * square / n_out - 2.0 / count, 0.0) / ivar[f, first + peak]
            noise[k] = np.sqrt(variance * total / count + top) / height
            flag[k] = why


def extract_profiles(
    exposure: ArcExposure,
    *,
    instrument: str | PathLike | Instrument | None = None,
    lines: LineList | Sequence[int] | None = None,
    lamp: LineList | None = None,
    saturation: float | None = None,
    quality: Quality | None = None,
    clip: bool = True,
) -> ProfileSet:
    """Line profiles of an arc exposure (Liu et al. 2026, sections 2.2-2.4).

    For each fibre and line: the pixels of the window; a straight background through the lowest pixels on either side of
    the peak; the cubic spline through what is left, sampled at the instrument's offsets and divided by its highest
    value; negative samples set to 0. Every profile stays in the result, with the reasons for which it should not be
    used. The pixels themselves, which a pixel likelihood needs, go along.

    Parameters
    ----------
    exposure : ArcExposure
    instrument : str, path or Instrument, optional
        As `~lamost_lsf.instruments.get_instrument` takes it; the exposure's own by default.
    lines : LineList or sequence of int, optional
        Other lines, or indices of the instrument's; all of these by default. With indices, ``line`` of the result still
        counts in the instrument's list.
    lamp : LineList, optional
        A fuller list of the lamp's lines. Lines with a neighbour inside the window, of at least 1 % of their intensity,
        are flagged as blends (besides those that the line list itself flags).
    saturation : float, optional
        Counts at which a pixel is full; by default that in the exposure's ``meta``, else the instrument's, else a flat
        top is all that tells.
    quality : Quality, optional
        Limits; the instrument's by default.
    clip : bool
        Whether negative samples are set to 0, as the paper does (section 2.4).

    Returns
    -------
    ProfileSet
        ``n_fiber * n_lines`` profiles, fibre by fibre.

    Raises
    ------
    ValueError
        No instrument named, an exposure of another arm, an exposure without a single good pixel, no lines, lines that
        do not exist.
    LookupError
        No such instrument.
    `~lamost_lsf.errors.OutOfRangeError`
        Fibres or a spectrograph that the instrument does not have.

    Notes
    -----
    Cosmic rays are pixels far above the shape that neighbouring fibres and the fibre's other lines let expect
    (`lamost_lsf.arcs.quality`); this needs at least six fibres. Their pixels get a native inverse variance of 0 and are
    bridged by the spline.

    Splining, joining minima and dividing by a noisy peak leave systematic errors of 1e-3 to 3e-3 of the peak; fits to
    the native pixels do not.

    Examples
    --------
    >>> from astropy.time import Time
    >>> from lamost_lsf.arcs import ArcExposure, extract_profiles
    >>> from lamost_lsf.simulation import SimulatedIP, simulate_arc
    >>> arc = simulate_arc(SimulatedIP("blue"), Time("2017-01-10T15:00"), fiber=list(range(1, 11)), dead_fibers=[4])
    >>> profiles = extract_profiles(ArcExposure.from_simulation(arc), instrument="lamost-lrs-blue")
    >>> profiles
    <ProfileSet lamost-lrs-blue, spectrograph 1: 70 profiles, 63 good, 1 exposure>
    >>> profiles.yields(by="reason")["reason", "n"][0]
    <Row index=0>
    reason    n
     str17  int64
    -------- -----
    LOW_FLUX     7
    """
    if not isinstance(exposure, ArcExposure):
        raise TypeError(f"exposure must be an ArcExposure, got {type(exposure).__name__}; see ArcExposure.from_arrays")
    name = instrument if instrument is not None else exposure.instrument
    if isinstance(name, str) and not name:
        raise ValueError("the exposure does not name its instrument: pass instrument=")
    chosen = get_instrument(name)
    exposure.check_instrument(chosen)
    if exposure.instrument and get_instrument(exposure.instrument).digest != chosen.digest:
        raise ValueError(f"the exposure is of {exposure.instrument}, instrument {chosen.name} was asked for")
    if np.all(exposure.mask):
        raise ValueError("the exposure has no good pixel: all are masked")
    table, index = _choose_lines(chosen, lines)
    limits = chosen.quality if quality is None else quality
    flagged = table.with_blends(chosen.window, lamp, min_ratio=0.01) if lamp is not None else table
    used, blend = table.vacuum[index], np.array(flagged.blend[index])
    low, high = chosen.window
    level = saturation if saturation is not None else exposure.meta.get("saturation") or chosen.saturation
    if level is not None and not level > 0:
        raise ValueError(f"saturation must be a positive number of counts, got {level!r}")

    # neighbours are neighbours on the slit
    order = np.argsort(exposure.fiber, kind="stable")
    ordered = bool(np.all(order == np.arange(order.size)))
    wavelength, flux, ivar, bad = (
        a if ordered else a[order] for a in (exposure.wavelength, exposure.flux, exposure.ivar, exposure.mask)
    )
    span = _native_pixels(wavelength, used, low, high)
    n_fiber, n_line = flux.shape[0], used.size
    n = n_fiber * n_line

    shapes = np.empty((n_fiber, n_line, int(np.clip(2 * span, 48, 200))))
    height, error = np.empty((n_fiber, n_line)), np.empty((n_fiber, n_line))
    _first_pass(wavelength, flux, bad, used, low, high, span, shapes, height, error, ivar)
    relative = _relative_flux(height, error, limits.min_snr)
    low_fiber = ~(relative >= limits.min_flux)
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(height) & ~low_fiber[:, None] & (height > limits.min_snr * error)
    if level is not None:
        usable &= height < 0.9 * level
    typical, scatter = reference_shapes(shapes, usable)

    profile = np.empty((n, chosen.n_samples), dtype=np.float32)
    noise = np.empty(n, dtype=np.float64)
    native = [np.zeros((n, span), dtype=np.float32) for _ in range(3)]
    flag = np.zeros(n, dtype=np.int64)
    _second_pass(
        wavelength, flux, ivar, bad, used, blend, low, high, low_fiber,
        np.inf if level is None else float(level), typical, scatter,
        limits.min_snr, limits.second_peak, limits.background_slope, limits.max_gap,
        limits.cosmic_sigma, limits.shape_floor, _spline_variance(),
        profile, noise, *native, flag, clip,
    )  # fmt: skip
    return ProfileSet(
        instrument=chosen.name,
        digest=chosen.digest,
        arm=exposure.arm,
        spectrograph=exposure.spectrograph,
        offset=chosen.offset,
        lines=table,
        profile=profile,
        noise=noise.astype(np.float32),
        native_offset=native[0],
        native_flux=native[1],
        native_ivar=native[2],
        lmjm=np.full(n, exposure.lmjm),
        fiber=np.repeat(exposure.fiber[order], n_line).astype(np.int16),
        wavelength=np.tile(used, n_fiber),
        line=np.tile(index, n_fiber).astype(np.int16),
        exposure=np.zeros(n, dtype=np.int32),
        flag=flag.astype(np.int32),
        exposures=_provenance(exposure, native),
    )


def _choose_lines(instrument: Instrument, lines: LineList | Sequence[int] | None) -> tuple[LineList, np.ndarray]:
    """The list that indices refer to, and the indices."""
    if isinstance(lines, LineList):
        if len(lines) == 0:
            raise ValueError("lines is empty")
        return lines, np.arange(len(lines))
    if lines is None:
        return instrument.lines, np.arange(len(instrument.lines))
    index = np.atleast_1d(np.asarray(lines))
    total = len(instrument.lines)
    if index.size == 0 or index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"lines must be a LineList or indices of the instrument's lines, got {lines!r}")
    if index.min() < 0 or index.max() >= total or np.unique(index).size != index.size:
        raise ValueError(f"indices of lines must be different and 0 to {total - 1}, got {index.tolist()}")
    return instrument.lines, np.sort(index)


def _native_pixels(wavelength: np.ndarray, lines: np.ndarray, low: float, high: float) -> int:
    """Largest number of pixels in a window."""
    most = 1
    for axis in wavelength:
        most = max(
            most, int(np.max(np.searchsorted(axis, lines + high, side="right") - np.searchsorted(axis, lines + low)))
        )
    return most


def _relative_flux(height: np.ndarray, error: np.ndarray, min_snr: float) -> np.ndarray:
    """Flux of each fibre relative to the median fibre: median over the lines of the peaks' heights over their medians.

    NaN for a fibre without a single profile.
    """
    with np.errstate(invalid="ignore"):
        seen = height > min_snr * error
    # lines that the lamp does not show, in most fibres, say nothing about fibres
    shown = np.count_nonzero(seen, axis=0) > 0.5 * np.count_nonzero(np.isfinite(height), axis=0)
    lit = np.where(np.isfinite(height), height, np.nan)[:, shown] if shown.any() else height
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = _nanmedian(lit, 0)
        return _nanmedian(lit / np.where(middle > 0, middle, np.nan), 1)


def _nanmedian(values: np.ndarray, axis: int) -> np.ndarray:
    """Median of the finite values; NaN, without a warning, where there are none."""
    masked = np.ma.masked_invalid(values)
    return np.ma.filled(np.ma.median(masked, axis=axis).astype(np.float64), np.nan)


def _provenance(exposure: ArcExposure, native: list[np.ndarray]) -> Table:
    """Row of `ProfileSet.exposures`."""
    temperature = exposure.meta.get("temperature")
    if temperature is not None and hasattr(temperature, "to_value"):
        temperature = temperature.to_value(u.deg_C, equivalencies=u.temperature())
    content = hashlib.sha256()
    for values in native:
        content.update(np.ascontiguousarray(values, dtype="<f4"))
    row = {
        "file": str(exposure.meta.get("file") or exposure.meta.get("filename") or ""),
        "sha256": content.hexdigest(),
        "time": exposure.time.utc.isot,
        "lmjm": exposure.lmjm,
        "time_reference": exposure.time_reference,
        "lamp": exposure.lamp,
        "spectrograph": exposure.spectrograph,
        "temperature": np.nan if temperature is None else float(temperature),
        "wavelength_center": str(exposure.meta.get("wavelength_center") or ""),
    }
    table = Table({key: np.array([row[key]], dtype=kind) for key, kind in EXPOSURE_COLUMNS.items()})
    for name, value in exposure.meta.get("labels", {}).items():
        table[name] = [value]
    return table
