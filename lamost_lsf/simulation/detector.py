"""From light to counts: wavelength scale of the detector, cosmic rays, saturation, noise; `SimulatedExposure`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.time import Time

from lamost_lsf.simulation._random import deviate
from lamost_lsf.simulation.ip import ARM_LIMITS, N_FIBER

__all__ = ["SimulatedExposure", "cosmic_rays", "detector_scale", "fiber_throughput", "record"]


@dataclass(frozen=True)
class SimulatedExposure:
    """One exposure of one arm of one spectrograph, extracted: what a reduction pipeline would hand on, and the truth.

    Attributes
    ----------
    flux : ndarray (n_fiber, n_pix)
        Electrons per nominal pixel width, that is, flux density on the wavelength scale times a constant.
    ivar : ndarray (n_fiber, n_pix)
        Inverse variance; 0 where masked.
    mask : ndarray of bool (n_fiber, n_pix)
        True = bad, as far as a pipeline knows.
    wavelength : ndarray (n_fiber, n_pix)
        Vacuum Angstrom at the pixels' centres, on the scale of ``meta["wavelength_center"]``, detector's frame.
    time : `~astropy.time.Time`
    spectrograph : int
    arm : {"blue", "red"}
    lamp : str
        "HgCd", "NeAr" or "sky".
    meta : dict
        ``fiber`` (n_fiber,), ``wavelength_medium``, ``wavelength_center``, ``frame``, ``saturation`` (electrons),
        ``read_noise``, ``temperature`` (deg C, where the IP has one), ``seed``, and ``truth``, a dict: ``lines`` (tuple
        of EmissionLine), ``ip``, ``noiseless`` (n_fiber, n_pix; without cosmic rays and saturation), ``wavelength``
        (n_fiber, n_pix; the optical scale less the drift, on which a line at w0 has the profile ``h(w - w0)``),
        ``drift``, ``cosmic`` and ``saturated`` (n_fiber, n_pix; bool), ``throughput`` (n_fiber,), ``dead`` (fibres).
    """

    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    wavelength: np.ndarray
    time: Time
    spectrograph: int
    arm: str
    lamp: str
    meta: dict[str, Any]

    def __repr__(self) -> str:
        n_fiber, n_pix = self.flux.shape
        return (
            f"<SimulatedExposure {self.lamp}, spectrograph {self.spectrograph}, {self.arm} arm, {self.time.utc.isot}, "
            f"{n_fiber} fibres x {n_pix} pixels>"
        )


def detector_scale(
    arm: str, fiber: np.ndarray, *, n_pixels: int = 4096, spectrograph: int = 1, seed: int = 0
) -> np.ndarray:
    """Wavelengths of the pixels' centres: smooth in pixel and fibre, with a slit image that is curved and not quite
    even.

    Parameters
    ----------
    arm : {"blue", "red"}
    fiber : ndarray (n_fiber,)
        Fibre numbers.
    n_pixels : int
    spectrograph, seed : int

    Returns
    -------
    ndarray (n_fiber, n_pixels)
        Vacuum Angstrom, increasing. The dispersion falls by 4 % along an arm; fibres differ by up to 3 pixels.
    """
    low, high = ARM_LIMITS[arm]
    code = {"blue": 1, "red": 2}[arm]
    x = np.arange(n_pixels) / (n_pixels - 1.0)
    f = (2.0 * fiber - N_FIBER - 1.0) / (N_FIBER - 1.0)
    pixel = (high - low) / (n_pixels - 1.0)
    base = low + (high - low) * (x + 0.02 * x * (1.0 - x))
    shift = 3.0 * f**2 + 0.6 * f + 0.4 * deviate(seed, spectrograph, code, 301, fiber)
    stretch = 0.5 * f + 0.05 * deviate(seed, spectrograph, code, 302, fiber)
    return base + pixel * (shift[:, None] + stretch[:, None] * (2.0 * x - 1.0))


def fiber_throughput(
    fiber: np.ndarray, *, scatter: float, dead: np.ndarray, spectrograph: int = 1, seed: int = 0
) -> np.ndarray:
    """Relative throughput (n_fiber,): log-normal about 1, vignetted at the ends of the slit; dead fibres pass 1 %."""
    f = (2.0 * fiber - N_FIBER - 1.0) / (N_FIBER - 1.0)
    value = (1.0 - 0.12 * f**2) * np.exp(scatter * deviate(seed, spectrograph, 303, fiber))
    return np.where(np.isin(fiber, dead), 0.01, value)


def cosmic_rays(rng: np.random.Generator, shape: tuple[int, int], rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Charge (electrons) that cosmic rays leave, and where (bool): 1-4 pixels along the dispersion, often the next
    fibre too.

    ``rate`` is the number of hits per pixel.
    """
    n_fiber, n_pix = shape
    charge = np.zeros(shape)
    n = int(rng.poisson(rate * n_fiber * n_pix))
    row, column = rng.integers(0, n_fiber, n), rng.integers(0, n_pix, n)
    energy = rng.lognormal(np.log(2500.0), 0.9, n)
    length = 1 + rng.integers(0, 4, n)
    for step in range(4):
        here = (step < length) & (column + step < n_pix)
        deposit = energy[here] / length[here] * rng.uniform(0.4, 1.6, np.count_nonzero(here))
        np.add.at(charge, (row[here], column[here] + step), deposit)
        spill = rng.uniform(size=deposit.size) < 0.2
        beside = np.minimum(row[here] + 1, n_fiber - 1)
        np.add.at(charge, (beside[spill], (column[here] + step)[spill]), 0.3 * deposit[spill])
    return charge, charge > 0.0


def record(
    rng: np.random.Generator,
    expected: np.ndarray,
    *,
    read_noise: float,
    saturation: float,
    cosmic_rate: float,
    cosmic_flagged: float,
    noise: bool,
    ivar: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the detector makes of expected electrons (n_fiber, n_pix).

    Returns
    -------
    flux, ivar, mask, cosmic, saturated : ndarray (n_fiber, n_pix)
    """
    light = np.maximum(expected, 0.0)
    charge, cosmic = cosmic_rays(rng, expected.shape, cosmic_rate)
    variance = light + read_noise**2
    flux = light.copy()
    if noise:
        flux = rng.poisson(light).astype(np.float64)
        if read_noise > 0:
            flux += rng.normal(scale=read_noise, size=light.shape)
    flux += charge
    saturated = flux >= saturation
    flux[saturated] = saturation
    if ivar == "data":
        variance = np.maximum(flux, 0.0) + read_noise**2
    mask = cosmic & (rng.uniform(size=light.shape) < cosmic_flagged) if cosmic_flagged > 0 else np.zeros_like(cosmic)
    mask |= ~(variance > 0)
    weight = np.where(mask, 0.0, 1.0 / np.where(mask, 1.0, variance))
    return flux, weight, mask, cosmic, saturated
