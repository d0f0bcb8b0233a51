"""`calibrate` on real arcs: re-centred lines, archived solutions, and identification from the pattern alone."""

import re
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table

from lamost_lsf.calibration import calibrate
from lamost_lsf.errors import FitWarning
from lamost_lsf.lines import LineList
from lamost_lsf.units import air_to_vacuum
from lamost_lsf.wavelength import fit_wavelength_solution

#: Arcs of single exposures and their lamps. (The archive also holds spectra stitched from several settings.)
SINGLE = {
    "gtc_osiris_R2500I": "XeNeArHg",
    "lbt_mods2r_red": "ArNeKrXe",
    "ldt_deveny_150_HgCdAr": "HgCdAr",
    "mmt_binospec_270": "HeNeAr",
    "mmt_bluechannel_832GPM_order1": "HeNeAr",
    "not_alfosc_grism17": "HeNe",
    "not_alfosc_grism19": "HeNeAr",
    "p200_dbsp_blue_1200_5000_d68_6000": "FeAr",
    "p200_dbsp_blue_600_4000_d68": "FeAr",
    "p200_dbsp_red_1200_9400_d55_8800": "HeNeAr",
    "shane_kast_red_300_7500": "NeHgHeAr",
    "shane_kast_red_600_7500": "NeHgHeAr",
    "wht_isis_blue_1200_4800": "CuNeAr",
}
#: Of these, those whose archived scale is good to 0.1 pixel at the lines.
ACCURATE = (
    "lbt_mods2r_red",
    "ldt_deveny_150_HgCdAr",
    "mmt_binospec_270",
    "mmt_bluechannel_832GPM_order1",
    "not_alfosc_grism19",
    "p200_dbsp_blue_1200_5000_d68_6000",
    "p200_dbsp_blue_600_4000_d68",
    "p200_dbsp_red_1200_9400_d55_8800",
    "shane_kast_red_300_7500",
    "shane_kast_red_600_7500",
    "wht_isis_blue_1200_4800",
)


def lamp(data_dir, elements):
    """Lines of a lamp, by the symbols of its elements."""
    vacuum, species, intensity = [], [], []
    for element in re.findall("[A-Z][a-z]", elements):
        for ion in {"Ar": ("ArI", "ArII")}.get(element, (element + "I",)):
            path = data_dir / "linelists" / "pypeit_vac" / f"{ion}_lines.dat"
            if path.is_file():
                lines = LineList.read(path)
                vacuum += list(lines.vacuum)
                species += list(lines.species)
                intensity += list(lines.intensity)
            elif element == "Cu":
                for row in (data_dir / "linelists" / "rascal" / "cu.csv").read_text().splitlines():
                    if not row.startswith("#"):
                        air, strength = row.split(",")[:2]
                        vacuum.append(float(air_to_vacuum(float(air))))
                        species.append("Cu I")
                        intensity.append(float(re.match(r"[0-9.]*", strength)[0] or "nan"))
    return LineList.from_wavelengths(
        np.array(vacuum) * u.AA, medium="vacuum", species=np.array(species), intensity=np.array(intensity)
    )


def archived(data_dir, name):
    table = Table.read(data_dir / "arcs" / "pypeit_reid_arxiv" / f"{name}.fits")
    return np.array(table["flux"], float), np.array(table["wave"], float)


def rascal(data_dir, name):
    """Counts, and listed pixels and air wavelengths."""
    folder = data_dir / "arcs" / "rascal_truth"
    pixel, air = np.loadtxt(folder / f"{name}-pixel-wavelength-solution-pairs.txt", delimiter=",", unpack=True)
    counts = np.loadtxt(folder / f"{name}-effective-pixel-spectrum.txt", delimiter=",")[:, 1]
    return counts, pixel, air


def rough_of(pixel, air, n_pix, degree):
    return fit_wavelength_solution(pixel, air * u.AA, medium="air", degree=degree, domain=(0, n_pix - 1))


@pytest.fixture(autouse=True)
def _quiet():
    """The degree is given, whatever the lines would support."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        yield


@pytest.mark.parametrize("center", ["half", "gauss", "sersic"])
@pytest.mark.parametrize(("name", "limit"), [("dolores-red", 0.1), ("ghts", 0.1), ("acam", 0.1), ("isis", 0.15)])
def test_listed_lines_centred_anew(data_dir, name, limit, center):
    """Pixels listed as whole numbers give 0.3 pixel; the lines' own centres do much better, and few are lost."""
    counts, pixel, air = rascal(data_dir, name)
    solution = calibrate(
        counts, air * u.AA, medium="air", rough=rough_of(pixel, air, counts.size, 5), center=center, blends="keep"
    )
    assert solution.center == center
    assert solution.n_used >= 0.8 * len(pixel)
    assert solution.rms(u.pix) <= limit * u.pix
    # each line is on its own peak: none has wandered off further than the listed pixels are rough
    lines = solution.lines[solution.lines["used"]]
    listed = np.interp(lines["wavelength"].value, air_to_vacuum(air), pixel)
    assert np.median(np.abs(lines["pixel"] - listed)) < 0.6
    assert np.max(np.abs(lines["pixel"] - listed)) < 2.5


def test_wide_slit_lines_have_no_meaningful_maximum(data_dir):
    """Flat tops of a wide slit: their highest point is noise, which the residuals must show."""
    counts, pixel, air = rascal(data_dir, "ghts")
    rough = rough_of(pixel, air, counts.size, 5)
    options = {"medium": "air", "rough": rough, "blends": "keep"}
    assert calibrate(counts, air * u.AA, center="max", **options).rms(u.pix) > 0.2 * u.pix
    assert calibrate(counts, air * u.AA, center="half", **options).rms(u.pix) < 0.1 * u.pix


@pytest.mark.parametrize("name", ACCURATE)
def test_archived_scales_of_single_exposures(data_dir, name):
    """Our own centres reproduce the archive at the lines, to a tenth of a pixel."""
    counts, wave = archived(data_dir, name)
    solution = calibrate(counts, lamp(data_dir, SINGLE[name]), rough=wave * u.AA, center="gauss")
    pixel = np.asarray(solution.lines["pixel"][solution.lines["used"]])
    assert pixel.size >= 10
    off = (solution(pixel).value - np.interp(pixel, np.arange(wave.size), wave)) / solution.dispersion(pixel).value
    assert np.sqrt(np.mean(off**2)) < 0.1


@pytest.mark.parametrize("name", SINGLE)
def test_identified_blindly(data_dir, name):
    """Nothing but counts and lamp: within a pixel of the archive at the lines."""
    counts, wave = archived(data_dir, name)
    solution = calibrate(counts, lamp(data_dir, SINGLE[name]), center="gauss")
    pixel = np.asarray(solution.lines["pixel"][solution.lines["used"]])
    off = (solution(pixel).value - np.interp(pixel, np.arange(wave.size), wave)) / solution.dispersion(pixel).value
    assert np.sqrt(np.mean(off**2)) < 1.0
    assert solution.provenance["calibration"]["blind"]["lead"] > 5.0


@pytest.mark.parametrize(("name", "elements"), [("dolores-red", "NeHgKr"), ("ghts", "HgArNe"), ("acam", "NeCu")])
def test_direction_is_found(data_dir, name, elements):
    """A detector read out the other way gives the mirrored solution."""
    flipped = name != "dolores-red"
    counts, pixel, air = rascal(data_dir, name)
    if flipped:
        counts, pixel = counts[::-1], counts.size - 1 - pixel
    solution = calibrate(counts, lamp(data_dir, elements), degree=4)
    off = (solution(pixel).value - air_to_vacuum(air)) / solution.dispersion(pixel).value
    assert np.median(np.abs(off)) < 0.6
    assert (solution.dispersion(pixel[0]).value < 0) == flipped


def test_wrong_lamp_is_not_identified(data_dir):
    """A neon list for a helium-argon spectrum: no answer is the right one."""
    counts, _ = archived(data_dir, "mmt_bluechannel_500GPM")
    with pytest.raises(ValueError, match=r"could not be identified|no pattern"):
        calibrate(counts, lamp(data_dir, "XeKr"))


def test_air_list_called_vacuum_shows(data_dir):
    """The commonest mistake moves the scale by 83 km/s, which the residuals hardly show."""
    counts, wave = archived(data_dir, "shane_kast_red_600_7500")
    lines = lamp(data_dir, "NeHgHeAr")
    right = calibrate(counts, lines, rough=wave * u.AA)
    wrong = calibrate(counts, lines.air * u.AA, medium="vacuum", rough=wave / 1.00028 * u.AA)
    shift = (wrong(1500).value - right(1500).value) / right(1500).value
    assert shift == pytest.approx(-2.76e-4, abs=1.2e-5)
