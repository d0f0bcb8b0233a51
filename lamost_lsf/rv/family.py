"""`LSFFamily`: the LSFs of many spectra in one basis over one window, a few hundredths of a millisecond each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from lamost_lsf.convolution.basis import Coefficients, IPBasis
from lamost_lsf.convolution.loggrid import FASTMATH, LogGrid
from lamost_lsf.convolution.nodes import lagrange4
from lamost_lsf.lsf import LSF, ShiftedLSF
from lamost_lsf.rv.sampling import sample_many, zero_points_many

__all__ = ["TOLERANCE", "LSFFamily", "detector_parts"]

#: Largest L1 error of a unit-area profile that the basis may leave: some 0.01 km/s at most, LAMOST's profile being
#: 170 km/s wide.
TOLERANCE = 2e-5
#: Numbers of wavelengths at which an LSF is sampled, the smallest that serves being chosen.
_NODES = (7, 9, 13, 17, 25, 33, 49, 65, 129, 257)
#: How far (in ln(wavelength)) the Earth's motion moves the window over the detector: 60 km/s.
_MARGIN = 2e-4
#: Precision, in Angstrom, to which centres are interpolated between the wavelengths at which they are determined.
_CENTER_PRECISION = 2e-4


def detector_parts(lsf: LSF) -> list[tuple[float, float, LSF, float]]:
    """Smooth parts of an LSF as (low, high, LSF on the detector, factor to the detector's wavelengths).

    In ln(wavelength) an LSF that was shifted to another frame is the detector's, moved: what is sampled at the same
    wavelengths of the detector serves every date.
    """
    parts = []
    for segment in lsf.segments():
        inner, factor = segment.lsf, 1.0
        if type(inner) is ShiftedLSF:
            inner, factor = inner._inner, inner._factor
        parts.append((segment.low * factor, segment.high * factor, inner, factor))
    return parts


class LSFFamily:
    """Basis for the LSFs of many spectra over a window.

    Parameters
    ----------
    lsfs : sequence of LSF
        Representative ones, each centred as it will be used.
    window : tuple of float
        Observed vacuum Angstrom.

    Attributes
    ----------
    basis : IPBasis
    typical : Coefficients
        Mean of the representative LSFs, for the search.
    """

    def __init__(self, lsfs: Sequence[LSF], window: tuple[float, float]) -> None:
        self.lsfs, self.window = list(lsfs), window
        self.basis = IPBasis.from_lsfs(self.lsfs, window, tolerance=0.3 * TOLERANCE)
        self._step = LogGrid(self.basis.refinement, 0, 1).step
        self._nodes, self._stride = self._choose_nodes()
        known = [c[0] for c in self.coefficients_many(self.lsfs) if not isinstance(c, Exception)]
        # of one number of parts; an arm's boundary moves by half an Angstrom, which a search does not see
        first = known[0]
        alike = [c for c in known if len(c.values) == len(first.values)]
        values = tuple(np.mean([c.values[k] for c in alike], axis=0) for k in range(len(first.values)))
        self.typical = Coefficients(
            values, first.boundaries, first.log_start, first.log_step, max(c.residual for c in known), first.center
        )

    def extended(self, lsfs: Sequence[LSF]) -> LSFFamily:
        """A family for these LSFs, too."""
        return LSFFamily([*self.lsfs, *lsfs], self.window)

    def _choose_nodes(self) -> tuple[int, int]:
        """Number of nodes of a part, and one in how many of them needs its centre determined."""
        parts = [p for lsf in self.lsfs for p in self._parts(lsf)]
        n, before = _NODES[0], np.inf
        for count in _NODES:
            worst = 0.0
            for low, high, inner, definition, _, _ in parts:
                fine = _nodes(low, high, 2 * count - 1, inner)
                values, _ = self._project(inner.offset, inner.sample(fine), fine, inner.zero_point(fine, definition))
                worst = max(worst, _middle_error(values, self.basis.components) * self._step)
            # jumps, at the ends of a profile's window, are not for any number of nodes to mend
            if worst > 0.8 * before:
                break
            n, before = count, worst
            if worst <= TOLERANCE:
                break
        for stride in (8, 4, 3, 2):
            if (n - 1) % stride or (n - 1) // stride < 3:
                continue
            off = 0.0
            for low, high, inner, definition, _, _ in parts:
                nodes = _nodes(low, high, n, inner)
                zero = inner.zero_point(nodes, definition)
                off = max(off, float(np.max(np.abs(_between(zero[::stride], stride) - zero))))
            if off <= _CENTER_PRECISION:
                return n, stride
        return n, 1

    def _parts(self, lsf: LSF) -> list[tuple[float, float, LSF, str | Callable, float, float]]:
        """Parts within the window: detector's limits, LSF, centre, factor, and the upper limit as it was."""
        low, high = self.window
        lsf._check_range(np.array([low, high]))
        out = []
        parts = detector_parts(lsf)
        for a, b, inner, factor in parts:
            if b / factor <= low or a / factor >= high:
                continue
            definition = lsf.center if lsf.center is not None else (inner.center or "zero")
            first, last = max(a, low * (1.0 - _MARGIN)), min(b, high * (1.0 + _MARGIN))
            out.append((first, last, inner, definition, factor, b / factor))
        return out

    def coefficients(self, lsf: LSF) -> tuple[Coefficients, float]:
        """An LSF in the basis, and the L1 error that is left: see `TOLERANCE`.

        Raises
        ------
        OutOfRangeError
            The LSF is not defined over the window.
        """
        (result,) = self.coefficients_many([lsf])
        if isinstance(result, Exception):
            raise result
        return result

    def coefficients_many(self, lsfs: Sequence[LSF]) -> list[tuple[Coefficients, float] | Exception]:
        """`coefficients` of many LSFs, or what it raised."""
        out: list[Any] = []
        requests = []
        for lsf in lsfs:
            try:
                parts = self._parts(lsf)
            except Exception as error:
                out.append(error)
                continue
            out.append(parts)
            requests += [(part[2], _nodes(part[0], part[1], self._nodes, part[2])) for part in parts]
        profiles = sample_many(requests)
        centers = iter(
            zero_points_many(
                [
                    (part[2].offset, rows[:: self._stride], part[3])
                    for part, rows in zip((p for ps in out if isinstance(ps, list) for p in ps), profiles, strict=True)
                    if not isinstance(rows, Exception)
                ]
            )
        )
        sampled = iter(zip(requests, profiles, strict=True))
        return [parts if isinstance(parts, Exception) else self._assemble(parts, sampled, centers) for parts in out]

    def _assemble(self, parts: list, sampled: Iterator, centers: Iterator) -> tuple[Coefficients, float] | Exception:
        """Coefficients of one LSF from the samples and centres of its parts."""
        values, starts, steps, boundaries, worst, failed = [], [], [], [], 0.0, None
        center: str | Callable = "zero"
        for _, _, inner, definition, factor, end in parts:
            (_, nodes), profiles = next(sampled)
            if isinstance(profiles, Exception):
                failed = failed or profiles
                continue
            zero = next(centers)
            if isinstance(zero, Exception):
                failed = failed or zero
                continue
            value, residual = self._project(inner.offset, profiles, nodes, _between(zero, self._stride))
            worst, center = max(worst, residual), definition
            log_low, log_high = math.log(nodes[0]), math.log(nodes[-1])
            values.append(value)
            starts.append(log_low - math.log(factor))
            steps.append((log_high - log_low) / (nodes.size - 1))
            boundaries.append(end)
        if failed is not None:
            return failed
        return (
            Coefficients(tuple(values), tuple(boundaries[:-1]), tuple(starts), tuple(steps), worst, center),
            worst,
        )

    def _project(
        self, offset: np.ndarray, profiles: np.ndarray, nodes: np.ndarray, zero: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Coefficients (m, K) of profiles (m, n) with an offset (m,) put at lag 0, and the L1 norm of what is left."""
        values = np.empty((nodes.size, self.basis.n_components))
        step = (offset[-1] - offset[0]) / (offset.size - 1)
        left = _project(
            np.ascontiguousarray(profiles), float(offset[0]), float(step), nodes, zero, self._step,
            self.basis.first_lag, self.basis.components, values,
        )  # fmt: skip
        return values, left

    def at_lags(self, offset: np.ndarray, profiles: np.ndarray, wavelength: float, zero: float) -> np.ndarray:
        """Profiles (m, n) per Angstrom at offsets (n,), at the lags of the basis: (m, n_lag) per ln(wavelength)."""
        out = np.empty((profiles.shape[0], self.basis.components.shape[1]))
        step = (offset[-1] - offset[0]) / (offset.size - 1)
        _all_at_lags(
            np.ascontiguousarray(profiles), float(offset[0]), float(step), wavelength, zero, self._step,
            self.basis.first_lag, out,
        )  # fmt: skip
        return out


def _nodes(low: float, high: float, n: int, inner: LSF) -> np.ndarray:
    a, b = inner.wavelength_range
    return _spaced(max(low, a), min(high, b), n)


@lru_cache(maxsize=256)
def _spaced(low: float, high: float, n: int) -> np.ndarray:
    nodes = np.clip(np.exp(np.linspace(np.log(low), np.log(high), n)), low, high)
    nodes.setflags(write=False)
    return nodes


def _between(values: np.ndarray, stride: int) -> np.ndarray:
    """Values at nodes of which one in ``stride`` is known: cubics through four."""
    if stride == 1:
        return values
    m = values.size
    p = np.arange((m - 1) * stride + 1) / stride
    i = np.clip(np.floor(p).astype(int) - 1, 0, m - 4)
    t = p - i
    a, b, c, d = t, t - 1.0, t - 2.0, t - 3.0
    out = -b * c * d / 6.0 * values[i] + a * c * d / 2.0 * values[i + 1]
    return out - a * b * d / 2.0 * values[i + 2] + a * b * c / 6.0 * values[i + 3]


def _middle_error(values: np.ndarray, components: np.ndarray) -> float:
    """Largest sum over lags by which every other row departs from the cubic through the rows between."""
    known, middle = values[::2], values[1::2]
    i = np.clip(np.arange(middle.shape[0]) - 1, 0, known.shape[0] - 4)
    w = np.array([lagrange4.py_func(t) for t in np.arange(middle.shape[0]) + 0.5 - i])
    guess = sum(w[:, k, None] * known[i + k] for k in range(4))
    return float(np.abs((guess - middle) @ components).sum(axis=1).max())


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _at_lags(profile, x0, dx, wavelength, zero, step, first_lag, row):
    """A profile at the lags of the grid, by cubics through its samples; its area there.

    Per ln(wavelength): what a Doppler shift leaves alone.
    """
    n, total = profile.size, 0.0
    for k in range(row.size):
        stretch = np.expm1((first_lag + k) * step)
        p = (wavelength * stretch + zero - x0) / dx
        if p < 0.0 or p > n - 1.0:
            row[k] = 0.0
            continue
        i = max(0, min(int(np.floor(p)) - 1, n - 4))
        a, b, c, d = lagrange4(p - i)
        row[k] = wavelength * (a * profile[i] + b * profile[i + 1] + c * profile[i + 2] + d * profile[i + 3])
        total += row[k] * (1.0 + stretch) * step  # the area per Angstrom
    return total


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _project(profiles, x0, dx, wavelength, zero, step, first_lag, components, out):
    """Unit-area profiles in the basis, and the largest L1 norm of what is left out."""
    n_k, n_lag = components.shape
    row, worst = np.empty(n_lag), 0.0
    for m in range(wavelength.size):
        total = _at_lags(profiles[m], x0, dx, wavelength[m], zero[m], step, first_lag, row)
        # what lies beyond the lags of the basis
        worst = max(worst, abs(1.0 - total) - 1e-4)
        # points do not see the jumps at the ends of the window as integrals do; the area is known
        for k in range(n_lag):
            row[k] /= total
        for c in range(n_k):
            s = 0.0
            for k in range(n_lag):
                s += components[c, k] * row[k]
            out[m, c] = s
        left = 0.0
        for k in range(n_lag):
            y = row[k]
            for c in range(n_k):
                y -= out[m, c] * components[c, k]
            left += abs(y)
        worst = max(worst, left * step)
    return worst


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _all_at_lags(profiles, x0, dx, wavelength, zero, step, first_lag, out):
    for m in range(profiles.shape[0]):
        _at_lags(profiles[m], x0, dx, wavelength, zero, step, first_lag, out[m])
