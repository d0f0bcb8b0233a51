"""New wavelengths for science spectra: from arcs before and after, from sky lines, from the IP itself."""

import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.modeling.models import Polynomial1D
from astropy.nddata import InverseVariance
from astropy.time import Time, TimeDelta
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from specutils import Spectrum

from lamost_lsf import InstrumentalProfile
from lamost_lsf.arcs import ArcExposure
from lamost_lsf.calibration import (
    ArcSeries,
    calibrate,
    center_difference,
    interpolate_solutions,
    recalibrate,
    shift_center,
    shift_solution,
)
from lamost_lsf.errors import CoverageWarning, FitWarning, OutOfRangeError
from lamost_lsf.instruments import get_instrument
from lamost_lsf.lsf import TabulatedLSF
from lamost_lsf.simulation import SimulatedIP, simulate_arc, simulate_sky
from lamost_lsf.wavelength import fit_wavelength_solution

RED = get_instrument("lamost-lrs-red")
WINDOW = np.array(RED.window) * u.AA
EVENING, MORNING = Time("2018-01-10T11:00"), Time("2018-01-10T21:00")
FIBERS = np.array([80, 120, 160])
DRIFT = 0.6  # Angstrom from evening to morning


@pytest.fixture(scope="module")
def ip():
    return SimulatedIP("red")


@pytest.fixture(scope="module")
def night(ip):
    """Arcs of the evening and the morning; the light moves by 0.6 A meanwhile."""
    return [
        simulate_arc(ip, EVENING, fiber=FIBERS, dead_fibers=0, seed=1),
        simulate_arc(ip, MORNING, fiber=FIBERS, dead_fibers=0, drift=DRIFT * u.AA, seed=2),
    ]


@pytest.fixture(scope="module")
def series(night):
    return ArcSeries(night[::-1], RED.lines, center="half", window=WINDOW)


def science(ip, time, drift, seed=7):
    return simulate_sky(ip, time, fiber=FIBERS, dead_fibers=0, drift=drift * u.AA, seed=seed)


def offset_from_truth(result, exposure, ip, center):
    """Mean over 6200-8400 A of the new scale less where centre X of a line would have it, by fibre (Angstrom)."""
    truth = exposure.meta["truth"]["wavelength"]
    w = np.arange(6200.0, 7400.0, 100.0)
    off = []
    for row, number in enumerate(FIBERS):
        profile = ip.profile(time=exposure.time, fiber=int(number), wavelength=w * u.AA)
        c = profile.center(center).to_value(u.AA)
        pixel = np.interp(w + c, truth[row], np.arange(truth.shape[1]))
        off.append(np.mean(np.interp(pixel, np.arange(truth.shape[1]), result.wavelength[row]) - w))
    return np.array(off)


# -- exposures -------------------------------------------------------------------------------------------------------


def test_nearest_and_interpolated(ip, night, series):
    """Half the night is half the drift: the arc nearest in time leaves it in, two arcs take it out."""
    assert_array_equal(series.time.mjd, np.sort(series.time.mjd))
    middle = EVENING + 0.4 * (MORNING - EVENING)
    target = science(ip, middle, 0.4 * DRIFT)
    nearest = recalibrate(target, series, center="half")
    between = recalibrate(target, series, center="half", method="interpolate")
    # the scale of the evening is 0.4 x 0.6 A behind the light
    assert_allclose(offset_from_truth(nearest, target, ip, "half"), 0.4 * DRIFT, atol=0.02)
    assert_allclose(offset_from_truth(between, target, ip, "half"), 0.0, atol=0.02)
    assert nearest.meta["wavelength_center"] == "half"
    assert [a["weight"] for a in between.meta["recalibration"]["arcs"]] == pytest.approx([0.6, 0.4])
    # nothing was resampled
    assert_array_equal(nearest.flux, ArcExposure.from_simulation(target).flux)


@pytest.mark.parametrize("center", ["half", "sersic", "gauss", "centroid", "max", "fourier"])
def test_sky_takes_the_drift_out(ip, center):
    """One arc and a drift of half an Angstrom since: sky lines, by the arc's own centre, remove it."""
    arc = simulate_arc(ip, EVENING, fiber=FIBERS, dead_fibers=0, seed=1)
    target = science(ip, EVENING + TimeDelta(3600, format="sec"), 0.5)
    new = recalibrate(target, arc, lines=RED.lines, center=center, sky=True, window=WINDOW)
    off = offset_from_truth(new, target, ip, center)
    assert np.max(np.abs(off)) < (0.15 if center == "max" else 0.05)
    assert min(new.meta["recalibration"]["sky_lines"]) >= 8
    assert_allclose(new.meta["recalibration"]["drift"], 0.5 / 0.82, atol=0.15 if center == "max" else 0.06)


def test_another_centre_for_the_sky_would_not_do(ip):
    """Arc by one definition, sky by another: the distance of the two stays in the scale."""
    arc = simulate_arc(ip, EVENING, fiber=FIBERS, dead_fibers=0, seed=1)
    target = science(ip, EVENING, 0.0)
    from lamost_lsf.calibration import measure_drift

    scale = calibrate(arc, RED.lines, center="centroid", window=WINDOW)
    same, _, _ = measure_drift(target, scale=scale, center="centroid").mean("velocity")
    other, _, _ = measure_drift(target, scale=scale, center="sersic").mean("velocity")
    assert abs(np.mean(same)) < 1.0
    assert abs(np.mean(other - same)) > 1.2


def test_beyond_the_arcs(ip, night, series):
    late = MORNING + TimeDelta(3600, format="sec")
    with pytest.warns(CoverageWarning, match="no arc after"):
        solution = series.solution(late, 120, "interpolate")
    assert solution(2000) == series.solution(MORNING, 120)(2000)


def test_spectrum_of_one_fibre(ip, night, series):
    target = science(ip, EVENING, 0.0)
    spectrum = Spectrum(
        target.flux[1] * u.ct, spectral_axis=np.arange(target.flux.shape[1]) * u.pix,
        uncertainty=InverseVariance(target.ivar[1] / u.ct**2), mask=target.mask[1],
        meta={"time": EVENING, "fiber": 120},
    )  # fmt: skip
    new = recalibrate(spectrum, series, sky=True)
    whole = recalibrate(target, series, sky=True)
    assert_allclose(new.spectral_axis.to_value(u.AA), whole.wavelength[1], atol=0.02)
    assert new.meta["wavelength_solution"].provenance["shift"]["lines"] >= 8
    assert new.meta["frame"] == "topocentric"
    assert np.all(new.flux == spectrum.flux)
    # a heliocentric velocity, as LAMOST's headers give it: w_detector = w_file (1 + v / c)
    moved = recalibrate(spectrum, series, velocity=30 * u.km / u.s)
    still = recalibrate(spectrum, series)
    ratio = still.spectral_axis / moved.spectral_axis
    assert_allclose(ratio.value, 1 + 30 / 299792.458, rtol=1e-12)
    # resampled only when asked: flux per pixel kept
    axis = np.arange(6500.0, 6900.0, 1.0) * u.AA
    resampled = recalibrate(spectrum, series, resample=axis)
    assert_allclose(resampled.spectral_axis.value, axis.value)
    assert "wavelength_solution" not in resampled.meta
    line = (axis.value > 6860) & (axis.value < 6870)
    native = (still.spectral_axis.value > 6860) & (still.spectral_axis.value < 6870)
    assert np.max(resampled.flux.value[line]) == pytest.approx(np.max(still.flux.value[native]), rel=0.1)


def test_no_sky_line_leaves_the_drift_and_says_so(ip, night, series):
    target = science(ip, EVENING, 0.0)
    flat = ArcExposure.from_simulation(target)
    from dataclasses import replace

    flat = replace(flat, flux=np.full_like(flat.flux, 100.0), ivar=np.full_like(flat.flux, 0.01))
    with pytest.warns(FitWarning, match="no sky line"):
        new = recalibrate(flat, series, sky=True)
    assert_allclose(new.wavelength, recalibrate(flat, series).wavelength)


# -- arithmetic of solutions -----------------------------------------------------------------------------------------


def solution(slope=1.0, start=5000.0, seed=0, model=None, center="half"):
    """Solution of a lamp on a detector of this start and dispersion."""
    rng = np.random.default_rng(seed)
    wavelength = np.array([5040.0, 5200, 5377, 5512, 5700, 5866, 5950])
    pixel = (wavelength - start) / slope - 1e-5 * (wavelength - start) ** 2
    options = {} if model is None else {"fitter": model}
    return fit_wavelength_solution(
        pixel + rng.normal(0, 0.01, pixel.size), wavelength * u.AA, degree=2, domain=(0, 999), center=center,
        error=0.01 * u.pix, **options,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1))
def test_interpolated_solution_is_linear_in_time(share):
    one, two = solution(), solution(slope=1.001, start=5000.3, seed=1)
    mixed = interpolate_solutions(one, two, share)
    pixel = np.linspace(0, 999, 50)
    assert_allclose(mixed(pixel).value, (1 - share) * one(pixel).value + share * two(pixel).value, atol=1e-9)
    # two arcs are better than one
    assert np.all(mixed.uncertainty(pixel) <= np.maximum(one.uncertainty(pixel), two.uncertainty(pixel)) * 1.0001)


def test_interpolating_curves_of_other_kinds(tmp_path):
    """A third party's curve has no coefficients to average: the curves themselves are."""

    def power(pixel, wavelength, *, error=None, degree=5, domain):
        return Polynomial1D(2, c0=0.0, c1=0.0, c2=0.0) + _fitted(pixel, wavelength)

    def _fitted(pixel, wavelength):
        c = np.polynomial.polynomial.polyfit(pixel, wavelength, 2)
        return Polynomial1D(2, c0=c[0], c1=c[1], c2=c[2])

    one, two = solution(model=power), solution(start=5001.0, seed=2, model=power)
    mixed = interpolate_solutions(one, two, 0.25)
    pixel = np.linspace(0, 999, 20)
    assert_allclose(mixed(pixel).value, 0.75 * one(pixel).value + 0.25 * two(pixel).value, atol=1e-8)
    assert mixed.covariance.shape[0] == 12
    moved = shift_solution(one, 0.7)
    assert_allclose(moved(pixel[1:-1]).value, one(pixel[1:-1] - 0.7).value, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(pixels=st.floats(-5, 5))
def test_shifted_solution(pixels):
    one = solution()
    moved = shift_solution(one, pixels)
    inner = np.linspace(10, 990, 30)
    assert_allclose(moved(inner).value, one(inner - pixels).value, atol=1e-9)
    assert_allclose(shift_solution(moved, -pixels)(inner).value, one(inner).value, atol=1e-9)
    assert_allclose(moved.lines["pixel"] - one.lines["pixel"], pixels, atol=1e-12)


def test_solutions_that_do_not_go_together():
    with pytest.raises(ValueError, match="different centres"):
        interpolate_solutions(solution(), solution(center="gauss"), 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        interpolate_solutions(solution(), solution(), 1.5)
    with pytest.raises(ValueError, match="finite"):
        shift_solution(solution(), np.nan)


# -- shift_center ----------------------------------------------------------------------------------------------------


def test_published_scale_of_another_centre(ip):
    """A pipeline's scale by Sersic centres becomes the scale that half-flux centres would have given."""
    arc = simulate_arc(ip, EVENING, fiber=[120], dead_fibers=0, seed=1)
    scales = {c: calibrate(arc, RED.lines, center=c, window=WINDOW)[0] for c in ("sersic", "half", "centroid")}
    lsf = ip.at(time=EVENING, fiber=120)
    pixel = np.arange(600, 2100)
    published = Spectrum(
        np.ones(pixel.size) * u.one, spectral_axis=scales["sersic"](pixel), meta={"wavelength_center": "sersic"}
    )
    for name in ("half", "centroid"):
        moved = shift_center(published, lsf, to=name)
        made = scales[name](pixel).to_value(u.AA)
        before = published.spectral_axis.to_value(u.AA) - made
        after = moved.spectral_axis.to_value(u.AA) - made
        assert np.sqrt(np.mean(after**2)) < 0.01
        assert np.max(np.abs(before)) > 3 * np.max(np.abs(after))
        assert moved.meta["wavelength_center"] == name
        assert moved.meta["wavelength_center_from"] == "sersic"


x = np.linspace(-8, 8, 321)


def skew_lsf(factor=0.3):
    """Two profiles whose skewness changes along the spectrum."""
    flux = [np.exp(-0.5 * x**2) + a * factor * np.exp(-0.5 * ((x - 2) / 1.2) ** 2) for a in (0.2, 0.6, 1.0, 1.4)]
    ip = InstrumentalProfile(x * u.AA, np.array(flux), wavelength=np.array([5000, 5500, 6000, 6500]) * u.AA)
    return TabulatedLSF(ip)


def test_difference_is_that_of_the_profiles_own_centres():
    lsf = skew_lsf()
    wavelength = np.array([5100.0, 5777.0, 6333.0]) * u.AA
    profile = lsf.profile(wavelength)
    expected = profile.center("centroid") - profile.center("max")
    found = center_difference(lsf, wavelength, to="centroid", from_="max")
    assert_allclose(found.value, expected.to_value(u.AA), atol=1e-4)
    # a red wing: the centroid is on the red side, and its scale reads smaller wavelengths at a given pixel
    assert np.all(found > 0.1 * u.AA)
    axis = np.linspace(5050, 6450, 300) * u.AA
    spectrum = Spectrum(np.ones(300) * u.one, spectral_axis=axis, meta={"wavelength_center": "max"})
    assert np.all(shift_center(spectrum, lsf, to="centroid").spectral_axis < axis)


@settings(max_examples=20, deadline=None)
@given(
    centers=st.lists(st.sampled_from(["half", "centroid", "gauss", "sersic", "max", "zero"]), min_size=3, max_size=3),
    factor=st.floats(0.0, 0.5),
)
def test_shifts_add_up_and_go_back(centers, factor):
    lsf = skew_lsf(factor)
    axis = np.linspace(5050, 6450, 60) * u.AA
    a, b, c = centers
    spectrum = Spectrum(np.ones(60) * u.one, spectral_axis=axis, meta={"wavelength_center": a})
    there = shift_center(spectrum, lsf, to=b)
    # to second order in c dc/dw: the shift is taken at the wavelength that the scale reads
    direct = shift_center(spectrum, lsf, to=c).spectral_axis.value
    assert_allclose(shift_center(there, lsf, to=c).spectral_axis.value, direct, atol=2e-3)
    assert_allclose(shift_center(there, lsf, to=a).spectral_axis.value, axis.value, atol=2e-3)


def test_units_medium_and_bad_input_of_shift_center():
    lsf = skew_lsf()
    axis = np.linspace(520, 640, 50) * u.nm
    meta = {"wavelength_center": "max"}
    spectrum = Spectrum(np.ones(50) * u.one, spectral_axis=axis, meta=meta)
    moved = shift_center(spectrum, lsf, to="half")
    assert moved.spectral_axis.unit == u.nm
    air = Spectrum(np.ones(50) * u.one, spectral_axis=axis, meta={**meta, "wavelength_medium": "air"})
    in_air = shift_center(air, lsf, to="half")
    assert_allclose((in_air.spectral_axis - axis).value, (moved.spectral_axis - axis).value, atol=1e-4)
    bare = Spectrum(np.ones(50) * u.one, spectral_axis=axis)
    with pytest.raises(ValueError, match="pass from_="):
        shift_center(bare, lsf, to="half")
    assert_allclose(shift_center(bare, lsf, to="half", from_="max").spectral_axis, moved.spectral_axis)
    with pytest.raises(ValueError, match="from_='gauss' was passed"):
        shift_center(spectrum, lsf, to="half", from_="gauss")
    with pytest.raises(OutOfRangeError):
        shift_center(Spectrum(np.ones(50) * u.one, spectral_axis=axis * 2, meta=meta), lsf, to="half")
    with pytest.raises(TypeError, match="specutils"):
        shift_center(axis, lsf, to="half")
    with pytest.raises(TypeError, match="wavelengths"):
        shift_center(Spectrum(np.ones(5) * u.one, spectral_axis=np.arange(1, 6) * u.GHz, meta=meta), lsf, to="half")
    with pytest.raises(LookupError, match="middle"):
        shift_center(spectrum, lsf, to="middle")


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_arcs(night, series):
    with pytest.raises(ValueError, match="no arcs"):
        ArcSeries([], RED.lines)
    with pytest.raises(ValueError, match="lines="):
        ArcSeries(night)
    with pytest.raises(TypeError, match="arc 0"):
        ArcSeries(["arc.fits"], RED.lines)
    with pytest.raises(ValueError, match="zero"):
        ArcSeries(night, RED.lines, center="zero")
    with pytest.raises(ValueError, match="was calibrated by the centre 'half'"):
        ArcSeries([(EVENING, solution())], center="gauss")
    with pytest.raises(ValueError, match="'half', 'gauss' is asked for"):
        recalibrate(night[0], series, center="gauss")
    with pytest.raises(TypeError, match="has no time"):
        ArcSeries([("2018-01-10", solution())])


def test_bad_spectra(night, series):
    pixels = np.arange(4096) * u.pix
    flux = np.ones(4096) * u.ct
    with pytest.raises(ValueError, match="when was"):
        recalibrate(Spectrum(flux, spectral_axis=pixels), series)
    with pytest.raises(ValueError, match="say which"):
        recalibrate(Spectrum(flux, spectral_axis=pixels), series, time=EVENING)
    with pytest.raises(LookupError, match="no fibre 7"):
        recalibrate(Spectrum(flux, spectral_axis=pixels), series, time=EVENING, fiber=7)
    with pytest.raises(ValueError, match="not the detector's pixels"):
        recalibrate(Spectrum(flux[:3909], spectral_axis=pixels[:3909]), series, time=EVENING, fiber=120)
    with pytest.raises(TypeError, match="Spectrum or an exposure"):
        recalibrate(np.ones(4096), series, time=EVENING)
    with pytest.raises(ValueError, match="nearest"):
        recalibrate(night[0], series, method="cubic")
    with pytest.raises(TypeError, match="velocity"):
        recalibrate(night[0], series, velocity=3.0)
    with pytest.raises(ValueError, match="single spectra"):
        recalibrate(night[0], series, resample=np.arange(10) * u.AA)


def test_arcs_are_calibrated_once(night, monkeypatch):
    import sys

    from lamost_lsf.calibration import recalibrate as _  # noqa: F401

    module = sys.modules["lamost_lsf.calibration.recalibrate"]
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return calibrate(*args, **kwargs)

    monkeypatch.setattr(module, "calibrate", counting)
    series = ArcSeries(night, RED.lines, window=WINDOW)
    assert not calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for minute in (10, 20, 30):
            series.solution(EVENING + TimeDelta(60.0 * minute, format="sec"), 120, "interpolate")
    assert len(calls) == 2
