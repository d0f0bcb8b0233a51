"""`ResolutionMatrix`: the scatter integral written out as a sparse matrix, with variance and masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
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
    flux_and_mask,
    pixel_edges,
    variance_of,
)
from lamost_lsf.convolution.nodes import LSFTable, lagrange4, node_position, tabulate
from lamost_lsf.convolution.response import Response, constant_response, segment_pixels
from lamost_lsf.lsf import LSF, as_lsf
from lamost_lsf.profile import resolve_center
from lamost_lsf.units import check_medium, to_vacuum_angstrom

__all__ = ["ResolutionMatrix"]


@njit(cache=True, error_model="numpy")
def _count(lower, upper, output, low, high):
    """First of the inputs with a part of their pixel in the window of each output, and the end of them."""
    first = np.searchsorted(upper, output - high, side="right")
    last = np.searchsorted(lower, output - low, side="left")
    return first, np.maximum(last, first)


@njit(cache=True, error_model="numpy")
def _fill(
    wavelength,
    width,
    shifted,
    lower,
    upper,
    output,
    first,
    indptr,
    coefficients,
    x0,
    x1,
    n_cells,
    s0,
    inverse_ds,
    data,
):
    n_nodes = coefficients.shape[0]
    inverse_dx = n_cells / (x1 - x0)
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
            # A pixel cut by an end of the window counts with its part inside, at the middle of that.
            low, high = max(output[i] - upper[j], x0), min(output[i] - lower[j], x1)
            if low > output[i] - upper[j] or high < output[i] - lower[j]:
                x, part = 0.5 * (low + high), (high - low) / (upper[j] - lower[j])
            else:
                x, part = output[i] - shifted[j], 1.0
            p = (x - x0) * inverse_dx
            cell = min(max(int(p), 0), n_cells - 1)
            t = (p - cell) / inverse_dx
            value = 0.0
            for a in range(4):
                c = coefficients[node[j] + a, cell]
                value += weight[j, a] * (c[0] + t * (c[1] + t * (c[2] + t * c[3])))
            data[start + k] = value * part


def _table_matrix(
    table: LSFTable, wavelength: np.ndarray, edges: np.ndarray, output: np.ndarray, begin: int, n_in: int
) -> sparse.csr_array:
    """CSR matrix (n_out, n_in) of one segment, whose pixels (k,) with edges (k + 1,) are columns from ``begin`` on."""
    at = np.clip(wavelength, table.nodes[0], table.nodes[-1])
    shifted, shifted_edges = wavelength, edges
    if np.any(table.zero):
        # the centre varies slowly: interpolated as the profiles are
        s0, inverse_ds = table.log_start, 1.0 / table.log_step
        shifted = wavelength - _interpolate_zero(np.log(at), s0, inverse_ds, table.zero)
        at_edges = np.clip(edges, table.nodes[0], table.nodes[-1])
        shifted_edges = edges - _interpolate_zero(np.log(at_edges), s0, inverse_ds, table.zero)
    lower, upper = shifted_edges[:-1], shifted_edges[1:]
    x0, x1 = table.offset[0], table.offset[-1]
    first, last = _count(lower, upper, output, x0, x1)
    indptr = np.zeros(output.size + 1, dtype=np.int64)
    np.cumsum(last - first, out=indptr[1:])
    data = np.empty(indptr[-1])
    n_cells = table.offset.size - 1
    _fill(
        at, np.diff(edges), shifted, lower, upper, output, first, indptr, table.spline, x0, x1, n_cells,
        table.log_start, 1.0 / table.log_step, data,
    )  # fmt: skip
    index_dtype = np.int32 if max(indptr[-1], n_in) < 2**31 else np.int64
    indices = np.empty(data.size, dtype=index_dtype)
    _fill_columns(indptr, first + begin, indices)
    return sparse.csr_array((data, indices, indptr.astype(index_dtype)), shape=(output.size, n_in))


@njit(cache=True, error_model="numpy")
def _fill_columns(indptr, first, indices):
    for i in range(first.size):
        for k in range(indptr[i + 1] - indptr[i]):
            indices[indptr[i] + k] = first[i] + k


@njit(cache=True, error_model="numpy")
def _interpolate_zero(s, s0, inverse_ds, zero):
    out = np.empty(s.size)
    for j in range(s.size):
        i, t = node_position(s[j], s0, inverse_ds, zero.size)
        a, b, c, d = lagrange4(t)
        out[j] = a * zero[i] + b * zero[i + 1] + c * zero[i + 2] + d * zero[i + 3]
    return out


@njit(cache=True, error_model="numpy")
def _masked_sums(indptr, indices, data, bad):
    """Per row: sum of good entries, sum of |entries| that are bad, sum of all |entries|."""
    n = indptr.size - 1
    good, lost, whole = np.zeros(n), np.zeros(n), np.zeros(n)
    for i in range(n):
        for k in range(indptr[i], indptr[i + 1]):
            size = abs(data[k])
            whole[i] += size
            if bad[indices[k]]:
                lost[i] += size
            else:
                good[i] += data[k]
    return good, lost, whole


@njit(cache=True, error_model="numpy")
def _squared_product(indptr, indices, data, rows, out):
    """``data**2 @ row`` of every row of (m, n_in), into (m, n_out), without a squared copy of the matrix."""
    for m in range(rows.shape[0]):
        for i in range(indptr.size - 1):
            total = 0.0
            for k in range(indptr[i], indptr[i + 1]):
                total += data[k] * data[k] * rows[m, indices[k]]
            out[m, i] = total


class ResolutionMatrix:
    """Linear operator from a template's pixels to a spectrum's, by the scatter integral.

    ``F(w_i) = sum_j h(w_i - w_j; w_j) T(w_j) dw_j``: the kernel of the *true* wavelength, sampled at the output's
    wavelengths (an arc's profile already holds the pixel's response).

    Make one with `from_lsf`; it serves any number of templates on its input axis.

    Attributes
    ----------
    matrix : `scipy.sparse.csr_array` (n_out, n_in)
        Quadrature weights included; the sum of a row that lies within the template is ``total``.
    total : ndarray (n_out,)
        Response to a constant spectrum that goes on beyond the template: ``integral h(w - w'; w') dw'``.
    missing_share : ndarray (n_out,)
        Share of each output pixel's kernel (in ``|h|``) that lies beyond the ends of the template.
    input_axis, output_axis : `~astropy.units.Quantity`
        As given to `from_lsf`.
    medium : {"vacuum", "air"}
        Medium of both axes.
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
        response: Response,
        input_axis: u.Quantity,
        output_axis: u.Quantity,
        center: str | Callable,
        medium: str = "vacuum",
    ) -> None:
        self.matrix = matrix
        self.total = response.total
        self.missing_share = response.share
        self.input_axis = input_axis
        self.output_axis = output_axis
        self.center = center
        self.medium = medium

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
        TypeError
            Axes without a unit of length.
        ValueError
            Axes that do not increase, hold non-finite values or do not overlap.
        OutOfRangeError
            The LSF is not defined where it is needed.
        """
        lsf, medium = as_lsf(lsf), check_medium(medium)
        given_in, given_out = u.Quantity(input_axis), u.Quantity(output_axis)
        w_in = axis_angstrom(given_in, medium, "input_axis")
        w_out = axis_angstrom(given_out, medium, "output_axis")
        definition = resolve_center(center, {"wavelength_center": lsf.center})
        matrix, response = build_matrix(lsf, w_in, w_out, definition)
        return cls(matrix, response, given_in, given_out, definition, medium)

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
            Largest share of an output pixel's kernel that may fall on bad or missing input; beyond it the pixel is NaN
            and masked, below it the rest is renormalised.
        preserve : {"flux", "continuum"}
            "continuum" divides by ``total``: a constant then stays exactly constant.

        Returns
        -------
        Spectrum, Quantity or ndarray, (..., n_out)
            Of the input's kind. Only a Spectrum has a mask of its own; in the others bad pixels are NaN.

        Raises
        ------
        ValueError
            A Spectrum on another axis than the matrix was made for, shapes that do not fit, unknown options.
        """
        check_options(max_masked, preserve)
        if isinstance(spectrum, Spectrum):
            self._check_axis(spectrum)
        flux, unit, bad = flux_and_mask(spectrum, mask, self.shape[1])
        variance, kind = variance_of(spectrum)
        value, out_mask, new_variance = self._apply(flux, bad, variance, max_masked, preserve)
        if isinstance(spectrum, Spectrum):
            return build_spectrum(
                spectrum, value * unit, out_mask, new_variance, kind, self.output_axis, self.center, self.medium
            )
        return value if unit is None else value * unit

    def _check_axis(self, spectrum: Spectrum) -> None:
        medium = spectrum.meta.get("wavelength_medium") or self.medium
        given = to_vacuum_angstrom(u.Quantity(spectrum.spectral_axis), medium, "the spectrum's axis")
        own = to_vacuum_angstrom(self.input_axis, self.medium)
        if given.shape != own.shape or not np.all(np.abs(given - own) <= 1e-8 * own):
            raise ValueError(
                f"the spectrum's axis ({given.size} pixels, {given[0]:.3f}-{given[-1]:.3f} A vacuum) is not the input "
                f"axis that this matrix was made for ({own.size} pixels, {own[0]:.3f}-{own[-1]:.3f} A vacuum)"
            )

    def _apply(
        self, flux: np.ndarray, bad: np.ndarray | None, variance: np.ndarray | None, max_masked: float, preserve: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Flux, mask and variance (..., n_out) of plain arrays (..., n_in)."""
        n_out, n_in = self.shape
        if variance is not None:
            worthless = ~np.isfinite(variance)
            bad = worthless if bad is None else bad | worthless
        shape = (*flux.shape[:-1], n_out)
        flux = flux.reshape(-1, n_in)
        if bad is not None:
            bad = bad.reshape(-1, n_in)
            flux = np.where(bad, 0.0, flux)
        scale, out_mask = self._scale_and_mask(bad, max_masked, preserve)
        # a product by a row is several times faster than by an array of one column
        value = (self.matrix @ flux[0])[None] if flux.shape[0] == 1 else (self.matrix @ flux.T).T
        value = np.where(out_mask, np.nan, value * scale).reshape(shape)
        new_variance = None
        if variance is not None:
            rows = np.where(bad, 0.0, variance.reshape(-1, n_in))
            new_variance = np.empty((rows.shape[0], n_out))
            _squared_product(self.matrix.indptr, self.matrix.indices, self.matrix.data, rows, new_variance)
            new_variance = np.where(out_mask, np.nan, new_variance * scale**2).reshape(shape)
        return value, np.broadcast_to(out_mask, value.reshape(-1, n_out).shape).reshape(shape), new_variance

    def _scale_and_mask(
        self, bad: np.ndarray | None, max_masked: float, preserve: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Factor that makes up for bad and missing input, and the pixels where that is too much: (1 or m, n_out)."""
        if bad is None or not np.any(bad):
            good_area, lost_share = self._area[None], np.zeros((1, 1))
        else:
            # the same mask for all spectra, the common case, is summed once
            rows = bad[:1] if np.all(bad == bad[:1]) else bad
            matrix = self.matrix
            sums = [_masked_sums(matrix.indptr, matrix.indices, matrix.data, row) for row in rows]
            good_area, lost, whole = (np.stack(part) for part in zip(*sums, strict=True))
            lost_share = lost / np.where(whole > 0, whole, 1.0)
        share = lost_share * (1.0 - self.missing_share) + self.missing_share
        out_mask = ~((share <= max_masked) & (good_area > 0.0))
        target = self.total if preserve == "flux" else 1.0
        return target / np.where(good_area > 0.0, good_area, 1.0), out_mask

    @cached_property
    def _area(self) -> np.ndarray:
        return np.asarray(self.matrix.sum(axis=1)).ravel()


def check_options(max_masked: float, preserve: str) -> None:
    """Raise ValueError for options of `convolve` and `ResolutionMatrix.apply` that do not exist."""
    if preserve not in ("flux", "continuum"):
        raise ValueError(f"preserve must be 'flux' or 'continuum', got {preserve!r}")
    if not 0 <= max_masked <= 1:
        raise ValueError(f"max_masked must be between 0 and 1, got {max_masked}")


def needed_range(lsf: LSF, w_in: np.ndarray, w_out: np.ndarray, center: str | Callable) -> tuple[float, float]:
    """True wavelengths, among the template's, whose kernels reach any output pixel.

    Raises
    ------
    ValueError
        The template does not reach the output axis.
    """
    segments = lsf.segments()
    # A kernel reaches from its first to its last offset; with another centre than offset 0 it is moved by less than its
    # window.
    before, after = (max(s.lsf.offset[-1] for s in segments), max(-s.lsf.offset[0] for s in segments))
    if not (isinstance(center, str) and center.lower() == "zero"):
        before = after = max(float(np.ptp(s.lsf.offset)) for s in segments)
    low, high = max(w_in[0], w_out[0] - max(before, 0.0)), min(w_in[-1], w_out[-1] + max(after, 0.0))
    if low >= high:
        raise ValueError(
            f"the template ({w_in[0]:.2f}-{w_in[-1]:.2f} A) does not reach the output axis "
            f"({w_out[0]:.2f}-{w_out[-1]:.2f} A)"
        )
    return float(low), float(high)


def build_matrix(
    lsf: LSF, w_in: np.ndarray, w_out: np.ndarray, center: str | Callable
) -> tuple[sparse.csr_array, Response]:
    """Matrix (n_out, n_in) and response to a constant (n_out,); axes in vacuum Angstrom."""
    tables = tabulate(lsf, *needed_range(lsf, w_in, w_out, center), center=center)
    check_sampling(w_in, tables)
    pixels = segment_pixels(w_in, tables)
    response = constant_response(tables, pixels, w_out)
    edges = pixel_edges(w_in)
    matrix = None
    for table, part in zip(tables, pixels, strict=True):
        here, cut = w_in[part.begin : part.end], np.clip(edges[part.begin : part.end + 1], part.low, part.high)
        if len(tables) > 1:
            # a pixel cut by a join counts in both segments, each part at its middle
            middle = 0.5 * (cut[1:] + cut[:-1])
            here = np.where(np.diff(cut) < np.diff(edges[part.begin : part.end + 1]), middle, here)
        block = _table_matrix(table, here, cut, w_out, part.begin, w_in.size)
        matrix = block if matrix is None else sparse.csr_array(matrix + block)
    # rows sum to the response exactly, whatever the template's sampling
    area = np.asarray(matrix.sum(axis=1)).ravel() + response.missing
    factor = response.total / np.where(area > 0, area, response.total)
    matrix.data *= np.repeat(factor, np.diff(matrix.indptr))
    return matrix, response
