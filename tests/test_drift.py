"""Drift of the wavelength scale from sky lines: simulated truth, and 234 real exposures."""

import astropy.units as u
import numpy as np
import pytest
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from lamost_lsf.calibration import Drift, measure_drift, sky_lines
from lamost_lsf.lines import LineList
from lamost_lsf.simulation import SimulatedIP, simulate_sky
from lamost_lsf.units import air_to_vacuum

TIME = Time("2018-01-10T15:00")
FIBERS = np.arange(100, 106)


def sky(drift, seed=0, **options):
    return simulate_sky(SimulatedIP("red"), TIME, fiber=FIBERS, dead_fibers=0, drift=drift, seed=seed, **options)


@pytest.mark.parametrize("center", ["half", "gauss", "sersic", "centroid", "max", "fourier"])
def test_drift_and_the_profiles_own_centres(center):
    """Line by line: what is measured is the drift plus the distance of the centre from the scale's own zero."""
    ip = SimulatedIP("red")
    result = measure_drift(sky(12 * u.km / u.s), center=center)
    expected = np.empty(result.velocity.shape)
    for row, number in enumerate(FIBERS):
        profile = ip.profile(time=TIME, fiber=int(number), wavelength=result.wavelength * u.AA)
        expected[row] = 12.0 + 299792.458 * profile.center(center).to_value(u.AA) / result.wavelength
    off = result.velocity - expected
    # [O I] 6300 is bright and alone
    line = np.argmin(np.abs(result.wavelength - air_to_vacuum(6300.304)))
    assert np.abs(np.nanmean(off[:, line])) < (3.0 if center == "max" else 1.2)
    assert np.abs(np.nanmedian(off)) < 1.2


@pytest.mark.parametrize("drift", [-0.8, 0.0, 1.1])
def test_pixels_are_those_of_the_detector(drift):
    """A drift in Angstrom, in pixels of 0.82 A, for all lines alike, and with an honest error."""
    zero = measure_drift(sky(0.0 * u.AA, seed=1), center="gauss").mean("pixel")[0]
    value, error, number = measure_drift(sky(drift * u.AA, seed=2), center="gauss").mean("pixel")
    assert_allclose(value - zero, drift / 0.8227, atol=0.08)
    assert np.all(number >= 8)
    assert np.all((error > 0) & (error < 0.06))


@settings(max_examples=8, deadline=None)
@given(velocity=st.floats(-40, 40))
def test_a_frame_is_taken_off_exactly(velocity):
    """A scale moved to the heliocentre, and told so, gives what the detector's own gives."""
    exposure = sky(0.0 * u.AA, seed=3)
    still = measure_drift(exposure, center="gauss")
    moved = measure_drift(
        exposure.flux, ivar=exposure.ivar, mask=exposure.mask, center="gauss",
        scale=exposure.wavelength / (1 + velocity / 299792.458) * u.AA, velocity=velocity * u.km / u.s,
    )  # fmt: skip
    assert_allclose(moved.velocity, still.velocity, atol=1e-3)
    # and not told so, it is a drift of that velocity, towards smaller readings
    if abs(velocity) > 1:
        wrong = measure_drift(
            exposure.flux, ivar=exposure.ivar, mask=exposure.mask, center="gauss",
            scale=exposure.wavelength / (1 + velocity / 299792.458) * u.AA,
        )  # fmt: skip
        difference = wrong.mean("velocity")[0] - still.mean("velocity")[0]
        assert_allclose(difference, -velocity, atol=0.5)


def test_lines_against_the_atlas(data_dir):
    """The built-in list is the UVES atlas's, to 0.05 A, doublets that are not resolved in the mean."""
    path = data_dir / "sky" / "UVES_sky_lines.txt"
    rows = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    air, flux = np.array([[float(r[1]), float(r[4])] for r in rows]).T
    # sodium lamps and mercury are those of other sites
    for line in sky_lines(city=False, sodium=False).air:
        near = np.abs(air - line) < 1.0
        assert np.any(near), line
        assert abs(np.average(air[near], weights=flux[near]) - line) < 0.12, line


def test_median_line_is_no_drift():
    """Exposures with different drifts: a line listed 0.2 A off is the same in all, and `relative` takes it off."""
    lines = sky_lines(city=False)
    vacuum = np.array(lines.vacuum)
    vacuum[8] += 0.2
    wrong = LineList.from_wavelengths(vacuum * u.AA, medium="vacuum", species=lines.species)
    drifts = [measure_drift(sky(d * u.AA, seed=i), wrong, center="gauss") for i, d in enumerate((-0.3, 0.0, 0.3))]
    joined = Drift.concatenate(drifts)
    assert joined.velocity.shape[0] == 3 * len(FIBERS)
    relative = joined.relative()
    seen = np.any(np.isfinite(relative.velocity), axis=0)
    assert np.max(np.abs(np.nanmedian(relative.velocity[:, seen], axis=0))) < 1e-9
    mean = relative.mean("pixel")[0].reshape(3, -1).mean(axis=1)
    assert_allclose(np.diff(mean), 0.3 / 0.8227, atol=0.04)
    table = joined.to_table()
    assert len(table) == joined.velocity.size
    assert table["velocity"].unit == u.km / u.s


def test_bad_input():
    exposure = sky(0.0 * u.AA)
    with pytest.raises(ValueError, match="zero"):
        measure_drift(exposure, center="zero")
    with pytest.raises(ValueError, match="pass scale="):
        measure_drift(np.ones(500))
    with pytest.raises(TypeError, match="velocity"):
        measure_drift(exposure, velocity=10.0)
    with pytest.raises(ValueError, match="max_drift"):
        measure_drift(exposure, max_drift=-1.0)
    with pytest.raises(TypeError, match="pix"):
        measure_drift(exposure, window=(-5, 5) * u.AA)
    with pytest.raises(ValueError, match="no sky line lies on the scale"):
        measure_drift(np.ones(500), scale=np.linspace(2000, 2500, 500) * u.AA)
    result = measure_drift(exposure)
    with pytest.raises(ValueError, match="pixel"):
        result.mean("angstrom")
    with pytest.raises(ValueError, match="exclude"):
        result.mean(exclude=[True])
    with pytest.raises(ValueError, match="different centres"):
        Drift.concatenate([result, measure_drift(exposure, center="gauss")])
    with pytest.raises(ValueError, match="no drifts"):
        Drift.concatenate([])
    # no light at all: no line, no mean, no exception
    dark = measure_drift(np.random.default_rng(0).normal(0, 1, 4096), scale=exposure.wavelength[0] * u.AA)
    assert np.all(np.isnan(dark.velocity) | (dark.reason == ""))


@pytest.fixture(scope="module")
def rm017(data_dir):
    """Sky spectra of the blue camera: exposures as (wavelength, sky, heliocentric velocity)."""
    with np.load(data_dir / "sdss_rm017" / "rm017_sky_wdisp.npz") as data:
        meta, offset = data["meta"], data["offset"]
        loglam, flux = data["loglam"].astype(float), data["sky"].astype(float)
    rows = []
    for i, row in enumerate(meta):
        if row["extname"].startswith("B"):
            cut = slice(offset[i], offset[i + 1])
            order = np.argsort(loglam[cut])
            rows.append((10 ** loglam[cut][order], flux[cut][order], float(row["helio_rv"])))
    return rows


@pytest.mark.parametrize("center", ["half", "sersic"])
def test_sdss_exposures(rm017, center):
    """117 exposures of 39 nights: [O I] 5577 scatters by 6 km/s, and by half of that once *other* lines correct it."""
    drift = Drift.concatenate(
        [measure_drift(s, scale=w * u.AA, velocity=v * u.km / u.s, center=center) for w, s, v in rm017]
    )
    oxygen = np.abs(drift.wavelength - air_to_vacuum(5577.338)) < 0.1
    before = drift.velocity[:, oxygen].ravel()
    assert np.count_nonzero(np.isfinite(before)) == len(rm017)
    # the frame has the right sign: with the other one, the year shows (heliocentric velocities of +-15 km/s)
    assert abs(np.mean(before)) < 8.0
    helio = np.array([v for _, _, v in rm017])
    assert abs(np.corrcoef(helio, before)[0, 1]) < 0.5
    assert 5.0 < np.std(before) < 8.0
    relative = drift.relative()
    value, error, number = relative.mean("velocity", exclude=oxygen)
    after = relative.velocity[:, oxygen].ravel() - value
    assert np.std(after) < 3.3
    assert np.std(after) < 0.6 * np.std(before)
    assert np.median(number) >= 4
    # the errors account for most of what is left
    assert 0.5 < np.std(after) / np.sqrt(np.mean(error**2)) < 2.5
