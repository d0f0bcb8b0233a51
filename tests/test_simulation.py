"""Claims about the simulated instrument, each against a truth that does not come from its own code."""

import time as clock
from itertools import pairwise

import astropy.units as u
import numpy as np
import pytest
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf.errors import ModelNotFoundError, OutOfRangeError
from lamost_lsf.io import METADATA_KEYS, check_heliocentric
from lamost_lsf.lsf import TabulatedLSF
from lamost_lsf.simulation import (
    EPOCH,
    EmissionLine,
    Observatory,
    SimulatedIP,
    StretchedIP,
    arc_lines,
    detector_scale,
    lamost_axis,
    season_times,
    simulate_arc,
    simulate_season,
    simulate_sky,
    simulate_star,
    sky_lines,
    synthetic_template,
)
from lamost_lsf.simulation._random import deviate
from lamost_lsf.time import season
from lamost_lsf.units import SPEED_OF_LIGHT

NIGHT = Time("2017-01-10T15:00", scale="utc")
LATE = Time("2022-01-10T15:00", scale="utc")
WIDE = np.arange(-26.0, 26.0, 0.04)


def moments(x, h):
    """Area, mean, sigma, skewness by the trapezoidal sum."""
    dx = x[1] - x[0]
    area = h.sum(-1) * dx
    mean = (h * x).sum(-1) * dx / area
    d = x - mean[..., None]
    sigma = np.sqrt((h * d**2).sum(-1) * dx / area)
    return area, mean, sigma, (h * d**3).sum(-1) * dx / area / sigma**3


def brute_force(p, x):
    """The five components convolved by summation on a grid of 2.5 mA, from their plain definitions."""
    d = 0.0025
    grid = np.arange(-10000, 10001) * d

    def bins(cumulative):
        # each component as the exact content of its bins: second-order accurate, no trouble at jumps
        edge = cumulative(np.append(grid - d / 2, grid[-1] + d / 2))
        return np.diff(edge)

    def chord(t, r):
        t = np.clip(t / r, -1, 1)
        return (t * np.sqrt(1 - t * t) + np.arcsin(t)) / 2 * r  # integral of sqrt(1 - (t/r)^2)

    def chord_moment(t, r):
        t = np.clip(t / r, -1, 1)
        return -((1 - t * t) ** 1.5) / 3 * r * r  # integral of t sqrt(1 - (t/r)^2)

    from scipy.signal import fftconvolve
    from scipy.stats import gamma, norm, uniform

    s = p["half_slit"]
    radius = 1.5 * s  # the slit is two thirds of the fibre
    slit = bins(
        lambda e: chord(np.clip(e, -s, s), radius) + p["illumination"] / s * chord_moment(np.clip(e, -s, s), radius)
    )
    pupil = bins(lambda e: chord(e, abs(p["defocus"])))
    core = (1 - p["wing_fraction"]) * bins(norm(scale=p["core"]).cdf) + p["wing_fraction"] * bins(
        norm(scale=p["wing"]).cdf
    )
    red = bins(gamma(2, scale=p["coma_red"]).cdf)
    blue = bins(gamma(2, scale=p["coma_blue"]).cdf)[::-1]
    pixel = bins(uniform(-p["pixel"] / 2, p["pixel"]).cdf)
    total = slit / slit.sum()
    for part in (pupil, core, red, blue, pixel):
        total = fftconvolve(total, part / part.sum(), mode="same")
    return np.interp(x, grid + p["shift"], total / d)


# -- the profile --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["blue", "red"])
@pytest.mark.parametrize(("fiber", "time"), [(3, NIGHT), (155, NIGHT), (240, LATE)])
def test_profile_is_the_convolution_of_its_components(arm, fiber, time):
    ip = SimulatedIP(arm, 4)
    at = {"time": time, "fiber": fiber, "wavelength": {"blue": 4100, "red": 8400}[arm] * u.AA}
    p = {name: float(value) for name, value in ip.parameters(**at).items()}
    x = np.arange(-12.0, 12.0, 0.31)
    truth = brute_force(p, x)
    h = ip.evaluate(x * u.AA, **at)
    # the bins of the brute force widen every component by 2.5 mA / sqrt(12)
    np.testing.assert_allclose(h, truth, atol=4e-6 * truth.max(), rtol=0)


@pytest.mark.parametrize("arm", ["blue", "red"])
def test_profiles_have_unit_area_and_are_not_negative(arm):
    ip = SimulatedIP(arm, 2)
    low, high = ip.wavelength_range
    for time in (NIGHT, LATE):
        h = ip.evaluate(
            WIDE * u.AA, time=time, fiber=np.arange(1, 251, 13)[:, None], wavelength=np.linspace(low, high, 7) * u.AA
        )
        np.testing.assert_allclose(moments(WIDE, h)[0], 1.0, atol=1e-8)
        assert h.min() >= 0.0


def test_area_by_adaptive_quadrature():
    ip = SimulatedIP("blue")
    at = {"time": NIGHT, "fiber": 20, "wavelength": 4359.56 * u.AA}
    value, _ = quad(lambda x: ip.evaluate(x * u.AA, **at)[0], -20, 20, epsabs=1e-10, limit=200)
    assert value == pytest.approx(1.0, abs=1e-9)


def test_sampled_profile_is_the_evaluated_one_and_window_loses_little():
    ip = SimulatedIP("red", 5)
    at = {"time": NIGHT, "fiber": 88, "wavelength": 7440.9 * u.AA}
    profile = ip.profile(**at)
    assert profile.flux.shape == (600,)
    np.testing.assert_allclose(profile.flux, ip.evaluate(profile.offset, **at), atol=1e-12)
    assert 1.0 - 3e-4 < profile.area <= 1.0 + 1e-6
    wide = ip.with_offset(np.linspace(-20, 20, 2001) * u.AA)
    assert wide.profile(**at).area == pytest.approx(1.0, abs=1e-8)
    assert ip.offset.size == 600  # the first one is left as it was


def test_offsets_of_each_profile_its_own():
    ip = SimulatedIP("blue")
    rng = np.random.default_rng(1)
    x = rng.uniform(-9, 9, (3, 40))
    wavelength = [4100, 4800, 5700] * u.AA
    h = ip.evaluate(x * u.AA, time=NIGHT, fiber=9, wavelength=wavelength)
    for i in range(3):
        one = ip.evaluate(x[i] * u.AA, time=NIGHT, fiber=9, wavelength=wavelength[i])
        np.testing.assert_allclose(h[i], one, atol=1e-12)
    far = ip.evaluate([-40.0, 40.0] * u.AA, time=NIGHT, fiber=9, wavelength=wavelength[0])
    assert np.all(far == 0.0)


@pytest.mark.parametrize(("arm", "low", "high"), [("blue", 2.3, 3.8), ("red", 3.4, 4.9)])
def test_widths_and_shapes_are_lamosts(arm, low, high):
    skew = []
    for spectrograph in (1, 5, 9, 16):
        ip = SimulatedIP(arm, spectrograph)
        wavelength = np.linspace(*ip.wavelength_range, 8)[1:-1] * u.AA
        profile = ip.profile(time=NIGHT, fiber=np.arange(5, 250, 61)[:, None], wavelength=wavelength)
        fwhm = profile.fwhm.to_value(u.AA)
        assert np.all((fwhm > low) & (fwhm < high))
        skew.append(profile.skewness)
    skew = np.array(skew)
    # both signs, and strong enough to matter: centres differ by tens of km/s
    assert skew.min() < -0.15
    assert skew.max() > 0.15
    assert np.abs(skew).max() < 0.6


def test_resolving_power_is_about_1800_in_mid_arm():
    for arm, wavelength in (("blue", 4750.0), ("red", 7350.0)):
        fwhm = SimulatedIP(arm).profile(time=NIGHT, fiber=np.arange(1, 251, 10), wavelength=wavelength * u.AA).fwhm
        assert wavelength / np.median(fwhm.to_value(u.AA)) == pytest.approx(1830, rel=0.08)


def test_air_labels_are_converted():
    ip = SimulatedIP("blue")
    a = ip.evaluate(WIDE * u.AA, time=NIGHT, fiber=1, wavelength=5460.750 * u.AA, medium="air")
    v = ip.evaluate(WIDE * u.AA, time=NIGHT, fiber=1, wavelength=5462.268 * u.AA)  # NIST: 5462.268 in vacuum
    np.testing.assert_allclose(a, v, atol=1e-6)


# -- how it varies ------------------------------------------------------------------------------------------------


def difference(ip, one, other):
    """Rms difference of profiles at two sets of labels, in units of the peak."""
    x, wavelength = np.linspace(-8.335, 9.25, 600) * u.AA, np.linspace(3900, 5800, 5) * u.AA
    a, b = (ip.evaluate(x, **labels, wavelength=wavelength) for labels in (one, other))
    return np.sqrt(np.mean((a - b) ** 2)) / a.max()


def test_profile_is_reproducible_in_any_order_and_depends_on_the_seed():
    fibers = np.arange(1, 251)
    at = {"time": NIGHT, "wavelength": 4800 * u.AA}
    all_at_once = SimulatedIP("blue", 7, seed=3).profile(fiber=fibers, **at).flux
    backwards = SimulatedIP("blue", 7, seed=3).profile(fiber=fibers[::-1], **at).flux[::-1]
    alone = SimulatedIP("blue", 7, seed=3).profile(fiber=41, **at).flux
    np.testing.assert_allclose(all_at_once, backwards, atol=1e-12)
    np.testing.assert_allclose(all_at_once[40], alone, atol=1e-12)
    for other in (SimulatedIP("blue", 7, seed=4), SimulatedIP("blue", 8, seed=3)):
        assert np.abs(other.profile(fiber=41, **at).flux - alone).max() > 1e-3 * alone.max()


def test_time_acts_smoothly_within_a_night_and_less_than_between_seasons():
    ip = SimulatedIP("blue")
    first = {"time": NIGHT, "fiber": 60}
    minutes = difference(ip, first, {"time": NIGHT + 2 * u.min, "fiber": 60})
    hours = difference(ip, first, {"time": NIGHT + 3 * u.hour, "fiber": 60})
    months = difference(ip, first, {"time": NIGHT + 120 * u.day, "fiber": 60})
    years = difference(ip, first, {"time": NIGHT - 365 * u.day, "fiber": 60})
    assert minutes < 2e-5
    assert minutes < hours < 1e-3
    assert hours < months < 0.03
    assert 1e-3 < years < 0.05


def test_a_season_begins_on_the_first_of_september_in_beijing():
    ip = SimulatedIP("blue", night_scatter=0.0)
    midnight = Time("2017-08-31T16:00:00", scale="utc")
    before, after = midnight - 1 * u.min, midnight + 1 * u.min
    assert difference(ip, {"time": before, "fiber": 9}, {"time": after, "fiber": 9}) > 5e-4
    day = 1 * u.day
    assert difference(ip, {"time": before - day, "fiber": 9}, {"time": after - day, "fiber": 9}) < 1e-4


def test_temperature_is_coldest_in_january_and_falls_through_the_night():
    ip = SimulatedIP("blue", night_scatter=0.0)
    months = Time([f"2017-{m:02d}-20T16:00" for m in range(1, 13)])
    temperature = ip.temperature(months).to_value(u.deg_C, u.temperature())
    assert np.argmin(temperature) == 0
    assert np.argmax(temperature) == 6
    assert ip.temperature(NIGHT + 4 * u.hour) < ip.temperature(NIGHT)
    scattered = SimulatedIP("blue").temperature(NIGHT + np.arange(200) * 24 * u.hour)
    smooth = ip.temperature(NIGHT + np.arange(200) * 24 * u.hour)
    assert np.std((scattered - smooth).value) == pytest.approx(2.0, rel=0.2)


def test_fiber_scatter_is_between_neighbours_and_can_be_switched_off():
    at = {"time": NIGHT, "wavelength": 4800 * u.AA}
    fibers = np.arange(1, 151)
    smooth = SimulatedIP("blue", fiber_scatter=0.0).profile(fiber=fibers, **at).flux
    rough = SimulatedIP("blue").profile(fiber=fibers, **at).flux
    second = [np.abs(np.diff(flux, 2, axis=0)).max() / flux.max() for flux in (smooth, rough)]
    assert second[0] < 2e-4  # a parabola in the fibre number
    assert second[1] > 1e-3


def test_defective_fiber_stands_out_by_its_wing_and_shoulder():
    at = {"time": NIGHT, "wavelength": [4048, 4801, 5792] * u.AA}
    ip = SimulatedIP("blue")
    good = ip.evaluate(WIDE * u.AA, fiber=154, **at)
    bad = ip.evaluate(WIDE * u.AA, fiber=155, **at)
    far = np.abs(WIDE) > 3.5
    share = bad[:, far].sum(axis=1) / good[:, far].sum(axis=1)
    assert np.all(share > 2.0)
    neighbours = difference(ip, {"time": NIGHT, "fiber": 153}, {"time": NIGHT, "fiber": 154})
    assert difference(ip, {"time": NIGHT, "fiber": 154}, {"time": NIGHT, "fiber": 155}) > 3 * neighbours
    whole = SimulatedIP("blue", defective_fiber=None)
    assert difference(whole, {"time": NIGHT, "fiber": 154}, {"time": NIGHT, "fiber": 155}) < 4 * neighbours
    moved = SimulatedIP("blue", defective_fiber=20).evaluate(WIDE * u.AA, fiber=20, **at)
    assert np.all(wing_ratio(moved, good, far) > 2.0)


def wing_ratio(a, b, where):
    return a[:, where].sum(axis=1) / b[:, where].sum(axis=1)


@pytest.mark.parametrize("arm", ["blue", "red"])
def test_epoch_change_widens_and_turns_the_asymmetry_in_part(arm):
    widened, turned = [], []
    for spectrograph in range(1, 9):
        ip = SimulatedIP(arm, spectrograph, night_scatter=0.0, defective_fiber=None)
        wavelength = np.linspace(*ip.wavelength_range, 9) * u.AA
        labels = {"fiber": np.arange(5, 250, 40)[:, None], "wavelength": wavelength}
        before = ip.profile(time=Time("2017-01-10T15:00"), **labels)
        after = ip.profile(time=Time("2021-01-10T15:00"), **labels)
        widened.append(np.median((after.sigma / before.sigma).value))
        strong = np.abs(before.skewness) > 0.05
        turned.append(np.mean((before.skewness * after.skewness < 0)[strong]))
    assert np.all(np.array(widened) > 1.02)
    assert 0.1 < np.mean(turned) < 0.9
    never = SimulatedIP(arm, 1, epoch=None, night_scatter=0.0)
    at = {"fiber": 5, "wavelength": never.wavelength_range[0] * u.AA}
    ratio = never.profile(time=LATE, **at).sigma / never.profile(time=NIGHT, **at).sigma
    assert ratio.value == pytest.approx(1.0, abs=0.05)
    assert season(EPOCH) == 2021
    assert season(EPOCH - 1 * u.s) == 2020


def test_deviates_are_standard_normal_and_independent():
    x = deviate(5, np.arange(40000))
    assert abs(x.mean()) < 0.02
    assert x.std() == pytest.approx(1.0, abs=0.015)
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.02
    y = deviate(6, np.arange(40000))
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.02


@settings(max_examples=25, deadline=None)
@given(
    arm=st.sampled_from(["blue", "red"]),
    spectrograph=st.integers(1, 16),
    seed=st.integers(0, 2**31),
    fiber=st.integers(1, 250),
    day=st.floats(55800, 60500),
    where=st.floats(0, 1),
)
def test_every_profile_is_a_density_with_its_peak_near_zero(arm, spectrograph, seed, fiber, day, where):
    ip = SimulatedIP(arm, spectrograph, seed=seed)
    low, high = ip.wavelength_range
    at = {"time": Time(day, format="mjd"), "fiber": fiber, "wavelength": (low + where * (high - low)) * u.AA}
    h = ip.evaluate(WIDE * u.AA, **at)
    area, mean, sigma, skew = moments(WIDE, h)
    assert area == pytest.approx(1.0, abs=1e-7)
    assert h.min() >= 0
    assert abs(mean) < 0.8
    assert 0.9 < sigma < 3.5
    assert abs(skew) < 1.5
    assert abs(WIDE[np.argmax(h)]) < 1.0
    # one peak
    rising = np.diff(h[h > 1e-6 * h.max()]) > 0
    assert np.count_nonzero(np.diff(rising.astype(int))) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"arm": "green"}, ValueError, "blue"),
        ({"spectrograph": 0}, ValueError, "1-16"),
        ({"spectrograph": 2.5}, ValueError, "1-16"),
        ({"fiber_scatter": -1.0}, ValueError, "fiber_scatter"),
        ({"night_scatter": np.nan}, ValueError, "night_scatter"),
        ({"defective_fiber": 251}, ValueError, "1-250"),
        ({"epoch": 2020}, TypeError, "Time"),
        ({"offset": np.array([0.0, 1, 2, 3, 4, 6]) * u.AA}, ValueError, "uniform"),
        ({"offset": np.array([0.0, 1]) * u.AA}, ValueError, "5 samples"),
        ({"offset": np.arange(5.0)}, TypeError, "unit"),
    ],
)
def test_bad_instruments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        SimulatedIP(**arguments)


def test_bad_labels_are_refused():
    ip = SimulatedIP("blue")
    x = WIDE * u.AA
    with pytest.raises(OutOfRangeError, match="fiber"):
        ip.profile(time=NIGHT, fiber=0, wavelength=5000 * u.AA)
    with pytest.raises(OutOfRangeError, match="fiber"):
        ip.evaluate(x, time=NIGHT, fiber=251, wavelength=5000 * u.AA)
    with pytest.raises(ValueError, match="whole"):
        ip.evaluate(x, time=NIGHT, fiber=1.5, wavelength=5000 * u.AA)
    with pytest.raises(OutOfRangeError, match="extrapolate"):
        ip.profile(time=NIGHT, fiber=1, wavelength=7000 * u.AA)
    with pytest.raises(OutOfRangeError, match="extrapolate"):
        ip.evaluate(x, time=NIGHT, fiber=1, wavelength=7000 * u.AA)
    assert ip.evaluate(x, time=NIGHT, fiber=1, wavelength=6050 * u.AA, extrapolate=True).shape == x.shape
    with pytest.raises(ValueError, match="time"):
        ip.profile(fiber=1, wavelength=5000 * u.AA)
    with pytest.raises(ValueError, match="broadcast"):
        ip.evaluate(x, time=NIGHT, fiber=[1, 2], wavelength=[4000, 4500, 5000] * u.AA)
    with pytest.raises(ValueError, match="does not fit"):
        ip.evaluate(np.zeros((3, 7)) * u.AA, time=NIGHT, fiber=[1, 2], wavelength=5000 * u.AA)
    with pytest.raises(TypeError, match="offset"):
        ip.evaluate(WIDE, time=NIGHT, fiber=1, wavelength=5000 * u.AA)
    assert ip.profile(time=NIGHT, fiber=np.empty(0, dtype=int), wavelength=5000 * u.AA).flux.shape == (0, 600)


# -- lines --------------------------------------------------------------------------------------------------------


def test_line_lists():
    blue, red = arc_lines("blue", others=False), arc_lines("red", others=False)
    assert (len(blue), len(red)) == (7, 15)
    assert all(line.calibration for line in blue + red)
    # vacuum wavelengths from NIST, not by our formula
    vacuum = {round(line.air, 2): line.vacuum for line in blue + red}
    for air, truth in ((4358.335, 4359.560), (5460.750, 5462.268), (6402.248, 6404.018), (8377.607, 8379.909)):
        assert vacuum[round(air, 2)] == pytest.approx(truth, abs=0.01)
    for arm, window in (("blue", (8.335, 9.25)), ("red", (9.163, 9.833))):
        lines = arc_lines(arm)
        assert [line.air for line in lines] == sorted(line.air for line in lines)
        for line in (line for line in lines if line.calibration):
            near = [o for o in lines if o is not line and -window[0] - 3 < o.air - line.air < window[1] + 3]
            assert all(o.intensity < 0.1 * line.intensity for o in near), line
    with pytest.raises(ValueError, match="blue"):
        arc_lines("violet")
    with pytest.raises(ValueError, match="intensity"):
        EmissionLine("X", 5000.0, -1.0)


def test_blends_are_close_and_weak():
    clean = {line.air for line in arc_lines("red")}
    extra = [line for line in arc_lines("red", blends=True, seed=5) if line.air not in clean]
    assert len(extra) == 5
    calibration = arc_lines("red", others=False)
    for line in extra:
        nearest = min(calibration, key=lambda c: abs(c.air - line.air))
        assert 3.0 <= abs(nearest.air - line.air) <= 8.0
        assert 0.02 <= line.intensity / nearest.intensity <= 0.10
        assert not line.calibration
    assert arc_lines("red", blends=True, seed=5) == arc_lines("red", blends=True, seed=5)
    assert arc_lines("red", blends=True, seed=5) != arc_lines("red", blends=True, seed=6)


def test_lines_agree_with_the_lamp_list_of_the_survey(data_dir):
    listed = []
    for row in (data_dir / "linelists" / "lamphgcdne.dat").read_text().splitlines():
        if row.strip() and not row.startswith("#"):
            listed.append(float(row.split()[0]))
    listed = np.array(listed)
    for arm in ("blue", "red"):
        for line in arc_lines(arm, others=False):
            assert np.min(np.abs(listed - line.air)) < 0.02, line


# -- arcs ---------------------------------------------------------------------------------------------------------


def line_position(wavelength, flux, near, half=6.0):
    """Centroid of a line over a straight background."""
    here = np.abs(wavelength - near) < half
    x, y = wavelength[here], flux[here]
    edge = np.concatenate([np.arange(3), np.arange(x.size - 3, x.size)])
    y = y - np.polyval(np.polyfit(x[edge], y[edge], 1), x)
    return np.sum(x * y) / np.sum(y)


@pytest.mark.parametrize(("arm", "air", "vacuum"), [("blue", 5460.75, 5462.268), ("red", 7245.167, 7247.163)])
def test_lines_stand_at_their_vacuum_wavelength(arm, air, vacuum):
    # half a pixel is 0.27 A, air against vacuum 1.5 A; the IP's own centroid is taken off
    ip = SimulatedIP(arm)
    fibers = np.array([2, 77, 231])
    arc = simulate_arc(ip, NIGHT, fiber=fibers, noise=False, cosmic_rate=0)
    x = np.arange(-9, 9, 0.01)
    h = ip.evaluate(x * u.AA, time=NIGHT, fiber=fibers, wavelength=vacuum * u.AA)
    mean = moments(x, h)[1]
    for i in range(3):
        position = line_position(arc.wavelength[i], arc.flux[i], vacuum, 9.0)
        assert position - mean[i] == pytest.approx(vacuum, abs=0.01)
        assert air < position - 1.0


def test_arc_is_background_plus_lines_with_the_true_profile():
    ip = SimulatedIP("red", 6)
    line = EmissionLine("Ne I", 7245.167, 1.0, True)
    arc = simulate_arc(
        ip, NIGHT, [line], fiber=[31], noise=False, cosmic_rate=0, background=50, background_slope=0.0,
        throughput_scatter=0.0, dead_fibers=0,
    )  # fmt: skip
    offset = arc.wavelength[0] - 7247.163
    near = np.abs(offset) < 20
    h = ip.evaluate(offset[near] * u.AA, time=NIGHT, fiber=31, wavelength=7247.163 * u.AA)
    scale = np.sum((arc.flux[0, near] - 50) * h) / np.sum(h * h)
    # 7247.163 is rounded to 1e-3 A
    np.testing.assert_allclose(arc.flux[0, near], 50 + scale * h, atol=2e-3 * scale * h.max())
    assert arc.flux[0, near].max() == pytest.approx(2.0e4, rel=0.2)
    np.testing.assert_allclose(arc.flux[0, np.abs(offset) > 26], 50.0, atol=1e-6)


@pytest.mark.parametrize("drift", [0.4 * u.AA, -0.4 * u.AA, 20.0 * u.km / u.s])
def test_positive_drift_moves_lines_to_the_red(drift):
    ip = SimulatedIP("blue")
    options = {"fiber": [100], "noise": False, "cosmic_rate": 0}
    still = simulate_arc(ip, NIGHT, **options)
    moved = simulate_arc(ip, NIGHT, drift=drift, **options)
    np.testing.assert_array_equal(still.wavelength, moved.wavelength)
    for near in (4359.560, 5462.268):
        shift = line_position(moved.wavelength[0], moved.flux[0], near) - line_position(
            still.wavelength[0], still.flux[0], near
        )
        expected = drift.value if drift.unit == u.AA else near * drift.value / 299792.458
        # a line that moves by 0.4 A loses 1 % of its wing out of the centroid's window
        assert shift == pytest.approx(expected, abs=0.02)


def test_skewness_in_the_arc_is_that_of_the_ip_not_its_mirror():
    ip = SimulatedIP("blue")
    fibers = np.arange(1, 251, 10)
    arc = simulate_arc(ip, NIGHT, fiber=fibers, noise=False, cosmic_rate=0, background=0, dead_fibers=0)
    signs = []
    for vacuum in (4047.708, 4801.254, 5462.268):
        truth = ip.profile(time=NIGHT, fiber=fibers, wavelength=vacuum * u.AA).skewness
        for i in range(fibers.size):
            here = np.abs(arc.wavelength[i] - vacuum) < 9
            x, y = arc.wavelength[i, here], arc.flux[i, here]
            mean = np.sum(x * y) / y.sum()
            variance = np.sum((x - mean) ** 2 * y) / y.sum()
            skew = np.sum((x - mean) ** 3 * y) / y.sum() / variance**1.5
            assert skew == pytest.approx(truth[i], abs=0.03)
            signs.append(np.sign(skew))
    assert set(signs) == {-1.0, 1.0}


def test_noise_is_what_the_inverse_variance_says():
    # chi-square per degree of freedom of many realisations, and its distribution over brightness
    ip = SimulatedIP("blue")
    options = {"fiber": [7, 8], "cosmic_rate": 0, "n_pixels": 4096, "dead_fibers": 0}
    pulls, wanted = [], None
    for seed in range(60):
        arc = simulate_arc(ip, NIGHT, seed=seed, **options)
        wanted = arc.meta["truth"]["noiseless"]
        pulls.append((arc.flux - wanted) * np.sqrt(arc.ivar))
    pulls = np.array(pulls)
    for brightness in (wanted < 200, wanted > 2000):
        n = pulls[:, brightness].size
        assert np.mean(pulls[:, brightness] ** 2) == pytest.approx(1.0, abs=5 * np.sqrt(2 / n))
        assert np.mean(pulls[:, brightness]) == pytest.approx(0.0, abs=5 / np.sqrt(n))
    # photons are Poisson: variance rises with the light
    assert np.std((pulls / np.sqrt(arc.ivar))[:, wanted > 2000]) > 5 * np.std(
        (pulls / np.sqrt(arc.ivar))[:, wanted < 200]
    )


def test_inverse_variance_from_the_data_is_noisy_itself():
    arc = simulate_arc(SimulatedIP("blue"), NIGHT, fiber=[7], ivar="data", cosmic_rate=0, read_noise=4)
    np.testing.assert_allclose(arc.ivar, 1 / (np.maximum(arc.flux, 0) + 16))


def test_peak_signal_to_noise_is_140_by_default():
    arc = simulate_arc(SimulatedIP("blue"), NIGHT, noise=False, cosmic_rate=0)
    ratios = []
    for line in arc_lines("blue", others=False):
        here = np.abs(arc.wavelength - line.vacuum) < 4
        peak = np.max(np.where(here, arc.flux * np.sqrt(arc.ivar), 0), axis=1)
        ratios.append(np.median(peak) / np.sqrt(line.intensity))
    assert np.median(ratios) == pytest.approx(140, rel=0.12)


def test_wavelength_scale_differs_between_fibers_and_is_smooth():
    for arm in ("blue", "red"):
        scale = detector_scale(arm, np.arange(1, 251))
        step = np.diff(scale, axis=1)
        assert np.all(step > 0)
        nominal = {"blue": 0.543, "red": 0.823}[arm]
        np.testing.assert_allclose(step, nominal, rtol=0.03)
        assert np.abs(np.diff(scale, 4, axis=1)).max() < 1e-9  # a cubic at most
        assert np.ptp(scale[:, 2000]) > nominal  # by pixels between fibres
        assert np.abs(np.diff(scale[:, 2000])).max() < 3 * nominal
        air = [line.air for line in arc_lines(arm, others=False)]
        assert scale[:, 0].max() < min(air) - 9.2
        assert scale[:, -1].min() > max(air) + 9.9


@pytest.mark.parametrize("arm", ["blue", "red"])
def test_published_scale_puts_the_named_centre_of_each_line_at_its_wavelength(arm):
    ip = SimulatedIP(arm, 3)
    fibers = np.array([4, 155, 222])
    optical = simulate_arc(ip, NIGHT, fiber=fibers, noise=False, cosmic_rate=0)
    published = simulate_arc(ip, NIGHT, fiber=fibers, noise=False, cosmic_rate=0, center="sersic")
    assert published.meta["wavelength_center"] == "sersic"
    assert optical.meta["wavelength_center"] == "zero"
    np.testing.assert_array_equal(optical.flux, published.flux)
    # the window matters: a Sersic fit has a background. Its samples do not.
    x = np.linspace(*{"blue": (-8.335, 9.25), "red": (-9.163, 9.833)}[arm], 900)
    for line in arc_lines(arm, others=False):
        h = ip.evaluate(x * u.AA, time=NIGHT, fiber=fibers, wavelength=line.vacuum * u.AA)
        center = ll.InstrumentalProfile(x * u.AA, h).center("sersic").to_value(u.AA)
        for i in range(3):
            at_center = np.interp(line.vacuum + center[i], optical.wavelength[i], published.wavelength[i])
            assert at_center == pytest.approx(line.vacuum, abs=1e-3)
    # the correction is worth making
    assert np.abs(optical.wavelength - published.wavelength).max() > 0.03


def test_calibration_error_has_the_rms_asked_for():
    ip = SimulatedIP("blue")
    options = {"noise": False, "cosmic_rate": 0}
    exact = simulate_arc(ip, NIGHT, **options)
    off = simulate_arc(ip, NIGHT, calibration_error=0.03 * u.AA, **options)
    error = off.wavelength - exact.wavelength
    assert np.sqrt(np.mean(error**2)) == pytest.approx(0.03, rel=0.15)
    assert np.all(np.diff(off.wavelength, axis=1) > 0)


def test_cosmic_rays_are_where_the_truth_says():
    options = {"fiber": np.arange(1, 41), "seed": 9, "dead_fibers": 0}
    ip = SimulatedIP("blue")
    arc = simulate_arc(ip, NIGHT, cosmic_rate=2e-4, cosmic_flagged=0.5, **options)
    truth = arc.meta["truth"]
    hits = truth["cosmic"]
    # about 2.5 pixels a hit and their neighbours
    assert np.mean(hits) == pytest.approx(2e-4 * 2.5 * 1.2, rel=0.4)
    pull = (arc.flux - truth["noiseless"]) / np.sqrt(truth["noiseless"] + 100.0)
    assert np.median(pull[hits]) > 10
    assert np.std(pull[~hits]) == pytest.approx(1.0, abs=0.02)
    assert np.mean(arc.mask[hits]) == pytest.approx(0.5, abs=0.15)
    assert not np.any(arc.mask[~hits])
    assert np.all(arc.ivar[arc.mask] == 0)
    none = simulate_arc(ip, NIGHT, cosmic_rate=0, **options)
    assert not np.any(none.meta["truth"]["cosmic"])
    assert not np.any(none.mask)


def test_saturated_lines_are_clipped():
    arc = simulate_arc(SimulatedIP("blue"), NIGHT, fiber=[10, 11], peak=1e5, saturation=5e4, dead_fibers=0)
    saturated = arc.meta["truth"]["saturated"]
    assert saturated.any()
    assert arc.flux.max() == 5e4
    assert np.all(arc.flux[saturated] == 5e4)
    assert np.all(arc.meta["truth"]["noiseless"][saturated] > 4.5e4)
    assert arc.meta["saturation"] == 5e4


def test_throughput_dead_fibers_and_background():
    ip = SimulatedIP("blue", 2)
    options = {"noise": False, "cosmic_rate": 0, "background": 100, "background_slope": 0.5}
    arc = simulate_arc(ip, NIGHT, dead_fibers=[17, 200], **options)
    here = np.abs(arc.wavelength - 5462.268) < 5
    light = np.where(here, arc.flux - 130, 0).sum(axis=1)
    assert np.all(light[[16, 199]] < 0.05 * np.median(light))
    alive = np.delete(light, [16, 199])
    assert np.std(np.log(alive)) == pytest.approx(0.25, rel=0.2)
    np.testing.assert_array_equal(arc.meta["truth"]["dead"], [17, 200])
    again = simulate_arc(ip, NIGHT + 50 * u.day, dead_fibers=[17, 200], **options)
    np.testing.assert_allclose(again.meta["truth"]["throughput"], arc.meta["truth"]["throughput"])
    chosen = simulate_arc(ip, NIGHT, dead_fibers=4, **options).meta["truth"]["dead"]
    assert chosen.size == 4
    assert 155 not in chosen
    assert arc.flux[0, 0] == pytest.approx(50.0, abs=0.5)
    assert arc.flux[0, -1] == pytest.approx(150.0, abs=0.5)


def test_arc_is_reproducible_and_describes_itself():
    ip = SimulatedIP("red", 11, seed=2)
    one, two, three = (simulate_arc(ip, NIGHT, fiber=[5, 6], seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.flux, two.flux)
    assert np.any(one.flux != three.flux)
    assert (one.arm, one.spectrograph, one.lamp) == ("red", 11, "NeAr")
    assert one.time is NIGHT
    assert one.flux.shape == one.ivar.shape == one.mask.shape == one.wavelength.shape == (2, 4096)
    assert one.meta["fiber"].tolist() == [5, 6]
    assert one.meta["temperature"] == pytest.approx(ip.temperature(NIGHT).value)
    assert one.meta["truth"]["ip"] is ip
    with pytest.raises(AttributeError):
        one.flux = None


def test_whole_exposure_is_quick():
    ip = SimulatedIP("red")
    simulate_arc(ip, NIGHT, fiber=[1])
    start = clock.process_time()
    arc = simulate_arc(ip, NIGHT)
    # measured 0.4 s; room for a busy machine
    assert clock.process_time() - start < 4.0
    assert arc.flux.shape == (250, 4096)
    assert np.all(np.isfinite(arc.flux))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"time": 57763.0}, TypeError, "Time"),
        ({"time": NIGHT + [0, 1] * u.day}, TypeError, "scalar"),
        ({"ip": "blue"}, TypeError, "IPModel"),
        ({"ip": ll.GaussianIP(1800)}, ValueError, "arm"),
        ({"arm": "red"}, ValueError, "blue arm"),
        ({"spectrograph": 17}, ValueError, "1-16"),
        ({"fiber": [0]}, ValueError, "1-250"),
        ({"fiber": [1, 1]}, ValueError, "different"),
        ({"fiber": []}, ValueError, "non-empty"),
        ({"fiber": [1.5]}, ValueError, "integers"),
        ({"n_pixels": 10}, ValueError, "n_pixels"),
        ({"ivar": "none"}, ValueError, "ivar"),
        ({"lines": [4359.0]}, TypeError, "EmissionLine"),
        ({"lines": arc_lines("blue"), "blends": True}, ValueError, "blends"),
        ({"peak": -1.0}, ValueError, "peak"),
        ({"peak": np.nan}, ValueError, "peak"),
        ({"read_noise": -1}, ValueError, "read_noise"),
        ({"cosmic_rate": 2.0}, ValueError, "cosmic_rate"),
        ({"cosmic_flagged": 1.5}, ValueError, "cosmic_flagged"),
        ({"saturation": 0.0}, ValueError, "saturation"),
        ({"background_slope": 3.0}, ValueError, "background_slope"),
        ({"throughput_scatter": -0.1}, ValueError, "throughput_scatter"),
        ({"dead_fibers": 300}, ValueError, "dead_fibers"),
        ({"drift": 0.1}, TypeError, "drift"),
        ({"drift": 1 * u.s}, TypeError, "drift"),
        ({"calibration_error": -1 * u.AA}, TypeError, "calibration_error"),
        ({"calibration_error": 0.1}, TypeError, "calibration_error"),
    ],
)
def test_bad_exposures_are_refused(arguments, error, message):
    full = {"ip": SimulatedIP("blue"), "time": NIGHT, "fiber": [1], "n_pixels": 512, **arguments}
    with pytest.raises(error, match=message):
        simulate_arc(**full)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    peak=st.floats(0, 1e5),
    background=st.floats(0, 1000),
    cosmics=st.floats(0, 1e-3),
    saturation=st.floats(1e3, 1e6),
    read_noise=st.floats(0, 30),
)
def test_every_exposure_is_usable(seed, peak, background, cosmics, saturation, read_noise):
    arc = simulate_arc(
        SimulatedIP("blue"), NIGHT, fiber=[3, 250], n_pixels=600, seed=seed, peak=peak, background=background,
        cosmic_rate=cosmics, cosmic_flagged=0.5, saturation=saturation, read_noise=read_noise,
    )  # fmt: skip
    assert np.all(np.isfinite(arc.flux))
    assert np.all(np.isfinite(arc.ivar))
    assert np.all(arc.ivar >= 0)
    assert np.array_equal(arc.ivar == 0, arc.mask)
    assert arc.flux.max() <= saturation
    assert np.all(np.diff(arc.wavelength, axis=1) > 0)


# -- other truths -------------------------------------------------------------------------------------------------


def test_any_ip_model_can_be_the_truth():
    ip = ll.GaussianIP(1800)
    arc = simulate_arc(
        ip, NIGHT, [EmissionLine("X", 5460.750, 1.0)], arm="blue", fiber=[1, 2], noise=False, cosmic_rate=0,
        background=0, dead_fibers=0,
    )  # fmt: skip
    offset = arc.wavelength[0] - 5462.268
    sigma = 5462.268 / 1800 / 2.354820
    near = np.abs(offset) < 4.9 * sigma
    gauss = np.exp(-0.5 * (offset / sigma) ** 2)
    np.testing.assert_allclose(arc.flux[0] / arc.flux[0].max(), np.where(near, gauss, 0), atol=2e-2)
    fitted = np.polyfit(offset[np.abs(offset) < 2], np.log(arc.flux[0][np.abs(offset) < 2]), 2)
    assert np.sqrt(-0.5 / fitted[0]) == pytest.approx(sigma, rel=1e-4)
    with pytest.raises(ValueError, match="arm"):
        simulate_arc(ip, NIGHT, fiber=[1])


def test_boss_psf_as_truth(data_dir):
    boss = ll.GaussHermiteIP.from_specex(data_dir / "psf" / "psf-gausshermite2.fits")
    ip = StretchedIP(boss, 250)
    assert ip.n_fiber == 250
    labels = {"wavelength": 6600 * u.AA}
    for fiber, inner in ((1, 1), (250, 25)):
        np.testing.assert_allclose(ip.profile(fiber=fiber, **labels).flux, boss.profile(fiber=inner, **labels).flux)
    # fibre 1 + 24/249 k lies between the model's: 84 is at 9.0
    np.testing.assert_allclose(ip.profile(fiber=84, **labels).flux, boss.profile(fiber=9, **labels).flux, atol=1e-12)
    arc = simulate_arc(ip, NIGHT, arm="red", noise=False, cosmic_rate=0, background=0, dead_fibers=0)
    assert arc.flux.shape == (250, 4096)
    here = np.abs(arc.wavelength[99] - 6680.120) < 8
    x, y = arc.wavelength[99, here] - 6680.120, arc.flux[99, here]
    profile = ip.profile(fiber=100, wavelength=6680.120 * u.AA)
    np.testing.assert_allclose(y / y.max(), profile(x * u.AA) / profile(x * u.AA).max(), atol=5e-3)
    with pytest.raises(OutOfRangeError, match="250"):
        ip.profile(fiber=251, **labels)
    with pytest.raises(TypeError, match="several fibres"):
        StretchedIP(ll.GaussianIP(1800))
    with pytest.raises(ValueError, match="at least 2"):
        StretchedIP(boss, 1)


# -- sky and season -----------------------------------------------------------------------------------------------


def test_sky_holds_the_green_line_and_the_forest():
    sky = simulate_sky(SimulatedIP("blue"), NIGHT, fiber=[30], noise=False, cosmic_rate=0)
    assert (sky.lamp, sky.meta["frame"]) == ("sky", "topocentric")
    # [O I] 5577.338 in air is 5578.887 in vacuum
    assert line_position(sky.wavelength[0], sky.flux[0], 5578.887, 9) == pytest.approx(5578.887, abs=0.3)
    assert sky.wavelength[0, np.argmax(sky.flux[0])] == pytest.approx(5578.887, abs=0.6)
    red = simulate_sky(SimulatedIP("red"), NIGHT, fiber=[30], noise=False, cosmic_rate=0)
    peaks = np.count_nonzero(
        (red.flux[0, 1:-1] > red.flux[0, :-2]) & (red.flux[0, 1:-1] > red.flux[0, 2:]) & (red.flux[0, 1:-1] > 600)
    )
    assert peaks > 15
    assert len(sky_lines(city=False)) == len(sky_lines()) - 4
    one = simulate_sky(SimulatedIP("blue"), NIGHT, [EmissionLine("[O I]", 5577.338, 1.0)], fiber=[30], background=0)
    assert np.count_nonzero(one.meta["truth"]["noiseless"] > 1) < 60
    with pytest.raises(TypeError, match="blends"):
        simulate_sky(SimulatedIP("blue"), NIGHT, blends=True)


def test_sky_lines_agree_with_the_uves_atlas(data_dir):
    atlas = []
    for row in (data_dir / "sky" / "UVES_sky_lines.txt").read_text().splitlines():
        if not row.startswith("#"):
            atlas.append([float(v) for v in row.split()[:5]])
    atlas = np.array(atlas)
    strong = atlas[atlas[:, 4] > 4]
    for line in sky_lines(city=False):
        assert np.min(np.abs(strong[:, 1] - line.air)) < 1.0, line  # some are blends taken as one


def test_season_covers_its_nights_one_exposure_at_a_time():
    times = season_times(2018, 24, 12, seed=3)
    assert times.shape == (24,)
    assert np.all(season(times) == 2018)
    assert np.all(np.diff(times.mjd) >= 0)
    local = (times.mjd + 8 / 24) % 1
    assert np.all((local > 0.74) | (local < 0.26))
    assert np.unique(np.floor(times.mjd + 8 / 24 - 0.5)).size == 12
    assert np.ptp(times.mjd) > 200
    generator = simulate_season(SimulatedIP("blue"), 2018, 6, 3, seed=3, fiber=[1, 2], n_pixels=512)
    assert iter(generator) is generator
    exposures = list(generator)
    assert len(exposures) == 6
    assert all(a.time <= b.time for a, b in pairwise(exposures))
    assert np.any(exposures[0].flux != exposures[1].flux)
    again = next(simulate_season(SimulatedIP("blue"), 2018, 6, 3, seed=3, fiber=[1, 2], n_pixels=512))
    np.testing.assert_array_equal(again.flux, exposures[0].flux)
    with pytest.raises(ValueError, match="n_exposures"):
        season_times(2018, 3, 5)
    with pytest.raises(ValueError, match="n_nights"):
        # refused at the call, not when the first exposure is asked for
        simulate_season(SimulatedIP("blue"), 2018, 3, 0)


# -- stars --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template():
    return synthetic_template(6000)


def test_template_looks_like_a_star(template):
    wavelength, flux = template.spectral_axis.to_value(u.AA), template.flux.value
    assert wavelength[0] == pytest.approx(3600)
    assert wavelength[-1] == pytest.approx(9200, abs=0.05)
    assert np.all((flux > 0) & (flux < 1.5))
    # vacuum wavelengths of strong lines, from the lists of the SDSS and NIST
    for vacuum, depth in (
        (6564.61, 0.3), (4862.69, 0.3), (5891.583, 0.4), (5897.558, 0.4), (3934.777, 0.6), (5185.048, 0.5),
        (8544.44, 0.4), (4227.918, 0.5),
    ):  # fmt: skip
        here = np.abs(wavelength - vacuum) < 1.5
        lowest = wavelength[here][np.argmin(flux[here])]
        # a weak line may sit in the broad core of a strong one
        assert lowest == pytest.approx(vacuum, abs=0.5 if vacuum in (6564.61, 4862.69, 3934.777) else 0.08)
        assert flux[here].min() < (1 - depth) * np.median(flux[np.abs(wavelength - vacuum) < 60])
    hot, cool = synthetic_template(9000), synthetic_template(5000)
    near = np.abs(wavelength - 4862.69) < 10
    assert hot.flux.value[near].mean() / hot.flux.value[np.abs(wavelength - 4950) < 10].mean() < 0.8
    blue, red = np.abs(wavelength - 4500) < 50, np.abs(wavelength - 8000) < 50
    assert hot.flux.value[blue].mean() / hot.flux.value[red].mean() > 2 * (
        cool.flux.value[blue].mean() / cool.flux.value[red].mean()
    )
    poor = synthetic_template(6000, metallicity=-2.0)
    line = np.abs(wavelength - 5185.048) < 0.3
    assert poor.flux.value[line].min() > flux[line].min() + 0.1
    assert np.any(synthetic_template(6000, seed=1).flux != template.flux)
    assert np.all(synthetic_template(6000, seed=0).flux == template.flux)


def test_template_lines_stand_where_a_model_atmosphere_has_them(data_dir, template):
    from astropy.io import fits

    base = data_dir / "templates" / "redrock"
    path = next(p for p in sorted(base.iterdir()) if "G" in p.stem.rsplit("-", 1)[-1] or "-G" in p.name)
    with fits.open(path) as hdus:
        header = hdus[0].header if hdus[0].data is not None else hdus[1].header
        basis = hdus["BASIS_VECTORS"].data
        header = hdus["BASIS_VECTORS"].header
        coefficients = hdus["ARCHETYPE_COEFF"].data
    axis = header["CRVAL1"] + header["CDELT1"] * np.arange(basis.shape[1])
    axis = 10**axis if header.get("LOGLAM", 0) else axis
    model = np.median(coefficients, axis=0) @ basis
    wavelength, flux = template.spectral_axis.to_value(u.AA), template.flux.value
    for low, high in ((5150, 5200), (4840, 4890), (8480, 8700)):
        at = np.arange(low, high, 0.1)

        def ripple(x, y, at=at):
            value = np.interp(at, x, y)
            return value / np.polyval(np.polyfit(at - at[0], value, 1), at - at[0]) - 1

        a = ripple(axis, model)
        lags = np.arange(-20, 21)
        b = [np.corrcoef(a, ripple(wavelength + 0.1 * k, flux))[0, 1] for k in lags]
        assert abs(0.1 * lags[np.argmax(b)]) <= 0.2  # air against vacuum would be 1.4 A or more
        assert max(b) > 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 3000.0}, ValueError, "4500"),
        ({"metallicity": 1.0}, ValueError, "metallicity"),
        ({"step": 1.0 * u.AA}, ValueError, "step"),
        ({"step": 0.05}, TypeError, "step"),
        ({"wavelength_range": [9000, 4000] * u.AA}, ValueError, "wavelength_range"),
        ({"broadening": 1.0 * u.km / u.s}, ValueError, "broadening"),
        ({"broadening": 7.0}, TypeError, "broadening"),
    ],
)
def test_bad_templates_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        synthetic_template(**arguments)


def direct_integral(template, ip, labels, detector, factor, indices, center=None):
    """integral T(w') h(w - w'; w') dw' by a plain sum over a spline-refined template, one pixel at a time."""
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(template.spectral_axis.to_value(u.AA), template.flux.value)
    out = []
    for i in indices:
        true = np.arange(detector[i] - 22, detector[i] + 22, 0.02)
        offset = detector[i] - true
        if center is not None:
            offset = offset + center(true)
        h = ip.evaluate(offset[:, None] * u.AA, **labels, wavelength=true * u.AA, extrapolate=True)[:, 0]
        out.append(np.sum(h * spline(true / factor)) * 0.02)
    return np.array(out)


@pytest.mark.parametrize("arm", ["blue", "red"])
def test_star_is_the_scatter_integral_of_the_shifted_template(arm, template):
    ip = SimulatedIP(arm, 3)
    velocity, helio_rv = 80.0, 21.0
    star = simulate_star(
        template, ip, time=NIGHT, fiber=31, velocity=velocity * u.km / u.s, helio_rv=helio_rv * u.km / u.s, noise=False
    )
    published = star.spectral_axis.to_value(u.AA)
    beta = velocity / 299792.458
    factor = np.sqrt((1 + beta) / (1 - beta)) * (1 + helio_rv / 299792.458)
    detector = published * (1 + helio_rv / 299792.458)
    indices = np.arange(40, published.size - 40, 61)
    truth = direct_integral(template, ip, {"time": NIGHT, "fiber": 31}, detector, factor, indices)
    np.testing.assert_allclose(star.flux.value[indices], truth, rtol=2e-5)
    # a template that moved the other way, or the kernel's mirror, would miss by far
    wrong = np.interp(published, published * (1 - 2 * beta), star.flux.value)[indices]
    assert np.abs(wrong - truth).max() > 5e-3


def test_star_on_the_sersic_scale_is_moved_by_the_centre(template):
    ip = SimulatedIP("blue", 3)
    at = {"time": NIGHT, "fiber": 31}
    zero = simulate_star(template, ip, **at, noise=False)
    sersic = simulate_star(template, ip, **at, noise=False, center="sersic")
    assert zero.meta["wavelength_center"] == "zero"
    assert sersic.meta["wavelength_center"] == "sersic"
    published = sersic.spectral_axis.to_value(u.AA)
    c = ip.profile(**at, wavelength=published * u.AA).center("sersic").to_value(u.AA)
    # w_sersic = w_zero - c(w): what stands at w on the Sersic scale stands at w + c on the other
    from scipy.interpolate import CubicSpline

    expected = CubicSpline(published, zero.flux.value)(published + c)
    inside = slice(30, -30)
    assert np.abs(c).max() > 0.03
    np.testing.assert_allclose(sersic.flux.value[inside], expected[inside], atol=7e-4)
    assert np.abs(zero.flux.value - expected)[inside].max() > 7e-3


def test_positive_drift_reddens_the_star(template):
    ob = Observatory()
    at = {"time": NIGHT, "fiber": 31, "noise": False}
    still = simulate_star(template, ob, **at).flux.value
    drifted = simulate_star(template, ob, **at, drift=60 * u.km / u.s).flux.value
    receding = simulate_star(template, ob, **at, velocity=60 * u.km / u.s).flux.value
    inside = slice(30, -30)
    assert np.abs(drifted - receding)[inside].max() < 0.03 * np.abs(drifted - still)[inside].max()


def test_co_add_has_the_mean_ip(template):
    ip = SimulatedIP("blue")
    times = Time(["2020-06-01T14:00", "2021-06-01T14:00"])  # before and after the change of epoch
    at = {"fiber": 60, "noise": False}
    both = simulate_star(template, ip, time=times, **at)
    single = [simulate_star(template, ip, time=t, **at).flux.value for t in times]
    np.testing.assert_allclose(both.flux.value, np.mean(single, axis=0), rtol=2e-5)
    assert both.meta["lmjm"].shape == (2,)
    assert both.meta["n_exposures"] == {"blue": 2, "red": None}


def test_star_noise_is_what_the_uncertainty_says(template):
    ob = Observatory()
    pulls = []
    for seed in range(25):
        star = simulate_star(template, ob, time=NIGHT, fiber=31, snr=30, seed=seed)
        pulls.append((star.flux.value - star.meta["truth"]["noiseless"]) * np.sqrt(star.uncertainty.array))
    pulls = np.array(pulls)
    assert np.mean(pulls**2) == pytest.approx(1.0, abs=5 * np.sqrt(2 / pulls.size))
    assert np.mean(pulls) == pytest.approx(0.0, abs=5 / np.sqrt(pulls.size))
    assert abs(np.mean(pulls[:, 1:] * pulls[:, :-1])) < 5 / np.sqrt(pulls.size)


@pytest.mark.parametrize("snr", [5.0, 30.0, 200.0])
def test_star_has_the_signal_to_noise_ratio_asked_for_with_lamosts_shape(template, snr):
    star = simulate_star(template, Observatory(), time=NIGHT, fiber=31, snr=snr, noise=False)
    ratio = star.flux.value * np.sqrt(star.uncertainty.array)
    wavelength = star.spectral_axis.to_value(u.AA)
    assert np.median(ratio) == pytest.approx(snr, rel=1e-3)

    def at(low, high):
        return np.median(ratio[(wavelength > low) & (wavelength < high)])

    # poor in the violet, a dip at the dichroic, a drop in [O I] 5577 (5578.9 in vacuum)
    assert at(3750, 3900) < 0.6 * at(5100, 5300)
    assert at(5880, 5920) < 0.9 * at(5200, 5300)
    assert at(5880, 5920) < 0.9 * at(6900, 7100)
    assert at(5578, 5580) < 0.9 * at(5600, 5650)
    assert star.meta["snr"]["g"] > star.meta["snr"]["u"]


def test_star_reads_like_a_lamost_file(template):
    ra, dec = 45.248063 * u.deg, -1.553832 * u.deg
    time = Time("2011-10-24T16:48:00")
    star = simulate_star(template, Observatory(), time=time, fiber=123, spectrograph=5, ra=ra, dec=dec, center="sersic")
    meta = star.meta
    assert set(METADATA_KEYS) <= set(meta)
    assert (meta["spectrograph"], meta["fiber"], meta["arm"], meta["survey"]) == (5, 123, "both", "LRS")
    assert (meta["frame"], meta["wavelength_medium"], meta["wavelength_center"]) == ("heliocentric", "vacuum", "sersic")
    # a real file of that target and time has HELIO_RV = -5.31563 km/s for the middle of three exposures
    assert meta["helio_rv"].to_value(u.km / u.s) == pytest.approx(-5.316, abs=0.15)
    assert check_heliocentric(star).agrees
    assert abs((meta["time"][0] - time).to_value(u.s)) < 1e-3
    log = np.log10(star.spectral_axis.to_value(u.AA))
    np.testing.assert_allclose(np.diff(log), 1e-4, rtol=1e-6)
    assert log[0] == pytest.approx(3.5682, abs=1e-9)
    lsf = Observatory().lsf_for(star)
    assert lsf.center == "sersic"


@pytest.mark.parametrize("center", ["zero", "sersic", "half"])
@pytest.mark.parametrize("arm", ["blue", "red"])
def test_star_agrees_with_what_its_own_lsf_makes_of_the_template(template, center, arm):
    # the LSF that users get has LAMOST's window; the star has the tails beyond it too, and the same centres
    ob = Observatory(2)
    star = simulate_star(template, ob, time=NIGHT, fiber=70, arm=arm, center=center, noise=False)
    model = ll.convolve(template, ob.lsf_for(star), star)
    np.testing.assert_allclose(model.flux.value[20:-20], star.flux.value[20:-20], rtol=2e-4)


@pytest.mark.parametrize("center", ["zero", "sersic"])
def test_measured_velocity_is_the_true_one(template, center):
    # The whole chain, with the observatory as the archive of true IPs: nothing biased beyond the noise.
    ob = Observatory(4)
    star = simulate_star(
        template, ob, time=NIGHT, fiber=40, spectrograph=3, velocity=-61.7 * u.km / u.s, snr=400, center=center,
        ra=45 * u.deg, dec=20 * u.deg,
    )  # fmt: skip
    result = ll.measure_rv(star, template, ob.lsf_for(star), window=(4900 * u.AA, 5400 * u.AA))
    rv, error = (float(u.Quantity(v).to_value(u.km / u.s)) for v in (result.rv, result.rv_err))
    assert error < 0.5
    assert rv == pytest.approx(-61.7, abs=5 * error)


def test_chi_square_of_the_true_model_is_one_per_pixel(template):
    ip = SimulatedIP("red", 9)
    chi2 = []
    lsf = TabulatedLSF(
        ip.with_offset(np.linspace(-20, 20, 1001) * u.AA).profile(
            time=NIGHT, fiber=12, wavelength=np.linspace(5650, 9120, 150) * u.AA
        ),
        extrapolate=True,
    )
    for seed in range(6):
        star = simulate_star(template, ip, time=NIGHT, fiber=12, snr=60, seed=seed, center="zero")
        model = ll.convolve(template, lsf, star, center="zero")
        good = ~np.asarray(star.mask)
        chi2.append(np.mean(((star.flux - model.flux).value ** 2 * star.uncertainty.array)[good]))
    n = 6 * np.count_nonzero(good)
    assert np.mean(chi2) == pytest.approx(1.0, abs=5 * np.sqrt(2 / n))


def test_edges_that_the_template_does_not_reach_are_masked():
    short = synthetic_template(6000, wavelength_range=[4500, 5200] * u.AA)
    star = simulate_star(short, SimulatedIP("blue"), time=NIGHT, fiber=1, velocity=10 * u.km / u.s)
    wavelength = star.spectral_axis.to_value(u.AA)
    assert np.all(star.mask[(wavelength < 4495) | (wavelength > 5205)])
    assert not np.any(star.mask[(wavelength > 4520) & (wavelength < 5180)])
    assert np.all(star.uncertainty.array[star.mask] == 0)
    assert np.all(np.isfinite(star.flux.value))


def test_cosmic_spikes_are_recorded(template):
    star = simulate_star(template, SimulatedIP("blue"), time=NIGHT, fiber=1, cosmic_rate=0.01, seed=3)
    spikes = star.meta["truth"]["cosmic"]
    assert 5 < np.count_nonzero(spikes) < 60
    pull = (star.flux.value - star.meta["truth"]["noiseless"]) * np.sqrt(star.uncertainty.array)
    assert np.median(pull[spikes]) > 8
    assert np.abs(pull[~spikes]).max() < 6


def test_star_from_any_ip_and_on_any_axis(template):
    axis = np.arange(5000, 5400, 0.7) * u.AA
    star = simulate_star(template, ll.GaussianIP(1800), time=NIGHT, fiber=1, wavelength=axis, noise=False)
    model = ll.convolve(template, ll.GaussianIP(1800), axis)
    np.testing.assert_allclose(star.flux.value, model.flux.value, rtol=1e-6)
    blue = simulate_star(template, Observatory(), time=NIGHT, fiber=1, arm="blue", noise=False)
    assert blue.meta["arm"] == "blue"
    assert blue.spectral_axis[-1] < 5901 * u.AA
    alone = simulate_star(template, Observatory().ip(1, "blue"), time=NIGHT, fiber=1, noise=False)
    np.testing.assert_allclose(blue.flux.value, alone.flux.value, rtol=1e-9)
    both = simulate_star(template, Observatory(), time=NIGHT, fiber=1, noise=False)
    wavelength = both.spectral_axis.to_value(u.AA)
    # a stitched spectrum is the blue arm's up to 5800 A in air
    left = wavelength < 5800
    np.testing.assert_allclose(both.flux.value[left], blue.flux.value[: left.sum()], rtol=1e-6)
    smooth = np.abs(np.diff(both.flux.value)[np.abs(wavelength[1:] - 5801.6) < 5])
    assert smooth.max() < 0.03
    assert lamost_axis("red")[0] > 5700 * u.AA
    with pytest.raises(ValueError, match="both"):
        lamost_axis("green")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"template": np.ones(3)}, TypeError, "Spectrum"),
        ({"template": Spectrum(flux=np.ones((2, 9)) * u.one, spectral_axis=np.arange(5000, 5009) * u.AA)},
         ValueError, "one spectrum"),
        ({"ip": "blue"}, TypeError, "IPModel"),
        ({"time": 57763.0}, TypeError, "Time"),
        ({"fiber": 0}, OutOfRangeError, "fiber"),
        ({"velocity": 10.0}, TypeError, "velocity"),
        ({"velocity": 4e5 * u.km / u.s}, ValueError, "speed of light"),
        ({"velocity": np.nan * u.km / u.s}, ValueError, "finite"),
        ({"snr": 0.0}, ValueError, "snr"),
        ({"snr": np.inf}, ValueError, "snr"),
        ({"arm": "green"}, ValueError, "arm"),
        ({"arm": "red"}, ValueError, "blue arm"),
        ({"wavelength": np.arange(4000, 4100.0)}, TypeError, "unit|wavelength"),
        ({"ra": 10 * u.deg}, ValueError, "ra and dec"),
        ({"helio_rv": 10.0}, TypeError, "helio_rv"),
        ({"drift": "red"}, TypeError, "drift"),
        ({"cosmic_rate": -1}, ValueError, "cosmic_rate"),
        ({"center": "nonsense"}, ll.get_center and Exception, "nonsense"),
    ],
)  # fmt: skip
def test_bad_stars_are_refused(template, arguments, error, message):
    full = {"template": template, "ip": SimulatedIP("blue"), "time": NIGHT, "fiber": 1, **arguments}
    with pytest.raises(error, match=message):
        simulate_star(**full)


def test_template_in_air_or_out_of_reach_or_dark_is_refused(template):
    at = {"time": NIGHT, "fiber": 1}
    air = Spectrum(flux=template.flux, spectral_axis=template.spectral_axis, meta={"wavelength_medium": "air"})
    with pytest.raises(ValueError, match="vacuum"):
        simulate_star(air, SimulatedIP("blue"), **at)
    infrared = synthetic_template(6000, wavelength_range=[9500, 10400] * u.AA)
    with pytest.raises(ValueError, match="does not"):
        simulate_star(infrared, SimulatedIP("blue"), **at)
    dark = Spectrum(flux=0 * template.flux, spectral_axis=template.spectral_axis)
    with pytest.raises(ValueError, match="is 0"):
        simulate_star(dark, SimulatedIP("blue"), **at)


@settings(max_examples=10, deadline=None)
@given(velocity=st.floats(-600, 600), fiber=st.integers(1, 250), seed=st.integers(0, 1000))
def test_a_star_moves_with_its_velocity(template, velocity, fiber, seed):
    ip = SimulatedIP("blue", seed=seed)
    star = simulate_star(template, ip, time=NIGHT, fiber=fiber, velocity=velocity * u.km / u.s, noise=False)
    beta = velocity / SPEED_OF_LIGHT
    magnesium = 5185.048 * np.sqrt((1 + beta) / (1 - beta))
    wavelength = star.spectral_axis.to_value(u.AA)
    here = np.abs(wavelength - magnesium) < 5
    lowest = wavelength[here][np.argmin(star.flux.value[here])]
    assert lowest == pytest.approx(magnesium, abs=2.0)


# -- observatory --------------------------------------------------------------------------------------------------


def test_observatory_stands_for_an_archive():
    ob = Observatory(7, epoch=None)
    assert isinstance(ob, ll.IPArchive)
    assert len(ob) == 32
    assert len(ob.table()) == 32
    assert len(ob.gaps()) == 0
    assert "seed 7" in repr(ob)
    truth = ob.ip(3, "red")
    assert truth.meta["seed"] == 7
    assert truth.meta["epoch"] is None
    at = {"time": NIGHT, "fiber": 17}
    a = ob.profile(spectrograph=3, wavelength=7000 * u.AA, **at)
    np.testing.assert_allclose(a.flux, truth.profile(wavelength=7000 * u.AA, **at).flux)
    lsf = ob.lsf(spectrograph=3, **at)
    np.testing.assert_allclose(
        lsf.profile([7000] * u.AA).center("centroid").value,
        truth.profile(wavelength=[7000] * u.AA, **at).center("centroid").value,
        atol=1e-3,
    )
    with pytest.raises(ModelNotFoundError, match="1-16"):
        ob.ip(17, "blue")
    with pytest.raises(ValueError, match="arm"):
        ob.ip(1, "green")
    with pytest.raises(ValueError, match="fiber_scatter"):
        Observatory(fiber_scatter=-1.0)
    with pytest.raises(TypeError):
        Observatory(colour="red")
