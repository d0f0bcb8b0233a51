"""A survey as one ECSV, CSV or FITS table, written piece by piece: memory does not grow with its length."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from lamost_lsf.batch.output import Survey
from lamost_lsf.files import atomic_path

__all__ = ["TABLE_FORMATS", "check_table_name", "write_table"]

#: Endings of a table's name.
TABLE_FORMATS = (".ecsv", ".csv", ".fits")
_BLOCK = 2880


def check_table_name(path: str | PathLike, overwrite: bool) -> Path:
    """Path of a table to be written; raises at once where that cannot be.

    Raises
    ------
    ValueError
        Another ending than those of `TABLE_FORMATS`.
    FileExistsError, FileNotFoundError
        The file exists and may not be replaced; its folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in TABLE_FORMATS:
        raise ValueError(f"{path}: a table ends in {', '.join(TABLE_FORMATS)}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"folder {path.absolute().parent} does not exist")
    return path


def write_table(survey: Survey, keys: np.ndarray, path: str | PathLike, *, overwrite: bool = False) -> int:
    """Write the rows of some spectra, in their order; the number of rows.

    Parameters
    ----------
    survey : Survey
    keys : ndarray (n,), S16
        As from `lamost_lsf.batch.SpectrumList.keys`.
    path : path
        .ecsv, .csv or .fits.
    overwrite : bool
    """
    path = check_table_name(path, overwrite)
    writer = _write_fits if path.suffix.lower() == ".fits" else _write_text
    with atomic_path(path, overwrite=overwrite) as temporary:
        return writer(survey, keys, temporary, path.suffix.lower())


def _write_text(survey: Survey, keys: np.ndarray, path: Path, suffix: str) -> int:
    form = "ascii.ecsv" if suffix == ".ecsv" else "ascii.csv"
    number = 0
    with open(path, "w", encoding="utf-8", newline="") as stream:
        head = 0
        for table in survey.tables(keys):
            if number == 0:
                table.meta["settings"] = survey.settings
                head = _text(table[:0], form).count("\n")
                stream.write(_text(table[:0], form))
                table.meta.clear()
                # without meta the header is shorter
                head = _text(table[:0], form).count("\n")
            number += len(table)
            stream.write(_after(_text(table, form), head))
    return number


def _text(table: Table, form: str) -> str:
    out = io.StringIO()
    table.write(out, format=form)
    return out.getvalue()


def _after(text: str, lines: int) -> str:
    position = 0
    for _ in range(lines):
        position = text.index("\n", position) + 1
    return text[position:]


def _write_fits(survey: Survey, keys: np.ndarray, path: Path, suffix: str) -> int:
    # strings of a FITS table have one width, which is known when all have been seen
    widths: dict[str, int] = {}
    number, empty = 0, None
    for table in survey.tables(keys):
        number += len(table)
        empty = table[:0] if empty is None else empty
        for name in table.colnames:
            if table[name].dtype.kind == "U":
                longest = max((len(text) for text in _ascii(table[name])), default=0)
                widths[name] = max(widths.get(name, 1), longest)
    if empty is None:
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(Table())]).writeto(path, overwrite=True)
        return 0
    for name, width in widths.items():
        column = empty[name]
        empty.replace_column(name, type(column)(np.empty(0, f"S{width}"), name, description=column.description))
    hdu = fits.table_to_hdu(empty)
    dtype = hdu.data.dtype.newbyteorder(">")
    hdu.header["NAXIS2"] = number
    hdu.header["EXTNAME"] = "RV"
    for i, name in enumerate(empty.colnames, 1):
        hdu.header.comments[f"TTYPE{i}"] = str(empty[name].description)[:47]
    with open(path, "wb") as stream:
        stream.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
        stream.write(hdu.header.tostring().encode("ascii"))
        written = 0
        for table in survey.tables(keys):
            records = np.zeros(len(table), dtype=dtype)
            for name in table.colnames:
                values: Any = table[name]
                records[name] = _ascii(values) if name in widths else values
            written += stream.write(records.tobytes())
        stream.write(b"\0" * (-written % _BLOCK))
    return number


def _ascii(values: Any) -> np.ndarray:
    return np.array([str(text).encode("ascii", "replace") for text in values], dtype=bytes)
