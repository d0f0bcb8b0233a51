"""The two built-in wavelength fitters: weighted linear least squares of a power or a Legendre series.

A fitter only fits. Which lines deserve to be fitted is decided outside, in `lamost_lsf.wavelength.clipping`,
so that a third party's fitter gets the same treatment.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import scipy.linalg
from astropy.modeling.models import Legendre1D, Polynomial1D
from numpy.typing import ArrayLike

__all__ = ["check_degree", "check_domain", "fit_legendre", "fit_polynomial"]

#: Both series are evaluated on this interval, whatever the detector's pixels: powers of a pixel number up to
#: 4000^5 would leave no digits for the coefficients.
WINDOW = (-1.0, 1.0)


def check_degree(degree: int) -> int:
    """Return ``degree`` as a Python int, or raise ``ValueError`` unless it is a whole number >= 0."""
    if isinstance(degree, bool | np.bool_) or not isinstance(degree, Integral) or degree < 0:
        raise ValueError(f"degree must be a whole number >= 0, got {degree!r}")
    return int(degree)


def check_domain(domain: tuple[float, float]) -> tuple[float, float]:
    """Return ``domain`` as two floats, or raise ``ValueError`` unless first < last and both are finite."""
    try:
        first, last = domain
    except (TypeError, ValueError):
        raise ValueError(f"domain must be two pixels (first, last), got {domain!r}") from None
    if not all(isinstance(edge, Real) and np.isfinite(edge) for edge in (first, last)) or not first < last:
        raise ValueError(f"domain must be two finite pixels (first, last) with first < last, got {domain!r}")
    return float(first), float(last)


def _check_lines(
    pixel: ArrayLike, wavelength: ArrayLike, error: ArrayLike | None, degree: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Lines as float64 arrays (n,), or ``ValueError`` where they do not fix ``degree + 1`` coefficients."""
    pixel = np.asarray(pixel, dtype=np.float64)
    wavelength = np.asarray(wavelength, dtype=np.float64)
    if pixel.ndim != 1 or pixel.shape != wavelength.shape:
        raise ValueError(
            f"pixel and wavelength must be 1-D and of one length, got shapes {pixel.shape} and {wavelength.shape}"
        )
    for name, values in (("pixel", pixel), ("wavelength", wavelength)):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{np.sum(~np.isfinite(values))} of {values.size} values of {name} are not finite")
    if error is not None:
        error = np.asarray(error, dtype=np.float64)
        if error.shape != pixel.shape:
            raise ValueError(f"error must have the shape of pixel, {pixel.shape}, got {error.shape}")
        if not (np.all(np.isfinite(error)) and np.all(error > 0)):
            raise ValueError("error must be finite and > 0 for every line; leave bad lines out instead")
    if pixel.size <= degree:
        raise ValueError(f"{pixel.size} line(s) cannot fix a curve of degree {degree}: it takes {degree + 1}")
    values, counts = np.unique(pixel, return_counts=True)
    if np.any(counts > 1):
        raise ValueError(
            f"pixel(s) {', '.join(f'{value:g}' for value in values[counts > 1][:5])} given more than once: "
            "one position on the detector cannot have two wavelengths"
        )
    return pixel, wavelength, error


def _least_squares(matrix: np.ndarray, target: np.ndarray, error: np.ndarray | None) -> np.ndarray:
    """Coefficients that minimise sum(((target - matrix @ c) / error)^2), by a pivoted QR decomposition."""
    if error is not None:
        # relative weights only: an overall factor in the errors must not meet the rank test below
        weight = np.min(error) / error
        matrix, target = matrix * weight[:, None], target * weight
    q, r, pivot = scipy.linalg.qr(matrix, mode="economic", pivoting=True)
    diagonal = np.abs(np.diag(r))
    if diagonal[-1] <= diagonal[0] * np.finfo(np.float64).eps * max(matrix.shape):
        raise ValueError(
            f"the lines do not fix {matrix.shape[1]} coefficients: they sit too close together for the "
            "domain; lower the degree or shorten the domain"
        )
    coefficients = np.empty(matrix.shape[1])
    coefficients[pivot] = scipy.linalg.solve_triangular(r, q.T @ target)
    return coefficients


def _fit_series(
    model_class: type,
    vander: Callable[[np.ndarray, int], np.ndarray],
    pixel: ArrayLike,
    wavelength: ArrayLike,
    error: ArrayLike | None,
    degree: int,
    domain: tuple[float, float],
) -> Polynomial1D | Legendre1D:
    degree = check_degree(degree)
    first, last = check_domain(domain)
    pixel, wavelength, error = _check_lines(pixel, wavelength, error, degree)
    scaled = (2.0 * pixel - (first + last)) / (last - first)
    coefficients = _least_squares(vander(scaled, degree), wavelength, error)
    return model_class(
        degree,
        domain=(first, last),
        window=WINDOW,
        **{f"c{order}": value for order, value in enumerate(coefficients)},
    )


def fit_polynomial(
    pixel: ArrayLike,
    wavelength: ArrayLike,
    *,
    error: ArrayLike | None = None,
    degree: int = 5,
    domain: tuple[float, float],
) -> Polynomial1D:
    """Power series through identified lines: the fitter named "polynomial".

    Parameters
    ----------
    pixel : array_like, shape (n,)
        Measured centres of the lines, in any order.
    wavelength : array_like, shape (n,), Angstrom
        Wavelengths of the lines, all in one medium (vacuum in this package).
    error : array_like, shape (n,), Angstrom, optional
        Standard deviation of each line. None: all lines weigh the same.
    degree : int
        Highest power; there are ``degree + 1`` coefficients.
    domain : (float, float)
        First and last pixel where the curve will be used. It is mapped to -1..1, which keeps the power series
        well conditioned; the coefficients are those of the mapped pixel.

    Returns
    -------
    `~astropy.modeling.polynomial.Polynomial1D`
        Pixel to wavelength, without units.

    Raises
    ------
    ValueError
        Not more than ``degree`` lines, values that are not finite, errors that are not positive, a pixel
        given twice, or lines so close together that they do not fix the coefficients.

    See Also
    --------
    fit_wavelength_solution : Rejects outliers and says how good the solution is.

    Examples
    --------
    >>> from lamost_lsf.wavelength import fit_polynomial
    >>> model = fit_polynomial([10, 60, 90], [5005, 5030, 5045], degree=1, domain=(0, 99))
    >>> print(f"{model(50):.3f}")
    5025.000
    """
    vander = np.polynomial.polynomial.polyvander
    return _fit_series(Polynomial1D, vander, pixel, wavelength, error, degree, domain)


def fit_legendre(
    pixel: ArrayLike,
    wavelength: ArrayLike,
    *,
    error: ArrayLike | None = None,
    degree: int = 5,
    domain: tuple[float, float],
) -> Legendre1D:
    """Legendre series through identified lines: the fitter named "legendre", the default.

    The curve is the same as that of `fit_polynomial`; its coefficients are nearly independent of one another
    where lines cover the domain evenly, and so can be compared between fibres and nights. Liu et al. (2026,
    section 5.3) calibrate LAMOST with a power or a Legendre series of degree 5.

    Parameters
    ----------
    pixel : array_like, shape (n,)
        Measured centres of the lines, in any order.
    wavelength : array_like, shape (n,), Angstrom
        Wavelengths of the lines, all in one medium (vacuum in this package).
    error : array_like, shape (n,), Angstrom, optional
        Standard deviation of each line. None: all lines weigh the same.
    degree : int
        Degree of the last Legendre polynomial; there are ``degree + 1`` coefficients.
    domain : (float, float)
        First and last pixel where the curve will be used, mapped to -1..1.

    Returns
    -------
    `~astropy.modeling.polynomial.Legendre1D`
        Pixel to wavelength, without units.

    Raises
    ------
    ValueError
        As `fit_polynomial`.

    Examples
    --------
    >>> from lamost_lsf.wavelength import fit_legendre
    >>> model = fit_legendre([0, 25, 75, 100], [5000, 5025, 5075, 5100], degree=1, domain=(0, 100))
    >>> print(f"{model.c0.value:.3f} {model.c1.value:.3f}")
    5050.000 50.000
    """
    vander = np.polynomial.legendre.legvander
    return _fit_series(Legendre1D, vander, pixel, wavelength, error, degree, domain)
