"""What users hand to `calibrate`, brought to arrays: arcs, line lists, rough wavelength scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance
from astropy.time import Time
from specutils import Spectrum

from lamost_lsf.lines import LineList
from lamost_lsf.plugins import get_center, plugin_provenance
from lamost_lsf.units import to_angstrom, to_vacuum_angstrom
from lamost_lsf.wavelength import WavelengthSolution

__all__ = ["ArcArrays", "arc_arrays", "check_center", "check_lines", "rough_scale"]


@dataclass(frozen=True)
class ArcArrays:
    """Spectra of one exposure as plain arrays.

    Attributes
    ----------
    flux : ndarray (n_row, n_pix)
    ivar : ndarray (n_row, n_pix) or None
        Inverse variance; None where unknown.
    bad : ndarray of bool (n_row, n_pix)
    fiber : ndarray of int (n_row,)
    single : bool
        A 1-D spectrum: the result is one solution.
    scale : ndarray (n_row, n_pix) or None
        Wavelengths that came with the spectra, vacuum Angstrom.
    window : (float, float) or None
        Offsets, Angstrom, that the instrument's profiles are measured in.
    """

    flux: np.ndarray
    ivar: np.ndarray | None
    bad: np.ndarray
    fiber: np.ndarray
    single: bool
    scale: np.ndarray | None = None
    window: tuple[float, float] | None = None
    time: Time | None = None
    saturation: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_pix(self) -> int:
        """Pixels of a spectrum."""
        return self.flux.shape[1]


def check_center(center: str | Callable) -> str:
    """Name of a centre that a wavelength scale can rest on.

    Raises
    ------
    ValueError
        "zero": the scale's own zero is what calibration determines.
    PluginLookupError
        No such centre.
    """
    get_center(center)
    name = plugin_provenance(center, "center").name
    if name == "zero":
        raise ValueError(
            'center="zero" cannot calibrate: it is the zero of a wavelength scale that exists already. Choose a centre '
            'that is measured on the line, such as "half" or "sersic"'
        )
    return name


def check_lines(lines: Any, medium: str | None) -> LineList:
    """Line list from a `LineList`, or wavelengths with their medium.

    Raises
    ------
    TypeError, ValueError
        Anything else; no lines.
    """
    if isinstance(lines, LineList):
        if medium is not None:
            raise ValueError("medium belongs to plain wavelengths; a LineList knows both air and vacuum")
        result = lines
    elif isinstance(lines, u.Quantity):
        if medium is None:
            raise ValueError('say which medium the wavelengths of the lines are in: medium="air" or medium="vacuum"')
        result = LineList.from_wavelengths(lines, medium=medium)
    else:
        raise TypeError(
            "lines must be a LineList (LineList.read opens tables) or wavelengths with a unit, "
            f"got {type(lines).__name__}"
        )
    if not len(result):
        raise ValueError("the line list is empty")
    return result


def arc_arrays(arc: Any, ivar: Any = None, mask: Any = None) -> ArcArrays:
    """Arrays of an arc: exposure, `~specutils.Spectrum`, Quantity or array, of one or two dimensions.

    Raises
    ------
    TypeError
        Something else.
    ValueError
        Shapes that do not fit, no finite pixel.
    """
    from lamost_lsf.arcs import ArcExposure
    from lamost_lsf.simulation.detector import SimulatedExposure

    if isinstance(arc, (ArcExposure, SimulatedExposure, Spectrum)) and not (ivar is None and mask is None):
        raise ValueError(
            f"a {type(arc).__name__} carries its own errors and mask; pass ivar= and mask= with arrays only"
        )
    if isinstance(arc, SimulatedExposure):
        # with its instrument, whose profiles say how wide a window takes in a line's wings
        arc = ArcExposure.from_simulation(arc, instrument=arc.meta.get("instrument", ""))
    if isinstance(arc, ArcExposure):
        return _from_exposure(arc)
    if isinstance(arc, Spectrum):
        return _from_spectrum(arc)
    if isinstance(arc, u.Quantity):
        arc = arc.value
    try:
        flux = np.asarray(arc, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"arc must be an ArcExposure, a Spectrum, or an array of counts (n_pix,) or (n_fiber, n_pix), "
            f"got {type(arc).__name__}"
        ) from None
    if flux.ndim not in (1, 2) or flux.shape[-1] < 16 or flux.shape[0] == 0:
        raise ValueError(f"arc must have shape (n_pix,) or (n_fiber, n_pix) with at least 16 pixels, got {flux.shape}")
    others: dict[str, Any] = {}
    for name, value, kind in (("ivar", ivar, np.float64), ("mask", mask, bool)):
        if value is not None:
            value = np.asarray(value.value if isinstance(value, u.Quantity) else value)
            if value.shape != flux.shape:
                raise ValueError(f"{name} must have the shape of the arc, {flux.shape}, got {value.shape}")
            value = np.atleast_2d(value.astype(kind))
        others[name] = value
    return _arrays(np.atleast_2d(flux), others["ivar"], others["mask"], single=flux.ndim == 1)


def _arrays(
    flux: np.ndarray, ivar: np.ndarray | None, mask: np.ndarray | None, *, single: bool, **others: Any
) -> ArcArrays:
    bad = ~np.isfinite(flux)
    if mask is not None:
        bad |= mask
    if ivar is not None:
        bad |= ~(np.isfinite(ivar) & (ivar > 0))
    if np.all(bad):
        raise ValueError("the arc has no good pixel: everything is masked, or not finite")
    others.setdefault("fiber", np.arange(1, flux.shape[0] + 1))
    return ArcArrays(flux=flux, ivar=ivar, bad=bad, single=single, **others)


def _from_exposure(arc: Any) -> ArcArrays:
    window, saturation = None, arc.meta.get("saturation")
    if arc.instrument:
        from lamost_lsf.instruments import get_instrument

        instrument = get_instrument(arc.instrument)
        window = instrument.window
        saturation = saturation if saturation is not None else instrument.saturation
    meta = {"lamp": arc.lamp, "arm": arc.arm, "spectrograph": arc.spectrograph, "instrument": arc.instrument}
    return _arrays(
        np.array(arc.flux), np.array(arc.ivar), np.array(arc.mask), single=False, fiber=arc.fiber, scale=arc.wavelength,
        window=window, time=arc.time, saturation=saturation, meta=meta,
    )  # fmt: skip


def _from_spectrum(arc: Spectrum) -> ArcArrays:
    flux = np.asarray(arc.flux.value, dtype=np.float64)
    if flux.ndim not in (1, 2):
        raise ValueError(f"the arc's flux must have one or two dimensions, got {flux.ndim}")
    ivar = None
    if arc.uncertainty is not None:
        with np.errstate(divide="ignore", invalid="ignore"):  # an inverse variance of 0 is a bad pixel
            ivar = np.atleast_2d(np.asarray(arc.uncertainty.represent_as(InverseVariance).array, dtype=np.float64))
    mask = None if arc.mask is None else np.atleast_2d(np.asarray(arc.mask, dtype=bool))
    scale = None
    if arc.spectral_axis.unit.is_equivalent(u.AA):
        medium = arc.meta.get("wavelength_medium", "vacuum")
        scale = to_vacuum_angstrom(u.Quantity(arc.spectral_axis), medium)
        scale = np.broadcast_to(scale, np.atleast_2d(flux).shape)
    time = arc.meta.get("time")
    time = time if isinstance(time, Time) and time.isscalar else None
    others: dict[str, Any] = {}
    number = arc.meta.get("fiber")
    if flux.ndim == 1 and isinstance(number, (int, np.integer)):
        others["fiber"] = np.array([int(number)])
    return _arrays(np.atleast_2d(flux), ivar, mask, single=flux.ndim == 1, scale=scale, time=time, **others)


def rough_scale(rough: Any, n_row: int, n_pix: int) -> np.ndarray:
    """Vacuum wavelengths (n_row, n_pix), Angstrom, of a rough solution.

    Parameters
    ----------
    rough : `WavelengthSolution`, callable, or `~astropy.units.Quantity`
        A callable takes pixels (array) and returns vacuum wavelengths, as a Quantity or plain Angstrom; a Quantity has
        the shape (n_pix,) or (n_row, n_pix). A sequence of solutions is one a row.

    Raises
    ------
    TypeError, ValueError
        Something else; a scale that does not go one way.
    """
    from lamost_lsf.calibration.exposure import ExposureCalibration

    pixel = np.arange(n_pix, dtype=np.float64)
    if isinstance(rough, ExposureCalibration):
        rough = rough.wavelength()
    if isinstance(rough, (list, tuple)) and rough and all(isinstance(r, WavelengthSolution) for r in rough):
        scale = np.array([_of_solution(r, pixel) for r in rough])
    elif isinstance(rough, WavelengthSolution):
        scale = _of_solution(rough, pixel)
    elif isinstance(rough, u.Quantity):
        scale = to_angstrom(rough, "rough")
    elif callable(rough):
        value = rough(pixel)
        scale = to_angstrom(value, "rough(pixel)") if isinstance(value, u.Quantity) else np.asarray(value, float)
    else:
        raise TypeError(
            "rough must be a WavelengthSolution, a callable of pixels, or vacuum wavelengths with a unit, "
            f"got {type(rough).__name__}"
        )
    if scale.shape not in ((n_pix,), (n_row, n_pix)):
        raise ValueError(f"rough must give {n_pix} wavelengths, or {n_row} x {n_pix}, got the shape {scale.shape}")
    scale = np.broadcast_to(scale, (n_row, n_pix))
    for row in scale if scale.strides[0] else scale[:1]:
        finite = row[np.isfinite(row)]
        step = np.diff(finite)
        if finite.size < 2 or not (np.all(step > 0) or np.all(step < 0)) or finite.min() <= 0:
            raise ValueError("rough must be a scale of positive wavelengths that only increase, or only decrease")
    return scale


def _of_solution(solution: WavelengthSolution, pixel: np.ndarray) -> np.ndarray:
    return solution(pixel).value
