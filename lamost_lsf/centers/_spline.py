"""The not-a-knot cubic spline through samples, as compiled functions on plain arrays.

`max`, `half`, `centroid` and `fourier` are defined on this curve. It is kept as values y and slopes m at the
knots; every quantity needed is then linear in (y, m), and the `adjoint` turns such a linear functional into
weights of the samples alone: quadrature weights, and the gradients that uncertainties are propagated with.
"""

import numpy as np
from numba import njit

__all__ = ["MIN_SAMPLES", "adjoint", "all_good", "is_uniform", "select", "slopes"]

#: Fewest good samples that a not-a-knot cubic can be drawn through.
MIN_SAMPLES = 4


def is_uniform(x: np.ndarray) -> bool:
    """Whether the spacing of x is constant to 1e-6 of itself (a centre then moves by less than that)."""
    step = (x[-1] - x[0]) / (x.size - 1)
    return bool(np.max(np.abs(x - (x[0] + step * np.arange(x.size)))) <= 1e-6 * step)


@njit(cache=True, error_model="numpy")
def all_good(error, mask, row, n):
    """Whether mask and error leave every sample of a row."""
    bad = 0
    if error.shape[0] > 0:
        e = error[row if error.shape[0] > 1 else 0]
        for i in range(n):
            bad += 0 if (e[i] > 0.0 and e[i] < np.inf) else 1
    if mask.shape[0] > 0:
        b = mask[row if mask.shape[0] > 1 else 0]
        for i in range(n):
            bad += 1 if b[i] != 0 else 0
    return bad == 0


@njit(cache=True, error_model="numpy")
def select(x, y, error, mask, row, xs, ys, es):
    """Copy the good samples of a row to xs, ys, es; return how many there are.

    ``error`` and ``mask`` may have no row (all good) or one row (the same for all profiles).
    """
    n = x.size
    has_error = error.shape[0] > 0
    has_mask = mask.shape[0] > 0
    error_row = row if error.shape[0] > 1 else 0
    mask_row = row if mask.shape[0] > 1 else 0
    count = 0
    for i in range(n):
        value = y[row, i]
        if not np.isfinite(value):
            continue
        if has_mask and mask[mask_row, i] != 0:
            continue
        if has_error:
            e = error[error_row, i]
            if not (e > 0.0 and np.isfinite(e)):
                continue
            es[count] = e
        xs[count] = x[i]
        ys[count] = value
        count += 1
    return count


@njit(cache=True, error_model="numpy")
def _system(x, n, lower, diagonal, upper):
    """Tridiagonal matrix of the slopes: continuity of the second derivative, not-a-knot at both ends."""
    for i in range(1, n - 1):
        left = x[i] - x[i - 1]
        right = x[i + 1] - x[i]
        lower[i] = right
        diagonal[i] = 2.0 * (left + right)
        upper[i] = left
    lower[0] = 0.0
    diagonal[0] = x[2] - x[1]
    upper[0] = x[2] - x[0]
    lower[n - 1] = x[n - 1] - x[n - 3]
    diagonal[n - 1] = x[n - 2] - x[n - 3]
    upper[n - 1] = 0.0


@njit(cache=True, error_model="numpy")
def _solve(lower, diagonal, upper, rhs, n):
    """Thomas algorithm; diagonal and rhs are overwritten, rhs with the solution.

    No pivoting: all leading minors of the slope matrix are positive (the first pivot is a spacing, the
    second the sum of two, and the rest is diagonally dominant); a transpose has the same minors.
    """
    for i in range(1, n):
        factor = lower[i] / diagonal[i - 1]
        diagonal[i] -= factor * upper[i - 1]
        rhs[i] -= factor * rhs[i - 1]
    rhs[n - 1] /= diagonal[n - 1]
    for i in range(n - 2, -1, -1):
        rhs[i] = (rhs[i] - upper[i] * rhs[i + 1]) / diagonal[i]


@njit(cache=True, error_model="numpy")
def _end_weights(near, far):
    """Weights of the two outermost secants in the not-a-knot equation of an end."""
    total = near + far
    return (near + 2.0 * total) * far / total, near * near / total


@njit(cache=True, error_model="numpy")
def slopes(x, y, n, m, work):
    """Slopes m[:n] of the spline through (x, y)[:n], n >= 4. ``work`` is (3, >= n) scratch."""
    _system(x, n, work[0], work[1], work[2])
    for i in range(1, n - 1):
        left = x[i] - x[i - 1]
        right = x[i + 1] - x[i]
        m[i] = 3.0 * (right * (y[i] - y[i - 1]) / left + left * (y[i + 1] - y[i]) / right)
    h0, h1 = x[1] - x[0], x[2] - x[1]
    a, b = _end_weights(h0, h1)
    m[0] = a * (y[1] - y[0]) / h0 + b * (y[2] - y[1]) / h1
    h0, h1 = x[n - 1] - x[n - 2], x[n - 2] - x[n - 3]
    a, b = _end_weights(h0, h1)
    m[n - 1] = a * (y[n - 1] - y[n - 2]) / h0 + b * (y[n - 2] - y[n - 3]) / h1
    _solve(work[0], work[1], work[2], m, n)


@njit(cache=True, error_model="numpy")
def adjoint(x, n, alpha, beta, work):
    """Turn the functional ``alpha . y + beta . m`` into weights of y alone (returned in alpha).

    beta is overwritten; ``work`` is (3, >= n) scratch. With A m = B y the weights are alpha + B^T A^-T beta.
    """
    lower, diagonal, upper = work[0], work[1], work[2]
    _system(x, n, lower, diagonal, upper)
    # transpose in place: the two off-diagonals change places and shift by one
    for i in range(n - 1):
        lower[i + 1], upper[i] = upper[i], lower[i + 1]
    _solve(lower, diagonal, upper, beta, n)
    for i in range(1, n - 1):
        left = x[i] - x[i - 1]
        right = x[i + 1] - x[i]
        a = 3.0 * right / left * beta[i]
        b = 3.0 * left / right * beta[i]
        alpha[i - 1] -= a
        alpha[i] += a - b
        alpha[i + 1] += b
    h0, h1 = x[1] - x[0], x[2] - x[1]
    a, b = _end_weights(h0, h1)
    a *= beta[0] / h0
    b *= beta[0] / h1
    alpha[0] -= a
    alpha[1] += a - b
    alpha[2] += b
    h0, h1 = x[n - 1] - x[n - 2], x[n - 2] - x[n - 3]
    a, b = _end_weights(h0, h1)
    a *= beta[n - 1] / h0
    b *= beta[n - 1] / h1
    alpha[n - 1] += a
    alpha[n - 2] -= a - b
    alpha[n - 3] -= b
