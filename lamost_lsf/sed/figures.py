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
    from astropy.table import Table
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


#: A marker a class and a filling an SNR: all pairs look different.
_MARKERS = "os^Dv<>P*hXpd"
_FILLS = ("full", "none", "left", "bottom", "right", "top")


def new_figure(width: float, height: float) -> Figure:
    """A figure outside pyplot: nothing stays open in a batch job, no window appears on a server."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _new_axes(ax: Axes | None) -> Axes:
    return new_figure(7.0, 4.0).subplots() if ax is None else ax


def _colors(n: int) -> list:
    """As many different colours."""
    if n <= len(_COLORS):
        return list(_COLORS[:n])
    from matplotlib import colormaps

    return list(colormaps["turbo"](np.linspace(0.05, 0.95, n)))


def _check(residuals: Residuals) -> None:
    if not len(residuals.residual):
        raise ValueError("there are no residuals to plot")


def _curves(residuals: Residuals) -> tuple[list[str], list[float], dict[tuple[str, float], Table]]:
    """Classes, SNRs and the curves of each pair that has two spectra, below which there is no scatter."""
    _check(residuals)
    curves = {}
    for group in residuals.groups:
        for snr in np.unique(residuals.snr):
            curve = residuals.select(group, snr).by_wavelength()
            if len(curve):
                curves[group, float(snr)] = curve
    if not curves:
        raise ValueError("a scatter needs two spectra of a class and SNR at least")
    return list(dict.fromkeys(group for group, _ in curves)), sorted({snr for _, snr in curves}), curves


def _snr_name(snr: float) -> str:
    return f"SNR {snr:g}" if np.isfinite(snr) else "as observed"


def plot_residual_curves(residuals: Residuals, figure: Figure | None = None) -> Figure:
    """Medians and 1 sigma of relative residuals by wavelength (Figures 2 and 3): a row a class, a colour an SNR.

    Parameters
    ----------
    residuals : Residuals
        Of a training or a test set. Classes of one spectrum have no scatter and are left out.
    figure : `~matplotlib.figure.Figure`, optional

    Returns
    -------
    `~matplotlib.figure.Figure`
        Predicted errors are the dashed lines beside the scatter.
    """
    groups, levels, curves = _curves(residuals)
    height = 2.2 if len(groups) <= 5 else 1.5
    figure = new_figure(9.0, height * len(groups) + 0.6) if figure is None else figure
    axes = figure.subplots(len(groups), 2, sharex=True, squeeze=False)
    handles: dict[str, object] = {}
    for (left, right), group in zip(axes, groups, strict=True):
        for color, snr in zip(_colors(len(levels)), levels, strict=True):
            curve = curves.get((group, snr))
            if curve is None:
                continue
            w = curve["wavelength"].value
            (line,) = left.plot(w, curve["median"], color=color, lw=1.2, label=_snr_name(snr))
            handles.setdefault(_snr_name(snr), line)
            right.plot(w, curve["scatter"], color=color, lw=1.2)
            right.plot(w, curve["sigma"], color=color, lw=0.9, ls="--")
        left.axhline(0, color="0.6", lw=0.6, zorder=0)
        left.set_ylabel("median")
        left.set_title(group, loc="left", fontsize="medium")
        right.set_ylabel(r"1 $\sigma$")
        right.set_yscale("log")
        for low, high in BANDS.values():
            right.axvspan(low, high, color="0.5", alpha=0.06, lw=0)
    axes[0, 0].legend(handles.values(), handles, frameon=False, fontsize="small", ncols=-(-len(handles) // 4))
    axes[0, 1].set_title("dashed: predicted", loc="right", fontsize="small")
    # of what is known, not of the bands
    known = np.concatenate([curve["wavelength"].value[[0, -1]] for curve in curves.values()])
    for ax in axes[-1]:
        ax.set_xlabel(_LABEL)
        ax.set_xlim(known.min(), known.max())
    return figure


def plot_error_comparison(
    residuals: Residuals, ax: Axes | None = None, *, wavelength: Sequence[float] = REPRESENTATIVE
) -> Axes:
    """Predicted errors against the scatter of residuals, at some wavelengths (Figures 4 and 5).

    Parameters
    ----------
    residuals : Residuals
        Of 13 classes and 6 SNRs at most; classes of one spectrum have no scatter and are left out.
    ax : `~matplotlib.axes.Axes`, optional
    wavelength : sequence of float
        Vacuum Angstrom; those outside the known range are left out. A colour each; a marker a class, a filling an SNR.

    Raises
    ------
    ValueError
        None of the wavelengths is known; more classes or SNRs than can be told apart.
    """
    groups, levels, curves = _curves(residuals)
    if len(groups) > len(_MARKERS) or len(levels) > len(_FILLS):
        raise ValueError(
            f"{len(groups)} classes and {len(levels)} SNRs: the markers tell {len(_MARKERS)} and {len(_FILLS)} apart; "
            "choose some with residuals.select"
        )
    ax = new_figure(6.4, 6.0).subplots() if ax is None else ax
    extremes: list[float] = []
    colors: dict[str, object] = {}
    for color, at in zip(_colors(len(wavelength)), wavelength, strict=True):
        for (group, snr), curve in curves.items():
            w = curve["wavelength"].value
            if not w[0] <= at <= w[-1]:
                continue
            k = int(np.argmin(np.abs(w - at)))
            x, y = curve["scatter"][k], curve["sigma"][k]
            extremes += [x, y]
            marker, fill = _MARKERS[groups.index(group)], _FILLS[levels.index(snr)]
            ax.plot(x, y, marker, color=color, ms=6, mew=0.9, fillstyle=fill)
            colors[rf"{at:.0f} $\mathrm{{\AA}}$"] = color
    if not extremes:
        raise ValueError(f"none of the wavelengths {list(wavelength)} lies where SEDs are known")
    ends = np.array([0.7 * min(extremes), 1.4 * max(extremes)])
    ax.plot(ends, ends, color="0.3", lw=0.8, zorder=0)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ax.set_xlabel(r"1 $\sigma$ of the residuals")
    ax.set_ylabel("median predicted error")
    _legends(ax, colors, groups if len(groups) > 1 else [], levels if len(levels) > 1 else [])
    return ax


def _legends(ax: Axes, colors: dict[str, object], groups: Sequence[str], levels: Sequence[float]) -> None:
    """Colours in the upper left corner, markers and fillings in the lower right, where no error should lie."""
    from matplotlib.lines import Line2D

    def handle(name: str, marker: str = "o", color: object = "0.3", fill: str = "full") -> Line2D:
        return Line2D([], [], ls="none", marker=marker, color=color, ms=6, mew=0.9, fillstyle=fill, label=name)

    first = [handle(name, color=color) for name, color in colors.items()]
    second = [handle(name, marker) for name, marker in zip(groups, _MARKERS, strict=False)]
    second += [handle(_snr_name(snr), fill=fill) for snr, fill in zip(levels, _FILLS, strict=False)]
    upper = ax.legend(handles=first, frameon=False, fontsize="small", loc="upper left")
    if second:
        ax.add_artist(upper)
        ax.legend(
            handles=second, frameon=False, fontsize="x-small", loc="lower right", ncols=1 + (len(second) > 8),
        )  # fmt: skip


def plot_examples(residuals: Residuals, which: Sequence[int], figure: Figure | None = None) -> Figure:
    """True and predicted SEDs of some stars, with their residuals and predicted errors (Figure 6).

    Parameters
    ----------
    residuals : Residuals
    which : sequence of int
        Rows of ``residuals``.
    figure : `~matplotlib.figure.Figure`, optional
    """
    _check(residuals)
    n = len(which)
    if not n:
        raise ValueError("name the stars to plot")
    n_column = 2 if n == 4 else min(3, n)
    n_row = -(-n // n_column)
    figure = new_figure(3.6 * n_column, 3.0 * n_row) if figure is None else figure
    axes = figure.subplots(2 * n_row, n_column, sharex=True, squeeze=False, height_ratios=[3, 1] * n_row)
    w = residuals.grid.wavelength
    for k in range(n_row * n_column):
        top, bottom = axes[2 * (k // n_column)][k % n_column], axes[2 * (k // n_column) + 1][k % n_column]
        if k >= n:
            top.remove()
            bottom.remove()
            continue
        row = which[k]
        top.plot(w, residuals.true[row], color="0.25", lw=1.4, label="true")
        top.plot(w, residuals.sed[row], color=_COLORS[1], lw=0.9, label="predicted")
        top.set_title(f"{residuals.group[row]}, {_snr_name(residuals.snr[row])}", fontsize="small")
        sigma = residuals.sigma[row]
        bottom.fill_between(w, -sigma, sigma, color=_COLORS[1], alpha=0.25, lw=0)
        bottom.plot(w, residuals.residual[row], color="0.25", lw=0.8)
        known = np.isfinite(residuals.residual[row])
        reach = 1.1 * max(np.max(np.abs(residuals.residual[row][known])), np.median(sigma))
        bottom.set_ylim(-reach, reach)
        if k + n_column >= n:  # the last of its column
            bottom.set_xlabel(_LABEL)
            bottom.tick_params(labelbottom=True)
        if k % n_column == 0:
            top.set_ylabel("scaled flux")
            bottom.set_ylabel("residual")
    axes[0, 0].legend(frameon=False, fontsize="small")
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
    for k, (y, e, color) in enumerate(zip(flux, error, _colors(len(flux)), strict=True)):
        if not np.isfinite(y).any():
            continue
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
    _check(residuals)
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
    _check(residuals)
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
    _check(residuals)
    ax = draw_residuals(residuals.grid.wavelength, residuals.residual, _new_axes(ax))
    if systematic is not None:
        ax.plot(*systematic, color="#c1272d", lw=1.2, label="systematic difference", zorder=3)
    ax.legend(frameon=False, fontsize="small")
    return ax


def draw_residuals(
    wavelength: np.ndarray, residual: np.ndarray, ax: Axes, *, limit: float | None = None, max_lines: int = 400
) -> Axes:
    """Relative residuals (n, n_pix) of many spectra with their median and the 16th to 84th percentiles, no legend.

    Parameters
    ----------
    wavelength : ndarray (n_pix,)
        Vacuum Angstrom.
    residual : ndarray (n, n_pix)
        NaN where not known.
    ax : `~matplotlib.axes.Axes`
    limit : float, optional
        Half-range of the ordinate; by default about four times the largest scatter.
    max_lines : int
        More spectra than this are thinned; the curves are of all.
    """
    if not np.any(np.isfinite(residual)):
        raise ValueError("there is no finite residual to draw")
    ax.plot(wavelength, residual[:: max(1, -(-len(residual) // max_lines))].T, color="0.6", lw=0.4, alpha=0.5, zorder=1)
    seen = np.isfinite(residual).any(axis=0)
    low, middle, high = np.nanpercentile(residual[:, seen], [15.8655, 50, 84.1345], axis=0)
    w = wavelength[seen]
    ax.plot(w, middle, color=_COLORS[0], lw=1.6, label="median", zorder=3)
    ax.plot(w, low, color=_COLORS[0], lw=1.0, ls="--", label=r"1 $\sigma$", zorder=3)
    ax.plot(w, high, color=_COLORS[0], lw=1.0, ls="--", zorder=3)
    ax.axhline(0, color="0.3", lw=0.6, zorder=2)
    if limit is None:
        limit = max(2.0 * np.max(high - low), 1.1 * np.max(np.abs([low, high])), 1e-3)
    ax.set(xlim=(w[0], w[-1]), ylim=(-limit, limit), xlabel=_LABEL, ylabel=_RESIDUAL)
    return ax
