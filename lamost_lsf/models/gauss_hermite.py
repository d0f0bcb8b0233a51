"""Gauss-Hermite profiles, among them those of specex point-spread functions (BOSS, DESI)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.time import Time
from astropy.utils.exceptions import AstropyUserWarning
from numpy.polynomial.hermite_e import hermeval
from numpy.polynomial.legendre import legder, legval
from scipy.special import ndtr

from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.models.base import IPModel
from lamost_lsf.units import to_angstrom

__all__ = ["GaussHermiteIP", "HermiteComponent"]

#: PSFTYPE of a specex file -> the Gauss-Hermite series that it holds: prefix, width, header word of the last order.
_SPECEX_SERIES = {
    "GAUSS-HERMITE": (("GH", "GHSIGY", "GHDEGY"),),
    "GAUSS-HERMITE2": (("GH", "GHSIGY", "GHDEGY"), ("GH2", "GHSIGY2", "GHDEGY2")),
}


@dataclass(frozen=True)
class HermiteComponent:
    """One Gauss-Hermite series; every parameter is a Legendre series in wavelength for each fibre.

    Attributes
    ----------
    sigma : ndarray (n_fiber, n_legendre)
        Width of the Gaussian, pixels.
    coefficients : ndarray (n_order, n_fiber, n_legendre)
        Factors of the (probabilists') Hermite polynomials He_0, He_1, ... of offset / sigma.
    """

    sigma: np.ndarray
    coefficients: np.ndarray


class GaussHermiteIP(IPModel):
    """Sum of Gauss-Hermite series with parameters that vary with fibre and wavelength.

    The profile at a pixel offset y is ``sum_c sum_j a_cj He_j(y / s_c) G(y; s_c)``, integrated over the pixel if
    ``pixel_integrated``, and mapped to wavelength by the local dispersion.

    Parameters
    ----------
    components : sequence of HermiteComponent
    position : ndarray (n_fiber, n_legendre)
        Detector row (pixel) as a Legendre series in wavelength; its derivative is the dispersion.
    wavelength_range : tuple of float
        Vacuum Angstrom that the Legendre series are defined on, mapped to [-1, 1].
    window : tuple of float
        Offsets (Angstrom) between which the profile is sampled; 0 outside.
    n_samples : int
        Number of samples of the window.
    pixel_integrated : bool
        Whether to include the response of a pixel, as a profile measured on an arc does.
    meta : dict, optional
        Provenance.

    Raises
    ------
    ValueError
        Arrays whose shapes do not fit, an empty range, or a window without offset 0.

    Examples
    --------
    >>> import astropy.units as u
    >>> from lamost_lsf import GaussHermiteIP
    >>> ip = GaussHermiteIP.constant(sigma=1.2 * u.AA, coefficients=[1, 0, 0, 0.05]).profile(wavelength=5000 * u.AA)
    >>> print(f"{float(ip.skewness):.3f}")
    0.300
    """

    needs_fiber = True

    def __init__(
        self,
        components: Sequence[HermiteComponent],
        position: np.ndarray,
        *,
        wavelength_range: tuple[float, float],
        window: tuple[float, float] = (-12.0, 12.0),
        n_samples: int = 601,
        pixel_integrated: bool = True,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self._components = tuple(components)
        if not self._components:
            raise ValueError("a profile needs at least one component")
        self._position = np.atleast_2d(np.asarray(position, dtype=np.float64))
        self.n_fiber = self._position.shape[0]
        low, high = (float(w) for w in wavelength_range)
        if not 0 < low < high:
            raise ValueError(f"wavelength_range must be two increasing positive wavelengths, got {wavelength_range}")
        for c in self._components:
            if c.sigma.ndim != 2 or c.coefficients.ndim != 3:
                raise ValueError(
                    "a component's sigma must have shape (n_fiber, n_legendre) and its coefficients "
                    f"(n_order, n_fiber, n_legendre), got {c.sigma.shape} and {c.coefficients.shape}"
                )
            if c.sigma.shape[0] != self.n_fiber or c.coefficients.shape[1] != self.n_fiber:
                raise ValueError(f"every component must describe the {self.n_fiber} fibres of position")
        self.wavelength_range = (low, high)
        self.pixel_integrated = pixel_integrated
        if not -np.inf < window[0] < 0 < window[1] < np.inf:
            raise ValueError(f"window must enclose offset 0, got {window}")
        if n_samples < 5:
            raise ValueError(f"n_samples must be at least 5, got {n_samples}")
        self.offset = np.linspace(window[0], window[1], n_samples)
        self.meta = {"model": "GaussHermiteIP", **(meta or {})}

    @classmethod
    def constant(
        cls,
        *,
        sigma: u.Quantity,
        coefficients: Sequence[float],
        wavelength_range: tuple[float, float] = (2000.0, 12000.0),
        truncate: float = 8.0,
        n_samples: int = 601,
    ) -> GaussHermiteIP:
        """The same profile everywhere, for any fibre: width and Hermite factors (He_0 first)."""
        width = float(to_angstrom(sigma, "sigma"))
        if not (np.isfinite(width) and width > 0):
            raise ValueError(f"sigma must be positive, got {sigma}")
        factors = np.atleast_1d(np.asarray(coefficients, dtype=np.float64))
        if factors.ndim != 1 or not np.all(np.isfinite(factors)):
            raise ValueError(f"coefficients must be finite numbers, He_0 first, got {coefficients}")
        factors = factors[:, None, None]
        half_range = 0.5 * (wavelength_range[1] - wavelength_range[0])
        # one pixel per Angstrom: pixels and Angstrom are then the same unit
        model = cls(
            [HermiteComponent(np.array([[width]]), factors)],
            np.array([[0.0, half_range]]),
            wavelength_range=wavelength_range,
            window=(-truncate * width, truncate * width),
            n_samples=n_samples,
            pixel_integrated=False,
        )
        model.needs_fiber = False
        return model

    @classmethod
    def from_specex(
        cls,
        path: str | PathLike,
        *,
        window: tuple[float, float] = (-12.0, 12.0),
        pixel_integrated: bool = True,
    ) -> GaussHermiteIP:
        """Profile along the dispersion of a specex ``GAUSS-HERMITE`` or ``GAUSS-HERMITE2`` point-spread function.

        The two-dimensional core is integrated across the dispersion, where all Hermite terms but the zeroth vanish. It
        is taken without the cut at GHNSIG sigma, which would put a step into the profile, and without the file's
        power-law tail, which scatters light over many pixels. Fibres are counted from 1 here and from FIBERMIN in the
        file.

        Parameters
        ----------
        path : path
            FITS file written by specex, with one table row a parameter (BOSS and early DESI).
        window : tuple of float
            Offsets, Angstrom.
        pixel_integrated : bool
            Include the response of a pixel (specex fits pixel integrals, so the arc itself has it).

        Raises
        ------
        FileNotFoundError
        FormatError
            Not a specex PSF of those types, or a damaged one.
        """
        try:
            # opened here: astropy leaves its own handle open where the file is damaged
            with warnings.catch_warnings(), open(path, "rb") as file:
                warnings.filterwarnings("error", message="File may have been truncated")
                hdus = fits.open(file, memmap=False)
                kind = hdus[0].header.get("PSFTYPE")
                if kind not in _SPECEX_SERIES or len(hdus) < 2 or not isinstance(hdus[1], fits.BinTableHDU):
                    raise FormatError(
                        f"{path}: PSFTYPE must be {' or '.join(_SPECEX_SERIES)} with a table of parameters, "
                        f"found {kind!r} and {len(hdus)} HDUs"
                    )
                table, header = hdus[1].data, hdus[1].header
                n_fiber = header["FIBERMAX"] - header["FIBERMIN"] + 1
                rows = {name.strip(): i for i, name in enumerate(table["PARAM"])}
                ranges = np.stack([table["WAVEMIN"], table["WAVEMAX"]], axis=-1).astype(np.float64)
                coefficients = np.asarray(table["COEFF"], dtype=np.float64).reshape(len(table), n_fiber, -1)
                orders = [int(header[degree]) + 1 for _, _, degree in _SPECEX_SERIES[kind]]
        except (FormatError, FileNotFoundError):
            raise
        except (AstropyUserWarning, KeyError, ValueError, TypeError, OSError) as error:
            raise FormatError(f"{path}: not a readable specex PSF ({error})") from None

        def series(name: str) -> np.ndarray:
            if name not in rows:
                raise FormatError(f"{path}: parameter {name} is missing")
            if np.any(ranges[rows[name]] != ranges[rows["Y"]]):
                raise FormatError(f"{path}: parameter {name} has another wavelength range than Y")
            return coefficients[rows[name]]

        position = series("Y")
        components = [
            HermiteComponent(series(width), np.stack([series(f"{prefix}-0-{j}") for j in range(n)]))
            for (prefix, width, _), n in zip(_SPECEX_SERIES[kind], orders, strict=True)
        ]
        low, high = ranges[rows["Y"]]
        meta = {"source": str(header.get("CAMERA", "")).strip(), "mjd": header.get("MJD")}
        return cls(
            components,
            position,
            wavelength_range=(low, high),
            window=window,
            pixel_integrated=pixel_integrated,
            meta=meta,
        )

    def _check_labels(self, time: Time | None, fiber: np.ndarray | None, extrapolate: bool) -> None:
        super()._check_labels(time, fiber, extrapolate)
        # no neighbour can stand in for a fibre that the file does not hold, extrapolate or not
        if self.needs_fiber and not np.all((fiber >= 1) & (fiber <= self.n_fiber)):
            raise OutOfRangeError(f"fiber must be 1-{self.n_fiber} in this model, got {fiber}")

    def _time_label(self, time: Time) -> np.ndarray:
        return np.zeros(time.shape)

    def _evaluate(self, time: np.ndarray | None, fiber: np.ndarray | None, wavelength: np.ndarray) -> np.ndarray:
        low, high = self.wavelength_range
        index = np.zeros(wavelength.size, dtype=int) if not self.needs_fiber else fiber.astype(int) - 1
        scaled = 2.0 * (wavelength - low) / (high - low) - 1.0

        def at(series: np.ndarray) -> np.ndarray:
            return legval(scaled, series[index].T, tensor=False)

        rows_per_angstrom = legval(scaled, legder(self._position, axis=1)[index].T, tensor=False) * (2.0 / (high - low))
        pixel = self.offset * rows_per_angstrom[:, None]
        profile = np.zeros_like(pixel)
        for component in self._components:
            sigma = at(component.sigma)[:, None]
            factors = np.stack([at(c) for c in component.coefficients])
            profile += self._series(pixel, sigma, factors)
        return profile

    def _series(self, pixel: np.ndarray, sigma: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """Gauss-Hermite series (m, n) of pixel offsets (m, n); ``factors`` (n_order, m)."""
        if not self.pixel_integrated:
            z = pixel / sigma
            return hermeval(z, factors[..., None], tensor=False) * np.exp(-0.5 * z * z) / (np.sqrt(2 * np.pi) * sigma)

        # the antiderivative of He_j(z) phi(z) is -He_{j-1}(z) phi(z), and that of phi is the normal integral
        def integral(edge: np.ndarray) -> np.ndarray:
            z = edge / sigma
            phi = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
            total = factors[0][:, None] * ndtr(z)
            if factors.shape[0] > 1:
                total = total - hermeval(z, factors[1:][..., None], tensor=False) * phi
            return total

        return integral(pixel + 0.5) - integral(pixel - 0.5)
