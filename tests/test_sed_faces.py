"""Figures and commands about SEDs."""

from __future__ import annotations

import argparse
import json

import astropy.units as u
import numpy as np
import pytest
import sed_stars
from astropy.io import fits
from astropy.table import Table

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

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
    assert sed.SEDModel.read(model).meta["split"] == {"test_share": 0.25, "seed": 0}
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


def test_finetune_makes_an_ensemble(model, folder, tmp_path):
    path = tmp_path / "tuned.safetensors"
    assert run("finetune", model, folder, *LIBRARY, "-o", path, "--epochs", 1, "--ensemble", 2, "--quantiles", 1) == 0
    tuned = sed.SEDModel.read(path)
    assert len(tuned.networks) == 2
    assert set(Table.read(path.with_suffix(".history.ecsv"))["phase"]) == {"finetune", "quantiles"}
    assert sorted(set(Table.read(path.with_suffix(".history.ecsv"))["network"])) == [0, 1]


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
