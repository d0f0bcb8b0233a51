"""`ResolutionMatrix`: against other convolutions and real resolution matrices, and what it refuses."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from convolution_truth import ConstantLSF, LineForest, SkewLSF
from scipy import ndimage, sparse
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf.errors import OutOfRangeError, SamplingWarning
from lamost_lsf.lsf import Segment
from lamost_lsf.units import vacuum_to_air

AXIS = np.arange(5000.0, 5200.0, 0.05)
OUTPUT = np.arange(5030.0, 5170.0, 0.7)
FOREST = LineForest(5000, 5200, n=40, sigma=0.3)


@pytest.fixture(scope="module")
def matrix():
    return ll.ResolutionMatrix.from_lsf(SkewLSF(), AXIS * u.AA, OUTPUT * u.AA)


def test_constant_gaussian_agrees_with_scipy():
    sigma = 1.3
    offset = np.linspace(-8 * sigma, 8 * sigma, 601)
    profile = ll.InstrumentalProfile(offset * u.AA, np.exp(-0.5 * (offset / sigma) ** 2))
    resolution = ll.ResolutionMatrix.from_lsf(profile, AXIS * u.AA, AXIS * u.AA)
    flux = np.random.default_rng(3).uniform(0, 1, AXIS.size)
    truth = ndimage.gaussian_filter1d(flux, sigma / 0.05, truncate=8.0)
    inner = slice(220, -220)
    assert np.max(np.abs(resolution.apply(flux)[inner] - truth[inner])) < 1e-8


def test_a_profile_that_varies_with_wavelength_is_a_column_not_a_row():
    """The response to a line at w0 is the profile of w0, at all output pixels."""
    lsf = SkewLSF()
    resolution = ll.ResolutionMatrix.from_lsf(lsf, AXIS * u.AA, OUTPUT * u.AA)
    for pixel in (1000, 2000, 3000):
        flux = np.zeros(AXIS.size)
        flux[pixel] = 1.0
        expected = 0.05 * lsf.profile(AXIS[pixel] * u.AA)((OUTPUT - AXIS[pixel]) * u.AA)
        np.testing.assert_allclose(resolution.apply(flux), expected, atol=1e-9)


@pytest.mark.parametrize("arm", ["B", "R", "Z"])
def test_desi_resolution_matrix_is_reproduced_from_its_profiles(data_dir, arm):
    """A DESI column holds the profile of one true wavelength at the offsets of the pixels: observed minus true."""
    with fits.open(data_dir / "desi" / "coadd-4-80613-thru20210324.fits.gz") as file:
        diagonals = file[f"{arm}_RESOLUTION"].data[0].astype(float)
        wavelength = file[f"{arm}_WAVELENGTH"].data.astype(float)
        flux = file[f"{arm}_FLUX"].data[0].astype(float)
    n_diagonal, n = diagonals.shape
    half = n_diagonal // 2
    desi = sparse.dia_array((diagonals, np.arange(half, -half - 1, -1)), shape=(n, n)).tocsr()
    use = slice(1000, 1400)
    # diagonal k holds element (j - offset_k, j): observed minus true is -offset_k pixels. Zeros beyond its 11 pixels.
    step = wavelength[1] - wavelength[0]
    offset = np.arange(-half - 3, half + 4) * step
    profiles = np.pad(diagonals[:, use].T, ((0, 0), (3, 3)))
    lsf = ll.TabulatedLSF(
        ll.InstrumentalProfile(offset * u.AA, profiles, wavelength=wavelength[use] * u.AA), extrapolate=True
    )
    inner = slice(1050, 1350)
    with pytest.warns(SamplingWarning):  # DESI's pixels are coarse for its profiles, and its matrix is for those pixels
        ours = ll.ResolutionMatrix.from_lsf(lsf, wavelength[use] * u.AA, wavelength[inner] * u.AA)
    rng = np.random.default_rng(0)
    for spectrum in (flux, rng.normal(size=n), np.ones(n)):
        # unit area, which DESI's columns have to 1 %
        column_area = diagonals.sum(axis=0)
        theirs = (desi @ (spectrum / column_area))[inner]
        mine = ours.apply(spectrum[use])
        transposed = (desi.T @ (spectrum / column_area))[inner]
        scale = np.std(spectrum) + np.mean(np.abs(spectrum))
        assert np.max(np.abs(mine - theirs)) < 1e-3 * scale
        if spectrum is not flux and np.ptp(spectrum) > 0:
            assert np.max(np.abs(mine - transposed)) > 2 * np.max(np.abs(mine - theirs))


class TestApply:
    def test_arrays_quantities_and_spectra_agree(self, matrix):
        flux = FOREST(AXIS)
        plain = matrix.apply(flux)
        quantity = matrix.apply(flux * u.mJy)
        spectrum = matrix.apply(Spectrum(flux=flux * u.mJy, spectral_axis=AXIS * u.AA))
        assert isinstance(plain, np.ndarray)
        assert quantity.unit == u.mJy
        np.testing.assert_array_equal(quantity.value, plain)
        np.testing.assert_array_equal(spectrum.flux.value, plain)
        assert np.array_equal(spectrum.spectral_axis.value, OUTPUT)
        np.testing.assert_allclose(plain, matrix.matrix @ flux, rtol=1e-13)

    def test_is_linear_and_takes_stacks(self, matrix):
        rng = np.random.default_rng(1)
        stack = rng.normal(size=(2, 3, AXIS.size))
        result = matrix.apply(stack)
        assert result.shape == (2, 3, OUTPUT.size)
        np.testing.assert_allclose(result[1, 2], matrix.apply(stack[1, 2]), atol=1e-13)
        np.testing.assert_allclose(
            matrix.apply(2 * stack[0, 0] - stack[1, 1]), 2 * result[0, 0] - result[1, 1], atol=1e-13
        )

    def test_variance_of_one_bright_pixel_is_its_column_squared(self, matrix):
        std = np.zeros(AXIS.size)
        std[2000] = 3.0
        spectrum = Spectrum(
            flux=np.ones(AXIS.size) * u.one, spectral_axis=AXIS * u.AA, uncertainty=StdDevUncertainty(std)
        )
        column = SkewLSF().profile(AXIS[2000] * u.AA)((OUTPUT - AXIS[2000]) * u.AA)
        np.testing.assert_allclose(matrix.apply(spectrum).uncertainty.array, 3 * 0.05 * np.abs(column), atol=1e-9)

    def test_each_row_of_a_stack_has_its_own_mask(self, matrix):
        flux = np.stack([FOREST(AXIS)] * 3)
        mask = np.zeros(flux.shape, dtype=bool)
        mask[1, 2000:2004] = True
        result = matrix.apply(flux, mask=mask)
        assert np.isnan(result[1]).sum() > 3
        assert not np.any(np.isnan(result[[0, 2]]))
        # one mask for all
        assert np.array_equal(np.isnan(matrix.apply(flux, mask=mask[1])), np.isnan(result[[1, 1, 1]]))

    def test_masks_given_and_own_are_joined(self, matrix):
        own, given = np.zeros(AXIS.size, dtype=bool), np.zeros(AXIS.size, dtype=bool)
        own[1000], given[3000] = True, True
        spectrum = Spectrum(flux=FOREST(AXIS) * u.one, spectral_axis=AXIS * u.AA, mask=own)
        both = matrix.apply(spectrum, mask=given).mask
        near_own, near_given = np.abs(OUTPUT - AXIS[1000]) < 1, np.abs(OUTPUT - AXIS[3000]) < 1
        assert np.all(both[near_own])
        assert np.all(both[near_given])

    def test_negative_lobes_count_in_the_share_with_their_size(self):
        """Masked pixels on both sides of a zero of the kernel are lost, though their sum is nothing."""
        lsf = SkewLSF(wing=0.3)
        fine = np.arange(5090.0, 5110.0, 0.01)
        resolution = ll.ResolutionMatrix.from_lsf(lsf, AXIS * u.AA, fine * u.AA)
        mask = np.zeros(AXIS.size, dtype=bool)
        mask[1990:2010] = True
        bad = np.isnan(resolution.apply(np.ones(AXIS.size), mask=mask))
        row = resolution.matrix.toarray()
        share = np.abs(row[:, mask]).sum(axis=1) / np.abs(row).sum(axis=1)
        np.testing.assert_array_equal(bad, share > 1e-3)
        signed = np.abs(row[:, mask].sum(axis=1)) / row.sum(axis=1)
        assert np.any((signed > 1e-3) != bad)

    def test_join_of_arms_lies_in_one_matrix(self):
        arms = ll.JoinedLSF([Segment(0.0, 5100.013, SkewLSF()), Segment(5100.013, np.inf, SkewLSF(scale=1.5))])
        resolution = ll.ResolutionMatrix.from_lsf(arms, AXIS * u.AA, OUTPUT * u.AA)
        assert resolution.shape == (OUTPUT.size, AXIS.size)
        flux = FOREST(AXIS)
        convolved = ll.convolve(Spectrum(flux=flux * u.one, spectral_axis=AXIS * u.AA), arms, OUTPUT * u.AA)
        assert np.max(np.abs(resolution.apply(flux) - convolved.flux.value)) < 2e-6

    def test_air_axes_stay_air(self):
        air_in, air_out = vacuum_to_air(AXIS) * u.AA, vacuum_to_air(OUTPUT) * u.AA
        resolution = ll.ResolutionMatrix.from_lsf(SkewLSF(), air_in, air_out, medium="air")
        template = Spectrum(flux=FOREST(AXIS) * u.one, spectral_axis=air_in, meta={"wavelength_medium": "air"})
        result = resolution.apply(template)
        assert result.meta["wavelength_medium"] == "air"
        assert np.array_equal(result.spectral_axis.value, air_out.value)
        vacuum = ll.ResolutionMatrix.from_lsf(SkewLSF(), AXIS * u.AA, OUTPUT * u.AA).apply(FOREST(AXIS))
        assert np.max(np.abs(result.flux.value - vacuum)) < 1e-6

    def test_memory_of_apply_is_that_of_the_spectrum(self, matrix):
        """No copies of the matrix, whose entries are many times the spectrum's pixels."""
        import tracemalloc

        variance = Spectrum(
            flux=FOREST(AXIS) * u.one, spectral_axis=AXIS * u.AA, uncertainty=StdDevUncertainty(np.ones(AXIS.size))
        )
        mask = np.zeros(AXIS.size, dtype=bool)
        mask[2000] = True
        matrix.apply(variance, mask=mask)
        tracemalloc.start()
        matrix.apply(variance, mask=mask)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.5 * matrix.matrix.data.nbytes


class TestRefusals:
    def test_spectrum_on_another_axis(self, matrix):
        shifted = Spectrum(flux=np.ones(AXIS.size) * u.one, spectral_axis=(AXIS + 0.02) * u.AA)
        with pytest.raises(ValueError, match="is not the input axis"):
            matrix.apply(shifted)
        in_air = Spectrum(flux=np.ones(AXIS.size) * u.one, spectral_axis=AXIS * u.AA, meta={"wavelength_medium": "air"})
        with pytest.raises(ValueError, match="is not the input axis"):
            matrix.apply(in_air)

    def test_wrong_length_mask_and_options(self, matrix):
        with pytest.raises(ValueError, match="flux has 7 pixels"):
            matrix.apply(np.ones(7))
        with pytest.raises(ValueError, match="flux has 0 pixels"):
            matrix.apply(1.0)
        with pytest.raises(ValueError, match=r"mask of shape \(7,\)"):
            matrix.apply(np.ones(AXIS.size), mask=np.ones(7, dtype=bool))
        with pytest.raises(ValueError, match="preserve must be"):
            matrix.apply(np.ones(AXIS.size), preserve="area")
        with pytest.raises(ValueError, match="max_masked must be"):
            matrix.apply(np.ones(AXIS.size), max_masked=-1)

    def test_axes(self):
        with pytest.raises(ValueError, match="input_axis descends"):
            ll.ResolutionMatrix.from_lsf(SkewLSF(), AXIS[::-1] * u.AA, OUTPUT * u.AA)
        with pytest.raises(TypeError, match="output_axis must have a unit of length"):
            ll.ResolutionMatrix.from_lsf(SkewLSF(), AXIS * u.AA, OUTPUT * u.THz)
        with pytest.raises(ValueError, match="does not reach the output axis"):
            ll.ResolutionMatrix.from_lsf(SkewLSF(), AXIS * u.AA, (OUTPUT + 1000) * u.AA)
        with pytest.raises(ValueError, match="'vacuum' or 'air'"):
            ll.ResolutionMatrix.from_lsf(SkewLSF(), AXIS * u.AA, OUTPUT * u.AA, medium="water")

    def test_lsf_out_of_range(self):
        lsf = ConstantLSF()
        lsf.wavelength_range = (5100.0, 6000.0)
        with pytest.raises(OutOfRangeError):
            ll.ResolutionMatrix.from_lsf(lsf, AXIS * u.AA, OUTPUT * u.AA)

    def test_repr_says_what_it_is(self, matrix):
        assert repr(matrix).startswith("<ResolutionMatrix 200 x 4000, ")
        assert "centre 'zero'" in repr(matrix)
