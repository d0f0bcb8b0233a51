"""`calibrate`: from an arc in pixels and a line list to wavelength solutions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from types import MappingProxyType
from typing import Any

import astropy.units as u
import numpy as np

from lamost_lsf.calibration.centering import REASONS, CenteredLines, center_lines
from lamost_lsf.calibration.deblend import fit_lines
from lamost_lsf.calibration.exposure import CalibrationFlag, ExposureCalibration, smoothness
from lamost_lsf.calibration.fitting import belonging, degree_errors, error_floor
from lamost_lsf.calibration.inputs import ArcArrays, arc_arrays, check_center, check_lines, rough_scale
from lamost_lsf.calibration.matching import align, listed_blends, predict_pixels
from lamost_lsf.calibration.peaks import ArcPeaks, find_arc_lines
from lamost_lsf.errors import FitWarning
from lamost_lsf.lines import LineList
from lamost_lsf.units import to_angstrom
from lamost_lsf.wavelength import WavelengthSolution, fit_wavelength_solution
from lamost_lsf.wavelength.fitters import check_degree

__all__ = ["calibrate"]

#: Half-width of the window about a line, in FWHM, where no instrument says otherwise.
_WINDOW = 2.0
#: Reasons that neighbouring lines give.
_CROWDED = [REASONS.index(text) for text in ("blend", "too broad", "no line found")]
#: Error of what a neighbour did to a line's centre, relative to it.
_NEIGHBOUR_ERROR = 0.1
#: Neighbours' light, relative to a line's peak, that is let be.
_NEGLIGIBLE = 0.003
#: Share of the line's peak beyond which a neighbour's light does not come off cleanly.
_OUTSHONE = 0.4
#: Pixels by which the other lines' prediction may miss a line, if no rough scale vouches for it.
_ASTRAY = 1.5
#: Probability below which a peak is not taken for the listed line.
_BELONGS = 0.2
#: Deviation, standard deviations, from which outliers are searched for: several at once hide one another.
_SUSPICIOUS = 3.0
#: Degrees tried by ``degree="auto"``.
_DEGREES = range(1, 9)
#: A degree is called wrong where another's leave-one-out error is smaller by this factor.
_DEGREE_RATIO = 2.0
#: ... and by this many pixels.
_DEGREE_LOSS = 0.1


@dataclass(frozen=True)
class _Options:
    center: str | Callable
    fitter: str | Callable
    degree: int | None
    sigma_clip: float | None
    min_snr: float
    blends: str
    fwhm: float | None
    window: tuple[float, float] | None
    max_shift: float | None
    saturation: float
    error_floor: float | None
    deblend: bool


def calibrate(
    arc: Any,
    lines: LineList | u.Quantity,
    *,
    center: str | Callable = "half",
    fitter: str | Callable = "legendre",
    degree: int | str = 5,
    rough: Any = None,
    ivar: Any = None,
    mask: Any = None,
    medium: str | None = None,
    wavelength_range: u.Quantity | None = None,
    dispersion_range: u.Quantity | None = None,
    max_shift: float | None = None,
    fwhm: float | None = None,
    window: u.Quantity | None = None,
    saturation: float | None = None,
    min_snr: float = 8.0,
    blends: str = "reject",
    deblend: bool = True,
    sigma_clip: float | None = 4.0,
    error_floor: float | None = None,
) -> WavelengthSolution | ExposureCalibration:
    """Wavelength solution of an arc spectrum, or of all spectra of an exposure.

    The listed lines are found, by a rough wavelength scale or without one by their pattern (`identify_lines`); each is
    centred by one and the same definition; lines that are blended, saturated, faint, or of an odd width are set aside
    with the reason; and the rest is fitted, outliers rejected (`~lamost_lsf.fit_wavelength_solution`). The degree is
    checked by the error with which each line is predicted by the others.

    Parameters
    ----------
    arc : ArcExposure, SimulatedExposure, `~specutils.Spectrum`, Quantity or array_like
        Counts, (n_pix,) for one spectrum, (n_fiber, n_pix) for an exposure. Not background-subtracted, or so.
    lines : LineList or `~astropy.units.Quantity`
        The lamp's lines. Wavelengths alone need ``medium``.
    center : str or callable
        Definition of a line's centre, by name or as an estimator: it becomes that of the wavelength scale. "zero" is
        refused. Fits weigh all pixels alike, as they do on the profiles of IP models.
    fitter : str or callable
        Wavelength fitter, by name or as a function.
    degree : int or "auto"
        Degree of the curve. "auto": the lowest, up to 8, whose leave-one-out error is within 5 % of the smallest. One
        warning is given where the degree is a poor choice for most spectra.
    rough : WavelengthSolution, ExposureCalibration, callable or `~astropy.units.Quantity`, optional
        Vacuum wavelengths near the truth: a solution, a function of pixels, or wavelengths (n_pix,) or
        (n_fiber, n_pix). None: the wavelengths that an exposure or spectrum carries; without any, lines are identified
        blindly, on the exposure's best spectrum.
    ivar, mask : array_like, optional
        Inverse variance, and bad pixels (True), of an arc given as an array. Without ``ivar`` all pixels have the same
        noise, estimated from the pixels.
    medium : {"air", "vacuum"}, optional
        Of ``lines`` given as wavelengths.
    wavelength_range, dispersion_range : `~astropy.units.Quantity` (2,), optional
        Limits for the blind identification: all wavelengths lie in the first; the size of the dispersion (Angstrom per
        pixel) in the middle of the detector lies in the second.
    max_shift : float, optional
        Largest shift, pixels, of the arc against ``rough``; twice a line's width by default.
    fwhm : float, optional
        Width of a line, pixels; measured by default.
    window : `~astropy.units.Quantity` (2,), optional
        Pixels (pix) or offsets (length), one below and one above 0, in which a line is centred: those of the IP's
        profiles, ideally. By default the instrument's, where the exposure names it, else twice the width to either
        side. Neighbouring lines are cut off at the valley.
    saturation : float, optional
        Counts at which a pixel is full; lines that reach it are not used. None: what the exposure says.
    min_snr : float
        Least height of a line, in standard deviations of its highest pixel.
    blends : {"reject", "keep"}
        What becomes of lines that the *list* says are blended: flagged there, or with a neighbour within the width of a
        line that is not known to be fainter than 5 %. Lines with a visible neighbour are rejected in any case.
    deblend : bool
        Take neighbouring lines away before a line is centred, by a model of all lines with one shape learnt from the
        spectrum. Lines without neighbours are not touched by it.
    sigma_clip : float, optional
        Limit for outliers, standard deviations; None rejects none.
    error_floor : float, optional
        Error, pixels, of every line besides its noise. None: what explains the scatter of the lines.

    Returns
    -------
    WavelengthSolution or ExposureCalibration
        The latter for an exposure. Residuals of each line, used or not, are in ``solution.lines``; what was found out
        on the way is in ``solution.provenance["calibration"]``: width, shift against ``rough``, errors, and the
        leave-one-out rms (pixels) of other degrees. A fibre that fails has None, a flag and a reason.

    Raises
    ------
    TypeError
        Arguments of another kind, quantities without units.
    ValueError
        ``center="zero"``, no good pixel, shapes that do not fit, and for a single spectrum: too few lines, no
        identification.
    PluginLookupError
        No centre or fitter of that name.

    Warns
    -----
    FitWarning
        Once: fibres without solution, or a degree that the lines do not support.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> import lamost_lsf as ll
    >>> from lamost_lsf.calibration import calibrate
    >>> from lamost_lsf.instruments import get_instrument
    >>> from lamost_lsf.simulation import SimulatedIP, simulate_arc
    >>> from astropy.time import Time
    >>> arc = simulate_arc(SimulatedIP("red"), Time("2018-01-10T15:00"), fiber=[100, 101])
    >>> lines = get_instrument("lamost-lrs-red").lines
    >>> calibration = calibrate(arc, lines, center="half")
    >>> print(calibration[0].center, calibration[0].rms(u.pix) < 0.05 * u.pix)
    half True
    """
    check_center(center)
    data = arc_arrays(arc, ivar, mask)
    listed = check_lines(lines, medium)
    options = _check_options(
        center, fitter, degree, sigma_clip, min_snr, blends, fwhm, window, max_shift,
        saturation if saturation is not None else data.saturation, error_floor, deblend,
    )  # fmt: skip
    peaks, trouble = _find(data, options)
    if data.single and trouble[0]:
        raise ValueError(trouble[0])
    blind: dict[str, Any] | None = None
    if rough is None and data.scale is None:
        scale, blind = _identify(data, peaks, listed, fitter, wavelength_range, dispersion_range)
        if options.max_shift is None and not data.single:
            # the solution of one fibre is rough for the others
            options = replace(options, max_shift=10.0)
    else:
        scale = rough_scale(rough if rough is not None else data.scale * u.AA, *data.flux.shape)
    solutions, reasons = _solve(data, peaks, trouble, listed, scale, options, blind)
    if data.single:
        if solutions[0] is None:
            raise ValueError(reasons[0])
        _warn_degree(solutions, options)
        return solutions[0]
    result = _assemble(data, solutions, reasons)
    failed = [i for i, s in enumerate(solutions) if s is None]
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(solutions)} spectra have no wavelength solution, fibre {data.fiber[failed[0]]} "
            f"for one: {reasons[failed[0]]}",
            FitWarning,
            stacklevel=2,
        )
    _warn_degree(solutions, options)
    return result


# -- arguments ------------------------------------------------------------------------------------------------------


def _check_options(
    center: str | Callable,
    fitter: str | Callable,
    degree: int | str,
    sigma_clip: float | None,
    min_snr: float,
    blends: str,
    fwhm: float | None,
    window: u.Quantity | None,
    max_shift: float | None,
    saturation: float | None,
    floor: float | None,
    deblend: bool,
) -> _Options:
    from lamost_lsf.plugins import get_wavelength_fitter

    get_wavelength_fitter(fitter)
    if isinstance(degree, str):
        if degree.lower() != "auto":
            raise ValueError(f'degree must be a whole number or "auto", got {degree!r}')
        number = None
    else:
        number = check_degree(degree)
    if blends not in ("reject", "keep"):
        raise ValueError(f'blends must be "reject" or "keep", got {blends!r}')
    limits = (("min_snr", min_snr), ("fwhm", fwhm), ("max_shift", max_shift), ("saturation", saturation))
    for name, value in limits:
        if value is not None and not (isinstance(value, Real) and np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if floor is not None and not (isinstance(floor, Real) and np.isfinite(floor) and floor >= 0):
        raise ValueError(f"error_floor must be a number of pixels >= 0, got {floor!r}")
    if window is not None:
        if not isinstance(window, u.Quantity) or not (window.unit == u.pix or window.unit.is_equivalent(u.AA)):
            raise TypeError("window must be two offsets in pix or of length, e.g. (-10, 10) * u.pix")
        if window.shape != (2,) or not window[0].value < 0 < window[1].value:
            raise ValueError(f"window must be two offsets, one below and one above 0, got {window!r}")
    saturation = np.inf if saturation is None else float(saturation)
    return _Options(
        center, fitter, number, sigma_clip, min_snr, blends, fwhm, window, max_shift, saturation, floor, bool(deblend)
    )


# -- the work -------------------------------------------------------------------------------------------------------


def _find(data: ArcArrays, options: _Options) -> tuple[list[ArcPeaks | None], list[str]]:
    """Peaks of each spectrum, or why there are none."""
    peaks: list[ArcPeaks | None] = []
    trouble = []
    for row in range(data.flux.shape[0]):
        try:
            found = find_arc_lines(
                data.flux[row], ivar=None if data.ivar is None else data.ivar[row], mask=data.bad[row],
                fwhm=options.fwhm, min_relative=1e-3,
            )  # fmt: skip
        except ValueError as error:
            found, why = None, str(error)
        else:
            why = "" if len(found) else "no line stands out of the noise"
        peaks.append(found)
        trouble.append(why)
    return peaks, trouble


def _identify(
    data: ArcArrays,
    peaks: list[ArcPeaks | None],
    listed: LineList,
    fitter: str | Callable,
    wavelength_range: u.Quantity | None,
    dispersion_range: u.Quantity | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Rough scale (n_row, n_pix) from the best spectrum's pattern of lines."""
    from lamost_lsf.calibration.blind import identify_lines

    counts = [0 if p is None else len(p) for p in peaks]
    best = int(np.argmax(counts))
    if not counts[best]:
        raise ValueError("no spectrum of the arc shows a line")
    found = identify_lines(
        peaks[best], listed, n_pix=data.n_pix, wavelength_range=wavelength_range, dispersion_range=dispersion_range
    )
    scale = np.broadcast_to(found.scale(data.n_pix), data.flux.shape)
    return scale, {
        "n_matched": int(found.n_matched),
        "significance": float(found.significance),
        "lead": float(found.lead),
        "row": best,
    }


def _solve(
    data: ArcArrays,
    peaks: list[ArcPeaks | None],
    trouble: list[str],
    listed: LineList,
    scale: np.ndarray,
    options: _Options,
    blind: dict[str, Any] | None,
) -> tuple[list[WavelengthSolution | None], list[str]]:
    n_row, n_pix = data.flux.shape
    usable = [r for r in range(n_row) if not trouble[r]]
    reasons = list(trouble)
    solutions: list[WavelengthSolution | None] = [None] * n_row
    if not usable:
        return solutions, reasons
    width = float(np.median([peaks[r].fwhm for r in usable])) if options.fwhm is None else options.fwhm
    tolerance = max(0.5 * width, 1.0)
    max_shift = options.max_shift if options.max_shift is not None else max(2.0 * width, 4.0)
    predicted = np.full((n_row, len(listed)), np.nan)
    for r in usable:
        # lines just off the detector may be on it after the shift
        where = predict_pixels(scale[r], listed.vacuum)
        found = peaks[r]
        predicted[r] = where + align(found.pixel, found.prominence, where, max_shift=max_shift, tolerance=tolerance)
    keep = np.any(np.isfinite(predicted), axis=0)
    if not np.any(keep):
        low, high = np.nanmin(scale), np.nanmax(scale)
        text = f"no listed line lies on the rough scale, {low:.0f} to {high:.0f} A (vacuum)"
        return solutions, [reason or text for reason in reasons]
    listed, predicted = listed[np.flatnonzero(keep)], predicted[:, keep]
    dispersion = np.abs(np.nanmedian(np.diff(scale, axis=1)))
    blend = np.zeros(len(listed), dtype=bool)
    if options.blends == "reject":
        blend = listed.blend | listed_blends(listed.vacuum, listed.intensity, 1.0 * width * dispersion)
    noise = np.array([peaks[r].noise if not trouble[r] else np.ones(n_pix) for r in range(n_row)])
    flux = np.where(np.isfinite(data.flux), data.flux, 0.0)
    window = _pixel_window(options.window, data.window, width, scale, predicted)
    measured = _measure(flux, noise, data.bad, usable, peaks, predicted, width, window, options)
    measured = _weed(measured, usable, predicted, blend, max(0.6 * width, 1.5), options)
    floor = options.error_floor
    if floor is None:
        floor = _common_floor(measured, usable, listed, blend, options.degree, n_pix)
    for r in usable:
        lines = CenteredLines(*(getattr(measured, name)[r] for name in ("pixel", "error", "peak", "fwhm", "why")))
        shift = (
            np.nanmedian(lines.pixel - predict_pixels(scale[r], listed.vacuum)) if np.any(lines.why == 0) else np.nan
        )
        facts = {
            "fwhm": float(width), "error_floor": float(floor), "window": [int(w) for w in window],
            "shift": None if not np.isfinite(shift) else float(shift), "blind": blind,
        }  # fmt: skip
        try:
            solutions[r] = _fit(lines, listed, blend, floor, n_pix, options, facts)
        except ValueError as error:
            reasons[r] = str(error)
    return solutions, reasons


def _pixel_window(
    given: u.Quantity | None,
    instrument: tuple[float, float] | None,
    width: float,
    scale: np.ndarray,
    predicted: np.ndarray,
) -> tuple[int, int]:
    """First and last pixel of the window about a line's highest pixel."""
    reach = max(_WINDOW * width, 3.0)
    low, high = -reach, reach
    length = None
    if given is not None:
        if given.unit == u.pix:
            low, high = given.value
        else:
            length = to_angstrom(given, "window")
    elif instrument is not None:
        length = np.array(instrument)
    if length is not None:
        step = np.nanmedian(np.diff(scale, axis=1))
        low, high = np.sort(length / step)
    window = int(np.floor(low)), int(np.ceil(high))
    if window[0] > -3 or window[1] < 3:
        raise ValueError(f"the window about a line must reach 3 pixels to either side, got {window[0]} to {window[1]}")
    return window


def _measure(
    flux: np.ndarray,
    noise: np.ndarray,
    bad: np.ndarray,
    usable: list[int],
    peaks: list[ArcPeaks | None],
    predicted: np.ndarray,
    width: float,
    window: tuple[int, int],
    options: _Options,
) -> CenteredLines:
    """Centres of all lines of all spectra, arrays (n_row, n_line)."""
    n_row, n_line = predicted.shape
    rows = np.repeat(usable, n_line)
    settings: dict[str, Any] = {
        "center": options.center, "window": window, "search": max(0.6 * width, 1.5), "fwhm": width,
        "saturation": options.saturation, "min_snr": options.min_snr,
    }  # fmt: skip
    measured = center_lines(flux, noise, bad, rows, predicted[usable].ravel(), **settings)
    if options.deblend:
        _deblend(measured, flux, noise, bad, rows, peaks, predicted[usable].ravel(), width, window, settings)

    def full(values: np.ndarray, fill: float) -> np.ndarray:
        out = np.full((n_row, n_line), fill, dtype=values.dtype)
        out[usable] = values.reshape(len(usable), n_line)
        return out

    return CenteredLines(
        full(measured.pixel, np.nan), full(measured.error, np.nan), full(measured.peak, np.nan),
        full(measured.fwhm, np.nan), full(measured.why, REASONS.index("no line found")),
    )  # fmt: skip


def _deblend(
    measured: CenteredLines,
    flux: np.ndarray,
    noise: np.ndarray,
    bad: np.ndarray,
    rows: np.ndarray,
    peaks: list[ArcPeaks | None],
    expected: np.ndarray,
    width: float,
    window: tuple[int, int],
    settings: dict[str, Any],
) -> None:
    """Measure lines with neighbours again, the neighbours taken away; ``measured`` is changed in place.

    The change of the centre, times `_NEIGHBOUR_ERROR`, is added to its error.
    """
    n_pix = flux.shape[1]
    # room for the window, wherever the highest pixel is
    reach = int(max(-window[0], window[1]) + np.ceil(settings["search"]) + 3)
    lines, cuts, sigmas, masks, origins = [], [], [], [], []
    for r in np.unique(rows):
        own = np.flatnonzero((rows == r) & (expected > -0.5) & (expected < n_pix - 0.5))
        near = np.abs(peaks[r].pixel[None, :] - expected[own, None])
        # a visible neighbour, or a shoulder, which makes a line broad or a blend
        beside = (near > 0.7 * width) & (near < reach + width)
        height = np.max(np.where(near <= 0.7 * width, peaks[r].height, 0.0), axis=1, initial=0.0)
        crowded = np.max(np.where(beside, peaks[r].height, 0.0), axis=1, initial=0.0) > _NEGLIGIBLE * height
        own = own[crowded | np.isin(measured.why[own], _CROWDED)]
        model = fit_lines(flux[r], bad[r], peaks[r]) if own.size else None
        if model is None:
            continue
        for k in own:
            distance = np.abs(model.pixel - expected[k])
            mine = np.flatnonzero(distance <= settings["search"])
            if not mine.size:
                continue
            j = mine[np.argmax(model.amplitude[mine])]
            pixels = np.arange(2 * reach + 1) + int(np.round(expected[k])) - reach
            others = model.others(int(j), pixels)
            if np.max(others[2:-2], initial=0.0) < _NEGLIGIBLE * model.amplitude[j]:
                continue
            inside = (pixels >= 0) & (pixels < n_pix)
            # what is left of a neighbour of its own brightness is not measured with the line, and no wing without the
            # other
            distance = np.abs(pixels - model.pixel[j])
            outshone = others > _OUTSHONE * model.amplitude[j]
            inside &= distance < max(np.min(distance[outshone], initial=np.inf), 0.9 * width)
            index = np.clip(pixels, 0, n_pix - 1)
            lines.append(k)
            cuts.append(flux[r][index] - others)
            sigmas.append(np.hypot(noise[r][index], _NEIGHBOUR_ERROR * others))
            masks.append(bad[r][index] | ~inside)
            origins.append(pixels[0])
    if not lines:
        return
    index, origin = np.array(lines), np.array(origins)
    again = center_lines(
        np.array(cuts), np.array(sigmas), np.array(masks), np.arange(index.size), expected[index] - origin, **settings
    )
    pixel = again.pixel + origin
    with np.errstate(invalid="ignore"):
        change = np.abs(pixel - measured.pixel[index])
    change[~np.isfinite(change)] = 0.5 * width
    error = np.hypot(np.where(np.isfinite(again.error), again.error, 0.0), _NEIGHBOUR_ERROR * change)
    off = measured.why[index] == REASONS.index("off the detector")
    for name, values in (
        ("pixel", pixel),
        ("error", error),
        ("peak", again.peak),
        ("fwhm", again.fwhm),
        ("why", again.why),
    ):
        getattr(measured, name)[index[~off]] = values[~off]


def _weed(
    measured: CenteredLines,
    usable: list[int],
    predicted: np.ndarray,
    blend: np.ndarray,
    search: float,
    options: _Options,
) -> CenteredLines:
    """Lines whose peak is probably another's are marked as such."""
    degree = 5 if options.degree is None else options.degree
    elsewhere = REASONS.index("not where expected")
    for r in usable:
        good = np.flatnonzero((measured.why[r] == 0) & ~blend & np.isfinite(measured.pixel[r]))
        if good.size < degree + 4:
            continue
        pixel = measured.pixel[r, good]
        # the rough scale has the shape; what is left is smoother than the scale itself
        probability, _ = belonging(
            pixel, pixel - predicted[r, good], measured.peak[r, good], search + 1.0, min(degree, 3)
        )
        keep = probability >= _BELONGS
        if np.count_nonzero(keep) >= degree + 3:
            measured.why[r, good[~keep]] = elsewhere
    return measured


def _common_floor(
    measured: CenteredLines, usable: list[int], listed: LineList, blend: np.ndarray, degree: int | None, n_pix: int
) -> float:
    """Scatter beyond the noise, pixels, typical of the spectra; at least a thousandth of a pixel."""
    floors = []
    for r in usable[:: max(len(usable) // 25, 1)]:
        good = (measured.why[r] == 0) & ~blend & np.isfinite(measured.pixel[r])
        n = int(np.count_nonzero(good))
        order = degree if degree is not None else min(5, n - 4)
        if order >= 1 and n >= order + 4:
            floors.append(
                error_floor(
                    measured.pixel[r][good], listed.vacuum[good], measured.error[r][good], order, (0.0, n_pix - 1.0)
                )
            )
    floors = [f for f in floors if np.isfinite(f)]
    return max(float(np.median(floors)), 1e-3) if floors else 0.02


def _fit(
    lines: CenteredLines,
    listed: LineList,
    blend: np.ndarray,
    floor: float,
    n_pix: int,
    options: _Options,
    facts: dict[str, Any],
) -> WavelengthSolution:
    """Solution of one spectrum."""
    reason = lines.reason
    reason[(lines.why == 0) & blend] = "blend"
    noise = np.where(np.isfinite(lines.error), lines.error, 0.0)
    error = np.sqrt(noise**2 + floor**2)
    pixel = lines.pixel.copy()
    # one peak for two lines: it is neither's
    good = reason == ""
    values, counts = np.unique(np.round(pixel[good], 6), return_counts=True)
    twice = good & np.isin(np.round(pixel, 6), values[counts > 1])
    reason[twice] = "blend"
    good = reason == ""
    degree = options.degree
    domain = (0.0, n_pix - 1.0)
    if degree is None:
        errors, _ = degree_errors(pixel[good], listed.vacuum[good], error[good], _DEGREES, domain)
        finite = {k: v for k, v in errors.items() if np.isfinite(v)}
        if not finite:
            raise ValueError(f"{np.count_nonzero(good)} usable lines do not fix a curve of any degree")
        best = min(finite.values())
        degree = min(k for k, v in finite.items() if v <= 1.05 * best)
    if np.count_nonzero(good) < degree + 2:
        causes = ", ".join(f"{np.count_nonzero(reason == text)} {text}" for text in sorted(set(reason[reason != ""])))
        raise ValueError(
            f"{np.count_nonzero(good)} of {len(listed)} listed lines can be used, degree {degree} takes at least "
            f"{degree + 2} ({causes or 'the list is too short'})"
        )
    for _ in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # told in the provenance, not once a fibre
            solution = _fit_and_reject(
                options.sigma_clip,
                pixel=pixel,
                wavelength=listed.wavelength,
                error=error * u.pix,
                fitter=options.fitter,
                degree=degree,
                domain=domain,
                center=options.center,
                label=listed.species,
                reject=reason,
            )
        if facts["blind"] is None:
            break
        # without a rough scale nothing but the other lines vouches for one at the end
        astray = np.nan_to_num(np.abs(solution.leave_one_out(u.pix).value)) * np.asarray(solution.lines["used"])
        worst = int(np.argmax(astray))
        if astray[worst] <= _ASTRAY or solution.n_used < degree + 4:
            break
        reason[worst] = "not confirmed by the other lines"
    used = np.asarray(solution.lines["used"])
    tried = range(max(degree - 3, 1), degree + 3)
    check, median = degree_errors(pixel[used], listed.vacuum[used], solution.lines["error"][used].value, tried, domain)
    facts = {
        **facts,
        "leave_one_out": {str(k): v for k, v in check.items() if np.isfinite(v)},
        "leave_one_out_median": {str(k): v for k, v in median.items() if np.isfinite(v)},
    }
    # the solution is not anybody else's yet; a copy would cost as much as the fit
    object.__setattr__(solution, "provenance", MappingProxyType({**solution.provenance, "calibration": facts}))
    return solution


def _fit_and_reject(sigma_clip: float | None, **lines: Any) -> WavelengthSolution:
    """`fit_wavelength_solution`; the search for outliers, most of its time, only where a plain fit shows any."""
    solution = fit_wavelength_solution(**lines, sigma_clip=None)
    if sigma_clip is not None:
        deviation = np.abs(np.asarray(solution.lines["deviation"])[np.asarray(solution.lines["used"])])
        if np.max(deviation, initial=0.0) > min(sigma_clip, _SUSPICIOUS):
            return fit_wavelength_solution(**lines, sigma_clip=sigma_clip)
        provenance = {**solution.provenance, "sigma_clip": float(sigma_clip)}
        object.__setattr__(solution, "provenance", MappingProxyType(provenance))
    return solution


def _assemble(data: ArcArrays, solutions: list[WavelengthSolution | None], reasons: list[str]) -> ExposureCalibration:
    """Flags and the comparison of fibres."""
    solved = tuple(solutions)
    deviation, rough = smoothness(solved, data.fiber, data.n_pix)
    flag = np.zeros(len(solved), dtype=int)
    good = [i for i, s in enumerate(solved) if s is not None]
    if good:
        rms = np.array([solved[i].rms(u.pix).value for i in good])
        used = np.array([solved[i].n_used for i in good])
        limit = max(np.median(rms) + 5.0 * 1.4826 * np.median(np.abs(rms - np.median(rms))), 2.0 * np.median(rms))
        beyond = np.array([np.mean(solved[i].extrapolates(np.arange(data.n_pix))) for i in good])
        flag[good] |= np.where(rms > limit, int(CalibrationFlag.LARGE_RESIDUALS), 0)
        flag[good] |= np.where(used < 0.5 * np.median(used), int(CalibrationFlag.FEW_LINES), 0)
        # compared with the other fibres: lamps may leave the ends of a detector without lines in all of them
        flag[good] |= np.where(beyond > np.median(beyond) + 0.1, int(CalibrationFlag.EXTRAPOLATED), 0)
    flag[[i for i, s in enumerate(solved) if s is None]] = int(CalibrationFlag.FAILED)
    flag[rough] |= int(CalibrationFlag.NOT_SMOOTH)
    return ExposureCalibration(
        solutions=solved, fiber=np.array(data.fiber), n_pix=data.n_pix, flag=flag, deviation=deviation,
        reason=tuple(reasons), time=data.time, meta=dict(data.meta),
    )  # fmt: skip


def _warn_degree(solutions: list[WavelengthSolution | None], options: _Options) -> None:
    """One warning where most spectra would be better served by another degree."""
    if options.degree is None:
        return
    better = []
    solved = [s for s in solutions if s is not None]
    for solution in solved:
        errors = {int(k): v for k, v in solution.provenance["calibration"]["leave_one_out_median"].items()}
        own = errors.get(options.degree, np.inf)
        if errors and own > _DEGREE_RATIO * min(errors.values()):
            better.append(min(errors, key=errors.get))
    if solved and len(better) > 0.5 * len(solved):
        warnings.warn(
            f"degree {options.degree} predicts left-out lines worse than degree {int(np.median(better))} does, by more "
            f"than a factor {_DEGREE_RATIO:g}; degree='auto' chooses by that error",
            FitWarning,
            stacklevel=3,
        )
