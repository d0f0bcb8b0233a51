"""Arc exposures: what goes in comes out, in vacuum, in order, from arrays, spectra, frames and files."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from specutils import Spectrum, SpectrumList

from lamost_lsf.arcs import ArcExposure, measure_tilt
from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.wavelength import fit_wavelength_solution

TIME = Time("2017-01-10T15:00:00.5", scale="utc")


def arrays(n_fiber=3, n_pix=40):
    rng = np.random.default_rng(5)
    wavelength = 5440.0 + 0.5 * np.arange(n_pix) + 0.01 * np.arange(n_fiber)[:, None]
    return {
        "flux": rng.normal(100, 5, (n_fiber, n_pix)),
        "ivar": np.full((n_fiber, n_pix), 0.04),
        "wavelength": wavelength,
    }


def make(**changes):
    given = arrays()
    given["wavelength"] = given["wavelength"] * u.AA
    facts = {"medium": "vacuum", "time": TIME, "fiber": [1, 2, 250], "arm": "blue", "spectrograph": 4, "lamp": "HgCd"}
    return ArcExposure.from_arrays(**{**given, **facts, **changes})


# -- content ---------------------------------------------------------------------------------------------


def test_air_wavelengths_become_vacuum_ones():
    air, vacuum = (make(wavelength=(arrays()["wavelength"] + 15) * u.AA, medium=m) for m in ("air", "vacuum"))
    # Hg I 5460.750 in air is 5462.267 in vacuum
    shift = np.interp(5460.75, vacuum.wavelength[0], air.wavelength[0])
    assert shift == pytest.approx(5462.267, abs=2e-3)
    with pytest.raises(ValueError, match="'vacuum' or 'air'"):
        make(medium="glass")
    nanometre = make(wavelength=arrays()["wavelength"] * 0.1 * u.nm)
    np.testing.assert_allclose(nanometre.wavelength, arrays()["wavelength"])


def test_one_scale_serves_all_fibers():
    exposure = make(wavelength=arrays()["wavelength"][0] * u.AA)
    assert exposure.wavelength.shape == (3, 40)
    assert np.ptp(exposure.wavelength, axis=0).max() == 0


def test_bad_pixels_are_one_thing():
    values = arrays()
    values["flux"][0, 1] = np.nan
    values["ivar"][1, 2] = -1.0
    values["ivar"][1, 3] = np.inf
    values["ivar"][2, 4] = 0.0
    mask = np.zeros((3, 40), dtype=bool)
    mask[2, 5] = True
    exposure = make(flux=values["flux"], ivar=values["ivar"], mask=mask)
    bad = {tuple(int(i) for i in at) for at in np.argwhere(exposure.mask)}
    assert bad == {(0, 1), (1, 2), (1, 3), (2, 4), (2, 5)}
    assert np.all(exposure.ivar[exposure.mask] == 0)
    assert np.all(np.isfinite(exposure.flux))


def test_the_exposure_is_its_own_copy():
    values = arrays()
    exposure = make(flux=values["flux"])
    values["flux"][:] = 0
    assert exposure.flux.mean() > 50
    with pytest.raises(ValueError, match="read-only"):
        exposure.flux[0, 0] = 1.0
    assert exposure.lmjm == pytest.approx((TIME.mjd * 1440) + 480, abs=1e-5)
    assert (exposure.n_fiber, exposure.n_pix) == (3, 40)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"flux": np.ones(40)}, ValueError, "n_fiber, n_pix"),
        ({"ivar": np.ones((3, 39))}, ValueError, "ivar has shape"),
        ({"wavelength": arrays()["wavelength"][:, ::-1] * u.AA}, ValueError, "increase.*flip"),
        ({"wavelength": np.roll(arrays()["wavelength"], 3, axis=1) * u.AA}, ValueError, "row 0.*pixel 2; sort"),
        ({"wavelength": arrays()["wavelength"] * np.nan * u.AA}, ValueError, "finite"),
        ({"wavelength": arrays()["wavelength"]}, TypeError, "unit"),
        ({"fiber": [1, 2]}, ValueError, "3 integers"),
        ({"fiber": [1.0, 2.0, 3.0]}, ValueError, "3 integers"),
        ({"fiber": [1, 2, 2]}, ValueError, "differ"),
        ({"fiber": [0, 1, 2]}, OutOfRangeError, "counted from 1, got 0"),
        ({"fiber": [1, 2, 251], "instrument": "lamost-lrs-blue"}, OutOfRangeError, "fibre 251"),
        ({"spectrograph": 17, "instrument": "lamost-lrs-blue"}, OutOfRangeError, "spectrograph 17"),
        ({"spectrograph": 0}, ValueError, "from 1"),
        ({"instrument": "lamost-lrs-red"}, ValueError, "red arm, the exposure is of the 'blue'"),
        ({"instrument": "lamost-lrs-blau"}, LookupError, "did you mean lamost-lrs-blue"),
        ({"time": "2017-01-10"}, TypeError, "astropy Time"),
        ({"time": Time([TIME, TIME])}, TypeError, "scalar"),
        ({"time_reference": "end"}, ValueError, "'start' or 'mid'"),
    ],
)
def test_wrong_exposures_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


# -- spectra ---------------------------------------------------------------------------------------------


def spectra(uncertainty=InverseVariance, **meta):
    values = arrays()
    kinds = {InverseVariance: 0.04, VarianceUncertainty: 25.0, StdDevUncertainty: 5.0}
    facts = {"wavelength_medium": "vacuum", "arm": "blue", "spectrograph": 4, "time": Time([TIME]), **meta}
    return SpectrumList(
        [
            Spectrum(
                flux=values["flux"][i] * u.ct,
                spectral_axis=values["wavelength"][i] * u.AA,
                uncertainty=uncertainty(np.full(40, kinds[uncertainty])),
                mask=np.arange(40) == i,
                meta={"fiber": 10 + i, **facts},
            )
            for i in range(3)
        ]
    )


@pytest.mark.parametrize("uncertainty", [InverseVariance, VarianceUncertainty, StdDevUncertainty])
def test_spectra_become_an_exposure(uncertainty):
    exposure = ArcExposure.from_spectra(spectra(uncertainty), lamp="HgCd")
    assert exposure.fiber.tolist() == [10, 11, 12]
    assert (exposure.arm, exposure.spectrograph) == ("blue", 4)
    assert abs((exposure.time - TIME).to_value(u.s)) < 1e-6
    np.testing.assert_allclose(exposure.ivar[0, 1:], 0.04)
    np.testing.assert_array_equal(exposure.mask, np.eye(3, 40, dtype=bool))
    np.testing.assert_array_equal(exposure.flux, arrays()["flux"])


def test_what_spectra_do_not_say_must_be_said():
    with pytest.raises(ValueError, match="pass medium="):
        ArcExposure.from_spectra(spectra(wavelength_medium=None))
    with pytest.raises(ValueError, match="pass arm="):
        ArcExposure.from_spectra(spectra(arm=None))
    exposure = ArcExposure.from_spectra(
        spectra(wavelength_medium=None, arm=None, time=None), medium="air", arm="red", time=TIME, fiber=[3, 2, 1]
    )
    assert exposure.fiber.tolist() == [3, 2, 1]
    assert exposure.wavelength[0, 0] > 5441.4
    with pytest.raises(ValueError, match="no 'time'"):
        ArcExposure.from_spectra(spectra(time=None))
    with pytest.raises(ValueError, match="times differ"):
        ArcExposure.from_spectra(spectra(time=Time([TIME, TIME])))
    mixed = spectra()
    mixed[1].meta["arm"] = "red"
    with pytest.raises(ValueError, match="differ in arm"):
        ArcExposure.from_spectra(mixed)


def test_spectra_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no spectra"):
        ArcExposure.from_spectra([])
    short = spectra()
    short[1] = short[1][:30]
    with pytest.raises(ValueError, match="of one length"):
        ArcExposure.from_spectra(short)
    bare = Spectrum(flux=np.ones(40) * u.ct, spectral_axis=arrays()["wavelength"][0] * u.AA)
    with pytest.raises(ValueError, match="spectrum 0 has no uncertainty"):
        ArcExposure.from_spectra([bare])


# -- long slit -------------------------------------------------------------------------------------------


def slit(n_rows=30, n_columns=300, slope=0.03, curve=-0.0015, stretch=0.1):
    """A frame with tilted, curved lines; and where the light of each pixel lies, relative to row 15."""
    row, column = np.mgrid[0:n_rows, 0:n_columns].astype(float)
    tilt = slope * (row - 15) + curve * (row - 15) ** 2 + stretch * slope * (row - 15) * (column / n_columns - 0.5)
    lines = np.array([30.0, 95.0, 160.0, 225.0, 270.0])
    frame = 50.0 + sum(2000 * np.exp(-0.5 * ((column - tilt - c) / 1.8) ** 2) for c in lines)
    return frame, tilt, lines


def solution(sign=1.0, n_columns=300):
    pixel = np.linspace(0, n_columns - 1, 12)
    return fit_wavelength_solution(
        pixel, (6000.0 + sign * 4.0 * (pixel - 150)) * u.AA, degree=2, domain=(0, n_columns - 1), sigma_clip=None
    )


def test_tilt_is_measured_to_a_hundredth_of_a_pixel():
    frame, tilt, lines = slit()
    noisy = frame + np.random.default_rng(1).normal(0, 8, frame.shape)
    noisy[20, 90:95] += 40000  # a cosmic ray on a line
    measured = measure_tilt(noisy, lines, rows=(2, 28), reference=15)
    # between the lines; beyond the last ones it is an extrapolation
    assert np.abs(measured - tilt[2:28])[:, 30:270].max() < 0.03
    assert np.all(measured[13] == 0)


def test_a_line_keeps_its_wavelength_in_every_row():
    frame, tilt, lines = slit()
    for sign in (1.0, -1.0):
        exposure = ArcExposure.from_long_slit(
            frame, solution(sign), rows=(2, 28), time=TIME, arm="red", tilt=tilt[2:28], gain=2.0, read_noise=4.0
        )
        assert exposure.fiber[[0, -1]].tolist() == [3, 28]
        truth = np.sort(6000.0 + sign * 4.0 * (lines - 150))
        for w in truth:
            inside = np.abs(exposure.wavelength - w) < 30
            light = np.where(inside, exposure.flux - 50, 0)
            center = (light * exposure.wavelength).sum(1) / light.sum(1)
            np.testing.assert_allclose(center, w, atol=0.03)
    # electrons: flux / gain + (read noise / gain)^2, in counts
    variance = 1 / exposure.ivar
    np.testing.assert_allclose(variance, exposure.flux / 2.0 + 4.0)


def test_one_solution_a_row_is_the_same_as_a_tilt():
    frame, _, _ = slit(stretch=0.0)
    rows = np.arange(5, 9)
    shift = 0.03 * (rows - 15) - 0.0015 * (rows - 15.0) ** 2
    pixel = np.linspace(0, 299, 12)
    solutions = [
        fit_wavelength_solution(
            pixel, (6000.0 + 4.0 * (pixel - s - 150)) * u.AA, degree=2, domain=(0, 299), sigma_clip=None
        )
        for s in shift
    ]
    options = {"rows": (5, 9), "time": TIME, "arm": "red", "ivar": np.ones_like(frame)}
    one = ArcExposure.from_long_slit(frame, solutions, **options)
    two = ArcExposure.from_long_slit(frame, solution(), tilt=np.repeat(shift[:, None], 300, 1), **options)
    first = two.wavelength[0, 0]
    start = np.argmin(np.abs(one.wavelength[0] - first))
    np.testing.assert_allclose(one.wavelength[:, start : start + two.n_pix], two.wavelength, atol=1e-6)


def test_wrong_frames_are_refused():
    frame, tilt, lines = slit()
    options = {"time": TIME, "arm": "red", "gain": 1.0, "read_noise": 3.0}

    one = solution()

    def refused(message, frame=frame, solution=one, rows=(2, 28), **changes):
        with pytest.raises(ValueError, match=message):
            ArcExposure.from_long_slit(frame, solution, rows=rows, **{**options, **changes})

    refused("two-dimensional", frame=frame[0])
    refused("within 0 to 30", rows=(2, 31))
    refused("pass ivar=", gain=None)
    refused("mask has shape", mask=np.zeros((2, 2), dtype=bool))
    refused("2 solutions for 26 rows", solution=[solution(), solution()])
    refused("tilt must be finite and of shape", tilt=tilt)
    refused("less than 16 columns", tilt=np.full((26, 300), 290.0))
    with pytest.raises(ValueError, match="do not lie within"):
        measure_tilt(frame, lines, rows=(0, 99))
    with pytest.raises(ValueError, match="reference must be"):
        measure_tilt(frame, lines, rows=(0, 30), reference=30)
    with pytest.raises(ValueError, match="2 lines or more"):
        measure_tilt(frame, [95.0], rows=(0, 30))
    with pytest.raises(ValueError, match="away from the frame's edges"):
        measure_tilt(frame, [2.0, 95.0], rows=(0, 30))
    with pytest.raises(ValueError, match="could not be found"):
        measure_tilt(np.zeros_like(frame), lines, rows=(0, 30))


# -- files -----------------------------------------------------------------------------------------------

META = {
    "temperature": 4.25 * u.deg_C,
    "file": "rb-16-16b-20170110.fits",
    "saturation": 60000,
    "nothing": None,
    "list": [1, 2.5, "x"],
    "when": TIME,
    "array": np.arange(3),
    "Å": {"nested": True},
}


def test_a_file_holds_all_of_it(tmp_path):
    meta = {k: v for k, v in META.items() if k.isascii()}
    exposure = make(instrument="lamost-lrs-blue", meta=meta, time_reference="mid")
    path = tmp_path / "arc.fits"
    exposure.write(path)
    again = ArcExposure.read(path)
    for name in ("flux", "ivar", "mask", "wavelength", "fiber"):
        np.testing.assert_array_equal(getattr(again, name), getattr(exposure, name))
    for name in ("arm", "lamp", "instrument", "spectrograph", "time_reference"):
        assert getattr(again, name) == getattr(exposure, name)
    assert abs((again.time - TIME).to_value(u.ns)) < 1
    assert again.meta["temperature"] == 4.25 * u.deg_C
    assert again.meta["list"] == [1, 2.5, "x"]
    assert again.meta["nothing"] is None
    assert again.meta["array"] == [0, 1, 2]
    assert abs((again.meta["when"] - TIME).to_value(u.s)) < 1e-3
    with fits.open(path) as hdus:  # as the documentation has it
        assert [h.name for h in hdus[1:]] == ["FLUX", "IVAR", "MASK", "WAVELENGTH", "FIBER", "META"]
        assert hdus[0].header["WAVEMED"] == "vacuum"
        assert hdus[0].header["LMJM"] == pytest.approx(exposure.lmjm)
    with pytest.raises(FileExistsError):
        exposure.write(path)
    make().write(path, overwrite=True)
    assert ArcExposure.read(path).meta == {}


def test_what_a_file_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"meta\['model.inner'\] is of type object"):
        make(meta={"model": {"inner": object()}}).write(tmp_path / "a.fits")
    with pytest.raises(TypeError, match="ASCII"):
        make(meta=META).write(tmp_path / "a.fits")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_files_are_never_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "arc.fits"
    make().write(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        content = content[: data.draw(st.integers(0, len(content) - 2881), label="length")]
    else:
        # anywhere in the data of the images
        with fits.open(path) as hdus:
            info = hdus[data.draw(st.sampled_from(["FLUX", "IVAR", "MASK", "WAVELENGTH"]))].fileinfo()
        at = info["datLoc"] + data.draw(st.integers(0, 100), label="byte")
        content[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    path.write_bytes(bytes(content))
    with pytest.raises(FormatError):
        ArcExposure.read(path)


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        ArcExposure.read(tmp_path / "absent.fits")
    path = tmp_path / "x.fits"
    path.write_text("hello")
    with pytest.raises(FormatError, match="damaged or no FITS file"):
        ArcExposure.read(path)
    fits.writeto(path, np.zeros((3, 3)), overwrite=True)
    with pytest.raises(FormatError, match="LSFFMT is None"):
        ArcExposure.read(path)
    make().write(path, overwrite=True)

    def rewritten(**cards):
        with fits.open(path, mode="update", checksum=True) as hdus:
            hdus[0].header.update(cards)
        return path

    with pytest.raises(FormatError, match="layout version 2"):
        ArcExposure.read(rewritten(LSFVER=2))
    with pytest.raises(FormatError, match="in 'air', not in vacuum"):
        ArcExposure.read(rewritten(LSFVER=1, WAVEMED="air"))
    with pytest.raises(FormatError, match="instrument that is not known here"):
        ArcExposure.read(rewritten(WAVEMED="vacuum", INSTRUME="absent"))
    with fits.open(path) as hdus:
        del hdus["IVAR"]
        hdus.writeto(path, overwrite=True, checksum=True)
    with pytest.raises(FormatError, match="incomplete"):
        ArcExposure.read(path)
