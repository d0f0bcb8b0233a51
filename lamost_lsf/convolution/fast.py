"""The fast scatter convolution of flux alone, on a logarithmic grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lamost_lsf.convolution.axes import check_sampling
from lamost_lsf.convolution.loggrid import LogGrid, choose_refinement, kernel_table, read_out, spread_template
from lamost_lsf.convolution.matrix import needed_range
from lamost_lsf.convolution.nodes import tabulate
from lamost_lsf.convolution.response import constant_response, segment_edges
from lamost_lsf.lsf import LSF

__all__ = ["convolve_flux"]


def convolve_flux(
    flux: np.ndarray,
    w_in: np.ndarray,
    w_out: np.ndarray,
    lsf: LSF,
    center: str | Callable,
    *,
    max_masked: float = 1e-3,
    preserve: str = "flux",
) -> tuple[np.ndarray, np.ndarray]:
    """Convolve spectra without masks or uncertainties.

    The same integral as `ResolutionMatrix`, some ten times faster for a single use; a test holds the two together.

    Parameters
    ----------
    flux : ndarray (k, n_in)
        Finite.
    w_in, w_out : ndarray
        Vacuum Angstrom, increasing.
    lsf : LSF
    center : str or callable
    max_masked, preserve
        As in `ResolutionMatrix.apply`.

    Returns
    -------
    flux : ndarray (k, n_out)
        NaN where masked.
    mask : ndarray (n_out,)
        True where more than ``max_masked`` of the kernel falls beyond the template.
    """
    low, high = needed_range(lsf, w_in, w_out, center)
    first, last = np.searchsorted(w_in, (low, high))
    first, last = max(first - 1, 0), min(last + 2, w_in.size)
    w_in = w_in[first:last]
    tables = tabulate(lsf, max(low, w_in[0]), min(high, w_in[-1]), center=center)
    check_sampling(w_in, tables)
    refinement = choose_refinement(tables)
    kernels = [kernel_table(t, refinement) for t in tables]
    grid = LogGrid.covering(w_in[0], w_in[-1], refinement)
    index, bounds = segment_edges(w_in, tables)
    # the last row is a constant spectrum: what it becomes is known without the grid, and is what all is normalised to
    rows = np.zeros((len(tables), flux.shape[0] + 1, grid.size))
    for out, a, b in zip(rows, index[:-1], index[1:], strict=True):
        spread_template(w_in, flux[:, first:last], a, b, grid.step, grid.start, out)
    values = read_out(rows, grid, kernels, np.log(w_out))
    response = constant_response(tables, bounds, w_out)
    covered = values[-1]
    mask = ~((response.share <= max_masked) & (covered > 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (response.total if preserve == "flux" else 1.0) / covered
    return np.where(mask, np.nan, values[:-1] * scale), mask
