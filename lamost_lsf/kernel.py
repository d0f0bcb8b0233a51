"""Convolution kernels for astropy and specutils, made from sampled profiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
from astropy.convolution import Kernel1D

from lamost_lsf.spline import SplineFamily
from lamost_lsf.units import to_angstrom

__all__ = ["IPKernel", "axis_sampling", "kernel_from_samples"]

#: Largest departure from a uniform step that still counts as uniform, in steps. A float32 axis at 9000 A is
#: rounded to 5e-4 A, i.e. 2e-4 of a LAMOST pixel; a kernel misplaced by 1e-3 of a pixel is still harmless.
UNIFORM_TOLERANCE = 1e-3


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
    pixel = np.arange(axis.size)
    worst = {}
    for sampling, values in (("linear", axis), ("log", np.log(axis))):
        step = (values[-1] - values[0]) / (axis.size - 1)
        worst[sampling] = np.max(np.abs((values - values[0]) / step - pixel))
        if worst[sampling] <= UNIFORM_TOLERANCE:
            return sampling, float(step)
    raise ValueError(
        "spectral_axis is uniform neither in wavelength nor in its logarithm (it departs by "
        f"{worst['linear']:.3g} and {worst['log']:.3g} pixels); resample it, or use lamost_lsf.convolve, which takes any axis"
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
    name = center if isinstance(center, str) else getattr(center, "name", repr(center))
    meta = {"center": name, "wavelength": wavelength, "sampling": sampling, "step": step}
    return IPKernel(array / total, meta)
