"""End to end on the theoretical F stars of redrock, at low resolution: dust, ensembles, flags."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lamost_lsf import sed  # noqa: E402
from lamost_lsf.sed.evaluation import noisy_inputs, robust_scatter  # noqa: E402

torch.set_num_threads(1)
INPUT, OUTPUT = sed.WavelengthGrid(400, 4000, 7000), sed.WavelengthGrid(80, 3600, 9000)
SMALL = sed.Architecture(
    n_input=len(INPUT), n_output=len(OUTPUT), units=((4, 3, 2), (8, 3, 2)), hidden=(64,), noise_width=4, error_width=32
)


def stars(data_dir, kind):
    """Distinct stars of a class."""
    library = sed.read_library("redrock", data_dir / "templates/redrock", types=kind)
    spectra = sed.prepare_set(library[library.positive(3500, 9100)], input_grid=INPUT, output_grid=OUTPUT)
    return spectra.distinct()


@pytest.fixture(scope="module")
def sets(data_dir):
    return stars(data_dir, "F").split(0.75, seed=0)


def train(sets, seed=0, **augmentation):
    settings = sed.TrainSettings(
        epochs=30, batch_size=64, learning_rate=1e-2, validation=0, validate_every=100, seed=seed,
        augmentation=sed.Augmentation(smooth=1.0, **augmentation),
    )  # fmt: skip
    return sed.pretrain(sets[0], settings, architecture=SMALL)[0]


@pytest.fixture(scope="module")
def plain(sets):
    return train(sets)


def test_stars_that_were_set_aside_are_predicted_with_true_errors(plain, sets):
    residuals = sed.evaluate(plain, sets[1], (20.0, 40.0), repeats=4)
    table = sed.summarize(residuals, {"blue": (3700, 4500), "red": (6500, 8800)})
    assert np.all(table["bias"] < 0.6)
    assert np.all(np.abs(np.log(table["ratio"])) < np.log(1.6))
    # far better than a guess, and better where there is less noise
    guess = robust_scatter(sets[0].sed.mean(0) / sets[1].sed - 1)
    for snr in (20.0, 40.0):
        assert np.median(robust_scatter(residuals.select(snr=snr).residual) / np.maximum(guess, 1e-3)) < 0.4
    one, two = (np.median(residuals.select(snr=snr).sigma) for snr in (20.0, 40.0))
    assert two < 0.9 * one


def test_a_network_that_was_trained_with_dust_is_not_misled_by_it(plain, sets):
    pytest.importorskip("dust_extinction")
    from lamost_lsf.sed.dust import extinction_curve

    dusty = train(sets, reddening=2.0)
    test = sets[1]
    behind = dataclasses.replace(
        test, flux=(test.flux * 10 ** (-0.4 * 1.8 * extinction_curve(INPUT.wavelength))).astype(np.float32)
    )
    # the same noise, with and without dust: what dust does to the answer, and how wrong it is
    moved, bias, wrong = {}, {}, {}
    for name, model in (("plain", plain), ("dusty", dusty)):
        clear, red = (sed.evaluate(model, spectra, (30.0,), repeats=4) for spectra in (test, behind))
        moved[name] = np.sqrt(np.mean(np.median(red.sed / clear.sed - 1, axis=0) ** 2))
        bias[name] = np.sqrt(np.mean(np.median(red.residual, axis=0) ** 2))
        wrong[name] = np.median(red.rmsae)
    assert moved["dusty"] < 0.4 * moved["plain"]
    assert bias["dusty"] < 0.7 * bias["plain"]
    assert wrong["dusty"] < 0.9 * wrong["plain"]


def test_an_ensemble_knows_what_it_has_not_seen(plain, sets, data_dir):
    both = sed.SEDModel.ensemble([plain, train(sets, seed=1)])

    def errors(spectra):
        flux, error = noisy_inputs(spectra, 30.0)
        predicted, aleatoric, epistemic = both.evaluate_networks(flux, error)
        distance, left = both.domain.measure(flux, error)
        far = (distance > both.domain.limit_distance) | (left > both.domain.limit_residual)
        wrong = np.abs(predicted / spectra.sed - 1)
        return (*(float(np.median(value)) for value in (aleatoric, epistemic, wrong)), far)

    _, known, right, far = errors(sets[1])
    assert far.mean() < 0.1
    aleatoric, unknown, wrong, far = errors(stars(data_dir, "M"))
    assert wrong > 10 * right
    # M stars are no F stars: the noise tells nothing of it, the disagreement of the networks does, and so does the flag
    assert unknown > 8 * known
    assert unknown > 3 * aleatoric
    assert far.mean() > 0.9


def test_errors_from_stars_kept_out_are_those_of_new_stars(sets):
    # a few stars and many passes: the networks know them by heart
    few, rest = sets[0].split(0.15, seed=1)
    new = sed.SpectralSet.concatenate([rest, sets[1]])
    settings = sed.TrainSettings(epochs=400, batch_size=64, learning_rate=1e-2, validation=0, validate_every=100)
    known = []

    def fit(part, k):
        known.append(set(part.star))
        return sed.pretrain(part, dataclasses.replace(settings, seed=k), architecture=SMALL)[0]

    model, held_out = sed.cross_fit(fit, few, 4, repeats=2)
    assert len(model.networks) == 4
    assert set().union(*known) == set(few.star)
    # each star is predicted by the one network that does not know it
    assert all(sum(star not in part for part in known) == 1 for star in few.star)
    assert len(held_out.residual) == len(few) * 2 * 2
    bare = sed.SEDModel.ensemble([model])

    def pull(model, spectra):
        residuals = sed.evaluate(model, spectra, (20.0, 40.0), repeats=2)
        return float(np.median(np.quantile(np.abs(residuals.residual / residuals.sigma), 0.6827, axis=0)))

    before, after = pull(bare, new), pull(model, new)
    assert pull(bare, few) < 0.8 * before  # what the training stars say of the errors is too good
    assert before > 1.1
    assert 0.85 < after < 1.15
    # the same by stars that are set aside; the model that was given is as it was
    calibrated = sed.calibrate_errors(bare, sets[1], repeats=2)
    assert 0.85 < pull(calibrated, rest) < 1.15
    assert pull(bare, new) == before
