"""Profiles brought onto the lags of a logarithmic grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from lamost_lsf.convolution.loggrid import FASTMATH, LOG_STEP, lagrange8
from lamost_lsf.convolution.nodes import LSFTable

__all__ = ["KernelTable", "choose_refinement", "kernel_table"]

#: Lags beyond the profile's window that its shares may reach.
_MARGIN = 8
#: Abscissae in a cell (0..1) and weights of its quadrature. The shares of a sample are polynomials only inside a cell,
#: so the profile's own samples would not integrate them exactly.
_GAUSS_LEGENDRE = tuple(0.5 * (x + k) for k, x in zip((1.0, 0.0), np.polynomial.legendre.leggauss(5), strict=True))


@dataclass(frozen=True)
class KernelTable:
    """Kernels of one LSF segment on a logarithmic grid, at nodes of the true wavelength.

    Attributes
    ----------
    low, high : float
        True vacuum wavelengths (Angstrom) of the segment.
    kernels : ndarray (n_node, n_lag)
        ``g(u; s')`` at lags ``(first_lag + k) * step``.
    first_lag : int
    log_start, log_step : float
        Nodes of ln(true wavelength).
    """

    low: float
    high: float
    kernels: np.ndarray
    first_lag: int
    log_start: float
    log_step: float


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _project_profiles(nodes, zero, x0, x1, coefficients, ends, taper, step, first_lag, abscissae, weights, out):
    n_cells = coefficients.shape[1]
    inverse_dx = n_cells / (x1 - x0)
    n_q = abscissae.size
    for m in range(nodes.size):
        w, row = nodes[m], out[m]
        u0, u1 = np.log1p((x0 - zero[m]) / w), np.log1p((x1 - zero[m]) / w)
        lag = int(np.floor(u0 / step))
        while lag * step < u1:
            # the part of this cell of the grid that lies inside the profile's window
            begin, end = max(lag * step, u0), min((lag + 1) * step, u1)
            for q in range(n_q):
                u = begin + (end - begin) * abscissae[q]
                # e^u - 1 by its series, exact to 1e-16 of itself up to |u| = 0.01: some 3000 km/s
                if abs(u) < 0.01:
                    e = u * (1.0 + u * (0.5 + u * (1.0 / 6.0 + u * (1.0 / 24.0 + u * (1.0 / 120.0 + u / 720.0)))))
                else:
                    e = np.expm1(u)
                p = (w * e + zero[m] - x0) * inverse_dx
                cell = min(max(int(p), 0), n_cells - 1)
                t = (p - cell) / inverse_dx
                c = coefficients[m, cell]
                value = c[0] + t * (c[1] + t * (c[2] + t * c[3]))
                if taper > 0.0:
                    x = x0 + p / inverse_dx
                    d, e = x - x0, x1 - x
                    if d < taper:
                        value -= (ends[m, 0] + ends[m, 1] * d) * (1.0 - d / taper) ** 2
                    if e < taper:
                        value -= (ends[m, 2] + ends[m, 3] * e) * (1.0 - e / taper) ** 2
                value *= w * weights[q] * (end - begin)
                share = lagrange8(u / step - lag)
                i = lag - first_lag - 3
                for a in range(8):
                    row[i + a] += share[a] * value
            lag += 1


def kernel_table(table: LSFTable, refinement: int, taper: float = 0.0, ends: np.ndarray | None = None) -> KernelTable:
    """Bring the profiles of an `LSFTable` onto the lags of a logarithmic grid.

    With the length of a ``taper`` (Angstrom) and ``ends`` (n_node, 4), less the tapers of
    `lamost_lsf.convolution.edges`.
    """
    if ends is None:
        ends = np.zeros((table.nodes.size, 4))
    step = LOG_STEP / refinement
    low, high = table.reach
    first = int(np.floor(np.log1p(low / table.nodes[0]) / step)) - _MARGIN
    last = int(np.ceil(np.log1p(high / table.nodes[0]) / step)) + _MARGIN
    kernels = np.zeros((table.nodes.size, last - first + 1))
    abscissae, weights = _GAUSS_LEGENDRE
    _project_profiles(
        table.nodes, table.zero, table.offset[0], table.offset[-1], table.spline,
        ends, taper, step, first,
        abscissae, weights, kernels,
    )  # fmt: skip
    kernels /= step
    return KernelTable(table.low, table.high, kernels, first, table.log_start, table.log_step)


def choose_refinement(tables: list[LSFTable], tolerance: float = 1e-6, largest: int = 1024) -> int:
    """Coarsest grid on which every profile is resolved: interpolation between its lags is good to ``tolerance``.

    Judged, in L1, on the profiles themselves away from the ends of their window (a jump there keeps its integral by
    construction and is not resolvable by any grid).
    """
    # A Gaussian needs some five nodes a sigma, and 1 / peak is 2.5 sigma: begin a little coarser than that.
    narrowest = min(1.0 / (float(t.profiles[i].max()) * t.nodes[i]) for t in tables for i in (0, -1))
    refinement = max(1, int(8.0 * LOG_STEP / narrowest))
    while refinement <= largest:
        error = max(_interpolation_error(t, refinement) for t in tables)
        if error <= tolerance:
            return refinement
        # the error falls with the eighth power of the refinement, or slower near the limit of resolution
        growth = min((error / tolerance) ** 0.125, 2.0) if np.isfinite(error) else 2.0
        refinement = max(refinement + 1, int(refinement * growth))
    raise ValueError(f"the profile is too sharp for a logarithmic grid of 1/{largest} of LAMOST's step")


def _interpolation_error(table: LSFTable, refinement: int) -> float:
    step = LOG_STEP / refinement
    index = np.unique([0, table.nodes.size // 2, table.nodes.size - 1])
    return float(_half_cell_error(table.nodes[index] * step, table.offset[0], table.offset_step, table.spline[index]))


@njit(cache=True, error_model="numpy")
def _half_cell_error(cells, x0, dx, coefficients):
    """Largest L1 error of interpolation half-way between lags; infinite where fewer than twelve cells fit."""
    worst = 0.0
    n_cells = coefficients.shape[1]
    half = lagrange8(0.5)
    for m in range(cells.size):
        cell = cells[m]
        # only lags whose eight neighbours all lie inside the window
        first, last = int(np.ceil(x0 / cell)), int(np.floor((x0 + n_cells * dx) / cell))
        n = last - first + 1
        if n < 12:
            return np.inf
        values, middle = np.empty(n), np.empty(n)
        for k in range(n):
            for j in range(2):
                p = ((first + k + 0.5 * j) * cell - x0) / dx
                i = min(max(int(p), 0), n_cells - 1)
                t = (p - i) * dx
                c = coefficients[m, i]
                y = c[0] + t * (c[1] + t * (c[2] + t * c[3]))
                if j == 0:
                    values[k] = y
                else:
                    middle[k] = y
        total = 0.0
        for k in range(3, n - 4):
            guess = 0.0
            for a in range(8):
                guess += half[a] * values[k - 3 + a]
            total += abs(guess - middle[k])
        worst = max(worst, total * cell)
    return worst
