"""Reading LAMOST spectra: `read_lamost`, and the specutils loaders "LAMOST LRS" and "LAMOST MRS".

Three layouts are known. Low-resolution co-adds are an image of five rows (flux, inverse variance, wavelength,
and-mask, or-mask) up to DR8, and a table ``COADD`` of one row from DR9 on. Medium-resolution files hold the
tables ``COADD_B`` and ``COADD_R`` and one table per exposure and arm, ``B-<LMJM>`` and ``R-<LMJM>``.
"""

from __future__ import annotations

import enum
import gzip
import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import InverseVariance
from astropy.utils.exceptions import AstropyUserWarning
from specutils import Spectrum, SpectrumList

from ..errors import FormatError, FrameWarning
from ..units import air_to_vacuum
from .grids import restore_log_grid
from .headers import build_meta, exposure_arm, header_number

__all__ = [
    "LamostArrays",
    "PixelMask",
    "read_lamost",
    "read_lamost_arrays",
    "read_lamost_mrs",
]

_LN10 = np.log(10.0)
_IMAGE_ROWS = 5
_LRS_COLUMNS = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")
_MRS_COLUMNS = ("FLUX", "IVAR", "LOGLAM")
_MASKS = ("and", "or", "ivar")
# Single exposures keep the detector's pixels; their wavelength solution is smooth, and a polynomial of this
# degree reproduces every published float32 (5 is enough with Sc lamps, 6 with ThAr).
_EXPOSURE_DEGREE = 8
# What fits and gzip raise on damaged content.
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, TypeError, IndexError, KeyError, fits.VerifyError)


class PixelMask(enum.IntFlag):
    """Bits of ANDMASK, ORMASK and PIXMASK, after the data release's own description of its files.

    Examples
    --------
    >>> PixelMask(5)
    <PixelMask.BAD_CCD|NO_SKY: 5>
    """

    #: Bad pixel on the CCD.
    BAD_CCD = 1
    #: Bad profile in the extraction.
    BAD_PROFILE = 2
    #: No sky information at this wavelength.
    NO_SKY = 4
    #: Sky level too high.
    BRIGHT_SKY = 8
    #: Fibre trace outside the CCD.
    BAD_CENTER = 16
    #: No good data.
    NO_DATA = 32


@dataclass(frozen=True)
class LamostArrays:
    """Plain arrays of one LAMOST spectrum, for loops over many files.

    Attributes
    ----------
    wavelength : ndarray (n_pix,), Angstrom, vacuum
        Increasing; in the frame ``meta["frame"]``.
    flux : ndarray (n_pix,)
        As published: relative flux density (LRS) or counts (MRS).
    ivar : ndarray (n_pix,)
        Inverse variance of the flux; 0 where the file's is negative or not finite.
    mask : ndarray (n_pix,), bool
        True = bad.
    meta : dict
        See `lamost_lsf.io.METADATA_KEYS`.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    meta: dict[str, Any]

    def to_spectrum(self) -> Spectrum:
        """Spectrum with vacuum Angstrom, dimensionless flux, inverse variance, mask and meta."""
        return Spectrum(
            flux=u.Quantity(self.flux, u.dimensionless_unscaled, copy=False),
            spectral_axis=u.Quantity(self.wavelength, u.AA, copy=False),
            uncertainty=InverseVariance(self.ivar),
            mask=self.mask,
            meta=self.meta,
        )


def _check_choice(mask: str, bits: int | None) -> str:
    """Valid mask choice, lower case; ``bits`` is checked with it."""
    choice = mask.lower() if isinstance(mask, str) else mask
    if choice not in _MASKS:
        raise ValueError(f"mask must be one of {', '.join(map(repr, _MASKS))}, got {mask!r}")
    if bits is None:
        return choice
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)):
        raise TypeError(f"bits must be a PixelMask or an integer bit mask, got {bits!r}")
    if bits <= 0:
        raise ValueError(f"bits must be positive, got {int(bits)}; mask='ivar' uses no mask bits")
    if choice == "ivar":
        raise ValueError("bits selects bits of the and- or or-mask; it has no meaning with mask='ivar'")
    return choice


def _file_name(file: Any) -> str | None:
    if isinstance(file, fits.HDUList):
        return file.filename()
    if isinstance(file, (str, os.PathLike)):
        return os.fspath(file)
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else None


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """FormatError, in one line, for whatever astropy raises or warns of on a damaged file."""
    with warnings.catch_warnings():
        # astropy only warns of a short file and would go on to read what is not there.
        warnings.filterwarnings("error", message=".*truncated.*", category=AstropyUserWarning)
        try:
            yield
        except (FormatError, FileNotFoundError, PermissionError):
            raise
        except (*_DAMAGE, AstropyUserWarning) as error:
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FormatError(
                f"{name}: not a readable FITS file of a LAMOST spectrum (empty, truncated, damaged): {detail}"
            ) from error


@contextmanager
def _open(file: Any) -> Iterator[tuple[fits.HDUList, str]]:
    """HDUs and name of a path, an open binary file or an HDUList.

    The content is read whole and files that the caller opened stay open. Spectra are small, arrays must
    outlive their file, and what is missing must be noticed.
    """
    name = _file_name(file) or type(file).__name__
    if isinstance(file, fits.HDUList):
        yield file, name
        return
    is_path = isinstance(file, (str, os.PathLike))
    if not is_path and not hasattr(file, "read"):
        raise TypeError(f"file must be a path, an open binary file or an HDUList, got {type(file).__name__}: {file!r}")
    if is_path and not os.path.isfile(file):
        raise FileNotFoundError(f"no such file: {name}")
    with _damage(name):
        if is_path:
            with open(file, "rb") as stream:
                content = stream.read()
        else:
            file.seek(0)
            content = file.read()
        if content[:2] == b"\x1f\x8b":
            # All of it now: astropy takes the end of a truncated gzip stream for the end of the HDUs.
            content = gzip.decompress(content)
        hdus = fits.open(io.BytesIO(content), memmap=False)
    yield hdus, name


def _survey(hdus: fits.HDUList, name: str) -> str:
    """Layout of an open file, "image", "table" or "MRS"; FormatError where it is no LAMOST spectrum."""
    header = hdus[0].header
    telescope = str(header.get("TELESCOP", "")).strip()
    origin = str(header.get("ORIGIN", "")).strip()
    if not telescope.upper().startswith("LAMOST") and "LAMOST" not in origin.upper():
        raise FormatError(f"{name}: not a LAMOST file: TELESCOP is {telescope!r}, expected 'LAMOST'")
    if header.get("NAXIS") == 2:
        return "image"
    with _damage(name):
        names = [hdu.name for hdu in hdus[1:]]
    if "COADD" in names:
        return "table"
    if any(exposure_arm(extension) != "both" for extension in names):
        return "MRS"
    raise FormatError(
        f"{name}: expected an image of {_IMAGE_ROWS} rows, a table COADD, or tables COADD_B, COADD_R, "
        f"B-<LMJM>, R-<LMJM>; found NAXIS = {header.get('NAXIS')} and extensions {names}"
    )


def _columns(hdu: fits.BinTableHDU, names: tuple[str, ...], where: str) -> list[np.ndarray]:
    """Columns of a table HDU, by name; FormatError where one is missing or the table is empty."""
    if not isinstance(hdu, fits.BinTableHDU):
        raise FormatError(f"{where}: expected a binary table, found {type(hdu).__name__}")
    if hdu.header["NAXIS2"] == 0:
        raise FormatError(f"{where}: the table is empty")
    present = {column.upper() for column in hdu.columns.names}
    if missing := [column for column in names if column not in present]:
        raise FormatError(f"{where}: column {', '.join(missing)} is missing, found {', '.join(sorted(present))}")
    with _damage(where):
        return [np.asarray(hdu.data[column]) for column in names]


def _flags(masks: np.ndarray | None, bits: int | None) -> np.ndarray | bool:
    """True where any of ``bits`` (None: any at all) is set, or where the mask itself is not a number."""
    if masks is None:
        return False
    finite = np.isfinite(masks)
    values = np.where(finite, masks, 0).astype(np.int64)
    return ((values != 0) if bits is None else ((values & int(bits)) != 0)) | ~finite


def _half_ulp(values: np.ndarray) -> np.ndarray:
    """Half the spacing of ``values`` in the precision that they are stored in."""
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return 0.5 * np.abs(np.spacing(native)).astype(np.float64)


def _assemble(
    *,
    log_wavelength: np.ndarray,
    flux: np.ndarray,
    ivar: np.ndarray,
    masks: np.ndarray | None,
    bits: int | None,
    meta: dict[str, Any],
    where: str,
) -> LamostArrays:
    """Arrays in double precision and increasing wavelength, with one mask."""
    flux = flux.astype(np.float64)
    ivar = ivar.astype(np.float64)
    finite = np.isfinite(flux)
    if not finite.any():
        raise FormatError(f"{where}: the flux holds no finite value")
    good = finite & np.isfinite(ivar) & (ivar > 0.0)
    mask = ~good | _flags(masks, bits)
    ivar = np.where(np.isfinite(ivar) & (ivar > 0.0), ivar, 0.0)
    if np.any((log_wavelength < 3.0) | (log_wavelength > 5.0)):
        raise FormatError(
            f"{where}: wavelengths are not in Angstrom (1000 to 100,000): log10 runs from "
            f"{log_wavelength.min():.6g} to {log_wavelength.max():.6g}"
        )
    wavelength = np.exp(_LN10 * log_wavelength)
    if meta["header"].get("VACUUM", True) is False:
        warnings.warn(f"{where}: VACUUM is F; the wavelengths were converted from air", FrameWarning, stacklevel=3)
        wavelength = air_to_vacuum(wavelength)
    if wavelength[0] > wavelength[-1]:
        # Red exposures of the medium-resolution survey run from red to blue.
        wavelength, flux, ivar, mask = (array[::-1].copy() for array in (wavelength, flux, ivar, mask))
    if wavelength.size < 2 or not np.all(np.diff(wavelength) > 0.0):
        raise FormatError(f"{where}: fewer than two pixels, or wavelengths that are not monotonic")
    return LamostArrays(wavelength, flux, ivar, mask, meta)


def _describe(choice: str, bits: int | None) -> str:
    return choice if bits is None else f"{choice}:{int(bits)}"


def _lrs_grid(wavelength: np.ndarray, header: fits.Header, where: str) -> tuple[np.ndarray, str]:
    """log10-wavelengths of a low-resolution spectrum and how they were found."""
    start, step = header_number(header, "COEFF0"), header_number(header, "COEFF1")
    known = start is not None and step is not None
    if not np.all(np.isfinite(wavelength) & (wavelength > 0.0)):
        if not known:
            raise FormatError(
                f"{where}: wavelengths are not finite and positive, and the header has no COEFF0 and COEFF1"
            )
        return start + step * np.arange(wavelength.size), "header"
    half_ulp = _half_ulp(wavelength) / (_LN10 * wavelength)
    log_wavelength = np.log10(wavelength.astype(np.float64))
    return restore_log_grid(log_wavelength, half_ulp, start=start, step=step)


def _own_header(header: fits.Header, file: Any) -> fits.Header:
    # An HDUList stays the caller's: its header must not change with the spectrum's, nor the reverse.
    return header.copy() if isinstance(file, fits.HDUList) else header


def _read_lrs(hdus: fits.HDUList, layout: str, name: str, choice: str, bits: int | None, file: Any):
    header = _own_header(hdus[0].header, file)
    extension = None
    if layout == "image":
        shape = (header.get("NAXIS2"), header.get("NAXIS1"))
        if shape[0] != _IMAGE_ROWS:
            raise FormatError(
                f"{name}: expected an image of {_IMAGE_ROWS} rows (flux, inverse variance, wavelength, "
                f"and-mask, or-mask), found {shape[0]} x {shape[1]}"
            )
        with _damage(name):
            flux, ivar, wavelength, and_mask, or_mask = hdus[0].data
    else:
        hdu = hdus["COADD"]
        where = f"{name}[COADD]"
        columns = _columns(hdu, _LRS_COLUMNS, where)
        if any(column.ndim != 2 or column.shape[0] != 1 for column in columns):
            raise FormatError(
                f"{where}: expected one row of arrays, found {hdu.header['NAXIS2']} rows of "
                f"{', '.join(hdu.columns.formats)}"
            )
        flux, ivar, wavelength, and_mask, or_mask = (column[0] for column in columns)
        extension = _own_header(hdu.header, file)
    log_wavelength, source = _lrs_grid(wavelength, header, name)
    meta = build_meta(
        header,
        survey="LRS",
        extension=extension,
        filename=_file_name(file),
        mask_choice=_describe(choice, bits),
        wavelength_grid=source,
    )
    return _assemble(
        log_wavelength=log_wavelength,
        flux=flux,
        ivar=ivar,
        masks={"and": and_mask, "or": or_mask, "ivar": None}[choice],
        bits=bits,
        meta=meta,
        where=name,
    )


def _read_mrs(
    hdu: fits.BinTableHDU, header: fits.Header, name: str, choice: str, bits: int | None, file: Any
) -> LamostArrays:
    where = f"{name}[{hdu.name}]"
    single = not hdu.name.startswith("COADD")
    columns: tuple[str, ...] = _MRS_COLUMNS
    if choice != "ivar":
        # A single exposure has one mask; and or or, it is the same.
        columns += ("PIXMASK",) if single else (f"{choice.upper()}MASK",)
    flux, ivar, log_wavelength, *masks = _columns(hdu, columns, where)
    if flux.ndim != 1:
        raise FormatError(f"{where}: expected one number per row, found arrays of shape {flux.shape[1:]}")
    if not np.all(np.isfinite(log_wavelength)):
        raise FormatError(f"{where}: LOGLAM is not finite")
    grid, source = restore_log_grid(
        log_wavelength.astype(np.float64),
        _half_ulp(log_wavelength),
        degree=_EXPOSURE_DEGREE if single else 1,
    )
    meta = build_meta(
        header,
        survey="MRS",
        extension=_own_header(hdu.header, file),
        filename=_file_name(file),
        mask_choice=_describe(choice, bits),
        wavelength_grid=source,
    )
    return _assemble(
        log_wavelength=grid,
        flux=flux,
        ivar=ivar,
        masks=masks[0] if masks else None,
        bits=bits,
        meta=meta,
        where=where,
    )


def _mrs_extensions(hdus: fits.HDUList) -> list[str]:
    return [hdu.name for hdu in hdus[1:] if exposure_arm(hdu.name) != "both"]


def read_lamost_arrays(
    file: str | os.PathLike | fits.HDUList | Any,
    *,
    mask: str = "and",
    bits: int | None = None,
    extension: str | None = None,
) -> LamostArrays:
    """Read one LAMOST spectrum as plain arrays.

    The same as `read_lamost` without the cost of building a spectrum; see there for parameters and errors.

    Returns
    -------
    LamostArrays
        ``wavelength`` (vacuum Angstrom), ``flux``, ``ivar``, ``mask`` (True = bad) and ``meta``.
    """
    choice = _check_choice(mask, bits)
    with _open(file) as (hdus, name):
        layout = _survey(hdus, name)
        if layout != "MRS":
            if extension is not None and extension.upper() != "COADD":
                raise ValueError(f"{name}: a low-resolution file has no extension {extension!r}")
            return _read_lrs(hdus, layout, name, choice, bits, file)
        extensions = _mrs_extensions(hdus)
        wanted = extensions[0] if extension is None else extension.upper()
        if wanted not in extensions:
            raise ValueError(f"{name}: no extension {extension!r}; it has {', '.join(extensions)}")
        return _read_mrs(hdus[wanted], _own_header(hdus[0].header, file), name, choice, bits, file)


def read_lamost(
    file: str | os.PathLike | fits.HDUList | Any,
    *,
    mask: str = "and",
    bits: int | None = None,
    extension: str | None = None,
) -> Spectrum:
    """Read one LAMOST spectrum: low resolution (any release) or one extension of a medium-resolution file.

    Parameters
    ----------
    file : path, binary file object or `~astropy.io.fits.HDUList`
        Plain or gzipped FITS. What the caller opened stays open.
    mask : {"and", "or", "ivar"}
        Which mask of the file marks bad pixels. "and": flagged in every exposure (default); "or": flagged in
        at least one; "ivar": neither. Pixels without a finite flux and a positive inverse variance are always
        bad. A single exposure has one mask, used for "and" and "or" alike.
    bits : PixelMask or int, optional
        Only these bits of the mask count, e.g. ``PixelMask.BAD_CCD | PixelMask.NO_SKY``; all by default.
    extension : str, optional
        Of a medium-resolution file: "COADD_B", "COADD_R", "B-84107311", ... The first by default, which is
        the blue co-add where there is one. `read_lamost_mrs` reads them all.

    Returns
    -------
    `~specutils.Spectrum`
        Flux as published and dimensionless, because the files carry no unit: the low-resolution flux density
        is calibrated in relative terms only, and the medium-resolution one is in counts. Vacuum Angstrom,
        increasing, in the frame ``meta["frame"]``; `~astropy.nddata.InverseVariance`; mask (True = bad);
        ``meta`` as in `lamost_lsf.io.METADATA_KEYS`.

    Raises
    ------
    FormatError
        Where the file is damaged, no LAMOST spectrum, or without a finite flux.
    FileNotFoundError
        Where there is no such file.
    ValueError, TypeError
        Where an argument makes no sense.

    Notes
    -----
    Published wavelengths are single precision. They are replaced by the smooth double-precision grid that
    reproduces every one of them to its rounding; ``meta["wavelength_grid"]`` says which one: "header"
    (COEFF0, COEFF1), "header-float32" (COEFF0 in single precision, the usual case), "fit" (a polynomial
    through the file's own array) or "file" (none; the array as it is).

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.io import fits
    >>> wavelength = 10 ** (3.5682 + 1e-4 * np.arange(3909))
    >>> rows = np.array([np.ones(3909), np.ones(3909), wavelength, np.zeros(3909), np.zeros(3909)])
    >>> hdu = fits.PrimaryHDU(rows.astype("f4"))
    >>> hdu.header.update(TELESCOP="LAMOST", SPID=3, FIBERID=31, LMJMLIST="84091500-84091533")
    >>> spectrum = read_lamost(fits.HDUList([hdu]))
    >>> spectrum.spectral_axis.value[[0, -1]].round(3).tolist()
    [3699.985, 9099.133]
    >>> spectrum.meta["spectrograph"], spectrum.meta["fiber"], spectrum.meta["time_source"]
    (3, 31, 'lmjm')
    """
    return read_lamost_arrays(file, mask=mask, bits=bits, extension=extension).to_spectrum()


def read_lamost_mrs(
    file: str | os.PathLike | fits.HDUList | Any,
    *,
    mask: str = "and",
    bits: int | None = None,
    arm: str | None = None,
    kind: str = "all",
) -> SpectrumList:
    """Read the spectra of a medium-resolution file.

    Parameters
    ----------
    file : path, binary file object or `~astropy.io.fits.HDUList`
        Plain or gzipped FITS.
    mask, bits
        As in `read_lamost`.
    arm : {"blue", "red"}, optional
        Both by default.
    kind : {"all", "coadd", "single"}
        Co-adds, single exposures, or both.

    Returns
    -------
    `~specutils.SpectrumList`
        In the file's order, each as from `read_lamost`, with its own ``meta["time"]``. Single exposures keep
        the detector's pixels and are corrected to the Sun each by the velocity of its own time, while
        ``meta["helio_rv"]`` is the file's one value, which belongs to the first exposures.

    Raises
    ------
    FormatError
        As `read_lamost`; also where the file holds no spectrum of that arm and kind, or is of low resolution.
    ValueError
        Where ``arm`` or ``kind`` is unknown.

    Examples
    --------
    >>> read_lamost_mrs("med.fits", arm="green")
    Traceback (most recent call last):
    ...
    ValueError: arm must be 'blue', 'red' or None, got 'green'
    """
    choice = _check_choice(mask, bits)
    if arm not in (None, "blue", "red"):
        raise ValueError(f"arm must be 'blue', 'red' or None, got {arm!r}")
    if kind not in ("all", "coadd", "single"):
        raise ValueError(f"kind must be 'all', 'coadd' or 'single', got {kind!r}")
    with _open(file) as (hdus, name):
        if _survey(hdus, name) != "MRS":
            raise FormatError(f"{name}: a low-resolution file, expected tables COADD_B, COADD_R, B-<LMJM>, R-<LMJM>")
        extensions = _mrs_extensions(hdus)
        wanted = [
            extension
            for extension in extensions
            if arm in (None, exposure_arm(extension))
            and kind in ("all", "coadd" if extension.startswith("COADD") else "single")
        ]
        if not wanted:
            raise FormatError(f"{name}: no spectrum with arm={arm!r} and kind={kind!r}; it has {', '.join(extensions)}")
        header = _own_header(hdus[0].header, file)
        return SpectrumList(
            _read_mrs(hdus[extension], header, name, choice, bits, file).to_spectrum() for extension in wanted
        )
