"""`measure_rvs` against spectra made here from the scatter integral, sample by sample, by no code of the package."""

import pickle
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.io import fits
from astropy.time import Time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rv_stars import C, doppler, lines
from scipy.optimize import minimize_scalar
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf.errors import CenterMismatchWarning
from lamost_lsf.io import LamostArrays
from lamost_lsf.lsf import LSF, JoinedLSF, MeanLSF, Segment
from lamost_lsf.models.expansion import _N_NIGHT, Expansion
from lamost_lsf.rv import RVFlag, RVMachine, measure_rv, measure_rvs
from lamost_lsf.rv.combine import combine_windows
from lamost_lsf.rv.family import LSFFamily
from lamost_lsf.rv.models import combine, component_weights
from lamost_lsf.rv.rows import COLUMNS, blank_row
from lamost_lsf.rv.search import VelocitySearch
from lamost_lsf.rv.windows import parse_windows

AXIS = 10 ** (1e-4 * np.arange(36946, 37202))  # 4950-5250 A, LAMOST's grid
FINE = np.arange(4890.0, 5312.0, 0.1)
LIMITS = (-300.0, 300.0)
OPTIONS = {"velocity_range": LIMITS, "windows": (4940, 5260) * u.AA, "degree": 3}
KMS = u.km / u.s


# --- the truth -------------------------------------------------------------------------------------------------------


def h(offset, w, width, share):
    """Profile of a fibre: unit area, ``offset`` observed minus true; skew, and changing with wavelength."""
    sigma = w / (2.355 * 1800.0) * width * (1.0 + 0.05 * (w - 5100.0) / 200.0)
    a, b = offset / sigma, (offset - 1.5 * sigma) / sigma
    return ((1 - share) * np.exp(-0.5 * a * a) + share * np.exp(-0.5 * b * b)) / (np.sqrt(2 * np.pi) * sigma)


class Fiber(LSF):
    offset = np.linspace(-10.0, 12.0, 601)

    def __init__(self, width=1.0, share=0.25, meta=None):
        super().__init__(meta)
        self.parameters = width, share

    def _sample(self, wavelength):
        return h(self.offset[None, :], wavelength[:, None], *self.parameters)


FIBERS = [Fiber(w, s) for w, s in zip(np.linspace(0.9, 1.1, 7), (0.1, 0.3, 0.2, 0.35, 0.15, 0.4, 0.25))]


STAR = lines(FINE)


def scatter(flux, velocity, axis=AXIS, fiber=FIBERS[3]):
    """F(w) = sum over true pixels of h(w - w'; w') T dw', the template's pixels moved by hand."""
    true = FINE * doppler(velocity)
    width = 0.1 * doppler(velocity)
    out = np.empty(axis.size)
    for i, w in enumerate(axis):
        a, b = np.searchsorted(true, (w - 13, w + 11))
        out[i] = np.sum(h(w - true[a:b], true[a:b], *fiber.parameters) * flux[a:b]) * width
    return out


def position(axis=AXIS):
    return 2 * (axis - axis[0]) / (axis[-1] - axis[0]) - 1


def template(flux=STAR, name="star"):
    return Spectrum(flux=flux * u.one, spectral_axis=FINE * u.AA, meta={"name": name})


def arrays(flux, snr=100.0, axis=AXIS, rng=None, mask=None, **meta):
    """What a reader of files gives; with noise where ``rng`` is given."""
    sigma = np.median(flux) / snr
    if rng is not None:
        flux = flux + rng.normal(0, sigma, flux.size)
    mask = np.zeros(axis.size, bool) if mask is None else mask
    return LamostArrays(axis, flux, np.full(axis.size, sigma**-2), mask, {"frame": "heliocentric", **meta})


def direct_chi2(item, velocity, fiber, degree=3):
    """Chi-square at one velocity with the best polynomial, from scratch."""
    root = np.sqrt(np.where(item.mask, 0, item.ivar))
    design = scatter(STAR, velocity, item.wavelength, fiber)[:, None] * np.vander(position(item.wavelength), degree + 1)
    coefficients = np.linalg.lstsq(design * root[:, None], item.flux * root, rcond=None)[0]
    return np.sum((root * (item.flux - design @ coefficients)) ** 2)


@pytest.fixture(scope="module")
def clean():
    """Noiseless spectra, one of each fibre, on grids that are offset against one another, and their velocities."""
    velocities = [-251.0, -90.5, -7.0, 33.3, 120.0, 199.0, 260.0]
    axes = [AXIS * np.exp(f * 1e-4 * np.log(10)) for f in (0, 1e-3, 0.31, -0.49, 0.5, 0.7, 0.02)]
    return [
        (arrays(scatter(STAR, v, a, f) * (1 + 0.2 * position(a)), 1000, a), v, f)
        for v, a, f in zip(velocities, axes, FIBERS, strict=True)
    ]


def noisy(item, snr, rng):
    return arrays(item.flux, snr, item.wavelength, rng, item.mask, **item.meta)


# --- velocities ------------------------------------------------------------------------------------------------------


def test_injected_velocities_come_back_through_each_spectrums_own_lsf(clean):
    items, velocities, fibers = zip(*clean, strict=True)
    table = measure_rvs(items, template(), fibers, **OPTIONS)
    assert_allclose(table["rv"], velocities, atol=0.02)
    assert_array_equal(table["flags"], 0)
    assert table.colnames == [c[0] for c in COLUMNS]
    assert table["rv"].unit == KMS
    # one profile for all is off by what the profiles differ in
    wrong = measure_rvs(items, template(), ll.GaussianIP(1800), **OPTIONS)
    assert np.abs(wrong["rv"] - velocities).max() > 5


def test_velocities_are_at_the_minimum_of_the_continuous_chi_square(clean):
    rng = np.random.default_rng(3)
    items = [noisy(item, 25, rng) for item, _, _ in clean]
    items[2].mask[40:60] = True
    table = measure_rvs(items, template(), [f for _, _, f in clean], **{**OPTIONS, "cosmic_sigma": None})
    for row, item, (_, velocity, fiber) in zip(table, items, clean, strict=True):
        best = minimize_scalar(
            lambda v: direct_chi2(item, v, fiber),  # noqa: B023
            bounds=(velocity - 30, velocity + 30), method="bounded", options={"xatol": 1e-3},
        )  # fmt: skip
        assert abs(row["rv"] - best.x) < 0.03
        assert_allclose(row["chi2"], best.fun, rtol=1e-4)
        rise = [direct_chi2(item, best.x + e, fiber) - best.fun for e in (-row["rv_err"], row["rv_err"])]
        assert abs(np.mean(rise) - 1) < 0.03


@pytest.mark.parametrize("snr", [10, 30, 100])
def test_errors_are_those_of_injected_stars(clean, snr):
    rng = np.random.default_rng(snr)
    machine = RVMachine(template(), **OPTIONS)
    n = 420
    truth = [v for _, v, _ in clean] * n
    rows = machine.measure(
        [noisy(item, snr, rng) for _ in range(n) for item, _, _ in clean], [f for *_, f in clean] * n
    )
    assert not any(r["flags"] for r in rows)
    pull = np.array([(r["rv"] - v) / r["rv_err"] for r, v in zip(rows, truth, strict=True)])
    # known to 1.3 % (1 sigma) from 2,940 spectra
    assert abs(np.std(pull) - 1) < 0.05
    assert abs(pull.mean()) < 4 / np.sqrt(pull.size)
    assert abs(np.mean([r["chi2"] / r["dof"] for r in rows]) - 1) < 0.01


def test_a_batch_gives_what_single_measurements_give(clean):
    rng = np.random.default_rng(8)
    items, fibers = [], []
    for k, (item, _, fiber) in enumerate(clean):
        new = noisy(item, (8, 40, 100)[k % 3], rng)
        if k == 1:
            new.flux[100:102] += 60 / np.sqrt(new.ivar[0])  # a cosmic ray
        if k == 2:
            new.mask[:70] = True  # changes the degree by default, too
        items.append(new)
        fibers.append(fiber)
    both = [template(STAR**0.9, "near"), template()]
    for options in ({}, {"continuum": "normalize"}):
        table = measure_rvs(items, both, fibers, windows=(4940, 5260) * u.AA, velocity_range=LIMITS, **options)
        for row, item, fiber in zip(table, items, fibers, strict=True):
            alone = measure_rv(
                item.to_spectrum(), both, fiber, window=(4940, 5260) * u.AA, velocity_range=LIMITS, **options
            )
            # the paper's normalisation is that of the whole window and a typical LSF in a batch
            limit = 0.003 if not options else 1.5
            assert abs(row["rv"] - alone.rv.value) < limit
            assert_allclose(row["rv_err"], alone.rv_err.value, rtol=0.003 if not options else 0.05)
            assert row["template"] == alone.template
            if not options:
                assert_allclose(row["chi2"], alone.chi2, rtol=1e-4)
                assert_allclose(row["runner_up_delta_chi2"], alone.runner_up_delta_chi2, atol=0.01)
                assert (row["flags"], row["dof"], row["n_rejected"]) == (alone.flags, alone.dof, alone.n_rejected)
    assert table["n_rejected"][1] >= 2


def test_any_wavelengths_will_do(clean):
    """Linear, irregular, twice as fine and twice as coarse pixels, in one batch."""
    rng = np.random.default_rng(1)
    axes = [
        np.arange(4955.0, 5245.0, 0.9),
        np.sort(rng.uniform(4955, 5245, 400)),
        AXIS[::2],
        10 ** (0.5e-4 * np.arange(73900, 74390)),
    ]
    items = [arrays(scatter(STAR, 77.0, a), 1000, a) for a in axes]
    table = measure_rvs(items, template(), FIBERS[3], **OPTIONS)
    assert_allclose(table["rv"], 77, atol=0.02)
    singles = [measure_rv(i.to_spectrum(), template(), FIBERS[3], velocity_range=LIMITS, degree=3) for i in items]
    assert_allclose(table["rv_err"], [s.rv_err.value for s in singles], rtol=1e-3)


def test_both_kinds_of_pixels_give_the_same_models():
    """Pixels on one fraction of a node take a short cut."""
    family = LSFFamily(FIBERS[::3], (4940.0, 5260.0))
    basis = ll.TemplateBasis(template(), family.basis, max_velocity=300)
    s = np.log(AXIS)
    weights = weights_at(s, family.coefficients(FIBERS[1])[0])
    position_ = basis.grid.position(s)
    center = float(position_[0] - np.floor(position_[0] - 2.3))
    fast, general = np.empty((2, 12, s.size))
    combine(basis.values[0], weights, position_, center, True, fast)
    combine(basis.values[0], weights, position_ + 1e-7, center, False, general)
    assert_allclose(fast, general, rtol=2e-6)


def test_windows_across_the_arms_use_both_lsfs():
    blue, red = Fiber(0.9, 0.1), Fiber(1.1, 0.4)
    joined = JoinedLSF([Segment(0.0, 5100.0, blue), Segment(5100.0, np.inf, red)])
    flux = np.where(AXIS < 5100, scatter(STAR, 50.0, AXIS, blue), scatter(STAR, 50.0, AXIS, red))
    # pixels within a profile of the join see light of both arms
    mask = np.abs(AXIS - 5100) < 12
    factor = 1 + 25 / C
    item = arrays(flux, 1000, AXIS, mask=mask)
    moved = arrays(flux, 1000, AXIS / factor, mask=mask)
    table = measure_rvs([item, moved], template(), [joined, joined.shifted(factor)], **OPTIONS)
    assert_allclose(table["rv"], [50, 25], atol=0.03)
    assert measure_rvs(item, template(), blue, **OPTIONS)["rv"][0] - 50 > 0.5


def weights_at(s, coefficients):
    out = np.empty((s.size, 2 * coefficients.values[0].shape[1]))
    component_weights(s, coefficients, out)
    return out


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 3, 6])
@pytest.mark.parametrize("single", [True, False])
def test_the_search_is_the_chi_square_of_least_squares(degree, single):
    family = LSFFamily([FIBERS[3]], (4940.0, 5260.0))
    basis = ll.TemplateBasis([template(), template(1e-15 * lines(FINE, 2))], family.basis, max_velocity=300)

    def seen(s, t):
        """Two smooth spectra; the second in physical units."""
        return (1e-15 if t else 1.0) * (1 + 0.3 * np.sin(s * (1500 + 400 * t)) + 0.2 * np.cos(s * 2700))

    rest = np.array([seen(np.log(basis.grid.wavelength), t) for t in range(2)])
    shift = np.array([-4e-4, 0.0, 3e-4])
    search = VelocitySearch(rest, basis.grid, np.log(AXIS[10:-10]), shift, degree, single)
    rng = np.random.default_rng(0)
    flux, ivar = rng.uniform(0.5, 1.5, (4, AXIS.size - 20)), rng.uniform(1e5, 3e5, (4, AXIS.size - 20))
    ivar[:, 30:60] = 0.0
    got = search.chi2(flux * ivar, ivar, np.sum(ivar * flux**2, axis=1))
    for i in range(4):
        for t in range(2):
            for k in range(3):
                model = seen(np.log(AXIS[10:-10]) - shift[k], t)
                design = model[:, None] * np.vander(position(AXIS[10:-10]), degree + 1)
                root = np.sqrt(ivar[i])
                residual = np.linalg.lstsq(design * root[:, None], flux[i] * root, rcond=1e-12)[1]
                assert_allclose(got[i, t, k], residual[0], rtol=1e-4 if single else 1e-6)


def test_wide_windows_are_searched_in_pieces():
    """A polynomial of degree 20 is at least matched by the pieces', and the velocity does not notice."""
    rng = np.random.default_rng(2)
    item = arrays(scatter(STAR, -140.0) * (1 + 0.3 * np.sin(8 * position())), 60, rng=rng)
    table = measure_rvs(item, template(), FIBERS[3], **{**OPTIONS, "degree": 20})
    alone = measure_rv(item.to_spectrum(), template(), FIBERS[3], velocity_range=LIMITS, degree=20)
    assert abs(table["rv"][0] + 140) < 5 * table["rv_err"][0]
    assert_allclose(table["rv"][0], alone.rv.value, atol=0.003)
    assert table["dof"][0] == AXIS.size - 21 - 1
    assert np.all(alone.trial_chi2 > alone.chi2 - 40)


def test_a_family_expresses_lsfs_as_their_basis_does():
    window = (4940.0, 5260.0)
    family = LSFFamily([f.centered("half") for f in FIBERS[::2]], window)
    s = np.log(AXIS)
    for lsf in (FIBERS[1].centered("half"), FIBERS[1].shifted(1 + 25 / C).centered("half")):
        got, left = family.coefficients(lsf)
        want = family.basis.coefficients(lsf)
        assert left < 1e-4
        n = family.basis.n_components
        difference = (weights_at(s, got) - weights_at(s, want))[:, :n] @ family.basis.components
        # L1 of unit-area profiles
        assert np.abs(difference).sum(axis=1).max() * family._step < 1.5e-4
    _, left = family.coefficients(Fiber(2.0, 0.1))
    assert left > 1e-3
    assert family.extended([Fiber(2.0, 0.1)]).coefficients(Fiber(2.0, 0.1))[1] < 5e-5


def test_a_machine_learns_lsfs_that_it_has_not_seen(clean):
    machine = RVMachine(template(), **OPTIONS)
    (item, velocity, fiber), *_ = clean
    assert abs(machine.measure([item], [fiber])[0]["rv"] - velocity) < 0.02
    wide = Fiber(1.9, 0.45)
    other = arrays(scatter(STAR, 61.0, fiber=wide), 1000)
    rows = machine.measure([other, item], [wide, fiber])
    assert_allclose([r["rv"] for r in rows], [61, velocity], atol=0.02)


def test_machines_travel(clean):
    items = [item for item, _, _ in clean[:2]]
    machine = RVMachine(template(), FIBERS[0], **OPTIONS)
    first = machine.measure(items)
    again = pickle.loads(pickle.dumps(machine)).measure(items)
    assert_allclose([r["rv"] for r in again], [r["rv"] for r in first], atol=1e-6)
    parts = list(machine.iterate(iter([*items, *items, items[0]]), chunk=2))
    assert [len(p) for p in parts] == [2, 2, 1]
    assert [r["spectrum"] for p in parts for r in p] == [0, 1, 2, 3, 4]
    assert_allclose(parts[2][0]["rv"], first[0]["rv"], atol=1e-6)


# --- templates, second stars -----------------------------------------------------------------------------------------


def test_the_best_template_and_the_next_are_named(clean):
    items, _, fibers = zip(*clean, strict=True)
    others = [template(lines(FINE, 2), "far"), template(STAR**0.8, "near"), template()]
    table = measure_rvs(items, others, fibers, **OPTIONS)
    assert set(table["template"]) == {"star"}
    assert set(table["template_index"]) == {2}
    assert set(table["runner_up"]) == {"near"}
    assert np.all(table["runner_up_delta_chi2"] > 100)


def test_double_lined_stars_are_flagged_with_their_second_velocity():
    rng = np.random.default_rng(5)
    both = 0.55 * scatter(STAR, -180.0) + 0.45 * scatter(STAR, 220.0)
    one = scatter(STAR, -180.0)
    table = measure_rvs([arrays(f, 60, rng=rng) for f in (both, one, both)], template(), FIBERS[3], **OPTIONS)
    assert [bool(f & RVFlag.DOUBLE_MINIMUM) for f in table["flags"]] == [True, False, True]
    assert_allclose(table["second_rv"][[0, 2]], 220, atol=15)
    assert np.all(table["second_delta_chi2"][[0, 2]] > 9)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_spectra_become_flagged_rows_and_cost_the_others_nothing(clean, tmp_path):
    good, velocity, fiber = clean[3]
    garbage = tmp_path / "garbage.fits"
    garbage.write_bytes(b"SIMPLE  = nonsense")
    empty = tmp_path / "empty.fits"
    empty.touch()
    blank = tmp_path / "blank.fits"
    fits.PrimaryHDU(header=fits.Header({"TELESCOP": "LAMOST"})).writeto(blank)
    n = AXIS.size
    spectrum = good.to_spectrum()
    rng = np.random.default_rng(1)

    def like(**changes):
        return LamostArrays(**{**{k: getattr(good, k) for k in good.__dataclass_fields__}, **changes})

    cases = [
        ("no-such-file.fits", RVFlag.UNREADABLE, "FileNotFound"),
        (garbage, RVFlag.UNREADABLE, ""),
        (empty, RVFlag.UNREADABLE, ""),
        (blank, RVFlag.UNREADABLE, ""),
        (like(mask=np.ones(n, bool)), RVFlag.TOO_FEW_PIXELS, "no usable pixel"),
        (like(ivar=np.zeros(n)), RVFlag.TOO_FEW_PIXELS, "no usable pixel"),
        (like(flux=np.full(n, np.nan)), RVFlag.TOO_FEW_PIXELS, "no usable pixel"),
        (like(mask=np.arange(n) > 12), RVFlag.TOO_FEW_PIXELS, "13 usable pixels"),
        (like(wavelength=AXIS + 3000), RVFlag.TOO_FEW_PIXELS, "no usable pixel"),
        (like(wavelength=AXIS[::-1]), RVFlag.BAD_INPUT, "increase"),
        (like(flux=good.flux[:5]), RVFlag.BAD_INPUT, "one shape"),
        (like(wavelength=np.empty(0), flux=np.empty(0), ivar=np.empty(0)), RVFlag.BAD_INPUT, ""),
        (like(meta={"frame": "galactocentric"}), RVFlag.WRONG_FRAME, "galactocentric"),
        (Spectrum(flux=spectrum.flux, spectral_axis=spectrum.spectral_axis), RVFlag.BAD_INPUT, "uncertainty"),
        (Spectrum(flux=np.ones((2, n)) * u.one, spectral_axis=AXIS * u.AA), RVFlag.BAD_INPUT, "one spectrum"),
        (Spectrum(flux=spectrum.flux, spectral_axis=np.arange(1, n + 1) * u.THz), RVFlag.BAD_INPUT, ""),
        (42, RVFlag.BAD_INPUT, "int"),
        (None, RVFlag.BAD_INPUT, "NoneType"),
        (like(flux=rng.normal(0, 1, n), ivar=np.ones(n)), RVFlag.NO_SIGNAL, ""),
        (like(flux=1.0 + rng.normal(0, 0.01, n), ivar=np.full(n, 1e4)), RVFlag.NO_SIGNAL, ""),
        (like(flux=np.zeros(n)), RVFlag.NO_SIGNAL, ""),
        (like(flux=np.full(n, 1e300)), RVFlag.BAD_INPUT, "Overflow"),
    ]
    items = [good, *(c[0] for c in cases), good]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="astropy")
        table = measure_rvs(items, template(), fiber, **OPTIONS)
    assert len(table) == len(items)
    assert_array_equal(table["spectrum"], np.arange(len(items)))
    assert_allclose(table["rv"][[0, -1]], velocity, atol=0.02)
    assert_array_equal(table["flags"][[0, -1]], 0)
    for row, (_, flag, message) in zip(table[1:-1], cases, strict=True):
        assert row["flags"] & flag == flag, (row["spectrum"], row["reasons"], row["message"])
        assert message in row["message"]
        assert flag.reasons() in row["reasons"]
        if flag != RVFlag.NO_SIGNAL:
            assert np.isnan(row["rv"])
            assert np.isnan(row["rv_err"])
            assert row["message"]


def test_spectra_without_an_lsf_are_flagged(clean):
    items = [arrays(item.flux, 1000, item.wavelength, fiber=k) for k, (item, _, _) in enumerate(clean)]
    velocities = [v for _, v, _ in clean]

    class Archive:
        def lsf_for(self, meta):
            if meta["fiber"] == 2:
                raise LookupError("no model of fibre 2")
            if meta["fiber"] == 4:
                return Short()
            return FIBERS[meta["fiber"]]

    class Short(Fiber):
        wavelength_range = (5000.0, 6000.0)

    table = measure_rvs(items, template(), Archive(), **OPTIONS)
    bad = np.array([2, 4])
    assert_array_equal(np.flatnonzero(table["flags"] & RVFlag.NO_LSF), bad)
    assert "no model of fibre 2" in table["message"][2]
    assert "range of this LSF" in table["message"][4]
    good = np.setdiff1d(np.arange(7), bad)
    assert_allclose(table["rv"][good], np.array(velocities)[good], atol=0.02)
    # a function of the header does as well
    same = measure_rvs(items[:2], template(), lambda meta: FIBERS[meta["fiber"]], **OPTIONS)
    assert_allclose(same["rv"], table["rv"][:2], atol=1e-3)


def test_bad_arguments_raise_before_any_work(clean):
    item = clean[0][0]
    for options, error, message in (
        ({"windows": "green"}, ValueError, "'segments' or wavelengths"),
        ({"windows": []}, ValueError, "at least one window"),
        ({"windows": [5100 * u.AA, 5100 * u.AA]}, ValueError, "different names"),
        ({"windows": {"combined": 5100 * u.AA}}, ValueError, "combined"),
        ({"windows": 5 * u.s}, TypeError, "length"),
        ({"windows": (5200, 5100) * u.AA}, ValueError, "two increasing"),
        ({"windows": 5100.0}, TypeError, "windows must be"),
        ({"windows": (4000, 4500) * u.AA}, ValueError, "star covers 4890.0-5311.9 A"),
        ({"velocity_range": (-4000, 4000)}, ValueError, "covers"),
        ({"frame": "geocentric"}, ValueError, "'heliocentric', 'barycentric', 'topocentric' or None"),
        ({"degree": -1}, ValueError, "0 to 50"),
        ({"continuum": "spline"}, ValueError, "'ratio' or 'normalize'"),
        ({"mask": "xor"}, ValueError, "mask must be"),
        ({"chunk": 0}, ValueError, "chunk"),
    ):
        with pytest.raises(error, match=message):
            measure_rvs([item], template(), FIBERS[0], **{**OPTIONS, **options})
    with pytest.raises(ValueError, match="2 LSFs for 1 spectra"):
        measure_rvs([item], template(), FIBERS[:2], **OPTIONS)
    with pytest.raises(TypeError, match="lsf must be"):
        measure_rvs([item], template(), None, **OPTIONS)
    with pytest.raises(TypeError, match="lsf must be"):
        measure_rvs([item], template(), 3.0, **OPTIONS)
    assert len(measure_rvs([], template(), FIBERS[0], **OPTIONS)) == 0


def test_mixed_centres_warn_once(clean):
    items = [arrays(item.flux, 1000, item.wavelength, wavelength_center="sersic") for item, _, _ in clean[:3]]
    with pytest.warns(CenterMismatchWarning, match="3 of 3") as caught:
        table = measure_rvs(items, template(), FIBERS[0], center="half", **OPTIONS)
    assert len(caught) == 1
    assert set(table["center"]) == {"half"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_rvs(items, template(), FIBERS[0], center="zero", **OPTIONS)


# --- windows and their combination -----------------------------------------------------------------------------------


def test_windows():
    assert [w.name for w in parse_windows("arms")] == ["blue", "red"]
    blue, red = parse_windows("arms")
    assert blue.low < 4000 < 5700 < blue.high == red.low < 5900 < 9000 < red.high
    (mg,) = parse_windows({"Mg": 5175 * u.AA})
    assert (mg.name, mg.low, mg.high) == ("Mg", 5025, 5325)
    assert [w.name for w in parse_windows([5175 * u.AA, (5000, 5300) * u.AA, "red"])] == ["5175", "5000-5300", "red"]
    (pair,) = parse_windows((500 * u.nm, 5300 * u.AA))
    assert_allclose((pair.low, pair.high), (5000, 5300))
    segments = parse_windows("segments")
    assert all(np.isclose(w.high - w.low, 300) for w in segments)
    # 4358.33 A in air
    assert any(abs(0.5 * (w.low + w.high) - 4359.56) < 0.02 for w in segments)


def test_several_windows_are_combined(clean):
    rng = np.random.default_rng(4)
    item, velocity, fiber = clean[2]
    names = {"left": (4945, 5095) * u.AA, "right": (5105, 5255) * u.AA, "beside": (5256, 5259) * u.AA}
    zero = {"left": 3.0 * KMS, "right": -2.0}
    options = {**OPTIONS, "windows": names}
    items = [noisy(item, 30, rng) for _ in range(300)]
    plain = measure_rvs(items, template(), fiber, **options)
    table = measure_rvs(items, template(), fiber, zero_points=zero, window_scatter=1 * KMS, **options)
    assert list(table["window"][:4]) == ["left", "right", "beside", "combined"]
    left, right, beside, both = (table[k::4] for k in range(4))
    assert np.all(beside["flags"] & RVFlag.TOO_FEW_PIXELS)
    assert set(both["n_windows"]) == {2}
    v = np.array([left["rv"] - 3, right["rv"] + 2])
    w = 1 / (np.array([left["rv_err_scaled"], right["rv_err_scaled"]]) ** 2 + 1)
    assert_allclose(both["rv"], (v * w).sum(axis=0) / w.sum(axis=0))
    assert_allclose(both["chi2"], (w * (v - both["rv"]) ** 2).sum(axis=0))
    assert np.all(both["rv_err_scaled"] >= 1 / np.sqrt(w.sum(axis=0)) * (1 - 1e-12))
    # without zero points the combination is right, and its error is that of the scatter
    good = plain[3::4]
    pull = (good["rv"] - velocity) / good["rv_err"]
    assert abs(np.std(pull) - 1) < 0.13
    assert abs(np.mean(pull)) < 0.25
    # zero points may depend on the header
    by_header = measure_rvs(items[:1], template(), fiber, zero_points=lambda w, meta: zero.get(w), **options)
    assert_allclose(by_header["rv"][3], (plain["rv"][0] - 3) / 2 + (plain["rv"][1] + 2) / 2, atol=5)


def test_flagged_windows_have_no_say():
    def row(rv, err, flags=0, window="a"):
        return {**blank_row(), "window": window, "rv": rv, "rv_err": err, "rv_err_scaled": err, "flags": flags}

    good = combine_windows([row(10.0, 1.0), row(14.0, 2.0, window="b"), row(900.0, 0.1, RVFlag.DOUBLE_MINIMUM)])
    assert_allclose(good["rv"], (10 / 1 + 14 / 4) / (1 + 1 / 4))
    assert_allclose(good["rv_err"], 1 / np.sqrt(1.25))
    assert_allclose(good["chi2"], 16 / 5)
    assert_allclose(good["rv_err_scaled"], np.sqrt(16 / 5 / 1.25))
    assert good["flags"] == 0
    none = combine_windows([row(np.nan, np.nan, RVFlag.NO_LSF), row(1.0, 1.0, RVFlag.NO_SIGNAL)])
    assert np.isnan(none["rv"])
    assert none["flags"] == RVFlag.NO_LSF | RVFlag.NO_SIGNAL
    with pytest.raises(TypeError, match="zero_points must be velocities"):
        combine_windows([row(1.0, 1.0)], {"a": 1 * u.AA})


# --- frames ----------------------------------------------------------------------------------------------------------


def test_velocities_in_other_frames(clean):
    item, velocity, fiber = clean[4]
    time = Time(["2017-01-10T13:00", "2017-01-10T13:40"])
    where = {"ra": 112.0 * u.deg, "dec": 31.0 * u.deg, "time": time, "helio_rv": -21.5 * KMS}
    items = [
        arrays(item.flux, 1000, item.wavelength, **where),
        arrays(item.flux, 1000, item.wavelength, **{**where, "frame": "topocentric"}),
        arrays(item.flux, 1000, item.wavelength, frame=None),
        arrays(item.flux, 1000, item.wavelength, **{**where, "ra": None}),
    ]
    site = EarthLocation.from_geodetic(117.575 * u.deg, 40.393 * u.deg, 960 * u.m)
    sky = SkyCoord(112 * u.deg, 31 * u.deg)
    mean = Time("2017-01-10T13:20")
    one = doppler(velocity)

    def rv(factor):
        return C * (factor**2 - 1) / (factor**2 + 1)

    kept = measure_rvs(items, template(), fiber, **OPTIONS)
    assert_allclose(kept["rv"], velocity, atol=0.02)
    assert list(kept["frame"]) == ["heliocentric", "topocentric", "", "heliocentric"]
    # w_detector = w_file (1 + HELIO_RV / c)
    table = measure_rvs(items, template(), fiber, frame="topocentric", **OPTIONS)
    assert_allclose(table["rv"], [rv(one * (1 - 21.5 / C)), velocity, np.nan, rv(one * (1 - 21.5 / C))], atol=0.02)
    assert table["flags"][2] & RVFlag.WRONG_FRAME
    bary, helio = (
        sky.radial_velocity_correction(k, obstime=mean, location=site).to_value(KMS)
        for k in ("barycentric", "heliocentric")
    )
    table = measure_rvs(items, template(), fiber, frame="barycentric", **OPTIONS)
    expected = [rv(one * (1 - 21.5 / C) * (1 + bary / C)), rv(one * (1 + bary / C))]
    assert_allclose(table["rv"][:2], expected, atol=0.02)
    assert_array_equal(table["flags"], [0, 0, RVFlag.WRONG_FRAME, RVFlag.WRONG_FRAME])
    assert list(table["frame"][:2]) == ["barycentric"] * 2
    table = measure_rvs(items[:2], template(), fiber, frame="heliocentric", **OPTIONS)
    assert_allclose(table["rv"], [velocity, rv(one / (1 - 21.5 / C))], atol=0.02)
    assert abs(helio - bary) < 0.02  # what the two frames differ by


# --- errors by the LSF and the wavelength scale ----------------------------------------------------------------------


class Uncertain(ll.NeuralIP):
    """A model whose coefficients are off by a draw from their covariance."""


def uncertain_model(draw=None):
    x = np.linspace(-9.0, 9.0, 301)
    gauss = np.exp(-0.5 * (x / 1.2) ** 2) / (np.sqrt(2 * np.pi) * 1.2)
    components = np.array([x * gauss, (x**2 - 1.2**2) * gauss, (x**3 - 3 * x * 1.2**2) * gauss])
    covariance = 4e-4 * np.array([[1.0, 0.3, 0.2], [0.3, 1.0, -0.4], [0.2, -0.4, 0.5]])
    expansion = {
        "mean": gauss * (1 + 0.05 * (x**3 / 1.2**3 - 3 * x / 1.2)), "components": components,
        "surface_values": np.zeros((36, 3)), "fiber_number": np.array([7]), "fiber_values": np.zeros((1, 3, 3)),
        "covariance": covariance, "fiber_scale": np.array([2.25]),
    }  # fmt: skip
    nothing = {
        "line": (0,),
        "line_values": (0, 4, 3),
        "line_scale": (),
        "night": (0,),
        "night_values": (0, _N_NIGHT, 3),
    }
    names = {f: np.zeros(s) + (1.0 if not s else 0.0) for f, s in {**nothing, "night_scale": ()}.items()}
    expansion |= {k: v for k, v in names.items() if k in Expansion.__dataclass_fields__}
    bias = np.zeros(3) if draw is None else 1.5 * np.linalg.cholesky(covariance) @ draw
    return ll.NeuralIP(
        [np.zeros((3, 3))], [bias], offset=x, label_min=[82_000_000, 0, 4000], label_max=[84_000_000, 249, 6000],
        label_medium="vacuum", expansion=Expansion(**expansion),
    )  # fmt: skip


@pytest.mark.parametrize("center", ["zero", "half", "centroid"])
def test_the_error_by_the_lsf_is_that_of_wrong_lsfs(center):
    """True profiles drawn from the model's covariance, spectra without noise."""
    time = Time("2016-10-03T14:00")
    rng = np.random.default_rng(11)
    known = uncertain_model().at(time=time, fiber=7)
    star = Spectrum(flux=STAR * u.one, spectral_axis=FINE * doppler(20.0) * u.AA)
    items = []
    for _ in range(160):
        true = uncertain_model(rng.normal(size=3)).at(time=time, fiber=7)
        seen = ll.convolve(star, true, AXIS * u.AA, center=center)
        items.append(arrays(seen.flux.value, 300))
    table = measure_rvs(items, template(), MeanLSF([known, known]), center=center, **OPTIONS)
    error = table["rv_err_ip"]
    assert_allclose(error, error[0], rtol=0.1)
    # a scatter from 160 is known to 6 %
    assert abs(np.std(table["rv"]) / np.mean(error) - 1) < 0.2
    assert error[0] > 0.2
    total = np.sqrt(table["rv_err_scaled"] ** 2 + error**2)
    assert_allclose(table["rv_err_total"], total)


def test_lsfs_without_errors_have_none(clean):
    table = measure_rvs([clean[0][0]], template(), FIBERS[0], **OPTIONS)
    assert np.isnan(table["rv_err_ip"][0])
    assert np.isnan(table["rv_err_wave"][0])
    assert table["rv_err_total"][0] == table["rv_err_scaled"][0]


def test_the_error_by_the_wavelength_scale_is_the_shift_that_it_makes(clean):
    item, _, fiber = clean[3]
    slope = 1.0 + 0.8 * position()  # km/s, growing along the window
    moved = arrays(item.flux, 1000, item.wavelength * (1 + slope / C))
    plain, shifted = measure_rvs([item, moved], template(), fiber, **OPTIONS)["rv"]
    for error in (slope * KMS, slope / C * item.wavelength * u.AA):
        by_meta = arrays(item.flux, 1000, item.wavelength, wavelength_error=error)
        assert_allclose(
            measure_rvs(by_meta, template(), fiber, **OPTIONS)["rv_err_wave"][0], shifted - plain, atol=0.03
        )
    table = measure_rvs(item, template(), fiber, wavelength_error=1.7 * KMS, **OPTIONS)
    assert_allclose(table["rv_err_wave"], 1.7, rtol=1e-6)
    table = measure_rvs(item, template(), fiber, wavelength_error=lambda meta: 0.02 * u.AA, **OPTIONS)
    assert_allclose(table["rv_err_wave"], 0.02 / 5100 * C, rtol=0.02)
    assert_allclose(table["rv_err_total"], np.hypot(table["rv_err_scaled"], table["rv_err_wave"]))


# --- invariants ------------------------------------------------------------------------------------------------------

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def batch(clean):
    """A machine, noisy spectra and their rows."""
    rng = np.random.default_rng(0)
    items = [noisy(item, 20, rng) for item, _, _ in clean]
    fibers = [f for _, _, f in clean]
    machine = RVMachine(template(), **OPTIONS)
    return machine, items, fibers, machine.measure(items, fibers)


@QUICK
@given(order=st.permutations(range(7)), size=st.integers(1, 7))
def test_neither_order_nor_company_matter(batch, order, size):
    machine, items, fibers, rows = batch
    got = [
        row
        for part in machine.iterate([items[i] for i in order], [fibers[i] for i in order], chunk=size)
        for row in part
    ]
    for i, row in zip(order, got, strict=True):
        for name in ("rv", "rv_err", "chi2"):
            assert_allclose(row[name], rows[i][name], rtol=1e-6, atol=1e-5)
        assert row["flags"] == rows[i]["flags"]


@QUICK
@given(extra=st.floats(-30, 30), fraction=st.floats(-0.5, 0.5))
def test_moving_all_wavelengths_moves_the_velocity(batch, extra, fraction):
    machine, items, fibers, rows = batch
    for k in (0, 4):
        factor = doppler(extra)
        item = items[k]
        moved = LamostArrays(item.wavelength * factor, item.flux, item.ivar, item.mask, item.meta)
        (got,) = machine.measure([moved], [fibers[k].shifted(1 / factor)])
        b, e = rows[k]["rv"] / C, extra / C
        assert_allclose(got["rv"], C * (b + e) / (1 + b * e), atol=0.005)
        assert_allclose(got["chi2"], rows[k]["chi2"], rtol=1e-4)


@QUICK
@given(power=st.floats(-25, 25), offset=st.integers(0, 6))
def test_the_unit_of_flux_does_not_matter(batch, power, offset):
    machine, items, fibers, rows = batch
    item, scale = items[offset], 10.0**power
    scaled = LamostArrays(item.wavelength, item.flux * scale, item.ivar / scale**2, item.mask, item.meta)
    (got,) = machine.measure([scaled], [fibers[offset]])
    assert_allclose(got["rv"], rows[offset]["rv"], atol=1e-4)
    assert_allclose(got["chi2"], rows[offset]["chi2"], rtol=1e-8)
    assert got["flags"] == rows[offset]["flags"]


@QUICK
@given(pixels=st.sets(st.integers(0, AXIS.size - 1), max_size=60), junk=st.sampled_from([np.nan, np.inf, -1e30, 1e30]))
def test_what_masked_pixels_hold_does_not_matter(batch, pixels, junk):
    machine, items, fibers, _ = batch
    item, index = items[3], sorted(pixels)
    mask, flux = item.mask.copy(), item.flux.copy()
    mask[index] = True
    plain = LamostArrays(item.wavelength, item.flux, item.ivar, mask, item.meta)
    flux[index] = junk
    a, b = machine.measure([plain, LamostArrays(item.wavelength, flux, item.ivar, mask, item.meta)], [fibers[3]] * 2)
    assert a["rv"] == b["rv"]
    assert a["chi2"] == b["chi2"]


@QUICK
@given(factor=st.floats(0.3, 3.0))
def test_errors_scale_with_the_noise(clean, batch, factor):
    machine, _, fibers, _ = batch
    item = clean[5][0]
    other = LamostArrays(item.wavelength, item.flux, item.ivar / factor**2, item.mask, item.meta)
    a, b = machine.measure([item, other], [fibers[5]] * 2)
    assert_allclose(b["rv"], a["rv"], atol=1e-3)
    assert_allclose(b["rv_err"], factor * a["rv_err"], rtol=2e-3)
