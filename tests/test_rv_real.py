"""`measure_rv` on real LAMOST spectra with PHOENIX templates: repeated stars next to the pipeline, then all files."""

import warnings
from itertools import combinations

import astropy.units as u
import numpy as np
import pytest
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf.errors import FitWarning, FrameWarning
from lamost_lsf.io import read_lamost, read_lamost_arrays, read_lamost_mrs
from lamost_lsf.rv import RVFlag, measure_rv, measure_rvs

C = 299792.458
WINDOW = (4900, 5400) * u.AA
ANOTHER_NIGHT = 600  # minutes between visits


@pytest.fixture(scope="module")
def phoenix(data_dir):
    with np.load(data_dir / "templates" / "phoenix" / "phoenix_hires_2450_11000.npz") as npz:
        wavelength = npz["wave_vac_A"].astype(float)
        # what the windows of this file need, and some
        here = (wavelength > 3700) & (wavelength < 9200)
        return [
            Spectrum(flux=npz[k][here].astype(float) * u.one, spectral_axis=wavelength[here] * u.AA, meta={"name": k})
            for k in npz.files
            if k.startswith("lte")
        ]


def files(data_dir, folder):
    found = sorted((data_dir / "lamost" / folder).glob("*.fits*"))
    if not found:
        pytest.skip(f"no files in lamost/{folder}")
    return found


def quietly(spectrum, templates, lsf, **options):
    """The result, and that a velocity is missing exactly where the one warning says so."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = measure_rv(spectrum, templates, lsf, **options)
    assert [w.category for w in caught] == ([] if result.success else [FitWarning])
    assert result.success == np.isfinite(result.rv_err.value)
    assert result.success or result.flags
    if result.success:
        assert result.rv_err.value > 0
        assert result.rv_err_scaled >= result.rv_err
    return result


def scatter(difference):
    """Single-visit scatter from differences of two visits, robust."""
    return 1.4826 * np.median(np.abs(difference)) / np.sqrt(2)


def test_repeated_stars_scatter_less_than_the_pipelines_velocities(data_dir, phoenix, capsys):
    lsf = ll.GaussianIP(1800)
    visits = {}
    for path in files(data_dir, "lrs_repeats_dr8"):
        spectrum = read_lamost(path)
        result = quietly(spectrum, phoenix, lsf, window=WINDOW)
        assert result.frame == "heliocentric"
        assert result.center == "sersic"
        visits.setdefault(spectrum.meta["designation"], []).append(
            (spectrum.meta["lmjm"][0], result, spectrum.meta["z"] * C)
        )
    results = [v[1] for star in visits.values() for v in star]
    # one pair of visits a row: star, ours, pipeline's
    pairs = [
        (star, (a[1].rv - b[1].rv).value, a[2] - b[2], (a[1].flags | b[1].flags) == 0)
        for star, seen in enumerate(visits.values())
        for a, b in combinations(seen, 2)
        if abs(a[0] - b[0]) > ANOTHER_NIGHT and a[1].success and b[1].success
    ]
    star, ours, pipeline, good = (np.array(column) for column in zip(*pairs))
    assert len(results) > 50
    assert len(pairs) >= 35
    rng = np.random.default_rng(0)
    # whole stars are drawn: pairs of one star share visits
    rows = [np.flatnonzero(star == s) for s in np.unique(star)]
    draws = [np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))]) for _ in range(4000)]
    table = {
        "ours": [scatter(ours), *np.percentile([scatter(ours[d]) for d in draws], [2.5, 97.5])],
        "pipeline": [scatter(pipeline), *np.percentile([scatter(pipeline[d]) for d in draws], [2.5, 97.5])],
        "ratio": [
            scatter(ours) / scatter(pipeline),
            *np.percentile([scatter(ours[d]) / scatter(pipeline[d]) for d in draws], [2.5, 97.5]),
        ],
    }
    offset = np.array([v[1].rv.value - v[2] for s in visits.values() for v in s if v[1].success])
    flagged = sum(bool(r.flags) for r in results)
    double = sum(RVFlag.DOUBLE_MINIMUM in r.flags for r in results)
    with capsys.disabled():
        print(f"\n{len(results)} spectra of {len(visits)} stars, {len(pairs)} pairs of nights, {WINDOW}")
        print(f"flagged {flagged} (double minimum {double}); ours minus pipeline: median {np.median(offset):+.2f} km/s")
        for name, (value, low, high) in table.items():
            print(f"{name:>9}: {value:.2f} [{low:.2f}, {high:.2f}] {'km/s a visit' if name != 'ratio' else ''}")
    assert table["ours"][0] <= table["pipeline"][0]
    assert table["ours"][0] < 3.5
    assert abs(np.median(offset)) < 6
    # formal errors, at the least, are not larger than what is seen
    assert np.median([r.rv_err.value for r in results]) < table["ours"][2] * 1.5
    # single stars are not taken for double ones
    assert double <= 1
    assert np.all(np.abs(offset) < 120)
    assert good.sum() >= 30


@pytest.mark.parametrize("folder", ["lrs_plate_sp03_dr7", "lrs_dr10_new_layout", "lrs_misc"])
def test_every_low_resolution_spectrum_gives_a_velocity_or_a_flag(data_dir, phoenix, folder):
    lsf = ll.GaussianIP(1800)
    results = {path.name: quietly(read_lamost(path), phoenix, lsf, window=WINDOW) for path in files(data_dir, folder)}
    assert np.mean([r.success for r in results.values()]) > 0.8
    for path in files(data_dir, folder)[:2]:
        quietly(read_lamost(path), phoenix, ll.GaussianIP(1800), window=(4000, 8900) * u.AA)


def test_medium_resolution_arms_and_exposures_agree(data_dir, phoenix):
    windows = {"blue": (4980, 5320) * u.AA, "red": (6350, 6760) * u.AA}
    for path in files(data_dir, "mrs_multi_epoch"):
        results = []
        for spectrum in read_lamost_mrs(path):
            result = quietly(
                spectrum, phoenix, ll.GaussianIP(7500), window=windows[spectrum.meta["arm"]], center="zero"
            )
            results.append((spectrum.meta["arm"], result))
        for arm in windows:
            good = [r for a, r in results if a == arm and r.success and not r.flags]
            if len(good) < 3:
                continue
            velocity = np.array([r.rv.value for r in good])
            error = np.array([r.rv_err_scaled.value for r in good])
            # within a file: one night or few, so that a single star's exposures agree, but for the wavelength scale
            assert np.median(np.abs(velocity - np.median(velocity))) < 3 * np.median(error) + 2


def test_a_batch_of_files_gives_what_single_measurements_give(data_dir, phoenix):
    """Repeated stars in three windows, whole files at a time, with their scatter next to the pipeline's."""
    paths = files(data_dir, "lrs_repeats_dr8")
    windows = {"Mg": WINDOW, "blue": (4000, 5500) * u.AA, "CaT": (8400, 8800) * u.AA}
    lsf = ll.GaussianIP(1800)
    table = measure_rvs(paths, phoenix, lsf, windows=windows)
    assert len(table) == 4 * len(paths)
    assert set(table["frame"]) == {"heliocentric"}
    assert set(table["center"]) == {"sersic"}
    for number, path in list(enumerate(paths))[::12]:
        spectrum = read_lamost(path)
        for row in table[4 * number : 4 * number + 3]:
            alone = quietly(spectrum, phoenix, lsf, window=windows[row["window"]])
            # the basis of a batch is good to some 0.01 km/s
            assert abs(row["rv"] - alone.rv.value) < 0.01
            assert abs(row["rv_err"] / alone.rv_err.value - 1) < 0.01
            assert row["template"] == alone.template
            assert row["flags"] == alone.flags
            assert row["n_rejected"] == alone.n_rejected
            assert row["file"] == str(path)
    mg = table[table["window"] == "Mg"]
    headers = [read_lamost_arrays(path).meta for path in paths]
    star = np.array([m["designation"] for m in headers])
    minute = np.array([m["lmjm"][0] for m in headers])
    pairs = [
        (a, b)
        for name in np.unique(star)
        for a, b in combinations(np.flatnonzero(star == name), 2)
        if abs(minute[a] - minute[b]) > ANOTHER_NIGHT
    ]
    first, second = np.array(pairs).T
    pipeline = np.array([m["z"] * C for m in headers])
    assert scatter(mg["rv"][first] - mg["rv"][second]) < min(3.0, scatter(pipeline[first] - pipeline[second]))


def test_files_of_all_kinds_become_rows(data_dir, phoenix):
    """Every LAMOST file at hand, of any survey, release and state: a velocity or a flag with its reason."""
    paths = sorted(p for p in (data_dir / "lamost").rglob("*.fits*") if p.is_file())[::3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrameWarning)
        table = measure_rvs([*paths, data_dir / "README.md"], phoenix, ll.GaussianIP(1800), windows=WINDOW, mask="or")
    assert len(table) == len(paths) + 1
    good = np.isfinite(table["rv"])
    assert np.array_equal(good, np.isfinite(table["rv_err"]))
    assert np.all(table["flags"][~good] != 0)
    assert all(row["message"] for row in table[~good])
    assert table["flags"][-1] == RVFlag.UNREADABLE
    assert np.mean(good) > 0.8
