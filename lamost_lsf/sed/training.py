"""Training a `UaRANet`: pre-training on a library, fine-tuning on another (Yang et al. 2024, sections 3.3 and 4.1)."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamost_lsf.sed.augmentation import Augmentation, Augmenter
from lamost_lsf.sed.model import SEDModel
from lamost_lsf.sed.network import Architecture, UaRANet, relative_likelihood_loss, relative_quantile_loss
from lamost_lsf.sed.preparation import SpectralSet
from lamost_lsf.training.loop import History, Schedule, choose_device, train_network

__all__ = ["PAPER_FINETUNE", "PAPER_PRETRAIN", "TrainSettings", "finetune", "fit_quantiles", "pretrain"]


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes
    ----------
    epochs : float
        Passes over the set; in one, every spectrum is seen as often as there are noise levels, each time at one of them
        at random.
    batch_size : int
    learning_rate : float
        At its highest.
    warmup : float
        Share of the training over which the rate rises to that; it then falls as half a cosine. Negative: constant,
        as in the paper.
    validation : float
        Share of the stars that are set aside to choose the weights by, those of the lowest median loss; 0: the training
        set itself, with other noise.
    validate_every : int
        Steps between validations.
    augmentation : Augmentation
    compile : bool
        Compile the network first (`torch.compile`; needs a C++ compiler and a minute or two): 1.7 times as many
        spectra a second on a CPU.
    seed : int
        Of the initial weights, the order and the noise.
    """

    epochs: float = 200.0
    batch_size: int = 256
    learning_rate: float = 3e-3
    warmup: float = 0.05
    validation: float = 0.05
    validate_every: int = 200
    augmentation: Augmentation = field(default_factory=Augmentation)
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.epochs > 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.batch_size < 1 or self.validate_every < 1:
            raise ValueError(
                f"batch_size and validate_every must be at least 1, got {self.batch_size} and {self.validate_every}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be at least 0 and less than 1, got {self.validation}")


#: The paper's schedules (section 4.1): Adam at a constant rate.
PAPER_PRETRAIN = TrainSettings(epochs=3000, batch_size=2048, learning_rate=1e-3, warmup=-1.0)
PAPER_FINETUNE = TrainSettings(epochs=200, batch_size=32, learning_rate=1e-3, warmup=-1.0)

Progress = Callable[[str, int, int, float], None]

#: Name of the phase that trains the last layers alone.
_QUANTILES = "quantiles"


def pretrain(
    spectra: SpectralSet,
    settings: TrainSettings | None = None,
    *,
    architecture: Architecture | None = None,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    meta: dict[str, Any] | None = None,
) -> tuple[SEDModel, History]:
    """Train a network from scratch.

    Parameters
    ----------
    spectra : SpectralSet
        Stars to train on; a test set is set aside beforehand (`SpectralSet.split`).
    settings : TrainSettings, optional
    architecture : Architecture, optional
        The paper's by default, with as many pixels as the grids of ``spectra`` have.
    device : {"auto", "cpu", "cuda"}
    checkpoint : path, optional
        File that holds the state of the training; if it is there, the training goes on from it, and ends with the same
        weights as one that was never interrupted.
    progress : callable, optional
        Told (phase, step, steps, validation loss) at every validation.
    meta : dict, optional
        Provenance that is kept in the model.

    Returns
    -------
    model : SEDModel
    history : History
        Losses: training loss (mean since the row before), validation loss (median over spectra), rate, seconds.

    Raises
    ------
    TrainingDivergedError
        A loss that is not finite.
    FormatError
        A checkpoint of another training.
    """
    settings = settings or TrainSettings()
    if architecture is None:
        architecture = Architecture(n_input=len(spectra.input_grid), n_output=len(spectra.output_grid))
    expected = (len(spectra.input_grid), len(spectra.output_grid))
    if (architecture.n_input, architecture.n_output) != expected:
        raise ValueError(
            f"the architecture has {architecture.n_input} input and {architecture.n_output} output pixels, "
            f"the spectra {expected[0]} and {expected[1]}"
        )
    torch.manual_seed(settings.seed)
    network = UaRANet(architecture)
    _set_scales(network, spectra, settings.augmentation)
    return _run(network, spectra, settings, "pretrain", device, checkpoint, progress, meta or {})


def finetune(
    model: SEDModel,
    spectra: SpectralSet,
    settings: TrainSettings | None = None,
    *,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    meta: dict[str, Any] | None = None,
) -> tuple[SEDModel, History]:
    """Go on training a network on another library, whose SEDs may cover less of the output range.

    Parameters and returns are those of `pretrain`; the model is left as it is. The paper's settings (rate 1e-3, batches
    of 32, 200 epochs) are the default, with a rate that falls.

    Raises
    ------
    ValueError
        Spectra on other grids than the model's; an ensemble, whose networks go on one by one.
    """
    if len(model.networks) > 1:
        raise ValueError(
            f"a model of {len(model.networks)} networks is fine-tuned network by network: pass model.single(k), and "
            "join what comes out by SEDModel.ensemble"
        )
    settings = settings or TrainSettings(epochs=200, batch_size=32, learning_rate=1e-3, validate_every=50)
    model.check_grids(spectra)
    torch.manual_seed(settings.seed)
    network = copy.deepcopy(model.networks[0])
    meta = {**model.meta, **(meta or {})}
    return _run(network, spectra, settings, "finetune", device, checkpoint, progress, meta, model.coverage)


def fit_quantiles(
    model: SEDModel,
    spectra: SpectralSet,
    settings: TrainSettings | None = None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[SEDModel, History]:
    """Make a trained model's SED the median of the possible ones, and its errors hold 68.27 % of the residuals.

    The likelihood that a network is trained with (Eq. 17) makes them means and root mean squares, which a few odd stars
    move. A last stage that the paper does not have: the SED's last layer and the uncertainty branch of every network of
    the model are trained, with `lamost_lsf.sed.network.relative_quantile_loss`; features stay as they are.

    Parameters
    ----------
    model : SEDModel
    spectra : SpectralSet
        Stars that the model was trained on show what it has learnt of the noise; where it has learnt stars by heart,
        as from a few hundred real ones, their residuals are too small, and others must be taken.
    settings : TrainSettings, optional
        By default 15 passes in batches of 128 at a rate of 2e-3. The augmentation should be that of the last stage.
    device, progress
        As for `pretrain`.

    Returns
    -------
    model : SEDModel
    history : History
        Of all networks, one after the other.

    Raises
    ------
    ValueError
        Spectra on other grids than the model's.
    """
    settings = settings or TrainSettings(epochs=15, batch_size=128, learning_rate=2e-3, validation=0.0)
    model.check_grids(spectra)
    fitted, histories = copy.copy(model), History()
    fitted.networks = []
    for number, network in enumerate(model.networks):
        torch.manual_seed(settings.seed + number)
        one, history = _run(copy.deepcopy(network), spectra, settings, _QUANTILES, device, None, progress, {})
        fitted.networks += one.networks
        histories.rows += history.rows
    # factors were those of the errors before
    fitted.error_scale = None
    fitted.meta = {**model.meta, _QUANTILES: _jsonable(settings)}
    return fitted, histories


def _set_scales(network: UaRANet, spectra: SpectralSet, augmentation: Augmentation) -> None:
    """Scales of inputs and outputs, from the training set."""
    flux, error, _, _ = Augmenter(spectra, augmentation)(torch.arange(len(spectra)), (0, 0))
    logarithm = np.log(np.where(np.isfinite(spectra.sed), spectra.sed, np.nan))
    known = np.isfinite(logarithm).any(axis=0)
    mean, scale = np.zeros(known.size), np.ones(known.size)
    mean[known] = np.nanmean(logarithm[:, known], axis=0)
    scale[known] = np.maximum(np.nanstd(logarithm[:, known], axis=0), 1e-3)
    with torch.no_grad():
        network.input_scale.fill_(float((flux - 1.0).std()))
        levels = np.log(1.0 / np.array([max(augmentation.snr), min(augmentation.snr)]))
        network.noise_range.copy_(torch.as_tensor(levels))
        network.noise_center.fill_(float(error.log().mean()))
        network.noise_scale.fill_(max(float(error.log().std()), 0.1))
        network.log_mean.copy_(torch.as_tensor(mean))
        network.log_scale.copy_(torch.as_tensor(scale))


def _run(
    network: UaRANet,
    spectra: SpectralSet,
    settings: TrainSettings,
    phase: str,
    device: str,
    checkpoint: str | Path | None,
    progress: Progress | None,
    meta: dict[str, Any],
    before: np.ndarray | None = None,
) -> tuple[SEDModel, History]:
    where = choose_device(device)
    network.to(where)
    train, check = spectra, spectra
    if settings.validation > 0:
        train, check = spectra.split(1.0 - settings.validation, seed=settings.seed)
    augmenter = Augmenter(train, settings.augmentation, where)
    levels = len(settings.augmentation.snr)
    check_batches = _check_batches(check, settings, where)
    forward = torch.compile(network) if settings.compile else network
    last_only = phase == _QUANTILES
    criterion = relative_quantile_loss if last_only else relative_likelihood_loss
    if last_only:
        network.requires_grad_(False)
        for layer in network.last_layers():
            layer.requires_grad_(True)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        # what is not trained keeps the averages of its batch normalisation, too
        network.train(not last_only)
        # a batch is known by its first members, which no other shares in this order: its noise follows from them
        seed = (settings.seed, *(int(i) for i in batch[:3]))
        flux, error, sed, weight = augmenter(batch % len(train), seed)
        return criterion(*forward(flux, error), sed, weight)

    def validate() -> float:
        network.eval()
        # the median: a few odd stars, whose errors no network knows, would otherwise choose the weights
        losses = [
            criterion(*network(flux, error), sed, weight, per_spectrum=True)
            for flux, error, sed, weight in check_batches
        ]
        return float(torch.cat(losses).median())

    n = len(train) * levels
    batch_size = min(settings.batch_size, n)
    schedule = Schedule(
        max(1, round(settings.epochs * n / batch_size)), batch_size, settings.learning_rate, warmup=settings.warmup,
        validate_every=settings.validate_every, seed=settings.seed,
    )  # fmt: skip
    history = History()
    train_network(
        network, loss, n, schedule, validate=validate, phase=phase, history=history,
        checkpoint=None if checkpoint is None else Path(checkpoint), checkpoint_every=settings.validate_every,
        identity=_identity(spectra, settings, network), progress=progress,
    )  # fmt: skip
    network.requires_grad_(True).eval().cpu()
    model = SEDModel.from_training([network], spectra, settings, {**meta, phase: _jsonable(settings)}, before)
    return model, history


def _check_batches(check: SpectralSet, settings: TrainSettings, device: torch.device) -> list[tuple]:
    """Spectra to validate on, with noise that stays the same."""
    augmenter = Augmenter(check, settings.augmentation, device)
    rng = np.random.default_rng(settings.seed)
    repeat = max(1, 500 // len(check))
    which = torch.as_tensor(rng.permutation(np.tile(np.arange(len(check)), repeat))[:2000])
    return [augmenter(part, (settings.seed, 1, k)) for k, part in enumerate(which.split(256))]


def _jsonable(settings: TrainSettings) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings)))


def _identity(spectra: SpectralSet, settings: TrainSettings, network: UaRANet) -> str:
    """What tells this training from another: the spectra, the settings and the weights that it begins with."""
    digest = hashlib.sha256()
    for array in (spectra.flux, spectra.sed, *(t.detach().cpu().numpy() for t in network.state_dict().values())):
        digest.update(np.ascontiguousarray(array))
    digest.update(json.dumps([*map(str, spectra.star), *map(str, spectra.group)]).encode())
    return digest.hexdigest() + json.dumps(_jsonable(settings))
