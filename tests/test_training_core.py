"""Pixel likelihood, basis and terms: the parts of training that need no torch, against brute force and known truth."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

torch = pytest.importorskip("torch", reason="lamost_lsf.training needs torch")

from lamost_lsf.spline import quadrature_weights  # noqa: E402
from lamost_lsf.training.basis import ProfileBasis, fit_group, learn_basis, spline_functions  # noqa: E402
from lamost_lsf.training.data import FileRows, PackedStatistics  # noqa: E402
from lamost_lsf.training.neighbours import fit_ratios  # noqa: E402
from lamost_lsf.training.statistics import NEIGHBOUR_PRIOR, line_statistics  # noqa: E402
from lamost_lsf.training.terms import GroupTerm, fit_group_term, newton_system  # noqa: E402

GRID = np.linspace(-8.335, 9.25, 600)


def gaussian(x, width=1.25, shift=0.0):
    return np.exp(-0.5 * ((x - shift) / width) ** 2)


def functions():
    """A mean and three components with no special symmetry."""
    mean = gaussian(GRID) / np.sqrt(2 * np.pi) / 1.25
    z = GRID / 1.25
    return np.stack([mean, 0.03 * z * mean, 0.05 * (z**2 - 1) * mean, 0.02 * (z**3 - 3 * z) * mean])


def pixels(rng, n, basis, coefficients, *, sn=100.0, n_pixel=32, step=0.54):
    """Native pixels of lines with random phase, amplitude and background, with their errors."""
    x = GRID[0] + step * (rng.uniform(0, 1, n)[:, None] + np.arange(n_pixel))
    h = np.stack([np.interp(xi, GRID, b) for xi, b in zip(x, basis[0] + coefficients @ basis[1:], strict=True)])
    amplitude = rng.uniform(500, 5000, n)[:, None]
    peak = amplitude * h.max(axis=1, keepdims=True)
    sigma = peak / sn
    background = peak * (0.02 * rng.normal(size=(n, 1)) + 0.003 * rng.normal(size=(n, 1)) * x)
    flux = amplitude * h + background + sigma * rng.normal(size=x.shape)
    return x, flux, np.broadcast_to(1 / sigma**2, x.shape).copy()


def test_chi2_is_that_of_a_full_least_squares_fit():
    # numpy's lstsq with amplitude, constant and slope knows nothing of Schur complements
    rng = np.random.default_rng(1)
    basis = functions()
    c = rng.normal(size=(6, 3))
    x, flux, ivar = pixels(rng, 6, basis, c)
    ivar[2, 5] = 0.0  # a bad pixel must not count, whatever it holds
    flux[2, 5] = 1e9
    stats = line_statistics(x, flux, ivar, GRID, basis)
    trial = c + 0.3 * rng.normal(size=c.shape)
    got = stats.chi2(trial)
    for i in range(6):
        root = np.sqrt(ivar[i])
        h = np.interp(x[i], GRID, basis[0] + trial[i] @ basis[1:])
        design = np.stack([h, np.ones_like(h), x[i]], axis=1) * root[:, None]
        solution, *_ = np.linalg.lstsq(design, flux[i] * root, rcond=None)
        expected = np.sum((flux[i] * root - design @ solution) ** 2)
        # np.interp on the fine grid differs from the cubic by 1e-4 of the noise
        assert got[i] == pytest.approx(expected, rel=2e-3)
    assert stats.n_pixels.tolist() == [32, 32, 31, 32, 32, 32]


def test_background_and_amplitude_change_nothing():
    rng = np.random.default_rng(2)
    basis = functions()
    x, flux, ivar = pixels(rng, 4, basis, rng.normal(size=(4, 3)))
    c = rng.normal(size=(4, 3))
    before = line_statistics(x, flux, ivar, GRID, basis).chi2(c)
    moved = flux * 7.0 + 300.0 - 11.0 * x
    after = line_statistics(x, moved, ivar / 49.0, GRID, basis).chi2(c)
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_gradient_and_hessian_are_the_derivatives_of_chi2():
    rng = np.random.default_rng(3)
    basis = functions()
    c = rng.normal(size=(3, 3))
    stats = line_statistics(*pixels(rng, 3, basis, c, sn=1e4), GRID, basis)
    gradient, hessian = newton_system(stats, c)
    step = 1e-4
    for k in range(3):
        e = step * np.eye(3)[k]
        numeric = -(stats.chi2(c + e) - stats.chi2(c - e)) / (4 * step)
        np.testing.assert_allclose(gradient[:, k], numeric, rtol=1e-3, atol=1e-3 * np.abs(gradient).max())
        # Gauss-Newton: exact at the minimum, which noise of 1e-4 of the peak is near to
        second = (stats.chi2(c + e) - 2 * stats.chi2(c) + stats.chi2(c - e)) / (2 * step**2)
        np.testing.assert_allclose(hessian[:, k, k], second, rtol=0.02)


def test_chi2_of_the_truth_is_chi_square_distributed():
    rng = np.random.default_rng(4)
    basis = functions()
    c = rng.normal(size=(2000, 3))
    stats = line_statistics(*pixels(rng, 2000, basis, c), GRID, basis)
    value = stats.chi2(c)
    dof = 32 - 3
    assert value.mean() == pytest.approx(dof, abs=4 * np.sqrt(2 * dof / 2000))
    assert value.std() == pytest.approx(np.sqrt(2 * dof), rel=0.08)


def test_group_fit_recovers_a_profile_that_no_single_line_samples():
    rng = np.random.default_rng(5)
    splines = spline_functions(GRID)
    truth = gaussian(GRID, 1.2) + 0.25 * gaussian(GRID, 0.8, 1.5)
    mean = truth / (truth @ quadrature_weights(GRID))
    basis = np.stack([mean, np.zeros_like(mean)])
    x, flux, ivar = pixels(rng, 3000, basis, np.zeros((3000, 1)), sn=140.0)
    stats = line_statistics(x, flux, ivar, GRID, splines)
    factors, _ = fit_group(stats.matrix, stats.vector, 1e-9 * np.eye(splines.shape[0]))
    profile = factors @ splines
    error = profile / profile.max() - truth / truth.max()
    # 3000 lines of S/N 140 leave a noise of some 4e-4 on 44 splines; the peak must not be pulled down
    assert np.sqrt(np.mean(error**2)) < 6e-4
    assert abs(error[np.argmax(truth)]) < 1.5e-3


def test_splines_cannot_imitate_a_background():
    splines = spline_functions(GRID)
    assert np.abs(splines[:, [0, -1]]).max() < 1e-12
    assert np.abs(np.diff(splines[:, :2])).max() < 1e-2


def test_basis_spans_what_varies_even_in_one_odd_fiber():
    rng = np.random.default_rng(6)
    n_fiber, n_time, n_line = 40, 12, 3
    fiber, time, line = (
        a.ravel() for a in np.meshgrid(np.arange(1, n_fiber + 1), np.arange(n_time), np.arange(n_line))
    )
    width = 1.2 + 0.004 * (fiber - 20) + 0.1 * line
    skew = 0.1 * np.sin(fiber / 9) + 0.02 * (time - 6)
    z = GRID[None] / width[:, None]
    profiles = np.exp(-0.5 * z**2) * (1 + skew[:, None] * (z**3 - 3 * z) / 6)
    odd = fiber == 17
    profiles[odd] += 0.15 * gaussian(GRID, 1.0, 3.0)
    x = GRID[0] + 0.54 * (rng.uniform(0, 1, fiber.size)[:, None] + np.arange(32))
    h = np.stack([np.interp(xi, GRID, p) for xi, p in zip(x, profiles, strict=True)])
    flux = 1000 * h + 1000 / 140 * rng.normal(size=h.shape)
    ivar = np.full(h.shape, (140 / 1000) ** 2)
    basis = learn_basis(GRID, x, flux, ivar, line, fiber, time)
    design = basis.functions.T
    # without components of its own the odd fibre would be off by the bump's 0.04 rms
    for members, limit in ((~odd, 1.5e-3), (odd, 6e-3)):
        p = profiles[members] / profiles[members].max(axis=1, keepdims=True)
        solution, *_ = np.linalg.lstsq(design, p.T, rcond=None)
        assert np.sqrt(np.mean((design @ solution - p.T) ** 2)) < limit


def test_terms_are_shrunk_as_noise_demands_and_an_odd_fiber_is_left_free():
    rng = np.random.default_rng(7)
    basis = functions()
    n_fiber, per_fiber = 60, 30
    fiber = np.repeat(np.arange(n_fiber), per_fiber)
    own = 0.3 * rng.normal(size=(n_fiber, 3))
    own[10] = [6.0, -4.0, 5.0]
    x, flux, ivar = pixels(rng, fiber.size, basis, own[fiber], sn=100.0)
    packed = PackedStatistics.allocate(fiber.size, 4)
    packed.put(slice(None), line_statistics(x, flux, ivar, GRID, basis))
    term = GroupTerm.zero(n_fiber, 1, 3)
    for _ in range(3):
        values = term.values[:, 0]
        term = fit_group_term(
            term,
            packed,
            np.arange(fiber.size),
            fiber,
            lambda part: np.ones((part.size, 1)),
            lambda part, values=values: values[fiber[part]],
            own_scale=True,
        )
    error = term.values[:, 0] - own
    pull = error / np.sqrt(term.variance[:, 0])
    ordinary = np.arange(n_fiber) != 10
    assert 0.8 < np.std(pull[ordinary]) < 1.25  # the posterior variance is honest
    population = (term.scale[ordinary, None] * term.prior[0]).mean(axis=0)
    np.testing.assert_allclose(population, 0.3**2, rtol=0.6)  # the population's variance is found
    assert np.abs(error[10]).max() < 0.3  # and the odd one is not drawn to it
    assert term.scale[10] > 50


def test_packed_statistics_keep_float32_precision(tmp_path):
    rng = np.random.default_rng(8)
    basis = functions()
    stats = line_statistics(*pixels(rng, 50, basis, rng.normal(size=(50, 3))), GRID, basis)
    for path in (None, tmp_path / "rows.npy"):
        packed = PackedStatistics.allocate(50, 4, path)
        packed.put(slice(None), stats)
        back = packed.get(slice(10, 20))
        np.testing.assert_allclose(back.matrix, stats.matrix[10:20], rtol=1e-6)
        np.testing.assert_allclose(back.vector, stats.vector[10:20], rtol=1e-6)


def test_the_amplitude_is_free():
    # independent: minimise over the amplitude numerically
    rng = np.random.default_rng(9)
    basis = functions()
    stats = line_statistics(*pixels(rng, 1, basis, np.zeros((1, 3))), GRID, basis)
    a = np.array([1.0, 0.2, -0.1, 0.3])

    def chi2(amplitude):
        return float(stats.scalar[0] - 2 * amplitude * stats.vector[0] @ a + amplitude**2 * a @ stats.matrix[0] @ a)

    best = minimize_scalar(chi2)
    assert stats.chi2(a[None, 1:])[0] == pytest.approx(best.fun, rel=1e-9)


def test_a_neighbours_wing_is_fitted_away():
    # planted neighbours of 5 % at known offsets; without them the chi-square of the truth is far off
    rng = np.random.default_rng(11)
    basis = functions()
    n, c = 40, np.zeros((40, 3))
    x, flux, ivar = pixels(rng, n, basis, c)
    near = np.full((n, 2), np.nan)
    near[::2, 0], near[::4, 1] = -7.0, 10.5
    for shift in near.T:
        wing = 0.05 * np.interp(x - shift[:, None], GRID, basis[0], left=0.0, right=0.0)
        flux = (
            flux + np.where(np.isfinite(shift)[:, None], wing, 0.0) * (np.max(flux, axis=1) / basis[0].max())[:, None]
        )
    ignored = line_statistics(x, flux, ivar, GRID, basis)
    fitted = line_statistics(x, flux, ivar, GRID, basis, neighbours=near)
    has = np.isfinite(near[:, 0])
    assert np.median(ignored.chi2(c)[has]) > 2.0 * 29
    assert np.mean(fitted.chi2(c)[has]) == pytest.approx(29 - 1.5, abs=4.0)
    np.testing.assert_allclose(fitted.chi2(c)[~has], ignored.chi2(c)[~has], rtol=1e-9)
    # and against numpy's lstsq with all columns
    i = 0
    columns = [np.interp(x[i] - d, GRID, basis[0], left=0.0, right=0.0) for d in (0.0, *near[i])]
    design = np.stack([*columns, np.ones(x.shape[1]), x[i]], axis=1) * np.sqrt(ivar[i])[:, None]
    rest = np.linalg.lstsq(design, flux[i] * np.sqrt(ivar[i]), rcond=None)[1][0]
    assert fitted.chi2(c)[i] == pytest.approx(rest, rel=5e-3)


def planted(rng, n, ratio, y, coefficients, sn=100.0):
    """Lines and a neighbour of the same profile, ``ratio`` as bright, at y."""
    basis = functions()
    x, flux, ivar = pixels(rng, n, basis, coefficients, sn=sn)
    profile = basis[0] + coefficients @ basis[1:]
    # the amplitude that `pixels` drew follows from its noise: sigma = amplitude * peak / sn
    peak = np.stack([np.interp(xi, GRID, p) for xi, p in zip(x, profile, strict=True)]).max(axis=1)
    amplitude = sn / np.sqrt(ivar[:, 0]) / peak
    wing = [np.interp(xi - y, GRID, p, left=0.0, right=0.0) for xi, p in zip(x, profile, strict=True)]
    return basis, (x, flux + ratio * amplitude[:, None] * np.array(wing), ivar)


def test_a_neighbour_of_known_flux_has_the_lines_own_profile():
    # with the ratio held, it is least squares with one column h(x) + ratio h(x - y), whatever the coefficients
    rng = np.random.default_rng(21)
    c = rng.normal(size=(5, 3))
    basis, (x, flux, ivar) = planted(rng, 5, 0.3, -6.0, c)
    near, ratio = np.full((5, 2), np.nan), np.full((5, 2), 0.3)
    near[:, 1] = -6.0
    stats = line_statistics(x, flux, ivar, GRID, basis, neighbours=near, ratio=ratio, spread=1e-7)
    for i in range(5):
        profile = basis[0] + c[i] @ basis[1:]
        h = np.interp(x[i], GRID, profile) + 0.3 * np.interp(x[i] + 6.0, GRID, profile, left=0.0, right=0.0)
        design = np.stack([h, np.ones_like(h), x[i]], axis=1) * np.sqrt(ivar[i])[:, None]
        rest = np.linalg.lstsq(design, flux[i] * np.sqrt(ivar[i]), rcond=None)[1][0]
        assert stats.chi2(c)[i] == pytest.approx(rest, rel=5e-3)
    wrong = line_statistics(x, flux, ivar, GRID, basis, neighbours=-near, ratio=ratio, spread=1e-7)
    assert np.all(wrong.chi2(c) > 10 * stats.chi2(c))
    with pytest.raises(ValueError, match="ratio must have the neighbours' shape"):
        line_statistics(x, flux, ivar, GRID, basis, neighbours=near, ratio=ratio[:, :1])


@pytest.mark.parametrize("y", [-7.0, 8.0])
def test_a_neighbours_flux_is_told_although_the_model_has_its_wing(y):
    rng = np.random.default_rng(22)
    n = 600
    fiber = np.linspace(-1, 1, n)[:, None]
    c = 0.5 * rng.normal(size=3) + 0.4 * fiber * rng.normal(size=3)
    basis, native = planted(rng, n, 0.04, y, c)
    # a model fitted as if there were no neighbour: its coefficients have taken up what they can of the wing
    alone = line_statistics(*native, GRID, basis)
    taken = c.copy()
    for _ in range(3):
        gradient, hessian = newton_system(alone, taken)
        taken = taken + np.linalg.solve(hessian.sum(0), gradient.sum(0))
    assert np.max(np.abs(np.mean(taken - c, axis=0))) > 0.02
    near = np.array([np.nan, y])
    series = np.concatenate([np.ones_like(fiber), fiber], axis=1)
    profile = ProfileBasis(GRID, basis[0], basis[1:])
    ratio, spread = fit_ratios(native, near, profile, taken, series, np.zeros(2))
    assert ratio[0] == 0.0
    # by its own error; what lamps may vary by is added to that in the spread
    sigma = np.sqrt(spread[1] ** 2 - (0.05 * ratio[1]) ** 2)
    assert 0.0 < sigma < 5e-4
    assert ratio[1] == pytest.approx(0.04, abs=3.5 * sigma)
    # one that is out of sight stays as unknown as before
    nothing, spread = fit_ratios(native, np.array([-30.0]), profile, taken, series, np.zeros(1))
    assert abs(nothing[0]) < 1e-6
    assert spread[0] == pytest.approx(NEIGHBOUR_PRIOR, rel=1e-6)


def test_rows_in_a_file_are_those_of_an_array(tmp_path):
    rng = np.random.default_rng(12)
    array = rng.normal(size=(50, 7)).astype(np.float32)
    rows = FileRows(tmp_path / "rows.bin", array.shape)
    rows[0:30] = array[:30]
    scattered = rng.permutation(np.arange(30, 50))
    rows[scattered] = array[scattered]
    for item in (slice(None), slice(3, 3), slice(4, 40, 3), scattered, np.array([7, 7, 2]), np.array([], dtype=int)):
        np.testing.assert_array_equal(rows[item], array[item])


def test_statistics_in_a_file_are_those_in_memory(tmp_path):
    rng = np.random.default_rng(13)
    stats = line_statistics(*pixels(rng, 30, functions(), rng.normal(size=(30, 3))), GRID, functions())
    both = [PackedStatistics.allocate(30, 4, path) for path in (None, tmp_path / "rows.bin")]
    index = rng.permutation(30)
    for packed in both:
        packed.put(slice(None), stats)
        packed.put(index[:5], stats[index[5:10]])
    for a, b in zip(both[0].chunks(index, 7), both[1].chunks(index, 7), strict=True):
        np.testing.assert_array_equal(a[1].matrix, b[1].matrix)
        np.testing.assert_array_equal(a[1].n_pixels, b[1].n_pixels)
    np.testing.assert_array_equal(both[0].n_pixels, both[1].n_pixels)
