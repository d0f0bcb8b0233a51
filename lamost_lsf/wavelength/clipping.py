"""Which lines to believe: outlier rejection around any wavelength fitter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from astropy.modeling import Model
from scipy import stats

from lamost_lsf.wavelength.covariance import parameter_jacobian, weighted_covariance

__all__ = ["ClippedFit", "fit_and_clip"]

# A normal distribution's median absolute deviation, in standard deviations.
_MAD = stats.norm.ppf(0.75)
# Bisquare constant: 95 % as efficient as least squares for normal errors.
_BISQUARE = 4.685
# No line's weight falls below this (in units of sigma: 1e-4): the fitter's matrix must stay well conditioned.
_SMALLEST_WEIGHT = 1e-8


@dataclass(frozen=True)
class ClippedFit:
    """A fit and what it makes of each line.

    Attributes
    ----------
    model : `~astropy.modeling.Model`
        Fitted to the lines of ``used``.
    used : ndarray of bool (n,)
        Lines in the fit.
    deviation : ndarray (n,)
        Residual of each line over its expected size, as a normal deviate: how many sigma.
    converged : bool
        False where the set of lines was still changing at the last iteration.
    spared : int
        Lines beyond the limit that were kept because too few would be left.
    """

    model: Model
    used: np.ndarray
    deviation: np.ndarray
    converged: bool = True
    spared: int = 0


def _deviation(
    model: Model, pixel: np.ndarray, wavelength: np.ndarray, error: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """How far each line is from the curve that the *other* used lines draw, as a normal deviate (n,).

    A line at the end of the detector pulls the curve to itself, so its plain residual hides its fault:
    residuals are divided by sqrt(1 - leverage), those of lines outside the fit by sqrt(1 + variance of the
    curve). The scale is the median absolute value over the used lines, which a few wrong lines do not
    inflate. Estimated from few lines it is itself uncertain; Student's t with the degrees of freedom left
    turns the ratio into the normal deviate of the same probability, so that "4 sigma" rejects equally rarely
    with 10 lines and with 100.
    """
    residual = (wavelength - model(pixel)) / error
    jacobian = parameter_jacobian(model, pixel) / error[:, None]
    k = jacobian.shape[1]
    freedom = int(np.sum(used)) - k
    if freedom <= 0:
        return np.zeros_like(residual)
    covariance, leverage = weighted_covariance(jacobian[used], None)
    spread = np.ones_like(residual)
    if k:
        spread[used] = np.sqrt(np.clip(1.0 - leverage, 1e-12, None))
        spread[~used] = np.sqrt(1.0 + np.einsum("ij,jk,ik->i", jacobian[~used], covariance, jacobian[~used]))
    studentised = residual / spread
    # a line with leverage 1 is reproduced whatever its value: it says nothing about the scale
    telling = used.copy()
    if k:
        telling[used] = leverage < 1.0 - 1e-9
    scale = np.median(np.abs(studentised[telling])) / _MAD if np.any(telling) else 0.0
    # lines that fit to the last digit (simulated ones) must not be rejected for rounding errors
    scale = max(scale, 64 * np.finfo(np.float64).eps * np.max(np.abs(wavelength / error)))
    ratio = np.abs(studentised) / scale
    # logsf and isf of the far tail: 1 - cdf would round to 0 beyond 8 sigma
    log_tail = stats.t.logsf(ratio, freedom)
    deviate = np.where(log_tail > -700.0, stats.norm.isf(np.exp(np.maximum(log_tail, -700.0))), 37.0)
    return np.sign(studentised) * np.minimum(deviate, ratio)


def _robust_start(
    fit: Callable[[np.ndarray, np.ndarray], Model],
    pixel: np.ndarray,
    wavelength: np.ndarray,
    error: np.ndarray,
    n_parameters: int,
) -> Model:
    """Curve through the majority of the lines, by iteratively reweighted least squares.

    First weights 1/|residual| (least absolute deviations, which has one minimum and so needs no good start),
    then Tukey's bisquare, which gives gross errors no weight at all. Weights reach the fitter as errors; one
    that ignores errors returns the least-squares curve, and clipping proceeds from there.
    """
    weight = np.ones_like(pixel)
    everything = np.ones(pixel.size, dtype=bool)
    for iteration in range(30):
        model = fit(everything, error / np.sqrt(weight))
        size = np.abs(wavelength - model(pixel)) / error
        # least absolute deviations go exactly through n_parameters lines: leave those out of the scale
        telling = np.sort(size)[min(n_parameters, size.size - 1) :]
        scale = max(
            np.median(telling) / _MAD, 64 * np.finfo(np.float64).eps * np.max(np.abs(wavelength / error))
        )
        previous = weight
        if iteration < 15:
            weight = 1.0 / np.maximum(size / scale, 1e-3)
            weight /= weight.max()
        else:
            weight = np.clip(1.0 - (size / (_BISQUARE * scale)) ** 2, 0.0, None) ** 2
            if np.sum(weight > 0.1) <= n_parameters:
                break
        weight = np.maximum(weight, _SMALLEST_WEIGHT)
        if iteration > 15 and np.max(np.abs(weight - previous)) < 1e-3:
            break
    return model


def fit_and_clip(
    fit: Callable[[np.ndarray, np.ndarray | None], Model],
    pixel: np.ndarray,
    wavelength: np.ndarray,
    errors: Callable[[Model | None], np.ndarray | None],
    *,
    sigma_clip: float | None,
    max_iterations: int,
    min_lines: int,
    n_parameters: int,
) -> ClippedFit:
    """Fit, reject what deviates, fit again, until the set of lines no longer changes.

    A rejected line comes back if the final curve vindicates it.

    Parameters
    ----------
    fit : callable
        ``fit(use, error)`` -> model of the lines of the boolean array ``use``.
    pixel, wavelength : ndarray (n,)
        Lines; wavelengths in Angstrom.
    errors : callable
        ``errors(model)`` -> standard deviations (n,) in Angstrom, or None for equal weights. The model so far
        is handed in because errors in pixels become Angstrom by its dispersion.
    sigma_clip : float or None
        Limit in standard deviations; None rejects nothing.
    max_iterations : int
        Most fits after the first.
    min_lines : int
        Lines that are always kept, the best ones.
    n_parameters : int
        Coefficients of the curve.
    """
    n = pixel.size
    used = np.ones(n, dtype=bool)
    model = fit(used, errors(None))
    given = errors(model)
    ones = np.ones(n)
    if sigma_clip is None or n <= min_lines:
        if given is not None:
            model = fit(used, given)
        scaled = ones if given is None else given
        return ClippedFit(model, used, _deviation(model, pixel, wavelength, scaled, used))

    error = ones if given is None else given
    model = _robust_start(fit, pixel, wavelength, error, n_parameters)
    given = errors(model)
    spared, converged, seen = 0, False, []
    # The robust curve was fitted to all lines, each with its weight: plain residuals over a scale that
    # ignores the lines it goes through. Only the final rounds, on a definite set of lines, can use leverages.
    size = np.abs(wavelength - model(pixel)) / (ones if given is None else given)
    scale = np.median(np.sort(size)[min(n_parameters, n - 1) :]) / _MAD
    rounding = 64 * np.finfo(np.float64).eps * np.max(np.abs(wavelength / (ones if given is None else given)))
    deviation = size / max(scale, rounding)
    for _ in range(max_iterations):
        good = np.abs(deviation) <= sigma_clip
        if np.sum(good) < min_lines:
            spared = min_lines - int(np.sum(good))
            good = np.zeros(n, dtype=bool)
            good[np.argsort(np.abs(deviation), kind="stable")[:min_lines]] = True
        else:
            spared = 0
        if seen and np.array_equal(good, used):
            converged = True
            break
        if any(np.array_equal(good, earlier) for earlier in seen):
            # two sets take turns: settle on the lines that both contain, if they suffice
            both = good & used
            if np.sum(both) >= min_lines:
                good = both
            converged = True
        used = good
        seen.append(used)
        model = fit(used, given)
        given = errors(model)
        if given is not None:
            model = fit(used, given)
        deviation = _deviation(model, pixel, wavelength, ones if given is None else given, used)
        if converged:
            break
    return ClippedFit(model, used, deviation, converged, spared)
