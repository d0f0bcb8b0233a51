"""Readers of theoretical libraries: redrock's star bases, PHOENIX, BOSZ."""

from __future__ import annotations

import bz2
import gzip
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from lamost_lsf.errors import FormatError, LamostLSFWarning
from lamost_lsf.files import damage
from lamost_lsf.io import read_templates
from lamost_lsf.io.templates import redrock_arrays
from lamost_lsf.sed.libraries_base import Library, line_medium
from lamost_lsf.sed.libraries_tables import find_files
from lamost_lsf.units import air_to_vacuum, check_medium

__all__ = ["read_bosz", "read_phoenix", "read_redrock"]


def read_redrock(
    folder: Path, *, types: Sequence[str] | str = "AFGKM", positive: bool | tuple[float, float] = False
) -> Library:
    """Redrock's star bases: archetype coefficients and five basis vectors a class, theoretical, vacuum.

    Parameters
    ----------
    folder : path
        With ``rrtemplate-STAR-<class>-*.fits``.
    types : sequence of str
        Classes to read.
    positive : bool or tuple of float
        Drop the archetypes whose flux is not positive everywhere, or between two wavelengths (vacuum Angstrom).

    Returns
    -------
    Library
        Held as a basis. ``type`` is the class and ``name`` "G-17" archetype 17 of class G, its number in the file, also
        ``number``; there are no labels.
    """
    if not types:
        raise ValueError("types must name at least one class, such as 'AFG'")
    names, classes, numbers, coefficients, bases, axes = [], [], [], [], [], []
    for kind in types:
        files = find_files(
            folder, f"rrtemplate-STAR-{str(kind).upper()}-*.fits*", what=f"redrock basis of class {kind}"
        )
        with damage(files[-1], "library file"), fits.open(files[-1]) as hdus:
            wavelength, basis, own = redrock_arrays(hdus)
        axes.append(wavelength)
        bases.append(basis)
        coefficients.append(own)
        numbers.append(np.arange(len(own)))
        classes += [str(kind).upper()] * len(own)
        names += [f"{str(kind).upper()}-{i}" for i in range(len(own))]
    if any(axis.shape != axes[0].shape or not np.allclose(axis, axes[0], rtol=1e-12) for axis in axes[1:]):
        raise FormatError(
            f"{folder}: the bases of {', '.join(types)} are on different wavelengths; read them one by one"
        )
    block = np.zeros((len(names), sum(len(basis) for basis in bases)))
    row = column = 0
    for own in coefficients:
        block[row : row + own.shape[0], column : column + own.shape[1]] = own
        row, column = row + own.shape[0], column + own.shape[1]
    table = Table({"name": names, "type": classes, "number": np.concatenate(numbers)})
    meta = {"reference": "redrock star templates, DESI collaboration", "flux_unit": "", "source": str(folder)}
    library = Library("redrock", table, axes[0], coefficients=block, basis=np.concatenate(bases), meta=meta)
    if positive is not False:
        library = library[library.positive(*(() if positive is True else positive))]
    return library


def read_phoenix(folder: Path) -> Library:
    """PHOENIX models (Husser et al. 2013), R = 500,000 below 2.5 micron: an npz file of several, or the FITS files.

    All models of a folder must be on one wavelength grid. See `~lamost_lsf.io.read_template` for the layouts.
    """
    files = find_files(folder, "*.npz", required=False)
    files = files or find_files(folder, "lte*.fits*", what="PHOENIX model", deep=True)
    templates = [template for file in files for template in read_templates(file)]
    first = templates[0].spectral_axis.value
    for template in templates[1:]:
        if template.spectral_axis.size != first.size or not np.allclose(
            template.spectral_axis.value, first, rtol=1e-12
        ):
            raise FormatError(f"{folder}: model {template.meta['name']} is on another wavelength grid than the first")
    rows = [{key: t.meta.get(key, np.nan) for key in ("teff", "logg", "feh")} for t in templates]
    table = Table({"name": [t.meta["name"] for t in templates], "ebv": np.zeros(len(templates))})
    for key in ("teff", "logg", "feh"):
        table[key] = np.array([row[key] for row in rows], dtype=np.float64)
    meta = {
        "reference": "Husser et al. 2013, A&A 553, A6",
        "flux_unit": str(templates[0].flux.unit),
        "source": str(folder),
    }
    return Library("phoenix", table, first, np.stack([t.flux.value for t in templates]), fwhm=None, meta=meta)


# 2017: amm13cp00op00t3500g45v20modrt0b50000rs.fits or .asc.bz2; hundredths are rounded to tenths: 13 is 1.25
_BOSZ_2017 = re.compile(
    r"^am(?P<feh>[mp]\d\d)c(?P<c>[mp]\d\d)o(?P<alpha>[mp]\d\d)t(?P<teff>\d+)g(?P<logg>\d\d)v(?P<micro>\d\d)"
    r"modrt(?P<rotation>\d+)b(?P<power>\d+)rs\.(?:fits|asc)(?:\.bz2|\.gz)?$"
)
# 2024: bosz2024_mp_t5000_g+4.5_m+0.00_a+0.00_c+0.00_v2_r2000_resam.txt.gz
_BOSZ_2024 = re.compile(
    r"^bosz2024_(?P<atmosphere>[a-z]+)_t(?P<teff>\d+)_g(?P<logg>[-+]\d+\.\d+)_m(?P<feh>[-+]\d+\.\d+)_a(?P<alpha>[-+]\d+\.\d+)"
    r"_c(?P<c>[-+]\d+\.\d+)_v(?P<micro>\d+)_r(?P<power>\d+)_(?:no)?resam\.txt(?:\.gz|\.bz2)?$"
)


def bosz_labels(filename: str) -> dict[str, float] | None:
    """Labels in the name of a BOSZ file of either release, or None.

    Examples
    --------
    >>> labels = bosz_labels("amm13cp00op03t6250g45v20modrt0b2000rs.fits")
    >>> labels["teff"], labels["logg"], labels["feh"], labels["alpha"], labels["resolving_power"]
    (6250.0, 4.5, -1.25, 0.25, 2000.0)
    >>> bosz_labels("bosz2024_mp_t5000_g+4.5_m-0.50_a+0.00_c+0.00_v2_r2000_resam.txt.gz")["feh"]
    -0.5
    """
    match = _BOSZ_2017.match(filename)
    if match:
        out = {key: _quarters(match[key]) for key in ("feh", "c", "alpha")}
        out |= {"logg": float(match["logg"]) / 10.0, "micro": float(match["micro"]) / 10.0}
    else:
        match = _BOSZ_2024.match(filename)
        if not match:
            return None
        out = {key: float(match[key]) + 0.0 for key in ("feh", "c", "alpha", "logg", "micro")}
    return out | {"teff": float(match["teff"]), "resolving_power": float(match["power"])}


def _quarters(text: str) -> float:
    """[X/H] of "m13": the grid's steps are 0.25 dex, written to a tenth, rounded up."""
    size = round(float(text[1:]) / 10.0 * 4.0 - 0.01) / 4.0
    return (-size if text[0] == "m" else size) + 0.0


def read_bosz(
    folder: Path, *, wavelength_range: tuple[float, float] | None = None, medium: str | None = None
) -> Library:
    """BOSZ models in the layouts of MAST: the release of 2017 (FITS or ASCII) or of 2024 (text).

    * 2017 (Bohlin et al. 2017): a FITS table of ``Wavelength``, ``SpecificIntensity`` and ``Continuum``, or ASCII of
      the same three columns, often compressed by bzip2. The flux at the surface is pi times the specific intensity.
    * 2024 (Mészáros et al. 2024): text of two columns, Eddington flux H and continuum, wavelengths in
      ``bosz2024_wave_r<R>.txt`` beside them or in a folder above; the files at the original resolution hold three
      columns, wavelengths first. The flux at the surface is 4 pi H.

    Parameters
    ----------
    folder : path
        Searched with its subfolders; one resolution and release at a time.
    wavelength_range : tuple of float, optional
        Vacuum Angstrom to keep: models reach from 0.05 or 0.1 to 32 micron.
    medium : {"vacuum", "air"}, optional
        Medium of the files' wavelengths. By default it is told from the Balmer lines of the hottest model below
        10,000 K, and taken for vacuum where they do not tell.

    Returns
    -------
    Library
        Additional columns: ``alpha``, ``carbon`` (dex), ``microturbulence`` (km/s).

    Raises
    ------
    FileNotFoundError
        No models, or no wavelengths for them.
    FormatError
        Models of several resolutions or grids, damaged files.
    """
    found = [(file, bosz_labels(file.name)) for file in sorted(Path(folder).rglob("*")) if file.is_file()]
    found = [(file, labels) for file, labels in found if labels is not None]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no BOSZ models: expected names such as amp00cp00op00t6000g45v20modrt0b2000rs.fits (2017) "
            "or bosz2024_mp_t6000_g+4.5_m+0.00_a+0.00_c+0.00_v2_r2000_resam.txt.gz (2024)"
        )
    powers = sorted({labels["resolving_power"] for _, labels in found})
    if len(powers) > 1:
        raise FormatError(
            f"{folder} holds models of R = {', '.join(f'{p:g}' for p in powers)}: read one resolution at a time"
        )
    waves: dict[Path, np.ndarray] = {}
    axis, spectra = None, []
    for file, _ in found:
        wavelength, flux = _read_bosz_file(file, Path(folder), waves)
        if axis is None:
            axis = wavelength
        elif axis.shape != wavelength.shape or not np.allclose(axis, wavelength, rtol=1e-7):
            raise FormatError(f"{file}: on another wavelength grid than {found[0][0].name}")
        spectra.append(flux)
    teff = np.array([labels["teff"] for _, labels in found])
    medium = _bosz_medium(axis, spectra, teff) if medium is None else check_medium(medium)
    vacuum = air_to_vacuum(axis) if medium == "air" else axis
    # the published wavelengths are rounded: equal neighbours are one pixel
    keep = np.concatenate([[True], np.diff(vacuum) > 0])
    if wavelength_range is not None:
        keep &= (vacuum >= wavelength_range[0]) & (vacuum <= wavelength_range[1])
    table = Table({"name": [_strip(file.name) for file, _ in found], "ebv": np.zeros(len(found))})
    renamed = {"c": "carbon", "micro": "microturbulence"}
    for key in ("teff", "logg", "feh", "alpha", "c", "micro"):
        table[renamed.get(key, key)] = [labels[key] for _, labels in found]
    meta = {
        "reference": "Bohlin et al. 2017, AJ 153, 234; Mészáros et al. 2024, A&A 688, A197", "source": str(folder),
        "flux_unit": "erg / (s cm2 Angstrom)", "medium_of_files": medium, "resolving_power": powers[0],
    }  # fmt: skip
    flux = np.stack([flux[keep] for flux in spectra])
    return Library("bosz", table, vacuum[keep], flux, fwhm=vacuum[keep] / powers[0], meta=meta)


def _bosz_medium(axis: np.ndarray, spectra: list[np.ndarray], teff: np.ndarray) -> str:
    warm = np.flatnonzero((teff >= 5000) & (teff <= 10000))
    told = line_medium(axis, spectra[warm[np.argmax(teff[warm])]]) if warm.size else None
    if told is None:
        warnings.warn(
            "the Balmer lines of these BOSZ models do not tell the medium of their wavelengths; vacuum is taken. Pass "
            "medium= to say which it is",
            LamostLSFWarning,
            stacklevel=4,
        )
        return "vacuum"
    return told[0]


def _strip(name: str) -> str:
    return re.sub(r"(\.fits|\.asc|\.txt)(\.gz|\.bz2)?$", "", name)


def _read_bosz_file(file: Path, top: Path, waves: dict[Path, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths (Angstrom, as in the file) and flux (erg/s/cm2/A at the surface) of one model."""
    if ".fits" in file.name:
        with damage(file, "library file"), fits.open(file) as hdus:
            data = {
                str(n).lower(): np.asarray(hdus[1].data[n], dtype=np.float64).ravel() for n in hdus[1].columns.names
            }
        missing = {"wavelength", "specificintensity"} - set(data)
        if missing:
            raise FormatError(f"{file}: no column {', '.join(sorted(missing))}; found {', '.join(data)}")
        return data["wavelength"], np.pi * data["specificintensity"]
    columns = _read_text(file)
    if file.name.startswith("bosz2024"):
        if columns.shape[1] == 3:
            return columns[:, 0], 4.0 * np.pi * columns[:, 1]
        wave = _bosz_wave(file, top, waves)
        if columns.shape[1] != 2 or len(columns) != wave.size:
            raise FormatError(
                f"{file}: {columns.shape[0]} rows of {columns.shape[1]} columns; expected H and continuum at "
                f"{wave.size} wavelengths"
            )
        return wave, 4.0 * np.pi * columns[:, 0]
    if columns.shape[1] < 2:
        raise FormatError(f"{file}: expected columns of wavelength, specific intensity and continuum")
    return columns[:, 0], np.pi * columns[:, 1]


def _read_text(file: Path) -> np.ndarray:
    opener: Any = {".bz2": bz2.open, ".gz": gzip.open}.get(file.suffix, open)
    with damage(file, "library file"), opener(file, "rt") as stream:
        return np.loadtxt(stream, ndmin=2)


def _bosz_wave(file: Path, top: Path, waves: dict[Path, np.ndarray]) -> np.ndarray:
    power = _BOSZ_2024.match(file.name)["power"]
    name = f"bosz2024_wave_r{power}.txt"
    for parent in (file.parent, *file.parents[1:3], top, top / "wavelength_grids"):
        path = parent / name
        if path not in waves and path.is_file():
            waves[path] = _read_text(path)[:, 0]
        if path in waves:
            return waves[path]
    raise FileNotFoundError(f"{file} has no wavelengths of its own: put {name} in its folder or one above")
