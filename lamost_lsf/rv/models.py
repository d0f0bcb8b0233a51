"""Models of a template at a dozen shifts, through the LSF of every pixel."""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy.fft import irfft, next_fast_len, rfft

from lamost_lsf.convolution.basis import Coefficients
from lamost_lsf.convolution.loggrid import FASTMATH, lagrange8
from lamost_lsf.convolution.nodes import node_cubics, node_position

__all__ = [
    "HIGHEST",
    "LOWEST",
    "TAPS",
    "combine",
    "component_weights",
    "coordinates",
    "lag_transform",
    "lagrange8_derivative",
    "model_at",
    "spread",
    "sums_at_lags",
]

#: Shifts, one node apart, at which the model is kept: those from -2 to 3 nodes around the centre can be interpolated.
TAPS = 12
LOWEST, HIGHEST = -2.0, 3.0
#: Positions (in nodes) that count as lying on the same fraction of a node: 0.3 m/s.
_ALIGNED = 2e-5


def component_weights(log_wavelength: np.ndarray, coefficients: Coefficients, out: np.ndarray) -> None:
    """Weights (n, 2 K) of a template's convolved components at pixels: c_k, then -c_k' (see `convolution.basis`)."""
    s = log_wavelength
    edges = [0, s.size]
    if coefficients.boundaries:
        edges[1:1] = np.searchsorted(s, np.log(coefficients.boundaries)).tolist()
    for k, value in enumerate(coefficients.values):
        if edges[k] < edges[k + 1]:
            step = 1.0 / coefficients.log_step[k]
            _component_weights(s, value, coefficients.log_start[k], step, edges[k], edges[k + 1], out)


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _component_weights(s, coefficients, s0, inverse_ds, begin, end, out):
    n_nodes, n_k = coefficients.shape
    # cubics in the position between nodes, constant first; the same for all pixels between two nodes
    q0, q1, q2, q3 = np.empty(2 * n_k), np.empty(2 * n_k), np.empty(2 * n_k), np.empty(2 * n_k)
    now = -1
    for j in range(begin, end):
        i, t = node_position(s[j], s0, inverse_ds, n_nodes)
        if i != now:
            now = i
            node_cubics(coefficients, i, inverse_ds, q0, q1, q2, q3)
        for k in range(2 * n_k):
            out[j, k] = q0[k] + t * (q1[k] + t * (q2[k] + t * q3[k]))


@njit(cache=True, error_model="numpy")
def coordinates(wavelength, step, start, s, position, x):
    """ln(wavelength), position in nodes, wavelengths mapped to [-1, 1]; whether all lie on one fraction of a node."""
    middle, half = 0.5 * (wavelength[0] + wavelength[-1]), 0.5 * (wavelength[-1] - wavelength[0])
    aligned = True
    for j in range(wavelength.size):
        s[j] = np.log(wavelength[j])
        position[j] = s[j] / step - start
        x[j] = (wavelength[j] - middle) / half
        off = position[j] - position[0]
        aligned &= abs(off - np.rint(off)) <= _ALIGNED
    return aligned


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def combine(values, weights, position, center, aligned, out):
    """Models (12, n) at shifts ``center + 5 - a`` (nodes), a = 0..11; NaN beyond the nodes.

    Pixels that lie on one fraction of a node need no interpolation where ``center`` puts them on nodes.
    """
    n, n_k = weights.shape
    if aligned:
        for j in range(n):
            i = int(np.rint(position[j] - center)) - 5
            if i < 0 or i + TAPS > values.shape[0]:
                out[:, j] = np.nan
                continue
            for a in range(0, TAPS, 4):
                s = t = u = v = 0.0
                for k in range(n_k):
                    x = weights[j, k]
                    s += x * values[i + a, k]
                    t += x * values[i + a + 1, k]
                    u += x * values[i + a + 2, k]
                    v += x * values[i + a + 3, k]
                out[a, j], out[a + 1, j], out[a + 2, j], out[a + 3, j] = s, t, u, v
        return
    sums = np.empty(TAPS + 8)  # one more than is needed, to be a multiple of four
    for j in range(n):
        q = position[j] - center
        i = int(np.floor(q))
        share = lagrange8(q - i)
        i -= 8
        if i < 0 or i + sums.size > values.shape[0]:
            out[:, j] = np.nan
            continue
        for b in range(0, sums.size, 4):
            s = t = u = v = 0.0
            for k in range(n_k):
                x = weights[j, k]
                s += x * values[i + b, k]
                t += x * values[i + b + 1, k]
                u += x * values[i + b + 2, k]
                v += x * values[i + b + 3, k]
            sums[b], sums[b + 1], sums[b + 2], sums[b + 3] = s, t, u, v
        for a in range(TAPS):
            total = 0.0
            for b in range(8):
                total += share[b] * sums[a + b]
            out[a, j] = total


def model_at(
    values: np.ndarray, log_wavelength: np.ndarray, position: np.ndarray, coefficients: Coefficients, shift: float
) -> np.ndarray:
    """Template (n,) at one shift (nodes) seen through an LSF; NaN beyond the nodes."""
    table = np.empty((TAPS, log_wavelength.size))
    weights = np.empty((log_wavelength.size, values.shape[1]))
    component_weights(log_wavelength, coefficients, weights)
    combine(values, weights, position, shift, False, table)
    return table[5]


@njit(cache=True, error_model="numpy", inline="always")
def lagrange8_derivative(t):
    """Derivatives of `lagrange8` by t."""
    x = (t + 3.0, t + 2.0, t + 1.0, t, t - 1.0, t - 2.0, t - 3.0, t - 4.0)
    factor = (
        -1.0 / 5040.0, 1.0 / 720.0, -1.0 / 240.0, 1.0 / 144.0, -1.0 / 144.0, 1.0 / 240.0, -1.0 / 720.0, 1.0 / 5040.0,
    )  # fmt: skip
    out = np.empty(8)
    for a in range(8):
        total = 0.0
        for b in range(8):
            if b != a:
                product = 1.0
                for c in range(8):
                    if c not in (a, b):
                        product *= x[c]
                total += product
        out[a] = factor[a] * total
    return out


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def spread(position, shift, weights, out):
    """Add pixels' weights (n,) to nodes (n_node,) by the shares with which a model at a shift is interpolated."""
    for j in range(position.size):
        q = position[j] - shift
        i = int(np.floor(q))
        share = lagrange8(q - i)
        for t in range(max(0, 3 - i), min(8, out.size + 3 - i)):
            out[i - 3 + t] += weights[j] * share[t]


def lag_transform(spectrum: np.ndarray, n_lag: int) -> np.ndarray:
    """What `sums_at_lags` needs of a template (n_node,)."""
    return np.conj(rfft(spectrum, next_fast_len(spectrum.size + n_lag, real=True)))


def sums_at_lags(transform: np.ndarray, on_nodes: np.ndarray, first_lag: int, n_lag: int) -> np.ndarray:
    """Sums (n_lag,) of a template times weights on nodes (n_node,) at every lag: what a kernel's values would add.

    Parameters
    ----------
    transform : ndarray
        `lag_transform` of the template, for as many lags or more; they must include 0.
    """
    size = next_fast_len(on_nodes.size + n_lag, real=True)
    sums = irfft(rfft(on_nodes, size) * transform, size)
    return sums[np.arange(first_lag, first_lag + n_lag)]
