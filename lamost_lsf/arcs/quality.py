"""Why a profile is rejected, and how cosmic rays are told from profiles.

A cosmic ray is light where lines of the same wavelength in other fibres have none. The reference shape of a profile is
the median of its neighbours' along the slit, plus what the fibre's other lines have in common that the neighbours lack:
a fibre with a defect keeps its shape, a hit of one line does not make it into the reference.
"""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numba import njit

from lamost_lsf.elimination import solve_in_place

__all__ = ["REASONS", "ProfileFlag", "find_cosmic_rays", "reference_shapes"]


class ProfileFlag(IntFlag):
    """Reasons for which a profile is rejected; 0 is a good profile.

    A reason that explains others hides them: a blended line is not called double-peaked as well, and a fibre without
    light has no shape to be criticised.
    """

    LOW_FLUX = 1
    NOT_SINGLE_PEAKED = 2
    COSMIC_RAY = 4
    SATURATED = 8
    BLEND = 16
    GAP = 32
    BACKGROUND_SLOPE = 64
    OFF_CHIP = 128


#: What each flag means, for people.
REASONS = {
    ProfileFlag.LOW_FLUX: "fibre below half the exposure's median flux, or no significant line",
    ProfileFlag.NOT_SINGLE_PEAKED: "a second maximum, or none where the line should be",
    ProfileFlag.COSMIC_RAY: "pixels far above the line's typical shape",
    ProfileFlag.SATURATED: "pixels at the saturation level, or a flat top",
    ProfileFlag.BLEND: "another line of the lamp inside the window",
    ProfileFlag.GAP: "bad pixels in the inner half of the window, or several in a row",
    ProfileFlag.BACKGROUND_SLOPE: "background that changes too much across the window",
    ProfileFlag.OFF_CHIP: "window not wholly on the detector",
}

#: Neighbouring fibres whose profiles make a reference, which serves a block of them: extraction spends most on medians.
_MEMBERS = 13
_BLOCK = 3
_LEAST_MEMBERS = 6
_LEAST_LINES = 3
#: More pixels than this, and it is no cosmic ray.
_MOST_PIXELS = 6


@njit(cache=True, error_model="numpy")
def _sort(values, n):
    for i in range(1, n):
        v = values[i]
        j = i - 1
        while j >= 0 and values[j] > v:
            values[j + 1] = values[j]
            j -= 1
        values[j + 1] = v


@njit(cache=True, error_model="numpy")
def _median(values, n):
    """Median of the first n values, which are sorted in place."""
    _sort(values, n)
    half = n // 2
    return values[half] if n % 2 else 0.5 * (values[half - 1] + values[half])


@njit(cache=True, error_model="numpy")
def _reference(shapes, usable, members, block, least_members, least_lines):
    n_fiber, n_line, n_grid = shapes.shape
    typical = np.full(shapes.shape, np.nan)
    scatter = np.full(shapes.shape, np.nan)
    work = np.empty(max(members, n_line))
    differences, values = np.empty(members), np.empty(members)
    chosen = np.empty(members, dtype=np.int64)
    for line in range(n_line):
        for start in range(0, n_fiber, block):
            stop = min(start + block, n_fiber)
            # the usable fibres nearest to the block's middle
            middle = (start + stop - 1) // 2
            count, step = 0, 0
            while count < members and step < 2 * members:
                for side in range(1 if step == 0 else 2):
                    other = middle + step if side == 0 else middle - step
                    if 0 <= other < n_fiber and usable[other, line] and count < members:
                        chosen[count] = other
                        count += 1
                step += 1
            if count < least_members:
                continue
            _sort(chosen, count)
            mean, square = 0.0, 0.0
            for i in range(count):
                mean += chosen[i] / count
            for i in range(count):
                square += (chosen[i] - mean) ** 2
            for g in range(n_grid):
                for i in range(count):
                    work[i] = shapes[chosen[i], line, g]
                # From one fibre to the next, so that a trend along the slit is no scatter. The median of the modulus of
                # a normal difference is 0.6745 of its standard deviation, which is sqrt(2) times that of either.
                for i in range(count - 1):
                    differences[i] = abs(work[i + 1] - work[i])
                spread = _median(differences, count - 1) / 0.9539
                # At the slit's ends all neighbours are on one side: a straight line takes what the fibres' trend adds
                # there. Its slope is that of least squares, outliers being pulled in.
                for i in range(count):
                    values[i] = work[i]
                center = _median(work, count)
                slope = 0.0
                for i in range(count):
                    slope += (chosen[i] - mean) * min(max(values[i] - center, -8.0 * spread), 8.0 * spread)
                slope /= square
                for f in range(start, stop):
                    typical[f, line, g] = center + slope * (f - mean)
                    scatter[f, line, g] = spread
    for f in range(n_fiber):
        for g in range(n_grid):
            count = 0
            for line in range(n_line):
                if usable[f, line] and np.isfinite(typical[f, line, g]):
                    work[count] = shapes[f, line, g] - typical[f, line, g]
                    count += 1
            if count < least_lines:
                continue
            own = _median(work, count)
            for line in range(n_line):
                typical[f, line, g] += own
                scatter[f, line, g] = np.sqrt(scatter[f, line, g] ** 2 + (0.3 * own) ** 2)
    return typical, scatter


def reference_shapes(shapes: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape that each profile should have, and how well that is known.

    Parameters
    ----------
    shapes : ndarray (n_fiber, n_line, n_grid)
        Peak-normalised profiles on a common grid of offsets, fibres in the order of the slit.
    usable : ndarray of bool (n_fiber, n_line)
        Profiles that may speak for their neighbours.

    Returns
    -------
    typical, scatter : ndarray (n_fiber, n_line, n_grid)
        NaN where there are too few neighbours.
    """
    return _reference(
        np.ascontiguousarray(shapes), np.ascontiguousarray(usable), _MEMBERS, _BLOCK, _LEAST_MEMBERS, _LEAST_LINES
    )


@njit(cache=True, error_model="numpy")
def find_cosmic_rays(offset, flux, ivar, good, typical, scatter, low, step, sigma, floor, hit):
    """Mark the pixels of one profile that a cosmic ray has hit.

    Parameters
    ----------
    offset, flux, ivar : ndarray (n,)
        Offsets (Angstrom), counts less the background, inverse variance.
    good : ndarray of bool (n,)
    typical, scatter : ndarray (n_grid,)
        Reference shape at ``low + step * k``.
    low, step : float
    sigma, floor : float
        Significance and relative floor, see `~lamost_lsf.instruments.Quality`.
    hit : ndarray of bool (n,)
        Result.

    Returns
    -------
    int
        Number of pixels hit.
    """
    n, n_grid = offset.size, typical.size
    hit[:] = False
    shape, slope, width = np.empty(n), np.empty(n), np.empty(n)
    ratio = np.empty(n)
    count = 0
    for j in range(n):
        t = (offset[j] - low) / step
        k = min(max(int(t), 0), n_grid - 2)
        t -= k
        # cubic through four grid points: linear interpolation would be off by 1 % at the peak
        k0, k3 = max(k - 1, 0), min(k + 2, n_grid - 1)
        p0, p1, p2, p3 = typical[k0], typical[k], typical[k + 1], typical[k3]
        c1 = 0.5 * (p2 - p0)
        c2 = p0 - 2.5 * p1 + 2.0 * p2 - 0.5 * p3
        c3 = 0.5 * (p3 - p0) + 1.5 * (p1 - p2)
        shape[j] = p1 + t * (c1 + t * (c2 + t * c3))
        slope[j] = (c1 + t * (2.0 * c2 + 3.0 * t * c3)) / step
        width[j] = (1.0 - t) * scatter[k] + t * scatter[k + 1]
        if good[j] and shape[j] > 0.3:
            ratio[count] = flux[j] / shape[j]
            count += 1
    if count < 3:
        return 0
    # A hit only adds light: the lower quartile of the ratios survives one that covers half of the core.
    _sort(ratio, count)
    # Then amplitude, a small shift and what the joined minima left of the background are fitted to the pixels not hit.
    amplitude, shift, level, tilt = ratio[count // 4], 0.0, 0.0, 0.0
    if not amplitude > 0.0:
        return 0
    matrix, vector, row = np.empty((4, 4)), np.empty(4), np.empty(4)
    found = 0
    for iteration in range(4):
        found = 0
        for j in range(n):
            hit[j] = False
            if not good[j]:
                continue
            model = amplitude * shape[j] + shift * slope[j] + level + tilt * offset[j]
            known = amplitude * width[j]
            least = amplitude * floor * (0.08 + max(shape[j], 0.0))
            error = np.sqrt(1.0 / ivar[j] + known * known + least * least)
            ratio[j] = (flux[j] - model) / error
            if ratio[j] > sigma:
                hit[j] = True
                found += 1
        if found == 0 and iteration > 0:
            return 0
        if iteration == 3:
            break
        matrix[:] = 0.0
        vector[:] = 0.0
        for j in range(n):
            if good[j] and not hit[j]:
                least = amplitude * floor * (0.08 + max(shape[j], 0.0))
                weight = 1.0 / (1.0 / ivar[j] + (amplitude * width[j]) ** 2 + least * least)
                row[0], row[1], row[2], row[3] = shape[j], slope[j], 1.0, offset[j]
                for a in range(4):
                    vector[a] += weight * row[a] * flux[j]
                    for b in range(4):
                        matrix[a, b] += weight * row[a] * row[b]
        if not solve_in_place(matrix, vector, vector.size, 0.0) or not vector[0] > 0.0:
            break
        amplitude, shift, level, tilt = vector[0], vector[1], vector[2], vector[3]
    if found == 0 or found > _MOST_PIXELS:
        hit[:] = False
        return 0
    # its fainter flanks
    for j in range(n):
        if good[j] and not hit[j] and ratio[j] > 2.5:
            beside = (j > 0 and hit[j - 1] and ratio[j - 1] > sigma) or (
                j < n - 1 and hit[j + 1] and ratio[j + 1] > sigma
            )
            if beside:
                hit[j] = True
                found += 1
    return found
