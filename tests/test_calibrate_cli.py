"""``lamost-lsf calibrate``: what a script reads, what is written, what is refused."""

import argparse
import json

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from astropy.time import Time

from lamost_lsf.arcs import ArcExposure
from lamost_lsf.calibration import calibrate as library_calibrate
from lamost_lsf.cli import calibrate
from lamost_lsf.cli._common import CommandError
from lamost_lsf.instruments import get_instrument
from lamost_lsf.simulation import SimulatedIP, simulate_arc
from lamost_lsf.wavelength import WavelengthSolution


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        parser = argparse.ArgumentParser()
        calibrate.add_parser(parser.add_subparsers())
        code = calibrate.run(parser.parse_args(["calibrate", *map(str, arguments)]))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def exposure():
    arc = simulate_arc(SimulatedIP("red"), Time("2018-01-10T15:00"), fiber=[100, 101, 102], dead_fibers=0)
    return ArcExposure.from_simulation(arc, instrument="lamost-lrs-red")


def test_exposure(run, exposure, tmp_path):
    """The library's result, printed, and the exposure on the new scale."""
    exposure.write(tmp_path / "arc.fits")
    code, out, err = run("arc.fits", "--lines", "lamost-lrs-red", "--center", "sersic", "-o", "new.fits", "--json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["n_fiber"], summary["n_solved"], summary["center"]) == (3, 3, "sersic")
    assert summary["fibers"][1]["fiber"] == 101
    assert "new.fits" in err
    again = ArcExposure.read(tmp_path / "new.fits")
    expected = library_calibrate(exposure, get_instrument("lamost-lrs-red").lines, center="sersic")
    np.testing.assert_allclose(again.wavelength, expected.wavelength().value, rtol=0, atol=1e-9)
    assert again.meta["wavelength_center"] == "sersic"
    with pytest.raises(CommandError, match="--overwrite"):
        run("arc.fits", "--lines", "lamost-lrs-red", "-o", "new.fits")
    code, _, _ = run("arc.fits", "--lines", "lamost-lrs-red", "-o", "fibers.ecsv")
    assert len(Table.read(tmp_path / "fibers.ecsv")) == 3


def test_counts_in_a_text_file_with_and_without_rough_scale(run, exposure, tmp_path):
    np.savetxt(tmp_path / "arc.txt", exposure.flux[0])
    lines = get_instrument("lamost-lrs-red").lines
    rows = "\n".join(f"{s},{w:.4f}" for s, w in zip(lines.species, lines.air, strict=True))
    (tmp_path / "lines.csv").write_text("species,wavelength\n" + rows + "\n")
    solution = library_calibrate(exposure.flux[0], lines, rough=exposure.wavelength[0] * u.AA)
    solution.write(tmp_path / "rough.asdf")
    code, out, _ = run(
        "arc.txt", "-l", "lines.csv", "--medium", "air", "--rough", "rough.asdf", "-o", "new.ecsv", "--json"
    )
    assert code == 0
    summary = json.loads(out)
    assert summary["n_used"] == solution.n_used
    assert {"species", "wavelength", "pixel", "residual", "used", "reason"} == set(summary["lines"][0])
    new = WavelengthSolution.read(tmp_path / "new.ecsv")
    assert abs(new(2000) - solution(2000)) < 0.005 * u.AA
    code, out, _ = run("arc.txt", "-l", "lines.csv", "--medium", "air", "--rough", "rough.asdf", "--degree", "auto")
    assert "leave-one-out" in out


def test_what_is_refused(run, exposure, tmp_path):
    exposure.write(tmp_path / "arc.fits")
    np.savetxt(tmp_path / "arc.txt", exposure.flux[0])
    (tmp_path / "words.txt").write_text("no numbers\n")
    (tmp_path / "lines.csv").write_text("species,wavelength\nNe I,6402.248\n")
    with pytest.raises(CommandError, match="no such file"):
        run("none.fits", "--lines", "lamost-lrs-red")
    with pytest.raises(CommandError, match="neither a file nor the name"):
        run("arc.fits", "--lines", "lamost-lrs-green")
    with pytest.raises(CommandError, match="--medium"):
        run("arc.txt", "--lines", "lines.csv")
    with pytest.raises(CommandError, match="--degree"):
        run("arc.fits", "--lines", "lamost-lrs-red", "--degree", "five")
    with pytest.raises(CommandError, match=r"\.asdf or \.ecsv"):
        run("arc.txt", "--lines", "lamost-lrs-red", "-o", "new.fits")
    with pytest.raises(ValueError, match="no table of numbers"):
        run("words.txt", "--lines", "lamost-lrs-red")
    with pytest.raises(ValueError, match="zero"):
        run("arc.fits", "--lines", "lamost-lrs-red", "--center", "zero")
    assert not list(tmp_path.glob("new*"))
