"""State of one spectrum while its velocity is looked for, and what was found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lamost_lsf.convolution.basis import Coefficients
from lamost_lsf.rv.continuum import evaluate_continuum, fit_upper_continuum
from lamost_lsf.rv.fine import FinePixels, Refined, Workspace
from lamost_lsf.rv.minima import other_minima
from lamost_lsf.rv.models import spread
from lamost_lsf.rv.prepare import Pixels
from lamost_lsf.rv.result import RVFlag
from lamost_lsf.rv.trial import velocity_of_shift
from lamost_lsf.units import SPEED_OF_LIGHT

if TYPE_CHECKING:
    from lamost_lsf.rv.engine import VelocityEngine

__all__ = ["Found", "Influence", "SpectrumState"]

#: Drop of the chi-square (rescaled) that counts as lines: 5 sigma.
SIGNIFICANT = 25.0
#: A second minimum closer than this (rescaled chi-square) cannot be told from the best: 3 sigma.
INDISTINCT = 9.0
#: A second minimum whose rise is below this share of what one star alone would show there is a second star.
SECOND_STAR = 0.5
#: Share of its depth by which the search's LSF may put one minimum below another that is deeper.
SEARCH_ERROR = 0.02
_GOOD = RVFlag(0)
_NOTHING = np.empty(0)


class Influence(NamedTuple):
    """How a velocity depends on wavelengths and LSF.

    Attributes
    ----------
    shares : ndarray (n,)
        Weight of every pixel's wavelength: minus the change of the velocity by that, in km/s, of the pixel's. The sum
        is 1.
    on_nodes : ndarray (n_node,)
        Change of the best shift (in nodes) by the model's values at the nodes of the templates.
    """

    shares: np.ndarray
    on_nodes: np.ndarray


@dataclass(slots=True)
class Found:
    """Velocity of one spectrum.

    Attributes
    ----------
    best : int
        Template.
    velocity, error : float
        km/s; NaN where none was found.
    chi2 : float
    dof : int
    flags : RVFlag
    runner_up : int or None
        Next best template, and how much its chi-square is larger: ``runner_up_delta_chi2``.
    second_velocity, second_delta_chi2 : float
        Next minimum of the search with the best template, and how much higher it is; NaN where there is none.
    trial_shift, trial_chi2 : ndarray (k,)
        Search with the best template: shifts of ln(wavelength), chi-square.
    ivar : ndarray (n,)
        Inverse variances, 0 for unusable and rejected pixels; with ``continuum="normalize"`` of the normalised flux.
    n_used : int
        Pixels that were fitted.
    shift : float
        Of the best model, in nodes.
    influence : Influence or None
        Where it was asked for and there is a velocity.
    """

    best: int
    velocity: float
    error: float
    chi2: float
    dof: int
    flags: RVFlag
    runner_up: int | None
    runner_up_delta_chi2: float
    second_velocity: float
    second_delta_chi2: float
    trial_shift: np.ndarray
    trial_chi2: np.ndarray
    ivar: np.ndarray
    n_used: int
    shift: float
    influence: Influence | None

    @property
    def success(self) -> bool:
        """Whether there is a velocity."""
        return math.isfinite(self.velocity)

    @property
    def used(self) -> np.ndarray:
        """False (n,) for unusable and rejected pixels."""
        return self.ivar > 0

    @property
    def trial(self) -> np.ndarray:
        """Trial velocities (k,), km/s."""
        return velocity_of_shift(self.trial_shift)


class SpectrumState:
    """State of one spectrum while its velocity is looked for."""

    def __init__(
        self, engine: VelocityEngine, pixels: Pixels, coefficients: Coefficients, influence: bool = False
    ) -> None:
        self.engine, self.degree = engine, engine.degree
        self._wanted: bool = influence
        self.influence: Influence | None = None
        flux, ivar = pixels.flux, pixels.ivar
        if engine.continuum == "normalize":
            # data and errors over their own continuum; one scale stays free, for the continuum of a noisy spectrum
            # runs through the upper part of its noise
            scaled = engine._scaled(np.log(pixels.wavelength))
            curve = evaluate_continuum(fit_upper_continuum(scaled, flux, ivar, engine.degree), scaled)
            curve = np.where(curve == 0.0, np.finfo(float).tiny, curve)
            flux, ivar = flux / curve, ivar * curve**2
            self.degree = 0
        self.wavelength, self.flux, self.ivar, self._coefficients = pixels.wavelength, flux, ivar, coefficients
        self.flags = _GOOD
        self.second = np.nan, np.nan
        self.doubtful, self.star = _NOTHING, _NOTHING

    def refine(self, space: Workspace) -> None:
        """Fine step with the templates that may win, and with minima of the best that may be lower than it seems."""
        engine, chi2 = self.engine, self.trial_chi2
        self.fine = FinePixels(
            self.wavelength, self.flux, self.ivar, self._coefficients, engine.templates.grid, self.degree, space
        )
        if len(chi2) == 1:
            self.minima, self.best = {0: self._refine(0, chi2[0])}, 0
        else:
            # the search's chi-square is good to a few per cent of its depth
            order = np.argsort(chi2.min(axis=1), kind="stable")[: max(3, len(chi2) // 10)].tolist()
            self.minima = {i: self._refine(i, chi2[i]) for i in order}
            self.best = min(self.minima, key=lambda i: (self.minima[i].state != 0, self.minima[i].chi2))
        row, best = chi2[self.best], self.minima[self.best]
        node = engine.templates.grid.step
        self._others = other_minima(row, (best.shift * node - self.offset - engine._shift[0]) / engine._trial_step, 2.5)
        others, lowest, height = self._others
        if lowest >= 0 and row[lowest] - row.min() < SEARCH_ERROR * height:
            for other in others[row[others] - row.min() < SEARCH_ERROR * height][:3].tolist():
                new = self._refine(self.best, row, other)
                if new.state == 0 and not best.chi2 <= new.chi2:
                    self.minima[self.best] = best = new
            at = (best.shift * node - self.offset - engine._shift[0]) / engine._trial_step
            self._others = other_minima(row, at, 2.5)
        # the model at the minimum, or where the search is lowest
        at = best.shift if best.state == 0 else (engine._shift[row.argmin()] + self.offset) / node
        self.at = min(max(at, engine._limits[0]), engine._limits[1])
        if best is not self._last or best.state != 0:
            self.fine.chi2(engine._values, self.best, self.at)
        self.model, self._excess = self.fine.best_model()

    def _refine(self, template: int, row: np.ndarray, k: int = -1) -> Refined:
        engine = self.engine
        first = (engine._shift[0] + self.offset) / engine.templates.grid.step
        self._last = self.fine.refine(
            engine._values, template, row, k, first, engine._step, engine._limits, engine._precision
        )
        return self._last

    def reject(self, threshold: float) -> bool:
        """Reject cosmic rays: pixels far above the model, in errors rescaled to the residuals' own spread.

        Whether there were any, and enough pixels are left to look again.
        """
        if not self._excess > threshold:
            return False
        used, n_used = self.ivar > 0, self.fine.n_used
        residual = (self.flux - self.model) * np.sqrt(self.ivar)
        # the spread of the residuals includes template mismatch, which must not be taken for cosmic rays
        spread = max(1.0, 1.4826 * float(np.median(np.abs(residual[used]))))
        excess = np.where(used, residual / spread, 0.0)
        hit = excess > threshold
        # neighbours of a hit that stick out themselves belong to it
        near = np.convolve(hit, np.ones(3), mode="same") > 0
        hit |= near & (excess > 0.5 * threshold)
        left = n_used - int(np.count_nonzero(hit))
        # what is left must still be a spectrum; rays all over it are a model that does not fit
        if left == n_used or left < 3 * (self.engine.degree + 2):
            return False
        self.ivar = np.where(hit, 0.0, self.ivar)
        return True

    def judge(self) -> None:
        """Set the flags; which minima are ``doubtful`` and left to `compare_with_one_star`."""
        engine, best = self.engine, self.minima[self.best]
        # pixels less the polynomial's coefficients less the velocity
        parameters = self.fine.rank + (engine.degree + 1 if engine.continuum == "normalize" else 0)
        self.n_used, self.dof = self.fine.n_used, self.fine.n_used - parameters - 1
        self.scale = _scale(best.chi2, self.dof)
        row = self.trial_chi2[self.best]
        k = int(row.argmin())
        if best.state != 0:
            at_end = best.state == 2 or k in (0, row.size - 1)
            self.flags |= RVFlag.EDGE_OF_RANGE if at_end else RVFlag.NO_CONVERGENCE
        amplitude, gain, chi2, self.star = self.fine.significance(self.model)
        if self._wanted and best.state == 0:
            self.influence = self._influence()
        # the scale of the errors from a fit whose lines are as deep as the spectrum's, whatever the template's are
        if not (amplitude > 0 and gain > SIGNIFICANT * _scale(chi2, self.dof)):
            self.flags |= RVFlag.NO_SIGNAL
        if best.state != 0:
            return
        others, lowest, height = self._others
        if lowest < 0:
            return
        # from the search's own minimum, which its LSF raises as it does the others
        depth = float(row[lowest] - row[k])
        self.second = SPEED_OF_LIGHT * math.tanh(engine._shift[lowest] + self.offset), depth
        if depth < INDISTINCT * self.scale:
            self.flags |= RVFlag.DOUBLE_MINIMUM
            return
        if depth >= SECOND_STAR * height:
            return
        self.doubtful = others[row[others] - row[k] < SECOND_STAR * height]

    def _influence(self) -> Influence:
        engine, fine = self.engine, self.fine
        shares, weights = fine.influence(engine._values, self.best, self.at)
        on_nodes = np.zeros(engine.templates.grid.size)
        spread(fine.position, self.at, weights, on_nodes)
        return Influence(shares, on_nodes)

    def compare_with_one_star(self, alone: np.ndarray) -> None:
        """Flag minima that are much lower than one star alone would make them."""
        row = self.trial_chi2[self.best]
        k = int(row.argmin())
        depth = row[self.doubtful] - row[k]
        expected = alone[self.doubtful] - alone[k]
        noise = 2.0 * np.sqrt(np.maximum(expected, 0.0) * self.scale)
        if np.any((depth < SECOND_STAR * expected) & (depth < expected - 5.0 * noise)):
            self.flags |= RVFlag.DOUBLE_MINIMUM

    def found(self) -> Found:
        """The result."""
        engine, best = self.engine, self.minima[self.best]
        ok, node = best.state == 0, engine.templates.grid.step
        others = sorted((m.chi2, i) for i, m in self.minima.items() if i != self.best and math.isfinite(m.chi2))
        flags = self.flags
        if ok and any(self._as_good(self.minima[i]) for _, i in others):
            flags |= RVFlag.AMBIGUOUS_TEMPLATE
        velocity = SPEED_OF_LIGHT * math.tanh(best.shift * node)
        return Found(
            best=self.best,
            velocity=velocity if ok else np.nan,
            error=float(best.error * node * SPEED_OF_LIGHT * (1.0 - (velocity / SPEED_OF_LIGHT) ** 2))
            if ok
            else np.nan,
            chi2=best.chi2,
            dof=self.dof,
            flags=flags,
            runner_up=others[0][1] if others else None,
            runner_up_delta_chi2=others[0][0] - best.chi2 if others else np.nan,
            second_velocity=self.second[0],
            second_delta_chi2=self.second[1],
            trial_shift=engine._shift + self.offset,
            trial_chi2=self.trial_chi2[self.best],
            ivar=self.ivar,
            n_used=self.n_used,
            shift=self.at,
            influence=self.influence,
        )

    def _as_good(self, other: Refined) -> bool:
        best = self.minima[self.best]
        return (
            other.state == 0
            and other.chi2 - best.chi2 < self.scale
            and abs(other.shift - best.shift) > 3.0 * best.error * np.sqrt(self.scale)
        )


def _scale(chi2: float, dof: int) -> float:
    """Reduced chi-square where it exceeds 1: what differences of chi-square are to be divided by."""
    return max(1.0, chi2 / dof) if dof > 0 and math.isfinite(chi2) else 1.0
