"""Wavelength fitters, rejection of lines and `WavelengthSolution`, against a grating spectrograph's own physics."""

import astropy.units as u
import numpy as np
import pytest
from astropy.modeling import Fittable1DModel, Parameter
from astropy.modeling.fitting import LevMarLSQFitter
from astropy.modeling.models import Chebyshev1D, Legendre1D, Polynomial1D, Spline1D, Tabular1D
from astropy.table import vstack
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import make_lsq_spline
from scipy.optimize import brentq, curve_fit
from scipy.special import erf
from specutils import Spectrum
from specutils.utils.wcs_utils import air_to_vac

from lamost_lsf.errors import FitWarning, PluginLookupError
from lamost_lsf.plugins import get_wavelength_fitter, hookimpl, register, unregister
from lamost_lsf.wavelength import (
    WavelengthSolution,
    fit_legendre,
    fit_polynomial,
    fit_wavelength_solution,
    parameter_covariance,
    parameter_jacobian,
)

N_PIXEL = 4096
DOMAIN = (0, N_PIXEL - 1)
FITTERS = {"polynomial": fit_polynomial, "legendre": fit_legendre}


def grating(pixel, *, n_pixel=N_PIXEL):
    """Vacuum wavelength (Angstrom) at detector positions, from the grating equation.

    600 grooves/mm in first order at 27 degrees incidence, a 300 mm camera and 12 micron pixels: no polynomial.
    """
    groove = 1e7 / 600
    position = (np.asarray(pixel, dtype=float) - (n_pixel - 1) / 2) * 0.012
    diffracted = np.radians(-8.0) + np.arctan(position / 300.0)
    return groove * (np.sin(np.radians(27.0)) + np.sin(diffracted))


def grating_dispersion(pixel):
    """Angstrom per pixel by the analytic derivative of `grating`."""
    position = (np.asarray(pixel, dtype=float) - (N_PIXEL - 1) / 2) * 0.012
    diffracted = np.radians(-8.0) + np.arctan(position / 300.0)
    return 1e7 / 600 * np.cos(diffracted) * (0.012 / 300.0) / (1 + (position / 300.0) ** 2)


def arc(n, rng, noise=0.05):
    """True pixels, measured pixels and wavelengths of n lines."""
    true = np.sort(rng.uniform(20, N_PIXEL - 20, n))
    return true, true + rng.normal(0, noise, n), grating(true)


@pytest.fixture
def solution():
    rng = np.random.default_rng(12)
    _, pixel, wavelength = arc(40, rng)
    return fit_wavelength_solution(pixel, wavelength * u.AA, error=0.05 * u.pix, domain=DOMAIN)


# -- fitters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("degree", [1, 3, 5, 9])
@pytest.mark.parametrize(
    ("fit", "reference"),
    [(fit_polynomial, np.polynomial.Polynomial), (fit_legendre, np.polynomial.Legendre)],
)
def test_fitters_agree_with_numpy_polynomial(fit, reference, degree, weighted):
    rng = np.random.default_rng(degree)
    _, pixel, wavelength = arc(30, rng)
    error = rng.uniform(0.01, 0.3, 30) if weighted else None
    expected = reference.fit(
        pixel, wavelength, degree, domain=DOMAIN, window=[-1, 1], w=1 / error if weighted else None
    )
    model = fit(pixel, wavelength, error=error, degree=degree, domain=DOMAIN)
    everywhere = np.linspace(*DOMAIN, 501)
    assert_allclose(model(everywhere), expected(everywhere), rtol=0, atol=1e-8)
    assert_allclose(model.parameters, expected.coef, rtol=0, atol=1e-7)
    assert tuple(model.domain) == DOMAIN


@pytest.mark.parametrize("name", FITTERS)
def test_builtin_fitters_are_plugins(name):
    assert get_wavelength_fitter(name.upper()) is FITTERS[name]


def test_both_series_are_the_same_curve():
    _, pixel, wavelength = arc(30, np.random.default_rng(0))
    models = [fit(pixel, wavelength, degree=8, domain=DOMAIN) for fit in FITTERS.values()]
    everywhere = np.arange(N_PIXEL)
    assert_allclose(models[0](everywhere), models[1](everywhere), rtol=0, atol=1e-8)


@pytest.mark.parametrize("fit", FITTERS.values())
def test_degree_ten_on_a_detector_keeps_its_digits(fit):
    # raw powers of the pixel (1e36) would lose everything
    pixel = np.linspace(0, N_PIXEL - 1, 60)
    model = fit(pixel, grating(pixel), degree=10, domain=DOMAIN)
    assert np.max(np.abs(model(np.arange(N_PIXEL)) - grating(np.arange(N_PIXEL)))) < 1e-8


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    degree=st.integers(1, 7),
    scale=st.floats(1e-4, 1e4),
    shift=st.floats(-1e4, 1e4),
)
@pytest.mark.parametrize("fit", FITTERS.values())
def test_fit_invariants(fit, seed, degree, scale, shift):
    """Order of lines and overall size of errors do not matter; a shifted wavelength scale shifts the curve."""
    rng = np.random.default_rng(seed)
    _, pixel, wavelength = arc(25, rng)
    error = rng.uniform(0.1, 1.0, 25)
    probe = np.linspace(pixel.min(), pixel.max(), 50)
    base = fit(pixel, wavelength, error=error, degree=degree, domain=DOMAIN)(probe)
    order = rng.permutation(25)
    permuted = fit(pixel[order], wavelength[order], error=error[order] * scale, degree=degree, domain=DOMAIN)
    assert_allclose(permuted(probe), base, rtol=0, atol=1e-6)
    moved = fit(pixel, wavelength + shift, error=error, degree=degree, domain=DOMAIN)
    assert_allclose(moved(probe), base + shift, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fit", FITTERS.values())
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel": [1.0, 2, 3]}, "one length"),
        ({"pixel": [[1.0, 2, 3, 4]], "wavelength": [[1.0, 2, 3, 4]]}, "1-D"),
        ({"pixel": [1.0, 2, np.nan, 4]}, "1 of 4 values of pixel are not finite"),
        ({"wavelength": [1.0, 2, np.inf, 4]}, "wavelength are not finite"),
        ({"pixel": [1.0, 2, 2, 4]}, "pixel.* 2 given more than once"),
        ({"degree": 4}, "4 line.* cannot fix a curve of degree 4: it takes 5"),
        ({"degree": -1}, "degree must be a whole number"),
        ({"degree": 1.5}, "degree must be a whole number"),
        ({"degree": True}, "degree must be a whole number"),
        ({"error": [0.1, 0.1, 0.0, 0.1]}, "finite and > 0"),
        ({"error": [0.1, 0.1, np.nan, 0.1]}, "finite and > 0"),
        ({"error": [0.1, 0.1]}, "shape of pixel"),
        ({"domain": (5, 5)}, "first < last"),
        ({"domain": (5, np.inf)}, "finite"),
        ({"domain": None}, "two pixels"),
        ({"pixel": [1.0, 1 + 1e-12, 1 + 2e-12, 1 + 3e-12], "degree": 3}, "too close together"),
    ],
)
def test_fitters_refuse(fit, change, message):
    arguments = {"pixel": [1.0, 2, 3, 4], "wavelength": [5.0, 6, 7, 8], "degree": 1, "domain": (0, 10)} | change
    with pytest.raises(ValueError, match=message):
        fit(arguments.pop("pixel"), arguments.pop("wavelength"), **arguments)


# -- covariance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITTERS.values())
@pytest.mark.parametrize("absolute", [False, True])
def test_covariance_agrees_with_curve_fit(fit, absolute):
    rng = np.random.default_rng(2)
    _, pixel, wavelength = arc(25, rng)
    error = rng.uniform(0.02, 0.06, 25)
    model = fit(pixel, wavelength, error=error if absolute else None, degree=4, domain=DOMAIN)
    vander = {"fit_polynomial": np.polynomial.polynomial.polyvander, "fit_legendre": np.polynomial.legendre.legvander}
    design = vander[fit.__name__](2 * pixel / DOMAIN[1] - 1, 4)
    _, expected = curve_fit(
        lambda x, *parameters: design @ parameters,
        pixel,
        wavelength,
        p0=model.parameters,
        sigma=error if absolute else None,
        absolute_sigma=absolute,
        jac=lambda x, *parameters: design,
    )
    found = parameter_covariance(model, pixel, wavelength, error=error if absolute else None)
    assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.max(np.abs(expected)))


def test_covariance_without_freedom_is_unknown():
    model = fit_legendre([0, 1, 2], [1, 2, 4], degree=2, domain=(0, 2))
    assert np.all(np.isnan(parameter_covariance(model, [0, 1, 2], [1, 2, 4])))


def test_parameters_that_lines_do_not_fix_have_infinite_variance():
    # two lines, three coefficients: the mean is fixed by neither of the others
    model = Polynomial1D(2, c0=5000.0, c1=1.0, c2=0.0)
    covariance = parameter_covariance(model, [-1.0, 1.0], [4999.0, 5001.0], error=[0.1, 0.1])
    assert np.isinf(covariance[[0, 2], [0, 2]]).all()
    # the slope is fixed: half the difference of two wavelengths
    assert_allclose(covariance[1, 1], 2 * (0.1 / 2) ** 2)


def test_fixed_parameters_have_no_covariance():
    model = Polynomial1D(2, c0=1.0, c1=2.0, c2=3.0, fixed={"c1": True})
    assert_allclose(parameter_jacobian(model, [2.0]), [[1.0, 4.0]])


# -- accuracy of the solution ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitter", FITTERS)
def test_noiseless_arc_gives_the_grating_equation(fitter):
    pixel = np.linspace(10, N_PIXEL - 10, 40)
    solution = fit_wavelength_solution(pixel, grating(pixel) * u.AA, fitter=fitter, domain=DOMAIN)
    everywhere = np.arange(N_PIXEL)
    assert_allclose(solution(everywhere).to_value(u.AA), grating(everywhere), rtol=0, atol=1e-3)
    assert_allclose(solution.dispersion(everywhere).to_value(u.AA / u.pix), grating_dispersion(everywhere), rtol=1e-4)
    assert solution.n_used == 40


def test_residuals_are_the_noise_that_was_put_in():
    """Over many arcs the residual rms is noise x sqrt(1 - k/n), in Angstrom, in pixels and as a velocity."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(60):
        true, pixel, wavelength = arc(40, rng, noise=0.05)
        solution = fit_wavelength_solution(pixel, wavelength * u.AA, domain=DOMAIN, sigma_clip=None)
        found.append([solution.rms().value, solution.rms(u.pix).value, solution.rms(u.km / u.s).value])
    found = np.sqrt(np.mean(np.square(found), axis=0))
    expected = 0.05 * np.sqrt(1 - 6 / 40)
    dispersion = np.sqrt(np.mean(grating_dispersion(np.arange(N_PIXEL)) ** 2))
    velocity = np.sqrt(np.mean((299792.458 * grating_dispersion(true) / grating(true)) ** 2))
    # 60 x 34 degrees of freedom: 1.6 % statistical error
    assert_allclose(found, expected * np.array([1, 1, 1]) * [dispersion, 1, velocity], rtol=0.06)


@pytest.mark.parametrize("known", ["pix", "Angstrom", None])
def test_uncertainty_is_the_scatter_about_the_truth(known):
    """Pulls (fit - truth) / uncertainty have unit width and no mean, at the middle and at the ends."""
    rng = np.random.default_rng(6)
    probe = np.array([0.0, 300, 1500, 2047, 3500, 4095])
    pulls = []
    for _ in range(250):
        true, pixel, wavelength = arc(40, rng, noise=0.05)
        error = None
        if known == "pix":
            error = 0.05 * u.pix
        elif known == "Angstrom":
            error = 0.05 * grating_dispersion(true) * u.AA
        solution = fit_wavelength_solution(
            pixel, wavelength * u.AA, error=error, domain=DOMAIN, absolute_error=known is not None
        )
        pulls.append((solution(probe).value - grating(probe)) / solution.uncertainty(probe).value)
    pulls = np.array(pulls)
    assert np.all(np.abs(pulls.mean(axis=0)) < 4 / np.sqrt(250))
    # the width of 250 pulls is known to 4.5 %
    assert_allclose(pulls.std(axis=0), 1.0, atol=0.18)
    assert_allclose(np.sqrt(np.mean(pulls**2)), 1.0, atol=0.07)


def test_reduced_chi_square_and_weighted_rms_know_the_errors():
    rng = np.random.default_rng(7)
    _, pixel, wavelength = arc(400, rng, noise=0.05)
    right, half = (
        fit_wavelength_solution(pixel, wavelength * u.AA, error=size * u.pix, domain=DOMAIN) for size in (0.05, 0.025)
    )
    assert right.chi2_reduced == pytest.approx(1.0, abs=0.25)
    assert half.chi2_reduced == pytest.approx(4.0, rel=0.25)
    # errors wrong by a factor change neither the lines that are kept nor the error of the curve
    assert right.n_used == half.n_used == 400
    assert_allclose(right.uncertainty(2000.0).value, half.uncertainty(2000.0).value, rtol=1e-6)
    believed = fit_wavelength_solution(pixel, wavelength * u.AA, error=0.05 * u.pix, domain=DOMAIN, absolute_error=True)
    assert_allclose(
        right.uncertainty(2000.0).value / believed.uncertainty(2000.0).value, np.sqrt(right.chi2_reduced), rtol=1e-6
    )


def test_a_bad_line_with_an_honest_error_hardly_moves_the_curve():
    rng = np.random.default_rng(8)
    _, pixel, wavelength = arc(30, rng, noise=0.02)
    error = np.full(30, 0.02)
    pixel[11] += 3.0
    error[11] = 3.0
    solution = fit_wavelength_solution(pixel, wavelength * u.AA, error=error * u.pix, domain=DOMAIN, sigma_clip=None)
    assert_allclose(solution(2047.0).value, grating(2047.0), atol=0.02)
    assert solution.rms(weighted=True) < 0.02 * u.AA < 0.2 * u.AA < solution.rms()


@pytest.mark.parametrize("name", ["polynomial", "legendre", "sine"])
def test_leave_one_out_is_what_refitting_without_the_line_gives(name):
    rng = np.random.default_rng(9)
    _, pixel, wavelength = arc(15, rng)
    fitter = FITTERS.get(name, fit_grating)
    options = {"degree": 3, "domain": DOMAIN}
    solution = fit_wavelength_solution(pixel, wavelength * u.AA, fitter=fitter, sigma_clip=None, **options)
    expected = [
        wavelength[line] - fitter(np.delete(pixel, line), np.delete(wavelength, line), **options)(pixel[line])
        for line in range(15)
    ]
    # the grating model is not linear in its parameters: first order only
    assert_allclose(solution.leave_one_out().value, expected, rtol=1e-2 if name == "sine" else 1e-6)
    assert solution.rms(leave_one_out=True) > solution.rms()


def test_leave_one_out_sees_a_degree_that_is_too_high():
    _, pixel, wavelength = arc(14, np.random.default_rng(10))
    low, high = (
        fit_wavelength_solution(
            pixel, wavelength * u.AA, degree=degree, domain=(pixel.min(), pixel.max()), sigma_clip=None
        )
        for degree in (4, 9)
    )
    assert high.rms() < low.rms()
    assert high.rms(leave_one_out=True) > 2 * low.rms(leave_one_out=True)


# -- conventions -------------------------------------------------------------------------------------------------


def rendered_arc(centers, n_pixel, sigma=1.6):
    """Counts of unit lines, integrated over pixels that reach from i - 0.5 to i + 0.5."""
    edge = (np.arange(n_pixel + 1) - 0.5)[:, None]
    cumulative = 0.5 * (1 + erf((edge - centers) / (np.sqrt(2) * sigma)))
    return np.diff(cumulative, axis=0).sum(axis=1)


def test_whole_numbers_are_centres_of_pixels_counted_from_zero():
    """Lines rendered on real pixels and centred from their counts: an error of half a pixel, or 1, would show."""
    n_pixel = 1000
    centers = np.linspace(15.3, 980.6, 25)
    counts = rendered_arc(centers, n_pixel)
    measured = []
    for center in centers:
        window = slice(int(center) - 9, int(center) + 11)
        measured.append(np.sum(np.arange(n_pixel)[window] * counts[window]) / np.sum(counts[window]))
    wavelength = grating(centers, n_pixel=n_pixel)
    solution = fit_wavelength_solution(measured, wavelength * u.AA, domain=(0, n_pixel - 1))
    axis = solution(np.arange(n_pixel)).value
    # flux-weighted mean wavelength of each line on the solution's own axis, back against the line list
    for center, true in zip(centers, wavelength, strict=True):
        window = slice(int(center) - 9, int(center) + 11)
        mean = np.sum(axis[window] * counts[window]) / np.sum(counts[window])
        assert mean == pytest.approx(true, abs=0.01 * 0.65)
    # the domain ends at the outer edges of the first and the last pixel
    assert np.isfinite(solution([-0.5, n_pixel - 0.5])).all()
    assert np.isnan(solution([-0.51, n_pixel - 0.49])).all()


def test_a_flipped_detector_flips_the_dispersion_and_nothing_else(solution):
    lines = solution.lines
    flipped = fit_wavelength_solution(
        N_PIXEL - 1 - lines["pixel"], lines["wavelength"], error=lines["error"], domain=DOMAIN
    )
    pixel = np.arange(N_PIXEL)
    assert_allclose(flipped(pixel[::-1]).value, solution(pixel).value, rtol=0, atol=1e-6)
    assert np.all(flipped.dispersion(pixel).value < 0)
    assert_allclose(flipped.wavelength_to_pixel(solution(100.0)), N_PIXEL - 1 - 100.0, atol=1e-6)
    assert_allclose(flipped.rms(u.pix).value, solution.rms(u.pix).value, rtol=1e-6)
    assert_allclose(flipped.residuals(u.pix).value, -solution.residuals(u.pix).value, rtol=0, atol=1e-8)


def test_sign_of_residuals_is_listed_minus_fitted():
    pixel = np.linspace(0, 100, 20)
    wavelength = 5000 + 0.5 * pixel
    wavelength[10] += 3.0
    solution = fit_wavelength_solution(pixel, wavelength * u.AA, degree=1)
    assert_allclose(solution.residuals()[10].to_value(u.AA), 3.0, atol=1e-9)
    assert_allclose(solution.residuals(u.pix)[10].value, 6.0, atol=1e-9)
    assert_allclose(solution.residuals(u.m / u.s)[10].value, 2.99792458e8 * 3.0 / wavelength[10], rtol=1e-9)


def test_air_wavelengths_become_vacuum():
    # Ne I: NIST lists 5852.4879 in air and 5854.1101 in vacuum; the rest by specutils' own conversion
    air = np.array([5852.4879, 5944.8340, 6029.9968, 6143.0627, 6266.4952, 6402.248, 6506.5277, 6678.2766])
    pixel = (air - 5800) / 0.55
    solution = fit_wavelength_solution(pixel, air * u.AA, medium="air", degree=2, domain=(0, 1700))
    assert solution.lines["wavelength"][0].value == pytest.approx(5854.1101, abs=1e-3)
    vacuum = air_to_vac(air * u.AA, scheme="iteration", method="Ciddor1996").value
    assert_allclose(solution(pixel).to_value(u.AA), vacuum, rtol=0, atol=5e-3)
    assert_allclose(solution.wavelength(pixel, medium="air").to_value(u.AA), air, rtol=0, atol=5e-3)
    assert_allclose(
        solution.wavelength_to_pixel(air * u.AA, medium="air"), solution.wavelength_to_pixel(vacuum * u.AA), atol=1e-3
    )
    mistaken = fit_wavelength_solution(pixel, air * u.AA, degree=2, domain=(0, 1700))
    velocity = 299792.458 * (mistaken(pixel) - solution(pixel)).value / vacuum
    assert_allclose(velocity, -83, atol=1)
    assert solution.medium == mistaken.medium == "vacuum"
    assert (solution.provenance["input_medium"], mistaken.provenance["input_medium"]) == ("air", "vacuum")


def test_air_lines_in_a_vacuum_list_are_found():
    rng = np.random.default_rng(14)
    _, pixel, wavelength = arc(40, rng)
    in_air = np.array([4, 17, 22, 30])
    listed = wavelength.copy()
    listed[in_air] /= 1.000277
    solution = fit_wavelength_solution(pixel, listed * u.AA, error=0.05 * u.pix, domain=DOMAIN)
    assert_array_equal(np.flatnonzero(~solution.lines["used"]), in_air)


def test_units_of_the_inputs_do_not_matter(solution):
    lines = solution.lines
    other = fit_wavelength_solution(
        lines["pixel"] * u.pix, lines["wavelength"].to(u.micron), error=lines["error"].to(u.nm), domain=DOMAIN
    )
    assert_allclose(other(1000 * u.pix).value, solution(1000).value, atol=1e-8)
    assert other(1000).unit == u.AA


# -- rejection ---------------------------------------------------------------------------------------------------


def test_misidentified_lines_are_found_and_only_these():
    """Lines taken for their neighbours (1 to 30 A off, either sign), up to a fifth of all, also at the ends."""
    rng = np.random.default_rng(15)
    exact, lost, kept = 0, 0, 0
    for _ in range(100):
        _, pixel, wavelength = arc(30, rng)
        wrong = rng.choice(30, rng.integers(1, 7), replace=False)
        listed = wavelength.copy()
        listed[wrong] += rng.choice([-1, 1], wrong.size) * rng.uniform(1, 30, wrong.size)
        solution = fit_wavelength_solution(pixel, listed * u.AA, error=0.05 * u.pix, domain=DOMAIN)
        rejected = set(np.flatnonzero(~solution.lines["used"]))
        exact += rejected == set(wrong)
        lost += len(rejected - set(wrong))
        kept += len(set(wrong) - rejected)
    assert exact >= 96
    assert lost <= 8
    assert kept <= 2


def test_a_line_at_the_end_has_less_to_hide_behind():
    """0.8 A off, where the curve follows the line: a sixth is left as its residual, 4 sigma of the others."""
    rng = np.random.default_rng(29)
    found, left = 0, []
    for _ in range(100):
        _, pixel, wavelength = arc(15, rng)
        wavelength[-1] += 0.8
        kept = fit_wavelength_solution(pixel, wavelength * u.AA, domain=DOMAIN, sigma_clip=None)
        left.append(kept.residuals()[-1].value)
        solution = fit_wavelength_solution(pixel, wavelength * u.AA, domain=DOMAIN)
        if list(np.flatnonzero(~solution.lines["used"])) == [14]:
            found += 1
            # what the others predict for a rejected line is what the fit says
            assert solution.leave_one_out()[-1] == solution.residuals()[-1] > 0.2 * u.AA
    assert np.median(left) < 0.15
    # plain residuals find 36
    assert found >= 41


def test_reason_names_the_residual_and_its_size():
    rng = np.random.default_rng(16)
    _, pixel, wavelength = arc(30, rng)
    wavelength[[3, 29]] += [-4.0, 2.0]
    labels = [f"Ne {number}" for number in range(30)]
    solution = fit_wavelength_solution(pixel, wavelength * u.AA, domain=DOMAIN, label=labels)
    rejected = solution.rejected
    assert list(rejected["label"]) == ["Ne 3", "Ne 29"]
    assert rejected["reason"][0].startswith("residual -")
    assert rejected["reason"][0].endswith("sigma")
    assert_allclose(rejected["residual"].to_value(u.AA), [-4.0, 2.0], atol=0.4)
    assert all(reason == "" for reason in solution.lines["reason"][solution.lines["used"]])
    # they took no part: the curve is that of the other lines
    others = np.delete(np.arange(30), [3, 29])
    alone = fit_legendre(pixel[others], wavelength[others], degree=5, domain=DOMAIN)
    assert_allclose(solution(1234.0).value, alone(1234.0), atol=1e-9)


@pytest.mark.parametrize("n", [9, 12, 20, 60])
def test_good_arcs_lose_no_lines(n):
    rng = np.random.default_rng(n)
    lost = 0
    for _ in range(100):
        _, pixel, wavelength = arc(n, rng)
        lost += np.sum(~fit_wavelength_solution(pixel, wavelength * u.AA, domain=DOMAIN, degree=3).lines["used"])
    # 4 sigma, two-sided: 6e-5 of the lines
    assert lost <= 4


def test_a_degree_that_is_too_low_does_not_eat_the_lines():
    """Residuals that swing along the detector are the curve's fault; a misidentified line is still found."""
    rng = np.random.default_rng(17)
    for _ in range(20):
        _, pixel, wavelength = arc(40, rng, noise=0.02)
        wrong = rng.integers(40)
        wavelength[wrong] += rng.choice([-1, 1]) * rng.uniform(20, 40)
        solution = fit_wavelength_solution(pixel, wavelength * u.AA, error=0.02 * u.pix, domain=DOMAIN, degree=2)
        # the misfit of degree 2 is far above the noise, and is reported
        assert solution.chi2_reduced > 100
        rejected = np.flatnonzero(~solution.lines["used"])
        assert wrong in rejected
        assert len(rejected) <= 3


def test_lines_that_cannot_be_used_are_listed_with_the_reason():
    pixel = np.linspace(5, 95, 12)
    wavelength = 5000 + 0.5 * pixel
    error = np.full(12, 0.01)
    pixel[1], pixel[11], wavelength[2], error[3] = np.nan, 120.0, np.nan, -1.0
    pixel[5] = pixel[4]
    reject = [""] * 12
    reject[7] = "blend"
    solution = fit_wavelength_solution(
        pixel, wavelength * u.AA, error=error * u.AA, degree=1, domain=(0, 99), reject=reject
    )
    assert dict(zip(np.flatnonzero(~solution.lines["used"]), solution.rejected["reason"], strict=True)) == {
        1: "centre is not finite",
        2: "wavelength is not a positive number",
        3: "error is not a positive number",
        4: "same pixel as another line",
        5: "same pixel as another line",
        7: "blend",
        11: "outside the domain",
    }
    # a line left out for another reason still tells how well it fits
    assert_allclose(solution.residuals()[7].value, 0.0, atol=1e-9)
    assert np.isnan(solution.residuals()[[1, 2, 11]]).all()


def test_never_fewer_lines_than_the_curve_needs():
    rng = np.random.default_rng(18)
    pixel = np.sort(rng.uniform(0, 1000, 9))
    wavelength = 5000 + pixel + rng.normal(0, 0.01, 9)
    with pytest.warns(FitWarning, match="kept: without them fewer than 8"):
        solution = fit_wavelength_solution(
            pixel,
            wavelength * u.AA,
            error=1e-4 * u.AA,
            degree=1,
            sigma_clip=3,
            min_lines=8,
            absolute_error=True,
        )
    assert solution.n_used == 8


def test_one_line_more_than_coefficients_tells_nothing_about_outliers():
    pixel = np.array([3.0, 40, 120, 200])
    wavelength = 5000 + pixel
    wavelength[2] += 5
    solution = fit_wavelength_solution(pixel, wavelength * u.AA, degree=2)
    assert solution.n_used == 4
    assert_array_equal(solution.lines["deviation"], 0)
    assert np.isfinite(solution.uncertainty(100.0))


def test_rejection_that_does_not_settle_warns():
    # a straight line through a curved arc, with a tight limit: the lines at the ends go in several rounds
    _, pixel, wavelength = arc(40, np.random.default_rng(19))
    with pytest.warns(FitWarning, match="did not settle in 1 iterations"):
        fit_wavelength_solution(pixel, wavelength * u.AA, domain=DOMAIN, degree=1, sigma_clip=2, max_iterations=1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_rejection_depends_on_ratios_of_errors_only(seed, scale):
    rng = np.random.default_rng(seed)
    _, pixel, wavelength = arc(25, rng)
    wavelength[rng.integers(25)] += 10
    error = rng.uniform(0.05, 0.1, 25) * u.AA
    one, two = (
        fit_wavelength_solution(pixel, wavelength * u.AA, error=error * factor, domain=DOMAIN)
        for factor in (1.0, scale)
    )
    assert_array_equal(one.lines["used"], two.lines["used"])


# -- third parties -----------------------------------------------------------------------------------------------


class GratingModel(Fittable1DModel):
    """The grating equation with angle, camera scale and zero point free: not linear in its parameters."""

    incidence = Parameter(default=0.45)
    diffraction = Parameter(default=-0.14)
    scale = Parameter(default=4e-5)

    @staticmethod
    def evaluate(pixel, incidence, diffraction, scale):
        return 1e7 / 600 * (np.sin(incidence) + np.sin(diffraction + np.arctan((pixel - 2047.5) * scale)))


def fit_grating(pixel, wavelength, *, error=None, degree=5, domain):
    weights = None if error is None else 1 / error
    return LevMarLSQFitter()(GratingModel(), pixel, wavelength, weights=weights, maxiter=500, acc=1e-14)


def fit_chebyshev(pixel, wavelength, *, error=None, degree=5, domain):
    weights = None if error is None else 1 / error
    series = np.polynomial.Chebyshev.fit(pixel, wavelength, degree, domain=domain, w=weights)
    return Chebyshev1D(degree, domain=domain, **{f"c{i}": c for i, c in enumerate(series.coef)})


def fit_spline(pixel, wavelength, *, error=None, degree=5, domain):
    knots = np.concatenate([[domain[0] - 1] * 4, np.linspace(*domain, 5)[1:-1], [domain[1] + 1] * 4])
    spline = make_lsq_spline(pixel, wavelength, knots, k=3, w=None if error is None else 1 / error)
    return Spline1D(knots=spline.t, coeffs=spline.c, degree=3)


@pytest.mark.parametrize("fitter", [fit_grating, fit_chebyshev, fit_spline])
def test_any_callable_is_a_fitter(fitter):
    rng = np.random.default_rng(21)
    _, pixel, wavelength = arc(40, rng, noise=0.02)
    wavelength[[5, 33]] += [6.0, -9.0]
    solution = fit_wavelength_solution(pixel, wavelength * u.AA, error=0.02 * u.pix, fitter=fitter, domain=DOMAIN)
    assert_array_equal(np.flatnonzero(~solution.lines["used"]), [5, 33])
    everywhere = np.arange(N_PIXEL)
    assert_allclose(solution(everywhere).value, grating(everywhere), atol=0.05)
    assert_allclose(solution.wavelength_to_pixel(solution(everywhere)), everywhere, rtol=0, atol=1e-9)
    assert_allclose(solution.dispersion(everywhere).value, grating_dispersion(everywhere), rtol=2e-3)
    assert solution.fitter.endswith(fitter.__name__)


def test_the_physical_model_extrapolates_better_than_a_polynomial():
    """Why one would plug in a fitter: lines on half of the detector."""
    rng = np.random.default_rng(22)
    pixel = np.sort(rng.uniform(0, 2000, 30))
    wavelength = grating(pixel)
    pixel += rng.normal(0, 0.02, 30)
    physical, series = (
        fit_wavelength_solution(pixel, wavelength * u.AA, error=0.02 * u.pix, fitter=fitter, degree=3, domain=DOMAIN)
        for fitter in (fit_grating, "legendre")
    )
    beyond = 3800.0
    assert physical.extrapolates(beyond)
    assert abs(physical(beyond).value - grating(beyond)) < 1.0
    assert physical.uncertainty(beyond) < 0.2 * series.uncertainty(beyond)


def test_a_registered_fitter_is_found_by_name_and_recorded():
    class Plugin:
        @hookimpl
        def lamost_lsf_wavelength_fitters(self):
            return {"grating": fit_grating}

    register(Plugin(), name="optics")
    try:
        _, pixel, wavelength = arc(20, np.random.default_rng(23))
        solution = fit_wavelength_solution(
            pixel, wavelength * u.AA, fitter="optics:Grating", domain=DOMAIN, center="half"
        )
    finally:
        unregister("optics")
    assert solution.fitter == "optics:grating"
    assert solution.center == "half"
    assert solution.provenance["center"]["distribution"] == "lamost-lsf"
    assert solution.provenance["fitter"]["name"] == "optics:grating"


def test_a_table_has_no_parameters_and_so_no_uncertainty():
    def fit_table(pixel, wavelength, *, error=None, degree=5, domain):
        nodes = np.linspace(domain[0] - 1, domain[1] + 1, 400)
        curve = np.polynomial.Polynomial.fit(pixel, wavelength, degree)
        return Tabular1D(points=nodes, lookup_table=curve(nodes))

    _, pixel, wavelength = arc(30, np.random.default_rng(24))
    solution = fit_wavelength_solution(pixel, wavelength * u.AA, fitter=fit_table, domain=DOMAIN, degree=4)
    assert np.isnan(solution.uncertainty([10.0, 20.0])).all()
    assert solution.covariance.shape == (0, 0)
    assert_allclose(solution.wavelength_to_pixel(solution(1234.5)), 1234.5, atol=1e-9)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda: np.polynomial.Polynomial([5000, 1]), TypeError, "must return one astropy model"),
        (lambda: Polynomial1D(1, c0=5000 * u.AA, c1=1 * u.AA), TypeError, "with units"),
        (lambda: Polynomial1D(1, c0=np.nan, c1=1), ValueError, "not finite"),
        (lambda: Polynomial1D(1, n_models=2, c0=[1, 2], c1=[1, 2]), TypeError, "must return one"),
    ],
)
def test_a_faulty_fitter_is_named(result, error, message):
    def faulty(pixel, wavelength, *, error=None, degree=5, domain):
        return result()

    with pytest.raises(error, match=message) as caught:
        fit_wavelength_solution(np.arange(9.0), np.arange(5000.0, 5009) * u.AA, fitter=faulty, degree=1)
    assert "faulty" in str(caught.value)


# -- inverse, extrapolation, gwcs --------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    n_pixel=st.integers(20, 5000),
    start=st.floats(3000, 9000),
    step=st.floats(0.05, 5),
    bend=st.floats(-0.3, 0.3),
    twist=st.floats(-0.1, 0.1),
    flip=st.booleans(),
    fitter=st.sampled_from(["legendre", "polynomial"]),
)
def test_pixel_to_wavelength_and_back(n_pixel, start, step, bend, twist, flip, fitter):
    x = np.linspace(0, 1, 12)
    pixel = x * (n_pixel - 1)
    wavelength = start + step * n_pixel * (x + bend * x**2 + twist * x**3)
    solution = fit_wavelength_solution(
        pixel[::-1] if flip else pixel, wavelength * u.AA, degree=3, fitter=fitter, domain=(0, n_pixel - 1)
    )
    position = np.concatenate([[-0.5, n_pixel - 0.5], np.random.default_rng(0).uniform(-0.5, n_pixel - 0.5, 200)])
    there = solution(position)
    back = solution.wavelength_to_pixel(there)
    inner = slice(2, None)
    # a float64 wavelength of 10^4 A resolves 4e-12 A
    tolerance = 1e-9 + 1e-11 / np.min(np.abs(solution.dispersion(position).value))
    assert_allclose(back[inner], position[inner], rtol=0, atol=tolerance)
    assert_allclose(solution(back[inner]).value, there[inner].value, rtol=0, atol=1e-9)
    middle = solution.wavelength_to_pixel(there.mean())
    assert middle == pytest.approx(
        brentq(lambda p: solution.model(p) - there.mean().value, -0.5, n_pixel - 0.5, xtol=1e-12), abs=1e-8
    )
    assert isinstance(middle, float)


def test_outside_the_domain_there_is_nothing(solution):
    low, high = solution(DOMAIN[0] - 0.5), solution(DOMAIN[1] + 0.5)
    outside = [low.value - 0.01, high.value + 0.01, np.nan, -5000.0] * u.AA
    assert np.isnan(solution.wavelength_to_pixel(outside)).all()
    assert np.isnan(solution.wavelength_to_pixel(300 * u.nm))
    pixel = np.array([-1.0, N_PIXEL, np.nan])
    for values in (solution(pixel), solution.dispersion(pixel), solution.uncertainty(pixel)):
        assert np.isnan(values).all()
    assert solution.extrapolates(pixel).all()
    assert solution.wavelength_to_pixel(np.full((2, 3), 5000.0) * u.AA).shape == (2, 3)


def test_it_says_where_it_extrapolates_and_is_less_certain_there():
    rng = np.random.default_rng(25)
    pixel = np.sort(rng.uniform(1000, 3000, 30))
    wavelength = grating(pixel)
    pixel += rng.normal(0, 0.05, 30)
    wavelength[[0, 29]] += [20.0, -30.0]  # the outermost lines are wrong, so they do not count
    solution = fit_wavelength_solution(pixel, wavelength * u.AA, error=0.05 * u.pix, degree=3, domain=DOMAIN)
    probe = np.array([0.0, pixel[0], pixel[1], 2000.0, pixel[28], pixel[29], 4095.0])
    assert_array_equal(solution.extrapolates(probe), [True, True, False, False, False, True, True])
    sigma = solution.uncertainty(probe)
    assert sigma[0] > 5 * sigma[3] < sigma[-1]


def test_gwcs_makes_a_spectrum_and_goes_back(solution):
    wcs = solution.to_gwcs()
    spectrum = Spectrum(np.ones(N_PIXEL) * u.Jy, wcs=wcs)
    pixel = np.arange(N_PIXEL)
    assert_array_equal(spectrum.spectral_axis.to_value(u.AA), solution(pixel).value)
    assert_allclose(spectrum[100:200].spectral_axis.value, solution(pixel[100:200]).value)
    position = np.random.default_rng(1).uniform(0, N_PIXEL - 1, 3000)
    back = spectrum.wcs.world_to_pixel_values(solution(position).value)
    assert_allclose(back, position, rtol=0, atol=1e-6)
    assert_allclose(wcs.world_to_pixel(wcs.pixel_to_world(77.25)), 77.25, atol=1e-6)
    assert np.isnan(wcs(np.array([-0.6, N_PIXEL]))).all()
    assert wcs.output_frame.unit == (u.AA,)
    assert "vacuum" in wcs.output_frame.name
    # the solution itself is not touched
    assert not solution.model.has_user_inverse


def test_gwcs_of_falling_wavelengths():
    pixel = np.linspace(0, 499, 15)
    solution = fit_wavelength_solution(pixel, grating(2000 - pixel) * u.AA, domain=(0, 499))
    wcs = solution.to_gwcs()
    assert_allclose(wcs.world_to_pixel_values(solution(123.4).value), 123.4, atol=1e-6)
    assert np.all(np.diff(Spectrum(np.ones(500) * u.ct, wcs=wcs).spectral_axis.value) < 0)


def test_a_curve_that_turns_over_is_refused():
    pixel = np.linspace(0, 100, 20)
    wavelength = 5000 + pixel - 0.006 * pixel**2  # turns at 83
    with pytest.raises(ValueError, match=r"not monotonic .* turns over near pixel 83"):
        fit_wavelength_solution(pixel, wavelength * u.AA, degree=2)
    # so is one that turns over only beyond the last line, within the domain
    with pytest.raises(ValueError, match="not monotonic"):
        fit_wavelength_solution(pixel[:14], wavelength[:14] * u.AA, degree=2, domain=(0, 100))
    fit_wavelength_solution(pixel[:14], wavelength[:14] * u.AA, degree=2)


# -- bad arguments, the object -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"wavelength": np.arange(5000.0, 5009)}, TypeError, "without a unit"),
        ({"wavelength": np.arange(9) * u.km / u.s}, TypeError, "unit of length"),
        ({"pixel": np.arange(9.0) * u.AA}, TypeError, "unit pix"),
        ({"pixel": np.arange(8.0)}, ValueError, "one length"),
        ({"error": 0.1}, TypeError, "without a unit"),
        ({"error": 0.1 * u.s}, TypeError, "length or in pix"),
        ({"error": [0.1, 0.2] * u.pix}, ValueError, "shape of pixel"),
        ({"fitter": "legender"}, PluginLookupError, "legendre"),
        ({"fitter": 3}, TypeError, "callable"),
        ({"center": "halve"}, PluginLookupError, "half"),
        ({"degree": 8}, ValueError, "9 usable line.* of 9; degree 8 takes at least 10"),
        ({"degree": -1}, ValueError, "whole number"),
        ({"domain": (9, 0)}, ValueError, "first < last"),
        ({"domain": (100, 200)}, ValueError, "0 usable .*outside the domain"),
        ({"sigma_clip": 0}, ValueError, "sigma_clip"),
        ({"sigma_clip": "3"}, ValueError, "sigma_clip"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"min_lines": 2}, ValueError, "min_lines must be a whole number >= degree"),
        ({"medium": "water"}, ValueError, "'vacuum' or 'air'"),
        ({"label": ["a", "b"]}, ValueError, "label must have one entry"),
        ({"reject": ["a"]}, ValueError, "reject must have one entry"),
        ({"pixel": np.full(9, np.nan)}, ValueError, "0 usable .*not finite"),
    ],
)
def test_bad_arguments_say_what_is_wrong(change, error, message):
    arguments = {"pixel": np.arange(9.0), "wavelength": np.arange(5000.0, 5009) * u.AA, "degree": 1} | change
    with pytest.raises(error, match=message):
        fit_wavelength_solution(arguments.pop("pixel"), arguments.pop("wavelength"), **arguments)


def test_bad_units_of_results(solution):
    with pytest.raises(ValueError, match="length, a velocity or pix"):
        solution.rms(u.s)
    # three lines fix three coefficients and leave no freedom
    parabola = Polynomial1D(2, c0=5000.0, c1=1.0)
    exact = WavelengthSolution(parabola, (0, 9), solution.lines[:3], np.zeros((3, 3)), "mine")
    assert np.isnan(exact.chi2_reduced)
    bare = fit_wavelength_solution(np.arange(9.0), np.arange(5000.0, 5009) * u.AA, degree=1)
    with pytest.raises(ValueError, match="needs errors"):
        bare.rms(weighted=True)
    with pytest.raises(TypeError, match="unit of length"):
        solution.wavelength_to_pixel(5000.0)
    with pytest.raises(TypeError, match="unit pix"):
        solution(5000 * u.AA)
    with pytest.raises(ValueError, match="'vacuum' or 'air'"):
        solution.wavelength(5, medium="glass")


def test_the_solution_cannot_be_changed_by_accident(solution):
    with pytest.raises(AttributeError):
        solution.domain = (0, 1)
    with pytest.raises(ValueError, match="read-only"):
        solution.covariance[0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        solution.lines["used"][0] = False
    with pytest.raises(TypeError):
        solution.provenance["fitter"] = "another"
    model = Legendre1D(1, domain=(0, 10), c0=5000.0, c1=5.0)
    mine = WavelengthSolution(model, (0, 10), solution.lines, np.zeros((2, 2)), "legendre")
    model.c0 = 1.0
    assert mine(5.0).value == 5000.0


def test_the_constructor_checks_its_parts(solution):
    parts = {
        "model": solution.model,
        "domain": solution.domain,
        "lines": solution.lines,
        "covariance": solution.covariance,
        "fitter": "legendre",
    }
    with pytest.raises(TypeError, match="astropy model"):
        WavelengthSolution(**parts | {"model": np.sin})
    with pytest.raises(ValueError, match=r"lacks the column\(s\) reason"):
        WavelengthSolution(**parts | {"lines": solution.lines[[c for c in solution.lines.colnames if c != "reason"]]})
    with pytest.raises(ValueError, match=r"covariance must have the shape \(6, 6\)"):
        WavelengthSolution(**parts | {"covariance": np.eye(5)})
    with pytest.raises(ValueError, match="not finite at pixel"):
        WavelengthSolution(**parts | {"model": Legendre1D(5, c0=np.nan)})


def test_rows_of_several_solutions_make_a_table(solution):
    lines = solution.lines
    other = fit_wavelength_solution(lines["pixel"], lines["wavelength"], fitter="polynomial", center="gauss", degree=4)
    table = vstack([solution.to_row(), other.to_row()])
    assert list(table["fitter"]) == ["legendre", "polynomial"]
    assert list(table["center"]) == ["", "gauss"]
    assert list(table["n_used"]) == [40, 40]
    assert_allclose(table["rms_pixel"].quantity.to_value(u.pix), [solution.rms(u.pix).value, other.rms(u.pix).value])
    assert table["rms_velocity"].unit == u.km / u.s
    assert "legendre of degree 5" in repr(solution)
    assert "40 of 40 lines" in repr(solution)
