"""Pictures. Every function takes an ``ax`` (or makes one), draws on it and returns it; none shows or saves anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lamost_lsf.lsf import LSF
    from lamost_lsf.profile import InstrumentalProfile
    from lamost_lsf.rv import RVResult

__all__ = ["plot_profile", "plot_rv", "plot_rv_chi2", "plot_rv_residuals", "plot_rv_summary"]

#: More profiles than this are coloured by a colour map and have no legend entries.
_MAX_LABELS = 8


def _new_axes(figsize: tuple[float, float] = (6.4, 4.0)) -> Axes:
    # A figure of its own, outside pyplot: nothing stays open in a batch job, no window appears on a server.
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, layout="constrained").subplots()


def plot_profile(
    ip: InstrumentalProfile,
    ax: Axes | None = None,
    *,
    centers: Sequence[str | Callable] = (),
    normalization: str = "peak",
    legend: bool = True,
    **kwargs: Any,
) -> Axes:
    """Instrumental profiles against the offset from the true wavelength.

    Parameters
    ----------
    ip : InstrumentalProfile
        One profile, or an array, each drawn as a line: up to 8 with a legend entry, more in colours of their order.
    ax : `~matplotlib.axes.Axes`, optional
        Where to draw; a new figure, outside pyplot, by default (``ax.figure.savefig(...)`` writes it).
    centers : sequence of str or callable
        Centre definitions to mark by vertical lines, for a single profile.
    normalization : {"peak", "area", "none"}
        What the profiles are scaled to.
    legend : bool
        Whether to draw the legend.
    **kwargs
        Passed to `~matplotlib.axes.Axes.plot`.

    Returns
    -------
    `~matplotlib.axes.Axes`

    Raises
    ------
    ValueError
        Another word for ``normalization``, no profile at all, or centres of several profiles at once.

    Examples
    --------
    >>> import astropy.units as u
    >>> from lamost_lsf import GaussianIP
    >>> from lamost_lsf.plots import plot_profile
    >>> ax = plot_profile(GaussianIP(1800).profile(wavelength=5400 * u.AA), centers=["half"])
    >>> ax.get_xlabel()
    'observed - true wavelength [Å]'
    """
    if normalization not in ("peak", "area", "none"):
        raise ValueError(f"normalization must be 'peak', 'area' or 'none', got {normalization!r}")
    if ip.size == 0:
        raise ValueError("there is no profile to plot")
    if len(centers) and ip.size != 1:
        raise ValueError(f"centres are marked for one profile; index this array of shape {ip.shape} first")
    drawn = ip if normalization == "none" else ip.normalized(normalization)
    if ax is None:
        ax = _new_axes()
    unit = ip.offset.unit
    x = ip.offset.value
    flux = drawn.flux.reshape(ip.size, -1)
    error = None if drawn.error is None else drawn.error.reshape(ip.size, -1)
    wavelength = None if ip.wavelength is None else np.ravel(ip.wavelength.to_value(u.AA))
    few = ip.size <= _MAX_LABELS
    style = {"lw": 1.5 if few else 0.8, **kwargs}
    for i, row in enumerate(flux):
        own = dict(style)
        if not few and not {"color", "c"} & set(kwargs):
            from matplotlib import colormaps

            own["color"] = colormaps["viridis"](i / (ip.size - 1))
        if few and "label" not in kwargs:
            own["label"] = f"{wavelength[i]:.2f} $\\mathrm{{\\AA}}$" if wavelength is not None else f"profile {i + 1}"
        (line,) = ax.plot(x, row, **own)
        if few and error is not None:
            ax.fill_between(x, row - error[i], row + error[i], color=line.get_color(), alpha=0.25, lw=0)
    for i, center in enumerate(centers):
        value = np.ravel(ip.center(center).to_value(unit))[0]
        if np.isfinite(value):
            name = center if isinstance(center, str) else getattr(center, "name", getattr(center, "__name__", "centre"))
            ax.axvline(value, color=f"C{i + 1}", lw=1, ls="--", label=f"{name} {value:+.3f}")
    ax.set_xlabel(f"observed - true wavelength [{unit.to_string('unicode')}]")
    label = {"peak": "flux / peak", "area": f"flux / area [{(1 / unit).unit.to_string('unicode')}]", "none": "flux"}
    ax.set_ylabel(label[normalization])
    ax.set_xlim(x[0], x[-1])
    if legend and (few or len(centers)):
        ax.legend(fontsize="small", frameon=False)
    return ax


# -- radial velocities ------------------------------------------------------------------------------------

_ANGSTROM = r"$\mathrm{\AA}$"
_OBSERVED, _MODEL, _ACCENT = "0.25", "#c1272d", "#0072b2"


def _velocity(result: RVResult) -> str:
    if not result.success:
        return f"no velocity ({result.flags.reasons()})"
    return f"RV = {result.rv.value:.2f} $\\pm$ {result.rv_err.value:.2f} km/s".replace("-", "\N{MINUS SIGN}")


def plot_rv(result: RVResult, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Observed spectrum and best model of a radial velocity.

    Parameters
    ----------
    result : RVResult
    ax : `~matplotlib.axes.Axes`, optional
        Where to draw; a new figure, outside pyplot, by default.
    legend : bool
        Whether to draw the legend.

    Returns
    -------
    `~matplotlib.axes.Axes`

    Examples
    --------
    >>> ax = plot_rv(lamost_lsf.measure_rv(spectrum, template, lsf))         # doctest: +SKIP
    """
    ax = _new_axes((9.0, 3.5)) if ax is None else ax
    scale = _display_scale(result)
    used = np.asarray(result.used)
    ax.step(result.wavelength, result.flux / scale, where="mid", color=_OBSERVED, lw=0.9, label="observed")
    model = np.where(np.isfinite(result.model), result.model, np.nan) / scale
    ax.plot(result.wavelength, model, color=_MODEL, lw=1.2, label=f"model: {result.template or 'none'}")
    if np.any(~used):
        ax.plot(
            result.wavelength[~used], result.flux[~used] / scale, "x", color=_ACCENT, ms=4, mew=0.8, label="not fitted"
        )
    # a cosmic ray or a bad pixel must not set the scale
    good = (result.flux / scale)[used] if used.any() else result.flux / scale
    low, high = np.nanmin(good), np.nanmax(good)
    ax.set_ylim(low - 0.08 * (high - low), high + 0.22 * (high - low))
    ax.set_xlim(*_limits(result))
    ax.set_xlabel(f"vacuum wavelength{', ' + result.frame if result.frame else ''} [{_ANGSTROM}]")
    ax.set_ylabel("relative flux")
    if legend:
        ax.legend(loc="upper left", ncols=3, fontsize="small", frameon=False)
    return ax


def plot_rv_residuals(result: RVResult, ax: Axes | None = None) -> Axes:
    """Observed minus best model in units of the error, of the pixels that were fitted.

    Parameters and result as `plot_rv`.
    """
    ax = _new_axes((9.0, 2.0)) if ax is None else ax
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = np.where(result.used, (result.flux - result.model) / result.error, np.nan)
    ax.axhspan(-1, 1, color="0.9", lw=0)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.step(result.wavelength, residual, where="mid", color=_OBSERVED, lw=0.8)
    largest = np.nanmax(np.abs(residual)) if np.any(np.isfinite(residual)) else 1.0
    ax.set_ylim(-1.1 * max(largest, 2.0), 1.1 * max(largest, 2.0))
    ax.set_xlim(*_limits(result))
    ax.set_xlabel(f"vacuum wavelength{', ' + result.frame if result.frame else ''} [{_ANGSTROM}]")
    ax.set_ylabel("residual [$\\sigma$]")
    return ax


def plot_rv_chi2(result: RVResult, ax: Axes | None = None) -> Axes:
    """Chi-square of the trial velocities, above its minimum.

    Parameters and result as `plot_rv`.
    """
    ax = _new_axes() if ax is None else ax
    top = 1.0
    if result.trial_chi2.size:
        # above the refined minimum, which lies between the trial velocities
        excess = result.trial_chi2 - (result.chi2 if result.success else np.min(result.trial_chi2))
        ax.semilogy(result.trial_velocity, np.maximum(excess, 1e-3), ".-", color=_OBSERVED, lw=0.8, ms=3, label="trial")
        ax.set_xlim(result.trial_velocity[0], result.trial_velocity[-1])
        top = np.nanmax(excess)
    if result.success and np.isfinite(result.rv_err.value):
        rv, error = result.rv.value, result.rv_err.value
        # dense towards the minimum, where the parabola falls to 0
        near = np.concatenate([-np.geomspace(10 * error, 0.1 * error, 60), np.geomspace(0.1 * error, 10 * error, 60)])
        ax.semilogy(rv + near, (near / error) ** 2, color=_MODEL, lw=1.2, label=_velocity(result))
        ax.axhline(1.0, color="0.6", lw=0.8, ls=":")
    ax.set_ylim(0.1, 8.0 * max(top, 10.0))
    ax.set_xlabel("trial velocity [km/s]")
    ax.set_ylabel(r"$\chi^2 - \chi^2_\mathrm{min}$")
    if result.trial_chi2.size or result.success:
        ax.legend(loc="upper left", ncols=2, fontsize="small", frameon=False)
    return ax


def plot_rv_summary(result: RVResult, lsf: LSF | None = None, *, title: str = "") -> Figure:
    """All about one radial velocity: spectrum and model, residuals, chi-square, and the profile that was used.

    Parameters
    ----------
    result : RVResult
    lsf : LSF, optional
        The one that was used, to be drawn at both ends and in the middle of the window.
    title : str
        Heading, before the velocity; the file's name by default.

    Returns
    -------
    `~matplotlib.figure.Figure`
        A figure of its own, outside pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 7.2), layout="constrained")
    rows = figure.add_gridspec(3, 2, height_ratios=(2.3, 1.0, 2.0))
    spectrum = figure.add_subplot(rows[0, :])
    residual = figure.add_subplot(rows[1, :], sharex=spectrum)
    chi2 = figure.add_subplot(rows[2, 0] if lsf is not None else rows[2, :])
    plot_rv(result, spectrum)
    plot_rv_residuals(result, residual)
    spectrum.tick_params(labelbottom=False)
    spectrum.set_xlabel("")
    plot_rv_chi2(result, chi2)
    if lsf is not None:
        low, high = _limits(result)
        at = np.round([low, 0.5 * (low + high), high])
        first, last = lsf.wavelength_range
        at = np.clip(at, first, last)
        ip = lsf.profile(at * u.AA)
        profiles = figure.add_subplot(rows[2, 1])
        # what the asymmetry is: the profile beside its own mirror image
        middle = ip[1].normalized("peak")
        profiles.plot(
            -middle.offset.to_value(u.AA), middle.flux, color="0.6", lw=1.0, ls="--", label="middle one, mirrored"
        )
        plot_profile(ip, profiles)
        profiles.axvline(0, ymax=1.0 / 1.35, color="0.6", lw=0.8, zorder=0)
        profiles.set_ylim(-0.05, 1.35)
        profiles.legend(loc="upper center", ncols=2, fontsize="small", frameon=False)
        reach = _reach(lsf, at)
        profiles.set_xlim(-reach, reach)
        profiles.set_title(f"instrumental profile; centre {result.center!r} at lag 0 of the kernel", fontsize="small")
    name = str(result.provenance.get("filename") or "").replace("\\", "/").rsplit("/", 1)[-1]
    figure.suptitle("   ".join(part for part in (title or name, _velocity(result)) if part), fontsize="medium")
    return figure


def _limits(result: RVResult) -> tuple[float, float]:
    return float(result.wavelength[0]), float(result.wavelength[-1])


def _display_scale(result: RVResult) -> float:
    used = np.asarray(result.used)
    values = result.flux[used] if used.any() else result.flux[np.isfinite(result.flux)]
    scale = float(np.median(np.abs(values))) if values.size else 1.0
    return scale if scale > 0 else 1.0


def _reach(lsf: LSF, wavelength: np.ndarray) -> float:
    """Offset beyond which no profile exceeds 2e-3 of its peak, Angstrom."""
    flux = lsf.sample(wavelength)
    tall = np.any(flux > 2e-3 * flux.max(axis=1, keepdims=True), axis=0)
    return 1.15 * float(np.max(np.abs(lsf.offset[tall])))
