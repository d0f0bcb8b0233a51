"""A user's own exposures of one star, as a table of files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import astropy.units as u
from astropy.time import Time

from lamost_lsf.errors import FormatError
from lamost_lsf.experiments.visits import ArcBook, PixelVisit, PublishedVisit, Visit, pixel_spectrum
from lamost_lsf.time import lmjm_to_time

__all__ = ["COLUMNS", "ManifestError", "read_manifest"]

#: Columns that a manifest may have; the first must be there.
COLUMNS = ("spectrum", "arc", "fiber", "spectrograph", "time", "helio_rv", "epoch", "name")


class ManifestError(FormatError):
    """A manifest that cannot be used; the message begins with file and line number."""


@dataclass(frozen=True)
class _Entry:
    line: int
    spectrum: Path
    arcs: tuple[Path, ...]
    fiber: int | None
    spectrograph: int | None
    time: Time | None
    helio_rv: float | None
    epoch: str | None
    name: str


def read_manifest(path: str | PathLike, *, pipeline_center: str = "sersic") -> list[Visit]:
    """Visits of a manifest: a CSV file, one exposure a line.

    The whole file is checked, and every file that it names must exist, before the first spectrum is opened.

    Parameters
    ----------
    path : str or path
        Columns, in any order: ``spectrum`` (a published file; or, with ``arc``, an extracted exposure in the detector's
        pixels, as `~lamost_lsf.ArcExposure` writes them); ``arc`` (files of arcs, several separated by semicolons, of
        which the nearest in time is used); ``fiber`` and ``spectrograph`` (needed with ``arc`` and, otherwise, where
        the header does not say); ``time`` (UTC date or LMJM; by default the file's); ``helio_rv`` (km/s; by default
        the header's, or 0); ``epoch`` ("before" or "after"); ``name``. Paths are relative to the manifest. Lines that
        begin with # are skipped.
    pipeline_center : str
        Centre of the published wavelengths, where files do not say it.

    Returns
    -------
    list of Visit

    Raises
    ------
    ManifestError
        Unknown or missing columns, cells that are not what they should be, files that do not exist, an exposure twice,
        a file that cannot be read; with the line number.
    OSError
        The manifest itself cannot be read.
    """
    entries = _entries(Path(path))
    visits: list[Visit] = []
    books: dict[tuple[tuple[Path, ...], int], ArcBook] = {}
    exposures: dict[Path, Any] = {}
    for entry in entries:
        try:
            visits.append(_visit(entry, pipeline_center, books, exposures))
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise ManifestError(f"{path}:{entry.line}: {error}") from error
    return visits


def _entries(path: Path) -> list[_Entry]:
    # csv's own line numbers count the lines of quoted cells too
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = [line if not line.lstrip().startswith("#") else "\n" for line in file]
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    entries: list[_Entry] = []
    seen: dict[tuple[Any, ...], int] = {}

    def fail(text: str, line: int) -> None:
        raise ManifestError(f"{path}:{line}: {text}")

    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            line = reader.line_num
            if not any(cells):
                continue
            if header is None:
                header = [cell.lower() for cell in cells]
                unknown = [c for c in header if c not in COLUMNS]
                if unknown or "spectrum" not in header or len(set(header)) < len(header):
                    fail(f"the first line must name columns of {', '.join(COLUMNS)}, got {', '.join(cells)}", line)
                continue
            if len(cells) != len(header):
                fail(f"{len(cells)} cells, the header has {len(header)}", line)
            try:
                entry = _entry(dict(zip(header, cells, strict=True)), line, path.parent)
            except ValueError as error:
                fail(str(error), line)
            key = (entry.spectrum.resolve(), entry.fiber)
            if key in seen:
                fail(f"{entry.spectrum} is already on line {seen[key]}", line)
            seen[key] = line
            entries.append(entry)
    except csv.Error as error:
        fail(str(error), reader.line_num)
    if not entries:
        fail("no exposure", max(len(lines), 1))
    return entries


def _entry(row: dict[str, str], line: int, folder: Path) -> _Entry:
    def file(text: str) -> Path:
        found = folder / text
        if not found.is_file():
            raise ValueError(f"no such file: {found}")
        return found

    def whole(name: str, high: int) -> int | None:
        text = row.get(name, "")
        if not text:
            return None
        if not text.isdigit() or not 1 <= int(text) <= high:
            raise ValueError(f"{name} must be 1-{high}, got {text!r}")
        return int(text)

    if not row["spectrum"]:
        raise ValueError("no spectrum")
    spectrum = file(row["spectrum"])
    arcs = tuple(file(part.strip()) for part in row.get("arc", "").split(";") if part.strip())
    fiber, spectrograph = whole("fiber", 250), whole("spectrograph", 16)
    if arcs and fiber is None:
        raise ValueError("an exposure with arcs needs its fiber")
    helio = None
    if row.get("helio_rv"):
        try:
            helio = float(row["helio_rv"])
        except ValueError:
            raise ValueError(f"helio_rv must be a number (km/s), got {row['helio_rv']!r}") from None
        if not abs(helio) < 50.0:
            raise ValueError(f"helio_rv must be within 50 km/s, which the Earth's motion is, got {helio:g}")
    epoch = row.get("epoch", "").lower() or None
    if epoch not in (None, "before", "after"):
        raise ValueError(f"epoch must be before or after, got {row['epoch']!r}")
    return _Entry(
        line, spectrum, arcs, fiber, spectrograph, _time(row.get("time", "")), helio, epoch,
        row.get("name") or spectrum.name,
    )  # fmt: skip


def _time(text: str) -> Time | None:
    if not text:
        return None
    try:
        return lmjm_to_time(float(text))
    except ValueError:
        try:
            return Time(text, scale="utc")
        except ValueError:
            raise ValueError(f"time must be a UTC date (2017-01-05T14:00) or LMJM, got {text!r}") from None


def _visit(
    entry: _Entry, pipeline_center: str, books: dict[Any, ArcBook], exposures: dict[Path, Any]
) -> PixelVisit | PublishedVisit:
    from lamost_lsf.arcs import ArcExposure

    labels = {"fiber": entry.fiber, "spectrograph": entry.spectrograph, "time": entry.time}
    labels = {key: value for key, value in labels.items() if value is not None}
    if not entry.arcs:
        spectrum = _published(entry.spectrum)
        spectrum.meta.update(labels)
        if entry.helio_rv is not None:
            spectrum.meta.update(helio_rv=entry.helio_rv * u.km / u.s, frame="heliocentric")
        if spectrum.meta.get("wavelength_center") is None:
            spectrum.meta["wavelength_center"] = pipeline_center
        if not isinstance(spectrum.meta.get("time"), Time):
            raise ValueError(f"{entry.spectrum}: the file does not say its time; the manifest must")
        return PublishedVisit(entry.name, spectrum, epoch=entry.epoch)

    def read(path: Path) -> ArcExposure:
        if path not in exposures:
            exposures[path] = ArcExposure.read(path)
        return exposures[path]

    key = (entry.arcs, entry.fiber)
    if key not in books:
        books[key] = ArcBook([read(path) for path in entry.arcs], fiber=[entry.fiber])
    spectrum = pixel_spectrum(ArcExposure.read(entry.spectrum), entry.fiber)
    spectrum.meta.update(labels)
    return PixelVisit(
        entry.name, spectrum, books[key], helio_rv=entry.helio_rv or 0.0, pipeline_center=pipeline_center,
        epoch=entry.epoch,
    )  # fmt: skip


def _published(path: Path) -> Any:
    from specutils import Spectrum

    from lamost_lsf.io import read_lamost
    from lamost_lsf.io.loaders import sniff

    if sniff(str(path)) is not None:
        return read_lamost(path)
    try:
        return Spectrum.read(path)
    except Exception as error:  # loaders raise whatever comes
        raise ValueError(f"{path}: no spectrum that specutils can read ({error})") from error
