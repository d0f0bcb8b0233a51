"""`calibrate` against simulated arcs, whose truth is known, and against bad input."""

import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from astropy.time import Time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from specutils import Spectrum

from lamost_lsf.arcs import ArcExposure
from lamost_lsf.calibration import CalibrationFlag, ExposureCalibration, calibrate, find_arc_lines, identify_lines
from lamost_lsf.errors import FitWarning, PluginLookupError
from lamost_lsf.instruments import get_instrument
from lamost_lsf.lines import LineList
from lamost_lsf.simulation import SimulatedIP, arc_lines, simulate_arc
from lamost_lsf.wavelength import WavelengthSolution

TIME = Time("2017-01-10T15:00")
RED = get_instrument("lamost-lrs-red")
WINDOW = np.array(RED.window) * u.AA


@pytest.fixture(scope="module")
def red():
    """Red arc of twelve fibres whose published scales are wrong by up to 0.1 A."""
    return simulate_arc(
        SimulatedIP("red"), TIME, fiber=np.arange(100, 112), calibration_error=0.05 * u.AA, dead_fibers=0, seed=3
    )


# -- the truth ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", ["half", "sersic", "gauss", "centroid", "max", "fourier"])
def test_centre_of_the_profile_sits_at_the_true_wavelength(red, center):
    """A scale made with centre X puts the IP's own centre X at the line's wavelength: sign, half pixels and all.

    On the true scale a line at w0 has the profile h(w - w0), whose centre X is at w0 + c_X(w0). There the new scale
    must read w0, for wavelengths of lines and between them.
    """
    ip = SimulatedIP("red")
    result = calibrate(red, RED.lines, center=center, window=WINDOW)
    wavelength = np.arange(6000.0, 7450.0, 100.0)
    true_scale = red.meta["truth"]["wavelength"]
    shift, off = [], []
    for row, number in enumerate(result.fiber):
        c = ip.profile(time=TIME, fiber=int(number), wavelength=wavelength * u.AA).center(center).to_value(u.AA)
        pixel = np.interp(wavelength + c, true_scale[row], np.arange(true_scale.shape[1]))
        off.append((result[row](pixel).value - wavelength) / np.gradient(true_scale[row]).mean())
        shift.append(c / np.gradient(true_scale[row]).mean())
    limit = 0.06 if center == "max" else 0.02
    assert np.sqrt(np.mean(np.square(off))) < limit
    assert abs(np.mean(off)) < 0.5 * limit
    if center in ("centroid", "half"):
        # the test could tell: these centres are several times further from the scale's own zero
        assert np.sqrt(np.mean(np.square(shift))) > 3 * limit


def test_blue_arm_down_to_faint_lines(red):
    """Seven calibration lines do for degree 5 only with the lamp's faint ones, which must not spoil the result."""
    ip = SimulatedIP("blue")
    arc = simulate_arc(ip, TIME, fiber=np.arange(60, 66), dead_fibers=0, calibration_error=0.05 * u.AA, seed=5)
    blue = get_instrument("lamost-lrs-blue")
    listed = arc_lines("blue")
    lines = LineList.from_wavelengths(
        np.array([one.air for one in listed]) * u.AA,
        medium="air",
        species=np.array([one.species for one in listed]),
        intensity=np.array([one.intensity for one in listed]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # so few lines hardly support degree 5
        result = calibrate(arc, lines, center="half", window=np.array(blue.window) * u.AA)
    true_scale = arc.meta["truth"]["wavelength"]
    wavelength = blue.lines.vacuum[1:-1]
    for row, number in enumerate(result.fiber):
        c = ip.profile(time=TIME, fiber=int(number), wavelength=wavelength * u.AA).center("half").to_value(u.AA)
        pixel = np.interp(wavelength + c, true_scale[row], np.arange(true_scale.shape[1]))
        assert np.max(np.abs(result[row](pixel).value - wavelength)) < 0.03


def test_errors_of_the_lines_are_honest():
    """Many exposures of one fibre: the scatter of each line is what its error says."""
    ip = SimulatedIP("red")
    pixel, error = [], []
    for seed in range(24):
        arc = simulate_arc(ip, TIME, fiber=[120], dead_fibers=0, cosmic_rate=0.0, peak=2000.0, seed=seed)
        options = {"center": "half", "window": WINDOW, "error_floor": 0.0, "sigma_clip": None, "degree": 2}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # lines this faint say little about the degree
            lines = calibrate(arc, RED.lines, **options)[0].lines
        pixel.append(np.where(lines["used"], lines["pixel"], np.nan))
        # from Angstrom back to pixels
        error.append(lines["error"].value / 0.83)
    scatter, expected = np.nanstd(pixel, axis=0, ddof=1), np.nanmedian(error, axis=0)
    ratio = scatter / expected
    assert 0.6 < np.nanmedian(ratio) < 1.6


def test_a_rough_scale_several_pixels_off(red):
    """The arc is found where it is, not where it was expected."""
    good = calibrate(red, RED.lines, window=WINDOW)
    off = calibrate(red, RED.lines, window=WINDOW, rough=(red.wavelength + 3.0) * u.AA)
    for one, two in zip(good, off, strict=True):
        assert abs(one(2000) - two(2000)) < 0.003 * u.AA
    assert off[0].provenance["calibration"]["shift"] == pytest.approx(
        good[0].provenance["calibration"]["shift"] - 3.0 / 0.82, abs=0.2
    ) or off[0].provenance["calibration"]["shift"] == pytest.approx(
        good[0].provenance["calibration"]["shift"] + 3.0 / 0.82, abs=0.2
    )


def test_blind_exposure(red):
    """No wavelengths at all: the pattern of one fibre does for all."""
    neon = [one for one in arc_lines("red") if one.intensity > 0.05]
    lines = LineList.from_wavelengths(
        np.array([one.air for one in neon]) * u.AA,
        medium="air",
        species=np.array([one.species for one in neon]),
        intensity=np.array([one.intensity for one in neon]),
    )
    known = calibrate(red, lines)
    blind = calibrate(red.flux, lines, ivar=red.ivar, mask=red.mask)
    assert isinstance(blind, ExposureCalibration)
    assert blind[0].provenance["calibration"]["blind"]["significance"] > 12
    for one, two in zip(known, blind, strict=True):
        assert abs(one(2000) - two(2000)) < 0.05 * u.AA


# -- exposures ------------------------------------------------------------------------------------------------------


def test_fibres_that_differ_are_flagged(red):
    """Lines wrongly placed in one fibre alone: its curve is not its neighbours'."""
    flux = np.array(red.flux)
    n = flux.shape[1]
    pixel = np.arange(n)
    # a fibre whose dispersion is bent by 3 pixels in the middle
    bent = pixel + 3.0 * (1 - ((pixel - n / 2) / (n / 2)) ** 2)
    flux[5] = np.interp(bent, pixel, flux[5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        result = calibrate(flux, RED.lines, rough=red.wavelength * u.AA, ivar=1 / (flux + 200.0))
    flagged = [i for i in range(len(result)) if result.flag[i] & CalibrationFlag.NOT_SMOOTH]
    assert flagged == [5]
    assert result.deviation[5] > 5 * np.median(result.deviation)


def test_a_dead_fibre_costs_the_others_nothing(red):
    flux = np.array(red.flux)
    flux[3] = 5.0
    mask = np.array(red.mask)
    mask[7] = True
    with pytest.warns(FitWarning, match="2 of 12 spectra have no wavelength solution"):
        result = calibrate(flux, RED.lines, rough=red.wavelength * u.AA, ivar=red.ivar, mask=mask)
    assert [i for i, s in enumerate(result) if s is None] == [3, 7]
    assert result.flag[3] == result.flag[7] == CalibrationFlag.FAILED
    assert "bad" in result.reason[7]
    assert result.reason[3]
    table = result.to_table()
    assert len(table) == 12
    assert np.isnan(table["rms"][3])
    assert np.isfinite(table["rms"][4])
    assert np.all(np.isnan(result.wavelength()[3]))
    assert np.all(np.isfinite(result.wavelength()[4]))
    with pytest.raises(LookupError, match="no solution"):
        result.for_fiber(4)
    # and an exposure keeps a fibre that failed, masked
    exposure = ArcExposure.from_simulation(red)
    with pytest.warns(FitWarning):
        dead = calibrate(
            ArcExposure.from_arrays(
                flux, np.array(red.ivar), red.wavelength * u.AA, medium="vacuum", mask=mask, time=TIME,
                fiber=red.meta["fiber"], arm="red",
            ),
            RED.lines,
        )  # fmt: skip
    applied = dead.apply(exposure)
    assert np.all(applied.mask[3])
    assert not np.all(applied.mask[4])
    assert applied.meta["wavelength_center"] == "half"


def test_line_table_shows_a_wrong_wavelength(red):
    """A line listed 0.3 A off has the same residual in every fibre, and is rejected in every fibre."""
    vacuum = np.array(RED.lines.vacuum)
    vacuum[5] += 0.3
    lines = LineList.from_wavelengths(vacuum * u.AA, medium="vacuum", species=RED.lines.species)
    result = calibrate(red, lines, window=WINDOW)
    assert result.line_table()["n_used"][5] == 0
    assert result.line_table()["n_used"][4] == len(result)
    residual = [s.lines["residual"][5].value for s in result]
    assert_allclose(residual, 0.3, atol=0.05)


# -- what becomes of bad lines ----------------------------------------------------------------------------------------


def comb(centers, n=1000, sigma=1.6, height=2000.0, seed=0, background=50.0):
    """Counts with lines of one shape, and their inverse variance."""
    pixel = np.arange(n)
    heights = np.broadcast_to(height, len(centers))
    flux = background + sum(
        h * np.exp(-0.5 * ((pixel - c) / sigma) ** 2) for c, h in zip(centers, heights, strict=True)
    )
    ivar = 1.0 / (flux + 25.0)
    return np.random.default_rng(seed).normal(flux, np.sqrt(flux + 25.0)), ivar


CENTERS = np.array([31.2, 88.7, 140.1, 222.9, 301.4, 377.7, 462.0, 540.5, 633.3, 700.8, 795.1, 871.6, 960.3])


def scale(pixel):
    return 5000.0 + 1.2 * np.asarray(pixel) + 2e-5 * np.asarray(pixel) ** 2


LINES = LineList.from_wavelengths(scale(CENTERS) * u.AA, medium="vacuum")


def test_reasons():
    """Saturated, blended, masked and missing lines say so; the others carry on."""
    flux, ivar = comb(CENTERS)
    pixel = np.arange(flux.size)
    flux[np.abs(pixel - 301.4) < 2.5] = 3000.0  # a flat top
    flux += 1500 * np.exp(-0.5 * ((pixel - 466.5) / 1.6) ** 2)  # an unlisted neighbour, not separated
    mask = np.zeros(flux.size, dtype=bool)
    mask[632:635] = True
    flux[790:801] = 50.0
    solution = calibrate(flux, LINES, ivar=ivar, mask=mask, rough=scale, degree=2, saturation=3000.0, deblend=False)
    reason = dict(zip(np.round(CENTERS, 1), solution.lines["reason"], strict=True))
    assert reason[301.4] == "saturated"
    assert reason[633.3] == "bad pixels"
    assert reason[795.1] in ("no line found", "faint")
    assert reason[462.0] in ("blend", "too broad")
    assert solution.n_used == 9
    assert solution.rms(u.pix) < 0.05 * u.pix


def test_neighbours_are_taken_away():
    """A neighbour twice as bright at 1.7 FWHM: with it modelled, the line is where it is."""
    centers = np.concatenate([CENTERS, CENTERS[[2, 5, 8]] + 1.7 * 3.77])
    heights = np.concatenate([np.full(13, 2000.0), np.full(3, 4000.0)])
    flux, ivar = comb(centers, height=heights)
    for center in ("half", "centroid", "sersic"):
        with_it = calibrate(flux, LINES, ivar=ivar, rough=scale, degree=2, center=center)
        assert np.all(with_it.lines["used"][[2, 5, 8]])
        assert np.max(np.abs(with_it.lines["pixel"][[2, 5, 8]] - CENTERS[[2, 5, 8]])) < 0.08
    without = calibrate(flux, LINES, ivar=ivar, rough=scale, degree=2, center="centroid", deblend=False)
    off = np.abs(without.lines["pixel"] - CENTERS)[[2, 5, 8]]
    assert np.nanmax(off) > 0.08 or not np.all(without.lines["used"][[2, 5, 8]])


def test_listed_blends_are_rejected_unless_faint():
    vacuum = np.append(LINES.vacuum, LINES.vacuum[[3, 6]] + 1.0)
    order = np.argsort(vacuum)
    intensity = np.append(np.full(13, 100.0), [80.0, 1.0])[order]
    both = LineList.from_wavelengths(vacuum[order] * u.AA, medium="vacuum", intensity=intensity)
    flux, ivar = comb(CENTERS)
    solution = calibrate(flux, both, ivar=ivar, rough=scale, degree=2)
    used = {round(w, 2) for w in solution.lines["wavelength"].value[solution.lines["used"]]}
    assert round(LINES.vacuum[6], 2) in used
    assert round(LINES.vacuum[3], 2) not in used
    assert calibrate(flux, LINES, ivar=ivar, rough=scale, degree=2).n_used == 13


def test_degree_by_leave_one_out():
    """The lines are on a parabola: a straight line is told off, and "auto" finds the parabola."""
    flux, ivar = comb(CENTERS)
    assert calibrate(flux, LINES, ivar=ivar, rough=scale, degree="auto").degree == 2
    with pytest.warns(FitWarning, match="degree 1 predicts left-out lines worse than degree [23]"):
        calibrate(flux, LINES, ivar=ivar, rough=scale, degree=1, sigma_clip=None)
    errors = calibrate(flux, LINES, ivar=ivar, rough=scale, degree=2).provenance["calibration"]["leave_one_out"]
    assert errors["1"] > 20 * errors["2"]
    assert errors["4"] >= 0.9 * errors["2"]


def test_provenance_survives_a_file(tmp_path):
    flux, ivar = comb(CENTERS)
    solution = calibrate(flux, LINES, ivar=ivar, rough=scale, degree=2, center="sersic")
    for suffix in ("asdf", "ecsv"):
        solution.write(tmp_path / f"arc.{suffix}")
        again = WavelengthSolution.read(tmp_path / f"arc.{suffix}")
        assert again.center == "sersic"
        assert again.provenance["calibration"]["fwhm"] == solution.provenance["calibration"]["fwhm"]
        assert_allclose(again(np.arange(1000)).value, solution(np.arange(1000)).value, rtol=0, atol=0)


def test_spectrum_and_third_party_estimators():
    flux, ivar = comb(CENTERS)
    spectrum = Spectrum(
        flux * u.ct, spectral_axis=scale(np.arange(1000)) * u.AA, uncertainty=StdDevUncertainty(ivar**-0.5)
    )

    def brightest(x, profile, *, error=None, mask=None):
        weight = np.clip(profile, 0, None) ** 2
        return float(np.sum(x * weight) / np.sum(weight))

    def straight(pixel, wavelength, *, error=None, degree=5, domain):
        from lamost_lsf.wavelength import fit_polynomial

        return fit_polynomial(pixel, wavelength, error=error, degree=2, domain=domain)

    solution = calibrate(spectrum, LINES, center=brightest, fitter=straight, degree=2)
    assert solution.n_used == 13
    assert solution.rms(u.pix) < 0.05 * u.pix
    assert solution.fitter.endswith("straight")
    assert solution.center.endswith("brightest")


# -- invariants -------------------------------------------------------------------------------------------------------

_FAST = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_FAST
@given(shift=st.integers(-8, 8), factor=st.floats(0.01, 100.0), center=st.sampled_from(["half", "gauss", "centroid"]))
def test_shift_and_scale(shift, factor, center):
    """Rolled by whole pixels the solution rolls along; counts in other units change nothing."""
    flux, ivar = comb(CENTERS)
    one = calibrate(flux, LINES, ivar=ivar, rough=scale, degree=2, center=center)
    two = calibrate(
        np.roll(flux, shift) * factor, LINES, ivar=ivar / factor**2, rough=lambda p: scale(np.asarray(p) - shift),
        degree=2, center=center,
    )  # fmt: skip
    pixel = np.linspace(50, 900, 7)
    assert_allclose(two(pixel + shift).value, one(pixel).value, atol=5e-3)


@_FAST
@given(center=st.sampled_from(["half", "gauss", "centroid", "sersic"]))
def test_mirrored_detector(center):
    """Read out backwards, symmetric or not: the same wavelengths at the mirrored pixels."""
    flux, ivar = comb(CENTERS)
    one = calibrate(flux, LINES, ivar=ivar, rough=scale, degree=2, center=center)
    two = calibrate(
        flux[::-1], LINES, ivar=ivar[::-1], rough=lambda p: scale(999 - np.asarray(p)), degree=2, center=center
    )
    pixel = np.linspace(50, 900, 7)
    assert_allclose(two(999 - pixel).value, one(pixel).value, atol=5e-3)


@settings(_FAST, max_examples=6)
@given(
    dispersion=st.floats(0.3, 4.0), start=st.floats(3500, 7000), bend=st.floats(-0.06, 0.06), seed=st.integers(0, 10**6)
)
def test_blind_on_random_instruments(dispersion, start, bend, seed):
    """Random lines, random dispersion: what is found is right; not finding it is allowed now and then."""
    rng = np.random.default_rng(seed)
    n = 1500
    x = np.arange(n)

    def true(p):
        t = (p - 750) / 750
        return start + dispersion * (p + 750 * bend * t**2)

    low, high = np.sort(true(np.array([0.0, n - 1.0])))
    vacuum = np.sort(rng.uniform(low - 500, high + 500, 60))
    pixel = np.interp(vacuum, true(x), x, left=-1, right=-1)
    on = (pixel > 10) & (pixel < n - 10)
    flux = np.full(n, 20.0)
    for p in pixel[on]:
        flux += rng.lognormal(6, 1) * np.exp(-0.5 * ((x - p) / 1.5) ** 2)
    peaks = find_arc_lines(rng.normal(flux, np.sqrt(flux + 9)), ivar=1 / (flux + 9))
    lines = LineList.from_wavelengths(vacuum * u.AA, medium="vacuum")
    try:
        found = identify_lines(peaks, lines, n_pix=n)
    except ValueError:
        assert np.count_nonzero(on) < 15
        return
    inner = pixel[on][2:-2]
    assert np.median(np.abs(found(inner) - true(inner))) < 2.0 * dispersion


# -- bad input --------------------------------------------------------------------------------------------------------


def test_zero_is_refused():
    flux, ivar = comb(CENTERS)
    for name in ("zero", "Zero"):
        with pytest.raises(ValueError, match='center="zero" cannot calibrate'):
            calibrate(flux, LINES, ivar=ivar, rough=scale, center=name)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"center": "middle"}, PluginLookupError, "middle"),
        ({"fitter": "spline7"}, PluginLookupError, "spline7"),
        ({"degree": -1}, ValueError, "degree"),
        ({"degree": "best"}, ValueError, "auto"),
        ({"blends": "maybe"}, ValueError, "blends"),
        ({"min_snr": 0}, ValueError, "min_snr"),
        ({"fwhm": -2.0}, ValueError, "fwhm"),
        ({"max_shift": np.nan}, ValueError, "max_shift"),
        ({"error_floor": -1.0}, ValueError, "error_floor"),
        ({"window": (-5, 5)}, TypeError, "window"),
        ({"window": (1, 5) * u.pix}, ValueError, "window"),
        ({"window": (-1, 1) * u.pix}, ValueError, "3 pixels"),
        ({"rough": np.linspace(5000, 6000, 1000)}, TypeError, "rough"),
        ({"rough": np.linspace(5000, 6000, 10) * u.AA}, ValueError, "rough"),
        ({"rough": np.sin(np.arange(1000)) * u.AA + 5000 * u.AA}, ValueError, "only increase"),
        ({"rough": scale(np.arange(1000)) * 2 * u.AA}, ValueError, "no listed line lies on"),
        ({"lines": [5000.0, 6000.0]}, TypeError, "LineList"),
        ({"lines": [5000.0, 6000.0] * u.AA}, ValueError, "medium"),
        ({"lines": LINES, "medium": "air"}, ValueError, "medium"),
        ({"lines": LINES[:3]}, ValueError, "degree 5 takes at least 7"),
        ({"arc": np.full(1000, np.nan)}, ValueError, "no good pixel"),
        ({"arc": np.zeros(1000)}, ValueError, "no line stands out|noise"),
        ({"arc": np.zeros(5)}, ValueError, "at least 16 pixels"),
        ({"arc": "arc.fits"}, TypeError, "arc must be"),
        ({"ivar": np.ones(7)}, ValueError, "ivar must have the shape"),
    ],
)
def test_bad_arguments(changes, error, match):
    flux, ivar = comb(CENTERS)
    arguments = {"arc": flux, "lines": LINES, "ivar": ivar, "rough": scale, **changes}
    if "arc" in changes:
        arguments["ivar"] = None
    with pytest.raises(error, match=match):
        calibrate(arguments.pop("arc"), arguments.pop("lines"), **arguments)


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"wavelength_range": (6000, 5000) * u.AA}, "increasing"),
        ({"wavelength_range": (1, 2) * u.s}, "length"),
        ({"dispersion_range": (1, 2) * u.AA}, "dispersion_range"),
    ],
)
def test_bad_limits_of_the_search(limits, match):
    flux, _ = comb(CENTERS)
    with pytest.raises((ValueError, TypeError), match=match):
        calibrate(flux, LINES, **limits)


def test_peaks_of_nothing():
    rng = np.random.default_rng(0)
    assert len(find_arc_lines(rng.normal(100, 10, 2000), ivar=np.full(2000, 0.01), min_snr=6)) <= 3
    with pytest.raises(ValueError, match="bad"):
        find_arc_lines(np.where(np.arange(100) < 70, np.nan, 1.0))
