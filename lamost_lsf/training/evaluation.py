"""Observed minus predicted: how good a model is, by line, fibre and time (Liu et al. 2026, section 4.1, Eqs. 4-5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table

from lamost_lsf.models.base import IPModel
from lamost_lsf.time import lmjm_to_time
from lamost_lsf.training.source import TrainingSource, open_source
from lamost_lsf.training.statistics import fit_lines, sampled

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Residuals of a model on profiles.

    Attributes
    ----------
    table : `~astropy.table.Table`
        One row a profile: lmjm, fiber, line, wavelength, exposure; ``mean`` and ``dispersion`` (n - 1) of the
        residuals in units
        of the line's peak (Eqs. 4 and 5); ``noise``, the rms of the pixels' own errors in the same unit; ``chi2``
        and ``dof``;
        ``covered``, the share of pixels within 1 predicted sigma (noise and the model's own error).
    kind : {"native", "resampled"}
        What was compared: native pixels with amplitude and background refitted, or the peak-normalised samples.
    model : str
    """

    table: Table
    kind: str
    model: str

    def summary(self) -> Table:
        """One row: number of profiles, medians of ``|mean|``, dispersion, dispersion / noise, chi2 / dof, and the
        coverage.
        """
        return Table([_statistics(self.table)])

    def by(self, *columns: str) -> Table:
        """The same statistics in groups, e.g. ``by("line")``, ``by("fiber")``, ``by("exposure")``."""
        rows = []
        grouped = self.table.group_by(list(columns))
        for key, group in zip(grouped.groups.keys, grouped.groups, strict=True):
            rows.append({**{c: key[c] for c in columns}, **_statistics(group)})
        return Table(rows)

    def unusual_fibers(self, *, factor: float = 1.5, width: int = 10) -> Table:
        """Fibres whose excess dispersion stands out from their neighbours' by ``factor``.

        Columns fiber, dispersion, neighbours (median of up to ``width`` fibres on either side) and ratio.
        """
        fibers = self.by("fiber")
        number, value = np.asarray(fibers["fiber"]), np.asarray(fibers["dispersion"])
        around = np.array(
            [np.median(value[(np.abs(number - n) <= width) & (number != n)]) if number.size > 1 else v
             for n, v in zip(number, value, strict=True)]
        )  # fmt: skip
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = value / around
        odd = ratio > factor
        return Table({"fiber": number[odd], "dispersion": value[odd], "neighbours": around[odd], "ratio": ratio[odd]})


def _statistics(table: Table) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.asarray(table["dispersion"]) / np.asarray(table["noise"])
    return {
        "n": len(table),
        "abs_mean": float(np.nanmedian(np.abs(table["mean"]))),
        "dispersion": float(np.nanmedian(table["dispersion"])),
        "dispersion_over_noise": float(np.nanmedian(relative)),
        "chi2_per_dof": float(np.nanmedian(np.asarray(table["chi2"]) / np.asarray(table["dof"]))),
        "covered": float(np.nanmean(table["covered"])),
    }


def evaluate(
    model: IPModel,
    data: Any,
    *,
    kind: str = "native",
    index: np.ndarray | None = None,
    extrapolate: bool = False,
    chunk: int = 5000,
) -> Evaluation:
    """Compare a model with profiles.

    Parameters
    ----------
    model : IPModel
    data : ProfileStore or ProfileSet
    kind : {"native", "resampled"}
        "native": the pixels themselves, amplitude, linear background and the lamp's known neighbours refitted for
        each line, which is what a user's spectrum holds; the median over lines of the mean is then 0 by construction.
        "resampled": the 600 peak-normalised samples, as in the paper; splining and normalising a noisy line leave
        errors of their own in them.
    index : ndarray of int, optional
        Numbers of the profiles to be used, e.g. the validation half of `split_by_exposure`; all by default.
    extrapolate : bool
        Allow labels outside the model's trained range (another season, a held-out line).
    chunk : int
        Profiles in memory at a time.

    Returns
    -------
    Evaluation
    """
    if kind not in ("native", "resampled"):
        raise ValueError(f"kind must be 'native' or 'resampled', got {kind!r}")
    names = tuple(model.extra_labels)
    source = open_source(data, names)
    index = np.arange(len(source)) if index is None else np.asarray(index)
    parts = []
    for start in range(0, index.size, chunk):
        part = index[start : start + chunk]
        labels = source.labels[part]
        ip = model.profile(
            time=lmjm_to_time(labels.lmjm),
            fiber=labels.fiber,
            wavelength=labels.wavelength * u.AA,
            labels=dict(zip(names, labels.extra.T, strict=True)) or None,
            extrapolate=extrapolate,
        )
        compare = _native if kind == "native" else _resampled
        parts.append(compare(source, part, ip._offset, ip.flux, ip.error))
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
    labels = source.labels[index]
    names = ("mean", "dispersion", "noise", "chi2", "dof", "covered")
    table = Table(
        {
            "lmjm": labels.lmjm,
            "fiber": labels.fiber,
            "line": labels.line,
            "wavelength": labels.wavelength,
            "exposure": labels.exposure,
            **dict(zip(names, columns, strict=True)),
        }
    )
    name = model.meta.get("training_set") or model.meta.get("source") or type(model).__name__
    return Evaluation(table, kind, str(name))


def _native(source: TrainingSource, index: np.ndarray, offset: np.ndarray, flux: np.ndarray, error: np.ndarray | None):
    x, data, ivar = (
        np.asarray(a, dtype=np.float64) for a in source.load(index, "native_offset", "native_flux", "native_ivar")
    )
    good = ivar > 0
    fit = fit_lines(x, data, ivar, offset, flux, source.neighbours[source.labels.line[index]])
    design, solution = fit.design, fit.solution
    model = np.einsum("npi,ni->np", design, solution)
    amplitude = solution[:, 0]
    peak = amplitude * flux.max(axis=1)
    residual = np.where(good, data - model, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = 1.0 / ivar
        own = variance.copy()
        if error is not None:
            own = own + (amplitude[:, None] * sampled(x, offset, error)) ** 2
        # the fit of amplitude, background and neighbours takes part of the noise out of the residuals
        leverage = np.einsum("npi,nij,npj->np", design, fit.inverse, design) * ivar
        expected = np.sqrt(own - variance * np.clip(leverage, 0.0, 1.0))
        covered = np.where(good, np.abs(residual) <= expected, np.nan)
        noise = np.sqrt(np.nanmean(np.where(good, variance, np.nan), axis=1)) / peak
    chi2 = np.nansum(residual**2 * ivar, axis=1)
    return _columns(residual / peak[:, None], noise, chi2, good, covered, fit.usable, fit.parameters)


def _resampled(
    source: TrainingSource, index: np.ndarray, offset: np.ndarray, flux: np.ndarray, error: np.ndarray | None
):
    profile, noise = (np.asarray(a, dtype=np.float64) for a in source.load(index, "profile", "noise"))
    peak = flux.max(axis=1)[:, None]
    residual = profile - flux / peak
    variance = noise[:, None] ** 2 + (0.0 if error is None else (error / peak) ** 2)
    good = np.isfinite(residual)
    chi2 = np.nansum(residual**2, axis=1) / noise**2
    return _columns(residual, noise, chi2, good, np.abs(residual) <= np.sqrt(variance), np.any(good, axis=1), 1)


def _columns(residual, noise, chi2, good, covered, usable, n_parameters):
    count = np.count_nonzero(good, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(residual, axis=1) / count
        dispersion = np.sqrt(np.nansum((residual - mean[:, None]) ** 2, axis=1) / (count - 1))
        share = np.nansum(covered, axis=1) / count
    values = [mean, dispersion, noise, chi2, (count - n_parameters).astype(np.float64), share]
    return [np.where(usable, v, np.nan) for v in values]
