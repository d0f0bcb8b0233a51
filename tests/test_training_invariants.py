"""What holds of training's labels, splits and evaluation for any numbers."""

import astropy.units as u
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from store_writer import make_set

torch = pytest.importorskip("torch", reason="lamost_lsf.training needs torch")

from lamost_lsf import NeuralIP, evaluate  # noqa: E402
from lamost_lsf.time import lmjm_to_time  # noqa: E402
from lamost_lsf.training import split_by_exposure  # noqa: E402
from lamost_lsf.training.api import _scale  # noqa: E402
from lamost_lsf.training.data import Labels  # noqa: E402
from lamost_lsf.units import vacuum_to_air  # noqa: E402

OFFSET = np.linspace(-8.335, 9.25, 600)


def random_labels(seed: int, n: int, n_extra: int) -> Labels:
    rng = np.random.default_rng(seed)
    exposure = rng.integers(0, 5, n)
    return Labels(
        82_900_000.0 + 400.0 * exposure,
        rng.integers(1, 251, n),
        rng.choice([4047.7082, 4679.458, 5087.239, 5792.276], n),
        rng.integers(0, 4, n),
        exposure,
        np.round(rng.normal(size=(5, n_extra)) * 4, 2)[exposure],
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    n_extra=st.integers(0, 2),
    medium=st.sampled_from(["air", "vacuum"]),
)
def test_a_model_scales_labels_as_its_training_did(seed, n, n_extra, medium):
    labels = random_labels(seed, n, n_extra)
    low, high, scaled = _scale(labels, medium)
    assert scaled.shape == (n, 3 + n_extra)
    assert scaled.min() >= -0.5
    assert scaled.max() <= 0.5
    # from the scaled labels back to what they were
    wavelength = vacuum_to_air(labels.wavelength) if medium == "air" else labels.wavelength
    back = low + (scaled + 0.5) * (high - low)
    assert_allclose(back[:, 0], labels.lmjm, atol=1e-6)
    assert_allclose(back[:, 1:3], np.stack([labels.fiber - 1, wavelength], axis=1), atol=1e-9)
    assert_allclose(back[:, 3:], labels.extra, atol=1e-12)
    # a network without hidden layers: the profile says what its inputs were
    width = 3 + n_extra
    names = {f"label_{i}": 0.0 for i in range(n_extra)}
    weights = np.zeros((600, width))
    weights[np.arange(width), np.arange(width)] = 1.0
    model = NeuralIP(
        [weights], [np.full(600, 2.0)], label_min=low, label_max=high, offset=OFFSET, label_medium=medium,
        extra_labels=names,
    )  # fmt: skip
    ip = model.profile(
        time=lmjm_to_time(labels.lmjm), fiber=labels.fiber, wavelength=labels.wavelength * u.AA,
        labels=dict(zip(names, labels.extra.T, strict=True)) or None,
    )  # fmt: skip
    assert_allclose(ip.flux[:, :width] - 2.0, scaled, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    exposure=st.lists(st.integers(0, 12), min_size=1, max_size=80), fraction=st.floats(0.05, 0.95), seed=st.integers(0)
)
def test_exposures_are_never_divided(exposure, fraction, seed):
    exposure = np.array(exposure)
    n = exposure.size
    labels = Labels(*(np.ones(n) for _ in range(4)), exposure)
    train, validation = split_by_exposure(labels, fraction, seed=seed)
    assert_array_equal(np.sort(np.r_[train, validation]), np.arange(n))
    assert not set(exposure[train]) & set(exposure[validation])
    count = np.unique(exposure).size
    held = np.unique(exposure[validation]).size
    assert held == (0 if count == 1 else max(1, round((1 - fraction) * count)))
    again = split_by_exposure(labels, fraction, seed=seed)
    assert_array_equal(again[1], validation)


class Model(NeuralIP):
    """Gaussians whose width follows the fibre, by hand."""

    def __init__(self) -> None:
        super().__init__(
            [np.zeros((600, 3))], [np.ones(600)], label_min=[82_000_000, 0, 3000], label_max=[85_000_000, 249, 9999],
            offset=OFFSET,
        )  # fmt: skip

    def _evaluate(self, time, fiber, wavelength):
        return np.exp(-0.5 * (OFFSET / (1.3 + 0.01 * fiber[:, None])) ** 2)


@settings(max_examples=10, deadline=None)
@given(first=st.integers(0, 50), scale=st.floats(1e-2, 1e3), slope=st.floats(-3, 3))
def test_residuals_are_those_of_equations_4_and_5(first, scale, slope):
    given_set = make_set(first, 2, n_fiber=6)
    # counts in other units, on another background
    pixel = given_set.native_offset
    given_set.native_flux[:] = scale * (given_set.native_flux + 50.0 + slope * pixel)
    given_set.native_ivar[:] /= scale**2
    good = np.flatnonzero(given_set.flag == 0)
    resampled = evaluate(Model(), given_set, kind="resampled").table
    native = evaluate(Model(), given_set).table
    assert len(resampled) == len(native) == good.size
    for row, k in enumerate(good):
        width = 1.3 + 0.01 * given_set.fiber[k]
        assert native["fiber"][row] == given_set.fiber[k]
        residual = (
            given_set.profile[k] - np.exp(-0.5 * (OFFSET / width) ** 2) / np.exp(-0.5 * (OFFSET / width) ** 2).max()
        )
        # Eq. 4: the mean over the samples; Eq. 5: the standard deviation about it, n - 1
        assert resampled["mean"][row] == pytest.approx(residual.mean(), abs=1e-7)
        assert resampled["dispersion"][row] == pytest.approx(residual.std(ddof=1), rel=1e-5)
        if given_set.line[k] == 1:  # has a neighbour in the lamp, whose wing is fitted, too
            continue
        # native pixels: amplitude and a straight line by weighted least squares
        used = given_set.native_ivar[k] > 0
        x, weight = pixel[k, used].astype(float), np.sqrt(given_set.native_ivar[k, used].astype(float))
        design = np.stack([np.exp(-0.5 * (x / width) ** 2), np.ones_like(x), x], axis=1)
        flux = given_set.native_flux[k, used].astype(float)
        solution, *_ = np.linalg.lstsq(design * weight[:, None], flux * weight, rcond=None)
        left = (flux - design @ solution) / solution[0]
        assert native["mean"][row] == pytest.approx(left.mean(), abs=1e-4)
        assert native["dispersion"][row] == pytest.approx(left.std(ddof=1), rel=2e-3)
        assert native["chi2"][row] == pytest.approx(np.sum((left * solution[0] * weight) ** 2), rel=2e-3)
        assert native["dof"][row] == np.count_nonzero(used) - 3


def test_groups_of_an_evaluation_are_medians_of_their_rows():
    result = evaluate(Model(), make_set(3, 2, n_fiber=8))
    table = result.table
    for row in result.by("fiber"):
        own = table[table["fiber"] == row["fiber"]]
        assert row["n"] == len(own)
        assert row["dispersion"] == pytest.approx(np.median(own["dispersion"]))
        assert row["abs_mean"] == pytest.approx(np.median(np.abs(own["mean"])))
