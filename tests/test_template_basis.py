"""`IPBasis` and `TemplateBasis`: one convolution for a family of LSFs, held to the scatter integral."""

import astropy.units as u
import numpy as np
import pytest
from convolution_truth import ConstantLSF, LineForest, SkewLSF, scatter_integral
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf.convolution.basis import multiply_add
from lamost_lsf.errors import OutOfRangeError, SamplingWarning
from lamost_lsf.lsf import Segment
from lamost_lsf.units import doppler_factor, vacuum_to_air

AXIS = np.arange(4800.0, 5500.0, 0.02)
OUTPUT = 10 ** (np.arange(36910, 37280) * 1e-4)  # 4910-5346 A, LAMOST's pixels
RANGE = (4900.0, 5400.0)
FOREST = LineForest(4800, 5500, n=60)
#: What the grid may cost beyond the residual.
GRID = 2e-6


@pytest.fixture(scope="module")
def template():
    return Spectrum(flux=FOREST(AXIS) * u.one, spectral_axis=AXIS * u.AA)


@pytest.fixture(scope="module")
def family():
    """Widths and asymmetries as fibres and nights have them."""
    return [SkewLSF(scale=s, skew=k) for s in np.linspace(0.9, 1.1, 6) for k in np.linspace(0.5, 1.5, 6)]


@pytest.fixture(scope="module")
def basis(family):
    return ll.IPBasis.from_lsfs(family, RANGE)


@pytest.fixture(scope="module")
def bound(template, basis):
    return ll.TemplateBasis(template, basis).on_axis(OUTPUT * u.AA)


class TestScatterIntegral:
    def test_flux_is_the_direct_integral(self, basis, bound):
        lsf = SkewLSF(scale=1.03, skew=0.8)  # not one of those that the basis was made from
        flux = bound.apply(basis.coefficients(lsf))[0]
        pick = np.arange(5, OUTPUT.size, 15)
        assert np.max(np.abs(flux[pick] - scatter_integral(FOREST, lsf, OUTPUT[pick]))) < 1e-5

    def test_derivative_term_is_what_makes_it_so(self, basis, bound):
        lsf = SkewLSF(scale=1.03, skew=0.8)
        coefficients = basis.coefficients(lsf)
        pick = np.arange(5, OUTPUT.size, 15)
        truth = scatter_integral(FOREST, lsf, OUTPUT[pick])
        without = bound.values.copy()
        without[..., basis.n_components :] = 0.0
        out = np.empty(without.shape[:2])
        multiply_add(
            without, bound.log_wavelength, coefficients.values[0], coefficients.log_start[0],
            1.0 / coefficients.log_step[0], 0, OUTPUT.size, out,
        )  # fmt: skip
        assert np.max(np.abs(out[0, pick] - truth)) > 5e-5

    def test_one_basis_serves_many_lsfs_and_says_how_well(self, template, basis, bound):
        matrices = []
        for scale, skew in ((0.93, 1.4), (1.0, 1.0), (1.09, 0.55), (1.3, 1.0), (1.0, 2.5), (0.85, 0.2)):
            lsf = SkewLSF(scale=scale, skew=skew)
            coefficients = basis.coefficients(lsf)
            exact = ll.convolve(template, lsf, OUTPUT * u.AA).flux.value
            error = np.max(np.abs(bound.apply(coefficients)[0] - exact))
            assert error <= coefficients.residual + GRID
            matrices.append((coefficients.residual, error))
        inside, outside = np.array(matrices[:3]), np.array(matrices[3:])
        assert np.all(inside < 1e-5)
        # those beyond the family are worse, and the residual owns up to it
        assert outside[:, 0].max() > 10 * inside[:, 0].max()

    @pytest.mark.parametrize("limit", [2, 4, 6])
    def test_residual_bounds_the_error_of_a_basis_cut_short(self, template, family, limit):
        small = ll.IPBasis.from_lsfs(family, RANGE, max_components=limit)
        assert small.n_components == limit
        coefficients = small.coefficients(family[3])
        flux = ll.TemplateBasis(template, small).on_axis(OUTPUT * u.AA).apply(coefficients)[0]
        error = np.max(np.abs(flux - ll.convolve(template, family[3], OUTPUT * u.AA).flux.value))
        assert GRID < error <= coefficients.residual + GRID

    def test_residual_owns_up_to_an_lsf_that_varies_too_fast(self, template):
        """Smooth enough for few nodes when the basis was made; this one is not."""

        class Wavy(SkewLSF):
            def _sample(self, wavelength):
                w = np.asarray(wavelength)[:, None]
                sigma = 1.2 + 0.1 * np.sin(w / 8.0)
                return np.exp(-0.5 * (self.offset / sigma) ** 2)

        calm = [ConstantLSF(offset=np.linspace(-9.2, 9.8, 600), sigma=s, skew=0.0) for s in np.linspace(1.0, 1.4, 9)]
        basis = ll.IPBasis.from_lsfs(calm, RANGE)
        coefficients = basis.coefficients(Wavy())
        flux = ll.TemplateBasis(template, basis).on_axis(OUTPUT * u.AA).apply(coefficients)[0]
        error = np.max(np.abs(flux - ll.convolve(template, Wavy(), OUTPUT * u.AA).flux.value))
        assert 1e-4 < error <= coefficients.residual + GRID

    def test_centre_is_put_at_lag_zero(self, template):
        lsf = SkewLSF()
        basis = ll.IPBasis.from_lsfs(lsf, RANGE, center="half")
        coefficients = basis.coefficients(lsf)  # the basis remembers its centre
        assert coefficients.center == "half"
        flux = ll.TemplateBasis(template, basis).on_axis(OUTPUT * u.AA).apply(coefficients)[0]
        exact = ll.convolve(template, lsf, OUTPUT * u.AA, center="half").flux.value
        assert np.max(np.abs(flux - exact)) < 1e-5
        assert np.max(np.abs(flux - ll.convolve(template, lsf, OUTPUT * u.AA).flux.value)) > 1e-2

    def test_arms_use_their_own_profiles_away_from_the_join(self, template):
        join = 5100.0
        arms = ll.JoinedLSF([Segment(0.0, join, SkewLSF()), Segment(join, np.inf, SkewLSF(scale=1.3))])
        basis = ll.IPBasis.from_lsfs(arms, RANGE)
        coefficients = basis.coefficients(arms)
        assert coefficients.boundaries == (join,)
        flux = ll.TemplateBasis(template, basis).on_axis(OUTPUT * u.AA).apply(coefficients)[0]
        error = np.abs(flux - ll.convolve(template, arms, OUTPUT * u.AA).flux.value)
        away = np.abs(OUTPUT - join) > 10
        assert np.max(error[away]) < 1e-5
        assert np.max(error[~away]) > 1e-4  # documented: within one profile of the join the arm of the pixel is used


class TestDopplerShift:
    @pytest.mark.parametrize("velocity", [-450.0, 30.0, 499.0])
    def test_shifted_template_equals_a_template_shifted_before(self, template, basis, velocity):
        lsf = SkewLSF(scale=1.03, skew=0.8)
        kept = ll.TemplateBasis(template, basis, max_velocity=500 * u.km / u.s)
        flux = kept.on_axis(OUTPUT * u.AA, velocity=velocity).apply(basis.coefficients(lsf))[0]
        moved = Spectrum(flux=template.flux, spectral_axis=AXIS * doppler_factor(velocity) * u.AA)
        exact = ll.convolve(moved, lsf, OUTPUT * u.AA).flux.value
        assert np.max(np.abs(flux - exact)) < 1e-5
        other_sign = kept.on_axis(OUTPUT * u.AA, velocity=-velocity).apply(basis.coefficients(lsf))[0]
        assert np.max(np.abs(other_sign - exact)) > 1e-2

    def test_velocity_with_a_unit_and_beyond_the_grid(self, template, basis):
        kept = ll.TemplateBasis(template, basis, max_velocity=100.0)
        a = kept.on_axis(OUTPUT * u.AA, velocity=50.0)
        b = kept.on_axis(OUTPUT * u.AA, velocity=50_000 * u.m / u.s)
        np.testing.assert_allclose(a.values, b.values)
        # the axis itself is inside the basis's range, so some more than max_velocity can be had, but not this
        with pytest.raises(ValueError, match="larger max_velocity"):
            kept.on_axis(OUTPUT * u.AA, velocity=5e3)
        with pytest.raises(ValueError, match="less than that of light"):
            kept.on_axis(OUTPUT * u.AA, velocity=np.nan)


class TestTemplates:
    def test_several_at_once_equal_one_by_one(self, template, basis):
        other = Spectrum(flux=LineForest(4800, 5500, n=30, seed=7)(AXIS) * u.one, spectral_axis=AXIS * u.AA)
        both = ll.TemplateBasis([template, other], basis)
        assert both.n_templates == 2
        coefficients = basis.coefficients(SkewLSF())
        stacked = both.on_axis(OUTPUT * u.AA).apply(coefficients)
        for row, one in zip(stacked, (template, other), strict=True):
            single = ll.TemplateBasis(one, basis).on_axis(OUTPUT * u.AA).apply(coefficients)[0]
            np.testing.assert_allclose(row, single, rtol=1e-12)

    def test_air_template_and_air_axis(self, template, basis, bound):
        in_air = Spectrum(
            flux=template.flux, spectral_axis=vacuum_to_air(AXIS) * u.AA, meta={"wavelength_medium": "air"}
        )
        result = ll.TemplateBasis(in_air, basis).on_axis(vacuum_to_air(OUTPUT) * u.AA, medium="air")
        coefficients = basis.coefficients(SkewLSF())
        assert np.max(np.abs(result.apply(coefficients) - bound.apply(coefficients))) < 1e-6

    def test_pixels_whose_profile_leaves_the_template_are_nan(self, template, basis):
        """Never filled with zeros."""
        half = AXIS < 5200
        part = Spectrum(flux=template.flux[half], spectral_axis=AXIS[half] * u.AA)
        kept = ll.TemplateBasis(part, basis)
        flux = kept.on_axis(OUTPUT * u.AA).apply(basis.coefficients(SkewLSF()))[0]
        whole = ll.TemplateBasis(template, basis).on_axis(OUTPUT * u.AA).apply(basis.coefficients(SkewLSF()))[0]
        good = np.isfinite(flux)
        np.testing.assert_allclose(flux[good], whole[good], atol=1e-9)
        # the window reaches 9.2 A below a line and 9.8 A above it
        last = OUTPUT[good][-1]
        assert 5200 - 9.2 - 3 < last <= 5200 - 9.2
        assert kept.coverage[0][1] == pytest.approx(5199.98)
        assert np.all(good[last >= OUTPUT])

    def test_coarse_template_warns(self, basis):
        axis = np.arange(4800.0, 5500.0, 1.5)
        with pytest.warns(SamplingWarning, match="coarse for a profile"):
            ll.TemplateBasis(Spectrum(flux=np.ones(axis.size) * u.one, spectral_axis=axis * u.AA), basis)


class TestRefusals:
    def test_bases(self):
        with pytest.raises(ValueError, match="at least one LSF"):
            ll.IPBasis.from_lsfs([], RANGE)
        with pytest.raises(ValueError, match="two increasing wavelengths"):
            ll.IPBasis.from_lsfs(SkewLSF(), (5000.0, 4000.0))
        with pytest.raises(ValueError, match="tolerance must be positive"):
            ll.IPBasis.from_lsfs(SkewLSF(), RANGE, tolerance=0.0)
        with pytest.raises(TypeError, match="must be an LSF"):
            ll.IPBasis.from_lsfs([1.2], RANGE)
        lsf = SkewLSF()
        lsf.wavelength_range = (5000.0, 5100.0)
        with pytest.raises(OutOfRangeError):
            ll.IPBasis.from_lsfs(lsf, RANGE * u.AA)

    def test_lsf_outside_the_basis(self, basis):
        with pytest.raises(ValueError, match="reaches further than the profiles"):
            basis.coefficients(SkewLSF(offset=np.linspace(-20, 20, 1200), scale=3.0))
        lsf = SkewLSF()
        lsf.wavelength_range = (5000.0, 5100.0)
        with pytest.raises(OutOfRangeError):
            basis.coefficients(lsf)

    def test_templates(self, template, basis):
        with pytest.raises(ValueError, match="at least one template"):
            ll.TemplateBasis([], basis)
        with pytest.raises(TypeError, match="must be specutils Spectrum"):
            ll.TemplateBasis([np.ones(5)], basis)
        with pytest.raises(ValueError, match="one spectrum, got flux of shape"):
            ll.TemplateBasis(Spectrum(flux=np.ones((2, AXIS.size)) * u.one, spectral_axis=AXIS * u.AA), basis)
        with pytest.raises(ValueError, match="does not reach the wavelengths"):
            ll.TemplateBasis(Spectrum(flux=template.flux, spectral_axis=(AXIS + 3000) * u.AA), basis)
        mask = np.zeros(AXIS.size, dtype=bool)
        mask[AXIS.size // 2] = True
        with pytest.raises(ValueError, match="masked or non-finite pixels"):
            ll.TemplateBasis(Spectrum(flux=template.flux, spectral_axis=AXIS * u.AA, mask=mask), basis)

    def test_axes_and_foreign_coefficients(self, template, basis, bound):
        kept = ll.TemplateBasis(template, basis)
        with pytest.raises(ValueError, match="leaves the basis's range"):
            kept.on_axis(np.arange(5390.0, 5410.0) * u.AA)
        with pytest.raises(ValueError, match="descends"):
            kept.on_axis(OUTPUT[::-1] * u.AA)
        other = ll.IPBasis.from_lsfs(SkewLSF(), RANGE, max_components=3)
        with pytest.raises(ValueError, match="of a basis of 3 components"):
            bound.apply(other.coefficients(SkewLSF()))

    def test_repr(self, basis):
        assert repr(basis) == f"<IPBasis of {basis.n_components} components, 4900-5400 A>"
