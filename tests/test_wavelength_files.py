"""`WavelengthSolution` in ASDF and ECSV files: nothing lost, nothing damaged taken for whole."""

import asdf
import astropy.units as u
import numpy as np
import pytest
from astropy.modeling import Fittable1DModel, Parameter
from astropy.modeling.models import Chebyshev1D, Spline1D, Tabular1D
from astropy.table import QTable, Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import make_lsq_spline
from specutils import Spectrum

from lamost_lsf.errors import FormatError
from lamost_lsf.wavelength import WavelengthSolution, fit_wavelength_solution

FORMATS = ["asdf", "ecsv"]


def make(fitter="legendre", n=24, seed=0, **options):
    """A solution with rejected lines of several kinds, labels beyond ASCII and NaN in its table."""
    rng = np.random.default_rng(seed)
    pixel = np.sort(rng.uniform(0, 2000, n))
    wavelength = 5000 + 0.7 * pixel + 3e-6 * pixel**2 + rng.normal(0, 0.02, n)
    wavelength[5] += 9.0
    pixel[2] = np.nan
    reject = [""] * n
    reject[8] = 'blend, "Ne I" and Hg'
    label = [f"Ar {'I' * (1 + number % 2)} №{number}" for number in range(n)]
    label[3] = ""
    options = {"degree": 4, "domain": (0, 2047), "label": label, "reject": reject, "center": "half"} | options
    return fit_wavelength_solution(pixel, wavelength * u.AA, fitter=fitter, error=0.02 * u.AA, **options)


def fit_chebyshev(pixel, wavelength, *, error=None, degree=5, domain):
    series = np.polynomial.Chebyshev.fit(pixel, wavelength, degree, domain=domain, w=1 / error)
    return Chebyshev1D(degree, domain=domain, **{f"c{i}": c for i, c in enumerate(series.coef)})


def fit_spline(pixel, wavelength, *, error=None, degree=5, domain):
    knots = np.concatenate([[domain[0] - 1] * 4, np.linspace(*domain, 4)[1:-1], [domain[1] + 1] * 4])
    spline = make_lsq_spline(pixel, wavelength, knots, k=3, w=1 / error)
    return Spline1D(knots=spline.t, coeffs=spline.c, degree=3)


def fit_table(pixel, wavelength, *, error=None, degree=5, domain):
    nodes = np.linspace(domain[0] - 1, domain[1] + 1, 50)
    return Tabular1D(points=nodes, lookup_table=np.polynomial.Polynomial.fit(pixel, wavelength, degree)(nodes))


def assert_same(found, expected):
    assert type(found.model) is type(expected.model)
    assert_array_equal(found.model.parameters, expected.model.parameters)
    pixel = np.linspace(-1, 2049, 5001)
    assert_array_equal(found(pixel).value, expected(pixel).value)
    assert_array_equal(found.uncertainty(pixel).value, expected.uncertainty(pixel).value)
    assert_array_equal(found.covariance, expected.covariance)
    assert found.lines.colnames == expected.lines.colnames
    for name in expected.lines.colnames:
        assert_array_equal(np.asarray(found.lines[name]), np.asarray(expected.lines[name]), err_msg=name)
        assert getattr(found.lines[name], "unit", None) == getattr(expected.lines[name], "unit", None)
    for name in ("domain", "fitter", "center", "degree", "provenance", "medium"):
        assert getattr(found, name) == getattr(expected, name), name
    assert_array_equal(found.extrapolates(pixel), expected.extrapolates(pixel))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fitter", ["legendre", "polynomial", fit_chebyshev, fit_spline, fit_table])
def test_what_is_written_is_read_bit_for_bit(tmp_path, format, fitter):
    solution = make(fitter)
    assert len(solution.rejected) == 3
    path = tmp_path / f"arc.{format}"
    solution.write(path)
    assert_same(WavelengthSolution.read(path), solution)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), reason=st.text(max_size=30), label=st.text(max_size=30))
def test_any_text_survives(tmp_path, format, seed, reason, label):
    solution = make(seed=seed, reject=[reason] + [""] * 23, label=[label] * 24)
    path = tmp_path / f"arc.{format}"
    solution.write(path, overwrite=True)
    assert_same(WavelengthSolution.read(path), solution)


@pytest.mark.parametrize("format", FORMATS)
def test_without_errors_center_or_labels(tmp_path, format):
    pixel = np.linspace(0, 99, 9)
    solution = fit_wavelength_solution(pixel, (5000 + pixel) * u.AA, degree=1)
    path = tmp_path / "arc.data"
    solution.write(path, format=format)
    found = WavelengthSolution.read(path)
    assert found.center is None
    assert np.isnan(found.lines["error"]).all()
    assert_array_equal(found(pixel).value, solution(pixel).value)


@pytest.mark.parametrize("format", FORMATS)
def test_other_software_can_read_it(tmp_path, format):
    solution = make()
    path = tmp_path / f"arc.{format}"
    solution.write(path)
    if format == "ecsv":
        table = Table.read(path)
        assert table["wavelength"].unit == u.AA
        assert_array_equal(table["used"], solution.lines["used"])
        assert "\n" not in str(table["reason"][5])
    else:
        with asdf.open(path) as file:
            assert file["wavelength_solution"]["model"](100.0) == solution.model(100.0)


def test_gwcs_survives_asdf_without_this_package(tmp_path):
    solution = make()
    path = tmp_path / "wcs.asdf"
    with asdf.AsdfFile({"wcs": solution.to_gwcs()}) as file:
        file.write_to(path)
    with asdf.open(path, lazy_load=False, memmap=False) as file:
        wcs = file["wcs"]
        spectrum = Spectrum(np.ones(2048) * u.Jy, wcs=wcs)
    assert_array_equal(spectrum.spectral_axis.value, solution(np.arange(2048)).value)
    assert_allclose(wcs.world_to_pixel_values(solution(777.125).value), 777.125, atol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_an_existing_file_is_safe(tmp_path, format):
    path = tmp_path / f"arc.{format}"
    first, second = make(), make(seed=1)
    first.write(path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        second.write(path)
    assert_same(WavelengthSolution.read(path), first)
    second.write(path, overwrite=True)
    assert_same(WavelengthSolution.read(path), second)


class Unknown(Fittable1DModel):
    """A model that ASDF has never heard of."""

    slope = Parameter(default=1.0)

    @staticmethod
    def evaluate(x, slope):
        return 5000 + slope * x


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_that_cannot_be_saved_leaves_the_old_file(tmp_path, format):
    path = tmp_path / f"arc.{format}"
    old = make()
    old.write(path)
    new = make(lambda pixel, wavelength, *, error=None, degree=5, domain: Unknown(0.7))
    with pytest.raises(TypeError, match="Unknown has no ASDF representation"):
        new.write(path, overwrite=True)
    assert_same(WavelengthSolution.read(path), old)
    assert len(list(tmp_path.iterdir())) == 1


def test_where_and_how_to_write(tmp_path):
    solution = make()
    with pytest.raises(ValueError, match=r"'asdf' or 'ecsv'.*\.asdf or \.ecsv"):
        solution.write(tmp_path / "arc.fits")
    with pytest.raises(ValueError, match="'asdf' or 'ecsv'"):
        solution.write(tmp_path / "arc.asdf", format="pickle")
    with pytest.raises(FileNotFoundError, match="folder"):
        solution.write(tmp_path / "nowhere" / "arc.asdf")
    with pytest.raises(FileNotFoundError):
        WavelengthSolution.read(tmp_path / "nothing.asdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_refused(tmp_path, format):
    """Cut anywhere, down to one byte missing: the last number of a text table may still look like one."""
    solution = make()
    whole = tmp_path / f"whole.{format}"
    solution.write(whole)
    content = whole.read_bytes()
    # the trailing line break of a text, and the block index that ends an ASDF file, carry nothing
    end = len(content.rstrip()) if format == "ecsv" else content.rindex(b"#ASDF BLOCK INDEX")
    cut = tmp_path / f"cut.{format}"
    for length in [0, 1, 5, *np.linspace(10, end - 1, 60).astype(int), end - 2, end - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(FormatError, match=r"cut\."):
            WavelengthSolution.read(cut)


@pytest.mark.parametrize("format", FORMATS)
def test_an_altered_file_is_refused(tmp_path, format):
    solution = make()
    path = tmp_path / f"arc.{format}"
    solution.write(path)
    content = bytearray(path.read_bytes())
    if format == "ecsv":
        text = content.decode()
        last = text.rstrip().splitlines()[-1]
        path.write_text(text.replace(last, last.replace("5", "6", 1)))
    else:
        block = content.index(np.float64(solution.model.parameters[0]).tobytes())
        content[block] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(FormatError, match=r"altered|damaged"):
        WavelengthSolution.read(path)


@pytest.mark.parametrize("format", FORMATS)
def test_another_version_is_refused_by_name(tmp_path, format):
    path = tmp_path / f"arc.{format}"
    make().write(path)
    if format == "asdf":
        with asdf.open(path, lazy_load=False, memmap=False) as file:
            tree = dict(file.tree["wavelength_solution"])
        tree["version"] = 2
        asdf.AsdfFile({"wavelength_solution": tree}).write_to(path)
    else:
        table = QTable.read(path)
        table.meta["wavelength_solution"]["version"] = 2
        table.write(path, overwrite=True)
    with pytest.raises(FormatError, match=r"format version 2; this release of lamost_lsf reads version 1"):
        WavelengthSolution.read(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign"
    path.write_bytes(b"SIMPLE  =                    T")
    with pytest.raises(FormatError, match="neither an ASDF nor an ECSV file"):
        WavelengthSolution.read(path)
    Table({"a": [1]}).write(path, format="ascii.ecsv", overwrite=True)
    with pytest.raises(FormatError, match="does not hold a wavelength solution"):
        WavelengthSolution.read(path)
    with asdf.AsdfFile({"a": 1}) as file:
        file.write_to(path)
    with pytest.raises(FormatError, match="does not hold a wavelength solution"):
        WavelengthSolution.read(path)
