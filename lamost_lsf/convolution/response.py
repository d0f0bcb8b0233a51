"""What a constant spectrum becomes, and how much of each kernel lies beyond the template: both from the profiles alone.

The discrete sums of the convolution differ from their integrals by the sampling (some 1e-7, more for a coarse template). The
response to a constant is known independently of it, so every path is normalised to it: a constant spectrum then returns the
integral itself, and exactly itself where the profile does not change with wavelength.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.interpolate import CubicSpline

from lamost_lsf.convolution.nodes import LSFTable, lagrange4, lagrange4_derivative, node_position
from lamost_lsf.spline import quadrature_weights

__all__ = ["Response", "constant_response", "segment_edges"]


@dataclass(frozen=True)
class Response:
    """Response to a constant at the output pixels.

    Attributes
    ----------
    total : ndarray (n_out,)
        ``integral h(w - w'; w') dw'`` of a constant that goes on beyond the template's ends, with the kernels of its ends.
    missing : ndarray (n_out,)
        The part of ``total`` that comes from beyond the template's ends.
    share : ndarray (n_out,)
        Share of the kernel, in ``|h|``, that lies there: 0 inside, 1 where the template does not reach.
    """

    total: np.ndarray
    missing: np.ndarray
    share: np.ndarray


def segment_edges(w_in: np.ndarray, tables: list[LSFTable]) -> tuple[list[int], np.ndarray]:
    """How template pixels are dealt out to the segments of an LSF.

    Parameters
    ----------
    w_in : ndarray (n,)
        Template wavelengths, Angstrom.
    tables : list of LSFTable

    Returns
    -------
    index : list of int (n_segment + 1,)
        Pixels ``index[k]`` to ``index[k + 1]`` belong to segment k.
    bounds : ndarray (n_segment + 1,)
        Edges of those pixels, Angstrom: ends of the template, and joins moved to the nearest pixel edge.
    """
    index = [0, *(int(np.searchsorted(w_in, t.low, side="left")) for t in tables[1:]), w_in.size]
    bounds = np.empty(len(index))
    bounds[0], bounds[-1] = 1.5 * w_in[0] - 0.5 * w_in[1], 1.5 * w_in[-1] - 0.5 * w_in[-2]
    for k, i in enumerate(index[1:-1], start=1):
        bounds[k] = 0.5 * (w_in[i - 1] + w_in[i])
    return index, bounds


def constant_response(tables: Sequence[LSFTable], bounds: np.ndarray, output: np.ndarray) -> Response:
    """Response to a constant on true wavelengths ``bounds[0]`` to ``bounds[-1]``, and beyond.

    Parameters
    ----------
    tables : sequence of LSFTable
        Smooth segments of the LSF, in order.
    bounds : ndarray (n_segment + 1,)
        True vacuum wavelengths between which each segment is used, Angstrom.
    output : ndarray (n_out,)
        Observed vacuum wavelengths, Angstrom, increasing.
    """
    total = np.zeros(output.size)
    missing, share = np.zeros(output.size), np.zeros(output.size)
    last = len(tables) - 1
    for k, table in enumerate(tables):
        left, left_share = _beyond(table, 0, bounds[k], output)
        right, right_share = _beyond(table, -1, bounds[k + 1], output)
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
    """Integral of the kernel of an end node over true wavelengths beyond ``bound``, and its share in ``|h|``."""
    profile, offset = table.profiles[node], table.offset
    x = output - bound + table.zero[node]
    # true wavelengths above the bound reach an output pixel with offsets below x
    if node == 0:
        value, share = (x < offset[0]).astype(np.float64), (x < offset[0]).astype(np.float64)
        value, share = 1.0 - value, 1.0 - share
    else:
        value, share = (x > offset[-1]).astype(np.float64), (x > offset[-1]).astype(np.float64)
    begin, end = np.searchsorted(x, offset[[0, -1]])
    return value, share
