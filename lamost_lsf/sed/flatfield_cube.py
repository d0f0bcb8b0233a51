"""`FlatFieldCube`: flat field by detector position and wavelength, its error, and its files."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum

from lamost_lsf.convolution.axes import variance_of
from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.files import atomic_path
from lamost_lsf.sed.flatfield_fit import basis_terms, design
from lamost_lsf.units import to_vacuum_angstrom

__all__ = ["FlatFieldCube", "check_domain", "read_images"]

_FORMAT, _VERSION = "lamost_lsf flat-field cube", 1


class FlatFieldCube:
    """Large-scale flat field f(x, y, wavelength) with its error, and the mean response.

    At every wavelength ``observed / predicted = response * f(x, y)``, with ``response`` the mean over the detector; f
    is a polynomial of detector position whose mean is 1. Coefficients and their covariance are kept; `cube` samples
    them.

    Attributes
    ----------
    wavelength : ndarray (n_wave,)
        Vacuum Angstrom.
    coefficients : ndarray (n_wave, n_term)
        Of the products of Legendre polynomials in position, scaled to -1..1 over ``domain``; NaN where not determined.
    covariance : ndarray (n_wave, n_term, n_term)
    domain : tuple
        ((x_low, x_high), (y_low, y_high)), detector pixels.
    degree : int
        Total degree of the polynomial.
    n_stars, chi2, flag : ndarray (n_wave,)
        Stars used, reduced chi-square (before errors are scaled by it) and `FlatFieldFlag`.
    rejected : ndarray (n_star,) of float
        Share of its wavelengths at which a star was rejected.
    """

    def __init__(
        self,
        wavelength: np.ndarray,
        coefficients: np.ndarray,
        covariance: np.ndarray,
        domain: tuple[tuple[float, float], tuple[float, float]],
        degree: int = 2,
        *,
        n_stars: np.ndarray | None = None,
        chi2: np.ndarray | None = None,
        flag: np.ndarray | None = None,
        rejected: np.ndarray | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.wavelength = np.asarray(wavelength, dtype=np.float64)
        self.coefficients = np.asarray(coefficients, dtype=np.float64)
        self.covariance = np.asarray(covariance, dtype=np.float64)
        self.degree = int(degree)
        self.domain = check_domain(domain)
        n, terms = self.wavelength.size, len(basis_terms(self.degree))
        if self.coefficients.shape != (n, terms) or self.covariance.shape != (n, terms, terms):
            raise ValueError(
                f"coefficients {self.coefficients.shape} and covariance {self.covariance.shape} do not fit {n} "
                f"wavelengths and the {terms} terms of degree {self.degree}"
            )
        self.n_stars = np.zeros(n, dtype=np.int64) if n_stars is None else np.asarray(n_stars, dtype=np.int64)
        self.chi2 = np.full(n, np.nan) if chi2 is None else np.asarray(chi2, dtype=np.float64)
        self.flag = np.zeros(n, dtype=np.int64) if flag is None else np.asarray(flag, dtype=np.int64)
        self.rejected = np.zeros(0) if rejected is None else np.asarray(rejected, dtype=np.float64)
        self.meta = dict(meta or {})

    def __repr__(self) -> str:
        w, (x, y) = self.wavelength, self.domain
        return (
            f"<FlatFieldCube: {w.size} wavelengths {w[0]:.0f}-{w[-1]:.0f} A, detector {x[0]:g}-{x[1]:g} x "
            f"{y[0]:g}-{y[1]:g}, degree {self.degree}>"
        )

    @property
    def response(self) -> np.ndarray:
        """Mean over the detector of observed over predicted flux, (n_wave,)."""
        return self.coefficients[:, 0]

    @property
    def response_error(self) -> np.ndarray:
        """One sigma of the response, (n_wave,)."""
        return np.sqrt(self.covariance[:, 0, 0])

    # -- values ---------------------------------------------------------------------------------------------

    def _at(self, wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and covariance at other wavelengths, linear between the cube's; NaN beyond."""
        grid = self.wavelength
        right = np.clip(np.searchsorted(grid, wavelength), 1, max(grid.size - 1, 1))
        if grid.size == 1:
            coefficients = np.repeat(self.coefficients, wavelength.size, axis=0)
            covariance = np.repeat(self.covariance, wavelength.size, axis=0)
        else:
            t = ((wavelength - grid[right - 1]) / (grid[right] - grid[right - 1]))[:, None]
            low = np.where(t < 1, self.coefficients[right - 1], 0.0)
            high = np.where(t > 0, self.coefficients[right], 0.0)
            coefficients = (1 - t) * low + t * high
            t = t[:, None]
            # neighbours share their stars: their errors are taken for fully correlated, which never understates them
            low = np.where(t < 1, self.covariance[right - 1], 0.0)
            high = np.where(t > 0, self.covariance[right], 0.0)
            covariance = (1 - t) * low + t * high
        beyond = (wavelength < grid[0] * (1 - 1e-12)) | (wavelength > grid[-1] * (1 + 1e-12)) | ~np.isfinite(wavelength)
        coefficients[beyond], covariance[beyond] = np.nan, np.nan
        return coefficients, covariance

    def flat(
        self,
        x: np.ndarray | float,
        y: np.ndarray | float,
        wavelength: u.Quantity | np.ndarray | None = None,
        *,
        along_wavelength: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Flat field and its one-sigma error.

        Parameters
        ----------
        x, y : array_like (...)
            Detector position, pixels.
        wavelength : `~astropy.units.Quantity` or ndarray (n_wave,), optional
            Vacuum wavelengths (plain numbers: Angstrom); the cube's own by default.
        along_wavelength : bool
            Whether the last axis of ``x`` and ``y`` is that of the wavelengths: each has a position of its own.

        Returns
        -------
        flat, error : ndarray (..., n_wave)
            NaN beyond the cube's wavelengths.

        Raises
        ------
        OutOfRangeError
            A position off the detector.
        """
        return self._evaluate(x, y, wavelength, absolute=False, along=along_wavelength)

    def _evaluate(
        self, x: Any, y: Any, wavelength: Any, *, absolute: bool, along: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Flat field, or (``absolute``) response times flat field, with errors, (..., n_wave)."""
        if wavelength is None:
            at, coefficients, covariance = self.wavelength, self.coefficients, self.covariance
        else:
            at = to_vacuum_angstrom(wavelength) if isinstance(wavelength, u.Quantity) else np.asarray(wavelength, float)
            at = np.atleast_1d(at)
            coefficients, covariance = self._at(at)
        x, y = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
        for name, value, (low, high) in (("x", x, self.domain[0]), ("y", y, self.domain[1])):
            if not np.all((value >= low) & (value <= high)):
                raise OutOfRangeError(f"{name} must lie on the detector, {low:g} to {high:g}")
        if not along:
            x, y = x[..., None], y[..., None]
        elif x.ndim == 0 or x.shape[-1] != at.size:
            raise ValueError(f"x and y have shape {x.shape}; their last axis must be the {at.size} wavelengths")
        phi = design(x, y, self.domain, self.degree)  # (..., n_wave or 1, n_term)
        total = np.sum(phi * coefficients, axis=-1)
        if absolute:
            return total, np.sqrt(_quadratic(phi, covariance))
        mean = coefficients[:, 0]
        value = total / mean
        # the response is the first coefficient, the mean of all others over the detector being 0
        slope = np.array(np.broadcast_to(phi, (*value.shape, phi.shape[-1])))
        slope[..., 0] -= value
        return value, np.sqrt(_quadratic(slope, covariance)) / np.abs(mean)

    def cube(self, n_x: int = 32, n_y: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The flat field sampled on a grid of detector positions that covers the domain, ends included.

        Returns
        -------
        flat, error : ndarray (n_wave, n_y, n_x)
        x, y : ndarray (n_x,) and (n_y,)
            Detector pixels.
        """
        if n_x < 2 or n_y < 2:
            raise ValueError("a cube needs at least two samples along x and y")
        x, y = np.linspace(*self.domain[0], n_x), np.linspace(*self.domain[1], n_y)
        value, error = self.flat(x[None], y[:, None])
        return np.moveaxis(value, -1, 0), np.moveaxis(error, -1, 0), x, y

    def correct(
        self,
        spectrum: Spectrum,
        x: np.ndarray | float,
        y: np.ndarray | float,
        *,
        response: bool = True,
        include_error: bool = True,
    ) -> Spectrum:
        """Spectrum divided by the flat field, and by the response.

        Parameters
        ----------
        spectrum : `~specutils.Spectrum`
            Flux (n,); its axis in vacuum unless ``meta["wavelength_medium"]`` says air.
        x, y : float or ndarray (n,)
            Detector position of the spectrum, or of each of its pixels.
        response : bool
            Divide by the response too: instrumental units become those of the predictions.
        include_error : bool
            Add the cube's error to the spectrum's, if that has errors. It is common to all stars near that position.

        Returns
        -------
        `~specutils.Spectrum`
            With standard deviations, in the unit of the flux, if the spectrum has errors of any kind. Pixels beyond the
            cube's wavelengths, where it is not determined, or of infinite variance are NaN and masked.

        Raises
        ------
        TypeError
            Something other than a Spectrum, or an uncertainty that is neither std, var nor ivar.
        OutOfRangeError
            A position off the detector, or no wavelength in common.
        """
        if not isinstance(spectrum, Spectrum):
            raise TypeError(f"spectrum must be a specutils Spectrum, got {type(spectrum).__name__}")
        medium = spectrum.meta.get("wavelength_medium") or "vacuum"
        wavelength = to_vacuum_angstrom(u.Quantity(spectrum.spectral_axis), medium)
        if wavelength.max() < self.wavelength[0] or wavelength.min() > self.wavelength[-1]:
            raise OutOfRangeError(
                f"the spectrum ({wavelength.min():.0f}-{wavelength.max():.0f} A) and the cube "
                f"({self.wavelength[0]:.0f}-{self.wavelength[-1]:.0f} A) have no wavelength in common"
            )
        if spectrum.flux.ndim != 1:
            raise ValueError(f"correct takes one spectrum at a time, got flux of shape {spectrum.flux.shape}")
        along = np.ndim(x) > 0 or np.ndim(y) > 0
        if along:
            x, y = (np.broadcast_to(np.asarray(v, dtype=np.float64), wavelength.shape) for v in (x, y))
        factor, error = self._evaluate(x, y, wavelength, absolute=response, along=along)
        bad = ~(np.isfinite(factor) & (factor > 0))
        variance, _ = variance_of(spectrum)
        if variance is not None:
            bad |= ~np.isfinite(variance)
        factor = np.where(bad, np.nan, factor)
        flux = spectrum.flux / factor
        uncertainty = None
        if variance is not None:
            own = np.where(bad, np.nan, variance) / factor**2
            common = (flux.value * error / factor) ** 2 if include_error else 0.0
            uncertainty = StdDevUncertainty(np.sqrt(own + common), unit=flux.unit)
        mask = bad if spectrum.mask is None else bad | spectrum.mask
        meta = {**spectrum.meta, "flat_field": {"response": bool(response), "degree": self.degree}}
        return Spectrum(flux=flux, spectral_axis=spectrum.spectral_axis, uncertainty=uncertainty, mask=mask, meta=meta)

    # -- files ----------------------------------------------------------------------------------------------

    def write(self, path: str | os.PathLike, *, n_x: int = 32, n_y: int = 32, overwrite: bool = False) -> None:
        """Write to FITS: the sampled cube and its error for others, coefficients and covariance for `read`.

        HDUs ``FLAT`` and ``ERROR`` (n_wave, n_y, n_x) have a WCS of detector pixels; ``WAVELENGTH``, ``COEFF``,
        ``COVAR``, ``NSTARS``, ``CHI2``, ``FLAG`` and ``REJECTED`` hold what is needed to rebuild the object.
        """
        flat, error, x, y = self.cube(n_x, n_y)
        header = fits.Header({"FORMAT": _FORMAT, "VERSION": _VERSION, "DEGREE": self.degree})
        for name, (low, high) in zip("XY", self.domain, strict=True):
            header[f"{name}LOW"], header[f"{name}HIGH"] = low, high
        for key, value in self.meta.items():
            if isinstance(value, (str, int, float, bool)):
                header[f"HIERARCH META {key.upper()}"] = value
        wcs = fits.Header({"CTYPE1": "DETX", "CTYPE2": "DETY"})
        for i, axis in ((1, x), (2, y)):
            wcs[f"CRPIX{i}"], wcs[f"CRVAL{i}"], wcs[f"CDELT{i}"] = 1.0, axis[0], axis[1] - axis[0]
        arrays = {
            "WAVELENGTH": self.wavelength, "COEFF": self.coefficients, "COVAR": self.covariance,
            "NSTARS": self.n_stars, "CHI2": self.chi2, "FLAG": self.flag, "REJECTED": np.atleast_1d(self.rejected),
        }  # fmt: skip
        hdus: list[Any] = [fits.PrimaryHDU(header=header)]
        for name, data in (("FLAT", flat), ("ERROR", error)):
            hdus.append(fits.ImageHDU(data.astype(np.float32), header=wcs, name=name))
        hdus += [fits.ImageHDU(data if data.size else None, name=name) for name, data in arrays.items()]
        with atomic_path(path, overwrite=overwrite) as temporary:
            fits.HDUList(hdus).writeto(temporary, overwrite=True, checksum=True)

    @classmethod
    def read(cls, path: str | os.PathLike) -> FlatFieldCube:
        """Read what `write` wrote.

        Raises
        ------
        FormatError
            Another file, one that was damaged or changed after it was written, or a version of a later release.
        """
        names = ["WAVELENGTH", "COEFF", "COVAR", "NSTARS", "CHI2", "FLAG", "REJECTED"]
        data, header = read_images(path, _FORMAT, _VERSION, names)
        try:
            domain = tuple((header[f"{name}LOW"], header[f"{name}HIGH"]) for name in "XY")
            degree = header["DEGREE"]
        except KeyError as error:
            raise FormatError(f"{os.fspath(path)}: {error} missing") from None
        meta = {str(key)[5:].lower(): value for key, value in header.items() if str(key).startswith("META ")}
        return cls(
            data["WAVELENGTH"], data["COEFF"], data["COVAR"], domain, degree, n_stars=data["NSTARS"],
            chi2=data["CHI2"], flag=data["FLAG"], rejected=data["REJECTED"], meta=meta,
        )  # fmt: skip


def _quadratic(vector: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``v^T M v`` of (..., n_wave or 1, k) and (n_wave, k, k)."""
    shape = np.broadcast_shapes(vector.shape[:-1], matrix.shape[:1])
    vector = np.broadcast_to(vector, (*shape, vector.shape[-1]))
    return np.clip(np.sum((vector[..., None, :] @ matrix)[..., 0, :] * vector, axis=-1), 0.0, None)


def check_domain(domain: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """Domain as two increasing pairs of numbers, or a ValueError that says what is wrong."""
    try:
        (x0, x1), (y0, y1) = ((float(low), float(high)) for low, high in domain)
    except (TypeError, ValueError):
        raise ValueError(f"domain must be ((x_low, x_high), (y_low, y_high)), got {domain!r}") from None
    if not (np.all(np.isfinite([x0, x1, y0, y1])) and x0 < x1 and y0 < y1):
        raise ValueError(f"domain must be two increasing ranges, got {domain!r}")
    return (x0, x1), (y0, y1)


def read_images(
    path: str | os.PathLike, kind: str, version: int, names: list[str]
) -> tuple[dict[str, np.ndarray], fits.Header]:
    """Images by name, and the primary header, of a file of one of this package's kinds; else a FormatError."""
    name = os.fspath(path)
    try:
        # from memory: astropy leaves a damaged file open when it stops half-way
        content = io.BytesIO(Path(path).read_bytes())
        with warnings.catch_warnings(), fits.open(content, checksum=True) as hdus:
            # a wrong checksum or a truncated file is a warning of astropy's; here it is an error
            warnings.simplefilter("error")
            header = hdus[0].header.copy()
            if header.get("FORMAT") != kind:
                raise FormatError(f"{name} does not hold {kind.removeprefix('lamost_lsf ')}")
            if int(header["VERSION"]) > version:
                raise FormatError(f"{name} is of version {header['VERSION']}; this release reads up to {version}")
            present = {hdu.name for hdu in hdus}
            missing = [key for key in names if key not in present]
            if missing:
                raise FormatError(f"{name}: HDU {', '.join(missing)} missing")
            empty = np.zeros(0)
            data = {key: empty if hdus[key].data is None else np.array(hdus[key].data) for key in names}
    except (FileNotFoundError, IsADirectoryError, PermissionError, FormatError):
        raise
    except (OSError, TypeError, ValueError, KeyError, Warning) as error:
        raise FormatError(
            f"{name}: damaged, changed after it was written, or no FITS file: {str(error).strip()}"
        ) from None
    return data, header
