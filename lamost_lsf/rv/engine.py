"""Chi-square over trial velocities: templates convolved once with an IP basis, then every velocity is a shift."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from numba import njit
from specutils import Spectrum

from lamost_lsf.convolution.basis import BoundTemplate, Coefficients, IPBasis, TemplateBasis
from lamost_lsf.convolution.loggrid import LOG_STEP, gather, lagrange8
from lamost_lsf.convolution.nodes import lagrange4, lagrange4_derivative, node_position
from lamost_lsf.lsf import LSF
from lamost_lsf.rv.continuum import (
    FixedContinuum,
    PolynomialContinuum,
    evaluate_continuum,
    fit_upper_continuum,
    scaled_position,
)
from lamost_lsf.units import SPEED_OF_LIGHT, check_medium, doppler_factor, to_vacuum_angstrom

__all__ = ["Minimum", "VelocityEngine", "build_templates", "log_shift", "trial_step", "velocity_grid"]

#: Coarsest step of the trial velocities, in ln(wavelength): a quarter of LAMOST's pixel, 17.3 km/s.
COARSEST_STEP = LOG_STEP / 4.0
#: Trial velocities across one equivalent width (1 / peak) of the profile.
STEPS_PER_WIDTH = 4.0

_FAST = {"contract", "reassoc", "nsz", "arcp"}


def log_shift(velocity: float | np.ndarray) -> np.ndarray:
    """Shift in ln(wavelength) of velocities in km/s (relativistic)."""
    return np.log(doppler_factor(velocity))


def velocity_of_shift(shift: np.ndarray) -> np.ndarray:
    """Velocity, km/s, of a shift in ln(wavelength); the inverse of `log_shift`."""
    return SPEED_OF_LIGHT * np.tanh(shift)


def trial_step(lsf: LSF, wavelength: np.ndarray) -> float:
    """Step of the trial velocities in ln(wavelength): a quarter of the LSF's width, at most 17.3 km/s.

    The chi-square's minimum is as wide as the profile (170 km/s for R = 1800), so none falls between.
    """
    width = 1.0 / (lsf.sample(wavelength[[0, -1]]).max(axis=1) * wavelength[[0, -1]])
    return min(COARSEST_STEP, float(width.min()) / STEPS_PER_WIDTH)


def velocity_grid(low: float, high: float, step: float = COARSEST_STEP) -> np.ndarray:
    """Trial velocities, km/s, ends included, uniform in ln(wavelength), at most ``step`` apart; five at least."""
    first, last = float(log_shift(low)), float(log_shift(high))
    count = max(int(np.ceil((last - first) / step - 1e-9)) + 1, 5)
    velocity = velocity_of_shift(np.linspace(first, last, count))
    velocity[[0, -1]] = low, high
    return velocity


@dataclass(frozen=True)
class Minimum:
    """A local minimum of the chi-square: velocity and error (km/s), chi-square, and whether it was found properly."""

    velocity: float
    error: float
    chi2: float
    converged: bool


@njit(cache=True, error_model="numpy")
def _shifted_models(grid, position, shifts, out):
    for k in range(shifts.size):
        gather(grid, position - shifts[k], out[k])


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _component_weights(s, coefficients, s0, inverse_ds, begin, end, out):
    """Weights (n, 2 K) of a template's convolved components at pixels begin..end: c_k, then -c_k' (see `basis`)."""
    n_k = coefficients.shape[1]
    for j in range(begin, end):
        i, t = node_position(s[j], s0, inverse_ds, coefficients.shape[0])
        w, v = lagrange4(t), lagrange4_derivative(t)
        for k in range(n_k):
            c = d = 0.0
            for a in range(4):
                c += w[a] * coefficients[i + a, k]
                d += v[a] * coefficients[i + a, k]
            out[j, k] = c
            out[j, n_k + k] = -d * inverse_ds


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _exact_model(values, weights, position, shift, out):
    """Components (m, 2 K) at ``position - shift`` (in nodes), times their weights (n, 2 K); NaN beyond the nodes."""
    for j in range(position.size):
        p = position[j] - shift
        i = int(np.floor(p))
        share = lagrange8(p - i)
        i -= 3
        if i < 0 or i + 8 > values.shape[0]:
            out[j] = np.nan
            continue
        total = 0.0
        for a in range(8):
            part = 0.0
            for k in range(weights.shape[1]):
                part += weights[j, k] * values[i + a, k]
            total += share[a] * part
        out[j] = total


class VelocityEngine:
    """Templates and one LSF over some pixels; gives chi-squares of a spectrum at any velocity.

    Parameters
    ----------
    templates : TemplateBasis
    coefficients : Coefficients
        Of the spectrum's LSF in the templates' basis.
    wavelength : ndarray (n,)
        Pixels, vacuum Angstrom.
    trial : ndarray (k,)
        Trial velocities of the search, km/s; see `velocity_grid`.
    degree : int
        Of the continuum.
    continuum : {"ratio", "normalize"}
        Polynomial ratio solved at each velocity, or the paper's normalisation of both by the same procedure.
    """

    def __init__(
        self,
        templates: TemplateBasis,
        coefficients: Coefficients,
        wavelength: np.ndarray,
        trial: np.ndarray,
        degree: int,
        continuum: str = "ratio",
    ) -> None:
        self.templates = templates
        self.wavelength = wavelength
        self.trial = trial
        self.degree = degree
        self.continuum = continuum
        self._range = float(wavelength[0]), float(wavelength[-1])
        self._scaled = scaled_position(wavelength, *self._range)
        self._log_wavelength = np.log(wavelength)
        grid = templates.grid
        self._position = grid.position(self._log_wavelength)
        # Search: the templates seen through the LSF at rest, then shifted. That is the LSF of a wavelength some ten
        # Angstrom away at most, which the fine step puts right.
        at_rest = np.clip(np.log(grid.wavelength), *np.log(templates.basis.wavelength_range))
        self._rest = BoundTemplate(templates.values, at_rest).apply(coefficients)
        self._normalisation = None
        if continuum == "normalize":
            inside = (grid.wavelength >= self._range[0]) & (grid.wavelength <= self._range[1])
            x = scaled_position(grid.wavelength[inside], *self._range)
            self._normalisation = [fit_upper_continuum(x, rest[inside], np.ones(x.size), degree) for rest in self._rest]
        self.models = [self._coarse_models(i) for i in range(templates.n_templates)]
        self._set_lsf(coefficients)

    def with_lsf(self, coefficients: Coefficients) -> VelocityEngine:
        """The same templates, pixels and search with another spectrum's LSF, which only fine steps need."""
        new = copy(self)
        new._set_lsf(coefficients)
        return new

    def _set_lsf(self, coefficients: Coefficients) -> None:
        s = self._log_wavelength
        edges = [0, *np.searchsorted(s, np.log(coefficients.boundaries)).tolist(), s.size]
        self._weights = np.empty((s.size, self.templates.values.shape[2]))
        for k, value in enumerate(coefficients.values):
            start, step = coefficients.log_start[k], coefficients.log_step[k]
            _component_weights(s, value, start, 1.0 / step, edges[k], edges[k + 1], self._weights)

    def _coarse_models(self, template: int) -> np.ndarray:
        """Models (k, n) of a template at the trial velocities, before the continuum."""
        out = np.empty((self.trial.size, self.wavelength.size))
        shifts = log_shift(self.trial)
        _shifted_models(self._rest[template], self._position, shifts / self.templates.grid.step, out)
        if self._normalisation is not None:
            rest = scaled_position(self.wavelength[None] * np.exp(-shifts)[:, None], *self._range)
            out /= evaluate_continuum(self._normalisation[template], rest)
        return out

    def solver(self, flux: np.ndarray, ivar: np.ndarray) -> PolynomialContinuum:
        """Continuum solver of one spectrum: flux and inverse variance (n,), 0 for unused pixels."""
        if self.continuum == "ratio":
            return PolynomialContinuum(self._scaled, self.degree, flux, ivar)
        fit = fit_upper_continuum(self._scaled, flux, ivar, self.degree)
        return FixedContinuum(self._scaled, self.degree, flux, ivar, evaluate_continuum(fit, self._scaled))

    def exact_model(self, template: int, velocity: float) -> np.ndarray:
        """Model (n,) of a template at one velocity, seen through the LSF of the observed wavelengths."""
        shift = math.atanh(velocity / SPEED_OF_LIGHT)  # `log_shift`, without an array
        model = np.empty(self.wavelength.size)
        nodes = shift / self.templates.grid.step
        _exact_model(self.templates.values[template], self._weights, self._position, nodes, model)
        if self._normalisation is not None:
            rest = scaled_position(self.wavelength * np.exp(-shift), *self._range)
            model /= evaluate_continuum(self._normalisation[template], rest)
        return model

    def refine(self, solver: PolynomialContinuum, template: int, chi2: np.ndarray) -> Minimum:
        """Minimum of the continuous chi-square next to the lowest of the coarse chi-squares (k,) of a template.

        Parabolas through three exact chi-squares, at most 1 km/s apart in the end, until the vertex moves by less than
        1 m/s. The error is where the chi-square has risen by 1, by the curvature seen at points that far apart.
        """
        trial = self.trial
        low, high = trial[0], trial[-1]
        k = int(np.argmin(chi2))
        if not np.isfinite(chi2[k]):
            return Minimum(float(trial[k]), np.nan, float(chi2[k]), False)

        def exact(v: float) -> float:
            return solver.chi2(self.exact_model(template, v))

        # the coarse neighbours bracket the minimum; what the search's LSF lacks may move it by a little more
        step = float(np.max(np.diff(trial[max(k - 1, 0) : k + 2])))
        a, b = max(low, trial[k] - 1.5 * step), min(high, trial[k] + 1.5 * step)
        i = min(max(k, 1), trial.size - 2)
        velocity, error = _vertex(trial[i - 1 : i + 2], chi2[i - 1 : i + 2])
        velocity = float(trial[k]) if not a <= velocity <= b else velocity
        h = min(0.5 * error, 0.25 * step) if np.isfinite(error) else 0.25 * step
        vertex = velocity
        for _ in range(25):
            # three points within the range that was asked for, beyond which no template need reach
            h = min(h, 0.25 * (high - low))
            velocity = min(max(velocity, low + h), high - h)
            left, middle, right = exact(velocity - h), exact(velocity), exact(velocity + h)
            curvature = left - 2.0 * middle + right
            if not math.isfinite(curvature):
                break
            if curvature <= 0:
                # not convex here: on downhill
                target = velocity - 2.0 * h if left < right else velocity + 2.0 * h
                h = min(1.5 * h, 0.5 * step)
            else:
                error = h * math.sqrt(2.0 / curvature)
                move = 0.5 * h * (left - right) / curvature
                target = velocity + min(max(move, -0.5 * step), 0.5 * step)
                # steps small against any feature of the chi-square, and large against its rounding
                narrow = min(max(0.5 * error, 0.05), 1.0)
                # (against the last vertex: at the very end of the range the points cannot be centred on it)
                if abs(target - vertex) < 1e-3 and h <= 1.01 * narrow:
                    return self._with_error(exact, target, error)
                h, vertex = narrow, target
            if not a <= target <= b:
                return Minimum(float(target), np.nan, middle, False)
            velocity = target
        return Minimum(velocity, np.nan, float(chi2[k]), False)

    def _with_error(self, exact: Callable[[float], float], velocity: float, error: float) -> Minimum:
        """Minimum with its error from chi-squares about one error away on both sides."""
        chi2 = exact(velocity)
        room = min(velocity - self.trial[0], self.trial[-1] - velocity)
        h = min(max(error, 0.05), room)
        if h > 0.05:
            curvature = exact(velocity - h) - 2.0 * chi2 + exact(velocity + h)
            # on the flanks of a shallow minimum the far points may bend down: the local curvature is then all there is
            error = h * np.sqrt(2.0 / curvature) if curvature > 0 else error
        return Minimum(float(velocity), float(error), chi2, True)


def _vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Vertex of the parabola through three points, and where it has risen by 1 from there; NaN where not convex."""
    (d0, d1), (s0, s1) = np.diff(x), np.diff(y) / np.diff(x)
    half = (s1 - s0) / (d0 + d1)
    if not (np.isfinite(half) and half > 0):
        return np.nan, np.nan
    return float(0.5 * (x[0] + x[1] - s0 / half)), float(1.0 / np.sqrt(half))


def build_templates(
    templates: list[Spectrum],
    names: list[str],
    lsf: LSF,
    center: str | Callable,
    wavelength: np.ndarray,
    limits: tuple[float, float],
) -> tuple[TemplateBasis, Coefficients]:
    """Templates convolved with a basis of one LSF over some pixels, and the LSF's coefficients.

    Raises
    ------
    ValueError
        A template that does not cover what the pixels see at every trial velocity (``limits``, km/s).

    Warns
    -----
    SamplingWarning
        A template whose pixels are coarse for the profile.
    """
    basis = IPBasis.from_lsfs(lsf, (wavelength[0], wavelength[-1]), center=center)
    _check_coverage(templates, names, basis, wavelength, limits)
    # TemplateBasis stretches by 1 + v / c
    fastest = SPEED_OF_LIGHT * (float(doppler_factor(max(abs(v) for v in limits))) - 1.0)
    return TemplateBasis(templates, basis, max_velocity=fastest), basis.coefficients(lsf, center=center)


def _check_coverage(
    templates: list[Spectrum],
    names: list[str],
    basis: IPBasis,
    wavelength: np.ndarray,
    limits: tuple[float, float],
) -> None:
    step = LOG_STEP / basis.refinement
    first, last = basis.first_lag, basis.first_lag + basis.components.shape[1]
    need_low = wavelength[0] / float(doppler_factor(limits[1])) * np.exp(-last * step)
    need_high = wavelength[-1] / float(doppler_factor(limits[0])) * np.exp(-first * step)
    for name, template in zip(names, templates, strict=True):
        medium = check_medium(template.meta.get("wavelength_medium") or "vacuum")
        # views only: templates may have a million pixels
        axis = template.spectral_axis
        low, high = to_vacuum_angstrom(u.Quantity(axis[[0, -1]]), medium, f"the axis of {name}")
        if not low < high:
            continue  # TemplateBasis says what is wrong with such an axis
        if low > need_low or high < need_high:
            raise ValueError(
                f"{name} covers {low:.1f}-{high:.1f} A; the window at the trial velocities, with the profile's "
                f"wings, needs {need_low:.1f}-{need_high:.1f} A: narrow window= or velocity_range="
            )
