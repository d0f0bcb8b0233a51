"""Random numbers that depend on labels alone: the same for the same labels, in whatever order they are asked for.

An instrument's fibre 17 must be the same fibre in every exposure, and a night the same night for every fibre. A
stream of random numbers cannot give that without storing all of it; a hash of the labels can.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

__all__ = ["deviate", "generator"]

# The finaliser of SplitMix64 (Steele, Lea & Flood 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = (np.uint64(n) for n in (30, 27, 31, 11))


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + _GAMMA
        x = (x ^ (x >> _S30)) * _M1
        x = (x ^ (x >> _S27)) * _M2
        return x ^ (x >> _S31)


def deviate(*labels: int | np.ndarray) -> np.ndarray:
    """Standard normal deviates that are functions of integer labels.

    Parameters
    ----------
    *labels : int or array_like of int
        Broadcast against one another.

    Returns
    -------
    ndarray
        Of the broadcast shape.

    Examples
    --------
    >>> bool(deviate(1, 2) == deviate(1, [2, 3])[0])
    True
    """
    state = np.zeros((), dtype=np.uint64)
    for label in labels:
        state = _mix(np.asarray(state) ^ np.asarray(label).astype(np.int64).astype(np.uint64))
    # 53 bits, half a step away from 0 and 1
    return ndtri(((state >> _S11).astype(np.float64) + 0.5) * 2.0**-53)


def generator(seed: int | tuple[int, ...] | np.random.Generator) -> np.random.Generator:
    """Generator of a seed, or the generator itself."""
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
