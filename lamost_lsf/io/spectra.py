"""Spectra that the package writes: tables in FITS or ECSV, with mask and units, read by ``Spectrum.read(path)``."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.table import QTable
from specutils import Spectrum
from specutils.io.registers import data_loader

from lamost_lsf.errors import FormatError
from lamost_lsf.files import atomic_path

__all__ = ["read_spectrum", "write_spectrum"]

#: Value of the keyword ORIGIN (FITS) or the entry ``origin`` (ECSV) by which a file of ours is known.
ORIGIN = "lamost_lsf spectrum"
#: Entries of ``meta`` that are kept, and their FITS keywords.
_KEYWORDS = {
    "name": "OBJECT",
    "wavelength_medium": "MEDIUM",
    "wavelength_center": "WCENTER",
    "kernel_center": "KCENTER",
    "frame": "FRAME",
    "lsf": "LSF",
    "source": "SOURCE",
}
_UNCERTAINTIES = {"std": StdDevUncertainty, "var": VarianceUncertainty, "ivar": InverseVariance}
_SUFFIXES = {".fits": "fits", ".fit": "fits", ".ecsv": "ascii.ecsv"}


def _format(path: str | os.PathLike) -> str:
    name = Path(path).name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix not in _SUFFIXES:
        raise ValueError(f"the name of the file must end in {', '.join(_SUFFIXES)}, got {os.fspath(path)!r}")
    return _SUFFIXES[suffix]


def write_spectrum(spectrum: Spectrum, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write one spectrum as a table of wavelength, flux, uncertainty (if it has one) and mask.

    The file appears whole or not at all. ``Spectrum.read(path)`` reads it back, once ``lamost_lsf`` is imported;
    specutils alone does where the flux has a unit.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        One-dimensional flux, in any unit or none.
    path : path
        Ends in ``.fits`` (or ``.fits.gz``) or ``.ecsv``.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    FileExistsError
        ``path`` exists and ``overwrite`` is False.
    TypeError, ValueError
        Not a spectrum, more than one of them, or another ending.

    Examples
    --------
    >>> import tempfile, astropy.units as u
    >>> from pathlib import Path
    >>> from specutils import Spectrum
    >>> from lamost_lsf.io import write_spectrum
    >>> axis = [5000, 5001, 5002] * u.AA
    >>> spectrum = Spectrum(flux=[1.0, 0.5, 1.0] * u.one, spectral_axis=axis, meta={"name": "flat"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "flat.ecsv"
    ...     write_spectrum(spectrum, path)
    ...     back = Spectrum.read(path)
    >>> back.flux.value.tolist(), back.meta["name"]
    ([1.0, 0.5, 1.0], 'flat')
    """
    if not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum must be a specutils Spectrum, got {type(spectrum).__name__}")
    if spectrum.flux.ndim != 1:
        raise ValueError(f"one spectrum makes one file, got flux of shape {spectrum.flux.shape}; index it first")
    kind = _format(path)
    table = QTable({"wavelength": u.Quantity(spectrum.spectral_axis), "flux": u.Quantity(spectrum.flux)})
    meta: dict[str, Any] = {"origin": ORIGIN}
    if spectrum.uncertainty is not None:
        name = spectrum.uncertainty.uncertainty_type
        if name not in _UNCERTAINTIES:
            raise TypeError(f"uncertainty must be one of {', '.join(_UNCERTAINTIES)}, got {name!r}")
        unit = spectrum.uncertainty.unit or u.dimensionless_unscaled
        table["uncertainty"] = np.asarray(spectrum.uncertainty.array, dtype=np.float64) * unit
        meta["uncertainty_type"] = name
    table["mask"] = np.zeros(len(table), bool) if spectrum.mask is None else np.asarray(spectrum.mask, dtype=bool)
    meta |= {key: str(spectrum.meta[key]) for key in _KEYWORDS if spectrum.meta.get(key) is not None}
    with atomic_path(path, overwrite=overwrite) as temporary:
        if kind == "fits":
            _to_hdus(table, meta).writeto(temporary, overwrite=True)
        else:
            table.meta = meta
            table.write(temporary, format=kind, overwrite=True)


def _to_hdus(table: QTable, meta: dict[str, Any]) -> fits.HDUList:
    from lamost_lsf import __version__

    primary = fits.PrimaryHDU()
    primary.header["ORIGIN"] = (ORIGIN, "what this file is")
    primary.header["CREATOR"] = (f"lamost_lsf {__version__}", "what wrote it")
    if "uncertainty_type" in meta:
        primary.header["UNCTYPE"] = (meta["uncertainty_type"], "kind of the column uncertainty")
    for key, keyword in _KEYWORDS.items():
        if key in meta:
            primary.header[keyword] = (meta[key].encode("ascii", "replace").decode(), key)
    data = fits.table_to_hdu(table)
    data.name = "SPECTRUM"
    return fits.HDUList([primary, data])


def read_spectrum(file: str | os.PathLike | Any) -> Spectrum:
    """Read a file that `write_spectrum` wrote.

    Parameters
    ----------
    file : path or binary file object

    Returns
    -------
    `~specutils.Spectrum`
        With the units, uncertainty, mask and the entries of ``meta`` that were kept.

    Raises
    ------
    FormatError
        Another kind of file, or a damaged one.
    FileNotFoundError
        No such file.
    """
    is_path = isinstance(file, (str, os.PathLike))
    name = os.fspath(file) if is_path else str(getattr(file, "name", type(file).__name__))
    if is_path and not Path(file).is_file():
        raise FileNotFoundError(f"no such file: {name}")
    try:
        # whole and decompressed: arrays must outlive the file, and what is missing must be noticed
        if not is_path:
            file.seek(0)  # whoever looked at it before may have left it anywhere
        content = Path(file).read_bytes() if is_path else file.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        table, meta, kind = _from_fits(content) if content[:6] == b"SIMPLE" else _from_ecsv(content)
        uncertainty = None
        if kind is not None:
            values = u.Quantity(np.ma.getdata(table["uncertainty"]))
            uncertainty = _UNCERTAINTIES[kind](values.value, unit=values.unit)
        return Spectrum(
            flux=u.Quantity(np.ma.getdata(table["flux"])),
            spectral_axis=u.Quantity(table["wavelength"]),
            uncertainty=uncertainty,
            mask=np.asarray(table["mask"], dtype=bool),
            meta=meta,
        )
    except PermissionError:
        raise
    except Exception as error:  # damaged tables raise many types
        raise FormatError(f"{name}: not a spectrum written by lamost_lsf: {str(error).splitlines()[0]}") from None


def _from_fits(content: bytes) -> tuple[QTable, dict[str, Any], str | None]:
    with fits.open(io.BytesIO(content), memmap=False) as hdus:
        header = hdus[0].header
        if header.get("ORIGIN") != ORIGIN:
            raise FormatError(f"ORIGIN is {header.get('ORIGIN')!r}")
        meta = {key: header[keyword] for key, keyword in _KEYWORDS.items() if keyword in header}
        return QTable.read(hdus["SPECTRUM"]), meta, header.get("UNCTYPE")


def _from_ecsv(content: bytes) -> tuple[QTable, dict[str, Any], str | None]:
    table = QTable.read(content.decode("utf-8"), format="ascii.ecsv")
    if table.meta.get("origin") != ORIGIN:
        raise FormatError(f"origin is {table.meta.get('origin')!r}")
    return table, {key: table.meta[key] for key in _KEYWORDS if key in table.meta}, table.meta.get("uncertainty_type")


def _identify(origin: str, path: Any = None, fileobj: Any = None, *args: Any, **kwargs: Any) -> bool:
    """Whether a file is one of ours, from its first bytes."""
    if origin != "read":
        return False
    if isinstance(path, (str, os.PathLike)) and os.path.isfile(path):
        with open(path, "rb") as stream:
            return _is_ours(stream)
    position = fileobj.tell()
    try:
        fileobj.seek(0)
        return _is_ours(fileobj)
    finally:
        fileobj.seek(position)


def _is_ours(stream: Any) -> bool:
    start = stream.read(2)
    stream.seek(0)
    return ORIGIN.encode() in (gzip.GzipFile(fileobj=stream) if start == b"\x1f\x8b" else stream).read(8640)


# above the generic tables (6), which need a unit of the flux and drop the mask
@data_loader("lamost_lsf", _identify, extensions=["fits", "fit", "fits.gz", "ecsv"], priority=20, force=True)
def _load(file: Any) -> Spectrum:
    """`read_spectrum`."""
    return read_spectrum(file)
