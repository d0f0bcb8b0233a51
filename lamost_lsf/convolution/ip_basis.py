"""Orthonormal bases of instrumental profiles: a family of them has low rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import astropy.units as u
import numpy as np

from lamost_lsf.convolution.edges import jump_error
from lamost_lsf.convolution.kernels import KernelTable, choose_refinement, kernel_table
from lamost_lsf.convolution.loggrid import LogGrid
from lamost_lsf.convolution.nodes import LSFTable, tabulate
from lamost_lsf.lsf import LSF, as_lsf
from lamost_lsf.profile import resolve_center

__all__ = ["Coefficients", "IPBasis"]


@dataclass(frozen=True)
class Coefficients:
    """One LSF in terms of an `IPBasis`.

    Attributes
    ----------
    values : tuple of ndarray (n_node, n_component)
        One array a smooth segment of the LSF.
    boundaries : tuple of float
        Wavelengths (vacuum Angstrom) between segments; an observed pixel uses the segment that it lies in.
    log_start, log_step : tuple of float
        Nodes of ln(wavelength) of every segment.
    residual : float
        Largest L1 difference between a unit-area kernel and what the expansion makes of it (components left out, cubic
        interpolation between nodes, derivatives beyond the first), and what the jumps at the ends of the profile's
        window cost on the grid. For a template between 0 and 1 it bounds the error of the flux, but for that of the
        grid itself (1e-6).
    center : str or callable
        Centre at lag 0.
    """

    values: tuple[np.ndarray, ...]
    boundaries: tuple[float, ...]
    log_start: tuple[float, ...]
    log_step: tuple[float, ...]
    residual: float
    center: str | Callable


class IPBasis:
    """Orthonormal basis of the kernels of a family of LSFs, on a logarithmic wavelength grid.

    Make one with `from_lsfs`; sample the family well (some tens of times and fibres of a model): the basis then serves
    all of it. `Coefficients.residual` says how well any other LSF is expressed.

    Attributes
    ----------
    components : ndarray (n_component, n_lag)
        Orthonormal rows at lags ``(first_lag + k) * step``.
    wavelength_range : tuple of float
        Observed vacuum Angstrom that the basis is for.
    first_lag : int
    refinement : int
        Nodes per 1e-4 in log10(wavelength).
    n_nodes : int
        Wavelengths at which an LSF is sampled, a smooth segment.
    center : str, callable or None
        Centre that the basis was made for; what ``center=None`` means in `coefficients`.
    width : float
        Equivalent width (1 / peak) of the narrowest kernel, in ln(wavelength).

    Examples
    --------
    >>> from lamost_lsf import GaussianIP, IPBasis
    >>> family = [GaussianIP(power).at() for power in (1700, 1750, 1800, 1850, 1900)]
    >>> basis = IPBasis.from_lsfs(family, (4000, 5000))
    >>> basis.coefficients(GaussianIP(1777).at()).residual < 1e-5
    True
    """

    def __init__(
        self,
        components: np.ndarray,
        first_lag: int,
        refinement: int,
        wavelength_range: tuple[float, float],
        n_nodes: int,
        center: str | Callable | None = None,
        width: float = np.inf,
    ) -> None:
        self.center = center
        self.width = float(width)
        self.components = np.ascontiguousarray(components)
        self.first_lag = int(first_lag)
        self.refinement = int(refinement)
        self.wavelength_range = wavelength_range
        self.n_nodes = int(n_nodes)

    @property
    def n_components(self) -> int:
        """Number of components."""
        return self.components.shape[0]

    def __repr__(self) -> str:
        low, high = self.wavelength_range
        return f"<IPBasis of {self.n_components} components, {low:.0f}-{high:.0f} A>"

    @classmethod
    def from_lsfs(
        cls,
        lsfs: LSF | Sequence[LSF],
        wavelength_range: u.Quantity | tuple[float, float],
        *,
        center: str | Callable | None = None,
        tolerance: float = 1e-6,
        max_components: int = 64,
    ) -> IPBasis:
        """Basis by singular value decomposition of the kernels of some LSFs.

        Parameters
        ----------
        lsfs : LSF or sequence of LSF
            Representative of all that will be used.
        wavelength_range : Quantity or tuple
            Observed wavelengths (vacuum; bare numbers are Angstrom) to be covered.
        center : str or callable, optional
            Centre at lag 0; each LSF's own, else "zero", by default. A basis made with one centre also expresses others
            when the family's shifts span the difference; check the residual.
        tolerance : float
            Largest L1 error of a unit-area profile that is left out.
        max_components : int
            Most components that are kept, even where they leave more than ``tolerance``.

        Raises
        ------
        ValueError
            No LSFs, or a range that is not two increasing wavelengths.
        OutOfRangeError
            An LSF that is not defined over the range.
        """
        lsfs = [as_lsf(x) for x in (lsfs if isinstance(lsfs, (list, tuple)) else [lsfs])]
        if not lsfs:
            raise ValueError("give at least one LSF")
        if not tolerance > 0 or max_components < 1:
            raise ValueError(
                f"tolerance must be positive and max_components at least 1, got {tolerance} and {max_components}"
            )
        low, high = _range(wavelength_range)
        tables = [t for lsf in lsfs for t in _tables(lsf, low, high, center)]
        refinement = max(choose_refinement([t]) for t in tables)
        kernels = [kernel_table(t, refinement) for t in tables]
        first = min(k.first_lag for k in kernels)
        last = max(k.first_lag + k.kernels.shape[1] for k in kernels)
        rows = np.concatenate([_padded(k, first, last - first) for k in kernels])
        step = LogGrid(refinement, 0, 1).step
        rows = rows * step  # unit sum, so that tolerances are in L1
        _, _, vt = np.linalg.svd(rows, full_matrices=False)
        limit = min(max_components, vt.shape[0])
        # the smallest number of components that leaves every profile within the tolerance
        projection = rows @ vt.T
        count = limit
        for k in range(1, limit + 1):
            if np.abs(rows - projection[:, :k] @ vt[:k]).sum(axis=1).max() <= tolerance:
                count = k
                break
        n_nodes = max(t.nodes.size for t in tables)
        width = 1.0 / max(float(k.kernels.max()) for k in kernels)
        return cls(vt[:count], first, refinement, (low, high), n_nodes, center, width)

    def coefficients(self, lsf: LSF, *, center: str | Callable | None = None) -> Coefficients:
        """Express an LSF in this basis.

        Parameters
        ----------
        lsf : LSF
        center : str or callable, optional
            Centre at lag 0; the basis's, else the LSF's own, else "zero", by default.

        Raises
        ------
        ValueError
            The LSF reaches over lags that the basis does not have.
        OutOfRangeError
            The LSF is not defined over the basis's range.
        """
        lsf = as_lsf(lsf)
        center = center if center is not None else self.center
        low, high = self.wavelength_range
        values, starts, steps, boundaries, worst = [], [], [], [], 0.0
        grid_step = LogGrid(self.refinement, 0, 1).step
        for table in _tables(lsf, low, high, center, self.n_nodes):
            kernel = kernel_table(table, self.refinement)
            rows = _padded(kernel, self.first_lag, self.components.shape[1])
            value = rows @ self.components.T
            left_out = float(np.abs(rows - value @ self.components).sum(axis=1).max() * grid_step)
            jump = jump_error([table], self.refinement)
            worst = max(worst, left_out + self._expansion_error(value, kernel.log_step) + jump)
            values.append(np.ascontiguousarray(value))
            starts.append(kernel.log_start)
            steps.append(kernel.log_step)
            boundaries.append(table.high)
        definition = resolve_center(center, {"wavelength_center": lsf.center})
        return Coefficients(tuple(values), tuple(boundaries[:-1]), tuple(starts), tuple(steps), worst, definition)

    def _expansion_error(self, value: np.ndarray, log_step: float) -> float:
        """L1 error of interpolating coefficients (m, n_component) between nodes, and of the derivatives left out."""
        grid_step = LogGrid(self.refinement, 0, 1).step
        lag = (self.first_lag + np.arange(self.components.shape[1])) * grid_step
        second = np.diff(value, 2, axis=0) / log_step**2
        curved = float(np.abs(second @ (0.5 * lag**2 * self.components)).sum(axis=1).max())
        if value.shape[0] < 7:
            return float(curved * grid_step)
        # A node seen from its neighbours at one and three steps: cubic interpolation at twice the step, whose error is
        # 16 times that between nodes, or 4 times where the LSF has kinks.
        guess = (9.0 * (value[2:-4] + value[4:-2]) - (value[:-6] + value[6:])) / 16.0
        coarse = float(np.abs((guess - value[3:-3]) @ self.components).sum(axis=1).max())
        return float((curved + coarse / 8.0) * grid_step)


def _range(wavelength_range: u.Quantity | tuple[float, float]) -> tuple[float, float]:
    if isinstance(wavelength_range, u.Quantity):
        wavelength_range = wavelength_range.to_value(u.AA)
    low, high = (float(w) for w in wavelength_range)
    if not 0 < low < high < np.inf:
        raise ValueError(f"wavelength_range must be two increasing wavelengths, got {wavelength_range}")
    return low, high


def _tables(
    lsf: LSF, low: float, high: float, center: str | Callable | None, n_nodes: int | None = None
) -> list[LSFTable]:
    """Tables of an LSF over a range; with ``n_nodes`` at fixed nodes, without the search for how many are needed."""
    if n_nodes is None:
        return tabulate(lsf, low, high, center=center)
    lsf._check_range(np.array([low, high]))
    tables = []
    for segment in lsf.segments():
        a, b = max(low, segment.low), min(high, segment.high)
        if a < b:
            inner = segment.lsf
            definition = center if center is not None else (inner.center or "zero")
            nodes = np.geomspace(a, b, n_nodes)
            nodes[0], nodes[-1] = a, b
            profiles = inner.sample(nodes)
            tables.append(LSFTable(a, b, nodes, inner.offset, profiles, inner.zero_point(nodes, definition)))
    return tables


def _padded(kernel: KernelTable, first: int, size: int) -> np.ndarray:
    """Kernels on another range of lags; refuses to cut off anything that matters."""
    rows = np.zeros((kernel.kernels.shape[0], size))
    begin = kernel.first_lag - first
    a, b = max(begin, 0), min(begin + kernel.kernels.shape[1], size)
    inner = kernel.kernels[:, a - begin : b - begin]
    lost = np.abs(kernel.kernels).sum() - np.abs(inner).sum()
    if lost > 1e-7 * np.abs(inner).sum():
        raise ValueError("the LSF reaches further than the profiles that the basis was made from")
    rows[:, a:b] = inner
    return rows
