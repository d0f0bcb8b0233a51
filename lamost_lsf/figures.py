"""Figures of instrumental-profile models: those of Liu et al. 2026, for any model and any instrument.

As in `lamost_lsf.plots`: a function takes an ``ax`` or a ``figure`` (or makes one, outside pyplot), draws on it and
returns it; none shows or saves anything. Figures 8 and 9 of the paper are about line centres and radial velocities and
are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np
from astropy.time import Time

from lamost_lsf.time import lmjm_to_time, time_to_lmjm
from lamost_lsf.units import check_medium, to_vacuum_angstrom, vacuum_to_air

if TYPE_CHECKING:
    from os import PathLike

    from astropy.table import Table
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lamost_lsf.arcs import ArcExposure, ProfileSet
    from lamost_lsf.instruments import Instrument
    from lamost_lsf.models.base import IPModel
    from lamost_lsf.training import Evaluation, History

__all__ = [
    "plot_epochs",
    "plot_fibers",
    "plot_held_out_line",
    "plot_lamp",
    "plot_losses",
    "plot_maps",
    "plot_residual_distributions",
    "plot_slit",
]

_DATA, _MODEL, _ACCENT, _QUIET = "0.25", "#c1272d", "#0072b2", "0.6"
_ANGSTROM = r"$\mathrm{\AA}$"


def _new_figure(width: float, height: float) -> Figure:
    # A figure of its own, outside pyplot: nothing stays open in a batch job, no window appears on a server.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# -- 1: maps ------------------------------------------------------------------------------------------------------


def plot_maps(
    model: IPModel,
    time: Time | None = None,
    figure: Figure | None = None,
    *,
    fiber: Sequence[int] | np.ndarray | None = None,
    wavelength: u.Quantity | None = None,
    medium: str = "vacuum",
    extrapolate: bool = False,
) -> Figure:
    """FWHM, skewness and excess kurtosis over wavelength and fibre (Liu et al. 2026, Figure 1), as a model has them.

    Parameters
    ----------
    model : IPModel
    time : `~astropy.time.Time`, optional
        Scalar; what a model needs that varies with time.
    figure : `~matplotlib.figure.Figure` or SubFigure, optional
        Where to draw; a new figure by default.
    fiber : array_like of int, optional
        Fibres, in order; 1-250, or those that the model was trained on, by default.
    wavelength : `~astropy.units.Quantity`, optional
        Increasing, in ``medium``; 40 over the model's range by default.
    medium : {"vacuum", "air"}
        Of ``wavelength`` and of the axis.
    extrapolate : bool
        Allow labels beyond the trained range.

    Returns
    -------
    `~matplotlib.figure.Figure`
        Colours span the middle 98 % of the values: a defective fibre does not set the scale.

    Raises
    ------
    ValueError
        A model without a finite range and no ``wavelength``; fewer than two fibres or wavelengths.
    OutOfRangeError
        Labels beyond the trained range, unless ``extrapolate``.

    Examples
    --------
    >>> from astropy.time import Time
    >>> from lamost_lsf.figures import plot_maps
    >>> from lamost_lsf.simulation import SimulatedIP
    >>> figure = plot_maps(SimulatedIP("blue"), Time("2017-01-10T15:00"), fiber=range(1, 251, 25),
    ...                    wavelength=[4100, 4900, 5700] * u.AA)
    >>> [ax.get_title() for ax in figure.axes[1:3]]
    ['skewness', 'excess kurtosis']
    """
    check_medium(medium)
    if wavelength is None:
        low, high = model.wavelength_range
        if not np.isfinite([low, high]).all() or low <= 0:
            raise ValueError("this model holds everywhere: pass wavelength=")
        vacuum = np.linspace(low, high, 42)[1:-1]  # the very ends are inside only up to rounding
    else:
        vacuum = np.atleast_1d(to_vacuum_angstrom(wavelength, medium))
    fibers = _default_fibers(model) if fiber is None else np.asarray(fiber)
    if fibers.size < 2 or vacuum.size < 2:
        raise ValueError(f"a map needs two fibres and two wavelengths, got {fibers.size} and {vacuum.size}")
    ip = model.profile(
        time=time if model.needs_time else None,
        fiber=fibers[:, None] if model.needs_fiber else None,
        wavelength=vacuum * u.AA,
        extrapolate=extrapolate,
    )
    shape = (fibers.size, vacuum.size)
    maps = {
        f"FWHM [{_ANGSTROM}]": np.broadcast_to(ip.fwhm.to_value(u.AA), shape),
        "skewness": np.broadcast_to(ip.skewness, shape),
        "excess kurtosis": np.broadcast_to(ip.kurtosis, shape),
    }
    figure = _new_figure(11.0, 4.0) if figure is None else figure
    x = _edges(vacuum if medium == "vacuum" else vacuum_to_air(vacuum))
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
        own = {"cmap": "viridis", "vmin": low, "vmax": high}
        if name == "skewness":
            # symmetric about 0, so that the colour tells the sign
            top = max(abs(low), abs(high), 1e-12)
            own = {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
        image = ax.pcolormesh(x, _edges(fibers), values, rasterized=True, **own)
        figure.colorbar(image, ax=ax, extend="both", pad=0.02)
        ax.set_title(name, fontsize="medium")
        ax.set_xlabel(f"{medium} wavelength [{_ANGSTROM}]")
    axes[0].set_ylabel("fibre")
    if time is not None:
        figure.suptitle(_heading(model, time), fontsize="medium")
    return figure


def _default_fibers(model: IPModel) -> np.ndarray:
    if hasattr(model, "label_min"):
        first, last = (round(float(f[1])) + model.fiber_origin for f in (model.label_min, model.label_max))
        return np.arange(first, last + 1)
    return np.arange(1, getattr(model, "n_fiber", 250) + 1)


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of cells about values, which may be uneven."""
    values = np.asarray(values, dtype=np.float64)
    middle = 0.5 * (values[1:] + values[:-1])
    return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])


def _heading(model: IPModel, time: Time | None = None) -> str:
    meta = model.meta
    parts = [str(meta.get("instrument") or meta.get("model") or type(model).__name__)]
    if meta.get("spectrograph") is not None:
        parts.append(f"spectrograph {meta['spectrograph']}")
    if time is not None:
        parts.append(f"{time.utc.iso[:16]} UTC")
    return ", ".join(parts)


# -- 2 and 6: the arc itself --------------------------------------------------------------------------------------


def plot_lamp(
    exposure: ArcExposure,
    ax: Axes | None = None,
    *,
    instrument: str | PathLike | Instrument | None = None,
    fiber: int | None = None,
) -> Axes:
    """Spectrum of an arc lamp, with the lines that profiles are measured on (Liu et al. 2026, Figure 2).

    Parameters
    ----------
    exposure : `~lamost_lsf.arcs.ArcExposure`
    ax : `~matplotlib.axes.Axes`, optional
        Where to draw; a new figure, outside pyplot, by default.
    instrument : str, path or Instrument, optional
        Whose lines; the exposure's own by default.
    fiber : int, optional
        Fibre to draw; the one of median flux by default.

    Returns
    -------
    `~matplotlib.axes.Axes`

    Raises
    ------
    ValueError
        No instrument named; a fibre that the exposure does not have.

    Examples
    --------
    >>> from astropy.time import Time
    >>> from lamost_lsf.arcs import ArcExposure
    >>> from lamost_lsf.simulation import SimulatedIP, simulate_arc
    >>> arc = simulate_arc(SimulatedIP("blue"), Time("2017-01-10T15:00"), fiber=[1, 2, 3])
    >>> ax = plot_lamp(ArcExposure.from_simulation(arc), instrument="lamost-lrs-blue")
    >>> len(ax.texts)
    7
    """
    lines = _instrument(exposure, instrument).lines
    if fiber is None:
        total = np.where(exposure.mask, 0.0, exposure.flux).sum(axis=1)
        row = int(np.argsort(total)[total.size // 2])
    else:
        rows = np.flatnonzero(exposure.fiber == fiber)
        if rows.size == 0:
            raise ValueError(f"the exposure has no fibre {fiber}; it has {exposure.fiber.min()}-{exposure.fiber.max()}")
        row = int(rows[0])
    ax = _new_figure(10.0, 4.2).subplots() if ax is None else ax
    wavelength, mask = exposure.wavelength[row], exposure.mask[row]
    flux = np.where(mask, np.nan, exposure.flux[row])
    # lines differ by factors of hundreds: logarithmic, from somewhat below the background
    good = flux[np.isfinite(flux) & (flux > 0)]
    floor = 0.5 * float(np.percentile(good, 10)) if good.size else 1.0
    ax.semilogy(wavelength, np.maximum(flux, floor), color=_DATA, lw=0.7, drawstyle="steps-mid")
    top = float(good.max()) if good.size else 10.0
    ax.set_ylim(floor, top * (top / floor) ** 0.42)
    ax.set_xlim(wavelength[0], wavelength[-1])
    for species, air, vacuum in zip(lines.species, lines.air, lines.vacuum):
        if not wavelength[0] < vacuum < wavelength[-1]:
            continue
        near = np.abs(wavelength - vacuum) < 5.0
        peak = float(np.nanmax(flux[near])) if np.any(np.isfinite(flux[near])) else floor
        height = top * (top / floor) ** 0.05
        ax.plot([vacuum, vacuum], [max(peak, floor) * 1.15, height], color=_ACCENT, lw=0.8)
        ax.text(
            vacuum, height, f" {species} {air:.2f}", rotation=90, ha="center", va="bottom", fontsize=7, color=_ACCENT
        )
    ax.set_xlabel(f"vacuum wavelength [{_ANGSTROM}]; lines are named by their air wavelengths")
    ax.set_ylabel("counts")
    ax.set_title(
        f"{exposure.lamp or 'arc'}, spectrograph {exposure.spectrograph}, {exposure.arm} arm, fibre "
        f"{exposure.fiber[row]}, {exposure.time.utc.iso[:16]} UTC",
        fontsize="medium",
    )
    return ax


def plot_slit(
    exposure: ArcExposure,
    figure: Figure | None = None,
    *,
    line: int | u.Quantity | None = None,
    instrument: str | PathLike | Instrument | None = None,
    defective: Sequence[int] = (),
    threshold: float = 0.5,
) -> Figure:
    """One arc line along the slit: its image fibre by fibre, and its flux with the fibres that stand out.

    Stands for Figure 6 of Liu et al. 2026, which shows the fibres' spots on the detector. An extracted exposure has one
    spectrum a fibre and no spots any more: the image here is wavelength by fibre, not a cut-out of the CCD.

    Parameters
    ----------
    exposure : `~lamost_lsf.arcs.ArcExposure`
    figure : `~matplotlib.figure.Figure` or SubFigure, optional
        Where to draw; a new figure by default.
    line : int or `~astropy.units.Quantity`, optional
        Number of a line of the instrument, or a vacuum wavelength; the brightest line by default.
    instrument : str, path or Instrument, optional
        The exposure's own by default.
    defective : sequence of int
        Fibres to mark besides, such as `~lamost_lsf.training.Evaluation.unusual_fibers` lists.
    threshold : float
        Fibres with less than this share of the median flux are marked as low.

    Returns
    -------
    `~matplotlib.figure.Figure`

    Raises
    ------
    ValueError
        No instrument named, or a line that is not on the detector.
    """
    own = _instrument(exposure, instrument)
    low, high = own.window
    order = np.argsort(exposure.fiber)
    wavelength, fibers = exposure.wavelength[order], exposure.fiber[order]
    flux = np.where(exposure.mask, np.nan, exposure.flux)[order]
    inner, outer = wavelength[:, 0].max() - low, wavelength[:, -1].min() - high
    if line is None:
        on = np.flatnonzero((own.lines.vacuum > inner) & (own.lines.vacuum < outer))
        if on.size == 0:
            raise ValueError(f"no line of {own.name} is on the detector with its whole window")
        center = own.lines.vacuum[
            max(on, key=lambda i: _line_flux(wavelength, flux, own.lines.vacuum[i], low, high)[1])
        ]
    elif isinstance(line, u.Quantity):
        center = float(to_vacuum_angstrom(line, "vacuum"))
    else:
        if not 0 <= line < len(own.lines):
            raise ValueError(f"line must be 0 to {len(own.lines) - 1} or a wavelength, got {line}")
        center = float(own.lines.vacuum[line])
    if not inner < center < outer:
        raise ValueError(f"the window about {center:.2f} A is not wholly on the detector in every fibre")
    light, typical = _line_flux(wavelength, flux, center, low, high)
    relative = light / typical if typical > 0 else np.full(light.shape, np.nan)
    figure = _new_figure(10.0, 5.0) if figure is None else figure
    picture, graph = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, 1.6))
    grid = np.linspace(low, high, 81)
    image = np.array([np.interp(center + grid, w, np.nan_to_num(f)) for w, f in zip(wavelength, flux, strict=True)])
    # a square root shows wings and faint fibres beside the peaks
    image = np.sqrt(np.maximum(image - np.nanmin(image, axis=1, keepdims=True), 0.0))
    # a place for every fibre number: those that are not there stay empty
    whole = np.full((int(fibers[-1] - fibers[0]) + 1, grid.size), np.nan)
    whole[fibers - fibers[0]] = image
    places = np.arange(fibers[0], fibers[-1] + 2) - 0.5
    top = float(np.percentile(image.max(axis=1), 95)) or 1.0
    picture.pcolormesh(places, _edges(grid), whole.T, cmap="magma", vmin=0.0, vmax=top, rasterized=True)
    picture.set_ylabel(f"offset [{_ANGSTROM}]")
    picture.set_title(
        f"{exposure.lamp or 'arc'} line at {center:.2f} {_ANGSTROM} (vacuum), spectrograph {exposure.spectrograph}, "
        f"{exposure.arm} arm, {exposure.time.utc.iso[:16]} UTC; $\\sqrt{{\\mathrm{{counts}}}}$",
        fontsize="medium",
    )
    weak = ~(relative >= threshold)
    odd = np.isin(fibers, np.asarray(list(defective), dtype=int))
    graph.axhline(1.0, color=_QUIET, lw=0.8)
    graph.axhline(threshold, color=_QUIET, lw=0.8, ls="--", label=f"{threshold:g} of the median")
    graph.plot(fibers, relative, ".", ms=4, color=_DATA)
    if weak.any():
        graph.plot(fibers[weak], np.nan_to_num(relative[weak]), "v", ms=7, mfc="none", color=_ACCENT, label="low")
    if odd.any():
        graph.plot(fibers[odd], relative[odd], "s", ms=9, mfc="none", color=_MODEL, label="stands out")
    known = np.nan_to_num(relative)
    for at in np.flatnonzero(weak | odd)[:20]:
        graph.annotate(str(fibers[at]), (fibers[at], known[at]), (6, 4), textcoords="offset points", fontsize=7)
    graph.set_ylim(-0.08 * known.max(), 1.25 * max(known.max(), 1.0))
    graph.set_xlim(places[0], places[-1])
    graph.set_xlabel("fibre")
    graph.set_ylabel("flux / median")
    graph.legend(loc="upper right", ncols=3, fontsize="small", frameon=False)
    return figure


def _line_flux(wavelength: np.ndarray, flux: np.ndarray, center: float, low: float, high: float):
    """Sum over a line's window above its lowest pixels, a fibre (n_fiber,), and the median of it."""
    light = np.full(flux.shape[0], np.nan)
    for i, (w, f) in enumerate(zip(wavelength, flux, strict=True)):
        inside = (w > center + low) & (w < center + high) & np.isfinite(f)
        if np.count_nonzero(inside) >= 5:
            light[i] = np.sum((f[inside] - np.percentile(f[inside], 10)) * np.gradient(w)[inside])
    return light, float(np.nanmedian(light)) if np.isfinite(light).any() else 0.0


def _instrument(exposure: ArcExposure, instrument: Any) -> Instrument:
    from lamost_lsf.instruments import get_instrument

    name = exposure.instrument if instrument is None else instrument
    if isinstance(name, str) and not name:
        raise ValueError("the exposure does not name its instrument: pass instrument=")
    return get_instrument(name)


# -- 3 and 4: training and its residuals --------------------------------------------------------------------------


def plot_losses(history: History | Table, ax: Axes | None = None) -> Axes:
    """Losses in training and validation (Liu et al. 2026, Figure 3).

    Parameters
    ----------
    history : `~lamost_lsf.training.History`, or its table
        Phases of the training follow one another and are separated by lines.
    ax : `~matplotlib.axes.Axes`, optional
        Where to draw; a new figure, outside pyplot, by default.

    Returns
    -------
    `~matplotlib.axes.Axes`

    Raises
    ------
    ValueError
        An empty history.
    """
    table = history.to_table() if hasattr(history, "to_table") else history
    if len(table) == 0:
        raise ValueError("the history is empty")
    ax = _new_figure(7.0, 4.2).subplots() if ax is None else ax
    phase, step = np.asarray(table["phase"]), np.asarray(table["step"])
    new = np.flatnonzero(np.append(True, phase[1:] != phase[:-1]))
    position, start = np.empty(len(table)), 0
    for first, last in zip(new, [*new[1:], len(table)]):
        position[first:last] = start + step[first:last]
        if new.size > 1:
            ax.text(start, 1.0, f" {phase[first]}", transform=ax.get_xaxis_transform(), va="bottom", fontsize=8)
            if start:
                ax.axvline(start, color=_QUIET, lw=0.8, ls=":")
        start += step[last - 1]
    # each phase is a curve of its own: between them the model has changed
    for first, last in zip(new, [*new[1:], len(table)]):
        part = slice(first, last)
        names = ("training", "validation") if first == 0 else (None, None)
        ax.plot(position[part], table["train_loss"][part], color=_DATA, lw=1.0, label=names[0])
        ax.plot(position[part], table["validation_loss"][part], ".-", ms=3, color=_MODEL, lw=1.0, label=names[1])
    last = new[-1]
    best = last + int(np.argmin(table["validation_loss"][last:]))
    ax.plot(position[best], table["validation_loss"][best], "o", mfc="none", color=_ACCENT, ms=8,
            label=f"kept: {table['validation_loss'][best]:.4g}")  # fmt: skip
    losses = np.concatenate([np.asarray(table["train_loss"]), np.asarray(table["validation_loss"])])
    if np.all(losses > 0) and losses.max() > 1.5 * losses.min():
        ax.set_yscale("log")
        if losses.max() < 30.0 * losses.min():  # plain numbers, and more than powers of ten
            from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
            ax.yaxis.set_major_formatter(ScalarFormatter())
            ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(0, None)
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.legend(fontsize="small", frameon=False)
    return ax


def plot_residual_distributions(
    evaluations: Evaluation | Mapping[str, Evaluation], figure: Figure | None = None, *, bins: int | None = None
) -> Figure:
    """Distributions of the mean and the dispersion of the residuals (Liu et al. 2026, Eqs. 4-5, Figure 4).

    Parameters
    ----------
    evaluations : `~lamost_lsf.training.Evaluation`, or mapping of names to them
        Such as one of each arm.
    figure : `~matplotlib.figure.Figure` or SubFigure, optional
        Where to draw; a new figure by default.
    bins : int, optional
        By default as many as the number of profiles bears.

    Returns
    -------
    `~matplotlib.figure.Figure`
        Medians in the legends. Beside the dispersion, dashed, that of the pixels' own noise, which no model can
        undercut. The outermost 0.5 % of the profiles on either side are beyond the axes. On native pixels the mean is
        next to 0 whatever the model, for each profile's background has been fitted; ``kind="resampled"`` has the
        paper's.

    Raises
    ------
    ValueError
        No evaluation, or one without a finite residual.
    """
    named = dict(evaluations) if isinstance(evaluations, Mapping) else {"": evaluations}
    if not named:
        raise ValueError("there is no evaluation to plot")
    figure = _new_figure(9.5, 3.8) if figure is None else figure
    axes = figure.subplots(1, 2)
    _histograms(axes, named, bins)
    axes[0].set_ylabel("profiles per bin, relative")
    return figure


def _histograms(axes: Sequence[Axes], named: Mapping[str, Evaluation], bins: int | None) -> None:
    if bins is None:
        bins = int(np.clip(min(len(e.table) for e in named.values()) // 12, 8, 60))
    for ax, column in zip(axes, ("mean", "dispersion"), strict=True):
        values = {name: _finite(e.table[column]) for name, e in named.items()}
        if any(v.size == 0 for v in values.values()):
            raise ValueError(f"an evaluation without a finite {column}")
        limits = np.percentile(np.concatenate(list(values.values())), (0.5, 99.5))
        noises = {name: _finite(e.table["noise"]) for name, e in named.items()} if column == "dispersion" else {}
        if noises:
            limits[0] = min([limits[0], *(np.percentile(v, 0.5) for v in noises.values())])
        else:
            limits = np.array([-1.0, 1.0]) * np.abs(limits).max()  # about 0, where the mean should be
        pad = 0.03 * max(float(np.ptp(limits)), 1e-12)
        edges = np.linspace(limits[0] - pad, limits[1] + pad, bins + 1)
        for i, (name, v) in enumerate(values.items()):
            # the median of |mean| is the number the paper quotes, the median dispersion likewise
            quoted = np.median(np.abs(v)) if column == "mean" else np.median(v)
            word = "median |mean|" if column == "mean" else "median"
            _steps(ax, v, edges, color=f"C{i}", label=f"{name} {word} {quoted:.2g}".strip(), lw=1.4)
            if name in noises:
                n = noises[name]
                _steps(
                    ax,
                    n,
                    edges,
                    color=f"C{i}",
                    label=f"{name} noise, median {np.median(n):.2g}".strip(),
                    ls="--",
                    lw=1.0,
                )
        if column == "mean":
            ax.axvline(0.0, color=_QUIET, lw=0.8, zorder=0)
        ax.set_xlim(edges[0], edges[-1])
        ax.set_ylim(0, 1.35)
        if column == "mean" and all(e.kind == "native" for e in named.values()):
            ax.text(
                0.03, 0.96, "0 by construction:\nbackground fitted", transform=ax.transAxes, va="top", fontsize=7,
                color=_QUIET,
            )  # fmt: skip
        ax.set_xlabel(f"{column} of the residuals / peak")
        ax.legend(fontsize="small", frameon=False, loc="upper right")
        ax.locator_params(axis="x", nbins=6)


def _steps(ax: Axes, values: np.ndarray, edges: np.ndarray, **style: Any) -> None:
    counts, _ = np.histogram(values, edges)
    ax.stairs(counts / max(counts.max(), 1), edges, **style)


def _finite(column: Any) -> np.ndarray:
    values = np.asarray(column, dtype=np.float64)
    return values[np.isfinite(values)]


# -- 5 and 7: profiles --------------------------------------------------------------------------------------------


def plot_fibers(
    model: IPModel,
    profiles: ProfileSet,
    fibers: Sequence[int] = (154, 155, 156),
    figure: Figure | None = None,
    *,
    line: int | None = None,
    exposure: int | None = None,
    extrapolate: bool = False,
) -> Figure:
    """Observed and predicted profiles of some fibres, with residuals (Liu et al. 2026, Figure 5).

    The detector's own pixels are drawn, less the background and divided by the peak, both fitted with the model's
    shape.

    Parameters
    ----------
    model : IPModel
    profiles : `~lamost_lsf.arcs.ProfileSet`
        With those fibres; of a store, ``store.profile_set(rows)``.
    fibers : sequence of int
    figure : `~matplotlib.figure.Figure` or SubFigure, optional
        Where to draw; a new figure by default.
    line, exposure : int, optional
        Which; by default the line and exposure of the first good profile that all the fibres have.
    extrapolate : bool
        Allow labels beyond the model's trained range.

    Returns
    -------
    `~matplotlib.figure.Figure`

    Raises
    ------
    ValueError
        No fibres, or no good profile of one of them.
    """
    fibers = [int(f) for f in fibers]
    if not fibers:
        raise ValueError("there is no fibre to plot")
    rows = _common_rows(profiles, fibers, line, exposure)
    figure = _new_figure(1.2 + 3.1 * len(fibers), 4.8) if figure is None else figure
    axes = figure.subplots(2, len(fibers), sharex=True, sharey="row", height_ratios=(2.2, 1.0), squeeze=False)
    part = profiles.select(rows)
    ip = _predicted(model, part, extrapolate)
    largest = 0.0
    for i, fiber in enumerate(fibers):
        fit = _refit(part, i, ip[i])
        _draw_fit(axes[0, i], axes[1, i], fit, ip[i], legend=i == 0)
        largest = max(largest, _reach(fit))
        axes[0, i].set_title(f"fibre {fiber}", fontsize="medium")
        axes[1, i].set_xlabel(f"observed - true wavelength [{_ANGSTROM}]")
    axes[0, 0].set_ylabel("flux / peak")
    axes[1, 0].set_ylabel("residual / peak")
    axes[1, 0].set_ylim(-largest, largest)
    when = lmjm_to_time(float(part.lmjm[0]))
    figure.suptitle(
        f"{part.lines.species[part.line[0]]} {part.lines.air[part.line[0]]:.3f} {_ANGSTROM} (air), spectrograph "
        f"{part.spectrograph}, {part.arm} arm, {when.iso[:16]} UTC",
        fontsize="medium",
    )
    return figure


def plot_held_out_line(
    model: IPModel,
    profiles: ProfileSet,
    evaluation: Evaluation,
    figure: Figure | None = None,
    *,
    fiber: int | None = None,
    extrapolate: bool = False,
) -> Figure:
    """A line that the model was not trained on: one profile, and the distributions of all residuals (Figure 7).

    In Liu et al. 2026 the line is [O I] 5577.338 A (air) of the night sky, cut out of sky spectra like an arc line.

    Parameters
    ----------
    model : IPModel
    profiles : `~lamost_lsf.arcs.ProfileSet`
        Of that line: ``extract_profiles(sky, lines=LineList.from_wavelengths([5577.338] * u.AA, medium="air"))``.
    evaluation : `~lamost_lsf.training.Evaluation`
        Of ``model`` on ``profiles``.
    figure : `~matplotlib.figure.Figure` or SubFigure, optional
        Where to draw; a new figure by default.
    fiber : int, optional
        Fibre whose profile is drawn; by default the one of median dispersion.
    extrapolate : bool
        Allow labels beyond the model's trained range.

    Returns
    -------
    `~matplotlib.figure.Figure`

    Raises
    ------
    ValueError
        No good profile, of that fibre or at all.
    """
    table = evaluation.table
    dispersion = np.asarray(table["dispersion"], dtype=np.float64)
    known = np.flatnonzero(np.isfinite(dispersion))
    if known.size == 0:
        raise ValueError("an evaluation without a finite dispersion")
    if fiber is None:
        fiber = int(table["fiber"][known[np.argsort(dispersion[known])[known.size // 2]]])
    rows = np.flatnonzero(profiles.good & (profiles.fiber == fiber))
    if rows.size == 0:
        raise ValueError(f"no good profile of fibre {fiber}")
    part = profiles.select(rows[:1])
    ip = _predicted(model, part, extrapolate)
    figure = _new_figure(12.0, 4.0) if figure is None else figure
    grid = figure.add_gridspec(2, 3, height_ratios=(2.2, 1.0))
    upper = figure.add_subplot(grid[0, 0])
    lower = figure.add_subplot(grid[1, 0], sharex=upper)
    upper.tick_params(labelbottom=False)
    fit = _refit(part, 0, ip[0])
    _draw_fit(upper, lower, fit, ip[0], legend=True)
    upper.set_title(
        f"{part.lines.species[part.line[0]]} {part.lines.air[part.line[0]]:.3f} {_ANGSTROM} (air), fibre {fiber}",
        fontsize="medium",
    )
    upper.set_ylabel("flux / peak")
    lower.set_ylabel("residual / peak")
    lower.set_ylim(-_reach(fit), _reach(fit))
    lower.set_xlabel(f"observed - true wavelength [{_ANGSTROM}]")
    axes = [figure.add_subplot(grid[:, 1]), figure.add_subplot(grid[:, 2])]
    _histograms(axes, {"": evaluation}, None)
    axes[0].set_ylabel("profiles per bin, relative")
    count = np.unique(np.asarray(table["fiber"])[known]).size
    axes[0].set_title(f"{known.size} profiles of {count} fibres", fontsize="medium")
    return figure


def _common_rows(profiles: ProfileSet, fibers: list[int], line: int | None, exposure: int | None) -> np.ndarray:
    """One good row of each fibre, of one line and exposure that all have."""
    rows = np.flatnonzero(profiles.good & np.isin(profiles.fiber, fibers))
    if line is not None:
        rows = rows[profiles.line[rows] == line]
    if exposure is not None:
        rows = rows[profiles.exposure[rows] == exposure]
    groups: dict[tuple[int, int], dict[int, int]] = {}
    for row in rows:
        key = int(profiles.exposure[row]), int(profiles.line[row])
        groups.setdefault(key, {})[int(profiles.fiber[row])] = int(row)
    for members in groups.values():
        if len(members) == len(set(fibers)):
            return np.array([members[f] for f in fibers])
    wanted = ", ".join(map(str, fibers))
    raise ValueError(f"there is no line of one exposure of which fibres {wanted} all have a good profile")


def _predicted(model: IPModel, part: ProfileSet, extrapolate: bool) -> Any:
    return model.profile(
        time=lmjm_to_time(part.lmjm) if model.needs_time else None,
        fiber=part.fiber.astype(int) if model.needs_fiber else None,
        wavelength=part.wavelength * u.AA,
        extrapolate=extrapolate,
    )


def _refit(part: ProfileSet, i: int, ip: Any) -> dict[str, np.ndarray]:
    """Pixels of profile i in units of the predicted peak: weighted least squares of shape, level and slope."""
    x, y, w = (np.asarray(a[i], dtype=np.float64) for a in (part.native_offset, part.native_flux, part.native_ivar))
    good = w > 0
    x, y, w = x[good], y[good], w[good]
    shape = ip(x * u.AA) / float(ip.flux.max())
    design = np.stack([shape, np.ones_like(x), x], axis=1)
    root = np.sqrt(w)
    a, level, slope = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
    flux = (y - level - slope * x) / a
    return {"x": x, "flux": flux, "error": 1.0 / (root * abs(a)), "residual": flux - shape}


def _reach(fit: dict[str, np.ndarray]) -> float:
    """Limit of an axis that shows the residuals with their errors."""
    return 1.08 * float(np.max(np.abs(fit["residual"]) + fit["error"]))


def _draw_fit(upper: Axes, lower: Axes, fit: dict[str, np.ndarray], ip: Any, *, legend: bool) -> None:
    grid, peak = ip.offset.to_value(u.AA), float(ip.flux.max())
    upper.plot(grid, ip.flux / peak, color=_MODEL, lw=1.3, label="predicted")
    upper.errorbar(fit["x"], fit["flux"], fit["error"], fmt=".", ms=4, color=_DATA, elinewidth=0.8, label="observed")
    text = f"dispersion {np.std(fit['residual'], ddof=1):.4f}\nnoise {np.sqrt(np.mean(fit['error'] ** 2)):.4f}"
    upper.text(0.97, 0.95, text, transform=upper.transAxes, ha="right", va="top", fontsize=8)
    lower.axhline(0.0, color=_MODEL, lw=1.0)
    if ip.error is not None:
        own = ip.error / peak
        lower.fill_between(grid, -own, own, color=_MODEL, alpha=0.25, lw=0, label="predicted error")
    lower.errorbar(fit["x"], fit["residual"], fit["error"], fmt=".", ms=4, color=_DATA, elinewidth=0.8)
    upper.set_xlim(grid[0], grid[-1])
    upper.set_ylim(-0.08, 1.12)
    if legend:
        upper.legend(loc="upper left", fontsize="small", frameon=False)


# -- 10: epochs ---------------------------------------------------------------------------------------------------


def plot_epochs(
    models: IPModel | Sequence[IPModel],
    times: Time,
    figure: Figure | None = None,
    *,
    fiber: Sequence[int],
    wavelength: u.Quantity,
    medium: str = "vacuum",
    extrapolate: bool = False,
) -> Figure:
    """Profiles at two epochs, and their difference (Liu et al. 2026, Figure 10).

    Parameters
    ----------
    models : IPModel, or two of them
        One that holds for both times, or one for each, such as those of two seasons.
    times : `~astropy.time.Time`, shape (2,)
    figure : `~matplotlib.figure.Figure` or SubFigure, optional
        Where to draw; a new figure by default.
    fiber : sequence of int
        A row of panels each.
    wavelength : `~astropy.units.Quantity`
        True wavelengths, in ``medium``; a column of panels each.
    medium : {"vacuum", "air"}
        Of ``wavelength``.
    extrapolate : bool
        Allow labels beyond the models' trained ranges.

    Returns
    -------
    `~matplotlib.figure.Figure`
        Profiles divided by their own peaks; below them, in grey, later minus earlier, magnified by the factor that the
        heading says.

    Raises
    ------
    ValueError
        Another number of times or models, or nothing to plot.
    TypeError
        Times that are not a `~astropy.time.Time`.
    """
    pair = list(models) if isinstance(models, Sequence) else [models, models]
    if len(pair) != 2:
        raise ValueError(f"give one model or two, got {len(pair)}")
    if not isinstance(times, Time):
        raise TypeError(f"times must be an astropy Time, got {type(times).__name__}")
    if times.shape != (2,):
        raise ValueError(f"times must be two, got shape {times.shape}")
    vacuum = np.atleast_1d(to_vacuum_angstrom(wavelength, medium))
    fibers = [int(f) for f in np.atleast_1d(fiber)]
    if not fibers or not vacuum.size:
        raise ValueError("there is no profile to plot")
    order = np.argsort(time_to_lmjm(times))
    ips = [
        pair[k].profile(
            time=times[k] if pair[k].needs_time else None,
            fiber=np.array(fibers)[:, None] if pair[k].needs_fiber else None,
            wavelength=vacuum * u.AA,
            extrapolate=extrapolate,
        )
        for k in order
    ]
    figure = _new_figure(1.0 + 3.0 * vacuum.size, 0.8 + 2.3 * len(fibers)) if figure is None else figure
    axes = figure.subplots(len(fibers), vacuum.size, sharex=True, sharey=True, squeeze=False)
    shown = vacuum if medium == "vacuum" else vacuum_to_air(vacuum)
    drawn = [ip.normalized("peak").flux for ip in ips]
    drawn = [np.broadcast_to(flux, (len(fibers), vacuum.size, flux.shape[-1])) for flux in drawn]
    x, later_x = (ip.offset.to_value(u.AA) for ip in ips)
    widths = [np.broadcast_to(ip.fwhm.to_value(u.AA), axes.shape) for ip in ips]
    difference = np.array([[np.interp(x, later_x, b) - a for a, b in zip(*rows)] for rows in zip(*drawn, strict=True)])
    largest = float(np.max(np.abs(difference)))
    factor = next((f for f in (100, 50, 20, 10, 5, 2) if f * largest < 0.35), 1)
    low = min(-0.05, 1.1 * factor * float(difference.min()))
    for i, j in np.ndindex(axes.shape):
        ax = axes[i, j]
        for color, style, k, grid, flux, width in zip(
            (_ACCENT, _MODEL), ("-", "--"), order, (x, later_x), drawn, widths, strict=True
        ):
            label = f"{times[k].utc.iso[:10]}: FWHM {width[i, j]:.2f}"
            ax.plot(grid, flux[i, j], color=color, ls=style, lw=1.3, label=label)
        ax.plot(x, factor * difference[i, j], color=_QUIET, lw=1.0)
        ax.axhline(0.0, color="0.85", lw=0.8, zorder=0)
        ax.legend(loc="upper left", fontsize=7, frameon=False, handlelength=1.5)
        ax.set_xlim(x[0], x[-1])
        ax.set_ylim(low, 1.45)
        if i == 0:
            ax.set_title(f"{shown[j]:.1f} {_ANGSTROM} ({medium})", fontsize="medium")
        if i == len(fibers) - 1:
            ax.set_xlabel(f"offset [{_ANGSTROM}]")
        if j == 0:
            ax.set_ylabel(f"fibre {fibers[i]}\nflux / peak")
    grey = f"{factor} x (later - earlier)" if factor > 1 else "later - earlier"
    figure.suptitle(f"{_heading(pair[order[0]])}; grey: {grey}", fontsize="medium")
    return figure
