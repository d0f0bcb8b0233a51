"""Terms that a smooth network cannot know: what is particular to a fibre, and to a night.

Coefficients are ``network + sum_r psi_r(wavelength) F_fr + sum_r phi_r(fiber, wavelength) N_nr``. F and N have
Gaussian priors
whose variances are learned from the data (empirical Bayes), a fibre's with a scale of its own: ordinary fibres are then
drawn to the smooth surface as far as noise demands, and a defective one is left free.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lamost_lsf.training.data import PackedStatistics
from lamost_lsf.training.statistics import LineStatistics

__all__ = ["GroupTerm", "fit_group_term", "newton_system"]


@dataclass
class GroupTerm:
    """Term of one kind of group (fibres or nights).

    Attributes
    ----------
    values : ndarray (n_group, R, K)
    variance : ndarray (n_group, R, K)
        Posterior variance of ``values``.
    prior : ndarray (R, K)
        Variance of the population.
    scale : ndarray (n_group,)
        Factor of the prior for each group; 1 for all where groups are alike.
    """

    values: np.ndarray
    variance: np.ndarray
    prior: np.ndarray
    scale: np.ndarray

    @classmethod
    def zero(cls, n_group: int, n_function: int, n_component: int, prior: float = 0.05) -> GroupTerm:
        """No term, with a wide prior to begin with."""
        shape = (n_group, n_function, n_component)
        return cls(np.zeros(shape), np.zeros(shape), np.full(shape[1:], prior), np.ones(n_group))

    def at(self, group: np.ndarray, functions: np.ndarray) -> np.ndarray:
        """Contribution (n, K) to the coefficients of lines of given groups (n,)."""
        return np.einsum("nr,nrk->nk", functions, self.values[group])


def newton_system(stats: LineStatistics, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (n, K) and Hessian (n, K, K) of -chi2 / 2 about coefficients, the amplitude eliminated.

    Holding the amplitude fixed instead would converge slowly where a coefficient changes the width, and would
    understate
    the errors.
    """
    a = np.concatenate([np.ones((len(stats), 1)), coefficients], axis=1)
    ma = np.einsum("nkl,nl->nk", stats.matrix, a)
    q = np.einsum("nk,nk->n", a, ma)
    amplitude = np.maximum(np.einsum("nk,nk->n", stats.vector, a), 0.0) / q
    gradient = amplitude[:, None] * (stats.vector[:, 1:] - amplitude[:, None] * ma[:, 1:])
    hessian = stats.matrix[:, 1:, 1:] - ma[:, 1:, None] * ma[:, None, 1:] / q[:, None, None]
    return gradient, amplitude[:, None, None] ** 2 * hessian


def fit_group_term(
    term: GroupTerm,
    packed: PackedStatistics,
    index: np.ndarray,
    group: np.ndarray,
    functions: Callable[[np.ndarray], np.ndarray],
    coefficients: Callable[[np.ndarray], np.ndarray],
    *,
    own_scale: bool,
    prior_steps: int = 5,
) -> GroupTerm:
    """One Newton step of a term, with its prior, on what other parts of the model leave.

    Parameters
    ----------
    term : GroupTerm
        Present term; ``coefficients`` contain it.
    packed : PackedStatistics
    index : ndarray (m,)
        Lines to be fitted.
    group : ndarray (n,)
        Group of every line of ``packed``.
    functions, coefficients : callable
        The term's functions (k, R) and the whole model's coefficients (k, K) of lines given by their numbers (k,): they
        are asked for in chunks, so that millions of lines need not be held.
    own_scale : bool
        Whether every group has a prior scale of its own.

    Returns
    -------
    GroupTerm
    """
    n_group, n_function, n_component = term.values.shape
    size = n_function * n_component
    prior, scale = term.prior.ravel().copy(), term.scale.copy()
    hessian, rhs = np.zeros((n_group, size, size)), np.zeros((n_group, size))
    for part, stats in packed.chunks(index, 4096):
        _accumulate(stats, coefficients(part), group[part], functions(part), hessian, rhs)
    rhs += np.einsum("gij,gj->gi", hessian, term.values.reshape(n_group, size))
    identity = np.eye(size)
    for _ in range(prior_steps):
        precision = 1.0 / (prior[None] * scale[:, None])
        covariance = np.linalg.inv(hessian + precision[:, :, None] * identity)
        new = np.einsum("gij,gj->gi", covariance, rhs)
        variance = np.einsum("gii->gi", covariance)
        second = new**2 + variance
        if own_scale:
            scale = np.maximum((second / prior).mean(axis=1), 1e-3)
            scale /= np.median(scale)
        prior = np.maximum((second / scale[:, None]).mean(axis=0), 1e-10)
    shape = term.values.shape
    return GroupTerm(new.reshape(shape), variance.reshape(shape), prior.reshape(shape[1:]), scale)


def _accumulate(
    stats: LineStatistics, coefficients: np.ndarray, group: np.ndarray, functions: np.ndarray,
    hessian: np.ndarray, rhs: np.ndarray,
) -> None:  # fmt: skip
    """Add lines to the normal equations (n_group, RK, RK) and (n_group, RK) of their groups."""
    gradient, h = newton_system(stats, coefficients)
    r, k = functions.shape[1], gradient.shape[1]
    # both factors of the outer products are symmetric: a quarter of the numbers is all of them
    (p, q), (i, j) = np.triu_indices(r), np.triu_indices(k)
    square = functions[:, p] * functions[:, q]
    packed = h[:, i, j]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0, True])
    block = np.empty((r, r, k, k))
    for a, b in itertools.pairwise(starts):
        m = order[a:b]
        g = group[m[0]]
        sums = square[m].T @ packed[m]
        half = np.empty((sums.shape[0], k, k))
        half[:, i, j] = sums
        half[:, j, i] = sums
        block[p, q] = half
        block[q, p] = half
        hessian[g] += block.transpose(0, 2, 1, 3).reshape(r * k, r * k)
        rhs[g] += (functions[m].T @ gradient[m]).ravel()
