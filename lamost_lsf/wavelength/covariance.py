"""How a fitted curve answers to its parameters: Jacobian, covariance and leverage, for any astropy model."""

from __future__ import annotations

import numpy as np
from astropy.modeling import Model
from numpy.typing import ArrayLike

__all__ = ["free_parameters", "parameter_covariance", "parameter_jacobian", "weighted_covariance"]


def free_parameters(model: Model) -> list[int]:
    """Places in ``model.parameters`` of the parameters that a fit may change (neither fixed nor tied)."""
    return [
        place for place, name in enumerate(model.param_names) if not model.fixed.get(name) and not model.tied.get(name)
    ]


def parameter_jacobian(model: Model, pixel: ArrayLike) -> np.ndarray:
    """Derivative of the wavelength at ``pixel`` with respect to each free parameter of ``model``.

    For a model that is linear in its parameters (both built-in ones) this is the design matrix, exactly; for
    others it is a central difference.

    Parameters
    ----------
    model : `~astropy.modeling.Model`
        One input, one output, scalar parameters.
    pixel : array_like, shape (n,)
        Where.

    Returns
    -------
    ndarray, shape (n, k)
        One column for each free parameter, in the order of ``model.param_names``; k is 0 for a model without
        parameters (a table).

    Examples
    --------
    >>> from astropy.modeling.models import Legendre1D
    >>> from lamost_lsf.wavelength import parameter_jacobian
    >>> parameter_jacobian(Legendre1D(1, domain=(0, 10)), [0, 5, 10])
    array([[ 1., -1.],
           [ 1.,  0.],
           [ 1.,  1.]])
    """
    pixel = np.asarray(pixel, dtype=np.float64)
    places = free_parameters(model)
    jacobian = np.empty((pixel.size, len(places)))
    if not places:
        return jacobian
    probe = model.copy()
    start = np.array(model.parameters, dtype=np.float64)

    def value(parameters: np.ndarray) -> np.ndarray:
        probe.parameters = parameters
        return np.asarray(probe(pixel), dtype=np.float64)

    if model.linear:
        # unit vectors instead of small steps: no cancellation against a wavelength of thousands of Angstrom.
        # Fixed parameters stay, so that a linear model with a fixed offset is handled too.
        origin = start.copy()
        origin[places] = 0.0
        offset = value(origin)
        for column, place in enumerate(places):
            origin[place] = 1.0
            jacobian[:, column] = value(origin) - offset
            origin[place] = 0.0
        return jacobian
    for column, place in enumerate(places):
        step = np.finfo(np.float64).eps ** (1 / 3) * max(abs(start[place]), 1.0)
        upper, lower = start.copy(), start.copy()
        upper[place] += step
        lower[place] -= step
        jacobian[:, column] = (value(upper) - value(lower)) / (upper[place] - lower[place])
    return jacobian


def weighted_covariance(jacobian: np.ndarray, error: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Covariance (k, k) of the parameters and leverage (n,) of the lines, for errors taken as they are.

    The leverage of a line is how much of its own value the fitted curve takes over: 0 for a line that does
    not matter, 1 for a line through which the curve must go. Parameters that the lines do not determine get
    an infinite variance on the diagonal.
    """
    n, k = jacobian.shape
    if k == 0:
        return np.zeros((0, 0)), np.full(n, np.nan)
    weighted = jacobian if error is None else jacobian / error[:, None]
    # parameters of very different size (a wavelength and a curvature) must not decide the rank
    size = np.linalg.norm(weighted, axis=0)
    size[size == 0] = 1.0
    u, s, vt = np.linalg.svd(weighted / size, full_matrices=False)
    determined = s > s[0] * np.finfo(np.float64).eps * max(n, k)
    leverage = np.sum(u[:, determined] ** 2, axis=1)
    inverse = vt[determined] / s[determined, None]
    covariance = (inverse.T @ inverse) / np.outer(size, size)
    if np.sum(determined) < k:
        # directions within the null space: their parameters are not determined at all
        null = np.eye(k) - vt[determined].T @ vt[determined]
        covariance[np.diag_indices(k)] += np.where(np.diag(null) > 1e-8, np.inf, 0.0)
    return covariance, np.clip(leverage, 0.0, 1.0)


def parameter_covariance(
    model: Model, pixel: ArrayLike, wavelength: ArrayLike, *, error: ArrayLike | None = None
) -> np.ndarray:
    """Covariance of a fitted model's free parameters.

    Parameters
    ----------
    model : `~astropy.modeling.Model`
        A model fitted to these lines by least squares, as a wavelength fitter returns it.
    pixel : array_like, shape (n,)
        Centres of the lines that were fitted.
    wavelength : array_like, shape (n,), Angstrom
        Their wavelengths.
    error : array_like, shape (n,), Angstrom, optional
        Their standard deviations, taken as they are. None: one unknown error for all lines, estimated from
        the residuals (with n - k degrees of freedom; NaN where there are none).

    Returns
    -------
    ndarray, shape (k, k)
        In the order of ``model.param_names``, fixed and tied parameters left out.

    Examples
    --------
    >>> from lamost_lsf.wavelength import fit_legendre, parameter_covariance
    >>> pixel, wavelength, error = [0, 50, 100], [5000, 5050, 5100], [0.3, 0.3, 0.3]
    >>> model = fit_legendre(pixel, wavelength, error=error, degree=1, domain=(0, 100))
    >>> parameter_covariance(model, pixel, wavelength, error=error).round(3)
    array([[0.03 , 0.   ],
           [0.   , 0.045]])
    """
    pixel = np.asarray(pixel, dtype=np.float64)
    error = None if error is None else np.asarray(error, dtype=np.float64)
    covariance, _ = weighted_covariance(parameter_jacobian(model, pixel), error)
    if error is None:
        residual = np.asarray(wavelength, dtype=np.float64) - model(pixel)
        freedom = pixel.size - len(covariance)
        covariance = covariance * (np.sum(residual**2) / freedom if freedom > 0 else np.nan)
    return covariance
