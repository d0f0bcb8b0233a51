"""The scatter integral on a logarithmic grid."""

from __future__ import annotations

import numpy as np
from numba import njit

from lamost_lsf.convolution.kernels import KernelTable
from lamost_lsf.convolution.loggrid import FASTMATH, LogGrid, gather
from lamost_lsf.convolution.nodes import lagrange4, node_position

__all__ = ["read_out", "scatter"]


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


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _dot(a, b):
    total = 0.0
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
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
        Spectra spread onto the grid, the last of them non-zero wherever any is. The samples of every segment of the LSF
        are apart: one near a join must spread by its own segment's kernel even where its eight nodes reach across.
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
