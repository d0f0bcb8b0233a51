"""`apply_center`, `center_uncertainty`, and the contract tests: does each rule catch the fault it is there for?"""

import functools
import re
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.modeling.models import Chebyshev1D, Gaussian2D, Polynomial1D
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamost_lsf.errors import FitWarning, PluginLookupError
from lamost_lsf.plugins import CenterEstimator, WavelengthFitter, apply_center, center_uncertainty, get_center
from lamost_lsf.testing import (
    CENTER_CHECKS,
    FITTER_CHECKS,
    check_center,
    check_plugin,
    check_wavelength_fitter,
)

X = np.linspace(-8.0, 8.0, 161)


def line(center=0.0, x=X):
    return np.exp(-0.5 * (x - center) ** 2)


def mean(x, profile, *, error=None, mask=None):
    """Flux-weighted mean of the good samples, one profile at a time."""
    if mask is not None:
        x, profile = x[~mask], profile[~mask]
    total = np.sum(profile)
    return np.sum(x * profile) / total if total > 0 else np.nan


class Batch:
    """The same for many profiles."""

    vectorized = True

    def __call__(self, x, profile, *, error=None, mask=None):
        if mask is not None:
            profile = np.where(mask, 0.0, profile)
        total = np.sum(profile, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, np.sum((x - x[0]) * profile, axis=-1) / total, np.nan) + x[0]


# -- apply_center -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [mean, Batch(), "centroid"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,), (2, 0)])
def test_leading_axes_in_leading_axes_out(estimator, shape):
    where = np.random.default_rng(1).uniform(-1, 1, shape)
    result = apply_center(estimator, X, line(where[..., None]))
    assert np.shape(result) == shape
    assert_allclose(result, where, atol=1e-6)
    assert np.isscalar(result) == (shape == ())


def test_error_and_mask_broadcast_against_profiles():
    profiles = line(np.array([0.0, 1.0])[:, None])
    mask = np.zeros(X.size, dtype=bool)
    mask[10] = True
    profiles[:, 10] = 1e3
    for error in (0.1, np.full(X.size, 0.1), np.full(profiles.shape, 0.1)):
        for estimator in (mean, "centroid"):
            assert_allclose(apply_center(estimator, X, profiles, error=error, mask=mask), [0, 1], atol=1e-4)
    # One profile with two masks gives two centres.
    masks = np.array([mask, ~mask])
    assert apply_center(mean, X, profiles[0], mask=masks).shape == (2,)


@pytest.mark.parametrize("estimator", [mean, Batch()])
def test_bad_samples_never_reach_a_third_party_unmasked(estimator):
    profile, error = line(0.5), np.full(X.size, 0.1)
    profile[3], profile[5] = np.nan, np.inf
    error[7], error[9], error[11], profile[[7, 9, 11]] = 0.0, np.nan, np.inf, 50.0
    assert_allclose(apply_center(estimator, X, profile, error=error), 0.5, atol=1e-4)
    masked = np.ma.MaskedArray(line(0.5), mask=X < -7.5)
    masked.data[X < -7.5] = 1e4
    assert_allclose(apply_center(estimator, X, masked), 0.5, atol=1e-4)
    assert_allclose(apply_center(estimator, X, masked, mask=X > 7.5), 0.5, atol=1e-4)


class Moody:
    """Raises for lines to the left."""

    def __init__(self, vectorized):
        self.vectorized = vectorized

    def __call__(self, x, profile, *, error=None, mask=None):
        found = Batch()(x, profile, mask=mask)
        if np.any(found < 0):
            raise ZeroDivisionError("left of centre")
        return found


@pytest.mark.parametrize("vectorized", [True, False])
def test_failure_of_single_profiles_is_nan_and_one_warning(vectorized):
    profiles = line(np.array([[0.5, -0.5, 1.0], [0.25, -1.0, -2.0]])[..., None])
    with pytest.warns(FitWarning) as caught:
        found = apply_center(Moody(vectorized), X, profiles)
    assert len(caught) == 1
    assert "Moody failed for 3 of 6 profiles, NaN: ZeroDivisionError: left of centre" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert_allclose(found, [[0.5, np.nan, 1.0], [0.25, np.nan, np.nan]], atol=1e-6)
    with pytest.warns(FitWarning, match="1 of 1"):
        assert np.isnan(apply_center(Moody(vectorized), X, line(-1.0)))


def test_caller_arrays_are_safe_from_the_estimator():
    def careless(x, profile, *, error=None, mask=None):
        x -= x.mean()
        profile /= profile.sum()
        error *= 0
        mask[:] = True
        return np.zeros(profile.shape[:-1])

    class Careless:
        vectorized = True
        __call__ = staticmethod(careless)

    profile, error, mask, x = np.tile(line(), (2, 1)), np.ones((2, X.size)), np.zeros(X.size, bool), X + 1
    for estimator in (careless, Careless()):
        apply_center(estimator, x, profile, error=error, mask=mask)
        assert_array_equal(profile, np.tile(line(), (2, 1)))
        assert_array_equal(x, X + 1)
        assert error.all()
        assert not mask.any()


@pytest.mark.parametrize(
    ("result", "error", "match"),
    [
        (lambda p: np.zeros(3), ValueError, r"returned shape \(3,\) where the leading axes are \(\)"),
        (lambda p: "0.5", TypeError, "must return real numbers, not str"),
        (lambda p: None, TypeError, "must return real numbers, not NoneType"),
        (lambda p: 1j, TypeError, "must return real numbers, not complex"),
        (lambda p: 0.5 * u.AA, TypeError, "plain numbers in units of x, not a Quantity"),
    ],
)
def test_results_that_are_no_centres_are_errors_not_nan(result, error, match):
    def odd(x, profile, *, error=None, mask=None):
        return result(profile)

    with pytest.raises(error, match=match):
        apply_center(odd, X, np.tile(line(), (2, 1)))

    class Odd:
        vectorized = True
        __call__ = staticmethod(odd)

    with pytest.raises(error, match=match):
        apply_center(Odd(), X, line())


def test_infinite_and_masked_results_are_nan_and_integers_are_numbers():
    results = iter([np.inf, np.ma.masked, np.float32(2.5), 3])

    def odd(x, profile, *, error=None, mask=None):
        return next(results)

    assert_array_equal(apply_center(odd, X, np.tile(line(), (4, 1))), [np.nan, np.nan, 2.5, 3.0])


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "match"),
    [
        ((X[::-1], line()), {}, ValueError, "increase strictly"),
        ((np.where(X > 0, np.nan, X), line()), {}, ValueError, "finite"),
        ((X[:, None], line()), {}, ValueError, "one-dimensional"),
        ((X[:1], line()[:1]), {}, ValueError, "at least 2"),
        ((X, line()[:-1]), {}, ValueError, "last axis of profile must have the 161 samples"),
        ((X, 1.0), {}, ValueError, "last axis of profile"),
        ((X, line()), {"error": np.ones(3)}, ValueError, "last axis of error"),
        ((X, line()), {"mask": np.ones(3, bool)}, ValueError, "last axis of mask"),
        ((X, line()), {"mask": np.ones(X.size)}, ValueError, "mask must be boolean"),
        ((X, line().astype(str)), {}, ValueError, "real numbers"),
        ((X, np.ones((2, X.size))), {"error": np.ones((3, X.size))}, ValueError, "do not broadcast"),
        ((X * u.AA, line()), {}, TypeError, "x must be plain numbers"),
        ((X, line() * u.Jy), {}, TypeError, "profile must be plain numbers"),
        ((X, line()), {"error": np.ones(X.size) * u.Jy}, TypeError, "error must be plain numbers"),
    ],
)
def test_bad_arguments_raise_at_once(arguments, keywords, error, match):
    with pytest.raises(error, match=match):
        apply_center(mean, *arguments, **keywords)


def test_callable_of_another_signature_is_an_error_not_a_batch_of_nan():
    with pytest.raises(TypeError, match=r"<lambda> cannot be called as \(x, profile, \*, error=None, mask=None\)"):
        apply_center(lambda x, profile: 0.0, X, line())
    with pytest.raises(PluginLookupError, match="no center"):
        apply_center("no such centre", X, line())
    with pytest.raises(TypeError, match="name or a callable"):
        apply_center(None, X, line())


@settings(deadline=None)  # the first call may compile
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    st.floats(-2, 2),
    st.sampled_from(["max", "centroid", "gauss", "sersic", "half", "fourier"]),
)
def test_a_shifted_axis_shifts_every_centre(where, shift, name):
    profiles = line(np.array(where)[:, None]) + 0.2 * line(np.array(where)[:, None] + 1.5)
    assert_allclose(apply_center(name, X + shift, profiles), apply_center(name, X, profiles) + shift, rtol=0, atol=1e-6)


# -- center_uncertainty -------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [mean, Batch()])
def test_numerical_propagation_agrees_with_the_formula_of_the_mean(estimator):
    error = np.linspace(1e-3, 3e-3, X.size)
    profiles = line(np.array([0.0, 0.7])[:, None])
    expected = np.sqrt(np.sum((X - np.array([[0.0], [0.7]])) ** 2 * error**2, axis=1)) / np.sum(line())
    assert_allclose(center_uncertainty(estimator, X, profiles, error=error), expected, rtol=1e-5)
    mask = np.abs(X) > 5
    clean = center_uncertainty(estimator, X[~mask], line()[~mask], error=error[~mask])
    dirty = np.where(mask, np.nan, line())
    assert_allclose(center_uncertainty(estimator, X, dirty, error=error), clean, rtol=1e-10)
    assert_allclose(center_uncertainty(estimator, X, line(), error=error, mask=mask), clean, rtol=1e-10)


@pytest.mark.parametrize("name", ["gauss", "sersic", "half", "centroid", "fourier", "max"])
def test_numerical_propagation_agrees_with_the_builtins_own(name):
    builtin = get_center(name)

    def foreign(x, profile, *, error=None, mask=None):
        return builtin(x, profile, error=error, mask=mask)

    profile = line() + 0.2 * line(1.3)
    error = np.full(X.size, 1e-4)
    own = center_uncertainty(name, X, profile, error=error)
    assert_allclose(center_uncertainty(foreign, X, profile, error=error), own, rtol=0.02)


def test_numerical_propagation_agrees_with_monte_carlo():
    rng = np.random.default_rng(8)
    error = 0.004 * np.sqrt(line() + 0.1)
    draws = line() + rng.normal(0.0, error, (3000, X.size))

    def slope(x, profile, *, error=None, mask=None):  # zero crossing of the derivative's correlation
        kernel = -x * np.exp(-0.5 * x**2)
        c = np.correlate(profile, kernel, mode="same")
        i = 75 + int(np.flatnonzero(np.diff(np.sign(c[75:86])))[0])
        return x[i] - c[i] * (x[i + 1] - x[i]) / (c[i + 1] - c[i])

    scatter = np.std(apply_center(slope, X, draws))
    # 3000 draws know their scatter to 1.3 %.
    assert_allclose(center_uncertainty(slope, X, line(), error=error), scatter, rtol=0.05)


def test_uncertainty_needs_an_error_and_a_centre():
    with pytest.raises(ValueError, match="error is required"):
        center_uncertainty(mean, X, line(), error=None)
    profiles = np.array([line(), np.full(X.size, np.nan), -line()])
    with pytest.warns(FitWarning) as caught:
        sigma = center_uncertainty(mean, X, profiles, error=0.01)
    assert len(caught) == 1
    assert "2 of 3 profiles" in str(caught[0].message)
    assert_array_equal(np.isnan(sigma), [False, True, True])
    with pytest.warns(FitWarning, match="2 of 2"), np.errstate(all="raise"):
        assert np.isnan(
            center_uncertainty(lambda x, p, *, error=None, mask=None: 0.0, X, profiles[[1, 1]], error=1)
        ).all()


def test_own_uncertainty_is_asked_and_may_fail():
    class Own(Batch):
        def uncertainty(self, x, profile, *, error, mask=None):
            if np.any(profile > 1.5):
                raise RuntimeError("saturated")
            return np.full(profile.shape[:-1], 0.125)

    profiles = np.array([line(), 2 * line()])
    with pytest.warns(FitWarning, match="1 of 2"):
        assert_array_equal(center_uncertainty(Own(), X, profiles, error=1.0), [0.125, np.nan])

    class Negative(Batch):
        vectorized = False

        def uncertainty(self, x, profile, *, error, mask=None):
            return -1.0

    assert np.isnan(center_uncertainty(Negative(), X, line(), error=1.0))


# -- the contract of centres --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max", "centroid", "gauss", "sersic", "half", "fourier"])
def test_builtin_centres_keep_the_contract_of_third_parties(name):
    check_center(name)


def test_the_scales_own_zero_breaks_the_rules_it_is_known_to_break():
    with pytest.raises(AssertionError, match="breaks 4 of 12 rules"):
        check_center("zero")
    check_center("zero", skip=("symmetric", "shift", "hopeless", "batch"))


def test_sound_estimators_pass():
    check_center(mean)
    check_center(Batch())
    assert isinstance(mean, CenterEstimator)


def faulty(fault):
    """The mean with one fault."""

    class Faulty(Batch):
        def __call__(self, x, profile, *, error=None, mask=None):
            raw = profile
            value = super().__call__(x, np.asarray(profile), mask=mask)
            if fault == "half pixel":
                return value + 0.5 * (x[1] - x[0])
            if fault == "flipped":
                return x[0] + x[-1] - value
            if fault == "index":
                return np.searchsorted(x, value).astype(float)
            if fault == "grid":
                return x[np.argmin(np.abs(x - value))] if np.ndim(value) == 0 else value
            if fault == "angstrom":
                return value + 0.01
            if fault == "threshold":
                return super().__call__(x, np.where(profile > 0.3, profile, 0.0), mask=mask)
            if fault == "unmasked":
                return super().__call__(x, profile)
            if fault == "zero for nan":
                return np.nan_to_num(value)
            if fault == "raises" and not np.all(np.isfinite(value)):
                raise ValueError("nothing there")
            if fault == "writes":
                raw *= 0.5
            if fault == "first of batch":
                return value.flat[0] * np.ones_like(value) if np.size(value) else value
            if fault == "squeezes":
                return np.ravel(value) if np.ndim(value) == 2 else value
            if fault == "errors":
                return value if error is None else value + 10 * np.nanmean(error)
            if fault == "array":
                return np.atleast_1d(value)
            return value

    return Faulty()


@pytest.mark.parametrize(
    ("fault", "rules"),
    [
        ("half pixel", {"symmetric", "mirror"}),
        ("flipped", {"symmetric", "shift"}),
        ("index", {"symmetric", "units"}),
        ("grid", {"shift"}),
        ("angstrom", {"symmetric", "units"}),
        ("threshold", {"scale"}),
        ("unmasked", {"mask"}),
        ("zero for nan", {"hopeless"}),
        ("raises", {"hopeless"}),
        ("writes", {"mutation"}),
        ("first of batch", {"batch"}),
        ("squeezes", {"batch"}),
        ("errors", {"error"}),
        ("array", {"signature"}),
    ],
)
def test_each_fault_of_a_centre_is_caught_by_its_rule(fault, rules):
    check_center(faulty("none"))
    with pytest.raises(AssertionError) as caught:
        check_center(faulty(fault))
    broken = {text.split(":")[0].strip() for text in str(caught.value).splitlines() if re.match(r"  \w", text)}
    assert rules <= broken, str(caught.value)
    assert "'Faulty' breaks" in str(caught.value).splitlines()[0]


@pytest.mark.parametrize(
    ("uncertainty", "match"),
    [
        (lambda e: 10 * np.mean(e), "scatters by"),
        (lambda e: e, "has shape"),
        (lambda e: np.nan, "is nan"),
    ],
)
def test_wrong_uncertainty_is_caught(uncertainty, match):
    class Wrong(Batch):
        def uncertainty(self, x, profile, *, error, mask=None):
            return uncertainty(error)

    with pytest.raises(AssertionError, match=rf"(?s)uncertainty: .*{match}"):
        check_center(Wrong())


def test_contract_sees_signatures_exceptions_and_bad_options():
    with pytest.raises(AssertionError, match="signature: it cannot be called as"):
        check_center(lambda x, profile: 0.0)

    def explodes(x, profile, *, error=None, mask=None):
        raise RuntimeError("boom")

    with pytest.raises(AssertionError, match="shift: raised RuntimeError: boom"):
        check_center(explodes)
    with pytest.raises(AssertionError, match="signature: the centre must be a real number"):
        check_center(lambda x, profile, *, error=None, mask=None: "x")
    with pytest.raises(AssertionError, match="signature: a clean profile of 401 samples gave nan"):
        check_center(lambda x, profile, *, error=None, mask=None: np.nan)
    for skip in ("shift", ["no such rule"]):
        with pytest.raises(ValueError, match="skip must be a collection of signature, symmetric"):
            check_center(mean, skip=skip)
    with pytest.raises(PluginLookupError):
        check_center("no such centre")


def test_contract_does_not_pass_warnings_on():
    def chatty(x, profile, *, error=None, mask=None):
        warnings.warn("thinking", UserWarning, stacklevel=2)
        return mean(x, profile, mask=mask)

    check_center(chatty)


# -- the contract of fitters --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["polynomial", "legendre"])
def test_builtin_fitters_keep_the_contract_of_third_parties(name):
    check_wavelength_fitter(name)


def series(pixel, wavelength, *, error=None, degree=5, domain, fault=None):
    """Chebyshev series by numpy, with a fault."""
    if fault == "degree":
        degree = 5
    if len(pixel) <= degree and fault != "few":
        raise (KeyError if fault == "key" else ValueError)("too few")
    weights = None if error is None or fault == "unweighted" else 1 / error
    if fault == "squared":
        weights = None if error is None else np.sqrt(error)
    if fault == "writes":
        pixel.sort()
        wavelength -= 1.0
    if fault == "sorted":
        wavelength = np.sort(wavelength)
        wavelength, pixel = wavelength, np.asarray(pixel)
    used = (pixel.min(), pixel.max()) if fault == "domain" else domain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = np.polynomial.Chebyshev.fit(pixel, wavelength, degree, domain=used, w=weights)
    if fault == "numpy":
        return fit
    if fault == "2d":
        return Gaussian2D()
    if fault == "set":
        return Polynomial1D(1, n_models=2, c0=[1, 2], c1=[0, 0])
    if fault == "unit":
        return Polynomial1D(1, c0=4500 * u.AA, c1=0 * u.AA)
    return Chebyshev1D(degree, domain=domain, **{f"c{i}": c for i, c in enumerate(fit.coef)})


def test_sound_fitter_passes():
    check_wavelength_fitter(series)
    assert isinstance(series, WavelengthFitter)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("degree", "degree: degree=1 gave a curve"),
        ("few", "too_few: .*returned a model"),
        ("key", "too_few: .*raised KeyError"),
        ("unweighted", "weights: a line that is 5 A off"),
        ("squared", "weights: "),
        ("writes", "mutation: it writes to its argument wavelength"),
        ("sorted", "order: lines in random order"),
        ("domain", "recovers: a polynomial of degree 1"),
        ("numpy", "model: it must return an astropy Model, not Chebyshev"),
        ("2d", "model: the model has 2 inputs"),
        ("set", "model: the model has 1 inputs, 1 outputs, set of 2"),
        ("unit", "model: "),
    ],
)
def test_each_fault_of_a_fitter_is_caught_by_its_rule(fault, match):
    with pytest.raises(AssertionError, match=f"(?s){match}"):
        check_wavelength_fitter(functools.partial(series, fault=fault))


def test_fitter_of_another_signature():
    with pytest.raises(AssertionError, match="signature: it cannot be called as"):
        check_wavelength_fitter(lambda pixel, wavelength: None)
    with pytest.raises(ValueError, match="skip must be"):
        check_wavelength_fitter(series, skip=["no such rule"])


def test_names_of_the_rules():
    assert set(CENTER_CHECKS) >= {"shift", "scale", "batch", "mask", "hopeless", "mutation", "uncertainty"}
    assert set(FITTER_CHECKS) >= {"recovers", "weights", "degree", "model", "mutation"}
    assert not {"center", "same", "fit", "close", "curve"} & set(CENTER_CHECKS + FITTER_CHECKS)


# -- a whole plug-in ----------------------------------------------------------------------------------------


def test_check_plugin():
    from lamost_lsf.plugins import hookimpl, register, unregister

    class Plugin:
        def __init__(self, **centers):
            self.centers = centers

        @hookimpl
        def lamost_lsf_centers(self):
            return self.centers

    register(Plugin(average=mean), name="sound")
    try:
        check_plugin("Sound")
    finally:
        unregister("sound")
    register(Plugin(constant=lambda x, profile, *, error=None, mask=None: 0.0), name="unsound")
    try:
        with pytest.raises(AssertionError, match="center 'unsound:constant' breaks"):
            check_plugin("unsound")
    finally:
        unregister("unsound")
    with pytest.warns(match="built-in"):
        register(Plugin(gauss=mean), name="greedy")
    try:
        with pytest.raises(AssertionError, match="'gauss' is a built-in"):
            check_plugin("greedy")
    finally:
        unregister("greedy")
