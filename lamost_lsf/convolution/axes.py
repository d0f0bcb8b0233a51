"""Axes, masks, uncertainties: what goes in and out of a convolution."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance, NDUncertainty, StdDevUncertainty, VarianceUncertainty
from numba import njit
from specutils import Spectrum

from lamost_lsf.convolution.nodes import LSFTable
from lamost_lsf.errors import SamplingWarning
from lamost_lsf.units import to_vacuum_angstrom

__all__ = [
    "axis_angstrom",
    "build_spectrum",
    "check_sampling",
    "flux_and_mask",
    "lower_edge",
    "pixel_edges",
    "variance_of",
    "warn_coarse",
]


def axis_angstrom(axis: u.Quantity, medium: str, name: str) -> np.ndarray:
    """Vacuum Angstrom (n,) of an increasing, finite, positive wavelength axis.

    Raises
    ------
    TypeError
        Not a length (a frequency or velocity axis must be converted by the caller).
    ValueError
        Non-finite, not increasing, fewer than two pixels.
    """
    wavelength = np.atleast_1d(to_vacuum_angstrom(u.Quantity(axis), medium, name))
    if wavelength.ndim != 1 or wavelength.size < 2:
        raise ValueError(f"{name} must be one-dimensional with at least 2 pixels, got shape {wavelength.shape}")
    if _is_good(wavelength):
        return wavelength
    if not np.all(np.isfinite(wavelength)):
        raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(wavelength))} non-finite wavelengths")
    if np.any(np.diff(wavelength) <= 0):
        descending = "descends" if np.all(np.diff(wavelength) < 0) else "does not increase strictly"
        raise ValueError(f"{name} {descending}; sort the spectrum by wavelength first")
    raise ValueError(f"{name} holds wavelengths that are not positive")


@njit(cache=True, error_model="numpy")
def _is_good(wavelength):
    """Whether an axis is positive, finite and strictly increasing, in one pass; NaN fails every comparison."""
    good = wavelength[0] > 0.0 and wavelength[-1] < np.inf
    before, after = wavelength[:-1], wavelength[1:]
    for k in range(before.size):
        good &= after[k] > before[k]
    return good


@njit(cache=True, error_model="numpy", inline="always")
def lower_edge(wavelength, j):
    """Lower edge of pixel j, or the upper edge of the last for j = n: half-way between neighbours."""
    n = wavelength.size
    if j == 0:
        return 1.5 * wavelength[0] - 0.5 * wavelength[1]
    if j == n:
        return 1.5 * wavelength[n - 1] - 0.5 * wavelength[n - 2]
    return 0.5 * (wavelength[j - 1] + wavelength[j])


@njit(cache=True, error_model="numpy", fastmath={"reassoc"})
def _all_finite(values):
    """Whether no value is NaN or infinite: either makes the sum of zeros NaN."""
    total = 0.0
    for k in range(values.size):
        total += values[k] * 0.0
    return total == 0.0


def pixel_edges(wavelength: np.ndarray) -> np.ndarray:
    """Edges (n + 1,) of pixels at wavelengths (n,); see `lower_edge`."""
    inner = 0.5 * (wavelength[1:] + wavelength[:-1])
    first, last = 1.5 * wavelength[0] - 0.5 * wavelength[1], 1.5 * wavelength[-1] - 0.5 * wavelength[-2]
    return np.concatenate([[first], inner, [last]])


@njit(cache=True, error_model="numpy")
def _any_coarser(wavelength, limit):
    """Whether any pixel is wider than a limit; without a branch or a running maximum, it takes all at once."""
    found = False
    before, after = wavelength[:-1], wavelength[1:]
    for k in range(before.size):
        found |= after[k] - before[k] > limit
    return found


def check_sampling(w_in: np.ndarray, tables: list[LSFTable]) -> None:
    """Warn where the template is too coarse for its sum of samples to be the integral."""
    for table in tables:
        first, last = np.searchsorted(w_in, table.nodes[[0, -1]])
        here = w_in[first : last + 1]
        if here.size < 2:
            continue
        # 1 / peak of a unit-area profile is its equivalent width, 2.5 sigma for a Gaussian. The trapezoidal sum of a
        # Gaussian is exact to 3e-9 at a step of one sigma; some room is left for the template's own structure.
        width = 1.0 / float(table.profiles.max())
        if warn_coarse(here, width, " A"):
            return


def warn_coarse(axis: np.ndarray, width: float, unit: str) -> bool:
    """Warn where the largest pixel of an axis exceeds a third of a profile's equivalent width; whether it did."""
    if not _any_coarser(axis, width / 3.0):
        return False
    coarsest = float(np.max(np.diff(axis)))
    warnings.warn(
        f"the template's pixels (up to {coarsest:.3g}{unit}) are coarse for a profile of width {width:.3g}{unit}; "
        "interpolate the template to a finer grid for an exact convolution",
        SamplingWarning,
        stacklevel=5,
    )
    return True


def flux_and_mask(
    spectrum: Spectrum | u.Quantity | np.ndarray, mask: np.ndarray | None, n_pixel: int
) -> tuple[np.ndarray, u.UnitBase | None, np.ndarray | None]:
    """Flux (..., n) as float64, its unit (None for bare arrays), mask (..., n) of bad pixels (None: all are good)."""
    if isinstance(spectrum, Spectrum):
        axis = getattr(spectrum, "spectral_axis_index", None)
        flux = spectrum.flux
        if axis not in (None, flux.ndim - 1, -1):
            raise ValueError(
                f"the spectral axis must be the last axis of flux, it is axis {axis} of {flux.ndim}; "
                "make the Spectrum with move_spectral_axis='last'"
            )
        own = spectrum.mask
    else:
        flux, own = spectrum, None
    unit = flux.unit if isinstance(flux, u.Quantity) else None
    value = np.asarray(flux.value if unit is not None else flux, dtype=np.float64)
    if value.ndim < 1 or value.shape[-1] != n_pixel:
        raise ValueError(f"flux has {value.shape[-1] if value.ndim else 0} pixels on its last axis, the axis {n_pixel}")
    bad = None if _all_finite(value.ravel()) else ~np.isfinite(value)
    for extra in (own, mask):
        if extra is not None:
            extra = np.asarray(extra, dtype=bool)
            try:
                extra = np.broadcast_to(extra, value.shape)
            except ValueError:
                raise ValueError(f"mask of shape {extra.shape} does not fit flux of shape {value.shape}") from None
            if np.any(extra):
                bad = extra if bad is None else bad | extra
    return value, unit, bad


def variance_of(spectrum: Any) -> tuple[np.ndarray | None, type[NDUncertainty] | None]:
    """Variance of a Spectrum in the unit of its flux squared, and the class of its uncertainty.

    An inverse variance of 0 gives an infinite variance, which callers mask.
    """
    uncertainty = getattr(spectrum, "uncertainty", None) if isinstance(spectrum, Spectrum) else None
    if uncertainty is None:
        return None, None
    kinds = (StdDevUncertainty, VarianceUncertainty, InverseVariance)
    if not isinstance(uncertainty, kinds):
        raise TypeError(
            f"uncertainty must be one of {', '.join(k.__name__ for k in kinds)}, got {type(uncertainty).__name__}"
        )
    with np.errstate(divide="ignore"):
        variance = uncertainty.represent_as(VarianceUncertainty)
    value = np.asarray(variance.array, dtype=np.float64)
    if variance.unit is not None:
        value = (value * variance.unit).to_value(spectrum.flux.unit**2)
    value = np.broadcast_to(value, spectrum.flux.shape)
    return np.where(value < 0, np.inf, value), type(uncertainty)


def build_spectrum(
    template: Spectrum,
    flux: u.Quantity,
    mask: np.ndarray,
    variance: np.ndarray | None,
    kind: type[NDUncertainty] | None,
    spectral_axis: u.Quantity,
    center: str | Callable,
    medium: str,
) -> Spectrum:
    """Spectrum on a new axis with the template's meta, and with what was done recorded in it.

    Masked pixels have NaN flux and no weight: NaN variance or standard deviation, inverse variance 0.
    """
    uncertainty = None
    if variance is not None:
        if kind is not None and issubclass(kind, InverseVariance):
            with np.errstate(divide="ignore", invalid="ignore"):
                inverse = np.where(mask, 0.0, 1.0 / variance)
            uncertainty = InverseVariance(inverse, unit=flux.unit**-2)
        elif kind is not None and issubclass(kind, StdDevUncertainty):
            uncertainty = StdDevUncertainty(np.sqrt(variance), unit=flux.unit)
        else:
            uncertainty = VarianceUncertainty(variance, unit=flux.unit**2)
    name = center if isinstance(center, str) else getattr(center, "name", repr(center))
    meta = {**template.meta, "kernel_center": name, "wavelength_medium": medium}
    return Spectrum(flux=flux, spectral_axis=spectral_axis, mask=mask, uncertainty=uncertainty, meta=meta)
