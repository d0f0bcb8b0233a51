"""What a set of profiles must be before any of it is written."""

from __future__ import annotations

from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table
from astropy.time import Time

from lamost_lsf.store.batch_file import LABELS, NATIVE, ROW_COLUMNS
from lamost_lsf.time import season, time_to_lmjm

__all__ = ["check_times", "checked_columns", "exposure_keys", "header_of", "line_wavelengths"]

_NEEDED = (*ROW_COLUMNS, "exposures", "offset", "instrument", "arm", "spectrograph")


def _numbers(profiles: Any, name: str, ndim: int) -> np.ndarray:
    given = np.asarray(getattr(profiles, name))
    dtype = np.dtype(ROW_COLUMNS[name])
    if given.dtype.kind not in "iuf" or (dtype.kind == "i" and given.dtype.kind == "f"):
        raise TypeError(f"{name} must be {'integers' if dtype.kind == 'i' else 'real numbers'}, got {given.dtype}")
    if given.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {given.shape}")
    if dtype.kind == "i" and given.size:
        limits = np.iinfo(dtype)
        if given.min() < limits.min or given.max() > limits.max:
            raise ValueError(f"{name} must be {limits.min} to {limits.max}, got {given.min()} to {given.max()}")
    return given.astype(dtype, copy=False)


def checked_columns(profiles: Any) -> dict[str, np.ndarray]:
    """The columns of a set of profiles with the dtypes of the store.

    Raises
    ------
    TypeError
        Not a set of profiles, or a column of the wrong kind.
    ValueError
        Wrong shapes, fibres below 1, exposures or lines that do not exist, or a good profile with values that are not
        finite.
    """
    missing = [name for name in _NEEDED if not hasattr(profiles, name)]
    if missing:
        raise TypeError(f"append takes a ProfileSet, got {type(profiles).__name__} without {', '.join(missing)}")
    columns = {name: _numbers(profiles, name, 1 if name in LABELS else 2) for name in ROW_COLUMNS}
    n, n_sample = columns["profile"].shape
    for name, array in columns.items():
        if array.shape[0] != n:
            raise ValueError(f"{name} has {array.shape[0]} rows, profile has {n}")
    if n_sample != np.size(profiles.offset):
        raise ValueError(f"profile has {n_sample} samples, offset has {np.size(profiles.offset)}")
    shapes = {name: columns[name].shape for name in NATIVE}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"native pixels differ in shape: {shapes}")
    if not isinstance(profiles.exposures, Table):
        raise TypeError(f"exposures must be an astropy Table, got {type(profiles.exposures).__name__}")
    n_exposure = len(profiles.exposures)
    if n_exposure == 0:
        raise ValueError("the set is empty: it has no exposures")
    if n:
        _check_labels(columns, n_exposure)
        _check_values(columns)
    return columns


def _check_labels(columns: dict[str, np.ndarray], n_exposure: int) -> None:
    exposure = columns["exposure"]
    if exposure.min() < 0 or exposure.max() >= n_exposure:
        raise ValueError(
            f"exposure must be 0 to {n_exposure - 1}, rows of exposures; got {exposure.min()} to {exposure.max()}"
        )
    for name, low in (("fiber", 1), ("line", 0), ("flag", 0)):
        if columns[name].min() < low:
            raise ValueError(f"{name} must be {low} or more, got {columns[name].min()}")
    for name in ("lmjm", "wavelength"):
        if not np.all(np.isfinite(columns[name]) & (columns[name] > 0)):
            raise ValueError(f"{name} must be finite and positive")


def _check_values(columns: dict[str, np.ndarray]) -> None:
    good = columns["flag"] == 0
    for name in ("profile", "noise"):
        finite = np.isfinite(columns[name])
        bad = ~(finite if finite.ndim == 1 else finite.all(axis=1)) & good
        if bad.any():
            raise ValueError(
                f"{name} is not finite in {bad.sum()} profiles without a flag, first at row {np.argmax(bad)}"
            )
    if np.any(columns["noise"][good] < 0):
        raise ValueError("noise must not be negative")
    ivar = columns["native_ivar"]
    if not np.all(ivar >= 0):  # NaN too
        raise ValueError("native_ivar must be 0 (bad or absent) or positive")
    used = ivar > 0
    for name in NATIVE:
        if not np.all(np.isfinite(columns[name][used])):
            raise ValueError(f"{name} must be finite where native_ivar is positive")


def exposure_keys(exposures: Table) -> list[str]:
    """Identity of each exposure: its time to the second, and its lamp.

    One spectrograph and arm take one exposure at a time, so a copied or renamed file is still the same exposure.

    Raises
    ------
    ValueError
        No column ``time``, or the same exposure twice.
    TypeError
        ``time`` is not a `~astropy.time.Time`.
    """
    if "time" not in exposures.colnames:
        raise ValueError(f"exposures must have a column time, got {', '.join(exposures.colnames) or 'none'}")
    if not isinstance(exposures["time"], Time):
        raise TypeError("exposures['time'] must be an astropy Time")
    minutes = time_to_lmjm(exposures["time"])
    if not np.all(np.isfinite(minutes)):
        raise ValueError("exposures['time'] must not be masked")
    lamps = (
        [str(lamp).strip().lower() for lamp in exposures["lamp"]]
        if "lamp" in exposures.colnames
        else [""] * len(minutes)
    )
    keys = [f"{round(float(minute) * 60)}:{lamp}" for minute, lamp in zip(minutes, lamps)]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"rows {[i for i, k in enumerate(keys) if k == twice]} of exposures are the same exposure")
    return keys


def check_times(columns: dict[str, np.ndarray], exposures: Table) -> None:
    """Raise ValueError where a profile's time label is more than a day from its exposure's time."""
    minutes = time_to_lmjm(exposures["time"])
    away = np.abs(columns["lmjm"] - minutes[columns["exposure"]])
    if away.size and away.max() > 1440.0:
        row = int(np.argmax(away))
        raise ValueError(
            f"lmjm {columns['lmjm'][row]:.10g} of row {row} is {away[row]:.6g} minutes from the time of its exposure; "
            "it must be local modified Julian minutes, see time_to_lmjm"
        )


def line_wavelengths(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Wavelength of each line, by its number as JSON has it.

    Raises
    ------
    ValueError
        A line with more than one wavelength.
    """
    pairs = np.unique(np.stack([columns["line"].astype(np.float64), columns["wavelength"]], axis=1), axis=0)
    lines = {str(int(line)): float(wavelength) for line, wavelength in pairs}
    if len(lines) < len(pairs):
        raise ValueError("wavelength must be the line's true wavelength: a line has several")
    return lines


def header_of(profiles: Any) -> dict[str, Any]:
    """What a store holds one of: instrument, arm, spectrograph, season and grid.

    Raises
    ------
    TypeError
        A name that is not text, a spectrograph that is not an integer.
    ValueError
        Exposures of several seasons, or a grid that is not ascending.
    """
    instrument = getattr(profiles.instrument, "name", profiles.instrument)
    for name, value in (("instrument", instrument), ("arm", profiles.arm)):
        if not isinstance(value, str) or not value:
            raise TypeError(f"{name} must be a name, got {value!r}")
    spectrograph = profiles.spectrograph
    if isinstance(spectrograph, bool) or not isinstance(spectrograph, (int, np.integer)):
        raise TypeError(f"spectrograph must be an integer, got {spectrograph!r}")
    offset = np.asarray(u.Quantity(profiles.offset, u.AA).value, dtype=np.float64)
    if offset.ndim != 1 or offset.size < 2 or not np.all(np.isfinite(offset)) or np.any(np.diff(offset) <= 0):
        raise ValueError("offset must be at least 2 ascending numbers, Angstrom")
    seasons = np.unique(season(profiles.exposures["time"]))
    if seasons.size > 1:
        raise ValueError(f"exposures are of seasons {', '.join(map(str, seasons))}; a store holds one season")
    return {
        "instrument": instrument,
        "arm": profiles.arm,
        "spectrograph": int(spectrograph),
        "season": int(seasons[0]),
        "offset": offset.tolist(),
    }
