"""Profile of a fibre seen through a slit, an aberrated camera and a pixel: exact, from its characteristic function.

The profile is a convolution, so its characteristic function is a product of closed forms and smooth integrals.
Band-limited by the Gaussian core and of negligible extent beyond a few Angstrom, it is summed as a Fourier series:
at any offset, to better than 1e-8 of its peak, without a grid.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["PARAMETERS", "PERIOD", "SLIT_SECOND_MOMENT", "add_series", "characteristic", "frequencies", "series"]

#: Columns of the parameter array; lengths in Angstrom.
PARAMETERS = (
    "half_slit",  # half of the slit's width, as imaged
    "illumination",  # slope of the brightness across the slit, -1 to 1
    "core",  # sigma of the Gaussian core
    "wing_fraction",  # share of the light in the wing
    "wing",  # sigma of the Gaussian wing, instead of the core
    "defocus",  # radius of the defocused pupil
    "coma_red",  # scale of the gamma distribution of shape 2 towards positive offsets
    "coma_blue",  # the same towards negative offsets
    "shift",  # offset of the whole profile
    "pixel",  # width of a pixel
)

#: Period of the Fourier series, Angstrom; profiles are 0 beyond half of it.
PERIOD = 56.0
#: Width of the slit in fibre diameters ("x2/3", the slit of LAMOST's low-resolution survey).
SLIT_FRACTION = 2.0 / 3.0

_N_NODES = 24
# Slit: Gauss-Legendre over the chord of the fibre's disc. Pupil: Gauss-Chebyshev of the second kind over the chord
# of its disc. Both discs are symmetric: half of the nodes do.
_t, _w = np.polynomial.legendre.leggauss(_N_NODES)
_SLIT_NODES = _t[_N_NODES // 2 :]
_SLIT_WEIGHTS = (_w * np.sqrt(1.0 - (SLIT_FRACTION * _t) ** 2))[_N_NODES // 2 :]
_SLIT_WEIGHTS = _SLIT_WEIGHTS / _SLIT_WEIGHTS.sum()
#: Mean square of the position in the slit, in units of its half-width.
SLIT_SECOND_MOMENT = float(np.sum(_SLIT_WEIGHTS * _SLIT_NODES**2))
_angle = np.pi * np.arange(1, _N_NODES // 2 + 1) / (_N_NODES + 1)
_PUPIL_NODES = np.cos(_angle)
_PUPIL_WEIGHTS = np.sin(_angle) ** 2 / np.sum(np.sin(_angle) ** 2)
del _t, _w, _angle


def frequencies(core: np.ndarray) -> int:
    """Number of frequencies that profiles with these Gaussian cores (sigma, Angstrom) need."""
    # exp(-(k sigma)^2 / 2) = 2e-9 at 6.3; the other factors only lower it
    return int(np.ceil(6.3 / float(np.min(core)) * PERIOD / (2.0 * np.pi)))


@njit(cache=True, error_model="numpy")
def _characteristic(p, n, step, slit_t, slit_w, pupil_t, pupil_w):
    m = p.shape[0]
    real, imag = np.empty((m, n)), np.empty((m, n))
    even, odd, disc = np.empty(n), np.empty(n), np.empty(n)
    for i in range(m):
        half_slit, illumination, core, wing_fraction, wing = p[i, 0], p[i, 1], p[i, 2], p[i, 3], p[i, 4]
        defocus, red, blue, shift, pixel = p[i, 5], p[i, 6], p[i, 7], p[i, 8], p[i, 9]
        even[:] = 0.0
        odd[:] = 0.0
        disc[:] = 0.0
        for q in range(slit_t.size):
            a = step * half_slit * slit_t[q]
            ca, sa = np.cos(a), np.sin(a)
            c, s = ca, sa
            for j in range(n):
                even[j] += slit_w[q] * c
                odd[j] += slit_w[q] * slit_t[q] * s
                c, s = c * ca - s * sa, s * ca + c * sa
        for q in range(pupil_t.size):
            a = step * defocus * pupil_t[q]
            ca, sa = np.cos(a), np.sin(a)
            c, s = ca, sa
            for j in range(n):
                disc[j] += pupil_w[q] * c
                c, s = c * ca - s * sa, s * ca + c * sa
        for j in range(n):
            k = step * (j + 1)
            x = 0.5 * k * pixel
            value = disc[j] * (np.sin(x) / x if x > 0.0 else 1.0)
            value *= (1.0 - wing_fraction) * np.exp(-0.5 * (k * core) ** 2) + wing_fraction * np.exp(
                -0.5 * (k * wing) ** 2
            )
            phase = complex(np.cos(k * shift), np.sin(k * shift))
            coma = (1.0 - 1j * k * red) * (1.0 + 1j * k * blue)
            z = complex(even[j], illumination * odd[j]) * phase * value / (coma * coma)
            real[i, j], imag[i, j] = z.real, z.imag
    return real, imag


def characteristic(parameters: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Characteristic function E[exp(i k x)] of profiles, at k = 2 pi (1 ... n) / `PERIOD`.

    Parameters
    ----------
    parameters : ndarray (m, 10)
        Columns as in `PARAMETERS`.
    n : int
        Number of frequencies; see `frequencies`.

    Returns
    -------
    real, imag : ndarray (m, n)
    """
    step = 2.0 * np.pi / PERIOD
    return _characteristic(
        np.ascontiguousarray(parameters), n, step, _SLIT_NODES, _SLIT_WEIGHTS, _PUPIL_NODES, _PUPIL_WEIGHTS
    )


@njit(cache=True, error_model="numpy")
def _one(real, imag, x, step):
    """Fourier series of one profile at one offset, unit area, not below 0."""
    if abs(step * x) > np.pi:
        return 0.0
    ca, sa = np.cos(step * x), np.sin(step * x)
    c, s = ca, sa
    total = 0.5
    for j in range(real.size):
        total += real[j] * c + imag[j] * s
        c, s = c * ca - s * sa, s * ca + c * sa
    # round-off and the cut of the spectrum leave less than 1e-8 below 0
    return max(total * step / np.pi, 0.0)


@njit(cache=True, error_model="numpy")
def _rows(real, imag, offset, step):
    out = np.empty(offset.shape)
    for i in range(offset.shape[0]):
        for j in range(offset.shape[1]):
            out[i, j] = _one(real[i], imag[i], offset[i, j], step)
    return out


def series(real: np.ndarray, imag: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Unit-area profiles (m, p), per Angstrom, at offsets (p,) common to all, or (m, p), Angstrom."""
    step = 2.0 * np.pi / PERIOD
    if offset.ndim == 2:
        return _rows(real, imag, np.ascontiguousarray(offset), step)
    phase = step * np.arange(1, real.shape[1] + 1)[:, None] * offset
    out = 0.5 + real @ np.cos(phase) + imag @ np.sin(phase)
    out = np.maximum(out * (step / np.pi), 0.0)
    out[:, np.abs(offset) > 0.5 * PERIOD] = 0.0
    return out


@njit(cache=True, error_model="numpy")
def _add_series(flux, wavelength, row, center, amplitude, reach, real, imag, step):
    for i in range(row.size):
        axis = wavelength[row[i]]
        first = np.searchsorted(axis, center[i] - reach)
        last = np.searchsorted(axis, center[i] + reach)
        for j in range(first, last):
            flux[row[i], j] += amplitude[i] * _one(real[i], imag[i], axis[j] - center[i], step)


def add_series(
    flux: np.ndarray,
    wavelength: np.ndarray,
    row: np.ndarray,
    center: np.ndarray,
    amplitude: np.ndarray,
    parameters: np.ndarray,
    reach: float,
) -> None:
    """Add lines to exposures in place.

    Parameters
    ----------
    flux, wavelength : ndarray (n_fiber, n_pix)
        Wavelength in Angstrom, increasing along each row.
    row : ndarray (m,)
        Row of each line.
    center, amplitude : ndarray (m,)
        Wavelength of each line and its integral.
    parameters : ndarray (m, 10)
        Columns as in `PARAMETERS`.
    reach : float
        Offset, Angstrom, beyond which a line is taken as 0.
    """
    n = frequencies(parameters[:, PARAMETERS.index("core")])
    real, imag = characteristic(parameters, n)
    _add_series(flux, wavelength, row, center, amplitude, reach, real, imag, 2.0 * np.pi / PERIOD)
