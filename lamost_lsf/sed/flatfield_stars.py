"""`StandardStars`: what a flat field is fitted to, and how predicted SEDs become what a spectrograph should see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from scipy.interpolate import make_interp_spline
from specutils import Spectrum

from lamost_lsf.convolution.axes import axis_angstrom, flux_and_mask, variance_of
from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.files import atomic_path
from lamost_lsf.sed.dust import extinction_curve
from lamost_lsf.sed.flatfield_cube import read_images
from lamost_lsf.sed.grids import REFERENCE_BAND
from lamost_lsf.units import doppler_factor

__all__ = ["StandardStars"]

_FORMAT, _VERSION = "lamost_lsf standard stars", 1

__doctest_requires__ = {"StandardStars.from_predictions": ["dust_extinction"]}


@dataclass(frozen=True)
class StandardStars:
    """Observed spectra of standard stars, what they should have been, and where they fell on the detector.

    Predictions are of the light that arrives: at the observer's wavelengths, behind the dust, at the resolution of the
    observations. `from_predictions` makes them of the rest-frame, dust-free SEDs that `predict` gives.

    Attributes
    ----------
    wavelength : ndarray (n_wave,)
        Vacuum Angstrom, increasing; in the frame of the observations, not the stars' own.
    x, y : ndarray (n_star,) or (n_star, n_wave)
        Detector position, pixels; per wavelength where the dispersion carries it over the detector.
    observed, observed_error : ndarray (n_star, n_wave)
        In instrumental units per unit wavelength, with one-sigma errors; NaN where there is no datum. Errors must not
        follow each pixel's own noise.
    predicted, predicted_error : ndarray (n_star, n_wave)
        Flux density that the star sends, on one scale for all stars (see `normalized` for stars without photometry),
        with its one-sigma error: a relative error, which must not depend on the noise of the prediction, times the
        prediction. The network's errors are such. Of an error that is the same in flux whatever the prediction, those
        stars would seem precise that are predicted too bright: an error of 10 % makes the response 2 % low.

    Raises
    ------
    ValueError
        Shapes that do not fit, errors that are negative, wavelengths that do not increase.
    """

    wavelength: np.ndarray
    x: np.ndarray
    y: np.ndarray
    observed: np.ndarray
    observed_error: np.ndarray
    predicted: np.ndarray
    predicted_error: np.ndarray

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        w = self.wavelength
        if w.ndim != 1 or w.size < 1 or not np.all(np.isfinite(w) & (w > 0)) or np.any(np.diff(w) <= 0):
            raise ValueError("wavelength must be a vector of positive, increasing vacuum Angstrom")
        if self.observed.ndim != 2 or self.observed.shape[1] != w.size:
            raise ValueError(f"observed has shape {self.observed.shape}, expected (n_star, {w.size})")
        shape = self.observed.shape
        for name in ("observed_error", "predicted", "predicted_error"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        for name in ("x", "y"):
            if getattr(self, name).shape not in ((shape[0],), shape):
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {(shape[0],)} or {shape}")
            if not np.all(np.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be finite: every star has a position")
        for name in ("observed_error", "predicted_error"):
            if np.any(getattr(self, name) < 0):
                raise ValueError(f"{name} must not be negative")

    def __len__(self) -> int:
        return len(self.observed)

    def __getitem__(self, index: Any) -> StandardStars:
        index = np.arange(len(self))[index]
        if np.ndim(index) != 1:
            raise TypeError("stars are indexed by a slice, a mask or numbers of stars")
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return StandardStars(**{name: a if name == "wavelength" else a[index] for name, a in fields.items()})

    @classmethod
    def from_predictions(
        cls,
        predictions: Spectrum,
        observed: Spectrum,
        x: np.ndarray,
        y: np.ndarray,
        *,
        rv: u.Quantity | None = None,
        ebv: np.ndarray | Sequence[float] | float | None = None,
        ebv_error: np.ndarray | Sequence[float] | float = 0.0,
        r_v: float = 3.1,
    ) -> StandardStars:
        """Standard stars of SEDs as `predict` gives them: moved to the observer's frame, and reddened.

        Neither is small. At R = 200 a velocity of 300 km/s changes a SED by up to 14 %, E(B-V) = 0.05 dims it by 16 %
        at 2600 A and brightens it by 7 % at 9000 A with respect to V. A quintic spline takes the SEDs to the observed
        wavelengths: for F and G stars at R = 200 to 0.06 % (rms; 0.5 % in the strongest lines).

        Parameters
        ----------
        predictions : `~specutils.Spectrum`
            Flux (n_star, n_out) per wavelength with errors, vacuum, in the stars' rest frame.
        observed : `~specutils.Spectrum`
            Flux (n_star, n_wave) per wavelength with errors, of the same stars in the same order, at the resolution of
            the predictions; wavelengths in vacuum unless ``meta["wavelength_medium"]`` says air.
        x, y : ndarray (n_star,) or (n_star, n_wave)
            Detector position, pixels.
        rv : `~astropy.units.Quantity`, optional
            Radial velocity, one or (n_star,), in the frame of the *observed* wavelengths, positive receding. By default
            ``predictions.meta["rv"]``, the one that `predict` took out: right if both are in one frame, say the
            barycentric.
        ebv : float or ndarray (n_star,), optional
            E(B-V) before the stars, mag, if the SEDs are without dust: networks that were trained on theoretical or
            dereddened stars predict such. By default they are taken as they are. NaN, unknown, leaves a star out.
        ebv_error : float or ndarray (n_star,)
            One sigma of it, mag, which is added to the errors.
        r_v : float
            A(V) / E(B-V), 2.3 to 5.6, of the curve of Gordon et al. 2023.

        Returns
        -------
        StandardStars
            On the wavelengths of ``observed``; NaN where they are beyond the predictions, masked or without weight, and
            for stars that could not be predicted. The predicted flux in the reference band, 5526-5586 A, is as before:
            `predict` scales it to 1, or to the flux that was observed there, through the dust. Flags of `predict`
            are not heeded: ``stars[predictions.meta["flags"] == 0]`` leaves flagged ones out.

        Raises
        ------
        TypeError
            Something other than spectra, ``rv`` without a unit of velocity.
        ValueError
            Shapes that do not fit, spectra without errors, no velocity.
        OutOfRangeError
            No wavelength in common.
        ImportError
            ``ebv`` is given and `dust_extinction` is not installed.

        Examples
        --------
        >>> import astropy.units as u, numpy as np
        >>> from astropy.nddata import StdDevUncertainty
        >>> from specutils import Spectrum
        >>> from lamost_lsf.sed import OUTPUT_GRID, StandardStars
        >>> sed = np.ones((2, 574))                       # with its error and rv as predict gives it
        >>> seds = Spectrum(flux=sed * u.one, spectral_axis=OUTPUT_GRID.spectral_axis,
        ...                 uncertainty=StdDevUncertainty(0.02 * sed), meta={"rv": np.array([-30.0, 300.0])})
        >>> seen = Spectrum(flux=np.full((2, 4), 900.0) * u.ct, spectral_axis=[2600, 3600, 5556, 9000] * u.AA,
        ...                 uncertainty=StdDevUncertainty(np.full((2, 4), 9.0)))
        >>> stars = StandardStars.from_predictions(seds, seen, x=[10, 20], y=[5, 900], ebv=[0.0, 0.05])
        >>> stars.predicted.round(3)
        array([[1.   , 1.   , 1.   , 1.   ],
               [0.841, 0.921, 1.   , 1.074]])
        """
        for name, value in (("predictions", predictions), ("observed", observed)):
            if not isinstance(value, Spectrum):
                raise TypeError(f"{name} must be a specutils Spectrum, got {type(value).__name__}")
            if value.flux.ndim != 2:
                raise ValueError(f"{name} must have flux of shape (n_star, n), got {value.flux.shape}")
        n_star = len(observed.flux)
        if len(predictions.flux) != n_star:
            raise ValueError(f"there are predictions of {len(predictions.flux)} stars and observations of {n_star}")
        grid, sed, sed_error = _arrays(predictions, "predictions")
        wavelength, flux, error = _arrays(observed, "observed")

        if rv is None and predictions.meta.get("rv") is None:
            raise ValueError('predictions.meta has no "rv": give rv')
        try:
            velocity = u.Quantity(predictions.meta["rv"], u.km / u.s) if rv is None else u.Quantity(rv)
            velocity = velocity.to_value(u.km / u.s)
        except u.UnitConversionError:
            raise TypeError(f"rv must be in units such as km / s, got {rv!r}") from None
        rest = wavelength / doppler_factor(_per_star(velocity, n_star, "rv"))[:, None]
        if not np.any((rest >= grid[0]) & (rest <= grid[-1])) and np.isfinite(rest).any():
            raise OutOfRangeError(
                f"predictions ({grid[0]:.0f}-{grid[-1]:.0f} A at rest) and observations "
                f"({wavelength[0]:.0f}-{wavelength[-1]:.0f} A) have no wavelength in common"
            )
        predicted, relative = np.full(flux.shape, np.nan), np.full(flux.shape, np.nan)
        for k in range(n_star):
            known = np.isfinite(sed[k]) & np.isfinite(sed_error[k]) & (sed[k] > 0)
            if known.sum() < 6:
                continue
            at = grid[known]
            inside = (rest[k] >= at[0]) & (rest[k] <= at[-1])
            # two pixels per resolution element are too few for straight lines; a quintic halves a cubic's error
            predicted[k, inside] = make_interp_spline(np.log(at), sed[k, known], k=5)(np.log(rest[k, inside]))
            relative[k, inside] = np.interp(rest[k, inside], at, sed_error[k, known] / sed[k, known])
        if ebv is not None:
            # towards the reference band, whose flux `predict` was told or set
            curve = extinction_curve(wavelength, r_v)
            curve = 0.4 * np.log(10.0) * (curve - extinction_curve(np.linspace(*REFERENCE_BAND, 31), r_v).mean())
            predicted = predicted * np.exp(-curve * _per_star(ebv, n_star, "ebv")[:, None])
            sigma = _per_star(ebv_error, n_star, "ebv_error")
            if np.any(sigma < 0):
                raise ValueError("ebv_error must not be negative")
            relative = np.hypot(relative, curve * sigma[:, None])
        elif np.any(ebv_error):
            raise ValueError("ebv_error is given without ebv; for a star without dust give ebv=0")
        return cls(wavelength, x, y, flux, error, predicted, relative * np.abs(predicted))

    def normalized(self, low: float = 5526.0, high: float = 5586.0) -> StandardStars:
        """Predictions scaled, star by star, to the observed mean flux between two wavelengths.

        For predictions without a magnitude, as the network gives them: the flat field is then relative to the one at
        these wavelengths, whose own (grey) variation over the detector stays unknown.

        The observed mean has an error, which becomes one of the prediction. With the pixels of the band it has their
        noise in common: their errors are those of what is left, the difference from the scaled prediction. Predicted
        errors are taken for those of the shape, relative to this band.

        Returns
        -------
        StandardStars
            Stars without positive mean fluxes there are NaN.

        Raises
        ------
        ValueError
            No wavelengths there, or no star with positive mean fluxes.
        """
        band = (self.wavelength >= low) & (self.wavelength <= high)
        if not band.any():
            raise ValueError(f"no wavelengths between {low} and {high} A to normalise by")
        good = np.isfinite(self.observed) & np.isfinite(self.observed_error) & np.isfinite(self.predicted) & band
        number = good.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            seen, told = (
                np.where(good, flux, 0.0).sum(axis=1, keepdims=True) / number
                for flux in (self.observed, self.predicted)
            )
            usable = (seen > 0) & (told > 0)
            if not usable.any():
                raise ValueError(f"no star has positive observed and predicted flux between {low} and {high} A")
            variance = np.where(good, self.observed_error**2, 0.0)
            total = variance.sum(axis=1, keepdims=True)
            predicted = np.where(usable, self.predicted * (seen / told), np.nan)
            relative = self.predicted_error / self.predicted
            outside = np.hypot(relative, np.sqrt(total) / number / seen)
            share = self.predicted / told / number
            inside = np.sqrt(variance * (1.0 - share) ** 2 + share**2 * (total - variance))
        return StandardStars(
            self.wavelength, self.x, self.y, self.observed, np.where(good, inside, self.observed_error), predicted,
            np.where(good, relative, outside) * predicted,
        )  # fmt: skip

    def write(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write to FITS: HDU ``WAVELENGTH`` and an image of each array."""
        header = fits.Header({"FORMAT": _FORMAT, "VERSION": _VERSION})
        hdus = [fits.PrimaryHDU(header=header)]
        hdus += [fits.ImageHDU(getattr(self, name), name=name.upper()) for name in self.__dataclass_fields__]
        with atomic_path(path, overwrite=overwrite) as temporary:
            fits.HDUList(hdus).writeto(temporary, overwrite=True, checksum=True)

    @classmethod
    def read(cls, path: str | os.PathLike) -> StandardStars:
        """Read what `write` wrote.

        Raises
        ------
        FormatError
            Another file, or one that was damaged or changed after it was written.
        """
        data = read_images(path, _FORMAT, _VERSION, [name.upper() for name in cls.__dataclass_fields__])[0]
        return cls(**{name: data[name.upper()] for name in cls.__dataclass_fields__})


def _arrays(spectra: Spectrum, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vacuum Angstrom (n,), flux and one sigma (n_star, n): NaN where masked or without weight."""
    medium = spectra.meta.get("wavelength_medium") or "vacuum"
    wavelength = axis_angstrom(spectra.spectral_axis, medium, f"the spectral axis of {name}")
    flux, _, bad = flux_and_mask(spectra, None, wavelength.size)
    variance, _ = variance_of(spectra)
    if variance is None:
        raise ValueError(f"{name} must have uncertainties: stars are weighted by them")
    bad = ~np.isfinite(variance) if bad is None else bad | ~np.isfinite(variance)
    return wavelength, np.where(bad, np.nan, flux), np.sqrt(np.where(bad, np.nan, variance))


def _per_star(values: Any, n_star: int, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((), (n_star,)):
        raise ValueError(f"{name} must be one value or {n_star}, got shape {array.shape}")
    return np.broadcast_to(array, (n_star,))
