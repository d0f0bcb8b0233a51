"""What the readers of libraries share: finding files, tables of labels, damaged files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from astropy.table import Table

from lamost_lsf.files import damage

__all__ = ["common_grid", "find_files", "join_labels", "star_key"]


def find_files(
    folder: str | os.PathLike, pattern: str, *, what: str = "file", required: bool = True, deep: bool = False
) -> list[Path]:
    """Sorted files of a folder that match a pattern, but for hidden ones and those of hidden folders.

    Raises
    ------
    FileNotFoundError
        No such folder, or nothing there while ``required``.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    found = sorted(folder.rglob(pattern) if deep else folder.glob(pattern))
    # what a broken-off unpacking or another system's archiver left
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if required and not found:
        raise FileNotFoundError(f"no {what} in {folder} (looked for {pattern})")
    return found


#: Numbers by zones, as of the Durchmusterung: catalogue, sign, degrees (two digits, unless parted from the rest).
_ZONE = re.compile(r"(agk\d?|bd|cd|cpd|grw)[\s_]*([+-]?)\s*(?:(\d{2})|(\d)(?=[\s_d°]))[\s_d°]*0*(\d+)(.*)")


def star_key(name: str) -> str:
    """A star's name without what catalogues write differently: case, blanks, underscores, zeros before numbers.

    Signs and the borders of numbers tell stars apart and stay. A sign of which a file's name keeps a "_" at most is
    that of most stars of the catalogue: south for CD and CPD, north for others (BD, AGK, GRW, WD).

    Examples
    --------
    >>> star_key("HD 000245") == star_key("hd245"), star_key("BD+17 4708") == star_key("bd_17d4708")
    (True, True)
    >>> star_key("BD+17 4708") == star_key("BD-17 4708"), star_key("BD+02 3375") == star_key("BD+23 375")
    (False, False)
    """
    text = str(name).strip().lower().replace("\u2212", "-")
    zone = _ZONE.fullmatch(text)
    if zone:
        catalogue, sign, two, one, number, rest = zone.groups()
        sign = sign or ("-" if catalogue in ("cd", "cpd") else "+")
        return f"{catalogue}{sign}{int(two or one)}.{number}{_plain(rest)}"
    # hours, minutes and degrees: "wd1657_343"
    return _plain(re.sub(r"(?<=[a-z]\d{4})_(?=\d)", "+", text))


def _plain(text: str) -> str:
    """Letters and numbers of a name, of which what parts two numbers is told: a "+", or anything else."""
    out = ""
    for sign, part in re.findall(r"(\+?)([a-z]+|\d+)", text):
        if part.isdigit():
            part = part.lstrip("0") or "0"
            out += sign or ("." if out[-1:].isdigit() else "")
        out += part
    return out


def join_labels(table: Table, labels: Table | str | os.PathLike | None) -> Table:
    """Table of stars with the columns of a second table, matched by name.

    Parameters
    ----------
    table : `~astropy.table.Table`
        With a column ``name``.
    labels : `~astropy.table.Table` or path, optional
        With a column ``name`` and others such as ``teff``, ``logg``, ``feh``, ``ebv`` (any case); a path is read by
        ``Table.read``.

    Raises
    ------
    ValueError
        No column ``name``, two rows of one star, or no star in common.
    """
    if labels is None:
        return table
    if not isinstance(labels, Table):
        path = Path(labels)
        if not path.is_file():
            raise FileNotFoundError(f"no such table of labels: {path}")
        kinds = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits", ".txt": "ascii"}
        with damage(path, "library file"):
            labels = Table.read(path, format=kinds.get(path.suffix.lower()))
    columns = {str(column).lower(): column for column in labels.colnames}
    if "name" not in columns:
        raise ValueError(f"the table of labels has no column 'name'; it has {', '.join(labels.colnames)}")
    rows: dict[str, int] = {}
    for i, name in enumerate(labels[columns["name"]]):
        if star_key(name) in rows:
            raise ValueError(f"the table of labels has two rows of {name}")
        rows[star_key(name)] = i
    index = [rows.get(star_key(name), -1) for name in table["name"]]
    if all(i < 0 for i in index):
        raise ValueError("the table of labels has no star in common with the library")
    out = Table(table, copy=True)
    for key, column in columns.items():
        if key == "name":
            continue
        values = labels[column]
        if np.asarray(values).dtype.kind in "fiu":
            values = np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
            out[key] = [values[i] if i >= 0 else np.nan for i in index]
        else:
            out[key] = [str(values[i]) if i >= 0 else "" for i in index]
    return out


def common_grid(
    grid: np.ndarray, wavelength: np.ndarray, flux: np.ndarray, good: np.ndarray | None = None
) -> np.ndarray:
    """Flux (n,) on another, finer grid by a cubic spline through its good pixels; NaN beyond them and in wide gaps."""
    from scipy.interpolate import CubicSpline

    good = np.isfinite(flux) if good is None else good & np.isfinite(flux)
    out = np.full(grid.size, np.nan)
    if good.sum() < 4:
        return out
    w, f = wavelength[good], flux[good]
    inside = (grid >= w[0]) & (grid <= w[-1])
    out[inside] = CubicSpline(w, f)(grid[inside])
    # no spline across gaps: more than three of the star's own pixels
    right = np.clip(np.searchsorted(w, grid), 1, w.size - 1)
    pixel = np.interp(grid, wavelength, np.gradient(wavelength))
    out[w[right] - w[right - 1] > 3.5 * pixel] = np.nan
    return out
