"""LAMOST files: every layout, against the files' own raw arrays, the sky and astropy's Earth."""

import gzip
import io
import shutil
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.io import fits
from astropy.nddata import InverseVariance
from astropy.time import Time
from scipy.ndimage import uniform_filter1d
from scipy.stats import theilslopes
from specutils import Spectrum, SpectrumList
from specutils.io.registers import identify_spectrum_format

import lamost_lsf.io as lio
from lamost_lsf.errors import FormatError, FrameWarning, LamostLSFWarning
from lamost_lsf.io import (
    METADATA_KEYS,
    PixelMask,
    check_heliocentric,
    detector_factor,
    detector_wavelength,
    read_lamost,
    read_lamost_arrays,
    read_lamost_mrs,
)
from lamost_lsf.time import parse_lmjm_list

C = 299792.458
N = 3909
LRS_FOLDERS = ["lrs_dr10_new_layout", "lrs_misc", "lrs_plate_sp03_dr7", "lrs_repeats_dr8"]


# --- small files in LAMOST's layouts, written here ---


def header_cards(**changes):
    cards = {
        "FILENAME": "spec-58397-TEST_sp03-031.fits",
        "OBSID": 680103031,
        "DATA_V": "LAMOST DR8",
        "TELESCOP": "LAMOST",
        "ORIGIN": "NAOC-LAMOST",
        "LONGITUD": 117.58,
        "LATITUDE": 40.39,
        "DATE-OBS": "2018-10-05T18:07:00",
        "DATE-BEG": "2018-10-06T01:20:17",
        "LMJD": 58397,
        "MJD": 58396,
        "LMJMLIST": "84091760-84091794-84091827",
        "RA": 24.67,
        "DEC": 25.91,
        "DESIG": "LAMOST J013840.80+255436.0",
        "FIBERID": 31,
        "FIBERTYP": "Obj",
        "FIBERMAS": 0,
        "NEXP_B": 3,
        "NEXP_R": 2,
        "EXPTIME": 5400.0,
        "SPID": 3,
        "HELIO": True,
        "HELIO_RV": -9.40313,
        "VACUUM": True,
        "COEFF0": 3.5682,
        "COEFF1": 0.0001,
        "CLASS": "STAR",
        "SUBCLASS": "G3",
        "Z": -0.00013870,
        "Z_ERR": 0.00002408,
        "SNRG": 12.22,
        "SNRR": 27.16,
    }
    cards.update(changes)
    return {key: value for key, value in cards.items() if value is not None}


def rows(n=N, start=None, step=1e-4):
    """Flux, ivar, wavelength, and-mask, or-mask; bad: 10 (ivar), 20 (and), 20, 21 (or), 30 (NaN flux)."""
    start = float(np.float32(3.5682)) if start is None else start
    rng = np.random.default_rng(5)
    flux = rng.normal(100.0, 5.0, n)
    ivar = np.full(n, 0.04)
    ivar[10] = 0.0
    and_mask, or_mask = np.zeros(n), np.zeros(n)
    and_mask[20] = 1
    or_mask[[20, 21]] = [1, 4]
    flux[30] = np.nan
    return np.array([flux, ivar, 10 ** (start + step * np.arange(n)), and_mask, or_mask]).astype(">f4")


def write_image(path, data=None, **changes):
    hdu = fits.PrimaryHDU(rows() if data is None else data)
    hdu.header.update(header_cards(**changes))
    hdu.header["EXTNAME"] = "Flux"
    hdu.writeto(path)
    return path


def write_table(path, data=None, repeat=1, columns=("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK"), **changes):
    data = rows() if data is None else data
    primary = fits.PrimaryHDU()
    primary.header.update(header_cards(DATA_V="LAMOST DR10", NORM=1, **changes))
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column(name, f"{data.shape[1]}E", array=np.repeat(row[None], repeat, axis=0))
            for name, row in zip(columns, data)
        ]
        + [fits.Column("NORMALIZATION", f"{data.shape[1]}E", array=np.ones((repeat, data.shape[1])))],
        name="COADD",
    )
    fits.HDUList([primary, table]).writeto(path)
    return path


def exposure_loglam(n=4136, red=False):
    """A smooth solution of the detector's pixels, as no uniform grid: blue to red, or red to blue."""
    x = np.linspace(-1.0, 1.0, n)
    if red:
        return 3.8180 - 0.0186 * x + 0.0006 * x**2 - 1e-5 * x**3
    return 3.7110 + 0.0207 * x - 0.0006 * x**2 + 1e-5 * x**3


def write_mrs(path, **changes):
    primary = fits.PrimaryHDU()
    primary.header.update(
        header_cards(LMJMLIST=None, EXPTIME=None, COEFF0=None, COEFF1=None, CLASS=None, Z=None, **changes)
    )
    primary.header["EXTNAME"] = "Information"
    hdus = [primary]
    rng = np.random.default_rng(6)

    def add(name, loglam, masks, cards):
        flux = rng.normal(500.0, 20.0, loglam.size)
        columns = [
            fits.Column("FLUX", "E", array=flux),
            fits.Column("IVAR", "E", array=np.full(loglam.size, 0.0025)),
            fits.Column("LOGLAM", "E", array=loglam),
        ] + [fits.Column(mask, "I", array=values) for mask, values in masks.items()]
        hdu = fits.BinTableHDU.from_columns(columns, name=name)
        hdu.header.update(cards)
        hdus.append(hdu)

    for arm, start, n in (("B", 3.69018, 4151), ("R", 3.79992, 3726)):
        flags = np.zeros(n, int)
        flags[5] = 1
        flagged = flags.copy()
        flagged[6] = 2
        add(
            f"COADD_{arm}",
            start + 1e-5 * np.arange(n),
            {"ANDMASK": flags, "ORMASK": flagged},
            {
                "LMJMLIS0": "83906016-83906030-83906043",
                "LMJMLIS1": "83906056",
                "SNR": 65.28,
                "LAMPLIST": "lampthar.dat",
            },
        )
    for arm in "BR":
        for lmjm in (83906016, 83906030):
            flags = np.zeros(4136, int)
            flags[7] = 1
            add(
                f"{arm}-{lmjm}",
                exposure_loglam(red=arm == "R"),
                {"PIXMASK": flags},
                {"LMJM": str(lmjm), "EXPTIME": 1200, "SNR": 25.88, "LAMPLIST": "lampthar.dat"},
            )
    fits.HDUList(hdus).writeto(path)
    return path


def gzipped(path):
    packed = Path(f"{path}.gz")
    with open(path, "rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    return packed


@pytest.fixture(params=["image", "table"])
def lrs_file(request, tmp_path):
    return {"image": write_image, "table": write_table}[request.param](tmp_path / "anything.fits")


@pytest.fixture
def mrs_file(tmp_path):
    return write_mrs(tmp_path / "medium.fits")


# --- synthetic files: layouts, masks, meta ---


@pytest.mark.parametrize("pack", [lambda path: path, gzipped], ids=["plain", "gz"])
def test_both_low_resolution_layouts_are_found_and_read(lrs_file, pack):
    path = pack(lrs_file)
    raw = rows()
    assert "LAMOST LRS" in identify_spectrum_format(str(path))
    for spectrum in (Spectrum.read(path), SpectrumList.read(path)[0], read_lamost(path)):
        assert isinstance(spectrum, Spectrum)
        np.testing.assert_array_equal(spectrum.flux.value, raw[0])
        assert spectrum.flux.unit == u.dimensionless_unscaled
        assert isinstance(spectrum.uncertainty, InverseVariance)
        np.testing.assert_array_equal(spectrum.uncertainty.array, raw[1])
        assert np.flatnonzero(spectrum.mask).tolist() == [10, 20, 30]
        assert set(spectrum.meta) == set(METADATA_KEYS)


def test_one_reader_for_paths_files_and_hdulists(lrs_file, mrs_file):
    packed = gzipped(lrs_file).read_bytes()
    expected = read_lamost(lrs_file).flux
    with fits.open(lrs_file) as hdus, open(lrs_file, "rb") as stream:
        sources = [str(lrs_file), stream, hdus, io.BytesIO(lrs_file.read_bytes()), io.BytesIO(packed)]
        for source in sources:
            np.testing.assert_array_equal(read_lamost(source).flux, expected)
            np.testing.assert_array_equal(Spectrum.read(source).flux, expected)
            np.testing.assert_array_equal(Spectrum.read(source, format="LAMOST LRS").flux, expected)
        # What the caller opened is the caller's to close.
        assert not stream.closed
        assert hdus[0].header["SPID"] == 3
    with fits.open(mrs_file) as hdus:
        assert len(SpectrumList.read(hdus)) == len(read_lamost_mrs(hdus)) == 6


def test_a_spectrum_of_an_hdulist_does_not_share_its_header(lrs_file):
    with fits.open(lrs_file) as hdus:
        spectrum = read_lamost(hdus)
        spectrum.meta["header"]["SPID"] = 16
        assert hdus[0].header["SPID"] == 3


@pytest.mark.parametrize(
    ("options", "bad"),
    [
        ({}, [10, 20, 30]),
        ({"mask": "and"}, [10, 20, 30]),
        ({"mask": "OR"}, [10, 20, 21, 30]),
        ({"mask": "ivar"}, [10, 30]),
        ({"mask": "or", "bits": PixelMask.NO_SKY}, [10, 21, 30]),
        ({"mask": "or", "bits": 1}, [10, 20, 30]),
        ({"mask": "or", "bits": PixelMask.BAD_CCD | PixelMask.NO_SKY}, [10, 20, 21, 30]),
        ({"mask": "or", "bits": PixelMask.NO_DATA}, [10, 30]),
    ],
)
def test_the_user_chooses_what_is_bad(lrs_file, options, bad):
    for spectrum in (read_lamost(lrs_file, **options), Spectrum.read(lrs_file, **options)):
        assert np.flatnonzero(spectrum.mask).tolist() == bad


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": "xor"}, ValueError, "'and', 'or', 'ivar'"),
        ({"mask": None}, ValueError, "'and', 'or', 'ivar'"),
        ({"bits": 0}, ValueError, "positive"),
        ({"bits": "BAD_CCD"}, TypeError, "PixelMask"),
        ({"bits": True}, TypeError, "PixelMask"),
        ({"mask": "ivar", "bits": 1}, ValueError, "no meaning"),
        ({"extension": "COADD_B"}, ValueError, "no extension 'COADD_B'"),
    ],
)
def test_bad_arguments_say_so(lrs_file, options, error, message):
    with pytest.raises(error, match=message) as caught:
        read_lamost(lrs_file, **options)
    assert not isinstance(caught.value, FormatError)


def test_pixels_that_cannot_be_used_are_masked_and_weigh_nothing(tmp_path):
    data = rows()
    data[1, 40:44] = [-1.0, np.nan, np.inf, 1.0]
    data[3, 50] = np.nan
    arrays = read_lamost_arrays(write_image(tmp_path / "a.fits", data))
    assert np.flatnonzero(arrays.mask).tolist() == [10, 20, 30, 40, 41, 42, 50]
    assert arrays.ivar[40:44].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert np.all(arrays.ivar >= 0)
    assert np.all(np.isfinite(arrays.ivar))


def test_arrays_and_spectrum_are_the_same_thing(lrs_file):
    arrays, spectrum = read_lamost_arrays(lrs_file), read_lamost(lrs_file)
    np.testing.assert_array_equal(arrays.wavelength, spectrum.spectral_axis.to_value(u.AA))
    np.testing.assert_array_equal(arrays.mask, spectrum.mask)
    for array in (arrays.wavelength, arrays.flux, arrays.ivar):
        assert array.dtype == np.float64


def test_low_resolution_meta(tmp_path):
    meta = read_lamost(write_image(tmp_path / "a.fits")).meta
    assert meta["filename"] == str(tmp_path / "a.fits")
    assert (meta["survey"], meta["instrument"], meta["release"], meta["arm"]) == (
        "LRS",
        "lamost-lrs",
        "DR8",
        "both",
    )
    assert (meta["spectrograph"], meta["fiber"], meta["fiber_mask"]) == (3, 31, 0)
    np.testing.assert_array_equal(meta["lmjm"], [84091760, 84091794, 84091827])
    assert meta["time_source"] == "lmjm"
    assert meta["time"][0].isot == "2018-10-05T17:20:00.000"
    assert (meta["wavelength_medium"], meta["wavelength_center"], meta["frame"]) == (
        "vacuum",
        "sersic",
        "heliocentric",
    )
    assert meta["helio_rv"] == -9.40313 * u.km / u.s
    assert meta["ra"] == 24.67 * u.deg
    assert meta["dec"] == 25.91 * u.deg
    assert meta["exptime"] == 5400 * u.s
    assert meta["n_exposures"] == {"blue": 3, "red": 2}
    assert meta["snr"] == {"g": 12.22, "r": 27.16}
    assert (meta["class"], meta["subclass"], meta["z"]) == ("STAR", "G3", -0.00013870)
    assert (meta["obsid"], meta["designation"]) == (680103031, "LAMOST J013840.80+255436.0")
    assert meta["mask_choice"] == "and"
    assert isinstance(meta["header"], fits.Header)


def test_a_bare_header_gives_none_and_no_error(tmp_path):
    path = tmp_path / "bare.fits"
    hdu = fits.PrimaryHDU(rows())
    hdu.header["TELESCOP"] = "LAMOST"
    hdu.writeto(path)
    meta = Spectrum.read(path).meta
    assert set(meta) == set(METADATA_KEYS)
    empty = {key for key, value in meta.items() if value is None}
    assert empty >= {
        "spectrograph",
        "fiber",
        "lmjm",
        "time",
        "time_source",
        "frame",
        "helio_rv",
        "ra",
        "dec",
        "z",
        "snr",
        "exptime",
        "obsid",
        "release",
    }


def test_old_headers_say_it_differently(tmp_path):
    """DR1-era files: fibre as text, SN_G, double precision, no OBSID and no DATA_V."""
    data = rows(start=3.5682).astype(float)
    data[2] = 10 ** (3.5682 + 1e-4 * np.arange(N))
    path = write_image(
        tmp_path / "a.fits",
        data,
        FIBERID="27      ",
        SN_G=46.76,
        SNRG=None,
        SNRR=None,
        OBSID=None,
        DATA_V=None,
        Z=-9999,
        HELIO="T",
    )
    spectrum = Spectrum.read(path)
    assert spectrum.meta["fiber"] == 27
    assert spectrum.meta["snr"] == {"g": 46.76}
    assert spectrum.meta["release"] is spectrum.meta["obsid"] is spectrum.meta["z"] is None
    assert spectrum.meta["frame"] == "heliocentric"
    assert spectrum.meta["wavelength_grid"] == "header"
    np.testing.assert_allclose(spectrum.spectral_axis.value, data[2], rtol=1e-14)


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"SPID": 17}, "spectrograph", "SPID is 17, expected an integer 1 to 16"),
        ({"FIBERID": 0}, "fiber", "FIBERID is 0, expected an integer 1 to 250"),
        ({"FIBERID": "x12"}, "fiber", "FIBERID is 'x12'"),
        ({"FIBERID": 12.5}, "fiber", "FIBERID is 12.5"),
        ({"LMJMLIST": "58397"}, "lmjm", "not a list of local modified Julian minutes"),
    ],
)
def test_nonsense_labels_become_none_with_a_warning(tmp_path, changes, key, message):
    path = write_image(tmp_path / "a.fits", **changes)
    with pytest.warns(LamostLSFWarning, match=message):
        spectrum = read_lamost(path)
    assert spectrum.meta[key] is None


def test_a_heliocentric_file_without_its_velocity_warns(tmp_path):
    path = write_image(tmp_path / "a.fits", HELIO_RV="unknown")
    with pytest.warns(FrameWarning, match="HELIO is T, but HELIO_RV is 'unknown'"):
        spectrum = read_lamost(path)
    with pytest.raises(ValueError, match="helio_rv"):
        detector_factor(spectrum)


@pytest.mark.parametrize(
    ("changes", "source", "expected"),
    [
        ({}, "date-obs", "2018-10-05T18:07:00.000"),
        ({"DATE-OBS": None}, "date-beg", "2018-10-05T17:20:17.000"),
        ({"DATE-OBS": "soon"}, "date-beg", "2018-10-05T17:20:17.000"),
        ({"DATE-OBS": None, "DATE-BEG": None}, None, None),
    ],
)
def test_dates_stand_in_for_minutes_only_where_there_are_none(tmp_path, changes, source, expected):
    meta = read_lamost(write_image(tmp_path / "a.fits", LMJMLIST=None, **changes)).meta
    assert meta["lmjm"] is None
    assert meta["time_source"] == source
    assert (None if meta["time"] is None else meta["time"].isot.tolist()) == (expected and [expected])


def test_air_wavelengths_are_converted_not_passed_on(tmp_path):
    path = write_image(tmp_path / "a.fits", VACUUM=False)
    with pytest.warns(FrameWarning, match="converted from air"):
        converted = read_lamost(path)
    # Morton (1991): vacuum minus air is 1.39 A at 5000 A.
    raw = rows()[2].astype(float)
    shift = np.interp(5000.0, raw, converted.spectral_axis.value - raw)
    assert shift == pytest.approx(1.394, abs=0.002)


# --- wavelengths ---


@pytest.mark.parametrize(
    ("start", "source"),
    [
        (3.5682, "header"),
        (float(np.float32(3.5682)), "header-float32"),
        (np.log10(3700.0), "fit"),
    ],
)
def test_the_published_array_decides_and_its_rounding_goes(tmp_path, start, source):
    """COEFF0 says 3.5682 in all three; what was published is what counts, in double precision."""
    path = write_image(tmp_path / "a.fits", rows(start=start))
    spectrum = read_lamost(path)
    truth = 10 ** (start + 1e-4 * np.arange(N))
    assert spectrum.meta["wavelength_grid"] == source
    restored = np.abs(spectrum.spectral_axis.value / truth - 1).max() * C
    rounded = np.abs(rows(start=start)[2].astype(float) / truth - 1).max() * C
    assert restored < 5e-4  # km/s
    assert rounded > 1e-2


def test_a_grid_that_is_not_smooth_is_left_alone(tmp_path):
    data = rows()
    data[2, 2000:] *= 1.0001
    spectrum = read_lamost(write_image(tmp_path / "a.fits", data))
    assert spectrum.meta["wavelength_grid"] == "file"
    np.testing.assert_allclose(spectrum.spectral_axis.value, data[2].astype(float), rtol=1e-14)


def test_missing_wavelengths_come_from_the_header(tmp_path):
    data = rows()
    data[2] = 0.0
    spectrum = read_lamost(write_image(tmp_path / "a.fits", data))
    np.testing.assert_allclose(spectrum.spectral_axis.value, 10 ** (3.5682 + 1e-4 * np.arange(N)), rtol=1e-13)
    with pytest.raises(FormatError, match="no COEFF0 and COEFF1"):
        read_lamost(write_image(tmp_path / "b.fits", data, COEFF0=None))


def test_descending_wavelengths_are_turned_with_everything_else(tmp_path):
    data = rows()[:, ::-1]
    arrays = read_lamost_arrays(write_image(tmp_path / "a.fits", data, COEFF0=None))
    assert np.all(np.diff(arrays.wavelength) > 0)
    np.testing.assert_array_equal(arrays.flux, rows()[0])
    assert np.flatnonzero(arrays.mask).tolist() == [10, 20, 30]


# --- medium resolution ---


@pytest.mark.parametrize("pack", [lambda path: path, gzipped], ids=["plain", "gz"])
def test_medium_resolution_files_are_lists(mrs_file, pack):
    path = pack(mrs_file)
    assert "LAMOST MRS" in identify_spectrum_format(str(path), dtype=SpectrumList)
    spectra = SpectrumList.read(path)
    assert [spectrum.meta["extension"] for spectrum in spectra] == [
        "COADD_B",
        "COADD_R",
        "B-83906016",
        "B-83906030",
        "R-83906016",
        "R-83906030",
    ]
    assert [spectrum.meta["arm"] for spectrum in spectra] == ["blue", "red", "blue", "blue", "red", "red"]
    for spectrum in spectra:
        assert np.all(np.diff(spectrum.spectral_axis.value) > 0)
        assert set(spectrum.meta) == set(METADATA_KEYS)
        assert spectrum.meta["instrument"] == "lamost-mrs"
        assert spectrum.meta["time_source"] == "lmjm"
    # More than three exposures are spread over LMJMLIS0, LMJMLIS1, ...
    assert spectra[0].meta["lmjm"].tolist() == [83906016, 83906030, 83906043, 83906056]
    assert spectra[3].meta["lmjm"].tolist() == [83906030]
    assert spectra[3].meta["exptime"] == 1200 * u.s
    assert spectra[4].meta["snr"] == {"red": 25.88}
    assert spectra[0].meta["lamp_list"] == "lampthar.dat"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"kind": "coadd"}, ["COADD_B", "COADD_R"]),
        ({"kind": "single", "arm": "red"}, ["R-83906016", "R-83906030"]),
        ({"arm": "blue"}, ["COADD_B", "B-83906016", "B-83906030"]),
    ],
)
def test_a_part_of_the_list(mrs_file, options, names):
    for spectra in (read_lamost_mrs(mrs_file, **options), SpectrumList.read(mrs_file, **options)):
        assert [spectrum.meta["extension"] for spectrum in spectra] == names


def test_one_spectrum_of_a_medium_resolution_file(mrs_file):
    assert Spectrum.read(mrs_file).meta["extension"] == "COADD_B"
    assert Spectrum.read(mrs_file, extension="r-83906030").meta["extension"] == "R-83906030"
    with pytest.raises(ValueError, match="no extension 'B-1'; it has COADD_B, COADD_R"):
        read_lamost(mrs_file, extension="B-1")


def test_red_exposures_run_backwards_in_the_file_only(mrs_file):
    with fits.open(mrs_file) as hdus:
        raw = hdus["R-83906016"].data
        flux, loglam, flags = raw["FLUX"].copy(), raw["LOGLAM"].copy(), raw["PIXMASK"].copy()
    spectrum = read_lamost(mrs_file, extension="R-83906016")
    assert loglam[0] > loglam[-1]
    np.testing.assert_array_equal(spectrum.flux.value, flux[::-1])
    np.testing.assert_array_equal(spectrum.mask, flags[::-1] != 0)


def test_medium_resolution_masks(mrs_file):
    assert np.flatnonzero(read_lamost(mrs_file).mask).tolist() == [5]
    assert np.flatnonzero(read_lamost(mrs_file, mask="or").mask).tolist() == [5, 6]
    assert np.flatnonzero(read_lamost(mrs_file, mask="or", bits=2).mask).tolist() == [6]
    for mask in ("and", "or"):
        single = read_lamost(mrs_file, extension="B-83906016", mask=mask)
        assert np.flatnonzero(single.mask).tolist() == [7]
    assert not read_lamost(mrs_file, extension="B-83906016", mask="ivar").mask.any()


@pytest.mark.parametrize("red", [False, True])
def test_single_precision_loglam_is_undone(mrs_file, red):
    """float32 LOGLAM is off by up to 0.08 km/s; the smooth solution behind it comes back to 0.01."""
    truth = 10 ** np.sort(exposure_loglam(red=red))
    spectrum = read_lamost(mrs_file, extension="R-83906016" if red else "B-83906016")
    published = 10 ** np.sort(exposure_loglam(red=red).astype("f4")).astype(float)
    assert spectrum.meta["wavelength_grid"] == "fit"
    assert np.abs(spectrum.spectral_axis.value / truth - 1).max() * C < 0.02
    assert np.abs(published / truth - 1).max() * C > 0.07


def test_time_from_the_name_of_an_exposure(tmp_path, mrs_file):
    with fits.open(mrs_file) as hdus:
        del hdus["B-83906030"].header["LMJM"]
        hdus.writeto(tmp_path / "b.fits")
    meta = read_lamost(tmp_path / "b.fits", extension="B-83906030").meta
    assert meta["lmjm"].tolist() == [83906030]
    assert meta["time_source"] == "lmjm"


@pytest.mark.parametrize(
    ("options", "message"), [({"arm": "green"}, "'blue', 'red'"), ({"kind": "mean"}, "'coadd' or 'single'")]
)
def test_unknown_parts_are_refused(mrs_file, options, message):
    with pytest.raises(ValueError, match=message):
        read_lamost_mrs(mrs_file, **options)


def test_a_part_that_is_not_there(tmp_path, mrs_file, lrs_file):
    with fits.open(mrs_file) as hdus:
        fits.HDUList([hdus[0], hdus["COADD_B"]]).writeto(tmp_path / "b.fits")
    with pytest.raises(FormatError, match=r"no spectrum with arm='red'.*it has COADD_B"):
        read_lamost_mrs(tmp_path / "b.fits", arm="red")
    with pytest.raises(FormatError, match="low-resolution"):
        read_lamost_mrs(lrs_file)


# --- files that are not what they claim ---


@pytest.mark.parametrize("writer", [write_image, write_table, write_mrs])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_truncated_files_are_refused(tmp_path, writer, keep, packed):
    path = writer(tmp_path / "whole.fits")
    path = gzipped(path) if packed else path
    content = path.read_bytes()
    short = tmp_path / f"short.fits{'.gz' if packed else ''}"
    short.write_bytes(content[: int(keep * len(content))])
    reader = read_lamost_mrs if writer is write_mrs else read_lamost
    with pytest.raises(FormatError, match=r"short\.fits.*(truncated|expected)") as caught:
        reader(short)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a FITS file", b"SIMPLE  =", b"\x1f\x8b\x08", b"\x00" * 5760])
def test_rubbish_is_refused(tmp_path, content):
    path = tmp_path / "rubbish.fits"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"rubbish\.fits: not a readable FITS file"):
        read_lamost(path)


def test_missing_files_and_odd_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.fits"):
        read_lamost(tmp_path / "none.fits")
    with pytest.raises(FileNotFoundError):
        Spectrum.read(tmp_path / "none.fits", format="LAMOST LRS")
    with pytest.raises(TypeError, match="path, an open binary file or an HDUList, got int"):
        read_lamost(5)


def all_nan(data):
    data[0] = np.nan
    return data


def in_nanometres(data):
    data[2] /= 10.0
    return data


def shuffled(data):
    data[2, 100:102] = data[2, 101:99:-1]
    return data


@pytest.mark.parametrize(
    ("writer", "options", "message"),
    [
        (write_image, {"data": rows()[:4]}, "image of 5 rows .*, found 4 x 3909"),
        (write_image, {"data": np.ones((250, 400), "f4")}, "image of 5 rows .*, found 250 x 400"),
        (write_image, {"TELESCOP": "SDSS 2.5-M", "ORIGIN": "SDSS"}, "TELESCOP is 'SDSS 2.5-M'"),
        (write_image, {"data": all_nan(rows())}, "no finite value"),
        (write_image, {"data": in_nanometres(rows())}, "not in Angstrom"),
        (write_image, {"data": shuffled(rows())}, "not monotonic"),
        (write_table, {"repeat": 0}, "the table is empty"),
        (write_table, {"repeat": 2}, "expected one row of arrays, found 2 rows"),
        (
            write_table,
            {"columns": ("FLUX", "IVAR", "LOGLAM", "ANDMASK", "ORMASK")},
            "column WAVELENGTH is missing",
        ),
        (write_table, {"data": all_nan(rows())}, "no finite value"),
    ],
)
def test_wrong_content_is_named(tmp_path, writer, options, message):
    path = writer(tmp_path / "wrong.fits", **options)
    with pytest.raises(FormatError, match=rf"wrong\.fits.*{message}"):
        read_lamost(path)


def test_a_lamost_file_of_another_kind_lists_what_it_has(tmp_path):
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"] = "LAMOST"
    table = fits.BinTableHDU.from_columns([fits.Column("Z", "E", array=[0.1])], name="CATALOG")
    fits.HDUList([primary, table]).writeto(tmp_path / "catalog.fits")
    with pytest.raises(FormatError, match=r"expected an image of 5 rows.*\['CATALOG'\]"):
        read_lamost(tmp_path / "catalog.fits")
    assert not lio.identify_lamost_lrs("read", str(tmp_path / "catalog.fits"))
    assert not lio.identify_lamost_mrs("read", str(tmp_path / "catalog.fits"))


def test_medium_resolution_tables_are_checked(tmp_path, mrs_file):
    with fits.open(mrs_file) as hdus:
        hdus["COADD_B"].data["LOGLAM"][7] = np.nan
        hdus["COADD_R"].data["LOGLAM"][:] = 10 ** hdus["COADD_R"].data["LOGLAM"]
        hdus.writeto(tmp_path / "b.fits")
    with pytest.raises(FormatError, match=r"b\.fits\[COADD_B\]: LOGLAM is not finite"):
        read_lamost(tmp_path / "b.fits")
    with pytest.raises(FormatError, match=r"b\.fits\[COADD_R\]: wavelengths are not in Angstrom"):
        read_lamost(tmp_path / "b.fits", extension="COADD_R")


def test_tables_of_the_wrong_kind(tmp_path):
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"] = "LAMOST"
    fits.HDUList([primary, fits.ImageHDU(rows(), name="COADD")]).writeto(tmp_path / "image.fits")
    with pytest.raises(FormatError, match=r"\[COADD\]: expected a binary table, found ImageHDU"):
        read_lamost(tmp_path / "image.fits")
    loglam = exposure_loglam()
    columns = [fits.Column(name, "4136E", array=loglam[None]) for name in ("FLUX", "IVAR", "LOGLAM", "ANDMASK")]
    fits.HDUList([primary, fits.BinTableHDU.from_columns(columns, name="COADD_B")]).writeto(tmp_path / "row.fits")
    with pytest.raises(FormatError, match=r"\[COADD_B\]: expected one number per row"):
        read_lamost(tmp_path / "row.fits")


def test_a_card_that_cannot_be_parsed_is_only_missing(tmp_path):
    path = write_image(tmp_path / "a.fits", DEC=95.0)
    content = path.read_bytes()
    card = next(content[i : i + 80] for i in range(0, len(content), 80) if content[i : i + 8] == b"OBSID   ")
    path.write_bytes(content.replace(card, b"OBSID   = 680 103 'x".ljust(80)))
    meta = read_lamost(path).meta
    assert meta["obsid"] is None
    assert meta["dec"] is None
    assert meta["fiber"] == 31


def test_identifiers_neither_claim_others_files_nor_writing(tmp_path, lrs_file):
    sdss = fits.PrimaryHDU(rows())
    sdss.header.update(TELESCOP="SDSS 2.5-M", FIBERID=5)
    sdss.writeto(tmp_path / "spSpec.fits")
    for identify in (lio.identify_lamost_lrs, lio.identify_lamost_mrs):
        assert not identify("read", str(tmp_path / "spSpec.fits"))
        assert not identify("write", str(lrs_file))
        assert not identify("read", None, None)
        assert not identify("read", None, None, fits.HDUList([sdss]))
    with open(lrs_file, "rb") as stream:
        stream.seek(17)
        assert lio.identify_lamost_lrs("read", None, stream, stream)
        assert stream.tell() == 17


# --- frames ---


def test_detector_wavelengths_follow_the_sign_of_lamost(lrs_file):
    spectrum = read_lamost(lrs_file)
    ratio = detector_wavelength(spectrum).to_value(u.AA) / spectrum.spectral_axis.to_value(u.AA)
    np.testing.assert_allclose((ratio - 1) * C, -9.40313, rtol=1e-9)
    assert detector_factor(spectrum) == detector_factor(spectrum.meta)


def test_unknown_frames_are_refused():
    with pytest.raises(ValueError, match="'heliocentric' or 'topocentric'"):
        detector_factor({"frame": None, "helio_rv": 3 * u.km / u.s})
    with pytest.raises(ValueError, match="must be a velocity"):
        detector_factor({"frame": "heliocentric", "helio_rv": 3 * u.AA})
    with pytest.raises(TypeError, match="a spectrum or its meta, got int"):
        detector_factor(3)
    assert detector_factor({"frame": "topocentric", "helio_rv": 3 * u.km / u.s}) == 1.0


def test_a_wrong_sign_in_the_header_is_noticed(tmp_path):
    good = read_lamost(write_image(tmp_path / "a.fits"))
    site = EarthLocation.from_geodetic(117.575 * u.deg, 40.393 * u.deg, 960 * u.m)
    expected = -SkyCoord(24.67 * u.deg, 25.91 * u.deg).radial_velocity_correction(
        "heliocentric", obstime=Time("2018-10-05T17:53:40"), location=site
    )
    checked = check_heliocentric(good, warn=False)
    assert checked.computed.to_value("km/s") == pytest.approx(expected.to_value("km/s"), abs=0.005)
    flipped = read_lamost(write_image(tmp_path / "b.fits", HELIO_RV=-float(expected.to_value("km/s")), LONGITUD=None))
    with pytest.warns(FrameWarning, match=r"b\.fits: HELIO_RV = .* time and target imply"):
        assert not check_heliocentric(flipped).agrees


def test_a_check_without_a_velocity_or_a_time(tmp_path):
    meta = dict(read_lamost(write_image(tmp_path / "a.fits")).meta, helio_rv=None)
    with pytest.warns(FrameWarning, match="no HELIO_RV"):
        result = check_heliocentric(meta)
    assert result.difference is None
    assert not result.agrees
    with pytest.raises(ValueError, match="time"):
        check_heliocentric(dict(meta, time=None))
    with pytest.raises(ValueError, match="'ra'"):
        check_heliocentric(dict(meta, ra=None))
    with pytest.raises(TypeError, match="unit of velocity"):
        check_heliocentric(meta, tolerance=0.1)
    with pytest.raises(ValueError, match="positive"):
        check_heliocentric(meta, tolerance=0 * u.km / u.s)


# --- real files ---


def real(data_dir, *folders):
    root = data_dir / "lamost"
    if not root.is_dir():
        pytest.skip("no LAMOST files in LAMOST_LSF_DATA")
    return sorted(path for folder in folders for path in (root / folder).glob("*.fits*"))


def raw_arrays(path):
    """Flux, ivar, wavelength, and-mask, or-mask of a low-resolution file, by astropy alone."""
    with fits.open(path, memmap=False) as hdus:
        if len(hdus) == 1:
            return np.array(hdus[0].data), hdus[0].header
        return [hdus[1].data[name][0] for name in hdus[1].columns.names[:5]], hdus[0].header


def test_every_low_resolution_file_opens_without_naming_a_format(data_dir):
    paths = real(data_dir, *LRS_FOLDERS)
    assert len(paths) >= 10
    for path in paths:
        spectrum = Spectrum.read(path)
        (flux, ivar, wavelength, and_mask, or_mask), header = raw_arrays(path)
        np.testing.assert_array_equal(spectrum.flux.value, flux)
        np.testing.assert_array_equal(spectrum.uncertainty.array, ivar)
        assert spectrum.mask.sum() == np.sum((ivar <= 0) | (and_mask != 0))
        assert read_lamost_arrays(path, mask="or").mask.sum() == np.sum((ivar <= 0) | (or_mask != 0))
        # The axis is the published one, within its single-precision arithmetic, and the header's to 1.5 km/s.
        axis = spectrum.spectral_axis.to_value(u.AA)
        ulp = np.spacing(wavelength.astype(wavelength.dtype.newbyteorder("=")))
        assert np.all(np.abs(axis - wavelength) <= np.maximum(1.25 * ulp, 1e-10))
        grid = 10 ** (header["COEFF0"] + header["COEFF1"] * np.arange(axis.size))
        assert np.abs(axis / grid - 1).max() * C < 1.5
        assert np.ptp(np.diff(np.log10(axis))) < 1e-13
        meta = spectrum.meta
        assert meta["fiber"] == int(path.name.split(".")[0].split("-")[-1][:3]) or path.parent.name in (
            "lrs_dr10_new_layout",
            "lrs_misc",
        )
        assert meta["spectrograph"] == int(header["SPID"])
        assert meta["frame"] == "heliocentric"


def test_minutes_and_dates_of_the_same_header_agree(data_dir):
    """DATE-OBS is the median of the observation, LMJM the start of each exposure."""
    for path in real(data_dir, *LRS_FOLDERS):
        meta = read_lamost_arrays(path).meta
        median = Time(meta["header"]["DATE-OBS"], scale="utc")
        # 49 minutes in one file, whose dates are those of its last exposure; else within 20.
        assert abs((meta["time"].mjd.mean() - median.mjd) * 1440) < 60
        np.testing.assert_array_equal(meta["lmjm"], parse_lmjm_list(meta["header"]["LMJMLIST"]))


def test_published_velocities_agree_with_the_earth(data_dir):
    differences, odd = [], []
    for path in real(data_dir, *LRS_FOLDERS):
        spectrum = read_lamost(path)
        result = check_heliocentric(spectrum, tolerance=0.05 * u.km / u.s, warn=False)
        (differences if result.agrees else odd).append(result.difference.to_value("km/s"))
    assert np.abs(differences).max() < 0.03
    assert np.median(np.abs(differences)) < 0.01
    assert len(odd) <= 1  # a DR1-era file: HELIO_RV = 7.83 where -13.60 is implied


def test_every_medium_resolution_file_opens_without_naming_a_format(data_dir):
    for path in real(data_dir, "mrs_multi_epoch"):
        spectra = SpectrumList.read(path)
        with fits.open(path, memmap=False) as hdus:
            assert len(spectra) == len(hdus) - 1
            for spectrum, hdu in zip(spectra, hdus[1:]):
                order = np.argsort(hdu.data["LOGLAM"], kind="stable")
                np.testing.assert_array_equal(spectrum.flux.value, hdu.data["FLUX"][order])
                flags = hdu.data["ANDMASK" if "ANDMASK" in hdu.columns.names else "PIXMASK"][order]
                assert spectrum.mask.sum() == np.sum((hdu.data["IVAR"][order] <= 0) | (flags != 0))
                loglam = np.log10(spectrum.spectral_axis.to_value(u.AA))
                assert np.abs(loglam - hdu.data["LOGLAM"][order]).max() <= np.spacing(np.float32(3.7))
                if "-" in hdu.name:
                    assert spectrum.meta["lmjm"].tolist() == [float(hdu.name[2:])]
                # Smooth: the second difference of float32 values would scatter by 1e-7 dex.
                assert np.std(np.diff(loglam, 3)) < 1e-11
        assert Spectrum.read(path).meta["extension"] == "COADD_B"


def test_each_medium_resolution_exposure_has_its_own_heliocentric_velocity(data_dir):
    """Exposures of a night share a wavelength solution: their axes move with the Earth, and only with it."""
    site = EarthLocation.from_geodetic(117.575 * u.deg, 40.393 * u.deg, 960 * u.m)
    for path in real(data_dir, "mrs_multi_epoch"):
        spectra = read_lamost_mrs(path, arm="blue", kind="single")
        loglam = [np.log10(spectrum.spectral_axis.to_value(u.AA)).mean() for spectrum in spectra]
        shift = (np.array(loglam) - loglam[0]) * np.log(10) * C
        time = Time([spectrum.meta["time"][0] for spectrum in spectra])
        target = SkyCoord(spectra[0].meta["ra"], spectra[0].meta["dec"])
        earth = target.radial_velocity_correction("heliocentric", obstime=time, location=site).to_value("km/s")
        np.testing.assert_allclose(shift, earth - earth[0], atol=0.01)


def test_the_night_sky_stands_still_on_the_detector(data_dir):
    """Sky lines, seen in the noise, move by minus HELIO_RV in the files, and not on the detector.

    LAMOST subtracts the sky and divides the telluric bands out, so that neither is left in the flux; the
    photon noise of the OH lines stays in the inverse variance.
    """
    step = 6.0  # km/s
    axis = np.arange(np.log(8250.0), np.log(8950.0), step / C)
    noise, velocities, factors = [], [], []
    for path in real(data_dir, "lrs_repeats_dr8", "lrs_dr10_new_layout"):
        arrays = read_lamost_arrays(path)
        near = (arrays.wavelength > 8200.0) & (arrays.wavelength < 9000.0)
        if np.any(arrays.ivar[near] <= 0.0):
            continue
        noise.append((np.log(arrays.wavelength[near]), 1.0 / np.sqrt(arrays.ivar[near])))
        velocities.append(arrays.meta["helio_rv"].to_value("km/s"))
        factors.append(detector_factor(arrays.meta))
    velocities = np.array(velocities)
    assert np.ptp(velocities) > 30.0

    def slope(log_factors):
        """Shift of the sky in km/s per km/s of HELIO_RV, by cross-correlation with the median."""
        sky = []
        for (log_wavelength, sigma), shift in zip(noise, log_factors):
            values = np.interp(axis, log_wavelength + shift, sigma)
            sky.append(values / uniform_filter1d(values, 800) - 1.0)
        median = np.median(sky, axis=0)
        lags = np.arange(-12, 13)
        rolled = [np.roll(median, lag)[50:-50] for lag in lags]
        shifts = []
        for values in sky:
            match = [np.corrcoef(template, values[50:-50])[0, 1] for template in rolled]
            peak = int(np.clip(np.argmax(match), 1, lags.size - 2))
            left, top, right = match[peak - 1 : peak + 2]
            shifts.append((lags[peak] + 0.5 * (left - right) / (left - 2.0 * top + right)) * step)
        return theilslopes(shifts, velocities)[0]

    assert slope(np.zeros(velocities.size)) == pytest.approx(-1.0, abs=0.35)
    assert slope(np.log(factors)) == pytest.approx(0.0, abs=0.35)
