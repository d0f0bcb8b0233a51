"""`rv_epochs`: one star, many exposures, three ways to see the template through the instrument."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable
from astropy.time import Time
from specutils import Spectrum

from lamost_lsf.errors import CenterMismatchWarning, FitWarning
from lamost_lsf.experiments.bound import velocity_bound
from lamost_lsf.experiments.kept import KeptLSF
from lamost_lsf.experiments.visits import Visit
from lamost_lsf.lsf import LSF
from lamost_lsf.models import GaussianIP
from lamost_lsf.plugins import get_center
from lamost_lsf.rv import measure_rv
from lamost_lsf.rv.prepare import window_limits

__all__ = ["CENTERS", "METHODS", "EpochResult", "rv_epochs"]

#: The six centres of Liu et al. 2026, section 5.1.
CENTERS = ("max", "centroid", "gauss", "sersic", "half", "fourier")
#: Gaussian kernel and IP on the published wavelengths; IP on wavelengths by the kernel's own centre; by another.
METHODS = ("gaussian", "ip", "ip+recalibration", "mixed")

#: Angstrom beyond the window from which light comes in.
_REACH = 60.0


@dataclass(frozen=True, eq=False)
class EpochResult:
    """Velocities of a star over a change of the instrument.

    Attributes
    ----------
    table : `~astropy.table.QTable`
        A row for each visit and way of measuring: visit, mjd, epoch ("before", "after" or ""), method, kernel_center
        ("" for the Gaussian), scale_center, rv, rv_err, bound (Cramer-Rao bound with the continuum marginalised, NaN
        where the truth is not known), flags, reason. Failures are rows with a NaN velocity and the reason.
    velocity : float or None
        True (or catalogue) velocity, km/s.
    change : `~astropy.time.Time` or None
    window : tuple of float
        Vacuum Angstrom.
    centers : tuple of str
    """

    table: QTable
    velocity: float | None
    change: Time | None
    window: tuple[float, float]
    centers: tuple[str, ...]

    def select(self, method: str, kernel_center: str = "", scale_center: str | None = None) -> QTable:
        """Rows of one way of measuring, in order of time."""
        keep = (self.table["method"] == method) & (self.table["kernel_center"] == kernel_center)
        if scale_center is not None:
            keep &= self.table["scale_center"] == scale_center
        return self.table[keep]

    def summary(self) -> QTable:
        """One row for each way of measuring.

        Returns
        -------
        `~astropy.table.QTable`
            method, kernel_center, scale_center; n and n_failed; mean and scatter (standard deviation about it, the
            jump included, as in the paper's Figure 9), km/s; bias, mean minus the known velocity; jump, the mean after
            minus that before, with its error; bound, the rms Cramer-Rao bound (the reported errors, where there is
            none); ratio, the rms of (velocity - mean) / bound: 1 is what photons allow, over both epochs together.
            Means weigh by the bound.
        """
        kms = u.km / u.s
        rows = []
        keys = list(dict.fromkeys(zip(*(self.table[k] for k in ("method", "kernel_center", "scale_center")))))
        for key in keys:
            part = self.select(*key)
            rv, bound = part["rv"].to_value(kms), part["bound"].to_value(kms)
            error = np.where(np.isfinite(bound), bound, part["rv_err"].to_value(kms))
            good = np.isfinite(rv) & np.isfinite(error)
            statistics = _statistics(rv[good], error[good], np.asarray(part["epoch"])[good])
            bias = statistics["mean"] - (np.nan if self.velocity is None else self.velocity)
            rows.append({
                **dict(zip(("method", "kernel_center", "scale_center"), map(str, key), strict=True)),
                "n": int(good.sum()), "n_failed": int((~good).sum()),
                **{k: v if k == "ratio" else v * kms for k, v in {**statistics, "bias": bias}.items()},
            })  # fmt: skip
        table = QTable(rows=rows)
        for name in table.colnames[5:]:
            table[name].info.format = ".2f"
        return table

    def jumps(self) -> np.ndarray:
        """Jump (km/s) by centre of the wavelength scale (rows) and of the kernel (columns).

        NaN where a pair was not measured; see the ``mixing`` of `rv_epochs`.
        """
        matrix = np.full((len(self.centers),) * 2, np.nan)
        for row in self.summary():
            if row["method"] in ("ip+recalibration", "mixed"):
                scale, kernel = (self.centers.index(row[k]) for k in ("scale_center", "kernel_center"))
                matrix[scale, kernel] = row["jump"].to_value(u.km / u.s)
        return matrix


def _statistics(rv: np.ndarray, error: np.ndarray, epoch: np.ndarray) -> dict[str, float]:
    names = ("mean", "scatter", "jump", "jump_err", "bound", "ratio")
    if rv.size < 2:
        return dict.fromkeys(names, np.nan)
    weight = 1.0 / error**2
    mean = np.sum(weight * rv) / np.sum(weight)
    ratio = np.sqrt(np.sum(weight * (rv - mean) ** 2) / (rv.size - 1))
    jump = jump_err = np.nan
    before, after = epoch == "before", epoch == "after"
    if np.count_nonzero(before) > 1 and np.count_nonzero(after) > 1:
        means, variances = [], []
        for own in (before, after):
            m = np.sum(weight[own] * rv[own]) / np.sum(weight[own])
            spread = np.sum(weight[own] * (rv[own] - m) ** 2) / (np.count_nonzero(own) - 1)
            means.append(m)
            variances.append(max(spread, 1.0) / np.sum(weight[own]))
        jump, jump_err = means[1] - means[0], np.sqrt(sum(variances))
    bound = np.sqrt(np.mean(error**2))
    return dict(zip(names, (mean, np.std(rv, ddof=1), jump, jump_err, bound, ratio), strict=True))


def rv_epochs(
    visits: Sequence[Visit],
    templates: Spectrum | Sequence[Spectrum],
    ip: Any,
    *,
    window: u.Quantity,
    centers: Sequence[str] = CENTERS,
    mixing: bool = False,
    change: Time | None = None,
    resolving_power: float = 1800.0,
    velocity_range: tuple[float, float] = (-400.0, 400.0),
    progress: Callable[[], None] | None = None,
) -> EpochResult:
    """Radial velocities of one star by Gaussian kernel, IP, and IP with recalibration (Liu et al. 2026, Figure 9).

    Parameters
    ----------
    visits : sequence of Visit
        Such as `simulate_epochs` and `read_manifest` give.
    templates : `~specutils.Spectrum` or sequence of them
        As for `~lamost_lsf.measure_rv`.
    ip : IPArchive, Observatory or callable
        ``ip.lsf_for(spectrum)``, or ``ip(spectrum)``, gives the LSF of a spectrum in its own frame.
    window : `~astropy.units.Quantity`
        One vacuum wavelength, for the paper's segment of 150 A either side, or two.
    centers : sequence of str
    mixing : bool
        Also every kernel centre on wavelengths by every other.
    change : `~astropy.time.Time`, optional
        Of the instrument; visits that say their epoch are not asked for the time.
    resolving_power : float
        Of the Gaussian kernel.
    velocity_range : tuple of float
        Trial velocities, km/s.
    progress : callable, optional
        Called after each visit.

    Returns
    -------
    EpochResult

    Raises
    ------
    ValueError
        No visits, centres that make no wavelength scale ("zero").
    PluginLookupError
        No such centre.

    Warns
    -----
    FitWarning
        Once: how many measurements failed, and why the first did.

    Examples
    --------
    >>> import astropy.units as u
    >>> from lamost_lsf.experiments import rv_epochs, simulate_epochs
    >>> from lamost_lsf.simulation import Observatory, synthetic_template
    >>> star, observatory = synthetic_template(6200), Observatory()
    >>> visits = simulate_epochs(star, observatory, n_exposures=8, n_nights=4, arcs_per_night=1, noise=False)
    >>> result = rv_epochs(visits, star, observatory, window=4359.56 * u.AA, centers=["half"])
    >>> for row in result.summary():
    ...     print(row["method"], f"{row['jump']:.0f}")
    gaussian -1 km / s
    ip -2 km / s
    ip+recalibration 0 km / s
    """
    visits = list(visits)
    if not visits:
        raise ValueError("there are no visits")
    centers = tuple(str(c).lower() for c in centers)
    if not centers or "zero" in centers:
        raise ValueError(f'centers must name centres of lines, of which "zero" is none, got {centers}')
    for center in centers:
        get_center(center)
    lsf_of = ip if not hasattr(ip, "lsf_for") else ip.lsf_for
    gaussian = GaussianIP(resolving_power).at()
    options = {"window": window, "velocity_range": velocity_range}
    rows: list[dict[str, Any]] = []
    limits = (np.nan, np.nan)
    for visit in visits:
        facts = {"visit": visit.name, "mjd": float(visit.time.utc.mjd), "epoch": _epoch(visit, change)}
        for way, result, reason in _visit(visit, templates, lsf_of, gaussian, centers, mixing, options):
            bound = np.nan
            if result is not None:
                limits = result.window
                bound = _bound(visit, result)
            rows.append({
                **facts, **dict(zip(("method", "kernel_center", "scale_center"), way, strict=True)),
                "rv": np.nan if result is None else result.rv.to_value(u.km / u.s),
                "rv_err": np.nan if result is None else result.rv_err.to_value(u.km / u.s),
                "bound": bound, "flags": 0 if result is None else int(result.flags),
                "reason": reason if result is None else ("" if result.success else result.flags.reasons()),
            })  # fmt: skip
        if progress is not None:
            progress()
    failed = [row for row in rows if not np.isfinite(row["rv"])]
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(rows)} velocities were not measured, {failed[0]['method']} of visit "
            f"{failed[0]['visit']} for one: {failed[0]['reason']}",
            FitWarning,
            stacklevel=2,
        )
    table = QTable(rows=sorted(rows, key=lambda row: row["mjd"]))
    for name in ("rv", "rv_err", "bound"):
        table[name] = table[name] * (u.km / u.s)
    known = {visit.velocity for visit in visits} - {None}
    return EpochResult(table, known.pop() if len(known) == 1 else None, change, limits, centers)


def _epoch(visit: Visit, change: Time | None) -> str:
    if visit.epoch is not None:
        return visit.epoch
    return "" if change is None else ("before" if visit.time < change else "after")


def _visit(
    visit: Visit,
    templates: Any,
    lsf_of: Callable[[Spectrum], LSF],
    gaussian: LSF,
    centers: tuple[str, ...],
    mixing: bool,
    options: dict[str, Any],
) -> list[tuple[tuple[str, str, str], Any, str]]:
    """Every way of measuring one visit: (method, kernel centre, scale centre), result or None, reason."""
    found: list[tuple[tuple[str, str, str], Any, str]] = []

    def measure(way: tuple[str, str, str], spectrum: Spectrum, lsf: LSF, center: str) -> None:
        try:
            with warnings.catch_warnings():
                # mixing is what is measured here, and a failure is told by its row
                warnings.simplefilter("ignore", CenterMismatchWarning)
                warnings.simplefilter("ignore", FitWarning)
                found.append((way, measure_rv(spectrum, templates, lsf, center=center, **options), ""))
        except Exception as error:  # one bad visit must not cost the others their velocities
            found.append((way, None, f"{type(error).__name__}: {error}"))

    wanted = [("gaussian", "")] + [("ip", c) for c in centers]
    published = lsf = None
    own, reason = "", ""
    try:
        published = visit.published()
        own = str(published.meta.get("wavelength_center") or "")
        low, high = window_limits(options["window"], u.Quantity(published.spectral_axis).to_value(u.AA))
        lsf = KeptLSF.of(lsf_of(published), low - _REACH, high + _REACH)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    for method, center in wanted:
        if published is not None and (method == "gaussian" or lsf is not None):
            measure((method, center, own), published, gaussian if method == "gaussian" else lsf, center or "zero")
        else:
            found.append(((method, center, own), None, reason))
    for scale in centers:
        kernels = [scale] + [c for c in centers if mixing and c != scale]
        ways = [("ip+recalibration" if c == scale else "mixed", c, scale) for c in kernels]
        try:
            if lsf is None:
                raise ValueError(reason)
            new = visit.recalibrated(scale, lsf)
        except Exception as error:
            text = reason or f"{type(error).__name__}: {error}"
            found += [(way, None, text) for way in ways]
            continue
        for way in ways:
            measure(way, new, lsf, way[1])
    return found


def _bound(visit: Visit, result: Any) -> float:
    """Cramer-Rao bound, km/s, in the pixels that the velocity was measured from; NaN without a known truth."""
    truth = visit.truth()
    if truth is None or not result.success:
        return np.nan
    wavelength, flux, slope, ivar = truth
    here = (wavelength >= result.window[0]) & (wavelength <= result.window[1])
    bound = velocity_bound(wavelength[here], flux[here], slope[here], ivar[here], degree=result.degree)
    return bound if np.isfinite(bound) else np.nan
