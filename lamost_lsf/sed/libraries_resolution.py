"""Lower the resolution of many spectra at once with a Gaussian whose width is the difference of two."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import astropy.units as u
import numpy as np
from scipy.interpolate import CubicSpline

from lamost_lsf.convolution import ResolutionMatrix
from lamost_lsf.errors import SamplingWarning
from lamost_lsf.models import GaussianIP
from lamost_lsf.sed.grids import WavelengthGrid, scale_sed

if TYPE_CHECKING:
    from lamost_lsf.sed.libraries_base import Library

__all__ = ["degrade_rows", "scaled_seds"]

#: Input pixels per FWHM of the kernel; below three the sampled kernel is no longer a Gaussian.
_PIXELS = 3.0
#: How much finer than the library's own pixels its spline may be sampled for that.
_MAX_REFINE = 8
#: A target this much finer than the library's own width is taken for equal: widths of libraries are known no better.
#: MILES has 2.5 A by its authors and 2.51 A by Falcón-Barroso et al. (2011).
_SLACK = 5e-3
_ROWS = 128


def degrade_rows(
    wavelength: np.ndarray,
    flux: np.ndarray,
    own: np.ndarray | None,
    axis: np.ndarray,
    target: Callable[[np.ndarray], np.ndarray],
    name: str,
) -> np.ndarray:
    """Flux (n, n_out) of spectra (n, n_pix) of FWHM ``own`` (n_pix,) brought to FWHM ``target``, Angstrom.

    Raises
    ------
    ValueError
        A target finer than the spectra.
    """
    if axis.ndim != 1 or axis.size < 2 or not np.all(np.diff(axis) > 0) or not np.all(np.isfinite(axis)):
        raise ValueError("spectral_axis must be a finite, increasing vector of two or more wavelengths")
    wanted = target(wavelength)
    have = np.zeros_like(wavelength) if own is None else np.asarray(own, dtype=np.float64)
    if not np.all(np.isfinite(have)):
        # outside the coverage of the star
        good = np.isfinite(have)
        have = np.interp(wavelength, wavelength[good], have[good]) if good.any() else np.zeros_like(have)
    # only where it is asked for: beyond the result's ends nothing is needed but the reach of the kernel
    reach = 3.0 * np.max(target(axis))
    used = (wavelength >= axis[0] - reach) & (wavelength <= axis[-1] + reach)
    finer = used & (wanted < have * (1.0 - _SLACK))
    if finer.any():
        i = int(np.flatnonzero(finer)[0])
        raise ValueError(
            f"library {name} has FWHM {have[i]:.2f} A at {wavelength[i]:.0f} A (R = {wavelength[i] / have[i]:.0f}): it "
            f"cannot be brought to {wanted[i]:.2f} A (R = {wavelength[i] / wanted[i]:.0f})"
        )
    kernel = np.sqrt(np.clip(wanted**2 - have**2, 0.0, None))
    pixel = np.gradient(wavelength)
    smallest = np.min((kernel / pixel)[used & (kernel > 0)], initial=np.inf)
    refine = int(np.clip(np.ceil(_PIXELS / smallest), 1, _MAX_REFINE)) if np.isfinite(smallest) else 1
    fine = wavelength
    if refine > 1:
        fine = np.interp(np.arange((wavelength.size - 1) * refine + 1) / refine, np.arange(wavelength.size), wavelength)
    # narrower kernels than this change nothing that the pixels could show: there the spline itself is the answer
    least = _PIXELS * pixel / refine
    narrow = np.interp(axis, wavelength, kernel) < np.interp(axis, wavelength, least)
    out = np.full((flux.shape[0], axis.size), np.nan)
    inside = (axis >= wavelength[0]) & (axis <= wavelength[-1])
    if not inside.any():
        return out
    matrix = None
    if not np.all(narrow[inside]):
        width = np.maximum(kernel, least)

        def power(w: np.ndarray) -> np.ndarray:
            return w / np.interp(w, wavelength, width)

        span = (wavelength[0] * 0.98, wavelength[-1] * 1.02)
        with warnings.catch_warnings():
            # the kernel starts from nothing where the target leaves the library's own width: 1e-3 of a kernel that
            # is itself a correction
            warnings.simplefilter("ignore", SamplingWarning)
            matrix = ResolutionMatrix.from_lsf(
                GaussianIP(power, wavelength_range=span), fine * u.AA, axis[inside] * u.AA, center="zero"
            )
    for start in range(0, flux.shape[0], _ROWS):
        rows = np.asarray(flux[start : start + _ROWS], dtype=np.float64)
        bad = ~np.isfinite(rows)
        if bad.any():
            rows = np.stack([_filled(wavelength, row, ~b) for row, b in zip(rows, bad, strict=True)])
        spline = CubicSpline(wavelength, rows, axis=1) if refine > 1 or narrow.any() else None
        if matrix is not None:
            mask = None
            values = spline(fine) if refine > 1 else rows
            if bad.any():
                nearest = np.clip(np.round(np.arange(fine.size) / refine).astype(int), 0, wavelength.size - 1)
                mask = bad[:, nearest] if refine > 1 else bad
            out[start : start + _ROWS, inside] = matrix.apply(values, mask=mask, preserve="continuum")
        if narrow.any():
            at = narrow & inside
            values = spline(axis[at])
            right = np.clip(np.searchsorted(wavelength, axis[at]), 1, wavelength.size - 1)
            values[bad[:, right] | bad[:, right - 1]] = np.nan
            part = out[start : start + _ROWS]
            part[:, at] = values
    return out


def scaled_seds(library: Library, grid: WavelengthGrid) -> tuple[np.ndarray, np.ndarray]:
    """SEDs (n, n_grid) of a library at a grid's resolution, scaled (`scale_sed`), and what each was divided by (n,).

    Raises
    ------
    ValueError
        A SED that is not positive.
    """
    flux = library.degrade(grid.spectral_axis, resolving_power=grid.resolving_power).flux
    sed, reference = scale_sed(flux, grid)
    negative = (sed <= 0).any(axis=1)
    if negative.any():
        raise ValueError(
            f"{negative.sum()} of {len(library)} SEDs of library {library.name} have flux that is not positive; drop "
            "them with library[library.positive(low, high)]"
        )
    return sed, reference


def _filled(wavelength: np.ndarray, row: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Row with its gaps bridged, so that a spline does not ring about them; they are masked all the same."""
    return np.interp(wavelength, wavelength[good], row[good]) if good.any() else np.zeros_like(row)
