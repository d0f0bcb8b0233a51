"""`VelocityEngine`: velocities of many spectra in one window, by a search for all and a fine step for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamost_lsf.convolution.basis import BoundTemplate, Coefficients, TemplateBasis
from lamost_lsf.rv.continuum import evaluate_continuum, fit_upper_continuum
from lamost_lsf.rv.fine import FinePixels, Workspace
from lamost_lsf.rv.lattice import Lattice
from lamost_lsf.rv.models import model_at, sums_at_lags
from lamost_lsf.rv.prepare import Pixels
from lamost_lsf.rv.result import RVFlag
from lamost_lsf.rv.search import VelocitySearch
from lamost_lsf.rv.state import Found, SpectrumState
from lamost_lsf.rv.trial import log_shift
from lamost_lsf.units import SPEED_OF_LIGHT

__all__ = ["Found", "VelocityEngine"]

#: Passes of rejection at most; each sees cosmic rays that brighter ones hid.
MAX_PASSES = 8
#: Precision of a velocity, km/s.
PRECISION = 1e-3


class VelocityEngine:
    """Templates over the pixels of one window; gives the velocities of spectra, each with its own LSF.

    Parameters
    ----------
    templates : TemplateBasis
    coefficients : Coefficients
        LSF of the search, in the templates' basis: the spectra's own or a typical one.
    lattice : Lattice
        Pixels of the search.
    trial : ndarray (k,)
        Trial velocities, km/s; see `velocity_grid`.
    degree : int
        Of the continuum.
    continuum : {"ratio", "normalize"}
        Polynomial ratio solved at each velocity, or the paper's normalisation of both by the same procedure.
    limits : tuple of float, optional
        Velocities beyond which none is accepted, km/s; the first and last trial velocities by default.
    single : bool
        Whether the search is made in single precision.
    keep : int
        Bytes that the search may keep.
    """

    def __init__(
        self,
        templates: TemplateBasis,
        coefficients: Coefficients,
        lattice: Lattice,
        trial: np.ndarray,
        degree: int,
        continuum: str = "ratio",
        *,
        limits: tuple[float, float] | None = None,
        single: bool = False,
        keep: int = 256_000_000,
    ) -> None:
        self.templates, self.lattice, self.degree, self.continuum = templates, lattice, int(degree), continuum
        self.trial = trial
        self._shift = log_shift(trial)
        grid = templates.grid
        # Search: the templates seen through the LSF at rest, then shifted. That is the LSF of a wavelength some ten
        # Angstrom away at most, which the fine step puts right.
        at_rest = np.clip(np.log(grid.wavelength), *np.log(templates.basis.wavelength_range))
        rest = BoundTemplate(templates.values, at_rest).apply(coefficients)
        values = templates.values
        self._range = lattice.log_wavelength[0], lattice.log_wavelength[-1]
        if continuum == "normalize":
            curves = [self._curve_at_rest(row) for row in rest]
            rest = np.array([row / curve for row, curve in zip(rest, curves, strict=True)])
            values = np.array([v / c[:, None] for v, c in zip(values, curves, strict=True)])
        self._values = values
        self._search = VelocitySearch(
            rest, grid, lattice.log_wavelength, self._shift, 0 if continuum == "normalize" else degree, single, keep
        )
        self._trial_step = float(self._shift[-1] - self._shift[0]) / (self._shift.size - 1)
        self._step = self._trial_step / grid.step
        # no template need reach beyond them
        self._velocities = limits if limits is not None else (float(trial[0]), float(trial[-1]))
        ends = log_shift(np.array(self._velocities))
        self._limits = float(ends[0]) / grid.step, float(ends[1]) / grid.step
        self._precision = PRECISION / (SPEED_OF_LIGHT * grid.step)

    def _scaled(self, log_wavelength: np.ndarray) -> np.ndarray:
        low, high = np.exp(self._range)
        return 2.0 * (np.exp(log_wavelength) - low) / (high - low) - 1.0

    def _curve_at_rest(self, rest: np.ndarray) -> np.ndarray:
        """Continuum (n_node,) of a template at rest."""
        grid = self.templates.grid
        x = self._scaled(np.arange(grid.start, grid.start + grid.size) * grid.step)
        inside = (np.abs(x) <= 1.0) & np.isfinite(rest)
        return evaluate_continuum(fit_upper_continuum(x[inside], rest[inside], np.ones(inside.sum()), self.degree), x)

    def find(
        self,
        pixels: Sequence[Pixels],
        coefficients: Sequence[Coefficients],
        cosmic_sigma: float | None = 6.0,
        influence: Sequence[bool] | None = None,
    ) -> list[Found]:
        """Velocities of spectra.

        Parameters
        ----------
        pixels : sequence of Pixels
            On the lattice of the search or, if that is uniform, on any wavelengths between its ends.
        coefficients : sequence of Coefficients
            Each spectrum's own LSF, in the templates' basis.
        cosmic_sigma : float, optional
            Pixels above the model by this many rescaled errors are rejected; None keeps all.
        influence : sequence of bool, optional
            Spectra whose ``Found.influence`` is wanted; none by default.

        Returns
        -------
        list of Found
        """
        wanted = [False] * len(pixels) if influence is None else influence
        spectra = [SpectrumState(self, p, c, w) for p, c, w in zip(pixels, coefficients, wanted, strict=True)]
        waiting, space = spectra, Workspace()
        for remaining in range(MAX_PASSES, -1, -1):
            self._search_all(waiting)
            # spectrum by spectrum from here: what belongs to one stays in the processor's cache
            again = []
            for s in waiting:
                s.refine(space)
                if cosmic_sigma is not None and remaining and s.reject(cosmic_sigma):
                    again.append(s)
                else:
                    s.judge()
                s.fine = None  # its memory is the next one's
            waiting = again
            if not waiting:
                break
        self._second_stars([s for s in spectra if s.doubtful.size])
        found = [s.found() for s in spectra]
        if self.lattice.uniform:
            # an LSF far from the search's may lead it astray: once more with the spectrum's own
            for i, f in enumerate(found):
                if RVFlag.NO_CONVERGENCE in f.flags:
                    found[i] = self._alone(pixels[i], coefficients[i]).find(
                        [pixels[i]], [coefficients[i]], cosmic_sigma, [wanted[i]]
                    )[0]
        return found

    def _alone(self, pixels: Pixels, coefficients: Coefficients) -> VelocityEngine:
        """The same engine for one spectrum."""
        return VelocityEngine(
            self.templates, coefficients, Lattice(np.log(pixels.wavelength)), self.trial, self.degree, self.continuum,
            limits=self._velocities, keep=0,
        )  # fmt: skip

    def model(self, found: Found, pixels: Pixels, coefficients: Coefficients) -> np.ndarray:
        """Best model (n,) of a spectrum that `find` measured, at all its pixels."""
        s = np.log(pixels.wavelength)
        out = model_at(self._values[found.best], s, self.templates.grid.position(s), coefficients, found.shift)
        x = (2.0 * pixels.wavelength - (pixels.wavelength[0] + pixels.wavelength[-1])) / np.ptp(pixels.wavelength)
        out *= self._fitted(found, pixels, coefficients).continuum(x)
        if self.continuum == "normalize":
            x = self._scaled(s)
            out *= evaluate_continuum(fit_upper_continuum(x, pixels.flux, pixels.ivar, self.degree), x)
        return out

    def _fitted(self, found: Found, pixels: Pixels, coefficients: Coefficients) -> FinePixels:
        """The fit of a spectrum that `find` measured."""
        state = SpectrumState(self, pixels, coefficients)
        fine = FinePixels(
            pixels.wavelength, state.flux, found.ivar, coefficients, self.templates.grid, state.degree
        )  # fmt: skip
        fine.chi2(self._values, found.best, found.shift)
        return fine

    def sensitivity(self, found: Found, transform: np.ndarray) -> np.ndarray:
        """Derivative (n_lag,) of a velocity, km/s, by the kernel's values at the lags of the templates' basis.

        Per ln(wavelength), changed at all wavelengths alike.

        Parameters
        ----------
        found : Found
            With its ``influence``.
        transform : ndarray
            `lag_transform` of the best template itself on the templates' grid.
        """
        basis = self.templates.basis
        out = sums_at_lags(transform, found.influence.on_nodes, basis.first_lag, basis.components.shape[1])
        return out * self.templates.grid.step * SPEED_OF_LIGHT * (1.0 - (found.velocity / SPEED_OF_LIGHT) ** 2)

    def _search_all(self, spectra: list[SpectrumState]) -> None:
        """Search for every spectrum."""
        chi2, offset = self._chi2_of([(s.wavelength, s.flux, s.ivar) for s in spectra])
        for i, s in enumerate(spectra):
            s.trial_chi2, s.offset = chi2[i], offset[i]

    def _chi2_of(
        self, data: list[tuple[np.ndarray, np.ndarray, np.ndarray]], templates: Sequence[int] | None = None
    ) -> tuple[np.ndarray, list[float]]:
        """Chi-squares (m, n_template, k) of spectra (wavelength, flux, inverse variance), and their offsets."""
        n = self.lattice.log_wavelength.size
        weighted, ivar, square = np.zeros((len(data), n)), np.zeros((len(data), n)), np.empty(len(data))
        offset = []
        for i, arrays in enumerate(data):
            by, square[i] = self.lattice.deposit(*arrays, weighted[i], ivar[i])
            offset.append(by)
        return self._search.chi2(weighted, ivar, square, templates), offset

    def _second_stars(self, doubtful: list[SpectrumState]) -> None:
        """Flag spectra of two stars among those that may be.

        Lines of one star coincide with others of the template at some velocities: what that does to the chi-square is
        known from the star's own model without noise.
        """
        for template in sorted({s.best for s in doubtful}):
            group = [s for s in doubtful if s.best == template]
            chi2, _ = self._chi2_of([(s.wavelength, s.star, s.ivar) for s in group], [template])
            for s, alone in zip(group, chi2[:, 0], strict=True):
                s.compare_with_one_star(alone)
