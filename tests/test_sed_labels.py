"""Labels judged by spectra: against brute force, planted errors, and real stars."""

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from lamost_lsf.sed.libraries import Library, read_library
from lamost_lsf.sed.libraries_check import SpectrumFlag, check_spectra
from lamost_lsf.sed.libraries_labels import check_labels

WAVE = np.linspace(4000.0, 7000.0, 60)


def family(n=120, noise=0.003, seed=0):
    """Slope by Teff, a line each by log g and [Fe/H]; the latter fades in hot stars, as metal lines do."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.uniform(5000, 9750, n), rng.uniform(2, 5, n), rng.uniform(-2, 0.5, n)], axis=1)
    t, g, m = ((labels[:, i : i + 1] - c) / s for i, (c, s) in enumerate(((7000, 1500), (3.5, 1), (-0.7, 0.8))))
    lines = [np.exp(-0.5 * ((WAVE - w) / 100) ** 2) for w in (4400, 5200)]
    shape = (WAVE / 5500) ** (-2 * t) * (1 - 0.05 * (1 + 0.5 * g) * lines[0] - 0.03 * (2 + m) * np.exp(-t) * lines[1])
    return labels, shape * (1 + noise * rng.standard_normal((n, WAVE.size)))


def library(labels, flux):
    table = Table({"name": [f"s{i}" for i in range(len(flux))]})
    for key, column in zip(("teff", "logg", "feh"), labels.T, strict=True):
        table[key] = column
    return Library("made", table, WAVE, flux)


def test_offsets_are_what_was_planted_with_its_sign():
    labels, flux = family()
    wrong = labels.copy()
    wrong[3, 1] += 1.0
    wrong[50, 1] -= 1.2
    cool = np.flatnonzero((labels[:, 0] < 6500) & (labels[:, 2] > -0.7))  # where the lines are strong
    wrong[cool[0], 2] -= 1.0
    wrong[cool[1], 0] += 700.0
    everyone = np.ones(len(labels), dtype=bool)
    offset, ratio = check_labels(flux, wrong, everyone, everyone)
    assert offset[3, 1] == pytest.approx(1.0, abs=0.3)
    assert offset[50, 1] == pytest.approx(-1.2, abs=0.3)
    assert offset[cool[0], 2] == pytest.approx(-1.0, abs=0.3)
    assert offset[cool[1], 0] == pytest.approx(700.0, abs=150.0)
    planted = [3, 50, cool[0], cool[1]]
    assert np.all(ratio[planted].max(axis=1) > 4)
    assert np.mean(np.delete(ratio, planted, axis=0).max(axis=1) > 4) < 0.03


def test_no_star_helps_to_predict_itself():
    """One star put aside by hand, from the regression and its scatter, is judged as it is among the others."""
    labels, flux = family(60)
    everyone = np.ones(60, dtype=bool)
    offset, _ = check_labels(flux, labels, everyone, everyone)
    spread = labels.std(axis=0)
    for i in range(0, 60, 6):
        rest = everyone.copy()
        rest[i] = False
        alone, _ = check_labels(flux, labels, rest, everyone)
        np.testing.assert_allclose(alone[i] / spread, offset[i] / spread, atol=0.05)
    # which is not what the regression makes of a star that trains
    assert np.median(np.abs(offset / spread)) > 0.02


def test_stars_that_cannot_be_judged_are_nan_and_those_that_do_not_train_are_judged():
    labels, flux = family(80)
    flux[5, 3] = np.nan
    labels[6, 2] = np.nan
    labels[7, 1] += 1.5
    usable = ~np.isin(np.arange(80), [5, 6])
    trained = usable & ~np.isin(np.arange(80), [7, 8])
    offset, ratio = check_labels(flux, labels, trained, usable)
    assert np.all(np.isnan(offset[[5, 6]]))
    assert np.all(np.isnan(ratio[[5, 6]]))
    assert np.all(np.isfinite(offset[usable]))
    assert offset[7, 1] == pytest.approx(1.5, abs=0.3)
    assert (ratio[7].max() > 4, ratio[8].max() > 4) == (True, False)


@settings(max_examples=8, deadline=None)
@given(scale=st.floats(1e-15, 1e15), seed=st.integers(0, 20))
def test_neither_the_unit_of_the_flux_nor_the_order_of_the_stars_matters(scale, seed):
    labels, flux = family(50)
    order, everyone = np.random.default_rng(seed).permutation(50), np.ones(50, dtype=bool)
    one, _ = check_labels(flux, labels, everyone, everyone)
    two, _ = check_labels(scale * flux[order], labels[order], everyone, everyone)
    np.testing.assert_allclose(two / labels.std(axis=0), one[order] / labels.std(axis=0), atol=2e-3)


def test_labels_are_judged_only_where_asked_for():
    labels, flux = family(150, 0.005)
    wrong = labels.copy()
    wrong[9, 1] += 1.5 if labels[9, 1] < 3.5 else -1.5
    plain, _ = check_spectra(library(wrong, flux))
    assert plain["good"][9]
    assert "label" not in plain.colnames
    judged, _ = check_spectra(library(wrong, flux), label=4)
    assert SpectrumFlag(int(judged["flag"][9])) == SpectrumFlag.LABEL
    assert not judged["good"][9]
    assert abs(judged["logg_offset"][9]) == pytest.approx(1.5, abs=0.3)
    others = np.delete(np.arange(150), 9)
    np.testing.assert_array_equal(plain["flag"][others], judged["flag"][others] & ~int(SpectrumFlag.LABEL))
    assert np.mean(judged["good"][others]) > 0.95
    with pytest.raises(ValueError, match="label and max_iterations must be positive"):
        check_spectra(library(wrong, flux), label=0)


# -- MILES --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def miles(data_dir):
    """MILES of 5000-9750 K at R = 200, scaled by the flux of 5526-5586 A, and what is good of it."""
    stars = read_library("miles", data_dir / "templates/miles").select(teff=(5000, 9750))
    grid = np.exp(np.arange(np.log(3575.0), np.log(7358.0), 1 / 400))
    low = stars[stars.labelled].degrade(grid, resolving_power=200)
    band = (grid >= 5526) & (grid <= 5586)
    low = Library("miles", low.table, grid, low.flux / np.nanmean(low.flux[:, band], axis=1, keepdims=True))
    return low, np.asarray(check_spectra(low, label=4)[0]["flag"])


@pytest.mark.parametrize(("column", "error", "least", "most"), [("logg", 1.0, 0.55, 0.30), ("feh", 1.0, 0.75, 0.90)])
def test_wrong_labels_of_real_stars_are_flagged(miles, column, error, least, most):
    """``least`` with the labels judged; no more than ``most`` without."""
    stars, flag = miles
    good = flag == 0
    assert np.sum(flag == SpectrumFlag.LABEL) < 0.03 * good.sum()
    rng = np.random.default_rng(3)
    planted = rng.choice(np.flatnonzero(good), 40, replace=False)
    table = stars.table.copy()
    table[column][planted] += error * rng.choice([-1, 1], 40)
    result, _ = check_spectra(Library("planted", table, stars.wavelength, stars.flux), label=4)
    found = np.asarray(result["flag"])
    assert np.mean(found[planted] != 0) >= least
    assert np.mean((found[planted] & ~int(SpectrumFlag.LABEL)) != 0) <= most
    rest = good.copy()
    rest[planted] = False
    assert np.mean(found[rest] == 0) > 0.93
