"""The paper's own recipe (Liu et al. 2026, sections 2.4, 3.1, 3.2): a network from labels to 600 samples.

Three layers with LeakyReLU, labels scaled to [-0.5, 0.5], peak-normalised profiles with negatives set to 0 as targets,
residuals divided by the flux, RAdam. The text leaves open, and is chosen here: the loss is the mean absolute
relative residual
(as The Payne's), the flux that residuals are divided by is at least ``FLUX_FLOOR`` of the peak, batches are of 512.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lamost_lsf.training.loop import History, Schedule, train_network

__all__ = ["FLUX_FLOOR", "PayneSettings", "train_payne"]

#: Residuals are divided by the flux or by this share of the peak, whichever is larger: where the profile is 0 they
#: would
#: otherwise count without bound.
FLUX_FLOOR = 0.05


@dataclass(frozen=True)
class PayneSettings:
    """Settings of the paper's recipe; ``hidden`` None chooses the width by the size of the training set."""

    hidden: int | None = None
    epochs: float = 60.0
    batch_size: int = 512
    learning_rate: float = 1e-3
    seed: int = 0
    patience: int | None = None


def hidden_width(n: int) -> int:
    """Width of the hidden layers for n training profiles: 100 for ten thousand, 300 for a million."""
    return int(np.clip(round(100 * (n / 1e4) ** 0.24, -1), 60, 400))


def train_payne(
    scaled: np.ndarray,
    profiles: Callable[[np.ndarray], np.ndarray],
    train: np.ndarray,
    validation: np.ndarray,
    n_sample: int,
    settings: PayneSettings,
    device: torch.device,
    history: History,
    *,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    identity: str = "",
    progress: Callable[[str, int, int, float], None] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Train; returns weights [(n_out, n_in)] and biases for labels scaled to [-0.5, 0.5].

    Parameters
    ----------
    scaled : ndarray (n, 3 + m)
    profiles : callable
        Peak-normalised profiles (k, n_sample) of given numbers (k,).
    train, validation : ndarray of int
    """
    torch.manual_seed(settings.seed)
    h = settings.hidden or hidden_width(train.size)
    network = torch.nn.Sequential(
        torch.nn.Linear(scaled.shape[1], h), torch.nn.LeakyReLU(0.01), torch.nn.Linear(h, h), torch.nn.LeakyReLU(0.01),
        torch.nn.Linear(h, n_sample),
    ).to(device)  # fmt: skip
    x = torch.as_tensor(scaled, dtype=torch.float32)
    batch = min(settings.batch_size, train.size)
    steps = max(200, round(settings.epochs * train.size / batch))
    schedule = Schedule(
        steps, batch, settings.learning_rate, warmup=-1.0, optimizer="radam", validate_every=100,
        patience=settings.patience, seed=settings.seed,
    )  # fmt: skip
    check = validation if validation.size else train
    check = check[:: max(1, check.size // 5000)]
    check_target = torch.as_tensor(np.maximum(profiles(check), 0.0), dtype=torch.float32).to(device)
    check_x = x[torch.as_tensor(check)].to(device)

    def relative(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((predicted - target).abs() / target.clamp(min=FLUX_FLOOR)).mean()

    def loss(batch_index: torch.Tensor) -> torch.Tensor:
        members = train[batch_index.numpy()]
        target = torch.as_tensor(np.maximum(profiles(members), 0.0), dtype=torch.float32).to(device)
        return relative(network(x[torch.as_tensor(members)].to(device)), target)

    train_network(
        network, loss, train.size, schedule, validate=lambda: float(relative(network(check_x), check_target)),
        phase="payne", history=history, checkpoint=checkpoint, checkpoint_every=checkpoint_every, identity=identity,
        progress=progress,
    )  # fmt: skip
    layers = [m for m in network if isinstance(m, torch.nn.Linear)]
    return (
        [m.weight.detach().cpu().double().numpy() for m in layers],
        [m.bias.detach().cpu().double().numpy() for m in layers],
    )
