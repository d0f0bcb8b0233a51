"""Templates from files: wavelengths in vacuum, whatever the file has, and clear words where there is no template."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table
from numpy.testing import assert_allclose, assert_array_equal
from specutils import Spectrum

from lamost_lsf.errors import FormatError
from lamost_lsf.io import list_templates, read_template, read_templates

# Fraunhofer D2 and Mg b1 in air and vacuum (NIST): an independent pair of numbers for the conversion
AIR = np.array([5183.604, 5889.951])
VACUUM = np.array([5185.048, 5891.583])
NAME = "lte05800-4.50-0.0"


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "models.npz"
    np.savez(path, wave_vac_A=VACUUM, **{NAME: [1.0, 0.5], "lte06000-4.00-2.0": [2.0, 0.7]})
    return path


@pytest.fixture
def redrock(tmp_path):
    rng = np.random.default_rng(5)
    basis, coefficients = rng.normal(size=(5, 301)), rng.normal(size=(7, 5))
    first = fits.PrimaryHDU(basis)
    first.header.update(CRVAL1=3000.0, CDELT1=0.1, RRTYPE="STAR", RRSUBTYP="G")
    path = tmp_path / "rrtemplate-STAR-G-v0.1.fits"
    fits.HDUList([first, fits.ImageHDU(coefficients, name="ARCHETYPE_COEFF")]).writeto(path)
    return path, basis, coefficients


def test_npz_of_models(npz):
    assert list_templates(npz) == [NAME, "lte06000-4.00-2.0"]
    template = read_template(npz, "lte06000-4.00-2.0")
    assert_array_equal(template.spectral_axis.value, VACUUM)
    assert_array_equal(template.flux.value, [2.0, 0.7])
    # the hyphen before log g is no sign, the one before [M/H] is
    assert (template.meta["teff"], template.meta["logg"], template.meta["feh"]) == (6000.0, 4.0, -2.0)
    assert [t.meta["name"] for t in read_templates(npz)] == [NAME, "lte06000-4.00-2.0"]


def test_choice_among_several_is_asked_for(npz):
    with pytest.raises(ValueError, match=r"holds 2 templates .*choose one by member"):
        read_template(npz)
    with pytest.raises(ValueError, match="no template 'lte9'; it holds lte05800"):
        read_template(npz, "lte9")


def test_air_wavelengths_become_vacuum(tmp_path):
    np.savez(tmp_path / "air.npz", wave_air_A=AIR, star=[1.0, 0.5])
    assert_allclose(read_template(tmp_path / "air.npz").spectral_axis.value, VACUUM, atol=1.5e-3)
    table = Table({"wave": AIR, "flux": [1.0, 0.5]})
    table.write(tmp_path / "star.csv")
    assert_array_equal(read_template(tmp_path / "star.csv").spectral_axis.value, AIR)
    assert_allclose(read_template(tmp_path / "star.csv", medium="air").spectral_axis.value, VACUUM, atol=1.5e-3)


def test_awav_of_the_fits_standard_is_air(tmp_path):
    hdu = fits.PrimaryHDU(np.linspace(1.0, 2.0, 11))
    hdu.header.update(CTYPE1="AWAV", CRVAL1=5183.604, CDELT1=1.0, CRPIX1=1.0, CUNIT1="Angstrom", BUNIT="Jy")
    hdu.writeto(tmp_path / "air.fits")
    assert_allclose(read_template(tmp_path / "air.fits").spectral_axis.value[0], 5185.048, atol=1.5e-3)


def test_phoenix_with_its_file_of_wavelengths(tmp_path):
    folder = tmp_path / "Z-0.0"
    folder.mkdir()
    path = folder / f"{NAME}.PHOENIX-ACES-AGSS-COND-2011-HiRes.fits"
    hdu = fits.PrimaryHDU(np.array([1e13, 2e13, 3e13], dtype="f4"))
    hdu.header["PHXTEFF"] = 5800.0
    hdu.writeto(path)
    with pytest.raises(FileNotFoundError, match="WAVE_PHOENIX"):
        read_template(path)
    fits.PrimaryHDU(np.array([5000.0, 5000.1, 5000.2])).writeto(tmp_path / "WAVE_PHOENIX-ACES-AGSS-COND-2011.fits")
    template = read_template(path)
    assert template.meta["name"] == NAME
    assert template.flux.unit.is_equivalent(u.erg / u.s / u.cm**2 / u.AA)
    assert_array_equal(template.spectral_axis.value, [5000.0, 5000.1, 5000.2])


def test_redrock_archetype_is_coefficients_times_basis(redrock):
    path, basis, coefficients = redrock
    assert list_templates(path) == [str(i) for i in range(7)]
    template = read_template(path, 3)
    assert_allclose(template.flux.value, sum(c * b for c, b in zip(coefficients[3], basis, strict=True)))
    assert_allclose(template.spectral_axis.value[[0, -1]], [3000.0, 3030.0])
    assert template.meta["name"] == "G-3"
    for wrong in ("7", "-1", "x"):
        with pytest.raises(ValueError, match="numbered 0 to 6"):
            read_template(path, wrong)


def test_basis_of_many_is_not_read_whole(redrock, tmp_path):
    _, basis, _ = redrock
    first = fits.PrimaryHDU(basis)
    first.header.update(CRVAL1=3000.0, CDELT1=0.1, RRTYPE="STAR")
    big = tmp_path / "big.fits"
    fits.HDUList([first, fits.ImageHDU(np.zeros((101, 5)), name="ARCHETYPE_COEFF")]).writeto(big)
    with pytest.raises(ValueError, match="holds 101 templates"):
        read_templates(big)


@pytest.mark.parametrize("name", ["star.fits", "star.ecsv", "star.csv", "star.txt"])
def test_table_without_units_is_angstrom_and_descending_is_turned(tmp_path, name):
    table = Table({"wave": [5002.0, 5001.0, 5000.0], "flux": [3.0, np.nan, 1.0]})
    table.write(tmp_path / name, format={"txt": "ascii"}.get(name[-3:]))
    template = read_template(tmp_path / name)
    assert_array_equal(template.spectral_axis.to_value(u.AA), [5000.0, 5001.0, 5002.0])
    assert_array_equal(template.flux.value[[0, 2]], [1.0, 3.0])
    assert_array_equal(template.mask, [False, True, False])


def test_units_of_a_table_are_kept(tmp_path):
    QTable({"wavelength": [500.0, 501.0] * u.nm, "flux": [1.0, 2.0] * u.Jy}).write(tmp_path / "star.ecsv")
    template = read_template(tmp_path / "star.ecsv")
    assert_allclose(template.spectral_axis.to_value(u.AA), [5000.0, 5010.0])
    assert template.flux.unit == u.Jy


def test_bad_files_say_what_is_wrong(tmp_path, npz):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_template(tmp_path / "none.fits")
    truncated = tmp_path / "short.npz"
    truncated.write_bytes(npz.read_bytes()[:100])
    with pytest.raises(FormatError, match="not a readable template"):
        read_template(truncated)
    np.savez(tmp_path / "other.npz", flux=[1.0])
    with pytest.raises(FormatError, match="expected one array wave_vac_A or wave_air_A, found flux"):
        read_template(tmp_path / "other.npz")
    np.savez(tmp_path / "lonely.npz", wave_vac_A=[1.0])
    with pytest.raises(FormatError, match="without a spectrum"):
        read_template(tmp_path / "lonely.npz")
    (tmp_path / "empty.fits").write_bytes(b"")
    with pytest.raises(FormatError, match=r"empty\.fits"):
        read_template(tmp_path / "empty.fits")
    Table({"a": [1.0], "b": [2.0]}).write(tmp_path / "ab.csv")
    with pytest.raises(FormatError, match="no columns of wavelength and flux"):
        read_template(tmp_path / "ab.csv")
    Table({"wave": [5000.0, 5001.0], "flux": [1.0, 1.0]}).write(tmp_path / "ok.csv")
    with pytest.raises(ValueError, match="has no member 'x'"):
        read_template(tmp_path / "ok.csv", "x")


@pytest.mark.parametrize(
    ("wave", "flux", "message"),
    [
        ([5000.0, np.nan], [1.0, 1.0], "not all finite"),
        ([5000.0, 5002.0, 5001.0], [1.0, 1.0, 1.0], "not monotonic"),
        ([0.5, 0.51], [1.0, 1.0], "not in Angstrom"),
        ([5000.0, 5001.0], [np.nan, np.nan], "no finite value"),
    ],
)
def test_bad_values_say_what_is_wrong(tmp_path, wave, flux, message):
    Table({"wave": wave, "flux": flux}).write(tmp_path / "bad.fits")
    with pytest.raises(FormatError, match=message):
        read_template(tmp_path / "bad.fits")


def test_real_templates(data_dir):
    folder = data_dir / "templates"
    models = read_templates(next((folder / "phoenix").glob("*.npz")))
    assert len(models) == 3
    # H-alpha: air 6562.79, vacuum 6564.61. The deepest point of a dwarf's line tells the medium.
    for model in models:
        near = np.abs(model.spectral_axis.value - 6563.7) < 8
        deepest = model.spectral_axis.value[near][np.argmin(model.flux.value[near])]
        assert deepest == pytest.approx(6564.61, abs=0.1)
    for path in (folder / "redrock").glob("*.fits"):
        assert isinstance(read_template(path, 0), Spectrum)
    sun = read_template(next((folder / "ferre").glob("*.fits")))
    assert sun.spectral_axis.value[[0, -1]] == pytest.approx([2990.06, 10009.72], abs=0.01)
