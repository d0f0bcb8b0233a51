"""Simulated stars as files in LAMOST's layout since DR9, for the tests and the benchmark of surveys."""

import gzip
import io
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.time import Time

from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template

__all__ = ["OBSERVATORY", "TEMPLATE", "write_star", "write_stars"]

OBSERVATORY = Observatory()
TEMPLATE = synthetic_template(6000)
_NIGHT = Time("2017-01-10T15:00")
_LMJM = 83169780  # local modified Julian minutes of that night
_C = 299792.458


def write_star(path, wavelength, flux, ivar, *, fiber, obsid, mask=None, compress=1, **cards):
    """One file: a primary header and the table ``COADD`` of one row."""
    n = wavelength.size
    mask = np.zeros(n) if mask is None else mask
    columns = {"FLUX": flux, "IVAR": ivar, "WAVELENGTH": wavelength, "ANDMASK": mask, "ORMASK": mask}
    columns["NORMALIZATION"] = np.ones(n)
    table = fits.BinTableHDU.from_columns(
        [fits.Column(name, f"{n}E", array=np.asarray(c, "f4")[None]) for name, c in columns.items()], name="COADD"
    )
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "TELESCOP": "LAMOST", "ORIGIN": "NAOC-LAMOST", "DATA_V": "LAMOST DR10", "OBSID": obsid, "SPID": 1,
            "FIBERID": fiber, "FIBERTYP": "Obj", "FIBERMAS": 0, "LMJMLIST": str(_LMJM), "RA": 10.0, "DEC": 40.0,
            "HELIO": True, "HELIO_RV": 0.0, "VACUUM": True, "COEFF0": 3.5682, "COEFF1": 1e-4, "CLASS": "STAR",
            "SUBCLASS": "F9", "Z": 0.0,
            **cards,
        }
    )  # fmt: skip
    buffer = io.BytesIO()
    fits.HDUList([primary, table]).writeto(buffer)
    content = buffer.getvalue()
    Path(path).write_bytes(gzip.compress(content, compress) if str(path).endswith(".gz") else content)


def write_stars(folder, number, *, snr=30.0, fibers=5, seed=0, suffix=".fits.gz"):
    """``number`` stars of known velocity; their paths and velocities (km/s).

    Few noiseless stars are simulated, one a fibre; each file has noise of its own, and whole pixels of the log grid of
    velocity of its own.
    """
    rng = np.random.default_rng(seed)
    stars = [
        simulate_star(
            TEMPLATE, OBSERVATORY, time=_NIGHT, fiber=3 + 50 * k, spectrograph=1, center="sersic", snr=snr, noise=False
        )
        for k in range(fibers)
    ]
    step = np.log(10) * 1e-4
    paths, velocities = [], []
    for i in range(number):
        star, shift = stars[i % fibers], int(rng.integers(-4, 5))
        ivar = star.uncertainty.array
        ivar = np.where(np.isfinite(ivar) & ~np.asarray(star.mask, bool), ivar, 0.0)
        flux = np.roll(star.flux.value, shift)
        ivar = np.roll(ivar, shift)
        good = ivar > 0
        flux = np.where(good, flux + rng.normal(size=flux.size) / np.sqrt(np.where(good, ivar, 1.0)), 0.0)
        path = Path(folder) / f"spec-{i:06d}{suffix}"
        write_star(path, star.spectral_axis.value, flux, ivar, fiber=3 + 50 * (i % fibers), obsid=1000000 + i)
        paths.append(path)
        ratio = np.exp(2 * step * shift)
        velocities.append(_C * (ratio - 1) / (ratio + 1))
    return paths, np.array(velocities)
