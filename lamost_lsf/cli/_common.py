"""What the sub-commands share: arguments, reading spectra and templates, printing."""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.time import Time

__all__ = [
    "CommandError",
    "add_template_argument",
    "one_line",
    "parse_time",
    "print_json",
    "read_observed",
    "read_template_arguments",
    "save_figure",
    "write_table",
]


class CommandError(Exception):
    """Something that the user must put right; its message is all that is shown."""


def one_line(message: Any) -> str:
    """First line of a message that may have many."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return lines[0] if lines else type(message).__name__


def parse_time(text: str) -> Time:
    """Time (UTC) of an ISO date such as 2017-01-05T14:00, or a local modified Julian minute.

    Examples
    --------
    >>> print(parse_time("80436692").isot, parse_time("2017-01-05").isot)
    2011-10-24T11:32:00.000 2017-01-05T00:00:00.000
    """
    from lamost_lsf.time import lmjm_to_time

    try:
        return lmjm_to_time(float(text))
    except ValueError as error:
        if "not a local modified Julian minute" in str(error):
            raise argparse.ArgumentTypeError(str(error)) from None
    try:
        return Time(text, scale="utc")
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a date (2017-01-05T14:00, UTC) nor a local modified Julian minute (84091500)"
        ) from None


def _plain(value: Any) -> Any:
    """What JSON can hold: numpy to Python, NaN and infinity to null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, u.Quantity):
        return _plain(value.value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN becomes null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def read_observed(path: str, extension: str | None = None) -> Any:
    """Spectrum of a LAMOST file, or of any that specutils opens."""
    from specutils import Spectrum

    from lamost_lsf.errors import FormatError
    from lamost_lsf.io import read_lamost
    from lamost_lsf.io.loaders import sniff

    if not Path(path).is_file():
        raise CommandError(f"no such file: {path}")
    try:
        known = sniff(path) is not None
    except (EOFError, zlib.error, OSError):
        known = True  # damaged; the reader says how
    if known:
        return read_lamost(path, extension=extension)
    if extension is not None:
        raise CommandError(f"{path} is not a LAMOST file: --extension has no meaning")
    try:
        spectrum = Spectrum.read(path)
    except Exception as error:  # loaders raise whatever comes
        raise FormatError(f"{path}: no spectrum that specutils can read: {one_line(error)}") from None
    spectrum.meta.setdefault("filename", path)
    return spectrum


def add_template_argument(parser: argparse.ArgumentParser) -> None:
    """Option ``--template`` of a sub-command."""
    parser.add_argument(
        "-t", "--template", dest="templates", metavar="FILE[::MEMBER]", nargs="+", required=True,
        help="templates: PHOENIX, redrock, or any file that specutils reads; MEMBER chooses one of a file of several",
    )  # fmt: skip


def read_template_arguments(arguments: list[str]) -> list[Any]:
    """Templates of ``FILE`` (all that it holds) and ``FILE::MEMBER`` arguments."""
    from lamost_lsf.io import read_template, read_templates

    templates = []
    for argument in arguments:
        path, separator, member = argument.partition("::")
        templates += [read_template(path, member)] if separator else read_templates(path)
    return templates


def check_output(path: str | None, overwrite: bool) -> None:
    """Refuse, before any work is done, a file that exists or a folder that does not."""
    if path is None:
        return
    if not Path(path).absolute().parent.is_dir():
        raise CommandError(f"folder {Path(path).absolute().parent} does not exist")
    if Path(path).exists() and not overwrite:
        raise CommandError(f"{path} exists; --overwrite replaces it")


def save_figure(figure: Any, path: str, *, overwrite: bool) -> None:
    """Write a figure, whole or not at all; the format follows from the name."""
    from lamost_lsf.files import atomic_path

    suffix = Path(path).suffix.lower().lstrip(".")
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise CommandError(f"{path}: a plot can be {', '.join(sorted(known))}; choose one as the ending of its name")
    with atomic_path(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=150)


def write_table(table: Any, path: str, *, overwrite: bool) -> None:
    """Write a table as ECSV, FITS or CSV, whole or not at all."""
    from lamost_lsf.files import atomic_path

    formats = {".ecsv": "ascii.ecsv", ".fits": "fits", ".csv": "ascii.csv"}
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise CommandError(f"{path}: a table can be {', '.join(formats)}; choose one as the ending of its name")
    with atomic_path(path, overwrite=overwrite) as temporary:
        table.write(temporary, format=formats[suffix], overwrite=True)


def note(message: str) -> None:
    """A line about what was done, kept apart from the results: on stderr."""
    print(message, file=sys.stderr)
