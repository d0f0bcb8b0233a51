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

    grid = GRID

    def __init__(self, residual, sigma, snr, sed):
        self.residual, self.sigma, self.snr, self.sed = residual, sigma, np.asarray(snr, dtype=float), sed
        self.index = np.arange(len(residual))


def planted(n=6000, seed=0):
    """Errors that are wrong by a factor of wavelength, SNR and colour; their scatter has wide tails."""
    rng = np.random.default_rng(seed)
    snr = np.repeat([20.0, 40.0, np.inf], n)
    slope = rng.choice([-4.0, 0.0, 2.0], 3 * n)
    seds = (GRID.wavelength / 5556) ** slope[:, None]
    wave = 1.0 + 0.5 * np.sin(np.linspace(0, 3, len(GRID)))
    by_snr, by_color = np.array([1.0, 1.5, 0.8]), {2.0: 1.3, 0.0: 1.0, -4.0: 0.7}
    factor = by_snr[:, None, None] * np.array([*by_color.values()])[:, None] * wave
    sigma = rng.uniform(0.01, 0.1, (3 * n, 1)) * np.ones(len(GRID))
    own = np.repeat(by_snr, n) * np.array([by_color[x] for x in slope])
    residual = sigma * own[:, None] * wave * rng.normal(size=(3 * n, 1))
    residual[::20] *= 50.0
    residual[:, :40] = np.nan
    return Residuals(residual, sigma, snr, seds), factor


def test_planted_factors_are_found():
    residuals, factor = planted()
    scale = ErrorScale.fit(residuals, colors=3, window=11, highest_snr=80.0)
    np.testing.assert_array_equal(scale.snr, [20, 40, 80])
    # the reddest first; a power law's colour is its slope times the distance of the halves' means
    np.testing.assert_allclose(
        scale.color, -0.5 * np.log(7000 / 4000) * np.array([2.0, 0.0, -4.0]), rtol=0.02, atol=1e-9
    )
    # one in twenty is an outlier: 68.27 % of all are 71 % of the others
    np.testing.assert_allclose(scale.factor[..., 50:-10] / factor[..., 50:-10], 1.07, rtol=0.08)
    # beyond what is known, the nearest that is
    np.testing.assert_array_equal(scale.factor[..., :40], np.repeat(scale.factor[..., 40:41], 40, axis=-1))
    assert ErrorScale.fit(residuals, colors=1, highest_snr=80.0).color.size == 1
    with pytest.raises(ValueError, match="highest_snr"):
        ErrorScale.fit(residuals)
    residuals.residual[:] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ErrorScale.fit(residuals, highest_snr=80.0)


@settings(deadline=None, max_examples=30)
@given(
    levels=st.lists(st.integers(1, 300), min_size=1, max_size=4, unique=True),
    colors=st.lists(st.integers(-20, 20), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 99),
)
def test_factors_are_bilinear_between_their_nodes_and_constant_beyond(levels, colors, seed):
    levels, colors = np.sort(np.array(levels, dtype=float)), np.sort(np.array(colors) / 10.0)
    rng = np.random.default_rng(seed)
    factor = rng.uniform(0.5, 2.0, (len(levels), len(colors), 3))
    scale = ErrorScale(levels, colors, factor)
    snr, color = np.exp(rng.uniform(-1, 7, 20)), rng.uniform(-3, 3, 20)
    rows = [
        [np.interp(np.log(x), np.log(levels), [np.interp(c, colors, row[:, k]) for row in factor]) for k in range(3)]
        for x, c in zip(snr, color, strict=True)
    ]
    np.testing.assert_allclose(scale.at(snr, color), rows, rtol=1e-9)
    np.testing.assert_allclose(scale.at(levels[:1], colors[-1:]), factor[0, -1][None], rtol=1e-12)
    # SEDs that are not known have some error, not none
    assert np.isfinite(scale.at(snr[:1], np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("snr", "color", "factor", "message"),
    [
        ([20, 20], [0], np.ones((2, 1, 3)), "rising"),
        ([20, np.inf], [0], np.ones((2, 1, 3)), "finite"),
        ([-20], [0], np.ones((1, 1, 3)), "positive"),
        ([20], [0, 0], np.ones((1, 2, 3)), "color must be finite and rising"),
        ([20, 40], [0], np.ones((3, 1, 3)), "shape"),
        ([20], [0], np.zeros((1, 1, 3)), "positive"),
        ([20], [0], [[[1.0, np.nan]]], "finite"),
    ],
)
def test_impossible_factors_are_refused(snr, color, factor, message):
    with pytest.raises(ValueError, match=message):
        ErrorScale(snr, color, factor)


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
