"""What must not matter, and what must: invariants of `lamost_lsf.sed` that need no torch."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
import sed_stars
from astropy.nddata import StdDevUncertainty
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from specutils import Spectrum

from lamost_lsf import sed
from lamost_lsf.sed.flatfield import StandardStars, fit_flat_field
from lamost_lsf.sed.preparation import same_star

SCALES = st.floats(1e-8, 1e8)
SEEDS = st.integers(0, 2**31)


# -- grids, continuum, scale --------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(power=st.floats(100, 3000), start=st.floats(2000, 5500), ratio=st.floats(2.0, 4.0))
def test_a_grid_is_uniform_in_log_wavelength_with_two_pixels_an_element(power, start, ratio):
    grid = sed.WavelengthGrid(power, start, start * ratio)
    w = grid.wavelength
    np.testing.assert_allclose(np.diff(np.log(w)), 0.5 / power, rtol=1e-6)
    # as many whole steps as fit: one pixel more would lie beyond the end
    assert w[0] == pytest.approx(grid.start)
    assert w[-1] * np.exp(grid.step) <= grid.stop * (1 + 1e-8)
    assert w[-1] * np.exp(2 * grid.step) > grid.stop * (1 - 1e-8)
    inside = grid.select(start * 1.2, start * 1.5)
    assert np.array_equal(inside, (w >= start * 1.2) & (w <= start * 1.5))


@settings(max_examples=50, deadline=None)
@given(scale=SCALES, seed=SEEDS)
def test_a_scaled_sed_has_the_mean_1_between_5526_and_5586(scale, seed):
    flux = scale * np.random.default_rng(seed).uniform(0.2, 3.0, (3, 574))
    scaled, reference = sed.scale_sed(flux, sed.OUTPUT_GRID)
    w = sed.OUTPUT_GRID.wavelength
    band = (w >= 5526) & (w <= 5586)
    np.testing.assert_allclose(scaled[:, band].mean(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(scaled * reference[:, None], flux, rtol=1e-12)
    np.testing.assert_allclose(sed.scale_sed(scaled, sed.OUTPUT_GRID)[1], 1.0, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(window=st.integers(0, 40), seed=SEEDS, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_the_moving_average_is_linear_even_handed_and_keeps_constants_and_slopes(window, seed, a, b):
    window = 2 * window + 1
    x, y = np.random.default_rng(seed).normal(size=(2, 120))
    average = sed.moving_average
    np.testing.assert_allclose(
        average(a * x + b * y, window), a * average(x, window) + b * average(y, window), atol=1e-10
    )
    np.testing.assert_allclose(average(x[::-1], window), average(x, window)[::-1], atol=1e-10)
    np.testing.assert_allclose(average(np.full(120, a), window), a, atol=1e-12)
    middle = slice(window // 2, 120 - window // 2)
    line = a + b * np.arange(120.0)
    np.testing.assert_allclose(average(line, window)[middle], line[middle], atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, factor=st.floats(0.0, 10.0))
def test_masked_pixels_have_no_say(seed, factor):
    rng = np.random.default_rng(seed)
    flux, mask = rng.uniform(0.5, 1.5, 200), rng.random(200) < 0.2
    other = np.where(mask, factor, flux)
    one, two = (sed.normalize_flux(f, 51, mask) for f in (flux, other))
    np.testing.assert_allclose(two[1], one[1], rtol=1e-12)
    np.testing.assert_allclose(two[0][~mask], one[0][~mask], rtol=1e-12)


# -- libraries and sets -------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(where=st.floats(4600, 6400), width=st.floats(1.5, 6.0), power=st.floats(150, 1000))
def test_degrading_keeps_the_flux_of_a_line_and_its_place(where, width, power):
    w = np.arange(4000.0, 7000.0, 0.4)
    line = np.exp(-0.5 * ((w - where) / width) ** 2)
    one = sed.Library("line", Table({"name": ["a"]}), w, line[None])
    axis = np.arange(4200.0, 6800.0, 0.5)
    flux = one.degrade(axis, resolving_power=power).flux[0]
    assert np.sum(flux) * 0.5 == pytest.approx(width * np.sqrt(2 * np.pi), rel=2e-3)
    centre = np.sum(flux * axis) / np.sum(flux)
    fwhm = where / power
    # a kernel whose width grows with the wavelength moves the centre by a fraction of (width/wavelength)^2
    assert abs(centre - where) < 0.01 + 2 * (width**2 + fwhm**2) / where
    variance = np.sum(flux * (axis - centre) ** 2) / np.sum(flux)
    assert np.sqrt(variance) == pytest.approx(np.hypot(width, fwhm / 2.3548), rel=0.02)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.1, 0.9), seed=SEEDS)
def test_a_split_parts_no_star_and_loses_none(share, seed):
    spectra = sed.SpectralSet(
        np.ones((90, len(sed_stars.INPUT)), np.float32), np.ones((90, len(sed_stars.OUTPUT)), np.float32),
        np.arange(90) % 40, np.array(["F", "G"])[np.arange(90) % 2], sed_stars.INPUT, sed_stars.OUTPUT,
        Table({"number": np.arange(90)}),
    )  # fmt: skip
    train, test = spectra.split(share, seed=seed)
    assert not set(train.star) & set(test.star)
    assert sorted([*train.labels["number"], *test.labels["number"]]) == list(range(90))
    for group in "FG":
        stars = len(set(train.star[train.group == group]))
        assert stars == pytest.approx(20 * share, abs=1)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, scale=SCALES)
def test_who_is_a_copy_of_whom_depends_neither_on_order_nor_on_unit(seed, scale):
    rng = np.random.default_rng(seed)
    flux = rng.uniform(0.5, 1.5, (20, 50))
    flux = flux[np.r_[np.arange(20), [3, 3, 7]]]
    name = np.array([f"s{k}" for k in range(23)])
    order = rng.permutation(23)
    first, second = same_star(flux, name), same_star(scale * flux[order], name[order])
    together = first[:, None] == first[None]
    np.testing.assert_array_equal(second[:, None] == second[None], together[np.ix_(order, order)])
    assert together.sum() == 23 + 6 + 2  # 3 with its two copies, 7 with its one


@settings(max_examples=4, deadline=None)
@given(scale=SCALES, seed=SEEDS)
def test_which_spectra_are_abnormal_does_not_depend_on_unit_or_order(scale, seed):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    w = np.linspace(4000.0, 7000.0, 40)
    labels = np.stack([rng.uniform(5000, 9000, 70), rng.uniform(2, 5, 70), rng.uniform(-2, 0.5, 70)], axis=1)
    flux = (w / 5556) ** (3 - labels[:, :1] / 1500 + 0.1 * labels[:, 2:])
    flux = flux * (1 + 0.003 * rng.normal(size=flux.shape))
    flux[5] *= 1 + 0.5 * (w - 5556) / 3000
    flux[9, 20] *= 1.3
    table = Table({"name": [f"s{k}" for k in range(70)], **dict(zip(("teff", "logg", "feh"), labels.T, strict=True))})
    order = np.random.default_rng(seed).permutation(70)
    first, _ = sed.check_spectra(sed.Library("a", table, w, flux))
    second, _ = sed.check_spectra(sed.Library("b", table[order], w, scale * flux[order]))
    assert np.flatnonzero(~np.asarray(first["good"])).tolist() == [5, 9]
    np.testing.assert_array_equal(second["flag"], first["flag"][order])
    np.testing.assert_allclose(second["rmsae"], first["rmsae"][order], rtol=0.02)


# -- inputs -------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(scale=SCALES, rv=st.floats(-600, 600))
def test_an_input_knows_neither_the_unit_nor_the_velocity(scale, rv):
    still = sed_stars.observed(4, seed=2)
    moving = sed_stars.observed(4, seed=2, rv=rv)
    moving = Spectrum(
        flux=scale * moving.flux, spectral_axis=moving.spectral_axis, meta=moving.meta,
        uncertainty=StdDevUncertainty(scale * moving.uncertainty.array),
    )  # fmt: skip
    one = sed.input_vector(still, 0 * u.km / u.s, grid=sed_stars.INPUT)
    two = sed.input_vector(moving, rv * u.km / u.s, grid=sed_stars.INPUT)
    np.testing.assert_allclose(two.flux, one.flux, rtol=1e-8)
    np.testing.assert_allclose(two.error, one.error, rtol=1e-8)
    assert two.snr == pytest.approx(one.snr)


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(0.2, 5.0))
def test_the_error_of_an_input_is_in_proportion_to_that_of_the_spectrum(factor):
    star = sed_stars.observed(1)
    noisier = Spectrum(
        flux=star.flux, spectral_axis=star.spectral_axis, uncertainty=StdDevUncertainty(factor * star.uncertainty.array)
    )
    one, two = (sed.input_vector(s, 0 * u.km / u.s, grid=sed_stars.INPUT) for s in (star, noisier))
    np.testing.assert_allclose(two.error, factor * one.error, rtol=1e-9)
    np.testing.assert_array_equal(two.flux, one.flux)
    assert two.snr == pytest.approx(one.snr / factor)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_distance_from_the_training_set_is_that_of_each_spectrum_and_falls_with_its_error(seed):
    rng = np.random.default_rng(seed)
    flux = sed.normalize_flux(sed_stars.spectra(40).flux)[0]
    domain = sed.Domain.fit(flux, n_components=4)
    x = flux[:6] + rng.normal(0, 0.05, (6, flux.shape[1]))
    error = np.full(x.shape, 0.05)
    distance, left = domain.measure(x, error)
    order = rng.permutation(6)
    for got, expected in zip(domain.measure(x[order], error[order]), (distance[order], left[order]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10)
    wider, less = domain.measure(x, 2 * error)
    assert np.all(wider <= distance)
    assert np.all(less < left)


# -- the best possible answer, flat fields ------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_the_optimum_depends_on_the_family_and_not_on_the_basis_it_is_written_in(seed, scale):
    rng = np.random.default_rng(seed)
    w = sed_stars.INPUT.wavelength
    basis = np.stack([np.ones(w.size), np.sin(w / 40.0), np.cos(w / 55.0)])
    out = np.stack([np.ones(len(sed_stars.OUTPUT)), np.linspace(-1, 1, len(sed_stars.OUTPUT)) ** 2,
                    np.linspace(-1, 1, len(sed_stars.OUTPUT))])  # fmt: skip
    stars = np.column_stack([np.ones(50), rng.normal(0.2, 0.05, 50), rng.normal(0, 0.05, 50)])
    stars[:, 0] += rng.normal(0, 0.01, 50)
    mix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    one = sed.LinearFamily.from_coefficients(basis, out, stars, sed_stars.INPUT, sed_stars.OUTPUT)
    two = sed.LinearFamily.from_coefficients(
        scale * mix @ basis, scale * mix @ out, stars @ mix.T / scale, sed_stars.INPUT, sed_stars.OUTPUT
    )
    x = sed.normalize_flux(stars[:5] @ basis * (1 + rng.normal(0, 0.03, (5, w.size))))[0]
    np.testing.assert_allclose(two.sed(two.fit(x, 0.03)), one.sed(one.fit(x, 0.03)), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(terms=st.lists(st.floats(-0.1, 0.1), min_size=5, max_size=5), response=st.floats(1e-3, 1e3), seed=SEEDS)
def test_a_flat_field_that_is_a_polynomial_comes_back_exactly(terms, response, seed):
    rng = np.random.default_rng(seed)
    wavelength = np.array([4000.0, 6000.0, 9000.0])
    x, y = rng.uniform(0, 2000, (2, 60))

    def flat(x, y):
        s, t = x / 1000 - 1, y / 1000 - 1
        return 1 + sum(a * f for a, f in zip(terms, (s, t, s * t, s**2 - 1 / 3, t**2 - 1 / 3), strict=True))

    star = rng.uniform(0.5, 2, (60, 3))
    seen = response * flat(x, y)[:, None] * star
    cube = fit_flat_field(
        StandardStars(wavelength, x, y, seen, 0.01 * seen, star, 0.01 * star), domain=((0, 2000), (0, 2000))
    )
    at = rng.uniform(0, 2000, (2, 8))
    value, _ = cube.flat(*at)
    # the mean of the square of a coordinate from -1 to 1 is 1/3, so that these terms average to nothing; a division by
    # noisy predictions is allowed for, and equal for all stars
    np.testing.assert_allclose(value / value.mean(), np.repeat(flat(*at)[:, None], 3, 1) / flat(*at).mean(), rtol=1e-6)
    np.testing.assert_allclose(value, np.repeat(flat(*at)[:, None], 3, 1), rtol=1e-3)
    np.testing.assert_allclose(cube.response, response, rtol=1e-3)
