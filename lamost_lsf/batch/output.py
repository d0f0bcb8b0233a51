"""What a survey leaves: a folder of Parquet files, each whole or not there, that knows which spectra it holds.

Every file has the rows of one part of the input, and in its metadata the key of each spectrum in it. What is finished
is read from the files themselves, so that nothing else has to survive a ``kill -9``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, Table

from lamost_lsf.errors import FormatError, LamostLSFWarning
from lamost_lsf.files import atomic_path
from lamost_lsf.rv.rows import COLUMNS

__all__ = ["SETTINGS", "Part", "Survey", "import_parquet", "part_name", "read_survey", "write_part"]

__doctest_requires__ = {"read_survey": ["pyarrow"]}

#: File of a survey's settings, in its folder; readers of Parquet pass over names that begin with an underscore.
SETTINGS = "_survey.json"
_FORMAT = 1
_KEY = b"lamost_lsf_part"
#: Columns of a row: those of a batch, with the table of the file, and without a number that depends on the input.
ROW_COLUMNS = tuple(
    column
    for name, *rest in COLUMNS
    for column in (
        ()
        if name == "spectrum"
        else ((name, *rest), ("extension", str, None, "table of the file that was asked for; '' for its first"))
        if name == "file"
        else ((name, *rest),)
    )
)


def import_parquet() -> tuple[Any, Any]:
    """The module pyarrow and its part for Parquet; ImportError that says how to get them."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError("a survey's Parquet files need pyarrow: pip install 'lamost-lsf[dask]'") from None
    return pyarrow, parquet


def part_name(config: str, keys: Sequence[bytes]) -> str:
    """Name of the file of some spectra: the same spectra measured in the same way have the same name."""
    digest = hashlib.blake2b(config.encode(), digest_size=12)
    for key in keys:
        digest.update(key)
    return f"part-{digest.hexdigest()}.parquet"


def _schema(pa: Any) -> Any:
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    return pa.schema(
        [
            pa.field(
                name, kinds[kind], nullable=False,
                metadata={"unit": "" if unit is None else unit.to_string("fits"), "description": description},
            )
            for name, kind, unit, description in ROW_COLUMNS
        ]
    )  # fmt: skip


def write_part(
    folder: Path, config: str, keys: Sequence[bytes], extensions: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Write the rows of some spectra, whole or not at all.

    Parameters
    ----------
    folder : Path
    config : str
        Digest of the settings.
    keys : sequence of bytes
        Of each spectrum, in order.
    extensions : sequence of str
        Of each spectrum.
    rows : sequence of mapping
        As many for each spectrum as for any other, in order.
    """
    pa, pq = import_parquet()
    each, rest = divmod(len(rows), len(keys))
    if rest or not each:
        raise ValueError(f"{len(rows)} rows of {len(keys)} spectra")
    schema = _schema(pa)
    arrays = []
    for name, kind, _, _ in ROW_COLUMNS:
        if name == "extension":
            values = [extension for extension in extensions for _ in range(each)]
        else:
            values = [row[name] for row in rows]
        if kind is str:
            # file names may be bytes that are no text
            values = [value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for value in values]
        arrays.append(pa.array(values, schema.field(name).type))
    n_flagged = sum(any(row["flags"] for row in rows[i : i + each]) for i in range(0, len(rows), each))
    facts = {
        "format": _FORMAT, "config": config, "rows": each, "flagged": n_flagged,
        "keys": base64.b64encode(b"".join(keys)).decode("ascii"),
    }  # fmt: skip
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({_KEY: json.dumps(facts).encode()}))
    path = folder / part_name(config, keys)
    with atomic_path(path, overwrite=True) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


@dataclass(frozen=True)
class Part:
    """One file of a survey: its name, the keys of its spectra in order, rows a spectrum, spectra with a flag."""

    path: Path
    config: str
    keys: np.ndarray
    rows: int
    flagged: int

    @classmethod
    def read(cls, path: Path) -> Part:
        """Read from a file's metadata.

        Raises
        ------
        FormatError
            No file of a survey, or a damaged one.
        """
        pa, pq = import_parquet()
        try:
            metadata = pq.read_metadata(path)
            facts = json.loads(metadata.metadata[_KEY])
            keys = np.frombuffer(base64.b64decode(facts["keys"]), dtype="S16")
            if facts["format"] != _FORMAT:
                raise FormatError(f"{path}: format {facts['format']}, this version reads {_FORMAT}")
            if metadata.num_rows != keys.size * facts["rows"]:
                raise FormatError(f"{path}: {metadata.num_rows} rows of {keys.size} spectra")
            return cls(path, facts["config"], keys, int(facts["rows"]), int(facts["flagged"]))
        except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path}: not a file of a survey: {' '.join(str(error).split())}") from None

    def table(self) -> Table:
        """All its rows."""
        pa, pq = import_parquet()
        try:
            return _to_astropy(pq.read_table(self.path))
        except pa.ArrowException as error:
            raise FormatError(f"{self.path}: damaged: {' '.join(str(error).split())}") from None


def _to_astropy(arrow: Any) -> Table:
    columns = []
    for name, kind, unit, description in ROW_COLUMNS:
        values = arrow[name]
        data = np.array(values.to_pylist(), dtype=np.str_) if kind is str else values.to_numpy()
        columns.append(Column(data.astype(np.str_ if kind is str else kind), name, unit=unit, description=description))
    return Table(columns, copy=False)


@dataclass
class Survey:
    """Folder of a survey's results.

    Attributes
    ----------
    folder : Path
    settings : dict
        How it was measured.
    config : str
        Digest of the settings.
    parts : list of Part
        Files in it, by name.
    """

    folder: Path
    settings: dict[str, Any]
    parts: list[Part] = field(default_factory=list)

    @property
    def config(self) -> str:
        """Digest of the settings."""
        return settings_digest(self.settings)

    @classmethod
    def open(cls, folder: str | PathLike, *, repair: bool = False) -> Survey:
        """Read what a folder holds.

        Parameters
        ----------
        folder : path
        repair : bool
            Put damaged files aside with a warning, instead of raising; for who is the folder's only writer.

        Raises
        ------
        FileNotFoundError
            No survey there.
        FormatError
            A damaged file, a file of other settings, or two that hold the same spectrum.
        """
        folder = Path(folder)
        survey = cls(folder, cls.read_settings(folder))
        for path in sorted(folder.glob("part-*.parquet")):
            try:
                part = Part.read(path)
                if part.config != survey.config:
                    raise FormatError(f"{path}: was measured in another way than {SETTINGS} says")
            except FormatError as error:
                if not repair:
                    raise
                aside = path.with_name(f"_damaged-{path.name}")
                os.replace(path, aside)
                warnings.warn(f"{error}; its spectra are measured again ({aside.name})", LamostLSFWarning, stacklevel=2)
                continue
            survey.parts.append(part)
        keys = survey.keys()
        if np.unique(keys).size != keys.size:
            raise FormatError(f"{folder}: some spectra are in two of its files")
        return survey

    @staticmethod
    def read_settings(folder: Path) -> dict[str, Any]:
        """How the spectra in a folder were measured."""
        if not (folder / SETTINGS).is_file():
            raise FileNotFoundError(f"{folder} holds no survey ({SETTINGS})")
        try:
            return dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{folder / SETTINGS}: damaged: {error}") from None

    def keys(self) -> np.ndarray:
        """Keys of all spectra in it, part by part."""
        return np.concatenate([part.keys for part in self.parts] or [np.empty(0, dtype="S16")])

    def clean(self) -> None:
        """Remove what killed writers left half-written."""
        for path in self.folder.glob(".part-*.parquet"):
            with suppress(OSError):
                path.unlink()

    def tables(self, keys: np.ndarray) -> Iterator[Table]:
        """Rows of the spectra of these keys, in their order, with their number: some thousand rows at a time.

        Spectra that are not there are passed over.
        """
        own = self.keys()
        order = np.argsort(own)
        place = np.searchsorted(own, keys, sorter=order)
        place = order[np.minimum(place, own.size - 1)] if own.size else np.zeros(len(keys), dtype=int)
        number = np.flatnonzero(own[place] == keys) if own.size else np.empty(0, dtype=int)
        if not number.size:
            return
        place = place[number]
        first = np.cumsum([0] + [part.keys.size for part in self.parts])
        which = np.searchsorted(first, place, side="right") - 1
        # neighbours in the input are in one file, but for those that came later
        cuts = np.flatnonzero(np.diff(which)) + 1
        kept: dict[int, Table] = {}
        for begin, end in zip([0, *cuts], [*cuts, which.size], strict=True):
            k = int(which[begin])
            table = kept.pop(k, None)
            if table is None:
                table = self.parts[k].table()
            kept[k] = table
            while len(kept) > 4:
                kept.pop(next(iter(kept)))
            each = self.parts[k].rows
            index = ((place[begin:end] - first[k])[:, None] * each + np.arange(each)).ravel()
            rows = table[index]
            rows.add_column(Column(np.repeat(number[begin:end], each), "spectrum", description=COLUMNS[0][3]), index=0)
            yield rows


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Short digest of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the file of the settings, whole or not at all."""
    with atomic_path(folder / SETTINGS, overwrite=True) as temporary:
        text = json.dumps({"format": _FORMAT, "settings": dict(settings)}, indent=1, sort_keys=True)
        temporary.write_text(text, encoding="utf-8")


def read_survey(folder: str | PathLike) -> Table:
    """All rows of a survey as one table: for surveys that fit into memory.

    Larger ones are read by whatever reads Parquet, such as ``pyarrow.dataset.dataset(folder)``.

    Parameters
    ----------
    folder : path
        Written by `measure_survey`.

    Returns
    -------
    `~astropy.table.Table`
        With units and descriptions, by name of file.

    Raises
    ------
    FileNotFoundError, FormatError
        No survey there, or a damaged one.

    Examples
    --------
    >>> from lamost_lsf.batch import read_survey
    >>> read_survey("nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: nowhere holds no survey (_survey.json)
    """
    import_parquet()
    survey = Survey.open(folder)
    tables = [part.table() for part in survey.parts]
    columns = []
    for name, kind, unit, description in ROW_COLUMNS:
        kind = np.str_ if kind is str else kind
        data = np.concatenate([np.asarray(t[name]) for t in tables]) if tables else np.empty(0, dtype=kind)
        columns.append(Column(data, name, unit=unit, description=description))
    table = Table(columns, meta={"settings": survey.settings})
    return table[np.argsort(table["file"], kind="stable")]
