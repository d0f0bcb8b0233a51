"""`ExposureCalibration`: the wavelength solutions of all fibres of an exposure, and how they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np
from astropy.table import QTable, vstack
from astropy.time import Time

from lamost_lsf.wavelength import WavelengthSolution

if TYPE_CHECKING:
    from lamost_lsf.arcs import ArcExposure

__all__ = ["CalibrationFlag", "ExposureCalibration", "smoothness"]

#: Fibres to either side whose median is the neighbours' opinion.
_NEIGHBOURS = 6
#: Places along the detector where solutions are compared.
_PLACES = 9


class CalibrationFlag(IntFlag):
    """What is wrong with a fibre's wavelength solution; 0 is a good one."""

    #: no solution: the reason is in the table
    FAILED = 1
    #: differs from its neighbours' by more than chance allows
    NOT_SMOOTH = 2
    #: residuals of the lines far above those of the other fibres
    LARGE_RESIDUALS = 4
    #: fewer than half of the lines that other fibres use
    FEW_LINES = 8
    #: more than a tenth of the pixels beyond the outermost lines
    EXTRAPOLATED = 16


@dataclass(frozen=True, eq=False)
class ExposureCalibration:
    """Wavelength solutions of one exposure, a fibre each.

    Made by `calibrate` from a two-dimensional arc. ``calibration[i]`` is the solution of row i.

    Attributes
    ----------
    solutions : tuple of WavelengthSolution or None (n_fiber,)
        None where calibration failed.
    fiber : ndarray of int (n_fiber,)
        Fibre numbers.
    n_pix : int
        Pixels of a spectrum.
    flag : ndarray of int (n_fiber,)
        `CalibrationFlag`.
    deviation : ndarray (n_fiber,)
        Rms difference, pixels, between a fibre's dispersion curve and that of its neighbours, apart from a shift and a
        stretch, which fibres may have of their own.
    reason : tuple of str (n_fiber,)
        Why a solution is missing.
    time : `~astropy.time.Time` or None
    meta : dict
        What else is known of the exposure.
    """

    solutions: tuple[WavelengthSolution | None, ...]
    fiber: np.ndarray
    n_pix: int
    flag: np.ndarray
    deviation: np.ndarray
    reason: tuple[str, ...]
    time: Time | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.solutions)

    def __getitem__(self, row: int) -> WavelengthSolution | None:
        return self.solutions[row]

    def __iter__(self) -> Iterator[WavelengthSolution | None]:
        return iter(self.solutions)

    def __repr__(self) -> str:
        good = [s for s in self.solutions if s is not None]
        when = "" if self.time is None else f", {self.time.utc.isot}"
        if not good:
            return f"<ExposureCalibration: none of {len(self)} fibres solved{when}>"
        rms = np.median([s.rms(u.pix).value for s in good])
        return (
            f"<ExposureCalibration {good[0].fitter} of degree {good[0].degree}, center={good[0].center!r}{when}: "
            f"{len(good)} of {len(self)} fibres, median rms {rms:.3f} pixel, {np.count_nonzero(self.flag)} flagged>"
        )

    @property
    def center(self) -> str | None:
        """Centre definition of the solutions."""
        return next((s.center for s in self.solutions if s is not None), None)

    def for_fiber(self, number: int) -> WavelengthSolution:
        """Solution of a fibre, by its number.

        Raises
        ------
        LookupError
            No such fibre, or no solution for it.
        """
        where = np.flatnonzero(self.fiber == number)
        if not where.size:
            raise LookupError(f"no fibre {number}: the exposure has {self.fiber.min()} to {self.fiber.max()}")
        solution = self.solutions[int(where[0])]
        if solution is None:
            raise LookupError(f"fibre {number} has no solution: {self.reason[int(where[0])]}")
        return solution

    def wavelength(self) -> u.Quantity:
        """Vacuum wavelengths of all pixels (n_fiber, n_pix), Angstrom; NaN where there is no solution."""
        pixel = np.arange(self.n_pix, dtype=np.float64)
        missing = np.full(self.n_pix, np.nan)
        return np.array([missing if s is None else s(pixel).value for s in self.solutions]) * u.AA

    def to_table(self) -> QTable:
        """One row a fibre: number, flag, reason, deviation from the neighbours, and the summary of its solution."""
        rows = []
        first = next((s for s in self.solutions if s is not None), None)
        for i, solution in enumerate(self.solutions):
            head = QTable(
                {
                    "fiber": [int(self.fiber[i])],
                    "flag": [int(self.flag[i])],
                    "reason": [self.reason[i]],
                    "deviation": [self.deviation[i]] * u.pix,
                }
            )
            if first is not None:
                body = QTable(solution.to_row() if solution is not None else first.to_row())
                if solution is None:
                    for name in body.colnames:
                        column = body[name]
                        if column.dtype.kind == "f":
                            body[name] = np.nan * (column.unit or 1)
                        elif column.dtype.kind in "iu":
                            body[name] = 0
                for name in body.colnames:
                    head[name] = body[name]
            rows.append(head)
        return vstack(rows, metadata_conflicts="silent")

    def line_table(self) -> QTable:
        """One row a listed line: how it fares in all fibres.

        Returns
        -------
        `~astropy.table.QTable`
            ``label``, ``wavelength`` (vacuum), ``n_used``, ``median`` and ``scatter`` (robust) of its residuals over
            the fibres, Angstrom. A median well off 0 in all fibres is a wrong wavelength, or a blend.
        """
        good = [s for s in self.solutions if s is not None]
        if not good:
            return QTable()
        residual = np.array([s.lines["residual"].value for s in good])
        used = np.array([np.asarray(s.lines["used"]) for s in good])
        residual = np.where(used, residual, np.nan)
        n_used = used.sum(axis=0)
        median, scatter = np.full(n_used.shape, np.nan), np.full(n_used.shape, np.nan)
        for k in np.flatnonzero(n_used):
            median[k] = np.nanmedian(residual[:, k])
            scatter[k] = 1.4826 * np.nanmedian(np.abs(residual[:, k] - median[k]))
        lines = good[0].lines
        return QTable(
            {
                "label": lines["label"],
                "wavelength": lines["wavelength"],
                "n_used": n_used,
                "median": median * u.AA,
                "scatter": scatter * u.AA,
            }
        )

    def apply(self, exposure: ArcExposure) -> ArcExposure:
        """The exposure on the new scale; fibres without a solution keep theirs, with all pixels masked.

        Parameters
        ----------
        exposure : ArcExposure
            Of the same fibres and pixels; the arc itself, or another exposure of the same night.

        Raises
        ------
        ValueError
            Other fibres, or another number of pixels.
        """
        if exposure.n_pix != self.n_pix or not np.array_equal(exposure.fiber, self.fiber):
            raise ValueError(
                f"the calibration is of {len(self)} fibres x {self.n_pix} pixels, the exposure has "
                f"{exposure.n_fiber} x {exposure.n_pix}, or other fibres"
            )
        wavelength = self.wavelength().value
        missing = ~np.all(np.isfinite(wavelength), axis=1)
        wavelength[missing] = exposure.wavelength[missing]
        mask = exposure.mask | missing[:, None]
        return replace(
            exposure, wavelength=wavelength, mask=mask, meta={**exposure.meta, "wavelength_center": self.center}
        )


def smoothness(
    solutions: tuple[WavelengthSolution | None, ...], fiber: np.ndarray, n_pix: int
) -> tuple[np.ndarray, np.ndarray]:
    """Deviation of each solution from its neighbours' (n_fiber,), pixels, and whether it is too large (bool).

    The curves of neighbouring fibres have the same shape: the same optics made them. A fibre's place in the slit moves
    its spectrum as a whole and stretches it a little, so a straight line is taken off the difference from the median of
    the fibres around it before its rms is taken.
    """
    n = len(solutions)
    deviation = np.full(n, np.nan)
    solved = np.array([s is not None for s in solutions])
    if np.count_nonzero(solved) < 5:
        return deviation, np.zeros(n, dtype=bool)
    place = np.linspace(0.0, n_pix - 1.0, _PLACES)
    curve = np.full((n, _PLACES), np.nan)
    dispersion = np.full((n, 1), np.nan)
    for i in np.flatnonzero(solved):
        curve[i] = solutions[i](place).value
        dispersion[i] = (curve[i, -1] - curve[i, 0]) / (n_pix - 1.0)
    # in pixels, and without each fibre's own line
    line = np.polynomial.polynomial.polyvander(place / (n_pix - 1.0), 1)
    remove = np.eye(_PLACES) - line @ np.linalg.pinv(line)
    shape = (curve / dispersion) @ remove
    order = np.argsort(fiber)
    order = order[solved[order]]
    for position, i in enumerate(order):
        low, high = max(position - _NEIGHBOURS, 0), min(position + _NEIGHBOURS + 1, order.size)
        around = np.delete(order[low:high], position - low)
        deviation[i] = np.sqrt(np.mean((shape[i] - np.median(shape[around], axis=0)) ** 2))
    typical = np.nanmedian(deviation)
    # deviations are a chi distribution of a few degrees of freedom: five times the median does not happen by chance
    with np.errstate(invalid="ignore"):
        rough = deviation > max(5.0 * typical, 0.05)
    return deviation, rough
