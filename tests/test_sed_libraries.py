"""Stellar libraries: what their files say, in vacuum, with labels; files of the archives' formats; downloads."""

import bz2
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from typing import ClassVar

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.special import erf

from lamost_lsf.errors import FormatError, LamostLSFWarning
from lamost_lsf.sed.libraries import LIBRARIES, Library, line_medium, read_library
from lamost_lsf.sed.libraries_models import bosz_labels
from lamost_lsf.sed.libraries_tables import join_labels, star_key
from lamost_lsf.units import air_to_vacuum, vacuum_to_air

HALPHA, HBETA = air_to_vacuum(np.array([6562.79, 4861.35]))


# -- the libraries of the data folder ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(data_dir):
    return data_dir


@pytest.fixture(scope="module")
def miles(folder):
    return read_library("miles", folder / "templates/miles")


@pytest.fixture(scope="module")
def calspec(folder):
    return read_library("calspec", folder / "sed/calspec")


def test_miles_has_864_stars_in_vacuum(miles):
    assert len(miles) == 864
    assert len(miles.select(teff=(5000, 9750))) == 450
    assert miles.wavelength[0] == pytest.approx(float(air_to_vacuum(3540.5)), abs=1e-9)
    assert np.all(miles.fwhm == 2.5)
    warm = miles.select(teff=(7000, 9000))
    told = [line_medium(miles.wavelength, flux) for flux in warm.flux]
    fractions = [one[1] for one in told if one is not None]
    assert len(fractions) > 0.8 * len(warm)
    assert abs(np.median(fractions)) < 0.1  # 1 would be air
    row = miles.table[list(miles.table["name"]).index("HD062301")]
    assert (row["miles_id"], row["type"], row["teff"], row["logg"], row["feh"]) == ("0274", "F8V", 5880.0, 4.16, -0.69)
    assert np.all(~(miles.flux <= 0))


def test_names_and_labels_of_miles_come_from_its_table(miles):
    table = miles.table
    assert np.sum(np.char.startswith(np.asarray(table["name"]), "HD")) > 600
    assert "M92 III 13" in table["name"]
    assert len(set(table["miles_id"])) == 864
    known = miles.labelled
    assert 800 < known.sum() < 864
    assert np.all((table["teff"][known] > 2500) & (table["teff"][known] < 40000))


def test_calspec_has_labels_of_its_headers_and_types_of_its_list(calspec):
    table = calspec.table
    stars = calspec.select(types=("A", "F", "G", "sdF"))
    assert len(stars) >= 46
    assert stars.labelled.mean() > 0.95
    row = table[list(table["name"]).index("HD163466")]
    assert (row["type"], row["teff"], row["logg"], row["feh"], row["ebv"]) == ("A6V", 7880.0, 3.65, -0.32, 0.018)
    assert row["label_source"] == "Bohlin et al. 2017"
    assert row["model_from"] == 10120.0
    assert not np.any(calspec[np.char.startswith(np.asarray(table["type"]), "D")].labelled)
    sun = calspec.spectrum("sun_reference")
    assert sun.meta["teff"] == 5772.0


@pytest.mark.parametrize(("name", "velocity"), [("BD+02 3375", -398.0), ("BD+17 4708", -291.0), ("BD+21 0607", 340.0)])
def test_calspec_is_at_rest(folder, calspec, name, velocity):
    """Fast stars: their H beta and H alpha lie where those of others do, not 5 to 9 A away."""
    row = list(calspec.table["name"]).index(name)
    assert calspec.table["velocity"][row] == velocity
    flux = calspec.flux[row]
    for line, half in ((HBETA, 9.0), (HALPHA, 15.0)):
        near = np.abs(calspec.wavelength - line) < half
        w, f = calspec.wavelength[near], flux[near]
        depth = 1 - f / np.interp(w, w[[0, -1]], f[[0, -1]])
        assert np.sum(w * depth) / np.sum(depth) == pytest.approx(line, abs=1.5)


def test_calspec_is_on_its_flux_scale(calspec):
    """Vega: 3.44e-9 erg/s/cm2/A at 5556 A, the flux on which the scale rests (Bohlin 2014), within 2 %."""
    vega = calspec.spectrum("ALPHA LYR")
    near = np.abs(vega.spectral_axis.value - 5556.0) < 10
    assert vega.flux[near].mean().to_value("erg / (s cm2 AA)") == pytest.approx(3.44e-9, rel=0.02)


def test_splines_keep_what_calspec_measured(folder, calspec):
    with fits.open(folder / "sed/calspec/hd2811_stis_004.fits.gz") as hdus:
        data = hdus[1].data
        wavelength, flux = data["WAVELENGTH"].astype(float), data["FLUX"].astype(float)
    assert calspec.table["velocity"][list(calspec.table["name"]).index("HD2811")] == 0.0
    own = calspec.flux[list(calspec.table["name"]).index("HD2811")]
    for low, high in ((2600, 3000), (4000, 5000), (6000, 9500)):
        part = (wavelength > low) & (wavelength < high)
        # the flux of a band, by the trapezium rule on either grid
        expected = trapezoid(flux[part], wavelength[part])
        grid = calspec.wavelength
        inner = np.linspace(wavelength[part][0], wavelength[part][-1], 20001)
        assert trapezoid(np.interp(inner, grid, own), inner) == pytest.approx(expected, rel=1e-3)


def test_redrock_is_coefficients_times_basis(folder):
    whole = read_library("redrock", folder / "templates/redrock", types="FG")
    with fits.open(folder / "templates/redrock/rrtemplate-STAR-G-v0.1.fits") as hdus:
        expected = hdus[1].data[17] @ hdus[0].data
    spectrum = whole.spectrum("G-17")
    np.testing.assert_allclose(spectrum.flux.value, expected, rtol=1e-12)
    assert spectrum.spectral_axis[-1].value == pytest.approx(11000.0)
    assert len(whole) == 1705 + 955
    kept = read_library("redrock", folder / "templates/redrock", types="G", positive=(3050, 10500))
    assert 0.8 * 955 < len(kept) < 955
    assert np.all(kept[:50].crop(3050, 10500).flux > 0)
    dropped = {f"G-{i}" for i in range(955)} - set(kept.table["name"])
    name = sorted(dropped)[0]
    flux = whole[np.asarray(whole.table["name"]) == name].crop(3050, 10500).flux
    assert flux.min() <= 0


@pytest.mark.parametrize(("name", "where"), [("redrock", "templates/redrock"), ("phoenix", "templates/phoenix")])
def test_theoretical_stars_are_in_vacuum(folder, name, where):
    library = read_library(name, folder / where, **({"types": "AF"} if name == "redrock" else {}))
    for flux in library[:: max(1, len(library) // 20)].flux:
        medium, fraction = line_medium(library.wavelength, flux)
        assert (medium, abs(fraction) < 0.15) == ("vacuum", True)


def test_mastar_and_pickles(folder):
    mastar = read_library("mastar", folder / "templates/mastarhc_v2")
    assert len(mastar) == 65
    power = mastar.wavelength / mastar.fwhm
    assert 1300 < np.nanmin(power) < np.nanmax(power) < 2500
    told = [line_medium(mastar.wavelength, flux) for flux in mastar.flux]
    assert np.median([one[1] for one in told if one]) < 0.2
    pickles = read_library("pickles", folder / "sed/pickles")
    assert len(pickles) == 131
    row = pickles.table[list(pickles.table["name"]).index("pickles_17")]
    assert (row["type"], row["metallicity"]) == ("F5V", "weak")
    in_air = read_library("pickles", folder / "sed/pickles", medium="vacuum").wavelength
    np.testing.assert_allclose(pickles.wavelength, air_to_vacuum(in_air), rtol=1e-12)


# -- the files of MAST ------------------------------------------------------------------------------------------


def model_star(wavelength, teff=8000.0, medium="vacuum"):
    """Continuum and Balmer lines in the medium."""
    continuum = 1e6 * (wavelength / 5000.0) ** (-teff / 2500.0)
    lines = vacuum_to_air(np.array([HALPHA, HBETA])) if medium == "air" else np.array([HALPHA, HBETA])
    depth = sum(0.6 * np.exp(-0.5 * ((wavelength - line) / 5.0) ** 2) for line in lines)
    return continuum * (1 - depth), continuum


GRID = np.exp(np.arange(np.log(1000.0), np.log(20000.0), 1 / 4000))


def write_2017(folder, medium="vacuum", kind="fits"):
    for teff, tag in ((6000, "m13"), (8000, "p00")):
        flux, continuum = model_star(GRID, teff, medium)
        name = f"am{tag}cp00op00t{teff}g45v20modrt0b2000rs"
        if kind == "fits":
            columns = {"Wavelength": GRID, "SpecificIntensity": flux / np.pi, "Continuum": continuum / np.pi}
            hdu = fits.BinTableHDU(Table(columns))
            hdu.writeto(folder / f"{name}.fits")
        else:
            text = io.StringIO()
            np.savetxt(text, np.column_stack([GRID, flux / np.pi, continuum / np.pi]))
            (folder / f"{name}.asc.bz2").write_bytes(bz2.compress(text.getvalue().encode()))


def write_2024(folder, medium="air"):
    np.savetxt(folder / "bosz2024_wave_r2000.txt", GRID)
    below = folder / "m-0.50"
    below.mkdir()
    for teff, kind in ((6000, "mp"), (9000, "ap")):
        flux, continuum = model_star(GRID, teff, medium)
        text = io.StringIO()
        np.savetxt(text, np.column_stack([flux, continuum]) / (4 * np.pi))
        name = f"bosz2024_{kind}_t{teff}_g+4.5_m-0.50_a+0.25_c+0.00_v2_r2000_resam.txt.gz"
        (below / name).write_bytes(gzip.compress(text.getvalue().encode()))


@pytest.mark.parametrize("kind", ["fits", "asc"])
def test_bosz_of_2017(tmp_path, kind):
    write_2017(tmp_path, kind=kind)
    library = read_library("bosz", tmp_path, wavelength_range=(3000, 10500))
    assert library.table["feh"].tolist() == [-1.25, 0.0]
    assert library.table["teff"].tolist() == [6000.0, 8000.0]
    assert library.table["logg"].tolist() == [4.5, 4.5]
    expected, _ = model_star(library.wavelength, 8000)
    np.testing.assert_allclose(library.flux[1], expected, rtol=1e-6)
    np.testing.assert_allclose(library.wavelength / library.fwhm, 2000.0)
    assert library.meta["medium_of_files"] == "vacuum"


@pytest.mark.parametrize("medium", ["air", "vacuum"])
def test_bosz_of_2024_and_the_medium_of_its_lines(tmp_path, medium):
    write_2024(tmp_path, medium)
    library = read_library("bosz", tmp_path)
    assert library.meta["medium_of_files"] == medium
    np.testing.assert_allclose(library.wavelength, air_to_vacuum(GRID) if medium == "air" else GRID, rtol=1e-12)
    line = np.abs(library.wavelength - HALPHA) < 20
    assert library.wavelength[line][np.argmin(library.flux[0][line])] == pytest.approx(HALPHA, abs=1.7)
    assert library.table["alpha"].tolist() == [0.25, 0.25]
    expected, _ = model_star(GRID, 6000, medium)
    np.testing.assert_allclose(library.flux[list(library.table["teff"]).index(6000.0)], expected, rtol=1e-6)


def test_bosz_without_lines_warns_and_takes_vacuum(tmp_path):
    np.savetxt(tmp_path / "bosz2024_wave_r500.txt", GRID)
    name = "bosz2024_ap_t12000_g+4.5_m+0.00_a+0.00_c+0.00_v2_r500_resam.txt"
    np.savetxt(tmp_path / name, np.ones((GRID.size, 2)))
    with pytest.warns(LamostLSFWarning, match="Pass medium="):
        assert read_library("bosz", tmp_path).meta["medium_of_files"] == "vacuum"
    assert read_library("bosz", tmp_path, medium="air").meta["medium_of_files"] == "air"


def test_labels_in_the_names_of_bosz():
    grid = np.arange(-2.5, 0.51, 0.25)
    for feh in grid:
        tag = ("m" if feh < 0 else "p") + f"{int(abs(feh) * 10 + 0.5):02d}"
        assert bosz_labels(f"am{tag}cm03op05t10500g05v20modrt0b500rs.asc.bz2")["feh"] == feh
    labels = bosz_labels("amm13cm03op05t10500g05v20modrt0b500rs.fits")
    assert (labels["c"], labels["alpha"], labels["logg"], labels["resolving_power"]) == (-0.25, 0.5, 0.5, 500.0)
    assert bosz_labels("notes.txt") is None


def test_bosz_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no BOSZ models"):
        read_library("bosz", tmp_path)
    write_2024(tmp_path)
    (tmp_path / "bosz2024_wave_r2000.txt").rename(tmp_path / "elsewhere.txt")
    with pytest.raises(FileNotFoundError, match=r"put bosz2024_wave_r2000\.txt"):
        read_library("bosz", tmp_path)
    np.savetxt(tmp_path / "bosz2024_wave_r2000.txt", GRID[:-1])
    with pytest.raises(FormatError, match="expected H and continuum"):
        read_library("bosz", tmp_path)
    (tmp_path / "amp00cp00op00t6000g45v20modrt0b500rs.fits").write_text("damaged")
    with pytest.raises(FormatError, match="one resolution at a time"):
        read_library("bosz", tmp_path)


def test_ngsl(tmp_path):
    below = tmp_path / "stis_ngsl_v2"
    below.mkdir()
    air = np.arange(1670.0, 10250.0, 1.37)
    for name, teff in (("hd000245", 5800), ("bd17d4708", 6100)):
        flux, _ = model_star(air, teff, "air")
        Table({"WAVELENGTH": air, "FLUX": flux}).write(below / f"h_stis_ngsl_{name}_v2.fits")
    labels = Table({"Name": ["HD 245", "BD+17 4708"], "Teff": [5800, 6141], "logg": [4.3, 3.87], "FeH": [-0.6, -1.7]})
    hidden = tmp_path / ".stis_ngsl_v2.zip.x1"
    hidden.mkdir()
    (hidden / "h_stis_ngsl_hd000245_v2.fits").write_text("left by a killed unpacking")
    (below / "._h_stis_ngsl_hd000245_v2.fits").write_text("of an archiver")
    library = read_library("ngsl", tmp_path, labels=labels)
    assert library.table["name"].tolist() == ["bd17d4708", "hd000245"]
    assert library.table["teff"].tolist() == [6141.0, 5800.0]
    assert library.labelled.all()
    line = np.abs(library.wavelength - HALPHA) < 20
    assert library.wavelength[line][np.argmin(library.flux[1][line])] == pytest.approx(HALPHA, abs=0.6)
    expected, _ = model_star(vacuum_to_air(library.wavelength), 5800, "air")
    np.testing.assert_allclose(library.flux[1][10:-10], expected[10:-10], rtol=2e-3)
    with pytest.raises(ValueError, match="no star in common"):
        read_library("ngsl", tmp_path, labels=Table({"name": ["Sun"], "teff": [5772.0]}))


def test_miles_as_published(tmp_path):
    """FITS files of one row and the fixed-width list of stars."""
    air = 3540.5 + 0.9 * np.arange(4300)
    for number, teff in ((1, 8000), (274, 6000)):
        flux, _ = model_star(air, teff, "air")
        hdu = fits.PrimaryHDU(flux[None].astype(np.float32))
        hdu.header["CRVAL1"], hdu.header["CDELT1"], hdu.header["CRPIX1"] = air[0], 0.9, 1.0
        hdu.writeto(tmp_path / f"s{number:04d}.fits")
    (tmp_path / "paramsMILES_v9.1.txt").write_text(
        "Name                  MILES   CaT   SpT            Teff   log g   [Fe/H]  Refs   Libraries\n"
        "HD224930              0001   683   G3 V            5305   4.49    -0.75   111   L\n"
        "HD062301               0274         F8V             5880   4.16    -0.69   222         I\n"
    )
    library = read_library("miles", tmp_path)
    assert library.table["name"].tolist() == ["HD224930", "HD062301"]
    assert library.table["type"].tolist() == ["G3 V", "F8V"]
    assert library.table["teff"].tolist() == [5305.0, 5880.0]
    assert line_medium(library.wavelength, library.flux[0])[0] == "vacuum"
    # 2.51 A here and 2.5 A in other files of the library: one request serves both
    assert np.all(library.fwhm == 2.51)
    lower = library.degrade(np.geomspace(4000, 7000, 2000), fwhm=lambda w: np.maximum(2.5, w / 2000))
    inside = (library.wavelength > 4050) & (library.wavelength < 4800)
    spline = np.interp(library.wavelength[inside], lower.wavelength, lower.flux[0])
    np.testing.assert_allclose(spline, library.flux[0][inside], rtol=1e-3)
    with pytest.raises(ValueError, match=r"cannot be brought to 2\.48"):
        library.degrade(np.geomspace(4000, 7000, 2000), fwhm=2.48)


# -- the library itself -----------------------------------------------------------------------------------------


def simple(n=3, **options):
    table = Table(
        {"name": [f"s{i}" for i in range(n)], "teff": 5000.0 + 1000 * np.arange(n), "type": ["A0V", "F5V", "G2V"][:n]}
    )
    wavelength = np.arange(4000.0, 7000.0, 0.5)
    return Library("mine", table, wavelength, np.ones((n, wavelength.size)), **options)


def test_a_library_is_cut_by_stars_and_pixels():
    library = simple(fwhm=np.linspace(1, 2, 6000))
    assert library[[2, 0]].table["name"].tolist() == ["s2", "s0"]
    assert len(library[library.table["teff"] > 5500]) == 2
    assert library.select(types="FG", teff=(5000, 6500)).table["name"].tolist() == ["s1"]
    part = library.crop(5000, 5999.9)
    assert part.flux.shape == (3, 2000)
    assert part.fwhm.shape == (2000,)
    with pytest.raises(KeyError, match="0 stars named"):
        library.spectrum("none")
    with pytest.raises(TypeError, match=r"\.spectrum"):
        library[0]
    with pytest.raises(ValueError, match="no column 'mass'"):
        library.select(mass=(0, 1))
    with pytest.raises(ValueError, match="no pixels"):
        library.crop(1, 2)
    with pytest.raises(ValueError, match="must be a range"):
        library.select(teff=(2, 1))


def test_bad_libraries_are_refused():
    table, wavelength = Table({"name": ["a"]}), np.arange(10.0, 20.0)
    with pytest.raises(ValueError, match="positive and increase"):
        Library("x", table, wavelength[::-1], np.ones((1, 10)))
    with pytest.raises(ValueError, match="expected \\(1, 10\\)"):
        Library("x", table, wavelength, np.ones((2, 10)))
    with pytest.raises(ValueError, match="either flux, or coefficients and basis"):
        Library("x", table, wavelength)
    with pytest.raises(ValueError, match="do not fit"):
        Library("x", table, wavelength, coefficients=np.ones((1, 3)), basis=np.ones((2, 10)))
    with pytest.raises(ValueError, match="column 'name'"):
        Library("x", Table({"star": ["a"]}), wavelength, np.ones((1, 10)))
    with pytest.raises(ValueError, match="fwhm has shape"):
        Library("x", table, wavelength, np.ones((1, 10)), fwhm=np.ones(3))


def test_wrong_names_and_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no library 'xsl'; choose from bosz"):
        read_library("xsl", tmp_path)
    with pytest.raises(ValueError, match="no option colour; it has labels"):
        read_library("miles", tmp_path, colour="red")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_library("miles", tmp_path / "none")
    for name in LIBRARIES:
        with pytest.raises(FileNotFoundError):
            read_library(name, tmp_path)
    (tmp_path / "miles_v9.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(FormatError, match="not a readable library file"):
        read_library("miles", tmp_path)


# -- resolution -------------------------------------------------------------------------------------------------


def gauss(x, fwhm):
    s = fwhm / 2.3548200450309493
    return np.exp(-0.5 * (x / s) ** 2) / (np.sqrt(2 * np.pi) * s)


@pytest.mark.parametrize("own", [None, 2.5])
def test_a_line_gets_the_width_that_is_asked_for(own):
    wavelength = np.arange(4000.0, 7000.0, 0.9)
    start = own or 0.0
    lines = (4500.0, 5500.0, 6500.0)
    flux = 1.0 + sum(3.0 * gauss(wavelength - line, np.hypot(start, 1e-9) if own else 2.2) for line in lines)
    library = Library("x", Table({"name": ["a"]}), wavelength, flux[None], fwhm=own)
    axis = np.linspace(4100, 6900, 20000)
    out = library.degrade(axis * u.AA, resolving_power=1000)
    for line in lines:
        narrow = own if own else 2.2
        width = line / 1000 if own else np.hypot(line / 1000, narrow)
        near = np.abs(axis - line) < 15
        expected = 1 + 3 * gauss(axis[near] - line, width)
        # the width changes across the line: 1 % of its height
        np.testing.assert_allclose(out.flux[0, near], expected, atol=0.012 * expected.max())
        area = trapezoid(out.flux[0, near] - 1, axis[near])
        assert area == pytest.approx(3 * erf(15 / (width / 2.3548 * np.sqrt(2))), rel=2e-3)
    np.testing.assert_allclose(out.fwhm, axis / 1000)


def test_the_own_width_is_kept_where_it_is_the_target():
    """MILES below 5000 A: max(2.5 A, lambda / 2000) is what it has."""
    wavelength = np.arange(4000.0, 7000.0, 0.9)
    lines = np.array([4300.0, 4800.0, 5400.0, 6600.0])
    flux = 1 + sum(2 * gauss(wavelength - line, 2.5) for line in lines)
    library = Library("x", Table({"name": ["a"]}), wavelength, flux[None], fwhm=2.5)
    axis = np.linspace(4100, 6900, 28001)
    out = library.degrade(axis, fwhm=lambda w: np.maximum(2.5, w / 2000)).flux[0]
    for line in lines:
        near = np.abs(axis - line) < 6
        expected = 1 + 2 * gauss(axis[near] - line, max(2.5, line / 2000))
        np.testing.assert_allclose(out[near], expected, atol=0.02 * (expected.max() - 1))
    with pytest.raises(ValueError, match=r"has FWHM 2.50 A .* cannot be brought to 2.0"):
        library.degrade(axis, resolving_power=2000)
    with pytest.raises(ValueError, match="give one of"):
        library.degrade(axis)


def test_a_basis_is_degraded_as_its_stars_are():
    rng = np.random.default_rng(0)
    wavelength = np.arange(4000.0, 4400.0, 0.1)
    basis, coefficients = rng.standard_normal((3, wavelength.size)), rng.standard_normal((5, 3))
    table = Table({"name": list("abcde")})
    one = Library("x", table, wavelength, coefficients=coefficients, basis=basis)
    two = Library("x", table, wavelength, coefficients @ basis)
    axis = np.arange(4050.0, 4350.0, 1.0)
    results = [library.degrade(axis, resolving_power=1800).flux for library in (one, two)]
    np.testing.assert_allclose(*results, atol=1e-12)
    np.testing.assert_array_equal(one[[1, 3]].flux, two.flux[[1, 3]])


def test_degraded_spectra_are_nan_beyond_the_coverage():
    library = simple()
    out = library.degrade(np.array([3900.0, 4001.0, 4100.0, 6900.0, 7100.0]), resolving_power=500)
    np.testing.assert_array_equal(np.isnan(out.flux[0]), [True, True, False, False, True])
    np.testing.assert_allclose(out.flux[0, 2:4], 1.0, rtol=1e-9)


def test_gaps_of_a_star_grow_by_the_kernel():
    library = simple()
    flux = library.flux.copy()
    flux[1, 2000] = np.nan
    out = Library("x", library.table, library.wavelength, flux).degrade(np.arange(4900.0, 5100.0), resolving_power=500)
    assert np.isnan(out.flux[1, 100])
    assert np.isfinite(out.flux[[0, 2]]).all()
    assert np.isfinite(out.flux[1, :60]).all()


@settings(max_examples=20, deadline=None)
@given(power=st.floats(150, 1500), scale=st.floats(1e-12, 1e12))
def test_constants_stay_constant_and_flux_scales(power, scale):
    library = simple(fwhm=2.0)
    rng = np.random.default_rng(1)
    flux = rng.uniform(0.5, 1.5, library.flux.shape)
    axis = np.arange(4300.0, 6700.0, 7.0)
    ones = library.degrade(axis, resolving_power=power).flux
    np.testing.assert_allclose(ones, 1.0, rtol=1e-9)
    one, two = (
        Library("x", library.table, library.wavelength, f * flux, fwhm=2.0).degrade(axis, resolving_power=power).flux
        for f in (1.0, scale)
    )
    np.testing.assert_allclose(two, scale * one, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(shift=st.floats(-0.3, 0.3), air=st.booleans())
def test_the_medium_is_told_in_spite_of_small_velocities(shift, air):
    wavelength = np.arange(4700.0, 6800.0, 0.7)
    flux, _ = model_star(wavelength + shift, 8000, "air" if air else "vacuum")
    assert line_medium(wavelength, flux)[0] == ("air" if air else "vacuum")
    assert line_medium(wavelength, np.ones(wavelength.size)) is None


def test_names_of_stars_are_matched_across_catalogues():
    same = (
        ("HD 000245", "hd245"), ("HD062301", "HD 62301"), ("G004-036", "G 4-36"), ("ALPHA_LYR", "alpha Lyr"),
        ("BD+17 4708", "bd17d4708"), ("BD+17 4708", "BD+174708"), ("BD+17 4708", "bd_17d4708"),
        ("BD+02 3375", "BD+2 3375"), ("BD+012916", "bd +01 2916"), ("BD-00 1234", "BD\u22120 1234"),
        ("BD+44 2051 A", "BD+442051A"), ("CD-2809374", "cd_28d9374"), ("AGK+81 266", "agk_81d266"),
        ("WD1657+343", "wd1657_343"),
    )  # fmt: skip
    for one, two in same:
        assert star_key(one) == star_key(two), (one, two)
    different = (
        ("HD 245", "HD 2450"), ("HD 1", "HR 1"), ("HD 1 2345", "HD 12345"), ("G 13-35", "G 1335"),
        ("BD+17 4708", "BD-17 4708"), ("BD+174708", "BD-174708"), ("BD+02 3375", "BD+23 375"), ("BD+00 1", "BD-00 1"),
        ("BD+1 2916", "BD+12 916"), ("CD-28 9374", "BD-28 9374"), ("WD1105+340", "WD1105-340"),
        ("GJ 754.1", "GJ 7541"), ("BD+44 2051 A", "BD+44 2051"),
    )  # fmt: skip
    for one, two in different:
        assert star_key(one) != star_key(two), (one, two)


@settings(max_examples=60, deadline=None)
@given(
    sign=st.sampled_from("+-"), zone=st.integers(0, 89), number=st.integers(1, 99999),
    other=st.tuples(st.sampled_from("+-"), st.integers(0, 89), st.integers(1, 99999)),
)  # fmt: skip
def test_a_durchmusterung_number_is_one_star_however_it_is_written(sign, zone, number, other):
    written = {
        form.format(sign, zone, number)
        for form in ("BD{}{:02d} {:04d}", "BD{}{:d} {:d}", "bd{}{:02d}{:05d}", "BD {}{:02d}d{:d}", "Bd{}{:02d}_{:d}")
    }
    keys = {star_key(name) for name in written}
    assert len(keys) == 1
    assert (star_key("BD{}{:02d} {:d}".format(*other)) in keys) == (other == (sign, zone, number))


def test_no_two_stars_of_the_libraries_have_one_name(miles, calspec):
    for library in (miles, calspec):
        assert len({star_key(name) for name in library.table["name"]}) == len(library)


def test_labels_go_to_the_star_and_not_to_its_southern_namesake():
    stars = Table({"name": ["BD+17 4708", "BD+02 3375"]})
    labels = Table({"name": ["BD-17 4708", "BD+2 3375", "BD+23 375"], "teff": [4000.0, 5900.0, 9000.0]})
    np.testing.assert_array_equal(join_labels(stars, labels)["teff"], [np.nan, 5900.0])


# -- downloads: a server on this machine ------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Files of memory, with ranges and versions; may break off after so many bytes, or take no heed of If-Range."""

    files: ClassVar[dict] = {}
    breaks: ClassVar[dict] = {}
    seen: ClassVar[list] = []
    header: ClassVar[str | None] = "ETag"
    heedless: ClassVar[bool] = False

    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        wanted = self.headers.get("Range")
        type(self).seen.append((name, wanted))
        if name not in self.files:
            self.send_error(404)
            return
        data = self.files[name]
        version = f'"{hashlib.md5(data).hexdigest()}"'
        if self.headers.get("If-Range", version) != version and not self.heedless:
            wanted = None
        start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        if start >= len(data) and wanted:
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.header:
            self.send_header(self.header, version)
        self.end_headers()
        stop = self.breaks.pop(name, None)
        self.wfile.write(data[start:stop])
        if stop is not None:
            self.wfile.flush()
            self.connection.close()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    pytest.importorskip("pooch")
    Server.files, Server.breaks, Server.seen, Server.header, Server.heedless = {}, {}, [], "ETag", False
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/lib"
        running.shutdown()
        thread.join()


def test_a_download_is_kept_and_its_checksum_recorded(server, tmp_path):
    from lamost_lsf.sed.download import download_files

    Server.files = {"a.dat": b"x" * 1000}
    (path,) = download_files([f"{server}/a.dat"], tmp_path)
    assert path.read_bytes() == b"x" * 1000
    known = json.loads((tmp_path / "checksums.json").read_text())
    assert known == {"a.dat": hashlib.sha256(b"x" * 1000).hexdigest()}
    download_files([f"{server}/a.dat"], tmp_path)
    assert len(Server.seen) == 1
    path.write_bytes(b"damaged")
    download_files([f"{server}/a.dat"], tmp_path)
    assert path.read_bytes() == b"x" * 1000
    assert len(Server.seen) == 2


def interrupt(server, folder, data):
    """First part of a file, as an interrupted download leaves it; its size."""
    from lamost_lsf.sed.download import download_files

    Server.files, Server.breaks = {"big.dat": data}, {"big.dat": 1_200_000}
    with pytest.raises(ConnectionError) as caught:
        download_files([f"{server}/big.dat"], folder)
    assert not (folder / "big.dat").exists()
    assert ("bytes are kept and will be resumed" in str(caught.value)) == bool(Server.header)
    kept = (folder / "big.dat.part").stat().st_size
    assert 0 < kept <= 1_200_000
    return kept


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_an_interrupted_download_is_resumed(server, tmp_path, header):
    from lamost_lsf.sed.download import download_files

    Server.header = header
    data = np.random.default_rng(0).bytes(3_000_000)
    kept = interrupt(server, tmp_path, data)
    (path,) = download_files([f"{server}/big.dat"], tmp_path)
    assert path.read_bytes() == data
    assert Server.seen[-1] == ("big.dat", f"bytes={kept}-")
    assert not list(tmp_path.glob("big.dat.*"))


@pytest.mark.parametrize("server_is", ["careful", "heedless", "without versions"])
def test_half_of_an_old_file_is_not_joined_to_a_new_one(server, tmp_path, server_is):
    from lamost_lsf.sed.download import download_files

    if server_is == "without versions":
        Server.header = None
    interrupt(server, tmp_path, np.random.default_rng(0).bytes(3_000_000))
    Server.heedless = server_is == "heedless"
    new = np.random.default_rng(1).bytes(3_500_000)
    Server.files = {"big.dat": new}
    (path,) = download_files([f"{server}/big.dat"], tmp_path)
    assert path.read_bytes() == new
    assert json.loads((tmp_path / "checksums.json").read_text()) == {"big.dat": hashlib.sha256(new).hexdigest()}
    assert not list(tmp_path.glob("big.dat.*"))


def test_a_part_of_unknown_origin_is_not_joined(server, tmp_path):
    from lamost_lsf.sed.download import download_files

    Server.files = {"a.dat": b"new" * 500}
    (tmp_path / "a.dat.part").write_bytes(b"old" * 200)
    (path,) = download_files([f"{server}/a.dat"], tmp_path)
    assert path.read_bytes() == b"new" * 500


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(server, tmp_path):
    from lamost_lsf.sed.download import download_files

    Server.files = {"a.dat": b"not what was promised"}
    with pytest.raises(OSError, match="does not have the checksum"):
        download_files([f"{server}/a.dat"], tmp_path, checksums={"a.dat": "0" * 64})
    assert not list(tmp_path.glob("a.dat*"))


def test_without_a_connection_the_user_is_told_what_to_do(tmp_path):
    pytest.importorskip("pooch")
    from lamost_lsf.sed.download import download_files

    with pytest.raises(ConnectionError, match=r"cannot reach http://127.0.0.1:9/x.zip.*put it into"):
        download_files(["http://127.0.0.1:9/x.zip"], tmp_path)


def test_what_the_archive_does_not_have(server, tmp_path):
    from lamost_lsf.sed.download import download_files

    with pytest.raises(OSError, match="answers 404"):
        download_files([f"{server}/none.dat"], tmp_path)


def test_libraries_are_unpacked_ready_to_read(server, tmp_path, monkeypatch):
    from lamost_lsf.sed import download

    air = np.arange(1670.0, 10250.0, 1.37)
    table, packed = io.BytesIO(), io.BytesIO()
    Table({"WAVELENGTH": air, "FLUX": model_star(air, 5800, "air")[0]}).write(table, format="fits")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("v2/h_stis_ngsl_hd000245_v2.fits", table.getvalue())
    Server.files = {"stis_ngsl_v2.zip": packed.getvalue()}
    monkeypatch.setitem(download.DOWNLOADS, "ngsl", f"{server}/stis_ngsl_v2.zip")
    monkeypatch.setenv("LAMOST_LSF_CACHE", str(tmp_path))
    folder = download.download_library("ngsl")
    assert folder == tmp_path / "ngsl"
    assert read_library("ngsl", folder).table["name"].tolist() == ["hd000245"]


def packed_miles(kind, n=3):
    """An archive of some "spectra" that do not compress."""
    out, rng = io.BytesIO(), np.random.default_rng(2)
    content = {f"MILES/s{i:04d}.fits": rng.bytes(5000) for i in range(1, n + 1)}
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, data in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return out.getvalue(), content


@pytest.mark.parametrize(("library", "name", "kind"), [("miles", "m.tar.gz", "tar"), ("ngsl", "n.zip", "zip")])
@pytest.mark.parametrize("damage", ["cut", "changed", "no archive"])
def test_a_damaged_archive_leaves_nothing_and_is_fetched_again(
    server, tmp_path, monkeypatch, library, name, kind, damage
):
    from lamost_lsf.sed import download

    monkeypatch.setitem(download.DOWNLOADS, library, f"{server}/{name}")
    whole, content = packed_miles(kind)
    middle = bytearray(whole)
    middle[7000:7040] = bytes(40)
    Server.files = {name: {"cut": whole[:9000], "changed": bytes(middle), "no archive": b"<html>busy</html>"}[damage]}
    with pytest.raises(OSError, match=f"{name} is damaged and was deleted: fetch it again"):
        download.download_library(library, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checksums.json"]
    assert json.loads((tmp_path / "checksums.json").read_text()) == {}
    Server.files = {name: whole}
    download.download_library(library, tmp_path)
    assert {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*.fits")} == content


def test_deleted_and_cut_spectra_come_back_from_their_archive(server, tmp_path, monkeypatch):
    from lamost_lsf.sed import download

    monkeypatch.setitem(download.DOWNLOADS, "miles", f"{server}/m.tar.gz")
    packed, content = packed_miles("tar")
    Server.files = {"m.tar.gz": packed}
    first, second, _ = sorted(content)
    download.download_library("miles", tmp_path)
    (tmp_path / first).unlink()
    (tmp_path / second).write_bytes(b"")
    download.download_library("miles", tmp_path)
    assert {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*.fits")} == content
    assert len(Server.seen) == 1
    after = (tmp_path / first).stat().st_mtime_ns
    download.download_library("miles", tmp_path)  # all there: nothing is written
    assert (tmp_path / first).stat().st_mtime_ns == after
    assert sorted(p.name for p in tmp_path.iterdir()) == [".m.tar.gz.unpacked", "MILES", "checksums.json", "m.tar.gz"]


def test_bosz_models_are_fetched_with_their_wavelengths(server, tmp_path, monkeypatch):
    from lamost_lsf.sed import download

    source = tmp_path / "source"
    source.mkdir()
    write_2024(source)
    Server.files = {path.name: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    monkeypatch.setattr(download, "_BOSZ_2024", server)
    real = {name for name in Server.files if "t6000" in name}.pop()
    wanted = download.bosz_url(6000, 4.5, -0.5, alpha=0.25).rsplit("/", 1)[1]
    assert wanted == real
    Server.files[download.bosz_url(6000, 4.5, -0.5).rsplit("/", 1)[1]] = Server.files[real]
    folder = download.download_library("bosz", tmp_path / "bosz", labels=[(6000, 4.5, -0.5)])
    library = read_library("bosz", folder)
    assert library.table["teff"].tolist() == [6000.0]


def test_archives_may_not_write_outside_their_folder(tmp_path):
    from lamost_lsf.sed.download import _unpack

    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("../outside.txt", "x")
    target = tmp_path / "in"
    target.mkdir()
    with pytest.raises(OSError, match="outside"):
        _unpack(archive, target)
    packed = tmp_path / "evil.tar.gz"
    with tarfile.open(packed, "w:gz") as content:
        content.addfile(tarfile.TarInfo("../outside.txt"), io.BytesIO(b""))
    with pytest.raises(OSError, match="outside"):
        _unpack(packed, target)
    # nor lead there by a link
    packed.unlink()
    with tarfile.open(packed, "w:gz") as content:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        content.addfile(link)
        content.addfile(tarfile.TarInfo("out/outside.txt"), io.BytesIO(b""))
    _unpack(packed, target)
    assert not (target / "out").is_symlink()
    for path in [path for path in target.rglob("*") if path.is_file()]:
        path.unlink()
    (target / "out").rmdir()
    assert not list(target.iterdir())
    assert not (tmp_path / "outside.txt").exists()


def test_downloads_that_make_no_sense_are_refused(tmp_path):
    from lamost_lsf.sed.download import bosz_url, download_library

    with pytest.raises(ValueError, match="no download of library 'pickles'"):
        download_library("pickles", tmp_path)
    with pytest.raises(ValueError, match="must list"):
        download_library("bosz", tmp_path)
    with pytest.raises(ValueError, match="fetched whole"):
        download_library("miles", tmp_path, labels=[(5000, 4, 0)])
    with pytest.raises(ValueError, match="2017 or 2024"):
        bosz_url(5000, 4, 0, release=2020)
    assert bosz_url(3500, 0, 0, resolving_power=50000, release=2017).endswith(
        "/fits/insbroad_050000/metal_+0.00/carbon_+0.00/alpha_+0.00/amp00cp00op00t3500g00v20modrt0b50000rs.fits"
    )
