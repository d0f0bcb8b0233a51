"""Quick robust series through many lines: how well lines can be placed, and which degree they support."""

from __future__ import annotations

import numpy as np
from numpy.polynomial.legendre import legvander

__all__ = ["belonging", "degree_errors", "error_floor", "robust_series"]

#: Pixels: lines of a real arc scatter by more, and what scatters by less is not told from a curve of the wrong degree.
_LEAST_SCATTER = 0.03


def robust_series(
    pixel: np.ndarray, wavelength: np.ndarray, degree: int, domain: tuple[float, float], *, clip: float = 4.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Legendre series by least squares with bisquare weights.

    Returns
    -------
    coefficients : ndarray (degree + 1,)
        Of `numpy.polynomial.legendre`, on ``domain`` mapped to -1..1.
    good : ndarray of bool (n,)
        Lines within ``clip`` robust standard deviations.
    scale : float
        Robust standard deviation of the residuals, corrected for the coefficients; NaN without freedom.
    """
    t = (2.0 * pixel - domain[0] - domain[1]) / (domain[1] - domain[0])
    matrix = legvander(t, degree)
    freedom = pixel.size - degree - 1
    weight = np.ones(pixel.size)
    good = np.ones(pixel.size, dtype=bool)
    for _ in range(12):
        coefficients = np.linalg.lstsq(matrix * weight[:, None], wavelength * weight, rcond=None)[0]
        residual = wavelength - matrix @ coefficients
        if freedom <= 0:
            return coefficients, good, np.nan
        scale = 1.4826 * np.median(np.abs(residual)) * np.sqrt(pixel.size / freedom)
        scale = max(scale, 1e-9)
        weight = np.clip(1.0 - (residual / (4.7 * scale)) ** 2, 0.0, None) + 1e-9
    return coefficients, np.abs(residual) <= clip * scale, float(scale)


def belonging(
    pixel: np.ndarray, delta: np.ndarray, brightness: np.ndarray, search: float, degree: int
) -> tuple[np.ndarray, float]:
    """Probability that each measured line is the one it was taken for (n,), and the scatter of those that are (pixels).

    A dense list finds a peak for many lines that are not in the spectrum. Their offsets from the predicted pixels are
    spread evenly over the range that was searched; those of true lines follow a smooth curve closely. Both shares, the
    curve and the scatter are found by expectation and maximisation, from the bright lines on: bright peaks are rarely
    missing from a list.

    Parameters
    ----------
    pixel : ndarray (n,)
        Measured positions.
    delta : ndarray (n,)
        Measured minus predicted positions.
    brightness : ndarray (n,)
        Heights of the peaks.
    search : float
        Half-width of the range searched, pixels.
    degree : int
        Degree of the curve.
    """
    n = pixel.size
    if n < 4:
        return np.ones(n), np.nan
    middle, half = 0.5 * (pixel.min() + pixel.max()), max(0.5 * np.ptp(pixel), 1.0)
    t = (pixel - middle) / half
    # from 0.95 for the brightest to a third for the faintest
    rank = np.argsort(np.argsort(-brightness, kind="stable"), kind="stable") / max(n - 1, 1)
    prior = 0.95 - 0.6 * rank
    uniform = 0.5 / search
    scale, weight = 0.5 * search, prior.copy()
    for step in range(40):
        # stiff as long as the curve is not known well
        order = int(np.clip(step // 3, 0, min(degree, np.sum(weight) // 3)))
        matrix = legvander(t, order)
        normal_matrix = (matrix * weight[:, None]).T @ matrix + 1e-6 * np.eye(order + 1)
        inverse = np.linalg.inv(normal_matrix)
        coefficients = inverse @ (matrix.T @ (weight * delta))
        residual = delta - matrix @ coefficients
        freedom = max(np.sum(weight) - order - 1, 1.0)
        scale = float(np.clip(np.sqrt(np.sum(weight * residual**2) / freedom), _LEAST_SCATTER, 0.5 * search))
        # a line beyond those that hold the curve may be far from it without being wrong
        leverage = np.einsum("ij,jk,ik->i", matrix, inverse, matrix)
        sigma = scale * np.sqrt(1.0 + np.maximum(leverage * (1.0 - weight), 0.0))
        sigma = np.minimum(sigma, max(scale, 0.2 * search))
        share = np.clip(prior * np.sum(weight) / np.sum(prior), 0.02, 0.98)
        normal = np.exp(-0.5 * (residual / sigma) ** 2) / (np.sqrt(2.0 * np.pi) * sigma)
        new = share * normal / (share * normal + (1.0 - share) * uniform)
        if step > 20 and np.max(np.abs(new - weight)) < 1e-4:
            weight = new
            break
        weight = new
    return weight, scale


def error_floor(
    pixel: np.ndarray, wavelength: np.ndarray, error: np.ndarray, degree: int, domain: tuple[float, float]
) -> float:
    """Scatter of the lines, pixels, that the noise of the pixels does not explain: blends, wrong wavelengths, shape.

    NaN where there are too few lines to tell.
    """
    if pixel.size < degree + 4:
        return np.nan
    dispersion = np.ptp(wavelength) / np.ptp(pixel)
    _, good, scale = robust_series(pixel, wavelength, degree, domain)
    scale /= dispersion
    known = error[good & np.isfinite(error)]
    noise2 = np.median(known**2) if known.size else 0.0
    return float(np.sqrt(max(scale**2 - noise2, 0.0)))


def degree_errors(
    pixel: np.ndarray,
    wavelength: np.ndarray,
    error: np.ndarray | None,
    degrees: range,
    domain: tuple[float, float],
) -> tuple[dict[int, float], dict[int, float]]:
    """Leave-one-out errors, pixels, of Legendre series of several degrees through the same lines: rms, and median size.

    Each line is predicted by the fit of all others: its residual over one less its leverage. The rms is ruled by lines
    at the ends, or beyond a gap; the median is not.
    """
    t = (2.0 * pixel - domain[0] - domain[1]) / (domain[1] - domain[0])
    weight = np.ones(pixel.size) if error is None else np.min(error) / error
    dispersion = np.ptp(wavelength) / np.ptp(pixel)
    rms, median = {}, {}
    for degree in degrees:
        if pixel.size < degree + 2:
            break
        q, _ = np.linalg.qr(legvander(t, degree) * weight[:, None])
        leverage = np.sum(q**2, axis=1)
        residual = (wavelength * weight - q @ (q.T @ (wavelength * weight))) / weight
        left = 1.0 - leverage
        if np.any(left < 1e-9):
            rms[degree] = median[degree] = np.inf
            continue
        size = np.abs(residual / left) / abs(dispersion)
        rms[degree], median[degree] = float(np.sqrt(np.mean(size**2))), float(np.median(size))
    return rms, median
