"""Arithmetic of wavelength solutions: between two arcs, and shifted on the detector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import astropy.units as u
import numpy as np
from astropy.modeling import Model
from astropy.modeling.models import Const1D, Legendre1D, Polynomial1D, Shift
from astropy.table import QTable

from lamost_lsf.wavelength import WavelengthSolution

__all__ = ["interpolate_solutions", "shift_solution"]


def _mix_models(one: Model, two: Model, share: float) -> Model:
    """(1 - share) one + share two."""
    same = type(one) is type(two) and one.param_names == two.param_names
    if same and isinstance(one, (Legendre1D, Polynomial1D)) and one.domain == two.domain and one.window == two.window:
        mixed = one.copy()
        mixed.parameters = (1.0 - share) * one.parameters + share * two.parameters
        return mixed
    weights = [Const1D(1.0 - share, fixed={"amplitude": True}), Const1D(share, fixed={"amplitude": True})]
    return weights[0] * one + weights[1] * two


def interpolate_solutions(one: WavelengthSolution, two: WavelengthSolution, share: float) -> WavelengthSolution:
    """Solution of a moment between two arcs.

    Parameters
    ----------
    one, two : WavelengthSolution
        Of the same spectrum, centre and domain.
    share : float
        0 is the first, 1 the second, in between what changed at a constant rate.

    Returns
    -------
    WavelengthSolution
        Its lines are those that both arcs have, at the mean of their pixels.

    Raises
    ------
    ValueError
        Different centres or domains, a share outside 0-1, no line in common.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    if one.center != two.center:
        raise ValueError(f"the solutions rest on different centres, {one.center!r} and {two.center!r}")
    if one.domain != two.domain:
        raise ValueError(f"the solutions are of different domains, {one.domain} and {two.domain}")
    if share in (0.0, 1.0):
        return one if share == 0.0 else two
    first, second = 1.0 - share, share
    model = _mix_models(one.model, two.model, share)
    if len(model.parameters) == len(one.model.parameters):
        covariance = first**2 * one.covariance + second**2 * two.covariance
    else:
        # the parameters of both are parameters of the mixture
        covariance = np.zeros((len(one.covariance) + len(two.covariance),) * 2)
        covariance[: len(one.covariance), : len(one.covariance)] = one.covariance
        covariance[len(one.covariance) :, len(one.covariance) :] = two.covariance
    keys = {(str(r["label"]), float(r["wavelength"].value)): i for i, r in enumerate(two.lines)}
    pairs = [(i, keys.get((str(r["label"]), float(r["wavelength"].value)))) for i, r in enumerate(one.lines)]
    pairs = [(i, j) for i, j in pairs if j is not None]
    if not pairs:
        raise ValueError("the solutions have no line in common")
    a, b = (QTable(s.lines[list(index)], copy=True) for s, index in zip((one, two), zip(*pairs)))
    pixel = first * np.asarray(a["pixel"]) + second * np.asarray(b["pixel"])
    residual = np.full(pixel.shape, np.nan)
    inside = (pixel >= one.domain[0] - 0.5) & (pixel <= one.domain[1] + 0.5)
    residual[inside] = a["wavelength"].value[inside] - np.asarray(model(pixel[inside]))
    error = np.hypot(first * a["error"].value, second * b["error"].value)
    used = np.asarray(a["used"]) & np.asarray(b["used"])
    reason = ["" if ok else str(x) or str(y) for ok, x, y in zip(used, a["reason"], b["reason"], strict=True)]
    lines = QTable(
        {
            "pixel": pixel,
            "label": a["label"],
            "wavelength": a["wavelength"],
            "error": error * u.AA,
            "residual": residual * u.AA,
            "deviation": np.where(error > 0, residual / np.where(error > 0, error, 1.0), np.nan),
            "leverage": first**2 * np.asarray(a["leverage"]) + second**2 * np.asarray(b["leverage"]),
            "used": used,
            "reason": np.array(reason, dtype=str),
        }
    )
    provenance = {**one.provenance, "interpolated": {"share": float(share)}}
    return replace(one, model=model, lines=lines, covariance=covariance, provenance=provenance)


def shift_solution(solution: WavelengthSolution, pixels: float, **provenance: Any) -> WavelengthSolution:
    """Solution after the light moved by ``pixels`` towards larger pixel numbers: w'(p) = w(p - pixels).

    Parameters
    ----------
    solution : WavelengthSolution
    pixels : float
    **provenance
        Noted in the result's.
    """
    if not np.isfinite(pixels):
        raise ValueError(f"the shift must be a finite number of pixels, got {pixels}")
    model = solution.model
    if isinstance(model, (Legendre1D, Polynomial1D)):
        moved = model.copy()
        moved.domain = (model.domain[0] + pixels, model.domain[1] + pixels)
    else:
        moved = Shift(-pixels, fixed={"offset": True}) | model
    lines = QTable(solution.lines, copy=True)
    lines["pixel"] = np.asarray(lines["pixel"]) + pixels
    return replace(
        solution,
        model=moved,
        lines=lines,
        provenance={**solution.provenance, "shift": {"pixels": float(pixels), **provenance}},
    )
