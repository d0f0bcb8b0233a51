"""Repeated stars, windows chosen without the star that they are used for; weights against Monte Carlo."""

from itertools import combinations

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

import lamost_lsf as ll
from lamost_lsf.io import list_templates, read_lamost_arrays, read_template
from lamost_lsf.rv import measure_rvs
from lamost_lsf.rv.ensemble import ensemble_weights, nested_weights
from lamost_lsf.rv.weights import fit_window_covariance

C = 299792.458
ANOTHER_NIGHT = 600  # minutes between visits
#: Even hundreds of Angstrom in 4400-5600, 400 to 1000 wide: every fourth of those that the documentation speaks of.
WINDOWS = {
    f"{low}-{high}": (low, high) * u.AA
    for low in range(4400, 5200, 200)
    for high in range(4800, 5700, 200)
    if 400 <= high - low <= 1000
}
DEGREES = (2, 3, 4, 5, 6)


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


def many_windows(rng, n_star, n_visit=2):
    """Velocities of two good windows among forty: 1 and 1.5 km/s, the others 3; 1 km/s is common to all."""
    own = np.full(40, 3.0)
    own[[7, 23]] = 1.0, 1.5
    star = np.repeat(np.arange(n_star), n_visit)
    v = rng.normal(0, 40, n_star)[star, None] + rng.normal(size=(star.size, 1)) + own * rng.normal(size=(star.size, 40))
    first = np.arange(0, star.size, n_visit)
    return v, star, (first, first + 1)


def test_good_windows_are_found_among_many():
    v, _, (first, second) = many_windows(np.random.default_rng(6), 600)
    weights = ensemble_weights(v[first] - v[second], rounds=50)
    assert weights.sum() == pytest.approx(1)
    assert np.all(weights >= 0)
    # least variance gives 0.64 and 0.29, and 0.07 / 38 to each of the others
    share = own_share(np.r_[1.0, 1.5, np.full(38, 3.0)])
    assert weights[[7, 23]] == pytest.approx(share[:2], abs=0.12)
    # a star that varies does not decide, but for whoever takes squares
    spoiled = v[first] - v[second]
    spoiled[0, [7, 23]] += 60.0
    assert ensemble_weights(spoiled)[[7, 23]].sum() > 0.3
    assert ensemble_weights(spoiled, freedom=np.inf)[[7, 23]].sum() < 0.1


def own_share(sigma):
    return sigma**-2.0 / np.sum(sigma**-2.0)


def test_only_a_choice_without_the_star_tells_what_it_is_worth():
    """The scatter of new stars is what the nested one says; the pairs that it was chosen on promise more."""
    rng, inside, nested, new = np.random.default_rng(7), [], [], []
    for _ in range(60):
        v, star, (first, second) = many_windows(rng, 30)
        w = nested_weights(v, star, (first, second))
        out = np.sum(w * v, axis=1)
        nested.append(np.mean((out[first] - out[second]) ** 2) / 2)
        chosen = ensemble_weights(v[first] - v[second])
        inside.append(np.mean(((v[first] - v[second]) @ chosen) ** 2) / 2)
        fresh, _, (first, second) = many_windows(rng, 300)
        new.append(np.mean(((fresh[first] - fresh[second]) @ chosen) ** 2) / 2)
    error = np.std(nested) / np.sqrt(60)
    assert abs(np.mean(nested) - np.mean(new)) < 3 * error
    assert np.mean(inside) < np.mean(new) - 3 * error
    assert np.all(w[star == 3] == w[6])


@given(st.integers(0, 2**32 - 1), st.floats(-300, 300), st.permutations(range(8)))
@settings(max_examples=25, deadline=None)
def test_what_a_choice_does_not_depend_on(seed, offset, order):
    """Velocities of the stars, zero points of windows, sign of the differences, order of pairs and windows."""
    rng = np.random.default_rng(seed)
    star = np.repeat(np.arange(12), 2)
    v = rng.normal(size=(24, 8)) * rng.uniform(1, 4, 8)
    first = np.arange(0, 24, 2)
    weights = nested_weights(v, star, (first, first + 1))
    moved = v + offset * rng.normal(size=12)[star, None] + np.arange(8.0)
    assert np.allclose(nested_weights(moved, star, (first, first + 1)), weights)
    assert np.allclose(nested_weights(v, star, (first[::-1] + 1, first[::-1])), weights)
    assert np.allclose(nested_weights(v[:, order], star, (first, first + 1)), weights[:, order])
    assert np.allclose(weights.sum(axis=1), 1)
    # a window that lacks a velocity in any other star's pair is not chosen
    v[5, 2] = np.nan
    weights = nested_weights(v, star, (first, first + 1))
    assert np.all(weights[star != 2][:, 2] == 0)


def test_bad_choices_are_refused():
    good, star, first = np.ones((6, 3)), np.repeat([1, 2, 3], 2), np.array([0, 2, 4])
    for arguments, message in (
        ((good[:2],), "3 pairs"),
        ((good[0],), "shape"),
        ((good * np.nan,), "no window"),
    ):
        with pytest.raises(ValueError, match=message):
            ensemble_weights(*arguments)
    for options, message in (({"rounds": 0}, "rounds"), ({"freedom": 1}, "freedom"), ({"weight": [1]}, "weight")):
        with pytest.raises(ValueError, match=message):
            ensemble_weights(good, **options)
    with pytest.raises(ValueError, match="one star"):
        nested_weights(good, star, (first, first[::-1]))
    with pytest.raises(ValueError, match="n_visit, n_window"):
        nested_weights(good, star[:4], (first, first + 1))


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
    meta = [s.meta for s in spectra]
    place = SkyCoord([m["ra"] for m in meta], [m["dec"] for m in meta])
    # designations of one star differ in the last digit between visits
    star = np.argmax(place[:, None].separation(place[None]).arcsec < 3, axis=1)
    rows, velocity = np.arange(len(spectra)), []
    for degree in DEGREES:
        tables = [
            measure_rvs(
                spectra, template, ll.GaussianIP(1800), windows=WINDOWS, velocity_range=(-450, 450), degree=degree
            )
            for template in templates
        ]
        tables = [table[table["window"] != "combined"] for table in tables]
        rv, chi2 = (np.array([table[c] for table in tables]).reshape(-1, len(spectra), len(WINDOWS)) for c in
                    ("rv", "chi2"))  # fmt: skip
        best = np.empty(len(spectra), dtype=int)
        for s in np.unique(star):
            # one template for all visits: what it does to the velocity then drops out of their differences
            total = chi2[:, star == s].sum(axis=(1, 2))
            best[star == s] = np.argmin(np.where(np.isfinite(total), total, np.inf))
        velocity.append(rv[best, rows])
    return {
        "rv": np.concatenate(velocity, axis=1), "star": star,
        "designation": np.array([m["designation"] for m in meta]),
        "minute": np.array([m["lmjm"][0] for m in meta]),
        "pipeline": np.array([m["z"] * C for m in meta]),
    }  # fmt: skip


def best_window(difference, weight):
    scatter = np.average(difference**2, axis=0, weights=weight)
    return np.eye(scatter.size)[np.nanargmin(scatter)]


def all_windows(difference, weight):
    usable = np.all(np.isfinite(difference), axis=0)
    return usable / usable.sum()


def combined(repeats, choose):
    """One velocity a visit, by windows and degrees that the other stars' pairs choose."""
    rv, pairs = repeats["rv"], pairs_of(repeats["star"], repeats["minute"])
    weights = nested_weights(rv, repeats["star"], pairs, choose)
    out = np.nansum(weights * np.where(np.isfinite(rv), rv, 0.0), axis=1)
    return np.where(np.all(np.isnan(weights), axis=1), np.nan, out)


def test_repeated_stars_with_windows_chosen_leaving_one_star_out(repeats, capsys):
    samples = {"designation": repeats["designation"], "position": repeats["star"]}
    velocity = {"pipeline": repeats["pipeline"], "ensemble": combined(repeats, None)}
    velocity |= {"best window": combined(repeats, best_window), "all windows": combined(repeats, all_windows)}
    result, lines = {}, []
    for sample, name in samples.items():
        first, second = pairs_of(name, repeats["minute"])
        star = repeats["star"][first]
        reference = repeats["pipeline"][first] - repeats["pipeline"][second]
        lines.append(f"{len(first)} pairs of {len(np.unique(star))} stars, by {sample}")
        for kind, v in velocity.items():
            difference = v[first] - v[second]
            assert np.all(np.isfinite(difference))
            ratio = interval(lambda a, b: rms(a) / rms(b), star, difference, reference)
            result[sample, kind] = [mad(difference), rms(difference), ratio[1]]
            low, high = interval(mad, star, difference), interval(rms, star, difference)
            lines.append(
                f"{kind:>17}: MAD {mad(difference):.2f} [{low[0]:.2f}, {low[1]:.2f}], rms {rms(difference):.2f} "
                f"[{high[0]:.2f}, {high[1]:.2f}] km/s; rms/pipeline [{ratio[0]:.2f}, {ratio[1]:.2f}]"
            )
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    for sample in samples:
        robust, total, ratio = result[sample, "ensemble"]
        assert robust <= 2.8
        assert total <= 3.2
        assert ratio < 1.0  # better than the pipeline, whichever stars there are
        # one window alone is chosen by chance
        assert total < result[sample, "best window"][1]
