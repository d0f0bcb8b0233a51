"""Gaussian instrumental profile of constant (or given) resolving power."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from astropy.time import Time

from lamost_lsf.models.base import IPModel

__all__ = ["GaussianIP"]


class GaussianIP(IPModel):
    """Gaussian profile of standard deviation lambda / (2.355 R), cut at 5 sigma (Liu et al. 2026, section 5.1).

    This is what LAMOST's standard pipeline assumes. It depends on neither time nor fibre; both are accepted and
    ignored, so that it can stand wherever another model does.

    Parameters
    ----------
    resolving_power : float or callable
        R = lambda / FWHM, or a function of vacuum wavelength (ndarray, Angstrom) that returns it.
    wavelength_range : tuple of float
        Vacuum Angstrom between which the model may be asked for; needed to lay out one grid of offsets. Beyond it
        (``extrapolate=True``) the profile is cut at the grid's ends, if those come before ``truncate``.
    truncate : float
        Half-width of the window in units of sigma.

    Raises
    ------
    ValueError
        A resolving power that is not positive and finite.

    Examples
    --------
    >>> import astropy.units as u
    >>> from lamost_lsf import GaussianIP
    >>> print(f"{GaussianIP(resolving_power=1800).profile(wavelength=5400 * u.AA).fwhm:.3f}")
    3.000 Angstrom
    """

    #: FWHM of a Gaussian in units of sigma, 2.35482: the number that the paper rounds to 2.355 (8e-5 more).
    FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))

    def __init__(
        self,
        resolving_power: float | Callable[[np.ndarray], np.ndarray],
        *,
        wavelength_range: tuple[float, float] = (2000.0, 12000.0),
        truncate: float = 5.0,
    ) -> None:
        low, high = (float(w) for w in wavelength_range)
        if not 0 < low < high < np.inf:
            raise ValueError(f"wavelength_range must be two increasing positive wavelengths, got {wavelength_range}")
        if not callable(resolving_power) and np.ndim(resolving_power):
            raise ValueError("resolving_power must be one number or a function of wavelength")
        if not (np.isfinite(truncate) and truncate > 0):
            raise ValueError(f"truncate must be positive, got {truncate}")
        self._resolving_power = resolving_power
        self.wavelength_range = (low, high)
        self.truncate = float(truncate)
        sigma = self.sigma(np.geomspace(low, high, 513))
        # 16 samples per sigma of the narrowest profile: its spline is then exact to 1e-6 of the peak
        step = sigma.min() / 16.0
        half = int(np.ceil(self.truncate * sigma.max() / step))
        self.offset = np.arange(-half, half + 1) * step
        label = "variable" if callable(resolving_power) else float(resolving_power)
        self.meta = {"model": "GaussianIP", "resolving_power": label}

    def sigma(self, wavelength: np.ndarray) -> np.ndarray:
        """Standard deviation, Angstrom, at vacuum wavelength(s) in Angstrom."""
        wavelength = np.asarray(wavelength, dtype=np.float64)
        power = self._resolving_power(wavelength) if callable(self._resolving_power) else self._resolving_power
        power = np.asarray(power, dtype=np.float64)
        if power.shape not in ((), wavelength.shape):
            raise ValueError(f"resolving_power gave shape {power.shape} for wavelengths of shape {wavelength.shape}")
        if not np.all(np.isfinite(power) & (power > 0)):
            raise ValueError(f"the resolving power must be positive and finite, got {power!r}")
        return wavelength / (self.FWHM_PER_SIGMA * power)

    def _evaluate(self, time: np.ndarray | None, fiber: np.ndarray | None, wavelength: np.ndarray) -> np.ndarray:
        z = self.offset / self.sigma(wavelength)[:, None]
        return np.where(np.abs(z) <= self.truncate, np.exp(-0.5 * z * z), 0.0)

    def _time_label(self, time: Time) -> np.ndarray:
        return np.zeros(time.shape)
