"""What turns a network's few coefficients into a profile: basis, fibre and night terms, and their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.polynomial.legendre import legvander

from lamost_lsf.time import night_number

__all__ = ["Expansion", "fiber_functions", "night_functions", "surface_functions"]


def fiber_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 3) of labels scaled to [-0.5, 0.5] that a fibre's own term is made of: Legendre in wavelength."""
    w = 2.0 * x[:, 2]
    return np.stack([np.ones_like(w), w, 1.5 * w**2 - 0.5], axis=1)


def night_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 6) of scaled labels that a night's term is made of: quadratic in fibre and wavelength."""
    f, w = 2.0 * x[:, 1], 2.0 * x[:, 2]
    return np.stack([np.ones_like(f), f, w, f**2 - 1.0 / 3.0, f * w, w**2 - 1.0 / 3.0], axis=1)


#: Highest degrees in fibre and wavelength of the surface term.
SURFACE_DEGREES = (3, 5)
_N_SURFACE = (SURFACE_DEGREES[0] + 1) * (SURFACE_DEGREES[1] + 1)


def surface_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 24) of scaled labels that the surface term is made of: Legendre in fibre times Legendre in
    wavelength.
    """
    f, w = (legvander(2.0 * x[:, i], d) for i, d in zip((1, 2), SURFACE_DEGREES, strict=True))
    return (f[:, :, None] * w[:, None, :]).reshape(x.shape[0], -1)


@dataclass(frozen=True)
class Expansion:
    """Profile = mean + (network + surface + fibre term + night term) . components.

    Attributes
    ----------
    mean : ndarray (n_sample,)
        Mean profile on the model's offsets, unit area.
    components : ndarray (K, n_sample)
    surface_values : ndarray (24, K)
        Factors of `surface_functions`: what a network of few steps leaves that is smooth in fibre and wavelength.
    fiber_number : ndarray (n_fiber,)
        Fibres that have a term of their own, increasing; others have none.
    fiber_values : ndarray (n_fiber, 3, K)
        Factors of `fiber_functions`.
    night : ndarray (n_night,)
        Numbers (`night_number`) of the nights that had arcs.
    night_values : ndarray (n_night, 6, K)
        Kriging weights: the term of night m is the sum over nights n of ``exp(-|m - n| / night_scale)`` times
        these, which
        equals a night's own term where it has one and dies out between nights that tell nothing about one another.
    night_scale : ndarray ()
        Correlation time in days.
    covariance : ndarray (K, K)
        Covariance of the coefficients' errors.
    fiber_scale : ndarray (n_fiber,)
        Factor of the covariance for each fibre.
    """

    mean: np.ndarray
    components: np.ndarray
    surface_values: np.ndarray
    fiber_number: np.ndarray
    fiber_values: np.ndarray
    night: np.ndarray
    night_values: np.ndarray
    night_scale: np.ndarray
    covariance: np.ndarray
    fiber_scale: np.ndarray

    def __post_init__(self) -> None:
        k, n = self.components.shape
        f, m = self.fiber_number.size, self.night.size
        shapes = {
            "mean": (n,), "surface_values": (_N_SURFACE, k), "fiber_values": (f, 3, k),
            "night_values": (m, 6, k), "covariance": (k, k), "fiber_scale": (f,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        for field in fields(self):
            if not np.all(np.isfinite(getattr(self, field.name))):
                raise ValueError(f"{field.name} holds non-finite numbers")

    def _fiber_index(self, fiber: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index of each fibre's term, and whether it has one."""
        if self.fiber_number.size == 0:
            return np.zeros(fiber.shape, dtype=np.int64), np.zeros(fiber.shape, dtype=bool)
        index = np.clip(np.searchsorted(self.fiber_number, fiber), 0, self.fiber_number.size - 1)
        return index, self.fiber_number[index] == fiber

    def particular(self, x: np.ndarray, lmjm: np.ndarray, fiber: np.ndarray) -> np.ndarray:
        """Surface, fibre and night terms (n, K) at scaled labels (n, 3), times and fibres (n,)."""
        index, known = self._fiber_index(fiber)
        out = np.einsum("nr,nrk->nk", fiber_functions(x) * known[:, None], self.fiber_values[index])
        out += surface_functions(x) @ self.surface_values
        if self.night.size:
            # few distinct nights among many labels: mix the known ones once for each
            wanted, inverse = np.unique(night_number(lmjm), return_inverse=True)
            weight = np.exp(-np.abs(wanted[:, None] - self.night) / float(self.night_scale))
            mixed = np.tensordot(weight, self.night_values, axes=1)
            out += np.einsum("nr,nrk->nk", night_functions(x), mixed[inverse])
        return out

    def profiles(self, coefficients: np.ndarray) -> np.ndarray:
        """Profiles (n, n_sample), unit area, of coefficients (n, K)."""
        return self.mean + coefficients @ self.components

    def error(self, fiber: np.ndarray) -> np.ndarray:
        """1-sigma error (n, n_sample) of unit-area profiles of fibres (n,)."""
        variance = np.einsum("kj,kl,lj->j", self.components, self.covariance, self.components)
        index, known = self._fiber_index(fiber)
        scale = np.where(known, self.fiber_scale[index], 1.0)
        return np.sqrt(np.maximum(variance, 0.0)[None] * scale[:, None])
