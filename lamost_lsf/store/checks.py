"""What a set of profiles must be before any of it is written."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.table import Table

from lamost_lsf.instruments import get_instrument
from lamost_lsf.lines import LineList
from lamost_lsf.store.batch_file import LABELS, NATIVE, ROW_COLUMNS
from lamost_lsf.store.tables import decode_table, encode_table
from lamost_lsf.time import lmjm_to_time, season

__all__ = ["check_fibers", "check_lines", "check_times", "checked_columns", "exposure_keys", "header_of", "lines_of"]

_NEEDED = (*ROW_COLUMNS, "exposures", "offset", "lines", "instrument", "digest", "arm", "spectrograph")
#: Columns of the exposures with one value in a store: what a profile's time and zero point mean.
_MEANINGS = ("time_reference", "wavelength_center")


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


def exposure_minutes(exposures: Table) -> np.ndarray:
    """Local modified Julian minutes of the exposures.

    Raises
    ------
    ValueError
        No column ``lmjm``, or values that are no such minutes.
    """
    if "lmjm" not in exposures.colnames:
        raise ValueError(f"exposures must have a column lmjm, got {', '.join(exposures.colnames) or 'none'}")
    minutes = np.ma.asarray(getattr(exposures["lmjm"], "value", exposures["lmjm"]))
    if minutes.dtype.kind not in "iuf" or minutes.ndim != 1:
        raise ValueError(f"exposures['lmjm'] must be one number a row, got {minutes.dtype} of shape {minutes.shape}")
    plain = np.ma.filled(minutes.astype(np.float64), np.nan)
    try:
        lmjm_to_time(plain)
    except ValueError as error:
        raise ValueError(f"exposures['lmjm']: {error}") from None
    return plain


def exposure_keys(exposures: Table) -> list[str]:
    """Identity of each exposure: its time to the second, and its lamp.

    One spectrograph and arm take one exposure at a time, so a copied, renamed or reprocessed file is still the same.

    Raises
    ------
    ValueError
        The same exposure twice, and what `exposure_minutes` raises.
    """
    minutes = exposure_minutes(exposures)
    has_lamp = "lamp" in exposures.colnames
    lamps = [str(lamp).strip().lower() for lamp in exposures["lamp"]] if has_lamp else [""] * len(minutes)
    keys = [f"{round(float(minute) * 60)}:{lamp}" for minute, lamp in zip(minutes, lamps)]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"rows {[i for i, k in enumerate(keys) if k == twice]} of exposures are the same exposure")
    return keys


def check_times(columns: dict[str, np.ndarray], exposures: Table) -> None:
    """Raise ValueError where a profile's time label is more than a day from its exposure's time."""
    away = np.abs(columns["lmjm"] - exposure_minutes(exposures)[columns["exposure"]])
    if away.size and away.max() > 1440.0:
        row = int(np.argmax(away))
        raise ValueError(
            f"lmjm {columns['lmjm'][row]:.10g} of row {row} is {away[row]:.6g} minutes from the time of its exposure; "
            "it must be local modified Julian minutes, see time_to_lmjm"
        )


def check_lines(columns: dict[str, np.ndarray], lines: LineList) -> None:
    """Raise ValueError where a profile's line does not exist, or its wavelength is not the line's."""
    line, wavelength = columns["line"], columns["wavelength"]
    if line.size and line.max() >= len(lines):
        raise ValueError(f"line must be 0 to {len(lines) - 1}, got {line.max()}")
    away = np.abs(wavelength - lines.vacuum[line])
    if away.size and away.max() > 1e-3:
        row = int(np.argmax(away))
        raise ValueError(
            f"wavelength {wavelength[row]:.4f} of row {row} is not that of line {line[row]}, "
            f"{lines.vacuum[line[row]]:.4f} Angstrom in vacuum"
        )


def check_fibers(instrument: str, columns: dict[str, np.ndarray]) -> None:
    """Raise OutOfRangeError for fibres that an instrument known by name does not have."""
    try:
        known = get_instrument(instrument)
    except (LookupError, OSError, ValueError):
        return  # from a file of the user's that is not at hand
    if columns["fiber"].size:
        known.check_fibers(columns["fiber"])


def header_of(profiles: Any) -> dict[str, Any]:
    """What a store holds one of: instrument, arm, spectrograph, season, lines, grid, meaning of times and centres.

    Raises
    ------
    TypeError
        A name that is not text, a spectrograph that is not an integer, lines that are no LineList.
    ValueError
        Exposures of several seasons, time references or wavelength centres, or a grid that is not ascending.
    """
    for name in ("instrument", "digest", "arm"):
        value = getattr(profiles, name)
        if not isinstance(value, str) or not value:
            raise TypeError(f"{name} must be text, got {value!r}")
    spectrograph = profiles.spectrograph
    if isinstance(spectrograph, bool) or not isinstance(spectrograph, (int, np.integer)):
        raise TypeError(f"spectrograph must be an integer, got {spectrograph!r}")
    if not isinstance(profiles.lines, LineList):
        raise TypeError(f"lines must be a LineList, got {type(profiles.lines).__name__}")
    offset = np.asarray(profiles.offset, dtype=np.float64)
    if offset.ndim != 1 or offset.size < 2 or not np.all(np.isfinite(offset)) or np.any(np.diff(offset) <= 0):
        raise ValueError("offset must be at least 2 ascending numbers, Angstrom")
    seasons = np.unique(season(lmjm_to_time(exposure_minutes(profiles.exposures))))
    if seasons.size > 1:
        raise ValueError(f"exposures are of seasons {', '.join(map(str, seasons))}; a store holds one season")
    header = {
        "instrument": profiles.instrument,
        "arm": profiles.arm,
        "spectrograph": int(spectrograph),
        "season": int(seasons[0]),
        "digest": profiles.digest,
        "lines": encode_table(_line_table(profiles.lines)),
        "lines_name": str(profiles.lines.name),
        "offset": offset.tolist(),
    }
    for name in _MEANINGS:
        values = sorted({str(v) for v in profiles.exposures[name]}) if name in profiles.exposures.colnames else [""]
        if len(values) > 1:
            raise ValueError(f"exposures have {name} {', '.join(map(repr, values))}; a store holds one")
        header[name] = values[0]
    return header


_LINE_COLUMNS = ("species", "air", "vacuum", "intensity", "blend")


def _line_table(lines: LineList) -> Table:
    return Table({name: getattr(lines, name) for name in _LINE_COLUMNS})


def lines_of(header: dict[str, Any]) -> LineList:
    """Line list of a store's header."""
    table = decode_table(header["lines"])
    return LineList(**{name: np.asarray(table[name]) for name in _LINE_COLUMNS}, name=header["lines_name"])
