"""Wavelength solutions of real arc spectra."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from scipy.signal import find_peaks

from lamost_lsf.wavelength import fit_wavelength_solution


def rascal(data_dir, name):
    """Counts per pixel, and listed pixels and air wavelengths."""
    folder = data_dir / "arcs" / "rascal_truth"
    pixel, air = np.loadtxt(folder / f"{name}-pixel-wavelength-solution-pairs.txt", delimiter=",", unpack=True)
    counts = np.loadtxt(folder / f"{name}-effective-pixel-spectrum.txt", delimiter=",")[:, 1]
    return counts, pixel, air


def centroid(counts, pixel, half=3):
    """Centroids about the highest pixel near each position, background removed; whole numbers are pixel centres."""
    centers = []
    for position in np.round(pixel).astype(int):
        peak = position - 2 + np.argmax(counts[position - 2 : position + 3])
        index = np.arange(peak - half, peak + half + 1)
        background = np.percentile(counts[max(0, peak - 25) : peak + 26], 20)
        flux = np.clip(counts[index] - background, 0, None)
        centers.append(np.sum(index * flux) / np.sum(flux))
    return np.array(centers)


def test_whole_pixel_positions_scatter_by_the_rounding_error(data_dir):
    """Dolores' lines are listed at whole pixels: rounding alone scatters by 1/sqrt(12) = 0.289 pixel."""
    counts, pixel, air = rascal(data_dir, "dolores-red")
    assert np.allclose(pixel, np.round(pixel), rtol=0, atol=1e-9)
    rounded = fit_wavelength_solution(pixel, air * u.AA, medium="air", domain=(0, counts.size - 1))
    assert rounded.n_used == len(pixel)
    # 30 degrees of freedom
    assert rounded.rms(u.pix).value * np.sqrt(36 / 30) == pytest.approx(1 / np.sqrt(12), rel=0.25)
    # re-centred on the counts (blends aside) most of it goes. Nothing shifts: pixel 0 is the first, and whole
    # numbers are centres
    centers = centroid(counts, pixel)
    assert abs(np.mean(centers - pixel)) < 0.1
    measured = fit_wavelength_solution(centers, air * u.AA, medium="air", domain=(0, counts.size - 1))
    assert measured.rms(u.pix) < 0.1 * u.pix
    assert measured.n_used >= 0.8 * len(pixel)


def test_ghts_lines_and_its_wrong_pairs(data_dir):
    counts, pixel, air = rascal(data_dir, "ghts")
    solution = fit_wavelength_solution(pixel, air * u.AA, medium="air", domain=(0, counts.size - 1))
    assert solution.rms(u.pix) < 0.05 * u.pix
    assert solution.rms(u.pix, leave_one_out=True) < 0.06 * u.pix
    # a quarter of the listed pairs is off by up to two pixels; each says so
    assert len(solution.rejected) <= 14
    assert all(reason.endswith("sigma") for reason in solution.rejected["reason"])
    # what is left out depends on the lines, not on who fits
    other = fit_wavelength_solution(pixel, air * u.AA, medium="air", fitter="polynomial", domain=(0, counts.size - 1))
    assert np.array_equal(other.lines["used"], solution.lines["used"])


@pytest.fixture
def deveny(data_dir):
    """HgCdAr arc nearest to LAMOST's: centroids, vacuum wavelengths of the lines, and the archived solution."""
    archive = Table.read(data_dir / "arcs" / "pypeit_reid_arxiv" / "ldt_deveny_500_HgCdAr.fits")
    wave, counts = np.array(archive["wave"], float), np.array(archive["flux"], float)
    listed, ion = [], []
    for name in ("HgI", "CdI", "ArI"):
        for row in (data_dir / "linelists" / "pypeit_vac" / f"{name}_lines.dat").read_text().splitlines():
            cells = [cell.strip() for cell in row.split("|")]
            if len(cells) > 2 and cells[1] == name:
                listed.append(float(cells[2]))
                ion.append(name)
    listed, ion = np.array(listed), np.array(ion)
    peaks, _ = find_peaks(counts, prominence=0.02 * np.percentile(counts, 99.5), distance=6)
    centers = centroid(counts, peaks[(peaks > 6) & (peaks < counts.size - 7)])
    guess = np.interp(centers, np.arange(wave.size), wave)
    nearest = np.argmin(np.abs(listed - guess[:, None]), axis=1)
    near = np.abs(listed[nearest] - guess) < 3.0
    return centers[near], listed[nearest][near], ion[nearest][near], wave


def test_deveny_agrees_with_its_archived_solution(deveny):
    centers, listed, ion, wave = deveny
    solution = fit_wavelength_solution(
        centers, listed * u.AA, degree=6, domain=(0, wave.size - 1), label=ion, center="centroid"
    )
    assert solution.n_used >= 0.8 * len(centers)
    assert solution.rms(u.pix) < 0.1 * u.pix
    pixel = np.arange(wave.size)
    pixel = pixel[~solution.extrapolates(pixel)]
    off = (solution(pixel).value - wave[pixel]) / solution.dispersion(pixel).value
    assert np.sqrt(np.mean(off**2)) < 0.15
    # neither half a pixel off nor in air, which would be 1.0 to 1.7 pixel
    assert abs(np.median(off)) < 0.05
    assert np.median(solution.wavelength(pixel, medium="air").value - wave[pixel]) < -1.0


def test_air_lines_in_the_vacuum_list_of_a_real_arc(deveny):
    """The mistake that happens: one lamp's lines from an air list among vacuum ones."""
    centers, listed, ion, wave = deveny
    cadmium = ion == "CdI"
    assert 3 <= np.sum(cadmium) < 0.3 * len(ion)
    in_air = np.where(cadmium, listed / 1.00028, listed)
    solution = fit_wavelength_solution(centers, in_air * u.AA, domain=(0, wave.size - 1), label=ion)
    assert not np.any(solution.lines["used"][cadmium])
    # their residuals say what they are: some -84 km/s, all of them
    velocity = solution.residuals(u.km / u.s).value[cadmium]
    assert np.all((velocity < -40) & (velocity > -150))
