"""Flat fields from standard stars: known cubes are recovered within their stated errors."""

import json

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from hypothesis import given, settings
from hypothesis import strategies as st
from specutils import Spectrum

from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.sed.flatfield import (
    FlatFieldCube,
    FlatFieldFlag,
    StandardStars,
    fit_flat_field,
    flat_field_precision,
)
from lamost_lsf.sed.flatfield_fit import design
from lamost_lsf.sed.grids import OUTPUT_GRID
from lamost_lsf.units import vacuum_to_air

DOMAIN = ((0.0, 9000.0), (100.0, 4100.0))
WAVE = np.linspace(2600.0, 9900.0, 12)


def truth(x, y, wavelength=WAVE):
    """A second-order flat field, different along x and y and with wavelength; no mean of 1."""
    s, t = (np.asarray(x)[..., None] - 4500) / 4500, (np.asarray(y)[..., None] - 2100) / 2000
    blue = 6000 / wavelength
    return 1.0 + 0.08 * s / blue - 0.05 * t + 0.06 * s * t - 0.04 * blue * s**2 + 0.02 * t**2


def mean_truth(wavelength=WAVE):
    """Mean over the detector, by brute force."""
    x, y = (np.linspace(low, high, 41) for low, high in DOMAIN)
    weight = np.ones(41)
    weight[1:-1:2], weight[2:-1:2] = 4, 2  # Simpson's rule: exact for a polynomial
    weight /= weight.sum()
    return np.einsum("y,x,yxw->w", weight, weight, truth(x[None], y[:, None], wavelength))


RESPONSE = 3e3 * np.exp(-0.5 * ((WAVE - 6000) / 2500) ** 2)


def make_stars(n, seed, *, predicted=0.05, observed=0.01, outliers=0.0, stated=1.0):
    """Stars of different spectra and errors; ``stated`` is stated over true error of the predictions."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(*DOMAIN[0], n), rng.uniform(*DOMAIN[1], n)
    sed = rng.uniform(0.5, 2, (n, 1)) * (WAVE / 5500) ** rng.uniform(-3, 1, (n, 1))
    sigma = predicted * rng.uniform(0.5, 1.5, (n, 1)) * np.ones(WAVE.size)
    guess = sed * (1 + sigma * rng.standard_normal(sigma.shape))
    clean = sed * RESPONSE * truth(x, y)
    seen = clean * (1 + observed * rng.standard_normal(sigma.shape))
    bad = rng.random(n) < outliers
    seen[bad] *= rng.choice([0.3, 0.6, 1.8, 3.0], (bad.sum(), 1))
    stars = StandardStars(WAVE, x, y, seen, observed * clean, guess, stated * sigma * np.abs(guess))
    return stars, bad


# -- recovery -------------------------------------------------------------------------------------------------


def test_perfect_stars_give_the_flat_field_exactly():
    stars, _ = make_stars(60, 0, predicted=1e-9, observed=1e-9)
    cube = fit_flat_field(stars, domain=DOMAIN)
    x, y = np.linspace(*DOMAIN[0], 7), np.linspace(*DOMAIN[1], 5)
    value, _ = cube.flat(x[None], y[:, None])
    np.testing.assert_allclose(value, truth(x[None], y[:, None]) / mean_truth(), rtol=1e-7)
    np.testing.assert_allclose(cube.response, RESPONSE * mean_truth(), rtol=1e-7)


@pytest.mark.parametrize(
    "options",
    [{}, {"outliers": 0.05}, {"predicted": 0.005}, {"stated": 0.5}, {"predicted": 0.15}],
    ids=["plain", "outliers", "precise", "understated errors", "poor predictions"],
)
def test_a_known_cube_is_recovered_within_its_stated_errors(options):
    x, y = np.linspace(*DOMAIN[0], 9), np.linspace(*DOMAIN[1], 9)
    known = truth(x[None], y[:, None]) / mean_truth()
    z, response = [], []
    for seed in range(40):
        cube = fit_flat_field(make_stars(300, seed, **options)[0], domain=DOMAIN)
        value, error = cube.flat(x[None], y[:, None])
        z.append((value - known) / error)
        response.append((cube.response - RESPONSE * mean_truth()) / cube.response_error)
    z = np.array(z)
    # 40 trials of 12 independent wavelengths and six terms
    assert 0.92 < z.std() < 1.10
    assert abs(z.mean()) < 0.08
    assert 0.63 < np.mean(np.abs(z) < 1) < 0.73
    assert np.mean(np.abs(z) < 2) > 0.925
    if "stated" not in options and "outliers" not in options:
        assert abs(np.mean(response)) < 0.3
    # corner for corner, not only on average: the error must grow where the polynomial is less well known
    corner, middle = z[:, 0, 0].std(), z[:, 4, 4].std()
    assert 0.85 < corner < 1.17
    assert 0.85 < middle < 1.17


def test_errors_are_larger_at_the_corners():
    cube = fit_flat_field(make_stars(300, 1)[0], domain=DOMAIN)
    _, error, x, y = cube.cube(9, 9)
    assert error.shape == (12, 9, 9)
    assert (x[0], x[-1], y[0], y[-1]) == (0.0, 9000.0, 100.0, 4100.0)
    assert np.all(error[:, 0, 0] > 1.5 * error[:, 4, 4])


def test_the_cube_is_indexed_by_y_then_x():
    stars, _ = make_stars(100, 2, predicted=1e-8, observed=1e-8)
    cube = fit_flat_field(stars, domain=DOMAIN)
    flat, _, x, y = cube.cube(8, 6)
    assert flat.shape == (12, 6, 8)
    np.testing.assert_allclose(flat[3, 1, 6], truth(x[6], y[1])[3] / mean_truth()[3], rtol=1e-6)


def test_outliers_are_rejected_and_named():
    stars, bad = make_stars(300, 3, outliers=0.06)
    cube = fit_flat_field(stars, domain=DOMAIN)
    assert bad.sum() > 10
    assert np.all(cube.rejected[bad] > 0.5)
    assert np.mean(cube.rejected[~bad] > 0.5) < 0.01
    kept = fit_flat_field(stars, domain=DOMAIN, clip=1e6, scale_errors=False)
    x, y = np.linspace(*DOMAIN[0], 9), np.linspace(*DOMAIN[1], 9)
    known = truth(x[None], y[:, None]) / mean_truth()
    wrong = [np.abs(c.flat(x[None], y[:, None])[0] - known).max() for c in (cube, kept)]
    assert wrong[0] < 0.5 * wrong[1]


def test_noisy_stars_weigh_less():
    """Half of the stars 20 times worse change the error by little; unweighted it would be 14 times larger."""
    good, _ = make_stars(200, 4, predicted=0.01)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(*DOMAIN[0], 200), rng.uniform(*DOMAIN[1], 200)
    noise = 1 + 0.2 * rng.standard_normal((200, 12))
    both = StandardStars(
        WAVE, np.r_[good.x, x], np.r_[good.y, y], np.r_[good.observed, RESPONSE * truth(x, y) * noise],
        np.r_[good.observed_error, 0.2 * RESPONSE * truth(x, y)], np.r_[good.predicted, np.ones((200, 12))],
        np.r_[good.predicted_error, np.full((200, 12), 0.01)],
    )  # fmt: skip
    known = truth(4500.0, 2100.0) / mean_truth()
    alone, _ = fit_flat_field(good, domain=DOMAIN).flat(4500.0, 2100.0)
    value, error = fit_flat_field(both, domain=DOMAIN).flat(4500.0, 2100.0)
    assert np.std(value / known - 1) < 1.5 * np.std(alone / known - 1)
    assert np.all(np.abs(value - known) < 5 * error)


def test_faint_stars_do_not_bias_the_response():
    """Noise of the observations alone, S/N 7, the same error for all: a weight by each one's own S/N is 4 % off."""
    rng = np.random.default_rng(0)
    off = []
    for _ in range(20):
        x, y = rng.uniform(*DOMAIN[0], 300), rng.uniform(*DOMAIN[1], 300)
        one = np.ones((300, 12))
        seen = truth(x, y) + 0.15 * rng.standard_normal((300, 12))
        cube = fit_flat_field(StandardStars(WAVE, x, y, seen, 0.15 * one, one, 1e-4 * one), domain=DOMAIN)
        off.append((cube.response / mean_truth() - 1) / (cube.response_error / cube.response))
    assert abs(np.mean(off)) < 4 / np.sqrt(np.size(off))
    assert 0.85 < np.std(off) < 1.15


@pytest.mark.parametrize(
    ("predicted", "observed"), [(0.1, 0.0), (0.1, 0.1), (0.1, 0.2), (0.05, 0.1), (0.3, 0.0), (0.3, 0.1), (0.05, 0.5)]
)
def test_errors_of_both_fluxes_do_not_bias_the_response(predicted, observed):
    """A weight by the noisy prediction is 1 % low at 0.1 and 0.1; a correction to second order 2 % at 0.3 and 0."""
    off, z = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed + 100)
        x, y = rng.uniform(*DOMAIN[0], 400), rng.uniform(*DOMAIN[1], 400)
        sigma, noise = (e * rng.uniform(0.3, 1.7, (400, 1)) * np.ones((400, WAVE.size)) for e in (predicted, observed))
        guess = 1 + sigma * rng.standard_normal(sigma.shape)
        seen = truth(x, y) + noise * rng.standard_normal(sigma.shape)
        cube = fit_flat_field(StandardStars(WAVE, x, y, seen, noise, guess, sigma * np.abs(guess)), domain=DOMAIN)
        off.append(cube.response / mean_truth() - 1)
        z.append(off[-1] * cube.response / cube.response_error)
    assert abs(np.mean(off)) < 4 * np.std(off) / np.sqrt(np.size(off))
    assert abs(np.mean(z)) < 4 / np.sqrt(np.size(z))
    assert 0.85 < np.std(z) < 1.15


def test_positions_may_change_with_wavelength():
    """A slitless spectrum spreads over the detector: each wavelength is flattened where it falls."""
    rng = np.random.default_rng(5)
    x = rng.uniform(1000, 8000, (80, 1)) + (WAVE - 6000) / 8
    y = rng.uniform(*DOMAIN[1], 80)[:, None] * np.ones(12)
    flat = np.stack([truth(x[:, i], y[:, i])[:, i] for i in range(12)], axis=1)
    one = np.ones((80, 12))
    stars = StandardStars(WAVE, x, y, RESPONSE * flat, 1e-9 * RESPONSE * flat, one, 1e-9 * one)
    cube = fit_flat_field(stars, domain=DOMAIN)
    value, _ = cube.flat(x[3], y[3], along_wavelength=True)
    np.testing.assert_allclose(value, flat[3] / mean_truth(), rtol=1e-7)
    ignorant = StandardStars(WAVE, x[:, 6], y[:, 6], RESPONSE * flat, 1e-3 * RESPONSE * flat, one, 1e-3 * one)
    assert (
        np.abs(fit_flat_field(ignorant, domain=DOMAIN).flat(x[3], y[3], along_wavelength=True)[0] / value - 1).max()
        > 5e-3
    )


def test_predictions_without_magnitudes_give_the_flat_field_relative_to_the_reference_band():
    rng = np.random.default_rng(6)
    stars, _ = make_stars(300, 6, predicted=0.01)
    grey = rng.uniform(0.01, 100, (300, 1))
    unknown = StandardStars(
        WAVE, stars.x, stars.y, stars.observed, stars.observed_error, grey * stars.predicted,
        grey * stars.predicted_error,
    ).normalized(5900, 6000)  # fmt: skip
    band = int(np.flatnonzero((WAVE >= 5900) & (WAVE <= 6000))[0])
    cube = fit_flat_field(unknown, domain=DOMAIN)
    value, error = cube.flat(8000.0, 500.0)
    relative = truth(8000.0, 500.0) / truth(8000.0, 500.0)[band]
    x, y = np.meshgrid(np.linspace(*DOMAIN[0], 201), np.linspace(*DOMAIN[1], 201))
    ratio = truth(x, y)
    relative = relative / (ratio / ratio[..., [band]]).mean(axis=(0, 1))
    others = np.arange(12) != band
    # the ratio of two polynomials is one of second order only to 1e-3
    assert np.all(np.abs(value - relative)[others] < 5 * error[others] + 2e-3)
    assert abs(value[band] - 1) < 1e-4


def test_errors_hold_for_spectra_normalised_by_their_own_noisy_mean():
    """Five pixels of S/N 10: outside the band the mean's own error counts, inside it pixels follow the mean."""
    wavelength = np.arange(5193.0, 6000.0, 13.0)
    band = (wavelength >= 5526) & (wavelength <= 5586)
    assert band.sum() == 5
    z, response, fit = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(*DOMAIN[0], 300), rng.uniform(*DOMAIN[1], 300)
        one = np.ones((300, wavelength.size))
        flat = truth(x, y, np.array([6000.0])) * one  # grey: the ratio to the band is 1 everywhere
        guess = rng.uniform(0.1, 10, (300, 1)) * (1 + 0.01 * rng.standard_normal(one.shape) * ~band)
        sed = (wavelength / 5556) ** rng.uniform(-3, 1, (300, 1))
        noise = 0.1 * flat * rng.uniform(0.7, 1.3, (300, 1))
        seen = flat * sed + noise * rng.standard_normal(one.shape)
        stars = StandardStars(wavelength, x, y, seen, noise, guess * sed, np.where(band, 1e-6, 0.01) * guess * sed)
        cube = fit_flat_field(stars.normalized(), domain=DOMAIN, scale_errors=False)
        value, error = cube.flat([0.0, 4500.0, 9000.0], [4100.0, 2100.0, 2000.0])
        z.append((value - 1) / error)
        response.append((cube.response - 1) / cube.response_error)
        fit.append(cube.chi2)
    for pixels in (band, ~band):
        assert 0.95 < np.mean(np.array(fit)[:, pixels]) < 1.05
        assert 0.9 < np.array(z)[..., pixels].std() < 1.1
        assert 0.85 < np.array(response)[:, pixels].std() < 1.15
    # pixels outside share the mean's error: 60 independent trials, not 60 times 57
    assert abs(np.mean(response)) < 0.35


def test_both_means_are_of_the_same_pixels():
    """A gap in an observed band on a slope must not tilt the scale."""
    wavelength = np.linspace(5500, 5600, 11)
    sed = np.tile((wavelength / 5550) ** 8, (20, 1))
    seen = 7 * sed
    seen[3, 3:6] = np.nan
    x = np.linspace(0, 1, 20)
    stars = StandardStars(wavelength, x, x, seen, 0.01 * sed, sed, 0.01 * sed).normalized()
    np.testing.assert_allclose(stars.predicted, 7 * sed, rtol=1e-12)


def test_a_star_without_flux_in_the_band_costs_only_itself():
    stars, _ = make_stars(60, 6)
    observed, predicted = stars.observed.copy(), stars.predicted.copy()
    observed[3] *= -1
    predicted[5] = np.nan
    odd = StandardStars(WAVE, stars.x, stars.y, observed, stars.observed_error, predicted, stars.predicted_error)
    cube = fit_flat_field(odd.normalized(5900, 6000), domain=DOMAIN)
    others = np.setdiff1d(np.arange(60), [3, 5])
    assert cube.rejected[[3, 5]].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(
        cube.coefficients, fit_flat_field(stars[others].normalized(5900, 6000), domain=DOMAIN).coefficients, rtol=1e-9
    )
    with pytest.raises(ValueError, match="no star has positive"):
        odd[3:4].normalized(5900, 6000)


# -- from predicted SEDs -----------------------------------------------------------------------------------------


FINE = np.arange(2450.0, 10650.0, 1.0)
SLITLESS = 2620.0 * np.exp(np.arange(530) / 400)  # between the pixels of the predictions


def fine_seds(n, seed):
    """Stars of strong Balmer, calcium and other lines, 1 A pixels."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.3, 0.8, (n, 1))
    flux = (FINE / 5556) ** rng.uniform(-3, 1, (n, 1))
    lines = (2800.0, 3836.5, 3890.2, 3934.8, 3969.6, 4102.9, 4341.7, 4862.7, 5892.0, 6564.6, 8544.4)
    for line in (*lines, *rng.uniform(2600, 10000, 25)):
        flux = flux * (1 - depth * np.exp(-0.5 * ((FINE - line) / 12) ** 2))
    return flux


def at_r200(flux, grid):
    from astropy.table import Table

    from lamost_lsf.sed import Library

    return Library("fine", Table({"name": [str(k) for k in range(len(flux))]}), FINE, flux).degrade(
        grid, resolving_power=200
    )


def seen_and_predicted(n=160, *, dust=True):
    """Velocities and dust that change over the detector, as those of a cluster behind a cloud: they do not average."""
    rng = np.random.default_rng(12)
    flux = fine_seds(n, 12)
    flux = flux / flux[:, (FINE > 5526) & (FINE < 5586)].mean(axis=1, keepdims=True)
    x, y = rng.uniform(*DOMAIN[0], n), rng.uniform(*DOMAIN[1], n)
    rv = 250.0 * (y - 2100) / 2000 + 60.0 * rng.standard_normal(n)
    ebv = 0.2 * x / 9000 if dust else np.zeros(n)
    arriving = np.stack([np.interp(FINE, FINE * (1 + v / 299792.458), f) for v, f in zip(rv, flux, strict=True)])
    if dust:
        from dust_extinction.parameter_averages import G23

        through = G23(Rv=3.1).extinguish(FINE * u.AA, Ebv=ebv[:, None])
        arriving = arriving * through / through[:, (FINE > 5526) & (FINE < 5586)].mean(axis=1, keepdims=True)
    arriving = at_r200(arriving, SLITLESS).flux
    rest = at_r200(flux, OUTPUT_GRID.wavelength).flux
    error = 0.01 * rest
    seds = Spectrum(
        flux=(rest + error * rng.standard_normal(rest.shape)) * u.one,
        spectral_axis=OUTPUT_GRID.spectral_axis,
        uncertainty=StdDevUncertainty(error),
        meta={"rv": rv, "wavelength_medium": "vacuum", "frame": "rest"},
    )
    clean = 500.0 * truth(x, y, SLITLESS) * arriving
    observed = Spectrum(
        flux=clean * (1 + 0.01 * rng.standard_normal(clean.shape)) * u.ct,
        spectral_axis=SLITLESS * u.AA,
        uncertainty=InverseVariance((0.01 * clean) ** -2.0, unit=u.ct**-2),
    )
    return seds, observed, x, y, rv, ebv


def worst(cube):
    """Largest error of the flat field, and the standard deviation of errors over stated ones."""
    x, y = np.meshgrid(np.linspace(*DOMAIN[0], 5), np.linspace(*DOMAIN[1], 5))
    value, error = cube.flat(x, y)
    off = value - truth(x, y, SLITLESS) / mean_truth(SLITLESS)
    return np.abs(off).max(), (off / error).std()


def test_the_flat_field_is_recovered_from_moving_reddened_stars():
    pytest.importorskip("dust_extinction")
    seds, observed, x, y, rv, ebv = seen_and_predicted()
    options = {"domain": DOMAIN, "scale_errors": False}
    stars = StandardStars.from_predictions(seds, observed, x, y, ebv=ebv)
    error, pull = worst(fit_flat_field(stars, **options))
    assert error < 0.03
    assert 0.7 < pull < 1.2
    for wrong in (
        {},
        {"ebv": -ebv},
        {"ebv": ebv, "rv": 0 * u.km / u.s},
        {"ebv": ebv, "rv": -rv * u.km / u.s},
    ):
        error, pull = worst(fit_flat_field(StandardStars.from_predictions(seds, observed, x, y, **wrong), **options))
        assert error > 0.2
        assert pull > 5


def test_air_wavelengths_and_masks_of_observed_spectra_are_heeded():
    seds, observed, x, y, _, _ = seen_and_predicted(dust=False)
    stars = StandardStars.from_predictions(seds, observed, x, y)
    mask = np.zeros(observed.flux.shape, dtype=bool)
    mask[3, 100] = True
    inverse = observed.uncertainty.array.copy()
    inverse[4, 200] = 0.0
    air = Spectrum(
        flux=observed.flux, spectral_axis=vacuum_to_air(SLITLESS) * u.AA, mask=mask,
        uncertainty=InverseVariance(inverse, unit=u.ct**-2), meta={"wavelength_medium": "air"},
    )  # fmt: skip
    same = StandardStars.from_predictions(seds, air, x, y)
    np.testing.assert_allclose(same.wavelength, SLITLESS, rtol=1e-9)
    np.testing.assert_allclose(same.predicted, stars.predicted, rtol=1e-6)
    assert np.argwhere(np.isnan(same.observed)).tolist() == [[3, 100], [4, 200]]
    np.testing.assert_allclose(stars.observed_error, observed.uncertainty.array**-0.5, rtol=1e-12)


def test_an_unpredicted_star_and_wavelengths_beyond_are_left_out():
    seds, observed, x, y, rv, _ = seen_and_predicted(dust=False)
    flux, sigma = seds.flux.value.copy(), seds.uncertainty.array.copy()
    flux[7], sigma[7] = np.nan, np.nan  # as predict marks what it could not use
    rv[7] = np.nan
    part = OUTPUT_GRID.wavelength > 4000
    failed = Spectrum(
        flux=flux[:, part] * u.one, spectral_axis=OUTPUT_GRID.spectral_axis[part],
        uncertainty=StdDevUncertainty(sigma[:, part]), meta={"rv": rv},
    )  # fmt: skip
    stars = StandardStars.from_predictions(failed, observed, x, y)
    cube = fit_flat_field(stars, domain=DOMAIN)
    assert np.isnan(stars.predicted[7]).all()
    assert cube.rejected[7] == 1.0
    np.testing.assert_array_equal(np.isfinite(cube.response), SLITLESS > 4000 * (1 + 300 / 299792))
    known = np.delete(np.arange(len(x)), 7)
    edge = np.isfinite(stars.predicted[known])
    rest = SLITLESS / np.sqrt((1 + rv[known, None] / 299792.458) / (1 - rv[known, None] / 299792.458))
    np.testing.assert_array_equal(edge, rest >= OUTPUT_GRID.wavelength[part][0])


def test_an_error_of_the_dust_counts_where_it_dims():
    pytest.importorskip("dust_extinction")
    seds, observed, x, y, _, ebv = seen_and_predicted()
    off = []
    for sign in (-1, 1):
        off.append(StandardStars.from_predictions(seds, observed, x, y, ebv=ebv + sign * 0.01).predicted)
    sure, unsure = (StandardStars.from_predictions(seds, observed, x, y, ebv=ebv, ebv_error=e) for e in (0.0, 0.01))
    added = np.sqrt(unsure.predicted_error**2 - sure.predicted_error**2)
    np.testing.assert_allclose(added, np.abs(off[1] - off[0]) / 2, rtol=2e-3, atol=1e-6)
    at = int(np.argmin(np.abs(SLITLESS - 5556)))
    assert np.all(added[:, at] < 1e-2 * added[:, 0])


def test_predictions_that_do_not_fit_are_refused():
    seds, observed, x, y, rv, _ = seen_and_predicted(dust=False)
    make = StandardStars.from_predictions
    with pytest.raises(ValueError, match="160 stars and observations of 159"):
        make(seds, observed[:159], x, y)
    with pytest.raises(ValueError, match="rv must be one value or 160"):
        make(seds, observed, x, y, rv=rv[:3] * u.km / u.s)
    with pytest.raises(TypeError, match="rv must be in units"):
        make(seds, observed, x, y, rv=3.0)
    with pytest.raises(ValueError, match='no "rv"'):
        make(Spectrum(flux=seds.flux, spectral_axis=seds.spectral_axis, uncertainty=seds.uncertainty), observed, x, y)
    with pytest.raises(ValueError, match="observed must have uncertainties"):
        make(seds, Spectrum(flux=observed.flux, spectral_axis=observed.spectral_axis), x, y)
    with pytest.raises(ValueError, match="without ebv"):
        make(seds, observed, x, y, ebv_error=0.01)
    with pytest.raises(ValueError, match=r"\(n_star, n\)"):
        make(seds[0], observed, x, y)
    far = Spectrum(flux=observed.flux, spectral_axis=SLITLESS * u.nm, uncertainty=observed.uncertainty)
    with pytest.raises(OutOfRangeError, match="no wavelength in common"):
        make(seds, far, x, y)


# -- precision ------------------------------------------------------------------------------------------------


def test_precision_falls_as_one_over_the_root_of_the_number_of_stars():
    wavelength = np.array([2700.0, 3000.0, 5000.0, 5500.0, 8000.0])
    numbers = np.array([50, 200, 800])
    error = np.interp(wavelength, [2600, 4000, 9000], [0.05, 0.003, 0.003])
    rows = [
        flat_field_precision(wavelength, relative_error=error, n_stars=int(n), n_trials=150, seed=int(n))
        for n in numbers
    ]
    for band in range(3):
        slope = np.polyfit(np.log(numbers), np.log([row["precision"][band] for row in rows]), 1)[0]
        assert slope == pytest.approx(-0.5, abs=0.06)


def test_precision_is_that_of_least_squares():
    """Six coefficients from N stars of error s: the mean square over the detector is about 6 s^2 / N."""
    table = flat_field_precision(np.array([5000.0, 5100.0]), relative_error=np.array([0.02, 0.02]), n_trials=400)
    assert table["precision"][0] == pytest.approx(0.02 * np.sqrt(6 / 400), rel=0.08)
    assert abs(table["bias"][0]) < 4 * 0.02 / np.sqrt(400 * 400)


def test_precision_from_measured_residuals_agrees_with_that_of_their_error():
    rng = np.random.default_rng(0)
    wavelength = np.array([3000.0, 5000.0])
    residual = rng.standard_normal((3000, 2)) * [0.04, 0.002]
    drawn = flat_field_precision(wavelength, residual=residual, n_trials=200)
    stated = flat_field_precision(wavelength, relative_error=np.array([0.04, 0.002]), n_trials=200)
    np.testing.assert_allclose(drawn["precision"], stated["precision"], rtol=0.1)


# -- application ----------------------------------------------------------------------------------------------


def known_cube(error=1e-9):
    stars, _ = make_stars(100, 7, predicted=error, observed=error)
    return fit_flat_field(stars, domain=DOMAIN, scale_errors=False)


@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_a_corrected_spectrum_has_the_flux_and_error_of_the_star(kind):
    cube = known_cube()
    x, y = 7000.0, 900.0
    seen = RESPONSE * truth(x, y) * np.linspace(1, 2, 12)
    power = {StdDevUncertainty: 1, VarianceUncertainty: 2, InverseVariance: -2}[kind]
    spectrum = Spectrum(
        flux=seen * u.electron,
        spectral_axis=WAVE * u.AA,
        uncertainty=kind((0.01 * seen) ** power),
        meta={"name": "star"},
    )
    result = cube.correct(spectrum, x, y)
    np.testing.assert_allclose(result.flux.value, np.linspace(1, 2, 12), rtol=1e-6)
    np.testing.assert_allclose(result.uncertainty.array, 0.01 * np.linspace(1, 2, 12), rtol=1e-5)
    assert result.flux.unit == u.electron
    assert result.meta["name"] == "star"
    only = cube.correct(spectrum, x, y, response=False)
    np.testing.assert_allclose(only.flux.value, RESPONSE * mean_truth() * np.linspace(1, 2, 12), rtol=1e-6)


def test_the_error_of_the_cube_enters_that_of_the_spectrum():
    cube = known_cube(0.05)
    spectrum = Spectrum(flux=np.ones(12) * u.Jy, spectral_axis=WAVE * u.AA, uncertainty=StdDevUncertainty(np.zeros(12)))
    result = cube.correct(spectrum, 100.0, 200.0, response=False)
    value, error = cube.flat(100.0, 200.0)
    np.testing.assert_allclose(result.uncertainty.array, error / value**2, rtol=1e-9)
    silent = cube.correct(spectrum, 100.0, 200.0, response=False, include_error=False)
    np.testing.assert_allclose(silent.uncertainty.array, 0.0)


def test_a_spectrum_without_errors_gets_none():
    result = known_cube(0.05).correct(Spectrum(flux=np.ones(12) * u.Jy, spectral_axis=WAVE * u.AA), 100.0, 200.0)
    assert result.uncertainty is None


@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_errors_may_be_in_another_unit_than_the_flux(kind):
    power = {StdDevUncertainty: 1, VarianceUncertainty: 2, InverseVariance: -2}[kind]
    uncertainty = kind(np.full(12, 3.0) ** power, unit=u.mJy**power)
    spectrum = Spectrum(flux=np.ones(12) * u.Jy, spectral_axis=WAVE * u.AA, uncertainty=uncertainty)
    result = known_cube().correct(spectrum, 7000.0, 900.0)
    sigma = (result.uncertainty.array * result.uncertainty.unit).to_value(u.Jy)
    np.testing.assert_allclose(sigma / result.flux.to_value(u.Jy), 0.003, rtol=1e-5)


def test_a_pixel_without_weight_is_masked_alone():
    inverse = np.full(12, 4.0)
    inverse[[2, 5]] = 0.0, np.nan
    spectrum = Spectrum(flux=np.ones(12) * u.Jy, spectral_axis=WAVE * u.AA, uncertainty=InverseVariance(inverse))
    result = known_cube().correct(spectrum, 7000.0, 900.0)
    bad = np.isin(np.arange(12), [2, 5])
    np.testing.assert_array_equal(result.mask, bad)
    np.testing.assert_array_equal(np.isfinite(result.uncertainty.array), ~bad)
    np.testing.assert_allclose((result.uncertainty.array / result.flux.value)[~bad], 0.5, rtol=1e-6)


def test_air_wavelengths_are_looked_up_in_vacuum():
    """2 A matter little to a smooth flat field: the lines of the cube are made steep to show it."""
    coefficients = np.zeros((2, 6))
    coefficients[:, 0] = 1.0, 3.0
    cube = FlatFieldCube([6000.0, 6020.0], coefficients, np.zeros((2, 6, 6)), DOMAIN)
    vacuum = np.array([6005.0, 6010.0])
    for medium, axis in (("vacuum", vacuum), ("air", vacuum_to_air(vacuum))):
        spectrum = Spectrum(flux=[1, 1] * u.Jy, spectral_axis=axis * u.AA, meta={"wavelength_medium": medium})
        np.testing.assert_allclose(cube.correct(spectrum, 1.0, 200.0).flux.value, 1 / (vacuum / 10 - 599), rtol=1e-9)


def test_pixels_beyond_the_cube_are_masked():
    cube = known_cube()
    axis = np.array([2000.0, 3000.0, 9000.0, 10500.0])
    result = cube.correct(Spectrum(flux=np.ones(4) * u.Jy, spectral_axis=axis * u.AA), 10.0, 200.0)
    assert result.mask.tolist() == [True, False, False, True]
    assert np.isnan(result.flux.value).tolist() == [True, False, False, True]


def test_writing_and_reading_changes_nothing(tmp_path):
    stars, _ = make_stars(60, 8, outliers=0.05)
    cube = fit_flat_field(stars, domain=DOMAIN)
    cube.write(tmp_path / "cube.fits", n_x=10, n_y=7)
    again = FlatFieldCube.read(tmp_path / "cube.fits")
    for name in ("wavelength", "coefficients", "covariance", "n_stars", "chi2", "flag", "rejected"):
        np.testing.assert_array_equal(getattr(again, name), getattr(cube, name))
    assert (again.domain, again.degree, again.meta) == (cube.domain, cube.degree, cube.meta)
    with fits.open(tmp_path / "cube.fits", checksum=True) as hdus:
        assert hdus["FLAT"].data.shape == (12, 7, 10)
        header = hdus["FLAT"].header
        last = header["CRVAL1"] + (10 - header["CRPIX1"]) * header["CDELT1"]
        assert last == pytest.approx(9000.0)
        np.testing.assert_allclose(hdus["FLAT"].data[:, 6, 9], cube.flat(9000.0, 4100.0)[0], rtol=1e-6)
        np.testing.assert_allclose(hdus["ERROR"].data[:, 6, 9], cube.flat(9000.0, 4100.0)[1], rtol=1e-6)
    stars.write(tmp_path / "stars.fits")
    back = StandardStars.read(tmp_path / "stars.fits")
    for name in StandardStars.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(back, name), getattr(stars, name))


# -- bad input ------------------------------------------------------------------------------------------------


def changed(**arrays):
    stars, _ = make_stars(40, 9)
    fields = {name: getattr(stars, name).copy() for name in StandardStars.__dataclass_fields__}
    return StandardStars(**{**fields, **arrays})


def test_bad_stars_are_refused_with_the_reason():
    stars, _ = make_stars(40, 9)
    with pytest.raises(ValueError, match="no errors are given"):
        fit_flat_field(changed(predicted_error=0 * stars.predicted, observed_error=0 * stars.predicted), domain=DOMAIN)
    with pytest.raises(ValueError, match="predicted_error must not be negative"):
        changed(predicted_error=-stars.predicted_error)
    with pytest.raises(ValueError, match="increasing vacuum Angstrom"):
        changed(wavelength=WAVE[::-1])
    with pytest.raises(ValueError, match="x has shape"):
        changed(x=np.ones(3))
    with pytest.raises(ValueError, match="every star has a position"):
        changed(x=np.full(40, np.nan))
    with pytest.raises(ValueError, match=r"predicted has shape \(40, 11\)"):
        changed(predicted=stars.predicted[:, 1:])
    with pytest.raises(OutOfRangeError, match="beyond the domain"):
        fit_flat_field(stars, domain=((0, 100), (100, 4100)))
    with pytest.raises(ValueError, match="at least 12 are needed"):
        fit_flat_field(make_stars(11, 1)[0], domain=DOMAIN)
    with pytest.raises(ValueError, match="two increasing ranges"):
        fit_flat_field(stars, domain=((10, 0), (0, 1)))
    with pytest.raises(ValueError, match="degree"):
        fit_flat_field(stars, domain=DOMAIN, degree=-1)
    with pytest.raises(ValueError, match="clip"):
        fit_flat_field(stars, domain=DOMAIN, clip=0.5)
    with pytest.raises(ValueError, match="no wavelengths between 1 and 2"):
        stars.normalized(1, 2)
    with pytest.raises(ValueError, match="relative_error or residual"):
        flat_field_precision(WAVE)
    with pytest.raises(ValueError, match="positive and finite"):
        flat_field_precision(WAVE, relative_error=-np.ones(12))
    with pytest.raises(ValueError, match="no wavelength lies in a band"):
        flat_field_precision(np.array([1e4 + 500]), relative_error=np.ones(1))


def test_missing_data_and_non_positive_references_are_left_out():
    stars, _ = make_stars(200, 10)
    predicted, observed = stars.predicted.copy(), stars.observed.copy()
    predicted[:20, 3] = 0.0
    predicted[20:40, 3] *= -1
    observed[40:60, 3] = np.nan
    observed[:, 5] = np.nan
    cube = fit_flat_field(
        StandardStars(WAVE, stars.x, stars.y, observed, stars.observed_error, predicted, stars.predicted_error),
        domain=DOMAIN,
    )
    clean = fit_flat_field(stars, domain=DOMAIN)
    assert cube.n_stars[3] <= 140 < clean.n_stars[3]
    value, error = cube.flat(4000.0, 2000.0)
    assert abs(value[3] - (truth(4000.0, 2000.0) / mean_truth())[3]) < 5 * error[3]
    assert FlatFieldFlag.TOO_FEW in FlatFieldFlag(int(cube.flag[5]))
    assert np.isnan(value[5])
    untouched = np.setdiff1d(np.arange(12), [3, 5])
    np.testing.assert_array_equal(cube.coefficients[untouched], clean.coefficients[untouched])


def test_stars_on_a_line_do_not_determine_the_flat_field():
    stars = changed(x=np.linspace(0, 9000, 40), y=np.full(40, 2000.0))
    cube = fit_flat_field(stars, domain=DOMAIN)
    assert np.all(cube.flag & FlatFieldFlag.SINGULAR)
    assert np.all(np.isnan(cube.coefficients))


def test_positions_off_the_detector_and_foreign_spectra_are_refused():
    cube = known_cube()
    with pytest.raises(OutOfRangeError, match="x must lie on the detector, 0 to 9000"):
        cube.flat(9001.0, 200.0)
    with pytest.raises(OutOfRangeError, match="y must lie"):
        cube.flat(1.0, np.nan)
    with pytest.raises(TypeError, match="must be a specutils Spectrum"):
        cube.correct(np.ones(3), 1, 200)
    with pytest.raises(OutOfRangeError, match="no wavelength in common"):
        cube.correct(Spectrum(flux=[1, 2] * u.Jy, spectral_axis=[20000, 20001] * u.AA), 1, 200)
    with pytest.raises(ValueError, match="two samples"):
        cube.cube(1, 5)


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "cube.fits"
    known_cube().write(path)
    with pytest.raises(FileExistsError):
        known_cube().write(path)
    with pytest.raises(FormatError, match="does not hold standard stars"):
        StandardStars.read(path)
    with fits.open(path) as hdus:
        hdus[0].header["VERSION"] = 99
        hdus.writeto(tmp_path / "later.fits", checksum=True)
        del hdus["COVAR"]
        hdus[0].header["VERSION"] = 1
        hdus.writeto(tmp_path / "less.fits", checksum=True)
    with pytest.raises(FormatError, match="version 99"):
        FlatFieldCube.read(tmp_path / "later.fits")
    with pytest.raises(FormatError, match="COVAR missing"):
        FlatFieldCube.read(tmp_path / "less.fits")
    (tmp_path / "text.fits").write_text("no FITS")
    with pytest.raises(FormatError, match="no FITS file"):
        FlatFieldCube.read(tmp_path / "text.fits")
    with pytest.raises(FileNotFoundError):
        FlatFieldCube.read(tmp_path / "none.fits")


@pytest.mark.parametrize("name", ["COEFF", "WAVELENGTH", "PREDICTED"])
def test_a_value_that_was_changed_after_writing_is_noticed(tmp_path, name):
    path = tmp_path / "file.fits"
    stars = changed()
    written, kind = (stars, StandardStars) if name == "PREDICTED" else (known_cube(), FlatFieldCube)
    written.write(path)
    with fits.open(path) as hdus:
        at = hdus[name].fileinfo()["datLoc"]
    content = bytearray(path.read_bytes())
    content[at + 12] ^= 1  # one bit of one number
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"[Cc]hecksum.*{name}"):
        kind.read(path)
    path.write_bytes(content[: at + 100])
    with pytest.raises(FormatError, match="damaged"):
        kind.read(path)


# -- invariants -----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(1e-6, 1e6), seed=st.integers(0, 5))
def test_units_of_the_flux_change_the_response_alone(factor, seed):
    stars, _ = make_stars(60, seed, outliers=0.05)
    scaled = StandardStars(
        WAVE, stars.x, stars.y, factor * stars.observed, factor * stars.observed_error, stars.predicted,
        stars.predicted_error,
    )  # fmt: skip
    one, two = fit_flat_field(stars, domain=DOMAIN), fit_flat_field(scaled, domain=DOMAIN)
    np.testing.assert_allclose(two.response, factor * one.response, rtol=1e-7)
    for a, b in zip(one.flat(3000.0, 3000.0), two.flat(3000.0, 3000.0), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-1e4, 1e4), stretch=st.floats(0.01, 100))
def test_units_of_position_change_nothing(shift, stretch):
    stars, _ = make_stars(60, 1)
    domain = tuple((low * stretch + shift, high * stretch + shift) for low, high in DOMAIN)
    moved = StandardStars(
        WAVE, np.clip(stars.x * stretch + shift, *domain[0]), np.clip(stars.y * stretch + shift, *domain[1]),
        stars.observed, stars.observed_error, stars.predicted, stars.predicted_error,
    )  # fmt: skip
    one, two = fit_flat_field(stars, domain=DOMAIN), fit_flat_field(moved, domain=domain)
    np.testing.assert_allclose(two.coefficients, one.coefficients, rtol=1e-5, atol=1e-6 * np.abs(one.response).max())


@settings(max_examples=30, deadline=None)
@given(degree=st.integers(0, 4))
def test_all_terms_but_the_first_average_to_nothing(degree):
    edges = np.linspace(-1, 1, 401)
    middle = (edges[1:] + edges[:-1]) / 2
    mean = np.mean(design(middle[None], middle[:, None], ((-1, 1), (-1, 1)), degree), axis=(0, 1))
    np.testing.assert_allclose(mean, np.r_[1.0, np.zeros(mean.size - 1)], atol=1e-4)


# -- command --------------------------------------------------------------------------------------------------


@pytest.fixture
def command():
    """Run the sub-command by its own parser; the package's registers it elsewhere."""
    import argparse

    from lamost_lsf.cli import flatfield

    def run(*words):
        parser = argparse.ArgumentParser()
        flatfield.add_parser(parser.add_subparsers())
        return flatfield.run(parser.parse_args(["flatfield", *map(str, words)]))

    return run


def test_the_command_fits_applies_and_tells_the_precision(tmp_path, capsys, command):
    from lamost_lsf.io import write_spectrum

    stars, bad = make_stars(120, 11, predicted=0.02, outliers=0.04)
    stars.write(tmp_path / "stars.fits")
    status = command(
        "fit", tmp_path / "stars.fits", "-o", tmp_path / "cube.fits", "--domain", 0, 9000, 100, 4100,
        "--plot", tmp_path / "cube.png", "--json",
    )  # fmt: skip
    summary = json.loads(capsys.readouterr().out)
    assert status == 0
    assert (summary["stars"], summary["failed"]) == (120, 0)
    assert summary["rejected_stars"] == np.flatnonzero(bad).tolist()
    assert (tmp_path / "cube.png").stat().st_size > 10_000
    seen = RESPONSE * truth(7000.0, 900.0)
    spectrum = Spectrum(flux=seen * u.ct, spectral_axis=WAVE * u.AA, uncertainty=StdDevUncertainty(0.001 * seen))
    write_spectrum(spectrum, tmp_path / "seen.fits")
    words = ("--x", 7000, "--y", 900, "-o", tmp_path / "flat.fits")
    assert command("apply", tmp_path / "cube.fits", tmp_path / "seen.fits", *words) == 0
    result = Spectrum.read(tmp_path / "flat.fits")
    assert np.all(np.abs(result.flux.value - 1) < 5 * result.uncertainty.array)
    capsys.readouterr()
    assert command("precision", tmp_path / "stars.fits", "--stars", 100, "--trials", 20, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["band"] for row in rows] == ["GU", "GV", "GI"]
    assert 0.003 < rows[0]["precision"] < 0.008


def test_the_command_refuses_in_a_line(tmp_path, command):
    from lamost_lsf.cli._common import CommandError

    make_stars(40, 1)[0].write(tmp_path / "stars.fits")
    (tmp_path / "there.fits").write_text("")
    with pytest.raises(CommandError, match="--overwrite replaces it"):
        command("fit", tmp_path / "stars.fits", "-o", tmp_path / "there.fits")
    with pytest.raises(CommandError, match="--samples"):
        command("fit", tmp_path / "stars.fits", "-o", tmp_path / "cube.fits", "--samples", 1)


def test_figures_draw_what_they_are_given():
    from lamost_lsf.sed.figures_libraries import plot_common_stars, plot_flat_field, plot_gp_residuals, plot_residuals

    cube = known_cube(0.02)
    figure = plot_flat_field(cube, [3000.0, 6000.0])
    image = figure.axes[1].images[0].get_array()
    np.testing.assert_allclose(image[0, -1], cube.flat(9000.0, 100.0, [6000.0])[0][0], rtol=1e-9)
    true = np.ones((30, 12))
    predicted = true * (1 + np.linspace(-0.1, 0.1, 30))[:, None]
    ax = plot_residuals(WAVE, predicted, true, limit=0.3)
    curves = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(curves["median"].get_ydata(), 0.0, atol=1e-12)
    assert ax.get_ylim() == (-0.3, 0.3)
    assert len(plot_gp_residuals(WAVE, (predicted, true), (predicted[:5], true[:5])).axes) == 2
    assert "stars in common: 30" in plot_common_stars(WAVE, predicted, true).texts[0].get_text()
    with pytest.raises(ValueError, match="do not fit"):
        plot_residuals(WAVE[:-1], predicted, true)
