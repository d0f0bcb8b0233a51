"""The specutils loaders "LAMOST LRS" and "LAMOST MRS"; importing this module registers them."""

from __future__ import annotations

import gzip
import os
import re
from typing import Any

from astropy.io import fits
from specutils import Spectrum, SpectrumList
from specutils.io.registers import data_loader

from .headers import exposure_arm
from .lamost import read_lamost, read_lamost_mrs

__all__ = ["identify_lamost_lrs", "identify_lamost_mrs", "sniff"]

_BLOCK = 2880
# A primary header has 3 or 4 blocks, its first extension's one; ten leave room.
_SNIFF_BLOCKS = 10
_NAXIS = re.compile(rb"NAXIS   = +(\d+)")
_TELESCOPE = re.compile(rb"TELESCOP= 'LAMOST")
_EXTENSION = re.compile(rb"EXTNAME = '(COADD|COADD_[BR]|[BR]-\d{8}) *'")
# Above the generic readers (6) and SDSS's (10), which know nothing of LAMOST's layout.
_PRIORITY = 20
_EXTENSIONS = ["fits", "fits.gz", "fit", "fit.gz"]


def _classify(naxis: int, extension: str) -> str | None:
    if naxis == 2:
        return "LRS"
    if extension == "COADD":
        return "LRS"
    return "MRS" if exposure_arm(extension) != "both" else None


def _start(file: Any) -> bytes:
    """First blocks of a path or open file, decompressed; an open file is put back where it was."""
    size = _SNIFF_BLOCKS * _BLOCK
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:
            return _start(stream)
    position = file.tell()
    try:
        file.seek(0)
        magic = file.read(2)
        file.seek(0)
        return gzip.GzipFile(fileobj=file).read(size) if magic == b"\x1f\x8b" else file.read(size)
    finally:
        file.seek(position)


def sniff(file: Any) -> str | None:
    """Survey of a LAMOST spectrum from its first 28,800 bytes, without parsing it as FITS.

    Parameters
    ----------
    file : path, binary file object or `~astropy.io.fits.HDUList`
        Anything.

    Returns
    -------
    {"LRS", "MRS", None}
        None where it is no LAMOST spectrum.

    Examples
    --------
    >>> import io
    >>> sniff(io.BytesIO(b"SIMPLE  =")) is None
    True
    """
    if isinstance(file, fits.HDUList):
        header = file[0].header
        if not str(header.get("TELESCOP", "")).startswith("LAMOST"):
            return None
        return _classify(header.get("NAXIS", 0), file[1].name if len(file) > 1 else "")
    start = _start(file)
    if not start.startswith(b"SIMPLE  =") or not _TELESCOPE.search(start):
        return None
    naxis = _NAXIS.search(start)
    # The primary header may carry an EXTNAME of its own, but none of these.
    extension = _EXTENSION.search(start)
    return _classify(int(naxis[1]) if naxis else 0, extension[1].decode("ascii") if extension else "")


def _identify(survey: str, origin: str, path: Any, fileobj: Any, args: tuple) -> bool:
    if origin != "read":
        return False
    file = next((item for item in (*args[:1], fileobj, path) if item is not None), None)
    return file is not None and sniff(file) == survey


def identify_lamost_lrs(origin: str, path: Any = None, fileobj: Any = None, *args: Any, **kwargs: Any) -> bool:
    """Whether a file is a LAMOST low-resolution spectrum, for astropy's registry."""
    return _identify("LRS", origin, path, fileobj, args)


def identify_lamost_mrs(origin: str, path: Any = None, fileobj: Any = None, *args: Any, **kwargs: Any) -> bool:
    """Whether a file is a LAMOST medium-resolution one, for astropy's registry."""
    return _identify("MRS", origin, path, fileobj, args)


@data_loader("LAMOST LRS", identify_lamost_lrs, extensions=_EXTENSIONS, priority=_PRIORITY, force=True)
def _load_lrs(file_obj: Any, mask: str = "and", bits: int | None = None) -> Spectrum:
    """`read_lamost` of a low-resolution file."""
    return read_lamost(file_obj, mask=mask, bits=bits)


@data_loader(
    "LAMOST MRS",
    identify_lamost_mrs,
    extensions=_EXTENSIONS,
    priority=_PRIORITY,
    force=True,
    autogenerate_spectrumlist=False,
)
def _load_mrs(file_obj: Any, mask: str = "and", bits: int | None = None, extension: str | None = None) -> Spectrum:
    """`read_lamost` of one extension of a medium-resolution file."""
    return read_lamost(file_obj, mask=mask, bits=bits, extension=extension)


@data_loader(
    "LAMOST MRS",
    identify_lamost_mrs,
    dtype=SpectrumList,
    extensions=_EXTENSIONS,
    priority=_PRIORITY,
    force=True,
)
def _load_mrs_list(
    file_obj: Any,
    mask: str = "and",
    bits: int | None = None,
    arm: str | None = None,
    kind: str = "all",
) -> SpectrumList:
    """`read_lamost_mrs`."""
    return read_lamost_mrs(file_obj, mask=mask, bits=bits, arm=arm, kind=kind)
