"""Air and vacuum, Doppler factors, and what a length without a unit gets told."""

import astropy.units as u
import numpy as np
import pytest
from astropy.constants import c
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamost_lsf.units import (
    SPEED_OF_LIGHT,
    air_to_vacuum,
    check_medium,
    doppler_factor,
    to_angstrom,
    to_vacuum_angstrom,
    vacuum_to_air,
)

#: Air and vacuum wavelengths of arc lines (Hg, Cd, Ne, Ar) and of [O I], as in the NIST Atomic Spectra Database.
NIST = np.array(
    [
        (4046.565, 4047.708),
        (4358.335, 4359.560),
        (5085.822, 5087.239),
        (5460.750, 5462.268),
        (5577.338, 5578.887),
        (5944.834, 5946.481),
        (6402.248, 6404.018),
        (7438.898, 7440.947),
        (8377.607, 8379.909),
        (8495.360, 8497.693),
    ]
)


def test_arc_lines_convert_as_in_the_nist_tables():
    assert_allclose(air_to_vacuum(NIST[:, 0]), NIST[:, 1], atol=1.5e-3)
    assert_allclose(vacuum_to_air(NIST[:, 1]), NIST[:, 0], atol=1.5e-3)


def nist_transitions(path):
    """Ritz wavelengths in a NIST table, those known to 1 mA, by transition (lower and upper energy)."""
    lines = {}
    for row in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in row.split("|")]
        if (
            len(cells) > 6
            and row[:1] in " \t"
            and cells[1].replace(".", "").isdigit()
            and len(cells[1].partition(".")[2]) >= 3
            and "-" in cells[5]
        ):
            lines["".join(cells[5].split())] = float(cells[1])
    return lines


@pytest.mark.parametrize("species", ["ArI", "HgI", "NeI"])
def test_every_arc_line_that_nist_lists_in_both_media_converts(data_dir, species):
    air = nist_transitions(data_dir / "linelists" / "desispec" / f"{species}_air.ascii")
    vacuum = nist_transitions(data_dir / "linelists" / "desispec" / f"{species}_vacuum.ascii")
    both = sorted(set(air) & set(vacuum))
    assert len(both) > 20
    assert_allclose(air_to_vacuum([air[k] for k in both]), [vacuum[k] for k in both], atol=2e-3)


def test_refraction_of_standard_air_agrees_with_another_formula():
    # Edlen (1966) in the form of Morton (1991), IAU standard; the two differ by a few 1e-9 in the optical
    vacuum = np.linspace(3000, 11000, 500)
    s2 = (1e4 / vacuum) ** 2
    n = 1 + 8.34213e-5 + 2.406030e-2 / (130 - s2) + 1.5997e-4 / (38.9 - s2)
    assert_allclose(vacuum_to_air(vacuum), vacuum / n, rtol=3e-8)


@given(st.floats(2001, 30000))
def test_air_and_vacuum_are_inverse(wavelength):
    assert_allclose(air_to_vacuum(vacuum_to_air(wavelength)), wavelength, rtol=1e-13)
    assert_allclose(vacuum_to_air(air_to_vacuum(wavelength)), wavelength, rtol=1e-13)
    assert air_to_vacuum(wavelength) > wavelength > vacuum_to_air(wavelength)


def test_far_ultraviolet_is_vacuum_and_nan_stays():
    assert_array_equal(vacuum_to_air([1215.67, np.nan]), [1215.67, np.nan])
    assert_array_equal(air_to_vacuum([1215.67, np.nan]), [1215.67, np.nan])


def test_conversion_keeps_shape_and_unit_free_arrays():
    assert air_to_vacuum(np.full((2, 3), 5000.0)).shape == (2, 3)
    assert_allclose(to_vacuum_angstrom(0.5577338 * u.um, "Air"), 5578.88675, atol=1e-4)
    assert_allclose(to_vacuum_angstrom(557.7338 * u.nm), 5577.338)


velocities = st.floats(-0.3 * SPEED_OF_LIGHT, 0.3 * SPEED_OF_LIGHT)


@given(velocities, velocities)
def test_doppler_shifts_compose_as_velocities_add_in_relativity(v1, v2):
    together = (v1 + v2) / (1 + v1 * v2 / SPEED_OF_LIGHT**2)
    assert_allclose(doppler_factor(v1) * doppler_factor(v2), doppler_factor(together), rtol=1e-12)
    assert_allclose(doppler_factor(v1) * doppler_factor(-v1), 1, rtol=1e-12)


@given(velocities)
def test_doppler_factor_is_astropys(v):
    shifted = (v * u.km / u.s).to_value(u.AA, u.doppler_relativistic(5000 * u.AA))
    assert_allclose(5000 * doppler_factor(v), shifted, rtol=1e-10)


def test_receding_is_redder_and_light_speed_is_refused():
    assert doppler_factor(30.0) > 1
    assert_allclose(SPEED_OF_LIGHT, c.to_value("km/s"))
    assert np.isnan(doppler_factor([np.nan, 0.0])[0])
    for v in (SPEED_OF_LIGHT, -3e5, [0.0, np.inf]):
        with pytest.raises(ValueError, match="below the speed of light"):
            doppler_factor(v)


def test_lengths_need_units():
    assert to_angstrom(500 * u.nm) == pytest.approx(5000, rel=1e-15)
    assert to_angstrom(np.array([1, 2]) * u.um).dtype == np.float64
    # single numbers keep all their digits: no arithmetic in float32
    assert to_angstrom(np.float32(533.3) * u.nm) == pytest.approx(10 * float(np.float32(533.3)), rel=1e-15)
    with pytest.raises(TypeError, match=r"at must be a Quantity.*5000 \* u\.AA; got float"):
        to_angstrom(5000.0, "at")
    for bad in (5 * u.km / u.s, 5 * u.Hz, 5 * u.dimensionless_unscaled):
        with pytest.raises(TypeError, match="unit of length"):
            to_angstrom(bad)


def test_media():
    assert check_medium("AIR") == "air"
    with pytest.raises(ValueError, match="'vacuum' or 'air'"):
        check_medium("water")
    with pytest.raises(ValueError, match="'vacuum' or 'air'"):
        to_vacuum_angstrom(5000 * u.AA, "helium")
