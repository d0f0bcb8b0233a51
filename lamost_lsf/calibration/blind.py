"""`identify_lines`: which lines of a lamp are seen, when nothing is known of the wavelength scale.

Patterns of four neighbouring peaks are compared with patterns of four lines of the list by their ratios of distances,
which neither a shift nor a stretch changes (as star patterns are recognised, Lang et al. 2010, AJ 139, 1782). Each pair
that looks alike is a hypothesis; it is grown over the detector, peak by peak, with a curve that becomes less stiff. The
hypothesis that explains the peaks best, measured against chance in a list as dense as this one, is kept if it does so
beyond doubt.
"""

from __future__ import annotations

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from numpy.polynomial import polynomial

from lamost_lsf.calibration.patterns import grow_matches, log_odds, match_patterns, quads
from lamost_lsf.calibration.peaks import ArcPeaks
from lamost_lsf.lines import LineList
from lamost_lsf.units import to_angstrom

__all__ = ["Identification", "identify_lines"]

#: Peaks, brightest first, and how many that follow one make patterns with it.
_PEAKS = ((10, 6), (16, 6), (30, 6), (50, 5))
#: The same for listed lines.
_LINES = ((30, 6), (60, 7), (120, 7), (240, 6))
#: Peaks that a solution must explain.
_JUDGED = 60
#: Scatter (pixels) of the peaks about a right solution.
_SIGMA = 0.7
#: Shares of unlisted peaks that are considered, and what each costs as a hypothesis (log of its prior).
_MISSING = ((0.3, 0.0), (0.6, -1.0), (0.85, -3.0))
#: Log-odds, and lead over the next solution, below which none is accepted.
_LEAST, _LEAD = 12.0, 7.0
#: Solutions whose ends are looked at again, and peaks that are then used.
_MENDED, _MANY = 3, 150
#: Bends of an end, pixels, that are tried; matching forgives half their distance.
_BENDS = [3.0 * k for k in range(-10, 11) if k]
#: Dispersions, Angstrom per pixel, that are tried unless limits are given.
_DISPERSION = (0.02, 20.0)
_WAVELENGTH = (2000.0, 26000.0)


@dataclass(frozen=True)
class Identification:
    """A wavelength scale found by pattern.

    Attributes
    ----------
    coefficients : ndarray (5,)
        Vacuum wavelength, Angstrom, in powers of t = (pixel - (n_pix - 1) / 2) / (n_pix / 2).
    n_pix : int
    n_matched, n_peaks : int
        Bright peaks that a listed line lies within 1.5 pixels of, of how many.
    significance : float
        Log-odds against chance.
    lead : float
        By which the next solution is worse.
    """

    coefficients: np.ndarray
    n_pix: int
    n_matched: int
    n_peaks: int
    significance: float
    lead: float

    def __call__(self, pixel: np.ndarray) -> np.ndarray:
        """Vacuum wavelength, Angstrom, at pixels."""
        t = (np.asarray(pixel, dtype=np.float64) - 0.5 * (self.n_pix - 1.0)) / (0.5 * self.n_pix)
        return polynomial.polyval(t, self.coefficients)

    def scale(self, n_pix: int) -> np.ndarray:
        """Wavelengths of the pixels (n_pix,), made monotonic beyond the peaks where the curve would turn."""
        value = self(np.arange(n_pix))
        step = np.diff(value)
        direction = np.sign(np.median(step))
        least = 0.2 * np.abs(np.median(step))
        step = direction * np.maximum(direction * step, least)
        middle = n_pix // 2
        result = np.empty(n_pix)
        result[middle] = value[middle]
        result[middle + 1 :] = value[middle] + np.cumsum(step[middle:])
        result[:middle] = value[middle] - np.cumsum(step[:middle][::-1])[::-1]
        return result


def identify_lines(
    peaks: ArcPeaks,
    lines: LineList,
    *,
    n_pix: int,
    wavelength_range: u.Quantity | None = None,
    dispersion_range: u.Quantity | None = None,
) -> Identification:
    """Rough wavelength scale of an arc from nothing but its peaks and the lamp's lines.

    Parameters
    ----------
    peaks : ArcPeaks
        From `find_arc_lines`.
    lines : LineList
        Of the lamp; relative intensities help, even those of a lamp of the same elements elsewhere.
    n_pix : int
        Pixels of the spectrum.
    wavelength_range : `~astropy.units.Quantity` (2,), optional
        Vacuum wavelengths that the spectrum does not exceed.
    dispersion_range : `~astropy.units.Quantity` (2,), optional
        Angstrom per pixel (of either sign: the direction is found), least and largest.

    Returns
    -------
    Identification

    Raises
    ------
    ValueError
        Fewer than six peaks or lines; limits that make no sense; no identification beyond doubt.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from lamost_lsf.calibration import find_arc_lines, identify_lines
    >>> from lamost_lsf.lines import LineList
    >>> rng = np.random.default_rng(4)
    >>> wavelength = np.sort(rng.uniform(5000, 7000, 25))
    >>> pixel = np.arange(1000)
    >>> where = (wavelength - 5000) / 2
    >>> flux = np.sum(np.exp(-0.5 * ((pixel - where[:, None]) / 1.5) ** 2), axis=0) * 1000 + rng.normal(20, 2, 1000)
    >>> lines = LineList.from_wavelengths(wavelength * u.AA, medium="vacuum")
    >>> found = identify_lines(find_arc_lines(flux), lines, n_pix=1000)
    >>> print(f"{found(500):.0f}")
    6000
    """
    low, high = _limits(wavelength_range, "wavelength_range", u.AA, _WAVELENGTH)
    least, most = _limits(dispersion_range, "dispersion_range", u.AA / u.pix, _DISPERSION)
    inside = (lines.vacuum >= low) & (lines.vacuum <= high)
    listed, weight = lines.vacuum[inside], _line_weights(lines)[inside]
    # a line listed twice, or a multiplet that no spectrum resolves
    listed, weight = _merge(listed, weight, 1e-6 * (low + high) / 2 if not listed.size else 2e-6 * np.median(listed))
    if len(peaks) < 6 or listed.size < 6:
        raise ValueError(f"{len(peaks)} peaks and {listed.size} listed lines: a pattern takes at least six of each")
    candidates = []
    for direction in (1, -1):
        judged = peaks.strongest(_JUDGED)
        pixel = judged.pixel if direction == 1 else n_pix - 1.0 - judged.pixel[::-1]
        prominence = judged.prominence if direction == 1 else judged.prominence[::-1]
        found = _search(pixel, prominence, listed, weight, n_pix, (least, most), (low, high))
        candidates += [(score, direction, curve) for score, curve in found]
    candidates.sort(key=lambda c: -c[0])
    if not candidates:
        raise ValueError("no pattern of the peaks fits the line list: give rough=, or limits, or another list")
    judged = peaks.strongest(_JUDGED)
    # the ends of the best, where few peaks are or the list is dense, are looked at again with more peaks
    score, forward = _best(peaks, listed, n_pix, candidates[:_MENDED])
    own = _identities(judged.pixel, listed, forward, n_pix)
    # variants that bend differently at the ends are the same identification; the best other one shows what chance does
    others = []
    for other in candidates:
        theirs = _identities(judged.pixel, listed, _turned(other[2], other[1]), n_pix)
        if np.count_nonzero((own >= 0) & (own == theirs)) < 0.4 * np.count_nonzero(theirs >= 0):
            others.append(other)
    rival = max(_best(peaks, listed, n_pix, others[:_MENDED])[0], 0.0) if others else 0.0
    lead = score - rival
    result = Identification(forward, n_pix, int(np.count_nonzero(own >= 0)), len(judged), float(score), float(lead))
    if score < _LEAST or lead < _LEAD:
        raise ValueError(
            f"the lines could not be identified beyond doubt: the best solution ({result(0):.0f} to "
            f"{result(n_pix - 1):.0f} A) has log-odds {score:.1f}, the next {rival:.1f}; give rough=, "
            "wavelength_range= or dispersion_range=, or a list without lines that the lamp does not show"
        )
    return result


def _limits(given: u.Quantity | None, name: str, unit: u.UnitBase, default: tuple[float, float]) -> tuple[float, float]:
    if given is None:
        return default
    if name == "wavelength_range":
        values = to_angstrom(given, name)
    else:
        try:
            values = np.asarray(given.to_value(unit))
        except (AttributeError, u.UnitConversionError):
            raise TypeError(f"{name} must be two values in {unit}, got {given!r}") from None
    if values.shape != (2,) or not 0 < values[0] < values[1]:
        raise ValueError(f"{name} must be two positive increasing values, got {given!r}")
    return float(values[0]), float(values[1])


def _line_weights(lines: LineList) -> np.ndarray:
    """How likely a line is to be bright (n,), 0-1: its rank among those of its element, where intensities are known."""
    weight = np.full(len(lines), 0.5)
    for species in np.unique(lines.species):
        own = np.flatnonzero(lines.species == species)
        known = own[np.isfinite(lines.intensity[own])]
        if known.size > 1:
            order = np.argsort(np.argsort(-lines.intensity[known], kind="stable"), kind="stable")
            weight[known] = 1.0 / (1.0 + order / 8.0)
    return weight


def _merge(wavelength: np.ndarray, weight: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    if wavelength.size < 2:
        return wavelength, weight
    keep = np.concatenate([[True], np.diff(wavelength) > distance])
    group = np.cumsum(keep) - 1
    heaviest = np.zeros(group[-1] + 1)
    np.maximum.at(heaviest, group, weight)
    return wavelength[keep], heaviest


def _search(
    pixel: np.ndarray,
    prominence: np.ndarray,
    listed: np.ndarray,
    weight: np.ndarray,
    n_pix: int,
    dispersion: tuple[float, float],
    wavelength: tuple[float, float],
) -> list[tuple[float, np.ndarray]]:
    """Best curves and their log-odds, for wavelengths that increase with pixel."""
    bright = np.argsort(-prominence, kind="stable")
    heavy = np.argsort(-weight, kind="stable")
    judge = _weights(prominence)
    density = _density(listed)
    best: list[tuple[float, np.ndarray]] = []
    seen_lines = set()
    for n_line, line_reach in _LINES:
        chosen_lines = np.sort(heavy[:n_line])
        if chosen_lines.size in seen_lines:
            continue
        seen_lines.add(chosen_lines.size)
        line_sets = quads(chosen_lines.size, line_reach)
        seen_peaks = set()
        for n_peak, peak_reach in _PEAKS:
            chosen = np.sort(bright[:n_peak])
            if chosen.size in seen_peaks:
                continue
            seen_peaks.add(chosen.size)
            peak_sets = quads(chosen.size, peak_reach)
            starts = match_patterns(
                pixel[chosen], peak_sets, listed[chosen_lines], line_sets, n_pix=n_pix, dispersion=dispersion
            )
            if not len(starts):
                continue
            starts[:, 4:] = chosen_lines[starts[:, 4:]]
            best += _judge(pixel, chosen, judge, listed, density, n_pix, starts, wavelength)
    best.sort(key=lambda c: -c[0])
    return best[:40]


def _weights(prominence: np.ndarray) -> np.ndarray:
    """How telling each peak is: bright ones are more likely to be listed."""
    rank = np.argsort(np.argsort(-prominence, kind="stable"), kind="stable")
    return 1.0 / (1.0 + rank / 25.0)


def _density(listed: np.ndarray) -> np.ndarray:
    """Lines per Angstrom around each line, from the distance to the fourth neighbour on either side."""
    n = listed.size
    k = min(4, n - 1)
    low, high = np.maximum(np.arange(n) - k, 0), np.minimum(np.arange(n) + k, n - 1)
    return (high - low) / np.maximum(listed[high] - listed[low], 1e-6)


def _judge(
    pixel: np.ndarray,
    chosen: np.ndarray,
    judge: np.ndarray,
    listed: np.ndarray,
    density: np.ndarray,
    n_pix: int,
    starts: np.ndarray,
    wavelength: tuple[float, float],
) -> list[tuple[float, np.ndarray]]:
    """Grow the hypotheses, and weigh those that live."""
    starts = np.ascontiguousarray(starts[:200_000])
    curve = np.zeros((len(starts), 5))
    matched, tried = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
    grow_matches(pixel[chosen], listed, n_pix, starts, wavelength[0], wavelength[1], curve, matched, tried)
    alive = np.flatnonzero((matched >= 6) & (matched >= 0.45 * tried))
    if not alive.size:
        return []
    alive = alive[np.argsort(-matched[alive], kind="stable")][:3000]
    # many starts grow to the same curve
    step = np.maximum(np.abs(curve[alive, 1]) / (0.5 * n_pix), 1e-9)
    key = np.column_stack(
        [np.round(curve[alive, 0] / (2.0 * step)), np.round(np.log(np.maximum(curve[alive, 1], 1e-9)) * 500.0)]
    )
    _, first = np.unique(key, axis=0, return_index=True)
    found = []
    for i in alive[np.sort(first)]:
        polished = _polish(pixel, judge, listed, n_pix, curve[i])
        if polished is None:
            continue
        ends = polynomial.polyval(np.array([-1.0, 1.0]), polished)
        if ends.min() < wavelength[0] or ends.max() > wavelength[1]:
            continue
        odds = max(
            log_odds(pixel, judge, listed, density, n_pix, polished, _SIGMA, share) + prior for share, prior in _MISSING
        )
        found.append((float(odds), polished))
    return found


def _polish(
    pixel: np.ndarray, judge: np.ndarray, listed: np.ndarray, n_pix: int, curve: np.ndarray
) -> np.ndarray | None:
    """Curve through all judged peaks near a line; None where it turns over."""
    t = (pixel - 0.5 * (n_pix - 1.0)) / (0.5 * n_pix)
    for tolerance in (2.5, 2.0, 1.5):
        w = polynomial.polyval(t, curve)
        slope = np.abs(polynomial.polyval(t, polynomial.polyder(curve))) / (0.5 * n_pix)
        i = np.clip(np.searchsorted(listed, w), 1, listed.size - 1)
        i = np.where(listed[i] - w < w - listed[i - 1], i, i - 1)
        near = np.abs(listed[i] - w) < tolerance * np.maximum(slope, 1e-9)
        degree = int(np.clip(np.count_nonzero(near) // 3 - 1, 1, 4))
        if np.count_nonzero(near) < 5:
            return None
        new = polynomial.polyfit(t[near], listed[i][near], degree, w=np.sqrt(judge[near]))
        curve = np.concatenate([new, np.zeros(5 - new.size)])
    places = np.linspace(t.min(), t.max(), 50)
    derivative = polynomial.polyval(places, polynomial.polyder(curve))
    if not np.all(derivative > 0.3 * np.median(derivative)):
        return None
    return curve


def _best(
    peaks: ArcPeaks, listed: np.ndarray, n_pix: int, candidates: list[tuple[float, int, np.ndarray]]
) -> tuple[float, np.ndarray]:
    """Best of some solutions after their ends have been mended, and its log-odds."""
    found = []
    for score, direction, curve in candidates:
        mended, new = _mend(peaks, listed, n_pix, direction, curve)
        found.append((new, _turned(mended, direction)) if new >= score - 1.5 else (score, _turned(curve, direction)))
    return max(found, key=lambda f: f[0])


def _mend(
    peaks: ArcPeaks, listed: np.ndarray, n_pix: int, direction: int, curve: np.ndarray
) -> tuple[np.ndarray, float]:
    """The curve with its ends bent to where they explain most.

    A curve that is right in the middle may have been led astray at an end by chance coincidences. Each end is bent
    quadratically by up to 30 pixels, beyond several places; the bend that makes the odds best is kept.
    """
    many = peaks.strongest(_MANY)
    pixel = many.pixel if direction == 1 else n_pix - 1.0 - many.pixel[::-1]
    prominence = many.prominence if direction == 1 else many.prominence[::-1]
    judge = _weights(prominence)
    density = _density(listed)
    t = (pixel - 0.5 * (n_pix - 1.0)) / (0.5 * n_pix)

    def odds(c: np.ndarray) -> float:
        return max(
            log_odds(pixel, judge, listed, density, n_pix, c, _SIGMA, share) + prior for share, prior in _MISSING
        )

    best, score = curve, odds(curve)
    again = _polish(pixel, judge, listed, n_pix, curve)
    if again is not None and odds(again) > score:
        best, score = again, odds(again)
    step = abs(best[1]) / (0.5 * n_pix)
    for _ in range(2):
        start = score
        base = best
        value = polynomial.polyval(t, base)
        for side in (-1.0, 1.0):
            for knee in (-0.3, 0.0, 0.3, 0.6):
                beyond = np.clip((side * t - knee) / (1.0 - knee), 0.0, None) ** 2
                for shift in _BENDS:
                    bent = polynomial.polyfit(t, value + beyond * shift * step, 4)
                    trial = _polish(pixel, judge, listed, n_pix, bent)
                    if trial is None:
                        continue
                    new = odds(trial)
                    if new > score + 0.5:
                        best, score = trial, new
        if score <= start:
            break
    judged = peaks.strongest(_JUDGED)
    pixel = judged.pixel if direction == 1 else n_pix - 1.0 - judged.pixel[::-1]
    prominence = judged.prominence if direction == 1 else judged.prominence[::-1]
    judge = _weights(prominence)
    return best, odds(best)


def _turned(curve: np.ndarray, direction: int) -> np.ndarray:
    """Curve of the pixels as they are, from that of the mirrored ones."""
    return curve * (np.array([1.0, -1.0, 1.0, -1.0, 1.0]) if direction == -1 else 1.0)


def _identities(pixel: np.ndarray, listed: np.ndarray, curve: np.ndarray, n_pix: int) -> np.ndarray:
    """Index of the listed line within 1.5 pixels of each peak, -1 without one."""
    t = (pixel - 0.5 * (n_pix - 1.0)) / (0.5 * n_pix)
    w = polynomial.polyval(t, curve)
    slope = np.abs(polynomial.polyval(t, polynomial.polyder(curve))) / (0.5 * n_pix)
    distance = np.abs(listed[None, :] - w[:, None])
    nearest = np.argmin(distance, axis=1)
    return np.where(distance[np.arange(pixel.size), nearest] < 1.5 * slope, nearest, -1)
