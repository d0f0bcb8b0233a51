"""Zero points from stars: simulated surveys whose offsets are known, and what a star left out gains."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable, Table
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from lamost_lsf.calibration import leave_one_star_out, solve_zero_points


def survey(n_star=60, n_plate=4, n_window=3, error=1.0, jitter=0.0, plate=2.5, window=3.0, seed=0, visits=2):
    """Stars seen on some plates each; every window of every plate has its offset."""
    rng = np.random.default_rng(seed)
    windows = rng.normal(0, window, n_window)
    plates = rng.normal(0, plate, (n_plate, n_window))
    star = rng.normal(0, 40, n_star)
    rows = []
    for s in range(n_star):
        for p in rng.choice(n_plate, visits, replace=False):
            for w in range(n_window):
                noise = rng.normal(0, np.hypot(error, jitter))
                rows.append((f"star{s}", f"plate{p}", f"w{w}", star[s] + windows[w] + plates[p, w] + noise, error))
    table = Table(rows=rows, names=("star", "plate", "window", "rv", "rv_err"))
    return table, star, windows, plates


def pair_scatter(table, window):
    """Scatter per visit of repeated stars, one window."""
    own = table[table["window"] == window]
    difference = []
    for name in dict.fromkeys(own["star"]):
        rv = np.array(own["rv"][own["star"] == name], dtype=float)
        if rv.size == 2:
            difference.append(rv[1] - rv[0])
    return np.std(difference) / np.sqrt(2)


def test_known_stars_give_the_offsets():
    table, star, windows, plates = survey(n_star=200)
    known = {f"star{i}": (v * u.km / u.s, 0.1 * u.km / u.s) for i, v in enumerate(star)}
    points = solve_zero_points(table, known=known)
    assert points.effects == (("window",), ("window", "plate"))
    total, error = points.correction(table)
    truth = np.array([windows[int(r["window"][1])] + plates[int(r["plate"][5]), int(r["window"][1])] for r in table])
    assert np.sqrt(np.mean((total - truth) ** 2)) < 0.15
    # errors of the right size
    assert 0.3 < np.sqrt(np.mean(((total - truth) / error) ** 2)) < 2.0


def test_unknown_stars_give_the_differences_of_plates():
    """Without known velocities a common offset is nobody's to tell, but all differences are."""
    table, _, _, plates = survey(n_star=200, n_window=1, window=0.0)
    points = solve_zero_points(table, effects=[("plate",)])
    found = np.array([points.values[("plate",)][(f"plate{p}",)][0] for p in range(4)])
    assert_allclose(found - found.mean(), plates[:, 0] - plates[:, 0].mean(), atol=0.35)
    assert len(points.stars) == 200
    assert points.to_table().colnames == ["effect", "level", "zero_point", "zero_point_err", "n_rows", "n_stars"]


def test_widths_of_the_distributions():
    """Spread of the zero points and jitter are recovered, in the mean of several surveys."""
    spread, extra = [], []
    for seed in range(6):
        table, *_ = survey(n_star=150, n_plate=12, n_window=2, plate=3.0, window=0.0, jitter=1.5, seed=seed)
        points = solve_zero_points(table, effects=[("window", "plate")], robust=False)
        spread.append(points.spread[("window", "plate")])
        extra.append(points.jitter)
    assert np.mean(spread) == pytest.approx(3.0, rel=0.2)
    assert np.mean(extra) == pytest.approx(1.5, rel=0.2)


def test_a_star_left_out_gains():
    """The gain holds for stars that the zero points were not made from, and nothing is gained where nothing is."""
    table, *_ = survey(n_star=80)
    before = pair_scatter(table, "w0")
    after = pair_scatter(leave_one_star_out(table), "w0")
    assert before > 1.8
    assert after < 1.25
    clean, *_ = survey(n_star=80, plate=0.0, window=0.0, seed=3)
    assert pair_scatter(leave_one_star_out(clean), "w0") < 1.1 * pair_scatter(clean, "w0")


def test_a_plate_of_one_star_is_not_overfitted():
    """One star on a plate says nothing about it that the star itself does not: left out, no correction but the mean."""
    table, *_ = survey(n_star=40)
    lonely = Table(rows=[("lonely", "plateX", "w0", 17.0, 1.0)], names=table.colnames)
    from astropy.table import vstack

    both = vstack([table, lonely])
    new = leave_one_star_out(both)
    row = new[new["star"] == "lonely"]
    points = solve_zero_points(both)
    assert float(row["zero_point_err"][0]) >= 0.8 * points.spread[("window", "plate")]


def test_outliers_do_not_draw_the_zero_points():
    table, *_ = survey(n_star=150, n_window=1, window=0.0, seed=5)
    clean = solve_zero_points(table, effects=[("plate",)], jitter=0.0)
    spoiled = table.copy()
    spoiled["rv"][::25] += 60.0
    robust = solve_zero_points(spoiled, effects=[("plate",)], jitter=0.0)
    plain = solve_zero_points(spoiled, effects=[("plate",)], jitter=0.0, robust=False)

    def off(points):
        return np.std(
            [points.values[("plate",)][k][0] - clean.values[("plate",)][k][0] for k in clean.values[("plate",)]]
        )

    assert off(robust) < 0.5 * off(plain)


def test_units_and_unusable_rows():
    table, *_ = survey(n_star=30)
    points = solve_zero_points(table)
    in_metres = QTable(table)
    in_metres["rv"] = np.array(table["rv"]) * 1000 * u.m / u.s
    in_metres["rv_err"] = np.array(table["rv_err"]) * 1000 * u.m / u.s
    same = solve_zero_points(in_metres)
    assert_allclose(same.correction(table)[0], points.correction(table)[0], atol=1e-6)
    applied = same.apply(in_metres)
    assert applied["rv"].unit == u.m / u.s
    assert_allclose(applied["rv"].to_value(u.km / u.s), np.array(table["rv"]) - points.correction(table)[0], atol=1e-6)
    assert np.all(applied["rv_err"] >= in_metres["rv_err"])
    failed = table.copy()
    failed["rv"][3] = np.nan
    failed["rv_err"][5] = 0.0
    result = solve_zero_points(failed)
    assert np.isnan(result.residual[[3, 5]]).all()
    assert np.isfinite(np.delete(result.residual, [3, 5])).all()


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-500, 500), scale=st.floats(0.5, 3.0), seed=st.integers(0, 50))
def test_invariants(shift, scale, seed):
    """A shift of all stars is no zero point; errors that are all larger change the solution only through the prior."""
    table, *_ = survey(n_star=25, seed=seed)
    points = solve_zero_points(table, jitter=0.0, robust=False)
    moved = table.copy()
    moved["rv"] = moved["rv"] + shift
    same = solve_zero_points(moved, jitter=0.0, robust=False)
    assert_allclose(same.correction(table)[0], points.correction(table)[0], atol=2e-2)
    # order of the rows
    shuffled = table[np.random.default_rng(seed).permutation(len(table))]
    again = solve_zero_points(shuffled, jitter=0.0, robust=False)
    assert_allclose(again.correction(table)[0], points.correction(table)[0], atol=1e-6)


def test_bad_input():
    table, *_ = survey(n_star=5)
    with pytest.raises(ValueError, match="no column 'speed'"):
        solve_zero_points(table, rv="speed")
    with pytest.raises(ValueError, match="no column 'night'"):
        solve_zero_points(table, effects=[("night",)])
    with pytest.raises(ValueError, match="effects must be"):
        solve_zero_points(table, effects=[])
    with pytest.raises(ValueError, match="pass effects="):
        solve_zero_points(table["star", "rv", "rv_err"])
    with pytest.raises(ValueError, match="jitter"):
        solve_zero_points(table, jitter=-1.0)
    with pytest.raises(ValueError, match="spread"):
        solve_zero_points(table, spread={("plate",): 1.0})
    with pytest.raises(ValueError, match="known velocity"):
        solve_zero_points(table, known={"star1": np.nan})
    empty = table.copy()
    empty["rv"] = np.nan
    with pytest.raises(ValueError, match="no row"):
        solve_zero_points(empty)
    with pytest.raises(ValueError, match="at least two stars"):
        leave_one_star_out(table[table["star"] == "star1"])
