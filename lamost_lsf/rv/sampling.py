"""Profiles and centres of many LSFs at once: those of one model are one evaluation of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba import njit

from lamost_lsf.lsf import LSF, MeanLSF
from lamost_lsf.models.base import _ModelLSF
from lamost_lsf.plugins import apply_center, get_center
from lamost_lsf.spline import quadrature_weights

__all__ = ["sample_many", "zero_points_many"]

#: Profiles that are evaluated at a time: some 10 MB of 600 samples each.
_BLOCK = 2048


def sample_many(requests: Sequence[tuple[LSF, np.ndarray]]) -> list[np.ndarray | Exception]:
    """``lsf.sample(wavelength)`` of every (lsf, wavelength (m,)); what it raised, where it did.

    Co-adds and single exposures of one IP model are stacked: a network costs far less for thousands of labels at once
    than for a few at a time.
    """
    out: list[np.ndarray | Exception | None] = [None] * len(requests)
    groups: dict[int, list[int]] = {}
    for i, (lsf, wavelength) in enumerate(requests):
        leaves = _leaves(lsf)
        if leaves:
            groups.setdefault(id(leaves[0].model), []).append(i)
            continue
        try:
            out[i] = lsf.sample(wavelength)
        except Exception as error:  # a user's own LSF raises what it likes
            out[i] = error
    for members in groups.values():
        _sample_model(requests, members, out)
    return out


def _leaves(lsf: LSF) -> list[_ModelLSF]:
    """Exposures of a co-add, or the LSF itself, where they are one model's."""
    leaves = list(lsf._lsfs) if type(lsf) is MeanLSF else [lsf]
    same = all(type(leaf) is _ModelLSF and leaf.model is getattr(leaves[0], "model", None) for leaf in leaves)
    return leaves if same else []


def _sample_model(
    requests: Sequence[tuple[LSF, np.ndarray]], members: list[int], out: list[np.ndarray | Exception | None]
) -> None:
    begin = 0
    while begin < len(members):
        part, total = [], 0
        while begin < len(members) and (not part or total < _BLOCK):
            i = members[begin]
            part.append(i)
            total += len(_leaves(requests[i][0])) * requests[i][1].size
            begin += 1
        try:
            _sample_block([requests[i] for i in part], part, out)
        except Exception:
            # one of them; each by itself tells which
            for i in part:
                try:
                    out[i] = requests[i][0].sample(requests[i][1])
                except Exception as error:
                    out[i] = error


def _sample_block(
    requests: Sequence[tuple[LSF, np.ndarray]], members: list[int], out: list[np.ndarray | Exception | None]
) -> None:
    model = _leaves(requests[0][0])[0].model
    times, fibers, waves, exposures = [], [], [], []
    for lsf, wavelength in requests:
        lsf._check_range(wavelength)
        leaves = _leaves(lsf)
        exposures.append((len(leaves), lsf._weights if type(lsf) is MeanLSF else np.ones(1)))
        for leaf in leaves:
            times.append(np.full(wavelength.size, np.nan if leaf._time is None else leaf._time))
            fibers.append(np.full(wavelength.size, -1 if leaf.fiber is None else leaf.fiber))
            waves.append(wavelength)
    first = _leaves(requests[0][0])[0]
    profiles = np.asarray(
        model._evaluate(
            None if first._time is None else np.concatenate(times),
            None if first.fiber is None else np.concatenate(fibers),
            np.concatenate(waves),
        ),
        dtype=np.float64,
    )
    area = profiles @ quadrature_weights(first.offset)
    if not np.all(area > 0):
        raise ValueError("a profile has no positive area")
    row = 0
    for i, (_, wavelength), (count, weights) in zip(members, requests, exposures, strict=True):
        end = row + count * wavelength.size
        out[i] = np.empty((wavelength.size, profiles.shape[1]))
        _mean_profiles(profiles[row:end], area[row:end], weights, out[i])
        row = end


@njit(cache=True, error_model="numpy")
def _mean_profiles(profiles, area, weights, out):
    """Mean (m, n) of exposures' profiles (n_exposure m, n) of unit area."""
    m = out.shape[0]
    for j in range(m):
        share = weights[0] / area[j]
        for k in range(out.shape[1]):
            out[j, k] = share * profiles[j, k]
        for e in range(1, weights.size):
            share = weights[e] / area[e * m + j]
            for k in range(out.shape[1]):
                out[j, k] += share * profiles[e * m + j, k]


def zero_points_many(
    requests: Sequence[tuple[np.ndarray, np.ndarray, str | Callable]],
) -> list[np.ndarray | Exception]:
    """Centres (m,) of profiles by (offset (n,), profiles (m, n), definition), those of one kind in one call."""
    out: list[np.ndarray | Exception | None] = [None] * len(requests)
    groups: dict[tuple, list[int]] = {}
    for i, (offset, profiles, definition) in enumerate(requests):
        if isinstance(definition, str) and definition.lower() == "zero":
            out[i] = np.zeros(profiles.shape[0])
            continue
        key = definition.lower() if isinstance(definition, str) else id(definition)
        groups.setdefault((key, offset.size, float(offset[0]), float(offset[-1])), []).append(i)
    for members in groups.values():
        offset, _, definition = requests[members[0]]
        try:
            stacked = np.concatenate([requests[i][1] for i in members])
            values = np.asarray(apply_center(get_center(definition), offset, stacked), dtype=np.float64)
        except Exception as error:
            for i in members:
                out[i] = error
            continue
        row = 0
        for i in members:
            part = values[row : row + requests[i][1].shape[0]]
            row += part.size
            bad = ~np.all(np.isfinite(part))
            out[i] = ValueError(f"the centre {definition!r} of the profile could not be determined") if bad else part
    return out
