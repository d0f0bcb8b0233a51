"""Small normal equations of a continuum's coefficients."""

from __future__ import annotations

import numpy as np
from numba import njit

from lamost_lsf.convolution.loggrid import FASTMATH

__all__ = ["dots", "factor", "normal_matrix", "prepare_polynomials", "solve"]


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def prepare_polynomials(x, flux, ivar, design, rows, linear):
    """Chebyshev polynomials times weights.

    Returns the data's square, the number of pixels that count and the smallest pivot of the normal equations.
    """
    p, n = design.shape
    square, count = 0.0, 0
    for j in range(n):
        square += ivar[j] * flux[j] * flux[j]
        count += ivar[j] > 0.0
        rows[0, j] = 1.0
    if rows.shape[0] > 1:
        for j in range(n):
            rows[1, j] = x[j]
    for m in range(2, rows.shape[0]):
        for j in range(n):
            rows[m, j] = 2.0 * x[j] * rows[m - 1, j] - rows[m - 2, j]
    moments = np.empty(rows.shape[0])
    for m in range(rows.shape[0]):
        total = 0.0
        if m < p:
            for j in range(n):
                design[m, j] = rows[m, j]
                linear[m, j] = rows[m, j] * ivar[j] * flux[j]
        for j in range(n):
            rows[m, j] *= ivar[j]
            total += rows[m, j]
        moments[m] = total
    a = np.empty((p, p))
    normal_matrix(moments, False, a)
    return square, count, factor(a, np.empty(p), 0.0)


@njit(cache=True, error_model="numpy")
def normal_matrix(moments, products, out):
    """Lower triangle of the normal matrix."""
    p, k = out.shape[0], 0
    for r in range(p):
        for c in range(r + 1):
            out[r, c] = moments[k] if products else 0.5 * (moments[r + c] + moments[r - c])
            k += 1


@njit(cache=True, error_model="numpy")
def factor(a, inverse, ridge):
    """Cholesky factor of a normalised matrix, in place (reciprocals on the diagonal); its smallest pivot.

    ``inverse`` receives what normalises it. NaN where a diagonal element is not positive.
    """
    p = a.shape[0]
    for r in range(p):
        if not (a[r, r] > 0.0 and a[r, r] < np.inf):
            return np.nan
        inverse[r] = 1.0 / np.sqrt(a[r, r])
    smallest = np.inf
    for r in range(p):
        for c in range(r + 1):
            total = a[r, c] * inverse[r] * inverse[c] if r > c else 1.0 + ridge
            for q in range(c):
                total -= a[r, q] * a[c, q]
            if r == c:
                smallest = min(smallest, total)
                a[r, r] = 1.0 / np.sqrt(total) if total > 0.1 * ridge else 0.0
            else:
                a[r, c] = total * a[c, c]
    return smallest


@njit(cache=True, error_model="numpy")
def solve(a, inverse, b, out):
    """Solution of the factored system."""
    p = a.shape[0]
    for r in range(p):
        total = b[r] * inverse[r]
        for q in range(r):
            total -= a[r, q] * out[q]
        out[r] = total * a[r, r]
    for r in range(p - 1, -1, -1):
        total = out[r]
        for q in range(r + 1, p):
            total -= a[q, r] * out[q]
        out[r] = total * a[r, r]
    for r in range(p):
        out[r] *= inverse[r]


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def dots(rows, vector, out):
    """Scalar products of rows (m, n) with a vector (n,)."""
    for m in range(rows.shape[0]):
        total = 0.0
        for j in range(vector.size):
            total += rows[m, j] * vector[j]
        out[m] = total
