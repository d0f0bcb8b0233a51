"""`ResolutionMatrix`: the scatter integral written out as a sparse matrix, with variance and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
from numba import njit
from scipy import sparse
from specutils import Spectrum

from lamost_lsf.convolution.axes import (
    axis_angstrom,
    build_spectrum,
    check_sampling,
    extended_axis,
    flux_and_mask,
    variance_of,
)
from lamost_lsf.convolution.nodes import LSFTable, lagrange4, node_position, tabulate
from lamost_lsf.lsf import LSF, as_lsf
from lamost_lsf.profile import resolve_center
from lamost_lsf.spline import uniform_coefficients

__all__ = ["ResolutionMatrix"]


@njit(cache=True, error_model="numpy")
def _count(shifted, output, low, high):
    """Number of inputs whose window reaches each output, and the first of them; ``shifted`` increases."""
    first = np.searchsorted(shifted, output - high, side="left")
    last = np.searchsorted(shifted, output - low, side="right")
    return first, last


@njit(cache=True, error_model="numpy")
def _fill(
    wavelength,
    width,
    shifted,
    output,
    first,
    indptr,
    coefficients,
    x0,
    inverse_dx,
    n_cells,
    s0,
    inverse_ds,
    data,
):
    n_nodes = coefficients.shape[0]
    node = np.empty(wavelength.size, dtype=np.int64)
    weight = np.empty((wavelength.size, 4))
    for j in range(wavelength.size):
        i, t = node_position(np.log(wavelength[j]), s0, inverse_ds, n_nodes)
        node[j] = i
        a, b, c, d = lagrange4(t)
        weight[j, 0], weight[j, 1] = a * width[j], b * width[j]
        weight[j, 2], weight[j, 3] = c * width[j], d * width[j]
    for i in range(output.size):
        start = indptr[i]
        for k in range(indptr[i + 1] - start):
            j = first[i] + k
            p = (output[i] - shifted[j] - x0) * inverse_dx
            cell = min(max(int(p), 0), n_cells - 1)
            t = (p - cell) / inverse_dx
            value = 0.0
            for a in range(4):
                c = coefficients[node[j] + a, cell]
                value += weight[j, a] * (c[0] + t * (c[1] + t * (c[2] + t * c[3])))
            data[start + k] = value


def _table_matrix(table: LSFTable, wavelength: np.ndarray, width: np.ndarray, output: np.ndarray) -> sparse.csr_array:
    """CSR matrix of one segment: rows are output wavelengths, columns the given true wavelengths."""
    at, zero = np.clip(wavelength, table.nodes[0], table.nodes[-1]), table.zero
    if np.any(zero):
        # the centre varies slowly: interpolated as the profiles are
        shift = _interpolate_zero(np.log(at), table.log_start, 1.0 / table.log_step, zero)
    else:
        shift = np.zeros(wavelength.size)
    shifted = wavelength - shift
    x0, x1 = table.offset[0], table.offset[-1]
    first, last = _count(shifted, output, x0, x1)
    indptr = np.zeros(output.size + 1, dtype=np.int64)
    np.cumsum(last - first, out=indptr[1:])
    data = np.empty(indptr[-1])
    coefficients = uniform_coefficients(table.offset_step, table.profiles)
    n_cells = table.offset.size - 1
    _fill(
        at, width, shifted, output, first, indptr, coefficients, x0, n_cells / (x1 - x0), n_cells,
        table.log_start, 1.0 / table.log_step, data,
    )  # fmt: skip
    indices = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - first, last - first)
    index_dtype = np.int32 if indptr[-1] < 2**31 else np.int64
    return sparse.csr_array(
        (data, indices.astype(index_dtype), indptr.astype(index_dtype)), shape=(output.size, wavelength.size)
    )


@njit(cache=True, error_model="numpy")
def _interpolate_zero(s, s0, inverse_ds, zero):
    out = np.empty(s.size)
    for j in range(s.size):
        i, t = node_position(s[j], s0, inverse_ds, zero.size)
        a, b, c, d = lagrange4(t)
        out[j] = a * zero[i] + b * zero[i + 1] + c * zero[i + 2] + d * zero[i + 3]
    return out


class ResolutionMatrix:
    """Linear operator from a template's pixels to a spectrum's, by the scatter integral.

    ``F(w_i) = sum_j h(w_i - w_j; w_j) T(w_j) dw_j``: the kernel of the *true* wavelength, sampled at the output's
    wavelengths (an arc's profile already holds the pixel's response).

    Make one with `from_lsf`; it serves any number of templates on its input axis.

    Attributes
    ----------
    matrix : `scipy.sparse.csr_array` (n_out, n_in)
        Quadrature weights included.
    total : ndarray (n_out,)
        Response to a constant spectrum that extends beyond the template: ``integral h(w - w'; w') dw'``.
    total_absolute : ndarray (n_out,)
        The same with ``|h|``: what the share of masked kernel is measured against.
    input_axis, output_axis : `~astropy.units.Quantity`
        Vacuum wavelengths.
    center : str or callable
        Centre of the profile that sits at lag 0.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from lamost_lsf import GaussianIP, ResolutionMatrix
    >>> fine, coarse = np.arange(4980, 5020, 0.1) * u.AA, np.arange(4990, 5010, 1.0) * u.AA
    >>> matrix = ResolutionMatrix.from_lsf(GaussianIP(1800), fine, coarse)
    >>> matrix.shape
    (20, 400)
    >>> bool(np.all(np.abs(matrix.apply(np.ones(400)) - 1) < 3e-4))
    True
    """

    def __init__(
        self,
        matrix: sparse.csr_array,
        total: np.ndarray,
        total_absolute: np.ndarray,
        input_axis: u.Quantity,
        output_axis: u.Quantity,
        center: str | Callable,
    ) -> None:
        self.matrix = matrix
        self.total = total
        self.total_absolute = total_absolute
        self.input_axis = input_axis
        self.output_axis = output_axis
        self.center = center

    @classmethod
    def from_lsf(
        cls,
        lsf: LSF,
        input_axis: u.Quantity,
        output_axis: u.Quantity,
        center: str | Callable | None = None,
        *,
        medium: str = "vacuum",
    ) -> ResolutionMatrix:
        """Build the matrix.

        Parameters
        ----------
        lsf : LSF
            Or an IP model of wavelength only, or an `InstrumentalProfile` that holds everywhere.
        input_axis, output_axis : `~astropy.units.Quantity`
            Wavelengths of template and result, increasing, not necessarily uniform, in ``medium``.
        center : str or callable, optional
            Centre at lag 0; the LSF's own, else "zero", by default.
        medium : {"vacuum", "air"}
            Medium of both axes.

        Raises
        ------
        ValueError
            Axes that do not increase, hold non-finite values or do not overlap.
        OutOfRangeError
            The LSF is not defined where it is needed.
        """
        lsf = as_lsf(lsf)
        given_in, given_out = u.Quantity(input_axis), u.Quantity(output_axis)
        w_in = axis_angstrom(given_in, medium, "input_axis")
        w_out = axis_angstrom(given_out, medium, "output_axis")
        definition = resolve_center(center, {"wavelength_center": lsf.center})
        matrix, total, total_absolute = build_matrix(lsf, w_in, w_out, definition)
        return cls(matrix, total, total_absolute, w_in * u.AA, w_out * u.AA, definition)

    @property
    def shape(self) -> tuple[int, int]:
        """(number of output pixels, number of input pixels)."""
        return self.matrix.shape

    def __repr__(self) -> str:
        return (
            f"<ResolutionMatrix {self.shape[0]} x {self.shape[1]}, {self.matrix.nnz} entries, centre {self.center!r}>"
        )

    def apply(
        self,
        spectrum: Spectrum | u.Quantity | np.ndarray,
        *,
        mask: np.ndarray | None = None,
        max_masked: float = 1e-3,
        preserve: str = "flux",
    ) -> Any:
        """Convolve one or many spectra on the input axis.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`, `~astropy.units.Quantity` or ndarray, (..., n_in)
            A Spectrum's uncertainty and mask are propagated.
        mask : ndarray of bool, optional
            True where the input is bad (added to the spectrum's own and to non-finite flux).
        max_masked : float
            Largest share of an output pixel's kernel that may fall on bad or missing input; beyond it the pixel is NaN and
            masked, below it the rest is renormalised.
        preserve : {"flux", "continuum"}
            "continuum" divides by ``total``: a constant then stays exactly constant.

        Returns
        -------
        Spectrum, Quantity or ndarray, (..., n_out)
            Of the input's kind.
        """
        if preserve not in ("flux", "continuum"):
            raise ValueError(f"preserve must be 'flux' or 'continuum', got {preserve!r}")
        flux, unit, bad = flux_and_mask(spectrum, mask, self.shape[1])
        variance, kind = variance_of(spectrum)
        if variance is not None:
            bad = bad | ~np.isfinite(variance)
        lead = flux.shape[:-1]
        columns = np.where(bad, 0.0, flux).reshape(-1, self.shape[1]).T
        value = self.matrix @ columns
        scale = np.ones(self.shape[0])[:, None]
        reach = np.abs(self.total_absolute) > 0
        if np.any(bad):
            lost_columns = bad.reshape(-1, self.shape[1]).T.astype(np.float64)
            lost = self._absolute @ lost_columns
            good_area = self.matrix @ (1.0 - lost_columns)
        else:
            lost = np.zeros((self.shape[0], 1))
            good_area = np.asarray(self.matrix.sum(axis=1)).reshape(-1, 1)
        missing = self.total_absolute - np.asarray(self._absolute.sum(axis=1)).ravel()
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (lost + np.maximum(missing, 0.0)[:, None]) / self.total_absolute[:, None]
            scale = self.total[:, None] / good_area
        out_mask = ~(share <= max_masked) | ~reach[:, None]
        if preserve == "continuum":
            scale = scale / self.total[:, None]
        value = np.where(out_mask, np.nan, value * scale)
        shape = (*lead, self.shape[0])
        value, out_mask = value.T.reshape(shape), np.broadcast_to(out_mask, value.shape).T.reshape(shape)
        new_variance = None
        if variance is not None:
            columns = np.where(bad, 0.0, variance).reshape(-1, self.shape[1]).T
            squared = self.matrix.copy()
            squared.data = squared.data**2
            new_variance = ((squared @ columns) * scale**2).T.reshape(shape)
            new_variance = np.where(out_mask, np.nan, new_variance)
        if isinstance(spectrum, Spectrum):
            return build_spectrum(spectrum, value * unit, out_mask, new_variance, kind, self.output_axis, self.center)
        return value if unit is None else value * unit

    @property
    def _absolute(self) -> sparse.csr_array:
        absolute = self.matrix.copy()
        absolute.data = np.abs(absolute.data)
        return absolute


def build_matrix(
    lsf: LSF, w_in: np.ndarray, w_out: np.ndarray, center: str | Callable
) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """Matrix (n_out, n_in), response to a constant (n_out,) and the same with |h|; axes in vacuum Angstrom."""
    low, high = max(w_in[0], w_out[0] - _reach(lsf)), min(w_in[-1], w_out[-1] + _reach(lsf))
    if low >= high:
        raise ValueError(
            f"the template ({w_in[0]:.2f}-{w_in[-1]:.2f} A) does not reach the output axis "
            f"({w_out[0]:.2f}-{w_out[-1]:.2f} A)"
        )
    tables = tabulate(lsf, low, high, center=center)
    check_sampling(w_in, tables)
    # Pixels beyond the template, with the kernel of its end, say how much of an output pixel's kernel is missing.
    extended, n_left = extended_axis(w_in, w_out, tables)
    width = np.gradient(extended)
    total, total_absolute = np.zeros(w_out.size), np.zeros(w_out.size)
    blocks, covered = [], 0
    for k, table in enumerate(tables):
        begin = 0 if k == 0 else int(np.searchsorted(extended, table.low, side="left"))
        end = extended.size if k == len(tables) - 1 else int(np.searchsorted(extended, table.high, side="left"))
        block = _table_matrix(table, extended[begin:end], width[begin:end], w_out)
        total += np.asarray(block.sum(axis=1)).ravel()
        total_absolute += np.asarray(abs(block).sum(axis=1)).ravel()
        first, last = max(begin, n_left) - begin, min(end, n_left + w_in.size) - begin
        blocks.append(block[:, first:last] if (first, last) != (0, end - begin) else block)
        covered += last - first
    assert covered == w_in.size, "every template pixel belongs to exactly one segment"
    matrix = blocks[0] if len(blocks) == 1 else sparse.hstack(blocks, format="csr")
    return sparse.csr_array(matrix), total, total_absolute


def _reach(lsf: LSF) -> float:
    """Generous bound (Angstrom) on how far any profile reaches from its zero."""
    return max(float(np.ptp(s.lsf.offset)) for s in lsf.segments())
