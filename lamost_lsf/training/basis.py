"""A basis for profiles, learned from native pixels: splines fitted to groups of similar lines, then their
principal components.

Splining a sparsely sampled line, joining two noisy minima for its background and dividing by its noisy peak (the
paper's section 2) leave errors of 1-3e-3 of the peak that are the same for every exposure. Here many lines of
neighbouring fibres, each with its own sub-pixel phase, constrain one spline, with amplitude, linear background and
neighbours of each line solved for; what is left is below 1e-4.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline

from lamost_lsf.spline import quadrature_weights
from lamost_lsf.training.statistics import line_statistics

__all__ = ["ProfileBasis", "fit_group", "learn_basis", "spline_functions"]

#: Distance of the spline's knots in native pixels. Lines of many sub-pixel phases could constrain finer ones, but
#: phases are never quite even, and what is constrained badly comes out as ripples with the period of a pixel.
KNOTS_PER_PIXEL = 0.73

#: Fewest lines that a spline is fitted to.
_LEAST_LINES = 8

#: Fewest fibres in a group, and the widest gap, in pixels, between the phases that a group's lines are sampled at.
_FIBERS_PER_GROUP = 10
_SAMPLED_EVERY = 0.75

#: Lines that the neighbours' shape is learned from.
_SHAPE_LINES = 2000


@dataclass(frozen=True)
class ProfileBasis:
    """Mean profile and components on uniform offsets.

    Attributes
    ----------
    offset : ndarray (n_sample,)
        Angstrom.
    mean : ndarray (n_sample,)
        Unit area.
    components : ndarray (K, n_sample)
        Zero area (a change of shape, not of flux); scaled so that coefficients have a spread of order 1.
    """

    offset: np.ndarray
    mean: np.ndarray
    components: np.ndarray

    @property
    def functions(self) -> np.ndarray:
        """Mean and components stacked: (K + 1, n_sample)."""
        return np.concatenate([self.mean[None], self.components])

    def profiles(self, coefficients: np.ndarray) -> np.ndarray:
        """Profiles (..., n_sample) of coefficients (..., K)."""
        return self.mean + coefficients @ self.components


def spline_functions(offset: np.ndarray, knot_step: float = 0.4) -> np.ndarray:
    """Cubic B-splines on uniform offsets that vanish, with their first derivative, at both ends: (n_function,
    n_sample).

    A profile that could be constant or linear at the ends of its window would be degenerate with the background.
    """
    low, high = offset[0], offset[-1]
    n = max(int(np.ceil((high - low) / knot_step)), 8)
    knots = np.linspace(low, high, n + 1)
    step = knots[1] - knots[0]
    extended = np.concatenate([low - step * np.arange(3, 0, -1), knots, high + step * np.arange(1, 4)])
    matrix = BSpline.design_matrix(np.clip(offset, low, high), extended, 3).toarray()
    # of the functions that reach over an end only combinations could vanish there; those wholly inside do
    return matrix[:, 3:-3].T.copy()


def fit_group(
    matrix: np.ndarray, vector: np.ndarray, penalty: np.ndarray, iterations: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """One profile for a group of lines: spline factors (m,) and the amplitudes (n,) of the lines.

    Alternates the lines' amplitudes and the common profile; each step is linear.

    Parameters
    ----------
    matrix, vector : ndarray (n, m, m), (n, m)
        Reduced normal equations of the lines in the spline functions (no mean: index 0 is the first function).
    penalty : ndarray (m, m)
        Added to the normal matrix, in units of its mean diagonal.
    """
    n, m = vector.shape
    flat = matrix.reshape(n, m * m)
    amplitude = np.ones(n)
    factors = np.zeros(m)
    for _ in range(iterations):
        normal = (amplitude**2 @ flat).reshape(m, m)
        rhs = amplitude @ vector
        factors = np.linalg.solve(normal + penalty * np.trace(normal) / normal.shape[0], rhs)
        amplitude = (vector @ factors) / (flat @ np.outer(factors, factors).ravel())
        # the scale is shared between amplitudes and profile: keep the amplitudes around 1
        amplitude /= amplitude.mean()
    return factors, amplitude


def learn_basis(
    offset: np.ndarray,
    native_offset: np.ndarray,
    native_flux: np.ndarray,
    native_ivar: np.ndarray,
    line: np.ndarray,
    fiber: np.ndarray,
    time: np.ndarray,
    *,
    neighbours: np.ndarray | None = None,
    fibers_per_group: int | None = None,
    times_per_group: int = 3,
    n_components: int | None = None,
    max_components: int = 20,
    knot_step: float | None = None,
) -> ProfileBasis:
    """Mean and principal components of the profiles of a training set.

    Parameters
    ----------
    offset : ndarray (n_sample,)
        Uniform offsets of the result, Angstrom.
    native_offset, native_flux, native_ivar : ndarray (n, n_pixel)
        Native pixels of every line.
    line, fiber, time : ndarray (n,)
        Labels that make the groups: same line, neighbouring fibres, same part of the time.
    neighbours : ndarray (n, Q), optional
        Offsets of the lamp's other lines whose wings reach into the window, Angstrom; NaN where there is none.
    fibers_per_group : int, optional
        Fibres in a group; by default 10, or as many more as it takes to see the lines in pixels of enough phases.
    times_per_group : int
        Parts that the time is cut into.
    n_components : int, optional
        By default as many as stand out from the noise.
    knot_step : float, optional
        Distance of the spline's knots, Angstrom; by default three quarters of a native pixel.
    """
    if knot_step is None:
        step = np.diff(native_offset, axis=1)[(native_ivar[:, 1:] > 0) & (native_ivar[:, :-1] > 0)]
        knot_step = KNOTS_PER_PIXEL * float(np.median(step))
    functions = spline_functions(offset, knot_step)
    penalty = _penalty(functions.shape[0])
    weights = quadrature_weights(offset)
    parts = _time_parts(time, times_per_group)
    if fibers_per_group is None:
        fibers_per_group = _enough_fibers(native_offset, native_ivar, line, fiber, parts)
    pixels = (native_offset, native_flux, native_ivar)
    known = None
    if neighbours is not None and np.any(np.isfinite(neighbours)):
        # their shape is that of lines like them; a few hundred lines without neighbours give it well enough
        alone = np.flatnonzero(~np.any(np.isfinite(neighbours), axis=1))
        some = alone if alone.size >= _LEAST_LINES else np.arange(line.size)
        some = some[:: max(1, some.size // _SHAPE_LINES)]
        shape, *_ = _group_profiles(functions, penalty, offset, *(a[some] for a in pixels), [np.zeros_like(some)])
        known = (neighbours, shape[0])
    keys = [line, (fiber - fiber.min()) // fibers_per_group, parts]
    profiles, noise, _ = _group_profiles(functions, penalty, offset, *pixels, keys, known)
    if len(profiles) < 4:
        raise ValueError("too few lines to learn a basis from: no four groups of eight similar lines")
    profiles = profiles / (profiles @ weights)[:, None]
    mean = profiles.mean(axis=0)
    deviations = (profiles - mean) / noise[:, None]
    components = _principal(deviations, n_components, max_components)
    # Fibres unlike their neighbours are smeared in those groups: let every fibre speak for itself, and those that the
    # components do not describe line by line, where there are exposures enough.
    index = np.unique(fiber, return_inverse=True)[1]
    alone, alone_noise, one = _group_profiles(functions, penalty * 10, offset, *pixels, [index], known)
    if len(alone):  # a single exposure may have too few lines for that
        odd = index[one][_unlike(alone / (alone @ weights)[:, None] - mean, alone_noise, components)]
        members = np.flatnonzero(np.isin(index, odd))
        if members.size:
            counts = np.unique(np.stack([line, index])[:, members], axis=1, return_counts=True)[1]
            keys = [index, line] if np.median(counts) >= _LEAST_LINES else [index]
            few = None if known is None else (known[0][members], known[1])
            alone, alone_noise, _ = _group_profiles(
                functions, penalty * 10, offset, *(a[members] for a in pixels), [k[members] for k in keys], few
            )
            rest = alone / (alone @ weights)[:, None] - mean
            rest = rest - (rest @ components.T) @ components
            components = _principal(
                np.concatenate([deviations, rest / alone_noise[:, None]]), n_components, max_components
            )
    scores = (profiles - mean) @ components.T
    spread = np.maximum(scores.std(axis=0), 1e-3 * np.abs(mean).max())
    return ProfileBasis(offset, mean, components * spread[:, None])


def _unlike(deviation: np.ndarray, noise: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Which deviations from the mean are far worse described by the components than the others."""
    rest = deviation - (deviation @ components.T) @ components
    excess = np.sqrt(np.mean(rest**2, axis=1)) / noise
    return excess > 5.0 * np.median(excess)


def _penalty(m: int) -> np.ndarray:
    """Weak penalty on third differences: holds the ends together where few pixels fall, too weak to touch the peak."""
    difference = np.diff(np.eye(m), n=3, axis=0)
    return 1e-5 * difference.T @ difference + 1e-9 * np.eye(m)


def _enough_fibers(
    native_offset: np.ndarray, native_ivar: np.ndarray, line: np.ndarray, fiber: np.ndarray, parts: np.ndarray
) -> int:
    """Fibres in a group such that its lines, together, are sampled at least every `_SAMPLED_EVERY` pixels.

    In a long slit neighbouring rows see a line at nearly the same phase: a spline would be free between the pixels.
    """
    first = np.argmax(native_ivar > 0, axis=1)
    start = np.take_along_axis(native_offset, first[:, None], axis=1)[:, 0]
    step = np.diff(native_offset, axis=1)[(native_ivar[:, 1:] > 0) & (native_ivar[:, :-1] > 0)]
    phase = np.mod(start / np.median(step), 1.0)
    n, extent = _FIBERS_PER_GROUP, int(np.ptp(fiber)) + 1
    while n < extent // 2:
        code = (line * (parts.max() + 1) + parts) * extent + (fiber - fiber.min()) // n
        order = np.lexsort((phase, code))
        groups = np.split(phase[order], np.flatnonzero(np.diff(code[order])) + 1)
        gaps = [np.max(np.diff(p, append=p[0] + 1.0)) for p in groups if p.size >= _LEAST_LINES]
        if gaps and np.median(gaps) <= _SAMPLED_EVERY:
            break
        n *= 2
    return min(n, max(extent // 2, _FIBERS_PER_GROUP))


def _time_parts(time: np.ndarray, parts: int) -> np.ndarray:
    """Number (0 .. parts - 1) of the part of the distinct times that each falls into."""
    distinct, inverse = np.unique(time, return_inverse=True)
    return inverse * min(parts, distinct.size) // distinct.size


def _group_profiles(functions, penalty, offset, native_offset, native_flux, native_ivar, keys, known=None):
    """Spline profile (n_group, n_sample) of each group, its rough noise, relative to the peak, and one of its lines.

    ``known`` are the neighbours' offsets and their shape.
    """
    code = np.zeros(keys[0].size, dtype=np.int64)
    for key in keys:
        _, inverse = np.unique(key, return_inverse=True)
        code = code * (inverse.max() + 1) + inverse
    order = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(code[order]) != 0, True])
    profiles, noise, lines = [], [], []
    for a, b in itertools.pairwise(starts):
        if b - a < _LEAST_LINES:
            continue
        members = order[a:b]
        near = {} if known is None else {"neighbours": known[0][members], "shape": known[1]}
        stats = line_statistics(
            native_offset[members], native_flux[members], native_ivar[members], offset, functions, **near
        )
        good = stats.n_pixels > 8
        if np.count_nonzero(good) < _LEAST_LINES:
            continue
        factors, amplitude = fit_group(stats.matrix[good], stats.vector[good], penalty)
        profile = factors @ functions
        peak = profile.max()
        if not peak > 0:
            continue
        profiles.append(profile / peak)
        information = np.einsum("n,nii->", amplitude**2, stats.matrix[good]) / functions.shape[0]
        noise.append(1.0 / np.sqrt(information) / peak)
        lines.append(members[0])
    return np.array(profiles), np.array(noise), np.array(lines, dtype=np.int64)


def _principal(deviations: np.ndarray, n_components: int | None, max_components: int) -> np.ndarray:
    """Orthonormal components (K, n_sample) of noise-weighted deviations."""
    _, s, vt = np.linalg.svd(deviations, full_matrices=False)
    if n_components is None:
        # the noise's singular values level off: what rises above twice the floor's extrapolation is signal
        rank = np.count_nonzero(s > 1e-10 * s[0])
        floor = np.median(s[rank // 2 : rank])
        n_components = int(np.clip(np.count_nonzero(s[:rank] > 2.5 * floor), 3, max_components))
    return vt[: min(n_components, vt.shape[0])]
