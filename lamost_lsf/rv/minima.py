"""Minima of a chi-square over trial velocities, other than the lowest."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["other_minima"]


@njit(cache=True, error_model="numpy")
def other_minima(chi2, found, separation):
    """Local minima of a search that are some way off the one that was found.

    Parameters
    ----------
    chi2 : ndarray (k,)
    found : float
        Position, in trial steps, of the minimum that was found.
    separation : float
        Trial steps.

    Returns
    -------
    index : ndarray (m,)
        In order of velocity.
    lowest : int
        The lowest of them; -1 where there is none.
    height : float
        Largest finite chi-square less the smallest: the depth of the search.
    """
    index = np.empty(chi2.size, dtype=np.int64)
    count, lowest = 0, -1
    small, large = np.inf, -np.inf
    for k in range(chi2.size):
        y = chi2[k]
        small = min(small, y)
        if y < np.inf:
            large = max(large, y)
        inside = k > 0 and k < chi2.size - 1
        if inside and y < chi2[k - 1] and y <= chi2[k + 1] and abs(k - found) > separation:
            index[count] = k
            count += 1
            if lowest < 0 or y < chi2[lowest]:
                lowest = k
    return index[:count], lowest, large - small
