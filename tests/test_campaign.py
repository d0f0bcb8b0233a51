"""Campaigns: every set is trained once, a failure stays its own, a kill costs the steps since the last checkpoint."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from astropy.table import Table

torch = pytest.importorskip("torch", reason="training needs torch")

from small_season import QUICK, fill, profiles  # noqa: E402

from lamost_lsf import IPArchive, NeuralIP  # noqa: E402
from lamost_lsf.store import ProfileStore  # noqa: E402
from lamost_lsf.store.locking import folder_lock  # noqa: E402
from lamost_lsf.training import train  # noqa: E402
from lamost_lsf.training.campaign import STATUSES, TrainingPlan, find_stores, train_all, train_set  # noqa: E402

SETS = ["01_b_2017", "01_b_2018"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of two stores that can be trained on, at different depths, and one that is too small."""
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "deep").mkdir()
    fill(folder / "deep", 2017)
    fill(folder, 2018)
    store = ProfileStore(ProfileStore.path_for(folder, 1, "blue", 2019))
    store.append(profiles(2019)[0].select(slice(0, 40)))
    return folder


@pytest.fixture(scope="module")
def campaign(root, tmp_path_factory):
    """Models of an uninterrupted campaign, its table and what it reported."""
    output = tmp_path_factory.mktemp("campaign") / "models"
    told, reported = [], []
    table = train_all(
        root,
        output,
        settings=QUICK,
        progress=lambda *state: told.append(state),
        report=lambda r: reported.append(r["set"]),
    )
    return output, table, told, reported


@pytest.fixture
def models(campaign, tmp_path):
    """A copy of the models to do harm to."""
    return shutil.copytree(campaign[0], tmp_path / "models")


def weights(path):
    model = NeuralIP.read(path)
    arrays = [*model.weights, *model.biases]
    if model.expansion is not None:
        arrays += [model.expansion.mean, model.expansion.components, model.expansion.fiber_values]
    return arrays


def same_weights(first, second):
    return all(np.array_equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def stamp(path):
    return path.stat().st_mtime_ns, path.read_bytes()


def by_set(table):
    return {row["set"]: row for row in table}


def test_every_set_becomes_a_model_or_a_reason(campaign):
    output, table, told, reported = campaign
    assert reported == [*SETS, "01_b_2019"] == list(table["set"])
    assert list(table["status"]) == ["trained", "trained", "failed"]
    rows = by_set(table)
    assert "too few" in rows["01_b_2019"]["reason"]
    assert rows["01_b_2019"]["n_profiles"] == profiles(2019)[0].good[:40].sum()
    assert not (output / "01_b_2019.safetensors").exists()
    for name in SETS:
        row = rows[name]
        assert row["n_train"] + row["n_validation"] == row["n_profiles"]
        assert 0.5 < row["validation_chi2"] < row["validation_chi2_baseline"] * 1.5
        assert (output / f"{name}.loss.png").read_bytes().startswith(b"\x89PNG")
        history = Table.read(output / f"{name}.history.ecsv", format="ascii.ecsv")
        assert row["validation_loss"] == min(history["validation_loss"])
        # progress came for this set, up to the last step
        assert {state[0] for state in told} == set(SETS)
        assert (
            max(step for set_, _, step, steps, _ in told if set_ == name) == QUICK["min_steps"] == history["step"][-1]
        )
    archive = IPArchive(output)
    assert archive.table()["season"].tolist() == [2017, 2018]
    # nothing is left of the checkpoints but locks
    assert {p.name for p in (output / ".work").rglob("*") if p.is_file()} <= {"lock"} | {
        p.name for p in (output / ".work" / "01_b_2019").rglob("*")
    }


def test_the_summary_is_the_table(campaign):
    output, table, *_ = campaign
    read = Table.read(output / "summary.ecsv", format="ascii.ecsv")
    assert read.colnames == table.colnames
    for name in ("set", "status", "n_profiles", "training_set", "validation_loss"):
        np.testing.assert_array_equal(np.asarray(read[name])[:2], np.asarray(table[name])[:2])


def test_a_campaign_trains_as_train_does(campaign, root):
    model, _ = train(ProfileStore(root / "01_b_2018.profiles", "r"), settings=QUICK)
    ours = NeuralIP.read(campaign[0] / "01_b_2018.safetensors")
    for a, b in zip(model.weights, ours.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_set_is_not_trained_again_even_to_overwrite(models, root, campaign):
    before = {name: stamp(models / f"{name}.safetensors") for name in SETS}
    for overwrite in (False, True):
        table = train_all(root, models, settings=QUICK, overwrite=overwrite)
        assert list(table["status"]) == ["finished", "finished", "failed"]
    assert {name: stamp(models / f"{name}.safetensors") for name in SETS} == before
    # what is known of a set does not depend on who trained it when
    for column in ("n_train", "validation_loss", "validation_chi2", "seconds", "training_set"):
        np.testing.assert_array_equal(table[column][:2], campaign[1][column][:2])


def test_other_settings_or_profiles_are_told_and_leave_the_model_alone(models, root, tmp_path):
    path = models / "01_b_2018.safetensors"
    before = stamp(path)
    row = train_set(root / "01_b_2018.profiles", path, TrainingPlan(settings=QUICK, seed=5))
    assert row["status"] == "outdated"
    assert "seed" in row["reason"]
    row = train_set(root / "01_b_2018.profiles", path, TrainingPlan(settings={**QUICK, "hidden": 17}))
    assert (row["status"], "settings" in row["reason"]) == ("outdated", True)
    # one exposure fewer
    other = fill(tmp_path, 2018, n=9)
    row = train_set(other.path, path, TrainingPlan(settings=QUICK))
    assert (row["status"], row["training_set"]) == ("outdated", other.id)
    assert "profiles" in row["reason"]
    assert stamp(path) == before
    row = train_set(other.path, path, TrainingPlan(settings=QUICK), overwrite=True)
    assert row["status"] == "trained"
    assert NeuralIP.read(path).meta["training_set"] == other.id


def test_a_damaged_model_is_reported_not_replaced(models, root):
    path = models / "01_b_2017.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    before = stamp(path)
    row = by_set(train_all(root, models, settings=QUICK))["01_b_2017"]
    assert row["status"] == "failed"
    assert "cannot be read" in row["reason"]
    assert stamp(path) == before


def test_a_model_that_does_not_say_how_it_was_split_counts_by_recipe_and_settings(models, root):
    path = models / "01_b_2018.safetensors"
    model = NeuralIP.read(path)
    del model.meta["training"]
    model.write(path, overwrite=True)
    assert train_set(root / "01_b_2018.profiles", path, TrainingPlan(settings=QUICK))["status"] == "finished"
    assert train_set(root / "01_b_2018.profiles", path, TrainingPlan("payne"))["status"] == "outdated"


def test_two_processes_do_not_train_one_set(models, root):
    (models / "01_b_2018.safetensors").unlink()
    with folder_lock(models / ".work" / "01_b_2018" / "lock", 1.0):
        row = by_set(train_all(root, models, settings=QUICK))["01_b_2018"]
    assert row["status"] == "busy"
    assert not (models / "01_b_2018.safetensors").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_kill_nine_and_again_gives_the_models_of_an_uninterrupted_campaign(campaign, root, tmp_path):
    output = tmp_path / "models"
    command = [
        sys.executable,
        "-c",
        "import sys; from lamost_lsf.cli import main; sys.exit(main())",
        "train",
        "--all",
        str(root),
        "--output",
        str(output),
    ]
    for name, value in QUICK.items():
        command += ["--setting", f"{name}={value}"]
    command += ["--checkpoint-every", "10"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        # the first set is finished and the second on its way
        while not list(output.glob(".work/01_b_2018/*/*.checkpoint.safetensors")):
            assert process.poll() is None, "the campaign ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    first = output / "01_b_2017.safetensors"
    before = stamp(first)
    assert not (output / "01_b_2018.safetensors").exists()
    statuses = dict(Table.read(output / "summary.ecsv", format="ascii.ecsv")["set", "status"].iterrows())
    assert statuses == {"01_b_2017": "trained", "01_b_2018": "pending", "01_b_2019": "pending"}
    told = []
    table = train_all(root, output, settings=QUICK, checkpoint_every=10, progress=lambda *state: told.append(state))
    assert list(table["status"]) == ["finished", "trained", "failed"]
    assert stamp(first) == before
    for name in SETS:
        assert same_weights(output / f"{name}.safetensors", campaign[0] / f"{name}.safetensors")
    assert os.listdir(output / ".work" / "01_b_2018") == ["lock"]


def test_a_cluster_of_processes_gives_the_same_models(campaign, root, tmp_path):
    distributed = pytest.importorskip("distributed", reason="clusters need dask")
    reported = []
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        table = train_all(
            root, tmp_path / "models", settings=QUICK, scheduler=client.scheduler.address, report=reported.append
        )
    assert list(table["status"]) == ["trained", "trained", "failed"]
    assert sorted(row["set"] for row in reported) == [*SETS, "01_b_2019"]
    for name in SETS:
        assert same_weights(tmp_path / "models" / f"{name}.safetensors", campaign[0] / f"{name}.safetensors")


def test_without_an_answer_or_without_dask_it_says_so(root, tmp_path, monkeypatch):
    dask = pytest.importorskip("dask", reason="clusters need dask")
    pytest.importorskip("distributed", reason="clusters need dask")
    with dask.config.set({"distributed.comm.timeouts.connect": "200ms"}), pytest.raises(OSError, match=r"127\.0\.0\.1"):
        train_all(root, tmp_path / "models", scheduler="tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(ImportError, match="pip install"):
        train_all(root, tmp_path / "models", workers=1)


def test_bad_arguments_are_refused_before_anything_is_made(root, tmp_path):
    output = tmp_path / "models"
    with pytest.raises(NotADirectoryError, match="not a folder"):
        train_all(tmp_path / "nowhere", output)
    with pytest.raises(FileNotFoundError, match="no profile store"):
        train_all(tmp_path, output)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        train_all(root, tmp_path / "a" / "b")
    with pytest.raises(ValueError, match="not both"):
        train_all(root, output, scheduler="tcp://x", workers=2)
    with pytest.raises(ValueError, match="workers"):
        train_all(root, output, workers=0)
    with pytest.raises(ValueError, match="recipe"):
        train_all(root, output, recipe="cake")
    with pytest.raises(ValueError, match="fraction"):
        train_all(root, output, fraction=1.0)
    with pytest.raises(ValueError, match="checkpoint_every"):
        train_all(root, output, checkpoint_every=0)
    with pytest.raises(TypeError, match="width"):
        train_all(root, output, settings={"width": 3})
    with pytest.raises(TypeError, match="not both"):
        train_all(root, output, plan=TrainingPlan(), seed=3)
    with pytest.raises(TypeError, match="TrainingPlan"):
        train_all(root, output, plan="expanded")
    with pytest.raises(FileNotFoundError):
        train_set(root / "01_b_2018.profiles", tmp_path / "a" / "01_b_2018.safetensors")
    assert not output.exists()
    for folder in ("a", "b"):
        (tmp_path / folder / "01_b_2017.profiles").mkdir(parents=True)
    with pytest.raises(ValueError, match="one name"):
        find_stores(tmp_path)


def test_statuses_are_explained(campaign):
    assert set(campaign[1]["status"]) <= set(STATUSES)
    assert campaign[1].meta["statuses"] == STATUSES
