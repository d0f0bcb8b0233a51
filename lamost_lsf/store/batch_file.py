"""One batch of a store: an HDF5 file that is written once and never changed.

Datasets hold one row a profile (or a rejected profile); the scalar dataset ``manifest`` holds JSON: header of the
store, exposures, digests. Every dataset with rows carries HDF5's own checksum in each chunk (so reading a damaged chunk
fails), and the manifest a SHA-256 of the content of every exposure.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lamost_lsf.errors import FormatError

__all__ = [
    "LABELS",
    "NATIVE",
    "REJECTED",
    "REJECTED_COLUMNS",
    "ROW_COLUMNS",
    "exposure_digest",
    "read_columns",
    "read_manifest",
    "write_batch",
]

#: Columns with one number a profile.
LABELS = {
    "lmjm": "<f8",
    "fiber": "<i2",
    "wavelength": "<f8",
    "line": "<i2",
    "exposure": "<i4",
    "noise": "<f4",
    "flag": "<i4",
}
#: Columns with one row of native pixels a profile.
NATIVE = ("native_offset", "native_flux", "native_ivar")
#: All columns with one row a profile; floats little-endian.
ROW_COLUMNS = {"profile": "<f4", **dict.fromkeys(NATIVE, "<f4"), **LABELS}
#: What is kept of profiles that were counted but not stored.
REJECTED = ("fiber", "line", "exposure", "flag")
REJECTED_COLUMNS = {f"rejected_{name}": LABELS[name] for name in REJECTED}

#: Rows a chunk: few enough that a random row costs little, many enough that the index stays small.
_CHUNK_ROWS = {1: 4096, 2: 64}
_RUN_BYTES = 1 << 24


def manifest_digest(text: str) -> str:
    """SHA-256 of a manifest's text, the first 16 hexadecimal digits: part of the file's name."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def exposure_digest(key: str, columns: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of one exposure's profiles: the same however exposures were grouped into batches and padded.

    Parameters
    ----------
    key : str
        Identity of the exposure.
    columns : mapping of str to ndarray (n, ...)
        Rows of this exposure: all of `ROW_COLUMNS` but ``exposure``, which counts within a batch.
    """
    digest = hashlib.sha256(key.encode())
    used = np.flatnonzero(np.any(columns["native_ivar"] > 0, axis=0))
    width = int(used[-1]) + 1 if used.size else 0
    for name, dtype in ROW_COLUMNS.items():
        if name == "exposure":
            continue
        array = columns[name][:, :width] if name in NATIVE else columns[name]
        array = np.ascontiguousarray(array, dtype=dtype)
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def manifest_text(manifest: dict[str, Any]) -> str:
    """Canonical JSON of a manifest."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_batch(path: Path, text: str, columns: Mapping[str, np.ndarray], compression: str | None) -> None:
    """Write one batch file.

    Parameters
    ----------
    path : Path
        File that does not matter yet (a temporary one).
    text : str
        Manifest from `manifest_text`.
    columns : mapping of str to ndarray (n, ...)
        `ROW_COLUMNS`, and ``rejected_`` before each of `REJECTED`.
    compression : {"lzf", "gzip", None}
        Filter of HDF5. Checksums are there with any of them.
    """
    options: dict[str, Any] = {"compression": compression, "shuffle": True} if compression else {}
    if compression == "gzip":
        options["compression_opts"] = 1
    # the layout of HDF5 1.10 on: its metadata carries checksums too; no times are tracked, so equal content gives equal
    # files
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.create_dataset("manifest", data=np.frombuffer(text.encode(), dtype=np.uint8))
        for name, array in columns.items():
            if array.shape[0] == 0 or array.nbytes == 0:
                file.create_dataset(name, data=array)  # HDF5 has no chunks of nothing
                continue
            chunks = (min(_CHUNK_ROWS[array.ndim], array.shape[0]), *array.shape[1:])
            file.create_dataset(name, data=array, chunks=chunks, fletcher32=True, **options)


def _open(path: Path) -> h5py.File:
    try:
        # files never change once they have their name: HDF5's own locks only bring trouble on network file systems
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise FormatError(f"{path} has gone since the store was opened") from None
    except OSError as error:
        raise FormatError(f"{path} is damaged or truncated: {error}") from None


def read_manifest(path: Path, digest: str) -> dict[str, Any]:
    """Manifest of a batch file, checked against the digest in the file's name and against the datasets' shapes.

    Raises
    ------
    FormatError
        Truncated, damaged, or not what its name says.
    """
    with _open(path) as file:
        try:
            text = file["manifest"][...].tobytes().decode()
            if manifest_digest(text) != digest:
                raise FormatError(f"{path} is damaged: its manifest does not match its name")
            manifest = json.loads(text)
            shapes = {name: list(file[name].shape) for name in manifest["shapes"]}
        except FormatError:
            raise
        except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is damaged: {error}") from None
    if shapes != manifest["shapes"]:
        raise FormatError(f"{path} is damaged: datasets have shapes {shapes}, the manifest says {manifest['shapes']}")
    return manifest


def _runs(rows: np.ndarray, chunk: int, limit: int) -> Iterable[tuple[int, int]]:
    """Stretches of sorted ``rows`` (as positions) that lie in neighbouring chunks, ``limit`` chunks long at most."""
    block = rows // chunk
    start = 0
    first = block[0] if rows.size else 0
    for i in np.append(np.flatnonzero(np.diff(block)) + 1, rows.size):
        if i == rows.size or block[i] > block[i - 1] + 1 or block[i] - first >= limit:
            yield start, int(i)
            if i < rows.size:
                start, first = int(i), block[i]


def read_columns(
    path: Path, out: Mapping[str, np.ndarray], rows: np.ndarray | None = None, to: np.ndarray | slice = slice(None)
) -> None:
    """Read rows of datasets into rows of arrays.

    Parameters
    ----------
    path : Path
        Batch file.
    out : mapping of str to ndarray (m, ...)
        Arrays to fill, by the name of the dataset. One wider than its dataset (native pixels of another batch) is
        filled in its first columns.
    rows : ndarray of int, optional
        Rows of the file, ascending; all by default.
    to : ndarray of int or slice
        Rows of ``out`` that they go to.

    Raises
    ------
    FormatError
        A checksum that does not fit.
    """
    with _open(path) as file:
        for name, array in out.items():
            try:
                dataset = file[name]
                if dataset.shape[0] == 0 or dataset.size == 0:
                    continue
                into = array[:, : dataset.shape[1]] if dataset.ndim == 2 else array
                if rows is None:
                    into[to] = dataset[...]
                    continue
                chunk = dataset.chunks[0]
                limit = max(1, _RUN_BYTES // (chunk * max(1, dataset.nbytes // dataset.shape[0])))
                targets = np.arange(array.shape[0])[to]
                for i, j in _runs(rows, chunk, limit):
                    low, high = int(rows[i]), int(rows[j - 1]) + 1
                    into[targets[i:j]] = dataset[low:high][rows[i:j] - low]
            except (OSError, KeyError, RuntimeError) as error:
                raise FormatError(f"{path} is damaged in {name}: {error}") from None


def sync_folder(path: Path) -> None:
    """Make a rename in ``path`` survive a crash of the machine."""
    if os.name == "nt":  # pragma: no cover
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
