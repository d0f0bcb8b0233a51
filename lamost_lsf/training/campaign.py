"""`train_all`: the models of all season-spectrograph-arm sets, one after the other or on a Dask cluster.

A set is finished when its model file stands under its final name, and the file says what it was trained on and how.
Nothing else keeps account, so a campaign that was killed at any moment is simply started again: finished sets are
passed over, the one that was being trained goes on from its last checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from lamost_lsf.cluster import cluster_client, import_distributed
from lamost_lsf.errors import LamostLSFError, LamostLSFWarning
from lamost_lsf.files import atomic_path
from lamost_lsf.models.neural import NeuralIP, parse_model_name
from lamost_lsf.store import ProfileStore
from lamost_lsf.store.locking import folder_lock
from lamost_lsf.training.api import _settings, train
from lamost_lsf.training.loop import History, choose_device

__all__ = ["STATUSES", "TrainingPlan", "find_stores", "train_all", "train_set"]

#: What can become of a set, and what it means.
STATUSES = {
    "trained": "trained now",
    "finished": "had been trained before, on the same profiles in the same way",
    "outdated": "has a model of other profiles or settings, which was left alone",
    "busy": "is being trained by another process",
    "failed": "could not be trained; the reason says why",
    "pending": "not reached yet",
}

_COLUMNS: dict[str, Any] = {
    "set": "", "spectrograph": -1, "arm": "", "season": -1, "status": "", "reason": "", "n_profiles": 0, "n_train": 0,
    "n_validation": 0, "validation_loss": np.nan, "validation_chi2": np.nan, "validation_chi2_baseline": np.nan,
    "seconds": np.nan, "training_set": "", "model": "",
}  # fmt: skip
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
#: torch's seed belongs to the process: two trainings in threads of one process would disturb each other's.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class TrainingPlan:
    """How every set of a campaign is trained; the arguments of `~lamost_lsf.training.train`.

    Attributes
    ----------
    recipe : {"expanded", "payne"}
    settings : dict
        Those of the recipe's settings that differ from the default.
    labels : tuple of str
    fraction : float
    leave_out_line, leave_out_night, leave_out_fiber : int or None
    seed : int
    device : str
    threads : int or None
    checkpoint_every : int
        The last three do not change the model that comes out (on CPU), and are not part of `identity`.

    Raises
    ------
    ValueError, TypeError
        A recipe, a setting or a fraction that does not exist.

    Examples
    --------
    >>> plan = TrainingPlan("payne", settings={"epochs": 5.0})
    >>> plan.identity()["settings"]["epochs"], plan.identity()["seed"]
    (5.0, 0)
    """

    recipe: str = "expanded"
    settings: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    fraction: float = 0.8
    leave_out_line: int | None = None
    leave_out_night: int | None = None
    leave_out_fiber: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = 1
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {self.fraction}")
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {self.checkpoint_every}")
        self.identity()  # an unknown recipe or setting is refused here, not 416 times

    def identity(self) -> dict[str, Any]:
        """What makes a model trained by this plan that model, beside its profiles; plain values."""
        settings = asdict(_settings(self.recipe, dict(self.settings), self.seed))
        identity = {
            "recipe": self.recipe,
            "settings": settings,
            "labels": self.labels,
            "fraction": self.fraction,
            "leave_out_line": self.leave_out_line,
            "leave_out_night": self.leave_out_night,
            "leave_out_fiber": self.leave_out_fiber,
            "seed": self.seed,
        }
        return json.loads(json.dumps(identity))


def find_stores(root: str | PathLike) -> list[Path]:
    """Profile stores (``*.profiles``) under a folder, at any depth, by name.

    Raises
    ------
    NotADirectoryError
        No such folder.
    FileNotFoundError
        No store in it.
    ValueError
        Two stores of one name, whose models would overwrite each other.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder of profile stores")
    stores = sorted((p for p in root.rglob("*.profiles") if p.is_dir()), key=lambda p: (p.name, p))
    if not stores:
        raise FileNotFoundError(f"{root} holds no profile store (*.profiles)")
    for first, second in pairwise(stores):
        if first.name == second.name:
            raise ValueError(f"{first} and {second} have one name; their models would be one file")
    return stores


def train_set(
    store: str | PathLike,
    model: str | PathLike,
    plan: TrainingPlan | None = None,
    *,
    work: str | PathLike | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train the model of one set, unless that has been done; with the loss history and its plot beside it.

    Parameters
    ----------
    store : path
        Profile store.
    model : path
        Model file to be written, ``*.safetensors``; ``*.history.ecsv`` and ``*.loss.png`` go beside it.
    plan : TrainingPlan, optional
    work : path, optional
        Folder of checkpoints and locks, made where it is missing; by default ``.work`` beside the model.
    overwrite : bool
        Whether a model of other profiles or settings, or a damaged one, is replaced. A finished one never is.
    progress : callable, optional
        As for `~lamost_lsf.training.train`.

    Returns
    -------
    dict
        A row of `train_all`'s table, whose status is "trained", "finished", "outdated" or "busy".

    Raises
    ------
    Exception
        Whatever opening the store or training raises; nothing then stands under the model's name that was not there.
    """
    store, model = Path(store), Path(model)
    plan = TrainingPlan() if plan is None else plan
    profiles = ProfileStore(store, "r")
    row = _row(store, model, n_profiles=len(profiles), training_set=profiles.id)
    row |= {"spectrograph": profiles.spectrograph, "arm": profiles.arm, "season": profiles.season}
    if not model.parent.is_dir():
        raise FileNotFoundError(f"folder {model.parent} does not exist")
    work = (model.parent / ".work" if work is None else Path(work)) / model.stem
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(work / "lock", 0.0))
        except TimeoutError:
            return row | {"status": "busy", "reason": "another process is training it"}
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {work} has no locks: run one campaign at a time there",
                LamostLSFWarning,
                stacklevel=2,
            )
        stack.enter_context(_ONE_AT_A_TIME)
        leftovers = [path for path in work.iterdir() if path.is_dir()]
        if model.exists():
            status, found = _examine(model, profiles.id, plan)
            if status == "finished" or not overwrite:
                if status == "finished":
                    _remove(leftovers)
                return row | found
        own = work / _digest(profiles.id, plan)
        # checkpoints of other profiles or settings are of no use to anybody
        _remove(p for p in leftovers if p != own)
        began = time.perf_counter()
        trained, history = train(
            profiles, recipe=plan.recipe, settings=dict(plan.settings), labels=plan.labels, fraction=plan.fraction,
            leave_out_line=plan.leave_out_line, leave_out_night=plan.leave_out_night,
            leave_out_fiber=plan.leave_out_fiber, seed=plan.seed, device=plan.device, threads=plan.threads,
            work=own, checkpoint_every=plan.checkpoint_every, progress=progress,
        )  # fmt: skip
        trained.meta["training"] = {
            **plan.identity(),
            "validation_loss": _last_loss(history),
            "seconds": round(time.perf_counter() - began, 3),
        }
        # the model comes last: where it stands, all the rest does
        _write_history(history, model)
        trained.write(model, overwrite=overwrite)
        _remove([own])
    return row | _facts(trained) | {"status": "trained"}


def train_all(
    root: str | PathLike,
    output: str | PathLike,
    *,
    plan: TrainingPlan | None = None,
    scheduler: Any = None,
    workers: int | None = None,
    work: str | PathLike | None = None,
    overwrite: bool = False,
    progress: Callable[[str, str, int, int, float], None] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> Table:
    """Train a model of every profile store under a folder.

    Sets that are finished are passed over, one that was being trained when the last campaign was killed is taken up
    from its last checkpoint, and one that fails becomes a row with its reason and does not stop the others.

    Parameters
    ----------
    root : path
        Folder with ``{spectrograph:02d}_{b|r}_{season}.profiles`` stores, at any depth.
    output : path
        Folder of the models, made where it is missing: what `~lamost_lsf.IPArchive` opens. ``summary.ecsv`` in it is
        the table that is returned, kept up to date while the campaign runs.
    plan : TrainingPlan, optional
        How to train; or give its fields as ``options``.
    scheduler : str or `distributed.Client`, optional
        Dask scheduler that the sets are given to. Its workers must see the same folders and have this package; a worker
        needs one thread only (``dask worker --nthreads 1``), for it trains one set at a time.
    workers : int, optional
        So many processes on this machine, instead. Without either, the sets are trained here, one after the other.
    work : path, optional
        Folder of checkpoints and locks; ``.work`` in ``output`` by default.
    overwrite : bool
        Whether models of other profiles or settings are replaced. Finished ones never are.
    progress : callable, optional
        Told (set, phase, step, steps, validation loss), where the sets are trained in this process.
    report : callable, optional
        Given the row of each set when it is done.
    **options
        Fields of `TrainingPlan`.

    Returns
    -------
    `~astropy.table.Table`
        One row a set: set, spectrograph, arm, season, status (see `STATUSES`), reason, n_profiles, n_train,
        n_validation, validation_loss (lowest of the network's last phase, as in the history), validation_chi2 and
        validation_chi2_baseline (reduced, of the held-out exposures, by the whole model and by the linear baseline; NaN
        for "payne"), seconds, training_set, model.

    Raises
    ------
    NotADirectoryError, FileNotFoundError
        No folder, or no store in it.
    ValueError, TypeError
        Bad arguments, or stores that cannot be told apart.
    ImportError
        ``scheduler`` or ``workers`` without dask.
    OSError
        No answer from the scheduler.
    """
    if plan is not None and options:
        raise TypeError(f"give plan or its fields, not both: {', '.join(options)}")
    plan = TrainingPlan(**options) if plan is None else plan
    if not isinstance(plan, TrainingPlan):
        raise TypeError(f"plan must be a TrainingPlan, got {type(plan).__name__}")
    if scheduler is not None and workers is not None:
        raise ValueError("give scheduler, of a cluster that runs, or workers, for one on this machine; not both")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    stores = find_stores(root)
    output = Path(output).absolute()
    if not output.parent.is_dir():
        raise FileNotFoundError(f"folder {output.parent} does not exist")
    if scheduler is None:
        choose_device(plan.device)  # a device that is not there: here, not once a set
    submit = None if scheduler is None and workers is None else import_distributed("training")
    output.mkdir(exist_ok=True)
    work = output / ".work" if work is None else Path(work).absolute()
    jobs = [(store.absolute(), output / f"{store.stem}.safetensors") for store in stores]
    rows = {store.stem: _row(store, model) | {"status": "pending"} for store, model in jobs}

    def done(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        _write_summary(rows.values(), output)
        if report is not None:
            report(row)

    _write_summary(rows.values(), output)
    arguments = {"plan": plan, "work": work, "overwrite": overwrite}
    if submit is None:
        for store, model in jobs:
            name = store.stem
            told = None if progress is None else (lambda *state, name=name: progress(name, *state))
            done(name, _attempt(store, model, progress=told, **arguments))
    else:
        _on_cluster(jobs, scheduler, workers, arguments, done)
    return _table(rows.values())


# -- one set ------------------------------------------------------------------------------------------------------


def _row(store: Path, model: Path, **known: Any) -> dict[str, Any]:
    row = {**_COLUMNS, "set": store.stem, "model": str(model)}
    return row | (parse_model_name(model) or {}) | known


def _examine(model: Path, store_id: str, plan: TrainingPlan) -> tuple[str, dict[str, Any]]:
    """Status of a model file that is there, and the entries of its row."""
    try:
        found = NeuralIP.read(model)
    except (LamostLSFError, OSError) as error:
        return "failed", {"status": "failed", "reason": f"the model file cannot be read: {_reason(error)}"}
    meta = found.meta
    # a model written by hand does not say how the exposures were split
    recorded = meta.get("training") or {key: meta.get(key) for key in ("recipe", "settings")}
    wanted = plan.identity()
    differing = [key for key in wanted if key in recorded and recorded[key] != wanted[key]]
    if meta.get("training_set") != store_id:
        reason = f"its model was trained on profiles {str(meta.get('training_set'))[:12]}, the store is {store_id[:12]}"
    elif differing:
        reason = f"its model was trained with another {', '.join(differing)}"
    else:
        return "finished", _facts(found) | {"status": "finished"}
    return "outdated", _facts(found) | {"status": "outdated", "reason": reason, "training_set": store_id}


def _facts(model: NeuralIP) -> dict[str, Any]:
    """Entries of a row that a model file knows."""
    meta = model.meta
    metrics, training = meta.get("metrics", {}), meta.get("training", {})
    facts = {name: meta.get(name) for name in ("n_train", "n_validation", "training_set")}
    facts |= {name: metrics.get(name) for name in ("validation_chi2", "validation_chi2_baseline")}
    facts |= {name: training.get(name) for name in ("validation_loss", "seconds")}
    return {name: value for name, value in facts.items() if value is not None}


def _digest(store_id: str, plan: TrainingPlan) -> str:
    return hashlib.sha256(json.dumps([store_id, plan.identity()]).encode()).hexdigest()[:12]


def _last_loss(history: History) -> float:
    """Lowest validation loss of the last phase: that of the weights that were kept."""
    last = [row["validation_loss"] for row in history.rows if row["phase"] == history.rows[-1]["phase"]]
    return float(min(last)) if last else float("nan")


def _write_history(history: History, model: Path) -> None:
    if not history.rows:  # taken up after the last step of the last phase
        return
    from lamost_lsf.figures import plot_losses

    history.write(model.with_name(f"{model.stem}.history.ecsv"), overwrite=True)
    with atomic_path(model.with_name(f"{model.stem}.loss.png"), overwrite=True) as temporary:
        plot_losses(history).figure.savefig(temporary, dpi=120)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """One line about an error, with its type where that says more than the text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    expected = isinstance(error, (LamostLSFError, ValueError, OSError))
    return text if expected else f"{type(error).__name__}: {text}"


def _attempt(store: Path, model: Path, **arguments: Any) -> dict[str, Any]:
    """`train_set`, with a row for a failure too."""
    try:
        return train_set(store, model, **arguments)
    except Exception as error:  # one set must not cost the others theirs, whatever happened
        row = _row(store, model) | {"status": "failed", "reason": _reason(error)}
    # the store may be sound: how large it is helps to see why it failed
    with suppress(Exception):
        profiles = ProfileStore(store, "r")
        row |= {"n_profiles": len(profiles), "training_set": profiles.id}
    return row


# -- all sets -----------------------------------------------------------------------------------------------------


def _on_cluster(
    jobs: list[tuple[Path, Path]],
    scheduler: Any,
    workers: int | None,
    arguments: dict[str, Any],
    done: Callable[[str, dict[str, Any]], None],
) -> None:
    distributed = import_distributed("training")
    with cluster_client(distributed, scheduler, min(workers, len(jobs)) if scheduler is None else None) as client:
        # not pure: a set that failed before is to be tried again, not answered from the scheduler's memory
        futures = {client.submit(_attempt, *job, **arguments, pure=False): job for job in jobs}
        for future in distributed.as_completed(futures, loop=client.loop):
            store, model = futures[future]
            if future.status == "finished":
                done(store.stem, future.result())
                continue
            # a worker that died several times over it, or that lacks the package
            error = future.exception() if future.status == "error" else None
            reason = f"its task was {future.status}" if error is None else _reason(error)
            done(store.stem, _row(store, model) | {"status": "failed", "reason": reason})


def _table(rows: Iterable[dict[str, Any]]) -> Table:
    rows = list(rows)
    kinds = {str: np.str_, int: np.int64, float: np.float64}
    return Table(
        {name: np.array([row[name] for row in rows], dtype=kinds[type(v)]) for name, v in _COLUMNS.items()},
        meta={"statuses": dict(STATUSES)},
    )


def _write_summary(rows: Iterable[dict[str, Any]], output: Path) -> None:
    with atomic_path(output / "summary.ecsv", overwrite=True) as temporary:
        _table(rows).write(temporary, format="ascii.ecsv", overwrite=True)
