"""Least squares of peak models to many profiles: the compiled part of `gauss` and `sersic`.

Each profile is fitted by Newton steps with the full Hessian (residuals of a skewed line against a symmetric
model are far from zero, where Gauss-Newton only converges linearly), damped as by Levenberg and Marquardt
where a step would raise chi-square. A fit starts on block means of the samples, which costs little and ends
close to the optimum, and is then converged on all samples.

Both models are cases of Liu et al. 2026, Eq. 6, in t = x less the middle of the window::

    f = alpha exp(-|u|^d / d) + a t + b,    u = (t - c) / g

with parameters in the order alpha, c, g, d, a, b. d = 2 makes it a Gaussian of standard deviation g.
"""

import numpy as np
from numba import njit

from lamost_lsf.centers._fastmath import exp, log
from lamost_lsf.centers._spline import all_good, select

__all__ = ["ALPHA", "CENTER", "CONSTANT", "EXPONENT", "SLOPE", "WIDTH", "fit_peaks"]

ALPHA, CENTER, WIDTH, EXPONENT, SLOPE, CONSTANT = range(6)

#: Columns of the result of `fit_peaks` after the six parameters and their six standard deviations.
CHI2, N_USED, N_ITERATIONS, CONVERGED = 12, 13, 14, 15

_MAX_ITERATIONS = 500
# steps that lower chi2 by less than 1e-9 of itself before the fit is called converged all the same
_MAX_IDLE = 6
# block means: this many of them at least
_MIN_BLOCKS = 72

# Columns of the state of a point in parameter space: gradient J^T W r (6), then the upper triangles of J^T W J
# and of the sum of w r times the second derivatives of f (6 x 6 each, by rows). The Hessian of chi2 / 2 is
# the difference of the two. Two points are kept: where the fit is and where it tries to go.
_JTJ, _CURVATURE, _STATE = 6, 42, 78
# rows of scratch per sample that `_evaluate_sersic` needs
_COLUMNS = 4

# Reassociation lets sums run in parallel; NaN and infinity keep their meaning.
_SUMS = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _evaluate_gauss(t, y, w, n, p, state, k):
    """chi2 of the Gaussian without background; its derivatives go to state[k]."""
    alpha, center, inverse = p[ALPHA], p[CENTER], 1.0 / p[WIDTH]
    chi2 = e0 = e1 = e2 = e3 = e4 = r0 = r1 = r2 = r3 = r4 = 0.0
    for i in range(n):
        u = (t[i] - center) * inverse
        u2 = u * u
        e = exp(-0.5 * u2)
        r = y[i] - alpha * e
        wr = w[i] * r
        chi2 += wr * r
        we = wr * e
        r0 += we
        r1 += we * u
        r2 += we * u2
        r3 += we * u2 * u
        r4 += we * u2 * u2
        we = w[i] * e * e
        e0 += we
        e1 += we * u
        e2 += we * u2
        e3 += we * u2 * u
        e4 += we * u2 * u2
    c = alpha * inverse
    s = state[k]
    s[0], s[1], s[2] = r0, c * r1, c * r2
    j = _JTJ
    s[j], s[j + 1], s[j + 2] = e0, c * e1, c * e2
    s[j + 7], s[j + 8], s[j + 14] = c * c * e2, c * c * e3, c * c * e4
    j = _CURVATURE
    s[j], s[j + 1], s[j + 2] = 0.0, inverse * r1, inverse * r2
    s[j + 7], s[j + 8] = c * inverse * (r2 - r0), c * inverse * (r3 - 2.0 * r1)
    s[j + 14] = c * inverse * (r4 - 3.0 * r2)
    return chi2


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _evaluate_sersic(t, y, w, n, p, soft, state, k, columns):
    """As `_evaluate_gauss` for all six parameters.

    ``soft`` is a fraction of the sample spacing: |u|^(d-2), which the second derivative in c holds and which
    is infinite at c for d < 2, is evaluated no closer to c than that. It shapes the step, not the optimum.
    """
    alpha, center, inverse, d = p[ALPHA], p[CENTER], 1.0 / p[WIDTH], p[EXPONENT]
    slope, constant = p[SLOPE], p[CONSTANT]
    inverse_d = 1.0 / d
    largest = 750.0 * d
    floor = (soft * inverse) ** 2
    # Three loops, as more sums than registers would spill in one. Derivatives of f, less constant factors:
    # e, e1 (in c), e2 (in g), e3 (in d), t, 1.
    c0, c1, c2, c3 = columns[0], columns[1], columns[2], columns[3]
    chi2 = s0 = s1 = s2 = s3 = s4 = s5 = 0.0
    q11 = q12 = q13 = q22 = q23 = q33 = 0.0
    for i in range(n):
        u = (t[i] - center) * inverse
        # ln|u| enters only as |u|^d ln|u|, which is 0 at u = 0 for the tiny number standing in for 0
        u2 = u * u + 1e-290
        lnu = 0.5 * log(u2)
        power = exp(d * lnu)
        power = power if power < largest else largest
        c0[i] = exp(-power * inverse_d)
        c1[i] = u
        c2[i] = power
        c3[i] = lnu
    for i in range(n):
        e, u, power, lnu = c0[i], c1[i], c2[i], c3[i]
        inverse_u2 = 1.0 / (u * u + floor)
        ratio = power * u / (u * u + 1e-290)
        v = power * inverse_d * (inverse_d - lnu)
        r = y[i] - alpha * e - slope * t[i] - constant
        wr = w[i] * r
        chi2 += wr * r
        s4 += wr * t[i]
        s5 += wr
        we = wr * e
        s0 += we
        s1 += we * ratio
        s2 += we * power
        s3 += we * v
        q11 += we * (ratio * ratio - (d - 1.0) * power * inverse_u2)
        q12 += we * ratio * (power - d)
        q22 += we * power * (power - d - 1.0)
        q13 += we * ratio * (v + lnu)
        q23 += we * power * (v + lnu)
        q33 += we * (v * v - power * inverse_d * (lnu * lnu + 2.0 * inverse_d * (inverse_d - lnu)))
        c1[i] = e * ratio
        c2[i] = e * power
        c3[i] = e * v
    j00 = j01 = j02 = j03 = j04 = j05 = 0.0
    j11 = j12 = j13 = j14 = j15 = 0.0
    j22 = j23 = j24 = j25 = 0.0
    j33 = j34 = j35 = j44 = j45 = j55 = 0.0
    for i in range(n):
        x, wi = t[i], w[i]
        e, e1, e2, e3 = c0[i], c1[i], c2[i], c3[i]
        we = wi * e
        j00 += we * e
        j01 += we * e1
        j02 += we * e2
        j03 += we * e3
        j04 += we * x
        j05 += we
        we = wi * e1
        j11 += we * e1
        j12 += we * e2
        j13 += we * e3
        j14 += we * x
        j15 += we
        we = wi * e2
        j22 += we * e2
        j23 += we * e3
        j24 += we * x
        j25 += we
        we = wi * e3
        j33 += we * e3
        j34 += we * x
        j35 += we
        we = wi * x
        j44 += we * x
        j45 += we
        j55 += wi
    c = alpha * inverse
    s = state[k]
    s[0], s[1], s[2], s[3], s[4], s[5] = s0, c * s1, c * s2, alpha * s3, s4, s5
    j = _JTJ
    s[j], s[j + 1], s[j + 2], s[j + 3], s[j + 4], s[j + 5] = j00, c * j01, c * j02, alpha * j03, j04, j05
    j += 7
    s[j], s[j + 1], s[j + 2], s[j + 3], s[j + 4] = c * c * j11, c * c * j12, c * alpha * j13, c * j14, c * j15
    j += 7
    s[j], s[j + 1], s[j + 2], s[j + 3] = c * c * j22, c * alpha * j23, c * j24, c * j25
    j += 7
    s[j], s[j + 1], s[j + 2] = alpha * alpha * j33, alpha * j34, alpha * j35
    j += 7
    s[j], s[j + 1], s[j + 7] = j44, j45, j55
    for j in range(_CURVATURE, _STATE):
        s[j] = 0.0
    j = _CURVATURE
    s[j + 1], s[j + 2], s[j + 3] = inverse * s1, inverse * s2, s3
    s[j + 7], s[j + 8], s[j + 9] = c * inverse * q11, c * inverse * q12, c * q13
    s[j + 14], s[j + 15], s[j + 21] = c * inverse * q22, c * q23, alpha * q33
    return chi2


@njit(cache=True, error_model="numpy")
def _evaluate(plain, t, y, w, n, p, soft, state, k, columns):
    if plain:
        return _evaluate_gauss(t, y, w, n, p, state, k)
    return _evaluate_sersic(t, y, w, n, p, soft, state, k, columns)


@njit(cache=True, error_model="numpy")
def _cholesky(a, n):
    """Lower factor of the upper triangle of a, in place below and on the diagonal; False if not positive."""
    for j in range(n):
        s = a[j, j]
        for k in range(j):
            s -= a[j, k] * a[j, k]
        # the matrix has a unit diagonal before damping
        if not s > 1e-13:
            return False
        root = np.sqrt(s)
        a[j, j] = root
        for i in range(j + 1, n):
            s = a[j, i]
            for k in range(j):
                s -= a[i, k] * a[j, k]
            a[i, j] = s / root
    return True


@njit(cache=True, error_model="numpy")
def _back_substitute(a, b, n):
    for i in range(n):
        s = b[i]
        for k in range(i):
            s -= a[i, k] * b[k]
        b[i] = s / a[i, i]
    for i in range(n - 1, -1, -1):
        s = b[i]
        for k in range(i + 1, n):
            s -= a[k, i] * b[k]
        b[i] = s / a[i, i]


@njit(cache=True, error_model="numpy")
def _factor(state, here, newton, damping, index, n, scale, matrix):
    """Cholesky factor of the scaled, damped Hessian of the parameters in ``index[:n]``."""
    for i in range(n):
        for j in range(i, n):
            cell = 6 * index[i] + index[j]
            value = state[here, _JTJ + cell]
            if newton:
                value -= state[here, _CURVATURE + cell]
            matrix[i, j] = value / (scale[i] * scale[j])
        matrix[i, i] += damping
    return _cholesky(matrix, n)


@njit(cache=True, error_model="numpy")
def _active(p, free, n_free, bounds, state, here, index):
    """Parameters to step in: an exponent held at its bound by the gradient stays out."""
    n = 0
    for i in range(n_free):
        k = free[i]
        if k == EXPONENT and (
            (p[k] >= bounds[1] and state[here, k] >= 0.0) or (p[k] <= bounds[0] and state[here, k] <= 0.0)
        ):
            continue
        index[n] = k
        n += 1
    return n


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _power(y, w, n):
    total = 0.0
    for i in range(n):
        total += w[i] * y[i] * y[i]
    return total


@njit(cache=True, error_model="numpy")
def _minimize(plain, t, y, w, n, p, free, n_free, bounds, soft, tolerance, limit, state, small, index, columns):
    """Move p to the minimum; return (converged, steps tried). state, small, index, columns are scratch."""
    trial, scale, step = small[0], small[1], small[2]
    matrix = small[3:]
    here = 0
    chi2 = _evaluate(plain, t, y, w, n, p, soft, state, here, columns)
    # rounding of chi2 itself: a fit to noiseless samples of its own model ends at 0
    noise = 1e-15 * _power(y, w, n)
    damping = 0.0
    idle = 0
    for iteration in range(1, limit + 1):
        active = _active(p, free, n_free, bounds, state, here, index)
        for i in range(active):
            s = state[here, _JTJ + 7 * index[i]]
            if not (s > 0.0 and s < np.inf):
                return False, iteration
            scale[i] = np.sqrt(s)
        newton = _factor(state, here, True, damping, index, active, scale, matrix)
        if not newton:
            damping = max(damping, 1e-3)
            if not _factor(state, here, False, damping, index, active, scale, matrix):
                damping *= 10.0
                continue
        for i in range(active):
            step[i] = state[here, index[i]] / scale[i]
        _back_substitute(matrix, step, active)
        size = 0.0
        shrink = 1.0
        for i in range(active):
            k = index[i]
            step[i] /= scale[i]
            move = abs(step[i])
            if k == CENTER:
                move /= p[WIDTH]
                shrink = min(shrink, 1.0 / move) if move > 0.0 else shrink
            elif k == WIDTH:
                move /= p[WIDTH]
                shrink = min(shrink, 0.5 / move) if move > 0.0 else shrink
            elif k == EXPONENT:
                shrink = min(shrink, 0.7 / move) if move > 0.0 else shrink
            else:
                # of the background only what matters next to the peak
                move /= abs(p[ALPHA])
                if k == SLOPE:
                    move *= p[WIDTH]
            size = max(size, move)
        if not size < np.inf:
            return False, iteration
        for k in range(6):
            trial[k] = p[k]
        for i in range(active):
            trial[index[i]] += shrink * step[i]
        if not plain:
            trial[EXPONENT] = min(max(trial[EXPONENT], bounds[0]), bounds[1])
        # Newton's error after a step is of the order of the step squared; of others, of the step
        if size < (tolerance if newton and damping == 0.0 else 1e-3 * tolerance):
            for k in range(6):
                p[k] = trial[k]
            return True, iteration
        trial_chi2 = _evaluate(plain, t, y, w, n, trial, soft, state, 1 - here, columns)
        if trial_chi2 <= chi2 * (1.0 + 1e-14) + noise:
            # along a valley without a slope (two samples straddling an undersampled peak fix no exponent)
            # any point is as good as the last
            idle += 1 if chi2 - trial_chi2 <= 1e-9 * chi2 else 0
            chi2 = trial_chi2
            for k in range(6):
                p[k] = trial[k]
            if idle >= _MAX_IDLE:
                return True, iteration
            here = 1 - here
            damping = 0.1 * damping if damping > 1e-3 else 0.0
        else:
            damping = 10.0 * damping if damping > 0.0 else 1e-3
            # not even a step of 1e-10 of the parameters' scale goes down: this is the minimum (at a kink,
            # where d is at a bound of 1 and c on a sample)
            if damping > 1e10:
                return True, iteration
    return False, limit


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _block_sums(y, n, block, out):
    count = 0
    start = 0
    while start + block <= n:
        total = 0.0
        for i in range(start, start + block):
            total += y[i]
        out[count] = total
        count += 1
        start += block
    if start < n:
        total = 0.0
        for i in range(start, n):
            total += y[i]
        out[count] = total
        count += 1
    return count


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _weighted_blocks(t, y, w, n, block, tb, yb, wb, columns):
    """Weighted means of t and y, and the sums of the weights."""
    ty, yy = columns[0], columns[1]
    for i in range(n):
        ty[i] = w[i] * t[i]
        yy[i] = w[i] * y[i]
    count = _block_sums(w, n, block, wb)
    _block_sums(ty, n, block, tb)
    _block_sums(yy, n, block, yb)
    for i in range(count):
        tb[i] /= wb[i]
        yb[i] /= wb[i]
    return count


@njit(cache=True, error_model="numpy")
def _crossing(t, y, n, top, direction, level, slope, constant):
    """Distance from the top to where y less its baseline falls below level; -1 where it never does."""
    i = top
    above = y[top] - slope * t[top] - constant
    while 0 <= i + direction < n:
        i += direction
        below = y[i] - slope * t[i] - constant
        if below < level:
            share = (above - level) / (above - below)
            before = t[i - direction]
            return abs(before + share * (t[i] - before) - t[top])
        above = below
    return -1.0


@njit(cache=True, error_model="numpy")
def _start(t, y, n, slope_free, constant_free, p):
    """First parameters: baseline from the window's ends, half-maximum crossings for centre and width."""
    slope = constant = 0.0
    if constant_free:
        k = max(1, n // 12)
        left = right = t_left = t_right = 0.0
        for i in range(k):
            left += y[i] / k
            t_left += t[i] / k
            right += y[n - 1 - i] / k
            t_right += t[n - 1 - i] / k
        if slope_free:
            slope = (right - left) / (t_right - t_left)
            constant = left - slope * t_left
        else:
            constant = min(left, right)
    top = 0
    for i in range(1, n):
        if y[i] - slope * t[i] > y[top] - slope * t[top]:
            top = i
    height = y[top] - slope * t[top] - constant
    if not height > 0.0:
        return False
    left = _crossing(t, y, n, top, -1, 0.5 * height, slope, constant)
    right = _crossing(t, y, n, top, 1, 0.5 * height, slope, constant)
    if left < 0.0 and right < 0.0:
        left = right = 0.25 * (t[n - 1] - t[0])
    elif left < 0.0:
        left = right
    elif right < 0.0:
        right = left
    p[ALPHA] = height
    p[CENTER] = t[top] + 0.5 * (right - left)
    p[WIDTH] = max((left + right) / 2.3548, 0.25 * (t[n - 1] - t[0]) / n)
    p[SLOPE] = slope
    p[CONSTANT] = constant
    return True


@njit(cache=True, error_model="numpy")
def _covariance(p, free, n_free, bounds, state, small, index, covariance):
    """Covariance of the minimum for independent errors: H^-1 (J^T W J) H^-1, with W = 1 / error^2.

    H is the full Hessian: where the model does not describe the profile (a skewed line), the scatter of the
    optimum differs from the inverse of J^T W J.
    """
    scale, row, matrix = small[0], small[1], small[3:]
    n = _active(p, free, n_free, bounds, state, 0, index)
    covariance[:] = np.nan
    for i in range(n):
        scale[i] = np.sqrt(state[0, _JTJ + 7 * index[i]])
    if not _factor(state, 0, True, 0.0, index, n, scale, matrix):
        return
    inverse = np.empty((6, 6))
    for i in range(n):
        row[:] = 0.0
        row[i] = 1.0
        _back_substitute(matrix, row, n)
        for j in range(n):
            inverse[i, j] = row[j] / (scale[i] * scale[j])
    covariance[:] = 0.0
    for i in range(n):
        for j in range(n):
            total = 0.0
            for k in range(n):
                for m in range(n):
                    cell = 6 * index[min(k, m)] + index[max(k, m)]
                    total += inverse[i, k] * state[0, _JTJ + cell] * inverse[m, j]
            covariance[index[i], index[j]] = total


@njit(cache=True, error_model="numpy", fastmath=_SUMS)
def _sum_of(y, n):
    total = 0.0
    for i in range(n):
        total += y[i]
    return total


@njit(cache=True, error_model="numpy")
def _inverse_squares(error, n, out):
    for i in range(n):
        out[i] = 1.0 / (error[i] * error[i])


@njit(cache=True, error_model="numpy")
def fit_peaks(x, profile, error, mask, free, exponent, bounds, tolerance, full, out):
    """Fit every row of profile.

    Parameters
    ----------
    x : ndarray (n,)
    profile : ndarray (m, n)
    error, mask : ndarray (m, n), (1, n) or (0, n)
        As in `lamost_lsf.centers._base.Samples`.
    free : ndarray of int (k,)
        Parameters that are fitted, ascending. The rest keep: slope 0, constant 0, exponent ``exponent``.
    exponent : float
        Exponent d that the fit starts from.
    bounds : ndarray (2,)
        Of the exponent.
    tolerance : float
        Relative size of the Newton step (which is still taken) that ends the fit.
    full : bool
        Whether to fill chi2 and the standard deviations.
    out : ndarray (m, 16)
        Six parameters (in x, not t), their standard deviations, chi2, samples used, steps, converged (1 or 0).
    """
    rows, n = profile.shape
    n_free = free.size
    exponent_free = slope_free = constant_free = False
    for k in free:
        exponent_free |= k == EXPONENT
        slope_free |= k == SLOPE
        constant_free |= k == CONSTANT
    plain = n_free == 3 and exponent == 2.0 and not exponent_free
    gaussian = np.array([k for k in free if k != EXPONENT])
    middle = 0.5 * (x[0] + x[n - 1])
    t_all = x - middle
    ones = np.ones(n)
    xs, ys, es, ts, ws = np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    tb, yb, wb = np.empty(n), np.empty(n), np.empty(n)
    columns = np.empty((_COLUMNS, n))
    state, small, index = np.zeros((2, _STATE)), np.zeros((9, 6)), np.empty(6, np.int64)
    covariance = np.empty((6, 6))
    p = np.empty(6)
    weighted = error.shape[0] > 0
    # most often all samples of a profile are good: nothing then need be copied
    t_blocks, w_blocks = np.empty(n), np.empty(n)
    block_all = max(1, n // _MIN_BLOCKS)
    blocks_all = _weighted_blocks(t_all, t_all, ones, n, block_all, t_blocks, yb, w_blocks, columns)
    for row in range(rows):
        out[row] = np.nan
        out[row, CONVERGED] = 0.0
        good = np.isfinite(_sum_of(profile[row], n)) and all_good(error, mask, row, n)
        if good and not weighted:
            t, y, w, count = t_all, profile[row], ones, n
            td, wd, block, blocks = t_blocks, w_blocks, block_all, blocks_all
            _block_sums(y, n, block, yb)
            for i in range(blocks):
                yb[i] /= wd[i]
        elif good:
            _inverse_squares(error[row if error.shape[0] > 1 else 0], n, ws)
            t, y, w, count = t_all, profile[row], ws, n
            td, wd, block = tb, wb, block_all
            blocks = _weighted_blocks(t, y, w, n, block, tb, yb, wb, columns)
        else:
            count = select(x, profile, error, mask, row, xs, ys, es)
            for i in range(count):
                ts[i] = xs[i] - middle
                ws[i] = 1.0 / (es[i] * es[i]) if weighted else 1.0
            t, y, w = ts, ys, ws
            td, wd, block = tb, wb, max(1, count // _MIN_BLOCKS)
            blocks = _weighted_blocks(t, y, w, count, block, tb, yb, wb, columns)
        out[row, N_USED] = count
        if count < max(n_free, 2):
            continue
        spacing = (t[count - 1] - t[0]) / (count - 1)
        p[EXPONENT] = exponent
        if not _start(td, yb, blocks, slope_free, constant_free, p):
            continue
        steps = 0
        soft = 0.3 * spacing * block
        # loosely with a Gaussian core first: exponent and width pull the same way far from the optimum
        if exponent_free:
            _, k = _minimize(
                False, td, yb, wd, blocks, p, gaussian, n_free - 1, bounds, soft, 0.1, 6, state, small, index, columns
            )
            steps += k
        if block > 1:
            _, k = _minimize(
                plain, td, yb, wd, blocks, p, free, n_free, bounds, soft, 1e-2, 30, state, small, index, columns
            )
            steps += k
        soft = 0.3 * spacing
        converged, k = _minimize(
            plain,
            t,
            y,
            w,
            count,
            p,
            free,
            n_free,
            bounds,
            soft,
            tolerance,
            _MAX_ITERATIONS,
            state,
            small,
            index,
            columns,
        )
        steps += k
        out[row, N_ITERATIONS] = steps
        if not (
            converged
            and p[ALPHA] > 0.0
            and t[0] <= p[CENTER] <= t[count - 1]
            and 0.2 * spacing < p[WIDTH] < 4.0 * (t[count - 1] - t[0])
        ):
            continue
        out[row, CONVERGED] = 1.0
        for k in range(6):
            out[row, k] = p[k]
        out[row, CENTER] = p[CENTER] + middle
        out[row, CONSTANT] = p[CONSTANT] - p[SLOPE] * middle
        if full:
            out[row, CHI2] = _evaluate(plain, t, y, w, count, p, soft, state, 0, columns)
            if weighted:
                _covariance(p, free, n_free, bounds, state, small, index, covariance)
                for k in range(5):
                    out[row, 6 + k] = np.sqrt(covariance[k, k])
                out[row, 6 + CONSTANT] = np.sqrt(
                    covariance[CONSTANT, CONSTANT]
                    - 2.0 * middle * covariance[SLOPE, CONSTANT]
                    + middle * middle * covariance[SLOPE, SLOPE]
                )
