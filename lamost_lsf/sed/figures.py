"""Figures of Yang et al. 2024 about predicted SEDs (Figures 2-6 and 8-11), for any model and library.

As in `lamost_lsf.plots`: a function takes an ``ax`` or a ``figure`` (or makes one, outside pyplot), draws on it and
returns it; none shows or saves anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lamost_lsf.sed.grids import BANDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from specutils import Spectrum

    from lamost_lsf.sed.evaluation import Residuals

__all__ = [
    "REPRESENTATIVE",
    "plot_error_comparison",
    "plot_examples",
    "plot_predictions",
    "plot_residual_curves",
    "plot_residual_lines",
    "plot_residual_map",
    "plot_rmsae",
]

#: Wavelengths, Angstrom, at which the paper compares errors (Figures 4 and 5).
REPRESENTATIVE = (3205.0, 3429.0, 4252.0, 7206.0, 9207.0)
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_LABEL = r"wavelength [$\mathrm{\AA}$]"
_RESIDUAL = "(predicted - true) / true"


def _new_figure(width: float, height: float) -> Figure:
    # A figure of its own, outside pyplot: nothing stays open in a batch job, no window appears on a server.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _new_axes(ax: Axes | None) -> Axes:
    return _new_figure(7.0, 4.0).subplots() if ax is None else ax


def _levels(residuals: Residuals) -> tuple[np.ndarray, np.ndarray]:
    if not len(residuals.residual):
        raise ValueError("there are no residuals to plot")
    return np.unique(residuals.group), np.unique(residuals.snr)


def _snr_name(snr: float) -> str:
    return f"SNR {snr:g}" if np.isfinite(snr) else "as observed"


def plot_residual_curves(residuals: Residuals, figure: Figure | None = None) -> Figure:
    """Medians and 1 sigma of relative residuals by wavelength (Figures 2 and 3): a row a class, a colour an SNR.

    Parameters
    ----------
    residuals : Residuals
        Of a training or a test set.
    figure : `~matplotlib.figure.Figure`, optional

    Returns
    -------
    `~matplotlib.figure.Figure`
        Predicted errors are the dashed lines beside the scatter.
    """
    groups, levels = _levels(residuals)
    figure = _new_figure(9.0, 2.2 * groups.size + 0.6) if figure is None else figure
    axes = figure.subplots(groups.size, 2, sharex=True, squeeze=False)
    for (left, right), group in zip(axes, groups, strict=True):
        for color, snr in zip(_COLORS, levels, strict=False):
            curve = residuals.select(group, snr).by_wavelength()
            w = curve["wavelength"].value
            left.plot(w, curve["median"], color=color, lw=1.2, label=_snr_name(snr))
            right.plot(w, curve["scatter"], color=color, lw=1.2)
            right.plot(w, curve["sigma"], color=color, lw=0.9, ls="--")
            ends = (w[0], w[-1])
        left.axhline(0, color="0.6", lw=0.6, zorder=0)
        left.set_ylabel(f"{group}: median")
        right.set_ylabel(r"1 $\sigma$ (dashed: predicted)")
        right.set_yscale("log")
        for low, high in BANDS.values():
            right.axvspan(low, high, color="0.5", alpha=0.06, lw=0)
    axes[0, 0].legend(frameon=False, fontsize="small")
    for ax in axes[-1]:
        ax.set_xlabel(_LABEL)
        ax.set_xlim(ends)  # of what is known, not of the bands
    return figure


def plot_error_comparison(
    residuals: Residuals, ax: Axes | None = None, *, wavelength: Sequence[float] = REPRESENTATIVE
) -> Axes:
    """Predicted errors against the scatter of residuals, at some wavelengths (Figures 4 and 5).

    Parameters
    ----------
    residuals : Residuals
    ax : `~matplotlib.axes.Axes`, optional
    wavelength : sequence of float
        Vacuum Angstrom; those outside the known range are left out. A colour each; a marker a class and SNR.
    """
    from matplotlib.lines import Line2D

    ax = _new_axes(ax)
    groups, levels = _levels(residuals)
    markers = "osD^vP*X<>"
    extremes: list[float] = []
    shapes: dict[str, str] = {}
    for g, group in enumerate(groups):
        for s, snr in enumerate(levels):
            curve = residuals.select(group, snr).by_wavelength()
            w = curve["wavelength"].value
            for color, at in zip(_COLORS, wavelength, strict=False):
                if not w[0] <= at <= w[-1]:
                    continue
                k = int(np.argmin(np.abs(w - at)))
                x, y = curve["scatter"][k], curve["sigma"][k]
                extremes += [x, y]
                marker = markers[(g * levels.size + s) % len(markers)]
                ax.plot(x, y, marker, color=color, ms=5, label=rf"{at:.0f} $\mathrm{{\AA}}$" if g == s == 0 else None)
                shapes[f"{group}, {_snr_name(snr)}"] = marker
    if not extremes:
        raise ValueError(f"none of the wavelengths {list(wavelength)} lies where SEDs are known")
    ends = np.array([0.7 * min(extremes), 1.4 * max(extremes)])
    ax.plot(ends, ends, color="0.3", lw=0.8, zorder=0)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ax.set_xlabel(r"1 $\sigma$ of the residuals")
    ax.set_ylabel("median predicted error")
    colors = ax.legend(frameon=False, fontsize="small", loc="upper left")
    if len(shapes) > 1:
        ax.add_artist(colors)
        handles = [
            Line2D([], [], ls="none", marker=marker, color="0.3", ms=5, label=name) for name, marker in shapes.items()
        ]
        ax.legend(handles=handles, frameon=False, fontsize="x-small", loc="lower right")
    return ax


def plot_examples(residuals: Residuals, which: Sequence[int], figure: Figure | None = None) -> Figure:
    """True and predicted SEDs of some stars, with their residuals and predicted errors (Figure 6).

    Parameters
    ----------
    residuals : Residuals
    which : sequence of int
        Rows of ``residuals``.
    figure : `~matplotlib.figure.Figure`, optional
    """
    _levels(residuals)
    if not len(which):
        raise ValueError("name the stars to plot")
    n_column = min(3, len(which))
    n_row = -(-len(which) // n_column)
    figure = _new_figure(3.6 * n_column, 3.0 * n_row) if figure is None else figure
    heights = [3, 1] * n_row
    axes = figure.subplots(2 * n_row, n_column, sharex=True, squeeze=False, height_ratios=heights)
    w = residuals.grid.wavelength
    for k, row in enumerate(which):
        top, bottom = axes[2 * (k // n_column)][k % n_column], axes[2 * (k // n_column) + 1][k % n_column]
        top.plot(w, residuals.true[row], color="0.25", lw=1.4, label="true")
        top.plot(w, residuals.sed[row], color=_COLORS[1], lw=0.9, label="predicted")
        top.set_title(f"{residuals.group[row]}, {_snr_name(residuals.snr[row])}", fontsize="small")
        sigma = residuals.sigma[row]
        bottom.fill_between(w, -sigma, sigma, color=_COLORS[1], alpha=0.25, lw=0)
        bottom.plot(w, residuals.residual[row], color="0.25", lw=0.8)
        known = np.isfinite(residuals.residual[row])
        reach = 1.1 * max(np.max(np.abs(residuals.residual[row][known])), np.median(sigma))
        bottom.set_ylim(-reach, reach)
    for ax in axes.ravel():
        ax.label_outer()
    for ax in axes[-1]:
        ax.set_xlabel(_LABEL)
    axes[0, 0].legend(frameon=False, fontsize="small")
    axes[0, 0].set_ylabel("scaled flux")
    axes[1, 0].set_ylabel("residual")
    return figure


def plot_predictions(spectrum: Spectrum, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Predicted SEDs with their errors.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        From `lamost_lsf.sed.predict`, of one star or many; those that failed are left out.
    names : sequence of str, optional
        For the legend, which up to 8 stars get.
    ax : `~matplotlib.axes.Axes`, optional
    """
    ax = _new_axes(ax)
    w = spectrum.spectral_axis.value
    flux, error = np.atleast_2d(spectrum.flux.value), np.atleast_2d(spectrum.uncertainty.array)
    if names is not None and len(names) != len(flux):
        raise ValueError(f"{len(names)} names were given for {len(flux)} SEDs")
    for k, (y, e) in enumerate(zip(flux, error, strict=True)):
        if not np.isfinite(y).any():
            continue
        color = _COLORS[k % len(_COLORS)]
        ax.fill_between(w, y - e, y + e, color=color, alpha=0.25, lw=0)
        ax.plot(w, y, color=color, lw=1.0, label=None if names is None or len(flux) > 8 else names[k])
    ax.set_xlabel(_LABEL)
    unit = spectrum.flux.unit
    ax.set_ylabel("scaled flux" if not str(unit) else f"flux [{unit}]")
    if names is not None and len(flux) <= 8:
        ax.legend(frameon=False, fontsize="small")
    return ax


def plot_residual_map(
    residuals: Residuals, order: np.ndarray, ax: Axes | None = None, *, label: str = "Teff [K]", limit: float = 0.1
) -> Axes:
    """Relative residuals of every star as an image, ranked by a label (Figures 7 and 8).

    Parameters
    ----------
    residuals : Residuals
    order : ndarray (n,)
        Label of each row, such as the effective temperature; rows are ranked by it.
    ax : `~matplotlib.axes.Axes`, optional
    label : str
    limit : float
        Residual at the ends of the colours.
    """
    ax = _new_axes(ax)
    _levels(residuals)
    order = np.asarray(order, dtype=np.float64)
    if order.shape != (len(residuals.residual),):
        raise ValueError(f"order must have one value for each of {len(residuals.residual)} rows, got {order.shape}")
    rank = np.argsort(order)
    w = residuals.grid.wavelength
    image = ax.pcolormesh(
        w, np.arange(rank.size), residuals.residual[rank], cmap="RdBu_r", vmin=-limit, vmax=limit, shading="nearest",
        rasterized=True,
    )  # fmt: skip
    ticks = np.unique(np.linspace(0, rank.size - 1, 6).astype(int))
    ax.set_yticks(ticks, [f"{order[rank[k]]:.0f}" for k in ticks])
    ax.set_xlabel(_LABEL)
    ax.set_ylabel(label)
    ax.figure.colorbar(image, ax=ax, label=_RESIDUAL)
    return ax


def plot_rmsae(
    residuals: Residuals, label: np.ndarray, ax: Axes | None = None, *, name: str = "E(B-V)", limit: float = 0.05
) -> Axes:
    """Root mean square residual of each star (Eq. 3) against a label such as its reddening (Figure 9).

    Parameters
    ----------
    residuals : Residuals
    label : ndarray (n,)
    ax : `~matplotlib.axes.Axes`, optional
    name : str
        Of the label.
    limit : float
        Where a line is drawn: larger ones count as abnormal in the paper.
    """
    ax = _new_axes(ax)
    _levels(residuals)
    ax.plot(np.asarray(label, dtype=np.float64), residuals.rmsae, ".", color=_COLORS[0])
    ax.axhline(limit, color="0.5", lw=0.8, ls="--")
    ax.set_xlabel(name)
    ax.set_ylabel("RMSAE")
    ax.set_ylim(bottom=0)
    return ax


def plot_residual_lines(
    residuals: Residuals, ax: Axes | None = None, *, systematic: tuple[np.ndarray, np.ndarray] | None = None
) -> Axes:
    """Residuals of all stars with their median and 1 sigma by wavelength (Figures 10 and 11).

    Parameters
    ----------
    residuals : Residuals
    ax : `~matplotlib.axes.Axes`, optional
    systematic : tuple of ndarray, optional
        Wavelengths (vacuum Angstrom) and a known relative difference of two libraries, drawn in red.
    """
    ax = _new_axes(ax)
    _levels(residuals)
    w = residuals.grid.wavelength
    ax.plot(w, residuals.residual.T, color="0.6", lw=0.3, alpha=0.5)
    curve = residuals.by_wavelength()
    x, median, scatter = curve["wavelength"].value, curve["median"], curve["scatter"]
    ax.plot(x, median, color=_COLORS[0], lw=1.5, label="median")
    ax.plot(x, median - scatter, color=_COLORS[0], lw=1.0, ls="--", label=r"1 $\sigma$")
    ax.plot(x, median + scatter, color=_COLORS[0], lw=1.0, ls="--")
    if systematic is not None:
        ax.plot(*systematic, color="#c1272d", lw=1.2, label="systematic difference")
    ax.axhline(0, color="0.3", lw=0.6)
    reach = 4 * float(np.max(scatter))
    ax.set_ylim(-reach, reach)
    ax.set_xlabel(_LABEL)
    ax.set_ylabel(_RESIDUAL)
    ax.legend(frameon=False, fontsize="small")
    return ax
