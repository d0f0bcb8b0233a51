"""A set of profiles on its way into a store: compared with it, thinned out, written as one file."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from lamost_lsf.errors import FormatError
from lamost_lsf.files import atomic_path
from lamost_lsf.models.neural import parse_model_name
from lamost_lsf.store import batch_file, checks
from lamost_lsf.store.batch_file import LABELS, REJECTED, REJECTED_COLUMNS, ROW_COLUMNS
from lamost_lsf.store.catalogue import (
    FORMAT,
    VERSION,
    Batch,
    DuplicateExposureError,
    MixedStoreError,
    batch_path,
)
from lamost_lsf.store.tables import encode_table, table_schema
from lamost_lsf.time import lmjm_to_time

__all__ = ["Candidate", "check_belongs", "check_name", "verify_batch", "without_known", "write_candidate"]

_IDENTITY = ("instrument", "arm", "spectrograph", "season", "time_reference", "wavelength_center")
_RESERVED = ("n_profiles", "n_rejected", "night", "batch")


@dataclass(frozen=True)
class Candidate:
    """A set of profiles that is sound in itself, not yet compared with a store.

    Attributes
    ----------
    columns : dict of str to ndarray
        All of `ROW_COLUMNS`, with the store's dtypes.
    exposures : Table
    keys : list of str
        Identity of each exposure.
    header : dict
        What the store's header must be.
    """

    columns: dict[str, np.ndarray]
    exposures: Table
    keys: list[str]
    header: dict[str, Any]

    @classmethod
    def from_profiles(cls, profiles: Any) -> Candidate:
        """Check a `ProfileSet`; raises TypeError or ValueError with what is wrong."""
        columns = checks.checked_columns(profiles)
        keys = checks.exposure_keys(profiles.exposures)
        checks.check_times(columns, profiles.exposures)
        encoded = table_schema(encode_table(profiles.exposures))  # raises for columns that cannot be kept
        if taken := [name for name in _RESERVED if name in encoded]:
            raise ValueError(f"exposures must not have columns {', '.join(taken)}: the store makes them itself")
        header = {"format": FORMAT, "version": VERSION, **checks.header_of(profiles)}
        checks.check_lines(columns, profiles.lines)
        checks.check_fibers(profiles.instrument, columns)
        return cls(columns, profiles.exposures, keys, header)


def check_name(path: Path, header: dict[str, Any]) -> None:
    """Raise MixedStoreError where a folder's name claims another spectrograph, arm or season."""
    named = parse_model_name(path)
    if named is not None:
        _compare(f"{path.name} is the name for", named, header, ("spectrograph", "arm", "season"))


def check_belongs(path: Path, header: dict[str, Any], batches: Sequence[Batch], candidate: Candidate) -> None:
    """Raise MixedStoreError (ValueError for the exposures' columns) where profiles do not fit the store."""
    _compare(f"{path} holds", header, candidate.header, _IDENTITY)
    own, given = header["offset"], candidate.header["offset"]
    if own != given:
        raise MixedStoreError(
            f"{path} has a grid of {len(own)} samples from {own[0]} to {own[-1]} Angstrom, "
            f"these profiles one of {len(given)} from {given[0]} to {given[-1]}"
        )
    if any(header[name] != candidate.header[name] for name in ("digest", "lines", "lines_name")):
        ours, theirs = (checks.lines_of(of).vacuum for of in (header, candidate.header))
        raise MixedStoreError(
            f"{path} was begun with another description of {header['instrument']}: "
            f"{ours.size} lines {np.round(ours, 3).tolist()} Angstrom, these profiles have "
            f"{theirs.size} lines {np.round(theirs, 3).tolist()} (fingerprints {header['digest']}, "
            f"{candidate.header['digest']})"
        )
    schema: dict[str, Any] = {}
    for batch in batches:
        schema.update(table_schema(batch.manifest["exposures"]))
    for name, kind in table_schema(encode_table(candidate.exposures)).items():
        if schema.get(name, kind) != kind:
            raise ValueError(f"exposures column {name!r} is {kind} (kind, unit), in {path} it is {schema[name]}")


def _compare(claim: str, own: dict[str, Any], given: dict[str, Any], names: Sequence[str]) -> None:
    differ = [name for name in names if own[name] != given[name]]
    if differ:
        ours, theirs = (", ".join(f"{name} {of[name]!r}" for name in differ) for of in (own, given))
        raise MixedStoreError(f"{claim} {ours}; these profiles are of {theirs}")


def without_known(path: Path, batches: Sequence[Batch], candidate: Candidate, duplicates: str) -> Candidate | None:
    """The candidate without exposures that the store has; None where nothing is left."""
    known = {key for batch in batches for key in batch.keys}
    new = np.array([key not in known for key in candidate.keys])
    if new.all():
        return candidate
    if duplicates == "raise":
        minute = int(candidate.keys[int(np.argmin(new))].partition(":")[0]) / 60.0
        first = f"{lmjm_to_time(minute).isot} UTC"
        raise DuplicateExposureError(
            f"{path} has {(~new).sum()} of these {new.size} exposures already, the first of {first}; "
            "duplicates='skip' leaves them out"
        )
    if not new.any():
        return None
    rows = new[candidate.columns["exposure"]]
    columns = {name: array[rows] for name, array in candidate.columns.items()}
    columns["exposure"] = (np.cumsum(new) - 1)[columns["exposure"]].astype(LABELS["exposure"])
    keys = list(itertools.compress(candidate.keys, new))
    return replace(candidate, columns=columns, exposures=candidate.exposures[new], keys=keys)


def write_candidate(
    path: Path,
    header: dict[str, Any],
    number: int,
    candidate: Candidate,
    include_flagged: bool,
    compression: str | None,
) -> str:
    """Write one batch: complete and on disk before it gets its name. Returns its id."""
    from lamost_lsf import __version__

    columns, keys = candidate.columns, candidate.keys
    stored = np.ones(columns["flag"].size, dtype=bool) if include_flagged else columns["flag"] == 0
    rejected = {f"rejected_{name}": columns[name][~stored] for name in REJECTED}
    if not stored.all():
        columns = {name: array[stored] for name, array in columns.items()}
    text = batch_file.manifest_text(
        {
            "format": FORMAT,
            "version": VERSION,
            "header": header["sha256"],
            "exposures": encode_table(candidate.exposures),
            "keys": keys,
            "digests": _digests(keys, columns),
            "n_profiles": np.bincount(columns["exposure"], minlength=len(keys)).tolist(),
            "n_rejected": np.bincount(rejected["rejected_exposure"], minlength=len(keys)).tolist(),
            "numbering_digest": _numbering_digest(columns, rejected),
            "shapes": {name: list(array.shape) for name, array in {**columns, **rejected}.items()},
            "written_by": f"lamost_lsf {__version__}",
        }
    )
    final = batch_path(path, number, text)
    with atomic_path(final) as temporary:
        batch_file.write_batch(temporary, text, {**columns, **rejected}, compression)
    batch_file.sync_folder(path)
    return final.stem


def verify_batch(batch: Batch) -> None:
    """Read a batch and compare it with its checksums; raises FormatError."""
    manifest = batch_file.read_manifest(batch.path, batch.digest)
    dtypes = {**ROW_COLUMNS, **REJECTED_COLUMNS}
    out = {name: np.empty(shape, dtype=dtypes[name]) for name, shape in manifest["shapes"].items()}
    batch_file.read_columns(batch.path, out)
    # numbers of exposures first: they say which rows the other digests are of
    if _numbering_digest(out, out) != manifest["numbering_digest"] or _digests(batch.keys, out) != manifest["digests"]:
        raise FormatError(f"{batch.path} is damaged: its content does not fit its checksums")


def _digests(keys: Sequence[str], columns: dict[str, np.ndarray]) -> list[str]:
    """Digest of each exposure's rows."""
    order = np.argsort(columns["exposure"], kind="stable")
    edges = np.searchsorted(columns["exposure"][order], np.arange(len(keys) + 1))
    digests = []
    for key, (i, j) in zip(keys, itertools.pairwise(edges)):
        rows: Any = order[i:j]
        if rows.size and rows[-1] - rows[0] == rows.size - 1:
            rows = slice(int(rows[0]), int(rows[-1]) + 1)  # together, as they usually are: no copy
        digests.append(batch_file.exposure_digest(key, {name: columns[name][rows] for name in ROW_COLUMNS}))
    return digests


def _numbering_digest(columns: dict[str, np.ndarray], rejected: dict[str, np.ndarray]) -> str:
    """SHA-256 of what `_digests` leaves out: numbers of exposures, and labels of rejected profiles."""
    digest = hashlib.sha256(np.ascontiguousarray(columns["exposure"]).data)
    for name in REJECTED:
        digest.update(np.ascontiguousarray(rejected[f"rejected_{name}"]).data)
    return digest.hexdigest()
