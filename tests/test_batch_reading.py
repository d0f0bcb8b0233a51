"""The quick reader of surveys is the general one, faster; reading ahead keeps the order."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.testing import assert_array_equal
from survey_files import write_star

from lamost_lsf.batch.reading import _read_plain, read_ahead, read_spectrum
from lamost_lsf.rv import RVFlag
from lamost_lsf.rv.spectra import as_arrays

N = 500
WAVELENGTH = 10 ** (float(np.float32(3.5682)) + 1e-4 * np.arange(N))


def content(seed=1):
    rng = np.random.default_rng(seed)
    flux, ivar, mask = rng.normal(100, 5, N), rng.uniform(0, 1, N), (rng.uniform(size=N) < 0.1) * 4.0
    flux[7], ivar[8], ivar[9] = np.nan, -1, np.inf
    return flux, ivar, mask


def table_file(path, **cards):
    flux, ivar, mask = content()
    write_star(path, WAVELENGTH, flux, ivar, fiber=7, obsid=5, mask=mask, **cards)
    return str(path)


def image_file(path, **cards):
    flux, ivar, mask = content()
    hdu = fits.PrimaryHDU(np.array([flux, ivar, WAVELENGTH, mask, 2 * mask]).astype(">f4"))
    hdu.header.update({"TELESCOP": "LAMOST", "SPID": 3, "FIBERID": 9, "LMJMLIST": "84091500-84091533", **cards})
    hdu.writeto(path)
    return str(path)


def assert_same(first, second):
    assert first.flags == second.flags
    for name in ("wavelength", "flux", "ivar"):
        assert_array_equal(getattr(first, name), getattr(second, name))
    assert list(first.meta) == list(second.meta)
    for name, value in first.meta.items():
        if "header" not in name:
            other = second.meta[name]
            assert type(value) is type(other), name
            assert np.all(value == other), name


@pytest.mark.parametrize("write", [table_file, image_file])
@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
@pytest.mark.parametrize("mask", ["and", "or", "ivar"])
def test_the_quick_reader_reads_what_the_general_one_does(tmp_path, write, suffix, mask):
    path = write(tmp_path / f"star{suffix}", OBJECT="O'Neil / 7 & more", Z=-1.5e-3, SNRG=12, HELIO_RV=-9.4)
    quick = as_arrays(_read_plain(path, mask))  # and not the general reader that it falls back to
    assert_same(quick, as_arrays(path, mask=mask))
    assert quick.ivar[7] == quick.ivar[8] == quick.ivar[9] == 0
    assert np.ptp(quick.wavelength) == pytest.approx(np.ptp(WAVELENGTH), rel=1e-7)


def test_every_real_file_reads_the_same(data_dir):
    paths = sorted(str(p) for p in (data_dir / "lamost").rglob("*.fits*"))[::3]
    assert len(paths) > 40
    quick = 0
    for path in paths:
        assert_same(read_spectrum(path), as_arrays(path))
        try:
            quick += _read_plain(path, "and") is not None
        except Exception:
            assert "med-" in path or "lrs_misc" in path
    assert quick > 0.9 * len([p for p in paths if "med-" not in p])


@pytest.mark.parametrize(
    "cards",
    [
        {"LONGSTR": "x" * 100},  # goes on in CONTINUE cards
        {"HIERARCH a long keyword": 1},
        {"VACUUM": False},
        {"TELESCOP": "SDSS"},
        {"SPID": 99},
        {"HELIO": None, "HELIO_RV": None},
    ],
    ids=lambda cards: next(iter(cards)),
)
@pytest.mark.filterwarnings("ignore::lamost_lsf.errors.LamostLSFWarning")
def test_the_unusual_is_read_as_the_general_reader_reads_it(tmp_path, cards):
    path = table_file(tmp_path / "star.fits.gz", **cards)
    assert_same(read_spectrum(path), as_arrays(path))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_damaged_files_are_never_read_in_part(tmp_path, keep, suffix):
    whole = Path(table_file(tmp_path / f"star{suffix}")).read_bytes()
    data_end = 0
    if suffix == ".fits":
        with fits.open(tmp_path / "star.fits") as hdus:
            data_end = hdus[1].fileinfo()["datLoc"] + hdus[1].header["NAXIS1"]  # what follows is padding
    n = int(keep * (len(whole) if suffix == ".fits.gz" else data_end)) if isinstance(keep, float) else keep
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[:n])
    assert read_spectrum(str(path)).flags == RVFlag.UNREADABLE


def test_a_changed_byte_of_a_compressed_file_is_noticed(tmp_path):
    whole = bytearray(Path(table_file(tmp_path / "star.fits.gz")).read_bytes())
    whole[-6] ^= 1  # of the checksum
    (tmp_path / "star.fits.gz").write_bytes(whole)
    found = read_spectrum(str(tmp_path / "star.fits.gz"))
    assert found.flags == RVFlag.UNREADABLE
    assert "CRC" in found.message
    (tmp_path / "other.fits.gz").write_bytes(gzip.compress(b"no FITS"))
    assert read_spectrum(str(tmp_path / "other.fits.gz")).flags == RVFlag.UNREADABLE


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_reading_ahead_keeps_order_and_batches(tmp_path, threads):
    paths = [table_file(tmp_path / f"{i}.fits", OBSID=i) for i in range(7)]
    paths.insert(3, str(tmp_path / "missing.fits"))
    batches = list(read_ahead([(path, "") for path in paths], 3, threads=threads))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    found = [item.meta.get("obsid") for batch in batches for item in batch]
    assert found == [0, 1, 2, None, 3, 4, 5, 6]
    # whoever stops early is not kept waiting
    early = read_ahead([(path, "") for path in paths], 2, threads=threads)
    next(early)
    early.close()


def test_no_more_than_two_batches_are_read_ahead(tmp_path):
    path = table_file(tmp_path / "star.fits")
    asked = []

    def items():
        for i in range(20):
            asked.append(i)
            yield path, ""

    batches = read_ahead(items(), 4)
    for done in range(1, 5):
        next(batches)
        assert len(asked) <= 4 * (done + 1)
