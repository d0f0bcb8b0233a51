"""LSFs and profiles of many spectra at once are what they are one by one."""

import astropy.units as u
import numpy as np
import pytest
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from published_weights import write_published

import lamost_lsf as ll
from lamost_lsf import IPArchive
from lamost_lsf.errors import ModelNotFoundError, OutOfRangeError
from lamost_lsf.lsf import MeanLSF
from lamost_lsf.rv.family import LSFFamily
from lamost_lsf.rv.models import lag_transform, spread, sums_at_lags
from lamost_lsf.rv.sampling import sample_many, zero_points_many
from lamost_lsf.simulation import Observatory

NIGHT = Time("2017-01-10T15:00")
META = {
    "spectrograph": 1, "fiber": 31, "time": NIGHT, "frame": "heliocentric", "helio_rv": 12.5 * u.km / u.s,
    "wavelength_center": "sersic", "instrument": "lamost-lrs",
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Both arms of spectrograph 1 in two seasons, and the blue arm alone of spectrograph 2."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (spectrograph, arm, season) in enumerate(
        [(1, "blue", 2017), (1, "red", 2017), (1, "blue", 2018), (1, "red", 2018), (2, "blue", 2017)]
    ):
        write_published(folder, seed, spectrograph, arm, season)
    return IPArchive(folder)


def changed(**entries):
    return {**META, **entries}


COADD = NIGHT + np.array([0.0, 0.5, 1.0]) * u.h
USABLE = [
    META,
    changed(fiber=np.int32(250)),
    changed(time=COADD, helio_rv=-30.0 * u.km / u.s),
    changed(time=COADD[:1], frame="topocentric"),
    changed(arm="red", wavelength_center=None),
    changed(arm="blue", instrument="lamost-lrs-blue"),
    changed(time=Time("2017-11-01T12:00")),
    changed(time=COADD.tai),
    changed(spectrograph=2, instrument=None),
]
UNUSABLE = [
    (changed(fiber=251), OutOfRangeError),
    (changed(fiber=None), ValueError),
    (changed(fiber=31.5), ValueError),
    (changed(spectrograph=3), ModelNotFoundError),
    (changed(time=Time("2019-01-10T15:00")), ModelNotFoundError),
    (changed(time=Time(["2017-08-31T15:00", "2017-09-01T15:00"])), ValueError),
    (changed(time=COADD[:0]), ValueError),
    (changed(time=58000.0), TypeError),
    (changed(frame="galactocentric"), ValueError),
    (changed(helio_rv=None), ValueError),
    (changed(instrument="lamost-mrs"), ValueError),
    (changed(spectrograph=2, arm="red"), ModelNotFoundError),
]


@given(st.permutations(range(len(USABLE))))
@settings(max_examples=10, deadline=None)
def test_lsfs_of_many_spectra_are_those_of_each(archive, order):
    for i, lsf in zip(order, archive.lsfs_for([USABLE[i] for i in order]), strict=True):
        alone = archive.lsf_for(USABLE[i])
        assert type(lsf) is type(alone)
        assert (lsf.center, lsf.wavelength_range, lsf.meta) == (alone.center, alone.wavelength_range, alone.meta)
        assert_array_equal(lsf.offset, alone.offset)
        low, high = np.clip(alone.wavelength_range, 4100, 8400)
        at = np.linspace(low, high, 7)
        assert_array_equal(lsf.sample(at), alone.sample(at))
        with pytest.raises(OutOfRangeError) as one:
            alone.sample(np.array([3000.0]))
        with pytest.raises(OutOfRangeError) as other:
            lsf.sample(np.array([3000.0]))
        assert str(one.value) == str(other.value)


@given(st.permutations(range(len(USABLE) + len(UNUSABLE))))
@settings(max_examples=10, deadline=None)
def test_a_spectrum_without_an_lsf_says_why_and_costs_the_others_nothing(archive, order):
    items = [(meta, None) for meta in USABLE] + UNUSABLE
    found = archive.lsfs_for([items[i][0] for i in order])
    for i, lsf in zip(order, found, strict=True):
        meta, kind = items[i]
        if kind is None:
            at = np.array([7000.0 if meta.get("arm") == "red" else 5000.0])
            assert_array_equal(lsf.sample(at), archive.lsf_for(meta).sample(at))
            continue
        assert isinstance(lsf, kind)
        with pytest.raises(kind) as alone:
            archive.lsf_for(meta)
        assert str(lsf) == str(alone.value)


def test_an_archive_with_a_rule_of_its_own_is_asked_one_by_one():
    class Mine(Observatory):
        def lsf_for(self, spectrum, **options):
            return super().lsf_for({**spectrum, "fiber": 7}, **options)

    one, other = Mine().lsfs_for([META, changed(fiber=200)])
    at = np.array([5000.0])
    assert_array_equal(one.sample(at), other.sample(at))
    assert_array_equal(one.sample(at), Observatory().lsf_for(changed(fiber=7)).sample(at))


def test_nothing_is_wanted(archive):
    assert archive.lsfs_for([]) == []


@pytest.mark.parametrize("center", ["half", "sersic"])
def test_profiles_centres_and_coefficients_of_many_are_those_of_each(center):
    """Co-adds, single exposures, weights that differ and an LSF of another kind."""
    ip = Observatory().ip(1, "blue")
    lsfs = [ip.at(time=COADD, fiber=f) for f in (3, 120, 155)] + [ip.at(time=NIGHT, fiber=240)]
    lsfs += [MeanLSF([ip.at(time=t, fiber=9) for t in COADD], weights=(1, 5, 2)), ll.GaussianIP(1800).at()]
    lsfs = [lsf.centered(center) for lsf in lsfs]
    at = np.linspace(4950.0, 5300.0, 5)
    many = sample_many([(lsf, at) for lsf in lsfs])
    for lsf, profiles in zip(lsfs, many, strict=True):
        assert_allclose(profiles, lsf.sample(at), rtol=1e-12, atol=1e-15)
    centers = zero_points_many([(lsf.offset, p, center) for lsf, p in zip(lsfs, many, strict=True)])
    for lsf, zero in zip(lsfs, centers, strict=True):
        assert_allclose(zero, lsf.zero_point(at, center), atol=1e-12)
    family = LSFFamily(lsfs[:4], (5000.0, 5250.0))
    for lsf, (coefficients, left) in zip(lsfs, family.coefficients_many(lsfs), strict=True):
        alone, left_alone = family.coefficients(lsf)
        assert_allclose(coefficients.values[0], alone.values[0], atol=1e-10)
        assert left == pytest.approx(left_alone, abs=1e-12)


@given(st.integers(-30, -1), st.integers(1, 30), st.floats(-20, 20), st.floats(0, 1), st.sampled_from([1.0, 1.5, 3.0]))
@settings(max_examples=40, deadline=None)
def test_sums_at_lags_are_the_derivatives_by_the_kernel(first, last, shift, fraction, step):
    """Model at a pixel: kernel values times the template, interpolated; so moving one of them says the sum."""
    rng = np.random.default_rng(0)
    template, weights = rng.normal(size=300), rng.normal(size=40)
    position = 100.0 + fraction + step * np.arange(40)
    n_lag = last - first + 1
    on_nodes = np.zeros(template.size)
    spread(position, shift, weights, on_nodes)
    found = sums_at_lags(lag_transform(template, n_lag), on_nodes, first, n_lag)
    node = np.arange(-3, 5)
    for lag in (first, 0, last):
        shifted = np.zeros(template.size + 200)
        shifted[100 + lag : 100 + lag + template.size] = template  # S(i - lag)
        total = 0.0
        for p, w in zip(position - shift, weights, strict=True):
            i, t = int(np.floor(p)), p - np.floor(p)
            share = [np.prod([(t - m) / (n - m) for m in node if m != n]) for n in node]
            total += w * np.dot(share, shifted[100 + i + node])
        assert found[lag - first] == pytest.approx(total, abs=1e-10)
