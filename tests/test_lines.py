"""Line lists: media are stated, never guessed; blends are found; tables of the field are read."""

import astropy.units as u
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamost_lsf.errors import FormatError
from lamost_lsf.lines import LineList

wavelengths = st.lists(st.floats(3500, 10000), min_size=1, max_size=12, unique=True)


@given(wavelengths)
def test_order_of_input_does_not_matter(values):
    one = LineList.from_wavelengths(values * u.AA, medium="air", intensity=values)
    two = LineList.from_wavelengths(sorted(values) * u.AA, medium="air", intensity=sorted(values))
    assert one == two
    assert np.all(np.diff(one.vacuum) > -1e-9)
    np.testing.assert_array_equal(one.air, one.intensity)


@given(wavelengths)
def test_vacuum_wavelengths_are_longer_by_the_refractive_index(values):
    lines = LineList.from_wavelengths(values * u.AA, medium="vacuum")
    # n - 1 of standard air is between 2.74e-4 (1 micron) and 2.86e-4 (3500 A): Allen's Astrophysical Quantities
    ratio = lines.vacuum / lines.air - 1.0
    assert np.all((ratio > 2.73e-4) & (ratio < 2.87e-4))


@given(wavelengths, st.floats(0.1, 50), st.floats(0.1, 50))
def test_neighbours_are_mutual_in_the_mirrored_window(values, below, above):
    lines = LineList.from_wavelengths(values * u.AA, medium="vacuum")
    forward = lines.neighbours((-below, above))
    backward = lines.neighbours((-above, below))
    assert len(forward) == len(backward)
    np.testing.assert_allclose(np.sort(forward["offset"]), np.sort(-backward["offset"]))
    # counted by hand
    v = np.sort(values)
    difference = v[None, :] - v[:, None]
    np.fill_diagonal(difference, np.inf)
    assert len(forward) == np.count_nonzero((difference >= -below) & (difference <= above))


def test_blends_are_found_in_a_fuller_lamp():
    lines = LineList.from_wavelengths(
        [5000.0, 5100.0, 5200.0] * u.AA, medium="vacuum", species="Ne I", intensity=[10] * 3
    )
    lamp = LineList.from_wavelengths(
        [5000.01, 5007.0, 5099.0, 5209.9, 5200.0, 5190.5] * u.AA,
        medium="vacuum",
        species=["Ne I", "Ar I", "Ar I", "Ar I", "Ar I", "Ar I"],
        intensity=[10, 1, 0.05, 5, 3, np.nan],
    )
    table = lines.neighbours((-9.5, 9.8), lamp)
    # itself (a few mA away in another list) is no neighbour; one of another species at the same place is
    assert list(zip(table["line"], table["neighbour_wavelength"])) == [(0, 5007), (1, 5099), (2, 5190.5), (2, 5200)]
    np.testing.assert_allclose(table["offset"], [7, -1, -9.5, 0], atol=1e-9)
    np.testing.assert_allclose(table["ratio"], [0.1, 0.005, np.nan, 0.3])
    assert lines.with_blends((-9.5, 9.8), lamp).blend.tolist() == [True, True, True]
    assert lines.with_blends((-9.5, 9.8), lamp, min_ratio=0.01).blend.tolist() == [True, False, True]
    assert lines.with_blends(u.Quantity([-0.1, 0.7], u.nm), lamp).blend.tolist() == [True, True, True]
    assert lines.with_blends((-9.5, 9.8)).blend.tolist() == [False] * 3
    for wrong in ((1.0, 2.0), (-1.0, 0.0), (-1.0, 1.0, 2.0)):
        with pytest.raises(ValueError, match="one below and one above 0"):
            lines.neighbours(wrong)


def test_a_list_is_an_array_of_lines():
    lines = LineList.from_wavelengths(
        [6000, 5000, 7000] * u.AA, medium="vacuum", species=["b", "a", "c"], blend=[1, 0, 0]
    )
    assert lines[1:].species.tolist() == ["b", "c"]
    assert lines[np.array([0, 2])].species.tolist() == ["a", "c"]
    assert lines[lines.blend].wavelength.to_value(u.nm) == pytest.approx([600.0])
    assert lines.between(5500 * u.AA, 6500 * u.AA).species.tolist() == ["b"]
    assert len(lines.between(lines.air[0] * u.AA, 5000 * u.AA, medium="air")) == 1
    assert lines.to_table()["vacuum"].unit == u.AA
    assert lines != lines[1:]
    assert lines != "lines"
    assert "3 lines, 49" in repr(lines)
    with pytest.raises(ValueError, match="read-only"):
        lines.vacuum[0] = 1.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"air": [5000.0, 5001.0], "vacuum": [5000.0, 5002.4]}, "5000.0 A in air is 5001.394"),
        ({"air": [5001.0, 5000.0], "vacuum": [5002.3946, 5001.3944]}, "in order of wavelength"),
        ({"air": [5000.0], "vacuum": [5001.3944], "species": ["a", "b"]}, "one value a line"),
        ({"air": [-5.0], "vacuum": [-5.0]}, "positive"),
        ({"air": [np.nan], "vacuum": [np.nan]}, "positive"),
    ],
)
def test_wrong_lists_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        LineList(**{"species": [""] * len(columns["air"]), **columns})


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="unit"):
        LineList.from_wavelengths([5000.0], medium="air")
    with pytest.raises(ValueError, match="'vacuum' or 'air'"):
        LineList.from_wavelengths([5000.0] * u.AA, medium="water")
    with pytest.raises(ValueError, match="intensity has shape"):
        LineList.from_wavelengths([5000.0] * u.AA, medium="air", intensity=[1, 2])


# -- tables ----------------------------------------------------------------------------------------------


def write(path, text):
    path.write_text(text)
    return path


def test_csv(tmp_path):
    path = write(
        tmp_path / "a.csv", "# mine\nspecies, air, intensity, blend\nHg I, 5460.750, 3, true\nHgI, 4358.335, , \n"
    )
    lines = LineList.read(path)
    assert lines.species.tolist() == ["Hg I", "Hg I"]
    assert lines.vacuum == pytest.approx([4359.560, 5462.268], abs=1e-3)
    assert lines.blend.tolist() == [False, True]
    assert np.isnan(lines.intensity[0])
    assert lines.name == "a.csv"
    with pytest.raises(ValueError, match="says that its wavelengths are air"):
        LineList.read(path, medium="vacuum")
    both = write(tmp_path / "b.csv", "vacuum,air\n5462.2676,5460.750\n4359.5600,4358.335\n")
    assert LineList.read(both).vacuum.tolist() == [4359.56, 5462.2676]
    bare = write(tmp_path / "c.csv", "wavelength\n5000\n")
    with pytest.raises(ValueError, match="pass medium="):
        LineList.read(bare)
    assert LineList.read(bare, medium="air", species="Ne I").species.tolist() == ["Ne I"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wave,intensity\n5000,1\n", "columns .'wave'. are none of"),
        ("intensity,species\n1,a\n", "no column 'air'"),
        ("air,wavelength\n1,1\n", "both"),
        ("air,species\n5000\n", "2 columns expected"),
        ("air,species\nx,Hg I\n", "'x' is no number"),
        ("air,blend\n5000,perhaps\n", "true or false"),
        ("air,species\n", "holds no line"),
        ("this is prose\n", "known layout"),
        ("", "known layout"),
        ("5000.0 10\n", "wavelength, intensity and quality expected"),
        ("| ion | wave | amplitude |\n| HgI | 5000 |\n", "3 columns expected"),
        ("| ion | wavelength |\n| HgI | 5000 |\n", "no columns 'ion' and 'wave'"),
    ],
)
def test_broken_tables_say_where(tmp_path, text, message):
    with pytest.raises(FormatError, match=message):
        LineList.read(write(tmp_path / "x.dat", text))


def test_files_that_are_no_text_and_formats_that_are_none(tmp_path):
    path = tmp_path / "x.dat"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(FormatError, match="not a text file"):
        LineList.read(path)
    with pytest.raises(ValueError, match="format must be one of csv"):
        LineList.read(write(path, "air\n5000\n"), format="votable")


@pytest.mark.parametrize(
    ("comment", "medium"),
    [
        ("# Wavelengths in air from the Handbook", "air"),
        ("# NOTE THAT THESE ARE _AIR_ WAVELENGTHS", "air"),
        ("# VACUUM -- MUST BE IN NIST", "vacuum"),
        ("# medium: vacuum", "vacuum"),
        ("# these look like air wavelengths", None),
        ("# wavelengths in air\n# wavelengths in vacuum", None),
        ("# Hg lamp", None),
    ],
)
def test_a_medium_must_be_stated(tmp_path, comment, medium):
    path = write(tmp_path / "lamp.dat", f"{comment}\n 5460.750  10.0  GOOD  Hg I\n")
    if medium is None:
        with pytest.raises(ValueError, match="does not say"):
            LineList.read(path)
        medium = "air"
        lines = LineList.read(path, medium="air")
    else:
        lines = LineList.read(path)
    assert getattr(lines, medium)[0] == 5460.750


def test_lists_of_different_sources_and_media_are_the_same_lines(data_dir):
    folder = data_dir / "linelists"
    air, vacuum = (LineList.read(folder / "desispec" / f"HgI_{m}.ascii", species="Hg I") for m in ("air", "vacuum"))
    bright = air[(air.intensity >= 1000) & (air.air > 3500) & (air.air < 9000)]
    assert len(bright) > 5
    for line in bright.vacuum:
        # the two tables hold the same lines in two media: a mix-up is 1 A or more
        assert np.min(np.abs(vacuum.vacuum - line)) < 0.005
    pypeit = LineList.read(folder / "pypeit_vac" / "HgI_lines.dat")
    lamp = LineList.read(folder / "lamphgcdne.dat")
    for line in (4358.335, 5460.750):
        for table in (air, vacuum, pypeit, lamp):
            assert np.min(np.abs(table.air - line)) < 0.01
    assert lamp.blend[np.argmin(np.abs(lamp.air - 5975.534))]
    assert not lamp.blend[np.argmin(np.abs(lamp.air - 5460.753))]
    assert lamp.species[np.argmin(np.abs(lamp.air - 8495.3598))] == "Ne I"
    assert len(LineList.read(folder / "pypeit_vac" / "spec2d_lamp_NIST.dat")) > 500
    with pytest.raises(ValueError, match="pass medium="):
        LineList.read(folder / "lampHeNe.dat")


def test_xenon_lines_of_the_real_arc_are_in_the_vacuum_list_by_their_air_wavelengths(data_dir):
    from lamost_lsf.instruments import get_instrument

    known = np.loadtxt(data_dir / "linelists" / "rascal" / "xe.csv", delimiter=",", usecols=0)
    lamp = LineList.from_wavelengths(known * u.AA, medium="vacuum", species="Xe I")
    for name in ("sprat-red", "sprat-blue"):
        lines = get_instrument(name).lines
        for bright in (7119.60, 7642.02, 7887.40):
            assert bright in lines.air
            assert np.min(np.abs(lamp.air - bright)) < 0.05
            assert np.min(np.abs(lamp.vacuum - bright)) > 1.5
