"""Errors of a velocity that the flux errors do not know of: those of the LSF and of the wavelength scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np

from lamost_lsf.lsf import LSF, MeanLSF
from lamost_lsf.plugins import apply_center, get_center
from lamost_lsf.rv.family import LSFFamily, detector_parts
from lamost_lsf.rv.prepare import Pixels
from lamost_lsf.rv.spectra import ObservedArrays
from lamost_lsf.units import SPEED_OF_LIGHT

__all__ = ["WavelengthError", "ip_error", "ip_error_modes", "wavelength_error"]

WavelengthError = u.Quantity | Callable[..., Any] | None
#: Amplitude of a mode, in its own standard deviation, at which the shift of the centre is taken.
_PROBE = 0.1


def ip_error_modes(lsf: LSF, family: LSFFamily, cache: dict[Any, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Independent ways in which an LSF may be wrong, each with an amplitude of one standard deviation.

    The errors of a model's coefficients, with their covariance, are taken as the same at all wavelengths of a window
    and all exposures of a co-add: a model that is off by as much from pixel to pixel would average out, one that is off
    throughout does not. A mode that moves the centre moves the kernel back by it, for the wavelength scale rests on the
    same centre.

    Returns
    -------
    modes : ndarray (m, n_lag)
        At the lags of the family's basis.
    shift : ndarray (m,)
        What the centre's move makes of a velocity, km/s.
        None where the LSF's model knows no error.
    """
    middle = math.sqrt(family.window[0] * family.window[1])
    here = [p for p in detector_parts(lsf) if p[0] <= middle * p[3] < p[1]]
    if not here:
        return None
    _, _, inner, factor = here[0]
    definition = lsf.center if lsf.center is not None else (inner.center or "zero")
    while isinstance(inner, MeanLSF):
        inner = inner._lsfs[0]
    model = getattr(inner, "model", None)
    expansion = getattr(model, "expansion", None)
    if expansion is None or inner.fiber is None:
        return None
    key = id(family), id(model), inner.fiber, definition if isinstance(definition, str) else id(definition)
    if key not in cache:
        if len(cache) > 4096:
            cache.clear()
        cache[key] = (family, model, _modes(inner, expansion, definition, middle * factor, family))
    return cache[key][-1]


def _modes(
    inner: Any, expansion: Any, definition: str | Callable, wavelength: float, family: LSFFamily
) -> tuple[np.ndarray, np.ndarray] | None:
    index, known = expansion._fiber_index(np.array([inner.fiber]))
    scale = float(expansion.fiber_scale[index[0]]) if known[0] else 1.0
    values, vectors = np.linalg.eigh(scale * expansion.covariance)
    keep = values > 1e-12 * max(values.max(), 0.0)
    if not np.any(values > 0):
        return None
    modes = (vectors[:, keep] * np.sqrt(values[keep])).T @ expansion.components
    at = np.array([wavelength])
    profile = inner.sample(at)
    zero = inner.zero_point(at, definition)
    shift = np.zeros(len(modes))
    if definition != "zero":
        moved = np.asarray(apply_center(get_center(definition), inner.offset, profile + _PROBE * modes))
        shift = np.where(np.isfinite(moved), (moved - zero) / _PROBE, 0.0) * SPEED_OF_LIGHT / wavelength
    return family.at_lags(inner.offset, modes, wavelength, float(zero[0])), shift


def ip_error(modes: tuple[np.ndarray, np.ndarray], sensitivity: np.ndarray) -> float:
    """1-sigma error of a velocity, km/s, from `ip_error_modes` and its derivatives (n_lag,) by the kernel's values."""
    kernels, shift = modes
    return float(np.sqrt(np.sum((kernels @ sensitivity + shift) ** 2)))


def wavelength_error(given: WavelengthError, spectrum: ObservedArrays, pixels: Pixels) -> np.ndarray | None:
    """1-sigma errors of the wavelengths of a window's pixels, km/s; None where nothing is known.

    They are ``given``, or ``f(meta)``, or ``meta["wavelength_error"]``: a velocity or a length, one for the spectrum or
    one for each of its pixels, and taken as fully correlated over a window.
    """
    value = given(spectrum.meta) if callable(given) and not isinstance(given, u.Quantity) else given
    if value is None:
        value = spectrum.meta.get("wavelength_error")
    if value is None:
        return None
    value = u.Quantity(value)
    wavelength = pixels.wavelength
    if value.ndim:
        if value.shape != spectrum.wavelength.shape:
            raise ValueError(f"wavelength_error has shape {value.shape}, the spectrum {spectrum.wavelength.shape}")
        value = value[np.searchsorted(spectrum.wavelength, wavelength)]
    if value.unit.is_equivalent(u.km / u.s):
        return np.broadcast_to(value.to_value(u.km / u.s), wavelength.shape)
    return np.broadcast_to(value.to_value(u.AA), wavelength.shape) / wavelength * SPEED_OF_LIGHT
