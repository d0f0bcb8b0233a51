"""Continuum of a spectrum with absorption lines, for the normalisation of template and spectrum alike."""

from __future__ import annotations

import numpy as np
from numpy.polynomial.legendre import legval, legvander

__all__ = ["evaluate_continuum", "fit_upper_continuum"]


def fit_upper_continuum(
    position: np.ndarray,
    flux: np.ndarray,
    weight: np.ndarray,
    degree: int,
    *,
    low_clip: float = 1.0,
    high_clip: float = 3.0,
    iterations: int = 10,
) -> np.ndarray:
    """Continuum of a spectrum with absorption lines: a polynomial fit that drops what lies well below it.

    Parameters
    ----------
    position, flux, weight : ndarray (n,)
        Pixels mapped to [-1, 1]; weight 0 for unused ones.
    degree : int
    low_clip, high_clip : float
        Residuals beyond these many standard deviations below and above are dropped.
    iterations : int

    Returns
    -------
    ndarray (degree + 1,)
        Legendre coefficients; evaluate them with `evaluate_continuum`.
    """
    design = legvander(position, degree)
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


def evaluate_continuum(coefficients: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Value of a continuum from `fit_upper_continuum` at positions on its scale."""
    return legval(position, coefficients)
