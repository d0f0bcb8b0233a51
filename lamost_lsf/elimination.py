"""Small linear systems inside compiled loops, where a call of LAPACK would cost more than the solution."""

from __future__ import annotations

from numba import njit

__all__ = ["solve_in_place"]


@njit(cache=True, error_model="numpy")
def solve_in_place(a, b, n, least):
    """Solve the first n equations by elimination with pivoting; False where no pivot exceeds ``least``.

    Parameters
    ----------
    a, b : ndarray (m, m), (m,)
        Overwritten; b by the solution.
    n : int
    least : float
    """
    for k in range(n):
        pivot = k
        for i in range(k + 1, n):
            if abs(a[i, k]) > abs(a[pivot, k]):
                pivot = i
        if not abs(a[pivot, k]) > least:
            return False
        if pivot != k:
            for j in range(n):
                a[k, j], a[pivot, j] = a[pivot, j], a[k, j]
            b[k], b[pivot] = b[pivot], b[k]
        for i in range(k + 1, n):
            ratio = a[i, k] / a[k, k]
            for j in range(k, n):
                a[i, j] -= ratio * a[k, j]
            b[i] -= ratio * b[k]
    for k in range(n - 1, -1, -1):
        for j in range(k + 1, n):
            b[k] -= a[k, j] * b[j]
        b[k] /= a[k, k]
    return True
