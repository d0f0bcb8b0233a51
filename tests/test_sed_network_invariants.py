"""Invariants of loss, network, augmentation and evaluation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import sed_stars
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from lamost_lsf import sed  # noqa: E402
from lamost_lsf.sed.augmentation import Augmenter  # noqa: E402
from lamost_lsf.sed.evaluation import Residuals, noisy_inputs, robust_scatter  # noqa: E402

torch.set_num_threads(1)
SMALL = sed.Architecture(
    n_input=len(sed_stars.INPUT), n_output=len(sed_stars.OUTPUT), units=((4, 3, 2), (8, 3, 2)), hidden=(32,),
    noise_width=4, error_width=16,
)  # fmt: skip
SEEDS = st.integers(0, 2**31)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_the_loss_is_relative_and_least_where_sigma_is_the_residual(seed, scale):
    rng = np.random.default_rng(seed)
    true = torch.tensor(rng.uniform(0.5, 2, (3, 7)))
    predicted = true * torch.tensor(1 + rng.uniform(0.01, 0.2, (3, 7)))
    sigma = (predicted / true - 1).abs()
    least = sed.relative_likelihood_loss(predicted, sigma, true)
    torch.testing.assert_close(sed.relative_likelihood_loss(scale * predicted, sigma, scale * true), least)
    for factor in (0.8, 1.25):
        assert sed.relative_likelihood_loss(predicted, factor * sigma, true) > least
    # a pixel without weight has no say
    weight = torch.ones(3, 7)
    weight[:, 2] = 0
    other = predicted.clone()
    other[:, 2] *= 3
    one, two = (sed.relative_likelihood_loss(p, sigma, true, weight) for p in (predicted, other))
    torch.testing.assert_close(one, two)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, snr=st.floats(3, 300))
def test_a_prediction_is_that_of_its_spectrum_alone_and_noise_changes_its_error_only(seed, snr):
    torch.manual_seed(seed)
    model = sed.SEDModel(
        [sed.UaRANet(SMALL), sed.UaRANet(SMALL)], sed_stars.INPUT, sed_stars.OUTPUT,
        sed.Domain.fit(np.random.default_rng(0).normal(1, 0.1, (10, SMALL.n_input)), n_components=3),
        snr_range=(20, 40),
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    flux = rng.normal(1, 0.1, (5, SMALL.n_input))
    value, sigma, spread = model.evaluate_networks(flux, 1 / snr)
    assert np.all(value > 0)
    assert np.all(sigma > 0)
    order = rng.permutation(5)
    for got, expected in zip(model.evaluate_networks(flux[order], 1 / snr, batch_size=2), (value, sigma, spread),
                             strict=True):  # fmt: skip
        np.testing.assert_allclose(got, expected[order], rtol=1e-4, atol=1e-6)
    same, _, also = model.evaluate_networks(flux, 2 / snr)
    np.testing.assert_array_equal(same, value)
    np.testing.assert_array_equal(also, spread)
    # the order of an ensemble's networks is nothing
    turned = sed.SEDModel(
        model.networks[::-1], model.input_grid, model.output_grid, model.domain, snr_range=model.snr_range
    )
    np.testing.assert_allclose(turned.evaluate_networks(flux, 1 / snr)[2], spread, rtol=1e-3, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, smooth=st.floats(0, 1), tilt=st.floats(0, 0.5))
def test_made_up_stars_are_scaled_positive_and_follow_from_the_seed(seed, smooth, tilt):
    spectra = sed_stars.spectra(20)
    augmenter = Augmenter(spectra, sed.Augmentation(smooth=smooth, snr_tilt=tilt))
    flux, error, target, _ = augmenter(torch.arange(20), (seed,))
    again = augmenter(torch.arange(20), (seed,))
    assert torch.equal(flux, again[0])
    assert torch.equal(target, again[2])
    assert (error > 0).all()
    assert (target > 0).all()
    band = torch.as_tensor(sed_stars.OUTPUT.select(*sed.grids.REFERENCE_BAND))
    torch.testing.assert_close(target[:, band].mean(1), torch.ones(20), rtol=1e-4, atol=1e-4)
    # continuum over continuum: the moving average of a normalised spectrum is near 1
    assert abs(float(flux.mean()) - 1) < 0.02


@settings(max_examples=15, deadline=None)
@given(snr=st.floats(5, 500), seed=st.integers(0, 1000))
def test_noise_is_relative_and_as_large_as_its_snr_says(snr, seed):
    spectra = sed_stars.spectra(20)
    flux, error = noisy_inputs(spectra, snr, seed=seed)
    brighter, _ = noisy_inputs(dataclasses.replace(spectra, flux=1000 * spectra.flux), snr, seed=seed)
    np.testing.assert_allclose(brighter, flux, rtol=1e-5)
    clean = sed.normalize_flux(spectra.flux)[0]
    assert robust_scatter((flux / clean - 1).ravel()) * snr == pytest.approx(
        np.sqrt(1 - 1 / 51), rel=0.07
    )  # six times the sampling error
    assert np.all(error == 1 / snr)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, shift=st.floats(-0.2, 0.2), factor=st.floats(0.1, 10))
def test_summaries_follow_shifts_and_factors_and_not_the_order(seed, shift, factor):
    rng = np.random.default_rng(seed)
    grid = sed.WavelengthGrid(30, 3600, 9000)
    residual = rng.normal(0, 0.05, (60, len(grid)))
    sigma = rng.uniform(0.04, 0.06, residual.shape)
    group, one = np.array(["F", "G"])[np.arange(60) % 2], np.ones_like(residual)

    def table(residual, sigma, order=slice(None)):
        parts = (residual, sigma, group, np.full(60, 20.0), np.arange(60), one, one)
        return sed.summarize(Residuals(grid, *(part[order] for part in parts)))

    first = table(residual, sigma)
    second = table(shift + factor * residual, factor * sigma, rng.permutation(60))
    np.testing.assert_allclose(second["median"], shift + factor * first["median"], atol=1e-9)
    for name in ("scatter", "sigma"):
        np.testing.assert_allclose(second[name], factor * first[name], rtol=1e-9)
    np.testing.assert_allclose(second["ratio"], first["ratio"], rtol=1e-9)
