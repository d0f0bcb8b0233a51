"""Lines of sampled profiles added to exposures, and IPs of few fibres stretched over a whole slit."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.time import Time
from numba import njit

from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.models.base import IPModel
from lamost_lsf.spline import uniform_coefficients

__all__ = ["StretchedIP", "add_profiles"]


@njit(cache=True, error_model="numpy")
def _add(flux, wavelength, row, center, amplitude, x0, inverse_dx, coefficients):
    n_cells = coefficients.shape[1]
    for i in range(row.size):
        axis = wavelength[row[i]]
        first = np.searchsorted(axis, center[i] + x0)
        last = np.searchsorted(axis, center[i] + x0 + n_cells / inverse_dx, side="right")
        for j in range(first, last):
            p = (axis[j] - center[i] - x0) * inverse_dx
            cell = min(max(int(p), 0), n_cells - 1)
            t = (p - cell) / inverse_dx
            c = coefficients[i, cell]
            flux[row[i], j] += amplitude[i] * (c[0] + t * (c[1] + t * (c[2] + t * c[3])))


def add_profiles(
    flux: np.ndarray,
    wavelength: np.ndarray,
    row: np.ndarray,
    center: np.ndarray,
    amplitude: np.ndarray,
    offset: np.ndarray,
    profiles: np.ndarray,
) -> None:
    """Add lines with sampled profiles (m, n) on uniform offsets (n,) to flux (n_fiber, n_pix), in place.

    The spline through the samples is evaluated, 0 outside; other arguments as in
    `lamost_lsf.simulation.optics.add_series`.
    """
    step = (offset[-1] - offset[0]) / (offset.size - 1)
    # lines one block at a time: the splines of 250 fibres x 50 lines would fill a gigabyte
    for start in range(0, row.size, 1024):
        part = slice(start, start + 1024)
        _add(
            flux, wavelength, row[part], center[part], amplitude[part],
            float(offset[0]), 1.0 / step, uniform_coefficients(step, np.ascontiguousarray(profiles[part])),
        )  # fmt: skip


class StretchedIP(IPModel):
    """IP of a few fibres laid out over more: linear between neighbours.

    Lets a real PSF that was fitted to 25 fibres (`GaussHermiteIP.from_specex`) stand for a spectrograph of 250.

    Parameters
    ----------
    model : IPModel
        With ``n_fiber`` fibres.
    n_fiber : int
        Fibres of the new IP; its first and last are the model's first and last.

    Examples
    --------
    >>> from lamost_lsf import GaussHermiteIP
    >>> model = GaussHermiteIP.from_specex("psf.fits")     # doctest: +SKIP
    >>> StretchedIP(model, 250).n_fiber                    # doctest: +SKIP
    250
    """

    def __init__(self, model: IPModel, n_fiber: int = 250) -> None:
        inner = getattr(model, "n_fiber", None)
        if not isinstance(model, IPModel) or not model.needs_fiber or not inner:
            raise TypeError(f"model must be an IP model of several fibres, got {model!r}")
        if n_fiber < 2:
            raise ValueError(f"n_fiber must be at least 2, got {n_fiber}")
        self.model, self.n_fiber = model, int(n_fiber)
        self.needs_time, self.needs_fiber = model.needs_time, True
        self.offset, self.wavelength_range = model.offset, model.wavelength_range
        self.meta: dict[str, Any] = {**model.meta, "stretched_from": int(inner)}

    def _time_label(self, time: Time) -> np.ndarray:
        return self.model._time_label(time)

    def _check_labels(self, time: Time | None, fiber: np.ndarray | None, extrapolate: bool) -> None:
        super()._check_labels(time, fiber, extrapolate)
        if not np.all((fiber >= 1) & (fiber <= self.n_fiber)):
            raise OutOfRangeError(f"fiber must be 1-{self.n_fiber} in this model, got {fiber}")

    def _evaluate(self, time: np.ndarray | None, fiber: np.ndarray | None, wavelength: np.ndarray) -> np.ndarray:
        position = 1.0 + (fiber - 1.0) * (self.model.n_fiber - 1.0) / (self.n_fiber - 1.0)
        left = np.clip(np.floor(position).astype(int), 1, max(self.model.n_fiber - 1, 1))
        weight = (position - left)[:, None]
        right = np.minimum(left + 1, self.model.n_fiber)
        return (1.0 - weight) * self.model._evaluate(time, left, wavelength) + weight * self.model._evaluate(
            time, right, wavelength
        )
