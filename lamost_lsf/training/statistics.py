"""Pixel likelihood of a line, reduced to a small matrix: amplitude and background are solved, not fitted.

A line seen in pixels at offsets x_j is ``d_j = A h(x_j) + b0 + b1 x_j + sum_q r_q g(x_j - y_q) + noise`` with
``h = mu + sum_k c_k B_k`` (an effective LSF: the pixel's response is part of h; Anderson & King 2000). Neighbours of
the lamp at known offsets y_q, whose wings reach into the window, have a fixed shape g and unknown fluxes r_q. Where the
ratio rho_q of their fluxes to the line's is known, h(x) is ``h(x) + sum_q rho_q h(x - y_q)`` instead, and r_q what is
left. The chi-square is quadratic in (A, A c, b, r); with background and neighbours eliminated (Schur complement) and
``a = (1, c)``

    chi2(A, c) = s - 2 A v.a + A^2 a.M.a,      min over A:  s - (v.a)^2 / (a.M.a),

with a matrix M of (K + 1) x (K + 1) and a vector v that are computed once for a profile. This is exact: whatever
predicts c can be trained on it without touching the pixels again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from lamost_lsf.convolution.nodes import lagrange4

__all__ = ["NEIGHBOUR_PRIOR", "LineFit", "LineStatistics", "fit_lines", "line_statistics", "sampled"]


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


#: Standard deviation of the prior on a neighbour's flux, relative to the line's, as long as nothing is known of it:
#: what is listed as a neighbour is faint. It matters only where little of the neighbour is seen.
NEIGHBOUR_PRIOR = 0.5


@njit(cache=True, error_model="numpy")
def _cholesky(matrix, size):
    """Lower factor in place; False where the matrix is singular to rounding."""
    for i in range(size):
        for j in range(i + 1):
            value = matrix[i, j]
            for k in range(j):
                value -= matrix[i, k] * matrix[j, k]
            if i == j:
                if not value > 1e-12 * matrix[i, i]:
                    return False
                matrix[i, i] = np.sqrt(value)
            else:
                matrix[i, j] = value / matrix[j, j]
    return True


@njit(cache=True, error_model="numpy")
def _reduce(
    offset, flux, ivar, basis, x0, inverse_dx, half_width, neighbour, ratio, shape, ridge,
    matrix, vector, scalar, n_pixels, amplitude,
):  # fmt: skip
    n, n_pixel = offset.shape
    m, n_neighbour = basis.shape[0], neighbour.shape[1]
    most = m + 2 + n_neighbour
    normal, rhs, g = np.empty((most, most)), np.empty(most), np.empty(most)
    factor = np.empty((2 + n_neighbour, 2 + n_neighbour))
    half = np.empty((2 + n_neighbour, m + 1))
    one, wing = np.empty(1), np.empty(m)
    for i in range(n):
        normal[:], rhs[:] = 0.0, 0.0
        size = m + 2
        for q in range(n_neighbour):
            if np.isfinite(neighbour[i, q]):
                size += 1
        total, count = 0.0, 0
        scale = amplitude[i]
        for j in range(n_pixel):
            w = ivar[i, j] * scale * scale
            if not w > 0.0:
                continue
            x, d = offset[i, j], flux[i, j] / scale
            _interpolate(basis, x0, inverse_dx, x, g[:m])
            g[m], g[m + 1] = 1.0, x / half_width
            a = m + 2
            for q in range(n_neighbour):
                if np.isfinite(neighbour[i, q]):
                    _interpolate(shape, x0, inverse_dx, x - neighbour[i, q], one)
                    g[a] = one[0]
                    a += 1
                    if ratio[i, q] != 0.0:
                        _interpolate(basis, x0, inverse_dx, x - neighbour[i, q], wing)
                        for b in range(m):
                            g[b] += ratio[i, q] * wing[b]
            for a in range(size):
                wg = w * g[a]
                rhs[a] += wg * d
                for b in range(a + 1):
                    normal[a, b] += wg * g[b]
            total += w * d * d
            count += 1
        n_pixels[i] = count
        # Schur complement over the nuisances: with N = L L', subtract (L^-1 U)' (L^-1 U)
        nuisances = size - m
        for a in range(nuisances):
            for b in range(a + 1):
                factor[a, b] = normal[m + a, m + b]
        a = 2
        for q in range(n_neighbour):
            if np.isfinite(neighbour[i, q]):
                factor[a, a] += ridge[i, q]
                a += 1
        if count < 3 + nuisances or not _cholesky(factor, nuisances):
            matrix[i], vector[i], scalar[i], n_pixels[i] = np.nan, np.nan, np.nan, 0
            continue
        for b in range(m + 1):
            for a in range(nuisances):
                value = normal[m + a, b] if b < m else rhs[m + a]
                for k in range(a):
                    value -= factor[a, k] * half[k, b]
                half[a, b] = value / factor[a, a]
        scalar[i] = total
        for k in range(nuisances):
            scalar[i] -= half[k, m] ** 2
        for a in range(m):
            vector[i, a] = rhs[a]
            for k in range(nuisances):
                vector[i, a] -= half[k, a] * half[k, m]
            for b in range(a + 1):
                value = normal[a, b]
                for k in range(nuisances):
                    value -= half[k, a] * half[k, b]
                matrix[i, a, b] = value
                matrix[i, b, a] = value


def line_statistics(
    offset: np.ndarray,
    flux: np.ndarray,
    ivar: np.ndarray,
    grid: np.ndarray,
    basis: np.ndarray,
    amplitude: np.ndarray | None = None,
    *,
    neighbours: np.ndarray | None = None,
    shape: np.ndarray | None = None,
    ratio: np.ndarray | None = None,
    spread: np.ndarray | float = NEIGHBOUR_PRIOR,
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
    neighbours : ndarray (n, Q), optional
        Offsets (Angstrom) from the line of other lines of the lamp, NaN where there are fewer than Q.
    shape : ndarray (n_sample,), optional
        Profile of the neighbours on ``grid``, unit area; the first of ``basis`` by default.
    ratio : ndarray (n, Q), optional
        Expected flux of each neighbour relative to the line's; that much of it has the line's own profile. 0 by
        default.
    spread : ndarray (n, Q) or float
        Standard deviation of the true ratio about ``ratio``.

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
    neighbours = np.empty((n, 0)) if neighbours is None else np.ascontiguousarray(neighbours, dtype=np.float64)
    if neighbours.shape[0] != n or neighbours.ndim != 2:
        raise ValueError(f"neighbours must have shape ({n}, Q), got {neighbours.shape}")
    ratio = np.zeros(neighbours.shape) if ratio is None else np.ascontiguousarray(ratio, dtype=np.float64)
    if ratio.shape != neighbours.shape:
        raise ValueError(f"ratio must have the neighbours' shape {neighbours.shape}, got {ratio.shape}")
    shape = np.ascontiguousarray(basis[0] if shape is None else shape, dtype=np.float64)[None]
    # the line's own flux, of unit amplitude, is the inverse of the peak of a profile of unit area
    ridge = np.array(np.broadcast_to((shape.max() / np.asarray(spread, dtype=np.float64)) ** 2, neighbours.shape))
    _reduce(
        offset, flux, ivar, np.ascontiguousarray(basis, dtype=np.float64), grid[0], inverse_dx,
        0.5 * (grid[-1] - grid[0]), neighbours, ratio, shape, ridge, matrix, vector, scalar, n_pixels, amplitude,
    )  # fmt: skip
    return LineStatistics(matrix, vector, scalar, n_pixels, amplitude)


def sampled(x: np.ndarray, offset: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Rows of ``flux`` (n, n_sample) at offsets x (n, p): four-point interpolation; 0 outside the window."""
    step = offset[1] - offset[0]
    p = (x - offset[0]) / step
    inside = (p >= 0) & (p <= offset.size - 1)
    i = np.clip(p.astype(np.int64) - 1, 0, offset.size - 4)
    weights = lagrange4.py_func(p - i)
    rows = np.arange(flux.shape[0])[:, None]
    return np.where(inside, sum(w * flux[rows, i + k] for k, w in enumerate(weights)), 0.0)


@dataclass(frozen=True)
class LineFit:
    """Amplitude, background and neighbours of n lines whose profiles are given, fitted to p native pixels.

    Attributes
    ----------
    design : ndarray (n, p, 3 + Q)
        Profile, 1, scaled offset, and the neighbours' profiles.
    solution : ndarray (n, 3 + Q)
    inverse : ndarray (n, 3 + Q, 3 + Q)
        Covariance of the solution.
    parameters : ndarray (n,)
        Number of parameters of each line.
    usable : ndarray (n,) of bool
        Lines of enough pixels; the others' solution means nothing.
    """

    design: np.ndarray
    solution: np.ndarray
    inverse: np.ndarray
    parameters: np.ndarray
    usable: np.ndarray


def fit_lines(
    x: np.ndarray, data: np.ndarray, ivar: np.ndarray, offset: np.ndarray, flux: np.ndarray, neighbours: np.ndarray
) -> LineFit:
    """Fit amplitude, linear background and neighbours (n, Q) of lines (n, p) with known profiles (n, n_sample).

    A neighbour's shape is taken to be the line's own.
    """
    h = sampled(x, offset, flux)
    scaled = x / (0.5 * np.ptp(offset))
    # a column of zeros where there is no neighbour
    outside = 2.0 * offset[-1] - 2.0 * offset[0]
    wings = [sampled(np.where(np.isfinite(y)[:, None], x - y[:, None], outside), offset, flux) for y in neighbours.T]
    design = np.stack([h, np.ones_like(h), scaled, *wings], axis=2)
    weighted = design * ivar[:, :, None]
    normal = np.einsum("npi,npj->nij", weighted, design)
    parameters = 3 + np.count_nonzero(np.isfinite(neighbours), axis=1)
    diagonal = np.arange(3, design.shape[2])
    good = ivar > 0
    counts = np.maximum(np.max(np.where(good, data, 0.0), axis=1), 1e-30)
    normal[:, diagonal, diagonal] += ((flux.max(axis=1) / (NEIGHBOUR_PRIOR * counts)) ** 2)[:, None]
    usable = np.count_nonzero(good, axis=1) > parameters + 1
    usable &= np.linalg.cond(np.where(np.isfinite(normal), normal, 0)) < 1e12
    normal[~usable] = np.eye(design.shape[2])
    inverse = np.linalg.inv(normal)
    solution = np.einsum("nij,npj,np->ni", inverse, weighted, data)
    return LineFit(design, solution, inverse, parameters, usable)
