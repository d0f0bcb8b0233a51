"""Velocities from the frame of a spectrum's wavelengths to another one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import FK5, EarthLocation, SkyCoord
from astropy.time import Time
from astropy.utils import iers
from astropy.utils.exceptions import AstropyWarning

from lamost_lsf.io import detector_factor
from lamost_lsf.rv.result import RVFlag
from lamost_lsf.units import SPEED_OF_LIGHT, doppler_factor

__all__ = ["to_frame"]

_SITE = (117.575 * u.deg, 40.393 * u.deg)  # LAMOST's, as in `lamost_lsf.io.frames`
_SITE_HEIGHT = 960.0 * u.m


def to_frame(rows: Sequence[dict[str, Any]], frame: str) -> None:
    """Bring the velocities of rows to a frame, in place; rows whose own is not known are flagged and lose theirs.

    A spectrum's heliocentric wavelengths are brought back to the detector by its header's HELIO_RV, with which they
    were made (`lamost_lsf.io.detector_factor`), never by a value of our own; from there to the Sun or the barycentre by
    astropy, at the mean time of the exposures. One that already is in the frame stays as it is.

    Parameters
    ----------
    rows : sequence of dict
        With ``_meta``, the spectrum's.
    frame : {"heliocentric", "barycentric", "topocentric"}
    """
    waiting: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["frame"] != frame and not row["flags"] & int(RVFlag.UNREADABLE | RVFlag.BAD_INPUT | RVFlag.WRONG_FRAME):
            waiting.setdefault(row["spectrum"], []).append(row)
    jobs = []
    for group in waiting.values():
        meta = group[0]["_meta"]
        try:
            own = group[0]["frame"]
            if own == "barycentric":
                to_detector = None
            else:
                to_detector = detector_factor(meta)
            if frame == "topocentric" and to_detector is not None:
                _apply(group, to_detector, frame)
                continue
            if frame == "heliocentric" and own == "topocentric" and meta.get("helio_rv") is not None:
                velocity = float(u.Quantity(meta["helio_rv"]).to_value(u.km / u.s))
                _apply(group, 1.0 / (1.0 + velocity / SPEED_OF_LIGHT), frame)
                continue
            jobs.append((group, to_detector, *_target(meta)))
        except (ValueError, TypeError) as error:
            _refuse(group, str(error))
    if not jobs:
        return
    barycentric, heliocentric = _corrections([j[2:] for j in jobs])
    for (group, to_detector, *_), bary, helio in zip(jobs, barycentric, heliocentric, strict=True):
        if to_detector is None:
            to_detector = 1.0 / (1.0 + bary / SPEED_OF_LIGHT)
        last = {"barycentric": bary, "heliocentric": helio, "topocentric": 0.0}[frame]
        _apply(group, to_detector * (1.0 + last / SPEED_OF_LIGHT), frame)


def _apply(rows: Sequence[dict[str, Any]], factor: float, frame: str) -> None:
    """Multiply what 1 + z is; ``second_rv`` goes with it."""
    for row in rows:
        for name in ("rv", "second_rv"):
            if np.isfinite(row[name]):
                row[name] = float(SPEED_OF_LIGHT * np.tanh(np.log(doppler_factor(row[name]) * factor)))
        row["frame"] = frame


def _refuse(rows: Sequence[dict[str, Any]], message: str) -> None:
    for row in rows:
        row["flags"] |= int(RVFlag.WRONG_FRAME)
        row["message"] = row["message"] or message
        for name in ("rv", "rv_err", "rv_err_scaled", "rv_err_ip", "rv_err_wave", "rv_err_total", "second_rv"):
            row[name] = np.nan


def _target(meta: Mapping[str, Any]) -> tuple[float, float, float, tuple[float, float]]:
    """Right ascension and declination (deg), mean MJD (UTC) and site."""
    time = meta.get("time")
    if not isinstance(time, Time):
        raise ValueError("meta['time'] is missing: the Earth's velocity is not known")
    if meta.get("ra") is None or meta.get("dec") is None:
        raise ValueError("meta['ra'] and meta['dec'] are missing: the Earth's velocity is not known")
    ra, dec = (float(u.Quantity(meta[k], u.deg).value) for k in ("ra", "dec"))
    site = tuple(float(u.Quantity(v, u.deg).value) for v in (meta.get("site") or _SITE))
    return ra, dec, float(np.mean(time.utc.mjd)), site


def _corrections(targets: Sequence[tuple[float, float, float, tuple[float, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Barycentric and heliocentric corrections, km/s, to be added to topocentric velocities."""
    out = np.empty((2, len(targets)))
    sites = [t[3] for t in targets]
    for site in sorted(set(sites)):
        here = np.array([s == site for s in sites])
        ra, dec, mjd = (np.array([t[k] for t in targets])[here] for k in range(3))
        location = EarthLocation.from_geodetic(site[0] * u.deg, site[1] * u.deg, _SITE_HEIGHT)
        sky, time = SkyCoord(ra * u.deg, dec * u.deg, frame=FK5()), Time(mjd, format="mjd", scale="utc")
        with (
            iers.conf.set_temp("auto_download", False),
            iers.conf.set_temp("iers_degraded_accuracy", "ignore"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", AstropyWarning)
            for k, kind in enumerate(("barycentric", "heliocentric")):
                correction = sky.radial_velocity_correction(kind, obstime=time, location=location)
                out[k, here] = correction.to_value(u.km / u.s)
    return out[0], out[1]
