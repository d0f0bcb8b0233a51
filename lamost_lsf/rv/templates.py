"""Templates convolved with the basis of an LSF, checked to reach over all that a window needs."""

from __future__ import annotations

from collections.abc import Callable

import astropy.units as u
import numpy as np
from specutils import Spectrum

from lamost_lsf.convolution.basis import Coefficients, IPBasis, TemplateBasis
from lamost_lsf.convolution.loggrid import LOG_STEP
from lamost_lsf.lsf import LSF
from lamost_lsf.units import SPEED_OF_LIGHT, check_medium, doppler_factor, to_vacuum_angstrom

__all__ = ["build_templates", "check_coverage", "convolve_templates"]


def build_templates(
    templates: list[Spectrum],
    names: list[str],
    lsf: LSF,
    center: str | Callable,
    wavelength: np.ndarray,
    limits: tuple[float, float],
) -> tuple[TemplateBasis, Coefficients]:
    """Templates convolved with a basis of one LSF over some pixels, and the LSF's coefficients.

    Raises
    ------
    ValueError
        A template that does not cover what the pixels see at every trial velocity (``limits``, km/s).

    Warns
    -----
    SamplingWarning
        A template whose pixels are coarse for the profile.
    """
    basis = IPBasis.from_lsfs(lsf, (wavelength[0], wavelength[-1]), center=center)
    templates_ = convolve_templates(templates, names, basis, (float(wavelength[0]), float(wavelength[-1])), limits)
    return templates_, basis.coefficients(lsf, center=center)


def convolve_templates(
    templates: list[Spectrum],
    names: list[str],
    basis: IPBasis,
    window: tuple[float, float],
    limits: tuple[float, float],
) -> TemplateBasis:
    """Templates convolved with a basis, for a window (Angstrom) and a range of velocities (km/s)."""
    check_coverage(templates, names, basis, window, limits)
    # TemplateBasis stretches by 1 + v / c
    fastest = SPEED_OF_LIGHT * (float(doppler_factor(max(abs(v) for v in limits))) - 1.0)
    return TemplateBasis(templates, basis, max_velocity=fastest)


def check_coverage(
    templates: list[Spectrum],
    names: list[str],
    basis: IPBasis,
    window: tuple[float, float],
    limits: tuple[float, float],
) -> None:
    """Raise ValueError where a template does not reach over a window at all velocities, with the profile's wings."""
    step = LOG_STEP / basis.refinement
    first, last = basis.first_lag, basis.first_lag + basis.components.shape[1]
    need_low = window[0] / float(doppler_factor(limits[1])) * np.exp(-last * step)
    need_high = window[1] / float(doppler_factor(limits[0])) * np.exp(-first * step)
    for name, template in zip(names, templates, strict=True):
        medium = check_medium(template.meta.get("wavelength_medium") or "vacuum")
        # views only: templates may have a million pixels
        axis = template.spectral_axis
        low, high = to_vacuum_angstrom(u.Quantity(axis[[0, -1]]), medium, f"the axis of {name}")
        if not low < high:
            continue  # TemplateBasis says what is wrong with such an axis
        if low > need_low or high < need_high:
            raise ValueError(
                f"{name} covers {low:.1f}-{high:.1f} A; the window at the trial velocities, with the profile's "
                f"wings, needs {need_low:.1f}-{need_high:.1f} A: narrow window= or velocity_range="
            )
