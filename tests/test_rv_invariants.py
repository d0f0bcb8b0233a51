"""What velocities, windows and their means must not depend on, whatever the numbers are."""

import astropy.units as u
import numpy as np
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from lamost_lsf.io import check_heliocentric
from lamost_lsf.rv.combine import combine_windows
from lamost_lsf.rv.frames import to_frame
from lamost_lsf.rv.result import RVFlag
from lamost_lsf.rv.rows import COLUMNS, blank_row, table_of_rows
from lamost_lsf.rv.trial import log_shift, velocity_grid, velocity_of_shift
from lamost_lsf.rv.windows import parse_windows

C = 299792.458
_ROW = st.tuples(
    st.floats(-500, 500), st.floats(0.1, 30), st.floats(1, 5), st.sampled_from([0, 0, 0, RVFlag.DOUBLE_MINIMUM])
)


def windows(rows):
    return [
        {
            **blank_row(), "window": f"w{k}", "window_low": 4000.0 + 100 * k, "window_high": 4100.0 + 100 * k,
            "rv": rv, "rv_err": err, "rv_err_scaled": err * scale, "rv_err_ip": 0.1 * err, "rv_err_wave": 0.5,
            "n_pixels": 100 + k, "n_rejected": k, "snr": 10.0 + k, "flags": int(flag), "template_index": k,
        }
        for k, (rv, err, scale, flag) in enumerate(rows)
    ]  # fmt: skip


def same(one, other):
    for name, kind, *_ in COLUMNS:
        if kind is float:
            assert_allclose(one[name], other[name], rtol=1e-9, atol=1e-9, err_msg=name)
        elif name not in ("template_index", "template"):  # of the heaviest window, or of one as heavy
            assert one[name] == other[name], name


@given(st.lists(_ROW, min_size=1, max_size=6).flatmap(lambda r: st.tuples(st.just(r), st.permutations(range(len(r))))))
@settings(max_examples=80, deadline=None)
def test_the_mean_of_windows_does_not_depend_on_their_order(case):
    rows, order = case
    mapping = {f"w{k}": float(k) for k in range(len(rows))}
    made = windows(rows)
    one = combine_windows(made, mapping, 1.5 * u.km / u.s)
    same(one, combine_windows([made[k] for k in order], mapping, 1.5 * u.km / u.s))


@given(st.lists(_ROW, min_size=1, max_size=6), st.floats(-300, 300), st.floats(0.1, 10))
@settings(max_examples=80, deadline=None)
def test_the_mean_of_windows_moves_and_scales_with_them(rows, offset, factor):
    plain = combine_windows(windows(rows))
    moved = combine_windows(windows([(rv + offset, *rest) for rv, *rest in rows]))
    assert_allclose(moved["rv"], plain["rv"] + offset, atol=1e-9)
    assert_allclose(moved["chi2"], plain["chi2"], rtol=1e-6, atol=1e-6)
    # a zero point that all windows share is that offset the other way round
    shared = combine_windows(windows(rows), lambda window, meta: offset)
    assert_allclose(shared["rv"], plain["rv"] - offset, atol=1e-9)
    scaled = combine_windows(windows([(rv * factor, err * factor, *rest) for rv, err, *rest in rows]))
    for name in ("rv", "rv_err", "rv_err_scaled"):
        assert_allclose(scaled[name], plain[name] * factor, rtol=1e-9, atol=1e-9)


@given(st.lists(_ROW, min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_the_mean_lies_among_the_windows_and_is_better_than_each(rows):
    good = [r for r in rows if not r[3]]
    row = combine_windows(windows(rows))
    assert row["n_windows"] == len(good)
    if not good:
        assert np.isnan(row["rv"])
        assert row["flags"]
        return
    velocity, scaled = np.array([r[0] for r in good]), np.array([r[1] * r[2] for r in good])
    assert velocity.min() - 1e-9 <= row["rv"] <= velocity.max() + 1e-9
    # flagged windows have no say
    same(row, {**combine_windows([w for w in windows(rows) if not w["flags"]]),
               "window_low": row["window_low"], "window_high": row["window_high"]})  # fmt: skip
    reduced = max(1.0, row["chi2"] / row["dof"]) if row["dof"] else 1.0
    assert row["rv_err_scaled"] <= scaled.min() * np.sqrt(reduced) * (1 + 1e-9)
    assert row["rv_err_total"] >= row["rv_err_scaled"]


@given(st.floats(-0.99 * C, 0.99 * C))
def test_shifts_and_velocities_go_to_and_fro(velocity):
    assert_allclose(velocity_of_shift(log_shift(velocity)), velocity, rtol=1e-9, atol=1e-9)
    # approaching as fast as it recedes undoes it
    assert_allclose(log_shift(-velocity), -log_shift(velocity), rtol=1e-9, atol=1e-12)


@given(st.floats(-1500, 1400), st.floats(10, 1000), st.floats(1e-5, 1e-3))
def test_trial_velocities_cover_their_range_evenly(low, width, step):
    grid = velocity_grid(low, low + width, step)
    assert (grid[0], grid[-1]) == (low, low + width)
    spacing = np.diff(log_shift(grid))
    assert_allclose(spacing, spacing[0], rtol=1e-6)
    assert spacing[0] <= step * (1 + 1e-6)


@given(st.floats(3500, 8000), st.floats(50, 900), st.sampled_from([u.AA, u.nm, u.um]))
def test_windows_do_not_depend_on_how_they_are_given(low, width, unit):
    pair = (low * u.AA).to(unit), ((low + width) * u.AA).to(unit)
    for given_ in (pair, u.Quantity(pair), [u.Quantity(pair)], {f"{low:.0f}-{low + width:.0f}": u.Quantity(pair)}):
        (window,) = parse_windows(given_)
        assert_allclose((window.low, window.high), (low, low + width), rtol=1e-12)


@given(
    st.lists(st.floats(-800, 800), min_size=1, max_size=4),
    st.permutations(["heliocentric", "barycentric", "topocentric"]),
)
@settings(max_examples=4, deadline=None)
def test_frames_go_to_and_fro(velocities, route):
    """Whatever way round: what comes back is what went."""
    meta = {
        "ra": 150.0 * u.deg, "dec": 20.0 * u.deg, "time": Time(["2017-01-10T15:00"]), "frame": "heliocentric",
    }  # fmt: skip
    helio_rv = check_heliocentric(meta, warn=False).computed.value  # a header's own may differ by 0.03 km/s
    meta["helio_rv"] = helio_rv * u.km / u.s
    rows = [
        {**blank_row(), "spectrum": k, "rv": v, "second_rv": v + 1.0, "frame": "heliocentric", "_meta": meta}
        for k, v in enumerate(velocities)
    ]

    def move(frame):
        to_frame(rows, frame)
        meta["frame"] = frame

    move("topocentric")
    # HELIO_RV is minus the correction: the detector saw the star recede by it
    factor = np.sqrt((1 + np.array(velocities) / C) / (1 - np.array(velocities) / C)) * (1 + helio_rv / C)
    assert_allclose([r["rv"] for r in rows], C * np.tanh(np.log(factor)), atol=1e-8)
    for frame in (*route, "barycentric", "topocentric"):
        move(frame)
        assert {r["frame"] for r in rows} == {frame}
    move("heliocentric")
    # a header's velocity divides where astropy's multiplies: 3 m/s at most, the square of the Earth's over c
    assert_allclose([r["rv"] for r in rows], velocities, atol=0.01)
    assert_allclose([r["second_rv"] - r["rv"] for r in rows], 1.0, atol=1e-3)


@given(st.lists(st.tuples(st.floats(-500, 500), st.text(max_size=5), st.integers(0, 2**10)), max_size=5))
def test_rows_come_back_out_of_their_table(values):
    rows = [{**blank_row(), "rv": v, "message": t, "flags": f, "spectrum": k} for k, (v, t, f) in enumerate(values)]
    table = table_of_rows(rows)
    assert table.colnames == [c[0] for c in COLUMNS]
    assert table["rv"].tolist() == [v for v, _, _ in values]
    assert table["flags"].tolist() == [f for _, _, f in values]
    # numpy's text ends where its last character is no NUL
    assert table["message"].tolist() == [t.rstrip("\0") for _, t, _ in values]
    assert table["rv"].unit == u.km / u.s
