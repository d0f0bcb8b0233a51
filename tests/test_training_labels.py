"""Labels besides time, fibre and wavelength: from an exposure's header to the LSF, on arcs whose width is known."""

import astropy.units as u
import numpy as np
import pytest
from astropy.time import Time
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import ndtr

torch = pytest.importorskip("torch", reason="lamost_lsf.training needs torch")

import lamost_lsf as ll  # noqa: E402
from lamost_lsf.arcs import ArcExposure, extract_profiles  # noqa: E402
from lamost_lsf.cli import main  # noqa: E402
from lamost_lsf.errors import FormatError, OutOfRangeError  # noqa: E402
from lamost_lsf.instruments import get_instrument  # noqa: E402
from lamost_lsf.store import ProfileStore  # noqa: E402
from lamost_lsf.training.campaign import TrainingPlan, train_set  # noqa: E402

LINES = get_instrument("lamost-lrs-blue").lines.vacuum
FIBERS = np.arange(60, 92)
SETTINGS = {
    "expanded": {"epochs": 20, "refine_epochs": 5, "rounds": 2, "min_steps": 300, "hidden": 32, "batch_size": 512},
    "payne": {"hidden": 40, "epochs": 40, "batch_size": 256, "learning_rate": 4e-3},
}


def width(fiber, wavelength, temperature):
    """Standard deviation, Angstrom, of the truth: a Gaussian whose width a temperature changes by some 20 %."""
    place = (wavelength - 4900.0) / 900.0
    return 1.4 + 0.05 * place + 1e-3 * (fiber - 75) + (temperature - 5.0) * (0.024 + 0.008 * place)


def arcs(n, seed, nights=None, temperatures=(-5.0, 15.0)):
    """One exposure a night; temperatures have nothing to do with the time."""
    rng = np.random.default_rng(seed)
    # fibres see a line at different places within a pixel
    axis = np.arange(4000.0, 5850.0, 1.4) + rng.uniform(0, 1.4, (FIBERS.size, 1))
    edges = np.append(axis - 0.7, axis[:, -1:] + 0.7, axis=1)
    out = []
    for night in np.arange(n) * 3 if nights is None else nights:
        t = rng.uniform(*temperatures)
        flux = np.full(axis.shape, 40.0)
        for w in LINES:
            s = width(FIBERS[:, None], w, t)
            flux += 2e4 * s[:1] * np.diff(ndtr((edges - w) / s), axis=1) / 1.4
        noisy = flux + rng.normal(size=flux.shape) * np.sqrt(flux)
        meta = {"temperature": t * u.deg_C, "labels": {"humidity": rng.uniform(10, 90)}}
        time = Time("2016-10-02T14:00") + int(night) * u.day
        out.append(
            ArcExposure.from_arrays(
                noisy,
                1 / flux,
                axis * u.AA,
                medium="vacuum",
                time=time,
                fiber=FIBERS,
                arm="blue",
                instrument="lamost-lrs-blue",
                meta=meta,
            )
        )
    return out


def profiles_of(exposures):
    sets = [extract_profiles(a) for a in exposures]
    return sets[0].concatenate(*sets[1:])


@pytest.fixture(scope="module")
def season():
    return profiles_of(arcs(24, 1))


@pytest.fixture(scope="module")
def others():
    """Nights between those of the season."""
    return profiles_of(arcs(10, 2, nights=np.arange(10) * 6 + 4, temperatures=(-3.0, 13.0)))


@pytest.fixture(scope="module")
def models(season):
    return {
        (recipe, labels): ll.train(season, recipe=recipe, settings=settings, labels=labels)[0]
        for recipe, settings in SETTINGS.items()
        for labels in ((), ("temperature",))
    }


def shuffled(profiles, seed=3):
    """Temperatures dealt to other exposures."""
    table = profiles.exposures.copy()
    table["temperature"] = np.random.default_rng(seed).permutation(table["temperature"])
    return type(profiles)(**{**vars(profiles), "exposures": table})


def error_of(model, others):
    """Root mean square error of predicted profiles, in units of the peak, on nights that were not trained on."""
    table, fiber = others.exposures, FIBERS[::5]
    x = model.offset
    errors = []
    for i in range(len(table)):
        t = float(table["temperature"][i])
        labels = {"temperature": t} if model.extra_labels else None
        for w in LINES:
            flux = model.profile(time=Time(table["time"][i]), fiber=fiber, wavelength=w * u.AA, labels=labels).flux
            s = width(fiber[:, None], w, t)
            # what is learned from pixels contains the pixel
            truth = ndtr((x + 0.7) / s) - ndtr((x - 0.7) / s)
            errors.append(flux / flux.max(axis=1, keepdims=True) - truth / truth.max(axis=1, keepdims=True))
    return np.sqrt(np.mean(np.square(errors)))


@pytest.mark.parametrize("recipe", ["expanded", "payne"])
def test_a_temperature_that_is_known_is_learned(models, season, others, recipe):
    with_label, without = models[recipe, ("temperature",)], models[recipe, ()]
    error, blind = error_of(with_label, others), error_of(without, others)
    # temperatures scatter by 6 deg C, and widths by 10 %, of which nothing but the label tells
    assert blind > 0.015
    assert error < blind / (8 if recipe == "expanded" else 3)
    misled = ll.train(shuffled(season), recipe=recipe, settings=SETTINGS[recipe], labels=("temperature",))[0]
    assert error_of(misled, others) > blind / 2


def test_held_out_pixels_are_fitted_to_the_noise_with_the_label_only(models, others):
    result = {k: ll.evaluate(m, others).summary()[0]["chi2_per_dof"] for k, m in models.items()}
    assert result["expanded", ("temperature",)] < 1.1
    assert result["expanded", ()] > 1.5
    swapped = ll.evaluate(models["expanded", ("temperature",)], shuffled(others)).summary()[0]["chi2_per_dof"]
    assert swapped > 1.5


@pytest.mark.parametrize("recipe", ["expanded", "payne"])
def test_a_file_keeps_the_labels(models, season, recipe, tmp_path):
    model = models[recipe, ("temperature",)]
    model.write(tmp_path / "m.safetensors")
    again = ll.NeuralIP.read(tmp_path / "m.safetensors")
    assert list(again.extra_labels) == ["temperature"]
    temperature = np.asarray(season.exposures["temperature"])
    assert temperature.min() <= again.extra_labels["temperature"] <= temperature.max()
    assert_allclose([again.label_min[3], again.label_max[3]], [temperature.min(), temperature.max()])
    where = {"time": Time("2016-10-20T14:00"), "fiber": 70, "wavelength": 5000 * u.AA, "labels": {"temperature": 6.5}}
    assert_array_equal(again.profile(**where).flux, model.profile(**where).flux)


def test_labels_in_every_way_of_asking(models):
    model = models["expanded", ("temperature",)]
    when = {"time": Time("2016-10-20T14:00"), "fiber": 70}
    # what the network and the terms make of the label itself
    bound = model.with_labels({"temperature": 9.0})
    ip = model.profile(**when, wavelength=5000 * u.AA, labels={"temperature": 9.0})
    assert_array_equal(bound.profile(**when, wavelength=5000 * u.AA).flux, ip.flux)
    assert bound.meta["labels"] == {"temperature": 9.0}
    assert bound.extra_labels == {}
    assert model.extra_labels
    values = np.array([[-1.0], [9.0]])
    both = model.profile(**when, wavelength=[4800, 5000, 5200] * u.AA, labels={"temperature": values})
    assert both.shape == both.error.shape[:-1] == (2, 3)
    assert_allclose(both.flux[1, 1], ip.flux, atol=1e-7)
    assert_allclose(both.error[1, 1], ip.error, rtol=1e-12)
    assert_allclose(both.wavelength.to_value(u.AA), [[4800, 5000, 5200]] * 2)
    assert np.all(both.fwhm[1] > 1.15 * both.fwhm[0])
    lsf = model.at(**when, labels={"temperature": 9.0})
    assert_allclose(lsf.sample(np.array([5000.0]))[0], ip.normalized().flux, atol=1e-7)
    median = model.at(**when, labels="median").profile(5000 * u.AA).fwhm
    assert both.fwhm[0, 1] < median < both.fwhm[1, 1]
    # a co-add of a cold and a warm exposure
    times = when["time"] + [0, 1] * u.h
    coadd = model.at(time=times, fiber=70, labels={"temperature": [-1.0, 9.0]}).sample(np.array([5000.0]))
    parts = [model.at(time=t, fiber=70, labels={"temperature": v}) for t, v in zip(times, (-1.0, 9.0), strict=True)]
    assert_allclose(coadd, np.mean([p.sample(np.array([5000.0])) for p in parts], axis=0), atol=1e-9)
    kernel = model.kernel(**when, wavelength=5000 * u.AA, dispersion=0.5 * u.AA, labels={"temperature": 9.0})
    assert_allclose(kernel.array, ip.to_kernel(dispersion=0.5 * u.AA).array, atol=1e-9)


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        (None, ValueError, r"depends on temperature: pass labels=\{'temperature': ...\}, or labels='median'"),
        ({}, ValueError, "labels must be"),
        ("mean", ValueError, "labels='median'"),
        ({"temperature": 5.0, "humidity": 1.0}, ValueError, "got temperature, humidity"),
        ({"temperature": np.nan}, ValueError, "must be finite"),
        ({"temperature": "warm"}, ValueError, "must be a number"),
        ({"temperature": 40.0}, OutOfRangeError, "temperature must be -.* to .* in this model, got 40"),
        ({"temperature": [5.0, 40.0]}, OutOfRangeError, "got 40"),
    ],
)
def test_labels_that_are_missing_or_wrong_are_refused(models, labels, error, match):
    model = models["payne", ("temperature",)]
    when = {"time": Time("2016-10-20T14:00"), "fiber": 70}
    with pytest.raises(error, match=match):
        model.profile(**when, wavelength=5000 * u.AA, labels=labels)
    if not isinstance(labels, dict) or np.ndim(labels.get("temperature", 0)) == 0:
        with pytest.raises(error, match=match):
            model.at(**when, labels=labels)


def test_a_model_without_extra_labels_refuses_them(models):
    when = {"time": Time("2016-10-20T14:00"), "fiber": 70}
    with pytest.raises(ValueError, match="labels must be"):
        models["payne", ()].profile(**when, wavelength=5000 * u.AA, labels={"temperature": 5.0})
    with pytest.raises(ValueError, match="labels must be"):
        ll.GaussianIP(1800).at(labels={"temperature": 5.0})


def test_an_extrapolated_label_may_be_asked_for(models):
    model = models["payne", ("temperature",)]
    where = {"time": Time("2016-10-20T14:00"), "fiber": 70, "wavelength": 5000 * u.AA, "labels": {"temperature": 18.0}}
    assert model.profile(**where, extrapolate=True).fwhm > model.profile(**where | {"labels": "median"}).fwhm


# -- where labels come from ----------------------------------------------------------------------------------


def test_labels_travel_from_the_exposure_through_files_and_stores(tmp_path):
    given = arcs(4, 5)
    given[0].write(tmp_path / "arc.fits")
    again = ArcExposure.read(tmp_path / "arc.fits")
    assert again.meta["labels"] == given[0].meta["labels"]
    together = profiles_of(given)
    humidity = [a.meta["labels"]["humidity"] for a in given]
    assert_array_equal(together.exposures["humidity"], humidity)
    store = ProfileStore(tmp_path / "01_b_2017.profiles")
    for i in (2, 0, 3, 1):
        store.append(extract_profiles(given[i]))
    assert_array_equal(store.exposures["humidity"], np.array(humidity)[[2, 0, 3, 1]])
    settings = {"epochs": 1, "hidden": 8}
    model, _ = ll.train(store, recipe="payne", settings=settings, labels=("humidity", "temperature"))
    assert list(model.extra_labels) == ["humidity", "temperature"]
    assert model.label_min[3] == min(humidity)
    # the labels are the exposure's own, whatever the order of appending
    result = ll.evaluate(model, store).by("exposure")
    direct = ll.evaluate(model, together).by("exposure")
    assert_allclose(result["chi2_per_dof"], direct["chi2_per_dof"][[2, 0, 3, 1]], rtol=1e-6)


def test_a_label_that_an_exposure_lacks_is_refused(tmp_path):
    given = arcs(4, 6)
    bare = ArcExposure(**{**vars(given[1]), "meta": {}})
    sets = [extract_profiles(a) for a in (given[0], bare, *given[2:])]
    store = ProfileStore(tmp_path / "01_b_2017.profiles")
    for s in sets:
        store.append(s)
    for data in (store, sets[0].concatenate(*sets[1:])):
        for name in ("temperature", "humidity"):
            with pytest.raises(ValueError, match=f"1 of 4 exposures have no {name}, the first of 2016-10-05"):
                ll.train(data, labels=(name,))
        with pytest.raises(ValueError, match="no label 'pressure'; they have temperature, humidity"):
            ll.train(data, labels=("pressure",))
        with pytest.raises(ValueError, match="different names"):
            ll.train(data, labels="temperature")
    with pytest.raises(ValueError, match="nothing can be learned"):
        ll.train(sets[0], labels=("temperature",))
    # a column of the same name that is something else
    other = ArcExposure(**{**vars(given[1]), "time": given[1].time + 1 * u.h, "meta": {}})
    strange = extract_profiles(other)
    strange.exposures["humidity"] = ["damp"]
    with pytest.raises(ValueError, match="humidity"):
        store.append(strange)


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        ([1.0], TypeError, "dict"),
        ({"a b": 1.0}, ValueError, "variables"),
        ({"temperature": 1.0}, ValueError, "column of all exposures"),
        ({"humidity": 3 * u.percent}, TypeError, "plain number"),
        ({"humidity": True}, TypeError, "plain number"),
    ],
)
def test_labels_that_an_exposure_cannot_have(labels, error, match):
    given = arcs(1, 7)[0]
    with pytest.raises(error, match=match):
        ArcExposure(**{**vars(given), "meta": {"labels": labels}})


def test_a_campaign_trains_with_labels(tmp_path):
    store = ProfileStore(tmp_path / "01_b_2017.profiles")
    for arc in arcs(4, 8):
        store.append(extract_profiles(arc))
    plan = TrainingPlan("payne", {"epochs": 1.0, "hidden": 8}, labels=("temperature",))
    model = tmp_path / "01_b_2017.safetensors"
    assert train_set(store.path, model, plan)["status"] == "trained"
    assert list(ll.NeuralIP.read(model).extra_labels) == ["temperature"]
    assert train_set(store.path, model, plan)["status"] == "finished"
    blind = TrainingPlan("payne", {"epochs": 1.0, "hidden": 8})
    assert train_set(store.path, model, blind)["status"] == "outdated"


def test_the_command_takes_labels(tmp_path, capsys):
    store = ProfileStore(tmp_path / "01_b_2017.profiles")
    for arc in arcs(4, 9):
        store.append(extract_profiles(arc))
    model = tmp_path / "m.safetensors"
    options = ["--recipe", "payne", "--epochs", "1", "--setting", "hidden=8", "-o", str(model)]
    labels = ["--label", "temperature", "--label", "humidity"]
    assert main(["train", str(store.path), *options, *labels, "--leave-out-fiber", str(FIBERS[3])]) == 0
    trained = ll.NeuralIP.read(model)
    assert list(trained.extra_labels) == ["temperature", "humidity"]
    assert trained.meta["training"]["leave_out_fiber"] == FIBERS[3]
    model.unlink()
    assert main(["train", str(store.path), *options, "--label", "pressure"]) != 0
    assert "no label 'pressure'; they have temperature, humidity" in capsys.readouterr().err


def test_checkpoints_of_other_temperatures_are_refused(season, tmp_path):
    settings = {"epochs": 1, "rounds": 1, "min_steps": 40, "hidden": 8}
    options = {"settings": settings, "labels": ("temperature",), "work": tmp_path, "checkpoint_every": 10}

    class KilledError(Exception):
        pass

    def kill(phase, step, steps, loss):
        if step >= 30:
            raise KilledError

    with pytest.raises(KilledError):
        ll.train(season, **options, progress=kill)
    with pytest.raises(FormatError, match="another training"):
        ll.train(shuffled(season), **options)
