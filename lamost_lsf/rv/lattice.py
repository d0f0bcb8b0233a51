"""`Lattice`: the pixels that a search is made on, and how spectra come onto them."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["Lattice"]


class Lattice:
    """Pixels of a search.

    LAMOST's pixels are uniform in ln(wavelength), with an offset that differs a little from file to file. On a lattice
    of the same step that is a shift of the trial velocities and nothing else. Spectra on other wavelengths are added
    to the nearest pixels, which is good enough for a search.

    Parameters
    ----------
    log_wavelength : ndarray (n,)
        ln of vacuum Angstrom.
    uniform : bool
        Whether the steps are equal; only then may spectra have other wavelengths than these.

    Attributes
    ----------
    step : float
        Mean step.
    """

    def __init__(self, log_wavelength: np.ndarray, *, uniform: bool = False) -> None:
        self.log_wavelength = log_wavelength
        self.uniform = uniform
        self.step = float(log_wavelength[-1] - log_wavelength[0]) / max(log_wavelength.size - 1, 1)

    @classmethod
    def covering(cls, low: float, high: float, step: float) -> Lattice:
        """Multiples of ``step`` over a range of ln(wavelength) and half a step beyond."""
        first, last = int(np.floor(low / step)), int(np.ceil(high / step))
        return cls(np.arange(first, last + 1) * step, uniform=True)

    def deposit(
        self, wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray, weighted: np.ndarray, total: np.ndarray
    ) -> tuple[float, float]:
        """Add a spectrum's weighted flux and inverse variance (n_pixel,) to rows (n,) of the lattice.

        Returns
        -------
        offset : float
            By how much, in the mean, its pixels lie above those of the lattice in ln(wavelength).
        square : float
            ``sum(ivar flux^2)``.
        """
        if self.uniform:
            return _deposit(wavelength, flux, ivar, self.log_wavelength[0], self.step, weighted, total)
        product = flux * ivar
        weighted += product
        total += ivar
        return 0.0, float(product @ flux)


@njit(cache=True, error_model="numpy")
def _deposit(wavelength, flux, ivar, start, step, weighted, total):
    offset, square = 0.0, 0.0
    for j in range(wavelength.size):
        p = (np.log(wavelength[j]) - start) / step
        k = min(max(int(np.rint(p)), 0), total.size - 1)
        offset += p - k
        product = flux[j] * ivar[j]
        weighted[k] += product
        total[k] += ivar[j]
        square += product * flux[j]
    return offset / wavelength.size * step, square
