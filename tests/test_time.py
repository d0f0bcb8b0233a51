"""LAMOST's clock and seasons, against the calendar of the standard library."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from lamost_lsf.time import lmjm_to_time, parse_lmjm_list, season, season_range, time_to_lmjm

BEIJING = timezone(timedelta(hours=8))
MJD_ZERO_IN_BEIJING = datetime(1858, 11, 17, tzinfo=BEIJING)


def calendar_minutes(moment: datetime) -> float:
    """Minutes on a Beijing wall clock since the midnight that opened MJD 0 there."""
    return (moment - MJD_ZERO_IN_BEIJING) / timedelta(minutes=1)


@settings(deadline=None, max_examples=60)
@given(st.datetimes(datetime(2017, 1, 3), datetime(2027, 1, 1)))
def test_lmjm_counts_minutes_of_the_beijing_clock(naive):
    # From 2017-01-03 on: astropy stretches the minutes of a day with a leap second, a wall clock does not.
    moment = naive.replace(tzinfo=BEIJING)
    time = Time(moment.astimezone(UTC).replace(tzinfo=None), scale="utc")
    assert float(time_to_lmjm(time)) == pytest.approx(calendar_minutes(moment), abs=2e-7)


def test_the_raw_file_of_the_first_pilot_night():
    # 2011-10-24 19:32 in Beijing, the first exposure of plan F5902: 11:32 in Greenwich.
    assert lmjm_to_time(80436692).isot == "2011-10-24T11:32:00.000"
    assert calendar_minutes(datetime(2011, 10, 24, 19, 32, tzinfo=BEIJING)) == 80436692


@settings(deadline=None, max_examples=60)
@given(st.floats(6.5e7, 1.2e8))
def test_there_and_back_keeps_ten_microseconds(lmjm):
    assert float(time_to_lmjm(lmjm_to_time(lmjm))) == pytest.approx(lmjm, abs=1.5e-7)


def test_shapes_and_scales():
    minutes = np.array([[80436692.0, 80436737.0], [84107311.0, 84107335.0]])
    time = lmjm_to_time(minutes)
    assert (time.scale, time.format, time.shape) == ("utc", "mjd", (2, 2))
    np.testing.assert_allclose(time_to_lmjm(time), minutes, rtol=0, atol=1e-7)
    # The scale must not leak in: TDB runs 66 to 69 s ahead of UTC in these years.
    np.testing.assert_allclose(time_to_lmjm(time.tdb), minutes, rtol=0, atol=1e-6)
    assert time_to_lmjm(time[0, 0]).shape == ()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (55858.8, ValueError, "not a local modified Julian minute"),
        (2455859.3, ValueError, "not a local modified Julian minute"),
        ([80436692, np.nan], ValueError, "finite"),
        ([80436692, 1.0], ValueError, "^1 is not a local"),
        ("yesterday", TypeError, "number"),
        (Time("2011-10-24"), TypeError, "needs no conversion"),
    ],
)
def test_what_is_no_lmjm_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        lmjm_to_time(value)


@pytest.mark.parametrize("function", [time_to_lmjm, season])
def test_only_a_time_is_a_time(function):
    with pytest.raises(TypeError, match="astropy Time, got float"):
        function(80436692.0)


def test_lists_of_minutes():
    np.testing.assert_array_equal(parse_lmjm_list(" 80436951-80436989-80437032 "), [80436951, 80436989, 80437032])
    np.testing.assert_array_equal(parse_lmjm_list(83906016), [83906016])
    # Real lists are not always in the order of time, and it is kept.
    assert parse_lmjm_list("82554898-82554932-82554864")[-1] == 82554864


@pytest.mark.parametrize("text", ["", "  ", "80436951--80436989", "80436951,80436989", "55859", "nan"])
def test_malformed_lists_are_refused(text):
    with pytest.raises(ValueError, match="LMJMLIST"):
        parse_lmjm_list(text)


@settings(deadline=None, max_examples=80)
@given(st.datetimes(datetime(2008, 1, 1), datetime(2027, 1, 1)))
def test_season_is_read_off_the_beijing_calendar(naive):
    expected = naive.year + (naive.month >= 9)
    utc = naive.replace(tzinfo=BEIJING).astimezone(UTC).replace(tzinfo=None)
    assert season(Time(utc, scale="utc")) == expected


def test_season_turns_at_midnight_in_beijing():
    start, end = season_range(2017)
    assert start.datetime == datetime(2016, 8, 31, 16)
    assert end.datetime == datetime(2017, 8, 31, 16)
    minute = 60 / 86400
    assert season(Time([start.mjd - minute, start.mjd, end.mjd - minute, end.mjd], format="mjd")).tolist() == [
        2016,
        2017,
        2017,
        2018,
    ]


@pytest.mark.parametrize("year", range(2011, 2027))
def test_seasons_follow_each_other_without_a_gap(year):
    start, end = season_range(year)
    assert season(start) == year
    assert season(end) == year + 1
    assert end == season_range(year + 1)[0]


def test_season_keeps_the_shape():
    times = lmjm_to_time(np.full((2, 3), 80436692.0))
    assert season(times).shape == (2, 3)
    assert isinstance(season(times[0, 0]), int)


def test_a_masked_time_has_no_season():
    time = lmjm_to_time([80436692.0, 80436737.0])
    time[1] = np.ma.masked
    with pytest.raises(ValueError, match="finite"):
        season(time)


@pytest.mark.parametrize("value", [2017.0, "2017", True, None])
def test_season_range_wants_a_year(value):
    with pytest.raises(TypeError, match="integer year"):
        season_range(value)


def test_season_range_refuses_a_day_number():
    with pytest.raises(ValueError, match="1970 to 2131"):
        season_range(57000)
