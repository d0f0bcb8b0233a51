"""Trial velocities: how many, how far apart, and what shift of ln(wavelength) each one is."""

from __future__ import annotations

import numpy as np

from lamost_lsf.convolution.loggrid import LOG_STEP
from lamost_lsf.lsf import LSF
from lamost_lsf.units import SPEED_OF_LIGHT, doppler_factor

__all__ = ["log_shift", "trial_step", "velocity_grid", "velocity_of_shift"]

#: Coarsest step of the trial velocities, in ln(wavelength): a quarter of LAMOST's pixel, 17.3 km/s.
COARSEST_STEP = LOG_STEP / 4.0
#: Trial velocities across one equivalent width (1 / peak) of the profile.
STEPS_PER_WIDTH = 4.0


def log_shift(velocity: float | np.ndarray) -> np.ndarray:
    """Shift in ln(wavelength) of velocities in km/s (relativistic)."""
    return np.log(doppler_factor(velocity))


def velocity_of_shift(shift: np.ndarray) -> np.ndarray:
    """Velocity, km/s, of a shift in ln(wavelength); the inverse of `log_shift`."""
    return SPEED_OF_LIGHT * np.tanh(shift)


def trial_step(lsf: LSF, wavelength: np.ndarray) -> float:
    """Step of the trial velocities in ln(wavelength): a quarter of the LSF's width, at most 17.3 km/s.

    The chi-square's minimum is as wide as the profile (170 km/s for R = 1800), so none falls between.
    """
    width = 1.0 / (lsf.sample(wavelength[[0, -1]]).max(axis=1) * wavelength[[0, -1]])
    return min(COARSEST_STEP, float(width.min()) / STEPS_PER_WIDTH)


def velocity_grid(low: float, high: float, step: float = COARSEST_STEP) -> np.ndarray:
    """Trial velocities, km/s, ends included, uniform in ln(wavelength), at most ``step`` apart; five at least."""
    first, last = float(log_shift(low)), float(log_shift(high))
    count = max(int(np.ceil((last - first) / step - 1e-9)) + 1, 5)
    velocity = velocity_of_shift(np.linspace(first, last, count))
    velocity[[0, -1]] = low, high
    return velocity
