"""Figures of the experiments (Liu et al. 2026, Figures 8 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import astropy.units as u
import numpy as np
from astropy.time import Time

from lamost_lsf.experiments.centers import CenterStability
from lamost_lsf.experiments.epochs import EpochResult
from lamost_lsf.units import SPEED_OF_LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_centers", "plot_jumps", "plot_rv_epochs"]

_TITLES = {
    "max": "maximum", "centroid": "centroid", "gauss": "Gauss", "sersic": "Sérsic", "half": "half",
    "fourier": "Fourier",
}  # fmt: skip
_STYLES = {
    "gaussian": ("Gaussian", "^", "#0072b2"),
    "ip": ("IP", "o", "#e69f00"),
    "ip+recalibration": ("IP + recalibration", "s", "#009e73"),
}


def _new_figure(width: float, height: float) -> Figure:
    # outside pyplot: nothing stays open in a batch job, no window appears on a server
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _grid(figure: Figure, n: int, **options: object) -> np.ndarray:
    columns = 2 if n == 4 else min(n, 3)
    rows = -(-n // columns)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    return axes.flat[:n]


def plot_centers(result: CenterStability, figure: Figure | None = None) -> Figure:
    """Distributions of each centre, measured and predicted (Liu et al. 2026, Figure 8).

    Parameters
    ----------
    result : CenterStability
    figure : `~matplotlib.figure.Figure` or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    `~matplotlib.figure.Figure`
        A panel a centre, all of one width, velocities about the mean of the measured ones; the numbers are standard
        deviations.
    """
    figure = _new_figure(9.5, 5.2) if figure is None else figure
    scale = SPEED_OF_LIGHT / result.wavelength
    columns = {}
    for name, values in result.observed.items():
        middle = np.nanmean(values)
        columns[name] = [(values - middle) * scale]
        if result.predicted:
            columns[name].append((result.predicted[name] - middle) * scale)
    everything = np.concatenate([part for parts in columns.values() for part in parts])
    reach = 1.05 * np.nanquantile(np.abs(everything), 0.998)
    n = max(len(parts[0]) for parts in columns.values())
    edges = np.linspace(-reach, reach, int(np.clip(2.5 * np.sqrt(n), 15, 60)))
    axes = _grid(figure, len(columns), sharex=True)
    for ax, (name, parts) in zip(axes, columns.items(), strict=True):
        for values, color, label in zip(parts, ("#0072b2", "#e69f00"), ("measured", "predicted"), strict=False):
            good = values[np.isfinite(values)]
            spread = np.std(good, ddof=1) if good.size > 1 else np.nan
            ax.hist(
                np.clip(good, -reach, reach), bins=edges, histtype="stepfilled", alpha=0.55, color=color,
                label=f"{label}: {spread:.2f}",
            )  # fmt: skip
        ax.set_title(_TITLES.get(name, name), fontsize="medium")
        # room for the legend above the highest bar
        ax.set_ylim(top=1.4 * ax.get_ylim()[1])
        ax.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
    figure.supxlabel("centre - mean [km/s]", fontsize="medium")
    figure.supylabel("exposures", fontsize="medium")
    by = f", predicted by {result.source}" if result.predicted else ""
    figure.suptitle(
        rf"line {result.wavelength:.2f} $\mathrm{{\AA}}$ (vacuum), fibre {result.fiber}{by}; "
        "standard deviations in km/s",
        fontsize="medium",
    )
    return figure


def plot_rv_epochs(result: EpochResult, figure: Figure | None = None) -> Figure:
    """Velocities in order of time, a panel a centre (Liu et al. 2026, Figure 9).

    Parameters
    ----------
    result : EpochResult
    figure : `~matplotlib.figure.Figure` or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    `~matplotlib.figure.Figure`
        Symbols are exposures; horizontal lines the mean of either epoch; the dashed line is the change, the black one
        the known velocity. The legend has mean, standard deviation and jump.
    """
    figure = _new_figure(12.0, 6.4) if figure is None else figure
    summary = result.summary()
    kms = u.km / u.s
    axes = _grid(figure, len(result.centers), sharex=True, sharey=True)
    for ax, center in zip(axes, result.centers, strict=True):
        for method, (label, marker, color) in _STYLES.items():
            kernel = "" if method == "gaussian" else center
            part = result.select(method, kernel)
            row = summary[(summary["method"] == method) & (summary["kernel_center"] == kernel)][0]
            rv = part["rv"].to_value(kms)
            order = np.arange(rv.size)
            size = np.clip(60.0 / np.sqrt(max(rv.size, 1)), 2.0, 5.0)
            text = f"{label}: {row['mean'].value:.2f} $\\pm$ {row['scatter'].value:.2f}"
            jump = row["jump"].to_value(kms)
            if np.isfinite(jump):
                text += f", jump {jump:+.2f}"
            ax.plot(order, rv, marker, color=color, ms=size, alpha=0.4, mew=0)
            ax.plot([], [], marker, color=color, ms=5, label=text)
            for epoch in ("before", "after"):
                own = np.asarray(part["epoch"] == epoch)
                if np.any(own & np.isfinite(rv)):
                    ends = order[own][[0, -1]]
                    ax.plot(ends, [np.nanmean(rv[own])] * 2, color="w", lw=2.8, alpha=0.7, zorder=3)
                    ax.plot(ends, [np.nanmean(rv[own])] * 2, color=color, lw=1.6, zorder=4)
        last = np.flatnonzero(np.asarray(part["epoch"]) == "before")
        if last.size and last[-1] + 1 < len(part):
            # below the legend
            ax.axvline(last[-1] + 0.5, ymax=0.66, color="#c1272d", ls="--", lw=1.0)
        if result.velocity is not None:
            ax.axhline(result.velocity, color="k", lw=0.8, zorder=2)
        ax.set_title(_TITLES.get(center, center), fontsize="medium")
        ax.legend(fontsize=7.5, frameon=False, loc="upper left")
    finite = result.table["rv"][result.table["method"] != "mixed"].to_value(kms)
    finite = finite[np.isfinite(finite)]
    if finite.size:
        low, high = np.quantile(finite, [0.005, 0.995])
        # room for three lines of legend
        axes[0].set_ylim(low - 0.1 * (high - low) - 0.2, high + 0.6 * (high - low) + 0.2)
    figure.supxlabel("exposure, in order of time", fontsize="medium")
    figure.supylabel("radial velocity [km/s]", fontsize="medium")
    times = Time([result.table["mjd"].min(), result.table["mjd"].max()], format="mjd").iso
    low, high = result.window
    figure.suptitle(
        rf"{low:.0f}-{high:.0f} $\mathrm{{\AA}}$ (vacuum), {times[0][:10]} to {times[1][:10]}; mean $\pm$ standard "
        "deviation, jump = after - before [km/s]",
        fontsize="medium",
    )
    return figure


def plot_jumps(result: EpochResult, ax: Axes | None = None) -> Axes:
    """Jump of the velocity for each centre of the wavelength scale and of the kernel.

    Parameters
    ----------
    result : EpochResult
        Measured with ``mixing=True``.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    `~matplotlib.axes.Axes`
    """
    if ax is None:
        ax = _new_figure(5.6, 4.8).subplots()
    jumps = result.jumps()
    largest = np.nanmax(np.abs(jumps)) if np.any(np.isfinite(jumps)) else 1.0
    image = ax.imshow(jumps, cmap="RdBu_r", vmin=-largest, vmax=largest)
    for (i, j), value in np.ndenumerate(jumps):
        dark = abs(value) > 0.6 * largest
        ax.text(j, i, f"{value:+.2f}", ha="center", va="center", fontsize=8, color="w" if dark else "k")
    names = [_TITLES.get(center, center) for center in result.centers]
    ax.set_xticks(range(len(names)), names, rotation=30)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("centre of the kernel")
    ax.set_ylabel("centre of the wavelength scale")
    ax.figure.colorbar(image, ax=ax, label="jump, after - before [km/s]")
    return ax
