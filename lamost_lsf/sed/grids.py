"""Wavelength grids of inputs and outputs, continuum, and the scale of a SED (Yang et al. 2024, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import astropy.units as u
import numpy as np

__all__ = [
    "BANDS",
    "CONTINUUM_WINDOW",
    "INPUT_GRID",
    "OUTPUT_GRID",
    "REFERENCE_BAND",
    "WavelengthGrid",
    "moving_average",
    "normalize_flux",
    "scale_sed",
]

#: Width of the moving average that stands for the continuum of the input, pixels.
CONTINUUM_WINDOW = 51
#: Vacuum Angstrom between which a SED has the mean 1: free of strong lines, near the middle of V.
REFERENCE_BAND = (5526.0, 5586.0)
#: Slitless bands in which errors are stated, vacuum Angstrom.
BANDS = {"GU": (2550.0, 4200.0), "GV": (4000.0, 6500.0), "GI": (6200.0, 10000.0)}


@dataclass(frozen=True)
class WavelengthGrid:
    """Log-uniform wavelengths with two pixels for each resolution element: the step in ln(wavelength) is 1 / (2 R).

    The grid begins at ``start`` and holds as many whole steps as fit below ``stop``.

    Parameters
    ----------
    resolving_power : float
        R = wavelength / FWHM.
    start, stop : float
        Vacuum Angstrom.

    Raises
    ------
    ValueError
        A resolving power that is not positive, or a range that holds no pixel.

    Examples
    --------
    >>> from lamost_lsf.sed import WavelengthGrid
    >>> len(WavelengthGrid(2000, 4000, 7000)), len(WavelengthGrid(200, 2500, 10500))
    (2238, 574)
    """

    resolving_power: float
    start: float
    stop: float

    def __post_init__(self) -> None:
        for name in ("resolving_power", "start", "stop"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not (np.isfinite(self.resolving_power) and self.resolving_power > 0):
            raise ValueError(f"resolving_power must be positive, got {self.resolving_power}")
        if not 0 < self.start < self.stop < np.inf:
            raise ValueError(f"start and stop must be increasing positive wavelengths, got {self.start}, {self.stop}")
        if len(self) < 2:
            raise ValueError(f"{self} holds fewer than two pixels")

    @property
    def step(self) -> float:
        """Step in the natural logarithm of the wavelength."""
        return 0.5 / self.resolving_power

    def __len__(self) -> int:
        # the small number keeps a range of whole steps whole
        return int(np.floor(np.log(self.stop / self.start) / self.step + 1e-9))

    @cached_property
    def wavelength(self) -> np.ndarray:
        """Wavelengths (n,), Angstrom, vacuum."""
        wavelength = self.start * np.exp(self.step * np.arange(len(self)))
        wavelength.flags.writeable = False
        return wavelength

    @property
    def spectral_axis(self) -> u.Quantity:
        """`wavelength` with its unit."""
        return self.wavelength * u.AA

    def select(self, low: float, high: float) -> np.ndarray:
        """Pixels (n,), bool, between two wavelengths, Angstrom, vacuum; both ends belong to it."""
        return (self.wavelength >= low) & (self.wavelength <= high)

    def to_dict(self) -> dict[str, float]:
        """What JSON can hold."""
        return {"resolving_power": self.resolving_power, "start": self.start, "stop": self.stop}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WavelengthGrid:
        """The grid that `to_dict` described."""
        return cls(**values)


#: Grid of the input spectra: 2238 pixels (Yang et al. 2024, section 2.1).
INPUT_GRID = WavelengthGrid(2000.0, 4000.0, 7000.0)
#: Grid of the SEDs: 574 pixels.
OUTPUT_GRID = WavelengthGrid(200.0, 2500.0, 10500.0)


def moving_average(flux: np.ndarray, window: int = CONTINUUM_WINDOW, mask: np.ndarray | None = None) -> np.ndarray:
    """Mean of the pixels of a window around each; near an end, of those that are there on that side.

    Parameters
    ----------
    flux : ndarray (..., n)
    window : int
        Pixels, odd.
    mask : ndarray (..., n), bool, optional
        True = left out.

    Returns
    -------
    ndarray (..., n)
        NaN where the window holds no good pixel.

    Examples
    --------
    >>> from lamost_lsf.sed import moving_average
    >>> moving_average([1.0, 2.0, 6.0, 3.0], window=3)
    array([1.5       , 3.        , 3.66666667, 4.5       ])
    """
    flux = np.asarray(flux, dtype=np.float64)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of pixels, got {window}")
    good = np.ones(flux.shape) if mask is None else 1.0 - np.broadcast_to(np.asarray(mask, bool), flux.shape)
    n, half = flux.shape[-1], window // 2
    first = np.maximum(np.arange(n) - half, 0)
    last = np.minimum(np.arange(n) + half + 1, n)

    def windowed(values: np.ndarray) -> np.ndarray:
        total = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
        return total[..., last] - total[..., first]

    count = windowed(good)
    mean = windowed(np.where(good > 0, flux, 0.0)) / np.maximum(count, 1.0)
    return np.where(count > 0, mean, np.nan)


def normalize_flux(
    flux: np.ndarray, window: int = CONTINUUM_WINDOW, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Flux over its continuum, and the continuum, both (..., n).

    Raises
    ------
    ValueError
        A continuum that is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed import normalize_flux
    >>> normalized, continuum = normalize_flux(np.full(100, 7.0))
    >>> bool(np.allclose(normalized, 1)), float(continuum[0])
    (True, 7.0)
    """
    continuum = moving_average(flux, window, mask)
    if not np.all(continuum > 0):
        n = int(np.sum(~(continuum > 0)))
        raise ValueError(
            f"the continuum (moving average of {window} pixels) is not positive at {n} of {continuum.size} pixels; "
            "the spectrum needs positive, finite flux over the whole input range"
        )
    return np.asarray(flux, dtype=np.float64) / continuum, continuum


def scale_sed(
    sed: np.ndarray, grid: WavelengthGrid, band: tuple[float, float] = REFERENCE_BAND
) -> tuple[np.ndarray, np.ndarray]:
    """SED with the mean 1 in the reference band, and the mean that it was divided by.

    Parameters
    ----------
    sed : ndarray (..., n)
        Flux density per wavelength on ``grid``.
    grid : WavelengthGrid
    band : tuple of float
        Vacuum Angstrom.

    Returns
    -------
    scaled : ndarray (..., n)
    reference : ndarray (...)

    Raises
    ------
    ValueError
        A band that holds no pixel, or flux that is not positive and finite in it.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed import OUTPUT_GRID, scale_sed
    >>> scaled, reference = scale_sed(np.full(574, 3.0), OUTPUT_GRID)
    >>> float(scaled[0]), float(reference)
    (1.0, 3.0)
    """
    sed = np.asarray(sed, dtype=np.float64)
    inside = grid.select(*band)
    if not inside.any():
        raise ValueError(f"no pixel of {grid} lies in the reference band {band[0]:g}-{band[1]:g} A")
    reference = sed[..., inside].mean(axis=-1)
    if not np.all(np.isfinite(reference) & (reference > 0)):
        n = int(np.sum(~(np.isfinite(reference) & (reference > 0))))
        raise ValueError(
            f"the mean flux in the reference band {band[0]:g}-{band[1]:g} A must be positive and finite; "
            f"it is not for {n} of {reference.size} spectra"
        )
    return sed / reference[..., None], reference
