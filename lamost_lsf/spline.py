"""The cubic spline that a profile *is* between its samples, and exact integrals of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from scipy.interpolate import CubicSpline
from scipy.linalg import solve_banded

__all__ = ["SplineFamily", "quadrature_weights", "uniform_coefficients"]


@njit(cache=True, error_model="numpy")
def uniform_coefficients(step, samples):
    """Power-basis coefficients of not-a-knot cubic splines on a uniform grid.

    The splines of `SplineFamily`, several times faster than scipy's.

    Parameters
    ----------
    step : float
    samples : ndarray (m, n)
        n >= 5.

    Returns
    -------
    ndarray (m, n - 1, 4)
        About the left knot of each interval, constant first.
    """
    m, n = samples.shape
    out = np.empty((m, n - 1, 4))
    # Second derivatives M: M[i-1] + 4 M[i] + M[i+1] = r[i]. Not-a-knot means that M is linear over the first (and the
    # last) three knots, which turns the first equation into 6 M[1] = r[1].
    ratio = np.empty(n)
    ratio[1] = 0.0
    for i in range(2, n - 2):
        ratio[i] = 1.0 / (4.0 - ratio[i - 1])
    second = np.empty(n)
    scale = 6.0 / (step * step)
    for row in range(m):
        y = samples[row]
        second[1] = scale * (y[0] - 2.0 * y[1] + y[2]) / 6.0
        second[n - 2] = scale * (y[n - 3] - 2.0 * y[n - 2] + y[n - 1]) / 6.0
        for i in range(2, n - 2):
            r = scale * (y[i - 1] - 2.0 * y[i] + y[i + 1])
            second[i] = (r - second[i - 1]) * ratio[i]
        for i in range(n - 3, 1, -1):
            second[i] -= ratio[i] * second[i + 1]
        second[0] = 2.0 * second[1] - second[2]
        second[n - 1] = 2.0 * second[n - 2] - second[n - 3]
        for i in range(n - 1):
            a, b = second[i], second[i + 1]
            out[row, i, 0] = y[i]
            out[row, i, 1] = (y[i + 1] - y[i]) / step - step * (2.0 * a + b) / 6.0
            out[row, i, 2] = 0.5 * a
            out[row, i, 3] = (b - a) / (6.0 * step)
    return out


@lru_cache(maxsize=64)
def _weights_from_bytes(raw: bytes) -> np.ndarray:
    x = np.frombuffer(raw)
    h = np.diff(x)
    # On one interval the spline integrates to h (y0 + y1) / 2 - h^3 (M0 + M1) / 24, M being its second derivatives.
    weights = np.zeros(x.size)
    weights[:-1] += 0.5 * h
    weights[1:] += 0.5 * h
    by_second = np.zeros(x.size)
    by_second[:-1] -= h**3 / 24.0
    by_second[1:] -= h**3 / 24.0
    # Not-a-knot: the end derivatives are linear extrapolations of their neighbours.
    first, last = h[0] / h[1], h[-1] / h[-2]
    by_second[1] += by_second[0] * (1.0 + first)
    by_second[2] -= by_second[0] * first
    by_second[-2] += by_second[-1] * (1.0 + last)
    by_second[-3] -= by_second[-1] * last
    # The inner ones solve A M = R y, so their share of the weights is R' A'^-1 times their factors: one solve with the
    # transposed matrix instead of a spline for every sample.
    lower, diagonal, upper = _system(h)
    banded = np.zeros((3, x.size - 2))
    banded[0, 1:] = lower[1:]
    banded[1] = diagonal
    banded[2, :-1] = upper[:-1]
    solved = solve_banded((1, 1), banded, by_second[1:-1])
    slope = np.zeros(x.size - 1)  # factors of the chords' slopes; R y is 6 times their differences
    slope[1:] += 6.0 * solved
    slope[:-1] -= 6.0 * solved
    weights[1:] += slope / h
    weights[:-1] -= slope / h
    weights.flags.writeable = False
    return weights


@njit(cache=True, error_model="numpy")
def _system(h):
    """Lower, main and upper diagonal of the equations for the n - 2 inner second derivatives, not-a-knot ends."""
    m = h.size - 1
    lower, diagonal, upper = np.zeros(m), np.empty(m), np.zeros(m)
    for i in range(m):
        lower[i], diagonal[i], upper[i] = h[i], 2.0 * (h[i] + h[i + 1]), h[i + 1]
    diagonal[0] += h[0] * (1.0 + h[0] / h[1])
    upper[0] -= h[0] * h[0] / h[1]
    diagonal[m - 1] += h[m] * (1.0 + h[m] / h[m - 1])
    lower[m - 1] -= h[m] * h[m] / h[m - 1]
    return lower, diagonal, upper


def quadrature_weights(x: np.ndarray) -> np.ndarray:
    """Weights w with ``samples @ w`` = integral of the not-a-knot cubic spline through the samples.

    Parameters
    ----------
    x : ndarray (n,)
        Sample positions, strictly increasing.

    Returns
    -------
    ndarray (n,)
        Read-only, in the unit of ``x``.
    """
    return _weights_from_bytes(np.ascontiguousarray(x, dtype=np.float64).tobytes())


class SplineFamily:
    """Not-a-knot cubic splines through profiles on one grid; 0 outside the grid.

    Parameters
    ----------
    x : ndarray (n,)
        Sample positions.
    samples : ndarray (..., n)
        Profiles.
    """

    def __init__(self, x: np.ndarray, samples: np.ndarray) -> None:
        self.x = x
        self.samples = samples

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values at ``x`` (m,): shape (..., m). A profile with non-finite samples is NaN throughout its window."""
        finite = np.all(np.isfinite(self.samples), axis=-1, keepdims=True)
        spline = CubicSpline(self.x, np.where(finite, self.samples, 0.0), axis=-1)
        inside = (x >= self.x[0]) & (x <= self.x[-1])
        values = np.where(finite, spline(np.clip(x, self.x[0], self.x[-1])), np.nan)
        return np.where(inside, values, 0.0)

    def _peaks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        flat = np.ascontiguousarray(self.samples, dtype=np.float64).reshape(-1, self.x.size)
        found = _peaks_and_widths(np.ascontiguousarray(self.x, dtype=np.float64), flat)
        return tuple(a.reshape(self.samples.shape[:-1]) for a in found)

    def maximum(self) -> tuple[np.ndarray, np.ndarray]:
        """Position and height of the spline's highest point; NaN for profiles with non-finite samples."""
        position, height, _ = self._peaks()
        return position, height

    def fwhm(self) -> np.ndarray:
        """Distance of the half-maximum crossings next to the peak on either side; NaN where there is none."""
        return self._peaks()[2]


@njit(cache=True, error_model="numpy")
def _cubic(a, b, c, d, t):
    return a + t * (b + t * (c + t * d))


@njit(cache=True, error_model="numpy")
def _stationary(b, c, d, h):
    """Up to two points of (0, h) in ascending order where b + 2 c t + 3 d t^2 = 0; h where there is none."""
    first, second = h, h
    discriminant = c * c - 3.0 * b * d
    if discriminant >= 0.0:
        # the stable form of the quadratic's roots; d may be 0
        q = -(c + np.copysign(np.sqrt(discriminant), c))
        t1 = q / (3.0 * d) if d != 0.0 else h
        t2 = b / q if q != 0.0 else h
        if 0.0 < t1 < h:
            first = t1
        if 0.0 < t2 < h:
            second = t2
        if second < first:
            first, second = second, first
    return first, second


@njit(cache=True, error_model="numpy")
def _falls_to(level, a, b, c, d, start, stop, first, second):
    """Point nearest to ``start``, towards ``stop``, where the cubic falls to ``level``; NaN where it does not.

    ``first`` and ``second`` are its stationary points: between them it is monotone.
    """
    forward = stop > start
    near = start
    for step in range(3):
        far = stop
        if step < 2:
            far = first if (step == 0) == forward else second
            if (far - near) * (stop - start) <= 0.0 or (stop - far) * (stop - start) <= 0.0:
                continue
        if _cubic(a, b, c, d, far) <= level:
            for _ in range(80):
                middle = 0.5 * (near + far)
                if middle in (near, far):
                    break
                if _cubic(a, b, c, d, middle) > level:
                    near = middle
                else:
                    far = middle
            return 0.5 * (near + far)
        near = far
    return np.nan


@njit(cache=True, error_model="numpy")
def _peaks_and_widths(x, samples):
    """Position and height of the highest point, and full width at half of it, of the spline through each row."""
    rows, n = samples.shape
    position, height, width = np.full(rows, np.nan), np.full(rows, np.nan), np.full(rows, np.nan)
    h = np.diff(x)
    lower, diagonal, upper = _system(h)
    m = n - 2
    for i in range(1, m):
        lower[i] /= diagonal[i - 1]
        diagonal[i] -= lower[i] * upper[i - 1]
    second = np.empty(n)
    cubic = np.empty((n - 1, 4))
    bound = np.empty(n - 1)
    for row in range(rows):
        y = samples[row]
        if not np.all(np.isfinite(y)):
            continue
        for i in range(m):
            r = 6.0 * ((y[i + 2] - y[i + 1]) / h[i + 1] - (y[i + 1] - y[i]) / h[i])
            second[i + 1] = r - lower[i] * second[i] if i else r
        second[m] /= diagonal[m - 1]
        for i in range(m - 2, -1, -1):
            second[i + 1] = (second[i + 1] - upper[i] * second[i + 2]) / diagonal[i]
        second[0] = second[1] - (second[2] - second[1]) * h[0] / h[1]
        second[n - 1] = second[n - 2] + (second[n - 2] - second[n - 3]) * h[n - 2] / h[n - 3]
        top = np.argmax(y)
        best, at = y[top], x[top]
        k = min(top, n - 2)
        for i in range(n - 1):
            p, q = second[i], second[i + 1]
            cubic[i, 0] = y[i]
            cubic[i, 1] = (y[i + 1] - y[i]) / h[i] - h[i] * (2.0 * p + q) / 6.0
            cubic[i, 2] = 0.5 * p
            cubic[i, 3] = (q - p) / (6.0 * h[i])
            # the spline leaves its chord by no more than this
            bound[i] = 0.125 * h[i] * h[i] * max(abs(p), abs(q))
            if max(y[i], y[i + 1]) + bound[i] <= best:
                continue
            a, b, c, d = cubic[i]
            for t in _stationary(b, c, d, h[i]):
                value = _cubic(a, b, c, d, t)
                if value > best:
                    best, at, k = value, x[i] + t, i
        position[row], height[row] = at, best
        if not best > 0.0:
            continue
        level = 0.5 * best
        right, left = np.nan, np.nan
        for i in range(k, n - 1):
            if i > k and min(y[i], y[i + 1]) - bound[i] > level:
                continue
            a, b, c, d = cubic[i]
            first, last = _stationary(b, c, d, h[i])
            t = _falls_to(level, a, b, c, d, at - x[i] if i == k else 0.0, h[i], first, last)
            if np.isfinite(t):
                right = x[i] + t
                break
        for i in range(k, -1, -1):
            if i < k and min(y[i], y[i + 1]) - bound[i] > level:
                continue
            a, b, c, d = cubic[i]
            first, last = _stationary(b, c, d, h[i])
            t = _falls_to(level, a, b, c, d, at - x[i] if i == k else h[i], 0.0, first, last)
            if np.isfinite(t):
                left = x[i] + t
                break
        width[row] = right - left
    return position, height, width
