"""Continuum: a polynomial solved inside the chi-square, or the same normalisation of template and spectrum."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.polynomial.legendre import leggauss, legval, legvander

__all__ = ["FixedContinuum", "PolynomialContinuum", "evaluate_continuum", "fit_upper_continuum", "scaled_position"]


def scaled_position(wavelength: np.ndarray, low: float, high: float) -> np.ndarray:
    """Wavelengths mapped so that ``low`` and ``high`` are -1 and 1."""
    return 2.0 * (wavelength - low) / (high - low) - 1.0


@lru_cache(maxsize=64)
def _product_table(degree: int) -> np.ndarray:
    """Products of Legendre polynomials as Legendre series: ``P_i P_j = sum_k table[k, i, j] P_k``."""
    x, w = leggauss(2 * degree + 1)
    p = legvander(x, 2 * degree)
    norm = np.arange(2 * degree + 1) + 0.5
    return np.einsum("q,qk,k,qi,qj->kij", w, p, norm, p[:, : degree + 1], p[:, : degree + 1], optimize=True)


class PolynomialContinuum:
    """Chi-square of ``data = model x polynomial`` with the polynomial solved analytically.

    The polynomial multiplies the *model*: it is the ratio of the observed continuum (throughput, reddening) to the
    template's.

    Parameters
    ----------
    position : ndarray (n,)
        Pixels on the scale of the Legendre polynomials, -1 to 1.
    degree : int
    data, ivar : ndarray (n,)
        Flux and inverse variance; 0 for unused pixels.
    """

    def __init__(self, position: np.ndarray, degree: int, data: np.ndarray, ivar: np.ndarray) -> None:
        legendre = legvander(position, 2 * degree)
        self._moments = legendre * ivar[:, None]
        self._linear = legendre[:, : degree + 1] * (ivar * data)[:, None]
        self._products = _product_table(degree).reshape(2 * degree + 1, -1)
        self._data_square = float(np.sum(ivar * data**2))
        root = np.sqrt(ivar)
        self._root = root
        self.data = root * data
        # Orthonormal over the pixels in use: the normal equations of one model are then as well conditioned as its own
        # variation lets them be, and polynomials that the pixels cannot tell apart (a gap in the data) drop out.
        self._basis, singular, vt = np.linalg.svd(legendre[:, : degree + 1] * root[:, None], full_matrices=False)
        keep = singular > 1e-10 * singular[0] if singular[0] > 0 else np.zeros(singular.size, dtype=bool)
        self._basis = self._basis[:, keep]
        self._design = legendre[:, : degree + 1] @ (vt[keep].T / singular[keep])
        self.n_parameters = int(np.count_nonzero(keep))

    def coarse(self, models: np.ndarray) -> np.ndarray:
        """Chi-square (k,) of many models (k, n) at once, for the search: two matrix products.

        The normal matrix of every model follows from 2 degree + 1 moments, for products of polynomials are
        polynomials. Good to 1e-5 of ``sum(ivar data^2)`` at worst, where the pixels barely determine the polynomial;
        infinite where a model is 0 wherever there are data.
        """
        k = models.shape[0]
        p = self._linear.shape[1]
        a = ((models**2 @ self._moments) @ self._products).reshape(k, p, p)
        b = models @ self._linear
        # the scale of a model is arbitrary; without this a template in physical units is singular to rounding
        diagonal = np.einsum("kii->ki", a)
        bad = ~(np.all(np.isfinite(a), axis=(1, 2)) & np.all(diagonal > 0, axis=1))
        inverse = 1.0 / np.sqrt(np.where(bad[:, None], 1.0, diagonal))
        a = a * inverse[:, :, None] * inverse[:, None, :] + 1e-11 * np.eye(p)
        a[bad] = np.eye(p)
        b = np.where(bad[:, None], 0.0, b * inverse)
        x = np.linalg.solve(a, b[..., None])[..., 0]
        return np.where(bad, np.inf, self._data_square - np.einsum("kp,kp->k", b, x))

    def _solve(self, model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients in the orthonormal basis and the weighted model (n,) of one model (n,)."""
        g = self._basis * model[:, None]
        a, b = g.T @ g, g.T @ self.data
        scale = np.trace(a)
        if not 0 < scale < np.inf:
            return np.zeros(b.size), np.full(model.size, np.nan)
        # a deep line over all the pixels that fix one coefficient must not stop a fit
        a.ravel()[:: b.size + 1] += 1e-14 * scale
        x = np.linalg.solve(a, b)
        return x, g @ x

    def chi2(self, model: np.ndarray) -> float:
        """Chi-square of one model (n,), from the residuals; NaN where the model is 0 at all pixels in use."""
        _, fit = self._solve(model)
        residual = self.data - fit
        return float(residual @ residual)

    def best_model(self, model: np.ndarray) -> np.ndarray:
        """Model times its best polynomial (n,), of one model (n,), at all pixels."""
        x, _ = self._solve(model)
        return model * (self._design @ x)

    def significance(self, model: np.ndarray) -> tuple[float, float, np.ndarray]:
        """How much of a star there is: amplitude and drop of the chi-square of adding ``model`` (n,) to a polynomial.

        Returns
        -------
        amplitude : float
            1 where the lines are as deep as the model's, 0 where there are none.
        gain : float
        fit : ndarray (n,)
            Polynomial plus amplitude times model, weighted by 1 / error.
        """
        weighted = self._root * model
        other = weighted - self._basis @ (self._basis.T @ weighted)
        polynomial = self._basis @ (self._basis.T @ self.data)
        norm, dot = float(other @ other), float(other @ self.data)
        if not norm > 0:
            return 0.0, 0.0, polynomial
        return dot / norm, dot**2 / norm, polynomial + (dot / norm) * other

    def coarse_of(self, data: np.ndarray, models: np.ndarray) -> np.ndarray:
        """`coarse` of other, weighted, data (n,) at the same pixels and errors."""
        from copy import copy

        other = copy(self)
        with np.errstate(divide="ignore", invalid="ignore"):
            plain = np.where(self._root > 0, data / self._root, 0.0)
        legendre = self._moments[:, : self._linear.shape[1]]
        other._linear = legendre * plain[:, None]
        other._data_square = float(data @ data)
        return other.coarse(models)


class FixedContinuum(PolynomialContinuum):
    """Chi-square of normalised models against a spectrum whose continuum was fitted beforehand; one free scale.

    The scale makes up for what noise does to a fit that drops pixels below it: the continuum of a noisy spectrum runs
    through the upper part of its noise.
    """

    def __init__(
        self, position: np.ndarray, degree: int, data: np.ndarray, ivar: np.ndarray, continuum: np.ndarray
    ) -> None:
        super().__init__(position, degree, data, ivar)
        self._continuum = continuum
        # the polynomial was fitted, to the same pixels, before
        self.n_parameters += 1

    def _scaled(self, models: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted models times continuum, and their best scales (k,)."""
        weighted = models * (self._root * self._continuum)
        square = np.einsum("kn,kn->k", weighted, weighted)
        with np.errstate(divide="ignore", invalid="ignore"):
            return weighted, (weighted @ data) / square

    def coarse(self, models: np.ndarray) -> np.ndarray:
        """Chi-square (k,) of many normalised models (k, n)."""
        return self.coarse_of(self.data, models)

    def coarse_of(self, data: np.ndarray, models: np.ndarray) -> np.ndarray:
        """`coarse` of other, weighted, data (n,)."""
        weighted, scale = self._scaled(models, data)
        chi2 = data @ data - scale * (weighted @ data)
        return np.where(np.isfinite(chi2), chi2, np.inf)

    def _solve(self, model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weighted, scale = self._scaled(model[None], self.data)
        return scale, scale[0] * weighted[0]

    def best_model(self, model: np.ndarray) -> np.ndarray:
        """Model times continuum and scale (n,)."""
        return model * self._continuum * self._solve(model)[0][0]


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
