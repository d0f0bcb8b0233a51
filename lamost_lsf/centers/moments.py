"""Centres that need no fit: the maximum, the centroid, the half-flux point, and the scale's own zero.

All three read the profile as the not-a-knot cubic spline through its good samples, the same curve that a
kernel is sampled from, so none of them knows more of the line than its convolution will.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from lamost_lsf.centers._base import CenterEstimator, Samples, prepare
from lamost_lsf.centers._spline import MIN_SAMPLES, adjoint, all_good, is_uniform, select, slopes

__all__ = ["Centroid", "Half", "Max", "Zero", "max_centroid_half"]

_MAX, _CENTROID, _HALF = 1, 2, 4

# A sample's influence on the slope of a uniform spline falls by 2 - sqrt(3) = 0.27 per sample: 24 samples on
# either side give the slope to 1e-13, if the peak is that far from the ends of the window.
_REACH = 24
_NO_WEIGHTS = np.empty((3, 0))
_NO_WEIGHTS.flags.writeable = False
_DECAY = np.sqrt(3.0) - 2.0
_SLOPE_TAPS = np.sqrt(3.0) / 2.0 * (1.0 - _DECAY**2) * _DECAY ** np.arange(_REACH)

# Reassociation lets sums run in parallel; NaN and infinity keep their meaning.
_SUMS = {"reassoc", "contract", "nsz"}


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _dot(a, b, n):
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _sum(a, n):
    total = 0.0
    for i in range(n):
        total += a[i]
    return total


@njit(cache=True, error_model="numpy")
def _highest(y, n):
    """Largest of finite samples; four maxima side by side, as a single one would wait for itself."""
    a = b = c = d = y[0]
    blocks = n // 4 * 4
    for i in range(0, blocks, 4):
        a = y[i] if y[i] > a else a
        b = y[i + 1] if y[i + 1] > b else b
        c = y[i + 2] if y[i + 2] > c else c
        d = y[i + 3] if y[i + 3] > d else d
    for i in range(blocks, n):
        a = y[i] if y[i] > a else a
    a = b if b > a else a
    c = d if d > c else c
    return c if c > a else a


@njit(cache=True, error_model="numpy")
def _first_equal(y, n, value):
    start = 0
    while start + 16 <= n:
        hits = 0
        for i in range(16):
            hits |= y[start + i] == value
        if hits:
            break
        start += 16
    for i in range(start, n):
        if y[i] == value:
            return i
    return n - 1


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _uniform_slope(y, i, step, taps):
    total = 0.0
    for k in range(_REACH):
        total += taps[k] * (y[i + 1 + k] - y[i - 1 - k])
    return total / step


@njit(cache=True, error_model="numpy")
def _top_of_cell(h, y0, y1, m0, m1):
    """First maximum of a cubic cell that rises at its left knot, as a fraction of h."""
    rise, fall = h * m0, h * m1
    d = 6.0 * (y1 - y0)
    a = 3.0 * (rise + fall) - d
    b = d - 4.0 * rise - 2.0 * fall
    root = np.sqrt(max(b * b - 4.0 * a * rise, 0.0))
    tau = 2.0 * rise / (root - b)
    return min(max(tau, 0.0), 1.0)


@njit(cache=True, error_model="numpy")
def _cell_integral(h, y0, y1, m0, m1, tau):
    """Integral of a cubic cell from its left knot to the fraction tau."""
    t2 = tau * tau
    t3 = t2 * tau
    t4 = t2 * t2
    return h * (
        y0 * (0.5 * t4 - t3 + tau)
        + y1 * (t3 - 0.5 * t4)
        + h * (m0 * (0.25 * t4 - 2.0 / 3.0 * t3 + 0.5 * t2) + m1 * (0.25 * t4 - t3 / 3.0))
    )


@njit(cache=True, error_model="numpy")
def _cell_value(h, y0, y1, m0, m1, tau):
    s = 1.0 - tau
    return (1.0 + 2.0 * tau) * s * s * y0 + (3.0 - 2.0 * tau) * tau * tau * y1 + h * tau * s * (s * m0 - tau * m1)


@njit(cache=True, error_model="numpy")
def _cell_crossing(h, y0, y1, m0, m1, target):
    """Fraction of the cell at which its integral reaches target: Newton inside a shrinking bracket."""
    low, high = 0.0, 1.0
    whole = _cell_integral(h, y0, y1, m0, m1, 1.0)
    tau = target / whole if whole > target else 0.5
    for _ in range(60):
        excess = _cell_integral(h, y0, y1, m0, m1, tau) - target
        if excess > 0.0:
            high = tau
        else:
            low = tau
        density = h * _cell_value(h, y0, y1, m0, m1, tau)
        new = tau - excess / density if density > 0.0 else -1.0
        if not (low <= new <= high):
            new = 0.5 * (low + high)
        done = abs(new - tau) < 1e-14
        tau = new
        if done:
            break
    return tau


@njit(cache=True, error_model="numpy")
def _general(x, y, m, n, want, out):
    """Centres from knots (x, y) and slopes m; also the index of the cell and fraction for `max` and `half`.

    out: max, its cell, its fraction, centroid, half, its cell, its fraction.
    """
    for k in range(7):
        out[k] = np.nan
    top = 0
    for i in range(1, n):
        if y[i] > y[top]:
            top = i
    if want & _MAX and y[top] > 0.0:
        last = top
        while last + 1 < n and y[last + 1] == y[top]:
            last += 1
        if top > 0 and last < n - 1:
            if last - top >= 2:
                # a flat top (saturation): its middle
                out[0] = 0.5 * (x[top] + x[last])
            elif m[top] >= 0.0:
                h = x[top + 1] - x[top]
                tau = 0.0
                if m[top] > 0.0:
                    tau = _top_of_cell(h, y[top], y[top + 1], m[top], m[top + 1])
                out[0], out[1], out[2] = x[top] + tau * h, top, tau
            else:
                h = x[top] - x[top - 1]
                tau = _top_of_cell(h, y[top], y[top - 1], -m[top], -m[top - 1])
                out[0], out[1], out[2] = x[top] - tau * h, top - 1, 1.0 - tau
    if want & (_CENTROID | _HALF):
        middle = 0.5 * (x[0] + x[n - 1])
        total = 0.0
        first = 0.0
        before = 0.0
        for i in range(n - 1):
            if i == top:
                before = total
            h = x[i + 1] - x[i]
            cell = 0.5 * h * (y[i] + y[i + 1]) + h * h / 12.0 * (m[i] - m[i + 1])
            total += cell
            first += (x[i] - middle) * cell + h * h * (
                0.15 * y[i] + 0.35 * y[i + 1] + h * (m[i] / 30.0 - 0.05 * m[i + 1])
            )
        if top == n - 1:
            before = total
        if total > 0.0:
            centroid = middle + first / total
            if x[0] <= centroid <= x[n - 1]:
                out[3] = centroid
            # from the highest sample to the nearest crossing of half the flux: wings with negative samples
            # may cross it again, far out
            half = 0.5 * total
            i = top
            if before <= half:
                while i < n - 2:
                    cell = _cell_integral(x[i + 1] - x[i], y[i], y[i + 1], m[i], m[i + 1], 1.0)
                    if before + cell >= half:
                        break
                    before += cell
                    i += 1
            else:
                while i > 0 and before > half:
                    i -= 1
                    before -= _cell_integral(x[i + 1] - x[i], y[i], y[i + 1], m[i], m[i + 1], 1.0)
            if i < n - 1:
                h = x[i + 1] - x[i]
                tau = _cell_crossing(h, y[i], y[i + 1], m[i], m[i + 1], half - before)
                out[4], out[5], out[6] = x[i] + tau * h, i, tau


@njit(cache=True, error_model="numpy")
def _uniform(x, y, n, step, weights, taps, want, out):
    """Same centres on a uniform grid without bad samples; False where the general path must do it.

    On uniform knots the integral of the spline up to a knot is the trapezoid sum less step^2/12 times the
    difference of the end slopes, so only slopes near the peak are needed.
    """
    total = _dot(weights[0], y, n)
    if not np.isfinite(total):
        return False
    for k in range(7):
        out[k] = np.nan
    top = 0
    if want & (_MAX | _HALF):
        value = _highest(y, n)
        top = _first_equal(y, n, value)
        if top < _REACH + 2 or top > n - _REACH - 4:
            return False
        if want & _MAX and value > 0.0:
            if y[top + 1] == value and y[top + 2] == value:
                return False
            m = _uniform_slope(y, top, step, taps)
            if m >= 0.0:
                tau = 0.0
                if m > 0.0:
                    tau = _top_of_cell(step, value, y[top + 1], m, _uniform_slope(y, top + 1, step, taps))
                out[0] = x[top] + tau * step
            else:
                tau = _top_of_cell(step, value, y[top - 1], -m, -_uniform_slope(y, top - 1, step, taps))
                out[0] = x[top] - tau * step
    if total > 0.0:
        if want & _CENTROID:
            centroid = 0.5 * (x[0] + x[n - 1]) + _dot(weights[1], y, n) / total
            if x[0] <= centroid <= x[n - 1]:
                out[3] = centroid
        if want & _HALF:
            half = 0.5 * total
            # trapezoid sum up to the knot i, with the left end's slope term
            base = step * step / 12.0 * _dot(weights[2], y, min(n, 2 * _REACH)) - 0.5 * step * y[0]
            i = top
            before = base + step * (_sum(y, i) + 0.5 * y[i])
            if before <= half:
                while i < n - 2 and before + 0.5 * step * (y[i] + y[i + 1]) < half:
                    before += 0.5 * step * (y[i] + y[i + 1])
                    i += 1
            else:
                while i > 0 and before > half:
                    i -= 1
                    before -= 0.5 * step * (y[i] + y[i + 1])
            if i < _REACH + 2 or i > n - _REACH - 4:
                return False
            # the slope at the knot itself may move the crossing to a neighbouring cell
            correction = step * step / 12.0
            m0 = _uniform_slope(y, i, step, taps)
            for _ in range(3):
                m1 = _uniform_slope(y, i + 1, step, taps)
                target = half - (before - correction * m0)
                cell = 0.5 * step * (y[i] + y[i + 1]) + correction * (m0 - m1)
                if target < 0.0:
                    i -= 1
                    before -= 0.5 * step * (y[i] + y[i + 1])
                    m0 = _uniform_slope(y, i, step, taps)
                elif target > cell:
                    before += 0.5 * step * (y[i] + y[i + 1])
                    i += 1
                    m0 = m1
                else:
                    out[4] = x[i] + step * _cell_crossing(step, y[i], y[i + 1], m0, m1, target)
                    return True
            return False
    return True


@njit(cache=True, error_model="numpy")
def _centers(x, profile, error, mask, step, weights, taps, want, out):
    """Fill out (m, 3) with max, centroid, half. ``step`` > 0 says that x is uniform."""
    rows, n = profile.shape
    xs, ys, es, m = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    work = np.empty((3, n))
    found = np.empty(7)
    for row in range(rows):
        if not (
            step > 0.0
            and all_good(error, mask, row, n)
            and _uniform(x, profile[row], n, step, weights, taps, want, found)
        ):
            count = select(x, profile, error, mask, row, xs, ys, es)
            if count < MIN_SAMPLES:
                out[row, 0] = out[row, 1] = out[row, 2] = np.nan
                continue
            slopes(xs, ys, count, m, work)
            _general(xs, ys, m, count, want, found)
        out[row, 0] = found[0]
        out[row, 1] = found[3]
        out[row, 2] = found[4]


@njit(cache=True, error_model="numpy")
def _add_integral(x, n, scale, alpha, beta):
    """Add ``scale`` times the integral over the cells up to knot n to the functional (alpha, beta)."""
    for i in range(n):
        h = scale * (x[i + 1] - x[i])
        alpha[i] += 0.5 * h
        alpha[i + 1] += 0.5 * h
        h *= (x[i + 1] - x[i]) / 12.0
        beta[i] += h
        beta[i + 1] -= h


@njit(cache=True, error_model="numpy")
def _uncertainties(x, profile, error, mask, want, out):
    """Fill out (m,) with the standard deviation of one of the three centres."""
    rows, n = profile.shape
    xs, ys, es, m = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    alpha, beta = np.empty(n), np.empty(n)
    work = np.empty((3, n))
    found = np.empty(7)
    for row in range(rows):
        out[row] = np.nan
        count = select(x, profile, error, mask, row, xs, ys, es)
        if count < MIN_SAMPLES:
            continue
        slopes(xs, ys, count, m, work)
        _general(xs, ys, m, count, want, found)
        for i in range(count):
            alpha[i] = 0.0
            beta[i] = 0.0
        if want == _CENTROID:
            center = found[3]
            total = 0.0
            for i in range(count - 1):
                h = xs[i + 1] - xs[i]
                total += 0.5 * h * (ys[i] + ys[i + 1]) + h * h / 12.0 * (m[i] - m[i + 1])
            for i in range(count - 1):
                h = xs[i + 1] - xs[i]
                lever = h * (xs[i] - center) / total
                h2 = h * h / total
                alpha[i] += 0.5 * lever + 0.15 * h2
                alpha[i + 1] += 0.5 * lever + 0.35 * h2
                beta[i] += h * (lever / 12.0 + h2 / 30.0)
                beta[i + 1] -= h * (lever / 12.0 + h2 / 20.0)
        elif want == _MAX:
            center = found[0]
            # a flat top has no curvature to propagate through
            if not np.isfinite(found[1]):
                continue
            i, tau = int(found[1]), found[2]
            h = xs[i + 1] - xs[i]
            d = 6.0 * (ys[i + 1] - ys[i])
            curvature = (d - h * (4.0 * m[i] + 2.0 * m[i + 1]) + 2.0 * tau * (3.0 * h * (m[i] + m[i + 1]) - d)) / (
                h * h
            )
            scale = -1.0 / curvature
            alpha[i] -= scale * 6.0 * tau * (1.0 - tau) / h
            alpha[i + 1] += scale * 6.0 * tau * (1.0 - tau) / h
            beta[i] += scale * (1.0 + tau * (3.0 * tau - 4.0))
            beta[i + 1] += scale * tau * (3.0 * tau - 2.0)
        else:
            center = found[4]
            if not np.isfinite(center):
                continue
            i, tau = int(found[5]), found[6]
            h = xs[i + 1] - xs[i]
            scale = -1.0 / _cell_value(h, ys[i], ys[i + 1], m[i], m[i + 1], tau)
            _add_integral(xs, count - 1, -0.5 * scale, alpha, beta)
            _add_integral(xs, i, scale, alpha, beta)
            alpha[i] += scale * _cell_integral(h, 1.0, 0.0, 0.0, 0.0, tau)
            alpha[i + 1] += scale * _cell_integral(h, 0.0, 1.0, 0.0, 0.0, tau)
            beta[i] += scale * _cell_integral(h, 0.0, 0.0, 1.0, 0.0, tau)
            beta[i + 1] += scale * _cell_integral(h, 0.0, 0.0, 0.0, 1.0, tau)
        if not np.isfinite(center):
            continue
        adjoint(xs, count, alpha, beta, work)
        variance = 0.0
        for i in range(count):
            variance += (alpha[i] * es[i]) ** 2
        out[row] = np.sqrt(variance)


@njit(cache=True, error_model="numpy")
def _window_weights(x):
    """Rows: integral of the spline, its first moment about the middle of the window, its slope at x[0]."""
    n = x.size
    weights = np.zeros((3, n))
    beta = np.zeros((3, n))
    work = np.empty((3, n))
    middle = 0.5 * (x[0] + x[n - 1])
    for i in range(n - 1):
        h = x[i + 1] - x[i]
        weights[0, i] += 0.5 * h
        weights[0, i + 1] += 0.5 * h
        beta[0, i] += h * h / 12.0
        beta[0, i + 1] -= h * h / 12.0
        lever = h * (x[i] - middle)
        weights[1, i] += 0.5 * lever + 0.15 * h * h
        weights[1, i + 1] += 0.5 * lever + 0.35 * h * h
        beta[1, i] += h * (lever / 12.0 + h * h / 30.0)
        beta[1, i + 1] -= h * (lever / 12.0 + h * h / 20.0)
    beta[2, 0] = 1.0
    for k in range(3):
        adjoint(x, n, weights[k], beta[k], work)
    return weights


@lru_cache(maxsize=16)
def _kept_weights(raw: bytes) -> np.ndarray:
    weights = _window_weights(np.frombuffer(raw))
    weights.flags.writeable = False
    return weights


def _compute(samples: Samples, want: int) -> np.ndarray:
    x = samples.x
    out = np.empty((samples.profile.shape[0], 3))
    if x.size < MIN_SAMPLES:
        out[:] = np.nan
        return out
    uniform = x.size > 2 * _REACH + 6 and is_uniform(x)
    step = (x[-1] - x[0]) / (x.size - 1) if uniform else 0.0
    weights = _kept_weights(x.tobytes()) if uniform else _NO_WEIGHTS
    _centers(x, samples.profile, samples.error, samples.mask, step, weights, _SLOPE_TAPS, want, out)
    return out


def _compute_uncertainty(samples: Samples, want: int) -> np.ndarray:
    out = np.empty(samples.profile.shape[0])
    if samples.x.size < MIN_SAMPLES:
        out[:] = np.nan
    else:
        _uncertainties(samples.x, samples.profile, samples.error, samples.mask, want, out)
    return out


def max_centroid_half(
    x: ArrayLike, profile: ArrayLike, *, error: ArrayLike | None = None, mask: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Max`, `Centroid` and `Half` of every profile in one pass over the samples.

    Parameters
    ----------
    x, profile, error, mask
        As for calling one of the estimators.

    Returns
    -------
    tuple of ndarray (...)
        The three centres in units of `x`: those of the single estimators.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.centers import max_centroid_half
    >>> x = np.linspace(-8.335, 9.25, 600)
    >>> peak, centroid, half = max_centroid_half(x, np.exp(-0.5 * ((x - 0.25) / 1.3) ** 2))
    >>> print(f"{peak:.4f} {centroid:.4f} {half:.4f}")
    0.2500 0.2500 0.2500
    """
    samples = prepare(x, profile, error, mask)
    out = _compute(samples, _MAX | _CENTROID | _HALF)
    return tuple(out[:, k].reshape(samples.shape)[()] for k in range(3))


@dataclass(frozen=True)
class Max(CenterEstimator):
    """Sub-sample peak: the maximum of the cubic spline through the samples.

    The not-a-knot cubic spline through the good samples is climbed from the highest sample to the top of the
    neighbouring interval. A flat run of three or more equal highest samples (saturation) gives its middle.
    NaN where the highest sample is not positive, is the first or last good one, or fewer than four are good.

    White noise on finely resampled samples makes spurious peaks, and the maximum follows the highest of them:
    this centre, and its linear `uncertainty`, are meant for profiles whose noise is small between neighbouring
    samples (a modelled profile, or native pixels). Source: Liu et al. 2026, section 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.centers import Max
    >>> x = np.linspace(-8.335, 9.25, 600)
    >>> print(f"{Max()(x, np.exp(-0.5 * ((x - 0.25) / 1.3) ** 2)):.5f}")
    0.25000
    """

    name: ClassVar[str] = "max"

    def _center(self, samples: Samples) -> np.ndarray:
        return _compute(samples, _MAX)[:, 0]

    def _uncertainty(self, samples: Samples) -> np.ndarray:
        return _compute_uncertainty(samples, _MAX)


@dataclass(frozen=True)
class Centroid(CenterEstimator):
    """Flux-weighted mean position over the window: the integral of x f over the integral of f.

    Both integrals are those of the not-a-knot cubic spline through the good samples, from the first to the
    last of them; on a uniform grid that is the sum over samples but for the window's ends. Negative samples
    count as negative flux. NaN where the flux is not positive, the mean falls outside the window, or fewer
    than four samples are good. Source: Liu et al. 2026, section 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.centers import Centroid
    >>> x = np.linspace(-8.335, 9.25, 600)
    >>> profile = np.exp(-0.5 * ((x - 0.25) / 1.1) ** 2)
    >>> print(f"{Centroid()(x, profile):.5f}")
    0.25000
    >>> print(f"{Centroid().uncertainty(x, profile, error=np.full(600, 0.01)):.4f}")
    0.0132
    """

    name: ClassVar[str] = "centroid"

    def _center(self, samples: Samples) -> np.ndarray:
        return _compute(samples, _CENTROID)[:, 1]

    def _uncertainty(self, samples: Samples) -> np.ndarray:
        return _compute_uncertainty(samples, _CENTROID)


@dataclass(frozen=True)
class Half(CenterEstimator):
    """Half-flux point: equal integrated flux on either side, between the first and the last good sample.

    The flux is the exact integral of the not-a-knot cubic spline through the good samples. Negative samples
    count as negative flux; where half the flux is crossed more than once, the crossing met first on the way
    from the highest sample is taken. NaN where the flux is not positive or fewer than four samples are good.

    Sampling of a line with sigma 1.2 Angstrom: pixels of 0.54 Angstrom are good for 4e-4 Angstrom, but where
    pixels are wider than sigma (1.4 Angstrom) any interpolation is off by 0.008 (symmetric) to 0.05 Angstrom
    (skewness 1), varying with the line's place between pixels; `Centroid` suffers least from that.
    Source: Liu et al. 2026, section 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.centers import Half
    >>> x = np.linspace(-8.335, 9.25, 600)
    >>> print(f"{Half()(x, np.exp(-0.5 * ((x - 0.25) / 1.1) ** 2)):.5f}")
    0.25000
    """

    name: ClassVar[str] = "half"

    def _center(self, samples: Samples) -> np.ndarray:
        return _compute(samples, _HALF)[:, 2]

    def _uncertainty(self, samples: Samples) -> np.ndarray:
        return _compute_uncertainty(samples, _HALF)


@dataclass(frozen=True)
class Zero(CenterEstimator):
    """The zero of the wavelength scale itself: 0 for every profile, whatever its samples.

    Examples
    --------
    >>> from lamost_lsf.centers import Zero
    >>> float(Zero()([-1.0, 0.0, 1.0], [0.2, 1.0, 0.1]))
    0.0
    """

    name: ClassVar[str] = "zero"

    def _center(self, samples: Samples) -> np.ndarray:
        return np.zeros(samples.profile.shape[0])

    def _uncertainty(self, samples: Samples) -> np.ndarray:
        return np.zeros(samples.profile.shape[0])
