"""LSFs: tabulated, averaged, shifted and joined ones against the models or densities that they stand for."""

import astropy.units as u
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats

from lamost_lsf import GaussianIP, InstrumentalProfile, JoinedLSF, MeanLSF, TabulatedLSF
from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.lsf import LSF, Segment, ShiftedLSF, as_lsf

X = np.linspace(-8.335, 9.25, 600)


def density(wavelength):
    """Skewed response whose width and asymmetry vary smoothly with wavelength."""
    t = (np.asarray(wavelength)[..., None] - 5000.0) / 1000.0
    return stats.skewnorm.pdf(X, 2.0 + 1.5 * t, -0.4 + 0.1 * t, 1.3 + 0.2 * t)


class SkewLSF(LSF):
    """What a third party writes: ``offset`` and ``_sample``."""

    def __init__(self, tilt=0.0, low=4000.0, high=6000.0, offset=X):
        super().__init__({"maker": "test", "tilt": tilt})
        self.offset, self.tilt, self.wavelength_range = offset, tilt, (low, high)

    def _sample(self, wavelength):
        t = (wavelength[:, None] - 5000.0) / 1000.0
        return 7.0 * stats.skewnorm.pdf(self.offset, 2.0 + 1.5 * t, -0.4 + 0.1 * t + self.tilt, 1.3 + 0.2 * t)


NODES = np.linspace(4000, 6000, 21)


@pytest.fixture(scope="module")
def table():
    return TabulatedLSF(InstrumentalProfile(X * u.AA, 5 * density(NODES), wavelength=NODES * u.AA))


# -- what every LSF does -------------------------------------------------------------------------------------


def test_samples_have_unit_area():
    w = np.linspace(4000, 6000, 7)
    samples = SkewLSF().sample(w)
    for row in samples:
        spline = InstrumentalProfile(X * u.AA, row)
        assert_allclose(integrate.quad(lambda t, s=spline: s(t * u.AA)[0], -8.335, 9.25, limit=200)[0], 1, rtol=1e-7)
    truth = density(w) / np.array([d.cdf(9.25) - d.cdf(-8.335) for d in (stats.skewnorm(2.0, -0.4, 1.3),)])
    assert_allclose(samples, truth, atol=1e-6)


def test_profile_takes_any_shape_unit_and_medium():
    lsf = SkewLSF()
    assert lsf.profile(500 * u.nm).shape == ()
    ip = lsf.profile(np.array([[4500, 5000, 5500]]) * u.AA)
    assert ip.shape == (1, 3)
    assert_allclose(ip.flux[0], density([4500, 5000, 5500]), atol=1e-6)
    assert_allclose(ip.area, 1)
    assert ip.meta["maker"] == "test"
    assert lsf.profile([] * u.AA).shape == (0,)
    # 5000 A in air is 5001.394 A in vacuum
    assert_allclose(lsf.profile(5000 * u.AA, medium="air").flux, density(5001.394), atol=2e-6)
    assert np.max(np.abs(lsf.profile(5000 * u.AA, medium="air").flux - density(5000.0))) > 1e-4


@pytest.mark.parametrize("wavelength", [3999.9, 6000.1, np.nan])
def test_outside_the_range_is_an_error_that_names_it(wavelength):
    with pytest.raises(OutOfRangeError, match=r"4000.00-6000.00 A.*extrapolate=True"):
        SkewLSF().profile([5000, wavelength] * u.AA)


def test_sample_wants_a_list_of_wavelengths():
    with pytest.raises(ValueError, match=r"shape \(m,\)"):
        SkewLSF().sample(5000.0)


def test_an_lsf_without_area_says_where():
    class Broken(SkewLSF):
        def _sample(self, wavelength):
            return np.where(wavelength[:, None] > 5000, -1.0, super()._sample(wavelength))

    with pytest.raises(ValueError, match=r"5100.00 A has no positive area"):
        Broken().sample(np.array([4900.0, 5100.0]))


def test_centres_follow_the_definition_asked_for_else_its_own_else_zero():
    lsf = SkewLSF()
    w = np.array([4200.0, 5000.0, 5800.0])
    t = (w - 5000) / 1000
    median = [stats.skewnorm(2 + 1.5 * s, -0.4 + 0.1 * s, 1.3 + 0.2 * s).median() for s in t]
    assert_array_equal(lsf.zero_point(w), 0)
    assert_allclose(lsf.zero_point(w, "half"), median, atol=1e-5)
    assert_allclose(lsf.centered("half").zero_point(w), median, atol=1e-5)
    assert_array_equal(lsf.centered("half").zero_point(w, "Zero"), 0)
    assert lsf.center is None
    recorded = lsf.centered("half").profile(w * u.AA)
    assert_allclose(recorded.center().to_value(u.AA), median, atol=1e-5)


def test_a_centre_that_fails_is_an_error_with_its_wavelength():
    def never(x, profile, *, error=None, mask=None):
        return np.nan

    with pytest.raises(ValueError, match=r"4500.00 A could not be determined"):
        SkewLSF().zero_point(np.array([4500.0]), never)


# -- tabulated -----------------------------------------------------------------------------------------------


def test_tabulated_profiles_come_back_and_lie_between(table):
    assert_allclose(table.profile(NODES * u.AA).flux, density(NODES), atol=2e-6)
    between = np.linspace(4030, 5970, 50)
    assert_allclose(table.profile(between * u.AA).flux, density(between), atol=3e-5)
    assert table.wavelength_range == (4000, 6000)


def test_two_profiles_are_interpolated_linearly():
    pair = TabulatedLSF(InstrumentalProfile(X * u.AA, density([4000, 6000]), wavelength=[4000, 6000] * u.AA))
    expected = 0.25 * density(6000.0) + 0.75 * density(4000.0)
    assert_allclose(pair.profile(4500 * u.AA).flux, expected, atol=2e-6)


def test_a_single_profile_holds_everywhere():
    for ip in (
        InstrumentalProfile(X * u.AA, density(5000.0)),
        InstrumentalProfile(X * u.AA, [density(5000.0)], wavelength=5000 * u.AA),
    ):
        lsf = TabulatedLSF(ip)
        assert_allclose(lsf.profile([3000, 9000] * u.AA).flux, [density(5000.0)] * 2, atol=2e-6)


def test_beyond_the_table_the_last_profile_holds_only_when_asked(table):
    with pytest.raises(OutOfRangeError):
        table.profile(6001 * u.AA)
    wide = TabulatedLSF(InstrumentalProfile(X * u.AA, density(NODES), wavelength=NODES * u.AA), extrapolate=True)
    assert_allclose(wide.profile(7000 * u.AA).flux, density(6000.0), atol=2e-6)


def test_uneven_offsets_are_resampled():
    uneven = np.sort(np.r_[np.linspace(-8, 8, 300), np.linspace(-2, 2, 101)[1:-1:2] + 1e-3])
    flux = stats.skewnorm.pdf(uneven, 2.0, -0.4, 1.3)
    lsf = TabulatedLSF(InstrumentalProfile(uneven * u.AA, flux))
    assert np.ptp(np.diff(lsf.offset)) < 1e-9
    ip = lsf.profile(5000 * u.AA)
    assert_allclose(ip.flux, stats.skewnorm.pdf(lsf.offset, 2.0, -0.4, 1.3), atol=1e-5)


def test_the_centre_of_the_profiles_becomes_that_of_the_table():
    profiles = SkewLSF().centered("half").profile(NODES * u.AA)
    assert TabulatedLSF(profiles).center == "half"
    assert TabulatedLSF(InstrumentalProfile(X * u.AA, density(5000.0))).center is None


@pytest.mark.parametrize(
    ("flux", "wavelength", "match"),
    [
        (density([[4000, 5000]]), [4000, 5000] * u.AA, r"shape \(m,\)"),
        (density([4000, 5000]), None, "need their wavelengths"),
        (density([4000, 5000]), [5000, 4000] * u.AA, "increase strictly"),
        (density([4000, 5000]), [4000, np.nan] * u.AA, "finite"),
        (density([4000, 5000]) * [[1], [-1]], [4000, 5000] * u.AA, "profile 1 has no positive finite area"),
        (density([4000, 5000]) * [[np.nan], [1]], [4000, 5000] * u.AA, "profile 0 has no positive finite area"),
        (density([]), [] * u.AA, "shape"),
    ],
)
def test_tables_that_cannot_work_are_refused(flux, wavelength, match):
    with pytest.raises(ValueError, match=match):
        TabulatedLSF(InstrumentalProfile(X * u.AA, flux, wavelength=wavelength))


# -- mean ----------------------------------------------------------------------------------------------------


def test_a_coadd_has_the_mean_of_its_exposures_profiles():
    lsfs = [SkewLSF(tilt) for tilt in (-0.3, 0.0, 0.5)]
    mean = MeanLSF(lsfs)
    stack = np.mean([o.profile(5100 * u.AA).flux for o in lsfs], axis=0)
    assert_allclose(mean.profile(5100 * u.AA).flux, stack, atol=1e-12)
    assert_allclose(mean.profile(5100 * u.AA).area, 1)
    # wider than each: the exposures' shifts add to the variance
    variance = np.mean([o.profile(5100 * u.AA).sigma.value ** 2 for o in lsfs]) + np.var([-0.3, 0.0, 0.5])
    assert_allclose(mean.profile(5100 * u.AA).sigma.value ** 2, variance, rtol=1e-5)
    assert mean.meta == {"maker": "test", "n_exposures": 3}


def test_weights_and_ranges_of_a_mean():
    a, b = SkewLSF(0.0, 4000, 5500), SkewLSF(0.4, 4500, 6000)
    mean = MeanLSF([a, b], weights=[3, 1])
    assert mean.wavelength_range == (4500, 5500)
    expected = 0.75 * a.profile(5000 * u.AA).flux + 0.25 * b.profile(5000 * u.AA).flux
    assert_allclose(mean.profile(5000 * u.AA).flux, expected)


def test_means_that_make_no_sense_are_refused():
    a = SkewLSF()
    with pytest.raises(ValueError, match="no LSFs"):
        MeanLSF([])
    with pytest.raises(ValueError, match="different offset grids"):
        MeanLSF([a, SkewLSF(offset=X * 1.1)])
    with pytest.raises(ValueError, match="no common range"):
        MeanLSF([SkewLSF(0, 4000, 5000), SkewLSF(0, 5500, 6000)])
    with pytest.raises(ValueError, match="different centres"):
        MeanLSF([a.centered("half"), a.centered("max")])
    for weights in ([1], [1, -1], [0, 0], [np.nan, 1]):
        with pytest.raises(ValueError, match="weights must be"):
            MeanLSF([a, a], weights)


# -- frames --------------------------------------------------------------------------------------------------


def test_a_shifted_lsf_is_the_detectors_at_the_detectors_wavelength():
    factor = 1 + 29.0 / 299792.458  # HELIO_RV = +29 km/s
    lsf = SkewLSF()
    shifted = lsf.shifted(factor)
    # a pixel that the file has at 5000 A was at 5000.48 A on the detector, and a profile 1 A wide there
    # is 1 / factor wide in the file
    ip, inner = shifted.profile(5000 * u.AA), lsf.profile(5000 * factor * u.AA)
    assert_allclose(ip.fwhm * factor, inner.fwhm, rtol=1e-9)
    t = np.linspace(-3, 4, 30)
    assert_allclose(ip(t * u.AA), inner(t * factor * u.AA) * factor, rtol=1e-9, atol=1e-12)
    wrong = lsf.profile(5000 / factor * u.AA)
    assert abs(wrong.fwhm * factor - ip.fwhm * factor**2) > 1e-6 * u.AA
    assert_allclose(shifted.wavelength_range, np.array([4000, 6000]) / factor)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.9995, 1.0005), st.floats(0.9995, 1.0005))
def test_shifts_compose_and_reach_the_ends_of_the_range(a, b):
    lsf = SkewLSF()
    once, twice = lsf.shifted(a * b), lsf.shifted(a).shifted(b)
    low, high = twice.wavelength_range
    ends = np.array([low, high])
    assert_allclose(twice.sample(ends), once.sample(np.clip(ends, *once.wavelength_range)), rtol=1e-6, atol=1e-9)
    assert lsf.shifted(1.0) is lsf


def test_a_shift_must_be_a_positive_factor():
    for factor in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="factor must be positive"):
            ShiftedLSF(SkewLSF(), factor)


# -- joined arms ---------------------------------------------------------------------------------------------

RED_X = np.linspace(-9.163, 9.833, 600)


@pytest.fixture
def joined():
    blue, red = SkewLSF(0.0, 4000, 5400), SkewLSF(0.5, 4900, 6000, offset=RED_X)
    return JoinedLSF([Segment(4000, 5200, blue), Segment(5200, 6000, red)])


def test_each_arm_rules_up_to_the_join(joined):
    blue, red = SkewLSF(0.0), SkewLSF(0.5, offset=RED_X)
    assert joined.wavelength_range == (4000, 6000)
    t = np.linspace(-5, 6, 200) * u.AA
    for w, arm in ((4000, blue), (5199.999, blue), (5200, red), (6000, red)):
        assert_allclose(joined.profile(w * u.AA)(t), arm.profile(w * u.AA)(t), atol=2e-5)
    assert abs(joined.profile(5199.9 * u.AA).center("half") - joined.profile(5200 * u.AA).center("half")) > 0.3 * u.AA


def test_an_arm_that_ends_before_the_join_leaves_an_error_not_garbage():
    gap = JoinedLSF([Segment(0, 5200, SkewLSF(0, 4000, 5100)), Segment(5200, np.inf, SkewLSF(0, 5300, 6000))])
    assert gap.wavelength_range == (4000, 6000)
    for w in (5150.0, 5250.0):
        with pytest.raises(OutOfRangeError):
            gap.profile(w * u.AA)


def test_segments_carry_the_centre_and_shift_with_their_join(joined):
    half = joined.centered("half")
    assert [s.lsf.center for s in half.segments()] == ["half", "half"]
    factor = 1.0003
    shifted = half.shifted(factor)
    assert shifted.center == "half"
    assert_allclose([s.high for s in shifted.segments()], [5200 / factor, 6000 / factor])
    for w in (4500.0, 5199.0, 5200.0, 5900.0):
        a, b = shifted.profile(w * u.AA), half.profile(w * factor * u.AA)
        assert_allclose(a.center("half") * factor, b.center("half"), atol=1e-5)
        assert_allclose(a.fwhm * factor, b.fwhm, rtol=1e-4)
    assert joined.shifted(1.0) is joined


def test_a_mean_of_joined_lsfs_keeps_the_join(joined):
    mean = MeanLSF([joined, joined], weights=[1, 3]).centered("half")
    assert [(s.low, s.high) for s in mean.segments()] == [(4000, 5200), (5200, 6000)]
    assert [s.lsf.center for s in mean.segments()] == ["half", "half"]
    w = np.array([5150.0])
    assert_allclose(mean.segments()[0].lsf.sample(w), joined.segments()[0].lsf.sample(w))
    nested = ShiftedLSF(mean, 1.001)
    assert_allclose([s.high for s in nested.segments()], [5200 / 1.001, 6000 / 1.001])
    assert len(SkewLSF().segments()) == len(MeanLSF([SkewLSF()]).segments()) == 1
    assert len(SkewLSF().shifted(1.1).segments()) == 1


def test_joins_that_make_no_sense_are_refused():
    a = SkewLSF()
    for parts, match in (
        ([], "no parts"),
        ([Segment(4000, 5000, a), Segment(5100, 6000, a)], "adjoin"),
        ([Segment(5000, 4000, a)], "longer wavelength"),
        ([Segment(4000, 5000, a.centered("half")), Segment(5000, 6000, a)], "different centres"),
    ):
        with pytest.raises(ValueError, match=match):
            JoinedLSF(parts)


# -- whatever describes an LSF -------------------------------------------------------------------------------


def test_as_lsf_takes_lsfs_profiles_and_models():
    lsf = SkewLSF()
    assert as_lsf(lsf) is lsf
    assert isinstance(as_lsf(InstrumentalProfile(X * u.AA, density(5000.0))), TabulatedLSF)
    assert_allclose(as_lsf(GaussianIP(1800)).profile(5400 * u.AA).fwhm.value, 3.0, rtol=1e-6)
    for bad in (None, 1800, np.ones(5)):
        with pytest.raises(TypeError, match="InstrumentalProfile, got"):
            as_lsf(bad)
