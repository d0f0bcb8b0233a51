"""Logarithmic wavelength grids, and eight-point interpolation on them.

On ``s = ln(w)`` the scatter integral is ``F(s) = integral T(s') g(s - s'; s') ds'`` with
``g(u; s') = w' h(w' (e^u - 1); w')``. A Doppler shift is then a translation, and a profile's width, nearly
proportional to wavelength, changes little along the axis. Profiles are smooth on the scale of the grid, so both the
template's samples (spreading) and the profiles (kernels) are brought onto it by the transpose of eight-point Lagrange
interpolation: every sample is shared among its eight neighbours so that the first eight moments are kept. Sharp
template lines thereby keep their integrals; what is lost lies beyond the frequencies that the profile passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

__all__ = ["FASTMATH", "LOG_STEP", "LogGrid", "gather", "lagrange8"]

#: LAMOST's step, 1e-4 in log10(wavelength), in natural logarithms. Grids are integer fractions of it with nodes at
#: integer multiples, so that LAMOST's pixels coincide with nodes.
LOG_STEP = 1e-4 * np.log(10.0)

#: What sums may be reordered by; NaN keeps its meaning.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}
_TAPS = 8


@njit(cache=True, error_model="numpy", inline="always")
def lagrange8(t):
    """Weights of the polynomial through nodes -3..4 at 0 <= t < 1."""
    a, b, c, d = t + 3.0, t + 2.0, t + 1.0, t
    e, f, g, h = t - 1.0, t - 2.0, t - 3.0, t - 4.0
    ab, cd, ef, gh = a * b, c * d, e * f, g * h
    abcd, efgh = ab * cd, ef * gh
    return (
        b * cd * efgh * (-1.0 / 5040.0),
        a * cd * efgh * (1.0 / 720.0),
        ab * d * efgh * (-1.0 / 240.0),
        ab * c * efgh * (1.0 / 144.0),
        abcd * f * gh * (-1.0 / 144.0),
        abcd * e * gh * (1.0 / 240.0),
        abcd * ef * h * (-1.0 / 720.0),
        abcd * ef * g * (1.0 / 5040.0),
    )


@dataclass(frozen=True)
class LogGrid:
    """Nodes ``ln(w) = n * step`` for n = start .. start + size - 1, with step = LOG_STEP / refinement."""

    refinement: int
    start: int
    size: int

    @property
    def step(self) -> float:
        """Step in ln(wavelength)."""
        return LOG_STEP / self.refinement

    @property
    def wavelength(self) -> np.ndarray:
        """Vacuum Angstrom of the nodes."""
        return np.exp(np.arange(self.start, self.start + self.size) * self.step)

    @classmethod
    def covering(cls, low: float, high: float, refinement: int, margin: int = _TAPS) -> LogGrid:
        """Grid from ``low`` to ``high`` (Angstrom) and ``margin`` nodes beyond."""
        step = LOG_STEP / refinement
        start = int(np.floor(np.log(low) / step)) - margin
        stop = int(np.ceil(np.log(high) / step)) + margin
        return cls(refinement, start, stop - start + 1)

    def position(self, log_wavelength: np.ndarray) -> np.ndarray:
        """Position in nodes, from the first, of natural logarithms of wavelength."""
        return log_wavelength / self.step - self.start


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def gather(grid, position, out):
    """Eight-point Lagrange interpolation of ``grid`` at positions in nodes; NaN within four nodes of its ends."""
    for j in range(position.size):
        i = int(np.floor(position[j]))
        w = lagrange8(position[j] - i)
        i -= 3
        if i < 0 or i + 8 > grid.size:
            out[j] = np.nan
            continue
        total = 0.0
        for k in range(8):
            total += w[k] * grid[i + k]
        out[j] = total
