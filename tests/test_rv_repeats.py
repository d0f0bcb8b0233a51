"""Repeated stars, windows weighted leaving one star out, next to the pipeline; covariances against Monte Carlo."""

from itertools import combinations

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord

import lamost_lsf as ll
from lamost_lsf.io import list_templates, read_lamost_arrays, read_template
from lamost_lsf.rv import measure_rvs
from lamost_lsf.rv.weights import fit_window_covariance

C = 299792.458
ANOTHER_NIGHT = 600  # minutes between visits
WINDOWS = {
    f"{low}-{high}": (low, high) * u.AA
    for low, high in ((4800, 5300), (4950, 5300), (4830, 5350), (4800, 5450), (5000, 5400), (4600, 5400))
}


def mad(difference):
    """Single-visit scatter from differences of two visits, robust."""
    return 1.4826 * np.median(np.abs(difference)) / np.sqrt(2)


def rms(difference):
    return np.sqrt(np.mean(np.square(difference)) / 2)


def simulated(rng, n, flux, shared, own):
    visit = [shared * rng.normal(size=(n, 1)) + own * rng.normal(size=(n, own.size)) for _ in range(2)]
    noise = [flux * rng.normal(size=(n, own.size)) for _ in range(2)]
    return visit[0] - visit[1] + noise[0] - noise[1]


def test_covariance_and_weights_are_those_of_a_simulation():
    rng = np.random.default_rng(4)
    own, flux = np.array([1.0, 2.0, 4.0]), rng.uniform(0.5, 4.0, (3000, 3))
    difference = simulated(rng, 3000, flux, 2.0, own)
    difference[::7, 1] = np.nan
    found = fit_window_covariance(difference, np.sqrt(2) * flux, freedom=np.inf)
    truth = 4.0 + np.diag(own**2)
    assert np.allclose(found.covariance, truth, atol=0.12 * np.sqrt(np.outer(np.diag(truth), np.diag(truth))))
    assert abs(found.error_scale - 1) < 0.05
    # weights: those of least variance, by brute force over the simplex
    errors = np.array([1.5, 1.0, 0.7])
    total = truth + np.diag(errors**2)
    grid = np.array([(a, b, 1 - a - b) for a in np.linspace(0, 1, 201) for b in np.linspace(0, 1 - a, 201)])
    variance = np.einsum("ki,ij,kj->k", grid, total, grid)
    weights = found.weights(errors)
    assert weights.sum() == pytest.approx(1)
    assert weights @ total @ weights < 1.01 * variance.min()
    assert np.allclose(found.weights([1.5, np.nan, 0.7])[1], 0)
    assert np.all(np.isnan(found.weights([np.nan] * 3)))


def test_outliers_hardly_move_the_weights():
    rng = np.random.default_rng(5)
    own, flux = np.array([1.0, 3.0]), np.full((400, 2), 1.0)
    difference = simulated(rng, 400, flux, 1.0, own)
    spoiled = difference.copy()
    spoiled[:20, 0] += 60.0
    options = {"error_scale": 1.0}
    clean = fit_window_covariance(difference, np.sqrt(2) * flux, **options).weights([1.0, 1.0])
    dirty = fit_window_covariance(spoiled, np.sqrt(2) * flux, **options).weights([1.0, 1.0])
    normal = fit_window_covariance(spoiled, np.sqrt(2) * flux, freedom=np.inf, **options).weights([1.0, 1.0])
    assert abs(dirty[0] - clean[0]) < 0.15
    assert normal[0] < clean[0] - 0.4


def test_bad_arguments_are_refused():
    good = np.ones((5, 2))
    for difference, error, options, message in (
        (good, np.ones((5, 3)), {}, "shape"),
        (good, -good, {}, "positive"),
        (good[:2], good[:2], {}, "3 pairs"),
        (good * [1, np.nan], good, {}, "no pair"),
        (good, good, {"shrinkage": 2.0}, "shrinkage"),
        (good, good, {"freedom": 1.0}, "freedom"),
        (good, good, {"weight": np.zeros(5)}, "weight"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_window_covariance(difference, error, **options)


def pairs_of(name, minute):
    found = [
        (a, b)
        for n in np.unique(name)
        for a, b in combinations(np.flatnonzero(name == n), 2)
        if abs(minute[a] - minute[b]) > ANOTHER_NIGHT
    ]
    return np.array(found).T


def interval(function, star, *differences):
    """95 % bootstrap interval; whole stars are drawn, as pairs of one star share visits."""
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(star == s) for s in np.unique(star)]
    draws = [np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))]) for _ in range(2000)]
    return np.percentile([function(*(d[k] for d in differences)) for k in draws], [2.5, 97.5])


@pytest.fixture(scope="module")
def repeats(data_dir):
    paths = sorted((data_dir / "lamost" / "lrs_repeats_dr8").glob("*.fits*"))
    if not paths:
        pytest.skip("no files in lamost/lrs_repeats_dr8")
    spectra = [read_lamost_arrays(path) for path in paths]
    phoenix = data_dir / "templates" / "phoenix" / "phoenix_hires_2450_11000.npz"
    redrock = data_dir / "templates" / "redrock"
    templates = [read_template(phoenix, name) for name in list_templates(phoenix)]
    templates += [
        read_template(redrock / f"rrtemplate-STAR-{kind}-v0.1.fits", number)
        for kind, number in (("G", 859), ("A", 146))
    ]
    shape = (len(templates), len(spectra), len(WINDOWS))
    rv, err, chi2 = np.empty(shape), np.empty(shape), np.empty(shape)
    for k, template in enumerate(templates):
        table = measure_rvs(
            spectra, template, ll.GaussianIP(1800), windows=WINDOWS, velocity_range=(-450, 450), degree=3
        )
        table = table[table["window"] != "combined"]
        for out, name in ((rv, "rv"), (err, "rv_err"), (chi2, "chi2")):
            out[k] = np.array(table[name]).reshape(shape[1:])
    meta = [s.meta for s in spectra]
    place = SkyCoord([m["ra"] for m in meta], [m["dec"] for m in meta])
    # designations of one star differ in the last digit between visits
    star = np.argmax(place[:, None].separation(place[None]).arcsec < 3, axis=1)
    best = np.empty(len(spectra), dtype=int)
    for s in np.unique(star):
        # one template for all visits: what it does to the velocity then drops out of their differences
        total = chi2[:, star == s, -1].sum(axis=1)
        best[star == s] = np.argmin(np.where(np.isfinite(total), total, np.inf))
    rows = np.arange(len(spectra))
    return {
        "rv": rv[best, rows], "err": err[best, rows], "star": star,
        "designation": np.array([m["designation"] for m in meta]),
        "minute": np.array([m["lmjm"][0] for m in meta]),
        "pipeline": np.array([m["z"] * C for m in meta]),
    }  # fmt: skip


def combined(repeats, kind):
    """One velocity a visit, each star's windows weighted by what the other stars' pairs say."""
    rv, star = repeats["rv"], repeats["star"]
    first, second = pairs_of(star, repeats["minute"])
    number = np.array([np.sum(star == star[a]) for a in first])
    difference = rv[first] - rv[second]
    out = np.full(len(rv), np.nan)
    for s in np.unique(star[first]):
        others, own = star[first] != s, np.flatnonzero(star == s)
        scatter = np.sqrt(np.average(difference[others] ** 2, axis=0, weights=2 / number[others]) / 2)
        if kind == "inverse variance":
            weight = scatter**-2 / np.sum(scatter**-2)
        elif kind == "best window":
            weight = np.eye(scatter.size)[np.argmin(scatter)]
        elif kind == "equal":
            weight = np.full(scatter.size, 1 / scatter.size)
        else:
            # the windows overlap: all of their scatter is taken as covariance, none as independent noise of the flux
            tiny = np.full(difference.shape, 0.05)
            model = fit_window_covariance(
                difference[others], tiny[others], weight=2 / number[others], error_scale=1.0, max_iterations=40
            )
            weight = model.weights(tiny[0])
        out[own] = rv[own] @ weight
    return out


def test_repeated_stars_with_windows_weighted_leaving_one_star_out(repeats, capsys):
    samples = {"designation": repeats["designation"], "position": repeats["star"]}
    velocity = {"pipeline": repeats["pipeline"]}
    velocity |= {k: combined(repeats, k) for k in ("inverse variance", "equal", "covariance", "best window")}
    result, lines = {}, []
    for sample, name in samples.items():
        first, second = pairs_of(name, repeats["minute"])
        star = repeats["star"][first]
        reference = repeats["pipeline"][first] - repeats["pipeline"][second]
        lines.append(f"{len(first)} pairs of {len(np.unique(star))} stars, by {sample}")
        for kind, v in velocity.items():
            difference = v[first] - v[second]
            assert np.all(np.isfinite(difference))
            result[sample, kind] = [mad(difference), rms(difference)]
            low, high = interval(mad, star, difference), interval(rms, star, difference)
            ratio = interval(lambda a, b: rms(a) / rms(b), star, difference, reference)
            lines.append(
                f"{kind:>17}: MAD {mad(difference):.2f} [{low[0]:.2f}, {low[1]:.2f}], rms {rms(difference):.2f} "
                f"[{high[0]:.2f}, {high[1]:.2f}] km/s; rms/pipeline [{ratio[0]:.2f}, {ratio[1]:.2f}]"
            )
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    robust, total = result["designation", "inverse variance"]
    assert robust <= 2.8
    assert total <= 3.2
    # pairs whose designations differ between the visits
    assert result["position", "inverse variance"][0] <= 2.8
    for k in (0, 1):
        assert result["designation", "inverse variance"][k] < result["designation", "pipeline"][k]
