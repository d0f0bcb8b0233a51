"""A small made-up family of stars on short grids, for the tests of `lamost_lsf.sed`."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty
from astropy.table import Table
from specutils import Spectrum

from lamost_lsf.sed import Library, SpectralSet, WavelengthGrid, prepare_set

INPUT = WavelengthGrid(500, 4800, 6200)
OUTPUT = WavelengthGrid(60, 4000, 7500)
#: Vacuum wavelengths, Angstrom, of the lines.
LINES = (4920.0, 5100.0, 5270.0, 5480.0, 5700.0, 5890.0, 6050.0)


def library(n: int = 60, seed: int = 0, classes: str = "FG") -> Library:
    """Stars with a slope and lines whose strength tells it."""
    rng = np.random.default_rng(seed)
    w = np.arange(3600.0, 8000.0, 0.5)
    heat = rng.uniform(-1.0, 1.0, n)
    flux = (w / 5556.0) ** (-1.5 * heat[:, None])
    for k, line in enumerate(LINES):
        depth = 0.35 + 0.25 * heat[:, None] * (-1) ** k
        flux = flux * (1.0 - depth * np.exp(-0.5 * ((w - line) / 8.0) ** 2))
    table = Table(
        {
            "name": [f"s{i}" for i in range(n)],
            "type": [classes[i % len(classes)] + "5V" for i in range(n)],
            "teff": 6000.0 + 1000.0 * heat,
        }
    )
    return Library("made up", table, w, flux)


def spectra(n: int = 60, seed: int = 0) -> SpectralSet:
    return prepare_set(library(n, seed), input_grid=INPUT, output_grid=OUTPUT)


def observed(index: int = 0, *, rv: float = 0.0, snr: float = 30.0, seed: int = 1, n: int = 60) -> Spectrum:
    """A star of the family as a LAMOST-like spectrum: log-uniform, moving, noisy, with the input's resolution."""
    stars = library(n)[[index]]
    fine = WavelengthGrid(4343, 4600, 6400)
    flux = stars.degrade(fine.spectral_axis, resolving_power=INPUT.resolving_power).flux[0] * 1000.0
    error = flux / snr
    flux = flux + np.random.default_rng(seed).normal(0.0, 1.0, flux.size) * error
    beta = rv / 299792.458
    return Spectrum(
        flux=flux * u.one, spectral_axis=fine.spectral_axis * np.sqrt((1 + beta) / (1 - beta)),
        uncertainty=StdDevUncertainty(error), meta={"wavelength_medium": "vacuum"},
    )  # fmt: skip
