"""Claims about centres of lines, held to integrals, root finders and other fitters."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, interpolate, optimize, stats

from lamost_lsf import centers
from lamost_lsf.centers import Centroid, Fourier, Gauss, Half, Max, Sersic, Zero, _fastmath, max_centroid_half
from lamost_lsf.errors import FitWarning

BLUE = (-8.335, 9.25)
RED = (-9.163, 9.833)
ALL = [Max(), Centroid(), Half(), Fourier(), Gauss(), Sersic()]
MOMENTS = [Max(), Centroid(), Half(), Fourier()]
FITS = [Gauss(), Sersic(), Gauss(background="linear"), Gauss(background="constant")]


def names(estimators):
    return [repr(e) for e in estimators]


def line(skewness, sigma, mean):
    """A line as a function of x: an exponentially modified Gaussian of the given moments, mirrored if negative."""
    tau = sigma * (abs(skewness) / 2.0) ** (1.0 / 3.0)
    core = np.sqrt(sigma**2 - tau**2)
    sign = -1.0 if skewness < 0 else 1.0
    if abs(skewness) < 0.02:
        return lambda x: np.exp(-0.5 * ((x - mean) / sigma) ** 2)
    law = stats.exponnorm(tau / core, loc=-tau, scale=core)
    return lambda x: law.pdf(sign * (x - mean))


def gauss_model(x, p):
    return p[0] * np.exp(-0.5 * ((x - p[1]) / p[2]) ** 2)


def sersic_model(x, p):
    alpha, c, g, d, a, b = p
    return alpha * np.exp(-(np.abs(x - c) ** d) / (d * g**d)) + a * x + b


def best_fit(model, x, y, starts, error=1.0):
    """Lowest of tight trust-region fits from several starts."""
    fits = [
        optimize.least_squares(
            lambda p: (y - model(x, p)) / error, p, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=2000
        )
        for p in starts
    ]
    return min(fits, key=lambda fit: fit.cost)


def gauss_starts(x, y):
    peak = x[np.argmax(y)]
    return [[y.max(), peak + dc, s] for dc, s in ((0.0, 1.3), (0.5, 2.0), (-0.5, 0.8))]


def sersic_starts(x, y):
    peak = x[np.argmax(y)]
    return [[y.max(), peak + dc, g, d, 0.0, 0.0] for dc, g, d in ((0.0, 1.3, 2.0), (0.4, 1.8, 1.7), (-0.4, 1.0, 2.5))]


def fourier_truth(f, window, n_terms):
    """The documented formula with adaptive quadrature, trying every branch of every harmonic."""
    x0, x1 = window
    length = x1 - x0
    weight = mean = 0.0
    for k in range(1, n_terms + 1):
        omega = 2 * np.pi * k / length
        options = {"points": [-2, 0, 2], "epsabs": 1e-13, "epsrel": 1e-12, "limit": 400}
        parts = [
            integrate.quad(lambda x, g=g, w=omega: f(x) * g(w * (x - x0)), x0, x1, **options)[0]
            for g in (np.cos, np.sin)
        ]
        coefficient = (parts[0] - 1j * parts[1]) / length
        branches = x0 - np.angle(coefficient) / omega + np.arange(-2 * k, 2 * k + 1) * length / k
        if k == 1:
            center = next(c for c in branches if x0 <= c < x1)
        else:
            center = branches[np.argmin(np.abs(branches - mean / weight))]
        weight += abs(coefficient)
        mean += abs(coefficient) * center
    return mean / weight


CASES = [
    pytest.param(window, skewness, sigma, mean, id=f"{side}-{skewness}-{sigma}-{mean}")
    for side, window in (("blue", BLUE), ("red", RED))
    for skewness in (-1.0, -0.4, 0.0, 0.3, 0.7, 1.0)
    for sigma, mean in ((1.2, 0.137), (1.6, -0.42))
]


@pytest.mark.parametrize(("window", "skewness", "sigma", "mean"), CASES)
def test_moment_centers_match_integrals(window, skewness, sigma, mean):
    """On 600 noiseless points every definition agrees with quadrature and root finding of the line itself."""
    f = line(skewness, sigma, mean)
    x = np.linspace(*window, 600)

    def integral(a, b, g=f):
        return integrate.quad(g, a, b, points=[mean], epsabs=1e-14, epsrel=1e-13, limit=400)[0]

    total = integral(*window)
    centroid = integral(*window, g=lambda x: x * f(x)) / total
    half = optimize.brentq(lambda c: integral(window[0], c) - 0.5 * total, -4, 4, xtol=1e-14)
    peak = optimize.minimize_scalar(
        lambda c: -f(c), bounds=(mean - 2, mean + 2), method="bounded", options={"xatol": 1e-12}
    ).x
    assert Centroid()(x, f(x)) == pytest.approx(centroid, abs=1e-7)
    assert Half()(x, f(x)) == pytest.approx(half, abs=1e-7)
    # function values alone fix a maximum to about 1e-8 of its width
    assert Max()(x, f(x)) == pytest.approx(peak, abs=1e-6)
    assert Fourier()(x, f(x)) == pytest.approx(fourier_truth(f, window, 5), abs=1e-7)
    assert Fourier(n_terms=2)(x, f(x)) == pytest.approx(fourier_truth(f, window, 2), abs=1e-7)


@pytest.mark.parametrize(("window", "skewness", "sigma", "mean"), CASES)
def test_fitted_centers_match_tight_least_squares(window, skewness, sigma, mean):
    x = np.linspace(*window, 600)
    y = line(skewness, sigma, mean)(x)
    y /= y.max()
    truth = best_fit(gauss_model, x, y, gauss_starts(x, y))
    assert Gauss()(x, y) == pytest.approx(truth.x[1], abs=1e-6)
    truth = best_fit(sersic_model, x, y, sersic_starts(x, y))
    fit = Sersic().fit(x, y)
    assert fit["center"] == pytest.approx(truth.x[1], abs=1e-6)
    assert fit["chi2"] <= 2 * truth.cost * (1 + 1e-6) + 1e-13


@pytest.mark.parametrize("signal_to_noise", [20, 60, 300])
def test_fits_of_noisy_profiles_reach_the_same_optimum(signal_to_noise):
    rng = np.random.default_rng(signal_to_noise)
    x = np.linspace(*BLUE, 600)
    profiles = np.array([line(s, 1.4, m)(x) for s, m in zip(rng.uniform(-1, 1, 8), rng.uniform(-1, 1, 8))])
    profiles /= profiles.max(axis=1, keepdims=True)
    error = np.sqrt(0.3 + profiles) / signal_to_noise
    noisy = profiles + error * rng.normal(size=profiles.shape)
    for estimator, model, starts in (
        (Gauss(), gauss_model, gauss_starts),
        (Sersic(), sersic_model, sersic_starts),
        (Gauss("linear"), lambda x, p: sersic_model(x, [*p[:3], 2.0, *p[3:]]), None),
    ):
        fit = estimator.fit(x, noisy, error=error)
        assert np.all(fit["converged"])
        for k in range(len(noisy)):
            first = starts(x, noisy[k]) if starts else [[1.0, 0.0, 1.3, 0.0, 0.0]]
            truth = best_fit(model, x, noisy[k], first, error[k])
            assert fit["center"][k] == pytest.approx(truth.x[1], abs=2e-6)
            assert fit["chi2"][k] <= 2 * truth.cost * (1 + 1e-8)


def test_fits_of_undersampled_noisy_lines_end_at_a_minimum():
    """Pixels of 1.3 Angstrom at S/N 10: no fit is lost, and scipy finds nothing lower from where it ended."""
    rng = np.random.default_rng(1)
    x = np.arange(-7, 8) * 1.3
    y = np.array([line(s, 1.3, m)(x) for s, m in zip(rng.uniform(-1, 1, 60), rng.uniform(-0.7, 0.7, 60))])
    y = y / y.max(axis=1, keepdims=True) + rng.normal(size=y.shape) / 10
    fit = Sersic().fit(x, y)
    assert np.all(fit["converged"])
    for row, f in zip(y, fit):
        start = np.array([f[k] for k in ("amplitude", "center", "width", "exponent", "slope", "intercept")])
        limits = np.full((2, 6), [[-np.inf], [np.inf]])
        limits[:, 3] = 1.0 - 1e-9, 10.0 + 1e-9
        lower = optimize.least_squares(lambda p: row - sersic_model(x, p), start, bounds=limits, x_scale="jac")  # noqa: B023
        assert 2 * lower.cost >= f["chi2"] * (1 - 1e-5)


@pytest.mark.parametrize("exponent", [1.0, 1.05, 1.5, 1.9, 2.0, 2.7, 6.0])
def test_sersic_recovers_its_own_parameters(exponent):
    """All six, whatever the exponent, with c on a sample (the worst place for |x - c|^d) and off it."""
    x = np.linspace(*RED, 600)
    for c in (x[310], x[310] + 0.3 * (x[1] - x[0])):
        truth = (3.0e4, c, 1.45, exponent, 12.0, -70.0)
        fit = Sersic().fit(x, sersic_model(x, truth))
        assert fit["converged"]
        found = [fit[name] for name in ("amplitude", "center", "width", "exponent", "slope", "intercept")]
        # bounded by 1, the exponent of a cusp is found from one side only
        assert_allclose(found, truth, rtol=1e-6, atol=2e-6)


def test_sersic_exponent_stops_at_its_bounds():
    x = np.linspace(*BLUE, 600)
    y = sersic_model(x, (1.0, 0.2, 1.3, 3.0, 0.0, 0.0))
    fit = Sersic(exponent_bounds=(1.5, 2.5)).fit(x, y, error=np.full(600, 0.01))
    assert fit["converged"]
    assert fit["exponent"] == 2.5
    assert fit["exponent_error"] == 0.0
    truth = best_fit(lambda x, p: sersic_model(x, [*p[:3], 2.5, *p[3:]]), x, y, [[1.0, 0.2, 1.3, 0.0, 0.0]])
    assert fit["center"] == pytest.approx(truth.x[1], abs=1e-6)
    assert fit["width"] == pytest.approx(truth.x[2], abs=1e-6)


@pytest.mark.parametrize("background", ["constant", "linear"])
def test_gauss_fits_its_background(background):
    x = np.linspace(*BLUE, 600)
    slope = 0.3 if background == "linear" else 0.0
    y = 5.0 * np.exp(-0.5 * ((x - 0.7) / 1.2) ** 2) + slope * x + 2.0
    fit = Gauss(background=background).fit(x, y)
    assert_allclose([fit[k] for k in ("amplitude", "center", "width", "intercept")], [5.0, 0.7, 1.2, 2.0], atol=1e-8)
    assert fit["slope"] == pytest.approx(slope, abs=1e-9)
    assert fit["exponent"] == 2.0
    assert abs(Gauss()(x, y) - 0.7) > 1e-3


def spline_truth(x, y):
    """Centres of scipy's not-a-knot spline by its own roots and integrals."""
    spline = interpolate.CubicSpline(x, y)
    top = x[np.argmax(y)]
    rising = spline(top, 1) > 0
    candidates = [r for r in spline.derivative().roots(extrapolate=False) if (r > top) == rising]
    peak = min(candidates, key=lambda r: abs(r - top))
    cumulative = spline.antiderivative()
    total = cumulative(x[-1])
    crossings = cumulative.solve(0.5 * total, extrapolate=False)
    ahead = [c for c in crossings if (c > top) == (cumulative(top) < 0.5 * total)]
    half = min(ahead, key=lambda c: abs(c - top))
    # x times the spline is a quartic in each interval: Gauss-Legendre with 5 nodes is exact
    nodes, weights = np.polynomial.legendre.leggauss(5)
    middle, reach = 0.5 * (x[1:] + x[:-1]), 0.5 * np.diff(x)
    points = middle[:, None] + reach[:, None] * nodes
    return peak, np.sum(reach[:, None] * weights * points * spline(points)) / total, half


@pytest.mark.parametrize("spacing", ["uniform", "log", "jittered", "coarse", "at the edge"])
def test_moment_centers_are_those_of_the_cubic_spline(spacing):
    """Noisy, partly negative profiles: uniform and general paths both follow the spline exactly."""
    rng = np.random.default_rng(7)
    x = {
        "uniform": np.linspace(*BLUE, 600),
        "log": 5000 * np.exp(np.linspace(-1.7e-3, 1.9e-3, 600)) - 5000,
        "jittered": np.sort(rng.uniform(*BLUE, 300)),
        "coarse": np.arange(-8.4, 9.3, 1.38),
        "at the edge": np.linspace(-0.3, 9, 200),
    }[spacing]
    for _ in range(20):
        y = line(rng.uniform(-0.9, 0.9), 1.3, rng.uniform(-0.1, 1))(x)
        y = y / y.max() + rng.normal(size=x.size) * 0.01
        peak, centroid, half = spline_truth(x, y)
        got = max_centroid_half(x, y)
        assert_allclose(got[1:], (centroid, half), rtol=0, atol=1e-10)
        if 0 < np.argmax(y) < x.size - 1:
            assert got[0] == pytest.approx(peak, abs=1e-9)
        assert_allclose(got, [e(x, y) for e in (Max(), Centroid(), Half())], rtol=0, atol=1e-12)


@pytest.mark.parametrize("phase", np.linspace(0, 1, 8, endpoint=False))
@pytest.mark.parametrize(("pixel", "within"), [(0.54, 4e-4), (1.0, 4e-3), (1.4, 2e-2)])
def test_native_pixels_are_enough(pixel, within, phase):
    """Sigma of 1.2 Angstrom on arc pixels (0.54) and on those of published spectra.

    At 1.4 Angstrom the line is undersampled: even sinc interpolation of the samples is off by 0.01 Angstrom.
    """
    f = line(0.3, 1.2, 0.1)
    count = int(9.5 / pixel)
    x = (np.arange(-count, count + 1) + phase - 0.5) * pixel
    whole = integrate.quad(f, x[0], x[-1], epsabs=1e-12)[0]
    truth = optimize.brentq(lambda c: integrate.quad(f, x[0], c, epsabs=1e-12)[0] - 0.5 * whole, -3, 3)
    assert Half()(x, f(x)) == pytest.approx(truth, abs=within)
    assert Centroid()(x, f(x)) == pytest.approx(0.1, abs=min(within, 6e-3))
    fit = Sersic().fit(x, f(x))
    assert fit["converged"]
    # where two samples straddle an undersampled peak, chi2 hardly depends on the exponent: it may end at 10
    if fit["exponent"] < 10:
        assert fit["center"] == pytest.approx(best_fit(sersic_model, x, f(x), sersic_starts(x, f(x))).x[1], abs=1e-6)


@pytest.mark.parametrize("estimator", [*ALL, Fourier(n_terms=3), *FITS[2:]], ids=repr)
@settings(max_examples=15, deadline=None)
@given(
    shift=st.floats(-9000, 9000),
    scale=st.floats(1e-17, 1e12),
    skewness=st.floats(-0.9, 0.9),
    mean=st.floats(-1.5, 1.5),
    n=st.sampled_from([40, 257, 600]),
)
def test_centers_move_with_the_axis_and_ignore_the_scale(estimator, shift, scale, skewness, mean, n):
    x = np.linspace(*BLUE, n)
    y = line(skewness, 1.3, mean)(x) + 1e-3 * np.cos(7 * x)
    center = estimator(x, y)
    assert estimator(x + shift, y) - shift == pytest.approx(center, abs=1e-7)
    assert estimator(x, scale * y) == pytest.approx(center, abs=1e-8)
    # a mirrored line is centred at minus the centre: no hidden preference for a side
    assert estimator(-x[::-1], y[::-1]) == pytest.approx(-center, abs=1e-7)
    # other units of x
    assert estimator(0.1 * x, y) == pytest.approx(0.1 * center, abs=1e-8)


@pytest.mark.parametrize("estimator", [*ALL, Fourier(n_terms=7)], ids=repr)
def test_a_profile_moving_in_a_fixed_window_takes_its_center_along(estimator):
    """Zero wings, window fixed: also for `fourier`, whose phases are counted from the window's edge."""
    x = np.linspace(-14, 14, 900)
    y = [stats.skewnorm.pdf(x, 3.0, loc=s, scale=1.4) for s in (0.0, 0.01234, 2.5, -3.1)]
    found = estimator(x, np.array(y))
    # the background under a Sersic profile is anchored to the window, not to the line
    within = 1e-3 if isinstance(estimator, Sersic) else 2e-6
    assert_allclose(found - found[0], [0, 0.01234, 2.5, -3.1], rtol=0, atol=within)


@pytest.mark.parametrize("estimator", [*ALL, *FITS[2:], Zero()], ids=repr)
def test_batch_equals_loop(estimator):
    rng = np.random.default_rng(3)
    x = np.linspace(*RED, 600)
    y = np.array([[line(s, 1.3, m)(x) for s in (-0.5, 0.1, 0.8)] for m in (0.0, 0.7)])
    y += 0.002 * rng.normal(size=y.shape)
    mask = rng.random(y.shape) < 0.02
    error = 0.002 + 0.01 * rng.random((2, 1, 600))
    batch = estimator(x, y, error=error, mask=mask)
    spread = estimator.uncertainty(x, y, error=error, mask=mask)
    assert batch.shape == spread.shape == (2, 3)
    for i in np.ndindex(2, 3):
        one = estimator(x, y[i], error=error[i[0], 0], mask=mask[i])
        assert np.ndim(one) == 0
        assert one == batch[i]
        assert estimator.uncertainty(x, y[i], error=error[i[0], 0], mask=mask[i]) == spread[i]


@pytest.mark.parametrize("estimator", [*ALL, *FITS[2:]], ids=repr)
@pytest.mark.parametrize("spoiled", [[290, 291, 292], [0, 1, 450], [100, 305, 599]])
def test_bad_samples_count_as_absent(estimator, spoiled):
    """A spike of 1000 changes nothing, however it is marked: as if the samples had been dropped."""
    x = np.linspace(*BLUE, 600)
    y = line(0.5, 1.3, 0.3)(x)
    error = np.full(600, 0.01)
    kept = np.setdiff1d(np.arange(600), spoiled)
    reference = estimator(x[kept], y[kept], error=error[kept])
    # a window that begins or ends with bad samples is only rounded differently
    expected = pytest.approx(reference, abs=1e-9)
    spike = y.copy()
    spike[spoiled] = 1000.0
    mask = np.zeros(600, dtype=bool)
    mask[spoiled] = True
    nan, infinite, zero_error, bad_error = y.copy(), y.copy(), error.copy(), error.copy()
    nan[spoiled], infinite[spoiled] = np.nan, np.inf
    zero_error[spoiled], bad_error[spoiled] = [0.0, -1.0, np.nan], np.inf
    assert estimator(x, spike, error=error, mask=mask) == expected
    assert estimator(x, spike, error=error, mask=mask.astype(np.int16) * 64) == expected
    assert estimator(x, nan, error=error) == expected
    assert estimator(x, infinite, error=error) == expected
    assert estimator(x, spike, error=zero_error) == expected
    assert estimator(x, spike, error=bad_error) == expected
    assert estimator(x, np.ma.MaskedArray(spike, mask=mask), error=error) == expected
    assert estimator(x, np.ma.MaskedArray(spike, mask=mask), mask=np.zeros(600, bool), error=error) == expected
    # and the rest of the profile is still read: the centre is that of the line
    assert reference == pytest.approx(estimator(x, y, error=error), abs=5e-3)
    both = estimator(x, np.array([y, spike]), error=error, mask=np.array([np.zeros(600, bool), mask]))
    assert both[1] == expected


@pytest.mark.parametrize("estimator", [*ALL, Fourier(n_terms=3), Gauss("linear")], ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_uncertainty_matches_monte_carlo(estimator, masked):
    """A skewed line that no model fits, photon-like errors; with bad pixels, the general path."""
    rng = np.random.default_rng(11)
    # white noise between neighbouring samples defeats a maximum: native sampling for it
    n, signal_to_noise = (20, 300) if estimator.name == "max" else (200, 60)
    x = np.linspace(*BLUE, n)
    y = line(0.7, 1.5, 0.2)(x)
    y /= y.max()
    error = np.sqrt(0.1 + y) / signal_to_noise
    mask = np.zeros(n, dtype=bool)
    if masked:
        mask[[n // 2, n // 2 + 2, n - 3]] = True
    draws = estimator(x, y + error * rng.normal(size=(6000, n)), error=error, mask=mask)
    predicted = estimator.uncertainty(x, y, error=error, mask=mask)
    # the spread of 6000 draws is known to 0.9 %
    assert predicted == pytest.approx(np.std(draws), rel=0.05)
    assert np.mean(draws) == pytest.approx(estimator(x, y, error=error, mask=mask), abs=0.1 * predicted)


def test_fit_errors_match_monte_carlo():
    rng = np.random.default_rng(5)
    x = np.linspace(5000.0, 5018.0, 200)
    truth = (40.0, 5008.7, 1.4, 1.9, 0.2, -995.0)
    error = np.full(200, 0.6)
    fit = Sersic().fit(x, sersic_model(x, truth) + error * rng.normal(size=(5000, 200)), error=error)
    assert np.all(fit["converged"])
    for name, value in zip(("amplitude", "center", "width", "exponent", "slope", "intercept"), truth):
        assert np.median(fit[f"{name}_error"]) == pytest.approx(np.std(fit[name]), rel=0.07)
        assert np.mean(fit[name]) == pytest.approx(value, abs=0.2 * np.std(fit[name]))
    assert np.mean(fit["chi2"]) == pytest.approx(200 - 6, rel=0.02)
    assert np.all(fit["n_used"] == 200)
    assert np.all(np.isnan(Sersic().fit(x, sersic_model(x, truth))["center_error"]))


def test_fits_weight_by_the_error():
    """A bump with large errors pulls less, exactly as in a weighted fit by scipy."""
    x = np.linspace(*BLUE, 300)
    y = line(0.0, 1.3, 0.0)(x) + 0.3 * np.exp(-0.5 * ((x - 3) / 0.5) ** 2)
    error = np.where(x > 1.5, 5.0, 1.0)
    truth = best_fit(gauss_model, x, y, gauss_starts(x, y), error)
    assert Gauss()(x, y, error=error) == pytest.approx(truth.x[1], abs=1e-7)
    assert abs(Gauss()(x, y, error=error)) < 0.5 * abs(Gauss()(x, y))
    assert Gauss()(x, y, error=error) == pytest.approx(Gauss()(x, y, error=1e-15 * error), abs=1e-10)


UNCENTRABLE = {
    "all zero": np.zeros(600),
    "all NaN": np.full(600, np.nan),
    "negative": -np.exp(-0.5 * np.linspace(*BLUE, 600) ** 2),
    "three samples": np.where(np.arange(600) < 597, np.nan, 1.0),
}


# above a fitted background the shoulders of a dip are peaks: "negative" is for the others
@pytest.mark.parametrize(
    ("estimator", "case"),
    [(e, case) for e in [*ALL, Gauss("linear")] for case in UNCENTRABLE if (e, case) != (Gauss("linear"), "negative")],
    ids=str,
)
def test_what_cannot_be_centered_is_nan_and_spares_the_others(estimator, case):
    x = np.linspace(*BLUE, 600)
    good = line(0.3, 1.3, 0.2)(x)
    batch = np.array([good, UNCENTRABLE[case], good])
    error = np.full(600, 0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = estimator(x, batch)
    assert np.isnan(result[1])
    assert result[0] == result[2] == estimator(x, good)
    if estimator in MOMENTS:
        assert not caught
    else:
        assert [w.category for w in caught] == [FitWarning]
        assert "1 of 3" in str(caught[0].message)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        spread = estimator.uncertainty(x, batch, error=error)
    assert_array_equal(np.isnan(spread), [False, True, False])


def test_maximum_at_the_edge_or_on_a_plateau():
    x = np.linspace(0.0, 10.0, 101)
    falling = np.exp(-x)
    assert np.isnan(Max()(x, falling))
    assert np.isnan(Max()(x, falling[::-1]))
    assert np.isnan(Max().uncertainty(x, falling, error=np.ones(101)))
    assert np.isnan(Max()(x, np.ones(101)))
    saturated = np.minimum(np.exp(-0.5 * ((x - 5.05) / 1.0) ** 2), 0.8)
    assert Max()(x, saturated) == pytest.approx(5.05, abs=1e-12)
    assert np.isnan(Max().uncertainty(x, saturated, error=np.ones(101)))
    twins = np.exp(-0.5 * ((x - 5.05) / 1.0) ** 2)
    assert Max()(x, twins) == pytest.approx(5.05, abs=1e-6)


def test_flux_outside_the_window_is_not_invented():
    x = np.linspace(*BLUE, 600)
    wings = np.where(np.abs(x - 6) < 1, -1.0, 0.0) + 1.02 * np.exp(-0.5 * (x / 0.8) ** 2)
    # the mean of almost nothing lies outside the window
    assert np.isnan(Centroid()(x, wings))
    assert np.isnan(Centroid().uncertainty(x, wings, error=np.ones(600)))
    assert BLUE[0] < Half()(x, wings) < BLUE[1]


@pytest.mark.parametrize("estimator", FITS, ids=repr)
def test_fits_refuse_what_is_no_line(estimator):
    x = np.linspace(*BLUE, 600)
    spike = np.zeros(600)
    spike[300] = 1.0
    with pytest.warns(FitWarning, match="2 of 2"):
        result = estimator.fit(x, [spike, np.exp(0.4 * x)])
    assert not np.any(result["converged"])
    assert np.all(np.isnan(result["center"]))


def test_fourier_ignores_a_constant_and_knows_its_branches():
    x = np.linspace(*BLUE, 600)
    y = line(0.6, 1.2, 0.0)(x)
    for n_terms in (1, 3, 5, 9):
        assert Fourier(n_terms=n_terms)(x, y + 7.0) == pytest.approx(Fourier(n_terms=n_terms)(x, y), abs=1e-12)
    # far from the window's middle, where the higher harmonics wrap many times
    for c in (-5.0, -2.5, 3.0, 5.5):
        assert Fourier(n_terms=9)(x, np.exp(-0.5 * ((x - c) / 0.7) ** 2)) == pytest.approx(c, abs=1e-6)
    assert np.isnan(Fourier()(x, np.ones(600)))
    assert np.isnan(Fourier(n_terms=6)(x[:12], y[:12]))
    assert np.isnan(Fourier(n_terms=6)(x[:12] ** 3, y[:12]))


def test_fourier_on_uneven_samples_is_that_of_the_line():
    f = line(0.5, 1.3, 0.2)
    rng = np.random.default_rng(0)
    x = np.linspace(*BLUE, 300)
    x[1:-1] += 0.4 * (x[1] - x[0]) * rng.uniform(-1, 1, 298)
    assert Fourier()(x, f(x)) == pytest.approx(fourier_truth(f, BLUE, 5), abs=1e-6)


def test_zero_is_zero():
    x = np.linspace(*BLUE, 600)
    assert_array_equal(Zero()(x, np.full((2, 3, 600), np.nan)), np.zeros((2, 3)))
    assert_array_equal(Zero().uncertainty(x, np.ones((2, 600)), error=np.ones(600)), np.zeros(2))
    with pytest.raises(ValueError, match="increase"):
        Zero()(x[::-1], np.ones(600))


@pytest.mark.parametrize("estimator", [*ALL, Zero()], ids=repr)
def test_bad_arguments_are_refused_at_once(estimator):
    x = np.linspace(*BLUE, 50)
    y = np.exp(-(x**2))
    with pytest.raises(ValueError, match="increase strictly"):
        estimator(x[::-1], y)
    with pytest.raises(ValueError, match="increase strictly"):
        estimator(np.zeros(50), y)
    with pytest.raises(ValueError, match="finite"):
        estimator(np.where(x > 3, np.nan, x), y)
    with pytest.raises(ValueError, match="one-dimensional"):
        estimator(x[None], y)
    with pytest.raises(ValueError, match="at least 2"):
        estimator(x[:1], y[:1])
    with pytest.raises(ValueError, match="profile must have the 50 samples"):
        estimator(x, y[:-1])
    with pytest.raises(ValueError, match="profile must have the 50 samples"):
        estimator(x, 1.0)
    with pytest.raises(ValueError, match="error must have the 50 samples"):
        estimator(x, y, error=0.1)
    with pytest.raises(ValueError, match="mask must have the 50 samples"):
        estimator(x, y, mask=np.zeros(49, bool))
    with pytest.raises(ValueError, match="do not broadcast"):
        estimator(x, np.ones((3, 50)), error=np.ones((2, 50)))
    with pytest.raises(ValueError, match="boolean"):
        estimator(x, y, mask=np.zeros(50))
    with pytest.raises(ValueError, match="real numbers"):
        estimator(x, y + 1j)
    with pytest.raises(ValueError, match="error is required"):
        estimator.uncertainty(x, y, error=None)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="background must be one of"):
        Gauss(background="cubic")
    for bounds in ((0.5, 2.0), (3.0, 2.0), (1.0, np.inf), (np.nan, 3.0)):
        with pytest.raises(ValueError, match="exponent_bounds"):
            Sersic(exponent_bounds=bounds)
    for n_terms in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="n_terms"):
            Fourier(n_terms=n_terms)


@pytest.mark.parametrize("estimator", [*ALL, Gauss("linear")], ids=repr)
def test_inputs_are_left_alone_and_any_array_will_do(estimator):
    x = np.linspace(*BLUE, 600)
    y = np.array([line(s, 1.3, 0.2)(x) for s in (-0.5, 0.5)])
    y[1, 20] = np.nan
    error, mask = np.full(600, 0.01), np.zeros((2, 600), bool)
    mask[0, 300] = True
    arrays = [x, y, error, mask]
    before = [a.copy() for a in arrays]
    for array in arrays:
        array.flags.writeable = False
    reference = estimator(x, y, error=error, mask=mask)
    estimator.uncertainty(x, y, error=error, mask=mask)
    for array, copy in zip(arrays, before):
        assert_array_equal(array, copy)
    assert reference.dtype == np.float64
    assert_array_equal(estimator(list(x), y.tolist(), error=list(error), mask=mask.tolist()), reference)
    assert_array_equal(estimator(x, np.asfortranarray(y), error=error, mask=mask), reference)
    assert_array_equal(estimator(x, y.astype(">f8"), error=error, mask=mask), reference)
    assert_allclose(estimator(x, y.astype(np.float32), error=error, mask=mask), reference, atol=2e-4)
    assert estimator(x, np.empty((0, 600))).shape == (0,)
    assert estimator(x, np.round(1000 * y[0]).astype(int)) == pytest.approx(estimator(x, y[0]), abs=0.02)


def test_errors_and_masks_may_have_more_leading_axes_than_the_profile():
    x = np.linspace(*BLUE, 300)
    y = line(0.2, 1.3, 0.2)(x)
    mask = np.zeros((3, 300), bool)
    mask[1, 150] = True
    for estimator in ALL:
        result = estimator(x, y, mask=mask)
        assert result.shape == (3,)
        assert result[0] == result[2] != result[1]


def test_the_hook_gives_the_built_in_names():
    found = centers.lamost_lsf_centers()
    assert sorted(found) == ["centroid", "fourier", "gauss", "half", "max", "sersic", "zero"]
    for name, estimator in found.items():
        assert estimator.name == name
        assert estimator.vectorized is True


def test_inlined_exp_and_log_are_accurate():
    @njit
    def both(x, y):
        for i in range(x.size):
            x[i], y[i] = _fastmath.exp(x[i]), _fastmath.log(y[i])

    rng = np.random.default_rng(2)
    argument = np.concatenate([rng.uniform(-700, 700, 20000), rng.uniform(-1, 1, 20000), [0.0]])
    positive = np.concatenate([10 ** rng.uniform(-300, 300, 20000), rng.uniform(0.5, 2, 20000), [1.0]])
    x, y = argument.copy(), positive.copy()
    both(x, y)
    assert_allclose(x, np.exp(argument), rtol=5e-16)
    assert_allclose(y, np.log(positive), rtol=5e-16, atol=3e-16)
    far = np.array([-1e4, 1e4])
    both(far, np.ones(2))
    assert far[0] < 1e-300
    assert np.isfinite(far[1])
