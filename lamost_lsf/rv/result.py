"""`RVResult` and its flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable, Row

__all__ = ["RVFlag", "RVResult"]


class RVFlag(IntFlag):
    """What may be wrong with a radial velocity; 0 is good. One definition for results, tables and documentation."""

    #: Fewer usable pixels than parameters need, or none at all; no velocity.
    TOO_FEW_PIXELS = 1
    #: The chi-square has no minimum inside the trial velocities; no velocity.
    EDGE_OF_RANGE = 2
    #: A second minimum within 3 sigma of the best, or half as high as it would be with one star: two stars, or too
    #: little signal.
    DOUBLE_MINIMUM = 4
    #: The fine minimum could not be found; no velocity.
    NO_CONVERGENCE = 8
    #: No significant line: the star adds less than 5 sigma to a polynomial without one.
    NO_SIGNAL = 16
    #: Another template fits about as well (chi-square within 1 of the best, scaled) at a velocity more than 3 errors
    #: away.
    AMBIGUOUS_TEMPLATE = 32
    #: The file could not be read; no velocity. This and the following only in batches, where bad input must not raise.
    UNREADABLE = 64
    #: Axis, flux or uncertainty cannot be used (no uncertainty, not one spectrum, ...); no velocity.
    BAD_INPUT = 128
    #: The frame of the wavelengths is unknown, or cannot be brought to the one asked for; no velocity.
    WRONG_FRAME = 256
    #: There is no LSF for this spectrum: no model, labels out of range, header incomplete; no velocity.
    NO_LSF = 512
    #: Something else went wrong with this spectrum; the row's message says what; no velocity.
    FAILED = 1024

    def reasons(self) -> str:
        """Names of the flags that are set, separated by commas; "" where none is."""
        return ", ".join(flag.name.lower() for flag in type(self) if flag in self)


@dataclass(frozen=True, eq=False)
class RVResult:
    """Radial velocity of one spectrum in one window.

    Attributes
    ----------
    rv : `~astropy.units.Quantity`
        Velocity, km/s, positive receding, relativistic, in the frame of the spectrum's wavelengths (``frame``). NaN
        where the measurement failed.
    rv_err : `~astropy.units.Quantity`
        1-sigma error from the curvature of the chi-square, km/s: what the given uncertainties of the flux imply, with
        the continuum polynomial marginalised (``continuum="ratio"``) or taken as known ("normalize").
    rv_err_scaled : `~astropy.units.Quantity`
        The same times the square root of the reduced chi-square where that exceeds 1: allows for template mismatch
        and for underestimated flux errors.
    chi2, dof : float, int
        Minimum and degrees of freedom.
    flags : RVFlag
    template : str
        Name of the best template; ``runner_up`` and ``runner_up_delta_chi2`` name the next and how much worse it is.
    n_pixels, n_rejected : int
        Pixels fitted, and pixels rejected as cosmic rays.
    window : tuple of float
        Wavelengths (vacuum Angstrom, the spectrum's frame) between which pixels were used.
    center : str
        Centre of the profile at lag 0.
    frame : str or None
        "heliocentric", "topocentric", ... as the spectrum's ``meta["frame"]`` says.
    continuum : str
    degree : int
        Degree of the continuum polynomial.
    provenance : dict
        Package version, centre plug-in and its version, LSF, spectrum and exposure identifiers.
    trial_velocity, trial_chi2 : ndarray
        Coarse search with the best template, km/s.
    wavelength, flux, model, error, used : ndarray
        Pixels of the window, from the first to the last usable one: vacuum Angstrom, observed flux, best model
        (template times continuum), 1-sigma error and whether the pixel was fitted.
    """

    rv: u.Quantity
    rv_err: u.Quantity
    rv_err_scaled: u.Quantity
    chi2: float
    dof: int
    flags: RVFlag
    template: str
    runner_up: str
    runner_up_delta_chi2: float
    n_pixels: int
    n_rejected: int
    window: tuple[float, float]
    center: str
    frame: str | None
    continuum: str
    degree: int
    provenance: dict[str, Any]
    trial_velocity: np.ndarray = field(repr=False)
    trial_chi2: np.ndarray = field(repr=False)
    wavelength: np.ndarray = field(repr=False)
    flux: np.ndarray = field(repr=False)
    model: np.ndarray = field(repr=False)
    error: np.ndarray = field(repr=False)
    used: np.ndarray = field(repr=False)

    @property
    def chi2_reduced(self) -> float:
        """Chi-square per degree of freedom; NaN where there is none."""
        return self.chi2 / self.dof if self.dof > 0 else np.nan

    @property
    def success(self) -> bool:
        """Whether there is a velocity at all (it may still be flagged)."""
        return bool(np.isfinite(self.rv.value))

    def to_row(self) -> Row:
        """Everything but the arrays as one row of a `~astropy.table.QTable`."""
        return QTable(
            {
                "rv": [self.rv.value] * u.km / u.s,
                "rv_err": [self.rv_err.value] * u.km / u.s,
                "rv_err_scaled": [self.rv_err_scaled.value] * u.km / u.s,
                "chi2": [self.chi2],
                "dof": [self.dof],
                "chi2_reduced": [self.chi2_reduced],
                "flags": [int(self.flags)],
                "reasons": [self.flags.reasons()],
                "template": [self.template],
                "runner_up": [self.runner_up],
                "runner_up_delta_chi2": [self.runner_up_delta_chi2],
                "n_pixels": [self.n_pixels],
                "n_rejected": [self.n_rejected],
                "window_low": [self.window[0]] * u.AA,
                "window_high": [self.window[1]] * u.AA,
                "center": [self.center],
                "frame": [self.frame or ""],
                "continuum": [self.continuum],
                "degree": [self.degree],
                **{key: [str(value)] for key, value in self.provenance.items()},
            }
        )[0]
