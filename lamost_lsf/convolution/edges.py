"""The jumps at the ends of a profile's window, convolved exactly.

A profile is cut off at the ends of its window, where measured ones still have some 0.5 % of their peak. No grid
resolves such a jump: where a narrow template line passes it, a grid smears the step over its cells. A taper that has
the jump and the slope at the end is therefore taken off the profile before it is brought onto the grid, and convolved
apart, with the template's own samples. At a distance d inwards from an end with value h and slope h' it is

    e(d) = (h + (h' + 2 h / L) d) (1 - d / L)^2    for 0 <= d <= L,

so that what is left of the profile begins with neither value nor slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from lamost_lsf.convolution.axes import lower_edge
from lamost_lsf.convolution.loggrid import LOG_STEP
from lamost_lsf.convolution.nodes import LSFTable, lagrange4, lagrange4_derivative, node_position
from lamost_lsf.convolution.response import SegmentPixels

__all__ = ["Tapers", "add_tapers", "jump_error", "make_tapers"]

#: Measured: a jump J (per Angstrom) on cells of c Angstrom costs up to 0.04 J c of the flux at narrow, deep lines.
_COST_OF_JUMP = 0.04
#: Length of a taper, in cells of the grid: enough for its other end to be smooth on the grid.
_CELLS = 8


def jump_error(tables: Sequence[LSFTable], refinement: int) -> float:
    """Error of the flux that the jumps at the windows' ends would cost on a grid, for narrow lines of depth one."""
    return max(float(np.max(_cost(t, end, refinement))) for t in tables for end in (0, -1))


def _cost(table: LSFTable, end: int, refinement: int) -> np.ndarray:
    """The same of one end (0 or -1), at every node."""
    return _COST_OF_JUMP * np.abs(table.profiles[:, end]) * table.nodes * LOG_STEP / refinement


@dataclass(frozen=True)
class Tapers:
    """Tapers of one table.

    Attributes
    ----------
    length : float
        L, Angstrom.
    shape : ndarray (n_node, 4)
        ``h`` and ``h' + 2 h / L`` of the lower end, then of the upper; 0 where the jump is not worth it.
    """

    length: float
    shape: np.ndarray


def make_tapers(table: LSFTable, refinement: int, tolerance: float) -> Tapers:
    """Tapers of the profiles of a table, where what their jumps would cost exceeds a tenth of the tolerance."""
    window = float(table.offset[-1] - table.offset[0])
    length = min(_CELLS * table.nodes[-1] * LOG_STEP / refinement, window / 2.0)
    first, last, step = table.spline[:, 0], table.spline[:, -1], table.offset_step
    low, high = table.profiles[:, 0], table.profiles[:, -1]
    # inwards from the upper end is down the axis
    slope_high = -(last[:, 1] + step * (2.0 * last[:, 2] + step * 3.0 * last[:, 3]))
    shape = np.stack([low, first[:, 1] + 2.0 * low / length, high, slope_high + 2.0 * high / length], axis=1)
    # a taper that is left out at some nodes only would itself end in a step, smaller than what is tolerated
    for k, end in enumerate((0, -1)):
        shape[_cost(table, end, refinement) <= 0.1 * tolerance, 2 * k : 2 * k + 2] = 0.0
    return Tapers(length, shape)


def add_tapers(
    flux: np.ndarray,
    w_in: np.ndarray,
    pixels: SegmentPixels,
    table: LSFTable,
    tapers: Tapers,
    w_out: np.ndarray,
    out: np.ndarray,
) -> None:
    """Add the convolution of one segment's tapers with its samples to ``out``.

    Parameters
    ----------
    flux : ndarray (m, n)
    w_in : ndarray (n,)
        Angstrom.
    pixels : SegmentPixels
        The segment's.
    table : LSFTable
    tapers : Tapers
    w_out : ndarray (k,)
        Angstrom, increasing.
    out : ndarray (m + 1, k)
        The last row is for a constant spectrum.
    """
    _add_tapers(
        flux, w_in, pixels.begin, pixels.end, pixels.low, pixels.high, w_out, table.offset[0], table.offset[-1],
        tapers.length, tapers.shape, table.zero, table.log_start, 1.0 / table.log_step, out,
    )  # fmt: skip


@njit(cache=True, error_model="numpy")
def _at(wavelength, values, s0, inverse_ds):
    """Node values (m,) interpolated at a wavelength, and their derivative by wavelength."""
    i, t = node_position(np.log(wavelength), s0, inverse_ds, values.size)
    a, b, c, d = lagrange4(t)
    value = a * values[i] + b * values[i + 1] + c * values[i + 2] + d * values[i + 3]
    a, b, c, d = lagrange4_derivative(t)
    slope = a * values[i] + b * values[i + 1] + c * values[i + 2] + d * values[i + 3]
    return value, slope * inverse_ds / wavelength


@njit(cache=True, error_model="numpy")
def _both_at(wavelength, shape, k, s0, inverse_ds):
    """Columns k and k + 1 of the shape, interpolated at a wavelength."""
    i, t = node_position(np.log(wavelength), s0, inverse_ds, shape.shape[0])
    a, b, c, d = lagrange4(t)
    p, q, r, s = shape[i], shape[i + 1], shape[i + 2], shape[i + 3]
    first = a * p[k] + b * q[k] + c * r[k] + d * s[k]
    return first, a * p[k + 1] + b * q[k + 1] + c * r[k + 1] + d * s[k + 1]


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _taper_sums(before, wavelength, after, flux, origin, scale, c0, c1, c2, inverse_length):
    """Sum of flux x pixel width x taper, and of width x taper; ``before`` and ``after`` are the neighbours."""
    total, area = 0.0, 0.0
    for k in range(wavelength.size):
        d = (wavelength[k] - origin) * scale
        fall = 1.0 - d * inverse_length
        value = (c0 + d * (c1 + d * c2)) * fall * fall * (after[k] - before[k])
        total += flux[k] * value
        area += value
    return 0.5 * total, 0.5 * area


@njit(cache=True, error_model="numpy")
def _first_edge(wavelength, guess, begin, end, limit):
    """First pixel of begin..end whose lower edge is not below a limit (else end), searched from a guess below it."""
    j = guess
    if j < end:
        # most axes are nearly uniform: go most of the way in one step
        step = int((limit - wavelength[j]) / (lower_edge(wavelength, j + 1) - lower_edge(wavelength, j))) - 1
        j = min(j + max(step, 0), end)
    while j > begin and lower_edge(wavelength, j - 1) >= limit:
        j -= 1
    while j < end and lower_edge(wavelength, j) < limit:
        j += 1
    return j


@njit(cache=True, error_model="numpy")
def _add_part(wavelength, flux, j, low, high, origin, scale, c0, c1, c2, inverse_length, out, o):
    """Add what one pixel contributes with its part between low and high, taken at the middle of that."""
    left, right = max(lower_edge(wavelength, j), low), min(lower_edge(wavelength, j + 1), high)
    if right <= left:
        return
    d = (0.5 * (left + right) - origin) * scale
    fall = 1.0 - d * inverse_length
    value = (c0 + d * (c1 + d * c2)) * fall * fall * (right - left)
    for r in range(flux.shape[0]):
        out[r, o] += flux[r, j] * value
    out[flux.shape[0], o] += value


@njit(cache=True, error_model="numpy")
def _add_tapers(flux, w_in, begin, end, lowest, highest, w_out, x0, x1, length, shape, zero, s0, inverse_ds, out):
    n_row, size = flux.shape[0], w_in.size
    shifted = np.any(zero != 0.0)
    inverse_length = 1.0 / length
    for side in range(2):
        if not np.any(shape[:, 2 * side]):
            continue
        # true wavelengths of a taper lie below that of the lower end of the window, above that of the upper end
        sign = -1.0 if side == 0 else 1.0
        a = b = begin
        for o in range(w_out.size):
            seen = w_out[o] - (x0 if side == 0 else x1)
            sharp, scale = seen, sign
            if shifted:
                # true wavelength w' that is seen at the end of the window: w' - z(w') = seen
                for _ in range(4):
                    z, dz = _at(sharp, zero, s0, inverse_ds)
                    sharp = seen + z
                scale = sign * (1.0 - dz)
            smooth = sharp + length / scale
            low, high = max(min(sharp, smooth), lowest), min(max(sharp, smooth), highest)
            if low >= high:
                continue
            # pixels a to b - 1 lie wholly between
            a = _first_edge(w_in, a, begin, end, low)
            b = _first_edge(w_in, max(a, b), a, end, high)
            if b > a and lower_edge(w_in, b) > high:
                b -= 1
            # value and slope change a little along the taper: linear in d
            h0, k0 = _both_at(sharp, shape, 2 * side, s0, inverse_ds)
            h1, k1 = _both_at(smooth, shape, 2 * side, s0, inverse_ds)
            if h0 == 0.0 and h1 == 0.0:
                continue
            c0, c1, c2 = h0, k0 + (h1 - h0) * inverse_length, (k1 - k0) * inverse_length
            if a > begin:
                _add_part(w_in, flux, a - 1, low, high, sharp, scale, c0, c1, c2, inverse_length, out, o)
            if b < end and b >= a:
                _add_part(w_in, flux, b, low, high, sharp, scale, c0, c1, c2, inverse_length, out, o)
            # the first and last pixel of the template have but one neighbour
            if a == 0 and b > 0:
                _add_part(w_in, flux, 0, low, high, sharp, scale, c0, c1, c2, inverse_length, out, o)
            if b == size and a < size:
                _add_part(w_in, flux, size - 1, low, high, sharp, scale, c0, c1, c2, inverse_length, out, o)
            first, last = max(a, 1), min(b, size - 1)
            if last <= first:
                continue
            before, here, after = w_in[first - 1 : last - 1], w_in[first:last], w_in[first + 1 : last + 1]
            area = 0.0
            for r in range(n_row):
                total, area = _taper_sums(
                    before, here, after, flux[r, first:last], sharp, scale, c0, c1, c2, inverse_length
                )
                out[r, o] += total
            out[n_row, o] += area
