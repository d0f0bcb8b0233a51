"""Template samples brought onto a logarithmic grid."""

from __future__ import annotations

import numpy as np
from numba import njit

from lamost_lsf.convolution.axes import lower_edge
from lamost_lsf.convolution.loggrid import FASTMATH, lagrange8

__all__ = ["spread_template"]

#: Samples whose positions are held at a time.
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


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
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


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
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

    Every sample is shared among the eight nodes around it. Pixels that reach beyond ``low`` or ``high`` (Angstrom)
    count with their part between, at the middle of that. All is done in chunks that stay in the cache: for a long
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
