"""What turns a network's few coefficients into a profile: basis, fibre and night terms, and their uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numba import njit
from numba.extending import register_jitable
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
    f, w = (legvander(2.0 * x[:, i], d) for i, d in zip((1, 2), NIGHT_DEGREES, strict=True))
    return (f[:, :, None] * w[:, None, :]).reshape(len(x), -1)


#: Highest degree in fibre of a line's term.
LINE_DEGREE = 3


def line_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 4) of scaled labels that a line's term is made of: Legendre in fibre."""
    return legvander(2.0 * x[:, 1], LINE_DEGREE)


@register_jitable
def exponential(lag: np.ndarray) -> np.ndarray:
    """Correlation at a lag in units of its length; what it joins is continuous, but no smoother."""
    return np.exp(-lag)


@register_jitable
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
#: Legendre polynomials that the functions of fibre and wavelength are made of at most.
_N_LEGENDRE = 1 + max(*SURFACE_DEGREES, *NIGHT_DEGREES, LINE_DEGREE, 2)
_N_SURFACE = (SURFACE_DEGREES[0] + 1) * (SURFACE_DEGREES[1] + 1) + TREND_DEGREES[0] * 4
#: Highest degrees in an extra label, fibre and wavelength of what depends on that label.
EXTRA_DEGREES = (2, 2, 2)
_N_EXTRA = EXTRA_DEGREES[0] * (EXTRA_DEGREES[1] + 1) * (EXTRA_DEGREES[2] + 1)


def surface_functions(x: np.ndarray) -> np.ndarray:
    """Functions (n, 36 + 18 m) of scaled labels (n, 3 + m) that the surface term is made of: Legendre products.

    First those in fibre and wavelength, then those that change with time, too, then those with each extra label.
    """
    t, f, w = (legvander(2.0 * x[:, i], d) for i, d in enumerate((TREND_DEGREES[0], *SURFACE_DEGREES)))
    plane = f[:, :, None] * w[:, None, :]
    parts = [plane.reshape(len(x), -1)]
    for own, (n, p, q) in [
        (t, TREND_DEGREES),
        *((legvander(2.0 * e, EXTRA_DEGREES[0]), EXTRA_DEGREES) for e in x.T[3:]),
    ]:
        parts.append((own[:, 1 : n + 1, None, None] * plane[:, None, : p + 1, : q + 1]).reshape(len(x), -1))
    return np.concatenate(parts, axis=1)


def surface_degrees(n_extra: int = 0) -> np.ndarray:
    """Degrees (3 + m, n) in time, fibre, wavelength and m extra labels of `surface_functions`."""
    plane = np.indices((SURFACE_DEGREES[0] + 1, SURFACE_DEGREES[1] + 1)).reshape(2, -1)
    out = np.zeros((3 + n_extra, _N_SURFACE + n_extra * _N_EXTRA), dtype=np.int64)
    out[1:3, : plane.shape[1]] = plane
    start = plane.shape[1]
    for row, (n, p, q) in [(0, TREND_DEGREES), *((3 + i, EXTRA_DEGREES) for i in range(n_extra))]:
        own = np.indices((n, p + 1, q + 1)).reshape(3, -1)
        here = slice(start, start + own.shape[1])
        out[row, here], out[1:3, here] = own[0] + 1, own[1:]
        start = here.stop
    return out


@dataclass(frozen=True)
class Expansion:
    """Profile = mean + (network + surface + fibre, line and night terms) . components.

    Attributes
    ----------
    mean : ndarray (n_sample,)
        Mean profile on the model's offsets, unit area.
    components : ndarray (K, n_sample)
    surface_values : ndarray (36 + 18 m, K)
        Factors of `surface_functions`: what is smooth in time, fibre, wavelength and m extra labels and needs no
        network.
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
            "mean": (n,), "surface_values": (_N_SURFACE + self.n_extra * _N_EXTRA, k), "fiber_values": (f, 3, k),
            "line_values": (n_line, 4, k), "night_values": (m, _N_NIGHT, k), "covariance": (k, k), "fiber_scale": (f,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        for field in fields(self):
            if not np.all(np.isfinite(getattr(self, field.name))):
                raise ValueError(f"{field.name} holds non-finite numbers")

    @property
    def n_extra(self) -> int:
        """Number of extra labels."""
        return max(0, self.surface_values.shape[0] - _N_SURFACE) // _N_EXTRA

    def at_labels(self, extra: np.ndarray) -> Expansion:
        """What is left where the extra labels (m,), scaled, have given values: an expansion without them."""
        values = self.surface_values[:_N_SURFACE].copy()
        k = values.shape[1]
        n, p, q = EXTRA_DEGREES
        factors = self.surface_values[_N_SURFACE:].reshape(-1, n, p + 1, q + 1, k)
        plane = values[: (SURFACE_DEGREES[0] + 1) * (SURFACE_DEGREES[1] + 1)]
        plane = plane.reshape(SURFACE_DEGREES[0] + 1, SURFACE_DEGREES[1] + 1, k)  # a view: values change
        plane[: p + 1, : q + 1] += np.einsum("mn,mnpqk->pqk", legvander(2.0 * extra, n)[:, 1:], factors)
        return replace(self, surface_values=values)

    def _fiber_index(self, fiber: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index of each fibre's term, and whether it has one."""
        if self.fiber_number.size == 0:
            return np.zeros(fiber.shape, dtype=np.int64), np.zeros(fiber.shape, dtype=bool)
        index = np.clip(np.searchsorted(self.fiber_number, fiber), 0, self.fiber_number.size - 1)
        return index, self.fiber_number[index] == fiber

    def particular(self, x: np.ndarray, lmjm: np.ndarray, fiber: np.ndarray) -> np.ndarray:
        """Surface, fibre, line and night terms (n, K) at scaled labels (n, 3), times and fibres (n,)."""
        out = np.empty((x.shape[0], self.components.shape[0]))
        _add_terms(
            x, fiber, night_number(lmjm), self.surface_values, self.fiber_number, self.fiber_values,
            self.line, self.line_values, float(self.line_scale),
            self.night, self.night_values, float(self.night_scale), out,
        )  # fmt: skip
        return out

    @cached_property
    def _typical_error(self) -> np.ndarray:
        variance = np.einsum("kj,kj->j", self.components, self.covariance @ self.components)
        return np.sqrt(np.maximum(variance, 0.0))

    def error(self, fiber: np.ndarray) -> np.ndarray:
        """1-sigma error (n, n_sample) of unit-area profiles of fibres (n,)."""
        if self.fiber_number.size == 0:
            return np.broadcast_to(self._typical_error, (fiber.size, self.mean.size)).copy()
        index, known = self._fiber_index(fiber)
        return np.sqrt(np.where(known, self.fiber_scale[index], 1.0))[:, None] * self._typical_error


@njit(cache=True, error_model="numpy")
def _legendre(x, out):
    """Legendre polynomials of x, as many as ``out`` has elements."""
    out[0], out[1] = 1.0, x
    for n in range(2, out.size):
        out[n] = ((2 * n - 1) * x * out[n - 1] - (n - 1) * out[n - 2]) / n


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _add_terms(
    x, fiber, night, surface_values, fibers, fiber_values, line, line_values, line_scale,
    nights, night_values, night_scale, out,
):  # fmt: skip
    """Terms (n, K) label by label, with the functions above: many small arrays would cost more than the sums."""
    n_k = out.shape[1]
    t, f, w = np.empty(TREND_DEGREES[0] + 1), np.empty(_N_LEGENDRE), np.empty(_N_LEGENDRE)
    index = 0
    of_line, of_night = np.zeros((LINE_DEGREE + 1, n_k)), np.zeros((_N_NIGHT, n_k))
    for j in range(x.shape[0]):
        _legendre(2.0 * x[j, 0], t)
        _legendre(2.0 * x[j, 1], f)
        _legendre(2.0 * x[j, 2], w)
        row = out[j]
        row[:] = 0.0
        r = 0
        for a in range(SURFACE_DEGREES[0] + 1):
            for b in range(SURFACE_DEGREES[1] + 1):
                _add(f[a] * w[b], surface_values[r], row)
                r += 1
        for c in range(1, TREND_DEGREES[0] + 1):
            for a in range(TREND_DEGREES[1] + 1):
                for b in range(TREND_DEGREES[2] + 1):
                    _add(t[c] * f[a] * w[b], surface_values[r], row)
                    r += 1
        if j == 0 or fiber[j] != fiber[j - 1]:
            index = np.searchsorted(fibers, fiber[j])
        if index < fibers.size and fibers[index] == fiber[j]:
            for a in range(3):
                _add(w[a], fiber_values[index, a], row)
        # neighbouring labels are often of one wavelength or night: their mixture is made once
        if line.size and (j == 0 or x[j, 2] != x[j - 1, 2]):
            of_line[:] = 0.0
            for m in range(line.size):
                share = matern(abs(x[j, 2] - line[m]) / line_scale)
                for a in range(LINE_DEGREE + 1):
                    _add(share, line_values[m, a], of_line[a])
        if nights.size and (j == 0 or night[j] != night[j - 1]):
            of_night[:] = 0.0
            for m in range(nights.size):
                share = exponential(abs(night[j] - nights[m]) / night_scale)
                for a in range(_N_NIGHT):
                    _add(share, night_values[m, a], of_night[a])
        if line.size:
            for a in range(LINE_DEGREE + 1):
                _add(f[a], of_line[a], row)
        if nights.size:
            for a in range(NIGHT_DEGREES[0] + 1):
                for b in range(NIGHT_DEGREES[1] + 1):
                    _add(f[a] * w[b], of_night[a * (NIGHT_DEGREES[1] + 1) + b], row)


@njit(cache=True, error_model="numpy", inline="always")
def _add(factor, values, to):
    for k in range(to.size):
        to[k] += factor * values[k]
