"""Best template and velocity of one spectrum: search, rejection of cosmic rays, fine step, and what to be wary of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamost_lsf.rv.continuum import PolynomialContinuum
from lamost_lsf.rv.engine import Minimum, VelocityEngine
from lamost_lsf.rv.result import RVFlag

__all__ = ["Found", "find_velocity"]

#: Passes of rejection at most; each sees cosmic rays that brighter ones hid.
MAX_PASSES = 8
#: Drop of the chi-square (rescaled) that counts as lines: 5 sigma.
SIGNIFICANT = 25.0
#: A second minimum closer than this (rescaled chi-square) cannot be told from the best: 3 sigma.
INDISTINCT = 9.0
#: A second minimum whose rise is below this share of what one star alone would show there is a second star.
SECOND_STAR = 0.5


@dataclass(frozen=True)
class Found:
    """What `find_velocity` found.

    Attributes
    ----------
    best : int
        Template.
    minimum : Minimum
        Its velocity, error (km/s), chi-square.
    flags : RVFlag
    dof : int
    runner_up : int or None
        Next best template, and how much its chi-square is larger: ``runner_up_delta_chi2``.
    trial_chi2 : ndarray (k,)
        Search with the best template.
    model : ndarray (n,)
        Template times continuum.
    used : ndarray (n,)
        False for unusable and rejected pixels.
    """

    best: int
    minimum: Minimum
    flags: RVFlag
    dof: int
    runner_up: int | None
    runner_up_delta_chi2: float
    trial_chi2: np.ndarray
    model: np.ndarray
    used: np.ndarray


def find_velocity(
    engine: VelocityEngine, flux: np.ndarray, ivar: np.ndarray, cosmic_sigma: float | None = 6.0
) -> Found:
    """Velocity of one spectrum.

    Parameters
    ----------
    engine : VelocityEngine
    flux, ivar : ndarray (n,)
        Of order 1; inverse variance 0 for unusable pixels.
    cosmic_sigma : float, optional
        Pixels above the model by this many rescaled errors are rejected; None keeps all.
    """
    for remaining in range(MAX_PASSES, -1, -1):
        solver = engine.solver(flux, ivar)
        chi2 = np.stack([solver.coarse(m) for m in engine.models])
        best = int(np.argmin(chi2.min(axis=1)))
        if cosmic_sigma is None or remaining == 0:
            break
        # the nearest trial velocity is within 1/8 of a profile's width, too little to make lines look like cosmic rays
        # where the residuals' own spread sets the scale
        start = _start(engine.trial, chi2[best])
        hit = _cosmic_rays(flux, solver.best_model(engine.exact_model(best, start)), ivar, cosmic_sigma)
        # what is left must still be a spectrum; rays all over it are a model that does not fit
        if not np.any(hit) or np.count_nonzero(ivar) - np.count_nonzero(hit) < 3 * (engine.degree + 2):
            break
        ivar = np.where(hit, 0.0, ivar)
    # only templates that may win are refined: the search's chi-square is good to a few per cent of its depth
    order = np.argsort(chi2.min(axis=1), kind="stable")[: max(3, len(chi2) // 10)]
    minima = {int(i): engine.refine(solver, int(i), chi2[i]) for i in order}
    best = min(minima, key=lambda i: minima[i].chi2)
    minimum, trial_chi2 = minima[best], chi2[best]
    used = ivar > 0
    dof = int(np.count_nonzero(used)) - solver.n_parameters - 1
    at = (
        minimum.velocity
        if engine.trial[0] <= minimum.velocity <= engine.trial[-1]
        else _start(engine.trial, trial_chi2)
    )
    model = engine.exact_model(best, at)
    flags = _edge_flags(engine.trial, minimum, trial_chi2)
    flags |= _star_flags(engine, solver, minimum, best, model, trial_chi2, dof)
    scale = _scale(minimum.chi2, dof)
    others = sorted((m.chi2, i) for i, m in minima.items() if i != best and np.isfinite(m.chi2))
    if any(_as_good(minima[i], minimum, scale) for _, i in others):
        flags |= RVFlag.AMBIGUOUS_TEMPLATE
    return Found(
        best=best,
        minimum=minimum,
        flags=flags,
        dof=dof,
        runner_up=others[0][1] if others else None,
        runner_up_delta_chi2=others[0][0] - minimum.chi2 if others else np.nan,
        trial_chi2=trial_chi2,
        model=solver.best_model(model),
        used=used,
    )


def _start(trial: np.ndarray, chi2: np.ndarray) -> float:
    return float(trial[int(np.argmin(chi2))])


def _scale(chi2: float, dof: int) -> float:
    """Reduced chi-square where it exceeds 1: what differences of chi-square are to be divided by."""
    return max(1.0, chi2 / dof) if dof > 0 and np.isfinite(chi2) else 1.0


def _cosmic_rays(flux: np.ndarray, model: np.ndarray, ivar: np.ndarray, threshold: float) -> np.ndarray:
    """Pixels far above the model, in errors rescaled to the residuals' own spread, and their wings."""
    residual = (flux - model) * np.sqrt(ivar)
    used = ivar > 0
    # the spread of the residuals includes template mismatch, which must not be taken for cosmic rays
    spread = max(1.0, 1.4826 * float(np.median(np.abs(residual[used]))))
    hit = used & (residual > threshold * spread)
    if not np.any(hit):
        return hit
    # neighbours of a hit that stick out themselves belong to it
    near = np.convolve(hit, np.ones(3), mode="same") > 0
    return hit | (near & used & (residual > 0.5 * threshold * spread))


def _edge_flags(trial: np.ndarray, minimum: Minimum, chi2: np.ndarray) -> RVFlag:
    if not trial[0] <= minimum.velocity <= trial[-1]:
        return RVFlag.EDGE_OF_RANGE
    if minimum.converged:
        return RVFlag(0)
    return RVFlag.EDGE_OF_RANGE if int(np.argmin(chi2)) in (0, trial.size - 1) else RVFlag.NO_CONVERGENCE


def _star_flags(
    engine: VelocityEngine,
    solver: PolynomialContinuum,
    minimum: Minimum,
    best: int,
    model: np.ndarray,
    chi2: np.ndarray,
    dof: int,
) -> RVFlag:
    """No star, or two."""
    flags = RVFlag(0)
    amplitude, gain, star = solver.significance(solver.best_model(model))
    # the scale of the errors from a fit whose lines are as deep as the spectrum's, whatever the template's are
    scale = _scale(float(np.sum((solver.data - star) ** 2)), dof)
    if not (amplitude > 0 and gain > SIGNIFICANT * scale):
        flags |= RVFlag.NO_SIGNAL
    trial, depth = engine.trial, chi2 - chi2.min()
    inner = np.flatnonzero((chi2[1:-1] < chi2[:-2]) & (chi2[1:-1] <= chi2[2:])) + 1
    inner = inner[np.abs(trial[inner] - minimum.velocity) > 2.5 * np.median(np.diff(trial))]
    if not inner.size or not minimum.converged:
        return flags
    scale = _scale(minimum.chi2, dof)
    if np.any(depth[inner] < INDISTINCT * scale):
        return flags | RVFlag.DOUBLE_MINIMUM
    inner = inner[depth[inner] < SECOND_STAR * depth.max()]
    if inner.size:
        # lines of one star coincide with others of the template at some velocities: what that does to the chi-square
        # is known from the star's own model without noise
        alone = solver.coarse_of(star, engine.models[best])
        alone = alone[inner] - alone[int(np.argmin(chi2))]
        noise = 2.0 * np.sqrt(np.maximum(alone, 0.0) * scale)
        if np.any((depth[inner] < SECOND_STAR * alone) & (depth[inner] < alone - 5.0 * noise)):
            flags |= RVFlag.DOUBLE_MINIMUM
    return flags


def _as_good(other: Minimum, best: Minimum, scale: float) -> bool:
    return (
        other.converged
        and best.converged
        and other.chi2 - best.chi2 < scale
        and abs(other.velocity - best.velocity) > 3.0 * best.error * np.sqrt(scale)
    )
