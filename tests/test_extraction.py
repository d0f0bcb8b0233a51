"""Extraction of line profiles: against known profiles, planted faults and real arcs."""

import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import exponnorm

import lamost_lsf.simulation as simulation
from lamost_lsf.arcs import ArcExposure, ProfileFlag, ProfileSet, extract_profiles, measure_tilt
from lamost_lsf.arcs.quality import REASONS
from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.instruments import Quality, get_instrument
from lamost_lsf.lines import LineList
from lamost_lsf.wavelength import fit_wavelength_solution

TIME = Time("2017-01-10T15:00:00", scale="utc")
BLUE = get_instrument("lamost-lrs-blue")
LOW, HIGH = BLUE.window
N_FIBER = 16
PIXEL = 0.54


# -- a small arc of its own ------------------------------------------------------------------------------
# Exponentially modified Gaussians (asymmetric, analytic), not the package's simulator and not its splines.


def shape(x, fiber, line):
    sigma = 1.15 + 0.01 * fiber + 0.02 * line
    return exponnorm.pdf(x, 0.6, loc=-0.5 + 0.003 * fiber, scale=sigma)


def peak_of(fiber, line):
    fine = np.linspace(-3, 3, 6001)
    return shape(fine, fiber, line).max()


def counts(n_fiber=N_FIBER, amplitude=20000.0, background=60.0, lines=BLUE.lines.vacuum):
    """Noiseless flux (n_fiber, n_pix) and wavelengths, with sub-pixel phases that differ from fibre to fibre."""
    n_pix = int((5900 - 4000) / PIXEL)
    wavelength = 4000.0 + PIXEL * (np.arange(n_pix) + 0.37 * np.arange(n_fiber)[:, None] % 1.0)
    flux = np.full(wavelength.shape, background)
    for f in range(n_fiber):
        for i, w in enumerate(lines):
            near = np.abs(wavelength[f] - w) < 25
            flux[f, near] += amplitude * shape(wavelength[f, near] - w, f, i) / peak_of(f, i)
    return flux, wavelength


def exposure(flux, wavelength, noise=None, **changes):
    variance = np.maximum(flux, 0) + 25.0
    if noise is not None:
        flux = flux + np.random.default_rng(noise).normal(size=flux.shape) * np.sqrt(variance)
    facts = {
        "medium": "vacuum", "time": TIME, "fiber": np.arange(1, flux.shape[0] + 1), "arm": "blue",
        "spectrograph": 1, "lamp": "HgCd", "instrument": "lamost-lrs-blue",
    }  # fmt: skip
    return ArcExposure.from_arrays(flux, 1.0 / variance, wavelength * u.AA, **{**facts, **changes})


CLEAN, WAVELENGTH = counts()


def near(fiber, line, offset):
    """Pixel index of an offset from a line."""
    return fiber, int(np.argmin(np.abs(WAVELENGTH[fiber] - BLUE.lines.vacuum[line] - offset)))


def flags(profiles):
    return profiles.flag.reshape(-1, len(profiles.lines))


# -- the profile itself ----------------------------------------------------------------------------------


def test_noiseless_profiles_are_the_true_ones():
    profiles = extract_profiles(exposure(CLEAN, WAVELENGTH))
    assert np.all(profiles.good)
    assert profiles.profile.shape == (N_FIBER * 7, 600)
    truth = np.array([shape(BLUE.offset, f, i) / peak_of(f, i) for f in range(N_FIBER) for i in range(7)])
    # what is left is the spline's error and the wings below the minima
    assert np.abs(profiles.profile - truth).max() < 3e-3
    np.testing.assert_array_equal(profiles.fiber, np.repeat(np.arange(1, N_FIBER + 1), 7))
    np.testing.assert_array_equal(profiles.line, np.tile(np.arange(7), N_FIBER))
    np.testing.assert_array_equal(profiles.wavelength, np.tile(BLUE.lines.vacuum, N_FIBER))
    assert np.all(profiles.lmjm == TIME.mjd * 1440 + 480)
    assert np.all(profiles.profile >= 0)
    assert np.all(profiles.profile.max(axis=1) > 1 - 1e-4)


def test_offset_is_observed_minus_true():
    # light that falls 0.4 A redwards of where its line should be
    flux, wavelength = counts(lines=BLUE.lines.vacuum + 0.4)
    moved = extract_profiles(exposure(flux, wavelength)).to_profile().center("half").to_value(u.AA)
    still = extract_profiles(exposure(CLEAN, WAVELENGTH)).to_profile().center("half").to_value(u.AA)
    np.testing.assert_allclose(moved - still, 0.4, atol=2e-3)


def test_air_wavelengths_give_the_same_profiles():
    from specutils.utils.wcs_utils import vac_to_air

    air = vac_to_air(WAVELENGTH * u.AA, method="Ciddor1996")
    one = extract_profiles(exposure(CLEAN, air.value, medium="air"))
    two = extract_profiles(exposure(CLEAN, WAVELENGTH))
    np.testing.assert_allclose(one.profile, two.profile, atol=2e-3)
    assert np.all(one.good)


def test_background_is_taken_away_and_recorded_in_the_pixels():
    line = np.linspace(0, 900, WAVELENGTH.shape[1])
    one = extract_profiles(exposure(CLEAN, WAVELENGTH))
    two = extract_profiles(exposure(CLEAN + line, WAVELENGTH))
    # minima of a sloping flank are not quite those of the flat one
    np.testing.assert_allclose(one.profile, two.profile, atol=2e-4)
    good = two.native_ivar > 0
    for k in (0, 13, 40):
        f, w = k // 7, two.wavelength[k]
        inside = (WAVELENGTH[f] - w >= LOW) & (WAVELENGTH[f] - w <= HIGH)
        np.testing.assert_allclose(two.native_offset[k, good[k]], (WAVELENGTH[f] - w)[inside], atol=1e-5)
        np.testing.assert_allclose(two.native_flux[k, good[k]], (CLEAN + line)[f, inside], rtol=1e-6)
    assert two.native_flux.shape[1] == good.sum(1).max()


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.05, 50), offset=st.floats(-500, 500))
def test_units_of_the_counts_do_not_matter(scale, offset):
    one = extract_profiles(exposure(CLEAN, WAVELENGTH, noise=3))
    arc = exposure(CLEAN, WAVELENGTH, noise=3)
    two = extract_profiles(
        ArcExposure.from_arrays(
            scale * (arc.flux + offset), arc.ivar / scale**2, WAVELENGTH * u.AA, medium="vacuum", time=TIME,
            fiber=arc.fiber, arm="blue", instrument="lamost-lrs-blue",
        )
    )  # fmt: skip
    np.testing.assert_allclose(one.profile, two.profile, atol=1e-5)
    np.testing.assert_allclose(one.noise, two.noise, rtol=1e-4)
    np.testing.assert_array_equal(one.flag, two.flag)


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-30, 30), before=st.integers(0, 9), after=st.integers(0, 9))
def test_the_window_moves_with_the_line_and_not_with_the_chip(shift, before, after):
    # another zero of the wavelengths, lines included, and other ends of the chip
    one = extract_profiles(exposure(CLEAN, WAVELENGTH, noise=8))
    arc = exposure(CLEAN, WAVELENGTH, noise=8)
    ends = ((0, 0), (before, after))
    wavelength = np.pad(arc.wavelength, ends)
    for k in range(before):
        wavelength[:, k] = arc.wavelength[:, 0] - PIXEL * (before - k)
    for k in range(after):
        wavelength[:, -1 - k] = arc.wavelength[:, -1] + PIXEL * (after - k)
    lines = LineList.from_wavelengths((BLUE.lines.vacuum + shift) * u.AA, medium="vacuum", species="Hg I")
    two = extract_profiles(
        ArcExposure.from_arrays(
            np.pad(arc.flux, ends, constant_values=60.0), np.pad(arc.ivar, ends, constant_values=0.01),
            (wavelength + shift) * u.AA, medium="vacuum", time=TIME, fiber=arc.fiber, arm="blue",
            instrument="lamost-lrs-blue",
        ),
        lines=lines,
    )  # fmt: skip
    np.testing.assert_allclose(two.profile, one.profile, atol=2e-5)
    np.testing.assert_array_equal(two.flag, one.flag)
    np.testing.assert_allclose(two.native_offset, one.native_offset, atol=1e-5)
    np.testing.assert_array_equal(two.native_flux, one.native_flux)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(N_FIBER)))
def test_order_of_the_rows_does_not_matter(order):
    order = np.array(order)
    arc = exposure(CLEAN, WAVELENGTH, noise=4)
    other = ArcExposure(
        arc.flux[order], arc.ivar[order], arc.mask[order], arc.wavelength[order], TIME, arc.fiber[order],
        1, "blue", instrument="lamost-lrs-blue",
    )  # fmt: skip
    one, two = extract_profiles(arc), extract_profiles(other)
    np.testing.assert_array_equal(one.fiber, two.fiber)
    np.testing.assert_array_equal(one.profile, two.profile)


def test_noise_is_what_repeated_exposures_scatter_by():
    sets = [extract_profiles(exposure(CLEAN, WAVELENGTH, noise=seed), clip=False) for seed in range(60)]
    stack = np.stack([s.profile for s in sets]).astype(float)
    measured = np.sqrt(np.mean(np.var(stack, axis=0, ddof=1), axis=1))
    predicted = np.mean([s.noise for s in sets], axis=0)
    ratio = measured / predicted
    assert 0.93 < np.median(ratio) < 1.07
    assert ratio.min() > 0.8
    assert ratio.max() < 1.25
    assert all(np.all(s.good) for s in sets)
    assert min(s.profile.min() for s in sets) < 0  # unclipped


# -- planted faults: it, and only it, is named -----------------------------------------------------------


def planted(change, noise=7, **options):
    """Flags (n_fiber, n_line) after ``change(flux, mask)``."""
    arc = exposure(CLEAN, WAVELENGTH, noise=noise)
    flux, mask = np.array(arc.flux), np.zeros(arc.flux.shape, dtype=bool)
    change(flux, mask)
    return extract_profiles(
        ArcExposure.from_arrays(
            flux, arc.ivar, WAVELENGTH * u.AA, medium="vacuum", mask=mask, time=TIME, fiber=arc.fiber, arm="blue",
            instrument="lamost-lrs-blue",
        ),
        **options,
    )  # fmt: skip


def expect(profiles, where):
    """Exactly the flags of ``where`` {(fiber, line): flag}, all others good."""
    expected = np.zeros((N_FIBER, 7), dtype=int)
    for at, flag in where.items():
        expected[at] = flag
    found = flags(profiles)
    wrong = [(int(f), int(i), str(ProfileFlag(int(found[f, i])))) for f, i in np.argwhere(found != expected)]
    assert not wrong


def test_without_faults_nothing_is_rejected():
    expect(planted(lambda flux, mask: None), {})


def test_low_fiber_and_dead_fiber():
    def change(flux, mask):
        flux[3] *= 0.4
        flux[9] = np.random.default_rng(0).normal(0, 5, flux.shape[1])
        flux[5] *= 0.6

    where = {(f, i): ProfileFlag.LOW_FLUX for f in (3, 9) for i in range(7)}
    expect(planted(change), where)


def test_line_that_is_missing_in_one_fiber():
    def change(flux, mask):
        _, at = near(6, 2, 0.0)
        flux[6, at - 30 : at + 30] = 60.0 + np.random.default_rng(1).normal(0, 9, 60)

    expect(planted(change), {(6, 2): ProfileFlag.LOW_FLUX})


@pytest.mark.parametrize("offset", [-6.0, -2.5, -1.0, 0.0, 1.5, 5.0])
@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_cosmic_ray(offset, pixels):
    hit = []

    def change(flux, mask):
        f, at = near(8, 4, offset)
        flux[f, at : at + pixels] += 4000.0
        hit.append((f, at))

    profiles = planted(change)
    expect(profiles, {(8, 4): ProfileFlag.COSMIC_RAY})
    k = 8 * 7 + 4
    f, at = hit[0]
    start = np.flatnonzero(WAVELENGTH[f] - profiles.wavelength[k] >= LOW)[0]
    inside = slice(at - start, at - start + pixels)
    # only the pixels hit (and perhaps a neighbour) are lost to a pixel likelihood
    assert np.all(profiles.native_ivar[k, inside] == 0)
    assert np.count_nonzero(profiles.native_ivar[k, : profiles.native_ivar.shape[1] - 1] == 0) <= pixels + 1


def test_cosmic_ray_on_two_fibers_at_once():
    def change(flux, mask):
        for f in (8, 9):
            flux[near(f, 1, -3.0)] += 3000.0

    expect(planted(change), {(8, 1): ProfileFlag.COSMIC_RAY, (9, 1): ProfileFlag.COSMIC_RAY})


def test_a_fiber_of_another_shape_is_no_cosmic_ray():
    def change(flux, mask):
        # a wing and a broader core in all lines, as the paper's fibre 155
        for w in BLUE.lines.vacuum:
            x = WAVELENGTH[7] - w
            part = np.abs(x) < 20
            flux[7, part] += 20000 * 0.12 * np.exp(-0.5 * ((x[part] - 1.0) / 2.2) ** 2)

    expect(planted(change), {})


def test_saturation_by_level_and_by_flat_top():
    def change(flux, mask):
        f, at = near(4, 3, 0.0)
        flux[f, at - 2 : at + 3] = np.minimum(flux[f, at - 2 : at + 3], 15000.0)

    expect(
        planted(change, saturation=15000.0), {(f, i): ProfileFlag.SATURATED for f in range(N_FIBER) for i in range(7)}
    )
    expect(planted(change), {(4, 3): ProfileFlag.SATURATED})
    profiles = planted(change, saturation=60000.0)
    expect(profiles, {(4, 3): ProfileFlag.SATURATED})


def test_saturated_pixels_have_no_weight():
    def change(flux, mask):
        flux[near(2, 5, 0.0)] = 60000.0

    profiles = planted(change, saturation=60000.0)
    expect(profiles, {(2, 5): ProfileFlag.SATURATED})
    k = 2 * 7 + 5
    full = profiles.native_flux[k] >= 60000.0
    assert full.sum() == 1
    assert np.all(profiles.native_ivar[k, full] == 0)


def test_saturation_level_comes_from_the_exposure_or_the_instrument():
    arc = exposure(CLEAN, WAVELENGTH, meta={"saturation": 10000.0})
    assert np.all(extract_profiles(arc).flag == ProfileFlag.SATURATED)
    assert np.all(extract_profiles(arc, saturation=1e6).good)
    small = BLUE.replace(saturation=10000.0)
    assert np.all(extract_profiles(exposure(CLEAN, WAVELENGTH), instrument=small).flag == ProfileFlag.SATURATED)


@pytest.mark.parametrize(
    ("offset", "width", "gap"),
    [(0.0, 1, True), (3.0, 1, True), (-3.9, 1, True), (-6.5, 1, False), (6.0, 2, False), (6.0, 3, True)],
)
def test_gap(offset, width, gap):
    def change(flux, mask):
        f, at = near(10, 3, offset)
        mask[f, at : at + width] = True
        flux[f, at : at + width] = 1e6

    expect(planted(change), {(10, 3): ProfileFlag.GAP} if gap else {})


def test_window_off_the_chip():
    arc = exposure(CLEAN, WAVELENGTH)
    # 4047.708 - 8.335: the first pixel lies between the fibres' needs
    start = np.searchsorted(WAVELENGTH[0], BLUE.lines.vacuum[0] + LOW) - 1
    cut = ArcExposure.from_arrays(
        arc.flux[:, start:], arc.ivar[:, start:], WAVELENGTH[:, start:] * u.AA, medium="vacuum", time=TIME,
        fiber=arc.fiber, arm="blue", instrument="lamost-lrs-blue",
    )  # fmt: skip
    profiles = extract_profiles(cut)
    off = WAVELENGTH[:, start] > BLUE.lines.vacuum[0] + LOW
    assert 0 < np.count_nonzero(off) < N_FIBER
    expect(profiles, {(int(f), 0): ProfileFlag.OFF_CHIP for f in np.flatnonzero(off)})
    rejected = profiles.select(profiles.flag == ProfileFlag.OFF_CHIP)
    assert np.all(np.isnan(rejected.profile))
    assert np.count_nonzero(rejected.native_ivar[0]) > 20  # the pixels that there are


def test_neighbour_in_one_fiber_is_a_second_peak():
    def change(flux, mask):
        x = WAVELENGTH[11] - BLUE.lines.vacuum[1]
        flux[11] += 2500 * np.exp(-0.5 * ((x + 5.5) / 1.0) ** 2)

    profiles = planted(change, quality=Quality(cosmic_sigma=1e6))
    expect(profiles, {(11, 1): ProfileFlag.NOT_SINGLE_PEAKED})


def test_neighbour_in_all_fibers_is_a_second_peak_and_a_blend_where_the_lamp_is_known():
    def change(flux, mask):
        x = WAVELENGTH - BLUE.lines.vacuum[1]
        flux += 2500 * np.exp(-0.5 * ((x + 5.5) / 1.0) ** 2)

    expect(planted(change), {(f, 1): ProfileFlag.NOT_SINGLE_PEAKED for f in range(N_FIBER)})
    vacuum = np.append(BLUE.lines.vacuum, BLUE.lines.vacuum[1] - 5.5)
    lamp = LineList.from_wavelengths(vacuum * u.AA, medium="vacuum")
    expect(planted(change, lamp=lamp), {(f, 1): ProfileFlag.BLEND for f in range(N_FIBER)})
    listed = LineList(BLUE.lines.species, BLUE.lines.air, BLUE.lines.vacuum, blend=np.arange(7) == 1)
    expect(planted(change, lines=listed), {(f, 1): ProfileFlag.BLEND for f in range(N_FIBER)})


def test_flank_of_a_line_beyond_the_window():
    def change(flux, mask):
        x = WAVELENGTH[2] - BLUE.lines.vacuum[6]
        flux[2] += 15000 * np.exp(-0.5 * ((x - 10.5) / 1.2) ** 2)

    expect(planted(change, quality=Quality(cosmic_sigma=1e6)), {(2, 6): ProfileFlag.NOT_SINGLE_PEAKED})


@pytest.mark.parametrize("slope", [250.0, -250.0])
def test_background_slope(slope):
    def change(flux, mask):
        x = WAVELENGTH[5] - BLUE.lines.vacuum[3]
        part = np.abs(x) < 60
        flux[5, part] += slope * (x[part] + np.sign(slope) * 60)

    expect(planted(change), {(5, 3): ProfileFlag.BACKGROUND_SLOPE})


def test_several_faults_are_told_apart():
    def change(flux, mask):
        flux[1] *= 0.3
        flux[near(4, 0, 2.0)] += 6000
        mask[near(6, 2, 0.0)] = True
        mask[near(1, 2, 0.0)] = True

    where = {(1, i): ProfileFlag.LOW_FLUX for i in range(7)}
    where.update(
        {(4, 0): ProfileFlag.COSMIC_RAY, (6, 2): ProfileFlag.GAP, (1, 2): ProfileFlag.LOW_FLUX | ProfileFlag.GAP}
    )
    profiles = planted(change)
    expect(profiles, where)
    reasons = np.array(profiles.reasons()).reshape(N_FIBER, 7)
    assert reasons[1, 2] == "LOW_FLUX|GAP"
    assert reasons[0, 0] == ""


def test_every_flag_has_a_meaning_and_a_bit():
    assert set(REASONS) == set(ProfileFlag)
    assert sorted(int(f) for f in ProfileFlag) == [1 << i for i in range(8)]


# -- few fibres ------------------------------------------------------------------------------------------


def test_one_fiber_alone_is_extracted():
    arc = exposure(CLEAN[:1], WAVELENGTH[:1], noise=2)
    profiles = extract_profiles(arc)
    assert len(profiles) == 7
    assert np.all(profiles.good)


# -- arguments -------------------------------------------------------------------------------------------


def test_lines_by_index_and_by_list():
    arc = exposure(CLEAN, WAVELENGTH)
    some = extract_profiles(arc, lines=[4, 1])
    assert some.line.reshape(-1, 2)[0].tolist() == [1, 4]
    whole = extract_profiles(arc)
    np.testing.assert_array_equal(some.profile, whole.select(np.isin(whole.line, [1, 4])).profile)
    assert np.all(some.good)
    own = extract_profiles(arc, lines=BLUE.lines[2:4])
    assert own.lines == BLUE.lines[2:4]
    assert own.line.max() == 1
    for wrong, message in (([9], "0 to 6"), ([1, 1], "different"), ([], "indices"), ([0.5], "indices")):
        with pytest.raises(ValueError, match=message):
            extract_profiles(arc, lines=wrong)
    with pytest.raises(ValueError, match="empty"):
        extract_profiles(arc, lines=BLUE.lines[:0])


def test_what_cannot_be_extracted_is_refused():
    arc = exposure(CLEAN, WAVELENGTH)
    with pytest.raises(TypeError, match="ArcExposure"):
        extract_profiles("arc.fits")
    with pytest.raises(ValueError, match="pass instrument="):
        extract_profiles(exposure(CLEAN, WAVELENGTH, instrument=""))
    with pytest.raises(LookupError, match="did you mean"):
        extract_profiles(arc, instrument="lamost-lrs-bluue")
    with pytest.raises(ValueError, match="red arm"):
        extract_profiles(arc, instrument="lamost-lrs-red")
    with pytest.raises(ValueError, match="is of lamost-lrs-blue, instrument lamost-mrs-blue"):
        extract_profiles(arc, instrument="lamost-mrs-blue")
    with pytest.raises(ValueError, match="all are masked"):
        extract_profiles(exposure(CLEAN, WAVELENGTH, mask=np.ones(CLEAN.shape, dtype=bool)))
    with pytest.raises(ValueError, match="positive number of counts"):
        extract_profiles(arc, saturation=-1.0)
    for fiber in (0, 251):
        numbers = np.r_[fiber, 2 : N_FIBER + 1]
        with pytest.raises(OutOfRangeError, match=f"{fiber}"):
            extract_profiles(exposure(CLEAN, WAVELENGTH, fiber=numbers, instrument=""), instrument=BLUE)


def test_exposure_of_a_lamp_that_is_off_is_rejected_quietly():
    rng = np.random.default_rng(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profiles = extract_profiles(exposure(rng.normal(50, 8, CLEAN.shape), WAVELENGTH))
        zero = extract_profiles(exposure(np.zeros(CLEAN.shape), WAVELENGTH))
    assert np.all(profiles.flag & ProfileFlag.LOW_FLUX)
    assert np.all(zero.flag == ProfileFlag.LOW_FLUX)


# -- the set ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both():
    def change(flux, mask):
        flux[3] *= 0.2
        flux[near(8, 4, 1.0)] += 5000

    one = planted(change)
    later = exposure(
        CLEAN, WAVELENGTH, noise=11, time=Time("2017-02-10T15:00:00", scale="utc"), time_reference="mid",
        meta={"temperature": 4.5 * u.deg_C, "file": "b.fits", "wavelength_center": "sersic"},
    )  # fmt: skip
    return one, extract_profiles(later)


def test_yields_count_every_profile_once(both):
    one, _ = both
    for by in (("fiber", "line"), "fiber", "line", ("exposure",)):
        table = one.yields(by)
        assert table["n"].sum() == len(one)
        assert table["good"].sum() == np.count_nonzero(one.good)
    by_fiber = one.yields("fiber")
    assert by_fiber["low_flux"][3] == 7
    assert by_fiber["yield"][3] == 0
    assert by_fiber["cosmic_ray"][8] == 1
    by_line = one.yields("line")
    assert by_line["wavelength"][4] == BLUE.lines.vacuum[4]
    assert by_line["good"].tolist() == [15, 15, 15, 15, 14, 15, 15]
    reasons = one.yields("reason")
    assert dict(zip(reasons["reason"], reasons["n"]))["LOW_FLUX"] == 7
    assert reasons["share"].sum() == pytest.approx(8 / len(one))
    for wrong in ("flag", ("reason", "line"), (), ("line", "line")):
        with pytest.raises(ValueError, match="by must be"):
            one.yields(wrong)


def test_sets_are_joined_with_their_provenance(both):
    one, two = both
    joined = one.concatenate(two)
    assert len(joined) == len(one) + len(two)
    assert len(joined.exposures) == 2
    assert set(joined.exposure) == {0, 1}
    assert joined.exposures["temperature"][1] == 4.5
    assert np.isnan(joined.exposures["temperature"][0])
    assert joined.exposures["time_reference"].tolist() == ["start", "mid"]
    assert joined.exposures["sha256"][0] != joined.exposures["sha256"][1]
    assert np.unique(joined.lmjm).size == 2
    again = joined.select(joined.exposure == 1)
    np.testing.assert_array_equal(again.profile, two.profile)
    assert "2 exposures" in repr(joined)
    assert len(joined.to_table()) == len(joined)
    assert joined.to_table()["reason"][3 * 7] == "LOW_FLUX"
    # native pixels of different numbers are padded with weight 0
    narrow = ProfileSet(
        **{
            **{k: getattr(two, k) for k in two.__dataclass_fields__},
            **{k: getattr(two, k)[:, :-2] for k in ("native_offset", "native_flux", "native_ivar")},
        }
    )
    padded = one.concatenate(narrow)
    assert padded.native_ivar.shape[1] == one.native_ivar.shape[1]
    assert np.all(padded.native_ivar[len(one) :, -2:] == 0)


def test_only_sets_of_one_kind_are_joined(both):
    one, _ = both
    with pytest.raises(TypeError, match="only ProfileSets"):
        one.concatenate([one])
    for changes, message in (
        ({"instrument": "other"}, "instrument differs: 'lamost-lrs-blue' and 'other'"),
        ({"arm": "red"}, "arm differs"),
        ({"spectrograph": 2}, "spectrograph differs"),
        ({"offset": one.offset + 0.1}, "grids differ"),
        ({"digest": "x"}, "described differently"),
        (
            {"lines": LineList(one.lines.species, one.lines.air, one.lines.vacuum, blend=[True] * 7)},
            "line lists differ",
        ),
    ):
        other = ProfileSet(**{**{k: getattr(one, k) for k in one.__dataclass_fields__}, **changes})
        with pytest.raises(ValueError, match=message):
            one.concatenate(other)


def test_inconsistent_sets_are_refused(both):
    one, _ = both
    content = {k: getattr(one, k) for k in one.__dataclass_fields__}
    for changes, message in (
        ({"noise": one.noise[:-1]}, "noise has shape"),
        ({"profile": one.profile[:, :-1]}, "599 samples"),
        ({"native_flux": one.native_flux[:, :-1]}, "one shape"),
        ({"line": one.line + 1}, "line must be 0 to 6"),
        ({"exposure": one.exposure + 1}, "exposure must be 0 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ProfileSet(**{**content, **changes})


def test_profiles_know_their_centre_definition(both):
    one, two = both
    assert two.to_profile().meta["wavelength_center"] == "sersic"
    assert "wavelength_center" not in one.to_profile().meta
    profile = two.to_profile()
    assert profile.shape == (len(two),)
    assert profile.wavelength.unit == u.AA
    np.testing.assert_allclose(profile.error[5], two.noise[5])
    # full width at half maximum of the analytic profile
    fine = np.linspace(-5, 5, 20001)
    truth = [np.ptp(fine[shape(fine, f, 0) > 0.5 * peak_of(f, 0)]) for f in range(N_FIBER)]
    np.testing.assert_allclose(profile.fwhm.to_value(u.AA)[::7], truth, rtol=0.02)


# -- simulated arcs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["blue", "red"])
def test_simulated_arc_has_the_papers_systematic_errors_and_no_others(arm):
    """Spline, minima and a noisy peak leave up to 1-3e-3 of the peak, which is what a pixel likelihood avoids."""
    ip = simulation.SimulatedIP(arm, 2)
    fiber = np.arange(1, 121)
    arc = simulation.simulate_arc(ip, TIME, fiber=fiber, dead_fibers=[17, 60], cosmic_rate=0.0, throughput_scatter=0.1)
    profiles = extract_profiles(ArcExposure.from_simulation(arc, instrument=f"lamost-lrs-{arm}"))
    rejected = set(profiles.fiber[~profiles.good])
    assert rejected == {17, 60}
    good = profiles.select(profiles.good)
    truth = ip.evaluate(good.offset * u.AA, time=TIME, fiber=good.fiber.astype(int), wavelength=good.wavelength * u.AA)
    error = good.profile - truth / truth.max(axis=1, keepdims=True)
    rms = np.sqrt(np.mean(error**2, axis=1))
    assert 0.85 < np.median(rms / good.noise) < 1.2
    systematic = [np.sqrt(np.mean(error[good.line == i].mean(axis=0) ** 2)) for i in range(len(good.lines))]
    worst = [np.abs(error[good.line == i].mean(axis=0)).max() for i in range(len(good.lines))]
    assert max(systematic) < 3e-3
    assert max(worst) > 1e-3
    assert max(worst) < 6e-3


def test_cosmic_rays_of_a_long_exposure_are_found_and_no_others():
    ip = simulation.SimulatedIP("red", 3)
    arc = simulation.simulate_arc(ip, TIME, fiber=np.arange(100, 220), cosmic_rate=1e-3, dead_fibers=[], seed=5)
    profiles = extract_profiles(ArcExposure.from_simulation(arc, instrument="lamost-lrs-red"))
    truth = arc.meta["truth"]
    extra = np.where(truth["cosmic"], arc.flux - truth["noiseless"], 0.0)
    offset = arc.wavelength[:, :, None] - profiles.lines.vacuum
    inside = (offset >= profiles.offset[0]) & (offset <= profiles.offset[-1])
    peak = np.max(np.where(inside, truth["noiseless"][:, :, None], 0), axis=1)
    share = np.max(np.where(inside, extra[:, :, None], 0), axis=1) / peak
    found = (flags(profiles) & ProfileFlag.COSMIC_RAY) != 0
    assert np.count_nonzero(share > 0.1) >= 15
    assert np.mean(found[share > 0.1]) > 0.9
    hit = np.any(inside & truth["cosmic"][:, :, None], axis=1)
    assert np.count_nonzero(found & ~hit) <= 1
    # the defective fibre 155 passes
    assert np.all((flags(profiles)[155 - 100] == 0) | hit[155 - 100])


# -- real arcs -------------------------------------------------------------------------------------------


def sprat(data_dir, name, instrument):
    folder = data_dir / "arcs" / "sprat_xe_longslit"
    frame, header = fits.getdata(folder / name, header=True)
    frame = frame.astype(float)
    pixel, wavelength = np.loadtxt(folder / "ground_truth_v_a.csv", delimiter=",", usecols=(0, 1)).T
    solution = fit_wavelength_solution(
        pixel, wavelength * u.AA, degree=4, domain=(0, 1023), medium="air", sigma_clip=None
    )
    tilt = measure_tilt(frame, [335, 803, 963], rows=(60, 246), reference=150)
    arc = ArcExposure.from_long_slit(
        frame,
        solution,
        rows=(60, 246),
        time=Time(header["DATE-OBS"], scale="utc"),
        arm=instrument.removeprefix("sprat-"),
        tilt=tilt,
        gain=header["GAIN"],
        read_noise=6.0,
        lamp="Xe",
        instrument=instrument,
        meta={"temperature": header["ENVTEMP1"] - 273.15, "file": name},
    )
    return arc, tilt


@pytest.mark.parametrize(
    ("name", "instrument"),
    [
        ("v_a_20180810_13_1_0_1.fits.gz", "sprat-red"),
        ("v_a_20190516_55_1_0_1.fits", "sprat-red"),
        ("v_a_20190516_57_1_0_1.fits", "sprat-blue"),
    ],
)
def test_real_xenon_arcs_yield_seven_lines_a_row(data_dir, name, instrument):
    arc, tilt = sprat(data_dir, name, instrument)
    assert arc.n_fiber == 186
    assert 0.5 < np.ptp(tilt[:, 335]) < 1.5  # the slit's image is tilted by most of a pixel
    profiles = extract_profiles(arc)
    table = profiles.yields("line")
    assert len(table) == 7
    assert np.all(table["yield"][:6] > 0.97)
    assert table["yield"][6] > 0.6  # 8057 A is a pair next to a bump
    good = profiles.select(profiles.good)
    ip = good.to_profile()
    pixels = ip.fwhm.to_value(u.AA) / 4.6
    for line in range(7):
        assert 4.0 < np.median(pixels[good.line == line]) < 5.0
    # with the tilt taken out a line's centre is the same in all rows: residual scatter of a tenth of a pixel
    center = ip.center("half").to_value(u.AA)
    for line in range(6):
        own, row = center[good.line == line], good.fiber[good.line == line] - 150.0
        slope, _ = np.polyfit(row, own, 1)
        assert abs(slope) * 186 < 0.6
        assert np.std(own) < 0.65
    assert profiles.exposures["temperature"][0] == pytest.approx(13, abs=6)
    assert profiles.exposures["file"][0] == name


def test_real_lines_smear_without_the_tilt(data_dir):
    """The mistake that the tilt guards against: 3 A of drift along the slit."""
    arc, _ = sprat(data_dir, "v_a_20180810_13_1_0_1.fits.gz", "sprat-red")
    straight = ArcExposure(
        arc.flux, arc.ivar, arc.mask, np.broadcast_to(arc.wavelength[90], arc.flux.shape), arc.time, arc.fiber,
        1, "red", instrument="sprat-red",
    )  # fmt: skip
    one, two = (extract_profiles(a, lines=[0]).to_profile().center("half").to_value(u.AA) for a in (arc, straight))
    assert np.nanstd(two) > 2.5 * np.nanstd(one)
