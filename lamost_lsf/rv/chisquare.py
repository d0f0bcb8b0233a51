"""Chi-square of one spectrum with its continuum solved, its slope by the shift, and its minimum.

The functions share ``arrays``: components of the template (n_node, 2 K), their weights (n, 2 K), positions of the
pixels in nodes, whether these are aligned, table of models (12, n), products of polynomials and weights, polynomials
times weighted data, the data's square, whether the products are pairwise, and what is left behind: model (n,) and
coefficients.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lamost_lsf.convolution.loggrid import FASTMATH, lagrange8
from lamost_lsf.rv.models import HIGHEST, LOWEST, combine, lagrange8_derivative
from lamost_lsf.rv.normal import dots, factor, normal_matrix, solve

__all__ = ["best_model", "chi2_at", "line_significance", "pixel_influence", "refine_from"]

#: Relative precision of the normal equations of a model.
RIDGE = 1e-14
_MAX_STEPS = 30


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _chi2(table, u, rows, linear, square, products, model, solution, want_slope):
    """Chi-square and its derivative by the shift (nodes), at ``u`` nodes from the table's centre."""
    p, n = linear.shape
    f = int(np.floor(u))
    w, v = lagrange8(u - f), lagrange8_derivative(u - f)
    first = f + 2
    t0, t1, t2, t3 = table[first], table[first + 1], table[first + 2], table[first + 3]
    t4, t5, t6, t7 = table[first + 4], table[first + 5], table[first + 6], table[first + 7]
    product = np.empty(n)
    for j in range(n):
        y = w[0] * t0[j] + w[1] * t1[j] + w[2] * t2[j] + w[3] * t3[j]
        y += w[4] * t4[j] + w[5] * t5[j] + w[6] * t6[j] + w[7] * t7[j]
        model[j] = y
        product[j] = y * y
    moments, b, a, inverse = np.empty(rows.shape[0]), np.empty(p), np.empty((p, p)), np.empty(p)
    dots(rows, product, moments)
    dots(linear, model, b)
    normal_matrix(moments, products, a)
    if np.isnan(factor(a, inverse, RIDGE)):
        return np.nan, np.nan
    solve(a, inverse, b, solution)
    value, slope = square, 0.0
    for r in range(p):
        value -= b[r] * solution[r]
    if want_slope:
        # the table's rows run against the shift; with the coefficients solved only the explicit dependence is left
        derivative = np.empty(n)
        for j in range(n):
            y = v[0] * t0[j] + v[1] * t1[j] + v[2] * t2[j] + v[3] * t3[j]
            y += v[4] * t4[j] + v[5] * t5[j] + v[6] * t6[j] + v[7] * t7[j]
            derivative[j] = -y
            product[j] = -2.0 * y * model[j]
        dots(rows, product, moments)
        dots(linear, derivative, b)
        normal_matrix(moments, products, a)
        for r in range(p):
            slope -= 2.0 * b[r] * solution[r]
            for c in range(r + 1):
                slope += (1.0 if c == r else 2.0) * a[r, c] * solution[r] * solution[c]
    return value, slope


@njit(cache=True, error_model="numpy")
def chi2_at(shift, center, want_slope, arrays):
    """Chi-square and slope at a shift, and the centre of the table of models, which is moved where it must be."""
    values, weights, position, aligned, table, rows, linear, square, products, model, solution = arrays
    u = center - shift
    if not (u >= LOWEST and u < HIGHEST):
        center = position[0] - np.floor(position[0] - shift) if aligned else shift + 0.5
        combine(values, weights, position, center, aligned, table)
    value, slope = _chi2(table, center - shift, rows, linear, square, products, model, solution, want_slope)
    return value, slope, center


@njit(cache=True, error_model="numpy")
def refine_from(chi2, k, first, step, low, high, precision, center, arrays):
    """Shift, error, chi-square, state and centre; see `FinePixels.refine`."""
    if k < 0:
        k = np.argmin(chi2)
    middle = first + k * step
    if not chi2[k] < np.inf:
        return middle, np.nan, chi2[k], 1, center
    start, curvature = middle, 0.0
    if 0 < k < chi2.size - 1:
        bend = chi2[k - 1] - 2.0 * chi2[k] + chi2[k + 1]
        if bend > 0.0 and bend < np.inf:
            start += min(max(0.5 * (chi2[k - 1] - chi2[k + 1]) / bend, -1.0), 1.0) * step
            curvature = bend / step**2
    # the neighbours bracket the minimum; what the search's LSF lacks may move it by a little more
    return _refine(
        start, curvature, middle - 2.0 * step, middle + 2.0 * step, low, high, step, precision, center, arrays
    )


@njit(cache=True, error_model="numpy")
def _refine(start, curvature, first, last, low, high, step, precision, center, arrays):
    """The slope's zero by secants, from a first guess with its curvature, between ``first`` and ``last``."""
    shift = min(max(start, low), high)
    value, slope, center = chi2_at(shift, center, True, arrays)
    known = False
    for _ in range(_MAX_STEPS):
        if not np.isfinite(value):
            return shift, np.nan, value, 1, center
        if curvature > 0:
            move = min(max(-slope / curvature, -0.5 * step), 0.5 * step)
        else:
            move = -0.5 * step if slope > 0 else 0.5 * step
        if known and curvature > 0 and abs(move) < precision:
            return _with_error(shift + move, curvature, low, high, precision, center, arrays)
        if not known and abs(move) < 0.02 * step:
            move = 0.02 * step if move > 0 else -0.02 * step  # far enough for the slopes' difference to mean something
        new = min(max(shift + move, low), high)
        if new == shift:
            if not low < shift < high:
                return shift, np.nan, value, 2, center
            new = shift + 0.01 * step  # the slope is zero to the last digit; a little way off it says the curvature
        if not first <= new <= last:
            return new, np.nan, value, 1, center
        new_value, new_slope, center = chi2_at(new, center, True, arrays)
        curvature, known = (new_slope - slope) / (new - shift), True
        shift, value, slope = new, new_value, new_slope
    return shift, np.nan, value, 1, center


@njit(cache=True, error_model="numpy")
def _with_error(shift, curvature, low, high, precision, center, arrays):
    shift = min(max(shift, low), high)
    error = np.sqrt(2.0 / curvature)
    h = min(max(error, 50.0 * precision), min(shift - low, high - shift))
    left = right = np.nan
    if h > 50.0 * precision:
        left, _, center = chi2_at(shift - h, center, False, arrays)
        right, _, center = chi2_at(shift + h, center, False, arrays)
    value, _, center = chi2_at(shift, center, False, arrays)
    far = (left - 2.0 * value + right) / h**2
    # on the flanks of a shallow minimum the far points may bend down: the local curvature is then all there is
    if far > 0:
        error = np.sqrt(2.0 / far)
    return shift, error, value, 0, center


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def best_model(model, coefficients, design, flux, ivar, out):
    """Model times continuum, and the largest excess of the data over it in errors."""
    largest = 0.0
    for j in range(model.size):
        curve = 0.0
        for r in range(coefficients.size):
            curve += coefficients[r] * design[r, j]
        out[j] = model[j] * curve
        off = flux[j] - out[j]
        largest = max(largest, off * abs(off) * ivar[j])
    return np.sqrt(largest)


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def pixel_influence(table, u, model, curve, ivar, design):
    """Weights of the pixels' wavelengths, and by which of the models' values, of the least-squares shift."""
    p, n = design.shape
    f = int(np.floor(u))
    v = lagrange8_derivative(u - f)
    slope = np.zeros(n)
    for t in range(8):
        for j in range(n):
            slope[j] -= v[t] * table[f + 2 + t, j] * curve[j]
    # less what the continuum takes up: projection on model times polynomials
    a, b, c, inverse = np.empty((p, p)), np.empty(p), np.empty(p), np.empty(p)
    for r in range(p):
        for q in range(r + 1):
            total = 0.0
            for j in range(n):
                total += ivar[j] * model[j] * model[j] * design[r, j] * design[q, j]
            a[r, q] = total
        total = 0.0
        for j in range(n):
            total += ivar[j] * model[j] * design[r, j] * slope[j]
        b[r] = total
    factor(a, inverse, RIDGE)
    solve(a, inverse, b, c)
    rest = slope.copy()
    for r in range(p):
        for j in range(n):
            rest[j] -= c[r] * model[j] * design[r, j]
    norm = 0.0
    for j in range(n):
        norm += ivar[j] * rest[j] * slope[j]
    shares, weights = np.empty(n), np.empty(n)
    for j in range(n):
        shares[j] = ivar[j] * rest[j] * slope[j] / norm
        weights[j] = -ivar[j] * rest[j] * curve[j] / norm
    return shares, weights


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def line_significance(flux, ivar, model, design, rows, linear, products):
    """Amplitude, drop of the chi-square, chi-square and sum of a polynomial and a multiple of the model."""
    p, n = design.shape
    moments, a, inverse = np.empty(rows.shape[0]), np.empty((p, p)), np.empty(p)
    for m in range(rows.shape[0]):
        total = 0.0
        for j in range(n):
            total += rows[m, j]
        moments[m] = total
    normal_matrix(moments, products, a)
    bd, bm, cd, cm = np.empty(p), np.empty(p), np.empty(p), np.empty(p)
    for r in range(p):
        t0 = t1 = 0.0
        for j in range(n):
            t0 += linear[r, j]
            t1 += design[r, j] * ivar[j] * model[j]
        bd[r], bm[r] = t0, t1
    if np.isnan(factor(a, inverse, RIDGE)):
        return 0.0, 0.0, np.nan, np.full(n, np.nan)
    solve(a, inverse, bd, cd)
    solve(a, inverse, bm, cm)
    polynomial, other = np.zeros(n), model.copy()
    for r in range(p):
        for j in range(n):
            polynomial[j] += cd[r] * design[r, j]
            other[j] -= cm[r] * design[r, j]
    norm = dot = 0.0
    for j in range(n):
        norm += ivar[j] * other[j] * other[j]
        dot += ivar[j] * other[j] * flux[j]
    amplitude, gain = (dot / norm, dot * dot / norm) if norm > 0.0 else (0.0, 0.0)
    chi2 = 0.0
    for j in range(n):
        polynomial[j] += amplitude * other[j]
        chi2 += ivar[j] * (flux[j] - polynomial[j]) ** 2
    return amplitude, gain, chi2, polynomial
