"""The fine step: the minimum of one spectrum's continuous chi-square, with the LSF of every pixel.

The template's convolved components are weighted by the spectrum's own LSF once, at a dozen shifts one node apart; the
model at any shift between them is then an eight-point interpolation along these, and so is its derivative. The
chi-square with the continuum's coefficients solved, and its slope, follow from sums over pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebval

from lamost_lsf.convolution.basis import Coefficients
from lamost_lsf.convolution.loggrid import LogGrid
from lamost_lsf.rv.chisquare import best_model, chi2_at, line_significance, pixel_influence, refine_from
from lamost_lsf.rv.models import TAPS, component_weights, coordinates
from lamost_lsf.rv.normal import prepare_polynomials

__all__ = ["FinePixels", "Refined", "Workspace"]

#: Smallest pivot of the polynomials' normalised normal equations that are trusted as they are.
WELL_CONDITIONED = 1e-9


class Refined(NamedTuple):
    """What a fine step found.

    Attributes
    ----------
    shift, error : float
        Of ln(wavelength); the error is where the chi-square has risen by 1, by its curvature one error away.
    chi2 : float
    state : int
        0: a minimum; 1: none found; 2: the chi-square falls towards the end of the range.
    """

    shift: float
    error: float
    chi2: float
    state: int


class Workspace:
    """Arrays that are used again and again: memory that is new for every spectrum would cost more than the sums."""

    def __init__(self) -> None:
        self._arrays: dict[tuple, np.ndarray] = {}

    def __call__(self, *key: str | int) -> np.ndarray:
        """The array of a name and shape, with whatever it holds."""
        array = self._arrays.get(key)
        if array is None:
            array = self._arrays[key] = np.empty(key[1:])
        return array


class FinePixels:
    """Pixels of one spectrum, with its LSF and its continuum.

    Parameters
    ----------
    wavelength, flux, ivar : ndarray (n,)
        Vacuum Angstrom; inverse variance 0 for pixels that do not count.
    coefficients : Coefficients
        Of the LSF in the templates' basis.
    grid : LogGrid
        Of the templates.
    degree : int
        Of the continuum.
    space : Workspace, optional
        Memory to be used, in place of what was made with it before.
    """

    def __init__(
        self,
        wavelength: np.ndarray,
        flux: np.ndarray,
        ivar: np.ndarray,
        coefficients: Coefficients,
        grid: LogGrid,
        degree: int,
        space: Workspace | None = None,
    ) -> None:
        space = Workspace() if space is None else space
        n, p = flux.size, degree + 1
        self.flux, self.ivar = flux, ivar
        self.position, self._x = space("position", n), space("x", n)
        self.log_wavelength = space("log", n)
        self.aligned = coordinates(
            wavelength, grid.step, grid.start, self.log_wavelength, self.position, self._x
        )  # fmt: skip
        self.weights = space("weights", n, 2 * coefficients.values[0].shape[1])
        component_weights(self.log_wavelength, coefficients, self.weights)
        self._table, self.model, self._best = space("table", TAPS, n), space("model", n), space("best", n)
        self._template, self._center = -1, np.nan
        self.design, self.linear = space("design", p, n), space("linear", p, n)
        self.rows = space("rows", 2 * p - 1, n)
        self.square, self.n_used, pivot = prepare_polynomials(self._x, flux, ivar, self.design, self.rows, self.linear)
        self.products, self._transform = False, None
        if pivot < WELL_CONDITIONED:
            self._orthonormal()
        self.rank = self.design.shape[0]
        self.coefficients = np.empty(self.rank)

    def _orthonormal(self) -> None:
        """Polynomials orthonormal over these pixels; those that the pixels cannot tell apart drop out.

        With a gap in the data, or a high degree, the normal equations would lose all digits.
        """
        root = np.sqrt(self.ivar)
        basis, singular, vt = np.linalg.svd((self.design * root).T, full_matrices=False)
        keep = singular > 1e-10 * singular[0]
        basis = np.ascontiguousarray(basis[:, keep].T)
        self._transform = vt[keep] / singular[keep, None]
        self.design = self._transform @ self.design
        self.linear = basis * (root * self.flux)
        first, second = np.tril_indices(basis.shape[0])
        self.rows = basis[first] * basis[second]
        self.products = True

    def _arrays(self, values: np.ndarray, template: int) -> tuple:
        """What the compiled functions work on; forgets the table of models of another template."""
        if template != self._template:
            self._template, self._center = template, np.nan
        return (
            values[template], self.weights, self.position, self.aligned, self._table, self.rows, self.linear,
            self.square, self.products, self.model, self.coefficients,
        )  # fmt: skip

    def chi2(self, values: np.ndarray, template: int, shift: float) -> float:
        """Chi-square at a shift (in nodes); leaves the model and the continuum's coefficients behind."""
        arrays = self._arrays(values, template)
        value, _, self._center = chi2_at(shift, self._center, False, arrays)
        return value

    def refine(
        self,
        values: np.ndarray,
        template: int,
        chi2: np.ndarray,
        k: int,
        first: float,
        step: float,
        limits: tuple[float, float],
        precision: float,
    ) -> Refined:
        """Minimum of the chi-square near a minimum of the search; all shifts in nodes.

        The slope's zero, by secants from the vertex of the parabola through the search's points. Leaves the model and
        the continuum's coefficients at the minimum behind.

        Parameters
        ----------
        values : ndarray (n_template, n_node, 2 K)
            Convolved components of the templates, of which number ``template`` is meant.
        chi2 : ndarray (m,)
            Search with that template.
        k : int
            Minimum of it; -1 for the lowest.
        first, step : float
            First trial shift, and the step between them.
        limits : tuple of float
            Shifts beyond which no template need reach.
        precision : float
            Shifts that are no longer worth a step.
        """
        arrays = self._arrays(values, template)
        shift, error, value, state, self._center = refine_from(
            chi2, k, first, step, limits[0], limits[1], precision, self._center, arrays
        )
        return Refined(shift, error, value, state)

    def best_model(self) -> tuple[np.ndarray, float]:
        """Template times continuum (n,) of the last chi-square asked for, and its largest shortfall in errors."""
        return self._best, best_model(self.model, self.coefficients, self.design, self.flux, self.ivar, self._best)

    def influence(self, values: np.ndarray, template: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights (n,) by which the best shift follows the pixels' wavelengths, and the model's values (nodes)."""
        self.chi2(values, template, shift)
        curve = self.coefficients @ self.design
        return pixel_influence(self._table, self._center - shift, self.model, curve, self.ivar, self.design)

    def continuum(self, x: np.ndarray) -> np.ndarray:
        """Continuum of the last chi-square asked for, at positions on the polynomials' scale."""
        c = self.coefficients if self._transform is None else self.coefficients @ self._transform
        return chebval(x, c)

    def significance(self, model: np.ndarray) -> tuple[float, float, float, np.ndarray]:
        """How much of a star there is: amplitude and drop of the chi-square of adding ``model`` (n,) to a polynomial.

        Returns
        -------
        amplitude : float
            1 where the lines are as deep as the model's, 0 where there are none.
        gain : float
        chi2 : float
            Of polynomial plus amplitude times model.
        star : ndarray (n,)
            That sum.
        """
        return line_significance(self.flux, self.ivar, model, self.design, self.rows, self.linear, self.products)
