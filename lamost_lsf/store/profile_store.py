"""`ProfileStore`: the training set of one season, spectrograph and arm, on disk."""

from __future__ import annotations

import io
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from astropy.table import Table

from lamost_lsf.errors import FormatError
from lamost_lsf.lines import LineList
from lamost_lsf.store import appending, batch_file, checks, splits
from lamost_lsf.store.batch_file import LABELS, NATIVE, REJECTED_COLUMNS, ROW_COLUMNS
from lamost_lsf.store.catalogue import LOCK, TEMPORARIES, Batch, list_batches, read_header, sha256, write_header
from lamost_lsf.store.locking import folder_lock
from lamost_lsf.store.tables import concatenate_tables, decode_table
from lamost_lsf.time import night_number

if TYPE_CHECKING:
    from lamost_lsf.arcs import ProfileSet

__all__ = ["ProfileStore"]

SUFFIX = ".profiles"

_COMPRESSIONS = ("lzf", "gzip", None)
#: Neighbours that stay together when rows are dealt into pools: a few chunks of a file.
_BLOCK = 256


class ProfileStore:
    """Profiles of one season, spectrograph and arm, on disk: append-safe, checked, and read in parts.

    The store is a folder. Each `append` adds one immutable HDF5 file under a temporary name and renames it when it is
    complete and on disk, so a writer that is killed leaves whole batches only. An opened store shows the batches of
    that moment (`refresh` looks again); rows keep their numbers when more are appended.

    Parameters
    ----------
    path : path
        Folder of the store; its parent must exist. `path_for` gives the usual name.
    mode : {"a", "r", "w-"}
        "a" appends to a store or begins a new one, "r" only reads, "w-" begins a new one and fails where something
        exists. A new store is made by its first `append`. Nothing is ever overwritten.
    compression : {"lzf", "gzip", None}
        For new batches. "lzf" reads and writes fastest per byte saved; "gzip" is known to every HDF5 reader; None is
        fastest on a fast disk.
    lock : bool
        Whether appending takes the store's lock. Switch it off only on file systems without locks, with one writer at a
        time.
    lock_timeout : float
        Seconds that `append` waits for another writer.

    Raises
    ------
    FileNotFoundError
        No store at ``path`` (mode "r"), or no folder to put it in.
    FileExistsError
        Something exists at ``path`` (mode "w-").
    FormatError
        Not a store, of another format version, or damaged.
    ValueError
        Another mode or compression.

    Notes
    -----
    Columns, one row a profile: ``profile`` (600 samples, peak 1, on the grid `offset`), ``native_offset`` (Angstrom
    from the line's true wavelength), ``native_flux``, ``native_ivar`` (detector pixels; ivar 0 is bad or padding), and
    the labels ``lmjm`` (local modified Julian minutes), ``fiber`` (from 1), ``wavelength`` (true, vacuum, Angstrom),
    ``line`` (number in the instrument's list), ``exposure`` (row of `exposures`), ``noise`` (1 sigma of a sample of the
    profile) and ``flag`` (0 is good).

    Examples
    --------
    >>> import tempfile
    >>> from astropy.time import Time
    >>> from lamost_lsf.arcs import ArcExposure, extract_profiles
    >>> from lamost_lsf.simulation import SimulatedIP, simulate_arc
    >>> from lamost_lsf.store import ProfileStore
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = ProfileStore(ProfileStore.path_for(folder.name, spectrograph=1, arm="blue", season=2017))
    >>> for time in Time(["2017-01-10T15:00", "2017-01-10T21:00"]):
    ...     arc = simulate_arc(SimulatedIP("blue"), time, fiber=list(range(1, 9)), dead_fibers=[])
    ...     exposure = ArcExposure.from_simulation(arc)
    ...     batch = store.append(extract_profiles(exposure, instrument="lamost-lrs-blue"))
    >>> store.n_exposures, store.season
    (2, 2017)
    >>> train, validation = store.split(0.5)
    >>> train.size + validation.size == len(store)
    True
    >>> part = next(store.iter_batches(train, ["profile", "fiber"], chunk=16))
    >>> part["profile"].shape
    (16, 600)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | PathLike,
        mode: str = "a",
        *,
        compression: str | None = "lzf",
        lock: bool = True,
        lock_timeout: float = 60.0,
    ) -> None:
        if mode not in ("a", "r", "w-"):
            raise ValueError(f"mode must be 'a', 'r' or 'w-', got {mode!r}")
        if compression not in _COMPRESSIONS:
            raise ValueError(f"compression must be 'lzf', 'gzip' or None, got {compression!r}")
        if not lock_timeout >= 0:
            raise ValueError(f"lock_timeout must be 0 s or more, got {lock_timeout}")
        self.path = Path(path)
        self.mode = mode
        self._compression = compression
        self._lock = bool(lock)
        self._lock_timeout = float(lock_timeout)
        self._header: dict[str, Any] | None = None
        self._batches: list[Batch] = []
        if mode == "w-" and self.path.exists():
            raise FileExistsError(f"{self.path} exists; mode 'a' appends to it")
        if mode == "r" and not self.path.exists():
            raise FileNotFoundError(f"no store at {self.path}")
        if mode != "r" and not self.path.parent.is_dir():
            raise FileNotFoundError(f"folder {self.path.parent} does not exist")
        self.refresh()

    # -- opening -----------------------------------------------------------------------------------------

    @staticmethod
    def path_for(root: str | PathLike, spectrograph: int, arm: str, season: int) -> Path:
        """Usual path of a store: that of the set's model file with the suffix ``.profiles``.

        Raises
        ------
        ValueError
            A spectrograph outside 0-99, an arm other than "blue" and "red", a season that is not a year of four digits.

        Examples
        --------
        >>> ProfileStore.path_for("profiles", 1, "blue", 2017).name
        '01_b_2017.profiles'
        """
        if arm not in ("blue", "red"):
            raise ValueError(f"arm must be 'blue' or 'red', got {arm!r}")
        spectrograph, season = operator.index(spectrograph), operator.index(season)
        if not 0 <= spectrograph <= 99:
            raise ValueError(f"spectrograph must be 0 to 99, got {spectrograph}")
        if not 1000 <= season <= 9999:
            raise ValueError(f"season must be the year it ends in, got {season}")
        return Path(root) / f"{spectrograph:02d}_{arm[0]}_{season}{SUFFIX}"

    def refresh(self) -> None:
        """Look for batches that others have appended since.

        Raises
        ------
        FormatError
            The store, or one of its batches, is damaged or of another format version.
        """
        if not self.path.exists():
            return
        header = read_header(self.path)
        if header is None:
            if self.mode == "r":
                raise FormatError(f"{self.path} is not a profile store, or nothing has been appended to it yet")
            return
        if self._header is not None and header != self._header:
            raise FormatError(f"{self.path} has been replaced by another store since it was opened")
        self._header = header
        batches = list_batches(self.path, header, self._batches)
        if [b.path for b in batches] != [b.path for b in self._batches]:
            self._batches = batches
            for name in ("labels", "exposures", "id"):
                self.__dict__.pop(name, None)

    def _require_header(self) -> dict[str, Any]:
        if self._header is None:
            raise ValueError(f"{self.path} is empty: nothing has been appended yet")
        return self._header

    # -- what is there -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of profiles stored."""
        return self._batches[-1].start + self._batches[-1].n if self._batches else 0

    def __bool__(self) -> bool:
        return True  # an empty store is still a store

    def __repr__(self) -> str:
        if self._header is None:
            return f"<ProfileStore {self.path}: new>"
        h = self._header
        return (
            f"<ProfileStore {self.path}: {len(self)} profiles of {self.n_exposures} exposures, "
            f"{h['instrument']} {h['arm']} {h['spectrograph']:02d} season {h['season']}>"
        )

    @property
    def instrument(self) -> str:
        """Name of the instrument."""
        return self._require_header()["instrument"]

    @property
    def arm(self) -> str:
        """Arm."""
        return self._require_header()["arm"]

    @property
    def spectrograph(self) -> int:
        """Number of the spectrograph."""
        return self._require_header()["spectrograph"]

    @property
    def season(self) -> int:
        """Season, the year that it ends in."""
        return self._require_header()["season"]

    @property
    def offset(self) -> np.ndarray:
        """Grid of the profiles: observed minus true wavelength, Angstrom, (n_sample,)."""
        return np.array(self._require_header()["offset"], dtype=np.float64)

    @property
    def lines(self) -> LineList:
        """The line list that ``line`` counts in."""
        return checks.lines_of(self._require_header())

    @property
    def n_exposures(self) -> int:
        """Number of exposures, those without a good profile included."""
        return sum(len(batch.keys) for batch in self._batches)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: `load` reads any of them, `labels` has those with one number a profile."""
        return tuple(ROW_COLUMNS)

    @cached_property
    def exposures(self) -> Table:
        """Provenance, one row an exposure: the columns that came along, n_profiles, n_rejected, night, batch.

        ``night`` is the modified Julian day of the evening, from noon to noon in Beijing.
        """
        table = decode_table(concatenate_tables([batch.manifest["exposures"] for batch in self._batches]))
        for name in ("n_profiles", "n_rejected"):
            table[name] = np.array([n for b in self._batches for n in b.manifest[name]], dtype=np.int64)
        table["night"] = night_number(self._exposure_minutes())
        table["batch"] = np.array([b.id for b in self._batches for _ in b.keys], dtype=np.str_)
        return table

    def _keys(self) -> list[str]:
        return [key for batch in self._batches for key in batch.keys]

    def _exposure_minutes(self) -> np.ndarray:
        """LMJM of each exposure, to the second (the key's first part)."""
        return np.array([int(key.partition(":")[0]) for key in self._keys()], dtype=np.float64) / 60.0

    @cached_property
    def id(self) -> str:
        """SHA-256 (hexadecimal) of the content: what a model file quotes as its training set.

        The order in which exposures were appended, and how many at a time, do not matter; any changed value does.
        """
        header = self._require_header()
        content = sorted(
            digest for b in self._batches for digest, n in zip(b.manifest["digests"], b.manifest["n_profiles"]) if n
        )
        return sha256({"header": header["sha256"], "exposures": content})

    @cached_property
    def labels(self) -> Mapping[str, np.ndarray]:
        """Labels of all profiles, read-only arrays (n,) by name; the profiles themselves stay on disk.

        ``lmjm``, ``fiber``, ``wavelength``, ``line``, ``exposure``, ``noise`` and ``flag``, see `ProfileStore`.
        """
        labels = {name: np.empty(len(self), dtype=dtype) for name, dtype in LABELS.items()}
        for batch in self._batches:
            rows = slice(batch.start, batch.start + batch.n)
            batch_file.read_columns(batch.path, labels, None, rows)
            labels["exposure"][rows] += batch.first_exposure
        for array in labels.values():
            array.flags.writeable = False
        return MappingProxyType(labels)

    @property
    def good(self) -> np.ndarray:
        """Profiles without a flag, bool (n,): all of them, unless flagged ones were stored."""
        return self.labels["flag"] == 0

    def info(self) -> dict[str, Any]:
        """Summary of plain values, ready for JSON."""
        header = self._require_header()
        minutes = self._exposure_minutes()
        return {
            "path": str(self.path),
            "format_version": header["version"],
            **{k: header[k] for k in ("instrument", "arm", "spectrograph", "season")},
            "n_sample": len(header["offset"]),
            "native_width": self._native_width(),
            "n_profiles": len(self),
            "n_rejected": int(sum(sum(b.manifest["n_rejected"]) for b in self._batches)),
            "n_exposures": self.n_exposures,
            "n_nights": int(np.unique(night_number(minutes)).size),
            "n_batches": len(self._batches),
            "lines": self.lines.vacuum.tolist(),
            "lmjm_range": [float(minutes.min()), float(minutes.max())] if minutes.size else None,
            "bytes": sum(batch.path.stat().st_size for batch in self._batches),
            "id": self.id,
        }

    def _native_width(self) -> int:
        return max((b.manifest["shapes"]["native_ivar"][1] for b in self._batches), default=0)

    def yields(self, by: str | Sequence[str] = ("fiber", "line")) -> Table:
        """How many profiles were good, and why the others were not, those that were not stored included.

        As `~lamost_lsf.arcs.ProfileSet.yields` of everything that was appended.
        """
        from lamost_lsf.arcs import ProfileSet

        names = [name.removeprefix("rejected_") for name in REJECTED_COLUMNS]
        parts = {name: [self.labels[name]] for name in names}
        for batch in self._batches:
            n = batch.manifest["shapes"]["rejected_flag"][0]
            out = {name: np.empty(n, dtype=dtype) for name, dtype in REJECTED_COLUMNS.items()}
            batch_file.read_columns(batch.path, out)
            out["rejected_exposure"] += batch.first_exposure
            for name in names:
                parts[name].append(out[f"rejected_{name}"])
        labels = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        n = labels["flag"].size
        nothing = np.empty((n, 0), dtype=np.float32)
        columns: dict[str, Any] = {
            name: nothing if name in (*NATIVE, "profile") else np.zeros(n) for name in ROW_COLUMNS
        }
        return ProfileSet(**self._identity(), offset=np.empty(0), **{**columns, **labels}).yields(by)

    def _identity(self) -> dict[str, Any]:
        """What a `ProfileSet` needs beside columns and grid."""
        header = self._require_header()
        plain = {name: header[name] for name in ("instrument", "digest", "arm", "spectrograph")}
        own = ("n_profiles", "n_rejected", "night", "batch")
        return {
            **plain,
            "lines": self.lines,
            "exposures": self.exposures[[c for c in self.exposures.colnames if c not in own]],
        }

    # -- writing -----------------------------------------------------------------------------------------

    def append(self, profiles: ProfileSet, *, include_flagged: bool = False, duplicates: str = "raise") -> str | None:
        """Add a set of profiles as one batch: wholly, or not at all.

        Parameters
        ----------
        profiles : `~lamost_lsf.arcs.ProfileSet`
            From one or more exposures of one season. A set without a good profile is taken: its rejections are counted.
        include_flagged : bool
            Store profiles with a flag too. By default only their labels are kept, for `yields`. Flagged profiles never
            come out of `split`, nor out of `iter_batches` without rows.
        duplicates : {"raise", "skip"}
            What to do with an exposure (same time to the second, same lamp) that the store has.

        Returns
        -------
        str or None
            Id of the batch; None where every exposure was skipped.

        Raises
        ------
        MixedStoreError
            Another instrument, arm, spectrograph, season, line list or grid; or another set than the folder's name
            says.
        DuplicateExposureError
            The store has one of the exposures, or the set has one twice.
        TypeError, ValueError
            Not a set of profiles, or one with impossible values; nothing is written.
        io.UnsupportedOperation
            The store was opened with mode "r".
        TimeoutError
            Another writer held the store all that time.
        """
        if self.mode == "r":
            raise io.UnsupportedOperation(f"{self.path} was opened with mode 'r'; open it with mode 'a' to append")
        if duplicates not in ("raise", "skip"):
            raise ValueError(f"duplicates must be 'raise' or 'skip', got {duplicates!r}")
        candidate = appending.Candidate.from_profiles(profiles)
        appending.check_name(self.path, candidate.header)
        if self._header is not None:
            appending.check_belongs(self.path, self._header, self._batches, candidate)
        self.path.mkdir(exist_ok=True)
        if not self._lock:
            return self._append(candidate, include_flagged, duplicates)
        with folder_lock(self.path / LOCK, self._lock_timeout):
            # whoever holds the lock knows that every temporary belongs to a writer that died
            for pattern in TEMPORARIES:
                for leftover in self.path.glob(pattern):
                    leftover.unlink(missing_ok=True)
            return self._append(candidate, include_flagged, duplicates)

    def _append(self, candidate: appending.Candidate, include_flagged: bool, duplicates: str) -> str | None:
        new = self._header is None
        self.refresh()
        if self._header is None:
            write_header(self.path, candidate.header)
            self.refresh()
        elif new and self.mode == "w-":
            raise FileExistsError(f"another writer has begun {self.path}")
        header = self._require_header()
        appending.check_belongs(self.path, header, self._batches, candidate)
        remaining = appending.without_known(self.path, self._batches, candidate, duplicates)
        if remaining is None:
            return None
        number = max((batch.number for batch in self._batches), default=0) + 1
        name = appending.write_candidate(self.path, header, number, remaining, include_flagged, self._compression)
        self.refresh()
        return name

    # -- reading -----------------------------------------------------------------------------------------

    def _as_rows(self, rows: Any) -> np.ndarray:
        n = len(self)
        if isinstance(rows, slice):
            return np.arange(n)[rows]
        array = np.asarray(rows)
        if array.size == 0 and array.ndim == 1:
            return np.empty(0, dtype=np.int64) if array.dtype != bool or n == 0 else self._wrong_mask(array)
        if array.ndim != 1 or array.dtype.kind not in "biu":
            raise TypeError(
                f"rows must be a slice, a mask or a 1-D array of integers, got {array.dtype} of shape {array.shape}"
            )
        if array.dtype == bool:
            return np.flatnonzero(array) if array.size == n else self._wrong_mask(array)
        if array.min() < 0 or array.max() >= n:
            raise IndexError(f"rows must be 0 to {n - 1}, got {array.min()} to {array.max()}")
        return array.astype(np.int64, copy=False)

    def _wrong_mask(self, mask: np.ndarray) -> np.ndarray:
        raise ValueError(f"the mask has {mask.size} entries, the store {len(self)} profiles")

    def _as_columns(self, columns: Iterable[str] | None) -> list[str]:
        if columns is None:
            return list(ROW_COLUMNS)
        names = [columns] if isinstance(columns, str) else list(columns)
        unknown = [name for name in names if name not in ROW_COLUMNS]
        if unknown or not names:
            raise ValueError(
                f"columns must be of {', '.join(ROW_COLUMNS)}; got {', '.join(map(repr, unknown)) or 'none'}"
            )
        return names

    def load(self, rows: Any, columns: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Read some profiles into memory; nothing but the result is held.

        Parameters
        ----------
        rows : slice, ndarray of bool (len(store),) or ndarray of int
            Which, in any order; repeated ones are repeated.
        columns : iterable of str, optional
            Names from `columns`, all by default. Native pixels have the width of the widest batch; padding has offset,
            flux and ivar 0.

        Returns
        -------
        dict of str to ndarray
            Rows as asked for.

        Raises
        ------
        IndexError, TypeError, ValueError
            Rows outside the store, or something else than rows; a mask of another length; unknown columns.
        FormatError
            A checksum does not fit.
        """
        index, names = self._as_rows(rows), self._as_columns(columns)
        out: dict[str, np.ndarray] = {}
        for name in names:
            if name in NATIVE:
                out[name] = np.zeros((index.size, self._native_width()), dtype=ROW_COLUMNS[name])
            elif name == "profile":
                out[name] = np.empty((index.size, self.offset.size if self._header else 0), dtype=ROW_COLUMNS[name])
            else:
                out[name] = np.empty(index.size, dtype=ROW_COLUMNS[name])
        ascending = bool(np.all(index[1:] >= index[:-1]))
        order = np.arange(index.size) if ascending else np.argsort(index, kind="stable")
        ordered = index if ascending else index[order]
        edges = np.searchsorted(ordered, [b.start for b in self._batches] + [len(self)])
        for batch, i, j in zip(self._batches, edges[:-1], edges[1:]):
            if i == j:
                continue
            to = slice(i, j) if ascending else order[i:j]
            batch_file.read_columns(batch.path, out, ordered[i:j] - batch.start, to)
            if "exposure" in out:
                out["exposure"][to] += batch.first_exposure
        return out

    def profile_set(self, rows: Any) -> ProfileSet:
        """Some profiles as a `~lamost_lsf.arcs.ProfileSet` with all exposures' provenance; rows as in `load`."""
        from lamost_lsf.arcs import ProfileSet

        return ProfileSet(**self._identity(), offset=self.offset, **cast(dict[str, Any], self.load(rows)))

    def iter_batches(
        self,
        rows: Any = None,
        columns: Iterable[str] | None = None,
        *,
        chunk: int = 8192,
        shuffle: bool = False,
        seed: int | None = None,
        pool: int = 65536,
        skip: int = 0,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Stream profiles, ``chunk`` at a time; memory holds one chunk, or one pool when shuffled.

        Parameters
        ----------
        rows : slice, ndarray of bool or ndarray of int, optional
            Which (`split`); by default all good ones (flag 0).
        columns : iterable of str, optional
            As in `load`.
        chunk : int
            Profiles at a time; the last chunk may be shorter.
        shuffle : bool
            Draw the order at random: blocks of 256 neighbours are dealt at random into pools, rows shuffled inside a
            pool. Each profile comes once. Far faster than single rows from all over the store, and nearly as well
            mixed.
        seed : int, optional
            Of the order; the same seed, rows and store give the same order.
        pool : int
            Profiles in memory at a time when shuffled.
        skip : int
            Chunks to leave out at the beginning, without reading them: how an interrupted pass goes on.

        Yields
        ------
        dict of str to ndarray
            As `load`, and ``row``, the rows' numbers.

        Raises
        ------
        ValueError
            A chunk or pool below 1, a negative skip, and what `load` raises, all at the call.
        """
        for name, value, low in (("chunk", chunk, 1), ("pool", pool, 1), ("skip", skip, 0)):
            if operator.index(value) < low:
                raise ValueError(f"{name} must be {low} or more, got {value}")
        index = self._good_rows(False) if rows is None else self._as_rows(rows)
        names = self._as_columns(columns)
        at_once = chunk
        if shuffle:
            at_once = max(1, pool // chunk) * chunk
            index = _shuffled(index, at_once, np.random.default_rng(seed))
        return self._stream(index, names, chunk, at_once, skip)

    def _stream(
        self, index: np.ndarray, names: list[str], chunk: int, at_once: int, skip: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for start in range(skip * chunk // at_once * at_once, index.size, at_once):
            rows = index[start : start + at_once]
            loaded = {"row": rows, **self.load(rows, names)}
            if at_once == chunk:
                yield loaded
                continue
            for i in range(max(0, skip * chunk - start), rows.size, chunk):
                # copies: a view would keep the whole pool alive for whoever keeps one chunk
                yield {name: array[i : i + chunk].copy() for name, array in loaded.items()}

    def verify(self) -> None:
        """Read everything and compare it with the checksums written when it was appended.

        Raises
        ------
        FormatError
            Names every damaged file. Move such a file away and append its exposures again: the rest of the store stays
            good.
        """
        damaged = []
        for batch in self._batches:
            try:
                appending.verify_batch(batch)
            except FormatError as error:
                damaged.append(str(error))
        if damaged:
            raise FormatError("; ".join(damaged))

    # -- splits ------------------------------------------------------------------------------------------

    def _good_rows(self, include_flagged: bool) -> np.ndarray:
        return np.arange(len(self)) if include_flagged else np.flatnonzero(self.good)

    def split(
        self,
        fraction: float = 0.8,
        *,
        by: str = "exposure",
        seed: int | None = 0,
        utc_offset: float = 8.0,
        include_flagged: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows for training and for validation; no exposure (or night) has profiles in both.

        Parameters
        ----------
        fraction : float
            Part of the exposures (nights) that goes to training; at least one goes to either side.
        by : {"exposure", "night"}
            What stays together. There is no split by profile: neighbours in one exposure would make the validation
            error too small.
        seed : int or None
            The draw depends on it and on the exposures' times, not on the order of appending.
        utc_offset : float
            Hours of the observatory's clock ahead of UTC, for nights.
        include_flagged : bool
            Whether flagged profiles, where stored, take part.

        Returns
        -------
        train, validation : ndarray of int
            Ascending rows.

        Raises
        ------
        ValueError
            Another ``by``, a fraction outside (0, 1), no good profiles, fewer than two exposures (nights).
        """
        if by not in ("exposure", "night"):
            raise ValueError(f"by must be 'exposure' or 'night', got {by!r}")
        rows = self._good_rows(include_flagged)
        exposure = self.labels["exposure"][rows]
        if by == "exposure":
            return splits.hold_out_fraction(exposure, self._keys(), rows, fraction, seed, by)
        nights, night = np.unique(night_number(self._exposure_minutes(), utc_offset), return_inverse=True)
        return splits.hold_out_fraction(night[exposure], nights.tolist(), rows, fraction, seed, by)

    def leave_one_line_out(self, *, include_flagged: bool = False) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each line: its number, the rows of the others, its rows.

        Raises
        ------
        ValueError
            Profiles of fewer than two lines.
        """
        rows = self._good_rows(include_flagged)
        return splits.leave_one_out(self.labels["line"][rows], rows, "line")

    def leave_one_night_out(
        self, *, utc_offset: float = 8.0, include_flagged: bool = False
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each night: the modified Julian day of its evening, the rows of the others, its rows.

        Raises
        ------
        ValueError
            Profiles of fewer than two nights.
        """
        rows = self._good_rows(include_flagged)
        night = night_number(self._exposure_minutes(), utc_offset)[self.labels["exposure"][rows]]
        return splits.leave_one_out(night, rows, "night")


def _shuffled(index: np.ndarray, pool: int, rng: np.random.Generator) -> np.ndarray:
    """Rows in an order that mixes them well and yet reads neighbours together."""
    starts = np.arange(0, index.size, _BLOCK)
    rng.shuffle(starts)
    order = (starts[:, None] + np.arange(_BLOCK)).ravel()
    order = order[order < index.size]
    for start in range(0, order.size, pool):
        rng.shuffle(order[start : start + pool])
    return index[order]
