"""Reading the files of a survey: only what a velocity needs, ahead of the measurement.

Most of the time that a low-resolution file takes astropy goes into a general description of headers and columns that
a file of a known layout does not need. `read_spectrum` reads the two layouts of LAMOST's low resolution from their
bytes and leaves everything else, and everything unusual, to `lamost_lsf.rv.spectra.as_arrays`, whose results it has.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from lamost_lsf.io.headers import build_meta
from lamost_lsf.io.lamost import LamostArrays, _assemble, _lrs_grid
from lamost_lsf.rv.spectra import ObservedArrays, as_arrays

__all__ = ["read_ahead", "read_spectrum"]

#: Files that a thread reads before it is asked whether to go on.
_PIECE = 16
_BLOCK = 2880
_CARD = 80
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([ED][+-]?\d+)?$")
_COLUMNS = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")
_FORMAT = re.compile(r"(\d+)E$")
_COMMENTARY = ("COMMENT", "HISTORY", "")


class _UnusualError(Exception):
    """Not the plain layout; the general reader is asked."""


def read_spectrum(path: str, extension: str | None = None, *, mask: str = "and") -> ObservedArrays:
    """Spectrum of a file, or the reason why there is none; never raises.

    Parameters
    ----------
    path : str
        Any file that `~lamost_lsf.io.read_lamost` or specutils reads.
    extension : str, optional
        Of files that hold several.
    mask : {"and", "or", "ivar"}

    Returns
    -------
    `~lamost_lsf.rv.spectra.ObservedArrays`
        The same as from the general reader; of a plain low-resolution file, ``meta["header"]`` is a dict.

    Examples
    --------
    >>> from lamost_lsf.batch.reading import read_spectrum
    >>> read_spectrum("missing.fits").flags.name
    'UNREADABLE'
    """
    return _interpret(path, extension, _load(path, extension), mask)


def _load(path: str, extension: str | None) -> bytes | None:
    """Content of a file, decompressed; None where the general reader is to be asked.

    Nearly all of it is system calls and zlib, which leave the interpreter to other threads.
    """
    if extension not in (None, "", "COADD"):
        return None
    try:
        return _content(path)
    except Exception:  # whatever it is, the general reader explains it
        return None


def _interpret(path: str, extension: str | None, content: bytes | None, mask: str) -> ObservedArrays:
    item: Any = path
    if content is not None:
        try:
            item = _parse(content, path, mask)
        except Exception:
            item = path
    return as_arrays(item, mask=mask, extension=extension or None)


def read_ahead(
    items: Iterable[tuple[str, str]],
    batch: int,
    *,
    mask: str = "and",
    extension: str | None = None,
    threads: int = 1,
) -> Iterator[list[ObservedArrays]]:
    """Spectra in batches; the files of the next are loaded and decompressed while the one before is worked on.

    Parameters
    ----------
    items : iterable of (path, extension)
    batch : int
        Spectra in a batch; at most two batches are in memory.
    mask
        As in `read_spectrum`.
    extension : str, optional
        Of items that name none.
    threads : int
        That read. 0 reads when asked, in the caller's thread. More than one helps where files answer slowly.
    """
    items = ((path, own or extension) for path, own in items)
    if threads == 0:
        while part := list(islice(items, batch)):
            yield [read_spectrum(*item, mask=mask) for item in part]
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:

        def start() -> list[tuple[list[tuple[str, str | None]], Future]]:
            part = list(islice(items, batch))
            pieces = [part[i : i + _PIECE] for i in range(0, len(part), _PIECE)]
            return [(piece, pool.submit(_load_all, piece)) for piece in pieces]

        try:
            ahead = start()
            while ahead:
                # headers are interpreted here: two threads that both want the interpreter only hinder each other
                ready = [
                    _interpret(*item, content, mask)
                    for piece, future in ahead
                    for item, content in zip(piece, future.result(), strict=True)
                ]
                ahead = start()
                yield ready
        finally:
            # whoever stops early must not wait for what nobody wants
            pool.shutdown(wait=True, cancel_futures=True)


def _load_all(items: Sequence[tuple[str, str | None]]) -> list[bytes | None]:
    return [_load(*item) for item in items]


# -- the plain layouts --------------------------------------------------------------------------------------------


def _read_plain(path: str, mask: str) -> LamostArrays:
    return _parse(_content(path), path, mask)


def _content(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        # one read of known size: on a network file system each call is a round trip
        content = os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
    if content[:2] == b"\x1f\x8b":
        stream = zlib.decompressobj(wbits=31)
        content = stream.decompress(content)
        if not stream.eof or stream.unused_data:
            raise _UnusualError
    return content


def _parse(content: bytes, path: str, mask: str) -> LamostArrays:
    header, position = _header(content, 0)
    if header.get("SIMPLE") is not True or header.get("TELESCOP") != "LAMOST":
        raise _UnusualError
    where = path
    extension = None
    if header.get("NAXIS") == 2:
        if header.get("BITPIX") != -32 or header.get("NAXIS2") != 5 or _scaled(header):
            raise _UnusualError
        columns = _floats(content, position, 5 * header["NAXIS1"]).reshape(5, -1)
        flux, ivar, wavelength, and_mask, or_mask = columns
    elif header.get("NAXIS") == 0:
        extension, position = _header(content, position)
        flux, ivar, wavelength, and_mask, or_mask = _coadd(content, position, extension)
        where = f"{path}[COADD]"
    else:
        raise _UnusualError
    grid, source = _lrs_grid(wavelength, header, where)
    meta = build_meta(
        header, survey="LRS", extension=extension, filename=path, mask_choice=mask, wavelength_grid=source
    )
    masks = {"and": and_mask, "or": or_mask, "ivar": None}[mask]
    return _assemble(
        log_wavelength=grid, flux=flux, ivar=ivar, masks=masks, bits=None, meta=meta, where=where
    )  # fmt: skip


def _coadd(content: bytes, position: int, header: dict[str, Any]) -> Sequence[np.ndarray]:
    """Columns of the table COADD of one row of float32 arrays."""
    if (
        header.get("XTENSION") != "BINTABLE" or header.get("EXTNAME") != "COADD" or header.get("NAXIS2") != 1
        or header.get("PCOUNT") != 0 or _scaled(header)
    ):  # fmt: skip
        raise _UnusualError
    begin, columns = 0, {}
    for i in range(1, header["TFIELDS"] + 1):
        form = _FORMAT.match(header[f"TFORM{i}"])
        if not form or f"TDIM{i}" in header:
            raise _UnusualError
        n = int(form[1])
        columns[str(header[f"TTYPE{i}"]).upper()] = begin, n
        begin += 4 * n
    if begin != header["NAXIS1"] or len(content) < position + begin:
        raise _UnusualError
    return [_floats(content, position + columns[name][0], columns[name][1]) for name in _COLUMNS]


def _floats(content: bytes, position: int, number: int) -> np.ndarray:
    return np.frombuffer(content, dtype=">f4", count=number, offset=position)


def _scaled(header: dict[str, Any]) -> bool:
    return any(key.startswith(("TSCAL", "TZERO", "BSCALE", "BZERO")) for key in header)


def _header(content: bytes, position: int) -> tuple[dict[str, Any], int]:
    """Cards of a header as plain values, and where its data begin."""
    cards: dict[str, Any] = {}
    while True:
        card = content[position : position + _CARD].decode("ascii")
        if len(card) < _CARD:
            raise _UnusualError
        position += _CARD
        name = card[:8].rstrip()
        if name == "END":
            break
        if name in _COMMENTARY:
            continue
        if card[8:10] != "= " or name in cards:
            raise _UnusualError
        cards[name] = _value(card[10:])
    return cards, -(-position // _BLOCK) * _BLOCK


def _value(text: str) -> Any:
    """Value of a card; None where it has none."""
    text = text.strip()
    if text.startswith("'"):
        end = text.find("'", 1)
        while text[end + 1 : end + 2] == "'":
            end = text.find("'", end + 2)
        if end < 0:
            raise _UnusualError
        string = text[1:end].replace("''", "'")
        if string.endswith("&"):  # goes on in the next card
            raise _UnusualError
        return string.rstrip()
    text = text.partition("/")[0].strip()
    if text in ("T", "F"):
        return text == "T"
    if not text:
        return None
    match = _NUMBER.match(text)
    if not match:
        raise _UnusualError
    return float(text.replace("D", "E")) if match[2] or match[3] or "." in text else int(text)
