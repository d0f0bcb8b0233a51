"""Pixel likelihood of a line, reduced to a small matrix: amplitude and background are solved, not fitted.

A line seen in pixels at offsets x_j is ``d_j = A h(x_j) + b0 + b1 x_j + noise`` with ``h = mu + sum_k c_k B_k``
(an effective LSF:
the pixel's response is part of h; Anderson & King 2000). The chi-square is quadratic in (A, A c, b0, b1); with the
background
eliminated (Schur complement) and ``a = (1, c)``

    chi2(A, c) = s - 2 A v.a + A^2 a.M.a,      min over A:  s - (v.a)^2 / (a.M.a),

with a matrix M of (K + 1) x (K + 1) and a vector v that are computed once for a profile. This is exact: whatever
predicts c
can be trained on it without touching the pixels again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from lamost_lsf.convolution.nodes import lagrange4

__all__ = ["LineStatistics", "line_statistics"]


@dataclass(frozen=True)
class LineStatistics:
    """Reduced normal equations of n lines in a basis of K components.

    Attributes
    ----------
    matrix : ndarray (n, K + 1, K + 1)
        M of the module's text, in units where the line's rough amplitude is 1.
    vector : ndarray (n, K + 1)
    scalar : ndarray (n,)
        chi-square of the best background alone.
    n_pixels : ndarray (n,)
        Good pixels.
    amplitude : ndarray (n,)
        Rough amplitude that flux was divided by.
    """

    matrix: np.ndarray
    vector: np.ndarray
    scalar: np.ndarray
    n_pixels: np.ndarray
    amplitude: np.ndarray

    def __len__(self) -> int:
        return self.scalar.size

    def __getitem__(self, item: np.ndarray | slice) -> LineStatistics:
        return LineStatistics(
            self.matrix[item], self.vector[item], self.scalar[item], self.n_pixels[item], self.amplitude[item]
        )

    def chi2(self, coefficients: np.ndarray) -> np.ndarray:
        """Chi-square (n,) of coefficients (n, K), amplitude and background at their best."""
        a = np.concatenate([np.ones((len(self), 1)), coefficients], axis=1)
        va = np.einsum("nk,nk->n", self.vector, a)
        ama = np.einsum("nk,nkl,nl->n", a, self.matrix, a)
        return self.scalar - np.where(va > 0, va, 0.0) ** 2 / ama

    def best_amplitude(self, coefficients: np.ndarray) -> np.ndarray:
        """Amplitude (n,), in units of ``amplitude``, at coefficients (n, K)."""
        a = np.concatenate([np.ones((len(self), 1)), coefficients], axis=1)
        return np.einsum("nk,nk->n", self.vector, a) / np.einsum("nk,nkl,nl->n", a, self.matrix, a)


@njit(cache=True, error_model="numpy")
def _interpolate(basis, x0, inverse_dx, x, out):
    """Four-point Lagrange interpolation of uniformly sampled functions (m, n_sample) at one offset; 0 outside."""
    n = basis.shape[1]
    p = (x - x0) * inverse_dx
    if p < 0.0 or p > n - 1:
        out[:] = 0.0
        return
    i = min(max(int(p) - 1, 0), n - 4)
    w0, w1, w2, w3 = lagrange4(p - i)
    for m in range(basis.shape[0]):
        row = basis[m]
        out[m] = w0 * row[i] + w1 * row[i + 1] + w2 * row[i + 2] + w3 * row[i + 3]


@njit(cache=True, error_model="numpy")
def _reduce(offset, flux, ivar, basis, x0, inverse_dx, half_width, matrix, vector, scalar, n_pixels, amplitude):
    n, n_pixel = offset.shape
    m = basis.shape[0]
    size = m + 2
    normal, rhs, g = np.empty((size, size)), np.empty(size), np.empty(size)
    for i in range(n):
        normal[:], rhs[:] = 0.0, 0.0
        total, count = 0.0, 0
        scale = amplitude[i]
        for j in range(n_pixel):
            w = ivar[i, j] * scale * scale
            if not w > 0.0:
                continue
            x, d = offset[i, j], flux[i, j] / scale
            _interpolate(basis, x0, inverse_dx, x, g[:m])
            g[m], g[m + 1] = 1.0, x / half_width
            for a in range(size):
                wg = w * g[a]
                rhs[a] += wg * d
                for b in range(a + 1):
                    normal[a, b] += wg * g[b]
            total += w * d * d
            count += 1
        n_pixels[i] = count
        # Schur complement over the background's two parameters
        p, q, r = normal[m, m], normal[m + 1, m], normal[m + 1, m + 1]
        determinant = p * r - q * q
        if count < 5 or not determinant > 1e-12 * p * r:
            matrix[i], vector[i], scalar[i], n_pixels[i] = np.nan, np.nan, np.nan, 0
            continue
        ip, iq, ir = r / determinant, -q / determinant, p / determinant
        y0, y1 = ip * rhs[m] + iq * rhs[m + 1], iq * rhs[m] + ir * rhs[m + 1]
        scalar[i] = total - rhs[m] * y0 - rhs[m + 1] * y1
        for a in range(m):
            u0, u1 = normal[m, a], normal[m + 1, a]
            vector[i, a] = rhs[a] - u0 * y0 - u1 * y1
            z0, z1 = ip * u0 + iq * u1, iq * u0 + ir * u1
            for b in range(a + 1):
                value = normal[a, b] - z0 * normal[m, b] - z1 * normal[m + 1, b]
                matrix[i, a, b] = value
                matrix[i, b, a] = value


def line_statistics(
    offset: np.ndarray,
    flux: np.ndarray,
    ivar: np.ndarray,
    grid: np.ndarray,
    basis: np.ndarray,
    amplitude: np.ndarray | None = None,
) -> LineStatistics:
    """Reduced normal equations of lines seen in native pixels.

    Parameters
    ----------
    offset, flux, ivar : ndarray (n, n_pixel)
        Native pixels: observed minus true wavelength (Angstrom), flux, inverse variance (0 where bad or absent).
    grid : ndarray (n_sample,)
        Uniform offsets that the basis is sampled at.
    basis : ndarray (K + 1, n_sample)
        First the mean profile, then the components.
    amplitude : ndarray (n,), optional
        Rough amplitude of each line, to keep numbers of order one; by default the largest good pixel.

    Returns
    -------
    LineStatistics
    """
    offset, flux, ivar = (np.ascontiguousarray(a, dtype=np.float64) for a in (offset, flux, ivar))
    if amplitude is None:
        amplitude = np.max(np.where(ivar > 0, flux, 0.0), axis=1)
    amplitude = np.where(amplitude > 0, amplitude, 1.0)
    n, m = offset.shape[0], basis.shape[0]
    matrix, vector = np.empty((n, m, m)), np.empty((n, m))
    scalar, n_pixels = np.empty(n), np.empty(n, dtype=np.int64)
    inverse_dx = (grid.size - 1) / (grid[-1] - grid[0])
    _reduce(
        offset, flux, ivar, np.ascontiguousarray(basis, dtype=np.float64), grid[0], inverse_dx,
        0.5 * (grid[-1] - grid[0]), matrix, vector, scalar, n_pixels, amplitude,
    )  # fmt: skip
    return LineStatistics(matrix, vector, scalar, n_pixels, amplitude)
