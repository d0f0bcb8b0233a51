"""`center_stability`: how far each centre wanders, on measured profiles and on those of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.table import QTable

from lamost_lsf.arcs import ArcExposure, ProfileSet, extract_profiles
from lamost_lsf.experiments.epochs import CENTERS
from lamost_lsf.models.base import IPModel
from lamost_lsf.simulation import SimulatedIP, simulate_season
from lamost_lsf.time import lmjm_to_time
from lamost_lsf.units import SPEED_OF_LIGHT

__all__ = ["CenterStability", "center_stability", "simulate_profiles"]


@dataclass(frozen=True, eq=False)
class CenterStability:
    """Centres of one line in one fibre, exposure by exposure.

    Attributes
    ----------
    observed, predicted : dict of ndarray (n,)
        By name of the centre, Angstrom, offset of the centre; NaN where it failed. ``predicted`` is empty without a
        model.
    time : `~astropy.time.Time`, shape (n,)
    fiber : int
    wavelength : float
        Of the line, vacuum Angstrom.
    source : str
        What predicted: the name of the model.
    """

    observed: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]
    time: object
    fiber: int
    wavelength: float
    source: str

    def summary(self) -> QTable:
        """One row a centre.

        Returns
        -------
        `~astropy.table.QTable`
            center, n, n_failed; mean and standard deviation (Liu et al. 2026, Figure 8) of observed and predicted
            centres; ``noise``, the standard deviation of observed minus predicted; all velocities at the line, km/s.
        """
        rows = []
        for name, values in self.observed.items():
            model = self.predicted.get(name, np.full(values.shape, np.nan))
            good = np.isfinite(values) & (np.isfinite(model) if self.predicted else True)
            scale = SPEED_OF_LIGHT / self.wavelength
            enough = np.count_nonzero(good) > 1

            def spread(x: np.ndarray) -> float:
                return float(np.std(x[good], ddof=1)) * scale if enough else np.nan  # noqa: B023

            mean = [float(np.mean(x[good])) * scale if enough else np.nan for x in (values, model)]
            rows.append({
                "center": name, "n": int(np.count_nonzero(good)), "n_failed": int(np.count_nonzero(~good)),
                "mean_observed": mean[0], "std_observed": spread(values), "mean_predicted": mean[1],
                "std_predicted": spread(model), "noise": spread(values - model),
            })  # fmt: skip
        table = QTable(rows=rows)
        for column in table.colnames[3:]:
            table[column] = table[column] * (u.km / u.s)
            table[column].info.format = ".2f"
        return table


def center_stability(
    profiles: ProfileSet,
    model: IPModel | None = None,
    *,
    fiber: int | None = None,
    wavelength: u.Quantity | None = None,
    centers: Sequence[str] = CENTERS,
    extrapolate: bool = False,
) -> CenterStability:
    """Centres of one line in one fibre, over many arcs (Liu et al. 2026, section 5.1 and Figure 8).

    Parameters
    ----------
    profiles : ProfileSet
        Measured; only good ones are used.
    model : IPModel, optional
        Predicts the same profiles.
    fiber : int, optional
        The set's only one by default.
    wavelength : `~astropy.units.Quantity`, optional
        The set's line nearest to this (vacuum); its only line by default.
    centers : sequence of str
    extrapolate : bool
        Allow labels beyond the model's trained range.

    Returns
    -------
    CenterStability

    Raises
    ------
    ValueError
        Several fibres or lines and no choice, or fewer than two profiles left.
    """
    keep = profiles.good.copy()
    present = np.unique(profiles.fiber[keep])
    if fiber is None:
        if present.size != 1:
            raise ValueError(f"the profiles are of {present.size} fibres: pass fiber=")
        fiber = int(present[0])
    keep &= profiles.fiber == fiber
    lines = np.unique(profiles.wavelength[keep])
    if not lines.size:
        raise ValueError(f"there is no good profile of fibre {fiber}")
    if wavelength is None:
        if lines.size != 1:
            raise ValueError(f"the profiles are of {lines.size} lines: pass wavelength=")
        line = float(lines[0])
    else:
        line = float(lines[np.argmin(np.abs(lines - u.Quantity(wavelength).to_value(u.AA)))])
        if abs(line - u.Quantity(wavelength).to_value(u.AA)) > 5.0:
            raise ValueError(f"no line within 5 A of {wavelength}; there are {np.round(lines, 2).tolist()} A (vacuum)")
    keep &= profiles.wavelength == line
    chosen = profiles.select(np.flatnonzero(keep))
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} good profiles of fibre {fiber} at {line:.2f} A; at least 2 are needed")
    order = np.argsort(chosen.lmjm, kind="stable")
    chosen = chosen.select(order)
    measured = chosen.to_profile()
    time = lmjm_to_time(chosen.lmjm)
    observed = {name: measured.center(name).to_value(u.AA) for name in centers}
    predicted: dict[str, np.ndarray] = {}
    if model is not None:
        ip = model.profile(
            time=time if model.needs_time else None, fiber=chosen.fiber.astype(int) if model.needs_fiber else None,
            wavelength=chosen.wavelength * u.AA, extrapolate=extrapolate,
        )  # fmt: skip
        predicted = {name: ip.center(name).to_value(u.AA) for name in centers}
    source = "" if model is None else str(model.meta.get("model") or type(model).__name__)
    return CenterStability(observed, predicted, time, fiber, line, source)


def simulate_profiles(
    ip: SimulatedIP, season: int = 2017, *, n_exposures: int = 200, fiber: int = 1, seed: int = 0
) -> ProfileSet:
    """Profiles of a season's simulated arcs, extracted as real ones are.

    Parameters
    ----------
    ip : SimulatedIP
    season, n_exposures, seed : int
        As for `~lamost_lsf.simulation.simulate_season`.
    fiber : int

    Examples
    --------
    >>> from lamost_lsf.experiments import center_stability, simulate_profiles
    >>> from lamost_lsf.simulation import SimulatedIP
    >>> ip = SimulatedIP("blue")
    >>> profiles = simulate_profiles(ip, n_exposures=10, fiber=60)
    >>> table = center_stability(profiles, ip, wavelength=4359.56 * u.AA).summary()
    >>> print(table["center"][table["noise"].argmax()])
    max
    """
    nights = max(1, min(n_exposures // 2, 100))
    sets = []
    instrument = f"lamost-lrs-{ip.arm}"
    for arc in simulate_season(ip, season, n_exposures, nights, seed=seed, fiber=[fiber], dead_fibers=0):
        sets.append(extract_profiles(ArcExposure.from_simulation(arc), instrument=instrument))
    return sets[0].concatenate(*sets[1:])
