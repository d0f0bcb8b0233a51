"""What matching, drifts and solutions must not depend on, whatever the numbers are."""

import astropy.units as u
import numpy as np
from astropy.table import QTable
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamost_lsf.calibration import Drift, interpolate_solutions, shift_solution
from lamost_lsf.calibration.matching import mutual_nearest, predict_pixels
from lamost_lsf.wavelength import WavelengthSolution, fit_wavelength_solution

_SORTED = st.lists(st.floats(0, 1000), min_size=1, max_size=15, unique=True).map(sorted).map(np.array)


@given(_SORTED, _SORTED, st.floats(0.1, 50))
def test_nearest_pairs_are_pairs_from_either_side(one, two, tolerance):
    i, j = mutual_nearest(one, two, tolerance)
    assert np.all(np.abs(one[i] - two[j]) <= tolerance)
    assert np.unique(i).size == i.size
    assert np.unique(j).size == j.size
    # nobody who is left is the nearest of all to its own nearest
    for a in np.setdiff1d(np.arange(one.size), i):
        distance = np.abs(two - one[a])
        b = np.flatnonzero(distance == distance.min())
        assert distance.min() > tolerance or np.any(np.isin(b, j)) or b.size > 1
    back = mutual_nearest(one + 3.0, two + 3.0, tolerance)
    apart = np.abs(np.abs(one[:, None] - two) - tolerance).min() > 1e-6
    distances = np.sort(np.abs(one[:, None] - two), axis=None)
    if apart and (distances.size < 2 or np.diff(distances).min() > 1e-6):
        assert_array_equal(back, (i, j))


@given(st.floats(3500, 8000), st.floats(0.3, 3.0), st.floats(-0.2, 0.2), st.booleans(), st.floats(0, 499))
def test_pixels_and_wavelengths_go_to_and_fro(start, step, bend, mirrored, pixel):
    x = np.arange(500.0)
    scale = start + step * x * (1 + bend * x / 500)
    scale = scale[::-1] if mirrored else scale
    (found,) = predict_pixels(scale, np.array([np.interp(pixel, x, scale)]))
    assert_allclose(found, pixel, atol=1e-6)
    ends = predict_pixels(scale, np.array([scale.min() - 1, scale.max() + 1]))
    assert np.all(np.isnan(ends))


def drift(rng, n, m, first=1):
    error = rng.uniform(0.05, 0.3, (2, n, m))
    value = rng.normal(0, 0.1, (2, n, m))
    value[:, rng.random((n, m)) < 0.1] = np.nan
    wavelength = 5000.0 + 100 * np.arange(m)
    return Drift(
        wavelength=wavelength, label=np.array([f"line {k}" for k in range(m)]), velocity=value[0] * 30,
        velocity_error=error[0] * 30, pixel=value[1], pixel_error=error[1], reason=np.full((n, m), ""),
        center="half", fiber=first + np.arange(n),
    )  # fmt: skip


def cut(one, rows):
    parts = {
        k: getattr(one, k)[rows] for k in ("velocity", "velocity_error", "pixel", "pixel_error", "reason", "fiber")
    }
    return Drift(wavelength=one.wavelength, label=one.label, center=one.center, **parts)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 5), st.floats(-2, 2))
@settings(max_examples=40, deadline=None)
def test_drifts_of_parts_are_those_of_the_whole(seed, n, m, offset):
    rng = np.random.default_rng(seed)
    whole = drift(rng, n, m)
    k = int(rng.integers(1, n))
    again = Drift.concatenate([cut(whole, slice(0, k)), cut(whole, slice(k, n))])
    for name in ("wavelength", "label", "velocity", "velocity_error", "pixel", "pixel_error", "reason", "fiber"):
        assert_array_equal(getattr(again, name), getattr(whole, name))
    # what all lines share is their mean's, and is not in what they are by themselves
    value, error, number = whole.mean("pixel")
    moved = Drift(**{**whole.__dict__, "pixel": whole.pixel + offset})
    new, new_error, new_number = moved.mean("pixel")
    assert_allclose(new, value + offset, atol=1e-9)
    assert_allclose(new_error, error, rtol=1e-6)
    assert_array_equal(number, new_number)
    relative = whole.relative()
    assert_allclose(moved.relative().pixel, relative.pixel, atol=1e-9)
    assert_allclose(relative.relative().pixel, relative.pixel, atol=1e-12)
    # leaving out a line is as if it had not been there
    gone = int(rng.integers(m))
    left = np.arange(m) != gone
    without = Drift(**{
        **whole.__dict__, "pixel": np.where(left, whole.pixel, np.nan),
    })  # fmt: skip
    assert_allclose(whole.mean("pixel", exclude=~left)[0], without.mean("pixel")[0])
    assert len(whole.to_table()) == n * m


def solution(seed, bend):
    rng = np.random.default_rng(seed)
    pixel = np.sort(rng.uniform(5, 994, 14))
    assume(np.diff(pixel).min() > 1)
    wavelength = 5000 + 1.2 * pixel + bend * (pixel / 1000) ** 2 + rng.normal(0, 0.01, pixel.size)
    return fit_wavelength_solution(
        pixel, wavelength * u.AA, degree=2, domain=(0, 999), center="half", label=[f"{k}" for k in range(14)]
    )  # fmt: skip


@given(st.integers(0, 1000), st.floats(-40, 40), st.floats(0, 1), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_between_two_arcs_is_between_them_from_either_side(seed, bend, share, shift):
    one = solution(seed, bend)
    two = shift_solution(one, 1.5)
    x = np.linspace(20, 980, 25)
    forth = interpolate_solutions(one, two, share)(x).value
    back = interpolate_solutions(two, one, 1 - share)(x).value
    assert_allclose(forth, back, atol=1e-9)
    low, high = np.sort([one(x).value, two(x).value], axis=0)
    assert np.all((forth >= low - 1e-9) & (forth <= high + 1e-9))
    # shifts add up
    assert_allclose(
        shift_solution(shift_solution(one, shift), 1.5)(x).value, shift_solution(two, shift)(x).value, atol=1e-9
    )
    # a file does not change a solution; nor does the table of its lines
    assert isinstance(one, WavelengthSolution)
    assert isinstance(one.lines, QTable)
