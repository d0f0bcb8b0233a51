"""From wavelength back to pixel: derivative, numerical inverse and gwcs of a monotonic curve."""

from __future__ import annotations

from collections.abc import Callable

import astropy.units as u
import numpy as np
from astropy.modeling import Model
from astropy.modeling.models import Chebyshev1D, Legendre1D, Polynomial1D, Spline1D
from gwcs import WCS
from gwcs import coordinate_frames as cf
from scipy.interpolate import make_interp_spline

__all__ = ["MonotonicCurve", "build_gwcs"]

_SERIES = {
    Polynomial1D: np.polynomial.Polynomial,
    Legendre1D: np.polynomial.Legendre,
    Chebyshev1D: np.polynomial.Chebyshev,
}
#: Nodes of the table from which the inverse starts: two for each pixel, within reason.
_MOST_NODES = 200_001
#: Largest error of the inverse that a gwcs carries, in pixels.
GWCS_TOLERANCE = 1e-8


class MonotonicCurve:
    """Wavelength as a function of pixel on first <= pixel <= last, and its inverse.

    Parameters
    ----------
    model : `~astropy.modeling.Model`
        Pixel to wavelength (Angstrom).
    first, last : float
        Ends of the range, in pixels.

    Raises
    ------
    ValueError
        The curve is not finite, or not strictly monotonic, in that range.
    """

    def __init__(self, model: Model, first: float, last: float):
        self.model, self.first, self.last = model, first, last
        n = int(np.clip(2 * np.ceil(last - first) + 1, 257, _MOST_NODES))
        self.pixel = np.linspace(first, last, n)
        self.wavelength = np.asarray(model(self.pixel), dtype=np.float64)
        if not np.all(np.isfinite(self.wavelength)):
            bad = self.pixel[~np.isfinite(self.wavelength)]
            raise ValueError(f"the solution is not finite at pixel {bad[0]:.1f}, within its domain")
        step = np.diff(self.wavelength)
        self.sign = 1.0 if self.wavelength[-1] >= self.wavelength[0] else -1.0
        turned = step * self.sign <= 0
        if np.any(turned):
            raise ValueError(
                "the solution is not monotonic in its domain: wavelength turns over near pixel "
                f"{self.pixel[:-1][turned][0]:.1f} of {first:g}..{last:g}; lower the degree, shorten the "
                "domain or check the identifications"
            )
        self._derivative = self._series_derivative()

    def _series_derivative(self) -> Callable[[np.ndarray], np.ndarray]:
        series = _SERIES.get(type(self.model))
        if series is None or self.model.domain is None:
            return self._numerical_derivative
        return series(self.model.parameters, domain=self.model.domain, window=self.model.window).deriv()

    def derivative(self, pixel: np.ndarray) -> np.ndarray:
        """Dispersion d(wavelength)/d(pixel), Angstrom per pixel."""
        return np.asarray(self._derivative(np.asarray(pixel, dtype=np.float64)), dtype=np.float64)

    def _numerical_derivative(self, pixel: np.ndarray) -> np.ndarray:
        # The quartic through five points, never beyond the ends of the range, where a table or a spline may
        # have no values. A step below half a pixel would only lose digits; a shorter range sets a shorter
        # step.
        step = min(0.5, (self.last - self.first) / 8)
        centre = np.clip(pixel, self.first + 2 * step, self.last - 2 * step)
        nodes = np.arange(-2.0, 3.0)
        values = np.stack([self.model(centre + node * step) for node in nodes], axis=-1)
        coefficients = values @ np.linalg.inv(np.vander(nodes, increasing=True)).T
        t = (pixel - centre) / step
        powers = np.stack([order * t ** (order - 1) if order else 0.0 * t for order in range(5)], axis=-1)
        return np.sum(coefficients * powers, axis=-1) / step

    def inverse(self, wavelength: np.ndarray) -> np.ndarray:
        """Pixel of each wavelength (Angstrom), to rounding; NaN outside the range of the curve."""
        target = np.asarray(wavelength, dtype=np.float64)
        pixel = np.full(target.shape, np.nan)
        grid = self.sign * self.wavelength
        with np.errstate(invalid="ignore"):
            inside = (self.sign * target >= grid[0]) & (self.sign * target <= grid[-1])
        if not np.any(inside):
            return pixel
        wanted = self.sign * target[inside]
        upper = np.clip(np.searchsorted(grid, wanted), 1, grid.size - 1)
        left, right = self.pixel[upper - 1], self.pixel[upper]
        slope = (grid[upper] - grid[upper - 1]) / (right - left)
        guess = left + (wanted - grid[upper - 1]) / slope
        # Newton's steps inside a bracket that shrinks: quadratic where the curve is smooth, never lost
        for _ in range(60):
            miss = self.sign * self.model(guess) - wanted
            left = np.where(miss <= 0, guess, left)
            right = np.where(miss >= 0, guess, right)
            with np.errstate(divide="ignore", invalid="ignore"):
                newton = guess - miss / (self.sign * self.derivative(guess))
            safe = (newton >= left) & (newton <= right)
            following = np.where(safe, newton, 0.5 * (left + right))
            moved = np.max(np.abs(following - guess))
            guess = following
            if moved < 1e-11:
                break
        pixel[inside] = guess
        return pixel


def _inverse_spline(curve: MonotonicCurve) -> Spline1D:
    """Quintic spline of pixel over wavelength, exact to `GWCS_TOLERANCE`.

    A spline, not a numerical inverse, so that the gwcs can be saved by anyone with asdf-astropy alone.
    """
    low, high = np.sort(curve.wavelength[[0, -1]])
    n = 16
    while True:
        nodes = np.linspace(low, high, n + 1)
        nodes_pixel = curve.inverse(nodes)
        spline = make_interp_spline(nodes, nodes_pixel, k=5)
        between = 0.5 * (nodes[1:] + nodes[:-1])
        worst = np.max(np.abs(spline(between) - curve.inverse(between)))
        if worst < GWCS_TOLERANCE or n >= 4096:
            return Spline1D(knots=spline.t, coeffs=spline.c, degree=5)
        n *= 2


def build_gwcs(curve: MonotonicCurve) -> WCS:
    """One-axis `gwcs.WCS`: pixel to vacuum wavelength in Angstrom and back; NaN outside the range."""
    transform = curve.model.copy()
    transform.inverse = _inverse_spline(curve)
    detector = cf.CoordinateFrame(1, ("PIXEL",), (0,), unit=(u.pix,), name="detector", axes_names=("pixel",))
    # gwcs makes an attribute of each frame's name, and specutils takes a WCS with an attribute "spectral" for
    # a FITS one: the frame must not be called that
    world = cf.SpectralFrame(unit=u.AA, axes_names=("wavelength",), name="vacuum_wavelength")
    wcs = WCS([(detector, transform), (world, None)])
    wcs.bounding_box = (curve.first, curve.last)
    return wcs
