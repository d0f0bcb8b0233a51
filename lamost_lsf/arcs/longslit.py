"""Long slits: rows as fibres, with lines that are tilted and curved across the slit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import astropy.units as u
import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from lamost_lsf.wavelength import WavelengthSolution

__all__ = ["measure_tilt", "row_wavelengths"]


def row_wavelengths(
    solution: WavelengthSolution | Sequence[WavelengthSolution],
    first: int,
    last: int,
    n_columns: int,
    tilt: ArrayLike | None,
) -> tuple[np.ndarray, slice]:
    """Wavelengths (last - first, n) of the rows, vacuum Angstrom, increasing, and the columns that they belong to.

    Raises
    ------
    ValueError
        A number of solutions or a tilt of a shape that does not fit; less than 16 columns that all rows cover.
    """
    n_rows = last - first
    solutions = list(solution) if isinstance(solution, (list, tuple)) else [solution] * n_rows
    if len(solutions) != n_rows:
        raise ValueError(f"{len(solutions)} solutions for {n_rows} rows; pass one, or one for each row")
    columns = np.broadcast_to(np.arange(n_columns, dtype=np.float64), (n_rows, n_columns))
    if tilt is not None:
        tilt = np.asarray(tilt, dtype=np.float64)
        if tilt.shape != columns.shape or not np.all(np.isfinite(tilt)):
            raise ValueError(f"tilt must be finite and of shape {columns.shape}, got {tilt.shape}")
        columns = columns - tilt
    if len({id(s) for s in solutions}) == 1:
        values = solutions[0].pixel_to_wavelength(columns.ravel()).to_value(u.AA).reshape(columns.shape)
    else:
        pairs = zip(solutions, columns, strict=True)
        values = np.array([s.pixel_to_wavelength(c).to_value(u.AA) for s, c in pairs])
    covered = np.flatnonzero(np.all(np.isfinite(values), axis=0))
    if covered.size < 16:
        raise ValueError("the wavelength solution covers less than 16 columns of the frame in all rows")
    start, stop = int(covered[0]), int(covered[-1])
    if values[0, stop] > values[0, start]:
        return values[:, start : stop + 1], slice(start, stop + 1)
    reverse = slice(stop, start - 1 if start else None, -1)
    return values[:, reverse], reverse


def measure_tilt(
    frame: ArrayLike,
    columns: ArrayLike,
    *,
    rows: tuple[int, int],
    reference: int | None = None,
    half_width: int = 6,
    row_degree: int = 3,
    column_degree: int = 1,
) -> np.ndarray:
    """Shift of the light along the columns, from row to row, by tracing bright lines.

    Centroids of the lines are followed from row to row, outliers are rejected, and their shifts are fitted by a
    polynomial in row and column.

    Parameters
    ----------
    frame : array_like (n_rows, n_columns)
        Counts.
    columns : array_like (n_lines,)
        Columns of isolated bright lines in the reference row, to 3 pixels.
    rows : (int, int)
        First row and the row after the last.
    reference : int, optional
        Row that has no shift; the middle one by default.
    half_width : int
        Half of the number of pixels that a centroid is taken over.
    row_degree, column_degree : int
        Degrees of the polynomial.

    Returns
    -------
    ndarray (rows, n_columns)
        Columns by which a row's light lies further to higher columns than the reference row's.

    Raises
    ------
    ValueError
        Rows or lines outside the frame, too few lines for the degree.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.arcs import measure_tilt
    >>> row, column = np.mgrid[0:40, 0:200]
    >>> frame = sum(900 * np.exp(-0.5 * ((column - c - 0.02 * (row - 20)) / 2) ** 2) for c in (40, 100, 160))
    >>> tilt = measure_tilt(frame, [40, 100, 160], rows=(0, 40), reference=20)
    >>> print(f"{tilt[30, 100]:.2f}")
    0.20
    """
    frame = np.asarray(frame, dtype=np.float64)
    columns = np.atleast_1d(np.asarray(columns, dtype=np.float64))
    first, last = (int(r) for r in rows)
    if frame.ndim != 2 or not 0 <= first < last <= frame.shape[0]:
        raise ValueError(f"rows {rows} do not lie within a frame of shape {frame.shape}")
    reference = (first + last) // 2 if reference is None else int(reference)
    if not first <= reference < last:
        raise ValueError(f"reference must be one of the rows {first} to {last - 1}, got {reference}")
    if columns.size <= column_degree:
        raise ValueError(f"{column_degree + 1} lines or more are needed, got {columns.size}")
    if np.any((columns < half_width + 3) | (columns > frame.shape[1] - half_width - 4)):
        raise ValueError(f"lines must be {half_width + 3} pixels away from the frame's edges, got {columns}")
    row = np.arange(first, last)
    position = np.full((row.size, columns.size), np.nan)
    for k, column in enumerate(columns):
        # outwards from the reference, each row starting where its neighbour was: tilts of many pixels are followed
        for order in (range(reference, last), range(reference - 1, first - 1, -1)):
            at = column if order.step == 1 else position[reference - first, k]
            for r in order if np.isfinite(at) else ():
                at = _centroid(frame[r], at, half_width)
                if not np.isfinite(at) or abs(at - column) > frame.shape[1]:
                    break
                position[r - first, k] = at
    near = np.abs(row - reference) <= 3
    if not np.all(np.isfinite(position[near]).any(axis=0)):
        raise ValueError("a line could not be found in the reference row; check columns")
    shift = position - np.nanmedian(position[near], axis=0)
    y = 2.0 * (row - first) / max(row.size - 1, 1) - 1.0
    x = 2.0 * columns / (frame.shape[1] - 1.0) - 1.0
    yy, xx = (a.ravel() for a in np.meshgrid(y, x, indexing="ij"))
    design = np.polynomial.legendre.legvander2d(yy, xx, [row_degree, column_degree])
    values = shift.ravel()
    use = np.isfinite(values)
    for _ in range(6):
        coefficients, *_ = np.linalg.lstsq(design[use], values[use], rcond=None)
        residual = np.abs(values - design @ coefficients)
        keep = np.isfinite(values) & (residual <= 4.0 * 1.4826 * np.median(residual[use]) + 1e-6)
        if np.array_equal(keep, use):
            break
        use = keep
    full_x = 2.0 * np.arange(frame.shape[1]) / (frame.shape[1] - 1.0) - 1.0
    grid = np.polynomial.legendre.leggrid2d(y, full_x, coefficients.reshape(row_degree + 1, column_degree + 1))
    return grid - grid[reference - first]


def _centroid(spectrum: np.ndarray, at: float, half_width: int) -> float:
    """Flux-weighted centroid above the local minimum, near ``at``; NaN where there is no light or no room."""
    for _ in range(3):
        middle = round(at)
        low, high = middle - half_width, middle + half_width + 1
        if low < 0 or high > spectrum.size:
            return np.nan
        part = spectrum[low:high]
        # a window that slides with the line by fractions of a pixel: its ends count in part
        x = np.arange(low, high)
        weight = np.clip(half_width + 0.5 - np.abs(x - at), 0.0, 1.0)
        light = weight * np.clip(part - np.min(part), 0.0, None)
        total = light.sum()
        if not total > 0:
            return np.nan
        at = float((light * x).sum() / total)
    return at
