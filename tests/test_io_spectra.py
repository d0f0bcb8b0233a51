"""Spectra written and read back: nothing is lost that a spectrum says of itself."""

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import InverseVariance, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal
from specutils import Spectrum

from lamost_lsf.errors import FormatError
from lamost_lsf.io import read_spectrum, write_spectrum

AXIS = np.array([4999.0, 5000.5, 5002.25]) * u.AA


def spectrum(flux=(1.0, np.nan, 3.0), unit=u.dimensionless_unscaled, **kwargs):
    return Spectrum(flux=np.asarray(flux) * unit, spectral_axis=AXIS, **kwargs)


@pytest.mark.parametrize("name", ["s.fits", "s.fits.gz", "s.ecsv"])
@pytest.mark.parametrize("unit", [u.dimensionless_unscaled, u.erg / u.s / u.cm**2 / u.AA])
@pytest.mark.parametrize("kind", [None, StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_round_trip_without_naming_a_format(tmp_path, name, unit, kind):
    uncertainty = None if kind is None else kind([0.1, 0.2, 0.3])
    meta = {"name": "star", "kernel_center": "half", "wavelength_medium": "air", "frame": None, "other": object()}
    before = spectrum(unit=unit, uncertainty=uncertainty, mask=np.array([False, True, False]), meta=meta)
    write_spectrum(before, tmp_path / name)
    after = Spectrum.read(tmp_path / name)
    assert_array_equal(after.spectral_axis.value, AXIS.value)
    assert_array_equal(after.flux.value, [1.0, np.nan, 3.0])
    assert after.flux.unit == unit
    assert_array_equal(after.mask, [False, True, False])
    assert after.meta == {"name": "star", "kernel_center": "half", "wavelength_medium": "air"}
    if kind is None:
        assert after.uncertainty is None
    else:
        assert type(after.uncertainty) is kind
        assert_array_equal(after.uncertainty.array, [0.1, 0.2, 0.3])
        assert (after.uncertainty.unit or u.one) == (before.uncertainty.unit or u.one)


@given(flux=arrays(np.float64, 3, elements=st.floats(width=64)))
def test_every_float_survives(tmp_path_factory, flux):
    folder = tmp_path_factory.mktemp("floats")
    for name in ("s.fits", "s.ecsv"):
        write_spectrum(spectrum(flux), folder / name)
        assert_array_equal(read_spectrum(folder / name).flux.value, flux)


def test_existing_file_is_kept_unless_asked(tmp_path):
    path = tmp_path / "s.fits"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="exists"):
        write_spectrum(spectrum(), path)
    assert path.read_text() == "precious"
    write_spectrum(spectrum(), path, overwrite=True)
    assert read_spectrum(path).flux.size == 3
    assert [p.name for p in tmp_path.iterdir()] == ["s.fits"]


def test_bad_arguments_write_nothing(tmp_path):
    with pytest.raises(TypeError, match="specutils Spectrum"):
        write_spectrum([1, 2], tmp_path / "s.fits")
    with pytest.raises(ValueError, match="must end in"):
        write_spectrum(spectrum(), tmp_path / "s.txt")
    two = Spectrum(flux=np.ones((2, 3)) * u.one, spectral_axis=AXIS, spectral_axis_index=1)
    with pytest.raises(ValueError, match="one spectrum makes one file"):
        write_spectrum(two, tmp_path / "s.fits")
    with pytest.raises(TypeError, match="uncertainty must be"):
        write_spectrum(spectrum(uncertainty=UnknownUncertainty([1, 2, 3])), tmp_path / "s.fits")
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_spectrum(tmp_path / "none.fits")
    write_spectrum(spectrum(), tmp_path / "s.fits")
    (tmp_path / "short.fits").write_bytes((tmp_path / "s.fits").read_bytes()[:3000])
    with pytest.raises(FormatError, match=r"short\.fits"):
        read_spectrum(tmp_path / "short.fits")
    from astropy.table import QTable

    QTable({"wavelength": AXIS}).write(tmp_path / "other.ecsv")
    with pytest.raises(FormatError, match="not a spectrum written by lamost_lsf: origin is None"):
        read_spectrum(tmp_path / "other.ecsv")
