"""How well SEDs could be known at best: the maximum a posteriori fit where the stars' family is known.

Stars that are linear combinations of a few basis spectra (such as redrock's) leave no room for a better estimator than
the fit of those few numbers with their distribution as the prior; a network's errors are measured against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamost_lsf.sed.grids import (
    CONTINUUM_WINDOW,
    INPUT_GRID,
    OUTPUT_GRID,
    WavelengthGrid,
    moving_average,
    scale_sed,
)

__all__ = ["LinearFamily"]

#: Eigenvalues of the noise's covariance below this share of white noise are what dividing by the continuum took away.
_REMOVED = 1e-3


@dataclass(frozen=True)
class LinearFamily:
    """Stars that are linear combinations of basis spectra, with a Gaussian distribution of the coefficients.

    Attributes
    ----------
    input_basis : ndarray (k, n_in)
        Basis spectra at the input's resolution on ``input_grid``; not normalised.
    output_basis : ndarray (k, n_out)
        The same at the output's, in the same scale.
    mean : ndarray (k,)
        Of the coefficients.
    covariance : ndarray (k, k)
    input_grid, output_grid : WavelengthGrid
    """

    input_basis: np.ndarray
    output_basis: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    input_grid: WavelengthGrid = INPUT_GRID
    output_grid: WavelengthGrid = OUTPUT_GRID

    @classmethod
    def from_coefficients(
        cls,
        input_basis: np.ndarray,
        output_basis: np.ndarray,
        coefficients: np.ndarray,
        input_grid: WavelengthGrid = INPUT_GRID,
        output_grid: WavelengthGrid = OUTPUT_GRID,
    ) -> LinearFamily:
        """Family whose mean and covariance are those of stars' coefficients (n, k)."""
        coefficients = np.asarray(coefficients, dtype=np.float64)
        if coefficients.ndim != 2 or len(coefficients) <= coefficients.shape[1]:
            raise ValueError(
                f"more stars than basis spectra are needed, got coefficients of shape {coefficients.shape}"
            )
        return cls(
            np.asarray(input_basis, dtype=np.float64), np.asarray(output_basis, dtype=np.float64),
            coefficients.mean(axis=0), np.cov(coefficients.T), input_grid, output_grid,
        )  # fmt: skip

    def sed(self, coefficients: np.ndarray) -> np.ndarray:
        """Scaled SEDs (n, n_out) of coefficients (n, k)."""
        return scale_sed(coefficients @ self.output_basis, self.output_grid)[0]

    def fit(
        self, flux: np.ndarray, relative_error: float, *, window: int = CONTINUUM_WINDOW, iterations: int = 8
    ) -> np.ndarray:
        """Coefficients (n, k) of the highest posterior density, for noisy normalised spectra.

        Gauss-Newton, with the covariance that the noise has after it was divided by its own moving average: the mean
        of each window is gone, and the rest is correlated.

        Parameters
        ----------
        flux : ndarray (n, n_in)
            Flux with noise over the moving average of the same.
        relative_error : float
            1 / SNR, the same at all pixels (Yang et al. 2024, Eq. 1).
        window : int
            Of the moving average, pixels.
        iterations : int
        """
        flux = np.atleast_2d(np.asarray(flux, dtype=np.float64))
        whiten = _whitening(flux.shape[1], window)
        precision = np.linalg.inv(self.covariance)
        basis = self.input_basis
        basis_average = moving_average(basis, window)
        out = np.tile(self.mean, (len(flux), 1))
        for x, q in zip(flux, out, strict=True):
            for _ in range(iterations):
                average = q @ basis_average
                model = (q @ basis) / average
                gradient = (basis - model * basis_average) / (average * model) / relative_error
                j = gradient @ whiten
                d = ((x - model) / model / relative_error) @ whiten
                q += np.linalg.solve(j @ j.T + precision, j @ d - precision @ (q - self.mean))
        return out


_CACHE: dict[tuple[int, int], np.ndarray] = {}


def _whitening(n: int, window: int) -> np.ndarray:
    """Matrix (n, m) that makes white noise of the noise of a spectrum over its own moving average."""
    if (n, window) not in _CACHE:
        remaining = np.eye(n) - moving_average(np.eye(n), window).T
        values, vectors = np.linalg.eigh(remaining @ remaining.T)
        keep = values > _REMOVED
        _CACHE.clear()
        _CACHE[n, window] = vectors[:, keep] / np.sqrt(values[keep])
    return _CACHE[n, window]
