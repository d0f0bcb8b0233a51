"""What a constant spectrum becomes, and how much of each kernel lies beyond the template, from the profiles alone.

The discrete sums of the convolution differ from their integrals by the sampling (some 1e-6, more for a coarse
template). The response to a constant is known independently of it, so every path is normalised to it: a constant
spectrum then returns the integral itself, and exactly itself where the profile does not change with wavelength.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit

from lamost_lsf.convolution.axes import lower_edge
from lamost_lsf.convolution.nodes import LSFTable, lagrange4, lagrange4_derivative, node_position
from lamost_lsf.spline import quadrature_weights

__all__ = ["Response", "SegmentPixels", "constant_response", "segment_pixels"]


@dataclass(frozen=True)
class Response:
    """Response to a constant at the output pixels.

    Attributes
    ----------
    total : ndarray (n_out,)
        ``integral h(w - w'; w') dw'`` of a constant that goes on beyond the template's ends, with the kernels of those.
    missing : ndarray (n_out,)
        The part of ``total`` that comes from beyond the template's ends.
    share : ndarray (n_out,)
        Share of the kernel, in ``|h|``, that lies there: 0 inside, 1 where the template does not reach.
    """

    total: np.ndarray
    missing: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class SegmentPixels:
    """The template pixels of one segment of an LSF.

    Attributes
    ----------
    begin, end : int
        Pixels that lie in it, wholly or in part.
    low, high : float
        True wavelengths (Angstrom) between which it is used: joins, and the edges of the template. A pixel cut by one
        counts with its part inside, at the middle of that.
    """

    begin: int
    end: int
    low: float
    high: float


def segment_pixels(w_in: np.ndarray, tables: list[LSFTable]) -> list[SegmentPixels]:
    """How the pixels of a template (n,) are dealt out to the segments of an LSF."""
    n = w_in.size
    bounds = [lower_edge(w_in, 0), *(t.low for t in tables[1:]), lower_edge(w_in, n)]
    pixels = []
    for low, high in pairwise(bounds):
        begin, end = int(np.searchsorted(w_in, low)), int(np.searchsorted(w_in, high))
        # searching their wavelengths misses a pixel whose edge reaches across
        if begin > 0 and lower_edge(w_in, begin) > low:
            begin -= 1
        if end < n and lower_edge(w_in, end) < high:
            end += 1
        pixels.append(SegmentPixels(begin, end, float(low), float(high)))
    return pixels


def constant_response(tables: Sequence[LSFTable], pixels: Sequence[SegmentPixels], output: np.ndarray) -> Response:
    """Response to a constant on the template's pixels, and beyond.

    Parameters
    ----------
    tables : sequence of LSFTable
        Smooth segments of the LSF, in order.
    pixels : sequence of SegmentPixels
        One a segment.
    output : ndarray (n_out,)
        Observed vacuum wavelengths, Angstrom, increasing.
    """
    total = np.zeros(output.size)
    missing, share = np.zeros(output.size), np.zeros(output.size)
    last = len(tables) - 1
    for k, (table, used) in enumerate(zip(tables, pixels, strict=True)):
        left, left_share = _beyond(table, 0, used.low, output)
        right, right_share = _beyond(table, -1, used.high, output)
        # ``_whole`` lets the segment go on for ever; what its neighbours are there for is taken off again
        total += _whole(table, output)
        if k == 0:
            missing += left
            share += left_share
        else:
            total -= left
        if k == last:
            missing += right
            share += right_share
        else:
            total -= right
    return Response(total, missing, np.clip(share, 0.0, 1.0))


def _beyond(table: LSFTable, node: int, bound: float, output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integral of the kernel of an end node over true wavelengths beyond ``bound``, and its share in ``|h|``.

    ``node`` is 0 (below the bound) or -1 (above it).
    """
    offset = table.offset
    # Offset at which the bound is seen from an output pixel: true wavelengths above the bound have smaller offsets.
    x = output - bound + table.zero[node]
    above = (x > offset[-1]).astype(np.float64)
    above_share = above.copy()
    begin, end = np.searchsorted(x, offset[0], side="right"), np.searchsorted(x, offset[-1], side="right")
    if begin < end:
        size = np.abs(table.profiles[node])
        running = np.concatenate([[0.0], np.cumsum(0.5 * (size[1:] + size[:-1]))])
        above[begin:end] = _running_integral(table.spline[node], offset[0], table.offset_step, x[begin:end])
        above_share[begin:end] = np.interp(x[begin:end], offset, running / running[-1])
    return (above, above_share) if node == -1 else (1.0 - above, 1.0 - above_share)


@njit(cache=True, error_model="numpy")
def _running_integral(coefficients, x0, step, x):
    """Integral of a spline from its first knot to each of x, which increase and lie between its knots."""
    out = np.empty(x.size)
    total, cell, last = 0.0, 0, coefficients.shape[0] - 1
    for k in range(x.size):
        at = min(int((x[k] - x0) / step), last)
        for i in range(cell, at):
            a, b, c, d = coefficients[i]
            total += step * (a + step * (b / 2.0 + step * (c / 3.0 + step * d / 4.0)))
        cell = at
        a, b, c, d = coefficients[cell]
        t = x[k] - x0 - cell * step
        out[k] = total + t * (a + t * (b / 2.0 + t * (c / 3.0 + t * d / 4.0)))
    return out


def _whole(table: LSFTable, output: np.ndarray) -> np.ndarray:
    """Response to a constant of one segment, continued beyond its ends with the kernels of its ends."""
    low, high = table.nodes[0], table.nodes[-1]
    below, above = table.reach
    s0, inverse_ds, n = table.log_start, 1.0 / table.log_step, table.nodes.size
    quadrature = quadrature_weights(table.offset)
    out = np.ones(output.size)

    def exact(wavelength: np.ndarray) -> np.ndarray:
        return _response(wavelength, table.offset, quadrature, table.profiles, table.zero, s0, inverse_ds, low, high)

    # Away from the ends the response is as smooth as the LSF, so as many points as it has nodes are enough; near them
    # it has a kink, and beyond the reach of all that varies it is 1.
    inner = np.searchsorted(output, [low + above, high + below])
    outer = np.searchsorted(output, [low + below, high + above])
    if inner[1] - inner[0] <= 2 * n:
        out[outer[0] : outer[1]] = exact(output[outer[0] : outer[1]])
        return out
    out[outer[0] : inner[0]] = exact(output[outer[0] : inner[0]])
    out[inner[1] : outer[1]] = exact(output[inner[1] : outer[1]])
    first, last = output[inner[0]], output[inner[1] - 1]
    points = np.geomspace(first, last, n)
    out[inner[0] : inner[1]] = _interpolate(
        output[inner[0] : inner[1]], exact(points), np.log(first), (n - 1) / np.log(last / first)
    )
    return out


@njit(cache=True, error_model="numpy")
def _response(output, offset, quadrature, profiles, zero, s0, inverse_ds, low, high):
    """Sum over offsets x of quadrature x h(x; w') |dw'/dx|, with w' the true wavelength that is seen at offset x."""
    n_nodes, n = profiles.shape
    shifts = np.any(zero != 0.0)
    out = np.empty(output.size)
    place, weight = np.empty(n), quadrature.copy()
    for j in range(output.size):
        if shifts:
            _seen_through_shift(output[j], offset, zero, s0, inverse_ds, low, high, place, weight)
            for k in range(n):
                weight[k] *= quadrature[k]
        else:
            _seen(output[j], offset, s0, inverse_ds, low, high, place)
        total, k = 0.0, 0
        while k < n:
            # offsets between the same table nodes; true wavelengths fall as offsets grow
            i = max(0, min(int(np.floor(place[k])) - 1, n_nodes - 4))
            stop = k + 1
            while stop < n and (place[stop] >= i + 1 or i == 0) and (place[stop] < i + 2 or i == n_nodes - 4):
                stop += 1
            total += _cubic_sum(
                place[k:stop], i, weight[k:stop], profiles[i, k:stop], profiles[i + 1, k:stop],
                profiles[i + 2, k:stop], profiles[i + 3, k:stop],
            )  # fmt: skip
            k = stop
        out[j] = total
    return out


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _cubic_sum(place, i, weight, p0, p1, p2, p3):
    """Sum of weight x cubic through the profiles of four nodes, the first of them node i."""
    total = 0.0
    for k in range(place.size):
        _, b, c, d = lagrange4(place[k] - i)
        # differences from one of the nodes: a profile that does not change gives itself to the last bit
        base = p0[k]
        total += weight[k] * (base + (b * (p1[k] - base) + c * (p2[k] - base) + d * (p3[k] - base)))
    return total


@njit(cache=True, error_model="numpy")
def _seen(output, offset, s0, inverse_ds, low, high, place):
    """Place, in table nodes, of the true wavelengths ``output - offset``, kept between low and high."""
    start, inverse = (np.log(output) - s0) * inverse_ds, 1.0 / output
    if max(abs(offset[0]), abs(offset[-1])) * inverse < 5e-3:
        for k in range(offset.size):
            # ln(1 + d), exact to 1e-17; the logarithm itself would be most of the work
            d = min(max(output - offset[k], low), high) * inverse - 1.0
            s = d * (1.0 + d * (-0.5 + d * (1.0 / 3.0 + d * (-0.25 + d * (0.2 - d / 6.0)))))
            place[k] = start + s * inverse_ds
    else:
        for k in range(offset.size):
            place[k] = (np.log(min(max(output - offset[k], low), high)) - s0) * inverse_ds


@njit(cache=True, error_model="numpy")
def _seen_through_shift(output, offset, zero, s0, inverse_ds, low, high, place, stretch):
    """The same where the centres z(w') of the profiles are at lag 0, and |dw'/dx|."""
    z = 0.0
    for k in range(offset.size):
        free = wavelength = output
        # w' = w - x + z(w'): z changes by some 1e-4 of w', so few steps converge, from the z of the last offset
        for _ in range(4):
            free = output - offset[k] + z
            wavelength = min(max(free, low), high)
            i, t = node_position(np.log(wavelength), s0, inverse_ds, zero.size)
            a, b, c, d = lagrange4(t)
            z = a * zero[i] + b * zero[i + 1] + c * zero[i + 2] + d * zero[i + 3]
        place[k] = i + t
        stretch[k] = 1.0
        if wavelength == free:
            a, b, c, d = lagrange4_derivative(t)
            slope = a * zero[i] + b * zero[i + 1] + c * zero[i + 2] + d * zero[i + 3]
            stretch[k] = 1.0 / (1.0 - slope * inverse_ds / wavelength)


@njit(cache=True, error_model="numpy")
def _interpolate(wavelength, values, s0, inverse_ds):
    out = np.empty(wavelength.size)
    for j in range(wavelength.size):
        i, t = node_position(np.log(wavelength[j]), s0, inverse_ds, values.size)
        a, b, c, d = lagrange4(t)
        out[j] = a * values[i] + b * values[i + 1] + c * values[i + 2] + d * values[i + 3]
    return out
