"""Pictures of radial velocities show the numbers of the result, also of one that failed."""

import dataclasses

import astropy.units as u
import numpy as np
import pytest
from astropy.time import Time
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

import lamost_lsf as ll
from lamost_lsf.plots import plot_rv, plot_rv_chi2, plot_rv_residuals, plot_rv_summary
from lamost_lsf.rv import RVFlag
from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template


@pytest.fixture(scope="module")
def measured():
    template = synthetic_template(6000)
    star = simulate_star(
        template, Observatory(), time=Time("2017-01-10T13:00"), fiber=31, spectrograph=3, velocity=55 * u.km / u.s,
        snr=40,
    )  # fmt: skip
    star.mask[1400:1403] = True
    lsf = Observatory().lsf_for(star)
    return ll.measure_rv(star, template, lsf, window=(5000, 5300) * u.AA, velocity_range=(-300, 300)), lsf


@pytest.fixture(scope="module")
def failed(measured):
    result, _ = measured
    nan = np.nan * u.km / u.s
    empty, shape = np.empty(0), result.flux.shape
    changes = {"rv": nan, "rv_err": nan, "rv_err_scaled": nan, "flags": RVFlag.TOO_FEW_PIXELS, "template": ""}
    changes |= {"trial_velocity": empty, "trial_chi2": empty}
    changes |= {"model": np.full(shape, np.nan), "used": np.zeros(shape, bool)}
    return dataclasses.replace(result, **changes)


def test_spectrum_and_model_are_drawn_to_one_scale(measured):
    result, _ = measured
    ax = plot_rv(result)
    observed, model, bad = ax.get_lines()
    scale = observed.get_ydata()[0] / result.flux[0]
    assert_allclose(observed.get_ydata(), result.flux * scale)
    assert_allclose(model.get_ydata(), result.model * scale)
    assert_allclose(model.get_xdata(), result.wavelength)
    assert bad.get_xdata().size == np.count_nonzero(~result.used) == 3
    assert "heliocentric" in ax.get_xlabel()


def test_residuals_are_those_of_the_fitted_pixels(measured):
    result, _ = measured
    drawn = plot_rv_residuals(result).get_lines()[-1].get_ydata()
    assert np.array_equal(np.isfinite(drawn), result.used)
    # the sum of their squares is the chi-square of the result
    assert np.nansum(drawn**2) == pytest.approx(result.chi2, rel=1e-3)


def test_parabola_has_its_minimum_at_the_velocity_and_the_width_of_the_error(measured):
    result, _ = measured
    parabola = plot_rv_chi2(result).get_lines()[1]
    v, chi2 = parabola.get_data()
    assert v[np.argmin(chi2)] == pytest.approx(result.rv.value, abs=0.2 * result.rv_err.value)
    right = v > result.rv.value
    crossing = np.interp(1.0, chi2[right], v[right]) - result.rv.value
    assert crossing == pytest.approx(result.rv_err.value, rel=0.02)


def test_summary_has_all_four_and_writes(measured, tmp_path):
    result, lsf = measured
    figure = plot_rv_summary(result, lsf, title="a star")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 4
    assert figure.get_suptitle().startswith("a star")
    assert len(plot_rv_summary(result).axes) == 3
    figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_failure_is_drawn_too(failed, measured, tmp_path):
    figure = plot_rv_summary(failed, measured[1])
    assert "no velocity (too_few_pixels)" in figure.get_suptitle()
    figure.savefig(tmp_path / "x.png")


def test_given_axes_are_used(measured):
    figure = Figure()
    axes = figure.subplots(3)
    for plot, ax in zip((plot_rv, plot_rv_residuals, plot_rv_chi2), axes, strict=True):
        assert plot(measured[0], ax=ax) is ax
