"""Template spectra: PHOENIX, redrock's stellar bases, whatever specutils opens, tables of wavelength and flux."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning
from specutils import Spectrum

from lamost_lsf.errors import FormatError
from lamost_lsf.files import damage
from lamost_lsf.units import check_medium, to_vacuum_angstrom

__all__ = ["list_templates", "read_template", "read_templates"]

#: Unit of the flux of PHOENIX models (Husser et al. 2013): at the stellar surface, per cm of wavelength.
PHOENIX_UNIT = u.erg / u.s / u.cm**2 / u.cm
_PHOENIX_NAME = re.compile(
    r"lte(?P<teff>\d{5})(?P<logg>[-+]\d\.\d{1,2})(?P<feh>[-+]\d\.\d{1,2})(?:\.Alpha=(?P<alpha>[-+]\d\.\d{1,2}))?"
)
_PHOENIX_WAVE = "WAVE_PHOENIX-ACES-AGSS-COND-2011.fits"
_WAVE_COLUMNS = ("wavelength", "wave", "lambda", "lam", "wl", "wave_vac_a", "wavelength_vac", "loglam")
_FLUX_COLUMNS = ("flux", "f_lambda", "flam", "intensity", "spectrum")
# A basis holds thousands of archetypes of 80,001 pixels: they are read one at a time.
_MAX_AT_ONCE = 100


def list_templates(path: str | os.PathLike) -> list[str]:
    """Names of the templates in a file: what ``member`` may be.

    Parameters
    ----------
    path : path

    Returns
    -------
    list of str
        Model names of an npz file, numbers of the archetypes of a redrock basis; one name, the file's own, otherwise.

    Raises
    ------
    FileNotFoundError, FormatError

    Examples
    --------
    >>> list_templates("phoenix_hires_2450_11000.npz")                              # doctest: +SKIP
    ['lte05800-4.50-0.0', 'lte06000-4.00-0.0', 'lte06000-4.00-2.0']
    """
    path = _existing(path)
    kind = _kind(path)
    if kind == "npz":
        # numpy would leave a damaged file open that it opened itself
        with damage(path, "template"), open(path, "rb") as file, np.load(file, allow_pickle=False) as npz:
            return _npz_members(path, npz.files)[1]
    if kind == "redrock":
        with damage(path, "template"), fits.open(path) as hdus:
            return [str(i) for i in range(hdus["ARCHETYPE_COEFF"].header["NAXIS2"])]
    return [_stem(path)]


def read_template(path: str | os.PathLike, member: str | int | None = None, *, medium: str | None = None) -> Spectrum:
    """Read one template spectrum.

    Parameters
    ----------
    path : path
        One of

        * a PHOENIX model, ``lte05800-4.50-0.0.PHOENIX-...-HiRes.fits``, with the file of its wavelengths,
          ``WAVE_PHOENIX-ACES-AGSS-COND-2011.fits``, in the same folder or one above;
        * an npz file of one array of wavelengths, ``wave_vac_A`` (vacuum) or ``wave_air_A``, and one array a model;
        * a stellar basis of redrock, ``rrtemplate-STAR-G-v0.1.fits``: ``member`` is the number of the archetype;
        * whatever ``Spectrum.read`` opens;
        * a table (FITS, ECSV, CSV, text) with columns of wavelength and flux, such as ``wave`` and ``flux``. Without a
          unit the wavelengths are Angstrom.
    member : str or int, optional
        Which template, where the file holds several; see `list_templates`.
    medium : {"vacuum", "air"}, optional
        Medium of the wavelengths in the file. By default what the file says (``AWAV`` of the FITS standard, the name of
        the column, ``wavelength_medium``), else vacuum.

    Returns
    -------
    `~specutils.Spectrum`
        Vacuum Angstrom, increasing; rest frame as in the file. ``meta`` has ``name``, ``source`` (the file's name),
        ``wavelength_medium`` ("vacuum") and, where the name tells, ``teff``, ``logg`` and ``feh``.

    Raises
    ------
    FileNotFoundError
        No such file.
    FormatError
        A damaged file, or one that is no spectrum.
    ValueError
        Several templates and no ``member``, or one that is not there.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from lamost_lsf.io import read_template
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "models.npz"
    ...     np.savez(path, wave_vac_A=[5000.0, 5000.1, 5000.2], **{"lte05800-4.50-0.0": [1.0, 0.5, 1.0]})
    ...     template = read_template(path)
    >>> template.meta["name"], template.meta["teff"], template.spectral_axis[0]
    ('lte05800-4.50-0.0', 5800.0, <SpectralAxis 5000. Angstrom>)
    """
    if member is None:
        names = list_templates(path)
        if len(names) > 1:
            raise ValueError(f"{os.fspath(path)} holds {len(names)} templates ({_some(names)}): choose one by member=")
    return _read(_existing(path), member, medium)


def read_templates(path: str | os.PathLike, *, medium: str | None = None) -> list[Spectrum]:
    """Read all templates of a file; parameters and errors as for `read_template`.

    A file of more than 100 templates, such as a basis of archetypes, is refused: read those that are wanted by
    `read_template`.

    Returns
    -------
    list of `~specutils.Spectrum`
    """
    names = list_templates(path)
    if len(names) > _MAX_AT_ONCE:
        raise ValueError(f"{os.fspath(path)} holds {len(names)} templates ({_some(names)}): choose by read_template")
    path = _existing(path)
    return [_read(path, name if len(names) > 1 else None, medium) for name in names]


# -- kinds of file ----------------------------------------------------------------------------------------


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return path


def _kind(path: Path) -> str:
    if path.suffix.lower() == ".npz":
        return "npz"
    with open(path, "rb") as stream:
        start = stream.read(2)
    if not path.name.lower().endswith((".fits", ".fit", ".fits.gz", ".fit.gz")) or start not in (b"SI", b"\x1f\x8b"):
        return "other"
    with damage(path, "template"), fits.open(path) as hdus:
        header = hdus[0].header
        if "RRTYPE" in header:
            return "redrock" if "ARCHETYPE_COEFF" in [hdu.name for hdu in hdus] else "other"
        if header.get("NAXIS") == 1 and (header.get("PHXTEFF") is not None or _PHOENIX_NAME.match(path.name)):
            return "phoenix"
    return "other"


def _read(path: Path, member: str | int | None, medium: str | None) -> Spectrum:
    kind = _kind(path)
    if kind == "npz":
        wavelength, flux, own, name = _read_npz(path, member)
    elif kind == "redrock":
        wavelength, flux, own, name = _read_redrock(path, member)
    else:
        if member is not None and str(member) != _stem(path):
            raise ValueError(f"{path} holds one template; it has no member {member!r}")
        if kind == "phoenix":
            wavelength, flux, own, name = _read_phoenix(path)
        else:
            wavelength, flux, own, name = _read_other(path)
    own = check_medium(medium) if medium is not None else own
    return _assemble(wavelength, flux, own, name, path)


def _assemble(wavelength: u.Quantity, flux: u.Quantity, medium: str, name: str, path: Path) -> Spectrum:
    """Spectrum in vacuum Angstrom, increasing, with what its name tells."""
    if wavelength.ndim != 1 or flux.shape != wavelength.shape or wavelength.size < 2:
        raise FormatError(f"{path}: expected one flux per wavelength, found shapes {flux.shape} and {wavelength.shape}")
    if not np.all(np.isfinite(wavelength)) or np.any(wavelength <= 0 * wavelength.unit):
        raise FormatError(f"{path}: the wavelengths are not all finite and positive")
    vacuum = to_vacuum_angstrom(wavelength, medium)
    if vacuum[0] > vacuum[-1]:
        vacuum, flux = vacuum[::-1], flux[::-1]
    if np.any(np.diff(vacuum) <= 0):
        raise FormatError(f"{path}: the wavelengths are not monotonic")
    value = np.asarray(flux.value, dtype=np.float64)
    if not np.any(np.isfinite(value)):
        raise FormatError(f"{path}: the flux holds no finite value")
    meta = {"name": name, "source": path.name, "wavelength_medium": "vacuum", **_labels(name)}
    mask = ~np.isfinite(value)
    return Spectrum(flux=value * flux.unit, spectral_axis=vacuum * u.AA, mask=mask if mask.any() else None, meta=meta)


def _labels(name: str) -> dict[str, float]:
    match = _PHOENIX_NAME.match(name)
    if match is None:
        return {}
    # PHOENIX writes log g after a hyphen that is no sign: lte06000-4.00-2.0 has log g = +4.00, [M/H] = -2.0
    return {"teff": float(match["teff"]), "logg": float(match["logg"][1:]), "feh": float(match["feh"]) + 0.0}


def _stem(path: Path) -> str:
    match = _PHOENIX_NAME.match(path.name)
    return match[0] if match else path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{names[0]} to {names[-1]}"


def _npz_members(path: Path, names: list[str]) -> tuple[str, list[str]]:
    waves = [name for name in names if name.lower() in ("wave_vac_a", "wave_air_a")]
    if len(waves) != 1:
        raise FormatError(f"{path}: expected one array wave_vac_A or wave_air_A, found {_some(names) or 'nothing'}")
    members = [name for name in names if name != waves[0]]
    if not members:
        raise FormatError(f"{path}: wavelengths without a spectrum")
    return waves[0], members


def _read_npz(path: Path, member: str | int | None) -> tuple[u.Quantity, u.Quantity, str, str]:
    with damage(path, "template"), open(path, "rb") as file, np.load(file, allow_pickle=False) as npz:
        wave, members = _npz_members(path, npz.files)
        name = members[0] if member is None else str(member)
        found = name in members
        if found:
            wavelength, flux = npz[wave].astype(np.float64), npz[name].astype(np.float64)
    if not found:
        raise ValueError(f"{path} has no template {name!r}; it holds {_some(members)}")
    unit = PHOENIX_UNIT if _PHOENIX_NAME.match(name) else u.dimensionless_unscaled
    return wavelength * u.AA, flux * unit, "air" if "air" in wave.lower() else "vacuum", name


def redrock_arrays(hdus: fits.HDUList) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavelengths (n_pix,), vacuum Angstrom, basis (n, n_pix) and archetypes' factors (n_star, n) of a redrock file."""
    header = hdus[0].header
    basis = np.array(hdus[0].data, dtype=np.float64)
    coefficients = np.array(hdus["ARCHETYPE_COEFF"].data, dtype=np.float64)
    wavelength = header["CRVAL1"] + header["CDELT1"] * np.arange(basis.shape[1])
    return 10.0**wavelength if header.get("LOGLAM") else wavelength, basis, coefficients


def _read_redrock(path: Path, member: str | int | None) -> tuple[u.Quantity, u.Quantity, str, str]:
    with damage(path, "template"), fits.open(path) as hdus:
        wavelength, basis, coefficients = redrock_arrays(hdus)
        kind = str(hdus[0].header.get("RRSUBTYP", "")).strip()
    try:
        number = int(member if member is not None else 0)
    except ValueError:
        number = -1
    if not 0 <= number < len(coefficients):
        raise ValueError(f"{path} has no archetype {member!r}; they are numbered 0 to {len(coefficients) - 1}")
    with damage(path, "template"):
        flux = coefficients[number] @ basis
    return wavelength * u.AA, flux * u.dimensionless_unscaled, "vacuum", f"{kind}-{number}"


def _read_phoenix(path: Path) -> tuple[u.Quantity, u.Quantity, str, str]:
    folder = path.resolve().parent
    waves = [parent / _PHOENIX_WAVE for parent in (folder, *folder.parents[:3])]
    wave = next((file for file in waves if file.is_file()), None)
    if wave is None:
        raise FileNotFoundError(f"{path} has no wavelengths of its own: put {_PHOENIX_WAVE} in its folder or one above")
    with damage(path, "template"), fits.open(path) as hdus:
        flux = np.asarray(hdus[0].data, dtype=np.float64)
    with damage(wave, "template"), fits.open(wave) as hdus:
        wavelength = np.asarray(hdus[0].data, dtype=np.float64)
    return wavelength * u.AA, flux * PHOENIX_UNIT, "vacuum", _stem(path)


def _read_other(path: Path) -> tuple[u.Quantity, u.Quantity, str, str]:
    """What specutils opens, else a table of wavelength and flux."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            spectrum = Spectrum.read(path)
        wavelength = u.Quantity(spectrum.spectral_axis).to(u.AA, u.spectral())
    except Exception as error:  # loaders raise whatever comes: the table is the second try
        return _read_table(path, error)
    if spectrum.flux.ndim != 1:
        raise FormatError(f"{path} holds {spectrum.flux.shape[:-1]} spectra; a template is one")
    flux = u.Quantity(spectrum.flux)
    if spectrum.mask is not None:
        flux = np.where(spectrum.mask, np.nan, flux.value) * flux.unit
    medium = spectrum.meta.get("wavelength_medium") or _header_medium(spectrum.meta.get("header"))
    return wavelength, flux, medium, str(spectrum.meta.get("name") or _stem(path))


def _unit(unit: u.UnitBase | None, default: u.UnitBase) -> u.UnitBase:
    """Unit of a column, with the words of old HST tables that astropy does not know."""
    if unit is None:
        return default
    words = {"angstroms": u.AA, "angstrom": u.AA, "flam": u.erg / u.s / u.cm**2 / u.AA}
    return words.get(str(unit).strip().lower(), unit)


def _header_medium(header: Any) -> str:
    """Medium by the FITS standard: CTYPE "AWAV" is air; "WAVE", and silence, vacuum."""
    ctype = "" if header is None else str(dict(header).get("CTYPE1", ""))
    return "air" if ctype.upper().startswith("AWAV") else "vacuum"


def _read_table(path: Path, error: Exception) -> tuple[u.Quantity, u.Quantity, str, str]:
    name = path.name.lower().removesuffix(".gz")
    formats = {".fits": "fits", ".fit": "fits", ".ecsv": "ascii.ecsv", ".csv": "ascii.csv"}
    kind = formats.get(Path(name).suffix, "ascii")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = Table.read(path, format=kind, **({"hdu": 1} if kind == "fits" else {}))
    except Exception:  # what specutils said is as good as any
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path}: neither a spectrum that specutils knows nor a table: {detail}") from None
    columns = {str(column).lower(): column for column in table.colnames}
    wave = next((columns[c] for c in _WAVE_COLUMNS if c in columns), None)
    flux = next((columns[c] for c in _FLUX_COLUMNS if c in columns), None)
    if wave is None or flux is None:
        raise FormatError(
            f"{path}: no columns of wavelength and flux (such as wave and flux); found {', '.join(table.colnames)}"
        )
    with damage(path, "template"):
        wavelength = np.ma.filled(np.ma.asarray(table[wave], dtype=np.float64), np.nan).ravel()
        values = np.ma.filled(np.ma.asarray(table[flux], dtype=np.float64), np.nan).ravel()
        if wave.lower() == "loglam":
            wavelength = 10.0**wavelength
        wavelength = (wavelength * _unit(table[wave].unit, u.AA)).to(u.AA, u.spectral())
        unit = _unit(table[flux].unit, u.dimensionless_unscaled)
    outside = (wavelength < 100 * u.AA) | (wavelength > 1e6 * u.AA)
    if np.any(outside) and table[wave].unit is None:
        first = wavelength[outside][0].value
        raise FormatError(f"{path}: column {wave} has no unit and is not in Angstrom: it holds {first:g}")
    return wavelength, values * unit, "vacuum", _stem(path)
