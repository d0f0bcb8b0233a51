"""Readers of observed libraries: MILES, CALSPEC, NGSL, MaStar, Pickles."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from lamost_lsf.errors import FormatError
from lamost_lsf.files import damage
from lamost_lsf.sed.libraries_base import Library
from lamost_lsf.sed.libraries_tables import common_grid, find_files, join_labels
from lamost_lsf.units import air_to_vacuum, check_medium, doppler_factor

__all__ = ["read_calspec", "read_mastar", "read_miles", "read_ngsl", "read_pickles"]

#: FWHM of MILES, Angstrom (Falcón-Barroso et al. 2011), where the files do not state their own.
MILES_FWHM = 2.51


def read_miles(folder: Path, *, labels: Table | str | os.PathLike | None = None) -> Library:
    """MILES: 3540-7410 A, FWHM 2.5 A, flux calibrated, corrected for reddening; air wavelengths, converted.

    Sánchez-Blázquez et al. 2006, Cenarro et al. 2007, Falcón-Barroso et al. 2011. Either an npz file ``miles*.npz`` of
    ``wave_air_A``, ``flux``, ``miles_id`` and ``teff_logg_feh``, or the library's own FITS files ``s0001.fits``;
    ``paramsMILES*.txt`` beside them holds names, types and labels.

    Parameters
    ----------
    folder : path
    labels : `~astropy.table.Table` or path, optional
        Labels by name that replace those of the library; E(B-V), for one, is not among these.

    Returns
    -------
    Library
        ``miles_id`` is an additional column. Pixels that are not positive are NaN.
    """
    archives = find_files(folder, "miles*.npz", required=False)
    params = find_files(folder, "paramsMILES*.txt", required=False, deep=True)
    known = _miles_params(params[0]) if params else {}
    if archives:
        path = archives[-1]
        with damage(path, "library file"), open(path, "rb") as file, np.load(file, allow_pickle=False) as npz:
            air, flux = npz["wave_air_A"].astype(np.float64), npz["flux"].astype(np.float32)
            ids, own = [str(i) for i in npz["miles_id"]], npz["teff_logg_feh"].astype(np.float64)
            width = float(npz["fwhm_A"]) if "fwhm_A" in npz.files else MILES_FWHM
        if flux.shape != (len(ids), air.size) or own.shape != (len(ids), 3):
            raise FormatError(f"{path}: arrays of shapes {flux.shape}, {own.shape} do not fit {len(ids)} stars")
    else:
        files = find_files(folder, "s[0-9][0-9][0-9][0-9].fits*", what="MILES spectrum", deep=True)
        read = [_miles_file(file) for file in files]
        air = read[0][0]
        if any(w.shape != air.shape or not np.allclose(w, air) for w, _ in read):
            raise FormatError(f"{folder}: the spectra are on different wavelengths")
        ids, flux = [file.name[1:5] for file in files], np.stack([f for _, f in read]).astype(np.float32)
        own, width = np.full((len(ids), 3), np.nan), MILES_FWHM
    rows = [known.get(i) or {"name": f"MILES {i}", "type": "", "labels": (np.nan,) * 3} for i in ids]
    value = np.where(np.isfinite(own), own, np.array([row["labels"] for row in rows]))
    table = Table({"name": [row["name"] for row in rows], "type": [row["type"] for row in rows], "miles_id": ids})
    for column, key in zip(value.T, ("teff", "logg", "feh"), strict=True):
        table[key] = column
    table = join_labels(table, labels)
    flux = np.where(flux > 0, flux, np.float32(np.nan))
    meta = {
        "reference": "Sánchez-Blázquez et al. 2006, MNRAS 371, 703; Cenarro et al. 2007, MNRAS 374, 664; "
        "Falcón-Barroso et al. 2011, A&A 532, A95",
        "flux_unit": "", "source": str(folder), "medium_of_files": "air", "dereddened": True,
    }  # fmt: skip
    return Library("miles", table, air_to_vacuum(air), flux, fwhm=width, meta=meta)


def _miles_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with damage(path, "library file"), fits.open(path) as hdus:
        header, flux = hdus[0].header, np.asarray(hdus[0].data, dtype=np.float64).ravel()
        step = header.get("CDELT1", header.get("CD1_1"))
        wavelength = header["CRVAL1"] + step * (np.arange(flux.size) + 1.0 - header.get("CRPIX1", 1.0))
    return wavelength, flux


def _miles_params(path: Path) -> dict[str, dict]:
    out = {}
    with damage(path, "library file"), open(path, encoding="latin-1") as file:
        for line in file:
            match = re.match(r"^(?P<name>.*?)\s+(?P<id>\d{4})(?=\s)(?P<rest>.*)$", line.rstrip("\n"))
            if not match:
                continue
            # the labels are the first three numbers after the type; a type such as "M5" is no number
            numbers = re.search(r"(?<!\S)(\d{4,5})\s+(-?\d+\.\d+)\s+(-?\d+\.\d+)", match["rest"])
            before = match["rest"][: numbers.start()] if numbers else match["rest"]
            before = re.sub(r"^\s+\d{3}(?=\s)", "", before)
            values = tuple(float(v) for v in numbers.groups()) if numbers else (np.nan,) * 3
            name = re.sub(r"\s+Cl$", "", match["name"]).strip()
            out[match["id"]] = {"name": " ".join(name.split()), "type": " ".join(before.split()), "labels": values}
    return out


# labels of the few A-G standards whose headers hold none
_CALSPEC_LABELS = {
    "alpha_lyr": (9550.0, 3.95, -0.5, 0.0, "Castelli & Kurucz 1994"),
    "sirius": (9850.0, 4.30, 0.4, 0.0, "Kurucz, special model"),
    "sun_reference": (5772.0, 4.44, 0.0, 0.0, "IAU 2015 resolution B3"),
    "bd_17d4708": (6141.0, 3.87, -1.74, 0.010, "Ramírez et al. 2006"),
}
# km/s, of the CALSPEC table of standards, for A-G stars whose headers hold none
_CALSPEC_VELOCITY = {
    "bd_17d4708": -291.0, "bd54d1216": 66.0, "hd14943": 5.0, "hd158485": -30.0, "hd160617": 100.0, "hd163466": -16.0,
}  # fmt: skip
_CALSPEC_MODEL = re.compile(r"Teff,log ?g,log ?z,E\(B-V\)\s*=\s*([\d.]+)\s+(-?[\d.]+)\s+(-?[\d.]+)\s+(-?[\d.]+)")


def read_calspec(
    folder: Path,
    *,
    wavelength_range: tuple[float, float] = (2500.0, 10500.0),
    step: float = 1.0,
    labels: Table | str | os.PathLike | None = None,
) -> Library:
    """CALSPEC: HST/STIS spectral energy distributions of flux standards; vacuum, R = 500-1100, not dereddened.

    Bohlin, Gordon & Tremblay 2014. The files are on grids of their own, two pixels per resolution element, and as
    observed; they are brought to rest, by the velocity in their header or, for six stars, in CALSPEC's table, and to
    one grid by cubic splines.

    Labels are those of the BOSZ models that Bohlin et al. (2017) fitted to the very spectra, as the files' headers give
    them, for about 50 A to G stars; the Sun, Vega, Sirius and BD+17 4708 have theirs from the literature (column
    ``label_source``). Other stars, white dwarfs above all, have none. Types are those of ``calspec_info.txt``, where
    that is in the folder.

    Parameters
    ----------
    folder : path
    wavelength_range : tuple of float
        Vacuum Angstrom.
    step : float
        Pixel of the common grid, Angstrom. The STIS pixels are 1.4 A below 3060, 2.7 A to 5650 and 4.9 A above.
    labels : `~astropy.table.Table` or path, optional
        Labels by name that replace those.

    Returns
    -------
    Library
        Additional columns: ``file``, ``label_source``, ``velocity`` (km/s, NaN where unknown; taken off) and
        ``model_from``, the wavelength (Angstrom) from which on the
        file holds a model and no observation (NaN: none). ``fwhm`` is that of the three STIS gratings, two pixels;
        other instruments (beyond 10,000 A; the ultraviolet of a few hot stars) and the Sun (10-20 A) are coarser.
    """
    low, high = (float(w) for w in wavelength_range)
    if not (0 < low < high and step > 0):
        raise ValueError(f"wavelength_range must increase and step be positive, got {wavelength_range}, {step}")
    files = find_files(folder, "*_*.fits*", what="CALSPEC spectrum")
    types = _calspec_types(Path(folder) / "calspec_info.txt")
    grid = np.arange(low, high + 0.5 * step, step)
    rows, flux = [], []
    for file in files:
        read = _calspec_file(file)
        if read is None:
            continue
        wavelength, value, row = read
        key = _calspec_key(file.name)
        row["name"], row["type"] = types.get(key, (key, "G2V" if key == "sun_reference" else ""))
        rows.append(row)
        flux.append(common_grid(grid, wavelength, value))
    if not rows:
        raise FileNotFoundError(f"no CALSPEC spectrum in {folder}")
    table = join_labels(Table(rows=rows, names=list(rows[0])), labels)
    meta = {
        "reference": "Bohlin et al. 2014, PASP 126, 711; labels: Bohlin et al. 2017, AJ 153, 234",
        "source": str(folder), "flux_unit": "erg / (s cm2 Angstrom)", "medium_of_files": "vacuum", "dereddened": False,
    }  # fmt: skip
    return Library("calspec", table, grid, np.stack(flux), fwhm=_stis_width(grid), meta=meta)


def _calspec_key(filename: str) -> str:
    return re.sub(r"_(stis|fos|nic)[a-z]*_.*$", "", filename.lower())


def _calspec_types(path: Path) -> dict[str, tuple[str, str]]:
    """Name and spectral type by file, from the fixed columns of calspec_info.txt."""
    if not path.is_file():
        return {}
    out, columns = {}, None
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("---"):
            columns = [(m.start(), m.end()) for m in re.finditer(r"-+", line)]
        elif columns and line.strip():
            cells = [line[a:b].strip() for a, b in columns]
            # "GOV" of P041C is a misprint of G0V
            out[_calspec_key(cells[0])] = (cells[1], re.sub(r"^GO", "G0", cells[5]))
    return out


def _calspec_file(path: Path) -> tuple[np.ndarray, np.ndarray, dict] | None:
    with damage(path, "library file"), fits.open(path) as hdus:
        names = [str(name).upper() for name in hdus[1].columns.names]
        if not {"WAVELENGTH", "FLUX"} <= set(names) or np.ndim(hdus[1].data["WAVELENGTH"]) != 1:
            return None  # an extension file of another layout
        data = {key: np.asarray(hdus[1].data[key], dtype=np.float64) for key in ("WAVELENGTH", "FLUX")}
        history = "\n".join(str(card) for card in hdus[0].header.get("HISTORY", []))
    wavelength, flux = data["WAVELENGTH"], data["FLUX"]
    flux = np.where(flux > 0, flux, np.nan)
    models = re.findall(r"^\s*(\d{4,5})\s+\d{4,7}\s+.*[Mm]odel", history, flags=re.MULTILINE)
    red = [float(start) for start in models if float(start) > 5000]
    label = _CALSPEC_MODEL.search(history)
    key = _calspec_key(path.name)
    if label and "Bohlin" in history:
        values = (*(float(v) for v in label.groups()), "Bohlin et al. 2017")
    else:
        values = _CALSPEC_LABELS.get(key, (np.nan, np.nan, np.nan, np.nan, ""))
    told = re.search(r"radial vel\s*=\s*(-?[\d.]+)", history)
    velocity = float(told[1]) if told else _CALSPEC_VELOCITY.get(key, np.nan)
    wavelength = wavelength / doppler_factor(np.nan_to_num(velocity))
    row = {"name": "", "type": "", **dict(zip(("teff", "logg", "feh", "ebv", "label_source"), values, strict=True))}
    return wavelength, flux, {**row, "file": path.name, "velocity": velocity, "model_from": min(red, default=np.nan)}


def read_ngsl(
    folder: Path,
    *,
    labels: Table | str | os.PathLike | None = None,
    medium: str = "air",
    wavelength_range: tuple[float, float] = (1675.0, 10200.0),
    step: float = 1.0,
) -> Library:
    """NGSL, version 2: HST/STIS spectra of some 370 stars, 1670-10,250 A, R of about 1000 (Heap & Lindler).

    FITS tables ``h_stis_ngsl_<star>_v2.fits`` with the columns ``WAVELENGTH`` and ``FLUX``. The archive holds neither
    labels nor reddening: those of Koleva & Vazdekis (2012), say, are given by ``labels``.

    Parameters
    ----------
    folder : path
        Searched with its subfolders.
    labels : `~astropy.table.Table` or path, optional
        Labels by name: ``name``, ``teff``, ``logg``, ``feh``, ``ebv``.
    medium : {"air", "vacuum"}
        Of the files' wavelengths. Version 2 agrees with air wavelengths, to within a residual of up to 1 A in G430L.
    wavelength_range : tuple of float
        Vacuum Angstrom.
    step : float
        Pixel of the common grid, Angstrom.
    """
    files = find_files(folder, "*stis_ngsl_*.fits*", what="NGSL spectrum", deep=True)
    check_medium(medium)
    grid = np.arange(wavelength_range[0], wavelength_range[1] + 0.5 * step, step)
    names, flux = [], []
    for file in files:
        with damage(file, "library file"), fits.open(file) as hdus:
            data = {
                str(n).upper(): np.asarray(hdus[1].data[n], dtype=np.float64).ravel() for n in hdus[1].columns.names
            }
        if not {"WAVELENGTH", "FLUX"} <= set(data):
            raise FormatError(f"{file}: no columns WAVELENGTH and FLUX; found {', '.join(data)}")
        wavelength = air_to_vacuum(data["WAVELENGTH"]) if medium == "air" else data["WAVELENGTH"]
        if np.any(np.diff(wavelength) <= 0):
            raise FormatError(f"{file}: the wavelengths do not increase")
        names.append(re.sub(r"^.*stis_ngsl_|_v\d+\.fits(\.gz)?$", "", file.name))
        flux.append(common_grid(grid, wavelength, np.where(data["FLUX"] > 0, data["FLUX"], np.nan)))
    table = join_labels(Table({"name": names}), labels)
    meta = {
        "reference": "Heap & Lindler 2007; Koleva & Vazdekis 2012, A&A 538, A143", "source": str(folder),
        "flux_unit": "erg / (s cm2 Angstrom)", "medium_of_files": medium, "dereddened": False,
    }  # fmt: skip
    return Library("ngsl", table, grid, np.stack(flux), fwhm=_stis_width(grid), meta=meta)


def _stis_width(wavelength: np.ndarray) -> np.ndarray:
    """FWHM, Angstrom, of STIS' G230LB, G430L and G750L: two pixels, the gratings joined over some 60 A."""
    out = np.full(wavelength.size, 2.74)
    for join, width in ((3065.0, 5.49 - 2.74), (5650.0, 9.76 - 5.49)):
        out += width / (1.0 + np.exp(-(wavelength - join) / 15.0))
    return out


def read_mastar(folder: Path, *, labels: Table | str | os.PathLike | None = None) -> Library:
    """MaStar, hierarchically clustered (version 2): 65 mean spectra, 3620-10,320 A, vacuum, R of about 1800.

    Files ``MaStarHC_<n>.fits`` of the MaNGA data analysis pipeline (Westfall et al. 2019): flux, inverse variance and
    spectral resolution on a logarithmic grid. They hold no labels.
    """
    files = find_files(folder, "MaStarHC_*.fits*", what="MaStar spectrum")
    flux, widths, axis = [], [], None
    for file in files:
        with damage(file, "library file"), fits.open(file) as hdus:
            header, value = hdus[0].header, np.asarray(hdus[0].data, dtype=np.float64)
            step = header.get("CDELT1", header.get("CD1_1"))
            wavelength = 10.0 ** (header["CRVAL1"] + step * (np.arange(value.size) + 1.0 - header.get("CRPIX1", 1.0)))
            ivar, power = (np.asarray(hdus[key].data, dtype=np.float64) for key in ("IVAR", "SRES"))
        if axis is None:
            axis = wavelength
        elif axis.shape != wavelength.shape or not np.allclose(axis, wavelength, rtol=1e-9):
            raise FormatError(f"{file}: on another wavelength grid than {files[0].name}")
        flux.append(np.where((ivar > 0) & np.isfinite(value), value, np.nan))
        widths.append(wavelength / np.where(power > 0, power, np.nan))
    table = join_labels(Table({"name": [file.name.split(".")[0] for file in files]}), labels)
    meta = {
        "reference": "Yan et al. 2019, ApJ 883, 175; Westfall et al. 2019, AJ 158, 231", "source": str(folder),
        "flux_unit": "", "medium_of_files": "vacuum", "dereddened": True,
    }  # fmt: skip
    return Library("mastar", table, axis, np.stack(flux), fwhm=np.stack(widths), meta=meta)


def read_pickles(folder: Path, *, medium: str = "air", labels: Table | str | os.PathLike | None = None) -> Library:
    """Pickles (1998): 131 mean spectra by type and luminosity class, 1150-10,620 A in steps of 5 A, R of about 500.

    ``pickles.fits`` lists the files and their types; a leading "w" or "r" of a type, kept in the column ``metallicity``
    as "weak" or "rich", tells the metal-weak and metal-rich ones.

    Parameters
    ----------
    folder : path
    medium : {"air", "vacuum"}
        Of the files' wavelengths: ten A to K dwarfs lie 1.1 A (median) short of vacuum, by cross-correlation.
    labels : `~astropy.table.Table` or path, optional
        Labels by name, which is that of the file: "pickles_9".
    """
    index = find_files(folder, "pickles.fits*", what="list of Pickles' files (pickles.fits)")[0]
    with damage(index, "library file"), fits.open(index) as hdus:
        names = [str(name).strip() for name in hdus[1].data["FILENAME"]]
        types = [str(kind).strip() for kind in hdus[1].data["SPTYPE"]]
    flux, axis = [], None
    for name in names:
        file = find_files(folder, f"{name}.fits*", what="Pickles spectrum")[0]
        with damage(file, "library file"), fits.open(file) as hdus:
            wavelength = np.asarray(hdus[1].data["WAVELENGTH"], dtype=np.float64)
            value = np.asarray(hdus[1].data["FLUX"], dtype=np.float64)
        if axis is None:
            axis = wavelength
        elif axis.shape != wavelength.shape or not np.allclose(axis, wavelength):
            raise FormatError(f"{file}: on another wavelength grid than the first")
        flux.append(value)
    metallicity = [{"w": "weak", "r": "rich"}.get(kind[0], "solar") for kind in types]
    table = Table({"name": names, "type": [kind.lstrip("wr") for kind in types], "metallicity": metallicity})
    table = join_labels(table, labels)
    vacuum = air_to_vacuum(axis) if check_medium(medium) == "air" else axis
    meta = {
        "reference": "Pickles 1998, PASP 110, 863", "flux_unit": "erg / (s cm2 Angstrom)", "source": str(folder),
        "medium_of_files": medium, "dereddened": True,
    }  # fmt: skip
    return Library("pickles", table, vacuum, np.stack(flux), fwhm=vacuum / 500.0, meta=meta)
