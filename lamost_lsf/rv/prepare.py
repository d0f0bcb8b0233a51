"""From a spectrum, templates and options to the plain arrays that the engine works on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from specutils import Spectrum

from lamost_lsf.convolution.axes import axis_angstrom
from lamost_lsf.errors import CenterMismatchWarning
from lamost_lsf.lsf import LSF, as_lsf
from lamost_lsf.profile import resolve_center
from lamost_lsf.units import check_medium, to_angstrom

__all__ = [
    "SEGMENT_HALF_WIDTH",
    "Pixels",
    "center_name",
    "check_options",
    "check_templates",
    "inverse_variance",
    "lsf_of",
    "pixels_in_window",
    "velocity_limits",
    "window_limits",
]

#: Half-width of a segment around one wavelength (Liu et al. 2026, section 5.2), Angstrom.
SEGMENT_HALF_WIDTH = 150.0


@dataclass(frozen=True)
class Pixels:
    """Pixels of one window, from its first to its last usable one.

    Vacuum Angstrom, flux divided by ``scale`` to be of order 1, inverse variance of that (0 where unusable).
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    scale: float


def window_limits(
    window: u.Quantity | tuple[u.Quantity, u.Quantity] | None, wavelength: np.ndarray
) -> tuple[float, float]:
    """Window (low, high) in Angstrom.

    Parameters
    ----------
    window : Quantity (2,), pair of Quantity, scalar Quantity or None
        Limits; or a wavelength, for the paper's segment of 150 A either side; or None for all pixels.
    wavelength : ndarray
        The spectrum's pixels.
    """
    if window is None:
        return float(wavelength[0]), float(wavelength[-1])
    if isinstance(window, tuple | list):
        window = u.Quantity([to_angstrom(w, "each end of window") for w in window], u.AA)
    limits = to_angstrom(window, "window")
    if limits.ndim == 0:
        limits = limits + np.array([-SEGMENT_HALF_WIDTH, SEGMENT_HALF_WIDTH])
    if limits.shape != (2,) or not np.all(np.isfinite(limits)) or not limits[0] < limits[1]:
        raise ValueError(f"window must be one wavelength or two increasing ones, got {window}")
    if limits[1] <= wavelength[0] or limits[0] >= wavelength[-1]:
        raise ValueError(
            f"window {limits[0]:.1f}-{limits[1]:.1f} A does not overlap the spectrum "
            f"({wavelength[0]:.1f}-{wavelength[-1]:.1f} A)"
        )
    return float(limits[0]), float(limits[1])


def velocity_limits(velocity_range: u.Quantity | tuple[float, float]) -> tuple[float, float]:
    """Trial velocities (low, high), km/s; bare numbers are km/s.

    Raises
    ------
    TypeError
        Not two numbers, or a unit that is not one of velocity.
    ValueError
        Limits that do not increase, or beyond 30,000 km/s.
    """
    unit = u.km / u.s
    try:
        if not isinstance(velocity_range, u.Quantity):
            velocity_range = [v.to_value(unit) if isinstance(v, u.Quantity) else v for v in velocity_range]
        else:
            velocity_range = velocity_range.to_value(unit)
        low, high = (float(v) for v in velocity_range)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"velocity_range must be two velocities, e.g. (-500, 500) * u.km / u.s, got {velocity_range!r} ({error})"
        ) from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"velocity_range must be two increasing finite velocities, got {low} to {high} km/s")
    if max(abs(low), abs(high)) > 30_000:
        raise ValueError(f"velocity_range must stay within 30,000 km/s, got {low} to {high} km/s")
    return low, high


def pixels_in_window(
    spectrum: Spectrum, window: u.Quantity | tuple[u.Quantity, u.Quantity] | None
) -> tuple[Pixels, tuple[float, float]]:
    """Pixels of a spectrum inside a window, unusable ones (mask, ivar 0, non-finite) with inverse variance 0.

    Raises
    ------
    TypeError
        Not a Spectrum, or a kind of uncertainty that is not understood.
    ValueError
        No uncertainty, more than one spectrum, a bad axis, or a window beside the spectrum.
    """
    if not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum must be a specutils Spectrum, got {type(spectrum).__name__}")
    if spectrum.flux.ndim != 1:
        raise ValueError(f"spectrum must be one spectrum, got flux of shape {spectrum.flux.shape}")
    medium = check_medium(spectrum.meta.get("wavelength_medium") or "vacuum")
    wavelength = axis_angstrom(spectrum.spectral_axis, medium, "the spectrum's axis")
    low, high = window_limits(window, wavelength)
    here = (wavelength >= low) & (wavelength <= high)
    flux = np.asarray(spectrum.flux.value, dtype=np.float64)
    ivar = inverse_variance(spectrum)
    bad = ~np.isfinite(flux) | ~np.isfinite(ivar) | ~(ivar > 0)
    if spectrum.mask is not None:
        bad |= np.asarray(spectrum.mask, dtype=bool)
    wavelength, flux, ivar = wavelength[here], np.where(bad, 0.0, flux)[here], np.where(bad, 0.0, ivar)[here]
    good = np.flatnonzero(ivar)
    if not good.size:
        return Pixels(wavelength, flux, ivar, 1.0), (low, high)
    # neither templates nor LSF need reach unusable ends, and the polynomial is scaled to what there is
    ends = slice(good[0], good[-1] + 1)
    scale = float(np.median(np.abs(flux[good]))) or 1.0
    return Pixels(wavelength[ends], flux[ends] / scale, ivar[ends] * scale**2, scale), (low, high)


def inverse_variance(spectrum: Spectrum) -> np.ndarray:
    """Inverse variance of the flux, in its unit, of a spectrum; not cleaned."""
    uncertainty = spectrum.uncertainty
    if uncertainty is None:
        raise ValueError("the spectrum has no uncertainty; an RV error cannot be computed without one")
    array = np.asarray(uncertainty.array, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if isinstance(uncertainty, InverseVariance):
            ivar, power = array, -2
        elif isinstance(uncertainty, StdDevUncertainty):
            ivar, power = array**-2.0, 1
        elif isinstance(uncertainty, VarianceUncertainty):
            ivar, power = 1.0 / array, 2
        else:
            raise TypeError(
                "uncertainty must be an InverseVariance, StdDevUncertainty or VarianceUncertainty, "
                f"got {type(uncertainty).__name__}"
            )
    if uncertainty.unit is not None:
        factor = (1.0 * uncertainty.unit).to_value(spectrum.flux.unit**power)
        ivar = ivar * (factor if power == -2 else factor ** (-2.0 / power))
    return np.broadcast_to(ivar, spectrum.flux.shape)


def check_templates(templates: Spectrum | Sequence[Spectrum]) -> tuple[list[Spectrum], list[str]]:
    """Templates as a list, and a name for each: ``meta["name"]``, else its number."""
    templates = [templates] if isinstance(templates, Spectrum) else list(templates)
    if not templates:
        raise ValueError("give at least one template")
    for i, template in enumerate(templates):
        if not isinstance(template, Spectrum):
            raise TypeError(f"template {i} must be a specutils Spectrum, got {type(template).__name__}")
    names = [str(t.meta.get("name") or f"template {i}") for i, t in enumerate(templates)]
    return templates, names


def check_options(continuum: str, degree: int | None, cosmic_sigma: float | None) -> None:
    """Raise ValueError for options that make no sense."""
    if continuum not in ("ratio", "normalize"):
        raise ValueError(f"continuum must be 'ratio' or 'normalize', got {continuum!r}")
    whole = isinstance(degree, int | np.integer) and not isinstance(degree, bool)
    if degree is not None and not (whole and 0 <= degree <= 50):
        raise ValueError(f"degree must be a whole number from 0 to 50, got {degree!r}")
    if cosmic_sigma is not None and not (np.isreal(cosmic_sigma) and cosmic_sigma > 0):
        raise ValueError(f"cosmic_sigma must be a positive number or None, got {cosmic_sigma!r}")


def center_name(center: str | Callable) -> str:
    """Name of a centre definition, for records."""
    return center.lower() if isinstance(center, str) else getattr(center, "name", repr(center))


def lsf_of(lsf: Any, spectrum: Spectrum, center: str | Callable | None) -> tuple[LSF, str | Callable]:
    """LSF of a spectrum and the centre at lag 0; warns where that mixes two definitions.

    ``lsf`` may also be an archive (anything with ``lsf_for``), which is asked for this spectrum's.
    """
    if hasattr(lsf, "lsf_for"):
        lsf = lsf.lsf_for(spectrum)
    lsf = as_lsf(lsf)
    own = spectrum.meta.get("wavelength_center")
    definition = resolve_center(center, {"wavelength_center": lsf.center}, spectrum.meta)
    name = center_name(definition)
    if own is not None and name not in ("zero", center_name(own)) and center_name(own) != "zero":
        warnings.warn(
            f"the spectrum's wavelengths were calibrated with the centre {own!r}, the kernel has {name!r} at lag 0: "
            "the velocity is off by their difference",
            CenterMismatchWarning,
            stacklevel=3,
        )
    return lsf, definition
