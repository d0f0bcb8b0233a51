"""Figures of the library and flat-field work: 12 to 15 of Yang et al. 2024, and the flat field itself.

A function takes a ``figure`` or an ``ax`` (or makes one, outside pyplot), draws on it and returns it; none shows or
saves anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lamost_lsf.sed.figures import draw_residuals, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lamost_lsf.sed.flatfield import FlatFieldCube

__all__ = ["plot_common_stars", "plot_flat_field", "plot_gp_residuals", "plot_residuals"]

_ANGSTROM = r"$\mathrm{\AA}$"


def plot_residuals(
    wavelength: np.ndarray,
    predicted: np.ndarray,
    true: np.ndarray,
    ax: Axes | None = None,
    *,
    limit: float = 0.2,
    label: str | None = None,
    max_lines: int = 400,
) -> Axes:
    """Relative residuals of many spectra, with their median and the 16th to 84th percentiles (Figs. 12-15).

    Parameters
    ----------
    wavelength : ndarray (n_pix,)
        Vacuum Angstrom.
    predicted, true : ndarray (n_star, n_pix)
    ax : `~matplotlib.axes.Axes`, optional
        A new one by default.
    limit : float
        Half-range of the ordinate.
    label : str, optional
        Text in the corner.
    max_lines : int
        More spectra than this are thinned; the curves are of all.

    Returns
    -------
    `~matplotlib.axes.Axes`
    """
    predicted, true = np.atleast_2d(predicted), np.atleast_2d(true)
    if predicted.shape != true.shape or predicted.shape[1] != np.size(wavelength):
        raise ValueError(f"shapes {predicted.shape} and {true.shape} do not fit {np.size(wavelength)} wavelengths")
    ax = new_figure(7.2, 3.2).subplots() if ax is None else ax
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = predicted / true - 1.0
    draw_residuals(np.asarray(wavelength, dtype=np.float64), residual, ax, limit=limit, max_lines=max_lines)
    ax.legend(loc="upper right", frameon=False, ncols=2)
    text = f"{len(residual)} spectra" if label is None else f"{label}: {len(residual)} spectra"
    ax.text(0.01, 0.97, text, transform=ax.transAxes, va="top")
    return ax


def plot_gp_residuals(
    wavelength: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    figure: Figure | None = None,
    *,
    limit: float = 0.2,
) -> Figure:
    """Residuals of a Gaussian process on its training (top) and testing (bottom) stars (Figs. 12, 13 and 14).

    Parameters
    ----------
    wavelength : ndarray (n_pix,)
    train, test : tuple of ndarray (n_star, n_pix)
        Predicted and true spectra.
    figure : `~matplotlib.figure.Figure`, optional
    limit : float

    Returns
    -------
    `~matplotlib.figure.Figure`
    """
    figure = new_figure(7.2, 5.4) if figure is None else figure
    axes = figure.subplots(2, 1, sharex=True)
    for ax, (predicted, true), label in zip(axes, (train, test), ("training", "testing"), strict=True):
        plot_residuals(wavelength, predicted, true, ax, limit=limit, label=label)
    axes[0].set_xlabel("")
    return figure


def plot_common_stars(
    wavelength: np.ndarray, generated: np.ndarray, observed: np.ndarray, ax: Axes | None = None, *, limit: float = 0.1
) -> Axes:
    """Spectra generated for one library against those that another observed of the same stars (Fig. 15).

    Parameters and result as for `plot_residuals`.
    """
    return plot_residuals(wavelength, generated, observed, ax, limit=limit, label="stars in common")


def plot_flat_field(
    cube: FlatFieldCube, wavelength: Sequence[float] | np.ndarray, figure: Figure | None = None, *, samples: int = 64
) -> Figure:
    """Maps of the flat field (top) and of its error (bottom) at a few wavelengths.

    Parameters
    ----------
    cube : FlatFieldCube
    wavelength : sequence of float
        Vacuum Angstrom.
    figure : `~matplotlib.figure.Figure`, optional
    samples : int
        Of a map along either side.

    Returns
    -------
    `~matplotlib.figure.Figure`
    """
    at = np.atleast_1d(np.asarray(wavelength, dtype=np.float64))
    figure = new_figure(3.0 * at.size + 0.8, 5.2) if figure is None else figure
    (x0, x1), (y0, y1) = cube.domain
    x, y = np.linspace(x0, x1, samples), np.linspace(y0, y1, samples)
    flat, error = cube.flat(x[None], y[:, None], at)
    if not np.any(np.isfinite(flat)):
        raise ValueError("the flat field is not determined at any of these wavelengths")
    axes = figure.subplots(2, at.size, sharex=True, sharey=True, squeeze=False)
    span = np.nanmax(np.abs(flat - 1.0)) or 1e-3
    for row, (data, name, limits, colors) in enumerate(
        ((flat, "flat field", (1 - span, 1 + span), "RdBu_r"), (error, "error", (0.0, np.nanmax(error)), "viridis"))
    ):
        for column, w in enumerate(at):
            ax = axes[row, column]
            image = ax.imshow(
                data[..., column], origin="lower", extent=(x0, x1, y0, y1), aspect="auto", cmap=colors,
                vmin=limits[0], vmax=limits[1],
            )  # fmt: skip
            if row == 0:
                ax.set_title(f"{w:.0f} {_ANGSTROM}")
            else:
                ax.set_xlabel("x (pixel)")
        axes[row, 0].set_ylabel("y (pixel)")
        figure.colorbar(image, ax=axes[row], label=name)
    return figure
