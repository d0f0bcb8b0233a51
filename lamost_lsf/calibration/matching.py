"""Which peak belongs to which listed line, when a rough wavelength scale is known."""

from __future__ import annotations

import numpy as np

__all__ = ["align", "listed_blends", "mutual_nearest", "predict_pixels"]


def predict_pixels(scale: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
    """Pixels at which wavelengths fall on a scale; NaN beyond its ends.

    Parameters
    ----------
    scale : ndarray (n_pix,), Angstrom
        Wavelengths of the pixels' centres, monotonic.
    wavelength : ndarray (m,), Angstrom
    """
    index = np.arange(scale.size, dtype=np.float64)
    good = np.isfinite(scale)
    x, y = scale[good], index[good]
    if x[0] > x[-1]:
        x, y = x[::-1], y[::-1]
    return np.interp(wavelength, x, y, left=np.nan, right=np.nan)


def mutual_nearest(one: np.ndarray, two: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (indices into each) of values that are each other's nearest and within ``tolerance``; ``two`` is sorted."""
    if not one.size or not two.size:
        return np.empty(0, int), np.empty(0, int)
    right = np.clip(np.searchsorted(two, one), 1, max(two.size - 1, 1)) if two.size > 1 else np.zeros(one.size, int)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(two[left] - one) <= np.abs(two[right] - one), left, right)
    distance = np.abs(two[nearest] - one)
    # of the ones that claim the same, the closest
    order = np.lexsort((distance, nearest))
    first = np.ones(one.size, dtype=bool)
    first[1:] = nearest[order][1:] != nearest[order][:-1]
    keep = order[first & (distance[order] <= tolerance)]
    keep.sort()
    return keep, nearest[keep]


def align(
    found: np.ndarray, strength: np.ndarray, predicted: np.ndarray, *, max_shift: float, tolerance: float
) -> np.ndarray:
    """Correction (m,), pixels, of where lines were predicted: what the found lines say, as a smooth function.

    First the shift within ``max_shift`` that brings most (bright) lines onto a peak, then a polynomial of up to third
    degree through mutual nearest pairs, whose tolerance shrinks.

    Parameters
    ----------
    found : ndarray (n,)
        Pixels of peaks, in order.
    strength : ndarray (n,)
        Their weights.
    predicted : ndarray (m,)
        Pixels of listed lines, NaN off the detector.
    max_shift : float
        Largest shift looked for, pixels.
    tolerance : float
        Largest distance, pixels, of pairs at the end.
    """
    on = np.flatnonzero(np.isfinite(predicted))
    correction = np.zeros(predicted.shape)
    if not on.size or not found.size:
        return correction
    x = predicted[on]
    difference = found[None, :] - x[:, None]
    near = np.abs(difference) <= max_shift
    if not np.any(near):
        return correction
    weight = np.broadcast_to(np.sqrt(np.maximum(strength, 0.0)), difference.shape)[near]
    trial = np.arange(-max_shift, max_shift + 0.25 * tolerance, 0.25 * tolerance)
    kernel = np.exp(-0.5 * ((difference[near][None, :] - trial[:, None]) / (0.7 * tolerance)) ** 2)
    # between equals, the smaller shift
    votes = kernel @ weight * (1.0 - 1e-3 * np.abs(trial) / max_shift)
    shift = np.full(on.size, trial[np.argmax(votes)])
    middle, half = 0.5 * (x.min() + x.max()), max(0.5 * np.ptp(x), 1.0)
    for factor, degree in ((2.0, 0), (1.5, 1), (1.25, 2), (1.0, 3)):
        order = np.argsort(x + shift)
        i, j = mutual_nearest(found, (x + shift)[order], factor * tolerance)
        line = order[j]
        delta = found[i] - x[line]
        degree = min(degree, max(line.size // 4 - 1, 0))
        if line.size < 3:
            break
        coefficients = _robust_polynomial((x[line] - middle) / half, delta, degree)
        new = np.polynomial.polynomial.polyval((x - middle) / half, coefficients)
        # no excursions where no line was paired
        shift = np.clip(new, delta.min() - tolerance, delta.max() + tolerance)
    correction[on] = shift
    return correction


def _robust_polynomial(t: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    """Polynomial by least squares with bisquare weights, from the median on."""
    weight = np.ones(t.size)
    matrix = np.polynomial.polynomial.polyvander(t, degree)
    coefficients = np.zeros(degree + 1)
    coefficients[0] = np.median(y)
    for _ in range(8):
        residual = y - matrix @ coefficients
        scale = max(1.4826 * np.median(np.abs(residual)), 1e-3)
        weight = np.clip(1.0 - (residual / (4.7 * scale)) ** 2, 0.0, None) + 1e-6
        coefficients = np.linalg.lstsq(matrix * weight[:, None], y * weight, rcond=None)[0]
    return coefficients


def listed_blends(
    vacuum: np.ndarray, intensity: np.ndarray, width: np.ndarray | float, *, min_ratio: float = 0.05
) -> np.ndarray:
    """Lines of a list that a neighbour within ``width`` (Angstrom, one a line or one for all) makes unreliable.

    A neighbour counts unless its intensity is known to be below ``min_ratio`` of the line's.

    Returns
    -------
    ndarray of bool (n,)
    """
    width = np.broadcast_to(width, vacuum.shape)
    blend = np.zeros(vacuum.shape, dtype=bool)
    for i in range(vacuum.size):
        near = np.flatnonzero((np.abs(vacuum - vacuum[i]) < width[i]) & (np.arange(vacuum.size) != i))
        for j in near:
            known = np.isfinite(intensity[i]) and np.isfinite(intensity[j]) and intensity[i] > 0
            if not known or intensity[j] >= min_ratio * intensity[i]:
                blend[i] = True
    return blend
