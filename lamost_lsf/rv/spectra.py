"""What a batch takes as a spectrum, as plain arrays; what cannot be used becomes a flag and a reason."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from specutils import Spectrum

from lamost_lsf.convolution.axes import axis_angstrom
from lamost_lsf.errors import FormatError
from lamost_lsf.rv.prepare import Pixels, inverse_variance
from lamost_lsf.rv.result import RVFlag
from lamost_lsf.units import check_medium

__all__ = ["ObservedArrays", "as_arrays", "cut"]

_GOOD = RVFlag(0)
_FRAMES = ("heliocentric", "barycentric", "topocentric")


@dataclass(frozen=True)
class ObservedArrays:
    """One observed spectrum, or why there is none.

    Attributes
    ----------
    wavelength, flux, ivar : ndarray (n,)
        Vacuum Angstrom; inverse variance 0 for unusable pixels, whose flux is 0.
    meta : mapping
    flags : RVFlag
        0 where the spectrum can be used.
    message : str
        Why not.
    """

    wavelength: np.ndarray = field(default_factory=lambda: np.empty(0))
    flux: np.ndarray = field(default_factory=lambda: np.empty(0))
    ivar: np.ndarray = field(default_factory=lambda: np.empty(0))
    meta: Mapping[str, Any] = field(default_factory=dict)
    flags: RVFlag = _GOOD
    message: str = ""


def as_arrays(item: Any, *, mask: str = "and", extension: str | None = None) -> ObservedArrays:
    """Arrays of a path, a `~specutils.Spectrum`, a `~lamost_lsf.io.LamostArrays` or anything alike; never raises.

    Parameters
    ----------
    item : path, Spectrum, or object with ``wavelength``, ``flux``, ``ivar``, ``mask`` and ``meta``
    mask, extension
        Of files; see `~lamost_lsf.io.read_lamost`.
    """
    name = os.fspath(item) if isinstance(item, str | os.PathLike) else ""
    try:
        if name:
            item = _read(name, mask, extension)
    except Exception as error:  # readers raise whatever comes
        return ObservedArrays(meta={"filename": name}, flags=RVFlag.UNREADABLE, message=_one_line(error))
    if isinstance(item, ObservedArrays):
        return item
    meta = getattr(item, "meta", None)
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    if name and not meta.get("filename"):
        meta["filename"] = name
    try:
        if isinstance(item, Spectrum):
            wavelength, flux, ivar, bad = _of_spectrum(item)
        else:
            wavelength, flux, ivar, bad = _of_arrays(item)
    except Exception as error:
        return ObservedArrays(meta=meta, flags=RVFlag.BAD_INPUT, message=_one_line(error))
    frame = meta.get("frame")
    if frame is not None and frame not in _FRAMES:
        message = f"frame {frame!r} is none of {', '.join(_FRAMES)}"
        return ObservedArrays(meta=meta, flags=RVFlag.WRONG_FRAME, message=message)
    clean_flux, clean_ivar = np.empty(flux.size), np.empty(flux.size)
    _clean(flux, ivar, bad, clean_flux, clean_ivar)
    return ObservedArrays(wavelength, clean_flux, clean_ivar, meta)


def cut(spectrum: ObservedArrays, low: float, high: float) -> tuple[Pixels, int, float] | None:
    """Pixels of a window, from the first to the last usable one; their number and median signal-to-noise ratio.

    None where there is none.
    """
    w = spectrum.wavelength
    first, last = w.searchsorted(low), w.searchsorted(high, "right")
    first, last, count, scale, snr = _summary(spectrum.flux, spectrum.ivar, first, last)
    if first == last:
        return None
    square = scale**2
    if not (0.0 < square < np.inf):
        raise OverflowError(f"fluxes of order {scale:.0e} leave the range of double precision when squared")
    flux, ivar = spectrum.flux[first:last] / scale, spectrum.ivar[first:last] * square
    return Pixels(w[first:last], flux, ivar, scale), count, snr


@njit(cache=True, error_model="numpy")
def _clean(flux, ivar, bad, new_flux, new_ivar):
    for j in range(flux.size):
        f, v = flux[j], ivar[j]
        if bad[j] or not (v > 0.0 and v < np.inf and abs(f) < np.inf):
            f = v = 0.0
        new_flux[j], new_ivar[j] = f, v


@njit(cache=True, error_model="numpy")
def _summary(flux, ivar, first, last):
    """First and last usable pixel within limits, number of usable ones, median flux (absolute; 1 where that is 0) and
    median signal-to-noise ratio.
    """
    while first < last and not ivar[first] > 0.0:
        first += 1
    while last > first and not ivar[last - 1] > 0.0:
        last -= 1
    if first == last:
        return first, last, 0, 1.0, np.nan
    flux, ivar = flux[first:last], ivar[first:last]
    size, snr = np.empty(flux.size), np.empty(flux.size)
    count = 0
    for j in range(flux.size):
        if ivar[j] > 0.0:
            size[count] = abs(flux[j])
            snr[count] = abs(flux[j]) * np.sqrt(ivar[j])
            count += 1
    scale = np.median(size[:count])
    return first, last, count, scale if scale > 0.0 else 1.0, np.median(snr[:count])


@njit(cache=True, error_model="numpy")
def _increases(wavelength):
    for j in range(1, wavelength.size):
        if not wavelength[j] > wavelength[j - 1]:
            return False
    return wavelength.size > 1 and wavelength[0] > 0.0 and wavelength[-1] < np.inf


def _read(path: str, mask: str, extension: str | None) -> Any:
    from lamost_lsf.io import read_lamost_arrays
    from lamost_lsf.io.loaders import sniff

    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such file: {path}")
    try:
        known = sniff(path) is not None
    except (EOFError, OSError):
        known = True  # damaged; the reader says how
    except Exception:
        known = True
    if known:
        return read_lamost_arrays(path, mask=mask, extension=extension)
    spectrum = Spectrum.read(path)
    if not isinstance(spectrum, Spectrum):
        raise FormatError(f"{path}: not one spectrum but {type(spectrum).__name__}")
    return spectrum


def _of_spectrum(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if spectrum.flux.ndim != 1:
        raise ValueError(f"not one spectrum: flux of shape {spectrum.flux.shape}")
    medium = check_medium(spectrum.meta.get("wavelength_medium") or "vacuum")
    wavelength = axis_angstrom(spectrum.spectral_axis, medium, "the spectrum's axis")
    bad = np.zeros(wavelength.size, dtype=bool) if spectrum.mask is None else np.asarray(spectrum.mask, dtype=bool)
    return wavelength, np.asarray(spectrum.flux.value, dtype=np.float64), inverse_variance(spectrum), bad


def _of_arrays(item: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    missing = [k for k in ("wavelength", "flux", "ivar") if not hasattr(item, k)]
    if missing:
        raise TypeError(
            "a spectrum must be a path, a specutils Spectrum, or have arrays wavelength, flux and ivar; "
            f"got {type(item).__name__} without {', '.join(missing)}"
        )
    arrays = [np.asarray(getattr(item, k), dtype=np.float64) for k in ("wavelength", "flux", "ivar")]
    wavelength = arrays[0]
    if wavelength.ndim != 1 or any(a.shape != wavelength.shape for a in arrays):
        raise ValueError(f"wavelength, flux and ivar must have one shape (n,), got {[a.shape for a in arrays]}")
    if not _increases(wavelength):
        raise ValueError("wavelengths must be positive and increase strictly")
    mask = getattr(item, "mask", None)
    bad = np.zeros(wavelength.size, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if bad.shape != wavelength.shape:
        bad = np.ascontiguousarray(np.broadcast_to(bad, wavelength.shape))
    return (*arrays, bad)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
