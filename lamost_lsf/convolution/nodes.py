"""An LSF tabulated at nodes of the true wavelength, fine enough that cubic interpolation between them is exact."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from lamost_lsf.errors import SamplingWarning
from lamost_lsf.lsf import LSF
from lamost_lsf.spline import uniform_coefficients

__all__ = ["LSFTable", "lagrange4", "lagrange4_derivative", "node_cubics", "node_position", "tabulate"]

#: Largest L1 difference (of unit-area profiles) between the LSF and its interpolation, at mid-nodes. The error of the
#: flux is this times the template's relative structure within the profile, so 4e-6 keeps it below 1e-6 for stars.
TOLERANCE = 4e-6
_FIRST_NODES = 17
_MAX_NODES = 2049


@njit(cache=True, error_model="numpy", inline="always")
def lagrange4(t):
    """Weights of the cubic through nodes 0, 1, 2, 3 at position t."""
    a, b, c, d = t, t - 1.0, t - 2.0, t - 3.0
    return -b * c * d / 6.0, a * c * d / 2.0, -a * b * d / 2.0, a * b * c / 6.0


@njit(cache=True, error_model="numpy", inline="always")
def lagrange4_derivative(t):
    """Derivatives of `lagrange4` by t."""
    a, b, c, d = t, t - 1.0, t - 2.0, t - 3.0
    return (
        -(c * d + b * d + b * c) / 6.0,
        (c * d + a * d + a * c) / 2.0,
        -(b * d + a * d + a * b) / 2.0,
        (b * c + a * c + a * b) / 6.0,
    )


@njit(cache=True, error_model="numpy", inline="always")
def node_position(s, s0, inverse_step, n_nodes):
    """First of the four nodes around s, and the position of s relative to it, in node steps.

    Positions may run a little outside the table: the end cubic then extrapolates.
    """
    p = (s - s0) * inverse_step
    i = int(np.floor(p)) - 1
    i = max(0, min(i, n_nodes - 4))
    return i, p - i


@njit(cache=True, error_model="numpy", inline="always")
def node_cubics(coefficients, i, inverse_ds, q0, q1, q2, q3):
    """Cubics in the position from node i, constant first (q0 ... q3 of size 2 n_k), for the c_k and then the -c_k'."""
    n_k = coefficients.shape[1]
    for k in range(n_k):
        a, b, c, d = coefficients[i, k], coefficients[i + 1, k], coefficients[i + 2, k], coefficients[i + 3, k]
        q0[k] = a
        q1[k] = (-11.0 * a + 18.0 * b - 9.0 * c + 2.0 * d) / 6.0
        q2[k] = (2.0 * a - 5.0 * b + 4.0 * c - d) / 2.0
        q3[k] = (-a + 3.0 * b - 3.0 * c + d) / 6.0
        q0[n_k + k], q1[n_k + k] = -inverse_ds * q1[k], -2.0 * inverse_ds * q2[k]
        q2[n_k + k], q3[n_k + k] = -3.0 * inverse_ds * q3[k], 0.0


@dataclass(frozen=True)
class LSFTable:
    """One smooth segment of an LSF at nodes uniform in ln(wavelength).

    Attributes
    ----------
    low, high : float
        True vacuum wavelengths, Angstrom, between which this segment holds (low <= w < high).
    nodes : ndarray (m,)
        Vacuum Angstrom, uniform in the logarithm.
    offset : ndarray (n,)
        Angstrom, uniform.
    profiles : ndarray (m, n)
        Unit area, per Angstrom.
    zero : ndarray (m,)
        Offset of the centre that is put at lag 0, Angstrom.
    """

    low: float
    high: float
    nodes: np.ndarray
    offset: np.ndarray
    profiles: np.ndarray
    zero: np.ndarray

    @cached_property
    def spline(self) -> np.ndarray:
        """Power-basis coefficients of the profiles (m, n - 1, 4); see `lamost_lsf.spline.uniform_coefficients`."""
        return uniform_coefficients(self.offset_step, self.profiles)

    @property
    def offset_step(self) -> float:
        """Step of the offsets, Angstrom."""
        return float((self.offset[-1] - self.offset[0]) / (self.offset.size - 1))

    @property
    def log_start(self) -> float:
        """Natural logarithm of the first node."""
        return float(np.log(self.nodes[0]))

    @property
    def log_step(self) -> float:
        """Step of the nodes in ln(wavelength)."""
        return float(np.log(self.nodes[-1] / self.nodes[0]) / (self.nodes.size - 1))

    @property
    def reach(self) -> tuple[float, float]:
        """Smallest and largest lag (Angstrom, observed minus true) at which any profile differs from 0."""
        return float(self.offset[0] - self.zero.max()), float(self.offset[-1] - self.zero.min())


def tabulate(
    lsf: LSF,
    low: float,
    high: float,
    *,
    center: str | Callable | None = None,
    tolerance: float = TOLERANCE,
) -> list[LSFTable]:
    """Tables of an LSF between two true wavelengths, one for each smooth segment that the range touches.

    The number of nodes is doubled until the profiles half-way between nodes agree with their interpolation to
    ``tolerance`` (L1) and the centres to ``tolerance`` of a profile's width.

    Parameters
    ----------
    lsf : LSF
    low, high : float
        Vacuum Angstrom.
    center : str or callable, optional
        Centre at lag 0; the LSF's own, else "zero", by default.
    tolerance : float

    Returns
    -------
    list of LSFTable
        In order of wavelength.

    Raises
    ------
    OutOfRangeError
        The LSF is not defined there.
    """
    # segment by segment a wavelength beyond the outermost segments would not be missed
    lsf._check_range(np.array([low, high]))
    spans = [(s.lsf, max(low, s.low), min(high, s.high)) for s in lsf.segments()]
    return [_tabulate_segment(part, a, b, center, tolerance) for part, a, b in spans if a < b]


def _tabulate_segment(lsf: LSF, low: float, high: float, center: str | Callable | None, tolerance: float) -> LSFTable:
    definition = center if center is not None else (lsf.center or "zero")
    # a range of zero length (one template pixel) still needs four nodes
    top = max(high, low * (1.0 + 1e-9))
    nodes = np.geomspace(low, top, _FIRST_NODES)
    nodes[0], nodes[-1] = low, top
    if top > lsf.wavelength_range[1]:
        nodes = np.clip(nodes, None, lsf.wavelength_range[1])
    profiles, zero = lsf.sample(nodes), lsf.zero_point(nodes, definition)
    step = lsf.offset[1] - lsf.offset[0]
    while True:
        if top <= low * (1.0 + 1e-8):
            return LSFTable(low, high, nodes, lsf.offset, profiles, zero)
        middle = np.sqrt(nodes[:-1] * nodes[1:])
        new_profiles, new_zero = lsf.sample(middle), lsf.zero_point(middle, definition)
        error = _middle_error(profiles, new_profiles) * step
        # a shift d of a profile changes it by about d / width in L1; 1 / peak is its width
        error_zero = _middle_error(zero[:, None], new_zero[:, None]) * new_profiles.max() if np.any(zero) else 0.0
        nodes = _interleave(nodes, middle)
        profiles = _interleave(profiles, new_profiles)
        zero = _interleave(zero, new_zero)
        # the new table's own error is 16 times less where the LSF is smooth, 4 times less where it has kinks
        if max(error, error_zero) <= 4.0 * tolerance:
            return LSFTable(low, high, nodes, lsf.offset, profiles, zero)
        if nodes.size >= _MAX_NODES:
            warnings.warn(
                f"the LSF between {low:.1f} and {high:.1f} A changes too fast with wavelength to be tabulated: "
                f"{nodes.size} nodes leave an L1 error of about {max(error, error_zero):.1e}",
                SamplingWarning,
                stacklevel=4,
            )
            return LSFTable(low, high, nodes, lsf.offset, profiles, zero)


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _middle_error(values, middle):
    """Largest L1 difference between rows half-way between nodes and the cubic through the four nodes around."""
    n = values.shape[0]
    worst = 0.0
    for j in range(n - 1):
        i = min(max(j - 1, 0), n - 4)
        a, b, c, d = lagrange4(j + 0.5 - i)
        v0, v1, v2, v3, true = values[i], values[i + 1], values[i + 2], values[i + 3], middle[j]
        total = 0.0
        for k in range(true.size):
            total += abs(a * v0[k] + b * v1[k] + c * v2[k] + d * v3[k] - true[k])
        worst = max(worst, total)
    return worst


def _interleave(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.empty((a.shape[0] + b.shape[0], *a.shape[1:]))
    out[::2], out[1::2] = a, b
    return out
