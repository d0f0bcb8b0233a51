"""Labels of a model besides time, fibre and wavelength: values from the exposures' headers, such as a temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np
from astropy.time import Time

from lamost_lsf.profile import InstrumentalProfile

if TYPE_CHECKING:
    from lamost_lsf.models.base import IPModel

__all__ = ["label_arrays", "profile_at_labels"]


def label_arrays(model: IPModel, labels: Any) -> dict[str, np.ndarray]:
    """Values of a model's extra labels, in its order.

    Raises
    ------
    ValueError
        Labels that are missing or unknown, or values that are not finite numbers.
    """
    name, median = type(model).__name__, getattr(model, "extra_labels", {})
    wanted = ", ".join(f"{k!r}: ..." for k in median)
    if labels is None or isinstance(labels, str):
        raise ValueError(
            f"this {name} depends on {', '.join(median)}: pass labels={{{wanted}}}, or labels='median' for the medians "
            f"of its training set ({', '.join(f'{v:g}' for v in median.values())})"
        )
    if not isinstance(labels, Mapping) or set(labels) != set(median):
        given = ", ".join(map(str, labels)) if isinstance(labels, Mapping) else repr(labels)
        raise ValueError(f"labels must be {{{wanted}}} for this {name}, got {given or 'none'}")
    out = {}
    for key in median:
        try:
            out[key] = np.asarray(labels[key], dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"label {key!r} must be a number, got {labels[key]!r}") from None
        if not np.all(np.isfinite(out[key])):
            raise ValueError(f"label {key!r} must be finite, got {labels[key]}")
    return out


def profile_at_labels(
    model: IPModel,
    labels: Mapping[str, Any],
    *,
    time: Time | None,
    fiber: Any,
    wavelength: u.Quantity,
    medium: str,
    extrapolate: bool,
) -> InstrumentalProfile:
    """`IPModel.profile` where labels are arrays that broadcast against the others: one evaluation a distinct value."""
    values = label_arrays(model, labels)
    shapes = {"wavelength": np.shape(wavelength), **{name: v.shape for name, v in values.items()}}
    if time is not None:
        shapes["time"] = time.shape
    if fiber is not None:
        shapes["fiber"] = np.shape(fiber)
    try:
        shape = np.broadcast_shapes(*shapes.values())
    except ValueError:
        raise ValueError(f"shapes do not broadcast: {shapes}") from None
    rows = np.stack([np.broadcast_to(v, shape).ravel() for v in values.values()], axis=1)
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    inverse = inverse.reshape(shape)
    wide = np.broadcast_to(wavelength, shape, subok=True)
    times = None if time is None else np.broadcast_to(time, shape, subok=True)
    fibers = None if fiber is None else np.broadcast_to(fiber, shape)
    out = None
    for number, row in enumerate(unique):
        here = inverse == number
        part = model.with_labels(dict(zip(values, row, strict=True)), extrapolate=extrapolate).profile(
            time=None if times is None else times[here],
            fiber=None if fibers is None else fibers[here],
            wavelength=wide[here],
            medium=medium,
            extrapolate=extrapolate,
        )
        if out is None:
            flux = np.empty((*shape, part.flux.shape[-1]))
            error = None if part.error is None else np.empty(flux.shape)
            out, vacuum = part, np.empty(shape)
        flux[here], vacuum[here] = part.flux, part.wavelength.to_value(u.AA)
        if error is not None:
            error[here] = part.error
    if out is None:
        raise ValueError(f"nothing to evaluate: shapes {shapes}")
    meta = {k: v for k, v in out.meta.items() if k != "labels"}
    return InstrumentalProfile(out.offset, flux, wavelength=vacuum * u.AA, error=error, meta=meta)
