"""`fit_wavelength_solution`: from identified lines to a `WavelengthSolution`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real

import astropy.units as u
import numpy as np
from astropy.modeling import Model
from astropy.table import QTable
from numpy.typing import ArrayLike

from lamost_lsf import __version__
from lamost_lsf.errors import FitWarning
from lamost_lsf.plugins import get_wavelength_fitter, plugin_provenance
from lamost_lsf.units import Medium, check_medium, to_vacuum_angstrom
from lamost_lsf.wavelength.clipping import fit_and_clip
from lamost_lsf.wavelength.covariance import parameter_jacobian, weighted_covariance
from lamost_lsf.wavelength.fitters import check_degree, check_domain
from lamost_lsf.wavelength.solution import WavelengthSolution, pixel_values

__all__ = ["fit_wavelength_solution"]


def fit_wavelength_solution(
    pixel: ArrayLike,
    wavelength: u.Quantity,
    *,
    error: u.Quantity | None = None,
    fitter: str | Callable = "legendre",
    degree: int = 5,
    domain: tuple[float, float] | None = None,
    sigma_clip: float | None = 4.0,
    max_iterations: int = 20,
    min_lines: int | None = None,
    absolute_error: bool = False,
    center: str | Callable | None = None,
    medium: Medium = "vacuum",
    label: ArrayLike | None = None,
    reject: ArrayLike | None = None,
) -> WavelengthSolution:
    """Fit wavelength as a function of pixel through identified lines, rejecting those that do not belong.

    Outliers are found outside the fitter, so that any fitter gets the same treatment. First the majority of the
    lines that agrees best is found (least trimmed squares), so that wrong identifications do not drag the curve
    to themselves; then lines within ``sigma_clip`` of the curve of the *others* come in, lines beyond it go
    out, and the curve is fitted again, until the set of lines no longer changes. The scale of the deviations is
    estimated from the lines, so errors that are all too small by a factor do not reject everything.

    Parameters
    ----------
    pixel : array_like or `~astropy.units.Quantity` in pix, shape (n,)
        Measured centres of the lines; whole numbers, counted from 0, are the centres of pixels. A line that
        could not be centred may be NaN: it is listed as rejected.
    wavelength : `~astropy.units.Quantity`, shape (n,)
        Wavelengths of the lines, in ``medium``.
    error : `~astropy.units.Quantity`, scalar or shape (n,), optional
        Standard deviations, as lengths or in pix (then multiplied by the local dispersion). None: all lines
        weigh the same.
    fitter : str or callable
        Name of a wavelength fitter, or one: ``fitter(pixel, wavelength, *, error=None, degree=5, domain)`` ->
        `~astropy.modeling.Model`, see `~lamost_lsf.plugins.WavelengthFitter`.
    degree : int
        Degree of the curve.
    domain : (float, float), optional
        First and last pixel of the spectrum, usually ``(0, n_pixel - 1)``. Beyond its edges the solution is
        NaN. None: from the first to the last usable line.
    sigma_clip : float, optional
        Limit of the deviation, in standard deviations of a normal distribution; None rejects nothing.
    max_iterations : int
        Most rounds of rejection.
    min_lines : int, optional
        Lines that are never rejected, the best ones; at least ``degree + 2``, the default.
    absolute_error : bool
        Whether ``error`` is to be believed as it is, in the rejection and in the covariance. False: only the
        ratios of the errors count, and the covariance is multiplied by the reduced chi-square, as is always done
        without ``error``.
    center : str or callable, optional
        Definition of the centre that measured ``pixel``; recorded. None: not stated.
    medium : {"vacuum", "air"}
        Of ``wavelength``. The solution is vacuum.
    label : array_like of str, shape (n,), optional
        Names of the lines, such as "Hg I".
    reject : array_like of str, shape (n,), optional
        Reason not to use a line ("blend", "saturated"), empty where there is none. Such lines are listed,
        with their residuals.

    Returns
    -------
    WavelengthSolution
        Vacuum.

    Raises
    ------
    TypeError
        ``wavelength`` or ``error`` without a unit; a fitter that does not return an astropy model of plain
        numbers.
    ValueError
        Shapes that do not match, fewer than ``degree + 2`` usable lines, a curve that is not monotonic in the
        domain, or another bad argument.
    `~lamost_lsf.errors.PluginLookupError`
        No fitter or centre of that name.

    Warns
    -----
    `~lamost_lsf.errors.FitWarning`
        Deviating lines had to be kept, or rejection did not settle: the line list deserves a look.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from lamost_lsf.wavelength import fit_wavelength_solution
    >>> rng = np.random.default_rng(3)
    >>> pixel = np.linspace(20, 1000, 25)
    >>> wavelength = 4000 + 0.8 * pixel + 1e-5 * pixel**2 + rng.normal(0, 0.01, 25)
    >>> wavelength[7] += 2.0                                      # another line, taken for this one
    >>> solution = fit_wavelength_solution(
    ...     pixel, wavelength * u.AA, error=0.01 * u.AA, degree=2, domain=(0, 1023)
    ... )
    >>> print([f"{pixel:.1f}" for pixel in solution.rejected["pixel"]])
    ['305.8']
    """
    degree = check_degree(degree)
    medium = check_medium(medium)
    estimator = get_wavelength_fitter(fitter)
    min_lines = _check_options(degree, sigma_clip, max_iterations, min_lines)
    pixel = pixel_values(pixel)
    listed = to_vacuum_angstrom(wavelength, medium)
    if pixel.ndim != 1 or listed.shape != pixel.shape:
        raise ValueError(
            f"pixel and wavelength must be 1-D and of one length, got shapes {pixel.shape} and {listed.shape}"
        )
    error_value, error_in_pixels = _check_error(error, pixel.shape)
    label = _texts(label, "label", pixel.size)
    reason = _texts(reject, "reject", pixel.size)
    if domain is not None:
        domain = check_domain(domain)
    _note_unusable(reason, pixel, listed, error_value, domain)

    usable = np.array([not text for text in reason], dtype=bool)
    if np.sum(usable) < degree + 2:
        causes = ", ".join(sorted({text for text in reason if text})) or "none rejected"
        raise ValueError(
            f"{np.sum(usable)} usable line(s) of {pixel.size}; degree {degree} takes at least {degree + 2} ({causes})"
        )
    x, y = pixel[usable], listed[usable]
    if domain is None:
        domain = (float(x.min()), float(x.max()))
    given = None if error_value is None else error_value[usable]

    def fit(use: np.ndarray, sigma: np.ndarray | None) -> Model:
        model = estimator(x[use], y[use], error=None if sigma is None else sigma[use], degree=degree, domain=domain)
        return _check_model(model, x, fitter)

    def errors(model: Model | None) -> np.ndarray | None:
        if given is None or not error_in_pixels:
            return given
        # before there is a curve, one dispersion for all: only the weights matter at that point
        return given if model is None else given * _local_dispersion(model, x, domain)

    clipped = fit_and_clip(
        fit,
        x,
        y,
        errors,
        sigma_clip=sigma_clip,
        max_iterations=max_iterations,
        min_lines=min_lines,
        degree=degree,
        absolute=absolute_error,
    )
    if clipped.spared:
        warnings.warn(
            f"{clipped.spared} line(s) beyond {sigma_clip:g} sigma were kept: without them fewer than "
            f"{min_lines} of {pixel.size} would be left. The identifications, or the degree, may be wrong.",
            FitWarning,
            stacklevel=2,
        )
    if not clipped.converged:
        warnings.warn(f"rejection of lines did not settle in {max_iterations} iterations", FitWarning, stacklevel=2)

    model = clipped.model
    sigma = clipped.error
    residual, deviation = np.full(pixel.size, np.nan), np.full(pixel.size, np.nan)
    where = np.isfinite(pixel) & np.isfinite(listed)
    where &= (pixel >= domain[0] - 0.5) & (pixel <= domain[1] + 0.5)
    residual[where] = listed[where] - np.asarray(model(pixel[where]))
    deviation[usable] = clipped.deviation
    used = np.zeros(pixel.size, dtype=bool)
    used[usable] = clipped.used
    for line in np.flatnonzero(usable & ~used):
        reason[line] = f"residual {residual[line]:+.4g} Angstrom: {deviation[line]:+.1f} sigma"

    covariance, used_leverage = weighted_covariance(
        parameter_jacobian(model, x[clipped.used]), None if sigma is None else sigma[clipped.used]
    )
    if sigma is None or not absolute_error:
        weighted = residual[used] / (1.0 if sigma is None else sigma[clipped.used])
        freedom = int(used.sum()) - len(covariance)
        covariance = covariance * (np.sum(weighted**2) / freedom if freedom > 0 else np.nan)
    leverage = np.full(pixel.size, np.nan)
    leverage[used] = used_leverage
    error_column = np.full(pixel.size, np.nan)
    if sigma is not None:
        error_column[usable] = sigma
    lines = QTable(
        {
            "pixel": pixel,
            "label": np.array(label, dtype=str),
            "wavelength": listed * u.AA,
            "error": error_column * u.AA,
            "residual": residual * u.AA,
            "deviation": deviation,
            "leverage": leverage,
            "used": used,
            "reason": np.array(reason, dtype=str),
        }
    )
    provenance = {
        "lamost_lsf": __version__,
        "fitter": _provenance(fitter, "wavelength_fitter"),
        "center": None if center is None else _provenance(center, "center"),
        "sigma_clip": None if sigma_clip is None else float(sigma_clip),
        "max_iterations": int(max_iterations),
        "min_lines": min_lines,
        "absolute_error": bool(absolute_error),
        "input_medium": medium,
    }
    return WavelengthSolution(
        model=model,
        domain=domain,
        lines=lines,
        covariance=covariance,
        fitter=provenance["fitter"]["name"],
        center=None if center is None else provenance["center"]["name"],
        degree=degree,
        provenance=provenance,
    )


def _check_options(degree: int, sigma_clip: float | None, max_iterations: int, min_lines: int | None) -> int:
    """Smallest number of lines, once the options are known to make sense."""
    if sigma_clip is not None and not (isinstance(sigma_clip, Real) and sigma_clip > 0):
        raise ValueError(f"sigma_clip must be > 0, or None to keep all lines, got {sigma_clip!r}")
    if not isinstance(max_iterations, Integral) or max_iterations < 1:
        raise ValueError(f"max_iterations must be a whole number >= 1, got {max_iterations!r}")
    if min_lines is None:
        return degree + 2
    if not isinstance(min_lines, Integral) or min_lines < degree + 2:
        raise ValueError(f"min_lines must be a whole number >= degree + 2 = {degree + 2}, got {min_lines!r}")
    return int(min_lines)


def _check_error(error: u.Quantity | None, shape: tuple[int, ...]) -> tuple[np.ndarray | None, bool]:
    """Plain errors (n,) and whether they are in pixels (else Angstrom)."""
    if error is None:
        return None, False
    if not isinstance(error, u.Quantity):
        raise TypeError(
            f"error must be a Quantity, e.g. 0.02 * u.AA or 0.05 * u.pix; got {type(error).__name__} without a unit"
        )
    in_pixels = error.unit == u.pix
    try:
        value = np.asarray(error.to_value(u.pix if in_pixels else u.AA), dtype=np.float64)
    except u.UnitConversionError:
        raise TypeError(f"error must be a length or in pix, got {error.unit}") from None
    if value.shape not in ((), shape):
        raise ValueError(f"error must be one value or have the shape of pixel, {shape}, got {value.shape}")
    return np.array(np.broadcast_to(value, shape)), in_pixels


def _texts(values: ArrayLike | None, name: str, n: int) -> list[str]:
    if values is None:
        return [""] * n
    # line breaks and NUL would not survive a file
    texts = [
        "" if value is None else " ".join(str(value).replace("\0", " ").split())
        for value in np.atleast_1d(np.asarray(values, dtype=object))
    ]
    if len(texts) != n:
        raise ValueError(f"{name} must have one entry for each of the {n} lines, got {len(texts)}")
    return texts


def _note_unusable(
    reason: list[str],
    pixel: np.ndarray,
    wavelength: np.ndarray,
    error: np.ndarray | None,
    domain: tuple[float, float] | None,
) -> None:
    """Write into ``reason`` why lines cannot be fitted at all; the first reason found stands."""

    def note(lines: np.ndarray, text: str) -> None:
        for line in np.flatnonzero(lines):
            reason[line] = reason[line] or text

    note(~np.isfinite(pixel), "centre is not finite")
    note(~(np.isfinite(wavelength) & (wavelength > 0)), "wavelength is not a positive number")
    if error is not None:
        note(~(np.isfinite(error) & (error > 0)), "error is not a positive number")
    if domain is not None:
        note((pixel < domain[0] - 0.5) | (pixel > domain[1] + 0.5), "outside the domain")
    # one peak claimed for two lines, or a line listed twice: no telling which is right
    open_lines = np.array([not text for text in reason], dtype=bool)
    values, counts = np.unique(pixel[open_lines], return_counts=True)
    note(open_lines & np.isin(pixel, values[counts > 1]), "same pixel as another line")


def _check_model(model: Model, pixel: np.ndarray, fitter: str | Callable) -> Model:
    """``model`` if it is what the protocol of wavelength fitters promises."""
    if not isinstance(model, Model) or model.n_inputs != 1 or model.n_outputs != 1 or len(model) != 1:
        raise TypeError(
            f"wavelength fitter {fitter!r} must return one astropy model of one input and one output, "
            f"got {type(model).__name__}"
        )
    value = None if any(getattr(model, name).unit for name in model.param_names) else model(pixel)
    if value is None or isinstance(value, u.Quantity):
        raise TypeError(f"wavelength fitter {fitter!r} returned a model with units; plain Angstrom are expected")
    if not np.all(np.isfinite(value)):
        raise ValueError(f"wavelength fitter {fitter!r} returned a model that is not finite at the lines")
    return model


def _local_dispersion(model: Model, pixel: np.ndarray, domain: tuple[float, float]) -> np.ndarray:
    """Size of the dispersion at the lines, Angstrom per pixel, for a curve that need not be monotonic yet."""
    inside = np.clip(pixel, domain[0] + 0.5, domain[1] - 0.5)
    slope = np.abs(np.asarray(model(inside + 0.5)) - np.asarray(model(inside - 0.5)))
    # where a poor first curve turns over, its slope is no measure of an error
    return np.maximum(slope, 0.1 * np.median(slope))


def _provenance(target: str | Callable, kind: str) -> dict[str, str | None]:
    source = plugin_provenance(target, kind)
    return {"name": source.name, "distribution": source.distribution, "version": source.version}
