"""The cubic spline that a profile *is* between its samples, and exact integrals of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from scipy.interpolate import CubicSpline

__all__ = ["SplineFamily", "quadrature_weights", "uniform_coefficients"]


@njit(cache=True, error_model="numpy")
def uniform_coefficients(step, samples):
    """Power-basis coefficients of not-a-knot cubic splines on a uniform grid.

    The same as `SplineFamily.coefficients`, several times faster.

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
    # The integral of the spline is linear in its samples, so the integrals of the cardinal splines are the
    # weights. The spline operator is banded but its inverse is not: n x n once per grid, then kept.
    weights = CubicSpline(x, np.eye(x.size)).integrate(x[0], x[-1])
    weights.flags.writeable = False
    return weights


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
        self._spline = CubicSpline(x, samples, axis=-1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values at ``x`` (m,): shape (..., m)."""
        inside = (x >= self.x[0]) & (x <= self.x[-1])
        return np.where(inside, self._spline(np.clip(x, self.x[0], self.x[-1])), 0.0)

    def coefficients(self) -> np.ndarray:
        """Power-basis coefficients about the left knot of each interval, shape (..., n - 1, 4), constant first."""
        # scipy keeps (4, n - 1, ...) with the highest power first when axis 0 is the sample axis
        c = CubicSpline(self.x, np.moveaxis(self.samples, -1, 0), axis=0).c
        return np.ascontiguousarray(np.moveaxis(c[::-1], (0, 1), (-1, -2)))

    def maximum(self) -> tuple[np.ndarray, np.ndarray]:
        """Position and height of the spline's highest point; NaN for profiles with non-finite samples."""
        flat = self.samples.reshape(-1, self.x.size)
        coefficients = self.coefficients().reshape(-1, self.x.size - 1, 4)
        position = np.full(flat.shape[0], np.nan)
        height = np.full(flat.shape[0], np.nan)
        finite = np.all(np.isfinite(flat), axis=-1)
        for i in np.flatnonzero(finite):
            k = int(np.argmax(flat[i]))
            best_x, best_y = self.x[k], flat[i, k]
            for left in (k - 1, k):
                if not 0 <= left < self.x.size - 1:
                    continue
                a, b, c, d = coefficients[i, left]
                width = self.x[left + 1] - self.x[left]
                for root in np.roots([3 * d, 2 * c, b]) if (c or d) else ():
                    if abs(root.imag) < 1e-12 and 0 <= root.real <= width:
                        t = root.real
                        y = a + t * (b + t * (c + t * d))
                        if y > best_y:
                            best_x, best_y = self.x[left] + t, y
            position[i], height[i] = best_x, best_y
        shape = self.samples.shape[:-1]
        return position.reshape(shape), height.reshape(shape)

    def fwhm(self) -> np.ndarray:
        """Distance of the half-maximum crossings on either side of the peak; NaN where there is none."""
        position, height = self.maximum()
        flat = self.samples.reshape(-1, self.x.size)
        width = np.full(flat.shape[0], np.nan)
        for i, (peak, top) in enumerate(zip(position.ravel(), height.ravel(), strict=True)):
            if not np.isfinite(top) or top <= 0:
                continue
            spline = CubicSpline(self.x, flat[i])
            roots = spline.solve(0.5 * top, extrapolate=False)
            roots = roots[np.isfinite(roots)]
            left, right = roots[roots < peak], roots[roots > peak]
            if left.size and right.size:
                width[i] = right.min() - left.max()
        return width.reshape(self.samples.shape[:-1])
