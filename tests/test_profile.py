"""Profiles: shape, moments, width and centres against analytic densities; arrays of profiles; the picture."""

import pickle
import subprocess
import sys

import astropy.units as u
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, optimize, stats

from lamost_lsf import InstrumentalProfile
from lamost_lsf.plots import plot_profile
from lamost_lsf.profile import resolve_center
from lamost_lsf.spline import SplineFamily, quadrature_weights, uniform_coefficients

X = np.linspace(-8.335, 9.25, 600)


def skew_normal(alpha, loc=0.1, scale=1.3):
    return stats.skewnorm(alpha, loc, scale)


def azzalini(alpha):
    """Skewness and excess kurtosis of a skew-normal density, from its shape parameter."""
    d = alpha / np.sqrt(1 + alpha**2)
    m = d * np.sqrt(2 / np.pi)
    return (4 - np.pi) / 2 * m**3 / (1 - m**2) ** 1.5, 2 * (np.pi - 3) * m**4 / (1 - m**2) ** 2


@pytest.fixture(scope="module")
def stack():
    """(3, 4) skew-normal profiles with wavelengths and errors."""
    alpha = np.linspace(-3, 3, 12).reshape(3, 4)
    flux = np.array([[skew_normal(a).pdf(X) for a in row] for row in alpha])
    wavelength = np.array([4000.0, 4500.0, 5000.0, 5500.0]) * u.AA
    error = np.full(flux.shape, 0.01) * (1 + np.arange(12).reshape(3, 4, 1))
    return InstrumentalProfile(X * u.AA, flux, wavelength=wavelength, error=error, meta={"source": "test"})


# -- moments and width -------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-6.0, -1.5, 0.0, 0.7, 4.0])
def test_skewness_and_kurtosis_are_those_of_the_skew_normal_density(alpha):
    ip = InstrumentalProfile(X * u.AA, 37.0 * skew_normal(alpha).pdf(X))
    skewness, kurtosis = azzalini(alpha)
    assert_allclose(ip.skewness, skewness, atol=1e-5)
    assert_allclose(ip.kurtosis, kurtosis, atol=1e-5)
    d = alpha / np.sqrt(1 + alpha**2)
    assert_allclose(ip.sigma.to_value(u.AA), 1.3 * np.sqrt(1 - 2 * d**2 / np.pi), rtol=1e-6)
    assert_allclose(ip.area, 37.0, rtol=1e-6)


def test_moments_of_an_exponentially_modified_gaussian():
    k = 1.2  # exponential scale over Gaussian sigma
    density = stats.exponnorm(k, loc=-0.8, scale=0.6)
    ip = InstrumentalProfile(np.linspace(-8, 14, 900) * u.AA, density.pdf(np.linspace(-8, 14, 900)))
    assert_allclose(ip.skewness, 2 * k**3 / (1 + k**2) ** 1.5, rtol=1e-4)
    assert_allclose(ip.kurtosis, 6 * k**4 / (1 + k**2) ** 2, rtol=1e-3)
    assert ip.skewness > 0  # a red tail


def test_moments_are_those_of_the_window_where_the_window_cuts():
    density = skew_normal(2.0, loc=0.5, scale=4.0)

    def moment(order, about=0.0):
        return integrate.quad(lambda t: (t - about) ** order * density.pdf(t), X[0], X[-1], epsabs=1e-13)[0]

    area = moment(0)
    mean = moment(1) / area
    variance = moment(2, mean) / area
    ip = InstrumentalProfile(X * u.AA, density.pdf(X))
    assert_allclose(ip.area, area, rtol=1e-9)
    assert_allclose(ip.center("centroid").to_value(u.AA), mean, atol=1e-8)
    assert_allclose(ip.sigma.to_value(u.AA), np.sqrt(variance), rtol=1e-8)
    assert_allclose(ip.skewness, moment(3, mean) / area / variance**1.5, atol=1e-8)
    assert_allclose(ip.kurtosis, moment(4, mean) / area / variance**2 - 3, atol=1e-8)


def mp_fwhm(alpha, loc, scale):
    mpmath.mp.dps = 30

    def pdf(t):
        z = (mpmath.mpf(t) - loc) / scale
        return 2 / mpmath.mpf(scale) * mpmath.npdf(z) * mpmath.ncdf(alpha * z)

    peak = mpmath.findroot(lambda t: mpmath.diff(pdf, t), loc + 0.3 * np.sign(alpha))
    half = pdf(peak) / 2
    left = mpmath.findroot(lambda t: pdf(t) - half, (peak - 3 * scale, peak), solver="anderson", tol=1e-20)
    right = mpmath.findroot(lambda t: pdf(t) - half, (peak, peak + 3 * scale), solver="anderson", tol=1e-20)
    return float(right - left)


@pytest.mark.parametrize("alpha", [-4.0, -1.0, 0.5, 3.0])
def test_fwhm_agrees_with_root_finding_in_thirty_digits(alpha):
    ip = InstrumentalProfile(X * u.AA, skew_normal(alpha).pdf(X))
    assert_allclose(ip.fwhm.to_value(u.AA), mp_fwhm(alpha, 0.1, 1.3), rtol=1e-7)


def test_fwhm_counts_the_crossings_next_to_the_peak_and_not_those_of_a_blend():
    blend = np.exp(-0.5 * (X / 0.8) ** 2) + 0.7 * np.exp(-0.5 * ((X - 5) / 0.8) ** 2)
    ip = InstrumentalProfile(X * u.AA, blend)
    assert_allclose(ip.fwhm.to_value(u.AA), 0.8 * 2.3548200450309493, rtol=1e-4)


def test_fwhm_is_nan_where_the_window_ends_above_half_or_the_profile_is_bad():
    cut = np.exp(-0.5 * ((X - 9.0) / 1.2) ** 2)
    bad = np.where(X > 2, np.nan, np.exp(-(X**2)))
    good = np.exp(-0.5 * X**2)
    ip = InstrumentalProfile(X * u.AA, [cut, bad, np.zeros_like(X), -good, good])
    assert_array_equal(np.isnan(ip.fwhm.value), [True, True, True, True, False])
    for values in (ip.sigma.value, ip.skewness, ip.kurtosis):
        assert_array_equal(np.isnan(values), [False, True, True, True, False])


def test_a_thousand_noisy_profiles_have_the_fwhm_that_scipy_finds_one_by_one():
    from scipy.interpolate import CubicSpline

    rng = np.random.default_rng(3)
    uneven = np.sort(rng.uniform(-6, 6, 80))
    for x in (np.linspace(-6, 6, 60), uneven):
        flux = np.exp(-0.5 * (x / 1.2) ** 2) + 0.08 * rng.normal(size=(40, x.size))
        position, height = SplineFamily(x, flux).maximum()
        width = SplineFamily(x, flux).fwhm()
        for i, row in enumerate(flux):
            spline = CubicSpline(x, row)
            candidates = np.r_[spline.derivative().roots(extrapolate=False), x]
            candidates = candidates[(candidates >= x[0]) & (candidates <= x[-1])]
            best = candidates[np.argmax(spline(candidates))]
            assert_allclose(position[i], best, atol=1e-7)
            assert_allclose(height[i], spline(best), rtol=1e-12)
            roots = spline.solve(0.5 * spline(best), extrapolate=False)
            assert_allclose(width[i], roots[roots > best].min() - roots[roots < best].max(), atol=1e-9)


def test_the_area_is_the_integral_of_the_spline_on_any_grid():
    from scipy.interpolate import CubicSpline

    rng = np.random.default_rng(5)
    for n in (5, 6, 40, 601):
        for x in (np.linspace(-3, 5, n), np.cumsum(rng.uniform(0.1, 1.0, n))):
            y = rng.normal(size=(3, n))
            truth = CubicSpline(x, y, axis=1).integrate(x[0], x[-1])
            assert_allclose(y @ quadrature_weights(x), truth, atol=1e-11)


def test_the_fast_uniform_spline_is_scipys():
    from scipy.interpolate import CubicSpline

    y = np.random.default_rng(6).normal(size=(4, 50))
    x = np.linspace(0, 7, 50)
    assert_allclose(uniform_coefficients(x[1] - x[0], y)[..., ::-1], np.moveaxis(CubicSpline(x, y.T).c, (0, 2), (2, 0)))


@settings(deadline=None, max_examples=40)
@given(
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-100, 100),
    alpha=st.floats(-4, 4),
    stretch=st.floats(0.1, 10),
)
def test_scaling_flux_or_offsets_scales_widths_and_leaves_shapes(scale, shift, alpha, stretch):
    flux = skew_normal(alpha).pdf(X)
    ip = InstrumentalProfile(X * u.AA, flux)
    other = InstrumentalProfile((X * stretch + shift) * u.AA, scale * flux)
    assert_allclose(other.skewness, ip.skewness, atol=1e-6)
    assert_allclose(other.kurtosis, ip.kurtosis, atol=1e-6)
    assert_allclose(other.fwhm, stretch * ip.fwhm, rtol=1e-7)
    assert_allclose(other.sigma, stretch * ip.sigma, rtol=1e-7)
    moved = stretch * ip.center("half").to_value(u.AA) + shift
    assert_allclose(other.center("half").to_value(u.AA), moved, atol=1e-6 * (1 + stretch))


# -- units, errors, centres ------------------------------------------------------------------------------------


def test_results_come_in_the_unit_of_the_offsets():
    flux = skew_normal(2.0).pdf(X)
    in_angstrom = InstrumentalProfile(X * u.AA, flux)
    in_nm = InstrumentalProfile((X * u.AA).to(u.nm), flux, wavelength=0.5 * u.um)
    assert in_nm.fwhm.unit == in_nm.sigma.unit == in_nm.center("half").unit == u.nm
    assert_allclose(in_nm.fwhm.to_value(u.AA), in_angstrom.fwhm.value, rtol=1e-12)
    assert_allclose(in_nm.center("gauss").to_value(u.AA), in_angstrom.center("gauss").value, atol=1e-9)
    assert_allclose(in_nm.wavelength.to_value(u.AA), 5000)
    assert_allclose(in_nm.offset.to_value(u.AA), X)


def test_half_flux_centre_of_an_array_splits_the_analytic_density(stack):
    alpha = np.linspace(-3, 3, 12).reshape(3, 4)
    truth = np.array([[skew_normal(a).median() for a in row] for row in alpha])
    centre = stack.center("half")
    assert centre.shape == stack.shape == (3, 4)
    assert_allclose(centre.to_value(u.AA), truth, atol=1e-5)


def test_centre_none_is_the_recorded_one_else_zero(stack):
    assert_array_equal(stack.center().value, 0.0)
    recorded = InstrumentalProfile(X * u.AA, stack.flux, meta={"wavelength_center": "centroid"})
    assert_array_equal(recorded.center(), recorded.center("centroid"))
    assert resolve_center(None, None, {}, {"wavelength_center": "half"}) == "half"
    assert resolve_center("max", {"wavelength_center": "half"}) == "max"


def test_a_masked_spike_does_not_move_a_centre():
    flux = skew_normal(1.0).pdf(X)
    spike = flux.copy()
    spike[450] = 50.0
    ip = InstrumentalProfile(X * u.AA, spike)
    clean = InstrumentalProfile(X * u.AA, flux)
    for name in ("centroid", "half", "gauss"):
        assert abs(ip.center(name) - clean.center(name)) > 0.1 * u.AA
        masked = ip.center(name, mask=np.arange(X.size) == 450)
        assert_allclose(masked.value, clean.center(name).value, atol=2e-4)


def test_errors_are_scaled_with_the_flux(stack):
    area = stack.normalized("area")
    assert_allclose(area.area, 1.0)
    assert_allclose(area.error / area.flux, stack.error / stack.flux)
    peak = stack.normalized("peak")
    assert_allclose(peak.flux.max(axis=-1), 1.0)
    assert_allclose(peak.error / peak.flux, stack.error / stack.flux)
    with pytest.raises(ValueError, match="'area' or 'peak'"):
        stack.normalized("sum")


def test_an_error_may_be_made_when_it_is_asked_for():
    calls = []

    def make():
        calls.append(1)
        return np.full((2, X.size), 0.02)

    ip = InstrumentalProfile(X * u.AA, np.ones((2, X.size)), error=make)
    assert ip.flux.shape == (2, X.size)
    assert not calls
    again = pickle.loads(pickle.dumps(ip))
    assert_array_equal(again.error, np.full((2, X.size), 0.02))
    assert ip[0].error.shape == (X.size,)
    assert ip.normalized("peak").error[1, 3] == 0.02
    assert len(calls) == 1
    with pytest.raises(ValueError, match="error has shape"):
        InstrumentalProfile(X * u.AA, np.ones(X.size), error=make).error  # noqa: B018


def test_the_mean_is_of_unit_area_profiles_and_its_error_that_of_independent_ones():
    rng = np.random.default_rng(8)
    truth = np.array([5.0 * skew_normal(1).pdf(X), 0.2 * skew_normal(-2).pdf(X)])
    error = np.array([np.full(X.size, 0.02), np.full(X.size, 0.001)])
    ip = InstrumentalProfile(X * u.AA, truth, error=error, wavelength=[5000, 5002] * u.AA)
    mean = ip.mean()
    assert mean.shape == ()
    assert_allclose(mean.flux, 0.5 * (skew_normal(1).pdf(X) + skew_normal(-2).pdf(X)), atol=1e-6)
    assert_allclose(mean.wavelength.to_value(u.AA), 5001)
    drawn = truth[:, None] + error[:, None] * rng.normal(size=(2, 4000, X.size))
    scatter = (drawn[0] / 5.0 + drawn[1] / 0.2).std(axis=0) / 2
    assert_allclose(np.median(mean.error / scatter), 1.0, rtol=0.01)


def test_mean_over_one_axis(stack):
    assert stack.mean(axis=0).shape == (4,)
    assert stack.mean(axis=-1).shape == (3,)
    assert stack.mean(axis=(0, 1)).shape == ()
    assert_allclose(stack.mean(axis=0).wavelength, stack.wavelength[0])
    assert_allclose(stack.mean(axis=1)[2].flux, stack[2].mean().flux)
    for axis in (2, -3):
        with pytest.raises(np.exceptions.AxisError):
            stack.mean(axis=axis)


# -- arrays of profiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item",
    [1, -1, (2, 3), (Ellipsis, 0), slice(None, 2), (slice(None), [0, 2]), np.s_[1:, ::-1], np.s_[None, 0], ...],
)
def test_indexing_selects_profiles_and_never_samples(stack, item):
    labels = np.arange(12).reshape(3, 4)
    picked = stack[item]
    assert picked.shape == np.shape(labels[item])
    assert_array_equal(picked.flux, stack.flux.reshape(12, -1)[labels[item]])
    assert_array_equal(picked.error, stack.error.reshape(12, -1)[labels[item]])
    assert_array_equal(picked.wavelength, stack.wavelength[item])
    assert_array_equal(picked.offset, stack.offset)
    assert picked.meta == stack.meta


def test_indexing_by_a_mask_and_iterating(stack):
    keep = stack.skewness > 0
    assert stack[keep].shape == (6,)
    assert np.all(stack[keep].skewness > 0)
    assert stack[keep & False].shape == (0,)
    assert [row.shape for row in stack] == [(4,)] * 3
    assert len(stack) == 3
    assert stack.ndim == 2
    assert stack.size == 12


def test_indexing_too_far_is_refused(stack):
    with pytest.raises(IndexError):
        stack[3]
    with pytest.raises(IndexError):
        stack[0, 0, 0]
    with pytest.raises(TypeError, match="cannot be indexed"):
        stack[0, 0][0]
    with pytest.raises(TypeError, match="no len"):
        len(stack[0, 0])


def test_a_profile_is_its_spline_inside_the_window_and_zero_outside(stack):
    ip = stack[2, 3]
    t = np.linspace(-4, 4, 77)
    assert_allclose(ip(t * u.AA), skew_normal(3.0).pdf(t), atol=1e-6)
    assert_array_equal(ip([-9, 9.3] * u.AA), 0.0)
    assert stack(t * u.AA).shape == (3, 4, 77)
    bad = InstrumentalProfile(X * u.AA, [np.full(X.size, np.nan), ip.flux])
    assert np.isnan(bad(0.1 * u.AA)[0, 0])
    assert_allclose(bad(0.1 * u.AA)[1], ip(0.1 * u.AA))
    assert bad(20 * u.AA)[0, 0] == 0.0


def test_masked_samples_spoil_their_own_profile_only():
    flux = np.ma.array(np.exp(-0.5 * np.tile(X, (2, 1)) ** 2), mask=False)
    flux[0, 100] = np.ma.masked
    ip = InstrumentalProfile(X * u.AA, flux)
    assert_array_equal(np.isnan(ip.area), [True, False])


def test_repr_says_what_it_is(stack):
    assert repr(stack).startswith(
        "<InstrumentalProfile shape=(3, 4), 600 samples -8.335..+9.250 A at 4000.00-5500.00 A"
    )
    assert "at 4000.00 A" in repr(stack[0, 0])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"offset": X}, TypeError, "unit of length"),
        ({"offset": X * u.s}, TypeError, "unit of length"),
        ({"offset": X[:4] * u.AA, "flux": np.ones(4)}, ValueError, "at least 5"),
        ({"offset": X[::-1] * u.AA}, ValueError, "strictly increasing"),
        ({"offset": np.where(X > 1, np.nan, X) * u.AA}, ValueError, "finite"),
        ({"flux": np.ones(599)}, ValueError, "must match offset"),
        ({"flux": 1.0}, ValueError, "must match offset"),
        ({"wavelength": [1, 2] * u.AA}, ValueError, "does not broadcast"),
        ({"wavelength": 5000.0}, TypeError, "unit of length"),
        ({"error": np.ones(3)}, ValueError, "error has shape"),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    good = {"offset": X * u.AA, "flux": np.exp(-(X**2))}
    with pytest.raises(error, match=match):
        InstrumentalProfile(**(good | arguments))


# -- picture ------------------------------------------------------------------------------------------------------


def test_peek_draws_every_profile_and_marks_the_centres(stack, tmp_path):
    ip = stack[2, 3]
    ax = ip.peek(centers=["max", "half"])
    x, y = ax.lines[0].get_data()
    assert_allclose(x, X)
    assert_allclose(y, ip.flux / ip.flux.max())
    marks = [line.get_xdata()[0] for line in ax.lines[1:]]
    assert_allclose(marks, [ip.center("max").value, ip.center("half").value])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0].startswith("5500.00")
    assert labels[1].startswith("max +0.")
    ax.figure.savefig(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 5000


def test_plot_uses_the_axes_given_and_handles_many_profiles(stack):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert plot_profile(stack, ax, normalization="area", color="k", legend=False) is ax
    assert len(ax.lines) == 12
    assert "area" in ax.get_ylabel()
    many = plot_profile(stack)
    assert len({tuple(line.get_color()) for line in many.lines}) == 12
    assert many.get_legend() is None
    for match, arguments in (
        ("normalization", {"normalization": "sum"}),
        ("index this array", {"centers": ["max"]}),
    ):
        with pytest.raises(ValueError, match=match):
            plot_profile(stack, **arguments)
    with pytest.raises(ValueError, match="no profile"):
        plot_profile(stack[:0])


def test_plots_are_imported_when_used_and_leave_no_figure_open():
    code = (
        "import sys, numpy as np, astropy.units as u, lamost_lsf as ll\n"
        "x = np.linspace(-5, 5, 99)\n"
        "ip = ll.InstrumentalProfile(x * u.AA, np.exp(-x**2))\n"
        "assert 'lamost_lsf.plots' not in sys.modules\n"
        "ip.peek()\n"
        "import matplotlib.pyplot as plt\n"
        "assert plt.get_fignums() == [] and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mode_of_the_spline_is_the_mode_of_the_density():
    density = skew_normal(3.0)
    mode = optimize.minimize_scalar(
        lambda t: -density.pdf(t), bounds=(-1, 3), method="bounded", options={"xatol": 1e-10}
    )
    position, height = SplineFamily(X, density.pdf(X)).maximum()
    assert_allclose(position, mode.x, atol=1e-6)
    assert_allclose(height, -mode.fun, rtol=5e-8)
