"""Neighbouring lines taken away: an empirical line profile fitted to all lines of a spectrum at once.

Arcs of Ar, Cu or Fe leave few lines alone, and what a centre definition makes of a line's wings is upset by a
neighbour's. The spectrum is modelled as a sum of lines of one shape, learnt from those that stand alone; a line is then
measured on the spectrum less all *other* lines. Its own shape is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.linalg import LinAlgError, solve
from scipy.sparse import csr_matrix

from lamost_lsf.calibration.peaks import ArcPeaks, pixel_noise

__all__ = ["LineModel", "fit_lines"]

#: Half-width of the profile, FWHM.
_REACH = 3.0
#: Samples of the profile a pixel.
_FINE = 5
#: Lines that make the profile.
_LEAST, _MOST = 4, 30
#: Residuals above this share of the model around them are lines that were not seen before.
_SHOULDER = 0.05
_ROUNDS = 3


@dataclass(frozen=True)
class LineModel:
    """A spectrum as a sum of lines.

    Attributes
    ----------
    pixel, amplitude : ndarray (n,)
        Of each line; in order of pixel.
    residual : ndarray (n_pix,)
        Spectrum less all lines (background included).
    reach : int
        Pixels, to either side, that a line reaches.
    """

    pixel: np.ndarray
    amplitude: np.ndarray
    residual: np.ndarray
    reach: int
    _profile: CubicSpline

    def line(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """One line at pixels."""
        return self.amplitude[index] * _evaluate(self._profile, pixels - self.pixel[index], self.reach)

    def others(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """All lines but one at pixels (near that line)."""
        total = np.zeros(pixels.size)
        near = np.abs(self.pixel - self.pixel[index]) < 2 * self.reach + 0.5 * np.ptp(pixels)
        for j in np.flatnonzero(near):
            if j != index:
                total += self.line(j, pixels)
        return total


def _evaluate(profile: CubicSpline, x: np.ndarray, reach: int, derivative: int = 0) -> np.ndarray:
    return np.where(np.abs(x) < reach, profile(np.clip(x, -reach, reach), derivative), 0.0)


def _learn_profile(flux: np.ndarray, bad: np.ndarray, pixel: np.ndarray, height: np.ndarray, fwhm: float, reach: int):
    """Median shape of the lines that stand most alone, peak about 1, as a spline; None without any."""
    distance = np.abs(pixel[:, None] - pixel[None, :])
    # how much of the neighbours' light is near, relative to the line
    near = (distance < reach + 1.5 * fwhm) & (distance > 0)
    crowd = np.sum(np.where(near, height[None, :], 0.0), axis=1) / height
    inside = (pixel > reach + 1) & (pixel < flux.size - reach - 2) & (height > 0)
    bright = height > 0.1 * np.median(np.sort(height)[-20:])
    candidates = np.flatnonzero(inside & bright)
    if candidates.size < _LEAST:
        candidates = np.flatnonzero(inside)
    if not candidates.size:
        return None
    order = candidates[np.argsort(crowd[candidates], kind="stable")]
    alone = int(np.count_nonzero(crowd[order] < 0.1))
    order = order[: min(max(alone, min(8, order.size)), _MOST)]
    x = np.linspace(-reach, reach, 2 * reach * _FINE + 1)
    spoiled = np.convolve(bad, np.ones(2 * reach + 1), mode="same")[np.round(pixel[order]).astype(int)] > 0.5
    order = order[~spoiled]
    if not order.size:
        return None
    spline = CubicSpline(np.arange(flux.size), flux)
    # centre of the part above half maximum: unlike the maximum, it is where noise and sampling leave it
    fine = pixel[order, None] + np.linspace(-fwhm, fwhm, 161)
    values = spline(fine)
    core = np.clip(values - 0.5 * values.max(axis=1, keepdims=True), 0.0, None)
    weight = core.sum(axis=1)
    good = (weight > 0) & (values.max(axis=1) > 0)
    if not np.any(good):
        return None
    center = np.sum(fine * core, axis=1)[good] / weight[good]
    top = spline(center[:, None] + np.linspace(-0.25, 0.25, 5)).mean(axis=1)
    shape = np.median(spline(center[:, None] + x) / top[:, None], axis=0)
    # wings: neighbours' remains are no part of the line; they fall to 0 at the end
    for side in (slice(x.size // 2, None), slice(x.size // 2, None, -1)):
        wing = shape[side]
        wing[:] = np.minimum.accumulate(np.maximum(wing, 0.0))
    shape *= np.clip((reach - np.abs(x)) / (0.5 * fwhm), 0.0, 1.0)
    return CubicSpline(x, shape)


def fit_lines(flux: np.ndarray, bad: np.ndarray, peaks: ArcPeaks) -> LineModel | None:
    """Model of all lines of a spectrum; None where no line shows the shape.

    Parameters
    ----------
    flux : ndarray (n_pix,)
    bad : ndarray of bool (n_pix,)
    peaks : ArcPeaks
        Lines found in it.
    """
    clean = flux - peaks.background
    fwhm = peaks.fwhm
    reach = int(np.ceil(_REACH * fwhm)) + 1
    if len(peaks) == 0 or flux.size < 4 * reach:
        return None
    profile = _learn_profile(clean, bad, peaks.pixel, peaks.height, fwhm, reach)
    if profile is None:
        return None
    pixel, amplitude = peaks.pixel.copy(), np.maximum(peaks.height, 0.0)
    noise = max(pixel_noise(clean), 1e-12 * max(np.ptp(clean), 1e-300))
    for round_ in range(_ROUNDS):
        pixel, amplitude, model = _gauss_newton(clean, bad, pixel, amplitude, profile, fwhm, reach, 4)
        if round_ == _ROUNDS - 1:
            break
        new = _shoulders(clean - model, model, bad, pixel, fwhm, noise)
        if new.size:
            index = np.clip(np.round(new).astype(int), 0, flux.size - 1)
            pixel = np.concatenate([pixel, new])
            amplitude = np.concatenate([amplitude, (clean - model)[index]])
            order = np.argsort(pixel)
            pixel, amplitude = pixel[order], amplitude[order]
        # the neighbours known, the shape is seen better
        if round_ == 0:
            better = _relearn(clean, model, bad, pixel, amplitude, profile, fwhm, reach)
            profile = better if better is not None else profile
    return LineModel(pixel, amplitude, flux - model, reach, profile)


def _relearn(clean, model, bad, pixel, amplitude, profile, fwhm, reach):
    """Profile of the bright lines, each with all others taken off."""
    bright = np.argsort(-amplitude)[:_MOST]
    bright = bright[(pixel[bright] > reach + 1) & (pixel[bright] < clean.size - reach - 2)]
    spaced = bright[
        [np.min(np.abs(np.delete(pixel, k) - pixel[k]), initial=np.inf) > 1.3 * fwhm for k in bright]
    ] if bright.size else bright  # fmt: skip
    if spaced.size < _LEAST:
        return None
    x = np.linspace(-reach, reach, 2 * reach * _FINE + 1)
    spoiled = np.convolve(bad, np.ones(2 * reach + 1), mode="same")[np.round(pixel[spaced]).astype(int)] > 0.5
    spaced = spaced[~spoiled]
    if spaced.size < _LEAST:
        return None
    left = CubicSpline(np.arange(clean.size), clean - model)(pixel[spaced, None] + x)
    shapes = left / amplitude[spaced, None] + _evaluate(profile, x, reach)
    shape = np.maximum(np.median(shapes, axis=0), 0.0) * np.clip((reach - np.abs(x)) / (0.5 * fwhm), 0.0, 1.0)
    return CubicSpline(x, shape)


def _gauss_newton(clean, bad, pixel, amplitude, profile, fwhm, reach, steps: int):
    """Amplitudes and positions of all lines at once, by damped least squares; the model they make."""
    n, m = clean.size, pixel.size
    span = np.arange(-reach, reach + 1)
    start = pixel.copy()
    for _ in range(steps):
        index = np.round(pixel).astype(int)[:, None] + span
        on = (index >= 0) & (index < n)
        index = np.clip(index, 0, n - 1)
        on &= ~bad[index]
        x = index - pixel[:, None]
        shape = np.where(on, _evaluate(profile, x, reach), 0.0)
        slope = np.where(on, -amplitude[:, None] * _evaluate(profile, x, reach, 1), 0.0)
        model = np.bincount(index.ravel(), (amplitude[:, None] * shape).ravel(), minlength=n)
        column = np.broadcast_to(np.arange(m)[:, None], index.shape)
        design = csr_matrix(
            (
                np.concatenate([shape.ravel(), slope.ravel()]),
                (np.tile(index.ravel(), 2), np.concatenate([column.ravel(), column.ravel() + m])),
            ),
            shape=(n, 2 * m),
        )
        normal = (design.T @ design).toarray()
        target = design.T @ np.where(bad, 0.0, clean - model)
        # damping: lines on top of each other share their light as they did, faint ones stay where they are
        diagonal = np.diagonal(normal).copy()
        damping = np.concatenate([np.full(m, 1e-3), np.full(m, 1e-2)]) * diagonal
        damping += np.concatenate([np.zeros(m), np.full(m, 1e-3 * np.median(np.maximum(diagonal[m:], 0.0)))]) + 1e-12
        normal[np.arange(2 * m), np.arange(2 * m)] += damping
        try:
            step = solve(normal, target, assume_a="pos")
        except LinAlgError:
            break
        amplitude = np.maximum(amplitude + step[:m], 0.0)
        moved = np.clip(step[m:], -0.3 * fwhm, 0.3 * fwhm)
        pixel = np.clip(pixel + moved, start - 0.7 * fwhm, start + 0.7 * fwhm)
    x_index = np.round(pixel).astype(int)[:, None] + span
    on = (x_index >= 0) & (x_index < n)
    x_index = np.clip(x_index, 0, n - 1)
    value = np.where(on, amplitude[:, None] * _evaluate(profile, x_index - pixel[:, None], reach), 0.0)
    order = np.argsort(pixel)
    return pixel[order], amplitude[order], np.bincount(x_index.ravel(), value.ravel(), minlength=n)


def _shoulders(residual, model, bad, pixel, fwhm, noise):
    """Pixels of lines that only the residuals show."""
    n = residual.size
    local = np.zeros(n)
    width = int(np.ceil(fwhm))
    for shift in range(-width, width + 1):
        rolled = np.roll(model, shift)
        local = np.maximum(local, rolled)
    limit = np.maximum(6.0 * noise, _SHOULDER * local)
    inner = np.arange(2, n - 2)
    top = inner[
        (residual[inner] > limit[inner])
        & (residual[inner] >= residual[inner - 1])
        & (residual[inner] > residual[inner + 1])
        & ~bad[inner]
    ]
    top = top[np.argsort(-residual[top], kind="stable")]
    kept: list[float] = []
    for p in top:
        others = np.concatenate([pixel, np.array(kept)])
        if np.min(np.abs(others - p)) > 0.7 * fwhm:
            kept.append(float(p))
    return np.array(kept)
