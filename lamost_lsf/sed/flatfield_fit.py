"""Weighted, clipped polynomials of detector position at many wavelengths at once."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import legendre

__all__ = ["FlatFieldFlag", "WavelengthFit", "basis_terms", "design", "fit_wavelengths"]

#: Half-width of the linear part of Huber's function, in sigma: 95 % efficient for Gaussian errors.
_HUBER = 1.345
_ROBUST_STEPS, _CLIP_STEPS = 12, 12
#: Of the estimate of a star's true flux, and the least that it may be, of the predicted flux.
_TRUE_STEPS, _LEAST = 3, 0.1


class FlatFieldFlag(enum.IntFlag):
    """What is to be known about the fit at a wavelength."""

    TOO_FEW = 1  #: fewer than twice as many stars as coefficients: NaN
    SINGULAR = 2  #: the stars do not determine the polynomial: NaN
    NEGATIVE = 4  #: the mean over the detector is not positive: NaN
    MANY_REJECTED = 8  #: more than a fifth of the stars were rejected


@dataclass(frozen=True)
class WavelengthFit:
    """Result of `fit_wavelengths`.

    Attributes
    ----------
    coefficients : ndarray (n_wave, k)
    covariance : ndarray (n_wave, k, k)
        By the stated errors.
    chi2 : ndarray (n_wave,)
        Reduced, of the stars used, corrected for what clipping takes off a Gaussian.
    used : ndarray of bool (n_star, n_wave)
    flag : ndarray (n_wave,)
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    chi2: np.ndarray
    used: np.ndarray
    flag: np.ndarray


def basis_terms(degree: int) -> list[tuple[int, int]]:
    """Orders (i, j) of the Legendre polynomials in x and y, of total degree up to ``degree``; (0, 0) first.

    Examples
    --------
    >>> basis_terms(2)
    [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    """
    return [(total - j, j) for total in range(int(degree) + 1) for j in range(total + 1)]


def design(
    x: np.ndarray, y: np.ndarray, domain: tuple[tuple[float, float], tuple[float, float]], degree: int
) -> np.ndarray:
    """Basis functions (..., k) at detector positions (...): all but the first average to 0 over the domain."""
    (x0, x1), (y0, y1) = domain
    u = (2.0 * np.asarray(x, dtype=np.float64) - x0 - x1) / (x1 - x0)
    v = (2.0 * np.asarray(y, dtype=np.float64) - y0 - y1) / (y1 - y0)
    pu, pv = legendre.legvander(u, degree), legendre.legvander(v, degree)
    return np.stack([pu[..., i] * pv[..., j] for i, j in basis_terms(degree)], axis=-1)


def fit_wavelengths(
    phi: np.ndarray, ratio: np.ndarray, relative: np.ndarray, absolute: np.ndarray, good: np.ndarray, *, clip: float
) -> WavelengthFit:
    """Fit ``observed = (phi @ c) * true`` at every wavelength, where predicted = true (1 + relative * noise), too.

    Both fluxes have errors. Least squares in the observed flux would be drawn low by the noise of the predictions, the
    mean of the ratios high, and a weight by the noisy prediction low again. Here each star's true flux is estimated
    from both, by their errors, and is the weight of its residual: residual and estimate are uncorrelated, and the fit
    is that of maximum likelihood (total least squares).

    Parameters
    ----------
    phi : ndarray (n_star, n_wave or 1, k)
    ratio : ndarray (n_star, n_wave)
        Observed over predicted flux.
    relative : ndarray (n_star, n_wave)
        One sigma of the predictions over the true flux.
    absolute : ndarray (n_star, n_wave)
        One sigma of the observations over the predicted flux; not both errors 0 where ``good``.
    good : ndarray of bool (n_star, n_wave)
    clip : float
        Rejection, in the larger of the stated sigma and the robust scatter.

    Returns
    -------
    WavelengthFit
    """
    n_wave = ratio.shape[1]
    k = phi.shape[-1]
    flag = np.zeros(n_wave, dtype=np.int64)
    enough = good.sum(axis=0) >= 2 * k
    flag[~enough] |= FlatFieldFlag.TOO_FEW
    good = good & enough
    # a first model without outliers: the median, then Huber's weights
    start = np.array([np.median(ratio[good[:, w], w]) if enough[w] else 1.0 for w in range(n_wave)])
    model = np.broadcast_to(start, ratio.shape)

    def errors(model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals in sigma and inverse variances, both (n_star, n_wave), 0 where not good."""
        # a bad first model must not make an error vanish or change its sign
        positive = np.maximum(model, _LEAST * np.abs(start))
        true = np.ones_like(ratio)  # over the predicted flux
        for _ in range(_TRUE_STEPS):
            variance = (relative * positive * true) ** 2 + absolute**2
            true = np.maximum(1.0 + (ratio / positive - 1.0) * (1.0 - absolute**2 / variance), _LEAST)
        variance = (relative * positive * true) ** 2 + absolute**2
        return np.where(good, (ratio - model) / np.sqrt(variance), 0.0), np.where(good, true / variance, 0.0)

    coefficients = np.zeros((n_wave, k))
    for _ in range(_ROBUST_STEPS):
        z, weight = errors(model)
        scale = np.maximum(_scatter(z, good), 1.0)
        coefficients, _, _ = _solve(
            phi, ratio, weight * np.minimum(1.0, _HUBER * scale / np.maximum(np.abs(z), 1e-300))
        )
        last, model = model, _model(phi, coefficients)
        if np.all(np.abs(model - last)[good] * np.sqrt(weight[good]) <= 1e-2):
            break
    used = good
    for _ in range(_CLIP_STEPS):
        z, weight = errors(model)
        scale = np.maximum(_scatter(z, good), 1.0)
        now = good & (np.abs(z) <= clip * scale)
        coefficients, covariance, singular = _solve(phi, ratio, np.where(now, weight, 0.0))
        new = _model(phi, coefficients)
        same = np.array_equal(now, used) and np.allclose(new, model, rtol=1e-9, atol=0)
        model, used = new, now
        if same:
            break
    z = np.where(used, errors(model)[0], 0.0)
    freedom = used.sum(axis=0) - k
    chi2 = np.sum(z**2, axis=0) / np.maximum(freedom, 1) / _kept_variance(clip)
    flag[singular & enough] |= FlatFieldFlag.SINGULAR
    flag[(freedom < k) & enough] |= FlatFieldFlag.TOO_FEW
    flag[enough & (coefficients[:, 0] <= 0)] |= FlatFieldFlag.NEGATIVE
    flag[enough & (used.sum(axis=0) < 0.8 * good.sum(axis=0))] |= FlatFieldFlag.MANY_REJECTED
    failed = (flag & (FlatFieldFlag.TOO_FEW | FlatFieldFlag.SINGULAR | FlatFieldFlag.NEGATIVE)) != 0
    coefficients[failed], covariance[failed], chi2[failed] = np.nan, np.nan, np.nan
    return WavelengthFit(coefficients, covariance, chi2, used & ~failed, flag)


def _model(phi: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    return np.einsum("swk,wk->sw", np.broadcast_to(phi, (phi.shape[0], *coefficients.shape)), coefficients)


def _solve(phi: np.ndarray, value: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients (n_wave, k), covariance (n_wave, k, k) and mask (n_wave,) of the singular ones."""
    n_wave, k = value.shape[1], phi.shape[-1]
    if phi.shape[1] == 1:
        one = phi[:, 0]
        products = (one[:, :, None] * one[:, None, :]).reshape(len(one), k * k)
        normal = (weight.T @ products).reshape(n_wave, k, k)
        right = (weight * value).T @ one
    else:
        normal = np.einsum("sw,swi,swj->wij", weight, phi, phi, optimize=True)
        right = np.einsum("sw,swi->wi", weight * value, phi)
    # scaled to a unit diagonal, so that "singular" has one meaning at all wavelengths
    diagonal = np.sqrt(np.maximum(np.einsum("wii->wi", normal), 1e-300))
    scaled = normal / diagonal[:, :, None] / diagonal[:, None, :]
    singular = ~(np.linalg.eigvalsh(scaled)[:, 0] > 1e-10)
    scaled[singular] = np.eye(k)
    inverse = np.linalg.inv(scaled) / diagonal[:, :, None] / diagonal[:, None, :]
    return np.einsum("wij,wj->wi", inverse, right), inverse, singular


def _scatter(z: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Robust standard deviation (n_wave,) of the good residuals."""
    # the plain median is several times faster
    if good.all():
        return 1.4826 * np.median(np.abs(z), axis=0)
    masked = np.where(good, np.abs(z), np.nan)
    some = good.any(axis=0)
    out = np.ones(z.shape[1])
    out[some] = 1.4826 * np.nanmedian(masked[:, some], axis=0)
    return out


def _kept_variance(clip: float) -> float:
    """Variance of a unit Gaussian cut at +-clip."""
    from scipy.stats import truncnorm

    return float(truncnorm.var(-clip, clip))
