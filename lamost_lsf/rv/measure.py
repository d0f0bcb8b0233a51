"""`measure_rv`: the radial velocity of one spectrum."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import astropy.units as u
import numpy as np
from specutils import Spectrum

from lamost_lsf.errors import FitWarning
from lamost_lsf.lsf import LSF
from lamost_lsf.rv.engine import Found, VelocityEngine
from lamost_lsf.rv.lattice import Lattice
from lamost_lsf.rv.prepare import (
    Pixels,
    center_name,
    check_options,
    check_templates,
    lsf_of,
    pixels_in_window,
    velocity_limits,
)
from lamost_lsf.rv.result import RVFlag, RVResult
from lamost_lsf.rv.templates import build_templates
from lamost_lsf.rv.trial import trial_step, velocity_grid
from lamost_lsf.rv.windows import default_degree

__all__ = ["measure_rv"]


def measure_rv(
    spectrum: Spectrum,
    templates: Spectrum | Sequence[Spectrum],
    lsf: LSF | Any,
    *,
    center: str | Callable | None = None,
    window: u.Quantity | tuple[u.Quantity, u.Quantity] | None = None,
    velocity_range: u.Quantity | tuple[float, float] = (-1000.0, 1000.0),
    continuum: str = "ratio",
    degree: int | None = None,
    cosmic_sigma: float | None = 6.0,
) -> RVResult:
    """Radial velocity of one spectrum by chi-square, templates seen through its LSF (Liu et al. 2026, section 5).

    Each template is Doppler-shifted (relativistically) to trial velocities, convolved with the LSF of the observed
    wavelengths, multiplied by a polynomial that is solved analytically at each velocity, and compared with the
    spectrum. The minimum over trial velocities is refined on the continuous chi-square.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        Observed, with an uncertainty; vacuum wavelengths (or ``meta["wavelength_medium"] = "air"``). Masked pixels,
        those of zero inverse variance and non-finite ones are left out.
    templates : `~specutils.Spectrum` or sequence of them
        Rest frame, vacuum, of a resolution well above the spectrum's; ``meta["name"]`` names them in the result.
    lsf : LSF, IPArchive, IP model of wavelength only, or InstrumentalProfile
        In the spectrum's frame; ``archive.lsf_for(spectrum)`` and an archive itself take care of that.
    center : str or callable, optional
        Centre of the profile at lag 0. None: the LSF's own, else the spectrum's ``meta["wavelength_center"]``, else
        "zero".
    window : Quantity, optional
        Two wavelengths, or one for the paper's segment of 150 A either side (vacuum, the spectrum's frame). All by
        default.
    velocity_range : Quantity or tuple
        Trial velocities; bare numbers are km/s.
    continuum : {"ratio", "normalize"}
        "ratio": polynomial ratio of spectrum to template, marginalised. "normalize": both normalised beforehand by
        the same fit to their upper envelope, as in the paper.
    degree : int, optional
        Degree of the polynomial; by default one for every 100 A of the window plus 1, between 2 and 20.
    cosmic_sigma : float, optional
        Pixels that exceed the best model by this many (rescaled) errors are rejected as cosmic rays; None keeps all.

    Returns
    -------
    RVResult
        NaN velocity and a flag, with one `FitWarning`, where there is nothing to measure.

    Raises
    ------
    TypeError, ValueError
        Bad arguments: no uncertainty, an axis that does not increase, a window beside the spectrum, templates that do
        not cover the window at every trial velocity, unknown options.
    OutOfRangeError
        The LSF is not defined over the window.

    Warns
    -----
    CenterMismatchWarning
        The kernel's centre is not the one that the spectrum's wavelengths were calibrated with.

    Notes
    -----
    The result stays in the frame of the spectrum's wavelengths (LAMOST's products: heliocentric); nothing is
    corrected for the Earth's motion here.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from astropy.nddata import InverseVariance
    >>> from specutils import Spectrum
    >>> import lamost_lsf as ll
    >>> axis = np.arange(4700, 5300, 0.1) * u.AA
    >>> lines = sum(np.exp(-0.5 * (axis.value - w) ** 2) for w in (4861.3, 5000.0, 5172.7, 5183.6))
    >>> template = Spectrum(flux=(1 - 0.5 * lines) * u.one, spectral_axis=axis)
    >>> seen = Spectrum(flux=template.flux, spectral_axis=axis * (1 + 30 / 299792.458))
    >>> seen = ll.convolve(seen, ll.GaussianIP(1800), np.arange(4800, 5200, 1.0) * u.AA)
    >>> seen.uncertainty = InverseVariance(np.full(400, 1e4))
    >>> result = ll.measure_rv(seen, template, ll.GaussianIP(1800), velocity_range=(-300, 300))
    >>> print(f"{result.rv:.2f}")
    30.00 km / s
    """
    check_options(continuum, degree, cosmic_sigma)
    templates, names = check_templates(templates)
    limits = velocity_limits(velocity_range)
    pixels, window_used = pixels_in_window(spectrum, window)
    lsf, definition = lsf_of(lsf, spectrum, center)
    if degree is None:
        covered = pixels.wavelength[-1] - pixels.wavelength[0] if pixels.wavelength.size else 0.0
        degree = default_degree(covered)
    record = {
        "center": center_name(definition),
        "window": window_used,
        "frame": spectrum.meta.get("frame"),
        "continuum": continuum,
        "degree": int(degree),
        "provenance": _provenance(spectrum, lsf, definition),
    }
    if np.count_nonzero(pixels.ivar) < max(10, 3 * (degree + 2)):
        flags = RVFlag.TOO_FEW_PIXELS
        warnings.warn(f"no velocity was measured: {flags.reasons()}", FitWarning, stacklevel=2)
        return _failure(flags, pixels, record)
    convolved, coefficients = build_templates(templates, names, lsf, definition, pixels.wavelength, limits)
    trial = velocity_grid(*limits, trial_step(lsf, pixels.wavelength))
    lattice = Lattice(np.log(pixels.wavelength))
    engine = VelocityEngine(convolved, coefficients, lattice, trial, degree, continuum)
    (found,) = engine.find([pixels], [coefficients], cosmic_sigma)
    if not found.success:
        warnings.warn(f"no velocity was measured: {found.flags.reasons()}", FitWarning, stacklevel=2)
    return _result(found, engine.model(found, pixels, coefficients), pixels, names, record)


def _result(found: Found, model: np.ndarray, pixels: Pixels, names: list[str], record: dict[str, Any]) -> RVResult:
    reduced = found.chi2 / found.dof if found.dof > 0 else np.nan
    n_used = int(np.count_nonzero(found.used))
    return RVResult(
        rv=found.velocity * u.km / u.s,
        rv_err=found.error * u.km / u.s,
        rv_err_scaled=found.error * np.sqrt(max(reduced, 1.0)) * u.km / u.s,
        chi2=found.chi2,
        dof=found.dof,
        flags=found.flags,
        template=names[found.best],
        runner_up="" if found.runner_up is None else names[found.runner_up],
        runner_up_delta_chi2=found.runner_up_delta_chi2,
        n_pixels=n_used,
        n_rejected=int(np.count_nonzero(pixels.ivar)) - n_used,
        trial_velocity=found.trial,
        trial_chi2=found.trial_chi2,
        wavelength=pixels.wavelength,
        flux=pixels.flux * pixels.scale,
        model=model * pixels.scale,
        error=_sigma(pixels),
        used=found.used,
        **record,
    )


def _failure(flags: RVFlag, pixels: Pixels, record: dict[str, Any]) -> RVResult:
    nan = np.nan * u.km / u.s
    return RVResult(
        rv=nan, rv_err=nan, rv_err_scaled=nan, chi2=np.nan, dof=0, flags=flags, template="", runner_up="",
        runner_up_delta_chi2=np.nan, n_pixels=int(np.count_nonzero(pixels.ivar)), n_rejected=0,
        trial_velocity=np.empty(0), trial_chi2=np.empty(0), wavelength=pixels.wavelength,
        flux=pixels.flux * pixels.scale, model=np.full(pixels.flux.shape, np.nan), error=_sigma(pixels),
        used=np.zeros(pixels.flux.shape, dtype=bool), **record,
    )  # fmt: skip


def _sigma(pixels: Pixels) -> np.ndarray:
    """1-sigma errors in the spectrum's unit; infinite for unusable pixels."""
    with np.errstate(divide="ignore"):
        return np.where(pixels.ivar > 0, pixels.scale / np.sqrt(pixels.ivar), np.inf)


def _provenance(spectrum: Spectrum, lsf: LSF, definition: str | Callable) -> dict[str, Any]:
    from lamost_lsf import __version__
    from lamost_lsf.plugins import plugin_provenance

    meta = spectrum.meta
    lsf_id = lsf.meta.get("source") or "/".join(
        str(lsf.meta[k]) for k in ("model", "spectrograph", "arm", "season", "resolving_power") if k in lsf.meta
    )
    return {
        "version": __version__,
        "center_plugin": str(plugin_provenance(definition, "center")),
        "lsf": lsf_id or type(lsf).__name__,
        "obsid": "" if meta.get("obsid") is None else meta["obsid"],
        "filename": meta.get("filename") or "",
    }
