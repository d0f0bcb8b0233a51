"""Honest splits: whole exposures, whole nights or whole lines are held out, never single profiles.

Profiles of one exposure share its focus, flexure and lamp, so that a network validated on the neighbours of its
training profiles reports an error that it will not have on the next exposure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["hold_out_fraction", "leave_one_out"]


def hold_out_fraction(
    group: np.ndarray, order: Sequence, rows: np.ndarray, fraction: float, seed: int | None, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation, whole groups on either side.

    Parameters
    ----------
    group : ndarray (n_rows,) of int
        Group of each of ``rows``: positions in ``order``.
    order : sequence
        What to sort the groups by before they are drawn, so that the draw does not depend on how they were numbered.
    rows : ndarray (n_rows,)
        Rows to divide, ascending.
    fraction : float
        Part of the groups that goes to training, between 0 and 1.
    seed : int or None
        For `numpy.random.default_rng`.
    what : str
        Name of a group in messages.

    Raises
    ------
    ValueError
        A fraction outside (0, 1), no rows, or fewer than two groups.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    if rows.size == 0:
        raise ValueError("the store has no good profiles to split")
    present = sorted(np.unique(group).tolist(), key=lambda g: order[g])
    if len(present) < 2:
        raise ValueError(f"a split by {what} needs profiles of at least 2 of them, the store has 1")
    n_train = min(max(round(fraction * len(present)), 1), len(present) - 1)
    drawn = np.random.default_rng(seed).permutation(len(present))[:n_train]
    chosen = np.isin(group, [present[i] for i in drawn])
    return rows[chosen], rows[~chosen]


def leave_one_out(group: np.ndarray, rows: np.ndarray, what: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each group: the group, the rows without it, its rows.

    Raises
    ------
    ValueError
        Fewer than two groups.
    """
    present = np.unique(group)
    if present.size < 2:
        raise ValueError(f"leaving one {what} out needs profiles of at least 2, the store has {present.size}")
    return ((int(g), rows[group != g], rows[group == g]) for g in present)
