"""Chi-square over trial velocities: templates convolved once with an IP basis, then every velocity is a shift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from lamost_lsf.convolution.basis import Coefficients, IPBasis, TemplateBasis, gather_rows, multiply_add
from lamost_lsf.convolution.loggrid import LOG_STEP, gather
from lamost_lsf.rv.continuum import (
    PolynomialContinuum,
    evaluate_continuum,
    fit_upper_continuum,
    legendre_design,
)
from lamost_lsf.units import SPEED_OF_LIGHT, doppler_factor

__all__ = ["Minimum", "VelocityEngine", "velocity_grid"]


def log_shift(velocity: np.ndarray) -> np.ndarray:
    """Shift in ln(wavelength) of velocities in km/s (relativistic)."""
    return np.log(doppler_factor(velocity))


def velocity_of_shift(shift: np.ndarray) -> np.ndarray:
    """Velocity, km/s, of a shift in ln(wavelength); the inverse of `log_shift`."""
    return SPEED_OF_LIGHT * np.tanh(shift)


def velocity_grid(low: float, high: float) -> np.ndarray:
    """Trial velocities, km/s, uniform in ln(wavelength) with LAMOST's step / 4 (17.3 km/s).

    Half-maximum of the chi-square's minimum is some 200 km/s wide at R = 1800, so none falls between.
    """
    step = LOG_STEP / 4.0
    first, last = np.ceil(log_shift(low) / step - 1e-9), np.floor(log_shift(high) / step + 1e-9)
    if last - first < 4:
        return np.linspace(low, high, 5)
    return velocity_of_shift(np.arange(first, last + 1) * step)


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


class VelocityEngine:
    """Templates and one LSF over a window; gives chi-squares of a spectrum at any velocity.

    Parameters
    ----------
    templates : TemplateBasis
    coefficients : Coefficients
        Of the spectrum's LSF in the templates' basis.
    wavelength : ndarray (n,)
        Pixels, vacuum Angstrom.
    window : tuple of float
        Angstrom; the range that the continuum polynomial is scaled to.
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
        window: tuple[float, float],
        degree: int,
        continuum: str = "ratio",
    ) -> None:
        self.templates = templates
        self.coefficients = coefficients
        self.wavelength = wavelength
        self.window = window
        self.degree = degree
        self.continuum = continuum
        self.log_wavelength = np.log(wavelength)
        self.design = legendre_design(wavelength, *window, degree)
        self._position = templates.grid.position(self.log_wavelength)
        # Coarse search: the templates seen through the LSF at rest, then shifted. The LSF is that of a wavelength up to
        # some ten Angstrom away, which the fine step puts right.
        grid = templates.grid
        self._rest = self._apply(templates.values, np.log(grid.wavelength))
        self._normalisation = None
        if continuum == "normalize":
            inside = (grid.wavelength >= window[0]) & (grid.wavelength <= window[1])
            self._normalisation = [
                fit_upper_continuum(
                    grid.wavelength[inside], rest[inside], np.ones(np.count_nonzero(inside)), window, degree
                )
                for rest in self._rest
            ]

    def _apply(self, values: np.ndarray, log_wavelength: np.ndarray) -> np.ndarray:
        """Multiply-add at any ln(wavelength), with the LSF of the end of the window beyond it."""
        out = np.empty(values.shape[:2])
        low, high = np.log(self.templates.basis.wavelength_range)
        s = np.clip(log_wavelength, low, high)
        edges = np.searchsorted(s, np.log(self.coefficients.boundaries)) if self.coefficients.boundaries else []
        edges = [0, *(int(e) for e in edges), s.size]
        for k, value in enumerate(self.coefficients.values):
            multiply_add(
                values, s, value, self.coefficients.log_start[k], 1.0 / self.coefficients.log_step[k],
                edges[k], edges[k + 1], out,
            )  # fmt: skip
        return out

    def solver(self, flux: np.ndarray, ivar: np.ndarray) -> PolynomialContinuum | _FixedContinuum:
        """Continuum solver of one spectrum."""
        if self.continuum == "ratio":
            return PolynomialContinuum(self.design, flux, ivar)
        coefficients = fit_upper_continuum(self.wavelength, flux, ivar, self.window, self.degree)
        return _FixedContinuum(evaluate_continuum(coefficients, self.wavelength, self.window), flux, ivar)

    def coarse_models(self, template: int, velocity: np.ndarray) -> np.ndarray:
        """Models (k, n) of a template at trial velocities (k,), before the continuum."""
        out = np.empty((velocity.size, self.wavelength.size))
        shifts = log_shift(velocity)
        _shifted_models(self._rest[template], self._position, shifts / self.templates.grid.step, out)
        if self._normalisation is not None:
            rest = self.wavelength[None] * np.exp(-shifts)[:, None]
            out /= evaluate_continuum(self._normalisation[template], rest, self.window)
        return out

    def exact_model(self, template: int, velocity: float) -> np.ndarray:
        """Model (n,) of a template at one velocity, seen through the LSF of the observed wavelengths."""
        shift = float(log_shift(velocity))
        rows = np.empty((1, self.wavelength.size, self.templates.values.shape[2]))
        gather_rows(self.templates.values[template], self._position - shift / self.templates.grid.step, rows[0])
        model = self._apply(rows, self.log_wavelength)[0]
        if self._normalisation is not None:
            model /= evaluate_continuum(
                self._normalisation[template], self.wavelength * np.exp(-shift), self.window
            )
        return model

    def refine(
        self, solver: PolynomialContinuum | _FixedContinuum, template: int, start: float, step: float
    ) -> Minimum:
        """Minimum of the continuous chi-square within one ``step`` (km/s) of ``start``.

        Parabolas through three exact chi-squares, the points closing in on the minimum until the vertex moves by less than
        1 m/s; the error is from the curvature of the last, at points about one error apart.
        """

        def chi2(v: float) -> float:
            return float(solver.solve(self.exact_model(template, v)[None])[0][0])

        h, velocity = 0.5 * step, start
        middle = chi2(velocity)
        for _ in range(12):
            left, right = chi2(velocity - h), chi2(velocity + h)
            curvature = left - 2.0 * middle + right
            if not (np.isfinite(curvature) and curvature > 0):
                # not yet convex: move to the lowest of the three and look again from there
                if left < middle or right < middle:
                    velocity = velocity - h if left < right else velocity + h
                    middle = min(left, right)
                    if abs(velocity - start) > 2.0 * step:
                        break
                    continue
                h *= 0.5
                continue
            move = 0.5 * h * (left - right) / curvature
            error = h * np.sqrt(2.0 / curvature)
            if abs(move) > h:
                velocity += np.sign(move) * h
                middle = chi2(velocity)
                if abs(velocity - start) > 2.0 * step:
                    break
                continue
            velocity += move
            middle = chi2(velocity)
            # points one error apart see the curvature that defines the error, free of rounding
            new_h = float(np.clip(error, 0.2, step))
            if abs(move) < 1e-3 and abs(new_h - h) < 0.2 * h:
                return Minimum(velocity, error, middle, True)
            h = new_h
        return Minimum(velocity, np.nan, middle, False)


class _FixedContinuum:
    """Chi-square of normalised models against a spectrum with a continuum fitted beforehand."""

    n_parameters = 0

    def __init__(self, continuum: np.ndarray, data: np.ndarray, ivar: np.ndarray) -> None:
        self._continuum, self._data, self._ivar = continuum, data, ivar

    def solve(self, models: np.ndarray) -> tuple[np.ndarray, None]:
        """Chi-square (k,) of normalised models (k, n)."""
        return np.sum(self._ivar * (self._data - models * self._continuum) ** 2, axis=1), None

    def best_model(self, model: np.ndarray) -> np.ndarray:
        """Model times continuum (n,)."""
        return model * self._continuum


def build_templates(
    templates: list, lsf, center, wavelength: np.ndarray, limits: tuple[float, float]
) -> tuple[TemplateBasis, Coefficients]:
    """Basis of one LSF over some pixels, the templates convolved with it, and the LSF's coefficients.

    Raises
    ------
    ValueError
        A template that does not cover the pixels at every trial velocity.
    """
    basis = IPBasis.from_lsfs(lsf, (wavelength[0], wavelength[-1]), center=center)
    fastest = max(abs(v) for v in limits)
    # two coarse steps beyond, for the fine search may leave the range by that
    convolved = TemplateBasis(templates, basis, max_velocity=fastest + 40.0)
    return convolved, basis.coefficients(lsf, center=center)
