"""Fluxes of a lamp's neighbouring lines, whose wings reach into a line's window, relative to the line's.

One lamp lights all fibres: the ratio is one number for all that are seen of a line, where a line by itself would leave
open what is its own wing, the neighbour's, and background.
"""

from __future__ import annotations

import numpy as np

from lamost_lsf.training.basis import ProfileBasis
from lamost_lsf.training.statistics import NEIGHBOUR_PRIOR, LineStatistics, line_statistics
from lamost_lsf.training.terms import newton_system

__all__ = ["fit_ratios"]

#: First step in a ratio, and how much shorter the next is.
_STEP, _SHORTER, _ROUNDS = 0.01, 0.3, 2

#: Lines whose chi-square exceeds this many times the median are left out.
_OUTLIER = 3.0

#: Spread of a ratio that is held.
_FIXED = 1e-6

#: Lamps change the ratios of their lines by so much of them.
_VARIATION = 0.05


def fit_ratios(
    pixels: tuple[np.ndarray, np.ndarray, np.ndarray],
    neighbours: np.ndarray,
    basis: ProfileBasis,
    coefficients: np.ndarray,
    functions: np.ndarray,
    ratio: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios of the neighbours' fluxes to that of one line of a lamp, of many fibres and exposures.

    The likelihood of a ratio is that with the line's coefficients free to shift by a series in ``functions``: a model
    that was made with a wrong ratio has the neighbour's wing in the line's own, and would only confirm it.

    Parameters
    ----------
    pixels : tuple of ndarray (n, n_pixel)
        Native offset, flux and inverse variance.
    neighbours : ndarray (Q,)
        Offsets, Angstrom; NaN where there is none.
    basis : ProfileBasis
    coefficients : ndarray (n, K)
        Of the present model.
    functions : ndarray (n, R)
    ratio : ndarray (Q,)
        To begin with.

    Returns
    -------
    ratio, spread : ndarray (Q,)
        With the standard deviation of what an exposure's may be.
    """
    n = len(coefficients)
    ratio, spread = np.array(ratio, dtype=np.float64), np.full(len(ratio), NEIGHBOUR_PRIOR)
    there = np.flatnonzero(np.isfinite(neighbours))

    def statistics(values: np.ndarray) -> LineStatistics:
        near, flux = (np.broadcast_to(a, (n, len(ratio))) for a in (neighbours, values))
        return line_statistics(*pixels, basis.offset, basis.functions, neighbours=near, ratio=flux, spread=_FIXED)

    first = statistics(ratio)
    good = first.n_pixels > coefficients.shape[1]
    if np.count_nonzero(good) <= 4 * functions.shape[1]:
        return ratio, spread
    reduced = _chi2(first, coefficients, functions, good) / np.maximum(first.n_pixels, 1)
    good &= reduced <= _OUTLIER * np.median(reduced[good])

    def chi2(values: np.ndarray) -> float:
        return float(_chi2(statistics(values), coefficients, functions, good)[good].sum())

    step = _STEP
    for _ in range(_ROUNDS):
        for q in there:
            one = np.zeros(len(ratio))
            one[q] = step
            low, middle, high = (chi2(ratio + k * one) for k in (-1.0, 0.0, 1.0))
            # chi-square of a ratio is nearly a parabola; the prior decides where it is flat
            curvature = (high - 2.0 * middle + low) / step**2
            precision = 0.5 * max(curvature, 0.0) + 1.0 / NEIGHBOUR_PRIOR**2
            gradient = 0.25 * (high - low) / step + ratio[q] / NEIGHBOUR_PRIOR**2
            ratio[q] = np.clip(ratio[q] - gradient / precision, -NEIGHBOUR_PRIOR, NEIGHBOUR_PRIOR)
            spread[q] = min(np.hypot(precision**-0.5, _VARIATION * ratio[q]), NEIGHBOUR_PRIOR)
        step *= _SHORTER
    return ratio, spread


def _chi2(stats: LineStatistics, coefficients: np.ndarray, functions: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Chi-square (n,) at coefficients that are shifted to the best of the good lines."""
    shifted = coefficients
    k, r = coefficients.shape[1], functions.shape[1]
    f, part = functions[good], stats[good]
    square = np.einsum("np,nq->npq", f, f).reshape(len(f), r * r)
    for _ in range(2):
        gradient, hessian = newton_system(part, shifted[good])
        normal = (square.T @ hessian.reshape(len(f), k * k)).reshape(r, r, k, k).transpose(0, 2, 1, 3)
        # a line's coefficients are of order one: a unit prior is none but where no pixel has a say
        normal = normal.reshape(r * k, r * k) + np.eye(r * k)
        shifted = shifted + functions @ np.linalg.solve(normal, (f.T @ gradient).ravel()).reshape(r, k)
    return stats.chi2(shifted)
