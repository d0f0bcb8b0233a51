"""How far an input is from the training set: by principal components of the normalised training spectra."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.stats import chi2

__all__ = ["Domain"]


@dataclass(frozen=True)
class Domain:
    """Where the training set lies among normalised spectra.

    A spectrum is taken apart into the scores of the leading principal components and what they leave. It is far from
    the training set if its scores are (Mahalanobis distance), or if what is left is more than noise and the training
    set's own scatter about the components account for.

    Attributes
    ----------
    mean : ndarray (n_in,)
    components : ndarray (k, n_in)
        Orthonormal.
    covariance : ndarray (k, k)
        Of the training set's scores.
    scatter : ndarray (n_in,)
        Variance of the training spectra about their components.
    limit_distance, limit_residual : float
        Largest values that count as inside.
    """

    mean: np.ndarray
    components: np.ndarray
    covariance: np.ndarray
    scatter: np.ndarray
    limit_distance: float
    limit_residual: float

    @classmethod
    def fit(cls, flux: np.ndarray, *, n_components: int = 12, margin: float = 1.1) -> Domain:
        """Describe a training set.

        Parameters
        ----------
        flux : ndarray (n, n_in)
            Normalised, without noise.
        n_components : int
            At most; no more than the set has spectra.
        margin : float
            The limit of the distance is this times what 99.5 % of the training set stay below, or what noise reaches:
            the largest would be that of an odd star.
        """
        flux = np.asarray(flux, dtype=np.float64)
        mean = flux.mean(axis=0)
        centred = flux - mean
        k = max(1, min(n_components, len(flux) - 1, flux.shape[1]))
        # eigenvectors of the smaller of the two products
        _, _, v = np.linalg.svd(
            centred if len(flux) <= 4000 else centred[:: len(flux) // 4000 + 1], full_matrices=False
        )
        components = v[:k]
        scores = centred @ components.T
        covariance = np.atleast_2d(scores.T @ scores / max(len(flux) - 1, 1)) + 1e-8 * np.eye(k)
        scatter = np.mean((centred - scores @ components) ** 2, axis=0)
        own = np.sqrt(np.einsum("ij,ij->i", scores, np.linalg.solve(covariance, scores.T).T) / k)
        # noise alone takes one in ten thousand beyond the quantile, and the mean square of n pixels to 1 + 6 sigma
        distance = max(margin * np.quantile(own, 0.995), np.sqrt(chi2.ppf(0.9999, k) / k))
        residual = 1.0 + max(0.3, 6.0 * np.sqrt(2.0 / flux.shape[1]))
        return cls(mean, components, covariance, scatter, float(distance), float(residual))

    def measure(self, flux: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance of spectra from the training set.

        Parameters
        ----------
        flux, error : ndarray (n, n_in)
            Normalised flux and its standard deviation; an error of infinity takes a pixel out.

        Returns
        -------
        distance : ndarray (n,)
            Mahalanobis distance of the scores for each degree of freedom: about 1 inside.
        residual : ndarray (n,)
            Mean square of what the components leave, in units of its expected variance: about 1 inside.
        """
        flux, error = np.atleast_2d(flux), np.atleast_2d(error)
        good = np.isfinite(error)
        centred = np.where(good, flux - self.mean, 0.0)
        noise = np.where(good, error, 0.0) ** 2
        scores = centred @ self.components.T
        k = len(self.components)
        spread = np.einsum("ki,ni,li->nkl", self.components, noise, self.components, optimize=True)
        some = ~good.all(axis=1)
        if some.any():
            # without some pixels the components are not orthogonal: least squares of the others
            normal = np.einsum("ki,ni,li->nkl", self.components, good[some], self.components, optimize=True)
            inverse = np.linalg.inv(normal + 1e-6 * np.eye(k))
            scores[some] = np.einsum("nkl,nl->nk", inverse, scores[some])
            spread[some] = inverse @ spread[some] @ inverse
        solved = np.linalg.solve(self.covariance + spread, scores[..., None])[..., 0]
        distance = np.sqrt(np.einsum("ij,ij->i", scores, solved) / k)
        left = (centred - scores @ self.components) ** 2
        expected = noise + self.scatter
        residual = np.sum(np.where(good, left / expected, 0.0), axis=1) / np.maximum(good.sum(axis=1), 1)
        return distance, residual

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name, for a file."""
        return {f.name: np.asarray(getattr(self, f.name), dtype=np.float32) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Domain:
        """The domain whose arrays `to_arrays` gave."""
        values = {name: np.asarray(value, dtype=np.float64) for name, value in arrays.items()}
        for name in ("limit_distance", "limit_residual"):
            values[name] = float(values[name].item())
        return cls(**values)
