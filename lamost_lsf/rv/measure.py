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
from lamost_lsf.rv.engine import Minimum, VelocityEngine, build_templates, velocity_grid
from lamost_lsf.rv.prepare import (
    Pixels,
    center_name,
    check_templates,
    lsf_of,
    pixels_in_window,
    velocity_limits,
)
from lamost_lsf.rv.result import RVFlag, RVResult

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
    """Radial velocity of one spectrum by chi-square against templates convolved with its LSF (Liu et al. 2026, section 5).

    Each template is Doppler-shifted (relativistically) to trial velocities, convolved with the LSF of the observed
    wavelengths, multiplied by a polynomial that is solved analytically at each velocity, and compared with the spectrum. The
    minimum over trial velocities is refined on the continuous chi-square.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        Observed, with an uncertainty; vacuum wavelengths (or ``meta["wavelength_medium"] = "air"``). Masked pixels, those of
        zero inverse variance and non-finite ones are left out.
    templates : `~specutils.Spectrum` or sequence of them
        Rest frame, vacuum, of a resolution well above the spectrum's; ``meta["name"]`` names them in the result.
    lsf : LSF, IPArchive, IP model of wavelength only, or InstrumentalProfile
        In the spectrum's frame; ``archive.lsf_for(spectrum)`` and an archive itself take care of that.
    center : str or callable, optional
        Centre of the profile at lag 0. None: the LSF's own, else the spectrum's ``meta["wavelength_center"]``, else "zero".
    window : Quantity, optional
        Two wavelengths, or one for the paper's segment of 150 A either side (vacuum, the spectrum's frame). All by default.
    velocity_range : Quantity or tuple
        Trial velocities; bare numbers are km/s.
    continuum : {"ratio", "normalize"}
        "ratio": polynomial ratio of spectrum to template, marginalised. "normalize": both normalised beforehand by the same
        fit to their upper envelope, as in the paper.
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
        Bad arguments: no uncertainty, an axis that does not increase, a window beside the spectrum, templates that do not
        cover the window at every trial velocity, unknown options.
    OutOfRangeError
        The LSF is not defined over the window.

    Warns
    -----
    CenterMismatchWarning
        The kernel's centre is not the one that the spectrum's wavelengths were calibrated with.

    Notes
    -----
    The result stays in the frame of the spectrum's wavelengths (LAMOST's products: heliocentric); nothing is corrected for
    the Earth's motion here.

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
    if continuum not in ("ratio", "normalize"):
        raise ValueError(f"continuum must be 'ratio' or 'normalize', got {continuum!r}")
    if degree is not None and not (isinstance(degree, int | np.integer) and 0 <= degree <= 50):
        raise ValueError(f"degree must be a whole number from 0 to 50, got {degree!r}")
    if cosmic_sigma is not None and not cosmic_sigma > 0:
        raise ValueError(f"cosmic_sigma must be positive or None, got {cosmic_sigma}")
    templates, names = check_templates(templates)
    limits = velocity_limits(velocity_range)
    pixels, window_used = pixels_in_window(spectrum, window)
    lsf, definition = lsf_of(lsf, spectrum, center)
    if degree is None:
        covered = pixels.wavelength[-1] - pixels.wavelength[0] if pixels.wavelength.size else 0.0
        degree = int(np.clip(round(covered / 100.0) + 1, 2, 20))
    record = {
        "center": center_name(definition),
        "window": window_used,
        "frame": spectrum.meta.get("frame"),
        "continuum": continuum,
        "degree": int(degree),
        "provenance": _provenance(spectrum, lsf, definition),
    }
    if np.count_nonzero(pixels.ivar) < max(10, 3 * (degree + 2)):
        return _failure(RVFlag.TOO_FEW_PIXELS, pixels, record)
    convolved, coefficients = build_templates(templates, lsf, definition, pixels.wavelength, limits)
    _check_coverage(convolved, names, pixels.wavelength, limits)
    engine = VelocityEngine(convolved, coefficients, pixels.wavelength, window_used, degree, continuum)
    return _search(engine, pixels, names, limits, cosmic_sigma, record)


def _search(
    engine: VelocityEngine,
    pixels: Pixels,
    names: list[str],
    limits: tuple[float, float],
    cosmic_sigma: float | None,
    record: dict[str, Any],
) -> RVResult:
    """Coarse and fine search over all templates, repeated while cosmic rays are found."""
    trial = velocity_grid(*limits)
    step = float(np.median(np.diff(trial)))
    models = [engine.coarse_models(i, trial) for i in range(len(names))]
    ivar = pixels.ivar.copy()
    for _ in range(4):
        solver = engine.solver(pixels.flux, ivar)
        chi2 = np.stack([solver.solve(m)[0] for m in models])
        # only templates that may win are refined: the coarse chi-square is good to a few per cent of its depth
        order = np.argsort(chi2.min(axis=1))[: max(3, len(names) // 10)]
        minima = {int(i): _minimum(engine, solver, int(i), trial, chi2[i], step) for i in order}
        best = min(minima, key=lambda i: minima[i].chi2)
        model = solver.best_model(engine.exact_model(best, minima[best].velocity))
        if cosmic_sigma is None:
            break
        hit = _cosmic_rays(pixels.flux, model, ivar, cosmic_sigma)
        if not np.any(hit):
            break
        ivar[hit] = 0.0
    used = ivar > 0
    dof = int(np.count_nonzero(used)) - solver.n_parameters - 1
    minimum = minima[best]
    others = sorted((m.chi2, i) for i, m in minima.items() if i != best)
    flags = _flags(engine, minimum, minima, best, trial, chi2[best], solver, dof)
    reduced = minimum.chi2 / dof if dof > 0 else np.nan
    failed = RVFlag.EDGE_OF_RANGE in flags or not np.isfinite(minimum.chi2)
    velocity = np.nan if failed else minimum.velocity
    error = np.nan if failed or not minimum.converged else minimum.error
    if failed or not minimum.converged:
        warnings.warn(f"no velocity was measured: {flags.reasons()}", FitWarning, stacklevel=4)
    with np.errstate(divide="ignore"):
        sigma = np.where(pixels.ivar > 0, 1.0 / np.sqrt(pixels.ivar), np.inf)
    return RVResult(
        rv=velocity * u.km / u.s,
        rv_err=error * u.km / u.s,
        rv_err_scaled=error * np.sqrt(max(reduced, 1.0)) * u.km / u.s,
        chi2=minimum.chi2,
        dof=dof,
        flags=flags,
        template=names[best],
        runner_up=names[others[0][1]] if others else "",
        runner_up_delta_chi2=others[0][0] - minimum.chi2 if others else np.nan,
        n_pixels=int(np.count_nonzero(used)),
        n_rejected=int(np.count_nonzero(pixels.ivar > 0) - np.count_nonzero(used)),
        trial_velocity=trial,
        trial_chi2=chi2[best],
        wavelength=pixels.wavelength,
        flux=pixels.flux * pixels.scale,
        model=model * pixels.scale,
        error=sigma * pixels.scale,
        used=used,
        **record,
    )


def _minimum(
    engine: VelocityEngine, solver: Any, template: int, trial: np.ndarray, chi2: np.ndarray, step: float
) -> Minimum:
    k = int(np.argmin(chi2))
    if k in (0, trial.size - 1) or not np.isfinite(chi2[k]):
        return Minimum(float(trial[k]), np.nan, float(chi2[k]), False)
    return engine.refine(solver, template, float(trial[k]), step)


def _cosmic_rays(flux: np.ndarray, model: np.ndarray, ivar: np.ndarray, threshold: float) -> np.ndarray:
    """Pixels far above the model, in errors rescaled to the residuals' own spread, and their wings."""
    residual = (flux - model) * np.sqrt(ivar)
    used = ivar > 0
    # the spread of the residuals includes template mismatch, which must not be taken for cosmic rays
    spread = max(1.0, 1.4826 * float(np.median(np.abs(residual[used]))))
    hit = used & (residual > threshold * spread)
    # neighbours of a hit that stick out themselves belong to it
    near = np.convolve(hit, np.ones(3), mode="same") > 0
    return hit | (near & used & (residual > 0.5 * threshold * spread))


def _flags(
    engine: VelocityEngine,
    minimum: Minimum,
    minima: dict[int, Minimum],
    best: int,
    trial: np.ndarray,
    chi2: np.ndarray,
    solver: Any,
    dof: int,
) -> RVFlag:
    flags = RVFlag(0)
    k = int(np.argmin(chi2))
    edge = k in (0, trial.size - 1) or not trial[0] <= minimum.velocity <= trial[-1]
    if edge:
        flags |= RVFlag.EDGE_OF_RANGE
    elif not minimum.converged:
        flags |= RVFlag.NO_CONVERGENCE
    scale = max(1.0, minimum.chi2 / dof) if dof > 0 else 1.0
    finite = chi2[np.isfinite(chi2)]
    depth = float(np.median(finite)) - minimum.chi2
    inner = np.flatnonzero((chi2[1:-1] < chi2[:-2]) & (chi2[1:-1] <= chi2[2:])) + 1
    inner = inner[np.abs(trial[inner] - minimum.velocity) > 2.5 * np.median(np.diff(trial))]
    if inner.size and not edge:
        second = float(chi2[inner].min()) - minimum.chi2
        # within three (scaled) errors of the best, or nearly as deep as it
        if second < 9.0 * scale or second < 0.3 * depth:
            flags |= RVFlag.DOUBLE_MINIMUM
    without_star = float(solver.solve(np.ones((1, engine.wavelength.size)))[0][0])
    if without_star - minimum.chi2 < 25.0 * scale:
        flags |= RVFlag.NO_SIGNAL
    for i, other in minima.items():
        if (
            i != best
            and other.converged
            and minimum.converged
            and other.chi2 - minimum.chi2 < scale
            and abs(other.velocity - minimum.velocity) > 3.0 * minimum.error * np.sqrt(scale)
        ):
            flags |= RVFlag.AMBIGUOUS_TEMPLATE
    return flags


def _check_coverage(convolved, names: list[str], wavelength: np.ndarray, limits: tuple[float, float]) -> None:
    """Every template must reach all that the window sees at the trial velocities."""
    from lamost_lsf.units import doppler_factor

    step = convolved.grid.step
    first, size = convolved.basis.first_lag, convolved.basis.components.shape[1]
    need_low = wavelength[0] / float(doppler_factor(limits[1])) * np.exp(-(first + size) * step)
    need_high = wavelength[-1] / float(doppler_factor(limits[0])) * np.exp(-first * step)
    for name, (low, high) in zip(names, convolved.coverage, strict=True):
        if low > need_low or high < need_high:
            raise ValueError(
                f"{name} covers {low:.1f}-{high:.1f} A; the window at the trial velocities, with the profile's wings, needs "
                f"{need_low:.1f}-{need_high:.1f} A: narrow window= or velocity_range="
            )


def _provenance(spectrum: Spectrum, lsf: LSF, definition: str | Callable) -> dict[str, Any]:
    from lamost_lsf import __version__
    from lamost_lsf.plugins import plugin_provenance

    meta = spectrum.meta
    lsf_id = lsf.meta.get("source") or "/".join(
        str(lsf.meta[k]) for k in ("model", "spectrograph", "arm", "season", "resolving_power") if k in lsf.meta
    )
    return {
        "version": __version__,
        "center_plugin": str(plugin_provenance(definition)),
        "lsf": lsf_id or type(lsf).__name__,
        "obsid": "" if meta.get("obsid") is None else meta["obsid"],
        "filename": meta.get("filename") or "",
    }


def _failure(flag: RVFlag, pixels: Pixels, record: dict[str, Any]) -> RVResult:
    warnings.warn(f"no velocity was measured: {flag.reasons()}", FitWarning, stacklevel=3)
    nan = np.nan * u.km / u.s
    with np.errstate(divide="ignore"):
        sigma = np.where(pixels.ivar > 0, 1.0 / np.sqrt(pixels.ivar), np.inf)
    return RVResult(
        rv=nan, rv_err=nan, rv_err_scaled=nan, chi2=np.nan, dof=0, flags=flag, template="", runner_up="",
        runner_up_delta_chi2=np.nan, n_pixels=int(np.count_nonzero(pixels.ivar)), n_rejected=0,
        trial_velocity=np.empty(0), trial_chi2=np.empty(0), wavelength=pixels.wavelength,
        flux=pixels.flux * pixels.scale, model=np.full(pixels.flux.shape, np.nan), error=sigma * pixels.scale,
        used=np.zeros(pixels.flux.shape, dtype=bool), **record,
    )  # fmt: skip
