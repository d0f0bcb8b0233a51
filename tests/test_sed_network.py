"""The network, its training and its predictions."""

from __future__ import annotations

import copy
import dataclasses

import astropy.units as u
import numpy as np
import pytest
import sed_stars
from scipy import stats
from specutils import Spectrum

torch = pytest.importorskip("torch")

from lamost_lsf import sed  # noqa: E402
from lamost_lsf.errors import CoverageWarning, FitWarning, FormatError, OutOfRangeError  # noqa: E402
from lamost_lsf.sed.augmentation import Augmenter, _shifted, normalized  # noqa: E402
from lamost_lsf.sed.evaluation import Residuals, noisy_inputs, robust_scatter  # noqa: E402
from lamost_lsf.sed.network import _SubUnit  # noqa: E402

torch.set_num_threads(1)
SMALL = sed.Architecture(
    n_input=len(sed_stars.INPUT), n_output=len(sed_stars.OUTPUT), units=((4, 3, 2), (8, 3, 2)), hidden=(32,),
    noise_width=4, error_width=16,
)  # fmt: skip
QUICK = sed.TrainSettings(epochs=40, batch_size=32, validate_every=20, learning_rate=1e-2, validation=0.2)


@pytest.fixture(scope="module")
def trained():
    return sed.pretrain(sed_stars.spectra(60), QUICK, architecture=SMALL)


# -- network ------------------------------------------------------------------------------------------------------


def test_layers_have_the_sizes_of_table_1():
    network, shapes = sed.UaRANet(), []
    hooks = [
        module.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
        for module in (network.first, *network.units, *network.dense, network.sed, network.noise, network.error)
    ]
    flux = torch.ones(2, 2238)
    z = network.latent(flux)
    network(flux, torch.full((2, 2238), 0.05))
    assert z.shape == (2, 16)
    [hook.remove() for hook in hooks]
    convolutions = [(c, w) for c, h, w in [s for s in shapes if len(s) == 3]][:7]
    assert convolutions == [(4, 1119), (4, 560), (4, 560), (8, 280), (8, 280), (16, 140), (16, 140)]
    assert [s[0] for s in shapes if len(s) == 1] == [100, 200, 300, 574, 16, 64]


def test_each_sub_unit_has_four_convolutions():
    for unit in sed.UaRANet().units:
        assert sum(isinstance(m, torch.nn.Conv2d) for m in unit.modules()) == 4


def test_the_soft_threshold_is_that_of_equations_4_to_6():
    torch.manual_seed(0)
    unit = _SubUnit(3, 5, 3, 2)
    with torch.no_grad():
        for convolution in unit.attention:
            convolution.weight.abs_()  # else hardly any attention is left after three layers
    x = torch.randn(4, 3, 1, 20)
    m = unit.features(torch.relu(unit.norm(x)))
    attention = m.abs()
    for convolution in unit.attention:
        attention = torch.relu(convolution(attention))
    tau = attention * m.abs()
    expected = torch.where(m.abs() > tau, torch.sign(m) * (m.abs() - tau), torch.zeros_like(m))
    shortcut = torch.cat([x[..., ::2], torch.zeros(4, 2, 1, 10)], dim=1)
    assert 0.1 < (expected == 0).float().mean() < 0.9  # both branches are seen
    torch.testing.assert_close(unit(x), expected + shortcut)


def test_the_loss_is_the_likelihood_of_equation_17():
    rng = np.random.default_rng(0)
    true, sigma = rng.uniform(0.5, 2, (3, 7)), rng.uniform(0.01, 0.1, (3, 7))
    predicted = true * (1 + rng.normal(0, 0.05, (3, 7)))
    # the likelihood of the SED itself, of standard deviation sigma Y
    expected = -stats.norm.logpdf(predicted, true, sigma * true) - np.log(true) - 0.5 * np.log(2 * np.pi)
    value = sed.relative_likelihood_loss(*(torch.tensor(a) for a in (predicted, sigma, true)))
    assert float(value) == pytest.approx(expected.mean())
    weight = np.zeros((3, 7))
    weight[1, 2:5] = 1
    value = sed.relative_likelihood_loss(*(torch.tensor(a) for a in (predicted, sigma, true, weight)))
    assert float(value) == pytest.approx(expected[1, 2:5].mean())


def test_the_quantile_loss_is_least_at_the_median_and_68_percent():
    # a skew distribution of wide tails, known by its quantiles; the likelihood's optimum is far away from these
    rng = np.random.default_rng(3)
    target = torch.as_tensor(2.0 * np.exp(0.2 * rng.standard_t(2, 40_000) + 0.1 * rng.exponential(size=40_000)))
    log_sed, log_sigma = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([log_sed, log_sigma], lr=0.05)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.99**step
        optimizer.zero_grad()
        one = torch.ones_like(target)
        sed.relative_quantile_loss(log_sed.exp() * one, log_sigma.exp() * one, target).backward()
        optimizer.step()
    best = float(log_sed.detach().exp())
    assert np.mean(target.numpy() < best) == pytest.approx(0.5, abs=0.005)
    inside = np.abs(best / target.numpy() - 1) < float(log_sigma.detach().exp())
    assert inside.mean() == pytest.approx(0.6827, abs=0.005)
    # pixels of weight 0 do not count
    two = torch.tensor([[1.0, 9.0]], dtype=torch.float64)
    weighted = sed.relative_quantile_loss(two, 0.1 * two, 1.1 * one[:2][None], torch.tensor([[1.0, 0.0]]))
    assert float(weighted) == pytest.approx(
        float(sed.relative_quantile_loss(two[:, :1], 0.1 * two[:, :1], 1.1 * one[:1][None]))
    )


def test_sigma_is_positive_and_finite_whatever_the_input():
    network = sed.UaRANet(SMALL).eval()
    flux = torch.ones(3, SMALL.n_input)
    error = torch.tensor([[1e-12], [0.05], [1e6]]).expand(3, SMALL.n_input)
    predicted, sigma = network(flux * torch.tensor([[1.0], [-50.0], [50.0]]), error)
    assert torch.isfinite(predicted).all()
    assert (predicted > 0).all()
    assert torch.isfinite(sigma).all()
    assert (sigma >= np.exp(-9.01)).all()


def test_errors_beyond_the_trained_noise_are_scaled_from_the_nearest():
    torch.manual_seed(0)
    network = sed.UaRANet(SMALL).eval()
    with torch.no_grad():
        network.log_sigma.weight *= 3  # so that the noise matters
        network.log_sigma.bias -= 1.5  # far from the bounds
    flux = 1 + 0.1 * torch.randn(1, SMALL.n_input)

    def sigma(snr):
        return network(flux, torch.full((1, SMALL.n_input), 1 / snr))[1]

    assert not torch.allclose(sigma(20.0), sigma(40.0), rtol=0.01)
    torch.testing.assert_close(sigma(160.0), sigma(40.0) / 2, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(sigma(10.0), sigma(20.0) * 2, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize(
    "bad", [{"units": ((8, 3, 2), (4, 3, 1))}, {"first": (4, 2, 2)}, {"n_output": 0}, {"hidden": ()}]
)
def test_impossible_architectures_are_refused(bad):
    with pytest.raises(ValueError, match=r"must|needs"):
        sed.Architecture(**bad)


# -- augmentation -------------------------------------------------------------------------------------------------


def test_noise_is_that_of_equation_1_and_follows_from_the_seed():
    spectra = sed_stars.spectra(30)
    augmenter = Augmenter(spectra, sed.Augmentation(snr=(20.0, 40.0)))
    which = torch.arange(30).repeat(40)
    flux, error, target, weight = augmenter(which, (1, 2))
    assert weight is None
    torch.testing.assert_close(target, torch.as_tensor(spectra.sed)[which])
    clean = normalized(torch.as_tensor(spectra.flux))[which]
    levels = error[:, 0]
    assert sorted(levels.unique().tolist()) == pytest.approx([1 / 40, 1 / 20])
    for snr in (20, 40):
        part = torch.isclose(levels, torch.tensor(1.0 / snr))
        relative = (flux / clean - 1)[part]
        # the continuum takes 1/51 of the variance away
        assert float(relative.std()) * snr == pytest.approx(np.sqrt(1 - 1 / 51), rel=0.01)
        assert 0.4 < float(part.float().mean()) < 0.6
    again = augmenter(which, (1, 2))[0]
    assert torch.equal(flux, again)
    assert not torch.equal(flux, augmenter(which, (1, 3))[0])


def test_torch_and_numpy_continua_agree():
    flux = sed_stars.spectra(5).flux
    np.testing.assert_allclose(normalized(torch.as_tensor(flux)).numpy(), sed.normalize_flux(flux)[0], rtol=1e-5)


def test_a_smoothed_bootstrap_keeps_mean_covariance_and_group():
    rng = np.random.default_rng(0)
    spectra = sed_stars.spectra(80)
    # two numbers a star, different in the two groups; few pixels carry them
    group = np.where(np.arange(80) % 2 == 0, "F", "G")
    numbers = rng.normal(0, 0.03, (80, 2)) + np.where(group == "F", 1.0, 2.0)[:, None]
    flux = np.repeat(numbers, [100, spectra.flux.shape[1] - 100], axis=1).astype(np.float32)
    # a SED that is linear in the same numbers must stay so
    target = np.repeat(numbers.sum(1, keepdims=True), spectra.sed.shape[1], axis=1).astype(np.float32)
    marked = dataclasses.replace(spectra, flux=flux, sed=target, group=group)
    augmenter = Augmenter(marked, sed.Augmentation(snr=(1e6,), smooth=1.0))
    which = torch.arange(80).repeat(100)
    made, made_sed, _ = augmenter._smoothed(
        which, augmenter.flux[which], augmenter.sed[which], None, torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(made[:, 0] + made[:, -1], made_sed[:, 0], rtol=1e-4, atol=1e-4)
    assert torch.equal(made[:, 0], made[:, 50])
    for name in "FG":
        mine = group[which.numpy()] == name
        x = made.numpy()[mine][:, [0, -1]]
        np.testing.assert_allclose(x.mean(0), numbers[group == name].mean(0), atol=2e-3)
        np.testing.assert_allclose(np.cov(x.T), np.cov(numbers[group == name].T), rtol=0.1, atol=2e-5)
    # new stars, not the old ones
    nearest = np.abs(made.numpy()[:500, 0][:, None] - numbers[:, 0]).min(1)
    assert np.median(nearest) > 1e-4


def test_a_star_that_would_be_negative_stays_itself():
    spectra = sed_stars.spectra(30)
    bright = spectra.sed.copy()
    bright[0] *= 100
    odd = dataclasses.replace(spectra, sed=bright)
    augmenter = Augmenter(odd, sed.Augmentation(smooth=1.0))
    for seed in range(5):
        _, _, target, _ = augmenter(torch.arange(30), (seed,))
        assert (target > 0).all()


def test_tilted_noise_has_the_stated_spread():
    augmenter = Augmenter(sed_stars.spectra(10), sed.Augmentation(snr=(30.0,), snr_tilt=0.3))
    _, error, _, _ = augmenter(torch.arange(10).repeat(100), (0,))
    logs = torch.log(error * 30)
    assert float((logs**2).mean().sqrt()) == pytest.approx(0.3, rel=0.1)
    assert float(logs.mean()) == pytest.approx(0, abs=0.03)


def test_an_error_of_the_velocity_shifts_lines():
    w = sed_stars.INPUT.wavelength
    line = (1 - 0.5 * np.exp(-0.5 * ((w - 5500) / 12) ** 2)).astype(np.float32)
    spectra = dataclasses.replace(sed_stars.spectra(1), flux=line[None])
    # a recession moves a line to the red, by a fraction of a pixel
    moved = _shifted(torch.as_tensor(line[None]), torch.tensor([[0.3]]))[0].numpy()
    centre = np.sum((1 - moved) * w) / np.sum(1 - moved)
    assert centre / 5500 - 1 == pytest.approx(0.3 * sed_stars.INPUT.step, rel=0.02)
    flux, *_ = Augmenter(spectra, sed.Augmentation(snr=(1e6,), rv_error=30.0))(torch.zeros(500, dtype=int), (0,))
    still = normalized(torch.as_tensor(line[None]))[0].numpy()
    slope = np.gradient(still, np.log(w))
    velocity = -299792.458 * (flux.numpy() - still) @ slope / np.sum(slope**2)
    assert np.std(velocity) == pytest.approx(30, rel=0.12)
    assert abs(np.mean(velocity)) < 5


def test_dust_reddens_the_input_and_not_the_sed():
    pytest.importorskip("dust_extinction")
    from lamost_lsf.sed.dust import extinction_curve

    # E(B-V) is what it says, at about the effective wavelengths of B and V, and more dust is redder
    b, v = extinction_curve(np.array([4400.0, 5500.0]))
    assert b - v == pytest.approx(1.0, abs=0.1)
    assert v == pytest.approx(3.1, abs=0.1)
    spectra = sed_stars.spectra(1)
    plain = Augmenter(spectra, sed.Augmentation(snr=(1e6,)))
    dusty = Augmenter(spectra, sed.Augmentation(snr=(1e6,), reddening=1.0))
    which = torch.zeros(50, dtype=int)
    (x, _, y, _), (a, _, c, _) = plain(which, (0,)), dusty(which, (0,))
    torch.testing.assert_close(y, c)
    # most is in the continuum: what is left in the normalised flux is at the ends
    assert 1e-4 < float((x - a).abs().max()) < 0.05


@pytest.mark.parametrize("bad", [{"snr": ()}, {"snr": (0,)}, {"smooth": 2}, {"smooth": -0.1}, {"reddening": np.nan}])
def test_impossible_augmentations_are_refused(bad):
    with pytest.raises(ValueError, match="must"):
        sed.Augmentation(**bad)


# -- training -----------------------------------------------------------------------------------------------------


def test_a_trained_network_is_far_better_than_the_mean_star(trained):
    model, history = trained
    losses = history.to_table()["validation_loss"]
    assert losses[-1] < losses[0] - 1
    test = sed_stars.spectra(40, seed=9)
    residuals = sed.evaluate(model, test, (30.0,))
    mean_star = sed_stars.spectra(60).sed.mean(0) / test.sed - 1
    blue = model.output_grid.select(4000, 4500)
    assert robust_scatter(residuals.residual)[blue].mean() < 0.25 * robust_scatter(mean_star)[blue].mean()
    # errors are of the right size
    assert 0.5 < np.median(residuals.by_wavelength()["pull"]) < 2.0


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, trained):
    class KilledError(Exception):
        pass

    def kill(phase, step, steps, loss):
        if step == 60:
            raise KilledError

    path = tmp_path / "state.safetensors"
    arguments = (sed_stars.spectra(60), QUICK)
    with pytest.raises(KilledError):
        sed.pretrain(*arguments, architecture=SMALL, checkpoint=path, progress=kill)
    assert path.exists()
    seen = []
    model, history = sed.pretrain(
        *arguments, architecture=SMALL, checkpoint=path, progress=lambda *told: seen.append(told[1])
    )
    assert seen[0] > 40  # it did not begin anew
    for name, tensor in model.networks[0].state_dict().items():
        assert torch.equal(tensor, trained[0].networks[0].state_dict()[name]), name
    assert list(history.to_table()["validation_loss"]) == list(trained[1].to_table()["validation_loss"])
    # another training does not take it up
    with pytest.raises(FormatError, match="another training"):
        sed.pretrain(
            sed_stars.spectra(60), dataclasses.replace(QUICK, learning_rate=2e-2), architecture=SMALL, checkpoint=path
        )


def test_fine_tuning_is_not_taken_up_from_another_model(tmp_path, trained):
    class KilledError(Exception):
        pass

    def kill(phase, step, steps, loss):
        # the state is written after a validation was told
        if step >= 4:
            raise KilledError

    path = tmp_path / "state.safetensors"
    settings = dataclasses.replace(QUICK, epochs=2, validate_every=2, validation=0.0)
    with pytest.raises(KilledError):
        sed.finetune(trained[0], sed_stars.spectra(30), settings, checkpoint=path, progress=kill)
    other = sed.SEDModel.ensemble([trained[0]])
    other.networks = [copy.deepcopy(trained[0].networks[0])]
    with torch.no_grad():
        other.networks[0].sed.bias += 0.01
    with pytest.raises(FormatError, match="another training"):
        sed.finetune(other, sed_stars.spectra(30), settings, checkpoint=path)
    sed.finetune(trained[0], sed_stars.spectra(30), settings, checkpoint=path)
    with pytest.raises(ValueError, match="network by network"):
        sed.finetune(sed.SEDModel.ensemble([trained[0], other]), sed_stars.spectra(30), settings)


def test_history_is_written_as_ecsv(tmp_path, trained):
    from astropy.table import Table

    trained[1].write(tmp_path / "history.ecsv")
    assert Table.read(tmp_path / "history.ecsv").colnames[:4] == ["phase", "step", "train_loss", "validation_loss"]


def test_fine_tuning_uses_the_part_of_a_sed_that_is_known(trained):
    model, _ = trained
    other = sed_stars.spectra(40, seed=4)
    known = sed_stars.OUTPUT.select(4500, 7000)
    # another library, 20 % fainter beyond 6000 A, known between 4500 and 7000 A only
    target = other.sed * np.where(sed_stars.OUTPUT.wavelength > 6000, 0.8, 1.0)
    target[:, ~known] = np.nan
    other = dataclasses.replace(other, sed=target.astype(np.float32))
    settings = dataclasses.replace(QUICK, epochs=20)
    before = [p.clone() for p in model.networks[0].parameters()]
    tuned, history = sed.finetune(model, other, settings)
    assert all(torch.equal(a, b) for a, b in zip(before, model.networks[0].parameters(), strict=True))
    assert set(history.to_table()["phase"]) == {"finetune"}
    red = sed_stars.OUTPUT.select(6200, 7000)
    assert abs(np.nanmedian(sed.evaluate(model, other, (40.0,)).residual[:, red]) - 0.25) < 0.05
    assert abs(np.nanmedian(sed.evaluate(tuned, other, (40.0,)).residual[:, red])) < 0.02
    # what each pixel's answer rests on
    np.testing.assert_array_equal(model.coverage, 2)
    np.testing.assert_array_equal(tuned.coverage, np.where(known, 2, 1))
    wrong = sed.prepare_set(
        sed_stars.library(3), input_grid=sed_stars.INPUT, output_grid=sed.WavelengthGrid(50, 4000, 7500)
    )
    with pytest.raises(ValueError, match="grids"):
        sed.finetune(model, wrong)


def test_the_last_stage_makes_errors_that_hold_68_percent_and_keeps_features(trained):
    model, _ = trained
    stars = sed_stars.spectra(60)
    wrong = sed.SEDModel.ensemble([model])
    wrong.networks = [copy.deepcopy(model.networks[0])]
    with torch.no_grad():
        wrong.networks[0].log_sigma.bias += 1.0  # errors 2.7 times too large, and a tilted SED
        wrong.networks[0].sed.bias += 0.05
    flux, _ = noisy_inputs(stars, 30.0)
    before = wrong.networks[0].latent(torch.as_tensor(flux, dtype=torch.float32)).detach()
    off = sed.evaluate(wrong, stars, (30.0,))
    assert np.mean(np.abs(off.residual) < off.sigma) > 0.85
    assert abs(np.mean(off.residual > 0) - 0.5) > 0.1
    settings = dataclasses.replace(QUICK, epochs=60, learning_rate=3e-3, validation=0.0)
    fitted, history = sed.fit_quantiles(wrong, stars, settings)
    assert set(history.to_table()["phase"]) == {"quantiles"}
    after = fitted.networks[0].latent(torch.as_tensor(flux, dtype=torch.float32)).detach()
    assert torch.equal(before, after)
    r = sed.evaluate(fitted, stars, QUICK.augmentation.snr, repeats=3)
    assert np.mean(np.abs(r.residual) < r.sigma) == pytest.approx(0.6827, abs=0.06)
    assert abs(np.mean(r.residual > 0) - 0.5) < 0.04
    # the model that it began from is as it was, and all weights can be trained again
    again = sed.evaluate(wrong, stars, (30.0,))
    np.testing.assert_array_equal(again.residual, off.residual)
    assert all(p.requires_grad for p in fitted.networks[0].parameters())
    other = sed.WavelengthGrid(60, 4200, 7500)
    known = stars.output_grid.wavelength >= other.wavelength[0]
    part = dataclasses.replace(stars, output_grid=other, sed=stars.sed[:, known][:, -len(other) :])
    with pytest.raises(ValueError, match="grids"):
        sed.fit_quantiles(model, part)


def test_settings_are_checked():
    for bad in ({"epochs": 0}, {"learning_rate": 0}, {"validation": 1.0}, {"batch_size": 0}, {"validate_every": 0}):
        with pytest.raises(ValueError, match="must"):
            sed.TrainSettings(**bad)
    with pytest.raises(ValueError, match="architecture has 2238"):
        sed.pretrain(sed_stars.spectra(4), QUICK, architecture=sed.Architecture())
    assert (sed.PAPER_PRETRAIN.epochs, sed.PAPER_PRETRAIN.batch_size, sed.PAPER_PRETRAIN.learning_rate) == (
        3000,
        2048,
        1e-3,
    )
    assert (sed.PAPER_FINETUNE.epochs, sed.PAPER_FINETUNE.batch_size) == (200, 32)


# -- models and predictions ---------------------------------------------------------------------------------------


def test_a_model_survives_its_file(tmp_path, trained):
    model, _ = trained
    path = tmp_path / "model.safetensors"
    model.write(path)
    with pytest.raises(FileExistsError):
        model.write(path)
    again = sed.SEDModel.read(path)
    flux, error = noisy_inputs(sed_stars.spectra(5), 25)
    for a, b in zip(model.evaluate_networks(flux, error), again.evaluate_networks(flux, error), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (again.snr_range, again.teff_range, again.input_grid) == (model.snr_range, model.teff_range, sed_stars.INPUT)
    assert again.meta["pretrain"]["epochs"] == 40
    np.testing.assert_allclose(again.domain.measure(flux, error), model.domain.measure(flux, error), rtol=1e-3)
    with pytest.raises(TypeError, match="meta"):
        sed.SEDModel(
            model.networks, model.input_grid, model.output_grid, model.domain, snr_range=(20, 40), meta={"a": object()}
        ).write(tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_factors_of_the_errors_are_applied_kept_and_dropped(tmp_path, trained):
    model, _ = trained
    flux, error = noisy_inputs(sed_stars.spectra(5), 40.0)
    value, plain, _ = model.evaluate_networks(flux, error)
    n = len(model.output_grid)
    factor = np.stack([np.full((1, n), 3.0), np.linspace(1, 2, n)[None]])
    scaled = sed.SEDModel(
        model.networks, model.input_grid, model.output_grid, model.domain, snr_range=model.snr_range,
        error_scale=sed.ErrorScale([20.0, 40.0], [0.0], factor),
    )  # fmt: skip
    scaled.write(tmp_path / "scaled.safetensors")
    for one in (scaled, sed.SEDModel.read(tmp_path / "scaled.safetensors")):
        again, larger, _ = one.evaluate_networks(flux, error)
        np.testing.assert_array_equal(again, value)
        np.testing.assert_allclose(larger / plain, np.broadcast_to(factor[1, 0], plain.shape), rtol=1e-6)
        _, noisier, _ = one.evaluate_networks(flux, 2 * error)
        np.testing.assert_allclose(noisier / model.evaluate_networks(flux, 2 * error)[1], 3.0, rtol=1e-6)
    # errors that are fitted anew have none, nor has an ensemble
    assert sed.SEDModel.ensemble([scaled, scaled]).error_scale is None
    settings = dataclasses.replace(QUICK, epochs=1, validation=0.0)
    assert sed.fit_quantiles(scaled, sed_stars.spectra(20), settings)[0].error_scale is None
    with pytest.raises(ValueError, match="do not fit a grid"):
        sed.SEDModel(
            model.networks, model.input_grid, model.output_grid, model.domain, snr_range=(20, 40),
            error_scale=sed.ErrorScale([20.0], [0.0], np.ones((1, 1, 7))),
        )  # fmt: skip


def test_damaged_and_foreign_files_are_refused(tmp_path, trained):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    trained[0].write(path)
    tensors = load_file(path)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:2000])
    save_file(tensors, tmp_path / "foreign.safetensors")
    save_file(tensors, tmp_path / "new.safetensors", metadata={"lamost-lsf/sed-model": '{"format_version": 99}'})
    tensors.pop("network.0.sed.weight")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, tmp_path / "part.safetensors", metadata=metadata)
    for name, message in (("cut", "readable"), ("foreign", "lack"), ("new", "version 99"), ("part", "damaged")):
        with pytest.raises(FormatError, match=message):
            sed.SEDModel.read(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError):
        sed.SEDModel.read(tmp_path / "none.safetensors")


def test_an_ensemble_adds_the_scatter_of_its_networks(trained):
    model, _ = trained
    other, _ = sed.pretrain(sed_stars.spectra(60), dataclasses.replace(QUICK, seed=5, epochs=20), architecture=SMALL)
    both = sed.SEDModel.ensemble([model, other])
    flux, error = noisy_inputs(sed_stars.spectra(4), 25)
    a, sa, ea = model.evaluate_networks(flux, error)
    b, sb, _ = other.evaluate_networks(flux, error)
    value, aleatoric, epistemic = both.evaluate_networks(flux, error)
    assert np.all(ea == 0)
    np.testing.assert_allclose(value, np.sqrt(a * b), rtol=1e-5)
    np.testing.assert_allclose(aleatoric, np.sqrt((sa**2 + sb**2) / 2), rtol=1e-5)
    np.testing.assert_allclose(epistemic, np.abs(np.log(a / b)) / np.sqrt(2), rtol=1e-2, atol=1e-6)
    twice = sed.SEDModel.ensemble([model, model])
    assert np.all(twice.evaluate_networks(flux, error)[2] == 0)
    with pytest.raises(ValueError, match="at least one"):
        sed.SEDModel.ensemble([])


def test_prediction_is_a_spectrum_with_errors(trained):
    model, _ = trained
    star = sed_stars.observed(3, rv=80.0, snr=30)
    result = sed.predict(model, star, 80 * u.km / u.s)
    true = sed_stars.spectra(60).sed[3]
    assert result.flux.shape == true.shape
    assert result.uncertainty.uncertainty_type == "std"
    pull = (result.flux.value - true) / result.uncertainty.array
    assert np.median(np.abs(pull)) < 3
    assert result.meta["flags"] & sed.SEDFlag.FAR_FROM_TRAINING == 0
    # the scale is the user's
    scaled = sed.predict(model, star, 80 * u.km / u.s, reference_flux=2e-15 * u.erg / u.s / u.cm**2 / u.AA)
    np.testing.assert_allclose(scaled.flux.value, 2e-15 * result.flux.value)
    np.testing.assert_allclose(scaled.uncertainty.array, 2e-15 * result.uncertainty.array)
    assert scaled.flux.unit == u.erg / u.s / u.cm**2 / u.AA


def test_pixels_that_no_star_covered_are_not_predicted(tmp_path, trained):
    stars = sed_stars.spectra(30)
    known = stars.output_grid.select(4500, 7600)
    partly = dataclasses.replace(stars, sed=np.where(known, stars.sed, np.nan).astype(np.float32))
    settings = dataclasses.replace(QUICK, epochs=2, validation=0.0)
    model, _ = sed.pretrain(partly, settings, architecture=SMALL)
    np.testing.assert_array_equal(model.coverage, np.where(known, 2, 0))
    model.write(tmp_path / "partly.safetensors")
    for one in (model, sed.SEDModel.read(tmp_path / "partly.safetensors"), sed.SEDModel.ensemble([trained[0], model])):
        result = sed.predict(one, [sed_stars.observed(1)], 0 * u.km / u.s)
        np.testing.assert_array_equal(np.isfinite(result.flux.value[0]), known)
        np.testing.assert_array_equal(result.mask[0], ~known)
        np.testing.assert_array_equal(result.meta["coverage"] > 0, known)
    # stars that know more do not make the model know it
    assert np.isnan(sed.evaluate(model, stars, (30.0,)).residual[:, ~known]).all()
    with pytest.raises(ValueError, match="coverage must be"):
        sed.SEDModel(
            model.networks, model.input_grid, model.output_grid, model.domain, snr_range=(20, 40), coverage=[1, 2]
        )


def test_a_batch_is_its_spectra_one_by_one_and_survives_bad_ones(trained):
    model, _ = trained
    stars = [sed_stars.observed(k, rv=10.0 * k, seed=k) for k in range(5)]
    stars[2] = Spectrum(flux=stars[2].flux, spectral_axis=stars[2].spectral_axis)
    rv = 10 * np.arange(5) * u.km / u.s
    with pytest.warns(FitWarning, match="1 of 5.*no uncertainty"):
        batch = sed.predict(model, stars, rv, batch_size=2)
    assert batch.meta["flags"][2] == sed.SEDFlag.FAILED
    assert np.all(np.isnan(batch.flux.value[2]))
    assert np.all(batch.mask[2])
    for k in (0, 1, 3, 4):
        one = sed.predict(model, stars[k], rv[k])
        np.testing.assert_allclose(batch.flux.value[k], one.flux.value, rtol=1e-4)
        np.testing.assert_allclose(batch.uncertainty.array[k], one.uncertainty.array, rtol=1e-3)
    with pytest.raises(ValueError, match="no uncertainty"):
        sed.predict(model, stars[2], rv[2])


def test_predictions_that_are_not_to_be_trusted_are_flagged(trained):
    model, _ = trained
    star, rv = sed_stars.observed(1, snr=30), 0 * u.km / u.s
    with pytest.warns(CoverageWarning, match="unlike the training set"):
        wrong = sed.predict(model, star, 900 * u.km / u.s)
    assert wrong.meta["flags"] & sed.SEDFlag.FAR_FROM_TRAINING
    noisy = sed.predict(model, sed_stars.observed(1, snr=8), rv)
    assert noisy.meta["flags"] & sed.SEDFlag.LOW_SNR
    assert sed.predict(model, sed_stars.observed(1, snr=33), rv).meta["flags"] == 0
    hot = sed.predict(model, star, rv, teff=12000 * u.K)
    assert hot.meta["flags"] == sed.SEDFlag.TEFF_RANGE
    assert sed.predict(model, star, rv, teff=6000 * u.K).meta["flags"] == 0
    assert sed.predict(model, star, rv, teff=np.nan * u.K).meta["flags"] == 0  # not known
    # an object that is no star by its header
    star.meta["class"] = "GALAXY"
    with pytest.warns(CoverageWarning):
        galaxy = sed.predict(model, star, rv)
    assert galaxy.meta["flags"] == sed.SEDFlag.FAR_FROM_TRAINING
    assert "GALAXY" in galaxy.meta["messages"]
    # noisier spectra have larger errors
    assert np.median(noisy.meta["aleatoric"]) > np.median(hot.meta["aleatoric"])


def test_lines_of_the_sky_do_not_make_a_star_another_kind_of_object(trained):
    model, _ = trained
    star = sed_stars.observed(2, rv=-300.0, snr=30)
    rv = -300 * u.km / u.s
    assert sed.predict(model, star, rv).meta["flags"] == 0
    w = star.spectral_axis.to_value(u.AA)
    flux = star.flux.value * (1 + 0.8 * ((w > 5576) & (w < 5582)) - 0.5 * ((w > 5889) & (w < 5899)))
    sky = Spectrum(
        flux=flux * u.one, spectral_axis=star.spectral_axis, uncertainty=star.uncertainty, meta=dict(star.meta)
    )
    assert sed.predict(model, sky, rv).meta["flags"] == 0
    # at any other wavelength they do
    other = Spectrum(
        flux=np.roll(flux, 150) * u.one, spectral_axis=star.spectral_axis, uncertainty=star.uncertainty, meta=star.meta
    )
    with pytest.warns(CoverageWarning):
        assert sed.predict(model, other, rv).meta["flags"]


def test_hopeless_noise_gives_no_sed(trained):
    model, _ = trained
    with pytest.raises(ValueError, match=r"SNR of 3\.\d is too low"):
        sed.predict(model, sed_stars.observed(1, snr=3), 0 * u.km / u.s)


def test_bad_arguments_of_predict_are_refused(trained):
    model, _ = trained
    star, rv = sed_stars.observed(), 0 * u.km / u.s
    for reference in (0 * u.Jy, -1 * u.Jy, np.nan * u.Jy):
        with pytest.raises(ValueError, match="reference_flux must be positive"):
            sed.predict(model, star, rv, reference_flux=reference)
    for reference in (1 * u.Jy, 3 * u.km):
        with pytest.raises(TypeError, match="per wavelength"):
            sed.predict(model, star, rv, reference_flux=reference)
    with pytest.raises(TypeError, match="SEDModel"):
        sed.predict("model.safetensors", star, rv)
    with pytest.raises(ValueError, match="device must be auto, cpu"):
        sed.predict(model, star, rv, device="moon")
    with pytest.raises(ValueError, match="batch_size"):
        sed.predict(model, star, rv, batch_size=0)
    with pytest.raises(ValueError, match="rv must be one value or 2"):
        sed.predict(model, [star, star], [1, 2, 3] * u.km / u.s)
    with pytest.raises(TypeError, match="teff must be"):
        sed.predict(model, star, rv, teff=5 * u.AA)
    with pytest.raises(ValueError, match="no spectrum"):
        sed.predict(model, [])
    with pytest.raises(TypeError, match="Spectrum"):
        sed.predict(model, "file.fits")
    with pytest.raises(OutOfRangeError):
        sed.predict(model, star, 20000 * u.km / u.s)
    with pytest.raises(ValueError, match="pixels, got"):
        model.evaluate_networks(np.ones((1, 10)), 0.1)


# -- evaluation ---------------------------------------------------------------------------------------------------


def test_summaries_recover_planted_residuals():
    rng = np.random.default_rng(0)
    n, grid = 4000, sed.OUTPUT_GRID
    scatter = np.where(grid.wavelength < 4200, 0.1, 0.02)
    residual = 0.005 + rng.normal(0, 1, (n, len(grid))) * scatter
    residual[::50] = 30.0  # outliers do not matter
    residual[:, :5] = np.nan
    sigma = np.broadcast_to(2 * scatter, residual.shape)
    group = np.array(["F", "G"])[np.arange(n) % 2]
    one = np.ones_like(residual)
    table = sed.summarize(Residuals(grid, residual, sigma, group, np.full(n, 20.0), np.arange(n), one, one))
    assert sorted(set(table["group"])) == ["F", "G"]
    gu = table[(table["group"] == "G") & (table["band"] == "GU")][0]
    gi = table[(table["group"] == "G") & (table["band"] == "GI")][0]
    assert gu["n"] == n // 2
    assert gu["scatter"] == pytest.approx(0.1, rel=0.05)
    assert gi["scatter"] == pytest.approx(0.02, rel=0.05)
    assert gi["median"] == pytest.approx(0.005, abs=1e-3)
    assert gi["ratio"] == pytest.approx(2, rel=0.05)
    assert gi["bias"] == pytest.approx(0.125, rel=0.2)


def test_a_class_of_one_star_has_no_scatter():
    grid = sed_stars.OUTPUT
    one = np.ones((3, len(grid)))
    residual = np.random.default_rng(0).normal(0, 0.1, one.shape)
    table = sed.summarize(
        Residuals(grid, residual, 0.1 * one, np.array(["F", "F", "s"]), np.full(3, 20.0), np.arange(3), one, one)
    )
    assert set(table["group"]) == {"F"}
    assert robust_scatter(np.empty((5, 0))).shape == (0,)


def test_residuals_are_joined():
    stars = sed_stars.spectra(4)
    part = Residuals(stars.output_grid, *(np.arange(4.0)[:, None] * np.ones(len(stars.output_grid)),) * 2, stars.group,
                     np.full(4, 20.0), np.arange(4), stars.sed, stars.sed)  # fmt: skip
    both = Residuals.concatenate([part, part.select(snr=20.0)])
    np.testing.assert_array_equal(both.index, np.arange(8))
    np.testing.assert_array_equal(both.residual[:, 0], [0, 1, 2, 3, 0, 1, 2, 3])
    other = dataclasses.replace(part, grid=sed.OUTPUT_GRID)
    for bad in ([], [part, other]):
        with pytest.raises(ValueError, match="one grid"):
            Residuals.concatenate(bad)


def test_root_mean_square_error_of_a_star():
    residual = np.array([[0.3, -0.4, np.nan], [0.1, 0.1, 0.1]])
    grid = sed.WavelengthGrid(10, 5000, 5900)
    grid = sed.WavelengthGrid(10, 5000, 5000 * np.exp(0.05 * 3.5))
    other = np.ones((2, 3))
    r = Residuals(grid, residual, other, np.array(["F", "F"]), np.ones(2), np.arange(2), other, other)
    np.testing.assert_allclose(r.rmsae, [np.sqrt(0.125), 0.1])
