"""`train`: from profiles to a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamost_lsf.models.neural import NeuralIP
from lamost_lsf.training.basis import learn_basis
from lamost_lsf.training.data import Labels, PackedStatistics
from lamost_lsf.training.expanded import ExpandedSettings, ExpandedTrainer
from lamost_lsf.training.linear import fit_linear_baseline
from lamost_lsf.training.loop import History, choose_device
from lamost_lsf.training.payne import PayneSettings, train_payne
from lamost_lsf.training.source import TrainingSource, open_source
from lamost_lsf.units import vacuum_to_air

__all__ = ["split_by_exposure", "train"]

#: Lines that a basis is learned from at most; more add nothing but time.
_BASIS_LINES = 15_000


#: Lines that the metrics are taken from at most.
_METRIC_LINES = 100_000

#: Bytes of resampled profiles that are held in memory.
_IN_MEMORY = 1 << 30


def split_by_exposure(labels: Labels, fraction: float = 0.8, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and validation lines; the lines of one exposure are all in the same set.

    Profiles of one exposure share its focus and temperature: split by profile, a validation loss would flatter.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    exposures = np.unique(labels.exposure)
    held = max(1, round((1.0 - fraction) * exposures.size)) if exposures.size > 1 else 0
    chosen = np.random.default_rng(seed).permutation(exposures)[:held]
    validation = np.isin(labels.exposure, chosen)
    return np.flatnonzero(~validation), np.flatnonzero(validation)


def train(
    data: Any,
    *,
    recipe: str = "expanded",
    settings: ExpandedSettings | PayneSettings | dict[str, Any] | None = None,
    labels: Sequence[str] = (),
    fraction: float = 0.8,
    leave_out_line: int | None = None,
    leave_out_night: int | None = None,
    leave_out_fiber: int | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = 1,
    work: str | PathLike | None = None,
    checkpoint_every: int = 500,
    progress: Callable[[str, int, int, float], None] | None = None,
) -> tuple[NeuralIP, History]:
    """Train a model of the instrumental profile.

    Parameters
    ----------
    data : ProfileStore or ProfileSet
        Profiles of one instrument, spectrograph, arm and season.
    recipe : {"expanded", "payne"}
        "expanded", the default: a network for the coefficients of a basis learned from the data, with terms of single
        fibres and nights, trained on the likelihood of the native pixels, with the profile's uncertainty.
        "payne": the paper's (Liu et al. 2026, section 3), a network for 600 samples, trained on resampled profiles.
    settings : ExpandedSettings, PayneSettings or dict, optional
    labels : sequence of str
        Labels besides time, fibre and wavelength: ``("temperature",)``, say. Columns of the data's ``exposures``, which
        must be known of every exposure. Whoever asks the model for a profile must then give them, too; see
        `NeuralIP.with_labels`.
    fraction : float
        Share of the exposures that is trained on; the rest validates.
    leave_out_line : int, optional
        Number of a line that is left out of training and validation, to be evaluated on.
    leave_out_night : int, optional
        Number of a night (`lamost_lsf.time.night_number`) that is left out, likewise.
    leave_out_fiber : int, optional
        Number of a fibre that is left out, likewise.
    seed : int
    device : str
        "auto" takes a GPU where there is one.
    threads : int or None
        CPU threads of torch; None leaves them alone. Small batches gain nothing from a second thread, and lose much
        where another process wants it.
    work : path, optional
        Folder for checkpoints. Training that was killed is taken up from there, and ends with the same weights (on
        CPU). With more than a million lines their statistics are kept in a file there instead of in memory.
    checkpoint_every : int
        Steps between checkpoints.
    progress : callable, optional
        Told (phase, step, steps, validation loss).

    Returns
    -------
    model : NeuralIP
        ``model.meta["metrics"]`` has the reduced chi-square of the validation set, of the model and of the linear
        baseline.
    history : History
        Losses; ``history.to_table()``, ``history.write(path)``.

    Raises
    ------
    TypeError, ValueError
        Bad arguments, no good profiles, too few lines or exposures.
    TrainingDivergedError
        The loss became NaN.
    FormatError
        ``work`` holds checkpoints of another training.
    """
    if isinstance(labels, str) or len(set(labels)) != len(labels := tuple(labels)):
        raise ValueError(f"labels must be different names in a tuple or list, got {labels!r}")
    source = open_source(data, labels)
    settings = _settings(recipe, settings, seed)
    if threads is not None:
        torch.set_num_threads(threads)
    where = choose_device(device)
    train_index, validation = split_by_exposure(source.labels, fraction, seed=seed)
    keep = np.ones(len(source), dtype=bool)
    left_out = {"line": leave_out_line, "night": leave_out_night, "fiber": leave_out_fiber}
    for name, number in left_out.items():
        if number is None:
            continue
        given = getattr(source.labels, name)
        if number not in given:
            raise ValueError(f"no profile of {name} {number}; there are {np.unique(given).tolist()}")
        keep &= given != number
    train_index, validation = train_index[keep[train_index]], validation[keep[validation]]
    if train_index.size < 50:
        raise ValueError(f"{train_index.size} profiles are too few to train on")
    work = None if work is None else Path(work)
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    medium = _label_medium(source)
    label_min, label_max, scaled = _scale(source.labels, medium)
    parts = [source.id, recipe, asdict(settings), fraction, left_out, seed]
    if labels:  # the same pixels may have been given other temperatures
        parts += [labels, hashlib.sha256(np.ascontiguousarray(source.labels.extra)).hexdigest()]
    identity = json.dumps(parts)
    history = History()
    common = {
        "label_min": label_min, "label_max": label_max, "label_medium": medium, "fiber_origin": 1,
        "offset": source.offset,
        "extra_labels": dict(zip(labels, np.median(source.labels.extra[train_index], axis=0).tolist(), strict=True)),
    }  # fmt: skip
    meta = _provenance(source, recipe, settings, train_index, validation)
    if recipe == "payne":
        weights, biases = train_payne(
            scaled, _profiles(source), train_index, validation, source.offset.size, settings,
            where,
            history, checkpoint=None if work is None else work / "payne.checkpoint.safetensors",
            checkpoint_every=checkpoint_every, identity=identity, progress=progress,
        )  # fmt: skip
        weights, biases = _fold_constant_labels(weights, biases, scaled)
        return NeuralIP(weights, biases, meta=meta, **common), history
    trainer, sample = _expanded_trainer(source, scaled, train_index, validation, settings, where, work)
    expansion = trainer.run(history, work=work, checkpoint_every=checkpoint_every, identity=identity, progress=progress)
    layers = [m for m in trainer.network if isinstance(m, torch.nn.Linear)]
    weights = [m.weight.detach().cpu().double().numpy() for m in layers]
    weights[0] = 2.0 * weights[0]  # trained on labels from -1 to 1, published scaling is from -0.5 to 0.5
    biases = [m.bias.detach().cpu().double().numpy() for m in layers]
    weights, biases = _fold_constant_labels(weights, biases, scaled)
    check = validation if validation.size else train_index
    check = check[:: max(1, check.size // _METRIC_LINES)]
    baseline = fit_linear_baseline(trainer.packed, source.labels, scaled, sample)
    meta["metrics"] = {
        "validation_chi2": _reduced(trainer.packed, check, trainer.coefficients(check)),
        "validation_chi2_baseline": _reduced(
            trainer.packed, check, baseline.coefficients(scaled[check], source.labels.wavelength[check])
        ),
        "n_components": int(expansion.components.shape[0]),
    }
    return NeuralIP(weights, biases, activation="silu", expansion=expansion, meta=meta, **common), history


def _profiles(source: TrainingSource) -> Callable[[np.ndarray], np.ndarray]:
    """Profiles by number, from memory where they fit: a store read in random order is slow."""
    if len(source) * source.offset.size * 4 > _IN_MEMORY:
        return lambda index: source.load(index, "profile")[0]
    parts = [source.load(part, "profile")[0] for part in np.array_split(np.arange(len(source)), 16) if part.size]
    profiles = np.concatenate(parts)
    return lambda index: profiles[index]


def _expanded_trainer(source, scaled, train_index, validation, settings, device, work):
    labels = source.labels
    rng = np.random.default_rng(settings.seed)
    sample = train_index
    if sample.size > _BASIS_LINES:
        # whole exposures, so that the groups of neighbouring fibres stay full
        exposures = rng.permutation(np.unique(labels.exposure[sample]))
        count = max(4, int(exposures.size * _BASIS_LINES / sample.size))
        sample = sample[np.isin(labels.exposure[sample], exposures[:count])]
    *native, neighbours = (np.concatenate(parts) for parts in zip(*source.pixels(sample), strict=True))
    basis = learn_basis(
        source.offset, *native, labels.line[sample], labels.fiber[sample], labels.lmjm[sample], neighbours=neighbours
    )
    del native
    path = None
    if work is not None and len(source) > 1_000_000:
        path = work / "statistics.bin"  # several million lines are kept on disk
    packed = PackedStatistics.from_pixels(source.pixels(), len(source), basis, path)
    return ExpandedTrainer(basis, packed, labels, scaled, train_index, validation, settings, device, source), sample


def _settings(recipe: str, settings: Any, seed: int) -> ExpandedSettings | PayneSettings:
    classes = {"expanded": ExpandedSettings, "payne": PayneSettings}
    if recipe not in classes:
        raise ValueError(f"recipe must be one of {', '.join(classes)}, got {recipe!r}")
    if settings is None:
        settings = {}
    if isinstance(settings, dict):
        return classes[recipe](**{"seed": seed, **settings})
    if not isinstance(settings, classes[recipe]):
        raise TypeError(
            f"settings of recipe {recipe!r} must be {classes[recipe].__name__}, got {type(settings).__name__}"
        )
    return replace(settings, seed=seed) if settings.seed != seed and seed else settings


def _label_medium(source: TrainingSource) -> str:
    from lamost_lsf.instruments import get_instrument

    return get_instrument(source.instrument).label_medium


def _scale(labels: Labels, medium: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Range of the labels (3 + m,), (3 + m,) and the labels scaled to [-0.5, 0.5] (n, 3 + m)."""
    wavelength = vacuum_to_air(labels.wavelength) if medium == "air" else labels.wavelength
    raw = np.column_stack([labels.lmjm, labels.fiber - 1.0, wavelength, labels.extra])
    low, high = raw.min(axis=0), raw.max(axis=0)
    # a single exposure, fibre or line still needs a scale
    width = np.where(high > low, high - low, 1.0)
    high = low + width
    return low, high, (raw - low) / width - 0.5


def _fold_constant_labels(
    weights: list[np.ndarray], biases: list[np.ndarray], scaled: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Network that does not depend on labels that were all the same, such as the time of a single exposure.

    What it made of them elsewhere is the accident of its first weights.
    """
    first, shift = weights[0].copy(), biases[0].copy()
    for i in np.flatnonzero(np.ptp(scaled, axis=0) == 0.0):
        shift += first[:, i] * scaled[0, i]
        first[:, i] = 0.0
    return [first, *weights[1:]], [shift, *biases[1:]]


def _reduced(packed: PackedStatistics, index: np.ndarray, coefficients: np.ndarray) -> float:
    """Mean reduced chi-square (three parameters a line: amplitude and background) of lines, outliers left out."""
    values = []
    position = 0
    for part, stats in packed.chunks(index):
        c = coefficients[position : position + part.size]
        good = stats.n_pixels > 8
        values.append(stats.chi2(c)[good] / (stats.n_pixels[good] - 3))
        position += part.size
    values = np.concatenate(values)
    return float(np.mean(values[values < 10 * np.median(values)]))


def _provenance(source, recipe, settings, train_index, validation) -> dict[str, Any]:
    from lamost_lsf import __version__

    return {
        "instrument": source.instrument,
        "arm": source.arm,
        "spectrograph": source.spectrograph,
        "season": source.season,
        "recipe": recipe,
        "settings": asdict(settings),
        "package_version": __version__,
        "training_set": source.id,
        "n_train": int(train_index.size),
        "n_validation": int(validation.size),
        "wavelengths": sorted({round(float(w), 4) for w in np.unique(np.round(source.labels.wavelength, 4))}),
    }
