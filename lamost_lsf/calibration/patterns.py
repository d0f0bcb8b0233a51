"""Patterns of four lines, in pixels and in wavelengths, and the growth of a match of two of them over a detector."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numba import njit
from scipy.spatial import cKDTree

from lamost_lsf.elimination import solve_in_place

__all__ = ["grow_matches", "log_odds", "match_patterns", "quads"]

#: Degree of a curve over the whole detector.
_DEGREE = 4


def quads(n: int, reach: int) -> np.ndarray:
    """Indices (m, 4) of all sets of four among each item and the ``reach`` that follow it."""
    rest = np.array(list(combinations(range(1, reach + 1), 3)))
    start = np.arange(n)[:, None, None]
    found = np.concatenate([np.broadcast_to(start, (n, len(rest), 1)), start + rest], axis=2).reshape(-1, 4)
    return found[found[:, 3] < n]


def _ratios(values: np.ndarray, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the inner two between the outer two (m, 2), and the distance of these (m,)."""
    four = values[sets]
    span = four[:, 3] - four[:, 0]
    return (four[:, 1:3] - four[:, :1]) / span[:, None], span


def match_patterns(
    pixel: np.ndarray,
    pixel_sets: np.ndarray,
    wavelength: np.ndarray,
    wavelength_sets: np.ndarray,
    *,
    n_pix: int,
    dispersion: tuple[float, float],
    curvature: float = 0.10,
) -> np.ndarray:
    """Pairs of patterns that look alike.

    Parameters
    ----------
    pixel, wavelength : ndarray
        Sorted.
    pixel_sets, wavelength_sets : ndarray of int (m, 4)
        From `quads`.
    n_pix : int
        Pixels of the detector.
    dispersion : (float, float)
        Angstrom per pixel, least and largest.
    curvature : float
        Largest relative change of the dispersion over half the detector that a pattern must endure.

    Returns
    -------
    ndarray (k, 8)
        Four pixel indices and four wavelength indices.
    """
    if not len(pixel_sets) or not len(wavelength_sets):
        return np.empty((0, 8), dtype=np.int64)
    one, span = _ratios(pixel, pixel_sets)
    two, width = _ratios(wavelength, wavelength_sets)
    # half a pixel of the measurement, and the bend of the dispersion: c s r (1 - r) / 2 with s = span / (n_pix / 2)
    tolerance = np.minimum(0.7 / span + 0.25 * 0.5 * curvature * span / (0.5 * n_pix), 0.02)
    good = span > 8.0
    tree = cKDTree(two)
    near = tree.query_ball_point(one[good], tolerance[good], p=np.inf)
    index = np.flatnonzero(good)
    rows = []
    for i, found in zip(index, near, strict=True):
        if not found:
            continue
        found = np.array(found)
        ratio = width[found] / span[i]
        found = found[(ratio >= dispersion[0]) & (ratio <= dispersion[1])]
        if found.size:
            rows.append(np.column_stack([np.broadcast_to(pixel_sets[i], (found.size, 4)), wavelength_sets[found]]))
    return np.concatenate(rows) if rows else np.empty((0, 8), dtype=np.int64)


@njit(cache=True, error_model="numpy")
def _fit(t, y, used, degree, coefficients):
    """Polynomial in t through the used points; higher orders held to what gratings do by a weak prior."""
    n = degree + 1
    matrix, right = np.zeros((n, n)), np.zeros(n)
    power = np.empty(n)
    for k in range(t.size):
        if not used[k]:
            continue
        power[0] = 1.0
        for j in range(1, n):
            power[j] = power[j - 1] * t[k]
        for i in range(n):
            right[i] += power[i] * y[k]
            for j in range(n):
                matrix[i, j] += power[i] * power[j]
    # y is in pixels of the first guess: the quadratic term is some 5 % of half the detector, the others less
    if n > 2:
        matrix[2, 2] += 1e-4
    if n > 3:
        matrix[3, 3] += 1e-3
    if n > 4:
        matrix[4, 4] += 1e-2
    if not solve_in_place(matrix, right, n, 1e-14):
        return False
    for i in range(coefficients.size):
        coefficients[i] = right[i] if i < n else 0.0
    return True


@njit(cache=True, error_model="numpy")
def _value(coefficients, t):
    total = 0.0
    for i in range(coefficients.size - 1, -1, -1):
        total = total * t + coefficients[i]
    return total


@njit(cache=True, error_model="numpy")
def _nearest(lines, value):
    i = np.searchsorted(lines, value)
    if i == 0:
        return 0
    if i == lines.size:
        return lines.size - 1
    return i if lines[i] - value < value - lines[i - 1] else i - 1


@njit(cache=True, error_model="numpy")
def grow_matches(pixel, lines, n_pix, starts, low, high, curve, matched, tried):
    """Grow each match of four over the detector.

    Parameters
    ----------
    pixel, lines : ndarray
        Bright peaks, and listed wavelengths (Angstrom); sorted.
    n_pix : int
    starts : ndarray of int (k, 8)
        From `match_patterns`; indices into ``pixel`` and ``lines``.
    low, high : float
        Wavelengths that the detector may not leave.
    curve : ndarray (k, 5)
        Output: coefficients of the wavelength in powers of t = (pixel - middle) / (n_pix / 2).
    matched, tried : ndarray of int (k,)
        Output: peaks that a line lies within 1.5 pixels of, and peaks in the range grown over.
    """
    n = pixel.size
    half, middle = 0.5 * n_pix, 0.5 * (n_pix - 1.0)
    t = (pixel - middle) / half
    y, used = np.empty(n), np.empty(n, dtype=np.bool_)
    c = np.empty(_DEGREE + 1)
    for s in range(starts.shape[0]):
        matched[s] = 0
        tried[s] = n
        first, last = starts[s, 0], starts[s, 3]
        d = (lines[starts[s, 7]] - lines[starts[s, 4]]) / (pixel[last] - pixel[first])
        zero = lines[starts[s, 4]] - d * pixel[first]
        # lines in pixels of the first guess: numbers near 1 for any instrument
        used[:] = False
        for k in range(4):
            used[starts[s, k]] = True
            y[starts[s, k]] = (lines[starts[s, 4 + k]] - zero) / d
        if not _fit(t, y, used, 1, c):
            continue
        good, total = 4, 4
        dead = False
        while not dead:
            a, b = first, last
            # as far again on either side, but at least one more peak
            span = max(pixel[last] - pixel[first], 1.0)
            while a > 0 and (a == first or pixel[first] - pixel[a - 1] < 0.3 * span):
                a -= 1
            while b < n - 1 and (b == last or pixel[b + 1] - pixel[last] < 0.3 * span):
                b += 1
            inner_low, inner_high = pixel[first], pixel[last]
            first, last = a, b
            for repeat in range(3):
                covered = (pixel[last] - pixel[first]) / n_pix
                good, total = 0, 0
                for k in range(first, last + 1):
                    w = zero + d * _value(c, t[k])
                    slope = d * abs(_value(c, t[k] + 0.5 / half) - _value(c, t[k] - 0.5 / half))
                    i = _nearest(lines, w)
                    off = abs(lines[i] - w) / max(slope, 1e-3 * d)
                    beyond = max(max(inner_low - pixel[k], pixel[k] - inner_high), 0.0)
                    limit = 1.5 + (min(0.04 * beyond, 10.0) if repeat == 0 else 0.0)
                    if repeat == 1:
                        limit = 1.5 + min(0.015 * beyond, 4.0)
                    used[k] = off < limit
                    total += 1
                    if used[k]:
                        y[k] = (lines[i] - zero) / d
                        good += 1
                degree = 1
                if good >= 5 and covered > 0.08:
                    degree = 2
                if good >= 8 and covered > 0.35:
                    degree = 3
                if good >= 12 and covered > 0.6:
                    degree = 4
                if good < 4 or not _fit(t, y, used, degree, c):
                    dead = True
                    break
            if dead or (total >= 7 and good < 0.45 * total):
                dead = True
                break
            left, right = zero + d * _value(c, t[0]), zero + d * _value(c, t[n - 1])
            if first == 0 and last == n - 1:
                if min(left, right) < low or max(left, right) > high:
                    dead = True
                break
        if dead:
            continue
        for i in range(curve.shape[1]):
            curve[s, i] = d * c[i]
        curve[s, 0] += zero
        matched[s], tried[s] = good, total


@njit(cache=True, error_model="numpy")
def log_odds(pixel, weight, lines, density, n_pix, curve, sigma, missing):
    """Logarithm of how much better a curve explains the peaks than chance does.

    A peak's distance r (pixels) from the nearest line follows the exponential of the local density of lines by chance;
    if the curve is right, a normal distribution of width ``sigma``, unless (probability ``missing``) its line is not in
    the list. ``density`` is that of lines at each line, per Angstrom.
    """
    half, middle = 0.5 * n_pix, 0.5 * (n_pix - 1.0)
    total = 0.0
    for k in range(pixel.size):
        t = (pixel[k] - middle) / half
        w = _value(curve, t)
        slope = abs(_value(curve, t + 0.5 / half) - _value(curve, t - 0.5 / half))
        i = _nearest(lines, w)
        r = abs(lines[i] - w) / max(slope, 1e-9)
        rho = max(density[i] * slope, 1e-4)
        chance = 2.0 * rho * np.exp(-2.0 * rho * r)
        right = (1.0 - missing) * 2.0 * np.exp(-0.5 * (r / sigma) ** 2) / (np.sqrt(2.0 * np.pi) * sigma)
        # far from any line both densities vanish: such a peak is an unlisted line
        total += weight[k] * np.log((right + missing * chance + 1e-12) / (chance + 1e-12))
    return total
