"""`measure_survey`: radial velocities of any number of files, on one machine or a Dask cluster, resumable."""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from specutils import Spectrum

from lamost_lsf.batch.chunk import fail_chunk, measure_chunk, peak_memory, rows_per_spectrum
from lamost_lsf.batch.identity import describe_machine
from lamost_lsf.batch.manifest import SpectrumList, find_spectra
from lamost_lsf.batch.output import SETTINGS, Survey, import_parquet, settings_digest, write_settings
from lamost_lsf.batch.tables import check_table_name, write_table
from lamost_lsf.cluster import cluster_client, import_distributed
from lamost_lsf.errors import LamostLSFError, LamostLSFWarning
from lamost_lsf.lsf import LSF
from lamost_lsf.rv import RVMachine
from lamost_lsf.rv.machine import CHUNK
from lamost_lsf.store.locking import folder_lock

__all__ = ["SurveySummary", "measure_survey"]

__doctest_requires__ = {"measure_survey": ["pyarrow"]}

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_LOCK = ".lock"
#: Times that a chunk is given out again after the scheduler has lost it.
_ATTEMPTS = 3


@dataclass(frozen=True)
class SurveySummary:
    """What became of a survey.

    Attributes
    ----------
    folder : Path
    n_spectra : int
        In the input.
    n_before : int
        Of them, finished by earlier runs.
    n_measured : int
        By this run.
    n_flagged : int
        By this run, with a flag in any of their rows.
    n_rows : int
        Of all spectra of the input.
    seconds : float
        Wall time of the measurement, without that of the table.
    waited : float
        Share of the workers' time in which they waited for files.
    memory : dict
        Peak resident memory, bytes, of each process that measured ("host:pid") and of this one ("here").
    """

    folder: Path
    n_spectra: int
    n_before: int
    n_measured: int
    n_flagged: int
    n_rows: int
    seconds: float
    waited: float
    memory: dict[str, int]

    @property
    def rate(self) -> float:
        """Spectra a second."""
        return self.n_measured / self.seconds if self.seconds else 0.0


def measure_survey(
    inputs: str | PathLike | Iterable[str | PathLike],
    output: str | PathLike,
    templates: Spectrum | Sequence[Spectrum],
    lsf: LSF | Any,
    *,
    manifest: str | PathLike | None = None,
    column: str | None = None,
    root: str | PathLike | None = None,
    table: str | PathLike | None = None,
    scheduler: Any = None,
    workers: int | None = None,
    chunk: int = 1000,
    batch: int = CHUNK,
    read_threads: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
    **options: Any,
) -> SurveySummary:
    """Measure the radial velocities of any number of files; one row for each spectrum and window, failures too.

    Results are written chunk by chunk, each into a file of its own that is whole or not there. A run that was killed at
    any moment is repeated with the same arguments: what is finished is passed over, and so it is where the input has
    grown. Workers that are killed lose what they had not written, which others measure again.

    Parameters
    ----------
    inputs : path, pattern, or iterable of them
        See `find_spectra`; empty where there is a manifest.
    output : path
        Folder of Parquet files, made where it is missing.
    templates, lsf
        As for `~lamost_lsf.rv.measure_rvs`; an archive, an LSF, or a function of a spectrum's ``meta``. For workers it
        must pickle.
    manifest, column, root
        Table of paths; see `read_manifest`.
    table : path, optional
        All rows as one table, .ecsv, .csv or .fits, written at the end, in the order of the input.
    scheduler : str or `distributed.Client`, optional
        Dask scheduler that the chunks are given to. Its workers must see the same folders and have this package; one
        thread each (``dask worker --nthreads 1``) is enough.
    workers : int, optional
        So many processes on this machine, instead. Without either, all is done in this process.
    chunk : int
        Spectra in a file of results. After a kill this many are lost for each worker.
    batch : int
        Spectra measured together; at most twice as many are in a worker's memory.
    read_threads : int
        Of each worker, that read the next spectra while it measures; 0 for none.
    overwrite : bool
        Whether results of other settings, and the table, are replaced. Finished ones of the same never are.
    progress : callable, optional
        Told (finished, all, flagged so far) numbers of spectra after every chunk.
    **options
        Of `~lamost_lsf.rv.measure_rvs`: windows, center, velocity_range, continuum, degree, cosmic_sigma, frame,
        zero_points, window_scatter, wavelength_error, mask, extension.

    Returns
    -------
    SurveySummary

    Raises
    ------
    TypeError, ValueError, FormatError
        Bad arguments, or a wrong manifest (with the number of the line), before anything is written.
    FileNotFoundError, FileExistsError
        No such file, pattern or folder; a folder of something else; results of other settings, without ``overwrite``.
    TimeoutError
        Another run writes to the same folder.
    ImportError
        No pyarrow; ``scheduler`` or ``workers`` without dask.
    OSError
        No answer from the scheduler, or no space for the results; what is finished stays.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lamost_lsf.batch import measure_survey
    >>> from lamost_lsf.simulation import Observatory, synthetic_template
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "damaged.fits").write_bytes(b"SIMPLE")
    ...     summary = measure_survey(folder, Path(folder, "rv"), synthetic_template(6000), Observatory())
    >>> summary.n_spectra, summary.n_flagged
    (1, 1)
    """
    counts = {"chunk": (chunk, 1), "batch": (batch, 1), "read_threads": (read_threads, 0)}
    if workers is not None:
        counts["workers"] = (workers, 1)
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
    if scheduler is not None and workers is not None:
        raise ValueError("give scheduler, of a cluster that runs, or workers, for one on this machine; not both")
    if lsf is None or isinstance(lsf, Sequence):
        raise TypeError("lsf must be an archive, an LSF, or a function of a spectrum's meta")
    import_parquet()
    distributed = None if scheduler is None and workers is None else import_distributed("a survey")
    machine = RVMachine(templates, lsf, **options)
    if table is not None:
        check_table_name(table, overwrite)
    spectra = find_spectra(inputs, manifest=manifest, column=column, root=root)
    folder = Path(output).absolute()
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"folder {folder.parent} does not exist")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a survey's results are a folder")
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        _hold(folder, stack)
        settings = describe_machine(machine)
        config = settings_digest(settings)
        survey = _take_up(folder, settings, overwrite)
        keys = spectra.keys()
        missing = ~np.isin(keys, survey.keys())
        before = int(keys.size - missing.sum())
        jobs = _jobs(spectra, missing, int(chunk))
        state = _State(len(spectra), before, progress)
        began = time.perf_counter()
        arguments = (str(folder), config)
        if distributed is None or not missing.any():
            for items in jobs:
                state.done(measure_chunk(machine, *arguments, items, int(batch), int(read_threads)))
        else:
            _on_cluster(
                distributed, jobs, machine, arguments, (int(batch), int(read_threads)), scheduler, workers, state
            )
        seconds = time.perf_counter() - began
        survey = Survey.open(folder)
        lost = int((~np.isin(keys, survey.keys())).sum())
        if lost:
            raise LamostLSFError(f"{folder}: {lost} of {keys.size} spectra are missing; was it changed meanwhile?")
        if table is not None:
            write_table(survey, keys, table, overwrite=overwrite)
    for text in state.warnings.values():
        warnings.warn(text, LamostLSFWarning, stacklevel=2)
    return SurveySummary(
        folder, len(spectra), before, state.measured, state.flagged, len(spectra) * rows_per_spectrum(machine),
        seconds, state.waited / state.worked if state.worked else 0.0, {**state.memory, "here": peak_memory()},
    )  # fmt: skip


def _hold(folder: Path, stack: ExitStack) -> None:
    """Lock the folder against another run."""
    try:
        stack.enter_context(folder_lock(folder / _LOCK, 0.0))
    except TimeoutError:
        raise TimeoutError(f"another run writes to {folder}") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks: run one survey at a time there", LamostLSFWarning, stacklevel=4
        )


def _take_up(folder: Path, settings: dict[str, Any], overwrite: bool) -> Survey:
    """What earlier runs left in a folder; a new one where there is none."""
    if not (folder / SETTINGS).exists():
        if foreign := [path.name for path in folder.iterdir() if path.name != _LOCK and path.name[:1] != "."]:
            raise FileExistsError(f"{folder} holds something else ({foreign[0]}); a survey needs a folder of its own")
        write_settings(folder, settings)
    survey = Survey(folder, Survey.read_settings(folder))
    if settings_digest(survey.settings) != settings_digest(settings):
        differing = [name for name in settings if survey.settings.get(name) != settings[name]]
        if not overwrite:
            raise FileExistsError(
                f"{folder} was measured with other {', '.join(differing) or 'settings'}; take another folder, or pass "
                "overwrite=True to replace it"
            )
        # the settings last: a kill in between leaves a folder that still says what is in it
        for path in folder.glob("part-*.parquet"):
            path.unlink()
        write_settings(folder, settings)
    survey = Survey.open(folder, repair=True)
    survey.clean()
    return survey


def _jobs(spectra: SpectrumList, missing: np.ndarray, chunk: int) -> Iterator[list[tuple[str, str]]]:
    """Items of the chunks that are not finished.

    Chunks are cut from the whole input, whatever is finished, so that a worker of a killed run that still lives writes
    the same file as the run that follows.
    """
    for begin in range(0, len(spectra), chunk):
        here = missing[begin : begin + chunk]
        if here.any():
            items = spectra.part(begin, begin + chunk)
            yield [item for item, wanted in zip(items, here, strict=True) if wanted]


class _State:
    """How far a run has come."""

    def __init__(self, total: int, before: int, progress: Callable[[int, int, int], None] | None) -> None:
        self.total, self.before, self._progress = total, before, progress
        self.measured = self.flagged = 0
        self.worked = self.waited = 0.0
        self.memory: dict[str, int] = {}
        self.warnings: dict[str, str] = {}
        self._tell()

    def done(self, result: dict[str, Any]) -> None:
        self.measured += result["n"]
        self.flagged += result["flagged"]
        self.worked += result["seconds"]
        self.waited += result["waited"]
        if name := result["process"]:
            self.memory[name] = max(self.memory.get(name, 0), result["memory"])
        for kind, text in result["warnings"].items():
            self.warnings.setdefault(kind, f"{text} (and more of the kind, perhaps)")
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.before + self.measured, self.total, self.flagged)


# -- on a cluster -------------------------------------------------------------------------------------------------


def _carry(machine: RVMachine) -> RVMachine:
    """A worker's own machine: it keeps what it makes, and is made again where its worker has died."""
    return machine


def _on_cluster(
    distributed: Any,
    jobs: Iterator[list[tuple[str, str]]],
    machine: RVMachine,
    arguments: tuple[str, str],
    reading: tuple[int, int],
    scheduler: Any,
    workers: int | None,
    state: _State,
) -> None:
    from distributed.scheduler import KilledWorker

    with cluster_client(distributed, scheduler, workers) as client:
        carried: Any = None
        running: dict[Any, tuple[list[tuple[str, str]], int]] = {}
        finished = distributed.as_completed(loop=client.loop)

        def give(items: list[tuple[str, str]], attempt: int = 1) -> None:
            nonlocal carried
            if carried is None or carried.status in ("error", "lost", "cancelled"):
                with warnings.catch_warnings():
                    # templates are megabytes, and are sent once
                    warnings.filterwarnings("ignore", message=".*large graph.*", category=UserWarning)
                    carried = client.submit(_carry, machine, pure=False)
            # not pure: a chunk that was lost is to be measured, not answered from the scheduler's memory
            future = client.submit(measure_chunk, carried, *arguments, items, *reading, pure=False)
            running[future] = items, attempt
            finished.add(future)

        def fill() -> None:
            # enough that no worker waits, few enough that neither scheduler nor this process holds the survey
            wanted = 2 * max(1, sum(client.nthreads().values())) + 2
            while len(running) < wanted and (items := next(jobs, None)) is not None:
                give(items)

        suspects: list[list[tuple[str, str]]] = []
        fill()
        while running or suspects:
            # dask blames all that was queued at a worker that died: a spectrum is judged with nothing beside it
            judged = not running
            if judged:
                give(suspects.pop())
            future = next(finished)
            items, attempt = running.pop(future)
            if future.status == "finished":
                state.done(future.result())
            elif future.status == "error":
                error = future.exception()
                if not isinstance(error, KilledWorker | MemoryError):
                    raise error
                if carried.status == "error" and attempt < _ATTEMPTS:
                    give(items, attempt + 1)  # the machine has died, before any spectrum was touched
                elif len(items) > 1:
                    middle = len(items) // 2
                    give(items[:middle])
                    give(items[middle:])
                elif not judged:
                    suspects.append(items)
                else:
                    what = "out of memory" if isinstance(error, MemoryError) else "workers died over it"
                    state.done(fail_chunk(machine, *arguments, items, what))
            elif attempt < _ATTEMPTS:
                give(items, attempt + 1)
            else:
                raise LamostLSFError(f"the scheduler lost a chunk {attempt} times ({future.status}): {items[0][0]} ...")
            future.release()
            fill()
