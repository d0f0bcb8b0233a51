"""Grids, continuum, sets of spectra and inputs of observed spectra: what needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
import sed_stars
from astropy.nddata import InverseVariance, StdDevUncertainty
from hypothesis import given, settings
from hypothesis import strategies as st
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf import sed
from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.units import vacuum_to_air


def test_grids_of_the_paper():
    assert (len(sed.INPUT_GRID), len(sed.OUTPUT_GRID)) == (2238, 574)
    w = sed.INPUT_GRID.wavelength
    # two pixels for each resolution element lambda / R
    np.testing.assert_allclose(np.diff(w) / w[:-1], 1 / 4000, rtol=2e-4)
    assert w[0] == 4000.0
    assert w[-1] < 7000.0 < w[-1] * np.exp(1 / 4000) * (1 + 1 / 4000)


@given(st.floats(50, 3000), st.floats(2500, 6000), st.floats(1.2, 3))
@settings(max_examples=50, deadline=None)
def test_a_grid_stays_in_its_range_and_survives_json(power, start, ratio):
    grid = sed.WavelengthGrid(power, start, start * ratio)
    assert grid.wavelength[0] == pytest.approx(start)
    assert grid.wavelength[-1] <= grid.stop
    assert sed.WavelengthGrid.from_dict(grid.to_dict()) == grid


@pytest.mark.parametrize("values", [(0, 4000, 7000), (2000, 7000, 4000), (2000, -1, 7000), (np.nan, 4000, 7000)])
def test_impossible_grids_are_refused(values):
    with pytest.raises(ValueError, match="must be"):
        sed.WavelengthGrid(*values)


def _brute_force_average(flux, window, mask):
    out = np.empty(flux.size)
    for i in range(flux.size):
        near = [j for j in range(flux.size) if abs(j - i) <= window // 2 and not mask[j]]
        out[i] = np.mean(flux[near]) if near else np.nan
    return out


def test_moving_average_takes_all_pixels_of_a_short_side_and_no_masked_ones():
    rng = np.random.default_rng(0)
    flux, mask = rng.normal(10, 1, 150), rng.random(150) < 0.2
    flux[mask] = np.nan
    np.testing.assert_allclose(sed.moving_average(flux, 51, mask), _brute_force_average(flux, 51, mask), rtol=1e-12)


@given(st.floats(1e-3, 1e6), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_normalised_flux_does_not_know_the_scale(scale, seed):
    flux = np.random.default_rng(seed).uniform(0.5, 1.5, 200)
    first, _ = sed.normalize_flux(flux)
    second, continuum = sed.normalize_flux(scale * flux)
    np.testing.assert_allclose(second, first, rtol=1e-9)
    np.testing.assert_allclose(continuum * second, scale * flux, rtol=1e-9)


def test_reference_flux_must_be_positive():
    flux = np.ones((2, 574))
    flux[1] = 0.0
    with pytest.raises(ValueError, match="1 of 2"):
        sed.scale_sed(flux, sed.OUTPUT_GRID)
    with pytest.raises(ValueError, match="reference band"):
        sed.scale_sed(-flux[0], sed.OUTPUT_GRID)
    with pytest.raises(ValueError, match="no pixel"):
        sed.scale_sed(np.ones(100), sed.WavelengthGrid(200, 6000, 8000))
    with pytest.raises(ValueError, match="not positive"):
        sed.normalize_flux(np.zeros(100))


def test_sets_are_split_by_star_within_groups():
    spectra = sed_stars.spectra(40)
    twice = spectra.take(np.r_[np.arange(40), np.arange(40)])  # every star has two spectra
    train, test = twice.split(0.75, seed=3)
    assert not set(train.star) & set(test.star)
    assert len(train) == 60
    assert sorted(np.unique(train.group, return_counts=True)[1]) == [30, 30]
    again, _ = twice.split(0.75, seed=3)
    assert list(again.star) == list(train.star)
    with pytest.raises(ValueError, match="share"):
        twice.split(1.0)


def test_sets_refuse_what_cannot_be_trained_on():
    spectra = sed_stars.spectra(4)
    parts = {k: getattr(spectra, k) for k in ("flux", "sed", "star", "group", "input_grid", "output_grid")}
    bad = spectra.flux.copy()
    bad[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        sed.SpectralSet(**parts | {"flux": bad})
    with pytest.raises(ValueError, match="positive"):
        sed.SpectralSet(**parts | {"sed": -spectra.sed})
    with pytest.raises(ValueError, match="shape"):
        sed.SpectralSet(**parts | {"star": spectra.star[:2]})


def test_prepared_inputs_have_the_resolution_asked_for():
    # a line much narrower than the LSF becomes the LSF: its equivalent width and its variance are known
    w = np.arange(3500.0, 8000.0, 0.1)
    flux = 1.0 - 0.9 * np.exp(-0.5 * ((w - 5200.0) / 0.4) ** 2)
    library = sed.Library("line", sed_stars.library(1).table, w, flux[None])
    wide = sed.WavelengthGrid(200, 4000, 7500)
    for options, fwhm in (({}, 5200 / 2000), ({"input_lsf": ll.GaussianIP(1500)}, 5200 / 1500)):
        spectra = sed.prepare_set(library, output_grid=wide, **options)
        x, depth = sed.INPUT_GRID.wavelength, 1.0 - spectra.flux[0].astype(float)
        step = np.gradient(x)
        near = np.abs(x - 5200) < 15
        area = np.sum((depth * step)[near])
        assert area == pytest.approx(0.9 * 0.4 * np.sqrt(2 * np.pi), rel=0.01)
        sigma = np.sqrt(np.sum((depth * step * (x - 5200) ** 2)[near]) / area)
        assert sigma == pytest.approx(np.hypot(fwhm / 2.35482, 0.4), rel=0.02)


def test_copies_are_one_star():
    library = sed_stars.library(20, seed=2)
    rows = np.r_[np.arange(20), np.arange(5), 3]
    flux = library.flux[rows]
    flux[20:] *= np.array([1 + 1e-6, 1.0, 3.0, 1.0, 1.0, 1.0])[:, None]  # a scale makes no other star
    table = library.table[rows]
    table["name"] = [f"n{k}" for k in range(26)]
    table["name"][10] = "n11"  # nor does another spectrum of it
    copies = sed.Library("copies", table, library.wavelength, flux)
    spectra = sed.prepare_set(copies, input_grid=sed_stars.INPUT, output_grid=sed_stars.OUTPUT)
    assert list(spectra.star[20:]) == list(spectra.star[[0, 1, 2, 3, 4, 3]])
    assert len(set(spectra.star)) == 19
    train, test = spectra.split(0.7, seed=0)
    assert not set(train.star) & set(test.star)


def test_prepare_refuses_libraries_that_do_not_cover_the_input():
    short = sed_stars.library(3).crop(4900, 7000)
    with pytest.raises(ValueError, match="no flux"):
        sed.prepare_set(short, input_grid=sed_stars.INPUT, output_grid=sed_stars.OUTPUT)
    # while a SED beyond the library's ends is merely unknown
    wide = sed.prepare_set(
        sed_stars.library(3), input_grid=sed_stars.INPUT, output_grid=sed.WavelengthGrid(60, 3000, 9000)
    )
    known = np.isfinite(wide.sed).all(axis=0)
    assert not known[0]
    assert known[50]
    with pytest.raises(TypeError, match="Library"):
        sed.prepare_set(np.ones((3, 100)))


@pytest.mark.parametrize("rv", [-250.0, 0.0, 400.0])
def test_velocity_is_taken_out_with_the_right_sign(rv):
    star = sed_stars.observed(rv=rv, snr=1e6)
    x = sed.input_vector(star, rv * u.km / u.s, grid=sed_stars.INPUT)
    expected, _ = sed.normalize_flux(sed_stars.spectra().flux[0])
    # the wrong sign would move lines by 4-8 pixels and leave residuals of 0.1
    np.testing.assert_allclose(x.flux, expected, atol=2e-3)
    # the header's redshift serves where no velocity is given
    star.meta["z"] = np.sqrt((1 + rv / 299792.458) / (1 - rv / 299792.458)) - 1
    np.testing.assert_allclose(sed.input_vector(star, grid=sed_stars.INPUT).flux, x.flux, atol=1e-6)


def test_air_wavelengths_are_converted():
    star = sed_stars.observed(snr=1e6)
    air = Spectrum(
        flux=star.flux, spectral_axis=vacuum_to_air(star.spectral_axis.value) * u.AA, uncertainty=star.uncertainty
    )
    x = sed.input_vector(air, 0 * u.km / u.s, grid=sed_stars.INPUT, medium="air")
    y = sed.input_vector(star, 0 * u.km / u.s, grid=sed_stars.INPUT)
    np.testing.assert_allclose(x.flux, y.flux, atol=1e-5)


def test_errors_are_those_of_a_monte_carlo():
    clean = sed_stars.observed(snr=1e9)
    error = clean.flux.value / 25
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        noisy = Spectrum(
            flux=clean.flux + rng.normal(0, error) * u.one, spectral_axis=clean.spectral_axis,
            uncertainty=StdDevUncertainty(error),
        )  # fmt: skip
        x = sed.input_vector(noisy, 0 * u.km / u.s, grid=sed_stars.INPUT)
        draws.append(x.flux)
    # dividing by the mean of 51 pixels, which have their own noise, takes or adds a per cent
    assert np.median(np.std(draws, axis=0) / x.error) == pytest.approx(1.0, abs=0.05)
    assert x.snr == pytest.approx(25 / np.sqrt(0.75), rel=0.1)  # cubic weights average a little


def test_errors_are_those_of_lines_in_correlated_noise():
    # LAMOST's pixels are 0.92 of the grid's: interpolated noise is smaller at a pixel, and correlated
    w = 3700 * 10 ** (1e-4 * np.arange(3000))
    rng = np.random.default_rng(2)
    centres = np.arange(100, 2100, 60)
    offset = np.arange(-25, 26)
    line = np.exp(-0.5 * (offset / 2.5) ** 2)
    line -= line.mean()
    grid = sed.WavelengthGrid(2000, 4000, 6900)
    at = centres[:, None] + offset
    pulls, pixels, white = [], [], []
    for _ in range(100):
        star = Spectrum(
            flux=(40 + rng.normal(0, 1, w.size)) * u.one, spectral_axis=w * u.AA,
            uncertainty=StdDevUncertainty(np.ones(w.size)),
        )  # fmt: skip
        x = sed.input_vector(star, 0 * u.km / u.s, grid=grid)
        strength = (x.flux[at] - 1) @ line
        pulls.append(strength / np.sqrt((x.error[at] ** 2) @ line**2))
        pixels.append((x.flux - 1) / x.error)
        # the continuum takes its part of a line's strength from white noise, too
        normal, _ = sed.normalize_flux(40 + rng.normal(0, 1, len(grid)))
        white.append((normal[at] - 1) @ line * 40 / np.sqrt(line @ line))
    assert np.std(pulls) / np.std(white) == pytest.approx(1.0, abs=0.04)
    assert np.std(pixels) < 0.95
    # an SNR of a native pixel holds for more of the spectrum in one of the grid
    assert x.snr == pytest.approx(40 / np.sqrt(np.log(10) * 1e-4 / grid.step), rel=0.01)


def test_masked_pixels_do_not_matter():
    star = sed_stars.observed(snr=50)
    bad = np.zeros(star.flux.size, dtype=bool)
    bad[1500:1560] = True
    flux = star.flux.value.copy()
    flux[bad] = 1e9
    masked = Spectrum(flux=flux * u.one, spectral_axis=star.spectral_axis, uncertainty=star.uncertainty, mask=bad)
    x = sed.input_vector(masked, 0 * u.km / u.s, grid=sed_stars.INPUT)
    y = sed.input_vector(star, 0 * u.km / u.s, grid=sed_stars.INPUT)
    assert 0 < x.filled.sum() < 12
    far = np.convolve(x.filled, np.ones(61), "same") == 0
    np.testing.assert_allclose(x.flux[far], y.flux[far], rtol=1e-12)
    assert np.all(np.abs(x.flux - 1) < 1)
    # the same by an inverse variance of 0 and by NaN
    ivar = 1 / star.uncertainty.array**2
    ivar[bad] = 0
    zero = Spectrum(flux=flux * u.one, spectral_axis=star.spectral_axis, uncertainty=InverseVariance(ivar))
    np.testing.assert_array_equal(sed.input_vector(zero, 0 * u.km / u.s, grid=sed_stars.INPUT).flux, x.flux)
    flux[bad] = np.nan
    nan = Spectrum(flux=flux * u.one, spectral_axis=star.spectral_axis, uncertainty=star.uncertainty)
    np.testing.assert_array_equal(sed.input_vector(nan, 0 * u.km / u.s, grid=sed_stars.INPUT).flux, x.flux)


def test_what_cannot_be_an_input_is_refused():
    star = sed_stars.observed()
    rv, grid = 0 * u.km / u.s, sed_stars.INPUT
    with pytest.raises(OutOfRangeError, match="nothing is extrapolated"):
        sed.input_vector(star, rv)  # the paper's range is longer
    with pytest.raises(OutOfRangeError, match="nothing is extrapolated"):
        sed.input_vector(star, -15000 * u.km / u.s, grid=grid)
    bare = Spectrum(flux=star.flux, spectral_axis=star.spectral_axis)
    with pytest.raises(ValueError, match="no uncertainty"):
        sed.input_vector(bare, rv, grid=grid)
    with pytest.raises(ValueError, match="no redshift"):
        sed.input_vector(star, grid=grid)
    with pytest.raises(TypeError, match="rv must be"):
        sed.input_vector(star, 5 * u.AA, grid=grid)
    with pytest.raises(ValueError, match="finite"):
        sed.input_vector(star, np.nan * u.km / u.s, grid=grid)
    with pytest.raises(TypeError, match="specutils"):
        sed.input_vector(star.flux, rv, grid=grid)
    with pytest.raises(ValueError, match="not positive"):
        sed.input_vector(
            Spectrum(flux=-star.flux, spectral_axis=star.spectral_axis, uncertainty=star.uncertainty), rv, grid=grid
        )
    mask = np.arange(star.flux.size) < 0.6 * star.flux.size
    half = Spectrum(flux=star.flux, spectral_axis=star.spectral_axis, uncertainty=star.uncertainty, mask=mask)
    with pytest.raises(ValueError, match="max_masked"):
        sed.input_vector(half, rv, grid=grid)


def test_flux_per_frequency_is_refused():
    star = sed_stars.observed()
    jansky = Spectrum(
        flux=star.flux.value * u.Jy, spectral_axis=star.spectral_axis,
        uncertainty=StdDevUncertainty(star.uncertainty.array),
    )  # fmt: skip
    with pytest.raises(ValueError, match="per wavelength, got Jy"):
        sed.input_vector(jansky, 0 * u.km / u.s, grid=sed_stars.INPUT)


def test_a_set_says_what_it_holds_in_a_line():
    text = repr(sed_stars.spectra(10))
    assert "10 spectra of" in text
    assert "5 of F, 5 of G" in text
    assert len(text) < 300


def test_a_real_lamost_spectrum_becomes_an_input():
    data = os.environ.get("LAMOST_LSF_DATA")
    files = sorted(Path(data, "lamost/lrs_repeats_dr8").glob("*.fits*")) if data else []
    if not files:
        pytest.skip("LAMOST_LSF_DATA is not set, or has no LAMOST spectra")
    star = Spectrum.read(files[0], format="LAMOST LRS")
    x = sed.input_vector(star)
    assert x.flux.shape == (2238,)
    assert np.median(x.flux) == pytest.approx(1.0, abs=0.02)
    assert x.rv == pytest.approx(star.meta["z"] * 299792.458)
    w = sed.INPUT_GRID.wavelength
    # H beta lies where it lies at rest, in vacuum
    core = np.abs(w - 4862.7) < 12
    assert w[core][np.argmin(x.flux[core])] == pytest.approx(4862.7, abs=2.5)


def test_optimum_of_a_linear_family():
    rng = np.random.default_rng(1)
    w = sed_stars.INPUT.wavelength
    lines = sum(np.exp(-0.5 * ((w - line) / 10) ** 2) for line in sed_stars.LINES)
    basis = np.stack([np.ones(w.size), -0.5 * lines, 0.2 * np.sin(w / 40.0)])
    out = np.stack(
        [np.ones(len(sed_stars.OUTPUT)), (sed_stars.OUTPUT.wavelength / 5556) - 1, np.zeros(len(sed_stars.OUTPUT))]
    )
    stars = np.column_stack([np.ones(400), rng.normal(0.5, 0.1, 400), rng.normal(0, 0.3, 400)])
    stars[:, 0] += rng.normal(0, 1e-3, 400)
    family = sed.LinearFamily.from_coefficients(basis, out, stars, sed_stars.INPUT, sed_stars.OUTPUT)
    clean = stars @ basis

    def noisy(snr):
        return sed.normalize_flux(clean * (1 + rng.normal(0, 1 / snr, clean.shape)))[0]

    def strength(coefficients):
        return coefficients[:, 1] / coefficients[:, 0]  # a normalised spectrum tells no more

    # with little noise the truth, with much the prior
    assert np.std(strength(family.fit(noisy(1e4), 1e-4)) - strength(stars)) < 3e-4
    np.testing.assert_allclose(family.fit(noisy(20), 1e4), np.tile(stars.mean(0), (400, 1)), atol=1e-3)
    residual = [np.std(strength(family.fit(noisy(snr), 1 / snr)) - strength(stars)) for snr in (20, 40, 80)]
    assert residual[0] / residual[1] == pytest.approx(2, rel=0.2)
    assert residual[1] / residual[2] == pytest.approx(2, rel=0.2)
    # no estimator does better than the Cramer-Rao bound of white noise on the flux with the continuum known
    bound = 1 / (40 * np.sqrt(np.sum((basis[1] / clean.mean(0)) ** 2)))
    assert residual[1] > 0.9 * bound
    with pytest.raises(ValueError, match="more stars"):
        sed.LinearFamily.from_coefficients(basis, out, stars[:2])


def test_distance_from_the_training_set():
    flux, _ = sed.normalize_flux(sed_stars.spectra(80).flux)
    domain = sed.Domain.fit(flux[:60], n_components=4)
    rng = np.random.default_rng(0)
    error = np.full(flux.shape, 0.03)
    distance, residual = domain.measure(flux[60:] + rng.normal(0, 0.03, (20, flux.shape[1])), error[60:])
    assert np.all(distance < domain.limit_distance)
    assert np.all(residual < domain.limit_residual)
    assert residual.mean() == pytest.approx(1, abs=0.1)
    # lines in emission are far along the components, a spike leaves a residual that no component takes
    distance, _ = domain.measure(2 - flux[:5], error[:5])
    assert np.all(distance > domain.limit_distance)
    spike = flux[:1].copy()
    spike[0, 100:110] += 1
    _, residual = domain.measure(spike, error[:1])
    assert residual[0] > domain.limit_residual
    # unless those pixels are taken out
    error[0, 100:110] = np.inf
    _, residual = domain.measure(spike, error[:1])
    assert residual[0] < domain.limit_residual
    # what is taken out does not shift the rest along the components: not even a third of the star that is farthest
    all_of_it, _ = domain.measure(flux[:60], np.full((60, flux.shape[1]), 1e-3))
    far = int(np.argmax(all_of_it))
    some = np.full((1, flux.shape[1]), 1e-3)
    some[0, 120:200] = np.inf
    part, _ = domain.measure(flux[far : far + 1], some)
    assert part[0] == pytest.approx(all_of_it[far], rel=0.1)


def test_importing_sed_does_not_import_torch():
    code = (
        "import sys, builtins\n"
        "real = builtins.__import__\n"
        "def without(name, *args, **kwargs):\n"
        "    if name.split('.')[0] == 'torch': raise ImportError(name)\n"
        "    return real(name, *args, **kwargs)\n"
        "builtins.__import__ = without\n"
        "from lamost_lsf import sed\n"
        "sed.normalize_flux([1.0] * 60)\n"
        "try:\n"
        "    sed.UaRANet\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lamost_lsf.sed.UaRANet needs torch" in out.stdout
    with pytest.raises(AttributeError, match="no attribute"):
        sed.nothing  # noqa: B018
