"""The smallest error that a radial velocity can have, from the photons alone."""

from __future__ import annotations

import numpy as np

__all__ = ["velocity_bound"]


def velocity_bound(
    wavelength: np.ndarray, flux: np.ndarray, slope: np.ndarray, ivar: np.ndarray, *, degree: int
) -> float:
    """Cramer-Rao bound of a velocity whose continuum, a polynomial that multiplies the spectrum, is fitted along.

    Parameters
    ----------
    wavelength : ndarray (n_pix,)
        Angstrom; only scales the polynomial.
    flux : ndarray (n_pix,)
        Expected (noiseless) flux.
    slope : ndarray (n_pix,)
        Its derivative by the velocity, per km/s.
    ivar : ndarray (n_pix,)
        Inverse variance of the observed flux; pixels of 0 do not count.
    degree : int
        Of the polynomial.

    Returns
    -------
    float
        km/s; infinite where nothing in the flux depends on the velocity.

    Examples
    --------
    A line of known shape and a known continuum (of degree 0 and far away): sigma / sqrt(sum of squared slopes).

    >>> import numpy as np
    >>> x = np.linspace(-50.0, 50.0, 401)
    >>> line = 1.0 - 0.5 * np.exp(-0.5 * x**2)
    >>> slope = -0.5 * x * np.exp(-0.5 * x**2) * 5000 / 299792.458
    >>> bound = velocity_bound(5000 + x, line, slope, np.full(401, 1e4), degree=0)
    >>> print(f"{bound * np.sqrt(1e4 * np.sum(slope**2)):.3f}")
    1.000
    """
    w, f, s, weight = (np.asarray(a, dtype=np.float64) for a in (wavelength, flux, slope, ivar))
    if not w.shape == f.shape == s.shape == weight.shape or w.ndim != 1:
        raise ValueError(f"arrays of one length are needed, got {w.shape}, {f.shape}, {s.shape} and {weight.shape}")
    if degree < 0:
        raise ValueError(f"degree must be at least 0, got {degree}")
    good = (weight > 0) & np.isfinite(f) & np.isfinite(s)
    if np.count_nonzero(good) < degree + 3:
        return np.inf
    root = np.sqrt(weight[good])
    x = (2.0 * w[good] - w[good][0] - w[good][-1]) / (w[good][-1] - w[good][0])
    nuisance, _ = np.linalg.qr((root * f[good])[:, None] * np.polynomial.legendre.legvander(x, degree))
    information = root * s[good]
    information = information - nuisance @ (nuisance.T @ information)
    total = float(information @ information)
    return 1.0 / np.sqrt(total) if total > 0 else np.inf
