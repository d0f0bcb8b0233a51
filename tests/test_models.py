"""IP models: Gaussian, Gauss-Hermite (with a real BOSS PSF) and neural, against independent evaluations."""

import math
from dataclasses import replace
from datetime import datetime

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Legendre
from numpy.testing import assert_allclose, assert_array_equal
from published_weights import AIR_RANGE, WINDOWS, evaluate, lmjm, random_arrays, season_minutes, write_published
from scipy.special import eval_hermitenorm
from specutils.utils.wcs_utils import vac_to_air

from lamost_lsf import GaussHermiteIP, GaussianIP, IPModel, NeuralIP
from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.models import HermiteComponent
from lamost_lsf.models.expansion import Expansion, surface_degrees, surface_functions

WHEN = datetime(2016, 12, 1, 18, 30)
TIME = Time(WHEN)

# -- Gaussian ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wavelength", [2000.0, 3700.0, 5400.0, 12000.0])
def test_gaussian_has_the_resolving_power_asked_for(wavelength):
    ip = GaussianIP(resolving_power=1800).profile(wavelength=wavelength * u.AA)
    assert_allclose(ip.fwhm.to_value(u.AA), wavelength / 1800, rtol=1e-6)
    assert_allclose(ip.skewness, 0, atol=1e-9)
    # cut at 5 sigma: the variance lacks 1.5e-5
    assert_allclose(ip.sigma.to_value(u.AA), wavelength / (2.35482 * 1800), rtol=2e-5)
    # the paper's rounded factor differs by 8e-5
    assert_allclose(ip.sigma.to_value(u.AA), wavelength / (2.355 * 1800), rtol=1e-4)


def test_gaussian_is_cut_at_five_sigma():
    ip = GaussianIP(1800).profile(wavelength=6000 * u.AA)
    sigma = 6000 / 1800 / (2 * math.sqrt(2 * math.log(2)))
    inside = np.abs(ip.offset.value) < 4.99 * sigma
    assert np.all(ip.flux[inside] > 0)
    assert_array_equal(ip.flux[np.abs(ip.offset.value) > 5.001 * sigma], 0)
    assert ip.offset.value[-1] > 5 * sigma
    assert_allclose(ip.flux[inside], np.exp(-0.5 * (ip.offset.value[inside] / sigma) ** 2), rtol=1e-9)
    # a model for narrower profiles only still holds 5 sigma of its widest
    narrow = GaussianIP(7500, wavelength_range=(4900, 6900))
    assert narrow.offset[-1] >= 5 * 6900 / 7500 / 2.35482 * (1 - 1e-6)


def test_resolving_power_may_vary_with_wavelength():
    model = GaussianIP(lambda w: w / 2.8)  # constant FWHM
    ip = model.profile(wavelength=[4000, 6000, 9000] * u.AA)
    assert_allclose(ip.fwhm.value, 2.8, rtol=1e-6)
    assert model.meta["resolving_power"] == "variable"


@pytest.mark.parametrize(
    "power", [0, -1800, np.nan, np.inf, lambda w: np.where(w > 5000, 1800.0, -1.0), lambda w: np.full(w.size, np.nan)]
)
def test_resolving_power_must_be_positive_and_finite(power):
    with pytest.raises(ValueError, match="positive and finite"):
        GaussianIP(power)


def test_gaussian_stands_in_for_any_model_and_keeps_its_range():
    model = GaussianIP(1800)
    assert isinstance(model, IPModel)
    ip = model.profile(time=Time(["2017-01-01", "2017-01-02"])[:, None], fiber=[1, 2, 3], wavelength=5000 * u.AA)
    assert ip.shape == (2, 3)
    assert model.at(time=TIME, fiber=3).profile(5000 * u.AA).shape == ()
    for wavelength in (1999, 12001, np.nan):
        with pytest.raises(OutOfRangeError, match=r"2000.00-12000.00 A"):
            model.profile(wavelength=wavelength * u.AA)
        with pytest.raises(OutOfRangeError):
            model.at().profile(wavelength * u.AA)
    assert_allclose(model.profile(wavelength=13000 * u.AA, extrapolate=True).fwhm.value, 13000 / 1800, rtol=1e-5)
    with pytest.raises(ValueError, match="positive and finite"):
        model.profile(wavelength=np.nan * u.AA, extrapolate=True)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"resolving_power": [1800, 1900]}, "one number"),
        ({"wavelength_range": (5000, 4000)}, "increasing positive"),
        ({"wavelength_range": (0, 4000)}, "increasing positive"),
        ({"truncate": 0}, "truncate"),
        ({"truncate": np.nan}, "truncate"),
        ({"resolving_power": lambda w: np.ones(3)}, "gave shape"),
    ],
)
def test_bad_gaussians_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        GaussianIP(**({"resolving_power": 1800} | arguments))


# -- Gauss-Hermite -------------------------------------------------------------------------------------------


def test_hermite_terms_set_skewness_and_kurtosis():
    # cumulants of a Gram-Charlier series: skewness 6 a3, excess kurtosis 24 a4
    model = GaussHermiteIP.constant(sigma=0.15 * u.nm, coefficients=[1, 0, 0, -0.04, 0.01])
    ip = model.profile(wavelength=[4000, 5000] * u.AA, fiber=7)
    assert_allclose(ip.area, 1, rtol=1e-9)
    assert_allclose(ip.sigma.to_value(u.AA), 1.5, rtol=1e-9)
    assert_allclose(ip.skewness, -0.24, atol=1e-8)
    assert_allclose(ip.kurtosis, 0.24, atol=1e-7)


def brute_force(path, fiber, wavelength, offset):
    """Core of a specex PSF as its header states it: 2-D, integrated over pixels numerically, summed over columns.

    The pixel at row y, away from the line's own Y(wavelength), is put at the wavelength whose trace runs there.
    """
    with fits.open(path) as hdus:
        table, header = hdus[1].data, hdus[1].header
        row = {r["PARAM"].strip(): r for r in table}

    def value(name, at=wavelength):
        r = row[name]
        return Legendre(r["COEFF"].reshape(-1, 8)[fiber - 1], domain=[r["WAVEMIN"], r["WAVEMAX"]])(at)

    y = np.array([value("Y", wavelength + d) for d in offset]) - value("Y")
    node, weight = np.polynomial.legendre.leggauss(12)
    y = y[:, None] + 0.5 * node  # (n_offset, n_node): points within the pixel
    x = np.linspace(-25, 25, 1001)
    total = 0.0
    for gh, number in (("GH", ""), ("GH2", "2")):
        if f"{gh}-0-0" not in row:
            continue
        sx, sy = value(f"GHSIGX{number}"), value(f"GHSIGY{number}")
        column = (
            np.array([eval_hermitenorm(i, x / sx) for i in range(header[f"GHDEGX{number}"] + 1)])
            * np.exp(-0.5 * (x / sx) ** 2)
            / (math.sqrt(2 * math.pi) * sx)
        )
        column = column.sum(axis=-1) * (x[1] - x[0])
        for j in range(header[f"GHDEGY{number}"] + 1):
            across = sum(value(f"{gh}-{i}-{j}") * column[i] for i in range(column.size))
            along = eval_hermitenorm(j, y / sy) * np.exp(-0.5 * (y / sy) ** 2) / (math.sqrt(2 * math.pi) * sy)
            total = total + across * along @ (0.5 * weight)
    return total


@pytest.mark.parametrize("name", ["psf-gausshermite2.fits", "psf-gausshermite.fits"])
@pytest.mark.parametrize(("fiber", "wavelength"), [(1, 5700.0), (13, 7000.0), (25, 7700.0)])
def test_a_real_boss_psf_agrees_with_brute_force_in_two_dimensions(data_dir, name, fiber, wavelength):
    path = data_dir / "psf" / name
    ip = GaussHermiteIP.from_specex(path).profile(fiber=fiber, wavelength=wavelength * u.AA)
    offset = np.linspace(-7, 7, 57)
    truth = brute_force(path, fiber, wavelength, offset)
    ours = ip(offset * u.AA)
    scale = truth.max() / ours.max()
    assert_allclose(scale, 1, rtol=2e-3)
    # the dispersion changes by 1e-4 over the profile, which the model takes as constant
    assert_allclose(ours * scale, truth, atol=1e-3 * truth.max())
    # BOSS is defocused at the ends of its red arm; the other file is DESI's, R 3200-5100
    low, high = (700, 2800) if name == "psf-gausshermite2.fits" else (3200, 5100)
    assert low < wavelength / ip.fwhm.to_value(u.AA) < high


def test_a_boss_psf_is_asymmetric_and_has_its_area_in_the_window(data_dir):
    model = GaussHermiteIP.from_specex(data_dir / "psf" / "psf-gausshermite2.fits")
    assert model.n_fiber == 25
    assert model.wavelength_range == (5460, 10140)
    ip = model.profile(fiber=np.arange(1, 26)[:, None], wavelength=np.linspace(5500, 10100, 40) * u.AA)
    assert ip.shape == (25, 40)
    assert np.ptp(ip.skewness) > 0.1
    # flux per pixel, summed over pixels of 1 / |dY/dwavelength| Angstrom, is that of the two series: 1
    with fits.open(data_dir / "psf" / "psf-gausshermite2.fits") as hdus:
        row = next(r for r in hdus[1].data if r["PARAM"].strip() == "Y")
        trace = Legendre(row["COEFF"].reshape(25, -1)[4], domain=[row["WAVEMIN"], row["WAVEMAX"]]).deriv()
    # but for what lies outside of the window and changes of the dispersion within it
    assert_allclose(ip[4].area * trace(ip[4].wavelength.value), 1, atol=7e-3)


def test_a_trace_that_runs_against_the_wavelength_mirrors_the_profile(data_dir, tmp_path):
    source = data_dir / "psf" / "psf-gausshermite2.fits"
    with fits.open(source) as hdus:
        for r in hdus[1].data:
            if r["PARAM"].strip() == "Y":
                r["COEFF"] = -r["COEFF"]
        hdus.writeto(tmp_path / "reversed.fits")
    where = {"fiber": 9, "wavelength": 6000 * u.AA}
    ip = GaussHermiteIP.from_specex(source).profile(**where)
    mirrored = GaussHermiteIP.from_specex(tmp_path / "reversed.fits").profile(**where)
    assert_allclose(mirrored.flux, ip.flux[::-1], atol=1e-12)
    assert abs(ip.skewness) > 0.01


def test_the_pixel_widens_the_profile_by_its_own_variance(data_dir):
    path = data_dir / "psf" / "psf-gausshermite2.fits"
    where = {"fiber": 9, "wavelength": 6000 * u.AA}
    with_pixel = GaussHermiteIP.from_specex(path, window=(-30, 30)).profile(**where)
    without = GaussHermiteIP.from_specex(path, window=(-30, 30), pixel_integrated=False).profile(**where)
    with fits.open(path) as hdus:
        row = next(r for r in hdus[1].data if r["PARAM"].strip() == "Y")
        trace = Legendre(row["COEFF"].reshape(25, -1)[8], domain=[row["WAVEMIN"], row["WAVEMAX"]]).deriv()
    pixel = 1 / trace(6000.0)  # Angstrom; a box of unit width has variance 1/12
    widening = (with_pixel.sigma**2 - without.sigma**2).to_value(u.AA**2)
    assert_allclose(widening, pixel**2 / 12, rtol=0.01)


@pytest.mark.parametrize("name", ["psf-b0.fits", "psf-r0.fits", "psf-z0.fits"])
def test_another_kind_of_psf_is_refused(data_dir, name):
    with pytest.raises(FormatError, match="PSFTYPE must be GAUSS-HERMITE or GAUSS-HERMITE2"):
        GaussHermiteIP.from_specex(data_dir / "psf" / name)


def test_damaged_psf_files_are_refused(data_dir, tmp_path):
    source = data_dir / "psf" / "psf-gausshermite2.fits"
    raw = source.read_bytes()
    (tmp_path / "truncated.fits").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "text.fits").write_text("not a FITS file")
    for name in ("truncated.fits", "text.fits"):
        with pytest.raises(FormatError, match=name):
            GaussHermiteIP.from_specex(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        GaussHermiteIP.from_specex(tmp_path / "none.fits")
    with fits.open(source) as hdus:
        del hdus[1].header["GHDEGY"]
        hdus.writeto(tmp_path / "header.fits")
        table = hdus[1].data
        hdus[1].data = table[[p.strip() != "GH-0-3" for p in table["PARAM"]]]
        hdus[1].header["GHDEGY"] = 6
        hdus.writeto(tmp_path / "parameter.fits")
    with pytest.raises(FormatError, match="GHDEGY"):
        GaussHermiteIP.from_specex(tmp_path / "header.fits")
    with pytest.raises(FormatError, match="GH-0-3 is missing"):
        GaussHermiteIP.from_specex(tmp_path / "parameter.fits")


def test_fibres_of_a_psf_are_checked(data_dir):
    model = GaussHermiteIP.from_specex(data_dir / "psf" / "psf-gausshermite2.fits")
    for fiber in (0, 26, [1, 30]):
        with pytest.raises(OutOfRangeError, match="1-25"):
            model.profile(fiber=fiber, wavelength=6000 * u.AA, extrapolate=True)
    with pytest.raises(ValueError, match="whole number"):
        model.profile(fiber=1.5, wavelength=6000 * u.AA)
    with pytest.raises(ValueError, match="depends on the fibre"):
        model.profile(wavelength=6000 * u.AA)
    with pytest.raises(OutOfRangeError, match=r"5460\.00-10140\.00"):
        model.profile(fiber=1, wavelength=5000 * u.AA)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"components": []}, "at least one"),
        ({"wavelength_range": (6000, 5000)}, "increasing positive"),
        ({"window": (1, 5)}, "enclose offset 0"),
        ({"window": (-np.inf, 5)}, "enclose offset 0"),
        ({"n_samples": 4}, "at least 5"),
        ({"components": [HermiteComponent(np.ones((2, 1)), np.ones((1, 2, 1)))]}, "1 fibres"),
        ({"components": [HermiteComponent(np.ones(2), np.ones((1, 2, 1)))]}, "must have shape"),
    ],
)
def test_bad_gauss_hermite_models_are_named(arguments, match):
    good = {
        "components": [HermiteComponent(np.ones((1, 1)), np.ones((1, 1, 1)))],
        "position": [[0.0, 1000.0]],
        "wavelength_range": (4000, 6000),
    }
    with pytest.raises(ValueError, match=match):
        GaussHermiteIP(**(good | arguments))


def test_bad_constant_profiles_are_named():
    with pytest.raises(ValueError, match="sigma must be positive"):
        GaussHermiteIP.constant(sigma=-1 * u.AA, coefficients=[1])
    with pytest.raises(ValueError, match="finite numbers"):
        GaussHermiteIP.constant(sigma=1 * u.AA, coefficients=[1, np.nan])


# -- neural --------------------------------------------------------------------------------------------------

#: What evaluation in float32 may cost, the peaks being near 1.
SINGLE = 1e-6


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return {arm: write_published(folder, seed, 1, arm, 2017) for seed, arm in enumerate(("blue", "red"))}


@pytest.mark.parametrize("arm", ["blue", "red"])
def test_published_weights_give_the_three_formulas(published, arm):
    path, arrays = published[arm]
    model = NeuralIP.from_pylamostip(path)
    air = 4359.0 if arm == "blue" else 6678.276
    ip = model.profile(time=TIME, fiber=12, wavelength=air * u.AA, medium="air")
    truth = evaluate(arrays, lmjm(WHEN), 11, air)
    assert_allclose(ip.flux, truth, atol=SINGLE)
    assert_allclose(ip.offset.to_value(u.AA), np.linspace(*WINDOWS[arm], 600))
    # the default medium is vacuum; specutils converts it independently (other formula: 1e-3 A)
    vacuum = ip.wavelength.to_value(u.AA)
    assert_allclose(vac_to_air(vacuum * u.AA).to_value(u.AA), air, atol=2e-3)
    assert_allclose(model.profile(time=TIME, fiber=12, wavelength=vacuum * u.AA).flux, truth, atol=SINGLE)
    # what each mistake would give is far from what the model gives
    mistakes = {
        "vacuum label": evaluate(arrays, lmjm(WHEN), 11, vacuum),
        "fibre label": evaluate(arrays, lmjm(WHEN), 12, air),
        "UTC minutes": evaluate(arrays, lmjm(WHEN) - 480, 11, air),
        "twice local": evaluate(arrays, lmjm(WHEN) + 480, 11, air),
    }
    for mistake, flux in mistakes.items():
        assert np.max(np.abs(flux - truth)) > 1e-5, mistake


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    minute=st.integers(*(int(m) for m in season_minutes(2017))),
    fiber=st.integers(1, 250),
    fraction=st.floats(0, 1),
)
def test_any_network_at_any_label_gives_the_three_formulas(seed, minute, fiber, fraction):
    arrays = random_arrays(seed, "blue", 2017, n_hidden=4)
    model = NeuralIP(
        [arrays[f"w_array_{i}"] for i in range(3)],
        [arrays[f"b_array_{i}"] for i in range(3)],
        label_min=arrays["x_min"],
        label_max=arrays["x_max"],
        offset=np.linspace(*WINDOWS["blue"], 600),
    )
    low, high = AIR_RANGE["blue"]
    air = low + fraction * (high - low)
    time = Time((minute - 480) / 1440, format="mjd")
    flux = model.profile(time=time, fiber=fiber, wavelength=air * u.AA, medium="air").flux
    assert_allclose(flux, evaluate(arrays, minute, fiber - 1, air), atol=SINGLE)


def test_float32_costs_less_than_a_millionth_of_the_peak(tmp_path):
    path, arrays = write_published(tmp_path, 4, 1, "red", 2018, n_hidden=300)
    model = NeuralIP.from_pylamostip(path)
    for fiber, air in ((1, 5950.0), (131, 7245.167), (250, 8400.0)):
        flux = model.profile(time=Time("2018-03-03T15:00"), fiber=fiber, wavelength=air * u.AA, medium="air").flux
        truth = evaluate(arrays, lmjm(datetime(2018, 3, 3, 15)), fiber - 1, air)
        error = np.max(np.abs(flux - truth)) / truth.max()
        assert 0 < error < 1e-6  # exactly 0 would be float64


def test_a_network_that_float32_is_too_coarse_for_keeps_float64():
    # two neurons of some 1e5 that cancel to 1: float32 is off by some 1e-2
    x = np.linspace(*WINDOWS["blue"], 600)
    peak = np.exp(-0.5 * (x / 1.2) ** 2)
    first = np.array([[0, 0, 3e5], [0, 0, 3e5 + 1]])
    model = NeuralIP(
        [first, np.outer(peak, [-1, 1])],
        [np.array([4e5, 4e5]), peak],
        label_min=[82820000, 0, 4000],
        label_max=[83190000, 249, 6000],
        offset=x,
        label_medium="vacuum",
    )
    scaled = (5432.1 - 4000) / 2000 - 0.5
    flux = model.profile(time=TIME, fiber=12, wavelength=5432.1 * u.AA).flux
    assert_allclose(flux, (1 + scaled) * peak, atol=1e-9)


def random_expansion(rng, n_fiber=4, n_line=5, n_night=3, k=3, n=600) -> Expansion:
    return Expansion(
        mean=rng.random(n), components=rng.normal(size=(k, n)), surface_values=rng.normal(size=(36, k)),
        fiber_number=np.array([2, 5, 6, 9])[:n_fiber], fiber_values=rng.normal(size=(n_fiber, 3, k)),
        line=np.sort(rng.uniform(-0.5, 0.5, n_line)), line_values=rng.normal(size=(n_line, 4, k)),
        line_scale=np.array(0.3), night=np.array([57800, 57803, 57811])[:n_night],
        night_values=rng.normal(size=(n_night, 25, k)), night_scale=np.array(5.0),
        covariance=np.eye(k), fiber_scale=np.ones(n_fiber),
    )  # fmt: skip


@pytest.mark.parametrize("counts", [(4, 5, 3), (0, 5, 3), (4, 0, 3), (4, 5, 0), (1, 1, 1)])
def test_the_terms_of_an_expansion_are_the_sums_that_they_are_said_to_be(counts):
    rng = np.random.default_rng(8)
    expansion = random_expansion(rng, *counts)
    x = rng.uniform(-0.5, 0.5, (60, 3))
    x[1::4, 2] = x[::4, 2]  # several labels in a row at one wavelength
    fiber = rng.integers(1, 11, 60)
    lmjm = (57800 + rng.integers(-2, 14, 60)) * 1440.0 + 22 * 60.0
    got = expansion.particular(x, lmjm, fiber)
    night = np.floor(lmjm / 1440 - 0.5)
    for j in range(60):
        p = [np.polynomial.legendre.legvander(2 * x[j], 5)[i] for i in range(3)]
        plane = np.outer(p[1][:4], p[2][:6]).ravel()
        trend = np.einsum("t,f,w->tfw", p[0][1:4], p[1][:2], p[2][:2]).ravel()
        want = np.concatenate([plane, trend]) @ expansion.surface_values
        for number, values in zip(expansion.fiber_number, expansion.fiber_values, strict=True):
            if number == fiber[j]:
                want = want + p[2][:3] @ values
        for position, values in zip(expansion.line, expansion.line_values, strict=True):
            r = np.sqrt(5) * abs(x[j, 2] - position) / 0.3
            want = want + (1 + r + r**2 / 3) * np.exp(-r) * (p[1][:4] @ values)
        for number, values in zip(expansion.night, expansion.night_values, strict=True):
            share = np.exp(-abs(night[j] - number) / 5.0)
            want = want + share * (np.outer(p[1][:5], p[2][:5]).ravel() @ values)
        assert_allclose(got[j], want, rtol=1e-10, atol=1e-10)


def test_extra_labels_of_an_expansion_may_be_fixed():
    rng = np.random.default_rng(9)
    plain = random_expansion(rng)
    full = replace(plain, surface_values=rng.normal(size=(36 + 2 * 18, 3)))
    assert (plain.n_extra, full.n_extra) == (0, 2)
    x = rng.uniform(-0.5, 0.5, (20, 3))
    extra = np.array([0.31, -0.44])
    lmjm, fiber = np.full(20, 57801 * 1440.0), np.full(20, 1)
    with_values = full.at_labels(extra)
    assert with_values.n_extra == 0
    fixed = with_values.particular(x, lmjm, fiber) - replace(with_values, surface_values=np.zeros((36, 3))).particular(
        x, lmjm, fiber
    )
    degrees = surface_degrees(2)
    assert degrees.shape == (5, 72)
    want = np.zeros((20, 3))
    for column, values in zip(degrees.T, full.surface_values, strict=True):
        term = np.ones(20)
        for label, degree in zip((*x.T, *extra), column, strict=True):
            term = term * np.polynomial.legendre.legval(2 * label, np.eye(6)[degree])
        want += term[:, None] * values
    assert_allclose(fixed, want, atol=1e-12)
    assert_allclose(surface_functions(np.column_stack([x, np.tile(extra, (20, 1))])) @ full.surface_values, want)


@pytest.mark.parametrize("kind", ["published", "expanded"])
def test_the_order_and_number_of_labels_change_nothing(published, kind):
    # blocks must neither skip nor mix rows, of the network nor of the terms
    model = NeuralIP.from_pylamostip(published["blue"][0])
    rng = np.random.default_rng(5)
    if kind == "expanded":
        limits = {"label_min": model.label_min, "label_max": model.label_max, "offset": model.offset}
        weights, biases = [rng.normal(size=(8, 3)), rng.normal(size=(3, 8))], [np.ones(8), np.ones(3)]
        model = NeuralIP(weights, biases, activation="silu", expansion=random_expansion(rng), **limits)
    fiber, wavelength = rng.integers(1, 251, 700), rng.uniform(4100, 5700, 700) * u.AA
    flux = model.profile(time=TIME, fiber=fiber, wavelength=wavelength).flux
    scale = SINGLE * np.abs(flux).max()
    order = rng.permutation(700)
    again = model.profile(time=TIME, fiber=fiber[order], wavelength=wavelength[order]).flux
    assert_allclose(again, flux[order], atol=scale)
    for i in (0, 255, 256, 699):
        one = model.profile(time=TIME, fiber=fiber[i], wavelength=wavelength[i]).flux
        assert_allclose(one, flux[i], atol=scale)


def test_times_fibres_and_wavelengths_broadcast(published):
    path, arrays = published["blue"]
    model = NeuralIP.from_pylamostip(path)
    whens = [datetime(2016, 11, 3, 12), datetime(2017, 2, 1, 20)]
    fibers, air = np.array([1, 100, 250]), np.array([4100.0, 5000.0, 5700.0, 5790.0])
    ip = model.profile(
        time=Time(whens)[:, None, None], fiber=fibers[:, None], wavelength=air / 1e4 * u.um, medium="air"
    )
    assert ip.shape == (2, 3, 4)
    for i, j, k in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        assert_allclose(ip.flux[i, j, k], evaluate(arrays, lmjm(whens[i]), fibers[j] - 1, air[k]), atol=SINGLE)
    assert model.profile(time=TIME, fiber=[], wavelength=5000 * u.AA).shape == (0,)
    with pytest.raises(ValueError, match="do not broadcast"):
        model.profile(time=Time(whens), fiber=[1, 2, 3], wavelength=5000 * u.AA)


def test_time_may_have_any_scale_and_format(published):
    model = NeuralIP.from_pylamostip(published["blue"][0])
    a = model.profile(time=TIME, fiber=3, wavelength=5000 * u.AA)
    b = model.profile(time=Time(TIME.tai.jd1, TIME.tai.jd2, format="jd", scale="tai"), fiber=3, wavelength=5000 * u.AA)
    assert_allclose(a.flux, b.flux, atol=1e-12)


def test_an_lsf_of_the_model_is_the_model_and_a_coadd_its_mean(published):
    path, arrays = published["red"]
    model = NeuralIP.from_pylamostip(path)
    whens = [datetime(2016, 10, 3, 12), datetime(2016, 10, 3, 13), datetime(2017, 5, 1, 20)]
    single = model.at(time=Time(whens[0]), fiber=77)
    air = 7245.167
    unit = [evaluate(arrays, lmjm(w), 76, air) for w in whens]
    step = np.ptp(WINDOWS["red"]) / 599
    unit = [flux / (np.sum(flux) * step - 0.5 * (flux[0] + flux[-1]) * step) for flux in unit]
    assert_allclose(single.profile(air * u.AA, medium="air").flux, unit[0], rtol=1e-5, atol=1e-7)
    coadd = model.at(time=Time(whens), fiber=77).profile(air * u.AA, medium="air")
    assert_allclose(coadd.flux, np.mean(unit, axis=0), rtol=1e-5, atol=1e-7)
    assert np.max(np.abs(coadd.flux - unit[0])) > 1e-4
    for match, arguments in (
        ("one fibre", {"time": TIME, "fiber": [1, 2]}),
        ("empty", {"time": Time(whens)[:0], "fiber": 1}),
        ("depends on time", {"fiber": 1}),
        ("depends on the fibre", {"time": TIME}),
    ):
        with pytest.raises(ValueError, match=match):
            model.at(**arguments)


def test_labels_outside_the_trained_range_are_errors_unless_asked_for(published):
    path, arrays = published["blue"]
    model = NeuralIP.from_pylamostip(path)
    good = {"time": TIME, "fiber": 12, "wavelength": 5000 * u.AA}
    cases = {
        r"time 2017-09-02 12:00:00.000 lies outside.*2016-08-31 16:00 to 2017-08-31 15:59": {
            "time": Time(["2017-01-01", "2017-09-02T12:00:00"])
        },
        r"time 2016-08-30": {"time": Time("2016-08-30")},
        r"fiber must be 1-250 in this model, got 251": {"fiber": 251},
        r"wavelength 4000.00 A \(vacuum\) lies outside 4047": {"wavelength": [5000, 4000] * u.AA},
        r"wavelength 5800.00 A.*extrapolate=True": {"wavelength": 5800 * u.AA},
    }
    for match, bad in cases.items():
        with pytest.raises(OutOfRangeError, match=match):
            model.profile(**(good | bad))
        assert model.profile(**(good | bad), extrapolate=True).flux.shape[-1] == 600
    flux = model.profile(**(good | {"fiber": 300}), extrapolate=True).flux
    air = vac_to_air(5000 * u.AA, method="Edlen1953").value
    assert_allclose(flux, evaluate(arrays, lmjm(WHEN), 299, air), atol=1e-4)
    for when in ("2017-09-02T12:00:00", "2016-08-30"):
        with pytest.raises(OutOfRangeError):
            model.at(time=Time(when), fiber=3)
    lsf = model.at(time=TIME, fiber=3)
    with pytest.raises(OutOfRangeError, match=r"reach outside 4047.\d\d-5792.\d\d A.*extrapolate=True"):
        lsf.profile([4500, 6000] * u.AA)
    assert model.at(time=TIME, fiber=3, extrapolate=True).profile(6000 * u.AA).shape == ()


def test_the_ends_of_the_range_are_inside(published):
    path, arrays = published["blue"]
    model = NeuralIP.from_pylamostip(path)
    for k, (minute, air) in enumerate(zip(season_minutes(2017), AIR_RANGE["blue"], strict=True)):
        time = Time((minute - 480) / 1440, format="mjd")
        ip = model.profile(time=time, fiber=(1, 250)[k], wavelength=air * u.AA, medium="air")
        assert_allclose(ip.flux, evaluate(arrays, minute, (0, 249)[k], air), atol=SINGLE)
        assert model.at(time=time, fiber=1).profile(air * u.AA, medium="air").shape == ()


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        ({"fiber": 0}, ValueError, "counted from 1"),
        ({"fiber": 2.5}, ValueError, "whole number"),
        ({"fiber": np.nan}, ValueError, "whole number"),
        ({"fiber": "12"}, ValueError, "whole number"),
        ({"fiber": None}, ValueError, "depends on the fibre"),
        ({"time": None}, ValueError, "depends on time"),
        ({"time": 82_820_000}, TypeError, "astropy Time"),
        ({"time": Time(np.ma.array([57700.0], mask=[True]), format="mjd")}, ValueError, "finite"),
        ({"wavelength": 5000.0}, TypeError, "unit of length"),
        ({"wavelength": np.nan * u.AA}, OutOfRangeError, "nan"),
        ({"medium": "glass"}, ValueError, "'vacuum' or 'air'"),
    ],
)
def test_labels_that_are_none_are_named(published, bad, error, match):
    model = NeuralIP.from_pylamostip(published["blue"][0])
    with pytest.raises(error, match=match):
        model.profile(**({"time": TIME, "fiber": 12, "wavelength": 5000 * u.AA} | bad))


# -- published files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_label_ranges_of_any_shape_and_precision_work(tmp_path, shape, dtype):
    arrays = random_arrays(4, "blue", 2017)
    for name in ("x_min", "x_max"):
        arrays[name] = arrays[name].astype(dtype).reshape(shape)
    for i in range(3):
        arrays[f"b_array_{i}"] = arrays[f"b_array_{i}"].reshape(-1, 1).astype(dtype)
        arrays[f"w_array_{i}"] = np.asfortranarray(arrays[f"w_array_{i}"].astype(dtype))
    np.savez(tmp_path / "NN_normalized_spectra_07_b_2017.npz", **arrays)
    model = NeuralIP.from_pylamostip(tmp_path / "NN_normalized_spectra_07_b_2017.npz")
    assert model.meta["spectrograph"] == 7
    # float32 rounds the ends of the range by minutes and 1e-4 A: the first and last exposures stay inside
    for minute, air in zip(season_minutes(2017), AIR_RANGE["blue"], strict=True):
        time = Time((minute - 480) / 1440, format="mjd")
        ip = model.profile(time=time, fiber=250, wavelength=air * u.AA, medium="air")
        assert_allclose(ip.flux, evaluate(arrays, minute, 249, air), atol=SINGLE)


def test_the_arm_follows_from_the_name_else_from_the_wavelengths(tmp_path):
    for arm in ("blue", "red"):
        path = tmp_path / f"weights_{arm}.npz"
        np.savez(path, **random_arrays(5, arm, 2017))
        model = NeuralIP.from_pylamostip(path)
        assert model.meta["arm"] == arm
        assert model.meta["instrument"] == f"lamost-lrs-{arm}"
        assert (model.offset[0], model.offset[-1]) == WINDOWS[arm]
    assert NeuralIP.from_pylamostip(path, arm="blue").offset[0] == WINDOWS["blue"][0]
    with pytest.raises(ValueError, match="'blue' or 'red'"):
        NeuralIP.from_pylamostip(path, arm="green")


def _without(name):
    def change(arrays):
        del arrays[name]

    return change


def _replaced(name, function):
    def change(arrays):
        arrays[name] = function(arrays[name])

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_without("w_array_1"), "w_array_1 are missing; found"),
        (_without("x_min"), "x_min"),
        (_replaced("w_array_0", lambda a: a.T), "layer 0"),
        (_replaced("w_array_2", lambda a: a[:100]), "layer 2"),
        (_replaced("b_array_1", lambda a: a[:-1]), "layer 1"),
        (_replaced("x_max", lambda a: a[:2]), "time, fibre and wavelength"),
        (_replaced("x_max", lambda a: a * 0), "label_max must exceed"),
        (_replaced("b_array_0", lambda a: a * np.nan), "non-finite"),
        (_replaced("x_min", lambda a: a.astype(str)), "blue.npz"),
        (_replaced("x_min", lambda a: np.array(list(a), dtype=object)), "not a readable npz"),
    ],
)
def test_files_that_are_not_published_weights_are_refused(tmp_path, change, match):
    arrays = random_arrays(6, "blue", 2017)
    change(arrays)
    np.savez(tmp_path / "blue.npz", **arrays)
    if "x_min" in arrays and arrays["x_min"].dtype.kind == "U":
        arrays["x_min"] = np.array(["a", "b", "c"])
        np.savez(tmp_path / "blue.npz", **arrays)
    with pytest.raises(FormatError, match=match):
        NeuralIP.from_pylamostip(tmp_path / "blue.npz")


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "blue.npz"
    np.savez(path, **random_arrays(6, "blue", 2017))
    raw = path.read_bytes()
    for size in (0, 10, len(raw) // 2, len(raw) - 30):
        path.write_bytes(raw[:size])
        with pytest.raises(FormatError, match=r"blue\.npz"):
            NeuralIP.from_pylamostip(path)
    path.write_text("weights")
    with pytest.raises(FormatError, match="not a readable npz"):
        NeuralIP.from_pylamostip(path)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        NeuralIP.from_pylamostip(tmp_path / "none.npz")


# -- our own files -------------------------------------------------------------------------------------------


def test_a_written_model_reads_back_bit_for_bit(published, tmp_path):
    model = NeuralIP.from_pylamostip(published["red"][0])
    model.write(tmp_path / "01_r_2017.safetensors")
    again = NeuralIP.read(tmp_path / "01_r_2017.safetensors")
    for a, b in zip((*model.weights, *model.biases), (*again.weights, *again.biases), strict=True):
        assert_array_equal(a, b)
    for name in ("label_min", "label_max", "offset"):
        assert_array_equal(getattr(model, name), getattr(again, name))
    for name in ("label_medium", "fiber_origin", "slope", "meta", "wavelength_range"):
        assert getattr(model, name) == getattr(again, name)
    where = {"time": TIME, "fiber": 12, "wavelength": 6500 * u.AA}
    assert_array_equal(model.profile(**where).flux, again.profile(**where).flux)


def test_other_label_conventions_survive_a_file(tmp_path):
    rng = np.random.default_rng(2)
    model = NeuralIP(
        [rng.normal(size=(9, 3))],
        [np.ones(9)],
        label_min=[1 / 3, 1, 4000.1],
        label_max=[9e7, 250, 6000],
        offset=np.linspace(-1, 1, 9),
        label_medium="vacuum",
        fiber_origin=0,
        slope=0.2,
        meta={"season": 2021, "lines": [4358.3]},
    )
    model.write(tmp_path / "m.safetensors")
    again = NeuralIP.read(tmp_path / "m.safetensors")
    assert again.label_medium == "vacuum"
    assert (again.fiber_origin, again.slope, again.label_min[0]) == (0, 0.2, 1 / 3)
    assert again.meta == {"model": "NeuralIP", "season": 2021, "lines": [4358.3]}
    # vacuum label, fibre as it is, one linear layer: by hand
    t = lmjm(WHEN)
    x = (np.array([t, 7, 5000.0]) - [1 / 3, 1, 4000.1]) / ([9e7 - 1 / 3, 249, 1999.9]) - 0.5
    flux = again.profile(time=TIME, fiber=7, wavelength=5000 * u.AA).flux
    assert_allclose(flux, model.weights[0] @ x + 1, atol=SINGLE)


def test_the_file_says_what_it_is(published, tmp_path):
    import json
    import struct

    NeuralIP.from_pylamostip(published["blue"][0]).write(tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"]["lamost-lsf/neural-ip"]
    header = json.loads(header)
    assert header["format_version"] == 1
    assert header["label_max"][2] == 5790.67
    assert header["label_medium"] == "air"
    assert header["meta"]["spectrograph"] == 1


def test_writing_never_leaves_half_a_file(published, tmp_path, monkeypatch):
    model = NeuralIP.from_pylamostip(published["blue"][0])
    path = tmp_path / "m.safetensors"
    model.write(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.write(path)
    assert path.read_bytes() == before

    def full_disk(tensors, filename, metadata):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lamost_lsf.models.neural.save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            model.write(path, overwrite=True)
    assert path.read_bytes() == before
    bad = NeuralIP.from_pylamostip(published["blue"][0])
    bad.meta["when"] = TIME
    with pytest.raises(TypeError, match="meta cannot be written"):
        bad.write(tmp_path / "bad.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        model.write(tmp_path / "nowhere" / "m.safetensors")
    with pytest.raises(IsADirectoryError):
        model.write(tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    model.write(path, overwrite=True)
    assert path.read_bytes() == before


def test_files_of_another_kind_or_version_are_refused(published, tmp_path):
    from safetensors.numpy import load_file, save_file

    model = NeuralIP.from_pylamostip(published["blue"][0])
    path = tmp_path / "m.safetensors"
    model.write(path)
    raw = path.read_bytes()
    for size in (0, 4, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(FormatError, match=r"m\.safetensors"):
            NeuralIP.read(path)
    with pytest.raises(FormatError, match="not a readable safetensors"):
        NeuralIP.read(published["blue"][0])
    path.write_bytes(raw)
    tensors = load_file(path)
    other = tmp_path / "other.safetensors"
    for metadata, match in (
        (None, "found none"),
        ({"format": "pt"}, "lack the entry 'lamost-lsf/neural-ip'; found format"),
        ({"lamost-lsf/neural-ip": '{"format_version": 2}'}, "format version 2 cannot be read"),
        ({"lamost-lsf/neural-ip": '{"format_version": 1}'}, "'n_layers' is missing"),
        ({"lamost-lsf/neural-ip": '{"format_version": 1, "n_layers": "x"}'}, "damaged"),
        ({"lamost-lsf/neural-ip": "{"}, "damaged"),
        ({"lamost-lsf/neural-ip": "[]"}, "damaged"),
    ):
        save_file(tensors, other, metadata=metadata)
        with pytest.raises(FormatError, match=match):
            NeuralIP.read(other)
    with pytest.raises(FileNotFoundError, match="no model file"):
        NeuralIP.read(tmp_path / "none.safetensors")


@pytest.mark.parametrize("entry", ["label_min", "label_medium", "slope", "meta", "fiber_origin"])
@pytest.mark.parametrize("value", [[1], "nonsense", None])
def test_a_file_with_a_spoilt_entry_is_refused(published, tmp_path, entry, value):
    import json

    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    path, key = tmp_path / "m.safetensors", "lamost-lsf/neural-ip"
    NeuralIP.from_pylamostip(published["blue"][0]).write(path)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[key])
    save_file(load_file(path), path, metadata={key: json.dumps(header | {entry: value})})
    with pytest.raises(FormatError, match="damaged"):
        NeuralIP.read(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weights": []}, "do not pair up"),
        ({"biases": [np.ones(9), np.ones(9)]}, "do not pair up"),
        ({"offset": np.linspace(-1, 1, 8)}, "last layer gives 9"),
        ({"offset": np.linspace(1, -1, 9)}, "increasing and uniform"),
        ({"offset": np.linspace(0, 1, 9) ** 2}, "increasing and uniform"),
        ({"offset": np.full(9, np.nan)}, "increasing and uniform"),
        ({"label_min": [0, 0]}, "must hold time, fibre, wavelength"),
        ({"label_max": [1, 1, 100]}, "must exceed"),
        ({"label_medium": "oil"}, "'vacuum' or 'air'"),
        ({"slope": 1.5}, "between 0 and 1"),
        ({"slope": np.nan}, "between 0 and 1"),
    ],
)
def test_bad_networks_are_named(change, match):
    good = {
        "weights": [np.ones((9, 3))],
        "biases": [np.ones(9)],
        "label_min": [0, 0, 4000],
        "label_max": [1, 1, 5000],
        "offset": np.linspace(-1, 1, 9),
    }
    with pytest.raises(ValueError, match=match):
        NeuralIP(**(good | change))
