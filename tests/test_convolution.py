"""`convolve`: the scatter integral, variance, masks, edges, units and media."""

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from convolution_truth import ConstantLSF, LineForest, SkewLSF, scatter_integral
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf.convolution.fast import convolve_flux
from lamost_lsf.convolution.matrix import build_matrix
from lamost_lsf.errors import OutOfRangeError, SamplingWarning
from lamost_lsf.lsf import Segment
from lamost_lsf.units import doppler_factor, vacuum_to_air

FINE = np.arange(3650.0, 9070.02, 0.02)
LAMOST = 10 ** (3.5682 + 1e-4 * np.arange(3860))
FOREST = LineForest(3700, 9000)
# pixels over the whole range, those with the deepest structure included
PICK = np.r_[200:3800:150]


def spectrum(wavelength, flux, **kwargs):
    return Spectrum(flux=np.asarray(flux) * u.Jy, spectral_axis=wavelength * u.AA, **kwargs)


def half_flux_point(lsf):
    """Offset that halves the area of the profile's spline, found by root finding; a smooth function of wavelength."""
    nodes = np.linspace(3600.0, 9200.0, 60)
    points = []
    for profile in lsf._sample(nodes):
        running = CubicSpline(lsf.offset, profile).antiderivative()
        points.append(brentq(lambda x: running(x) - 0.5 * running(lsf.offset[-1]), -5, 5, xtol=1e-12))  # noqa: B023
    return CubicSpline(nodes, points)


@pytest.fixture(scope="module")
def forest():
    return spectrum(FINE, FOREST(FINE))


class TestScatterIntegral:
    @pytest.mark.parametrize(
        "lsf",
        [
            SkewLSF(),
            SkewLSF(offset=np.linspace(-5.0, 6.3, 300)),  # cut off at up to 6 % of its peak: jumps at the window's ends
            SkewLSF(wing=0.05),  # negative lobe
            SkewLSF(scale=0.25, skew=2.0, offset=np.linspace(-2.5, 3.0, 700)),  # R = 7200, MRS-like
        ],
        ids=["lamost", "cut", "negative", "narrow"],
    )
    def test_flux_is_the_integral_with_the_kernel_of_the_true_wavelength(self, lsf, forest):
        result = ll.convolve(forest, lsf, LAMOST * u.AA).flux.value[PICK]
        truth = scatter_integral(FOREST, lsf, LAMOST[PICK])
        assert np.max(np.abs(result - truth)) < 1e-5
        matrix, _ = build_matrix(lsf, FINE, LAMOST, "zero")
        assert np.max(np.abs((matrix @ forest.flux.value)[PICK] - truth)) < 1e-5

    def test_profile_cut_off_within_its_core(self, forest):
        """Jumps of half the peak: the grid is given up for the matrix. What is left is the template's own pixels."""
        lsf = SkewLSF(offset=np.linspace(-3.1, 3.3, 200))
        result = ll.convolve(forest, lsf, LAMOST * u.AA).flux.value[PICK]
        truth = scatter_integral(FOREST, lsf, LAMOST[PICK], step=0.005)
        assert np.max(np.abs(result - truth)) < 3e-5
        assert np.median(np.abs(result - truth)) < 1e-6

    def test_flipping_the_profile_or_gathering_is_another_answer(self, forest):
        """What the test above would miss if its tolerance were loose, or its LSF tame."""
        lsf = SkewLSF()
        result = ll.convolve(forest, lsf, LAMOST * u.AA).flux.value[PICK]
        flipped = scatter_integral(FOREST, SkewLSF(offset=-lsf.offset[::-1], flip=True), LAMOST[PICK])
        gathered = scatter_integral(FOREST, lsf, LAMOST[PICK], kernel_of_output=True)
        assert np.max(np.abs(result - flipped)) > 1e-2
        assert np.max(np.abs(result - gathered)) > 1e-4

    def test_half_flux_centre_is_put_at_lag_zero(self, forest):
        lsf = SkewLSF()
        half = half_flux_point(lsf)
        assert np.ptp(half(LAMOST[PICK])) > 0.3  # the shift itself varies
        truth = scatter_integral(FOREST, lsf, LAMOST[PICK], zero=half)
        result = ll.convolve(forest, lsf, LAMOST * u.AA, center="half")
        assert np.max(np.abs(result.flux.value[PICK] - truth)) < 1e-5
        assert result.meta["kernel_center"] == "half"
        unshifted = ll.convolve(forest, lsf, LAMOST * u.AA).flux.value[PICK]
        assert np.max(np.abs(unshifted - truth)) > 1e-2

    def test_sersic_centre_moves_the_line_by_that_centre(self):
        """The centroid of a line convolved with centre "sersic" lies at the centroid minus the Sersic centre."""
        lsf = SkewLSF()
        profile = lsf.profile(6000 * u.AA)
        shift = (profile.center("centroid") - profile.center("sersic")).to_value(u.AA)
        assert abs(shift) > 0.015
        axis, out = np.arange(5980, 6020, 0.02), np.arange(5985, 6015, 0.1)
        line = spectrum(axis, np.exp(-0.5 * ((axis - 6000) / 0.1) ** 2))
        for medium_center in ("sersic", None):
            source = spectrum(axis, line.flux.value, meta={"wavelength_center": "sersic"} if not medium_center else {})
            flux = ll.convolve(source, lsf, out * u.AA, center=medium_center).flux.value
            good = np.isfinite(flux)
            centroid = np.sum(flux[good] * out[good]) / np.sum(flux[good])
            assert centroid - 6000 == pytest.approx(shift, abs=1e-3)

    def test_each_arm_spreads_by_its_own_profile_across_the_join(self, forest):
        blue, red, join = SkewLSF(), SkewLSF(scale=1.4, skew=-1.0), 5800.013
        lsf = ll.JoinedLSF([Segment(0.0, join, blue), Segment(join, np.inf, red)])
        near = np.flatnonzero((join - 20 < LAMOST) & (join + 20 > LAMOST))[::2]
        truth = scatter_integral(FOREST, blue, LAMOST[near], limits=(0, join))
        truth += scatter_integral(FOREST, red, LAMOST[near], limits=(join, np.inf))
        result = ll.convolve(forest, lsf, LAMOST * u.AA).flux.value[near]
        # the join lies within a template pixel; half a pixel of it would already cost 1e-3
        assert np.max(np.abs(result - truth)) < 1e-5
        matrix, _ = build_matrix(lsf, FINE, LAMOST, "zero")
        assert np.max(np.abs((matrix @ forest.flux.value)[near] - truth)) < 1e-5

    def test_phoenix_at_full_resolution(self, data_dir):
        file = np.load(data_dir / "templates" / "phoenix" / "phoenix_hires_2450_11000.npz")
        native = file["wave_vac_A"].astype(float)
        raw = file["lte05800-4.50-0.0"].astype(float)
        flux = np.interp(FINE, native, raw / np.median(raw))
        # the spectrum *is* its 0.02 A pixels here: linear between them, integrated four times finer
        lsf = SkewLSF()
        truth = scatter_integral(lambda w: np.interp(w, FINE, flux), lsf, LAMOST[PICK], step=0.01)
        result = ll.convolve(spectrum(FINE, flux), lsf, LAMOST * u.AA).flux.value[PICK]
        assert np.max(np.abs(result / truth - 1)) < 1e-5
        flipped = ll.convolve(spectrum(FINE, flux), SkewLSF(offset=-lsf.offset[::-1], flip=True), LAMOST * u.AA)
        assert np.max(np.abs(flipped.flux.value[PICK] / truth - 1)) > 1e-3

    @pytest.mark.parametrize("cut", [(-9.2, 9.8), (-7.0, 8.0)])
    @pytest.mark.parametrize("center", ["zero", "half"])
    @pytest.mark.parametrize(
        "output",
        [LAMOST, LAMOST.astype(np.float32).astype(float), np.arange(5000.0, 5400.0, 7.3), np.arange(5e3, 51e2, 0.05)],
    )
    def test_fast_path_and_matrix_agree(self, forest, center, output, cut):
        lsf = SkewLSF(offset=np.linspace(*cut, 600))
        fast, mask = convolve_flux(forest.flux.value[None], FINE, output, lsf, center)
        matrix, response = build_matrix(lsf, FINE, output, center)
        slow = matrix @ forest.flux.value
        assert np.array_equal(mask, response.share > 1e-3)
        assert np.max(np.abs(fast[0] - slow)[~mask]) < 2e-6

    def test_template_with_uneven_pixels(self):
        rng = np.random.default_rng(5)
        axis = np.cumsum(rng.uniform(0.01, 0.06, 12000)) + 5000
        lsf, output = SkewLSF(), np.arange(5050.0, 5350.0, 9.0)
        # lines that even these pixels resolve: the trapezoidal rule is of second order on an uneven grid
        smooth = LineForest(5000, 5400, n=40, sigma=1.0)
        truth = scatter_integral(smooth, lsf, output)
        for result in (
            ll.convolve(spectrum(axis, smooth(axis)), lsf, output * u.AA).flux.value,
            ll.ResolutionMatrix.from_lsf(lsf, axis * u.AA, output * u.AA).apply(smooth(axis)),
        ):
            assert np.max(np.abs(result - truth)) < 1e-5

    def test_lsf_model_and_profile_are_accepted(self):
        axis, out = np.arange(4980, 5020, 0.02), np.arange(4995, 5005, 0.5) * u.AA
        line = spectrum(axis, np.where(np.abs(axis - 5000) < 0.011, 50.0, 0.0))
        model = ll.GaussianIP(1800)
        by_model = ll.convolve(line, model, out).flux.value
        by_lsf = ll.convolve(line, model.at(), out).flux.value
        by_profile = ll.convolve(line, model.profile(wavelength=5000 * u.AA), out).flux.value
        assert np.array_equal(by_model, by_lsf)
        assert np.max(np.abs(by_profile - by_model)) < 1e-3 * by_model.max()
        with pytest.raises(TypeError, match="must be an LSF"):
            ll.convolve(line, 1.2, out)


class TestConstantSpectrum:
    def test_returns_the_integral_of_the_kernel_over_true_wavelength(self):
        lsf = SkewLSF()
        truth = scatter_integral(np.ones_like, lsf, LAMOST[PICK])
        assert np.max(np.abs(truth - 1)) > 5e-5  # not a constant: the profile varies
        result = ll.convolve(spectrum(FINE, np.ones(FINE.size)), lsf, LAMOST * u.AA).flux.value[PICK]
        assert np.max(np.abs(result - truth)) < 1e-7
        matrix = ll.ResolutionMatrix.from_lsf(lsf, FINE * u.AA, LAMOST * u.AA)
        assert np.max(np.abs(matrix.apply(np.ones(FINE.size))[PICK] - truth)) < 1e-7
        assert np.max(np.abs(matrix.total[PICK] - truth)) < 1e-7

    @pytest.mark.parametrize("center", ["zero", "half"])
    @pytest.mark.parametrize("step", [0.02, 0.7])
    def test_is_kept_exactly_by_a_constant_profile(self, center, step):
        axis = np.arange(3650.0, 9070.0, step)
        flat = spectrum(axis, np.full(axis.size, 3.0))
        result = ll.convolve(flat, ConstantLSF(), LAMOST * u.AA, center=center)
        good = ~result.mask
        assert good.sum() > 3800
        assert np.max(np.abs(result.flux.value[good] / 3 - 1)) < 1e-12
        matrix = ll.ResolutionMatrix.from_lsf(ConstantLSF(), axis * u.AA, LAMOST * u.AA, center)
        assert np.nanmax(np.abs(matrix.apply(flat).flux.value / 3 - 1)) < 1e-12

    @pytest.mark.parametrize("center", ["zero", "half"])
    def test_is_kept_exactly_with_preserve_continuum(self, center):
        flat = spectrum(FINE, np.full(FINE.size, 3.0))
        result = ll.convolve(flat, SkewLSF(), LAMOST * u.AA, center=center, preserve="continuum")
        assert np.nanmax(np.abs(result.flux.value / 3 - 1)) < 1e-12
        matrix = ll.ResolutionMatrix.from_lsf(SkewLSF(), FINE * u.AA, LAMOST * u.AA, center)
        value = matrix.apply(flat.flux.value, preserve="continuum")
        assert np.nanmax(np.abs(value / 3 - 1)) < 1e-12


@settings(max_examples=40, deadline=None)
@given(
    wavelength=st.floats(3900, 8800),
    width=st.floats(0.06, 1.5),
    skew=st.floats(-4, 4),
    scale=st.floats(0.5, 1.2),
)
def test_flux_of_a_line_is_conserved(wavelength, width, skew, scale):
    """The kernel of the true wavelength has unit area over *observed* wavelength, so nothing of a line is lost."""
    lsf = SkewLSF(offset=np.linspace(-25, 25, 1500), scale=scale, skew=skew)
    axis = np.arange(wavelength - 12, wavelength + 12, 0.02)
    line = np.exp(-0.5 * ((axis - wavelength) / width) ** 2)
    output = np.arange(wavelength - 45, wavelength + 45, 0.4)
    # beyond the template there is nothing: a share of missing kernel of one is fine where nothing can come from there
    wide = np.arange(wavelength - 80, wavelength + 80, 0.02)
    flux = np.interp(wide, axis, line, left=0, right=0)
    result = ll.convolve(spectrum(wide, flux), lsf, output * u.AA).flux.value
    assert np.sum(result) * 0.4 == pytest.approx(width * np.sqrt(2 * np.pi), rel=2e-6)


class TestVariance:
    axis = np.arange(5000.0, 5160.0, 0.4)
    output = np.arange(5030.0, 5130.0, 1.3)

    def sigma(self):
        return 0.02 * (1 + 0.5 * np.sin(self.axis / 7.0))

    def test_agrees_with_monte_carlo(self):
        """Noise drawn on the template and sent through the flux path, which knows nothing of variances."""
        lsf, rng = SkewLSF(), np.random.default_rng(42)
        noise = rng.normal(size=(20000, self.axis.size)) * self.sigma()
        drawn = ll.convolve(spectrum(self.axis, 1.0 + noise), lsf, self.output * u.AA).flux.value.std(axis=0)
        one = spectrum(self.axis, np.ones(self.axis.size), uncertainty=StdDevUncertainty(self.sigma()))
        ours = ll.convolve(one, lsf, self.output * u.AA).uncertainty.array
        # single pixels of the simulation scatter by 0.5 %
        assert np.max(np.abs(ours / drawn - 1)) < 0.02
        assert abs(np.mean(ours / drawn) - 1) < 0.005

    @pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
    def test_comes_back_in_kind_with_its_unit(self, kind):
        std = StdDevUncertainty(self.sigma(), unit=u.Jy)
        flux = np.ones(self.axis.size)
        flux[200] = np.nan
        given_ = spectrum(self.axis, flux, uncertainty=std.represent_as(kind))
        result = ll.convolve(given_, SkewLSF(), self.output * u.AA)
        assert type(result.uncertainty) is kind
        assert result.uncertainty.unit == {
            StdDevUncertainty: u.Jy, VarianceUncertainty: u.Jy**2, InverseVariance: u.Jy**-2
        }[kind]  # fmt: skip
        as_std = ll.convolve(spectrum(self.axis, flux, uncertainty=std), SkewLSF(), self.output * u.AA)
        good = ~result.mask
        power = {StdDevUncertainty: 1, VarianceUncertainty: 2, InverseVariance: -2}[kind]
        np.testing.assert_allclose(result.uncertainty.array[good], as_std.uncertainty.array[good] ** power, rtol=1e-12)
        bad = result.uncertainty.array[result.mask]
        assert bad.size
        assert np.all(bad == 0) if kind is InverseVariance else np.all(np.isnan(bad))

    def test_unit_of_the_uncertainty_is_converted(self):
        std = StdDevUncertainty(1e3 * self.sigma(), unit=u.mJy)
        flux = np.ones(self.axis.size)
        a = ll.convolve(spectrum(self.axis, flux, uncertainty=std), SkewLSF(), self.output * u.AA)
        plain = spectrum(self.axis, flux, uncertainty=StdDevUncertainty(self.sigma()))
        b = ll.convolve(plain, SkewLSF(), self.output * u.AA)
        np.testing.assert_allclose(a.uncertainty.array, b.uncertainty.array)
        assert a.uncertainty.unit == u.Jy

    def test_flux_is_the_same_with_and_without_variance(self):
        forest = LineForest(5000, 5160, n=30, sigma=0.6)
        plain = spectrum(self.axis, forest(self.axis))
        noisy = spectrum(self.axis, forest(self.axis), uncertainty=StdDevUncertainty(self.sigma()))
        a, b = (ll.convolve(s, SkewLSF(), self.output * u.AA).flux.value for s in (plain, noisy))
        assert np.max(np.abs(a - b)) < 2e-6

    def test_pixels_of_no_weight_are_bad(self):
        ivar = np.full(self.axis.size, 1e4)
        ivar[200] = 0.0
        flux = np.ones(self.axis.size)
        flux[200] = 1e6
        result = ll.convolve(
            spectrum(self.axis, flux, uncertainty=InverseVariance(ivar)), SkewLSF(), self.output * u.AA
        )
        assert np.nanmax(result.flux.value) < 1.01
        assert 3 < result.mask.sum() < 20

    def test_other_kinds_are_refused(self):
        from astropy.nddata import UnknownUncertainty

        given_ = spectrum(self.axis, np.ones(self.axis.size), uncertainty=UnknownUncertainty(self.sigma()))
        with pytest.raises(TypeError, match="must be one of StdDev"):
            ll.convolve(given_, SkewLSF(), self.output * u.AA)


class TestMasksAndEdges:
    axis = np.arange(5000.0, 5200.0, 0.05)
    output = np.arange(5030.0, 5170.0, 0.7)

    def test_masked_spike_does_not_spread(self):
        flux = np.ones(self.axis.size)
        clean = ll.convolve(spectrum(self.axis, flux), SkewLSF(), self.output * u.AA).flux.value
        flux[2000:2003] = 1000.0
        mask = np.zeros(flux.size, dtype=bool)
        mask[2000:2003] = True
        result = ll.convolve(spectrum(self.axis, flux, mask=mask), SkewLSF(), self.output * u.AA)
        good = ~result.mask
        assert np.max(np.abs(result.flux.value - clean)[good]) < 1e-5
        # the mask has grown by the kernel's core, not by its whole window
        grown = self.output[result.mask]
        assert grown.size
        assert np.all(np.abs(grown - 5100) < 6)
        assert np.any(np.abs(self.output[good] - 5100) < 9)

    def test_non_finite_flux_counts_as_masked(self):
        flux, mask = np.ones(self.axis.size), np.zeros(self.axis.size, dtype=bool)
        mask[2000:2003] = True
        by_mask = ll.convolve(spectrum(self.axis, flux, mask=mask), SkewLSF(), self.output * u.AA)
        for value in (np.nan, np.inf):
            flux[2000:2003] = value
            result = ll.convolve(spectrum(self.axis, flux), SkewLSF(), self.output * u.AA)
            np.testing.assert_array_equal(result.mask, by_mask.mask)
            np.testing.assert_array_equal(result.flux.value, by_mask.flux.value)

    def test_share_of_kernel_decides_between_renormalising_and_masking(self):
        """A pixel of width 0.05 A at the kernel's peak holds 0.05 h(0) of it: some 1.5 %."""
        lsf = SkewLSF()
        flux, mask = LineForest(5000, 5200, n=20, sigma=1.0)(self.axis), np.zeros(self.axis.size, dtype=bool)
        mask[2000] = True
        share = np.array(
            [0.05 * CubicSpline(lsf.offset, lsf.sample(np.array([5100.0]))[0])(w - 5100.0) for w in self.output]
        )
        share[np.abs(self.output - 5100) > 9] = 0.0
        for limit in (1e-4, 1e-3, 5e-3):
            result = ll.convolve(spectrum(self.axis, flux, mask=mask), lsf, self.output * u.AA, max_masked=limit)
            np.testing.assert_array_equal(result.mask, share > limit)
            assert np.all(np.isnan(result.flux.value[result.mask]))
        loose = ll.convolve(spectrum(self.axis, flux, mask=mask), lsf, self.output * u.AA, max_masked=0.05)
        plain = ll.convolve(spectrum(self.axis, flux), lsf, self.output * u.AA)
        assert not np.any(loose.mask)
        # renormalised: the continuum stays, for all that 1.5 % of the kernel is gone
        assert np.max(np.abs(loose.flux.value / plain.flux.value - 1)) < 0.015 * np.ptp(flux)

    @pytest.mark.parametrize("with_variance", [False, True])
    def test_edges_are_masked_not_filled_with_zeros(self, with_variance):
        """Fast path and matrix alike, at both ends of the template."""
        lsf = SkewLSF()
        output = np.arange(4950.0, 5250.0, 0.7)
        extra = {"uncertainty": StdDevUncertainty(np.full(self.axis.size, 0.1))} if with_variance else {}
        result = ll.convolve(spectrum(self.axis, np.ones(self.axis.size), **extra), lsf, output * u.AA)
        flux = result.flux.value
        assert np.array_equal(np.isnan(flux), result.mask)
        assert np.nanmin(flux) > 0.999
        assert np.nanmax(flux) < 1.001
        # how far in: where the tail that reaches beyond the end is a thousandth, by quadrature of the profile
        left = lsf.sample(np.array([4999.975]))[0]
        running = CubicSpline(lsf.offset, left).antiderivative()
        first = output[~result.mask][0]
        beyond = 1 - running(np.clip(first - 4999.975, lsf.offset[0], lsf.offset[-1]))
        before = 1 - running(np.clip(first - 0.7 - 4999.975, lsf.offset[0], lsf.offset[-1]))
        assert beyond <= 1e-3 < before
        right = lsf.sample(np.array([5199.975]))[0]
        running = CubicSpline(lsf.offset, right).antiderivative()
        last = output[~result.mask][-1]
        assert running(last - 5199.975) <= 1e-3 < running(last + 0.7 - 5199.975)

    def test_share_limits_of_zero_and_one(self):
        output = np.arange(4950.0, 5250.0, 0.7)
        flat = spectrum(self.axis, np.ones(self.axis.size))
        strict = ll.convolve(flat, SkewLSF(), output * u.AA, max_masked=0.0)
        loose = ll.convolve(flat, SkewLSF(), output * u.AA, max_masked=1.0)
        assert strict.mask.sum() > ll.convolve(flat, SkewLSF(), output * u.AA).mask.sum() > loose.mask.sum() > 0
        assert np.array_equal(np.isnan(loose.flux.value), loose.mask)

    def test_template_may_cover_part_of_the_output(self):
        result = ll.convolve(spectrum(self.axis, np.ones(self.axis.size)), SkewLSF(), LAMOST * u.AA)
        assert result.mask.sum() > 3600
        assert np.nanmax(np.abs(result.flux.value - 1)) < 1e-3

    def test_default_axis_is_the_templates_own(self):
        result = ll.convolve(spectrum(self.axis, np.ones(self.axis.size)), SkewLSF())
        assert result.flux.shape == self.axis.shape
        assert np.array_equal(result.spectral_axis.value, self.axis)
        assert result.mask[0]
        assert result.mask[-1]


class TestShapesUnitsMedia:
    axis = np.arange(5000.0, 5200.0, 0.05)
    output = np.arange(5030.0, 5170.0, 0.7)
    forest = LineForest(5000, 5200, n=40, sigma=0.3)

    def one(self, output=None, **kwargs):
        output = self.output * u.AA if output is None else output
        return ll.convolve(spectrum(self.axis, self.forest(self.axis)), SkewLSF(), output, **kwargs).flux.value

    @pytest.mark.parametrize("with_variance", [False, True])
    def test_rows_of_a_cube_are_convolved_one_by_one(self, with_variance):
        factor = np.arange(1, 7).reshape(2, 3, 1)
        flux = self.forest(self.axis) * factor
        extra = {"uncertainty": VarianceUncertainty(np.ones(flux.shape) * factor)} if with_variance else {}
        mask = np.zeros(flux.shape, dtype=bool)
        if with_variance:
            mask[1, 2, 2000:2010] = True
        cube = Spectrum(flux=flux * u.ct, spectral_axis=self.axis * u.AA, mask=mask, **extra)
        result = ll.convolve(cube, SkewLSF(), self.output * u.AA)
        assert result.flux.shape == (2, 3, self.output.size)
        assert result.flux.unit == u.ct
        np.testing.assert_allclose(result.flux.value[0], self.one() * factor[0], atol=2e-5)
        assert np.any(result.mask[1, 2]) == with_variance
        assert not np.any(result.mask[0])
        if with_variance:
            ratio = result.uncertainty.array[0, 2] / result.uncertainty.array[0, 0]
            np.testing.assert_allclose(ratio, 3.0)

    def test_many_rows_in_blocks_equal_one_at_a_time(self, monkeypatch):
        from lamost_lsf.convolution import fast

        rows = np.stack([self.forest(self.axis) * k for k in range(1, 6)])
        whole, _ = convolve_flux(rows, self.axis, self.output, SkewLSF(), "zero")
        monkeypatch.setattr(fast, "_BLOCK", 1)
        single, _ = convolve_flux(rows, self.axis, self.output, SkewLSF(), "zero")
        np.testing.assert_allclose(whole, single, rtol=1e-13)

    def test_float32_flux_is_worked_on_in_double_precision(self):
        flux = np.asarray(self.forest(self.axis), dtype=np.float32)
        result = ll.convolve(Spectrum(flux=flux * u.Jy, spectral_axis=self.axis * u.AA), SkewLSF(), self.output * u.AA)
        assert np.max(np.abs(result.flux.value - self.one())) < 1e-6

    def test_axes_in_nanometres_give_the_same(self):
        template = Spectrum(flux=self.forest(self.axis) * u.Jy, spectral_axis=self.axis / 10 * u.nm)
        result = ll.convolve(template, SkewLSF(), self.output / 1e4 * u.micron)
        assert result.spectral_axis.unit == u.micron
        assert np.max(np.abs(result.flux.value - self.one())) < 1e-9

    def test_spectrum_gives_axis_and_centre(self):
        observed = spectrum(self.output, np.ones(self.output.size), meta={"wavelength_center": "half"})
        template = spectrum(self.axis, self.forest(self.axis))
        result = ll.convolve(template, SkewLSF(), observed)
        assert result.meta["kernel_center"] == "half"
        np.testing.assert_array_equal(result.flux.value, self.one(center="half"))
        assert np.max(np.abs(result.flux.value - self.one())) > 1e-2

    def test_lsf_knows_its_centre_better_than_the_spectra(self):
        template = spectrum(self.axis, self.forest(self.axis), meta={"wavelength_center": "max"})
        result = ll.convolve(template, SkewLSF().centered("half"), self.output * u.AA)
        np.testing.assert_array_equal(result.flux.value, self.one(center="half"))

    def test_air_and_vacuum_are_never_mixed(self):
        air, air_out = vacuum_to_air(self.axis), vacuum_to_air(self.output)
        in_air = spectrum(air, self.forest(self.axis), meta={"wavelength_medium": "air"})
        # air template, air output (the default); and air template, vacuum output; and vacuum template, air output
        both = ll.convolve(in_air, SkewLSF(), air_out * u.AA)
        to_vacuum = ll.convolve(in_air, SkewLSF(), self.output * u.AA, output_medium="vacuum")
        to_air = ll.convolve(
            spectrum(self.axis, self.forest(self.axis)), SkewLSF(), air_out * u.AA, output_medium="air"
        )
        named = ll.convolve(spectrum(air, self.forest(self.axis)), SkewLSF(), air_out * u.AA, medium="air")
        for result, medium in ((both, "air"), (to_vacuum, "vacuum"), (to_air, "air"), (named, "air")):
            assert np.max(np.abs(result.flux.value - self.one())) < 1e-6
            assert result.meta["wavelength_medium"] == medium

    def test_mixing_the_media_shifts_by_80_km_per_s(self):
        air = vacuum_to_air(self.axis)
        mixed = ll.convolve(spectrum(air, self.forest(self.axis)), SkewLSF(), self.output * u.AA).flux.value
        velocity = np.linspace(60, 100, 81)
        inner = (self.output > 5045) & (self.output < 5155)
        rms = [
            np.std((mixed - self.one(self.output * doppler_factor(v) * u.AA))[inner]) for v in velocity
        ]  # fmt: skip
        assert velocity[np.argmin(rms)] == pytest.approx(83, abs=3)

    def test_meta_is_kept(self):
        template = spectrum(self.axis, self.forest(self.axis), meta={"name": "a star"})
        assert ll.convolve(template, SkewLSF(), self.output * u.AA).meta["name"] == "a star"
        assert template.meta == {"name": "a star"}


class TestBadInput:
    axis = np.arange(5000.0, 5200.0, 0.05)
    output = np.arange(5030.0, 5170.0, 0.7) * u.AA

    def flat(self, **kwargs):
        return spectrum(self.axis, np.ones(self.axis.size), **kwargs)

    def test_template_must_be_a_spectrum(self):
        with pytest.raises(TypeError, match="must be a specutils Spectrum, got ndarray"):
            ll.convolve(np.ones(5), SkewLSF(), self.output)

    def test_output_without_unit(self):
        with pytest.raises(TypeError, match="unit of length"):
            ll.convolve(self.flat(), SkewLSF(), self.output.value)

    @pytest.mark.parametrize(
        ("axis", "message"),
        [
            (np.arange(5170.0, 5030.0, -0.7), "spectral_axis descends"),
            (np.r_[5030.0, 5040.0, 5040.0, 5050.0], "does not increase strictly"),
            (np.r_[5030.0, np.nan, 5050.0], "1 non-finite"),
            (np.r_[5030.0, 5040.0, np.inf], "1 non-finite"),
            (np.r_[-1.0, 5040.0], "not positive"),
            (np.r_[5030.0], "at least 2 pixels"),
            (np.ones((2, 2)), "one-dimensional"),
        ],
    )
    def test_output_axes_that_are_none(self, axis, message):
        with pytest.raises(ValueError, match=message):
            ll.convolve(self.flat(), SkewLSF(), axis * u.AA)

    def test_descending_template(self):
        template = Spectrum(flux=np.ones(4000) * u.Jy, spectral_axis=self.axis[::-1] * u.AA)
        with pytest.raises(ValueError, match="template's axis descends"):
            ll.convolve(template, SkewLSF(), self.output)

    def test_frequency_axes(self):
        template = Spectrum(flux=np.ones(4) * u.Jy, spectral_axis=np.arange(4, 0, -1) * 100 * u.THz)
        with pytest.raises(TypeError, match="template's axis must have a unit of length"):
            ll.convolve(template, SkewLSF(), self.output)
        with pytest.raises(TypeError, match="spectral_axis must have a unit of length"):
            ll.convolve(self.flat(), SkewLSF(), [500, 600] * u.THz)

    def test_template_beside_the_output(self):
        with pytest.raises(ValueError, match="does not reach the output axis"):
            ll.convolve(self.flat(), SkewLSF(), np.arange(7000.0, 7100.0) * u.AA)

    def test_template_without_a_good_pixel(self):
        with pytest.raises(ValueError, match="every pixel of the template is masked"):
            ll.convolve(self.flat(mask=np.ones(self.axis.size, dtype=bool)), SkewLSF(), self.output)

    def test_unknown_options(self):
        with pytest.raises(ValueError, match="preserve must be 'flux' or 'continuum'"):
            ll.convolve(self.flat(), SkewLSF(), self.output, preserve="area")
        with pytest.raises(ValueError, match="max_masked must be between"):
            ll.convolve(self.flat(), SkewLSF(), self.output, max_masked=2)
        with pytest.raises(ValueError, match="'vacuum' or 'air'"):
            ll.convolve(self.flat(), SkewLSF(), self.output, medium="water")
        with pytest.raises(LookupError, match="halv"):
            ll.convolve(self.flat(), SkewLSF(), self.output, center="halv")

    def test_spectral_axis_must_be_last(self):
        cube = Spectrum(flux=np.ones((4000, 3)) * u.Jy, spectral_axis=self.axis * u.AA, spectral_axis_index=0)
        with pytest.raises(ValueError, match="must be the last axis of flux, it is axis 0 of 2"):
            ll.convolve(cube, SkewLSF(), self.output)

    def test_coarse_template_warns_and_keeps_the_continuum(self):
        axis = np.arange(5000.0, 5200.0, 2.5)
        with pytest.warns(SamplingWarning, match="coarse for a profile of width"):
            result = ll.convolve(spectrum(axis, np.ones(axis.size)), ConstantLSF(), self.output)
        assert np.nanmax(np.abs(result.flux.value - 1)) < 1e-12

    def test_lsf_that_is_not_defined_there(self):
        lsf = SkewLSF()
        lsf.wavelength_range = (5100.0, 9000.0)
        with pytest.raises(OutOfRangeError, match=r"5100\.00-9000\.00"):
            ll.convolve(self.flat(), lsf, self.output)
        # an arm is no licence to go beyond the arms' common range
        joined = ll.JoinedLSF([Segment(5100.0, 5150.0, SkewLSF()), Segment(5150.0, 9000.0, SkewLSF())])
        with pytest.raises(OutOfRangeError, match=r"5100\.00-9000\.00"):
            ll.convolve(self.flat(), joined, self.output)

    def test_lsf_that_cannot_be_tabulated_warns(self):
        class Noisy(SkewLSF):
            def _sample(self, wavelength):
                z = self.offset / (1.2 + 0.2 * np.sin(1e9 * np.asarray(wavelength)[:, None]))
                return np.exp(-0.5 * z * z)

        with pytest.warns(SamplingWarning, match="changes too fast with wavelength"):
            ll.convolve(self.flat(), Noisy(), self.output)
