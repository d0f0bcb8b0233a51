"""Surveys: every spectrum has its rows, once, whatever it contains and however often the run was interrupted."""

import json
import shutil

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal
from survey_files import OBSERVATORY, TEMPLATE, write_star, write_stars

pytest.importorskip("pyarrow", reason="surveys need pyarrow")

from lamost_lsf.batch import find_spectra, measure_survey, read_survey
from lamost_lsf.batch.chunk import measure_chunk
from lamost_lsf.batch.output import Part, Survey
from lamost_lsf.batch.tables import write_table
from lamost_lsf.cli.survey import _windows, add_parser, run
from lamost_lsf.errors import FormatError, LamostLSFWarning
from lamost_lsf.io import read_lamost_arrays
from lamost_lsf.rv import RVFlag, measure_rvs
from lamost_lsf.store.locking import folder_lock

WINDOWS = {"Mg": (5000, 5300) * u.AA, "Ha": (6450, 6700) * u.AA}
OPTIONS = {"windows": WINDOWS, "velocity_range": (-400.0, 400.0), "chunk": 10, "batch": 4}
N = 34


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    """Folder of stars, their paths and velocities."""
    folder = tmp_path_factory.mktemp("stars")
    paths, velocities = write_stars(folder, N, fibers=3)
    return folder, [str(path) for path in paths], velocities


@pytest.fixture(scope="module")
def finished(stars, tmp_path_factory):
    """Results of an undisturbed run, and its summary."""
    folder = tmp_path_factory.mktemp("finished")
    told = []
    summary = measure_survey(
        stars[0], folder / "rv", TEMPLATE, OBSERVATORY, table=folder / "rv.ecsv",
        progress=lambda *state: told.append(state), **OPTIONS,
    )  # fmt: skip
    return folder / "rv", summary, told


@pytest.fixture
def results(finished, tmp_path):
    """A copy of the results to do harm to."""
    return shutil.copytree(finished[0], tmp_path / "rv")


def again(inputs, results, **options):
    return measure_survey(inputs, results, TEMPLATE, OBSERVATORY, **{**OPTIONS, **options})


def contents(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("part-*.parquet")}


def assert_each_once(folder, paths):
    table = read_survey(folder)
    assert sorted(table["file"]) == sorted(path for path in paths for _ in range(3))
    for window in ("Mg", "Ha", "combined"):
        assert sorted(table["file"][table["window"] == window]) == sorted(paths)
    return table


def test_every_spectrum_has_its_velocity_in_every_window(stars, finished):
    _, paths, velocities = stars
    folder, summary, told = finished
    table = assert_each_once(folder, paths)
    assert (summary.n_spectra, summary.n_before, summary.n_measured, summary.n_flagged) == (N, 0, N, 0)
    assert summary.n_rows == 3 * N
    assert summary.rate == pytest.approx(N / summary.seconds)
    assert told == [(0, N, 0), (10, N, 0), (20, N, 0), (30, N, 0), (34, N, 0)]
    for window in ("Mg", "combined"):
        part = table[table["window"] == window]
        pull = (part["rv"] - velocities) / part["rv_err"]
        assert np.sum(pull**2) < N + 5 * np.sqrt(2 * N)
    assert table["rv"].unit == u.km / u.s
    assert "relativistic" in table["rv"].description


def test_a_survey_is_what_measure_rvs_makes_of_the_same_files(stars, finished):
    options = {key: OPTIONS[key] for key in ("windows", "velocity_range")}
    direct = measure_rvs(stars[1], TEMPLATE, OBSERVATORY, **options)
    table = read_survey(finished[0])
    assert set(direct.colnames) - {"spectrum"} == set(table.colnames) - {"extension"}
    assert_array_equal(table["window"], direct["window"])
    assert_allclose(table["rv"], direct["rv"], atol=0.02 * np.min(direct["rv_err"]))
    assert_allclose(table["rv_err"], direct["rv_err"], rtol=1e-3)
    for name in ("flags", "n_pixels", "obsid", "template", "center", "frame"):
        assert_array_equal(table[name], direct[name])


def test_what_is_finished_is_left_alone_and_only_what_is_missing_is_added(stars, results):
    before = contents(results)
    assert again(stars[0], results).n_measured == 0
    assert contents(results) == before
    victim = sorted(before)[1]
    lost = Part.read(results / victim).keys.size
    (results / victim).unlink()
    (results / ".part-0123-killed.parquet").write_bytes(b"half")
    summary = again(stars[0], results)
    assert (summary.n_before, summary.n_measured) == (N - lost, lost)
    after = contents(results)
    assert {name: after[name] for name in after if name != victim} == {n: before[n] for n in before if n != victim}
    assert set(after) == set(before)
    assert not list(results.glob(".part-*"))
    assert_each_once(results, stars[1])


def test_more_input_adds_only_its_own(stars, results, tmp_path):
    more, _ = write_stars(tmp_path, 3, seed=9, fibers=1)
    before = contents(results)
    # in front of the others, so that all chunks are cut elsewhere
    inputs = [more[0], *stars[1][:5], more[1], *stars[1][5:], more[2]]
    summary = again(inputs, results, table=tmp_path / "all.csv")
    assert (summary.n_before, summary.n_measured) == (N, 3)
    assert all(contents(results)[name] == value for name, value in before.items())
    assert_each_once(results, [str(path) for path in inputs])
    table = Table.read(tmp_path / "all.csv", format="ascii.csv")
    assert_array_equal(table["file"], np.repeat([str(path) for path in inputs], 3))
    assert_array_equal(table["spectrum"], np.repeat(np.arange(N + 3), 3))


def test_results_of_other_settings_are_not_mixed(stars, results):
    before = contents(results)
    with pytest.raises(FileExistsError, match="was measured with other velocity_range; take another folder"):
        again(stars[0], results, velocity_range=(-300.0, 300.0))
    with pytest.raises(FileExistsError, match="was measured with other lsf"):
        measure_survey(stars[0], results, TEMPLATE, type(OBSERVATORY)(seed=1), **OPTIONS)
    assert contents(results) == before
    summary = again(stars[1][:4], results, velocity_range=(-300.0, 300.0), overwrite=True)
    assert (summary.n_before, summary.n_measured) == (0, 4)
    assert_each_once(results, stars[1][:4])


def test_damaged_results_are_measured_again(stars, results):
    victim = sorted(results.glob("part-*.parquet"))[2]
    n = Part.read(victim).keys.size
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(FormatError, match=f"{victim.name}: not a file of a survey"):
        read_survey(results)
    with pytest.warns(LamostLSFWarning, match="are measured again"):
        assert again(stars[0], results).n_measured == n
    assert_each_once(results, stars[1])


def test_a_spectrum_in_two_files_is_noticed(results):
    part = min(results.glob("part-*.parquet"))
    shutil.copy(part, results / "part-copy.parquet")
    with pytest.raises(FormatError, match="some spectra are in two of its files"):
        Survey.open(results)


def test_a_worker_that_comes_late_writes_nothing(stars, results):
    # its chunk had been given to another, when it was thought dead
    before = contents(results)
    survey = Survey.open(results)
    items = [(path, "") for path in stars[1][:10]]
    assert measure_chunk(None, str(results), survey.config, items, 4, 0)["n"] == 10
    assert contents(results) == before


@pytest.mark.parametrize("suffix", [".ecsv", ".csv", ".fits"])
def test_one_table_has_all_rows_in_the_order_of_the_input(stars, finished, tmp_path, suffix):
    survey = Survey.open(finished[0])
    order = np.random.default_rng(3).permutation(N)
    paths = [stars[1][i] for i in order]
    keys = find_spectra(paths).keys()
    path = tmp_path / f"all{suffix}"
    assert write_table(survey, keys, path) == 3 * N
    form = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".fits": "fits"}[suffix]
    table = Table.read(path, format=form)
    whole = read_survey(finished[0])
    assert_array_equal(table["file"], np.repeat(paths, 3))
    expected = whole[(3 * order[:, None] + np.arange(3)).ravel()]
    for name in whole.colnames:
        column = (
            table[name].filled("") if table[name].dtype.kind in "SU" and hasattr(table[name], "mask") else table[name]
        )
        if whole[name].dtype.kind == "U":
            assert_array_equal([str(v) if v is not np.ma.masked else "" for v in column], expected[name])
        else:
            assert_array_equal(np.ma.filled(column, np.nan), expected[name])
            if suffix != ".csv":
                assert table[name].unit == whole[name].unit


def test_a_table_of_nothing_and_tables_that_cannot_be(stars, finished, tmp_path):
    survey = Survey.open(finished[0])
    assert write_table(survey, find_spectra(["other.fits"]).keys(), tmp_path / "none.fits") == 0
    assert len(Table.read(tmp_path / "none.fits")) == 0
    for name, error in (("t.xlsx", ValueError), ("none.fits", FileExistsError), ("no/t.fits", FileNotFoundError)):
        with pytest.raises(error):
            measure_survey(stars[0], tmp_path / "rv", TEMPLATE, OBSERVATORY, table=tmp_path / name)
    assert not (tmp_path / "rv").exists()


def test_bad_input_becomes_rows_with_a_reason(stars, tmp_path):
    good = read_lamost_arrays(stars[1][0])
    w, flux, ivar = good.wavelength, good.flux, good.ivar

    def star(name, flux=flux, ivar=ivar, **cards):
        write_star(tmp_path / name, w, flux, ivar, fiber=3, obsid=1, **cards)

    rng = np.random.default_rng(2)
    star("0-good.fits.gz")
    (tmp_path / "1-empty.fits").touch()
    (tmp_path / "2-text.fits").write_text("no FITS at all")
    (tmp_path / "3-cut.fits.gz").write_bytes((tmp_path / "0-good.fits.gz").read_bytes()[:9000])
    star("4-masked.fits", mask=np.ones(w.size))
    star("5-nofiber.fits", FIBERID=0)
    star("6-noframe.fits", HELIO=None, HELIO_RV=None)
    star("7-sky.fits", flux=1e-3 * rng.normal(size=w.size), ivar=np.full(w.size, 1e6))
    star("8-flat.fits", flux=np.full(w.size, 100.0))
    names = sorted(path.name for path in tmp_path.iterdir())
    inputs = [tmp_path / name for name in names] + [tmp_path / "9-missing.fits"]
    with pytest.warns(LamostLSFWarning, match="FIBERID is 0"):
        summary = again(inputs, tmp_path / "rv", frame="barycentric")
    table = read_survey(tmp_path / "rv")
    assert len(table) == 3 * len(inputs)
    rows = {row["file"].rpartition("/")[2]: row for row in table if row["window"] == "Mg"}
    flags = [RVFlag(int(rows[path.name]["flags"])) for path in inputs]
    for i in (1, 2, 3, 9):
        assert flags[i] == RVFlag.UNREADABLE, inputs[i]
    assert RVFlag.TOO_FEW_PIXELS in flags[4]
    assert RVFlag.NO_LSF in flags[5]
    assert RVFlag.WRONG_FRAME in flags[6] or RVFlag.NO_LSF in flags[6]
    assert RVFlag.NO_SIGNAL in flags[7]
    assert RVFlag.NO_SIGNAL in flags[8]
    assert summary.n_flagged == len(inputs) - (flags[0] == 0)
    assert all(rows[path.name]["reasons"] for path in inputs[1:])
    assert all(np.isnan(rows[path.name]["rv"]) for path in inputs[1:7])
    assert "no such file" in rows["9-missing.fits"]["message"]
    assert max(len(row["message"]) for row in table) <= 240


def test_an_error_nobody_thought_of_costs_one_spectrum(stars, tmp_path, monkeypatch):
    from lamost_lsf.rv.machine import RVMachine

    honest = RVMachine.measure

    def measure(self, spectra, *args, **kwargs):
        if any(s.meta.get("obsid") == 1000006 for s in spectra):
            raise RuntimeError("nobody thought of it")
        return honest(self, spectra, *args, **kwargs)

    monkeypatch.setattr(RVMachine, "measure", measure)
    assert again(stars[1][:12], tmp_path / "rv").n_flagged == 1
    table = assert_each_once(tmp_path / "rv", stars[1][:12])
    bad = table[table["flags"] != 0]
    assert set(bad["file"]) == {stars[1][6]}
    assert set(bad["message"]) == {"RuntimeError: nobody thought of it"}
    assert set(bad["reasons"]) == {"failed"}


def test_a_wrong_manifest_stops_before_any_work(stars, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("path\n" + "\n".join(stars[1]) + "\n" + stars[1][3] + "\n")
    with pytest.raises(FormatError, match=rf"m\.csv, line {N + 2}: .* is also in line 5"):
        measure_survey([], tmp_path / "rv", TEMPLATE, OBSERVATORY, manifest=path)
    assert not (tmp_path / "rv").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk must be a whole number, at least 1"),
        ({"workers": True}, ValueError, "workers must be"),
        ({"workers": 1, "scheduler": "tcp://x:1"}, ValueError, "not both"),
        ({"lsf": None}, TypeError, "lsf must be"),
        ({"windows": "green"}, ValueError, "windows must be"),
        ({"colour": 1}, TypeError, "colour"),
        ({"output": "no/such/rv"}, FileNotFoundError, "does not exist"),
        ({"output": "file"}, FileExistsError, "is a file"),
        ({"output": "."}, FileExistsError, "holds something else"),
    ],
)
def test_bad_arguments_leave_nothing_behind(stars, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    arguments = {"output": "rv", "lsf": OBSERVATORY, **changes}
    with pytest.raises(error, match=message):
        measure_survey(stars[0], templates=TEMPLATE, **arguments)
    assert not (tmp_path / "rv").exists()


def test_two_runs_cannot_write_to_one_folder(stars, results):
    with folder_lock(results / ".lock", 0.0), pytest.raises(TimeoutError, match="another run writes"):
        again(stars[0], results)


@pytest.fixture
def command():
    """``lamost-lsf rvs`` with a parser of its own."""
    import argparse

    def execute(*words):
        parser = argparse.ArgumentParser()
        add_parser(parser.add_subparsers())
        return run(parser.parse_args(["rvs", *map(str, words)]))

    return execute


def test_the_command_measures_and_takes_up(stars, tmp_path, command, capsys):
    from lamost_lsf.io import write_spectrum

    write_spectrum(TEMPLATE, tmp_path / "template.fits")
    (tmp_path / "m.txt").write_text("\n".join(path.rpartition("/")[2] for path in stars[1][:7]))
    words = [
        "--manifest", tmp_path / "m.txt", "--root", stars[0], "-o", tmp_path / "rv", "-t", tmp_path / "template.fits",
        "--simulated", "--window", 5000, 5300, "--velocity-range", -300, 300, "--chunk", 3,
    ]  # fmt: skip
    assert command(*words, "--json", "--table", tmp_path / "rv.fits") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["spectra"], said["before"], said["measured"], said["flagged"]) == (7, 0, 7, 0)
    assert_allclose(Table.read(tmp_path / "rv.fits")["rv"], stars[2][:7], atol=25)
    assert command(*words) == 0
    assert "7 spectra: 7 before, 0 now" in capsys.readouterr().err
    assert read_survey(tmp_path / "rv").meta["settings"]["lsf"]["model"]["kind"] == "Observatory"


def test_windows_of_the_command():
    assert _windows(None) is None
    assert _windows([["segments"]]) == "segments"
    assert_array_equal(_windows([["5000", "5300"]]).value, [5000, 5300])
    first, second = _windows([["blue"], ["6563"]])
    assert first == "blue"
    assert second == 6563 * u.AA
