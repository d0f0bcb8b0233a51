"""Headers of LAMOST spectra turned into ``meta``: one set of keys for every release.

A header is believed where it can be and never trusted to be there: a missing entry is None, LAMOST's own
"no value" (-9999, a blank) is None, and a value that cannot be read is None with a warning where it matters
to the instrumental profile or the frame.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.time import Time, TimeDelta

from ..errors import FrameWarning, LamostLSFWarning
from ..time import lmjm_to_time, parse_lmjm_list

__all__ = ["METADATA_KEYS", "build_meta", "exposure_arm", "header_number"]

#: Every key that `build_meta` sets, with its meaning. ``docs/lamost_files.rst`` says more.
METADATA_KEYS: dict[str, str] = {
    "filename": "name of the file that was read, or the header's FILENAME",
    "survey": "'LRS' or 'MRS'",
    "instrument": "'lamost-lrs' or 'lamost-mrs'",
    "release": "data release, e.g. 'DR8'",
    "pipeline": "version of the two-dimensional pipeline (VERSPIPE)",
    "extension": "EXTNAME of the HDU that the flux came from",
    "arm": "'both' (stitched LRS), 'blue' or 'red'",
    "spectrograph": "1-16 (SPID)",
    "fiber": "1-250 (FIBERID)",
    "fiber_type": "'Obj', 'F-Std', 'Sky', ... (FIBERTYP or FIB_TYPE)",
    "fiber_mask": "bit mask of the fibre's warnings, 0 = good (FIBERMAS or FIB_MASK)",
    "lmjm": "array of local modified Julian minutes, one per exposure, at its start",
    "time": "Time array of those minutes (UTC)",
    "time_source": "'lmjm', 'date-obs', 'date-beg' or None",
    "exptime": "Quantity, s: of the co-add or of the single exposure",
    "n_exposures": "{'blue': n, 'red': n}: exposures that went into each arm",
    "ra": "right ascension, Quantity, deg, FK5 J2000",
    "dec": "declination, Quantity, deg, FK5 J2000",
    "site": "(longitude, latitude) of the telescope, Quantity, deg",
    "wavelength_medium": "'vacuum'",
    "wavelength_center": "'sersic': the line centre that the wavelength scale rests on",
    "wavelength_grid": "how the spectral axis was made; see docs",
    "frame": "'heliocentric', 'topocentric' or None",
    "helio_rv": "Quantity, km/s: the header's HELIO_RV, minus astropy's heliocentric correction",
    "snr": "signal-to-noise ratio by band (u g r i z) or, for MRS, by arm",
    "class": "pipeline class",
    "subclass": "pipeline subclass",
    "z": "pipeline redshift",
    "z_err": "its error",
    "obsid": "unique number of the spectrum",
    "designation": "'LAMOST J...'",
    "plan": "PLANID",
    "object": "name in the input catalogue",
    "lamp_list": "line list of the arcs",
    "mask_choice": "which masks went into Spectrum.mask",
    "header": "the primary header",
    "extension_header": "the header of the extension, None for the image layout",
}

_MISSING = {-9999, -9999.0, "-9999", "", "-", "NULL", "null"}
_EXPOSURE = re.compile(r"([BR])-(\d{8})(?:\D.*)?$")
_BANDS = "ugriz"


def _get(header: fits.Header | None, *names: str) -> Any:
    """First of ``names`` that the header holds with a value; None where there is none."""
    if header is None:
        return None
    for name in names:
        try:
            value = header.get(name)
        except (fits.VerifyError, ValueError):
            continue
        if isinstance(value, str):
            value = value.strip()
        if value is None or isinstance(value, fits.card.Undefined):
            continue
        if not isinstance(value, bool) and value in _MISSING:
            continue
        return value
    return None


def header_number(header: fits.Header | None, *names: str) -> float | None:
    """First of ``names`` that is a finite number; None where there is none."""
    value = _get(header, *names)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _text(header: fits.Header | None, *names: str) -> str | None:
    value = _get(header, *names)
    return None if value is None else str(value)


def _flag(header: fits.Header, name: str) -> bool | None:
    value = _get(header, name)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.upper() in ("T", "F", "TRUE", "FALSE"):
        return value.upper().startswith("T")
    return bool(value) if value in (0, 1) else None


def _label(header: fits.Header, name: str, low: int, high: int, where: str) -> int | None:
    """Integer label of the instrumental profile (spectrograph, fibre), warned about where it is nonsense."""
    value = _get(header, name)
    if value is None:
        return None
    try:
        number = int(value)
        valid = low <= number <= high and float(value) == number
    except (TypeError, ValueError):
        valid = False
    if not valid:
        warnings.warn(
            f"{where}: {name} is {value!r}, expected an integer {low} to {high}; set to None",
            LamostLSFWarning,
            stacklevel=3,
        )
        return None
    return number


def _lmjm(header: fits.Header, extension: fits.Header | None, where: str) -> np.ndarray | None:
    """Minutes of LMJMLIST, LMJM, the chunks LMJMLIS0, 1, ..., or the name of a single exposure."""
    for source in (extension, header):
        if source is None:
            continue
        text = _get(source, "LMJMLIST", "LMJM")
        if text is None:
            # More than three medium-resolution exposures go into chunks of three.
            chunks = []
            while (chunk := _get(source, f"LMJMLIS{len(chunks)}")) is not None:
                chunks.append(str(chunk).strip("-"))
            text = "-".join(chunks) or None
        if text is None and (match := _EXPOSURE.match(_text(source, "EXTNAME") or "")):
            text = match[2]
        if text is None:
            continue
        try:
            return parse_lmjm_list(text)
        except ValueError as error:
            warnings.warn(f"{where}: {error}; ignored", LamostLSFWarning, stacklevel=3)
    return None


def _fallback_time(header: fits.Header) -> tuple[Time | None, str | None]:
    """Time of a file that has no LMJM: DATE-OBS (median, UTC), else DATE-BEG (start, Beijing time)."""
    for name, hours in (("DATE-OBS", 0.0), ("DATE-BEG", 8.0)):
        text = _text(header, name)
        if text is None:
            continue
        try:
            time = Time([text], format="isot" if "T" in text else "iso", scale="utc")
        except ValueError:
            continue
        time = time - TimeDelta(hours * 3600.0, format="sec") if hours else time
        time.format = "mjd"
        return time, name.lower()
    return None, None


def exposure_arm(extension: str | None) -> str:
    """Arm of an HDU: "blue" for COADD_B or B-..., "red" for COADD_R or R-..., else "both"."""
    name = (extension or "").upper()
    if name == "COADD_B" or name.startswith("B-"):
        return "blue"
    if name == "COADD_R" or name.startswith("R-"):
        return "red"
    return "both"


def _quantity(value: float | None, unit: u.UnitBase) -> u.Quantity | None:
    return None if value is None else u.Quantity(value, unit)


def _snr(header: fits.Header, extension: fits.Header | None, arm: str) -> dict[str, float] | None:
    if arm != "both":
        value = header_number(extension, "SNR")
        return None if value is None else {arm: value}
    ratios = {band: header_number(header, f"SNR{band.upper()}", f"SN_{band.upper()}") for band in _BANDS}
    return {band: value for band, value in ratios.items() if value is not None} or None


def build_meta(
    header: fits.Header,
    *,
    survey: str,
    extension: fits.Header | None = None,
    filename: str | None = None,
    mask_choice: str | None = None,
    wavelength_grid: str | None = None,
) -> dict[str, Any]:
    """``meta`` of one spectrum, with the keys of `METADATA_KEYS`.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
        Primary header.
    survey : {"LRS", "MRS"}
        Low or medium resolution.
    extension : `~astropy.io.fits.Header`, optional
        Header of the extension that holds the flux.
    filename : str, optional
        Name of the file; the header's FILENAME where it is None.
    mask_choice, wavelength_grid : str, optional
        What the reader did, recorded as it is.

    Returns
    -------
    dict
        Missing entries are None.

    Warns
    -----
    LamostLSFWarning
        Where SPID, FIBERID or the list of minutes is there but cannot be right.
    FrameWarning
        Where the header claims a heliocentric frame without its velocity.
    """
    where = filename or _text(header, "FILENAME") or "LAMOST header"
    name = _text(extension, "EXTNAME") if extension is not None else _text(header, "EXTNAME")
    arm = exposure_arm(name) if survey == "MRS" else "both"
    lmjm = _lmjm(header, extension, where)
    if lmjm is not None:
        time, time_source = lmjm_to_time(lmjm), "lmjm"
    else:
        time, time_source = _fallback_time(header)
    helio = _flag(header, "HELIO")
    helio_rv = header_number(header, "HELIO_RV")
    if helio and helio_rv is None:
        warnings.warn(
            f"{where}: HELIO is T, but HELIO_RV is {_get(header, 'HELIO_RV')!r}: the detector's "
            "wavelengths are unknown",
            FrameWarning,
            stacklevel=2,
        )
    release = _text(header, "DATA_V")
    exposures = {"blue": header_number(header, "NEXP_B"), "red": header_number(header, "NEXP_R")}
    ra, dec = header_number(header, "RA"), header_number(header, "DEC")
    if dec is not None and not -90.0 <= dec <= 90.0:
        dec = None
    longitude, latitude = header_number(header, "LONGITUD"), header_number(header, "LATITUDE")
    mask = header_number(header, "FIBERMAS", "FIB_MASK")
    obsid = header_number(header, "OBSID")
    # A medium-resolution primary header holds no exposure time; a single exposure's extension does.
    exptime = header_number(extension, "EXPTIME") if survey == "MRS" else header_number(header, "EXPTIME")
    return {
        "filename": filename or _text(header, "FILENAME"),
        "survey": survey,
        "instrument": f"lamost-{survey.lower()}",
        "release": None if release is None else release.removeprefix("LAMOST").strip(),
        "pipeline": _text(header, "VERSPIPE"),
        "extension": name,
        "arm": arm,
        "spectrograph": _label(header, "SPID", 1, 16, where),
        "fiber": _label(header, "FIBERID", 1, 250, where),
        "fiber_type": _text(header, "FIBERTYP", "FIB_TYPE"),
        "fiber_mask": None if mask is None else int(mask),
        "lmjm": lmjm,
        "time": time,
        "time_source": time_source,
        "exptime": _quantity(exptime, u.s),
        "n_exposures": {key: None if value is None else int(value) for key, value in exposures.items()},
        "ra": _quantity(ra, u.deg),
        "dec": _quantity(dec, u.deg),
        "site": None
        if longitude is None or latitude is None
        else (u.Quantity(longitude, u.deg), u.Quantity(latitude, u.deg)),
        "wavelength_medium": "vacuum",
        "wavelength_center": "sersic",
        "wavelength_grid": wavelength_grid,
        "frame": {True: "heliocentric", False: "topocentric", None: None}[helio],
        "helio_rv": _quantity(helio_rv, u.km / u.s),
        "snr": _snr(header, extension, arm),
        "class": _text(header, "CLASS"),
        "subclass": _text(header, "SUBCLASS"),
        "z": header_number(header, "Z"),
        "z_err": header_number(header, "Z_ERR"),
        "obsid": None if obsid is None else int(obsid),
        "designation": _text(header, "DESIG"),
        "plan": _text(header, "PLANID"),
        "object": _text(header, "OBJNAME"),
        "lamp_list": _text(extension, "LAMPLIST") or _text(header, "LAMPLIST"),
        "mask_choice": mask_choice,
        "header": header,
        "extension_header": extension,
    }
