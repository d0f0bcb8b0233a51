"""Pictures. Every function takes an ``ax`` (or makes one), draws on it and returns it; none shows or saves anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lamost_lsf.profile import InstrumentalProfile

__all__ = ["plot_profile"]

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
    r"""Instrumental profiles against the offset from the true wavelength.

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
    'observed - true wavelength [$\\mathrm{\\mathring{A}}$]'
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
    ax.set_xlabel(f"observed - true wavelength [{unit.to_string('latex')}]")
    label = {"peak": "flux / peak", "area": f"flux / area [{(1 / unit).unit.to_string('latex')}]", "none": "flux"}
    ax.set_ylabel(label[normalization])
    ax.set_xlim(x[0], x[-1])
    if legend and (few or len(centers)):
        ax.legend(fontsize="small", frameon=False)
    return ax
