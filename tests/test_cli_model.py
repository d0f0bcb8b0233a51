"""``simulate``, ``extract``, ``train`` and ``evaluate``, as a user runs them one after the other."""

import io
import json
import shutil

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

from lamost_lsf import IPArchive, NeuralIP, measure_rv, read_lamost
from lamost_lsf.arcs import ArcExposure, extract_profiles
from lamost_lsf.cli import main
from lamost_lsf.cli._progress import Items, Training
from lamost_lsf.cli.simulate import fiber_numbers
from lamost_lsf.simulation import Observatory, SimulatedIP, synthetic_template
from lamost_lsf.store import ProfileStore

SIMULATE = ["simulate", "--fibers", "146-169", "--exposures", "10", "--nights", "5"]
QUICK = ["--epochs", "2", "--setting", "min_steps=150", "--setting", "rounds=2", "--setting", "hidden=24"]


def call(*arguments):
    return main([str(a) for a in arguments])


@pytest.fixture
def run(capsys):
    """Run the command: exit status, stdout, stderr."""

    def run(*arguments):
        code = call(*arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Arcs of two seasons, a sky and a star, and stores of the arcs."""
    folder = tmp_path_factory.mktemp("model")
    assert call(*SIMULATE, "-o", folder / "arcs", "--season", 2017, 2018, "--sky", 1, "--stars", 1) == 0
    assert call("extract", folder / "arcs" / "arc_*.fits", "-o", folder / "profiles") == 0
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """Model of 2017."""
    pytest.importorskip("torch", reason="training needs torch")
    (folder / "models").mkdir()
    path = folder / "models" / "01_b_2017.safetensors"
    assert call("train", folder / "profiles" / "01_b_2017.profiles", "-o", folder / "models", *QUICK) == 0
    return path


def error_line(result):
    """The one line of an error; nothing on stdout, no traceback."""
    code, out, err = result
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1, err
    return err


@pytest.mark.parametrize("command", ["simulate", "extract", "train", "evaluate"])
def test_help_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"  lamost-lsf {command} " in out


class Terminal(io.StringIO):
    """A stderr that somebody is looking at."""

    def isatty(self):
        return True


def test_a_terminal_gets_bars_and_a_log_gets_lines(monkeypatch, capsys):
    pytest.importorskip("tqdm", reason="bars need tqdm")

    def work():
        told = Training()
        for phase in ("network", "refine-1"):
            for step in (50, 100):
                told.named("01_b_2017", phase, step, 100, 1.25)
        told.close()
        with Items(2, "exposures") as items:
            items.advance()
            items.say("a message")
            items.advance()

    monkeypatch.setattr("lamost_lsf.cli._progress._EVERY_S", -1.0)
    work()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "01_b_2017 network: step 50 of 100, validation loss 1.25"
    assert lines[3:] == ["01_b_2017 refine-1: step 100 of 100, validation loss 1.25", "1 of 2 exposures", "a message",
                         "2 of 2 exposures"]  # fmt: skip
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    work()
    shown = terminal.getvalue()
    assert "01_b_2017 refine-1" in shown
    assert "validation loss 1.25" in shown
    assert "a message\n" in shown
    # a bar is taken away when it is done
    assert shown.endswith("\r")
    assert capsys.readouterr().out == ""


# -- simulate -------------------------------------------------------------------------------------------------


def test_simulated_files_are_those_of_the_season(folder):
    arcs = [ArcExposure.read(path) for path in sorted((folder / "arcs").glob("arc_*.fits"))]
    assert len(arcs) == 20
    assert {arc.instrument for arc in arcs} == {"lamost-lrs-blue"}
    years = [arc.time.datetime.year + (arc.time.datetime.month >= 9) for arc in arcs]
    assert sorted(set(years)) == [2017, 2018]
    assert len({round(arc.lmjm) for arc in arcs}) == 20
    for arc, path in zip(arcs, sorted((folder / "arcs").glob("arc_*.fits")), strict=True):
        assert_array_equal(arc.fiber, np.arange(146, 170))
        assert path.name == f"arc_01_b_{arc.lmjm:.0f}.fits"


def test_the_same_arguments_give_the_same_files_and_another_seed_others(run, folder, tmp_path):
    options = ["simulate", "--fibers", "146-169", "--exposures", "1", "--json"]
    files = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        code, out, _ = run(*options, "-o", tmp_path / name, "--seed", seed)
        assert code == 0
        files[name] = ArcExposure.read(json.loads(out)["files"][0])
    assert_array_equal(files["a"].flux, files["b"].flux)
    assert not np.allclose(files["a"].flux, files["c"].flux)
    # nothing is replaced without being asked
    assert "exists; --overwrite" in error_line(run(*options, "-o", tmp_path / "a"))
    assert run(*options, "-o", tmp_path / "a", "--overwrite")[0] == 0


def test_many_exposures_of_one_night_are_all_different(run, tmp_path, monkeypatch):
    # 200 arcs in one night of 720 minutes: some would fall into one minute
    monkeypatch.setattr(ArcExposure, "write", lambda self, path, overwrite: path.touch())
    options = ["--fibers", "1", "--exposures", "200", "--nights", "1", "--json"]
    code, out, _ = run("simulate", "-o", tmp_path / "arcs", *options)
    assert code == 0
    assert len(set(json.loads(out)["files"])) == 200


def test_a_simulated_star_has_the_velocity_that_its_header_says(folder):
    path = folder / "arcs" / "star_01_2017_0001.fits"
    star, header = read_lamost(path), fits.getheader(path)
    assert header["TELESCOP"] == "SIMULATION"
    template = synthetic_template(header["TRUETEFF"])
    result = measure_rv(star, template, Observatory().lsf_for(star), window=(4900, 5400) * u.AA)
    assert abs(result.rv.value - header["TRUE_RV"]) < 4 * result.rv_err.value


def test_fibres_are_given_as_ranges(run, tmp_path):
    assert fiber_numbers("154-156,3,155") == [3, 154, 155, 156]
    for bad in ("5-3", "a", "0", "1,,2"):
        code, _, err = run("simulate", "-o", tmp_path / "x", "--fibers", bad)
        assert code == 2
        assert "list of fibres" in err
    assert "--exposures must be at least 1" in error_line(run("simulate", "-o", tmp_path / "x", "--exposures", 0))
    assert "does not exist" in error_line(run("simulate", "-o", tmp_path / "x" / "y"))


# -- extract --------------------------------------------------------------------------------------------------


def test_stores_hold_what_the_library_extracts(folder, tmp_path):
    store = ProfileStore(folder / "profiles" / "01_b_2017.profiles", "r")
    own = ProfileStore(tmp_path / "01_b_2017.profiles")
    paths = sorted((folder / "arcs").glob("arc_*.fits"))[:10]
    for path in reversed(paths):
        own.append(extract_profiles(ArcExposure.read(path)))
    assert store.n_exposures == 10
    assert store.id == own.id
    assert sorted(store.exposures["file"]) == [str(path) for path in paths]


def test_extracting_again_appends_nothing(run, folder):
    before = {p: p.stat().st_mtime_ns for p in (folder / "profiles").rglob("*.h5")}
    code, out, err = run("extract", folder / "arcs" / "**" / "arc_*.fits", "-o", folder / "profiles", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert [(row["appended"], row["skipped"]) for row in summary["stores"]] == [(0, 10), (0, 10)]
    assert summary["failed"] == []
    assert {p: p.stat().st_mtime_ns for p in (folder / "profiles").rglob("*.h5")} == before


def test_yields_add_up_and_one_bad_file_costs_nobody_else(run, folder, tmp_path):
    good = sorted((folder / "arcs").glob("arc_*.fits"))[:2]
    bad = tmp_path / "bad.fits"
    bad.write_bytes(good[0].read_bytes()[:50_000])
    sky = next((folder / "arcs").glob("sky_*.fits"))
    code, out, err = run("extract", good[0], bad, sky, good[1], "-o", tmp_path / "profiles", "--json")
    assert code == 1
    assert str(bad) in err
    assert "night sky" in err
    summary = json.loads(out)
    assert [entry["file"] for entry in summary["failed"]] == [str(bad), str(sky)]
    (row,) = summary["stores"]
    assert (row["appended"], row["profiles"]) == (2, 2 * 24 * 7)
    # by hand from the library: good ones and low-flux fibres
    sets = [extract_profiles(ArcExposure.read(path)) for path in good]
    assert row["good"] == row["total_profiles"] == sum(int(s.good.sum()) for s in sets)
    assert row["reasons"]["low_flux"] == sum(int(np.count_nonzero(s.flag & 1)) for s in sets)
    assert row["id"] == ProfileStore(row["store"], "r").id
    # for people
    _, out, _ = run("extract", good[0], "-o", tmp_path / "other")
    assert "1 exposures appended" in out
    assert "low_flux" in out


def test_extract_refuses_what_it_cannot_do(run, folder, tmp_path):
    sky = next((folder / "arcs").glob("sky_*.fits"))
    output = tmp_path / "profiles"
    assert "night sky" in error_line(run("extract", sky, "-o", output))
    assert "no such file" in error_line(run("extract", tmp_path / "none.fits", "-o", output))
    assert "no file fits" in error_line(run("extract", tmp_path / "*.fits", "-o", output))
    assert "does not exist" in error_line(run("extract", sky, "-o", tmp_path / "a" / "b"))
    assert "is a file" in error_line(run("extract", sky, "-o", sky))
    assert "nonsense" in error_line(run("extract", sky, "-o", output, "--instrument", "nonsense"))


# -- train ----------------------------------------------------------------------------------------------------


def test_the_model_knows_the_simulated_profile(model, folder):
    # against the simulator's own profile at a line and between lines, at a time without an arc; it is a quick network
    trained, truth = NeuralIP.read(model), SimulatedIP("blue")
    archive = IPArchive(folder / "models")
    minutes = ProfileStore(folder / "profiles" / "01_b_2017.profiles", "r").labels["lmjm"]
    from lamost_lsf.time import lmjm_to_time

    time = lmjm_to_time(float(np.median(minutes)))
    labels = {"time": time, "fiber": np.array([[149], [155], [165]]), "wavelength": [4360.0, 5200.0] * u.AA}
    seen, true = trained.profile(**labels), truth.profile(**labels)
    assert_allclose(seen.fwhm.to_value(u.AA), true.fwhm.to_value(u.AA), rtol=0.01)
    peak = true.normalized("peak").flux
    assert np.sqrt(np.mean((seen.normalized("peak").flux - peak) ** 2)) < 0.005
    assert_array_equal(archive.profile(spectrograph=1, **labels).flux, seen.flux)


def test_training_again_does_nothing_and_something_else_is_refused(run, model, folder):
    store = folder / "profiles" / "01_b_2017.profiles"
    before = model.read_bytes()
    code, out, _ = run("train", store, "-o", model, *QUICK, "--json")
    assert code == 0
    assert json.loads(out)["status"] == "finished"
    err = error_line(run("train", store, "-o", model, *QUICK, "--seed", 3))
    assert "--overwrite" in err
    assert "seed" in err
    assert model.read_bytes() == before
    history = Table.read(model.with_name("01_b_2017.history.ecsv"), format="ascii.ecsv")
    assert history["step"][history["phase"] == "network"][-1] == 150
    assert model.with_name("01_b_2017.loss.png").is_file()


def test_train_all_prints_the_table_and_fails_with_any_set(run, model, folder, tmp_path):
    models = shutil.copytree(folder / "models", tmp_path / "models")
    (tmp_path / "profiles").mkdir()
    shutil.copytree(folder / "profiles" / "01_b_2017.profiles", tmp_path / "profiles" / "01_b_2017.profiles")
    code, out, err = run("train", "--all", tmp_path / "profiles", "-o", models, *QUICK)
    assert code == 0, err
    assert "01_b_2017  finished" in out
    (tmp_path / "profiles" / "01_b_2018.profiles").mkdir()
    code, out, err = run("train", "--all", tmp_path / "profiles", "-o", models, *QUICK, "--json")
    assert code == 1
    rows = json.loads(out)
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert rows[1]["validation_chi2"] is None
    assert "01_b_2018: failed" in err


def test_train_on_workers(run, model, folder, tmp_path):
    pytest.importorskip("distributed", reason="clusters need dask")
    models = shutil.copytree(folder / "models", tmp_path / "models")
    code, out, err = run("train", "--all", folder / "profiles", "-o", models, *QUICK, "--workers", 1, "--json")
    assert code == 0, err
    assert [row["status"] for row in json.loads(out)] == ["finished", "trained"]
    assert IPArchive(models).table()["season"].tolist() == [2017, 2018]


def test_train_refuses_what_it_cannot_do(run, folder, tmp_path):
    pytest.importorskip("torch", reason="training needs torch")
    store, model = folder / "profiles" / "01_b_2017.profiles", tmp_path / "01_b_2017.safetensors"
    for arguments, message in (
        (["-o", model], "give a store, or --all"),
        ([store, "--all", folder, "-o", model], "give a store, or --all"),
        ([store, "-o", model, "--workers", 2], "go with --all"),
        ([store, "-o", tmp_path / "model.npz"], "ends in .safetensors"),
        ([store, "-o", tmp_path / "a" / "b.safetensors"], "does not exist"),
        ([store, "-o", model, "--setting", "width=3"], "no setting 'width'"),
        ([store, "-o", model, "--setting", "hidden=many"], "whole number"),
        ([store, "-o", model, "--epochs", -1], "above 0"),
        ([store, "-o", model, "--fraction", 1.5], "fraction"),
        ([store, "-o", model, "--leave-out-line", 11], "no profile of line 11"),
        ([tmp_path / "no.profiles", "-o", model], "no store"),
        (["--all", tmp_path / "none", "-o", tmp_path / "models"], "not a folder"),
    ):
        assert message in error_line(run("train", *arguments)), arguments
    assert run("train", store, "-o", model, "--setting", "hidden")[0] == 2
    assert not model.exists()


# -- evaluate -------------------------------------------------------------------------------------------------


def test_evaluation_is_of_exposures_that_were_not_trained_on(run, model, folder):
    from lamost_lsf.training import evaluate

    store = ProfileStore(folder / "profiles" / "01_b_2017.profiles", "r")
    code, out, _ = run("evaluate", model, store.path, "--json")
    assert code == 0
    seen = json.loads(out)
    trained = NeuralIP.read(model)
    assert seen["on"] == "held-out"
    # 8 of 10 exposures are trained on
    assert seen["summary"]["n"] == trained.meta["n_validation"] == len(store) - trained.meta["n_train"]
    held = [row["exposure"] for row in seen["by_exposure"]]
    assert len(held) == 2
    index = np.flatnonzero(np.isin(store.labels["exposure"], held))
    ours = evaluate(trained, store, index=index).summary()[0]
    for name in ("abs_mean", "dispersion", "chi2_per_dof", "covered"):
        assert seen["summary"][name] == pytest.approx(ours[name])
    # the noise of a quick model on bright arcs is the pixels'
    assert 0.8 < seen["summary"]["chi2_per_dof"] < 1.5
    assert [row["air"] for row in seen["by_line"]] == [
        4046.565,
        4358.335,
        4678.149,
        4799.912,
        5085.822,
        5460.75,
        5790.67,
    ]
    for row in seen["by_exposure"]:
        assert row["lmjm"] == store.exposures["lmjm"][row["exposure"]]


def test_other_profiles_can_be_asked_for(run, model, folder):
    store, other = (folder / "profiles" / f"01_b_{year}.profiles" for year in (2017, 2018))
    code, out, _ = run("evaluate", model, store, "--on", "all", "--line", 2, 4, "--json")
    assert code == 0
    assert [row["line"] for row in json.loads(out)["by_line"]] == [2, 4]
    # another season is beyond the trained range
    assert "--extrapolate" in error_line(run("evaluate", model, other))
    code, out, _ = run("evaluate", model, other, "--extrapolate", "--kind", "resampled", "--json")
    assert code == 0
    assert json.loads(out)["on"] == "all"
    assert "take --on all" in error_line(run("evaluate", model, other, "--on", "held-out", "--extrapolate"))
    assert "without leaving out" in error_line(run("evaluate", model, store, "--on", "left-out"))
    assert "no good profile is left" in error_line(run("evaluate", model, store, "--line", 9))


def test_a_line_that_was_left_out_is_evaluated_on_by_itself(run, folder, tmp_path):
    pytest.importorskip("torch", reason="training needs torch")
    store, model = folder / "profiles" / "01_b_2017.profiles", tmp_path / "01_b_2017.safetensors"
    assert run("train", store, "-o", model, *QUICK, "--leave-out-line", 3)[0] == 0
    counts = {}
    for on in ("held-out", "left-out"):
        code, out, _ = run("evaluate", model, store, "--on", on, "--json")
        assert code == 0
        counts[on] = {row["line"]: row["n"] for row in json.loads(out)["by_line"]}
    assert list(counts["left-out"]) == [3]
    assert counts["left-out"][3] == np.count_nonzero(ProfileStore(store, "r").labels["line"] == 3)
    assert list(counts["held-out"]) == [0, 1, 2, 4, 5, 6]


def test_tables_and_figures_are_written_once(run, model, folder, tmp_path):
    sky, arc = (sorted((folder / "arcs").glob(f"{kind}_*.fits"))[0] for kind in ("sky", "arc"))
    arguments = ["evaluate", model, folder / "profiles" / "01_b_2017.profiles", "--sky", sky, "--arc", arc]
    arguments += ["-o", tmp_path / "tables", "--plot", tmp_path / "figures", "--fibers", 154, 155, 156]
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "no figure" not in err
    names = {"maps", "residuals", "fibers", "epochs", "losses", "lamp", "slit", "held_out_line"}
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == names
    profiles = Table.read(tmp_path / "tables" / "profiles.fits")
    lines = Table.read(tmp_path / "tables" / "by_line.ecsv", format="ascii.ecsv")
    assert lines["n"].sum() == len(profiles)
    sky_row = Table.read(tmp_path / "tables" / "held_out_line.ecsv", format="ascii.ecsv")[0]
    assert 0.7 < sky_row["chi2_per_dof"] < 2.0
    assert "[O I] 5577.338 (sky)" in out
    assert "exists; --overwrite" in error_line(run(*arguments))
    assert run(*arguments, "--overwrite")[0] == 0


def test_figures_of_a_model_alone(run, model, folder, tmp_path):
    path = shutil.copy(model, tmp_path)  # without its history
    store = folder / "profiles" / "01_b_2017.profiles"
    code, _, err = run("evaluate", path, store, "--plot", tmp_path / "figures")
    assert code == 0
    assert "wrote 4 figures" in err
    # one that cannot be drawn does not cost the others
    code, _, err = run("evaluate", path, store, "--plot", tmp_path / "figures", "--fibers", 3, 4, "--overwrite")
    assert code == 0
    assert "no figure fibers: there is no line" in err
    assert "wrote 3 figures" in err


def test_evaluate_refuses_what_it_cannot_do(run, model, folder, tmp_path):
    store = folder / "profiles" / "01_b_2017.profiles"
    assert run(*SIMULATE[:3], "-o", tmp_path, "--arm", "red", "--exposures", 1, "--sky", 1)[0] == 0
    red = next(tmp_path.glob("sky_01_r_*.fits"))
    for arguments, message in (
        ([tmp_path / "no.safetensors", store], "no such file"),
        ([model, tmp_path / "no.profiles"], "no store"),
        ([model, store, "--fibers", 3], "go with --plot"),
        ([model, store, "-o", model], "is a file"),
        ([model, store, "--plot", tmp_path / "a" / "b"], "does not exist"),
        ([model, store, "--sky", tmp_path / "sky.fits"], "no such file"),
        ([model, store, "--sky", red], "red arm; the model is of 1, blue"),
    ):
        assert message in error_line(run("evaluate", *arguments)), arguments
