"""Lists of spectral lines: species, air and vacuum wavelengths, intensities, blends; and the tables that hold them."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike

from lamost_lsf.errors import FormatError
from lamost_lsf.units import air_to_vacuum, check_medium, to_angstrom, vacuum_to_air

__all__ = ["LineList"]

#: Largest departure (Angstrom) of a vacuum wavelength from the one that its air wavelength implies: dispersion formulas
#: of standard air differ by less than 1e-3, rounded tables by a few more; an air wavelength in the wrong column by 1.
PAIR_TOLERANCE = 0.01

_SPECIES = re.compile(r"^([A-Z][a-z]?)\s*([IVX]+)$")
_TABLE_FORMATS = ("csv", "lamp", "nist", "pypeit")


@dataclass(frozen=True, eq=False)
class LineList:
    """Spectral lines in order of wavelength.

    Parameters
    ----------
    species : array_like of str, shape (n,)
        Such as "Hg I"; "" where unknown.
    air, vacuum : array_like (n,)
        Wavelengths, Angstrom, in standard air and vacuum.
    intensity : array_like (n,), optional
        Relative; NaN (the default) where unknown.
    blend : array_like of bool (n,), optional
        Lines with a neighbour that an instrumental profile would contain.
    name : str
        Where the list comes from.

    Raises
    ------
    ValueError
        Lengths that differ, wavelengths that are not positive and increasing, or air and vacuum wavelengths that do not
        belong together (`PAIR_TOLERANCE`).

    Examples
    --------
    >>> import astropy.units as u
    >>> from lamost_lsf.lines import LineList
    >>> lines = LineList.from_wavelengths([5460.750, 5769.598, 5790.670] * u.AA, medium="air", species="Hg I")
    >>> print(f"{lines.vacuum[0]:.3f}")
    5462.267
    >>> len(lines.neighbours((-25.0, 25.0)))
    2
    """

    species: np.ndarray
    air: np.ndarray
    vacuum: np.ndarray
    intensity: np.ndarray | None = None
    blend: np.ndarray | None = None
    name: str = ""

    def __post_init__(self) -> None:
        air = np.array(self.air, dtype=np.float64, ndmin=1)
        columns: dict[str, Any] = {
            "air": air,
            "vacuum": np.array(self.vacuum, dtype=np.float64, ndmin=1),
            "species": np.array(self.species, dtype=str, ndmin=1),
            "intensity": np.full(air.shape, np.nan)
            if self.intensity is None
            else np.array(self.intensity, dtype=np.float64, ndmin=1),
            "blend": np.zeros(air.shape, dtype=bool)
            if self.blend is None
            else np.array(self.blend, dtype=bool, ndmin=1),
        }
        for name, values in columns.items():
            if values.ndim != 1 or values.shape != air.shape:
                raise ValueError(f"{name} has shape {values.shape}, air {air.shape}; one value a line is needed")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        for name in ("air", "vacuum"):
            values = columns[name]
            if not np.all(np.isfinite(values) & (values > 0)):
                raise ValueError(f"{name} wavelengths must be positive and finite, got {values}")
        wrong = np.abs(air_to_vacuum(air) - self.vacuum) > PAIR_TOLERANCE
        if np.any(wrong):
            i = int(np.argmax(wrong))
            raise ValueError(
                f"air {air[i]} and vacuum {self.vacuum[i]} A are not one line: {air[i]} A in air is "
                f"{air_to_vacuum(air[i]):.4f} A in vacuum"
            )
        if np.any(np.diff(self.vacuum) < 0):
            i = int(np.argmax(np.diff(self.vacuum) < 0))
            raise ValueError(
                f"lines must be in order of wavelength: {self.air[i]} comes before {self.air[i + 1]} A (air)"
            )

    # -- construction --------------------------------------------------------------------------------------

    @classmethod
    def from_wavelengths(
        cls,
        wavelength: u.Quantity,
        *,
        medium: str,
        species: str | ArrayLike = "",
        intensity: ArrayLike | None = None,
        blend: ArrayLike | None = None,
        name: str = "",
    ) -> LineList:
        """List from wavelengths in one medium, in any order; the other medium's are computed (Ciddor 1996).

        Parameters
        ----------
        wavelength : `~astropy.units.Quantity` (n,)
        medium : {"air", "vacuum"}
            Of ``wavelength``; there is no default.
        species, intensity, blend, name
            As for the class; a single species stands for all lines.

        Raises
        ------
        TypeError
            ``wavelength`` without a unit of length.
        ValueError
            Another medium, lengths that differ.
        """
        given = np.atleast_1d(to_angstrom(wavelength))
        air, vacuum = (given, air_to_vacuum(given)) if check_medium(medium) == "air" else (vacuum_to_air(given), given)
        texts = np.full(given.shape, species) if np.ndim(species) == 0 else np.asarray(species, dtype=str)
        order = np.argsort(given, kind="stable")
        columns = {"species": texts, "intensity": intensity, "blend": blend}
        for key, values in columns.items():
            if values is not None and np.shape(values) != given.shape:
                raise ValueError(f"{key} has shape {np.shape(values)}, wavelength {given.shape}")
        ordered = {key: None if values is None else np.asarray(values)[order] for key, values in columns.items()}
        return cls(air=air[order], vacuum=vacuum[order], name=name, **ordered)

    @classmethod
    def read(
        cls,
        path: str | PathLike,
        *,
        medium: str | None = None,
        format: str | None = None,
        species: str | None = None,
    ) -> LineList:
        """Read a table of lines.

        Parameters
        ----------
        path : path
            See Notes for the layouts.
        medium : {"air", "vacuum"}, optional
            Medium of the wavelengths. It may be left out where the file says it itself, never otherwise: the difference
            is 80 km/s, too much for a guess.
        format : {"lamp", "pypeit", "nist", "csv"}, optional
            Layout; found from the content by default.
        species : str, optional
            For tables that do not name it.

        Returns
        -------
        LineList
            By wavelength, ``name`` being that of the file.

        Raises
        ------
        ValueError
            A medium that the file does not say, or contradicts.
        `~lamost_lsf.errors.FormatError`
            No table of lines.

        Notes
        -----
        ``lamp``: wavelength, intensity, quality (GOOD, BLEND, ...), species, as LAMOST's and SDSS's lamp lists; the
        medium is taken from a comment such as "Wavelengths in air". ``pypeit``: columns between bars, with ``ion``,
        ``wave``, ``amplitude``; vacuum, unless a comment says otherwise. ``nist``: the ASCII output of the NIST Atomic
        Spectra Database, medium from its header, Ritz wavelengths where there are any. ``csv``: a first line with the
        names ``species``, ``air`` and ``vacuum`` (either or both) or ``wavelength``, ``intensity``, ``blend``; comments
        after ``#``.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{path} is not a text file") from None
        layout = _detect(text) if format is None else format
        if layout not in _TABLE_FORMATS:
            raise ValueError(f"format must be one of {', '.join(_TABLE_FORMATS)}, got {format!r}")
        rows = {"csv": _read_csv, "lamp": _read_lamp, "nist": _read_nist, "pypeit": _read_pypeit}[layout](text, path)
        if not rows["wavelength"]:
            raise FormatError(f"{path} holds no line (read as {layout!r})")
        names = [_species(name) or (species or "") for name in rows["species"]]
        columns = {"species": names, "intensity": rows["intensity"], "blend": rows["blend"]}
        if "air" in rows:
            order = np.argsort(rows["vacuum"], kind="stable")
            ordered = {key: np.asarray(values)[order] for key, values in {**columns, "air": rows["air"]}.items()}
            return cls(vacuum=np.asarray(rows["vacuum"])[order], name=path.name, **ordered)
        stated = rows["medium"] or _stated_medium(text) or ("vacuum" if layout == "pypeit" else None)
        if medium is None and stated is None:
            raise ValueError(f"{path} does not say whether its wavelengths are in air or in vacuum: pass medium=")
        if medium is not None and stated is not None and check_medium(medium) != stated:
            raise ValueError(f"{path} says that its wavelengths are {stated} wavelengths, medium={medium!r} was passed")
        return cls.from_wavelengths(
            np.array(rows["wavelength"]) * u.AA, medium=medium or stated, name=path.name, **columns
        )

    # -- a list of lines -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.vacuum.size

    def __getitem__(self, item: slice | np.ndarray) -> LineList:
        """Some of the lines: a slice, indices in ascending order, or a boolean array."""
        item = np.atleast_1d(item) if not isinstance(item, slice) else item
        parts = {key: getattr(self, key)[item] for key in ("species", "air", "vacuum", "intensity", "blend")}
        return LineList(**parts, name=self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LineList):
            return NotImplemented
        return (
            len(self) == len(other)
            and all(np.array_equal(getattr(self, k), getattr(other, k)) for k in ("species", "air", "vacuum", "blend"))
            and np.array_equal(self.intensity, other.intensity, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        span = f", {self.air[0]:.2f}-{self.air[-1]:.2f} A (air)" if len(self) else ""
        return f"<LineList {self.name!r}: {len(self)} lines{span}>"

    @property
    def wavelength(self) -> u.Quantity:
        """Vacuum wavelengths (n,)."""
        return self.vacuum * u.AA

    def between(self, low: u.Quantity, high: u.Quantity, *, medium: str = "vacuum") -> LineList:
        """Lines with wavelengths from ``low`` to ``high``, both in ``medium``."""
        values = self.air if check_medium(medium) == "air" else self.vacuum
        return self[(values >= to_angstrom(low, "low")) & (values <= to_angstrom(high, "high"))]

    def to_table(self) -> Table:
        """Table with one row a line; wavelengths in Angstrom."""
        table = Table({k: getattr(self, k) for k in ("species", "air", "vacuum", "intensity", "blend")})
        table["air"].unit = table["vacuum"].unit = u.AA
        table.meta["name"] = self.name
        return table

    # -- neighbours ------------------------------------------------------------------------------------------

    def neighbours(
        self,
        window: tuple[float, float] | u.Quantity,
        lamp: LineList | None = None,
        *,
        min_ratio: float = 0.0,
        same_line: float = 0.05,
    ) -> Table:
        """Lines of a lamp inside the windows of these lines.

        Parameters
        ----------
        window : (float, float) or `~astropy.units.Quantity`
            Offsets (Angstrom) from a line within which a neighbour counts; negative to positive.
        lamp : LineList, optional
            A fuller list of the lamp's lines; these lines themselves by default.
        min_ratio : float
            Neighbours fainter than this, relative to the line, are left out; those of unknown intensity never are.
        same_line : float
            Lines of ``lamp`` this close (Angstrom), of the same species or of none, are the line itself: lists of
            different sources agree to a few mA.

        Returns
        -------
        `~astropy.table.Table`
            One row a pair: ``line`` (index), ``species``, ``wavelength``, ``neighbour_species``,
            ``neighbour_wavelength`` (vacuum Angstrom), ``offset`` (neighbour minus line,
            Angstrom), ``ratio`` (of intensities; NaN unknown).
        """
        low, high = _window(window)
        others = self if lamp is None else lamp
        first = np.searchsorted(others.vacuum, self.vacuum + low, side="left")
        last = np.searchsorted(others.vacuum, self.vacuum + high, side="right")
        pairs = [(i, j) for i in range(len(self)) for j in range(first[i], last[i])]
        i, j = (np.array(k, dtype=int) for k in zip(*pairs, strict=True)) if pairs else (np.empty(0, int),) * 2
        offset = others.vacuum[j] - self.vacuum[i]
        one, two = self.species[i], others.species[j]
        itself = (np.abs(offset) <= same_line) & ((one == two) | (one == "") | (two == ""))
        if lamp is None:
            itself = i == j
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = others.intensity[j] / self.intensity[i]
        ratio[~(np.isfinite(ratio) & (ratio > 0))] = np.nan
        keep = ~itself & ~(ratio < min_ratio)
        table = Table(
            {
                "line": i[keep],
                "species": one[keep],
                "wavelength": self.vacuum[i][keep],
                "neighbour_species": two[keep],
                "neighbour_wavelength": others.vacuum[j][keep],
                "offset": offset[keep],
                "ratio": ratio[keep],
            }
        )
        for name in ("wavelength", "neighbour_wavelength", "offset"):
            table[name].unit = u.AA
        return table

    def with_blends(
        self, window: tuple[float, float] | u.Quantity, lamp: LineList | None = None, *, min_ratio: float = 0.0
    ) -> LineList:
        """Copy in which lines with `neighbours` are flagged as blends (besides those that were before)."""
        blend = np.array(self.blend)
        blend[np.asarray(self.neighbours(window, lamp, min_ratio=min_ratio)["line"], dtype=int)] = True
        return replace(self, blend=blend)


def _window(window: tuple[float, float] | u.Quantity) -> tuple[float, float]:
    values = to_angstrom(window, "window") if isinstance(window, u.Quantity) else np.asarray(window, dtype=np.float64)
    if values.shape != (2,) or not values[0] < 0 < values[1]:
        raise ValueError(f"window must be two offsets, one below and one above 0, got {window!r}")
    return float(values[0]), float(values[1])


# -- tables -----------------------------------------------------------------------------------------------------


def _species(text: str) -> str:
    """Species with a space before the stage: HgI becomes Hg I. Anything else stays as it is."""
    match = _SPECIES.match(text.strip())
    return f"{match[1]} {match[2]}" if match else text.strip()


def _stated_medium(text: str) -> str | None:
    """Medium that the comments state in so many words; None where they do not, or state both.

    A remark such as "these look like air wavelengths" is an opinion, and not taken.
    """
    found = set()
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            for pattern in (
                r"wavelengths?\s+(?:are\s+)?(?:given\s+)?in:?\s+_?(air|vacuum)\b",
                r"_(air|vacuum)_\s+wavelengths",
                r"^#+\s*(air|vacuum)\b",
                r"\bmedium\s*[:=]\s*['\"]?(air|vacuum)\b",
            ):
                found.update(m.lower() for m in re.findall(pattern, line, re.IGNORECASE))
    return found.pop() if len(found) == 1 else None


def _detect(text: str) -> str:
    for line in text.splitlines():
        bare = line.strip()
        if re.match(r"^\|\s*ion\s*\|", bare):
            return "pypeit"
        if re.match(r"^#?\s*Observed\s*\|", bare):
            return "nist"
        if bare.startswith("#") or not bare:
            continue
        if "," in bare or bare.lower() in ("air", "vacuum", "wavelength"):
            return "csv"
        if re.match(r"^\d+(\.\d*)?\s+\d", bare):
            return "lamp"
        break
    raise FormatError("not a table of lines in a known layout; pass format= (" + ", ".join(_TABLE_FORMATS) + ")")


def _empty() -> dict[str, Any]:
    return {"wavelength": [], "species": [], "intensity": [], "blend": [], "medium": None}


def _number(text: str, path: Path, line: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FormatError(f"{path}: {text.strip()!r} is no number in the line {line.strip()!r}") from None


def _read_lamp(text: str, path: Path) -> dict[str, Any]:
    rows = _empty()
    for line in text.splitlines():
        parts = line.split("#")[0].split()
        if not parts:
            continue
        if len(parts) < 3:
            raise FormatError(f"{path}: wavelength, intensity and quality expected, got {line.strip()!r}")
        rows["wavelength"].append(_number(parts[0], path, line))
        rows["intensity"].append(_number(parts[1], path, line))
        rows["blend"].append(parts[2].upper() == "BLEND")
        rows["species"].append(" ".join(parts[3:5]))
    return rows


def _read_pypeit(text: str, path: Path) -> dict[str, Any]:
    rows, columns = _empty(), None
    for line in text.splitlines():
        if not line.strip().startswith("|"):
            continue
        parts = [part.strip() for part in line.strip().strip("|").split("|")]
        if columns is None:
            columns = parts
            if not {"ion", "wave"} <= set(columns):
                raise FormatError(f"{path} has no columns 'ion' and 'wave', but {columns}")
            continue
        if len(parts) != len(columns):
            raise FormatError(f"{path}: {len(columns)} columns expected, got {line.strip()!r}")
        row = dict(zip(columns, parts, strict=True))
        rows["wavelength"].append(_number(row["wave"], path, line))
        rows["intensity"].append(_number(row["amplitude"], path, line) if "amplitude" in row else np.nan)
        rows["blend"].append(False)
        rows["species"].append(row["ion"])
    return rows


def _read_nist(text: str, path: Path) -> dict[str, Any]:
    rows = _empty()
    head = re.search(r"^#?\s*(Air|Vac)\w*\s*\(.{1,3}\)\s*\|", text, re.MULTILINE)
    rows["medium"] = None if head is None else {"Air": "air", "Vac": "vacuum"}[head[1]]
    for line in text.splitlines():
        if line.lstrip().startswith("#") or "|" not in line:
            continue
        observed, ritz, intensity = ([*line.split("|"), "", ""])[:3]
        # NIST marks extrapolated and doubtful values with +, ?, brackets; intensities with letters
        value = re.search(r"\d+\.\d*", ritz) or re.search(r"\d+\.\d*", observed)
        if value is None:
            continue
        strength = re.search(r"\d+(\.\d*)?", intensity)
        rows["wavelength"].append(float(value[0]))
        rows["intensity"].append(float(strength[0]) if strength else np.nan)
        rows["blend"].append(False)
        rows["species"].append("")
    return rows


def _read_csv(text: str, path: Path) -> dict[str, Any]:
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    table = list(csv.reader(kept, skipinitialspace=True))
    columns = [name.strip().lower() for name in table[0]] if table else []
    known = {"species", "air", "vacuum", "wavelength", "intensity", "blend"}
    if unknown := [name for name in columns if name not in known]:
        raise FormatError(
            f"{path}: columns {unknown} are none of {sorted(known)}; the first line must name the columns"
        )
    if "wavelength" in columns and {"air", "vacuum"} & set(columns):
        raise FormatError(f"{path} has both 'wavelength' and a column of a known medium")
    given = [name for name in ("wavelength", "air", "vacuum") if name in columns]
    if not given:
        raise FormatError(f"{path} has no column 'air', 'vacuum' or 'wavelength'")
    rows = _empty()
    values: dict[str, list[float]] = {name: [] for name in given}
    for line, parts in zip(kept[1:], table[1:], strict=True):
        if len(parts) != len(columns):
            raise FormatError(f"{path}: {len(columns)} columns expected, got {line.strip()!r}")
        row = dict(zip(columns, parts, strict=True))
        for name in given:
            values[name].append(_number(row[name], path, line))
        text_value = row.get("intensity", "").strip()
        rows["intensity"].append(_number(text_value, path, line) if text_value else np.nan)
        flag = row.get("blend", "").strip().lower()
        if flag not in ("", "0", "1", "false", "true"):
            raise FormatError(f"{path}: blend must be true or false, got {flag!r}")
        rows["blend"].append(flag in ("1", "true"))
        rows["species"].append(row.get("species", ""))
    rows["wavelength"] = values[given[0]]
    if len(given) == 2:
        rows.update(values)
    elif given[0] != "wavelength":
        rows["medium"] = given[0]
    return rows
