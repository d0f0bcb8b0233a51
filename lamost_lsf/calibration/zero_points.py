"""Zero points of radial velocities, from stars: what windows, spectrographs and plates add to every velocity.

The wavelength scale of a night is off by kilometres per second, differently in each window of a spectrum; photons are
not what limits the velocity of a bright star. Stars of known velocity show the offsets, and so do stars seen more than
once, whatever their velocities are. Velocities are modelled as

    rv = star + sum of zero points of the levels that the row belongs to + noise,

with the stars' velocities free (or known) and the zero points of each kind drawn from a normal distribution about 0,
whose width is estimated with them: a plate with few stars is corrected by little, one with many by what they say
(a linear mixed model; Henderson 1975, Biometrics 31, 423).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table

__all__ = ["ZeroPoints", "leave_one_star_out", "solve_zero_points"]

_KMS = u.km / u.s
#: Kinds of zero points that are looked for by default; those whose columns a table lacks are left out.
EFFECTS = (("window",), ("window", "spectrograph"), ("window", "plate"))
#: Standard deviation, km/s, of a star's velocity before it is measured.
_FREE = 1.0e3
#: Residuals beyond this many standard deviations count less, in proportion.
_HUBER = 2.5


@dataclass(frozen=True, eq=False)
class ZeroPoints:
    """Zero points, and what they were found with.

    Attributes
    ----------
    effects : tuple of tuple of str
        Columns whose combinations have a zero point each.
    values : dict
        For each effect a dict from its levels (tuple of values of the columns) to ``(zero point, error, rows, stars)``,
        km/s.
    spread : dict
        For each effect the standard deviation of its zero points, km/s: the error of a level that was not seen.
    jitter : float
        Scatter, km/s, beyond the errors of the velocities.
    stars : `~astropy.table.QTable`
        ``star``, ``rv``, ``rv_err``, ``n``: velocities of the stars, all zero points taken off.
    residual : ndarray (n_row,)
        Of the rows of the table that was solved, km/s; NaN for rows that were not used.
    columns : dict
        Names of the columns "rv", "rv_err" and "star".
    covariance : ndarray
        Of all zero points, in the order of ``values``.
    """

    effects: tuple[tuple[str, ...], ...]
    values: Mapping[tuple[str, ...], Mapping[tuple[Any, ...], tuple[float, float, int, int]]]
    spread: Mapping[tuple[str, ...], float]
    jitter: float
    stars: QTable
    residual: np.ndarray
    columns: Mapping[str, str] = field(default_factory=dict)
    covariance: np.ndarray | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        parts = ", ".join(f"{'+'.join(e)}: {len(self.values[e])} of +-{self.spread[e]:.2f} km/s" for e in self.effects)
        return f"<ZeroPoints {parts}; jitter {self.jitter:.2f} km/s, {len(self.stars)} stars>"

    def to_table(self) -> QTable:
        """One row a zero point: effect, level, value, error, rows, stars."""
        rows = [
            ("+".join(effect), "+".join(str(v) for v in level), *numbers)
            for effect in self.effects
            for level, numbers in self.values[effect].items()
        ]
        columns = list(zip(*rows, strict=True)) if rows else [()] * 6
        return QTable(
            {
                "effect": np.array(columns[0], dtype=str),
                "level": np.array(columns[1], dtype=str),
                "zero_point": np.array(columns[2], dtype=float) * _KMS,
                "zero_point_err": np.array(columns[3], dtype=float) * _KMS,
                "n_rows": np.array(columns[4], dtype=int),
                "n_stars": np.array(columns[5], dtype=int),
            }
        )

    def correction(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """Sum of the zero points of each row, and its error.

        Parameters
        ----------
        table : `~astropy.table.Table`
            With the columns of the effects.

        Returns
        -------
        value, error : ndarray (n_row,), km/s
            A level that was not seen adds 0, with the spread of its kind as error.
        """
        value, variance = np.zeros(len(table)), np.zeros(len(table))
        place = np.full((len(table), len(self.effects)), -1)
        first = 0
        for k, effect in enumerate(self.effects):
            known = {level: i for i, level in enumerate(self.values[effect])}
            numbers = list(self.values[effect].values())
            for i, level in enumerate(_levels(table, effect)):
                j = known.get(level)
                if j is None:
                    variance[i] += self.spread[effect] ** 2
                else:
                    value[i] += numbers[j][0]
                    place[i, k] = first + j
            first += len(known)
        # zero points of different kinds are not independent: what a window gains, its plates lose
        for a in place.T:
            for b in place.T:
                both = (a >= 0) & (b >= 0)
                variance[both] += self.covariance[a[both], b[both]]
        variance = np.maximum(variance, 0.0)
        return value, np.sqrt(variance)

    def apply(self, table: Table) -> Table:
        """Copy of a table of velocities with the zero points taken off.

        Its errors grow by those of the zero points; ``zero_point`` and ``zero_point_err`` are added.
        """
        value, error = self.correction(table)
        return _corrected(table, value, error, self.columns.get("rv", "rv"), self.columns.get("rv_err", "rv_err"))


def _corrected(table: Table, value: np.ndarray, error: np.ndarray, rv: str, rv_err: str) -> Table:
    result = table.copy()
    speeds, errors = _speed(table, rv), _speed(table, rv_err)
    unit = getattr(table[rv], "unit", None)
    scale = 1.0 if unit is None else _KMS.to(unit)
    kind = u.Quantity if isinstance(table[rv], u.Quantity) else None
    for name, new in ((rv, speeds - value), (rv_err, np.hypot(errors, error))):
        result[name] = new * _KMS.to(unit) * unit if kind is not None else new * scale
        if kind is None and unit is not None:
            result[name].unit = unit
    result["zero_point"], result["zero_point_err"] = value * _KMS, error * _KMS
    return result


def _speed(table: Table, name: str) -> np.ndarray:
    """Column in km/s; a column without unit is taken to be in km/s."""
    if name not in table.colnames:
        raise ValueError(f"the table has no column {name!r}; it has {', '.join(table.colnames)}")
    column = table[name]
    unit = getattr(column, "unit", None)
    if isinstance(column, u.Quantity):
        return np.asarray(column.to_value(_KMS), dtype=np.float64)
    values = np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)
    return np.asarray(values * (1.0 if unit is None else u.Unit(unit).to(_KMS)), dtype=np.float64)


def _levels(table: Table, effect: tuple[str, ...]) -> list[tuple[Any, ...]]:
    columns = []
    for name in effect:
        if name not in table.colnames:
            raise ValueError(f"the table has no column {name!r}; it has {', '.join(table.colnames)}")
        columns.append([v.item() if isinstance(v, np.generic) else v for v in np.asarray(table[name])])
    return list(zip(*columns, strict=True))


@dataclass
class _Problem:
    """Design of a mixed model: one column a star, then one a level of each effect."""

    rv: np.ndarray
    error: np.ndarray
    index: np.ndarray  # (n_row, 1 + n_effect): column of the design
    size: list[int]
    prior_mean: np.ndarray
    prior_variance: np.ndarray  # of the stars only
    names: list[list[Any]]


def _index(keys: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
    names = list(dict.fromkeys(keys))
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[k] for k in keys], dtype=int), names


def solve_zero_points(
    table: Table,
    *,
    effects: Sequence[Sequence[str]] | None = None,
    known: Mapping[Any, Any] | None = None,
    rv: str = "rv",
    rv_err: str = "rv_err",
    star: str = "star",
    spread: Mapping[tuple[str, ...], float] | None = None,
    jitter: float | None = None,
    robust: bool = True,
    max_iterations: int = 500,
) -> ZeroPoints:
    """Zero points of windows, spectrographs and plates from the velocities of stars.

    Parameters
    ----------
    table : `~astropy.table.Table`
        One row a velocity: columns ``rv``, ``rv_err`` (km/s, or with units), ``star``, and those of the effects
        ("window", "spectrograph", "plate"). Rows that are not finite are not used.
    effects : sequence of sequences of str, optional
        Kinds of zero points, each a combination of columns. By default one for each window, one for each window of each
        spectrograph, one for each window of each plate, as far as the table has these columns.
    known : mapping, optional
        Velocity, or ``(velocity, error)``, of stars where it is known (km/s or Quantity). Without any, the zero points
        add up to about 0: nothing else fixes what all velocities have in common.
    rv, rv_err, star : str
        Names of the columns.
    spread : mapping, optional
        Standard deviation of the zero points of an effect, km/s, where it is not to be estimated.
    jitter : float, optional
        Scatter beyond the errors, km/s; estimated by default.
    robust : bool
        Let velocities beyond 2.5 standard deviations count less.
    max_iterations : int
        Of the estimation of the spreads.

    Returns
    -------
    ZeroPoints

    Raises
    ------
    ValueError
        A missing column, no usable row, a negative spread.

    Examples
    --------
    Two plates, the second 5 km/s off, and twenty stars seen on both:

    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from lamost_lsf.calibration import solve_zero_points
    >>> rng = np.random.default_rng(1)
    >>> velocity = rng.normal(0, 50, 20)
    >>> rows = [(s, p, "5000-5300", velocity[s] + 5.0 * (p == "B") + rng.normal(0, 1), 1.0)
    ...         for s in range(20) for p in "AB"]
    >>> table = Table(rows=rows, names=("star", "plate", "window", "rv", "rv_err"))
    >>> points = solve_zero_points(table, effects=[("plate",)])
    >>> a, b = (points.values[("plate",)][(p,)][0] for p in "AB")
    >>> print(f"{b - a:.0f} km/s")
    5 km/s
    """
    effects = _check_effects(table, effects)
    problem, used = _problem(table, effects, known, rv, rv_err, star)
    given = {tuple(k): float(v) for k, v in (spread or {}).items()}
    for effect, value in given.items():
        if effect not in effects:
            raise ValueError(f"spread of {effect}: the effects are {effects}")
        if not value >= 0:
            raise ValueError(f"spread of {effect} must be >= 0, got {value}")
    if jitter is not None and not jitter >= 0:
        raise ValueError(f"jitter must be >= 0, got {jitter}")
    tau2 = np.array([given.get(e, 3.0) ** 2 for e in effects])
    extra2 = 1.0 if jitter is None else float(jitter) ** 2
    weight = np.ones(problem.rv.size)
    for _ in range(max_iterations):
        solution, covariance, fitted = _solve(problem, tau2, extra2, weight)
        before = np.append(tau2, extra2)
        residual = problem.rv - fitted
        total2 = problem.error**2 + extra2
        if robust:
            size = np.abs(residual) / np.sqrt(total2)
            weight = np.minimum(1.0, _HUBER / np.maximum(size, 1e-12))
        first = problem.size[0]
        for k, effect in enumerate(effects):
            n = problem.size[k + 1]
            if effect not in given:
                part = slice(first, first + n)
                tau2[k] = (np.sum(solution[part] ** 2) + np.trace(covariance[part, part])) / n
            first += n
        if jitter is None:
            # the share of each residual that is jitter, and what is not known of it
            share = extra2 / total2
            predicted = _row_variance(problem, covariance)
            moment = weight * (share * residual) ** 2 + share * problem.error**2 + share**2 * predicted
            extra2 = max(float(np.mean(moment)), 1e-12)
        tau2 = np.maximum(tau2, 1e-8)
        if np.all(np.abs(np.append(tau2, extra2) - before) < 1e-5 * before + 1e-9):
            break
    solution, covariance, fitted = _solve(problem, tau2, extra2, weight)
    sigma = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
    values: dict[tuple[str, ...], dict[tuple[Any, ...], tuple[float, float, int, int]]] = {}
    first = problem.size[0]
    for k, effect in enumerate(effects):
        values[effect] = {}
        for j, level in enumerate(problem.names[k + 1]):
            rows = problem.index[:, k + 1] == first + j
            stars = len(np.unique(problem.index[rows, 0]))
            values[effect][level] = (
                float(solution[first + j]), float(sigma[first + j]), int(rows.sum()), stars,
            )  # fmt: skip
        first += problem.size[k + 1]
    residual = np.full(len(table), np.nan)
    residual[used] = problem.rv - fitted
    stars = QTable(
        {
            "star": np.array(problem.names[0]),
            "rv": solution[: problem.size[0]] * _KMS,
            "rv_err": sigma[: problem.size[0]] * _KMS,
            "n": np.bincount(problem.index[:, 0], minlength=problem.size[0]),
        }
    )
    return ZeroPoints(
        effects=effects,
        values=values,
        spread={e: float(np.sqrt(t)) for e, t in zip(effects, tau2, strict=True)},
        jitter=float(np.sqrt(extra2)),
        stars=stars,
        residual=residual,
        columns={"rv": rv, "rv_err": rv_err, "star": star},
        covariance=covariance[problem.size[0] :, problem.size[0] :],
    )


def _check_effects(table: Table, effects: Sequence[Sequence[str]] | None) -> tuple[tuple[str, ...], ...]:
    if effects is None:
        found = tuple(e for e in EFFECTS if all(name in table.colnames for name in e))
        if not found:
            raise ValueError("the table has no column 'window': pass effects=")
        return found
    result = tuple((e,) if isinstance(e, str) else tuple(e) for e in effects)
    if not result or any(not e for e in result) or len(set(result)) != len(result):
        raise ValueError(f"effects must be one or more different combinations of columns, got {effects!r}")
    return result


def _problem(
    table: Table,
    effects: tuple[tuple[str, ...], ...],
    known: Mapping[Any, Any] | None,
    rv: str,
    rv_err: str,
    star: str,
) -> tuple[_Problem, np.ndarray]:
    speeds, errors = _speed(table, rv), _speed(table, rv_err)
    used = np.isfinite(speeds) & np.isfinite(errors) & (errors > 0)
    if not np.any(used):
        raise ValueError("no row has a finite velocity and a positive error")
    rows = table[used]
    keys = [_levels(rows, (star,))] + [_levels(rows, e) for e in effects]
    index, names, first = [], [], 0
    for k in keys:
        place, found = _index(k)
        index.append(place + first)
        names.append(found)
        first += len(found)
    names[0] = [n[0] for n in names[0]]
    mean = np.zeros(len(names[0]))
    variance = np.full(len(names[0]), _FREE**2)
    for i in range(len(names[0])):
        mean[i] = np.median(speeds[used][index[0] == i])
    for name, value in (known or {}).items():
        if name not in names[0]:
            continue
        one = value if isinstance(value, tuple) else (value, 0.0)
        velocity, error = (float(v.to_value(_KMS)) if isinstance(v, u.Quantity) else float(v) for v in one)
        if not np.isfinite(velocity) or not error >= 0:
            raise ValueError(f"the known velocity of {name!r} must be finite, with an error >= 0, got {value!r}")
        i = names[0].index(name)
        # an error of 0 would make the equations singular
        mean[i], variance[i] = velocity, max(error, 1e-4) ** 2
    problem = _Problem(
        speeds[used], errors[used], np.column_stack(index), [len(n) for n in names], mean, variance, names
    )
    return problem, used


def _solve(
    problem: _Problem, tau2: np.ndarray, extra2: float, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posterior mean and covariance of all unknowns, and the fitted velocities."""
    n = sum(problem.size)
    inverse = weight / (problem.error**2 + extra2)
    precision = np.zeros((n, n))
    right = np.zeros(n)
    columns = problem.index.T
    for a in columns:
        np.add.at(right, a, inverse * problem.rv)
        for b in columns:
            np.add.at(precision, (a, b), inverse)
    prior = np.concatenate(
        [1.0 / problem.prior_variance, *(np.full(m, 1.0 / t) for m, t in zip(problem.size[1:], tau2, strict=True))]
    )
    precision[np.arange(n), np.arange(n)] += prior
    right[: problem.size[0]] += problem.prior_mean / problem.prior_variance
    covariance = np.linalg.inv(precision)
    solution = covariance @ right
    return solution, covariance, np.sum(solution[problem.index], axis=1)


def _row_variance(problem: _Problem, covariance: np.ndarray) -> np.ndarray:
    total = np.zeros(problem.rv.size)
    for a in problem.index.T:
        for b in problem.index.T:
            total += covariance[a, b]
    return np.maximum(total, 0.0)


def leave_one_star_out(table: Table, points: ZeroPoints | None = None, **options: Any) -> Table:
    """Correct every star by zero points that it had no part in: what a star that was not used gains.

    Parameters
    ----------
    table : `~astropy.table.Table`
        As for `solve_zero_points`.
    points : ZeroPoints, optional
        Solution of the whole table; its spreads and jitter are used for all. Solved by default.
    **options
        Of `solve_zero_points`. A star's own known velocity is never used for it.

    Returns
    -------
    `~astropy.table.Table`
        As `ZeroPoints.apply` gives, each star's rows by the other stars' zero points.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from lamost_lsf.calibration import leave_one_star_out
    >>> rng = np.random.default_rng(1)
    >>> velocity = rng.normal(0, 50, 20)
    >>> rows = [(s, p, "5000-5300", velocity[s] + 5.0 * (p == "B") + rng.normal(0, 1), 1.0)
    ...         for s in range(20) for p in "AB"]
    >>> table = Table(rows=rows, names=("star", "plate", "window", "rv", "rv_err"))
    >>> new = leave_one_star_out(table, effects=[("plate",)])
    >>> difference = np.array(new["rv"][new["plate"] == "B"]) - np.array(new["rv"][new["plate"] == "A"])
    >>> bool(abs(difference.mean()) < 1.0)
    True
    """
    if points is None:
        points = solve_zero_points(table, **options)
    names = {**{"rv": "rv", "rv_err": "rv_err", "star": "star"}, **points.columns}
    fixed = {**options, "effects": points.effects, "spread": dict(points.spread), "jitter": points.jitter, **names}
    fixed.pop("max_iterations", None)
    stars = [s[0] for s in _levels(table, (names["star"],))]
    value, error = np.zeros(len(table)), np.zeros(len(table))
    for name in dict.fromkeys(stars):
        own = np.array([s == name for s in stars])
        if np.all(own):
            raise ValueError("leaving one star out takes at least two stars")
        try:
            others = solve_zero_points(table[~own], **fixed, max_iterations=20)
        except ValueError as failure:
            if "no row has a finite" not in str(failure):
                raise
            continue
        value[own], error[own] = others.correction(table[own])
    return _corrected(table, value, error, names["rv"], names["rv_err"])
