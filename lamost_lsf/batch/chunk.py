"""One part of a survey: files in, a Parquet file out. What a worker does."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamost_lsf.batch.manifest import item_key
from lamost_lsf.batch.output import Part, part_name, write_part
from lamost_lsf.batch.reading import read_ahead
from lamost_lsf.errors import FormatError
from lamost_lsf.rv import RVFlag, RVMachine
from lamost_lsf.rv.rows import blank_row
from lamost_lsf.rv.spectra import ObservedArrays

__all__ = ["fail_chunk", "measure_chunk", "peak_memory", "rows_per_spectrum"]

#: A machine keeps what it has made, and a process has one list of warning filters: one chunk of a process at a time.
_ONE_AT_A_TIME = threading.Lock()
#: Longest message of a row.
_MESSAGE = 240


def rows_per_spectrum(machine: RVMachine) -> int:
    """One for each window, and one for all of several."""
    n = len(machine.windows)
    return n + (n > 1)


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # pragma: no cover
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_chunk(
    machine: RVMachine,
    folder: str,
    config: str,
    items: Sequence[tuple[str, str]],
    batch: int,
    threads: int,
) -> dict[str, Any]:
    """Measure some spectra and write their rows; what came of it.

    Where the file is there already, because another worker wrote it and died before it could say so, nothing is done.

    Parameters
    ----------
    machine : RVMachine
    folder, config : str
        Of the survey.
    items : sequence of (path, extension)
    batch : int
        Spectra that are measured together.
    threads : int
        That read ahead.

    Returns
    -------
    dict
        n, flagged, seconds, waited (s, for files), memory (bytes, of the process), process (its name), warnings (one
        text for each kind).
    """
    keys = [item_key(*item) for item in items]
    path = Path(folder) / part_name(config, keys)
    began = time.perf_counter()
    told: dict[str, str] = {}
    waited = 0.0
    flagged = _finished(path)
    if flagged is None:
        with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
            # a warning is about one spectrum among many: it must neither stop the others nor be said each time
            warnings.simplefilter("always")
            rows: list[dict[str, Any]] = []
            done = 0
            batches = read_ahead(items, batch, mask=machine.mask, extension=machine.extension, threads=threads)
            while True:
                start = time.perf_counter()
                spectra = next(batches, None)
                waited += time.perf_counter() - start
                if spectra is None:
                    break
                rows += _measure(machine, items[done : done + len(spectra)], spectra)
                done += len(spectra)
                for warning in caught:
                    told.setdefault(warning.category.__name__, " ".join(str(warning.message).split()))
                caught.clear()
        written = write_part(Path(folder), config, keys, [extension for _, extension in items], rows)
        flagged = Part.read(written).flagged
    return {
        "n": len(items), "flagged": flagged, "seconds": time.perf_counter() - began, "waited": waited,
        "memory": peak_memory(), "process": f"{os.uname().nodename if hasattr(os, 'uname') else ''}:{os.getpid()}",
        "warnings": told,
    }  # fmt: skip


def fail_chunk(
    machine: RVMachine, folder: str, config: str, items: Sequence[tuple[str, str]], message: str
) -> dict[str, Any]:
    """Rows without velocity of spectra over which workers died, for ``message``."""
    keys = [item_key(*item) for item in items]
    rows = [row for path, _ in items for row in _failed(machine, path, message)]
    write_part(Path(folder), config, keys, [extension for _, extension in items], rows)
    return {
        "n": len(items), "flagged": len(items), "seconds": 0.0, "waited": 0.0, "memory": 0, "process": "",
        "warnings": {},
    }  # fmt: skip


def _finished(path: Path) -> int | None:
    """Number of flagged spectra of a file that is there and whole, else None."""
    try:
        return Part.read(path).flagged if path.exists() else None
    except FormatError:
        return None


def _measure(
    machine: RVMachine, items: Sequence[tuple[str, str]], spectra: Sequence[ObservedArrays]
) -> list[dict[str, Any]]:
    """Rows of some spectra, whatever happens."""
    try:
        rows = machine.measure(spectra)
    except MemoryError:
        raise
    except Exception as error:
        if len(spectra) == 1:
            return _failed(machine, items[0][0], f"{type(error).__name__}: {' '.join(str(error).split())}")
        # which one it was is found out one by one
        return [row for item, one in zip(items, spectra, strict=True) for row in _measure(machine, [item], [one])]
    each = rows_per_spectrum(machine)
    for i, row in enumerate(rows):
        row["file"] = items[i // each][0]
        row["message"] = _short(row["message"])
    return rows


def _short(message: str) -> str:
    """Readers have been seen to list all formats that they know, for each file."""
    return message if len(message) <= _MESSAGE else message[: _MESSAGE - 3].rstrip() + "..."


def _failed(machine: RVMachine, path: str, message: str) -> list[dict[str, Any]]:
    names = [window.name for window in machine.windows]
    rows = []
    for name in names + ["combined"] * (len(names) > 1):
        flag = RVFlag.FAILED
        row = {**blank_row(), "file": path, "window": name, "flags": int(flag), "message": _short(message)}
        rows.append({**row, "reasons": flag.reasons()})
    return rows
