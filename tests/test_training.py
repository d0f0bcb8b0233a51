"""Training from arcs to a model, against the simulator's known profiles."""

import os
import signal
import subprocess
import sys
import time as clock

import astropy.units as u
import numpy as np
import pytest
from astropy.time import Time

torch = pytest.importorskip("torch", reason="lamost_lsf.training needs torch")

import lamost_lsf as ll  # noqa: E402
from lamost_lsf.arcs import ArcExposure, ProfileSet, extract_profiles  # noqa: E402
from lamost_lsf.errors import FormatError, OutOfRangeError  # noqa: E402
from lamost_lsf.simulation import SimulatedIP, simulate_season  # noqa: E402
from lamost_lsf.time import lmjm_to_time, night_number  # noqa: E402
from lamost_lsf.training import TrainingDivergedError, split_by_exposure  # noqa: E402
from lamost_lsf.training.loop import History, Schedule, train_network  # noqa: E402
from lamost_lsf.training.source import open_source  # noqa: E402

FIBERS = list(range(121, 181))
QUICK = {"epochs": 20, "refine_epochs": 5, "rounds": 2, "min_steps": 300, "hidden": 48, "batch_size": 512}


@pytest.fixture(scope="module")
def truth():
    return SimulatedIP("blue", 1)


@pytest.fixture(scope="module")
def profiles(truth):
    arcs = simulate_season(truth, 2017, n_exposures=8, n_nights=4, seed=1, fiber=FIBERS, dead_fibers=[])
    sets = [extract_profiles(ArcExposure.from_simulation(a), instrument="lamost-lrs-blue") for a in arcs]
    return ProfileSet.concatenate(*sets)


@pytest.fixture(scope="module")
def model(profiles):
    return ll.train(profiles, settings=QUICK)


def error_of(model, truth, times, wavelengths, fibers):
    """Predicted minus true profile in units of the peak: (time, wavelength, fibre, sample)."""
    out = []
    for t in times:
        for w in wavelengths:
            h = truth.evaluate(truth.offset * u.AA, time=t, fiber=fibers, wavelength=w * u.AA)
            p = model.profile(time=t, fiber=fibers, wavelength=w * u.AA).flux
            out.append(p / p.max(axis=1, keepdims=True) - h / h.max(axis=1, keepdims=True))
    return np.array(out).reshape(len(times), len(wavelengths), len(fibers), -1)


def test_the_model_is_the_instrument(model, profiles, truth):
    network, history = model
    lines = np.unique(profiles.wavelength)
    times = lmjm_to_time(np.unique(profiles.lmjm))
    ordinary = [f for f in FIBERS if f != 155]
    error = error_of(network, truth, times, lines, ordinary)
    # eight exposures at S/N 140: a single line's samples are good to 3e-3 of the peak at best
    assert np.sqrt(np.mean(error**2)) < 2e-3
    assert np.sqrt(np.mean(error.mean(axis=(0, 2)) ** 2, axis=-1)).max() < 1e-3
    between = error_of(network, truth, times[:2], 0.5 * (lines[1:] + lines[:-1]), ordinary)
    assert np.sqrt(np.mean(between**2)) < 3e-3
    # a flipped profile, or fibres counted from 0, would be off by ten times that
    labels = {"time": times[0], "fiber": ordinary, "wavelength": lines[0] * u.AA}
    flipped = truth.evaluate(-truth.offset * u.AA, **labels)
    straight = truth.evaluate(truth.offset * u.AA, **labels)
    assert np.sqrt(np.mean((flipped - straight) ** 2)) / straight.max() > 0.01
    table = history.to_table()
    assert set(table["phase"]) == {"network", "refine-1"}
    assert np.all(np.isfinite(table["validation_loss"]))


def test_a_defective_fiber_is_fitted_as_well_as_the_others(model, profiles):
    by_fiber = ll.evaluate(model[0], profiles).by("fiber")
    relative = np.asarray(by_fiber["dispersion_over_noise"])
    defective = relative[np.asarray(by_fiber["fiber"]) == 155][0]
    assert defective <= 1.25 * np.median(relative)


def test_held_out_exposures_are_predicted_to_the_noise_and_the_error_is_honest(model, profiles):
    source = open_source(profiles)
    _, validation = split_by_exposure(source.labels)
    result = ll.evaluate(model[0], profiles, index=validation)
    summary = result.summary()[0]
    assert summary["dispersion_over_noise"] < 1.1
    assert 0.64 < summary["covered"] < 0.72
    assert summary["abs_mean"] < 1e-3
    assert len(result.by("line")) == 7
    assert model[0].meta["metrics"]["validation_chi2"] < 1.15


def test_widths_and_centres_are_right(model, profiles, truth):
    time = lmjm_to_time(np.unique(profiles.lmjm))[3]
    line = np.unique(profiles.wavelength)[2] * u.AA
    ours = model[0].profile(time=time, fiber=FIBERS, wavelength=line)
    true = truth.profile(time=time, fiber=FIBERS, wavelength=line)
    assert np.abs((ours.fwhm / true.fwhm).to_value(u.one) - 1).max() < 0.015
    for name in ("centroid", "gauss", "sersic", "half", "fourier"):
        difference = (ours.center(name) - true.center(name)).to_value(u.AA)
        assert np.sqrt(np.mean(difference**2)) < 0.02, name


def test_no_exposure_is_on_both_sides(profiles):
    labels = open_source(profiles).labels
    for seed in range(5):
        train, validation = split_by_exposure(labels, 0.7, seed=seed)
        assert not set(labels.exposure[train]) & set(labels.exposure[validation])
        assert train.size + validation.size == len(labels)
    with pytest.raises(ValueError, match="fraction"):
        split_by_exposure(labels, 1.5)


def test_the_papers_recipe_trains_and_the_default_beats_it(model, profiles, truth):
    payne, history = ll.train(profiles, recipe="payne", settings={"epochs": 60, "hidden": 100})
    losses = history.to_table()["validation_loss"]
    assert losses[-1] < 0.7 * losses[0]
    lines = np.unique(profiles.wavelength)
    times = lmjm_to_time(np.unique(profiles.lmjm))[:3]
    theirs = error_of(payne, truth, times, lines, FIBERS)
    ours = error_of(model[0], truth, times, lines, FIBERS)
    assert np.sqrt(np.mean(ours**2)) < 0.5 * np.sqrt(np.mean(theirs**2))
    assert payne.expansion is None
    assert payne.activation == "leaky_relu"


def test_model_file_round_trip(model, tmp_path):
    path = tmp_path / "01_b_2017.safetensors"
    model[0].write(path)
    again = ll.NeuralIP.read(path)
    labels = {"time": Time("2017-01-05T14:00"), "fiber": [130, 155], "wavelength": 4500 * u.AA}
    a, b = model[0].profile(**labels, extrapolate=True), again.profile(**labels, extrapolate=True)
    np.testing.assert_array_equal(a.flux, b.flux)
    np.testing.assert_array_equal(a.error, b.error)
    assert again.meta["training_set"] == model[0].meta["training_set"]
    assert again.meta["metrics"] == model[0].meta["metrics"]
    found = ll.IPArchive(tmp_path).model(spectrograph=1, arm="blue", season=2017)
    np.testing.assert_array_equal(found.expansion.components, model[0].expansion.components)


def test_labels_outside_the_training_are_refused(model):
    with pytest.raises(OutOfRangeError, match="fiber"):
        model[0].profile(time=Time("2017-01-05T14:00"), fiber=3, wavelength=4500 * u.AA)
    with pytest.raises(OutOfRangeError):
        model[0].profile(time=Time("2019-01-05T14:00"), fiber=130, wavelength=4500 * u.AA)


def test_leaving_out_a_line_a_night_or_a_fiber(profiles):
    source = open_source(profiles)
    settings = {**QUICK, "epochs": 4, "min_steps": 100, "rounds": 1}
    line = int(source.labels.line[0])
    model, _ = ll.train(profiles, leave_out_line=line, settings=settings)
    assert len(model.meta["wavelengths"]) == 7  # the data's; what was trained on is counted
    assert model.meta["n_train"] + model.meta["n_validation"] == np.count_nonzero(source.labels.line != line)
    night = int(night_number(source.labels.lmjm)[0])
    model, _ = ll.train(profiles, leave_out_night=night, settings=settings)
    assert night not in model.expansion.night
    fiber = FIBERS[7]
    model, _ = ll.train(profiles, leave_out_fiber=fiber, settings=settings)
    assert model.meta["n_train"] + model.meta["n_validation"] == np.count_nonzero(source.labels.fiber != fiber)
    own = model.expansion.fiber_values[model.expansion.fiber_number == fiber]
    assert np.all(own == 0)  # no term of its own, and yet the fibre is predicted
    held = ll.evaluate(model, profiles, index=np.flatnonzero(source.labels.fiber == fiber)).summary()[0]
    others = ll.evaluate(model, profiles, index=np.flatnonzero(source.labels.fiber == FIBERS[8])).summary()[0]
    assert 0 < held["dispersion"] < 3 * others["dispersion"]
    with pytest.raises(ValueError, match="no profile of line 99"):
        ll.train(profiles, leave_out_line=99)
    with pytest.raises(ValueError, match="no profile of night"):
        ll.train(profiles, leave_out_night=1)
    with pytest.raises(ValueError, match="no profile of fiber 7"):
        ll.train(profiles, leave_out_fiber=7)


def test_bad_input(profiles, tmp_path):
    with pytest.raises(ValueError, match="recipe must be one of expanded, payne"):
        ll.train(profiles, recipe="transformer")
    with pytest.raises(TypeError, match="ProfileStore or a ProfileSet"):
        ll.train([1, 2, 3])
    with pytest.raises(ValueError, match="not one good profile"):
        ll.train(profiles.select(np.zeros(profiles.flag.size, dtype=bool)))
    with pytest.raises(ValueError, match="too few"):
        ll.train(profiles.select(np.arange(profiles.flag.size) < 20))
    with pytest.raises(ValueError, match="kind must be"):
        ll.evaluate(SimulatedIP("blue"), profiles, kind="magic")


def test_seed_decides_everything(profiles):
    settings = {**QUICK, "epochs": 2, "min_steps": 60, "rounds": 1}
    first, second = (ll.train(profiles, settings=settings, seed=5)[0] for _ in range(2))
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    other = ll.train(profiles, settings=settings, seed=6)[0]
    assert np.abs(other.weights[0] - first.weights[0]).max() > 1e-3


def test_nan_loss_is_an_error_and_not_a_model():
    network = torch.nn.Linear(1, 1)
    with pytest.raises(TrainingDivergedError, match="step 0"):
        train_network(
            network, lambda i: network(torch.full((1, 1), np.nan)).sum(), 10, Schedule(10), validate=lambda: 0.0,
            phase="test", history=History(),
        )  # fmt: skip


def test_early_stopping_keeps_the_best_weights():
    network = torch.nn.Linear(1, 1, bias=False)
    losses = iter([5.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    seen = []

    def validate():
        seen.append(float(network.weight.detach()))
        return next(losses)

    best = train_network(
        network, lambda i: network(torch.ones(1, 1)).sum(), 8, Schedule(1000, 8, validate_every=10, patience=2),
        validate=validate, phase="test", history=History(),
    )  # fmt: skip
    assert best == 1.0
    assert len(seen) == 4
    assert float(network.weight.detach()) == pytest.approx(seen[1])


SCRIPT = """
import sys, numpy as np, torch
from pathlib import Path
from lamost_lsf.training.loop import History, Schedule, train_network
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.linspace(-1, 1, 4000)[:, None]
y = torch.sin(5 * x)
network = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1))
history = History()
def loss(i):
    return ((network(x[i]) - y[i]) ** 2).mean()
train_network(network, loss, 4000, Schedule(3000, 100, optimizer=sys.argv[3]), phase="p", history=history,
              validate=lambda: float(((network(x) - y) ** 2).mean()), checkpoint=Path(sys.argv[1]), checkpoint_every=50)
np.savez(sys.argv[2], rows=len(history.rows), **{k: v.numpy() for k, v in network.state_dict().items()})
"""


@pytest.mark.parametrize("optimizer", ["adam", "radam"])
def test_a_killed_training_ends_with_the_same_weights(tmp_path, optimizer):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(checkpoint, output):
        return [sys.executable, str(script), str(tmp_path / checkpoint), str(output), optimizer]

    subprocess.run(run("a.safetensors", whole), check=True, env=environment)
    checkpoint = tmp_path / "b.safetensors"
    process = subprocess.Popen(run("b.safetensors", parts), env=environment)
    deadline = clock.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and clock.monotonic() < deadline:
        clock.sleep(0.002)
    clock.sleep(0.05 * np.random.default_rng().random())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not parts.exists()
    assert checkpoint.exists()
    subprocess.run(run("b.safetensors", parts), check=True, env=environment)
    with np.load(whole) as a, np.load(parts) as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_checkpoint_of_another_training_is_refused(profiles, tmp_path):
    settings = {**QUICK, "epochs": 2, "min_steps": 60, "rounds": 1}
    network = torch.nn.Linear(1, 1)
    schedule = Schedule(20, 8, validate_every=5)
    checkpoint = tmp_path / "c.safetensors"
    options = {"validate": lambda: 0.0, "phase": "p", "checkpoint": checkpoint, "checkpoint_every": 5}

    def loss(i):
        return network(torch.ones(1, 1)).sum()

    train_network(network, loss, 8, schedule, history=History(), identity="one", **options)
    with pytest.raises(FormatError, match="another training"):
        train_network(network, loss, 8, schedule, history=History(), identity="two", **options)
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(FormatError, match="not a readable checkpoint"):
        train_network(network, loss, 8, schedule, history=History(), identity="one", **options)
    # a finished training taken up again gives the same model, and the same losses, without training
    first, losses = ll.train(profiles, settings=settings, work=tmp_path / "work")
    again, history = ll.train(profiles, settings=settings, work=tmp_path / "work")
    assert losses.rows
    assert history.rows == losses.rows
    np.testing.assert_array_equal(first.weights[1], again.weights[1])
    np.testing.assert_array_equal(first.expansion.fiber_values, again.expansion.fiber_values)
