"""The command line: what it prints can be relied on, errors are one line, and nothing half-written is left."""

import json
import os
import subprocess
import sys

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from astropy.time import Time
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import trapezoid
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf.cli import main
from lamost_lsf.cli._common import parse_time
from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template

COMMANDS = ("demo", "rv", "convolve", "profile", "plugins")
LABELS = ["--spectrograph", "3", "--fiber", "31", "--time", "2017-01-10T13:00"]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAMOST_LSF_DATA", raising=False)

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def error_line(result):
    """The one line of an error; nothing on stdout, no traceback."""
    code, out, err = result
    assert code == 1
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert "error: " in lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    """LAMOST-like file of a simulated star of -42 km/s, and the file of its template."""
    folder = tmp_path_factory.mktemp("star")
    template = synthetic_template(6000, wavelength_range=(4500, 5800) * u.AA)
    full = synthetic_template(6000)
    time = Time(["2017-01-10T13:00", "2017-01-10T13:33"])
    spectrum = simulate_star(
        full, Observatory(), time=time, fiber=31, spectrograph=3, velocity=-42 * u.km / u.s, snr=80, center="sersic",
        seed=4,
    )  # fmt: skip
    rows = np.array(
        [spectrum.flux.value, spectrum.uncertainty.array, spectrum.spectral_axis.value, spectrum.mask, spectrum.mask]
    )
    hdu = fits.PrimaryHDU(rows.astype("f4"))
    lmjm = "-".join(f"{m:.0f}" for m in ll.time.time_to_lmjm(time))
    hdu.header.update(TELESCOP="LAMOST", SPID=3, FIBERID=31, LMJMLIST=lmjm, HELIO=True, HELIO_RV=0.0, VACUUM=True)
    hdu.header.update(COEFF0=np.log10(spectrum.spectral_axis.value[0]), COEFF1=1e-4)
    hdu.writeto(folder / "spec.fits")
    np.savez(
        folder / "models.npz",
        wave_vac_A=template.spectral_axis.value,
        G=template.flux.value,
        flat=template.flux.value**0,
    )
    return folder / "spec.fits", folder / "models.npz"


# -- the command as such --------------------------------------------------------------------------------------


def test_version_and_help(run):
    code, out, _ = run("--version")
    assert (code, out.strip()) == (0, f"lamost-lsf {ll.__version__}")
    for command in COMMANDS:
        code, out, _ = run(command, "--help")
        assert code == 0
        # an example that can be copied: its options must be ones that the command has
        example = out[out.index("example") :]
        assert f"lamost-lsf {command}" in example
        options = [word for word in example.split() if word.startswith("-") and not word.strip("-").isdigit()]
        for option in options:
            assert option in out[: out.index("example")], (command, option)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["rv"], "required"),
        (["profile", "-w", "5000"], "one of the arguments"),
        (["profile", "-w", "x", "--resolving-power", "1800"], "invalid float value"),
        (["profile", "-w", "5000", "--resolving-power", "1800", "--simulated"], "not allowed with"),
        (["profile", "-w", "5000", "--simulated", "--time", "yesterday"], "neither a date"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_installed_command_and_broken_pipe():
    # a reader that stops early must not be answered with a traceback
    command = [sys.executable, "-c", "import sys; from lamost_lsf.cli import main; sys.exit(main())", "plugins"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=120) == 0
    assert errors == b""


def test_unexpected_errors_are_named_and_debug_shows_them(run, monkeypatch):
    def explode():
        raise ZeroDivisionError("half of nothing\nand more")

    monkeypatch.setattr("lamost_lsf.plugins.list_plugins", explode)
    line = error_line(run("plugins"))
    assert "ZeroDivisionError: half of nothing (unexpected" in line
    with pytest.raises(ZeroDivisionError):
        main(["plugins", "--debug"])


def test_interrupt_is_status_130(run, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("lamost_lsf.plugins.list_plugins", stop)
    code, _, err = run("plugins")
    assert (code, err) == (130, "lamost-lsf: interrupted\n")


def test_times(run):
    assert parse_time("2017-01-10T13:00") == Time("2017-01-10T13:00", scale="utc")
    # LMJM = MJD * 1440 + 480, here of a file name of 2011-10-24 19:32 Beijing time
    assert parse_time("80436692").isot == "2011-10-24T11:32:00.000"
    code, _, err = run("profile", "-w", 5000, "--simulated", "--time", "57763.5")
    assert code == 2
    assert "not a local modified Julian minute" in err


# -- plugins --------------------------------------------------------------------------------------------------


def test_plugins_lists_all_names(run):
    code, out, _ = run("plugins")
    assert code == 0
    for name in ("max", "centroid", "gauss", "sersic", "half", "fourier", "zero", "legendre", "polynomial"):
        assert f" {name} " in out
    code, out, _ = run("plugins", "--json")
    rows = json.loads(out)
    table = ll.list_plugins()
    assert code == 0
    assert [list(row) for row in rows] == [list(table.colnames)] * len(table)
    assert [row["name"] for row in rows] == [str(name) for name in table["name"]]


# -- profile --------------------------------------------------------------------------------------------------


def test_profile_of_a_gaussian(run):
    code, out, _ = run("profile", "--resolving-power", 1800, "-w", 4500, 5400, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["fwhm"] for row in rows] == pytest.approx([2.5, 3.0], rel=1e-4)
    for row in rows:
        assert (row["skewness"], row["half"], row["centroid"]) == pytest.approx((0, 0, 0), abs=1e-6)
        assert trapezoid(row["flux"], row["offset"]) == pytest.approx(1.0, abs=1e-6)


def test_profile_of_air_wavelength_is_that_of_its_vacuum_wavelength(run):
    # Hg I 4358.335 in air is 4359.560 in vacuum (NIST)
    _, air, _ = run("profile", "--simulated", *LABELS, "-w", 4358.335, "--medium", "air", "--json")
    _, vacuum, _ = run("profile", "--simulated", *LABELS, "-w", 4359.560, "--json")
    air, vacuum = json.loads(air)[0], json.loads(vacuum)[0]
    assert air["wavelength"] == pytest.approx(4359.560, abs=1e-3)
    assert_allclose(air["flux"], vacuum["flux"], atol=1e-6)


def test_profile_files(run, tmp_path):
    both = ["-w", 4500, 7000, "-o", "ip.ecsv", "--plot", "ip.png", "--center", "half", "Sersic"]
    code, out, err = run("profile", "--simulated", *LABELS, *both)
    assert code == 0
    assert "Sersic" in out
    assert err == "wrote ip.ecsv\nwrote ip.png\n"
    table = QTable.read(tmp_path / "ip.ecsv")
    assert set(table["wavelength"].value) == {4500.0, 7000.0}
    truth = Observatory().profile(
        spectrograph=3, fiber=31, time=Time("2017-01-10T13:00"), wavelength=7000 * u.AA
    ).normalized("area")  # fmt: skip
    assert_allclose(table["flux"][table["wavelength"].value == 7000].to_value(1 / u.AA), truth.flux, rtol=1e-12)
    assert (tmp_path / "ip.png").read_bytes().startswith(b"\x89PNG")
    assert "exists" in error_line(run("profile", "--simulated", *LABELS, *both))
    assert run("profile", "--simulated", *LABELS, *both, "--overwrite")[0] == 0


def test_profile_of_a_model_file(run, tmp_path):
    rng = np.random.default_rng(1)
    shapes = [(8, 3), (8, 8), (600, 8)]
    model = ll.NeuralIP(
        [rng.normal(size=s) * 0.1 for s in shapes],
        [np.zeros(8), np.zeros(8), np.exp(-0.5 * np.linspace(-6, 6, 600) ** 2)],
        label_min=[84e6, 0, 4000.0],
        label_max=[85e6, 249, 5500.0],
        offset=np.linspace(-8.335, 9.25, 600),
        meta={"arm": "blue", "spectrograph": 3, "season": 2019},
    )
    model.write(tmp_path / "03_b_2019.safetensors")
    labels = ["--fiber", 12, "--time", "84500000"]
    _, out, _ = run("profile", "--model", "03_b_2019.safetensors", *labels, "-w", 5000, "--json")
    time = ll.time.lmjm_to_time(84500000)
    expected = model.profile(time=time, fiber=12, wavelength=5000 * u.AA).normalized("area")
    assert_allclose(json.loads(out)[0]["flux"], expected.flux, rtol=1e-12)
    _, out, _ = run("profile", "--archive", ".", "--spectrograph", 3, *labels, "-w", 5000, "--json")
    assert_allclose(json.loads(out)[0]["flux"], expected.flux, rtol=1e-12)
    line = error_line(run("profile", "--model", "03_b_2019.safetensors", *labels, "-w", 9000))
    assert "pass --extrapolate to go beyond" in line
    line = error_line(run("profile", "--archive", ".", "--spectrograph", 4, *labels, "-w", 5000))
    assert "no model of spectrograph 4" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--simulated"], "pass --spectrograph, --fiber, --time"),
        (["--resolving-power", "-5"], "must be positive"),
        (["--model", "none.npz"], "no such file: none.npz"),
        (["--model", "model.txt"], "a model ends in"),
        (["--archive", "none"], "not a folder"),
        (["--archive", "."], "holds no IP model"),
        (["--resolving-power", "1800", "--center", "hlaf"], "half"),
        (["--resolving-power", "1800", "-o", "x.txt"], "a table can be"),
        (["--resolving-power", "1800", "--plot", "x.xyz"], "a plot can be"),
        (["--resolving-power", "1800", "-o", "no/x.ecsv"], "does not exist"),
        (["--simulated", *LABELS, "2017-01-10T13:33"], "of one time"),
    ],
)
def test_profile_errors(run, tmp_path, arguments, message):
    (tmp_path / "model.txt").write_text("no model")
    assert message in error_line(run("profile", "-w", 5000, *arguments))
    assert [p.name for p in tmp_path.iterdir()] == ["model.txt"]


# -- convolve -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seen.fits", "seen.ecsv"])
def test_convolve_writes_what_the_library_computes(run, star, tmp_path, name):
    path, models = star
    code, _, err = run("convolve", f"{models}::G", "--simulated", "--like", path, "-o", name)
    assert code == 0
    assert "'sersic' at lag 0" in err
    seen = Spectrum.read(tmp_path / name)
    spectrum = ll.read_lamost(path)
    expected = ll.convolve(ll.io.read_template(models, "G"), Observatory().lsf_for(spectrum), spectrum)
    assert_array_equal(seen.flux.value, expected.flux.value)
    assert_array_equal(seen.mask, expected.mask)
    assert_array_equal(seen.spectral_axis.value, spectrum.spectral_axis.value)
    # beyond the template there is nothing, not zeros
    assert seen.mask[0]
    assert np.isnan(seen.flux.value[0])
    assert seen.meta["kernel_center"] == "sersic"


def test_convolve_onto_grids(run, star, tmp_path):
    _, models = star
    common = ["convolve", f"{models}::flat", "--resolving-power", 1800]
    assert run(*common, "--range", 5000, 5001, "--step", 0.25, "-o", "linear.fits")[0] == 0
    linear = Spectrum.read(tmp_path / "linear.fits")
    assert_allclose(linear.spectral_axis.value, [5000, 5000.25, 5000.5, 5000.75, 5001], rtol=1e-14)
    assert_allclose(linear.flux.value, 1.0, atol=1e-9)
    assert run(*common, "--range", 5000, 5002, "--log-step", 1e-4, "-o", "log.fits")[0] == 0
    log = Spectrum.read(tmp_path / "log.fits")
    assert_allclose(np.log10(log.spectral_axis.value), np.log10(5000) + 1e-4 * np.arange(2), rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say on which pixels"),
        (["--range", 5000, 5100], "say on which pixels"),
        (["--range", 5100, 5000, "--step", 1], "increasing"),
        (["--range", 5000, 5100, "--step", -1], "must be positive"),
        (["--range", 5000, 5100, "--step", 1e-9], "at most 10 million"),
        (["--range", 5000, 5100, "--step", 1, "--center", "middle"], "middle"),
        (["--range", 5000, 5100, "--step", 1, "--like", "x.fits"], "not both"),
        (["--like", "none.fits"], "no such file"),
        (["--range", 9000, 9100, "--step", 1], "does not reach"),
    ],
)
def test_convolve_errors_write_nothing(run, star, tmp_path, arguments, message):
    _, models = star
    result = run("convolve", f"{models}::G", "--resolving-power", 1800, "-o", "seen.fits", *arguments)
    assert message in error_line(result)
    assert not list(tmp_path.iterdir())


def test_convolve_keeps_an_existing_file(run, star, tmp_path):
    (tmp_path / "seen.fits").write_text("precious")
    call = [
        "convolve",
        f"{star[1]}::G",
        "--resolving-power",
        1800,
        "--range",
        5000,
        5100,
        "--step",
        1,
        "-o",
        "seen.fits",
    ]
    assert "exists; --overwrite" in error_line(run(*call))
    assert (tmp_path / "seen.fits").read_text() == "precious"
    assert run(*call, "--overwrite")[0] == 0


# -- rv -------------------------------------------------------------------------------------------------------


def test_rv_of_a_simulated_star(run, star, tmp_path):
    path, models = star
    call = ["rv", path, "-t", f"{models}::G", "--simulated", "--window", 4900, 5400, "--velocity-range", -500, 500]
    code, out, _ = run(*call, "--json")
    assert code == 0
    (row,) = json.loads(out)
    # known truth: the measurement must hold within its own error
    assert abs(row["rv"] + 42.0) < 4 * row["rv_err"]
    assert 0.3 < row["rv_err"] < 5
    assert (row["template"], row["center"], row["frame"]) == ("G", "sersic", "heliocentric")
    code, out, err = run(*call, "-o", "rv.ecsv", "--plot", "rv.pdf")
    assert code == 0
    assert f"{row['rv']:.3f}" in out
    assert err == "wrote rv.ecsv\nwrote rv.pdf\n"
    table = QTable.read(tmp_path / "rv.ecsv")
    assert table["rv"][0].to_value(u.km / u.s) == pytest.approx(row["rv"], rel=1e-12)
    assert (tmp_path / "rv.pdf").read_bytes().startswith(b"%PDF")


def test_rv_of_several_windows(run, star):
    path, models = star
    call = ["rv", path, "-t", f"{models}::G", "--simulated", "--velocity-range", -500, 500, "--json"]
    _, out, _ = run(*call, "--window", 4900, 5100, "--window", 5250)
    rows = json.loads(out)
    assert [(row["window_low"], row["window_high"]) for row in rows] == [(4900.0, 5100.0), (5100.0, 5400.0)]


def test_one_bad_file_does_not_cost_the_others(run, star, tmp_path):
    path, models = star
    (tmp_path / "bad.fits").write_bytes(path.read_bytes()[:5000])
    call = ["-t", f"{models}::G", "--resolving-power", 1800, "--window", 4900, 5400, "--velocity-range", -500, 500]
    code, out, err = run("rv", "bad.fits", path, *call, "--json")
    assert code == 1
    rows = json.loads(out)
    assert "rv" in rows[0]
    assert rows[1]["file"] == "bad.fits"
    assert "bad.fits" in rows[1]["error"]
    assert len(err.splitlines()) == 1


def test_mixed_centres_warn_in_one_line(run, star):
    path, models = star
    call = ["-t", f"{models}::G", "--simulated", "--window", 4900, 5400, "--velocity-range", -500, 500]
    code, _, err = run("rv", path, *call, "--center", "centroid")
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith("lamost-lsf: warning: ")
    assert "'sersic'" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", 1, 2, 3], "one wavelength or two"),
        (["--window", 4900, 5100, "--window", 5250, "--plot", "rv.png"], "one spectrum and one window"),
        (["--window", 5400, 4900], "increasing"),
        (["--window", 20000], "does not overlap"),
        (["--velocity-range", 500, -500], "increasing"),
        (["--extension", "COADD_R"], "no extension 'COADD_R'"),
        (["--degree", -1], "degree"),
        ([], "covers"),
    ],
)
def test_rv_errors(run, star, tmp_path, arguments, message):
    path, models = star
    assert message in error_line(run("rv", path, "-t", f"{models}::G", "--resolving-power", 1800, *arguments))
    assert not list(tmp_path.iterdir())


def test_rv_of_things_that_are_no_spectra(run, star, tmp_path):
    path, models = star
    options = ["-t", f"{models}::G", "--resolving-power", 1800]
    assert "no such file" in error_line(run("rv", "none.fits", *options))
    (tmp_path / "empty.fits").write_bytes(b"")
    assert "empty.fits" in error_line(run("rv", "empty.fits", *options))
    (tmp_path / "text.txt").write_text("a b\n1 2\n")
    assert "text.txt" in error_line(run("rv", "text.txt", *options))
    assert "is not a LAMOST file" in error_line(run("rv", "text.txt", *options, "--extension", "COADD_B"))
    assert "no template 'X'" in error_line(run("rv", path, "-t", f"{models}::X", "--resolving-power", 1800))


# -- demo -----------------------------------------------------------------------------------------------------


def test_demo_without_data(run, tmp_path):
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    assert (tmp_path / "lamost-lsf-demo.png").read_bytes().startswith(b"\x89PNG")
    assert len(out.splitlines()) <= 8
    line = next(line for line in out.splitlines() if line.startswith("RV"))
    velocity, error = float(line.split()[1]), float(line.split()[3])
    assert abs(velocity + 42.0) < 4 * error
    assert "true -42.00" in line
    # again: the demonstration's own picture is replaced
    assert run("demo")[0] == 0


def test_demo_says_when_the_data_folder_has_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LAMOST_LSF_DATA", str(tmp_path))
    code, out, _ = run("demo", "--output", "picture.pdf")
    assert code == 0
    assert "simulated instead" in out
    assert (tmp_path / "picture.pdf").exists()


def test_demo_into_a_folder_that_is_not_there(run):
    assert "does not exist" in error_line(run("demo", "--output", os.path.join("none", "x.png")))


def test_demo_with_real_data(run, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("LAMOST_LSF_DATA", str(data_dir))
    code, out, _ = run("demo")
    assert code == 0
    assert "lte0" in out
    line = next(line for line in out.splitlines() if line.startswith("RV"))
    velocity, pipeline = float(line.split()[1]), float(line.split("pipeline")[1].strip(" )"))
    # two independent measurements of one spectrum; LAMOST's own scatter is some 4 km/s
    assert abs(velocity - pipeline) < 15.0
    assert (tmp_path / "lamost-lsf-demo.png").exists()


def test_rv_of_real_spectra(run, data_dir):
    spectra = sorted((data_dir / "lamost/lrs_repeats_dr8").glob("spec-55859-F5907_sp10-2*"))[:2]
    templates = next((data_dir / "templates/phoenix").glob("*.npz"))
    call = ["-t", templates, "--resolving-power", 1800, "--window", 4900, 5400, "--velocity-range", -500, 500]
    code, out, _ = run("rv", *spectra, *call, "--json")
    assert code == 0
    for row, path in zip(json.loads(out), spectra, strict=True):
        assert abs(row["rv"] - ll.read_lamost(path).meta["z"] * 299792.458) < 15.0


def test_a_model_with_other_labels_takes_them(run, tmp_path):
    x = np.linspace(-8.335, 9.25, 600)
    wide, narrow = (np.exp(-0.5 * (x / sigma) ** 2) for sigma in (1.35, 1.05))
    model = ll.NeuralIP(
        [np.stack([*np.zeros((3, 600)), wide - narrow], axis=1)], [0.5 * (wide + narrow)], offset=x,
        extra_labels={"temperature": 5.0}, label_min=[82_820_000, 0, 4046.565, -10],
        label_max=[83_190_000, 249, 5790.670, 20],
    )  # fmt: skip
    path = tmp_path / "01_b_2017.safetensors"
    model.write(path)
    where = ["--time", "2017-01-05T14:00", "--fiber", 12, "-w", 5000, "--json"]
    for choice in (["--model", path], ["--archive", tmp_path, "--spectrograph", 1]):
        widths = []
        for label in ("temperature=-10", "median", "temperature=20"):
            code, out, _ = run("profile", *choice, *where, "--label", label)
            assert code == 0
            widths.append(json.loads(out)[0]["fwhm"])
        assert widths[0] == pytest.approx(2.3548 * 1.05, rel=1e-3)
        assert widths[2] == pytest.approx(2.3548 * 1.35, rel=1e-3)
        assert widths[0] < widths[1] < widths[2]
        for label, message in (([], "temperature"), (["--label", "temperature=50"], "got 50")):
            code, _, err = run("profile", *choice, *where, *label)
            assert code != 0
            assert message in err
    code, _, err = run("profile", "--model", path, *where, "--label", "warm")
    assert code != 0
    assert "NAME=VALUE" in err
