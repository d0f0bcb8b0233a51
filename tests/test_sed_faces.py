"""Figures and commands about SEDs."""

from __future__ import annotations

import argparse
import dataclasses
import json

import astropy.units as u
import numpy as np
import pytest
import sed_stars
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.table import Table
from specutils import Spectrum

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from matplotlib.legend import Legend  # noqa: E402

from lamost_lsf import sed  # noqa: E402
from lamost_lsf.cli import sed as command  # noqa: E402
from lamost_lsf.cli._common import CommandError  # noqa: E402
from lamost_lsf.sed import figures  # noqa: E402
from lamost_lsf.sed.evaluation import Residuals  # noqa: E402


@pytest.fixture(scope="module")
def residuals():
    rng = np.random.default_rng(0)
    grid = sed.WavelengthGrid(100, 3050, 10500)
    n = 60
    sigma = np.where(grid.wavelength < 4200, 0.1, 0.01) * np.ones((n, 1))
    true = np.ones((n, len(grid))) * (grid.wavelength / 5556) ** -1.5
    residual = rng.normal(0, 1, sigma.shape) * sigma + 0.002
    residual[:, -20:] = np.nan
    group, snr = np.array(["F", "G"])[np.arange(n) % 2], np.array([20.0, 40.0, 80.0])[np.arange(n) // 2 % 3]
    return Residuals(grid, residual, sigma, group, snr, np.arange(n), true * (1 + residual), true)


def test_residual_curves_show_medians_scatter_and_predicted_errors(residuals):
    figure = figures.plot_residual_curves(residuals)
    assert len(figure.axes) == 4
    left, right = figure.axes[:2]
    assert left.get_legend().get_texts()[0].get_text() == "SNR 20"
    curve = residuals.select("F", 20.0).by_wavelength()
    np.testing.assert_allclose(left.lines[0].get_ydata(), curve["median"])
    np.testing.assert_allclose(right.lines[0].get_ydata(), curve["scatter"])
    np.testing.assert_allclose(right.lines[1].get_ydata(), curve["sigma"])
    # what is not known is not drawn
    assert left.lines[0].get_xdata().max() < residuals.grid.wavelength[-20]


def test_error_comparison_lies_on_the_diagonal_where_errors_are_true(residuals):
    ax = figures.plot_error_comparison(residuals)
    points = np.array([[line.get_xdata()[0], line.get_ydata()[0]] for line in ax.lines[:-1]])
    assert len(points) == 5 * 6
    assert np.median(points[:, 1] / points[:, 0]) == pytest.approx(1.1, abs=0.2)  # of ten values each
    with pytest.raises(ValueError, match="none of the wavelengths"):
        figures.plot_error_comparison(residuals, wavelength=[2000.0])


def by_temperature(residuals, bins, levels):
    """The same residuals in groups of Teff and at other SNRs."""
    k = np.arange(len(residuals.residual))
    group = np.array([f"{t}-{t + 1000} K" for t in range(3000, 3000 + 1000 * bins, 1000)])[k % bins]
    return dataclasses.replace(residuals, group=group, snr=np.array(levels, dtype=float)[k // bins % len(levels)])


def looks(line):
    return line.get_marker(), line.get_fillstyle()


def test_every_pair_of_class_and_snr_looks_different_and_is_in_the_legend(residuals):
    many = by_temperature(residuals, 10, [20, 40, 80])
    ax = figures.plot_error_comparison(many, wavelength=[4252.0])
    points = ax.lines[:-1]
    assert len(points) == len({looks(point) for point in points}) == 30
    upper, lower = (child for child in ax.get_children() if isinstance(child, Legend))
    assert [text.get_text() for text in upper.get_texts()] == [r"4252 $\mathrm{\AA}$"]
    names = [text.get_text() for text in lower.get_texts()]
    assert names == [f"{t}-{t + 1000} K" for t in range(3000, 13000, 1000)] + ["SNR 20", "SNR 40", "SNR 80"]
    told = dict(zip(names, map(looks, lower.legend_handles), strict=True))
    for group in set(many.group):
        for snr in (20.0, 40.0, 80.0):
            curve = many.select(group, snr).by_wavelength()
            k = np.argmin(np.abs(curve["wavelength"].value - 4252.0))
            (point,) = (
                p for p in points if (p.get_xdata()[0], p.get_ydata()[0]) == (curve["scatter"][k], curve["sigma"][k])
            )
            assert looks(point) == (told[group][0], told[f"SNR {snr:g}"][1])


def test_no_snr_and_no_wavelength_is_left_out(residuals):
    seven = by_temperature(residuals, 2, [10, 20, 25, 30, 35, 40, 80])
    figure = figures.plot_residual_curves(seven)
    left = figure.axes[0]
    assert len(left.lines) == 7 + 1
    assert len({str(line.get_color()) for line in left.lines[:-1]}) == 7
    assert [text.get_text() for text in left.get_legend().get_texts()][:2] == ["SNR 10", "SNR 20"]
    at = [3205.0, 3429.0, 4252.0, 5000.0, 6000.0, 7206.0, 9207.0]
    ax = figures.plot_error_comparison(residuals.select("F", 20.0), wavelength=at)
    assert len(ax.lines) == 7 + 1
    assert len({str(line.get_color()) for line in ax.lines[:-1]}) == 7
    with pytest.raises(ValueError, match=r"7 SNRs: the markers tell 13 and 6 apart"):
        figures.plot_error_comparison(seven)


def test_classes_of_one_spectrum_are_left_out(residuals):
    group, snr = residuals.group.copy(), residuals.snr.copy()
    group[0], group[1], snr[1] = "A", "G", 160.0
    odd = dataclasses.replace(residuals, group=group, snr=snr)
    assert len(figures.plot_residual_curves(odd).axes) == 4
    assert len(figures.plot_error_comparison(odd, wavelength=[4252.0]).lines) == 6 + 1
    with pytest.raises(ValueError, match="needs two spectra"):
        figures.plot_residual_curves(dataclasses.replace(residuals, group=np.arange(60).astype(str)))


@pytest.mark.parametrize("names", [["5000-7500", "7500-10000", "10000-12000"], ["-2--1", "-1-0", "0-0.5"], list("AFG")])
def test_classes_stand_in_their_order(residuals, names):
    shuffled = dataclasses.replace(residuals, group=np.array(names[::-1])[np.arange(60) % 3])
    figure = figures.plot_residual_curves(shuffled)
    assert [ax.get_title(loc="left") for ax in figure.axes[::2]] == names


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_examples_leave_no_empty_axes(residuals, n):
    figure = figures.plot_examples(residuals, list(range(n)))
    assert len(figure.axes) == 2 * n
    assert all(ax.lines for ax in figure.axes)
    labelled = [ax for ax in figure.axes if ax.get_xlabel()]
    assert len(labelled) == (2 if n == 4 else min(n, 3))
    figure.canvas.draw()
    for ax in labelled:
        assert any(tick.label1.get_visible() for tick in ax.xaxis.get_major_ticks())


def test_map_is_ranked(residuals):
    order = np.random.default_rng(1).uniform(5000, 9750, 60)
    ax = figures.plot_residual_map(residuals, order)
    drawn = ax.collections[0].get_array().reshape(60, -1)
    np.testing.assert_allclose(drawn[0], residuals.residual[np.argmin(order)])
    with pytest.raises(ValueError, match="order must have"):
        figures.plot_residual_map(residuals, order[:5])


def test_other_figures_draw_what_they_are_given(residuals):
    ax = figures.plot_rmsae(residuals, np.linspace(0, 0.1, 60))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), residuals.rmsae)
    ax = figures.plot_residual_lines(residuals, systematic=(np.array([4000.0, 7000.0]), np.array([0.0, 0.01])))
    assert "systematic difference" in [t.get_text() for t in ax.get_legend().get_texts()]
    figure = figures.plot_examples(residuals, [0, 1, 2, 3])
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), residuals.sed[0])
    empty = residuals.select("none")
    for draw in (figures.plot_residual_curves, figures.plot_error_comparison, figures.plot_residual_lines):
        with pytest.raises(ValueError, match="no residuals"):
            draw(empty)
    with pytest.raises(ValueError, match="name the stars"):
        figures.plot_examples(residuals, [])


def test_eight_predictions_have_eight_colours():
    axis = np.linspace(4000.0, 7000.0, 20) * u.AA
    flux = np.ones((8, 20)) * np.arange(1.0, 9.0)[:, None]
    spectra = Spectrum(flux=flux * u.one, spectral_axis=axis, uncertainty=StdDevUncertainty(0.1 * flux))
    ax = figures.plot_predictions(spectra, [f"s{i}" for i in range(8)])
    assert len({str(line.get_color()) for line in ax.lines}) == len(ax.get_legend().get_texts()) == 8


# -- commands -----------------------------------------------------------------------------------------------------


def run(*argv):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command")).add_argument("--debug", action="store_true")
    return command.run(parser.parse_args(["sed", *map(str, argv)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A library in redrock's format: a basis of three vectors and coefficients."""
    folder = tmp_path_factory.mktemp("redrock")
    w = np.arange(4400.0, 6800.0, 0.5)
    lines = sum(np.exp(-0.5 * ((w - line) / 8) ** 2) for line in sed_stars.LINES[1:5])
    basis = np.stack([np.ones(w.size), (w / 5556 - 1), -0.4 * lines])
    rng = np.random.default_rng(0)
    for kind in "FG":
        x = rng.uniform(-0.5, 0.5, 40)
        hdu = fits.PrimaryHDU(basis)
        hdu.header.update(CRVAL1=w[0], CDELT1=0.5, RRTYPE="STAR", RRSUBTYP=kind, EXTNAME="BASIS_VECTORS")
        coefficients = np.column_stack([np.ones(40), x, 0.8 + x])
        fits.HDUList([hdu, fits.ImageHDU(coefficients, name="ARCHETYPE_COEFF")]).writeto(
            folder / f"rrtemplate-STAR-{kind}-v0.1.fits"
        )
    return folder


LIBRARY = ("--library", "redrock", "--types", "FG", "--positive")
GRIDS = ("--input-range", 4900, 6100, "--input-r", 600, "--output-range", 4700, 6500, "--output-r", 100)


@pytest.fixture(scope="module")
def model(folder):
    path = folder / "model.safetensors"
    assert run("train", folder, *LIBRARY, *GRIDS, "-o", path, "--epochs", 15, "--batch-size", 16) == 0
    return path


def test_train_writes_model_and_history(model):
    split = {"test_share": 0.25, "seed": 0, "types": "FG", "positive": True}
    assert sed.SEDModel.read(model).meta["split"] == split
    history = Table.read(model.with_suffix(".history.ecsv"))
    assert history["validation_loss"][-1] < history["validation_loss"][0] or len(history) == 1
    assert not model.with_suffix(".checkpoint").exists()
    with pytest.raises(CommandError, match="exists"):
        run("train", model.parent, *LIBRARY, *GRIDS, "-o", model)


def test_evaluate_reports_by_class_and_snr(model, folder, tmp_path, capsys):
    arguments = ("evaluate", model, folder, *LIBRARY, "--snr", 20, 40)
    assert run(*arguments, "--json", "-o", tmp_path / "t.ecsv", "--plot", tmp_path / "t.png") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["group"], row["snr"]) for row in rows} == {("F", 20), ("F", 40), ("G", 20), ("G", 40)}
    assert {row["n"] for row in rows} == {10}
    assert len(Table.read(tmp_path / "t.ecsv")) == len(rows)
    assert (tmp_path / "t.png").stat().st_size > 5000
    assert run(*arguments, "--all") == 0
    assert " 40 " in capsys.readouterr().out


def test_evaluate_sets_the_stars_aside_that_the_training_did(model, folder, tmp_path, capsys):
    tuned = tmp_path / "tuned.safetensors"
    half = ("--test-share", 0.5, "--split-seed", 3)
    assert run("finetune", model, folder, *LIBRARY, *half, "-o", tuned, "--epochs", 1) == 0
    capsys.readouterr()
    assert run("evaluate", tuned, folder, *LIBRARY, "--snr", 20, "--json") == 0
    told = capsys.readouterr()
    assert {row["n"] for row in json.loads(told.out)} == {20}
    assert "trained with another" not in told.err
    assert run("evaluate", tuned, folder, *LIBRARY, "--snr", 20, "--split-seed", 1, "--distinct") == 0
    assert "trained with another distinct, seed" in capsys.readouterr().err


def test_inputs_are_made_with_the_profile_of_a_spectrum(folder, data_dir, tmp_path):
    spectrum = sorted((data_dir / "lamost/lrs_misc").glob("spec-*sp01-*.fits.gz"))[0]
    path = tmp_path / "lsf.safetensors"
    arguments = ("train", folder, *LIBRARY, *GRIDS, "-o", path, "--epochs", 1, "--batch-size", 16)
    assert run(*arguments, "--lsf-of", spectrum, "--simulated") == 0
    assert sed.SEDModel.read(path).meta["n_train"] == 60
    with pytest.raises(CommandError, match="needs --archive"):
        run(*arguments, "--overwrite", "--lsf-of", spectrum)
    with pytest.raises(CommandError, match="go with --lsf-of"):
        run(*arguments, "--overwrite", "--simulated")
    with pytest.raises(CommandError, match="not both"):
        run(*arguments, "--overwrite", "--simulated", "--lsf-of", spectrum, "--fwhm", 9)


def test_finetune_makes_an_ensemble(model, folder, tmp_path):
    path = tmp_path / "tuned.safetensors"
    assert run("finetune", model, folder, *LIBRARY, "-o", path, "--epochs", 1, "--ensemble", 2, "--quantiles", 1) == 0
    tuned = sed.SEDModel.read(path)
    assert len(tuned.networks) == 2
    assert set(Table.read(path.with_suffix(".history.ecsv"))["phase"]) == {"finetune", "quantiles"}
    assert sorted(set(Table.read(path.with_suffix(".history.ecsv"))["network"])) == [0, 1]


def test_folds_tell_the_errors_and_distinct_drops_copies(model, folder, tmp_path, capsys):
    path = tmp_path / "folds.safetensors"
    arguments = ("finetune", model, folder, *LIBRARY, "-o", path, "--epochs", 1, "--distinct", "--json")
    assert run(*arguments, "--folds", 2, "--error-snr", 20, "inf") == 0
    assert json.loads(capsys.readouterr().out)["n_train"] == 63
    tuned = sed.SEDModel.read(path)
    assert len(tuned.networks) == 2
    # infinity counts as the highest SNR that was trained with
    np.testing.assert_array_equal(tuned.error_scale.snr, [20, 40])
    assert tuned.meta["errors"] == {"spectra": 63, "snr": [20, 40]}
    assert not list(tmp_path.glob("*checkpoint*"))
    with pytest.raises(CommandError, match="--folds must"):
        run(*arguments, "--overwrite", "--folds", 1)
    with pytest.raises(CommandError, match="goes with --folds"):
        run(*arguments, "--overwrite", "--error-snr", 20)
    with pytest.raises(SystemExit):
        run(*arguments, "--folds", 2, "--ensemble", 2)


def test_predict_writes_seds_and_goes_on_after_a_bad_file(model, folder, tmp_path, capsys):
    library = sed.read_library("redrock", folder, types="F")
    star = library.degrade(sed.WavelengthGrid(4343, 4800, 6300).spectral_axis, resolving_power=600)
    from astropy.nddata import StdDevUncertainty
    from specutils import Spectrum

    flux = star.flux[0] * 100
    noisy = flux + np.random.default_rng(0).normal(0, flux / 30)
    spectrum = Spectrum(
        flux=noisy * u.Unit("erg / (s cm2 AA)"), spectral_axis=star.wavelength * u.AA,
        uncertainty=StdDevUncertainty(flux / 30),
    )  # fmt: skip
    good, bad = tmp_path / "good.fits", tmp_path / "bad.fits"
    spectrum.write(good, format="tabular-fits")
    bad.write_bytes(b"nothing")
    code = run(
        "predict", model, good, bad, "--rv", 0, "--json", "-o", tmp_path / "s.fits", "--plot", tmp_path / "s.png"
    )
    assert code == 1
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["flags"] == 0
    assert "error" in rows[1]
    table = Table.read(tmp_path / "s.fits")
    assert table["sed"].shape == table["error"].shape == table["wavelength"].shape
    true = sed.scale_sed(
        library.degrade(sed.WavelengthGrid(100, 4700, 6500).spectral_axis, resolving_power=100).flux[0],
        sed.WavelengthGrid(100, 4700, 6500),
    )[0]
    assert np.median(np.abs(table["sed"][0] / true - 1)) < 0.05
    assert (tmp_path / "s.png").exists()
    with pytest.raises(CommandError, match="no such file"):
        run("predict", model, tmp_path / "none.fits")


def test_choices_that_leave_nothing_are_refused(model, folder, tmp_path):
    with pytest.raises(CommandError, match="0 stars"):
        run("evaluate", model, folder, *LIBRARY, "--teff", 5000, 6000)
    with pytest.raises(ValueError, match="0 of 80 spectra are whole and labelled"):
        run("evaluate", model, folder, *LIBRARY, "--clean")
    with pytest.raises(CommandError, match="ends in"):
        run("train", folder, *LIBRARY, "-o", tmp_path / "model.npz")
    with pytest.raises(ValueError, match="no library"):
        run("evaluate", model, folder, "--library", "mine")
