"""Kernels: what a line looks like after astropy's and specutils' own convolution with them."""

import astropy.units as u
import numpy as np
import pytest
from astropy.convolution import Kernel1D, convolve, convolve_fft
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats
from specutils import Spectrum
from specutils.manipulation import convolution_smooth

from lamost_lsf import GaussianIP, InstrumentalProfile
from lamost_lsf.errors import SamplingWarning
from lamost_lsf.kernel import IPKernel, axis_sampling, kernel_from_samples

X = np.linspace(-6.0, 14.0, 801)
#: A strong tail to the red: mode -0.20, median 0.09, mean 0.30 A.
DENSITY = stats.exponnorm(1.5, loc=-0.9, scale=0.8)


@pytest.fixture(scope="module")
def ip():
    return InstrumentalProfile(X * u.AA, 3.0 * DENSITY.pdf(X), wavelength=5000 * u.AA)


# -- orientation and zero point ---------------------------------------------------------------------------------


def test_a_line_convolved_by_specutils_looks_like_the_profile(ip):
    axis = np.arange(4900, 5100.1, 0.4)
    flux = np.zeros(axis.size)
    line = 251  # pixel of 5000.4 A
    flux[line] = 1.0
    spectrum = Spectrum(flux=flux * u.Jy, spectral_axis=axis * u.AA)
    out = convolution_smooth(spectrum, ip.to_kernel(dispersion=0.4 * u.AA, center="zero")).flux.value
    expected = DENSITY.pdf(axis - axis[line]) * 0.4
    assert_allclose(out, expected, atol=2e-5)
    flipped = DENSITY.pdf(axis[line] - axis) * 0.4
    assert np.max(np.abs(out - flipped)) > 0.015


def test_astropy_convolve_agrees_with_the_convolution_integral(ip):
    step = 0.25
    axis = np.arange(4950, 5050.01, step)
    template = 1 - 0.8 * np.exp(-0.5 * ((axis - 5000.3) / 1.1) ** 2) - 0.3 * np.exp(-0.5 * ((axis - 5007) / 0.9) ** 2)
    kernel = ip.to_kernel(dispersion=step * u.AA, center="zero")

    def line(center, width, depth, w):
        # integral of a Gaussian line times the profile of each of its wavelengths
        return integrate.quad(
            lambda t: depth * np.exp(-0.5 * ((t - center) / width) ** 2) * DENSITY.pdf(w - t), w - 14, w + 6
        )[0]

    at = np.flatnonzero((axis > 4993) & (axis < 5015))[::4]
    truth = [1 - line(5000.3, 1.1, 0.8, axis[i]) - line(5007, 0.9, 0.3, axis[i]) for i in at]
    for smooth in (convolve, convolve_fft):
        assert_allclose(smooth(template, kernel, boundary="wrap")[at], truth, atol=1e-4)


@pytest.mark.parametrize("center", ["half", "centroid", "max", "zero"])
def test_the_chosen_centre_is_at_lag_zero(ip, center):
    # the centres of the analytic density, not of the samples
    mode = X[np.argmax(DENSITY.pdf(X))]
    grid = np.linspace(mode - 0.05, mode + 0.05, 20001)
    c = {"half": DENSITY.median(), "centroid": DENSITY.mean(), "max": grid[np.argmax(DENSITY.pdf(grid))], "zero": 0.0}
    kernel = ip.to_kernel(dispersion=0.5 * u.AA, center=center)
    lag = (np.arange(kernel.array.size) - kernel.array.size // 2) * 0.5
    expected = DENSITY.pdf(lag + c[center])
    expected[(lag + c[center] > 14) | (lag + c[center] < -6)] = 0
    assert_allclose(kernel.array, expected / expected.sum(), atol=5e-4)
    if center != "zero":
        wrong = DENSITY.pdf(lag - c[center])
        assert np.max(np.abs(kernel.array - wrong / wrong.sum())) > 5e-3


def test_half_puts_equal_flux_on_either_side(ip):
    kernel = ip.to_kernel(dispersion=0.01 * u.AA, center="half").array
    middle = kernel.size // 2
    assert_allclose(kernel[:middle].sum() + 0.5 * kernel[middle], 0.5, atol=1e-5)


def test_centre_none_is_the_recorded_one(ip):
    recorded = InstrumentalProfile(X * u.AA, ip.flux, meta={"wavelength_center": "half"})
    assert_array_equal(
        recorded.to_kernel(dispersion=1 * u.AA).array, ip.to_kernel(dispersion=1 * u.AA, center="half").array
    )
    assert recorded.to_kernel(dispersion=1 * u.AA).meta["center"] == "half"
    assert ip.to_kernel(dispersion=1 * u.AA).meta["center"] == "zero"

    def peak_sample(x, profile, *, error=None, mask=None):
        return x[np.argmax(profile)]

    by_callable = ip.to_kernel(dispersion=1 * u.AA, center=peak_sample)
    assert "peak_sample" in by_callable.meta["center"]


# -- form ----------------------------------------------------------------------------------------------------------


def test_it_is_an_astropy_kernel(ip):
    kernel = ip.to_kernel(dispersion=0.5 * u.AA)
    assert isinstance(kernel, Kernel1D)
    assert kernel.dimension == 1
    assert kernel.center == [kernel.array.size // 2]
    assert kernel.meta == {"center": "zero", "wavelength": 5000.0, "sampling": "linear", "step": 0.5}


@settings(deadline=None, max_examples=60)
@given(
    step=st.floats(0.05, 0.6),
    shift=st.floats(-2, 2),
    alpha=st.floats(-5, 5),
    scale=st.floats(1e-5, 1e5),
    log=st.booleans(),
)
def test_kernels_are_odd_of_unit_sum_and_reach_the_window(step, shift, alpha, scale, log):
    x = np.linspace(-8.335, 9.25, 600)
    ip = InstrumentalProfile(x * u.AA, scale * stats.skewnorm(alpha, shift, 1.3).pdf(x), wavelength=4000 * u.AA)
    if log:
        sampling = {"spectral_axis": 4000 * np.exp(np.arange(200) * step / 4000) * u.AA}
    else:
        sampling = {"dispersion": step * u.AA}
    kernel = ip.to_kernel(center="half", **sampling)
    n = kernel.array.size
    assert n % 2 == 1
    assert_allclose(kernel.array.sum(), 1.0, rtol=1e-12)
    assert (n // 2) * step > max(8.335 + shift, 9.25 - shift) - 2 * 1.3
    again = InstrumentalProfile(x * u.AA, ip.flux / scale, wavelength=4000 * u.AA).to_kernel(center="half", **sampling)
    assert_allclose(kernel.array, again.array, atol=1e-9)


def test_the_whole_window_is_kept_when_the_centre_is_off_the_middle():
    x = np.linspace(-2, 10, 400)
    ip = InstrumentalProfile(x * u.AA, stats.norm(8, 0.5).pdf(x) + 0.2 * stats.norm(0, 0.5).pdf(x))
    kernel = ip.to_kernel(dispersion=0.25 * u.AA, center="centroid")
    lag = (np.arange(kernel.array.size) - kernel.array.size // 2) * 0.25
    offset = lag + ip.center("centroid").value
    assert_allclose(kernel.array[np.abs(offset) < 3].sum(), 0.2 / 1.2, rtol=0.01)


# -- logarithmic axes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [3800.0, 5000.0, 8900.0])
def test_on_a_logarithmic_axis_the_kernel_is_the_profile_at_that_wavelength(ip, at):
    step = 1e-4 * np.log(10)  # LAMOST's
    axis = 3700 * np.exp(step * np.arange(3909))
    kernel = ip.to_kernel(spectral_axis=axis * u.AA, at=at * u.AA, center="zero")
    lag = np.arange(kernel.array.size) - kernel.array.size // 2
    response = DENSITY.pdf(at * np.exp(lag * step) - at)
    response[(at * np.exp(lag * step) - at > 14) | (at * np.exp(lag * step) - at < -6)] = 0
    assert_allclose(kernel.array, response / response.sum(), atol=2e-6)
    assert kernel.meta["sampling"] == "log"
    assert kernel.meta["wavelength"] == at


def test_convolution_on_a_logarithmic_axis_agrees_with_the_direct_integral(ip):
    step = 2e-5 * np.log(10)
    axis = 4950 * np.exp(step * np.arange(450))
    template = 1 - 0.8 * np.exp(-0.5 * ((axis - 5000.0) / 0.9) ** 2)
    spectrum = Spectrum(flux=template * u.one, spectral_axis=axis * u.AA)
    kernel = ip.to_kernel(spectral_axis=spectrum.spectral_axis, at=5000 * u.AA, center="zero")
    out = convolution_smooth(spectrum, kernel).flux.value
    at = np.flatnonzero(np.abs(axis - 5000) < 8)[::5]
    truth = [
        1
        - integrate.quad(
            lambda t, w=w: 0.8 * np.exp(-0.5 * ((t - 5000.0) / 0.9) ** 2) * DENSITY.pdf(w - t), w - 14, w + 6
        )[0]
        for w in axis[at]
    ]
    # one kernel for pixels of slightly different width: good to offset / wavelength
    assert_allclose(out[at], truth, atol=1e-3)


def test_at_is_the_profiles_own_wavelength_by_default(ip):
    axis = 4000 * np.exp(1e-4 * np.arange(100)) * u.AA
    at_it = ip.to_kernel(spectral_axis=axis, at=0.5 * u.um)
    assert_allclose(ip.to_kernel(spectral_axis=axis).array, at_it.array, atol=1e-12)
    unknown = InstrumentalProfile(X * u.AA, ip.flux)
    with pytest.raises(ValueError, match="pass at="):
        unknown.to_kernel(spectral_axis=axis)
    unknown.to_kernel(spectral_axis=np.arange(4000, 4100.0) * u.AA)


# -- axes ------------------------------------------------------------------------------------------


def test_sampling_is_found_from_the_axis():
    assert axis_sampling(np.arange(4000, 5000, 0.5) * u.AA) == ("linear", pytest.approx(0.5))
    assert axis_sampling(np.arange(400, 500, 0.05) * u.nm) == ("linear", pytest.approx(0.5))
    sampling, step = axis_sampling(10 ** (3.57 + 1e-4 * np.arange(3900)) * u.AA)
    assert sampling == "log"
    assert step == pytest.approx(1e-4 * np.log(10))


@pytest.mark.parametrize("step", [1e-4, 1e-5])  # LAMOST low and medium resolution
@pytest.mark.parametrize("unit", [u.AA, u.nm])
def test_float32_axes_are_uniform(step, unit):
    angstrom = (10 ** (3.69 + step * np.arange(3700)) * u.AA).to(unit)
    single = angstrom.value.astype(np.float32) * unit
    sampling, found = axis_sampling(single)
    assert sampling == "log"
    assert found == pytest.approx(step * np.log(10), rel=1e-5)
    linear = np.arange(8000, 9000, 0.11).astype(np.float32) * u.AA
    assert axis_sampling(linear)[0] == "linear"


def test_the_axis_of_a_real_spectrum_is_uniform(ip, data_dir):
    path = next((data_dir / "lamost" / "lrs_plate_sp03_dr7").glob("*.fits.gz"))
    spectrum = Spectrum.read(path)
    kernel = ip.to_kernel(spectral_axis=spectrum.spectral_axis, at=6500 * u.AA)
    assert kernel.meta["step"] == pytest.approx(1e-4 * np.log(10), rel=1e-6)


def _wobble(n=100):
    axis = np.arange(5000.0, 5000 + n)
    axis[40] += 0.01
    return axis


@pytest.mark.parametrize(
    ("axis", "match"),
    [
        (np.arange(5100, 5000, -1.0), "increase strictly"),
        (np.r_[5000, 5000, 5001], "increase strictly"),
        (np.r_[5000, np.nan, 5002], "non-finite"),
        (np.r_[-1.0, 0.0, 1.0], "not positive"),
        (np.r_[5000.0, 5001], "at least 3"),
        (np.ones((3, 3)), "one-dimensional"),
        (_wobble(), "departs by 0.01 and"),
        (5000 + np.cumsum(np.linspace(1, 1.3, 200)), "uniform neither"),
        (np.sqrt(np.linspace(25e6, 30e6, 100)), "lamost_lsf.convolve"),
    ],
)
def test_axes_that_are_not_uniform_are_refused(ip, axis, match):
    with pytest.raises(ValueError, match=match):
        ip.to_kernel(spectral_axis=axis * u.AA, at=5000 * u.AA)


def test_a_frequency_axis_is_refused(ip):
    with pytest.raises(TypeError, match="unit of length"):
        ip.to_kernel(spectral_axis=np.arange(100, 200) * u.GHz)
    with pytest.raises(TypeError, match="unit of length"):
        ip.to_kernel(spectral_axis=np.arange(100, 200))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, ValueError, "exactly one"),
        ({"dispersion": 1 * u.AA, "spectral_axis": np.arange(9) * u.AA}, ValueError, "exactly one"),
        ({"dispersion": 0 * u.AA}, ValueError, "positive length"),
        ({"dispersion": -1 * u.AA}, ValueError, "positive length"),
        ({"dispersion": np.nan * u.AA}, ValueError, "positive length"),
        ({"dispersion": 1.0}, TypeError, "unit of length"),
        ({"dispersion": 1 * u.AA, "at": [1, 2] * u.AA}, ValueError, "one wavelength"),
        ({"dispersion": 1 * u.AA, "at": -5 * u.AA}, ValueError, "positive and finite"),
        ({"dispersion": 1 * u.AA, "at": 5000.0}, TypeError, "unit of length"),
        ({"dispersion": 1 * u.AA, "center": "middle"}, LookupError, "middle"),
    ],
)
def test_bad_arguments_are_named(ip, arguments, error, match):
    with pytest.raises(error, match=match):
        ip.to_kernel(**arguments)


def test_profiles_without_a_kernel_are_refused(ip):
    pair = InstrumentalProfile(X * u.AA, [ip.flux, ip.flux])
    with pytest.raises(ValueError, match="index this array"):
        pair.to_kernel(dispersion=1 * u.AA)
    for flux, match in ((np.zeros_like(X), "no positive"), (np.full_like(X, np.nan), "non-finite")):
        with pytest.raises(ValueError, match=match):
            InstrumentalProfile(X * u.AA, flux).to_kernel(dispersion=1 * u.AA)
        with pytest.raises(ValueError, match="could not be determined"):
            InstrumentalProfile(X * u.AA, flux).to_kernel(dispersion=1 * u.AA, center="centroid")
    with pytest.raises(ValueError, match="outside the profile's window"):
        kernel_from_samples(X, ip.flux, zero=15.0, dispersion=1 * u.AA)
    with pytest.raises(ValueError, match="exactly one"):
        kernel_from_samples(X, ip.flux)


def test_pixels_too_coarse_for_the_profile_warn():
    narrow = GaussianIP(20000).profile(wavelength=5000 * u.AA)  # FWHM 0.25 A
    with pytest.warns(SamplingWarning, match="too coarse"):
        narrow.to_kernel(dispersion=0.5 * u.AA)
    narrow.to_kernel(dispersion=0.15 * u.AA)


def test_kernels_straight_from_a_model():
    model = GaussianIP(1800)
    kernel = model.kernel(wavelength=5400 * u.AA, dispersion=0.5 * u.AA, center="half")
    assert isinstance(kernel, IPKernel)
    sigma = 3.0 / 2.3548200450309493 / 0.5
    lag = np.arange(kernel.array.size) - kernel.array.size // 2
    assert_allclose(kernel.array, stats.norm(scale=sigma).pdf(lag), atol=1e-6)
    on_axis = model.kernel(
        wavelength=540 * u.nm, medium="air", spectral_axis=np.arange(5000, 6000) * u.AA, time=None, fiber=3
    )
    assert on_axis.meta["wavelength"] == pytest.approx(5401.5, abs=0.01)
