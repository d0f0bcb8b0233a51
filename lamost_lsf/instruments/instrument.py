"""`Instrument`: one arm of a spectrograph, as its TOML file describes it."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np

from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.lines import LineList
from lamost_lsf.units import air_to_vacuum, check_medium, vacuum_to_air

__all__ = ["Instrument", "Quality"]

_REQUIRED = ("name", "arm", "window", "n_samples", "label_medium", "fibers", "spectrographs", "lines")
_OPTIONAL = ("description", "arm_range", "saturation", "quality", "other_lines")
_LINE_KEYS = ("species", "air", "vacuum", "intensity", "blend")


@dataclass(frozen=True)
class Quality:
    """Limits of the quality control of extracted profiles (Liu et al. 2026, section 2.4).

    Attributes
    ----------
    min_flux : float
        Fibres with less than this share of the exposure's median flux are rejected. The paper's half.
    min_snr : float
        Least peak over its noise.
    second_peak : float
        Prominence, relative to the peak, from which a second maximum counts; it must be significant, too.
    background_slope : float
        Largest change of the linear background over the window, relative to the peak.
    max_gap : int
        Most bad pixels in a row outside the window's inner half; within it none is allowed.
    cosmic_sigma : float
        Significance, in standard deviations, of a cosmic ray above the line's typical shape.
    shape_floor : float
        Departure from the typical shape, relative to the peak, that is never taken for a cosmic ray on its own: it is
        added in quadrature to the noise.
    """

    min_flux: float = 0.5
    min_snr: float = 10.0
    second_peak: float = 0.03
    background_slope: float = 0.1
    max_gap: int = 2
    cosmic_sigma: float = 5.0
    shape_floor: float = 0.006

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            whole = f.name == "max_gap"
            ok = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not ok or not np.isfinite(value) or value < 0:
                raise ValueError(
                    f"quality.{f.name} must be {'a whole number' if whole else 'a number'} >= 0, got {value!r}"
                )


@dataclass(frozen=True, eq=False)
class Instrument:
    """One arm of a spectrograph: what has to be known to cut line profiles out of its arcs.

    Attributes
    ----------
    name : str
        Such as "lamost-lrs-blue".
    arm : str
        "blue", "red" or another word.
    lines : LineList
        Lines that profiles are measured on, in order of wavelength.
    window : (float, float)
        Offsets, Angstrom, observed minus true, of the first and last sample.
    n_samples : int
        Samples of a profile.
    label_medium : {"air", "vacuum"}
        Medium of the wavelength label of models trained on the profiles.
    fibers : (int, int)
        First and last fibre number.
    spectrographs : (int, int)
        First and last spectrograph number.
    arm_range : (float, float) or None
        Wavelengths, Angstrom in ``label_medium``, that belong to this arm where a spectrum joins several.
    saturation : float or None
        Counts at which a pixel is full, where that is a property of the instrument.
    quality : Quality
        Limits of the quality control.
    description : str
    other_lines : LineList or None
        Fainter lines of the lamp that no profile is measured on, but whose wings reach into the windows of those that
        are: training fits them away.

    Raises
    ------
    ValueError
        A window that does not enclose 0, too few samples, empty ranges, no lines, lines twice.

    Examples
    --------
    >>> from lamost_lsf.instruments import get_instrument
    >>> blue = get_instrument("lamost-lrs-blue")
    >>> blue
    <Instrument lamost-lrs-blue: blue arm, 7 lines, 600 samples -8.335..+9.25 A, fibres 1-250>
    >>> blue.offset[[0, -1]]
    array([-8.335,  9.25 ])
    """

    name: str
    arm: str
    lines: LineList
    window: tuple[float, float]
    n_samples: int
    label_medium: str
    fibers: tuple[int, int]
    spectrographs: tuple[int, int]
    arm_range: tuple[float, float] | None = None
    saturation: float | None = None
    quality: Quality = field(default_factory=Quality)
    description: str = ""
    other_lines: LineList | None = None

    def __post_init__(self) -> None:
        for key in ("name", "arm"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key).strip():
                raise ValueError(f"{key} must be a word, got {getattr(self, key)!r}")
        low, high = self._pair("window", float)
        if not low < 0.0 < high:
            raise ValueError(f"window must enclose 0 (the line), got {low} to {high} Angstrom")
        if isinstance(self.n_samples, bool) or not isinstance(self.n_samples, int) or self.n_samples < 16:
            raise ValueError(f"n_samples must be a whole number of at least 16, got {self.n_samples!r}")
        object.__setattr__(self, "label_medium", check_medium(self.label_medium))
        for key in ("fibers", "spectrographs"):
            first, last = self._pair(key, int)
            if not 1 <= first <= last:
                raise ValueError(f"{key} must be first and last number, from 1, got {first} and {last}")
        if self.arm_range is not None:
            low, high = self._pair("arm_range", float)
            if not 0 < low < high:
                raise ValueError(f"arm_range must be two increasing wavelengths, got {low} and {high}")
        if self.saturation is not None and not (isinstance(self.saturation, (int, float)) and self.saturation > 0):
            raise ValueError(f"saturation must be a positive number of counts, got {self.saturation!r}")
        if not isinstance(self.lines, LineList) or len(self.lines) == 0:
            raise ValueError("lines must be a LineList with at least one line")
        if np.any(np.diff(self.lines.vacuum) <= 0):
            raise ValueError("lines must be different from one another")
        if self.other_lines is not None and not isinstance(self.other_lines, LineList):
            raise ValueError(f"other_lines must be a LineList, got {type(self.other_lines).__name__}")

    def _pair(self, key: str, kind: type) -> tuple[Any, Any]:
        value = getattr(self, key)
        allowed = (int,) if kind is int else (int, float)
        if (
            not isinstance(value, (tuple, list))
            or len(value) != 2
            or not all(isinstance(v, allowed) and not isinstance(v, bool) and np.isfinite(v) for v in value)
        ):
            word = "whole numbers" if kind is int else "numbers"
            raise ValueError(f"{key} must be two {word}, got {value!r}")
        pair = (kind(value[0]), kind(value[1]))
        object.__setattr__(self, key, pair)
        return pair

    # -- what follows from the file ------------------------------------------------------------------------

    @property
    def offset(self) -> np.ndarray:
        """Offsets of the samples, Angstrom, uniform, shape (n_samples,)."""
        return np.linspace(*self.window, self.n_samples)

    @property
    def label_wavelength(self) -> u.Quantity:
        """Wavelengths of the lines in ``label_medium``, shape (n_lines,)."""
        return (self.lines.air if self.label_medium == "air" else self.lines.vacuum) * u.AA

    @property
    def digest(self) -> str:
        """Short fingerprint of lines and grid: data of different fingerprints must not be mixed."""
        facts = [
            self.name, self.arm, self.window, self.n_samples, self.label_medium,
            self.lines.species.tolist(), self.lines.air.tolist(), self.lines.vacuum.tolist(),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def neighbour_offsets(self, overlap: float = 2.0) -> np.ndarray:
        """Offsets (n_lines, Q), Angstrom, of the lamp's lines whose profiles reach into each line's window; NaN-padded.

        Parameters
        ----------
        overlap : float
            Angstrom by which a neighbour's window must overlap the line's.
        """
        reach = self.window[1] - self.window[0] - overlap
        lamps = [None] if self.other_lines is None else [None, self.other_lines]
        tables = [self.lines.neighbours((-reach, reach), lamp) for lamp in lamps]
        rows: list[list[float]] = [[] for _ in range(len(self.lines))]
        for table in tables:
            for line, offset in zip(table["line"], table["offset"], strict=True):
                rows[line].append(float(offset))
        out = np.full((len(rows), max(map(len, rows))), np.nan)
        for line, offsets in enumerate(rows):
            out[line, : len(offsets)] = sorted(offsets, key=abs)
        return out

    def arm_limits(self, medium: str = "vacuum") -> u.Quantity | None:
        """`arm_range` in a medium; None where the instrument has none."""
        if self.arm_range is None:
            return None
        values = np.array(self.arm_range)
        if check_medium(medium) != self.label_medium:
            values = air_to_vacuum(values) if self.label_medium == "air" else vacuum_to_air(values)
        return values * u.AA

    def check_fibers(self, fiber: np.ndarray) -> None:
        """Raise `~lamost_lsf.errors.OutOfRangeError` unless all fibre numbers belong to the instrument."""
        fiber = np.atleast_1d(fiber)
        first, last = self.fibers
        outside = (fiber < first) | (fiber > last)
        if np.any(outside):
            raise OutOfRangeError(f"fibre {fiber[outside].flat[0]} is none of {self.name}, which has {first}-{last}")

    def check_spectrograph(self, spectrograph: int) -> None:
        """Raise `~lamost_lsf.errors.OutOfRangeError` unless the instrument has this spectrograph."""
        first, last = self.spectrographs
        if not first <= spectrograph <= last:
            raise OutOfRangeError(f"spectrograph {spectrograph} is none of {self.name}, which has {first}-{last}")

    def replace(self, **changes: Any) -> Instrument:
        """Copy with other values; `Quality` limits may be given by their names."""
        limits = {f.name: changes.pop(f.name) for f in fields(Quality) if f.name in changes}
        if limits:
            changes["quality"] = replace(changes.get("quality", self.quality), **limits)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a file holds them."""
        plain = {
            key: list(value) if isinstance(value := getattr(self, key), tuple) else value
            for key in (*_REQUIRED[:-1], "description", "arm_range", "saturation")
        }
        out = {**{k: v for k, v in plain.items() if v is not None}, "quality": asdict(self.quality)}
        if self.other_lines is not None:
            out["other_lines"] = _plain_lines(self.other_lines)
        return {**out, "lines": _plain_lines(self.lines)}

    def __repr__(self) -> str:
        return (
            f"<Instrument {self.name}: {self.arm} arm, {len(self.lines)} lines, {self.n_samples} samples "
            f"{self.window[0]:+g}..{self.window[1]:+g} A, fibres {self.fibers[0]}-{self.fibers[1]}>"
        )

    # -- files ---------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, content: dict[str, Any], source: str = "instrument") -> Instrument:
        """Instrument from the content of a file.

        Parameters
        ----------
        content : dict
            As `to_dict` gives it.
        source : str
            Named in messages.

        Raises
        ------
        `~lamost_lsf.errors.FormatError`
            Keys that are unknown or missing, or values that cannot be; the message names the key.
        """
        content = dict(content)
        if missing := [key for key in _REQUIRED if key not in content]:
            raise FormatError(f"{source}: {', '.join(missing)} missing")
        if unknown := [key for key in content if key not in (*_REQUIRED, *_OPTIONAL)]:
            allowed = ", ".join((*_REQUIRED, *_OPTIONAL))
            raise FormatError(f"{source}: unknown key {', '.join(unknown)}; known are {allowed}")
        try:
            content["lines"] = _parse_lines(content["lines"], content["name"])
            if "other_lines" in content:
                content["other_lines"] = _parse_lines(content["other_lines"], f"{content['name']}: other lines")
            content["quality"] = _parse_quality(content.get("quality", {}))
            for key in ("window", "fibers", "spectrographs", "arm_range"):
                if isinstance(content.get(key), list):
                    content[key] = tuple(content[key])
            return cls(**content)
        except FormatError:
            raise
        except (TypeError, ValueError) as error:
            raise FormatError(f"{source}: {error}") from None

    @classmethod
    def read(cls, path: str | PathLike) -> Instrument:
        """Read a TOML file.

        Raises
        ------
        `~lamost_lsf.errors.FormatError`
            No TOML, or not the description of an instrument; the message says what is wrong.
        """
        path = Path(path)
        return cls.from_text(path.read_bytes(), str(path))

    @classmethod
    def from_text(cls, content: bytes | str, source: str) -> Instrument:
        """Instrument from the text of a TOML file; ``source`` is named in messages."""
        try:
            text = content.decode("utf-8") if isinstance(content, bytes) else content
            return cls.from_dict(tomllib.loads(text), source)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise FormatError(f"{source} is no TOML file: {error}") from None


def _plain_lines(lines: LineList) -> list[dict[str, Any]]:
    return [
        {
            "species": str(lines.species[i]),
            "air": float(lines.air[i]),
            "vacuum": float(lines.vacuum[i]),
            **({"intensity": float(lines.intensity[i])} if np.isfinite(lines.intensity[i]) else {}),
            "blend": bool(lines.blend[i]),
        }
        for i in range(len(lines))
    ]


def _parse_quality(values: Any) -> Quality:
    if not isinstance(values, dict):
        raise ValueError(f"quality must be a table of limits, got {values!r}")
    known = [f.name for f in fields(Quality)]
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f"unknown limit quality.{unknown[0]}; known are {', '.join(known)}")
    return Quality(**values)


def _parse_lines(rows: Any, name: str) -> LineList:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("lines must be a non-empty list of tables such as {species = 'Hg I', air = 5460.750}")
    columns: dict[str, list[Any]] = {key: [] for key in _LINE_KEYS}
    for i, row in enumerate(rows, 1):
        if unknown := [key for key in row if key not in _LINE_KEYS]:
            raise ValueError(f"line {i}: unknown key {unknown[0]!r}; known are {', '.join(_LINE_KEYS)}")
        wavelengths = {k: row[k] for k in ("air", "vacuum") if k in row}
        if not wavelengths:
            raise ValueError(f"line {i} has neither an air nor a vacuum wavelength")
        for key, value in {**wavelengths, **({"intensity": row["intensity"]} if "intensity" in row else {})}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value) or value <= 0:
                raise ValueError(f"line {i}: {key} must be a positive number, got {value!r}")
        if not isinstance(row.get("blend", False), bool):
            raise ValueError(f"line {i}: blend must be true or false, got {row['blend']!r}")
        air, vacuum = wavelengths.get("air"), wavelengths.get("vacuum")
        columns["air"].append(air if air is not None else float(vacuum_to_air(vacuum)))
        columns["vacuum"].append(vacuum if vacuum is not None else float(air_to_vacuum(air)))
        columns["species"].append(str(row.get("species", "")))
        columns["intensity"].append(float(row.get("intensity", np.nan)))
        columns["blend"].append(row.get("blend", False))
    return LineList(**columns, name=str(name))
