"""The training loop: seeded, stopped early, checkpointed, and taken up again exactly where it was.

Nothing but torch's deterministic CPU arithmetic and a few integers makes up its state: the order of the data
follows from
seed and epoch, so a run that was killed ends with the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lamost_lsf.errors import FormatError, LamostLSFError
from lamost_lsf.files import atomic_path

__all__ = ["History", "Schedule", "TrainingDivergedError", "choose_device", "train_network"]

CHECKPOINT_FORMAT = "lamost-lsf/checkpoint-1"


class TrainingDivergedError(LamostLSFError, ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Schedule:
    """How long and how to train.

    Attributes
    ----------
    steps, batch_size : int
    learning_rate : float
        Peak of the schedule.
    warmup : float
        Share of the steps over which the rate rises linearly; it then falls as a cosine. Negative: constant rate.
    optimizer : {"adam", "radam"}
    validate_every : int
        Steps between validations; the weights of the lowest validation loss are kept.
    patience : int or None
        Validations without a new minimum after which training stops.
    seed : int
    """

    steps: int
    batch_size: int = 2048
    learning_rate: float = 4e-3
    warmup: float = 0.1
    optimizer: str = "adam"
    validate_every: int = 100
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.optimizer not in ("adam", "radam"):
            raise ValueError(f"optimizer must be 'adam' or 'radam', got {self.optimizer!r}")

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        if self.warmup < 0:
            return self.learning_rate
        rise = max(1.0, self.warmup * self.steps)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        done = (step - rise) / max(1.0, self.steps - rise)
        return self.learning_rate * max(1e-3, 0.5 * (1.0 + np.cos(np.pi * min(done, 1.0))))


@dataclass
class History:
    """Losses by step; one row for each validation."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        """Append a row."""
        self.rows.append(row)

    def to_table(self) -> Table:
        """Columns phase, step, train_loss, validation_loss, learning_rate, seconds."""
        names = ("phase", "step", "train_loss", "validation_loss", "learning_rate", "seconds")
        return Table({n: [row[n] for row in self.rows] for n in names})

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write as ECSV."""
        with atomic_path(path, overwrite=overwrite) as temporary:
            self.to_table().write(temporary, format="ascii.ecsv", overwrite=True)


def choose_device(device: str = "auto") -> torch.device:
    """The device asked for; "auto" is a GPU where there is one.

    Raises
    ------
    ValueError
        No such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device must be auto, cpu or one that torch has here, got {device!r} ({reason})") from None
    return chosen


def train_network(
    network: torch.nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    n: int,
    schedule: Schedule,
    *,
    validate: Callable[[], float],
    phase: str,
    history: History,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    identity: str = "",
    progress: Callable[[str, int, int, float], None] | None = None,
) -> float:
    """Train a network in place; it ends with the weights of its lowest validation loss.

    Parameters
    ----------
    network : torch.nn.Module
    loss : callable
        Loss of a batch, given the numbers (0 .. n - 1) of its members.
    n : int
        Size of the training set.
    schedule : Schedule
    validate : callable
        Validation loss of the network as it is.
    phase : str
        Name in the history.
    history : History
        Rows are appended.
    checkpoint : path, optional
        File that holds the state while training; taken up if it is there.
    checkpoint_every : int
        Steps between checkpoints.
    identity : str
        What makes this training this training (data, settings); a checkpoint of another is refused.
    progress : callable, optional
        Told (phase, step, steps, loss) at every validation.

    Returns
    -------
    float
        Lowest validation loss.

    Raises
    ------
    TrainingDivergedError
        A loss that is not finite.
    FormatError
        A checkpoint of another training, or a damaged one.
    """
    optimizer_class = torch.optim.Adam if schedule.optimizer == "adam" else torch.optim.RAdam
    optimizer = optimizer_class(network.parameters(), lr=schedule.learning_rate)
    digest = hashlib.sha256(json.dumps([identity, phase, n, asdict(schedule)]).encode()).hexdigest()
    batch = min(schedule.batch_size, n)
    per_epoch = n // batch
    state = {"step": 0, "best": np.inf, "since": 0, "seconds": 0.0, "running": 0.0, "count": 0}
    best = {k: v.detach().clone() for k, v in network.state_dict().items()}
    if checkpoint is not None and checkpoint.exists():
        state, best, rows = _load(checkpoint, digest, network, optimizer)
        history.rows.extend(rows)
    first_row = len(history.rows) - (len(rows) if checkpoint is not None and state["step"] else 0)
    began = time.perf_counter() - state["seconds"]
    order, epoch = None, -1
    while state["step"] < schedule.steps:
        step = state["step"]
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
            order = torch.randperm(n, generator=generator)
        k = step % per_epoch
        rate = schedule.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(order[k * batch : (k + 1) * batch])
        optimizer.zero_grad()
        value.backward()
        number = float(value.detach())
        if not np.isfinite(number):
            raise TrainingDivergedError(
                f"{phase}: the loss is {number} at step {step}; lower the learning rate or look for bad profiles"
            )
        optimizer.step()
        state["step"] += 1
        state["running"] += number
        state["count"] += 1
        stop = False
        if state["step"] % schedule.validate_every == 0 or state["step"] == schedule.steps:
            with torch.no_grad():
                validation = float(validate())
            state["since"] += 1
            if validation < state["best"]:
                state["best"], state["since"] = validation, 0
                best = {k: v.detach().clone() for k, v in network.state_dict().items()}
            state["seconds"] = time.perf_counter() - began
            mean = state["running"] / state["count"]
            history.add(
                phase=phase, step=state["step"], train_loss=mean, validation_loss=validation, learning_rate=rate,
                seconds=state["seconds"],
            )  # fmt: skip
            state["running"], state["count"] = 0.0, 0
            if progress is not None:
                progress(phase, state["step"], schedule.steps, validation)
            stop = schedule.patience is not None and state["since"] >= schedule.patience
        if checkpoint is not None and state["step"] % checkpoint_every == 0 and not stop:
            state["seconds"] = time.perf_counter() - began
            _save(checkpoint, digest, network, optimizer, best, state, history.rows[first_row:])
        if stop:
            break
    network.load_state_dict(best)
    return state["best"]


def _save(path: Path, digest: str, network, optimizer, best: dict, state: dict, rows: list) -> None:
    tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"best.{k}": v.contiguous() for k, v in best.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v).contiguous() for k, v in values.items()}
    metadata = {
        "format": CHECKPOINT_FORMAT, "digest": digest, "state": json.dumps(state), "history": json.dumps(rows),
    }  # fmt: skip
    with atomic_path(path, overwrite=True) as temporary:
        save_file({k: v.clone() for k, v in tensors.items()}, temporary, metadata=metadata)


def _load(path: Path, digest: str, network, optimizer) -> tuple[dict, dict, list]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: not a readable checkpoint ({error})") from None
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise FormatError(f"{path}: format is {metadata.get('format')!r}, expected {CHECKPOINT_FORMAT!r}")
    if metadata["digest"] != digest:
        raise FormatError(f"{path}: checkpoint of another training (data or settings differ); remove it to start anew")

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    network.load_state_dict(part("network."))
    values: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in part("optimizer.").items():
        index, name = key.split(".", 1)
        values.setdefault(int(index), {})[name] = tensor
    settings = optimizer.state_dict()
    settings["state"] = values
    optimizer.load_state_dict(settings)
    return json.loads(metadata["state"]), part("best."), json.loads(metadata["history"])
