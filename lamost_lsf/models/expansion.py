"""What turns a network's few coefficients into a profile: basis, fibre and night terms, and their uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.polynomial.legendre import legvander

from lamost_lsf.time import night_number

__all__ = [
    "Correlation",
    "Expansion",
    "exponential",
    "fiber_functions",
    "kriged",
    "line_functions",
    "matern",
    "night_functions",
    "surface_degrees",
    "surface_functions",
]


Correlation = Callable[[np.ndarray], np.ndarray]


def fiber_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 3) of labels scaled to [-0.5, 0.5] that a fibre's own term is made of: Legendre in wavelength."""
    return legvander(2.0 * x[:, 2], 2)


#: Highest degrees in fibre and wavelength of a night's term.
NIGHT_DEGREES = (4, 4)
_N_NIGHT = (NIGHT_DEGREES[0] + 1) * (NIGHT_DEGREES[1] + 1)


def night_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 25) of scaled labels that a night's term is made of: Legendre in fibre times those in wavelength.

    A change of focus acts through the tilt and curvature of the detector: on both together.
    """
    return _night_products(*(legvander(2.0 * x[:, i], d) for i, d in zip((1, 2), NIGHT_DEGREES, strict=True)))


def _night_products(f: np.ndarray, w: np.ndarray) -> np.ndarray:
    f, w = (a[:, : d + 1] for a, d in zip((f, w), NIGHT_DEGREES, strict=True))
    return (f[:, :, None] * w[:, None, :]).reshape(len(f), -1)


#: Highest degree in fibre of a line's term.
LINE_DEGREE = 3


def line_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 4) of scaled labels that a line's term is made of: Legendre in fibre."""
    return legvander(2.0 * x[:, 1], LINE_DEGREE)


def exponential(lag: np.ndarray) -> np.ndarray:
    """Correlation at a lag in units of its length; what it joins is continuous, but no smoother."""
    return np.exp(-lag)


def matern(lag: np.ndarray) -> np.ndarray:
    """Matern correlation of order 5/2: what it joins has two derivatives."""
    r = np.sqrt(5.0) * lag
    return (1.0 + r + r**2 / 3.0) * np.exp(-r)


def kriged(
    at: np.ndarray, position: np.ndarray, scale: float, weights: np.ndarray, correlation: Correlation
) -> np.ndarray:
    """Sum over n of ``correlation(|at - position_n| / scale) weights_n``: (m, R, K) at (m,) of weights (n, R, K)."""
    return np.tensordot(correlation(np.abs(at[:, None] - position) / scale), weights, axes=1)


#: Highest degrees in fibre and wavelength of the surface term's constant part.
SURFACE_DEGREES = (3, 5)
#: Highest degrees in time, fibre and wavelength of its slow change over the season.
TREND_DEGREES = (3, 1, 1)
_N_SURFACE = (SURFACE_DEGREES[0] + 1) * (SURFACE_DEGREES[1] + 1) + TREND_DEGREES[0] * 4


def surface_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 36) of scaled labels that the surface term is made of: products of Legendre polynomials.

    First those in fibre and wavelength, then those that change with time, too.
    """
    degrees = (TREND_DEGREES[0], *SURFACE_DEGREES)
    return _surface_products(*(legvander(2.0 * x[:, i], d) for i, d in enumerate(degrees)))


def _surface_products(t: np.ndarray, f: np.ndarray, w: np.ndarray) -> np.ndarray:
    (n, p, q), (f_degree, w_degree) = TREND_DEGREES, SURFACE_DEGREES
    plane = f[:, : f_degree + 1, None] * w[:, None, : w_degree + 1]
    trend = t[:, 1 : n + 1, None, None] * plane[:, None, : p + 1, : q + 1]
    return np.concatenate([plane.reshape(len(t), -1), trend.reshape(len(t), -1)], axis=1)


def surface_degrees() -> np.ndarray:
    """Degrees (3, n) in time, fibre and wavelength of `surface_functions`."""
    plane = np.indices((1, SURFACE_DEGREES[0] + 1, SURFACE_DEGREES[1] + 1)).reshape(3, -1)
    trend = np.indices((TREND_DEGREES[0], TREND_DEGREES[1] + 1, TREND_DEGREES[2] + 1)).reshape(3, -1)
    return np.concatenate([plane, trend + np.array([[1], [0], [0]])], axis=1)


@dataclass(frozen=True)
class Expansion:
    """Profile = mean + (network + surface + fibre, line and night terms) . components.

    Attributes
    ----------
    mean : ndarray (n_sample,)
        Mean profile on the model's offsets, unit area.
    components : ndarray (K, n_sample)
    surface_values : ndarray (36, K)
        Factors of `surface_functions`: what is smooth in time, fibre and wavelength and needs no network.
    fiber_number : ndarray (n_fiber,)
        Fibres that have a term of their own, increasing; others have none.
    fiber_values : ndarray (n_fiber, 3, K)
        Factors of `fiber_functions`.
    line : ndarray (n_line,)
        Scaled wavelengths of the lines that were trained on, increasing.
    line_values : ndarray (n_line, 4, K)
        Kriging weights of `line_functions`, see `kriged`: what is particular to the lines. At a line the sum is near
        its own term; between lines it goes from one to the next and dies out where they tell nothing about one
        another.
    line_scale : ndarray ()
        Correlation length in scaled wavelength.
    night : ndarray (n_night,)
        Numbers (`night_number`) of the nights that had arcs.
    night_values : ndarray (n_night, 25, K)
        Kriging weights of `night_functions`, likewise.
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
    line: np.ndarray
    line_values: np.ndarray
    line_scale: np.ndarray
    night: np.ndarray
    night_values: np.ndarray
    night_scale: np.ndarray
    covariance: np.ndarray
    fiber_scale: np.ndarray

    def __post_init__(self) -> None:
        k, n = self.components.shape
        f, n_line, m = self.fiber_number.size, self.line.size, self.night.size
        shapes = {
            "mean": (n,), "surface_values": (_N_SURFACE, k), "fiber_values": (f, 3, k),
            "line_values": (n_line, 4, k), "night_values": (m, _N_NIGHT, k), "covariance": (k, k), "fiber_scale": (f,),
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
        """Surface, fibre, line and night terms (n, K) at scaled labels (n, 3), times and fibres (n,)."""
        degrees = np.maximum(TREND_DEGREES, [0, *SURFACE_DEGREES])
        degrees = np.maximum(degrees, [0, max(NIGHT_DEGREES[0], LINE_DEGREE), max(NIGHT_DEGREES[1], 2)])
        t, f, w = (legvander(2.0 * x[:, i], int(d)) for i, d in enumerate(degrees))
        out = _surface_products(t, f, w) @ self.surface_values
        index, known = self._fiber_index(fiber)
        if self.fiber_number.size:
            one = np.all(fiber == fiber[:1])  # a spectrum's: one matrix product does
            part = w[:, :3] * known[:, None]
            out += part @ self.fiber_values[index[0]] if one else _products(part, self.fiber_values[index])
        # few distinct nights and wavelengths among many labels: mix the known ones once for each
        if self.line.size:
            wanted, inverse = np.unique(x[:, 2], return_inverse=True)
            mixed = kriged(wanted, self.line, float(self.line_scale), self.line_values, matern)
            out += _products(f[:, : LINE_DEGREE + 1], mixed[inverse])
        if self.night.size:
            wanted, inverse = np.unique(night_number(lmjm), return_inverse=True)
            mixed = kriged(wanted, self.night, float(self.night_scale), self.night_values, exponential)
            functions = _night_products(f, w)
            out += functions @ mixed[0] if wanted.size == 1 else _products(functions, mixed[inverse])
        return out

    @cached_property
    def _functions(self) -> np.ndarray:
        """Mean and components, stacked: (K + 1, n_sample)."""
        return np.concatenate([self.mean[None], self.components])

    @cached_property
    def _typical_error(self) -> np.ndarray:
        variance = np.einsum("kj,kj->j", self.components, self.covariance @ self.components)
        return np.sqrt(np.maximum(variance, 0.0))

    def profiles(self, coefficients: np.ndarray) -> np.ndarray:
        """Profiles (n, n_sample), unit area, of coefficients (n, K)."""
        return np.concatenate([np.ones((len(coefficients), 1)), coefficients], axis=1) @ self._functions

    def error(self, fiber: np.ndarray) -> np.ndarray:
        """1-sigma error (n, n_sample) of unit-area profiles of fibres (n,)."""
        if self.fiber_number.size == 0:
            return np.broadcast_to(self._typical_error, (fiber.size, self.mean.size)).copy()
        index, known = self._fiber_index(fiber)
        return np.sqrt(np.where(known, self.fiber_scale[index], 1.0))[:, None] * self._typical_error


def _products(functions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Row by row, functions (n, R) times values (n, R, K)."""
    return (functions[:, None, :] @ values)[:, 0]
