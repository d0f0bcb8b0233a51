"""The baseline: for every line by itself, coefficients of low order in fibre and time, by linear least squares.

No network is worth having that does not beat this at the lines; between them it has nothing but interpolation to offer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.legendre import legvander

from lamost_lsf.training.data import Labels, PackedStatistics
from lamost_lsf.training.terms import newton_system

__all__ = ["LinearBaseline", "fit_linear_baseline"]


@dataclass(frozen=True)
class LinearBaseline:
    """Coefficients as Legendre series in fibre and time, one set for each line.

    Attributes
    ----------
    wavelength : ndarray (n_line,)
        Vacuum Angstrom, increasing.
    factors : ndarray (n_line, n_function, K)
    fiber_degree, time_degree : int
    """

    wavelength: np.ndarray
    factors: np.ndarray
    fiber_degree: int
    time_degree: int

    def coefficients(self, scaled: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        """Coefficients (n, K) at scaled labels (n, 3); linear between the lines."""
        functions = _functions(scaled, self.fiber_degree, self.time_degree)
        position = np.interp(wavelength, self.wavelength, np.arange(self.wavelength.size))
        low = np.clip(np.floor(position).astype(np.int64), 0, max(self.wavelength.size - 2, 0))
        high = np.minimum(low + 1, self.wavelength.size - 1)
        share = (position - low)[:, None]
        below = np.einsum("nr,nrk->nk", functions, self.factors[low])
        above = np.einsum("nr,nrk->nk", functions, self.factors[high])
        return (1.0 - share) * below + share * above


def _functions(scaled: np.ndarray, fiber_degree: int, time_degree: int) -> np.ndarray:
    fiber, time = legvander(2.0 * scaled[:, 1], fiber_degree), legvander(2.0 * scaled[:, 0], time_degree)
    return (fiber[:, :, None] * time[:, None, :]).reshape(scaled.shape[0], -1)


def fit_linear_baseline(
    packed: PackedStatistics,
    labels: Labels,
    scaled: np.ndarray,
    index: np.ndarray,
    *,
    fiber_degree: int = 6,
    time_degree: int = 3,
    iterations: int = 3,
) -> LinearBaseline:
    """Fit the baseline to the pixel likelihood of some lines (numbers ``index``)."""
    k = packed.n_functions - 1
    index = index[packed.n_pixels[index] > 8]
    time_degree = min(time_degree, np.unique(labels.lmjm[index]).size - 1)
    lines = np.unique(labels.line[index])
    wavelength = np.array([labels.wavelength[index][labels.line[index] == n].mean() for n in lines])
    size = (fiber_degree + 1) * (time_degree + 1)
    factors = np.zeros((lines.size, size, k))
    for number, line in enumerate(lines):
        members = index[labels.line[index] == line]
        for _ in range(iterations):
            normal, rhs = np.zeros((size * k, size * k)), np.zeros(size * k)
            for part, stats in packed.chunks(members):
                f = _functions(scaled[part], fiber_degree, time_degree)
                gradient, hessian = newton_system(stats, f @ factors[number])
                outer = (f[:, :, None] * f[:, None, :]).reshape(part.size, size * size)
                block = (outer.T @ hessian.reshape(part.size, k * k)).reshape(size, size, k, k)
                normal += block.transpose(0, 2, 1, 3).reshape(size * k, size * k)
                rhs += (f.T @ gradient).ravel()
            # a trace of ridge only keeps directions that no pixel constrains from running away
            normal[np.diag_indices_from(normal)] += 1e-6 * np.trace(normal) / normal.shape[0]
            factors[number] += np.linalg.solve(normal, rhs).reshape(size, k)
    order = np.argsort(wavelength)
    return LinearBaseline(wavelength[order], factors[order], fiber_degree, time_degree)
