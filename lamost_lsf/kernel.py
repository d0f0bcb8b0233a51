"""Convolution kernels for astropy and specutils, made from sampled profiles."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
from astropy.convolution import Kernel1D

from lamost_lsf.errors import SamplingWarning
from lamost_lsf.spline import SplineFamily, quadrature_weights
from lamost_lsf.units import to_angstrom

__all__ = ["IPKernel", "axis_sampling", "kernel_from_samples"]

#: Largest departure from a uniform step that still counts as uniform, in steps: a kernel misplaced by 1e-3 of a pixel
#: is harmless. An axis of float32 numbers may depart by their rounding as well (2e-4 of a pixel at low resolution, but
#: 4e-3 at medium).
UNIFORM_TOLERANCE = 1e-3
#: Largest departure from 1 of a kernel's area on its pixels that passes without a warning: a Gaussian whose FWHM is one
#: pixel has it.
AREA_TOLERANCE = 5e-2


class IPKernel(Kernel1D):
    """Instrumental profile on a spectrum's own pixels, usable wherever astropy takes a kernel.

    Odd length, unit sum, lag 0 (the chosen centre of the profile) at ``array.size // 2``.

    Parameters
    ----------
    array : ndarray (n,)
        Kernel, n odd.
    meta : dict, optional
        ``center``, ``wavelength`` (vacuum Angstrom or None), ``step``, ``sampling`` ("linear", Angstrom per pixel, or
        "log", natural logarithm per pixel).
    """

    # A measured profile may have small negative samples; only bool and separable are asked of a kernel.
    _is_bool = False
    _separable = False

    def __init__(self, array: np.ndarray, meta: dict[str, Any] | None = None) -> None:
        super().__init__(array=np.asarray(array, dtype=np.float64))
        self.meta = dict(meta or {})


def axis_sampling(spectral_axis: u.Quantity) -> tuple[str, float]:
    """Whether a wavelength axis is uniform in wavelength ("linear") or in its logarithm ("log"), and its step.

    Parameters
    ----------
    spectral_axis : `~astropy.units.Quantity`
        Wavelengths, at least three, increasing.

    Returns
    -------
    sampling : {"linear", "log"}
    step : float
        Angstrom per pixel, or natural logarithm per pixel.

    Raises
    ------
    ValueError
        An axis that is neither, that does not increase, or that holds non-finite values.
    """
    axis = np.atleast_1d(to_angstrom(u.Quantity(spectral_axis), "spectral_axis"))
    if axis.ndim != 1 or axis.size < 3:
        raise ValueError("spectral_axis must be one-dimensional with at least 3 pixels")
    if not np.all(np.isfinite(axis)):
        raise ValueError("spectral_axis holds non-finite wavelengths")
    if np.any(np.diff(axis) <= 0):
        raise ValueError("spectral_axis must increase strictly; reverse a descending spectrum first")
    if axis[0] <= 0:
        raise ValueError("spectral_axis holds wavelengths that are not positive")
    pixel = np.arange(axis.size)
    given = np.atleast_1d(u.Quantity(spectral_axis).value)
    single = np.array_equal(given, given.astype(np.float32))
    rounding = np.spacing(np.float32(given[-1])) / given[-1] * axis[-1] if single else 0.0
    worst = {}
    for sampling, values in (("linear", axis), ("log", np.log(axis))):
        step = (values[-1] - values[0]) / (axis.size - 1)
        worst[sampling] = np.max(np.abs((values - values[0]) / step - pixel))
        pixel_width = step if sampling == "linear" else step * axis[0]
        if worst[sampling] <= UNIFORM_TOLERANCE + rounding / pixel_width:
            return sampling, float(step)
    raise ValueError(
        "spectral_axis is uniform neither in wavelength nor in its logarithm (it departs by "
        f"{worst['linear']:.3g} and {worst['log']:.3g} pixels); resample it, or use lamost_lsf.convolve, "
        "which takes any axis"
    )


def kernel_from_samples(
    offset: np.ndarray,
    flux: np.ndarray,
    *,
    zero: float = 0.0,
    center: str | Callable = "zero",
    wavelength: float | None = None,
    dispersion: u.Quantity | None = None,
    spectral_axis: u.Quantity | None = None,
) -> IPKernel:
    """Kernel of one sampled profile on linear or logarithmic pixels.

    Parameters
    ----------
    offset, flux : ndarray (n,)
        Offsets (Angstrom, observed minus true) and profile.
    zero : float
        Offset (Angstrom) that is put at lag 0.
    center : str or callable
        Definition that ``zero`` came from, recorded in ``meta``.
    wavelength : float, optional
        True vacuum wavelength, Angstrom; needed on a logarithmic axis.
    dispersion, spectral_axis : `~astropy.units.Quantity`
        Exactly one: a linear pixel width, or an axis.

    Returns
    -------
    IPKernel

    Raises
    ------
    ValueError
        Not exactly one of ``dispersion`` and ``spectral_axis``, an axis that is not uniform, a logarithmic one without
        a wavelength, or a profile without area around ``zero``.

    Warns
    -----
    SamplingWarning
        Pixels too coarse for the profile: its area on them is off by more than 5 %.
    """
    if (dispersion is None) == (spectral_axis is None):
        raise ValueError("give exactly one of dispersion=... and spectral_axis=...")
    if dispersion is not None:
        sampling, step = "linear", float(to_angstrom(dispersion, "dispersion"))
        if not (np.isfinite(step) and step > 0):
            raise ValueError(f"dispersion must be a positive length, got {dispersion}")
    else:
        sampling, step = axis_sampling(spectral_axis)
        if sampling == "log" and wavelength is None:
            raise ValueError("a logarithmic axis needs the wavelength of the kernel: pass at=...")
    if wavelength is not None and not (np.isfinite(wavelength) and wavelength > 0):
        raise ValueError(f"the wavelength of the kernel must be positive and finite, got {wavelength} A")
    if not np.all(np.isfinite(flux)):
        raise ValueError("the profile holds non-finite samples")
    low, high = offset[0] - zero, offset[-1] - zero
    if not low < 0 < high:
        raise ValueError(f"the centre {zero:+.3f} A lies outside the profile's window")
    reach = max(-low, high)
    if sampling == "linear":
        half = int(np.ceil(reach / step))
        lag = np.arange(-half, half + 1) * step
    else:
        # exp grows faster to the red, so the blue side decides how many pixels reach the window's end
        half = int(np.ceil(max(np.log1p(high / wavelength), -np.log1p(low / wavelength)) / step))
        lag = wavelength * np.expm1(np.arange(-half, half + 1) * step)
    array = SplineFamily(offset, flux)(lag + zero)
    total = array.sum()
    if not (np.isfinite(total) and total > 0):
        raise ValueError("the profile has no positive finite area on these pixels")
    # A source of 1 gives each pixel h times the pixel's own width. The sum is the area unless pixels are so coarse that
    # they miss the profile's structure.
    width = step if sampling == "linear" else (wavelength + lag) * step
    area = float(flux @ quadrature_weights(offset))
    if not abs(np.sum(array * width) / area - 1.0) <= AREA_TOLERANCE:
        warnings.warn(
            f"pixels of {np.max(width):.3g} A are too coarse for this profile: the area of the kernel is "
            f"{np.sum(array * width) / area:.3f} of the profile's before normalisation",
            SamplingWarning,
            stacklevel=3,
        )
    name = center if isinstance(center, str) else getattr(center, "name", repr(center))
    meta = {"center": name, "wavelength": wavelength, "sampling": sampling, "step": step}
    return IPKernel(array / total, meta)
