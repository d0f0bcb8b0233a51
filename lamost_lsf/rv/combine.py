"""One velocity from those of several windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np

from lamost_lsf.rv.result import RVFlag
from lamost_lsf.rv.rows import blank_row

__all__ = ["combine_windows"]

#: A window with one of these has no say.
_UNUSABLE = ~int(RVFlag.AMBIGUOUS_TEMPLATE)


def _kms(value: Any, name: str) -> float:
    try:
        result = float(u.Quantity(value, u.km / u.s).to_value(u.km / u.s)) if value is not None else 0.0
    except (TypeError, u.UnitsError) as error:
        raise TypeError(f"{name} must be velocities, got {value!r}: {error}") from None
    if not np.isfinite(result):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return result


def _of_window(values: Any, window: str, meta: Mapping[str, Any], name: str) -> float:
    """A window's entry of a mapping (0 where there is none), a function's value, or the one value for all."""
    if values is None:
        return 0.0
    if isinstance(values, Mapping):
        return _kms(values.get(window), name)
    if callable(values):
        return _kms(values(window, meta), name)
    return _kms(values, name)


def combine_windows(
    rows: Sequence[Mapping[str, Any]],
    zero_points: Mapping[str, Any] | Callable | None = None,
    scatter: u.Quantity | Mapping[str, Any] | Callable | None = None,
) -> dict[str, Any]:
    """Inverse-variance mean of one spectrum's windows.

    Parameters
    ----------
    rows : sequence of mapping
        Of one spectrum, a window each; flagged ones have no say, unless the template alone is in doubt.
    zero_points : mapping or callable, optional
        Velocity (bare numbers are km/s) that a star at rest shows in each window, to be subtracted: by the window's
        name, or ``f(window, meta)``, where they differ by spectrograph and plate.
    scatter : Quantity, mapping or callable, optional
        Scatter of each window's zero point, added to its error in quadrature.

    Returns
    -------
    dict
        A row of the window "combined". ``rv_err`` is what the flux errors leave, ``rv_err_scaled`` contains the
        windows' scaled errors and ``scatter``, times the root of the reduced chi-square of the windows about their mean
        where that exceeds 1. Errors by LSF and wavelength scale are taken as common to all windows.

    Notes
    -----
    Windows that overlap are not independent: the errors of their mean are then too small.
    """
    out = blank_row()
    first = rows[0]
    for name in ("spectrum", "file", "obsid", "frame", "center", "message"):
        out[name] = first[name]
    out["window"] = "combined"
    out["window_low"] = float(np.min([r["window_low"] for r in rows]))
    out["window_high"] = float(np.max([r["window_high"] for r in rows]))
    good = [r for r in rows if np.isfinite(r["rv"]) and np.isfinite(r["rv_err"]) and not r["flags"] & _UNUSABLE]
    out["n_windows"] = len(good)
    if not good:
        # what all windows suffer from
        out["flags"] = int(np.bitwise_or.reduce([r["flags"] for r in rows]))
        out["message"] = out["message"] or "no window has a good velocity"
        return out
    meta = first.get("_meta") or {}
    zero = np.array([_of_window(zero_points, r["window"], meta, "zero_points") for r in good])
    extra = np.array([_of_window(scatter, r["window"], meta, "window_scatter") for r in good])
    velocity = np.array([r["rv"] for r in good]) - zero
    weight = 1.0 / (np.array([r["rv_err_scaled"] for r in good]) ** 2 + extra**2)
    share = weight / weight.sum()
    mean = float(share @ velocity)
    chi2, dof = float(weight @ (velocity - mean) ** 2), len(good) - 1
    out["rv"], out["chi2"], out["dof"] = mean, chi2, dof
    out["rv_err"] = float(np.sqrt(np.sum((share * [r["rv_err"] for r in good]) ** 2)))
    out["rv_err_scaled"] = float(np.sqrt(max(1.0, chi2 / dof if dof else 1.0) / weight.sum()))
    for name in ("rv_err_ip", "rv_err_wave"):
        values = np.array([r[name] for r in good])
        known = np.isfinite(values)
        out[name] = float(share[known] @ values[known] / share[known].sum()) if np.any(known) else np.nan
    parts = [out[k] for k in ("rv_err_scaled", "rv_err_ip", "rv_err_wave")]
    out["rv_err_total"] = float(np.sqrt(np.nansum(np.square(parts))))
    best = good[int(np.argmax(share))]
    out["template_index"], out["template"] = best["template_index"], best["template"]
    out["n_pixels"] = sum(r["n_pixels"] for r in good)
    out["n_rejected"] = sum(r["n_rejected"] for r in good)
    out["snr"] = float(np.median([r["snr"] for r in good]))
    out["flags"] = int(np.bitwise_or.reduce([r["flags"] for r in good]))
    out["message"] = ""
    return out
