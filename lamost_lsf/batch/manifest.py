"""What a survey measures: a list of spectra from paths, patterns, or a table of paths, checked before any work."""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lamost_lsf.errors import FormatError

__all__ = ["PATH_COLUMNS", "SpectrumList", "find_spectra", "read_manifest"]

#: Names that a manifest's column of paths may have, where none is given; case does not matter.
PATH_COLUMNS = ("path", "file", "filename", "filepath")
_EXTENSION_COLUMN = "extension"
_TEXT = (".ecsv", ".csv", ".tsv", ".txt", ".list")
_BINARY = (".fits", ".fit", ".fits.gz", ".parquet", ".pq")
_WILD = re.compile(r"[*?\[]")
#: Files at the start of a manifest of which at least one must be there.
_SAMPLE = 20
_ECSV_DELIMITER = re.compile(r"#\s*delimiter:\s*(['\"]?)(.)\1\s*$")


@dataclass(frozen=True)
class SpectrumList:
    """Spectra of a survey, in order.

    Attributes
    ----------
    paths : list of str
        Absolute.
    extensions : list of str or None
        Table of a file of several spectra, "" for its first; None where all are "".

    Examples
    --------
    >>> from lamost_lsf.batch import SpectrumList
    >>> spectra = SpectrumList(["/data/a.fits", "/data/b.fits"])
    >>> len(spectra), spectra.part(1, 2)
    (2, [('/data/b.fits', '')])
    """

    paths: list[str]
    extensions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, begin: int, end: int) -> list[tuple[str, str]]:
        """Path and extension of some of them."""
        paths = self.paths[begin:end]
        extensions = [""] * len(paths) if self.extensions is None else self.extensions[begin:end]
        return list(zip(paths, extensions, strict=True))

    def keys(self) -> np.ndarray:
        """What identifies each of them: 16 bytes of a digest of path and extension, ndarray (n,), S16."""
        # a hash's trailing zero bytes are lost in an S16, which costs 8 of 128 bits in one of 256: no matter
        step = 65536
        parts = [
            np.array([item_key(*item) for item in self.part(i, i + step)], dtype="S16")
            for i in range(0, len(self), step)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype="S16")


def item_key(path: str, extension: str) -> bytes:
    """16 bytes that stand for a spectrum."""
    return hashlib.blake2b(f"{path}\0{extension}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def find_spectra(
    inputs: str | PathLike | Iterable[str | PathLike] = (),
    *,
    manifest: str | PathLike | None = None,
    column: str | None = None,
    root: str | PathLike | None = None,
) -> SpectrumList:
    """Spectra of paths and patterns, or of a manifest.

    Parameters
    ----------
    inputs : path, pattern, or iterable of them
        Patterns have ``*``, ``?``, ``[...]``, and ``**`` for folders at any depth; a folder stands for all FITS files
        (``*.fits``, ``*.fits.gz``) under it. What several patterns find is taken once. A path that is no pattern need
        not exist: it becomes a row that says so.
    manifest : path, optional
        Table of paths in place of ``inputs``; see `read_manifest`.
    column, root
        See `read_manifest`.

    Returns
    -------
    SpectrumList
        Paths and patterns in the order given, what a pattern finds by name.

    Raises
    ------
    FileNotFoundError
        A pattern that fits no file.
    ValueError
        Nothing to measure; both ``inputs`` and ``manifest``.
    FormatError
        A wrong manifest; the message has the number of the line.

    Examples
    --------
    >>> import os
    >>> from lamost_lsf.batch import find_spectra
    >>> spectra = find_spectra(["b.fits", "a.fits", "b.fits"])
    >>> [os.path.basename(path) for path in spectra.paths]
    ['b.fits', 'a.fits']
    """
    inputs = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    if manifest is not None:
        if inputs:
            raise ValueError("give paths and patterns, or a manifest, not both")
        return read_manifest(manifest, column=column, root=root)
    if column is not None or root is not None:
        raise ValueError("column and root go with a manifest")
    found: dict[str, None] = {}
    for item in inputs:
        text = os.path.abspath(os.fspath(item))
        if os.path.isdir(text):
            inside = sorted(os.path.join(folder, name) for folder, _, names in os.walk(text) for name in names)
            inside = [path for path in inside if path.lower().endswith((".fits", ".fits.gz", ".fit", ".fit.gz"))]
            if not inside:
                raise FileNotFoundError(f"folder {text} holds no FITS file")
        elif _WILD.search(text) and not os.path.exists(text):
            inside = sorted(path for path in glob.iglob(text, recursive=True) if os.path.isfile(path))
            if not inside:
                raise FileNotFoundError(f"no file fits {os.fspath(item)}")
        else:
            inside = [text]
        found.update(dict.fromkeys(inside))
    if not found:
        raise ValueError("no spectra: give paths, patterns, folders or a manifest")
    return SpectrumList(list(found))


def read_manifest(
    path: str | PathLike, *, column: str | None = None, root: str | PathLike | None = None
) -> SpectrumList:
    r"""Spectra of a table of paths; anything wrong with it stops here, with the number of the line.

    Parameters
    ----------
    path : path
        ECSV, CSV (.csv, .tsv), FITS or Parquet table with a column of paths and perhaps one named "extension"; or one
        path a line (.txt, .list). Lines that begin with # are comments.
    column : str, optional
        Column of paths; one of `PATH_COLUMNS` by default.
    root : path, optional
        Folder that relative paths begin from; the manifest's own by default.

    Raises
    ------
    FileNotFoundError
        No such manifest.
    FormatError
        A column that is missing or not of text, a line of too many or too few fields, an empty path, a spectrum that
        is named twice, no line at all, or not one of the first files in its place. Other files that are missing become
        rows that say so: in ten million, some are.
    ImportError
        A Parquet table without pyarrow.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lamost_lsf.batch import read_manifest
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "spectra.csv").write_text("path,obsid\na.fits,1\n,2\n")
    ...     read_manifest(Path(folder, "spectra.csv"))
    Traceback (most recent call last):
    ...
    lamost_lsf.errors.FormatError: ...spectra.csv, line 3: the path is empty
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such manifest: {path}")
    name = path.name.lower()
    if name.endswith(_TEXT):
        rows = _text_rows(path, column)
        word = "line"
    elif name.endswith(_BINARY):
        rows = _table_rows(path, column)
        word = "row"
    else:
        raise FormatError(f"{path}: a manifest ends in {', '.join(_TEXT + _BINARY)}")
    base = os.path.abspath(path.parent if root is None else root)
    paths: list[str] = []
    extensions: list[str] = []
    numbers = array("q")
    for number, file, extension in rows:
        if not file:
            raise FormatError(f"{path}, {word} {number}: the path is empty")
        if "\0" in file or "\n" in file:
            raise FormatError(f"{path}, {word} {number}: {file!r} is not a path")
        paths.append(os.path.normpath(os.path.join(base, os.path.expanduser(file))))
        extensions.append(extension)
        numbers.append(number)
    if not paths:
        raise FormatError(f"{path}: no spectrum in it")
    if not any(os.path.exists(file) for file in paths[:_SAMPLE]):
        n = min(len(paths), _SAMPLE) - 1
        more = f", nor do the next {n}" if n else ""
        raise FormatError(f"{path}, {word} {numbers[0]}: {paths[0]} does not exist{more}; root= is their folder")
    spectra = SpectrumList(paths, extensions if any(extensions) else None)
    _check_twice(spectra, numbers, f"{path}, {word}", word)
    return spectra


def _check_twice(spectra: SpectrumList, numbers: Sequence[int], where: str, word: str) -> None:
    keys = spectra.keys()
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if again.size:
        # of all that are there twice, the one that a reader of the manifest meets first
        second = int(order[again + 1].min())
        first = int(np.flatnonzero(keys == keys[second])[0])
        raise FormatError(f"{where} {numbers[second]}: {spectra.paths[second]} is also in {word} {numbers[first]}")


def _choose(names: Sequence[str], column: str | None, where: str) -> tuple[int, int | None]:
    """Numbers of the columns of paths and extensions."""
    lower = [name.strip().lower() for name in names]
    if column is not None:
        if column not in names:
            raise FormatError(f"{where}: no column {column!r}; there are {', '.join(names)}")
        index = list(names).index(column)
    else:
        known = [name for name in PATH_COLUMNS if name in lower]
        if not known:
            raise FormatError(
                f"{where}: no column {', '.join(PATH_COLUMNS)}; there are {', '.join(names)}: "
                "column= names the one of paths"
            )
        index = lower.index(known[0])
    return index, lower.index(_EXTENSION_COLUMN) if _EXTENSION_COLUMN in lower else None


def _text_rows(path: Path, column: str | None) -> Iterator[tuple[int, str, str]]:
    """Line number, path and extension of every line of a text file."""
    suffix = path.suffix.lower()
    delimiter = {".csv": ",", ".tsv": "\t", ".ecsv": " "}.get(suffix)
    start = 0  # of a quoted field that runs over several lines, the first counts
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        if delimiter is None:
            for number, line in enumerate(stream, 1):
                text = line.strip()
                if text and not text.startswith("#"):
                    yield number, text, ""
            return
        body = _Lines(stream)
        head = body.skip_comments()
        if suffix == ".ecsv":
            if not (head and head[0].startswith("# %ECSV")):
                raise FormatError(f"{path}, line 1: an ECSV file begins with '# %ECSV'")
            for line in head:
                if match := _ECSV_DELIMITER.match(line.rstrip()):
                    delimiter = match[2]
        reader = csv.reader(body, delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            where = f"{path}, line {body.number}"
            if not names:
                raise FormatError(f"{where}: no line of column names")
            file, extension = _choose(names, column, where)
            start = body.number + 1
            for fields in reader:
                number, start = start, body.number + 1
                blank = len(fields) == 1 and fields[0].isspace()
                if not fields or blank or fields[0].startswith("#"):
                    continue
                if len(fields) != len(names):
                    raise FormatError(
                        f"{path}, line {number}: {len(fields)} fields, but {len(names)} columns: {', '.join(names)}"
                    )
                yield number, fields[file].strip(), "" if extension is None else fields[extension].strip().upper()
        except csv.Error as error:
            raise FormatError(f"{path}, line {max(start, 1)}: {error}") from None


class _Lines:
    """Lines of a stream, counted, with the comments at its head apart."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._kept, self.number = stream, None, 0

    def skip_comments(self) -> list[str]:
        head = []
        for line in self._stream:
            if not line.startswith("#") and line.strip():
                self._kept = line
                break
            head.append(line)
            self.number += 1
        return head

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, self._kept = self._kept, None
        if line is None:
            line = next(self._stream)
        self.number += 1
        return line


def _table_rows(path: Path, column: str | None) -> Iterator[tuple[int, str, str]]:
    """Row number (from 1), path and extension of every row of a FITS or Parquet table."""
    if path.name.lower().endswith((".parquet", ".pq")):
        columns = _parquet_columns(path, column)
    else:
        columns = _fits_columns(path, column)
    for name, values in columns:
        if values.dtype.kind not in "US":
            raise FormatError(f"{path}: column {name} holds {values.dtype}, not text")
    files = columns[0][1]
    extensions = columns[1][1] if len(columns) > 1 else None
    for i in range(len(files)):
        yield i + 1, _text(files[i]), "" if extensions is None else _text(extensions[i]).upper()


def _text(value: Any) -> str:
    return (value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)).strip()


def _fits_columns(path: Path, column: str | None) -> list[tuple[str, np.ndarray]]:
    from astropy.io import fits

    try:
        with fits.open(path) as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
            if not tables:
                raise FormatError(f"{path}: no table in it; is it a spectrum?")
            names = tables[0].columns.names
            chosen = [i for i in _choose(names, column, str(path)) if i is not None]
            return [(names[i], np.array(tables[0].data[names[i]])) for i in chosen]
    except FormatError:
        raise
    except Exception as error:  # astropy raises whatever comes
        raise FormatError(f"{path}: not a readable FITS table: {' '.join(str(error).split())}") from None


def _parquet_columns(path: Path, column: str | None) -> list[tuple[str, np.ndarray]]:
    from lamost_lsf.batch.output import import_parquet

    pa, pq = import_parquet()
    try:
        names = pq.read_schema(path).names
        chosen = [names[i] for i in _choose(names, column, str(path)) if i is not None]
        table = pq.read_table(path, columns=chosen)
    except pa.ArrowException as error:
        raise FormatError(f"{path}: not a readable Parquet table: {' '.join(str(error).split())}") from None
    out = []
    for name in chosen:
        values = table[name]
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise FormatError(f"{path}: column {name} holds {values.type}, not text")
        out.append((name, np.array(["" if v is None else v for v in values.to_pylist()], dtype=np.str_)))
    return out
