"""What a store's folder holds: its header, its batches, and whether they belong together."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamost_lsf.errors import FormatError, LamostLSFError
from lamost_lsf.files import atomic_path
from lamost_lsf.store import batch_file

__all__ = ["Batch", "DuplicateExposureError", "MixedStoreError", "list_batches", "read_header", "write_header"]

FORMAT = "lamost-lsf profile store"
VERSION = 1
HEADER = "store.json"
LOCK = ".lock"
#: Temporaries of `atomic_path` for batches and for the header.
TEMPORARIES = (".batch-*", ".store-*")

_BATCH = re.compile(r"batch-(\d{6,})-([0-9a-f]{16})\.h5$")


class MixedStoreError(LamostLSFError, ValueError):
    """Profiles of another instrument, arm, spectrograph, season, line list or grid than the store's."""


class DuplicateExposureError(LamostLSFError, ValueError):
    """An exposure that the store has already."""


@dataclass(frozen=True)
class Batch:
    """What is known of a batch without opening it again.

    Attributes
    ----------
    path : Path
    manifest : dict
        JSON of the file, see `lamost_lsf.store.batch_file`.
    start, first_exposure : int
        Number of its first profile and of its first exposure, counted over the store.
    """

    path: Path
    manifest: dict[str, Any]
    start: int
    first_exposure: int

    @property
    def n(self) -> int:
        """Profiles."""
        return self.manifest["shapes"]["profile"][0]

    @property
    def keys(self) -> list[str]:
        """Identities of its exposures."""
        return self.manifest["keys"]

    @property
    def id(self) -> str:
        """Name of the file without its suffix."""
        return self.path.stem

    @property
    def number(self) -> int:
        """Place in the order of appending, from 1."""
        return int(self._name[1])

    @property
    def digest(self) -> str:
        """Digest of the manifest that the name carries."""
        return self._name[2]

    @property
    def _name(self) -> re.Match[str]:
        name = _BATCH.match(self.path.name)
        assert name is not None  # list_batches takes no others
        return name


def sha256(content: dict[str, Any]) -> str:
    """SHA-256 of plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_header(folder: Path) -> dict[str, Any] | None:
    """Header of a store; None in a folder where no store has begun.

    Raises
    ------
    FormatError
        Not a store, another format version, or damaged.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is a file; a profile store is a folder")
    path = folder / HEADER
    if not path.exists():
        # a writer killed before its first batch leaves a lock and temporaries, whose names begin with a dot
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        # the folder may have become a store while it was listed
        if not path.exists():
            if others:
                raise FormatError(f"{folder} is not a profile store: it has {others[0]}, but no {HEADER}")
            return None
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is damaged: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FormatError(f"{path} is not the header of a profile store")
    if header.get("version") != VERSION:
        raise FormatError(
            f"{folder} has format version {header.get('version')!r}; this version of the package reads {VERSION}"
        )
    if header.get("sha256") != sha256({k: v for k, v in header.items() if k != "sha256"}):
        raise FormatError(f"{path} is damaged: its checksum does not fit")
    return header


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Begin a store in an empty folder.

    Raises
    ------
    FileExistsError
        It has begun.
    """
    with atomic_path(folder / HEADER) as temporary:
        temporary.write_text(json.dumps({**header, "sha256": sha256(header)}) + "\n", encoding="utf-8")
    batch_file.sync_folder(folder)


def batch_path(folder: Path, number: int, manifest: str) -> Path:
    """File of a batch: its number, then the digest of its manifest."""
    return folder / f"batch-{number:06d}-{batch_file.manifest_digest(manifest)}.h5"


def list_batches(folder: Path, header: dict[str, Any], known: list[Batch]) -> list[Batch]:
    """Batches in the order of appending; those that are ``known`` are not opened again.

    Raises
    ------
    FormatError
        A batch that is damaged, that belongs to another store, or that holds an exposure of another batch.
    """
    manifests = {batch.path.name: batch.manifest for batch in known}
    found = sorted((int(m[1]), m[2], p) for p in folder.iterdir() if (m := _BATCH.match(p.name)))
    batches: list[Batch] = []
    start, first_exposure = 0, 0
    holder: dict[str, Path] = {}
    for _, digest, path in found:
        manifest = manifests.get(path.name) or batch_file.read_manifest(path, digest)
        if manifest["header"] != header["sha256"]:
            raise FormatError(f"{path} belongs to another store")
        for key in manifest["keys"]:
            if key in holder:
                raise FormatError(f"{path} and {holder[key]} both hold exposure {key}; move one of them away")
            holder[key] = path
        batches.append(Batch(path, manifest, start, first_exposure))
        start += batches[-1].n
        first_exposure += len(batches[-1].keys)
    return batches
