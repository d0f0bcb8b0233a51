"""Logarithmic wavelength grids: spreading samples onto them, reading off them, kernels on them.

On ``s = ln(w)`` the scatter integral is ``F(s) = integral T(s') g(s - s'; s') ds'`` with
``g(u; s') = w' h(w' (e^u - 1); w')``. A Doppler shift is then a translation, and a profile's width, nearly
proportional to wavelength, changes little along the axis. Profiles are smooth on the scale of the grid, so both the
template's samples and the profiles are brought onto it by the transpose of eight-point Lagrange interpolation: every
sample is shared among its eight neighbours so that the first eight moments are kept. Sharp template lines, and even the
jump at the end of a truncated profile, thereby keep their integrals; what is lost lies beyond the frequencies that the
profile passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from lamost_lsf.convolution.axes import lower_edge
from lamost_lsf.convolution.nodes import LSFTable, lagrange4, node_position

__all__ = [
    "LOG_STEP",
    "KernelTable",
    "LogGrid",
    "choose_refinement",
    "gather",
    "kernel_table",
    "lagrange8",
    "read_out",
    "scatter",
    "spread_template",
]

#: LAMOST's step, 1e-4 in log10(wavelength), in natural logarithms. Grids are integer fractions of it with nodes at
#: integer multiples, so that LAMOST's pixels coincide with nodes.
LOG_STEP = 1e-4 * np.log(10.0)

_TAPS = 8
#: Abscissae in a cell (0..1) and weights of its quadrature. The shares of a sample are polynomials only inside a cell, so
#: the profile's own samples would not integrate them exactly.
_GAUSS_LEGENDRE = tuple(0.5 * (x + k) for k, x in zip((1.0, 0.0), np.polynomial.legendre.leggauss(5), strict=True))
_FAST = {"contract", "reassoc", "nsz", "arcp"}


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


_CHUNK = 128


@njit(cache=True, error_model="numpy")
def _spread_part(wavelength, values, j, low, high, step, start, out):
    """Spread the part of pixel j between low and high; see `spread_template`."""
    low, high = max(low, lower_edge(wavelength, j)), min(high, lower_edge(wavelength, j + 1))
    middle = 0.5 * (low + high)
    position = np.log(middle) / step - start
    i = int(np.floor(position))
    w = lagrange8(position - i)
    n_row = values.shape[0]
    for k in range(8):
        if 0 <= i - 3 + k < out.shape[1]:
            share = w[k] * (high - low) / middle
            out[n_row, i - 3 + k] += share
            for r in range(n_row):
                out[r, i - 3 + k] += share * values[r, j]


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _chunk_positions(wavelength, begin, end, inverse_step, start, position, measure):
    """Positions in nodes, and widths in ln(wavelength), of samples begin..end (at most _CHUNK) of an axis."""
    n = wavelength.size
    middle = wavelength[(begin + end) // 2]
    base, inverse = np.log(middle), 1.0 / middle
    near = wavelength[end - 1] - middle < 1e-3 * middle and middle - wavelength[begin] < 1e-3 * middle
    chunk = wavelength[begin:end]
    if near:
        # ln(1 + d) by its series, exact to 1e-21 for |d| < 1e-3, and far cheaper than a logarithm each
        for k in range(chunk.size):
            d = (chunk[k] - middle) * inverse
            log1p = d * (1.0 + d * (-0.5 + d * (1.0 / 3.0 + d * (-0.25 + d * (0.2 - d / 6.0)))))
            position[k] = (base + log1p) * inverse_step - start
    else:
        for k in range(chunk.size):
            position[k] = np.log(chunk[k]) * inverse_step - start
    for k in range(1, chunk.size - 1):
        measure[k] = 0.5 * (chunk[k + 1] - chunk[k - 1]) / chunk[k]
    for k in (0, chunk.size - 1):
        m = begin + k
        low, high = max(m - 1, 0), min(m + 1, n - 1)
        measure[k] = (wavelength[high] - wavelength[low]) / (high - low) / wavelength[m]


def _lagrange8_powers() -> np.ndarray:
    """Coefficients (k, p) of t^p in the weights of `lagrange8`."""
    nodes = np.arange(-3, 5)
    rows = [np.poly(np.delete(nodes, k))[::-1] / np.prod(node - np.delete(nodes, k)) for k, node in enumerate(nodes)]
    return np.array(rows)


_POWERS = _lagrange8_powers()
#: Cells whose moments are held before they are shared out among the nodes: few enough for the processor's cache.
_CELLS = 256


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _share_out(moments, first, n_cell, out, width):
    """Turn moments (16, n_cell) of cells first, first + 1, ... into what their eight nodes get, and clear them."""
    for side in range(2):
        target = out if side == 0 else width
        m0, m1, m2, m3 = moments[8 * side], moments[8 * side + 1], moments[8 * side + 2], moments[8 * side + 3]
        m4, m5, m6, m7 = moments[8 * side + 4], moments[8 * side + 5], moments[8 * side + 6], moments[8 * side + 7]
        for k in range(8):
            c = _POWERS[k]
            c0, c1, c2, c3, c4, c5, c6, c7 = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
            # cells whose k-th node is one of the grid's
            lowest, highest = max(0, 3 - k - first), min(n_cell, target.size + 3 - k - first)
            if highest <= lowest:
                continue
            node = target[first - 3 + k + lowest : first - 3 + k + highest]
            for q in range(node.size):
                p = q + lowest
                node[q] += (c0 * m0[p] + c1 * m1[p] + c2 * m2[p] + c3 * m3[p]) + (
                    c4 * m4[p] + c5 * m5[p] + c6 * m6[p] + c7 * m7[p]
                )
    moments[:, :n_cell] = 0.0


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _spread_row(wavelength, values, begin, end, step, start, out, width):
    """Spread one spectrum times its pixel widths into ``out``, the widths into ``width``; see `spread_template`.

    The eight weights are polynomials in a sample's place t in its cell, so the samples of a cell are summed as moments
    first: half the work of sharing out every sample.
    """
    position, measure = np.empty(_CHUNK), np.empty(_CHUNK)
    moments = np.zeros((16, _CELLS))
    base, cell, upper = -1, -1, -1.0
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = 0.0
    for first in range(begin, end, _CHUNK):
        last = min(first + _CHUNK, end)
        _chunk_positions(wavelength, first, last, 1.0 / step, start, position, measure)
        value = values[first:last]
        for j in range(value.size):
            p = position[j]
            if p >= upper:
                if cell >= 0:
                    m = moments[:, cell - base]
                    m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7] = a0, a1, a2, a3, a4, a5, a6, a7
                    m[8], m[9], m[10], m[11], m[12], m[13], m[14], m[15] = b0, b1, b2, b3, b4, b5, b6, b7
                    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
                    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = 0.0
                new = int(np.floor(p))
                if new >= base + _CELLS or cell < 0:
                    if cell >= 0:
                        _share_out(moments, base, cell - base + 1, out, width)
                    base = new
                cell, upper = new, new + 1.0
            t = p - cell
            v = measure[j]
            y = v * value[j]
            a0 += y
            b0 += v
            y *= t
            v *= t
            a1 += y
            b1 += v
            y *= t
            v *= t
            a2 += y
            b2 += v
            y *= t
            v *= t
            a3 += y
            b3 += v
            y *= t
            v *= t
            a4 += y
            b4 += v
            y *= t
            v *= t
            a5 += y
            b5 += v
            y *= t
            v *= t
            a6 += y
            b6 += v
            y *= t
            v *= t
            a7 += y
            b7 += v
    if cell >= 0:
        m = moments[:, cell - base]
        m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7] = a0, a1, a2, a3, a4, a5, a6, a7
        m[8], m[9], m[10], m[11], m[12], m[13], m[14], m[15] = b0, b1, b2, b3, b4, b5, b6, b7
        _share_out(moments, base, cell - base + 1, out, width)


@njit(cache=True, error_model="numpy")
def spread_template(wavelength, values, begin, end, low, high, step, start, out):
    """Spread samples begin..end of spectra, times their pixel widths; in the last row of ``out`` the widths alone.

    Every sample is shared among the eight nodes around it. Pixels that reach beyond ``low`` or ``high`` (Angstrom) count
    with their part between, at the middle of that. All is done in chunks that stay in the processor's cache: for a long
    template, writing positions and widths out first takes longer than the spreading.

    Parameters
    ----------
    wavelength : ndarray (k,)
        Angstrom.
    values : ndarray (m, k)
    begin, end : int
    low, high : float
    step, start : float, int
        Of the `LogGrid`, which reaches four nodes beyond the samples.
    out : ndarray (m + 1, n)
        Added to.
    """
    n_row = values.shape[0]
    if end > begin and lower_edge(wavelength, begin) < low:
        _spread_part(wavelength, values, begin, low, high, step, start, out)
        begin += 1
    if end > begin and lower_edge(wavelength, end) > high:
        end -= 1
        _spread_part(wavelength, values, end, low, high, step, start, out)
    scratch = np.zeros(out.shape[1] if n_row > 1 else 0)
    for r in range(n_row):
        _spread_row(wavelength, values[r], begin, end, step, start, out[r], out[n_row] if r == 0 else scratch)


@njit(cache=True, error_model="numpy", fastmath=_FAST)
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


@njit(cache=True, error_model="numpy", fastmath=_FAST)
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
    first = int(np.floor(np.log1p(low / table.nodes[0]) / step)) - _TAPS
    last = int(np.ceil(np.log1p(high / table.nodes[0]) / step)) + _TAPS
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


@njit(cache=True, error_model="numpy")
def _weighted_sources(rows, start, step, s0, inverse_ds, n_nodes):
    """Sources times their weights for the four table nodes around.

    Returns
    -------
    first : ndarray of int (n,)
        First of the four table nodes of every source.
    stop : ndarray of int (n,)
        Where the run of sources with the same one ends.
    weighted : ndarray (n_row, 4 n)
    """
    n_row, size = rows.shape
    first, stop = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    weighted = np.empty((n_row, 4 * size))
    for m in range(size):
        i, t = node_position((start + m) * step, s0, inverse_ds, n_nodes)
        first[m] = i
        a, b, c, d = lagrange4(t)
        for r in range(n_row):
            here, value = weighted[r, 4 * m : 4 * m + 4], rows[r, m]
            here[0], here[1], here[2], here[3] = a * value, b * value, c * value, d * value
    run = size
    for m in range(size - 1, -1, -1):
        if m < size - 1 and first[m] != first[m + 1]:
            run = m + 1
        stop[m] = run
    return first, stop, weighted


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _dot(a, b):
    total = 0.0
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _receive(weighted, first, stop, kernels, n_lag, last_lag, begin, end, nodes, out):
    for j in range(nodes.size):
        # sources of this node, from the one at the largest lag on
        lowest = nodes[j] - last_lag
        m = max(lowest, begin)
        upto = min(lowest + n_lag, end)
        while m < upto:
            run = min(stop[m], upto)
            kernel = kernels[first[m]][4 * (m - lowest) : 4 * (run - lowest)]
            for r in range(weighted.shape[0]):
                out[r, j] += _dot(weighted[r, 4 * m : 4 * run], kernel)
            m = run


def scatter(templates: np.ndarray, grid: LogGrid, tables: list[KernelTable], nodes: np.ndarray) -> np.ndarray:
    """Scatter integral at some nodes: every source node spreads by the kernel of its own wavelength.

    Parameters
    ----------
    templates : ndarray (n_segment, n_row, n)
        Spectra spread onto the grid, the last of them non-zero wherever any is, the samples of every segment of the LSF apart: a sample near a join must spread by
        its own segment's kernel even where its eight nodes reach across.
    grid : LogGrid
        Of the templates.
    tables : list of KernelTable
        One a segment.
    nodes : ndarray of int (k,)
        Where the result is wanted, counted from the grid's first node; may lie outside the grid.

    Returns
    -------
    ndarray (n_row, k)
    """
    out = np.zeros((templates.shape[1], nodes.size))
    for rows, table in zip(templates, tables, strict=True):
        used = np.flatnonzero(rows[-1])
        if not used.size:
            continue
        n_nodes, n_lag = table.kernels.shape
        first, stop, weighted = _weighted_sources(
            rows, grid.start, grid.step, table.log_start, 1.0 / table.log_step, n_nodes
        )
        # The four kernels that a source interpolates between, lag by lag beside one another and in order of the source,
        # turn the sum over sources and kernels into one product of contiguous numbers.
        backward = table.kernels[:, ::-1]
        quads = np.empty((n_nodes - 3, n_lag, 4))
        for k in range(4):
            quads[:, :, k] = backward[k : n_nodes - 3 + k]
        quads = quads.reshape(n_nodes - 3, -1)
        last_lag = table.first_lag + n_lag - 1
        _receive(weighted, first, stop, quads, n_lag, last_lag, used[0], used[-1] + 1, nodes, out)
    return out


def read_out(templates: np.ndarray, grid: LogGrid, tables: list[KernelTable], log_wavelength: np.ndarray) -> np.ndarray:
    """Scatter integral at any ln(wavelength) (k,): shape (n_row, k).

    Only the nodes that are needed are worked out: all between the first and the last, or, where every wavelength is a
    node (LAMOST's own pixels), those alone.
    """
    position = grid.position(log_wavelength)
    nearest = np.rint(position)
    # 1e-7 of a node, some 2e-8 A, changes nothing that float64 input could know
    if np.all(np.abs(position - nearest) < 1e-7):
        return scatter(templates, grid, tables, nearest.astype(np.int64))
    begin, end = int(np.floor(position[0])) - 3, int(np.floor(position[-1])) + 5
    if end - begin <= 8 * position.size:
        nodes, local = np.arange(begin, end), position - begin
    else:
        # sparse pixels: eight nodes each
        nodes = (np.floor(position).astype(np.int64)[:, None] + np.arange(-3, 5)).ravel()
        local = 8.0 * np.arange(position.size) + 3.0 + (position - np.floor(position))
    values = scatter(templates, grid, tables, nodes)
    out = np.empty((values.shape[0], position.size))
    for row, result in zip(values, out, strict=True):
        gather(row, local, result)
    return out
