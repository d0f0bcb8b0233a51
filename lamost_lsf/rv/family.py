"""`LSFFamily`: the LSFs of many spectra in one basis over one window, a few hundredths of a millisecond each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
#: Parts whose profiles are brought to the lags at a time: some 10 MB.
_BLOCK = 256
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
        components = self.basis.components.astype(np.float32)
        self._components = components, np.ascontiguousarray(components.T)
        lags = self.basis.first_lag + np.arange(self.basis.components.shape[1])
        self._stretch = np.expm1(lags * self._step)  # of a wavelength, at each lag
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
                part = inner.offset, inner.sample(fine), fine
                (values,), _ = self._project([part], inner.zero_point(fine, definition)[None])
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
                off = max(off, float(np.max(np.abs(_interpolator(n, stride) @ zero[::stride] - zero))))
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
        found: list[Any] = []
        requests: list[tuple[LSF, np.ndarray]] = []
        for lsf in lsfs:
            try:
                parts = self._parts(lsf)
            except Exception as error:
                found.append(error)
                continue
            first = len(requests)
            requests += [(part[2], _nodes(part[0], part[1], self._nodes, part[2])) for part in parts]
            found.append([(part, first + k) for k, part in enumerate(parts)])
        definitions = [part[3] for parts in found if isinstance(parts, list) for part, _ in parts]
        profiles = sample_many(requests)
        known = [k for k, rows in enumerate(profiles) if not isinstance(rows, Exception)]
        zeros = zero_points_many([(requests[k][0].offset, profiles[k][:: self._stride], definitions[k]) for k in known])
        expressed: list[Any] = profiles
        good = [(k, zero) for k, zero in zip(known, zeros, strict=True) if not isinstance(zero, Exception)]
        for k, zero in zip(known, zeros, strict=True):
            if isinstance(zero, Exception):
                expressed[k] = zero
        if good:
            between = np.array([zero for _, zero in good]) @ _interpolator(self._nodes, self._stride).T
            for begin in range(0, len(good), _BLOCK):
                block = [k for k, _ in good[begin : begin + _BLOCK]]
                values, left = self._project(
                    [(requests[k][0].offset, profiles[k], requests[k][1]) for k in block], between[begin:]
                )
                for row, k in enumerate(block):
                    expressed[k] = values[row], left[row]
        return [
            parts if isinstance(parts, Exception) else self._assemble(parts, requests, expressed) for parts in found
        ]

    def _assemble(
        self, parts: list[tuple[tuple, int]], requests: list[tuple[LSF, np.ndarray]], expressed: list[Any]
    ) -> tuple[Coefficients, float] | Exception:
        """Coefficients of one LSF from those of its parts."""
        values, starts, steps, boundaries, worst = [], [], [], [], 0.0
        center: str | Callable = "zero"
        for (_, _, _, definition, factor, end), k in parts:
            if isinstance(expressed[k], Exception):
                return expressed[k]
            value, left = expressed[k]
            nodes = requests[k][1]
            worst, center = max(worst, float(left)), definition
            log_low, log_high = math.log(nodes[0]), math.log(nodes[-1])
            values.append(value)
            starts.append(log_low - math.log(factor))
            steps.append((log_high - log_low) / (nodes.size - 1))
            boundaries.append(end)
        return (
            Coefficients(tuple(values), tuple(boundaries[:-1]), tuple(starts), tuple(steps), worst, center),
            worst,
        )

    def _project(
        self, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], zeros: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (p, m, K) of p parts, and the largest L1 norm (p,) of what is left of each.

        Parameters
        ----------
        parts : sequence of (offset (n,), profiles (m, n), wavelength (m,))
        zeros : ndarray (p or more, m)
            Offsets that are put at lag 0.
        """
        m, (components, transposed) = parts[0][2].size, self._components
        # float32 is some 1e-7 of the peak off, far below TOLERANCE
        rows, area = np.empty((len(parts), m, components.shape[1]), dtype=np.float32), np.empty((len(parts), m))
        for k, (offset, profiles, wavelength) in enumerate(parts):
            step = (offset[-1] - offset[0]) / (offset.size - 1)
            _at_lags(profiles, offset[0], step, wavelength, zeros[k], self._step, self._stretch, rows[k], area[k], True)
        values = (rows.reshape(-1, rows.shape[2]) @ transposed).reshape(len(parts), m, -1)
        # what is left is as smooth in wavelength as the profiles: every fourth of them tells
        some = slice(None, None, 4 if (m - 1) % 4 == 0 else 2)
        rest = rows[:, some].reshape(-1, rows.shape[2])
        rest = rest - values[:, some].reshape(len(rest), -1) @ components
        left = np.abs(rest, out=rest).sum(axis=1, dtype=np.float64).reshape(len(parts), -1) * self._step
        # what lies beyond the lags of the basis
        left = np.maximum(left.max(axis=1), np.abs(1.0 - area).max(axis=1) - 1e-4)
        return values.astype(np.float64), left

    def at_lags(self, offset: np.ndarray, profiles: np.ndarray, wavelength: float, zero: float) -> np.ndarray:
        """Profiles (m, n) per Angstrom at offsets (n,), at the lags of the basis: (m, n_lag) per ln(wavelength)."""
        m = profiles.shape[0]
        out = np.empty((m, self.basis.components.shape[1]))
        step = (offset[-1] - offset[0]) / (offset.size - 1)
        _at_lags(
            np.ascontiguousarray(profiles), offset[0], step, np.full(m, wavelength), np.full(m, zero), self._step,
            self._stretch, out, np.empty(m), False,
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


@lru_cache(maxsize=64)
def _interpolator(n: int, stride: int) -> np.ndarray:
    """Matrix (n, m) to values at n nodes from those at one node in ``stride``: cubics through four."""
    m = (n - 1) // stride + 1
    out = np.zeros((n, m))
    if stride == 1:
        np.fill_diagonal(out, 1.0)
        return out
    p = np.arange(n) / stride
    i = np.clip(np.floor(p).astype(int) - 1, 0, m - 4)
    for row, (first, t) in enumerate(zip(i, p - i, strict=True)):
        out[row, first : first + 4] = lagrange4.py_func(t)
    return out


def _middle_error(values: np.ndarray, components: np.ndarray) -> float:
    """Largest sum over lags by which every other row departs from the cubic through the rows between."""
    known, middle = values[::2], values[1::2]
    i = np.clip(np.arange(middle.shape[0]) - 1, 0, known.shape[0] - 4)
    w = np.array([lagrange4.py_func(t) for t in np.arange(middle.shape[0]) + 0.5 - i])
    guess = sum(w[:, k, None] * known[i + k] for k in range(4))
    return float(np.abs((guess - middle) @ components).sum(axis=1).max())


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _at_lags(profiles, x0, dx, wavelength, zero, step, stretch, out, area, unit):
    """Profiles (m, n) at the lags of the grid (n_lag,), by cubics through their samples; their areas there.

    Per ln(wavelength): what a Doppler shift leaves alone. Points do not see the jumps at the ends of the window as
    integrals do: with ``unit``, profiles are divided by the area that the points have.
    """
    n, last = profiles.shape[1], stretch.size
    for m in range(wavelength.size):
        profile, row = profiles[m], out[m]
        scale, start, w, total = wavelength[m] / dx, (zero[m] - x0) / dx, wavelength[m], 0.0
        # the lags within the window are consecutive: no question inside the loop
        first, end = 0, last
        while first < last and scale * stretch[first] + start < 0.0:
            row[first] = 0.0
            first += 1
        while end > first and scale * stretch[end - 1] + start > n - 1.0:
            end -= 1
            row[end] = 0.0
        for k in range(first, end):
            p = scale * stretch[k] + start
            i = max(0, min(int(p) - 1, n - 4))
            a, b, c, d = lagrange4(p - i)
            value = w * (a * profile[i] + b * profile[i + 1] + c * profile[i + 2] + d * profile[i + 3])
            row[k] = value
            total += value * (1.0 + stretch[k])  # the area per Angstrom
        area[m] = total * step
        if unit:
            row *= 1.0 / area[m]
