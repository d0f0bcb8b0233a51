"""Continuum: a polynomial solved inside the chi-square, or the same normalisation of template and spectrum."""

from __future__ import annotations

import numpy as np
from numpy.polynomial.legendre import legval, legvander

__all__ = ["PolynomialContinuum", "fit_upper_continuum", "scaled_position"]


def scaled_position(wavelength: np.ndarray, low: float, high: float) -> np.ndarray:
    """Wavelengths mapped to [-1, 1] of a window."""
    return 2.0 * (wavelength - low) / (high - low) - 1.0


class PolynomialContinuum:
    """Chi-square of ``data = model x polynomial`` with the polynomial solved analytically.

    The polynomial multiplies the *model*: it is the ratio of the observed continuum (throughput, reddening) to the template's.

    Parameters
    ----------
    design : ndarray (n, p)
        Legendre polynomials at the pixels.
    data, ivar : ndarray (n,)
        Flux and inverse variance; 0 for unused pixels.
    """

    def __init__(self, design: np.ndarray, data: np.ndarray, ivar: np.ndarray) -> None:
        self.design = design
        n, p = design.shape
        self.n_parameters = p
        # moments needed for all trial models are then two matrix products
        self._quadratic = ((design[:, :, None] * design[:, None, :]) * ivar[:, None, None]).reshape(n, p * p)
        self._linear = design * (ivar * data)[:, None]
        self._data_square = float(np.sum(ivar * data**2))

    def solve(self, models: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chi-square (k,) and coefficients (k, p) of the best polynomial of each model (k, n).

        Infinite chi-square where the normal equations are singular (a model that is 0 wherever there are data).
        """
        p = self.n_parameters
        a = (models**2 @ self._quadratic).reshape(-1, p, p)
        b = models @ self._linear
        # the scale of the model is arbitrary; without this a template in physical units is singular to rounding
        scale = np.sqrt(np.einsum("kii->ki", a))
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(scale > 0, 1.0 / scale, 0.0)
        a = a * inverse[:, :, None] * inverse[:, None, :]
        bad = ~np.all(np.isfinite(a), axis=(1, 2)) | np.any(scale <= 0, axis=1)
        a[bad] = np.eye(p)
        b = np.where(bad[:, None], 0.0, b * inverse)
        try:
            x = np.linalg.solve(a, b[..., None])[..., 0]
        except np.linalg.LinAlgError:
            x = np.stack([np.linalg.lstsq(ai, bi, rcond=1e-12)[0] for ai, bi in zip(a, b, strict=True)])
        chi2 = self._data_square - np.einsum("kp,kp->k", b, x)
        return np.where(bad, np.inf, chi2), x * inverse

    def best_model(self, model: np.ndarray) -> np.ndarray:
        """Model times its best polynomial (n,), of one model (n,)."""
        _, x = self.solve(model[None])
        return model * (self.design @ x[0])


def legendre_design(wavelength: np.ndarray, low: float, high: float, degree: int) -> np.ndarray:
    """Legendre polynomials 0..degree at the pixels of a window: shape (n, degree + 1)."""
    return legvander(scaled_position(wavelength, low, high), degree)


def fit_upper_continuum(
    wavelength: np.ndarray,
    flux: np.ndarray,
    weight: np.ndarray,
    window: tuple[float, float],
    degree: int,
    *,
    low_clip: float = 1.0,
    high_clip: float = 3.0,
    iterations: int = 10,
) -> np.ndarray:
    """Continuum of a spectrum with absorption lines: a polynomial fit that drops what lies well below it.

    Parameters
    ----------
    wavelength, flux, weight : ndarray (n,)
        Angstrom; weight 0 for unused pixels.
    window : tuple of float
        Wavelengths mapped to [-1, 1].
    degree : int
    low_clip, high_clip : float
        Residuals beyond these many standard deviations below and above are dropped.
    iterations : int

    Returns
    -------
    ndarray (degree + 1,)
        Legendre coefficients; evaluate them with `evaluate_continuum`.
    """
    design = legendre_design(wavelength, *window, degree)
    keep = weight > 0
    coefficients = np.zeros(degree + 1)
    for _ in range(iterations):
        root = np.sqrt(weight[keep])
        coefficients, *_ = np.linalg.lstsq(design[keep] * root[:, None], flux[keep] * root, rcond=None)
        residual = flux - design @ coefficients
        spread = np.std(residual[keep])
        new = (weight > 0) & (residual > -low_clip * spread) & (residual < high_clip * spread)
        if np.count_nonzero(new) < 3 * (degree + 1) or np.array_equal(new, keep):
            break
        keep = new
    return coefficients


def evaluate_continuum(coefficients: np.ndarray, wavelength: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Value of a continuum from `fit_upper_continuum` at wavelengths (Angstrom)."""
    return legval(scaled_position(wavelength, *window), coefficients)
