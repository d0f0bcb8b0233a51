"""Instruments are data: what the files say, who may add one, and what a wrong file is told."""

import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.instruments import ENVIRONMENT, Instrument, get_instrument, list_instruments
from lamost_lsf.lines import LineList

TOML = """
name = "mine"
arm = "blue"
window = [-3.0, 4.0]
n_samples = 100
label_medium = "vacuum"
fibers = [1, 20]
spectrographs = [1, 2]
lines = [
    { species = "Hg I", air = 4358.335 },
    { species = "Hg I", air = 5460.750, vacuum = 5462.2676, intensity = 3.0, blend = true },
]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of the user's own instruments, empty."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    return tmp_path


def changed(**changes):
    content = {**tomllib.loads(TOML), **changes}
    return {key: value for key, value in content.items() if value is not None}


# -- what is built in ------------------------------------------------------------------------------------

BLUE = [4046.565, 4358.335, 4678.149, 4799.912, 5085.822, 5460.750, 5790.670]
RED = [
    5944.834, 6096.163, 6143.063, 6266.495, 6334.428, 6402.248, 6506.528, 6598.953, 6678.276, 6929.467, 7173.938,
    7245.167, 7438.898, 8377.6065, 8495.3598,
]  # fmt: skip


@pytest.mark.parametrize(("arm", "lines", "window"), [("blue", BLUE, (-8.335, 9.25)), ("red", RED, (-9.163, 9.833))])
def test_lamost_low_resolution_is_that_of_liu_et_al(arm, lines, window):
    instrument = get_instrument(f"lamost-lrs-{arm}")
    assert instrument.arm == arm
    np.testing.assert_allclose(instrument.lines.air, lines, rtol=0, atol=0.0021)
    assert instrument.window == window
    assert instrument.offset.size == 600
    np.testing.assert_allclose(np.diff(instrument.offset), (window[1] - window[0]) / 599)
    assert instrument.label_medium == "air"
    assert instrument.fibers == (1, 250)
    assert instrument.spectrographs == (1, 16)


def test_lines_agree_with_the_survey_lamp_list(data_dir):
    lamp = LineList.read(data_dir / "linelists" / "lamphgcdne.dat")
    for arm in ("blue", "red"):
        instrument = get_instrument(f"lamost-lrs-{arm}")
        for air, species in zip(instrument.lines.air, instrument.lines.species):
            nearest = np.argmin(np.abs(lamp.air - air))
            assert abs(lamp.air[nearest] - air) < 0.02
            assert lamp.species[nearest] == species
        # the lamp has no helium: He I next to Ne I 6678 is in the list for another lamp
        species = np.char.startswith(lamp.species, "He")
        assert len(instrument.lines.neighbours(instrument.window, lamp[~species])) == 0


def test_arms_meet_at_5800_angstrom_in_air():
    blue, red = get_instrument("lamost-lrs-blue"), get_instrument("lamost-lrs-red")
    assert blue.arm_limits("air")[1].value == red.arm_limits("air")[0].value == 5800.0
    s2 = (1e4 / 5801.6) ** 2
    edlen = 1.0 + 1e-8 * (8342.13 + 2406030.0 / (130.0 - s2) + 15997.0 / (38.9 - s2))  # Edlen (1966)
    assert blue.arm_limits("vacuum")[1].value == pytest.approx(5800.0 * edlen, abs=2e-3)
    assert get_instrument("sprat-red").arm_limits() is None


def test_published_models_and_the_simulator_use_the_same_windows():
    from lamost_lsf.models.neural import ARM_BOUNDARY_AIR, LAMOST_WINDOWS
    from lamost_lsf.simulation import arc_lines

    for arm, window in LAMOST_WINDOWS.items():
        instrument = get_instrument(f"lamost-lrs-{arm}")
        assert instrument.window == window
        assert ARM_BOUNDARY_AIR in instrument.arm_range
        lit = [line.air for line in arc_lines(arm) if line.calibration]
        np.testing.assert_array_equal(instrument.lines.air, lit)


def test_listing_names_every_arm():
    table = list_instruments()
    assert {"lamost-lrs-blue", "lamost-lrs-red", "lamost-mrs-blue", "lamost-mrs-red", "sprat-blue", "sprat-red"} <= set(
        table["name"]
    )
    assert set(table["source"]) == {"built-in"}


# -- one's own -------------------------------------------------------------------------------------------


def test_own_instrument_by_path_and_by_folder(own):
    path = own / "mine.toml"
    path.write_text(TOML)
    by_path, by_name = get_instrument(path), get_instrument("MINE ")
    assert by_path.digest == by_name.digest
    assert get_instrument(str(path)).name == "mine"
    assert get_instrument(by_path) is by_path
    assert str(path) in list_instruments()["source"]
    assert by_path.lines.blend.tolist() == [False, True]
    assert by_path.label_wavelength[1].value == 5462.2676
    assert by_path.lines.vacuum[0] == pytest.approx(4359.560, abs=1e-3)


def test_unknown_name_offers_the_nearest(own):
    with pytest.raises(LookupError, match="did you mean lamost-lrs-blue"):
        get_instrument("lamost-lrs-bleu")
    with pytest.raises(LookupError, match="there are lamost-lrs-blue"):
        get_instrument("x")
    with pytest.raises(FileNotFoundError):
        get_instrument(own / "absent.toml")
    with pytest.raises(TypeError, match="name or a path"):
        get_instrument(3)


def test_names_must_be_unique(own):
    (own / "a.toml").write_text(TOML.replace('"mine"', '"lamost-lrs-blue"'))
    with pytest.raises(FormatError, match="built-in"):
        list_instruments()
    assert get_instrument("lamost-lrs-blue").n_samples == 600  # which a bad file of the user's does not stop
    (own / "a.toml").write_text(TOML)
    (own / "b.toml").write_text(TOML)
    with pytest.raises(FormatError, match="both called 'mine'"):
        list_instruments()


def test_folder_must_exist(monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="not a folder"):
        list_instruments()


# -- wrong files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": None}, "window missing"),
        ({"windows": [-1, 1]}, "unknown key windows; known are name"),
        ({"window": [1.0, 4.0]}, "enclose 0"),
        ({"window": [-1.0]}, "two numbers"),
        ({"window": [-1.0, float("nan")]}, "two numbers"),
        ({"n_samples": 8}, "at least 16"),
        ({"n_samples": 100.0}, "whole number"),
        ({"label_medium": "ether"}, "'vacuum' or 'air'"),
        ({"fibers": [0, 250]}, "from 1"),
        ({"fibers": [9, 3]}, "first and last"),
        ({"fibers": [1.5, 3]}, "whole numbers"),
        ({"arm": ""}, "arm must be a word"),
        ({"arm_range": [6000.0, 5000.0]}, "increasing"),
        ({"saturation": -1}, "positive"),
        ({"lines": []}, "non-empty"),
        ({"lines": [{"air": 5000.0, "wave": 1.0}]}, "line 1: unknown key 'wave'"),
        ({"lines": [{"species": "Hg I"}]}, "neither"),
        ({"lines": [{"air": -5.0}]}, "positive number"),
        ({"lines": [{"air": 5000.0, "blend": "no"}]}, "true or false"),
        ({"lines": [{"air": 5461.0}, {"air": 4358.0}]}, "in order of wavelength: 5461.0 comes before 4358.0"),
        ({"lines": [{"air": 5461.0}, {"air": 5461.0}]}, "different"),
        ({"lines": [{"air": 5460.75, "vacuum": 5460.75}]}, "in air is 5462.2676 A in vacuum"),
        ({"quality": {"min_fux": 0.5}}, "unknown limit quality.min_fux"),
        ({"quality": {"min_flux": -0.5}}, "quality.min_flux must be a number"),
        ({"quality": {"max_gap": 1.5}}, "whole number"),
        ({"quality": 3}, "table of limits"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(changes, message):
    with pytest.raises(FormatError, match=message):
        Instrument.from_dict(changed(**changes), "test.toml")


def test_not_toml(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("name = ")
    with pytest.raises(FormatError, match=r"x\.toml is no TOML file"):
        Instrument.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="no TOML"):
        Instrument.read(path)


# -- use -------------------------------------------------------------------------------------------------


def test_content_survives_a_dict():
    for name in list_instruments()["name"]:
        instrument = get_instrument(str(name))
        again = Instrument.from_dict(instrument.to_dict())
        assert again.digest == instrument.digest
        assert again.quality == instrument.quality
        assert again.lines == instrument.lines


@settings(max_examples=40, deadline=None)
@given(
    lines=st.lists(st.integers(50000, 50400), min_size=1, max_size=6, unique=True),
    low=st.floats(-20, -1),
    high=st.floats(1, 20),
    n=st.integers(16, 900),
    medium=st.sampled_from(["air", "vacuum"]),
)
def test_any_instrument_survives_a_file(tmp_path_factory, lines, low, high, n, medium):
    rows = [{"species": "Ne I", "vacuum": w / 10} for w in sorted(lines)]
    one = Instrument.from_dict(changed(lines=rows, window=[low, high], n_samples=n, label_medium=medium))
    again = Instrument.from_dict(one.to_dict())
    assert again.digest == one.digest
    np.testing.assert_allclose(again.lines.vacuum, np.sort(lines) / 10)
    np.testing.assert_allclose(np.diff(again.offset), (high - low) / (n - 1))
    assert (again.offset[0], again.offset[-1]) == pytest.approx((low, high))
    # neighbours are mutual, and those nearer than a window is wide but for the overlap asked for
    vacuum = one.lines.vacuum
    found = set()
    for i, row in enumerate(one.neighbour_offsets(overlap=1.0)):
        for y in row[np.isfinite(row)]:
            found.add((i, int(np.argmin(np.abs(vacuum - (vacuum[i] + y))))))
    away = np.abs(vacuum[:, None] - vacuum[None])
    assert found == {(j, i) for i, j in found}
    assert all(away[pair] <= high - low - 1.0 for pair in found)
    assert len(found) == np.count_nonzero((away > 0) & (away < high - low - 1.0 - 1e-9))


def test_fingerprint_follows_grid_and_lines_but_not_limits():
    one = Instrument.from_dict(changed())
    assert one.replace(min_flux=0.3, description="other").digest == one.digest
    assert one.replace(min_flux=0.3).quality.min_flux == 0.3
    for changes in ({"window": (-3.0, 4.1)}, {"n_samples": 101}, {"lines": one.lines[:1]}, {"label_medium": "air"}):
        assert one.replace(**changes).digest != one.digest


def test_fibers_and_spectrographs_outside_are_refused():
    instrument = get_instrument("lamost-lrs-red")
    instrument.check_fibers(np.array([1, 250]))
    for fiber in (0, 251):
        with pytest.raises(OutOfRangeError, match=f"fibre {fiber} is none of lamost-lrs-red, which has 1-250"):
            instrument.check_fibers(np.array([7, fiber]))
    with pytest.raises(OutOfRangeError, match="spectrograph 17"):
        instrument.check_spectrograph(17)
