"""`ArcExposure` in FITS files.

Layout, version 1 (``LSFVER``); every image is (n_fiber, n_pix), rows are fibres:

=========== ============== =========================================================================================
HDU         content        keywords
=========== ============== =========================================================================================
primary     no data        ``LSFFMT`` = "lamost-lsf/arc-exposure", ``LSFVER``, ``INSTRUME``, ``ARM``, ``SPECTRO``,
                           ``LAMP``, ``DATE-OBS`` (UTC), ``JD1`` + ``JD2`` (the same, exactly), ``LMJM``, ``TIMEREF``
                           ("start" or "mid"), ``WAVEMED`` = "vacuum"
FLUX        float64 image  counts, not background-subtracted
IVAR        float64 image  inverse variance, 0 where bad
MASK        uint8 image    1 = bad
WAVELENGTH  float64 image  Angstrom, vacuum, increasing
FIBER       table          ``FIBER`` (n_fiber,)
META        table          ``KEY``, ``VALUE`` (JSON), the other entries of ``meta``
=========== ============== =========================================================================================

Every HDU carries CHECKSUM and DATASUM, which are verified.
"""

from __future__ import annotations

import io
import json
import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.time import Time

from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.files import atomic_path

if TYPE_CHECKING:
    from lamost_lsf.arcs.exposure import ArcExposure

__all__ = ["FORMAT", "VERSION", "read_exposure", "write_exposure"]

#: What the files call themselves, and the version of their layout.
FORMAT = "lamost-lsf/arc-exposure"
VERSION = 1
_IMAGES = ("FLUX", "IVAR", "MASK", "WAVELENGTH")


def _encode(value: Any, key: str) -> Any:
    """What JSON holds, with Quantities as pairs."""
    if isinstance(value, u.Quantity):
        return {"quantity": value.value.tolist(), "unit": value.unit.to_string()}
    if isinstance(value, Time):
        return {"time": np.asarray(value.utc.isot).tolist()}
    if isinstance(value, np.ndarray | np.generic):
        return _encode(value.tolist(), key)
    if isinstance(value, dict):
        return {str(k): _encode(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(v, key) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"meta[{key!r}] is of type {type(value).__name__}, which a file cannot hold; remove or convert it")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"quantity", "unit"}:
            return u.Quantity(value["quantity"], value["unit"])
        if set(value) == {"time"}:
            return Time(value["time"], format="isot", scale="utc")
        return {k: _decode(v) for k, v in value.items()}
    return [_decode(v) for v in value] if isinstance(value, list) else value


def write_exposure(exposure: ArcExposure, path: str | PathLike, *, overwrite: bool = False) -> None:
    """Write an exposure; see the module's text for the layout. Nothing half-written is left under the name.

    Raises
    ------
    FileExistsError
        ``path`` exists and ``overwrite`` is False.
    TypeError
        An entry of ``meta`` that a file cannot hold.
    """
    meta = {str(key): json.dumps(_encode(value, str(key))) for key, value in exposure.meta.items()}
    header = fits.Header()
    header["LSFFMT"] = (FORMAT, "layout of this file")
    header["LSFVER"] = (VERSION, "version of the layout")
    header["INSTRUME"] = (exposure.instrument, "instrument")
    header["ARM"] = (exposure.arm, "arm of the spectrograph")
    header["SPECTRO"] = (exposure.spectrograph, "number of the spectrograph")
    header["LAMP"] = (exposure.lamp, "arc lamp")
    utc = exposure.time.utc
    header["DATE-OBS"] = (utc.isot, "UTC")
    header["JD1"] = (float(utc.jd1), "Julian date, UTC: JD1 + JD2")
    header["JD2"] = (float(utc.jd2), "second part")
    header["LMJM"] = (exposure.lmjm, "local modified Julian minute")
    header["TIMEREF"] = (exposure.time_reference, "moment of the exposure that the time is of")
    header["WAVEMED"] = ("vacuum", "medium of the wavelengths")
    hdus = fits.HDUList([fits.PrimaryHDU(header=header)])
    for name in _IMAGES:
        data = getattr(exposure, name.lower())
        hdu = fits.ImageHDU(data.astype(np.uint8) if name == "MASK" else np.array(data), name=name)
        if name == "WAVELENGTH":
            hdu.header["BUNIT"] = ("Angstrom", "vacuum")
        hdus.append(hdu)
    hdus.append(fits.BinTableHDU.from_columns([fits.Column("FIBER", "J", array=exposure.fiber)], name="FIBER"))
    columns = []
    for name, texts in (("KEY", list(meta)), ("VALUE", list(meta.values()))):
        # FITS text is ASCII: JSON escapes the rest of a value, a key cannot
        if any(not text.isascii() for text in texts):
            raise TypeError(f"keys of meta must be ASCII, got {[t for t in texts if not t.isascii()]}")
        width = max((len(text) for text in texts), default=1) or 1
        columns.append(fits.Column(name, f"{width}A", array=np.array(texts, dtype=f"S{width}")))
    hdus.append(fits.BinTableHDU.from_columns(columns, name="META"))
    with atomic_path(path, overwrite=overwrite) as temporary:
        hdus.writeto(temporary, overwrite=True, checksum=True)


def read_exposure(path: str | PathLike) -> ArcExposure:
    """Read an exposure.

    Raises
    ------
    FileNotFoundError
        No such file.
    `~lamost_lsf.errors.FormatError`
        Not such a file, another version, or a damaged one.
    """
    from lamost_lsf.arcs.exposure import ArcExposure

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with warnings.catch_warnings():
            # a wrong checksum or a truncated file is a warning of astropy's; here it is an error
            warnings.simplefilter("error")
            # from memory: astropy leaves a damaged file open when it stops half-way
            with fits.open(io.BytesIO(path.read_bytes()), checksum=True) as hdus:
                header = hdus[0].header
                if header.get("LSFFMT") != FORMAT:
                    raise FormatError(f"{path} is no arc exposure of lamost_lsf (LSFFMT is {header.get('LSFFMT')!r})")
                if header.get("LSFVER") != VERSION:
                    raise FormatError(f"{path} has layout version {header.get('LSFVER')}, this package reads {VERSION}")
                images = {name.lower(): np.array(hdus[name].data) for name in _IMAGES}
                fiber = np.array(hdus["FIBER"].data["FIBER"], dtype=np.int64)
                table = hdus["META"].data
                meta = {str(row["KEY"]): _decode(json.loads(row["VALUE"])) for row in table}
                facts = {key: header[key] for key in ("INSTRUME", "ARM", "SPECTRO", "LAMP", "JD1", "JD2", "TIMEREF")}
                if header["WAVEMED"] != "vacuum":
                    raise FormatError(f"{path} has wavelengths in {header['WAVEMED']!r}, not in vacuum")
        images["mask"] = images["mask"] != 0
        time = Time(facts["JD1"], facts["JD2"], format="jd", scale="utc")
        time.format = "isot"
        return ArcExposure(
            **images,
            time=time,
            fiber=fiber,
            spectrograph=facts["SPECTRO"],
            arm=facts["ARM"],
            lamp=facts["LAMP"],
            instrument=facts["INSTRUME"],
            time_reference=facts["TIMEREF"],
            meta=meta,
        )
    except (FormatError, OutOfRangeError):
        raise
    except LookupError as error:
        raise FormatError(f"{path} is incomplete, or of an instrument that is not known here: {error}") from None
    except (OSError, ValueError, TypeError, Warning) as error:
        raise FormatError(f"{path} is damaged or no FITS file: {error}") from None
