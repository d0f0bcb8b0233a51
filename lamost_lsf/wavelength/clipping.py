"""Which lines to believe: outlier rejection around any wavelength fitter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from astropy.modeling import Model
from scipy import stats

from lamost_lsf.wavelength.covariance import parameter_jacobian, weighted_covariance
from lamost_lsf.wavelength.fitters import fit_legendre

__all__ = ["ClippedFit", "fit_and_clip"]

#: No line's centre is known better than this, in pixels. Lines that fit better (simulated ones) are not told apart
#: by what rounding, or a curve that is 1e-4 pixel off, does to them.
SMALLEST_SCALE = 1e-3
# Random curves from which the search for the majority starts. With 40 % of wrong lines and degree 5, one in 21 of
# them avoids all wrong lines.
_TRIALS = 300


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
    error : ndarray (n,) or None
        Standard deviations, Angstrom, that the fit was given.
    converged : bool
        False where the set of lines was still changing at the last iteration.
    spared : int
        Lines beyond the limit that were kept because too few would be left.
    """

    model: Model
    used: np.ndarray
    deviation: np.ndarray
    error: np.ndarray | None
    converged: bool = True
    spared: int = 0


def _deviation(
    model: Model,
    pixel: np.ndarray,
    wavelength: np.ndarray,
    error: np.ndarray,
    used: np.ndarray,
    *,
    absolute: bool = False,
    spread: float = 1.0,
    floor: np.ndarray | float = 0.0,
) -> np.ndarray:
    """How far each line is from what the *other* used lines say, as a normal deviate (n,).

    A line at the end of the detector pulls the curve to itself, so its plain residual hides its fault: residuals
    are externally studentised (Belsley, Kuh & Welsch 1980, section 2.1), that is divided by their own standard
    deviation, with the scale estimated without the line in question. For normal errors the ratio follows
    Student's t with the degrees of freedom that are left; it is turned into the normal deviate of the same
    probability, so that "4 sigma" rejects equally rarely with 10 lines and with 100.

    With ``absolute`` the errors are taken at face value instead; ``spread`` multiplies an estimated scale,
    which is never taken to be smaller than ``floor``.
    """
    residual = (wavelength - model(pixel)) / error
    jacobian = parameter_jacobian(model, pixel) / error[:, None]
    covariance, leverage = weighted_covariance(jacobian[used], None)
    # expected variance of the residuals, in units of the scale
    expected = np.empty_like(residual)
    expected[used] = np.clip(1.0 - np.nan_to_num(leverage), 1e-12, None)
    expected[~used] = 1.0 + np.einsum("ij,jk,ik->i", jacobian[~used], covariance, jacobian[~used])
    if absolute:
        # a line through which the curve must go tells nothing
        return np.where(expected > 1e-9, residual / np.sqrt(expected), 0.0)
    freedom = np.sum(used) - jacobian.shape[1] - used
    if np.min(freedom) <= 0:
        return np.zeros_like(residual)
    total = np.sum(residual[used] ** 2)
    scale2 = (total - np.where(used, residual**2 / expected, 0.0)) / freedom
    # Several outliers at once hide behind the scale that they inflate, not behind the median. Their ratio, for
    # normal errors, scatters by 0.93 / sqrt(freedom): where it is too small, the median is right.
    telling = used & (expected > 1e-9)
    median = np.median(np.abs(residual[telling]) / np.sqrt(expected[telling])) / stats.norm.ppf(0.75)
    if median < (1.0 - 2.5 * 0.93 / np.sqrt(np.min(freedom))) * np.sqrt(total / (np.min(freedom) + 1)):
        scale2 = median**2
    scale2 = np.maximum(np.maximum(scale2, 0.0) * spread**2, np.maximum(floor, 1e-150) ** 2)
    ratio = np.where(expected > 1e-9, np.abs(residual) / np.sqrt(expected * scale2), 0.0)
    # beyond 37 sigma the probability of the tail has no float64
    log_tail = np.maximum(stats.t.logsf(ratio, freedom), -700.0)
    return np.copysign(np.minimum(stats.norm.isf(np.exp(log_tail)), ratio), residual)


def _majority(pixel: np.ndarray, wavelength: np.ndarray, error: np.ndarray, degree: int) -> np.ndarray:
    """Lines of the majority that agrees best on one series of the given degree, boolean (n,).

    Least trimmed squares: of all sets of h = (n + degree + 2) // 2 lines, the one with the smallest sum of
    squared residuals, searched from curves through random sets of ``degree + 1`` lines, each improved by
    refitting its h nearest lines (Rousseeuw & Van Driessen 2006, Data Mining and Knowledge Discovery 12, 29).
    However wrong the other n - h lines are, they do not move the result; ordinary clipping, which begins with a
    curve through all lines, loses good lines next to a gross error and keeps the error.

    The series stands in for the fitter's own curve, which cannot be asked for hundreds of trial fits. It only has
    to be near enough to tell a misidentified line.
    """
    n, k = pixel.size, degree + 1
    h = (n + k + 1) // 2
    low, high = pixel.min(), pixel.max()
    matrix = np.polynomial.legendre.legvander((2 * pixel - low - high) / (high - low), degree) / error[:, None]
    target = wavelength / error
    # a fixed seed: the same lines give the same solution
    rng = np.random.default_rng(20)
    subsets = np.argsort(rng.random((_TRIALS, n)), axis=1)[:, :k]

    def refit(members: np.ndarray) -> np.ndarray:
        """Squared residuals (m, n) of the least-squares curves of m sets of lines (m, size)."""
        q, r = np.linalg.qr(matrix[members])
        diagonal = np.abs(np.diagonal(r, axis1=1, axis2=2))
        # lines that sit on each other do not fix a curve; a little ridge lets the other sets go on
        r = r + np.where(diagonal.min(axis=1) < 1e-12 * diagonal.max(axis=1), 1.0, 0.0)[:, None, None] * np.eye(k)
        right = np.swapaxes(q, 1, 2) @ target[members][..., None]
        return (target - np.linalg.solve(r, right)[..., 0] @ matrix.T) ** 2

    square = refit(subsets)
    for keep, steps in ((_TRIALS, 2), (20, 10)):
        total = np.partition(square, h - 1, axis=1)[:, :h].sum(axis=1)
        square = square[np.argsort(total, kind="stable")[:keep]]
        for _ in range(steps):
            square = refit(np.argpartition(square, h - 1, axis=1)[:, :h])
    winner = np.argmin(np.partition(square, h - 1, axis=1)[:, :h].sum(axis=1))
    majority = np.zeros(n, dtype=bool)
    majority[np.argpartition(square[winner], h - 1)[:h]] = True
    return majority


def fit_and_clip(
    fit: Callable[[np.ndarray, np.ndarray | None], Model],
    pixel: np.ndarray,
    wavelength: np.ndarray,
    errors: Callable[[Model | None], np.ndarray | None],
    *,
    sigma_clip: float | None,
    max_iterations: int,
    min_lines: int,
    degree: int,
    absolute: bool = False,
) -> ClippedFit:
    """Fit, reject what deviates, fit again, until the set of lines no longer changes.

    A rejected line comes back if the final curve vindicates it.

    Parameters
    ----------
    fit : callable
        ``fit(use, error)`` -> model of the lines of the boolean array ``use``.
    pixel, wavelength : ndarray (n,)
        Lines; wavelengths in Angstrom. No pixel twice.
    errors : callable
        ``errors(model)`` -> standard deviations (n,) in Angstrom, or None for equal weights. The model so far
        is handed in because errors in pixels become Angstrom by its dispersion.
    sigma_clip : float or None
        Limit in standard deviations; None rejects nothing.
    max_iterations : int
        Most fits after the first.
    min_lines : int
        Lines that are always kept, the best ones.
    degree : int
        Degree of the fitter's curve.
    absolute : bool
        Whether deviations are measured in the errors given, not in a scale estimated from the lines.
    """
    n = pixel.size
    everything = np.ones(n, dtype=bool)
    model = fit(everything, errors(None))
    error = errors(model)
    absolute = absolute and error is not None
    order = np.argsort(pixel)
    dispersion = np.median(np.abs(np.diff(wavelength[order])) / np.diff(pixel[order]))

    def settle(
        fit: Callable[[np.ndarray, np.ndarray | None], Model],
        errors: Callable[[Model | None], np.ndarray | None],
        used: np.ndarray,
        error: np.ndarray | None,
        spread: float,
        rounds: int,
    ) -> ClippedFit:
        """Take lines in and out, starting with those of ``used``, until nothing changes."""

        def deviations(spread: float = 1.0) -> np.ndarray:
            sigma = np.ones(n) if error is None else error
            floor = SMALLEST_SCALE * dispersion / sigma
            return _deviation(model, pixel, wavelength, sigma, used, absolute=absolute, spread=spread, floor=floor)

        model = fit(used, error)
        deviation = deviations(spread)
        spared, converged, seen = 0, False, [used]
        for _ in range(rounds):
            good = np.abs(deviation) <= sigma_clip
            spared = max(0, min_lines - int(np.sum(good)))
            if spared:
                good = np.zeros(n, dtype=bool)
                good[np.argsort(np.abs(deviation), kind="stable")[:min_lines]] = True
            if np.array_equal(good, used):
                converged = True
                break
            if any(np.array_equal(good, earlier) for earlier in seen):
                # two sets take turns: settle on the lines that both contain, if they suffice
                both = good & used
                good = both if np.sum(both) >= min_lines else good
                converged = True
            used = good
            seen.append(used)
            error = errors(model)
            model = fit(used, error)
            deviation = deviations()
            if converged:
                break
        return ClippedFit(model, used, deviation, error, converged, spared)

    if sigma_clip is None or n <= min_lines:
        model = fit(everything, error)
        sigma = np.ones(n) if error is None else error
        deviation = _deviation(model, pixel, wavelength, sigma, everything, absolute=absolute)
        return ClippedFit(model, everything, deviation, error)

    # First with a series of higher degree, where there are lines enough to fix it. A spectrograph that the
    # fitter's own curve cannot quite follow leaves residuals that swing slowly along the detector; around a stiff
    # curve the lines where they are largest would look like outliers and be thrown out one after the other.
    flexible = degree + int(np.clip(n // 4 - (degree + 1), 0, 3))
    domain = (float(pixel.min()), float(pixel.max()))

    def fit_series(use: np.ndarray, sigma: np.ndarray | None) -> Model:
        sigma = None if sigma is None else sigma[use]
        return fit_legendre(pixel[use], wavelength[use], error=sigma, degree=flexible, domain=domain)

    majority = _majority(pixel, wavelength, np.ones(n) if error is None else error, flexible)
    # The lines that agree best underestimate the scale; correct for a normal distribution cut at their share, or
    # good lines would be slow to come back.
    share = np.mean(majority)
    cut = stats.norm.ppf(0.5 + share / 2)
    spread = 1.0 / np.sqrt(1.0 - 2.0 * cut * stats.norm.pdf(cut) / share) if share < 1 else 1.0
    start = settle(fit_series, lambda model: error, majority, error, spread, 20).used
    return settle(fit, errors, start, error, 1.0, max_iterations)
