"""From an observed spectrum to the input of a network: rest frame, grid, masks, continuum, errors."""

from __future__ import annotations

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.constants import c
from specutils import Spectrum

from lamost_lsf.convolution.axes import axis_angstrom
from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.sed.grids import CONTINUUM_WINDOW, INPUT_GRID, WavelengthGrid, moving_average
from lamost_lsf.units import check_medium

__all__ = ["InputSpectrum", "input_vector"]

_LIGHT = c.to_value(u.km / u.s)


@dataclass(frozen=True)
class InputSpectrum:
    """A spectrum as a network takes it.

    Attributes
    ----------
    flux : ndarray (n,)
        Normalised flux in the rest frame; interpolated at ``filled`` pixels.
    error : ndarray (n,)
        Standard deviation of the flux over the continuum, of the white noise that blurs lines as much as that of the
        spectrum does: interpolated noise is correlated, and less than white at a single pixel. That of the good pixels
        around at ``filled`` ones.
    filled : ndarray (n,), bool
        Pixels without data of their own.
    rv : float
        Velocity that was taken out, km/s.
    snr : float
        Median of continuum over error.
    """

    flux: np.ndarray
    error: np.ndarray
    filled: np.ndarray
    rv: float
    snr: float


def input_vector(
    spectrum: Spectrum,
    rv: u.Quantity | None = None,
    *,
    grid: WavelengthGrid = INPUT_GRID,
    window: int = CONTINUUM_WINDOW,
    max_masked: float = 0.2,
    medium: str | None = None,
) -> InputSpectrum:
    """Input vector of an observed spectrum, for instance of one that ``Spectrum.read(..., "LAMOST LRS")`` gave.

    The wavelengths are brought to the rest frame, the flux is interpolated to the grid (cubic through the four nearest
    pixels; masked pixels are bridged and marked), and divided by its moving average (Yang et al. 2024, section 2.1).
    The resolution stays that of the instrument: train on spectra that were degraded with its LSF.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        One spectrum with an uncertainty, flux per wavelength.
    rv : `~astropy.units.Quantity`, optional
        Radial velocity in the frame of the spectrum (heliocentric for published LAMOST spectra), positive receding. By
        default that of the pipeline, ``meta["z"]``.
    grid : WavelengthGrid
    window : int
        Of the moving average, pixels.
    max_masked : float
        Largest share of the grid's pixels that may be bridged.
    medium : {"vacuum", "air"}, optional
        Of the wavelengths; by default ``meta["wavelength_medium"]``, else vacuum.

    Returns
    -------
    InputSpectrum

    Raises
    ------
    TypeError
        Something other than a Spectrum.
    ValueError
        Several spectra at once, flux per frequency, no uncertainty, no velocity, too many masked pixels, flux that is
        not positive.
    OutOfRangeError
        A spectrum that does not cover the grid at rest.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from astropy.nddata import StdDevUncertainty
    >>> from specutils import Spectrum
    >>> from lamost_lsf.sed import input_vector
    >>> axis = 3700 * 10 ** (1e-4 * np.arange(3900)) * u.AA
    >>> flux = np.full(3900, 50.0)
    >>> star = Spectrum(flux=flux * u.one, spectral_axis=axis, uncertainty=StdDevUncertainty(flux / 30))
    >>> x = input_vector(star, rv=20 * u.km / u.s)
    >>> x.flux.size, float(x.flux[100].round(3)), int(x.filled.sum())
    (2238, 1.0, 0)
    """
    if not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum must be a specutils Spectrum, got {type(spectrum).__name__}")
    if spectrum.flux.ndim != 1:
        raise ValueError(f"one spectrum at a time is prepared, got flux of shape {spectrum.flux.shape}")
    if spectrum.flux.unit.is_equivalent(u.Jy):
        raise ValueError(f"flux must be per wavelength, got {spectrum.flux.unit}: spectrum.with_flux_unit converts it")
    if not 0 <= max_masked < 1:
        raise ValueError(f"max_masked must be at least 0 and less than 1, got {max_masked}")
    medium = check_medium(medium or spectrum.meta.get("wavelength_medium") or "vacuum")
    observed = axis_angstrom(spectrum.spectral_axis, medium, "the spectral axis")
    velocity, factor = _velocity(spectrum, rv)
    wavelength = observed / factor
    if wavelength[0] > grid.wavelength[0] or wavelength[-1] < grid.wavelength[-1]:
        raise OutOfRangeError(
            f"the spectrum covers {wavelength[0]:.1f}-{wavelength[-1]:.1f} A at rest (rv {velocity:.1f} km/s), "
            f"the input needs {grid.wavelength[0]:.1f}-{grid.wavelength[-1]:.1f} A; nothing is extrapolated"
        )
    flux, variance, bad = _arrays(spectrum)
    values, noise, filled = _interpolate(wavelength, flux, variance, bad, grid, window)
    share = filled.mean()
    if share > max_masked:
        raise ValueError(
            f"{share:.0%} of the input's pixels have no good data, at most {max_masked:.0%} may be bridged (max_masked)"
        )
    continuum = moving_average(values, window, filled)
    nothing = ~np.isfinite(continuum)  # a gap as wide as the window
    if nothing.any():
        index = np.arange(len(grid))
        continuum[nothing] = np.interp(index[nothing], index[~nothing], continuum[~nothing])
    if np.any(continuum <= 0):
        raise ValueError(
            f"the continuum (moving average of {window} pixels) is not positive at {int(np.sum(continuum <= 0))} "
            "pixels: no stellar spectrum, or one without signal"
        )
    error = np.sqrt(noise) / continuum
    normalized = values / continuum
    return InputSpectrum(normalized, error, filled, velocity, float(np.median(1.0 / error[~filled])))


def _velocity(spectrum: Spectrum, rv: u.Quantity | None) -> tuple[float, float]:
    """Velocity, km/s, and observed over rest wavelength."""
    if rv is None:
        z = spectrum.meta.get("z")
        if z is None or not np.isfinite(z):
            raise ValueError("the spectrum's header has no redshift: pass rv= (its frame is that of the spectrum)")
        return float(z) * _LIGHT, 1.0 + float(z)
    try:
        velocity = u.Quantity(rv).to_value(u.km / u.s)
    except u.UnitConversionError:
        raise TypeError(f"rv must be a velocity with a unit, got {rv!r}") from None
    if np.ndim(velocity) or not np.isfinite(velocity):
        raise ValueError(f"rv must be one finite velocity, got {rv!r}")
    beta = float(velocity) / _LIGHT
    if abs(beta) >= 1:
        raise ValueError(f"rv must be below the speed of light, got {rv}")
    return float(velocity), float(np.sqrt((1.0 + beta) / (1.0 - beta)))


def _arrays(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, variance and bad pixels."""
    from astropy.nddata import VarianceUncertainty

    if spectrum.uncertainty is None:
        raise ValueError("the spectrum has no uncertainty; the network needs the noise of its input")
    flux = np.array(spectrum.flux.value, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        converted = spectrum.uncertainty.represent_as(VarianceUncertainty)
        variance = np.array(converted.quantity.to_value(spectrum.flux.unit**2), dtype=np.float64)
    bad = ~np.isfinite(flux) | ~np.isfinite(variance) | (variance <= 0)
    if spectrum.mask is not None:
        bad |= np.asarray(spectrum.mask, dtype=bool)
    if np.all(bad):
        raise ValueError("every pixel of the spectrum is masked, not finite or without an error")
    return flux, variance, bad


def _interpolate(
    wavelength: np.ndarray, flux: np.ndarray, variance: np.ndarray, bad: np.ndarray, grid: WavelengthGrid, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux and variance on a grid by the cubic through four pixels, and where one of the two nearest is bad."""
    good = np.flatnonzero(~bad)
    index = np.arange(flux.size)
    flux = np.where(bad, np.interp(index, good, flux[good]), flux)
    variance = np.where(bad, np.interp(index, good, variance[good]), variance)
    new = grid.wavelength
    right = np.clip(np.searchsorted(wavelength, new, side="right"), 1, flux.size - 1)
    filled = bad[right - 1] | bad[right]
    first = np.clip(right - 2, 0, flux.size - 4)
    nodes = first[:, None] + np.arange(4)
    x = wavelength[nodes]
    weights = np.ones_like(x)
    for i in range(4):
        for j in range(4):
            if i != j:
                weights[:, i] *= (new - x[:, j]) / (x[:, i] - x[:, j])
    # over many pixels the noise is that of all native pixels, of which there are so many in one of the grid; where
    # there are more than the cubic uses, it is that of those used
    own = np.interp(new, wavelength, variance)
    share = np.interp(new, wavelength, np.gradient(np.log(wavelength))) / grid.step
    used = moving_average(np.sum(weights**2 * variance[nodes], axis=1) / own, window)
    return np.sum(weights * flux[nodes], axis=1), own * np.maximum(share, used), filled
