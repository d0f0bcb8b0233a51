"""LAMOST's clock: local modified Julian minutes, and seasons.

LAMOST stamps every exposure with the *local modified Julian minute*,
``LMJM = MJD_UTC * 1440 + 480``: whole minutes of Beijing time (UTC + 8 h) since MJD 0. The stamps are in the
names of raw files, in ``LMJMLIST`` of a co-add and in ``LMJM`` of a medium-resolution exposure, and they are
the time label that instrumental-profile models are trained on (Liu et al. 2026, section 2.5). The header's
day numbers cannot replace them: ``LMJD`` is a calendar day, one more than ``LMJM // 1440`` for exposures
before local midnight.
"""

from __future__ import annotations

import numpy as np
from astropy.time import Time

__all__ = ["lmjm_to_time", "night_number", "parse_lmjm_list", "season", "season_range", "time_to_lmjm"]

_MINUTES_PER_DAY = 1440.0
#: Beijing time is UTC + 8 h.
_LOCAL_OFFSET_MINUTES = 480.0
# LMJM of MJD 40000 (1968) and 100000 (2132): anything outside is a day number or a unit mixed up.
_LMJM_RANGE = (40000 * _MINUTES_PER_DAY, 100000 * _MINUTES_PER_DAY)
_MJD_ZERO = 2400000.5


def _check_time(time: Time, name: str = "time") -> Time:
    if not isinstance(time, Time):
        raise TypeError(f"{name} must be an astropy Time, got {type(time).__name__}; see lmjm_to_time")
    return time


def time_to_lmjm(time: Time) -> np.ndarray:
    """Local modified Julian minute of a time.

    Parameters
    ----------
    time : `~astropy.time.Time`
        Any scale and shape; converted to UTC.

    Returns
    -------
    ndarray
        ``MJD_UTC * 1440 + 480``, minutes, float64, shape of ``time`` (0-d for a scalar). Not
        rounded; NaN where the time is masked.

    Raises
    ------
    TypeError
        Where ``time`` is not a `~astropy.time.Time`.

    Examples
    --------
    >>> from astropy.time import Time
    >>> float(time_to_lmjm(Time("2011-10-24T11:32:00")))
    80436692.0
    """
    utc = _check_time(time).utc
    # Both parts of the Julian date apart: their sum alone would round to 0.7 ms.
    days = np.asarray(utc.jd1 - _MJD_ZERO, dtype=np.float64)
    minutes = days * _MINUTES_PER_DAY + (np.asarray(utc.jd2) * _MINUTES_PER_DAY + _LOCAL_OFFSET_MINUTES)
    return np.where(utc.mask, np.nan, minutes) if utc.masked else minutes


def lmjm_to_time(lmjm: float | np.ndarray) -> Time:
    """UTC time of a local modified Julian minute.

    Parameters
    ----------
    lmjm : float or array_like
        Minutes, e.g. 80436692.

    Returns
    -------
    `~astropy.time.Time`
        Scale ``utc``, format ``mjd``, shape of ``lmjm``.

    Raises
    ------
    TypeError
        Where ``lmjm`` is not a plain number or array of numbers.
    ValueError
        Where a value is not finite, or is no LMJM (1968 to 2132): a modified Julian day, say.

    Examples
    --------
    >>> print(lmjm_to_time(80436692).isot)
    2011-10-24T11:32:00.000
    """
    if isinstance(lmjm, Time):
        raise TypeError("lmjm must be numbers (minutes); a Time needs no conversion")
    try:
        minutes = np.asarray(lmjm, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"lmjm must be a number or an array of numbers, got {lmjm!r}") from None
    _check_lmjm(minutes)
    utc_minutes = minutes - _LOCAL_OFFSET_MINUTES
    # Whole days and the rest apart, so that Time keeps both exactly.
    days = np.floor(utc_minutes / _MINUTES_PER_DAY)
    return Time(
        days,
        (utc_minutes - days * _MINUTES_PER_DAY) / _MINUTES_PER_DAY,
        format="mjd",
        scale="utc",
    )


def _check_lmjm(minutes: np.ndarray) -> None:
    if not np.all(np.isfinite(minutes)):
        raise ValueError("lmjm must be finite")
    low, high = _LMJM_RANGE
    if np.any((minutes < low) | (minutes > high)):
        worst = minutes[(minutes < low) | (minutes > high)].flat[0] if minutes.ndim else float(minutes)
        raise ValueError(
            f"{worst:.10g} is not a local modified Julian minute ({low:.0f} to {high:.0f}); "
            "an MJD becomes one by time_to_lmjm(Time(mjd, format='mjd'))"
        )


def parse_lmjm_list(text: str | int | float) -> np.ndarray:
    """Minutes of a header's ``LMJMLIST``, e.g. ``"80436951-80436989-80437032"``.

    Parameters
    ----------
    text : str or int
        Minutes joined by hyphens; a single one may be a number.

    Returns
    -------
    ndarray (n_exposures,)
        LMJM, float64, in the header's order (which is not always that of time).

    Raises
    ------
    ValueError
        Where the list is empty or an entry is not an LMJM.

    Examples
    --------
    >>> parse_lmjm_list("80436951-80436989").tolist()
    [80436951.0, 80436989.0]
    """
    entries = [entry.strip() for entry in str(text).strip().strip("-").split("-")]
    try:
        minutes = np.array([float(entry) for entry in entries], dtype=np.float64)
        _check_lmjm(minutes)
    except ValueError as error:
        raise ValueError(
            f"LMJMLIST {text!r} is not a list of local modified Julian minutes joined by '-': {error}"
        ) from None
    return minutes


def season(time: Time) -> int | np.ndarray:
    """Observing season of a time: September to the next August, named by its last year.

    The date is Beijing's (UTC + 8 h).

    Parameters
    ----------
    time : `~astropy.time.Time`
        Any scale and shape.

    Returns
    -------
    int or ndarray of int
        The season, an ``int`` for a scalar time, else an array of the shape of ``time``.

    Raises
    ------
    TypeError
        Where ``time`` is not a `~astropy.time.Time`.
    ValueError
        Where a time is masked.

    Examples
    --------
    >>> from astropy.time import Time
    >>> season(Time("2016-10-01T12:00:00"))
    2017
    >>> season(Time(["2017-08-31T15:59:00", "2017-08-31T16:00:00"]))   # 23:59 and midnight in Beijing
    array([2017, 2018])
    """
    minutes = time_to_lmjm(time)
    if not np.all(np.isfinite(minutes)):
        raise ValueError("time must be finite (not masked or NaN) to have a season")
    # 1858-11-17 is MJD 0; a millisecond's grace so that round-off cannot move midnight to the day before.
    days = np.floor((minutes + 1e-3 / 60.0) / _MINUTES_PER_DAY).astype(np.int64)
    months = (np.datetime64("1858-11-17") + days).astype("datetime64[M]").astype(np.int64)  # since 1970-01
    # Four months on, September is January of the season's last year.
    seasons = 1970 + (months + 4) // 12
    return int(seasons) if np.ndim(seasons) == 0 else seasons


def season_range(season: int) -> tuple[Time, Time]:
    """First instant of a season and of the next one: ``start <= time < end``.

    Parameters
    ----------
    season : int
        The season's last year, e.g. 2017 for September 2016 to August 2017.

    Returns
    -------
    tuple of `~astropy.time.Time`
        Midnight in Beijing of 1 September, UTC.

    Raises
    ------
    TypeError
        Where ``season`` is not an integer.
    ValueError
        Outside 1970 to 2131.

    Examples
    --------
    >>> start, end = season_range(2017)
    >>> print(start.iso, end.iso)
    2016-08-31 16:00:00.000 2017-08-31 16:00:00.000
    """
    if isinstance(season, bool) or not isinstance(season, (int, np.integer)):
        raise TypeError(f"season must be an integer year, got {season!r}")
    if not 1970 <= season <= 2131:
        raise ValueError(f"season must be the year it ends in, 1970 to 2131, got {season}")
    return Time(f"{season - 1}-08-31T16:00:00", scale="utc", format="isot"), Time(
        f"{season}-08-31T16:00:00", scale="utc", format="isot"
    )


def night_number(lmjm: np.ndarray, utc_offset: float = 8.0) -> np.ndarray:
    """Number of the night: the modified Julian day of its evening, from local noon to local noon.

    Parameters
    ----------
    lmjm : ndarray
        Local modified Julian minutes (Beijing time).
    utc_offset : float
        Hours that the observatory's clock is ahead of UTC: 8 for LAMOST.

    Returns
    -------
    ndarray of int

    Examples
    --------
    >>> evening, morning = 58000 * 1440 + 22 * 60, 58001 * 1440 + 5 * 60
    >>> night_number(np.array([evening, morning])).tolist()
    [58000, 58000]
    """
    if not -14 <= utc_offset <= 14:
        raise ValueError(f"utc_offset must be -14 to 14 hours, got {utc_offset}")
    return np.floor((np.asarray(lmjm) + (utc_offset - 8.0) * 60.0) / 1440.0 - 0.5).astype(np.int64)
