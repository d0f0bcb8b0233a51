"""Choosing windows from pairs of visits, and doing so for each star without its own pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["ensemble_weights", "nested_weights"]


def ensemble_weights(
    difference: ArrayLike, *, weight: ArrayLike | None = None, rounds: int = 12, freedom: float = 4.0
) -> np.ndarray:
    """Weights of the windows whose mean repeats best, of many that may overlap.

    Window after window is added to the mean, again and again from all of them, whichever lowers the scatter of the
    mean's differences most. The weights are the shares of the ``rounds``: none is negative and most are 0. Unlike the
    one best window, a mean of several hardly depends on single pairs; unlike weights by a covariance, it does not need
    that of hundreds of windows that differ by little.

    Parameters
    ----------
    difference : array_like (n_pair, n_window)
        Velocity of one visit minus that of another, km/s. A window that lacks one of them is not chosen.
    weight : array_like (n_pair,), optional
        Of each pair: 2 / (number of visits) where all pairs of a star's visits are given, as these are not independent.
    rounds : int
        Windows that are added.
    freedom : float
        Degrees of freedom of the t distribution by whose likelihood the scatter is judged, lest a variable star decide;
        infinity for the sum of squares. Its scale is the median absolute difference of the windows' medians.

    Returns
    -------
    ndarray (n_window,)
        They add up to 1.

    Raises
    ------
    ValueError
        Shapes that do not fit, no window with all velocities, fewer than 3 pairs.

    Notes
    -----
    Ensemble selection with replacement (Caruana et al. 2004, Proc. 21st Int. Conf. on Machine Learning, 18).

    Examples
    --------
    Ten windows, two of which are twice as good as the others:

    >>> import numpy as np
    >>> from lamost_lsf.rv.ensemble import ensemble_weights
    >>> rng = np.random.default_rng(1)
    >>> scatter = np.array([4, 4, 2, 4, 4, 2, 4, 4, 4, 4])
    >>> difference = np.sqrt(2) * scatter * rng.normal(size=(400, 10))
    >>> weights = ensemble_weights(difference, rounds=30)
    >>> print(np.sort(np.argsort(-weights)[:2]), weights.sum().round(6))
    [2 5] 1.0
    """
    d = np.asarray(difference, dtype=float)
    if d.ndim != 2 or len(d) < 3:
        raise ValueError(f"difference must have shape (n_pair, n_window) with 3 pairs or more, got {d.shape}")
    given = np.ones(len(d)) if weight is None else np.asarray(weight, dtype=float)
    if given.shape != (len(d),) or not np.all(np.isfinite(given)) or np.any(given <= 0):
        raise ValueError(f"weight must be one positive number for each of {len(d)} pairs")
    if rounds < 1 or not freedom > 2:
        raise ValueError(f"rounds must be at least 1 and freedom above 2, got {rounds} and {freedom}")
    usable = np.flatnonzero(np.all(np.isfinite(d), axis=0))
    if not usable.size:
        raise ValueError("no window has a velocity in every pair")
    d = d[:, usable]
    scale = max(1.4826 * float(np.median(np.abs(np.median(d, axis=1)))), 1e-9)
    count, total = np.zeros(usable.size), np.zeros(len(d))
    for k in range(1, rounds + 1):
        square = ((total[:, None] + d) / (k * scale)) ** 2
        loss = given @ (np.log1p(square / freedom) if np.isfinite(freedom) else square)
        best = int(np.argmin(loss))
        count[best] += 1.0
        total += d[:, best]
    out = np.zeros(np.shape(difference)[1])
    out[usable] = count / rounds
    return out


def nested_weights(
    velocity: ArrayLike,
    star: ArrayLike,
    pairs: tuple[ArrayLike, ArrayLike],
    choose: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Weights of windows for every visit, chosen without the star's own pairs.

    What a choice of windows is worth is seen only on stars that had no part in it: the best of many windows is best on
    the pairs that it was chosen on by chance, too.

    Parameters
    ----------
    velocity : array_like (n_visit, n_window)
        km/s.
    star : array_like (n_visit,)
        What star each visit is of.
    pairs : (first, second), array_like of int (n_pair,)
        Visits that are compared, both of one star.
    choose : callable, optional
        ``choose(difference, weight)`` gives weights (n_window,) from differences (n_pair, n_window) and weights
        (n_pair,) of the pairs: 2 / (number of visits of the star).
        `ensemble_weights` by default.

    Returns
    -------
    ndarray (n_visit, n_window)
        The same for all visits of a star; NaN for stars without pairs.

    Raises
    ------
    ValueError
        Shapes that do not fit, pairs of different stars.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.rv.ensemble import nested_weights
    >>> rng = np.random.default_rng(1)
    >>> star = np.repeat(np.arange(50), 2)
    >>> velocity = rng.normal(0, 30, 50)[star, None] + rng.normal(size=(100, 3)) * (1, 5, 5)
    >>> first = np.arange(0, 100, 2)
    >>> weights = nested_weights(velocity, star, (first, first + 1))
    >>> combined = np.sum(weights * velocity, axis=1)
    >>> bool(np.std(combined[first] - combined[first + 1]) < 1.2 * np.sqrt(2))
    True
    """
    v, star = np.asarray(velocity, dtype=float), np.asarray(star)
    first, second = (np.asarray(p, dtype=np.int64) for p in pairs)
    if v.ndim != 2 or star.shape != v.shape[:1] or first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            "velocity (n_visit, n_window), star (n_visit,) and two lists of visits of one length are needed, got "
            f"{v.shape}, {star.shape}, {first.shape} and {second.shape}"
        )
    if np.any(star[first] != star[second]):
        raise ValueError("a pair must be two visits of one star")
    if choose is None:
        choose = _ensemble
    difference, owner = v[first] - v[second], star[first]
    weight = np.array([2.0 / np.count_nonzero(star == s) for s in owner])
    out = np.full(v.shape, np.nan)
    for s in np.unique(owner):
        others = owner != s
        out[star == s] = choose(difference[others], weight[others])
    return out


def _ensemble(difference: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return ensemble_weights(difference, weight=weight)
