"""Factors of predicted errors, and the division of a set into folds."""

from __future__ import annotations

import numpy as np
import pytest
import sed_stars
from hypothesis import given, settings
from hypothesis import strategies as st

from lamost_lsf import sed
from lamost_lsf.sed.error_scale import ErrorScale

GRID = sed.OUTPUT_GRID


class Residuals:
    """What `ErrorScale.fit` reads of `lamost_lsf.sed.Residuals`, which needs torch."""

    def __init__(self, residual, sigma, snr):
        self.residual, self.sigma, self.snr = residual, sigma, np.asarray(snr, dtype=float)


def planted(n=4000, seed=0):
    """Errors that are too small by a factor of wavelength and SNR; their scatter has wide tails."""
    rng = np.random.default_rng(seed)
    snr = np.repeat([20.0, 40.0, np.inf], n)
    wave = 1.0 + 0.5 * np.sin(np.linspace(0, 3, len(GRID)))
    factor = np.array([1.0, 1.5, 0.8])[:, None] * wave
    sigma = rng.uniform(0.01, 0.1, (3 * n, 1)) * np.ones(len(GRID))
    residual = sigma * np.repeat(factor, n, axis=0) * rng.normal(size=(3 * n, 1))
    residual[::20] *= 50.0
    residual[:, :40] = np.nan
    return Residuals(residual, sigma, snr), factor


def test_planted_factors_are_found():
    residuals, factor = planted()
    scale = ErrorScale.fit(residuals, window=11, highest_snr=80.0)
    np.testing.assert_array_equal(scale.snr, [20, 40, 80])
    # one in twenty is an outlier: 68.27 % of all are 71 % of the others
    np.testing.assert_allclose(scale.factor[:, 50:-10] / factor[:, 50:-10], 1.07, rtol=0.06)
    # beyond what is known, the nearest that is
    np.testing.assert_array_equal(scale.factor[:, :40], np.repeat(scale.factor[:, 40:41], 40, axis=1))
    with pytest.raises(ValueError, match="highest_snr"):
        ErrorScale.fit(residuals)
    residuals.residual[:] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ErrorScale.fit(residuals, highest_snr=80.0)


@settings(deadline=None, max_examples=30)
@given(
    levels=st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 99),
    ask=st.lists(st.floats(0.5, 500), min_size=1, max_size=6),
)
def test_factors_lie_between_those_of_the_neighbouring_levels(levels, seed, ask):
    levels = np.sort(np.array(levels, dtype=float))
    factor = np.random.default_rng(seed).uniform(0.5, 2.0, (len(levels), 3))
    scale = ErrorScale(levels, factor)
    np.testing.assert_allclose(scale.at(levels), factor, rtol=1e-12)
    expected = np.stack([np.interp(np.log(ask), np.log(levels), column) for column in factor.T], axis=1)
    np.testing.assert_allclose(scale.at(np.array(ask)), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("snr", "factor", "message"),
    [
        ([20, 20], np.ones((2, 3)), "rising"),
        ([20, np.inf], np.ones((2, 3)), "finite"),
        ([20, 40], np.ones((3, 3)), "one row"),
        ([20], np.zeros((1, 3)), "positive"),
        ([20], [[1.0, np.nan]], "finite"),
    ],
)
def test_impossible_factors_are_refused(snr, factor, message):
    with pytest.raises(ValueError, match=message):
        ErrorScale(snr, factor)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 12), seed=st.integers(0, 50))
def test_folds_test_every_star_once_and_share_groups_evenly(n, seed):
    stars = sed_stars.spectra(31)
    copies = sed.SpectralSet.concatenate([stars, stars.take(np.arange(0, 31, 3))])
    both = set(stars.star[stars.group == "F"]) & set(stars.star[stars.group == "G"])
    assert len(both) < 3
    tested = []
    for train, test in copies.folds(n, seed=seed):
        assert len(train) + len(test) == len(copies)
        assert not set(train.star) & set(test.star)
        for group in "FG":
            # a star of both groups is shared out with the first
            share = len(set(test.star[test.group == group])) - len(set(stars.star[stars.group == group])) / n
            assert abs(share) < 1 + 1e-9 + len(both)
        tested += [*dict.fromkeys(test.star)]
    assert sorted(tested) == sorted(set(stars.star))
    again = [sorted(test.star) for _, test in copies.folds(n, seed=seed)]
    assert again == [sorted(test.star) for _, test in copies.folds(n, seed=seed)]


def test_impossible_folds_are_refused():
    stars = sed_stars.spectra(8)
    for n in (0, 1, 9):
        with pytest.raises(ValueError, match="at least 2"):
            list(stars.folds(n))


def test_distinct_keeps_the_first_spectrum_of_each_star():
    stars = sed_stars.spectra(9)
    copies = sed.SpectralSet.concatenate([stars.take(np.array([4, 0])), stars])
    distinct = copies.distinct()
    assert list(distinct.star) == [stars.star[k] for k in (4, 0, 1, 2, 3, 5, 6, 7, 8)]
    np.testing.assert_array_equal(distinct.flux[0], stars.flux[4])
    assert len(distinct.distinct()) == 9


def test_groups_by_a_label():
    stars = sed_stars.spectra(40)
    groups = stars.by_label("teff", [5500, 6000, 6500])
    teff = np.asarray(stars.labels["teff"])
    assert len(groups) == np.sum((teff >= 5500) & (teff <= 6500))
    for name, low, high in (("5500-6000", 5500, 6000), ("6000-6500", 6000, 6500)):
        mine = np.asarray(groups.labels["teff"])[groups.group == name]
        assert len(mine) > 3
        assert low <= mine.min() <= mine.max() <= high
    with pytest.raises(ValueError, match="no label 'mass'; there are"):
        stars.by_label("mass", [0, 5])
    with pytest.raises(ValueError, match="none of 40 spectra"):
        stars.by_label("teff", [10, 20])
    for edges in ([5500], [6000, 5500]):
        with pytest.raises(ValueError, match="rising"):
            stars.by_label("teff", edges)
