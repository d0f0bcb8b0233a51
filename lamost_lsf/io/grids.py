"""Wavelength grids without the rounding of the files that carry them.

LAMOST publishes single-precision wavelengths. At 9000 A a float32 is good to 5e-4 A (0.016 km/s); the
float32 log10-wavelengths of the medium-resolution survey to 1.2e-7 dex (0.08 km/s), pixel by pixel. Where a
smooth grid reproduces *every* published value to that rounding, the smooth grid is what was published, and it
is returned in double precision.

The header's ``COEFF0`` is not that grid: nearly all low-resolution files start at float32(3.5682) =
3.56820011, 0.077 km/s above the header's 3.5682, and a few start at 3700 A, 1.2 km/s above it, with the same
3.5682 in the header. The published array decides; the header is only one of the candidates.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["restore_log_grid"]

# Published values may sit this many half-units-in-the-last-place off the smooth grid. 1 would be perfect
# rounding; the pipelines' own single-precision arithmetic makes it 1.2, and 2.04 in a few files (measured).
_SLACK = 2.5


@lru_cache(maxsize=64)
def _basis(size: int, degree: int) -> np.ndarray:
    """Orthonormal polynomials on ``size`` equidistant pixels, (size, degree + 1)."""
    pixel = np.linspace(-1.0, 1.0, size)
    return np.linalg.qr(np.polynomial.legendre.legvander(pixel, degree))[0]


def _smooth(values: np.ndarray, degree: int) -> np.ndarray:
    basis = _basis(values.size, degree)
    # The mean goes first: the fit's own round-off must stay far below the rounding that it removes.
    mean = values.mean()
    return mean + basis @ (basis.T @ (values - mean))


def restore_log_grid(
    log_wavelength: np.ndarray,
    half_ulp: float | np.ndarray,
    *,
    start: float | None = None,
    step: float | None = None,
    degree: int = 1,
) -> tuple[np.ndarray, str]:
    """Smooth log10-wavelength grid that a rounded one stands for.

    Candidates, in this order: ``start + step * i``; the same with ``start`` in single precision; the
    least-squares polynomial of ``degree`` in pixel number. The first that reproduces every value to its
    rounding is taken; where none does, the values come back as they are.

    Parameters
    ----------
    log_wavelength : ndarray (n_pix,), log10 of Angstrom
        As published.
    half_ulp : float or ndarray (n_pix,), dex
        Half the spacing of the published numbers, in log10 of the wavelength.
    start, step : float, optional
        ``COEFF0`` and ``COEFF1`` of the header, dex.
    degree : int
        Of the polynomial: 1 where the file is resampled to a uniform log grid.

    Returns
    -------
    grid : ndarray (n_pix,), log10 of Angstrom
        Double precision.
    source : str
        "header", "header-float32", "fit" or "file".

    Examples
    --------
    >>> published = (3.5682 + 1e-4 * np.arange(3900)).astype("f4").astype(float)
    >>> grid, source = restore_log_grid(published, 1.2e-7, start=3.5682, step=1e-4)
    >>> source, bool(grid[-1] == 3.5682 + 1e-4 * 3899)
    ('header', True)
    """
    size = log_wavelength.size
    # 5e-15 dex: round-off of log10 itself, for the files written in double precision.
    tolerance = np.maximum(_SLACK * np.asarray(half_ulp), 5e-15)
    candidates: list[tuple[str, np.ndarray]] = []
    if start is not None and step is not None:
        uniform = step * np.arange(size)
        candidates = [("header", start + uniform), ("header-float32", float(np.float32(start)) + uniform)]
    for source, grid in candidates:
        if np.all(np.abs(log_wavelength - grid) <= tolerance):
            return grid, source
    if size > degree + 1:
        grid = _smooth(log_wavelength, degree)
        if np.all(np.abs(log_wavelength - grid) <= tolerance):
            return grid, "fit"
    return log_wavelength, "file"
