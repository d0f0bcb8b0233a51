"""`recalibrate`: new wavelengths for a science spectrum, from the arcs around it and the sky lines in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import astropy.units as u
import numpy as np
from astropy.time import Time
from specutils import Spectrum

from lamost_lsf.calibration.calibrate import calibrate
from lamost_lsf.calibration.drift import measure_drift, sky_lines
from lamost_lsf.calibration.exposure import ExposureCalibration
from lamost_lsf.calibration.inputs import check_center, check_lines
from lamost_lsf.calibration.shift import replace_axis
from lamost_lsf.calibration.solutions import interpolate_solutions, shift_solution
from lamost_lsf.errors import CoverageWarning, FitWarning
from lamost_lsf.lines import LineList
from lamost_lsf.units import SPEED_OF_LIGHT
from lamost_lsf.wavelength import WavelengthSolution

__all__ = ["ArcSeries", "recalibrate"]


class ArcSeries:
    """Arcs of one or more nights, each calibrated once, when first needed.

    Parameters
    ----------
    arcs : sequence
        Of `ArcExposure` or `SimulatedExposure` (calibrated by ``lines``), `ExposureCalibration` with a time, or pairs
        ``(Time, WavelengthSolution)`` for a single spectrum.
    lines : LineList or `~astropy.units.Quantity`, optional
        The lamp's lines; needed for exposures.
    center : str or callable
        Of all of them.
    **options
        Further options of `calibrate`, such as ``fitter`` and ``degree``.

    Raises
    ------
    TypeError
        Arcs of another kind, or without a time.
    ValueError
        No arcs, exposures without ``lines``, calibrations by another centre.
    """

    def __init__(
        self,
        arcs: Any,
        lines: LineList | u.Quantity | None = None,
        *,
        center: str | Callable = "half",
        **options: Any,
    ) -> None:
        from lamost_lsf.arcs import ArcExposure
        from lamost_lsf.simulation.detector import SimulatedExposure

        self.center = check_center(center)
        self._estimator, self._options = center, options
        self._lines = None if lines is None else check_lines(lines, options.pop("medium", None))
        single = isinstance(arcs, (ArcExposure, SimulatedExposure, ExposureCalibration)) or (
            isinstance(arcs, tuple) and len(arcs) == 2 and isinstance(arcs[0], Time)
        )
        items = [arcs] if single else list(arcs)
        if not items:
            raise ValueError("no arcs were given")
        self._items: list[Any] = []
        times = []
        for i, item in enumerate(items):
            if isinstance(item, (ArcExposure, SimulatedExposure)):
                if self._lines is None:
                    raise ValueError("exposures of arcs need the lamp's lines: pass lines=")
                time, own = item.time, None
            elif isinstance(item, ExposureCalibration):
                time, own = item.time, item.center
            elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], WavelengthSolution):
                time, own = item[0], item[1].center
            else:
                raise TypeError(
                    f"arc {i} must be an ArcExposure, an ExposureCalibration or (Time, WavelengthSolution), "
                    f"got {type(item).__name__}"
                )
            if not isinstance(time, Time) or not time.isscalar:
                raise TypeError(f"arc {i} has no time")
            if own is not None and own != self.center:
                raise ValueError(f"arc {i} was calibrated by the centre {own!r}, {self.center!r} is asked for")
            times.append(time.utc.mjd)
            self._items.append(item)
        order = np.argsort(times, kind="stable")
        self._items = [self._items[i] for i in order]
        self._mjd = np.array(times)[order]

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        first, last = Time(self._mjd[[0, -1]], format="mjd").isot
        return f"<ArcSeries center={self.center!r}: {len(self)} arcs, {first} to {last}>"

    @property
    def time(self) -> Time:
        """Times of the arcs, in order (n,)."""
        return Time(self._mjd, format="mjd", scale="utc")

    def calibration(self, index: int) -> ExposureCalibration | WavelengthSolution:
        """What the arc of an index, in order of time, gives."""
        item = self._items[index]
        if isinstance(item, tuple):
            return item[1]
        if not isinstance(item, ExposureCalibration):
            item = calibrate(item, self._lines, center=self._estimator, **self._options)
            self._items[index] = item
        return item

    def weights(self, time: Time, method: str = "nearest") -> list[tuple[int, float]]:
        """Arcs, and their weights, for a time.

        Parameters
        ----------
        time : `~astropy.time.Time`
            Scalar.
        method : {"nearest", "interpolate"}
            The arc nearest in time; or those before and after it, linearly. Beyond the first or last arc both
            give that one.

        Warns
        -----
        CoverageWarning
            "interpolate" without arcs on both sides.
        """
        if method not in ("nearest", "interpolate"):
            raise ValueError(f'method must be "nearest" or "interpolate", got {method!r}')
        when = time.utc.mjd
        nearest = int(np.argmin(np.abs(self._mjd - when)))
        if method == "nearest" or self._mjd[nearest] == when:
            return [(nearest, 1.0)]
        after = int(np.searchsorted(self._mjd, when))
        if after in (0, len(self)):
            warnings.warn(
                f"no arc {'before' if after == 0 else 'after'} {time.utc.isot}: the nearest is used",
                CoverageWarning,
                stacklevel=3,
            )
            return [(nearest, 1.0)]
        share = (when - self._mjd[after - 1]) / (self._mjd[after] - self._mjd[after - 1])
        return [(after - 1, 1.0 - share), (after, share)]

    def solution(self, time: Time, fiber: int | None = None, method: str = "nearest") -> WavelengthSolution:
        """Solution of a spectrum taken at a time.

        Parameters
        ----------
        time : `~astropy.time.Time`
        fiber : int, optional
            Number of the fibre, where arcs have more than one.
        method : {"nearest", "interpolate"}

        Raises
        ------
        LookupError
            The arc has no (solution for this) fibre.
        ValueError
            ``fiber`` missing.
        """
        parts = []
        for index, weight in self.weights(time, method):
            found = self.calibration(index)
            if isinstance(found, ExposureCalibration):
                if fiber is None and len(found) > 1:
                    raise ValueError(f"the arcs have {len(found)} fibres: say which, by fiber= or meta['fiber']")
                found = found.for_fiber(int(found.fiber[0]) if fiber is None else int(fiber))
            parts.append((found, weight))
        if len(parts) == 1:
            return parts[0][0]
        return interpolate_solutions(parts[0][0], parts[1][0], parts[1][1])


def recalibrate(
    spectrum: Any,
    arcs: Any,
    *,
    lines: LineList | u.Quantity | None = None,
    center: str | Callable = "half",
    fitter: str | Callable = "legendre",
    degree: int | str = 5,
    method: str = "nearest",
    time: Time | None = None,
    fiber: int | None = None,
    sky: bool | LineList = False,
    velocity: u.Quantity = 0.0 * u.km / u.s,
    resample: u.Quantity | None = None,
    **options: Any,
) -> Any:
    """New wavelengths for science spectra in pixels (Liu et al. 2026, section 5.2).

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`, ArcExposure or SimulatedExposure
        A spectrum, or an exposure of many fibres, whose samples are the detector's pixels, as those of the arcs are.
        Published LAMOST spectra are not: their pixels have been resampled; see `shift_center`.
    arcs : ArcSeries or sequence
        The arcs: an `ArcSeries`, which calibrates each only once, or what it is made of.
    lines : LineList or `~astropy.units.Quantity`, optional
        The lamp's lines, for arcs that have not been calibrated yet.
    center, fitter, degree
        As for `calibrate`; with an `ArcSeries`, ``center`` must be its own.
    method : {"nearest", "interpolate"}
        The arc nearest in time, or between those before and after.
    time : `~astropy.time.Time`, optional
        Of the spectrum; its own, or ``meta["time"]`` (the mean, if several), by default.
    fiber : int, optional
        Number of the fibre of a single spectrum; ``meta["fiber"]`` by default.
    sky : bool or LineList
        Whether sky lines measure the drift since the arc, by the same centre definition, and take it out: `sky_lines`,
        or a list.
    velocity : `~astropy.units.Quantity`
        Heliocentric velocity to put on the new scale: ``w = w_detector / (1 + velocity / c)``. 0 leaves the detector's
        frame.
    resample : `~astropy.units.Quantity`, optional
        Wavelengths to resample a single spectrum to, flux conserved. None: pixels stay as they are.
    **options
        Further options of `calibrate`.

    Returns
    -------
    Like ``spectrum``
        On the new scale, vacuum, with ``wavelength_center`` and ``recalibration`` (times and weights of the arcs, drift
        and its error in pixels, number of sky lines) in its meta, and for a single spectrum ``wavelength_solution``. In
        an exposure, fibres without solution keep their scale and are masked.

    Raises
    ------
    TypeError, ValueError
        Bad arguments; no time; a spectrum whose number of pixels is not the arcs'; ``center="zero"``.
    LookupError
        A fibre that the arcs do not have.

    Warns
    -----
    CoverageWarning
        "interpolate" without arcs on both sides.
    FitWarning
        Sky lines asked for, and none measured: the drift stays in.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.time import Time
    >>> from lamost_lsf.calibration import recalibrate
    >>> from lamost_lsf.instruments import get_instrument
    >>> from lamost_lsf.simulation import SimulatedIP, simulate_arc, simulate_sky
    >>> ip = SimulatedIP("red")
    >>> arc = simulate_arc(ip, Time("2018-01-10T15:00"), fiber=[100])
    >>> science = simulate_sky(ip, Time("2018-01-10T16:00"), fiber=[100], drift=0.4 * u.AA)
    >>> lines = get_instrument("lamost-lrs-red").lines
    >>> new = recalibrate(science, arc, lines=lines, center="half", sky=True)
    >>> print(f"{new.meta['recalibration']['drift'][0]:.1f} pixels")
    0.5 pixels
    """
    from lamost_lsf.arcs import ArcExposure
    from lamost_lsf.simulation.detector import SimulatedExposure

    name = check_center(center)
    if isinstance(arcs, ArcSeries):
        if arcs.center != name:
            raise ValueError(f"the arcs were calibrated by the centre {arcs.center!r}, {name!r} is asked for")
        series = arcs
    else:
        series = ArcSeries(arcs, lines, center=center, fitter=fitter, degree=degree, **options)
    if isinstance(spectrum, SimulatedExposure):
        spectrum = ArcExposure.from_simulation(spectrum)
    if not isinstance(spectrum, (ArcExposure, Spectrum)):
        raise TypeError(f"spectrum must be a Spectrum or an exposure, got {type(spectrum).__name__}")
    if not isinstance(velocity, u.Quantity) or not velocity.unit.is_equivalent(u.km / u.s) or not velocity.isscalar:
        raise TypeError(f"velocity must be a scalar with a unit of velocity, got {velocity!r}")
    when = _time(spectrum, time)
    wanted = sky_lines() if sky is True else (check_lines(sky, None) if sky is not False else None)
    factor = 1.0 + velocity.to_value(u.km / u.s) / SPEED_OF_LIGHT
    facts = {
        "method": method,
        "arcs": [
            {"time": series.time[i].isot, "weight": float(w)} for i, w in series.weights(when, method)
        ],
    }  # fmt: skip
    if isinstance(spectrum, ArcExposure):
        if resample is not None:
            raise ValueError("resample is for single spectra; an exposure keeps its pixels")
        return _exposure(spectrum, series, when, method, center, wanted, factor, facts)
    return _single(spectrum, series, when, method, center, wanted, factor, facts, fiber, resample)


def _same_window(solution: WavelengthSolution) -> u.Quantity | None:
    """Window in which the arc's lines were centred: a centre depends on it."""
    window = dict(solution.provenance.get("calibration") or {}).get("window")
    return None if window is None else np.array(window, dtype=np.float64) * u.pix


def _time(spectrum: Any, time: Time | None) -> Time:
    if time is None:
        time = spectrum.meta.get("time") if isinstance(spectrum, Spectrum) else spectrum.time
    if not isinstance(time, Time):
        raise ValueError("when was the spectrum taken? pass time= (an astropy Time), or put it into meta['time']")
    return time if time.isscalar else Time(np.mean(time.utc.mjd), format="mjd", scale="utc")


def _without_warning(series: ArcSeries, when: Time, fiber: int | None, method: str) -> WavelengthSolution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)  # has been given once
        return series.solution(when, fiber, method)


def _single(
    spectrum: Spectrum,
    series: ArcSeries,
    when: Time,
    method: str,
    center: str | Callable,
    wanted: LineList | None,
    factor: float,
    facts: dict[str, Any],
    fiber: int | None,
    resample: u.Quantity | None,
) -> Spectrum:
    if spectrum.flux.ndim != 1:
        raise ValueError(f"a single spectrum is expected, got the shape {spectrum.flux.shape}; pass an ArcExposure")
    if fiber is None and isinstance(spectrum.meta.get("fiber"), (int, np.integer)):
        fiber = int(spectrum.meta["fiber"])
    solution = _without_warning(series, when, fiber, method)
    n_pix = spectrum.flux.size
    if solution.domain != (0.0, n_pix - 1.0):
        raise ValueError(
            f"the arcs have pixels {solution.domain[0]:g} to {solution.domain[1]:g}, the spectrum has {n_pix}: its "
            "samples are not the detector's pixels"
        )
    pixel = np.arange(n_pix, dtype=np.float64)
    if wanted is not None:
        plain = replace_axis(spectrum, pixel * u.pix, {})
        drift = measure_drift(plain, wanted, center=center, scale=solution, window=_same_window(solution))
        value, error, number = (x[0] for x in drift.mean("pixel"))
        if number:
            solution = shift_solution(solution, float(value), error=float(error), lines=int(number))
        else:
            value, error = 0.0, np.nan
            warnings.warn("no sky line could be measured: the drift stays in", FitWarning, stacklevel=3)
        facts |= {"drift": [float(value)], "drift_error": [float(error)], "sky_lines": [int(number)]}
    meta = {
        **spectrum.meta, "wavelength_center": series.center, "wavelength_medium": "vacuum",
        "frame": "topocentric" if factor == 1.0 else "heliocentric", "recalibration": facts,
        "wavelength_solution": solution,
    }  # fmt: skip
    if factor != 1.0:
        meta["helio_rv"] = (factor - 1.0) * SPEED_OF_LIGHT * u.km / u.s
    axis = solution(pixel).value / factor
    result = replace_axis(spectrum, axis * u.AA, meta)
    if resample is None:
        return result
    from specutils.manipulation import FluxConservingResampler

    if not isinstance(resample, u.Quantity) or not resample.unit.is_equivalent(u.AA):
        raise TypeError("resample must be wavelengths with a unit of length")
    with np.errstate(divide="ignore", invalid="ignore"):  # bad pixels have no inverse variance
        resampled = FluxConservingResampler(extrapolation_treatment="nan_fill")(result, resample)
    del meta["wavelength_solution"]  # it is of the detector's pixels
    return Spectrum(
        flux=resampled.flux, spectral_axis=resampled.spectral_axis, uncertainty=resampled.uncertainty,
        mask=~np.isfinite(resampled.flux.value), meta=meta,
    )  # fmt: skip


def _shrink(value: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drifts of the fibres (n,), pixels, drawn to their mean as far as their errors, not the fibres, make them differ.

    Flexure moves a spectrograph's fibres together: a faint fibre's own drift is known less well than that of all.
    """
    known = np.isfinite(value) & np.isfinite(error) & (error > 0)
    if not np.any(known):
        return np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    weight = np.where(known, 1.0 / np.where(known, error, 1.0) ** 2, 0.0)
    middle = np.median(value[known])
    spread2 = 0.0
    if np.count_nonzero(known) > 2:
        scatter = 1.4826 * np.median(np.abs(value[known] - middle))
        spread2 = max(scatter**2 - np.median(error[known]) ** 2, 0.0)
    # a mean that outliers do not draw
    near = known & (np.abs(value - middle) <= 4.0 * np.sqrt(error**2 + spread2))
    own = np.where(near, 1.0 / (np.where(near, error, 1.0) ** 2 + spread2), 0.0)
    mean, mean_variance = np.sum(own * np.where(near, value, 0.0)) / own.sum(), 1.0 / own.sum()
    if spread2 <= 0.0:
        return np.full(value.shape, mean), np.full(value.shape, np.sqrt(mean_variance))
    prior = 1.0 / spread2
    drawn = (weight * np.where(known, value, 0.0) + prior * mean) / (weight + prior)
    return drawn, np.sqrt(1.0 / (weight + prior) + (prior / (weight + prior)) ** 2 * mean_variance)


def _exposure(
    exposure: Any,
    series: ArcSeries,
    when: Time,
    method: str,
    center: str | Callable,
    wanted: LineList | None,
    factor: float,
    facts: dict[str, Any],
) -> Any:
    solutions: list[WavelengthSolution | None] = []
    for number in exposure.fiber:
        try:
            solutions.append(_without_warning(series, when, int(number), method))
        except LookupError:
            solutions.append(None)
    if all(s is None for s in solutions):
        raise LookupError("the arcs have a solution for none of the exposure's fibres")
    pixel = np.arange(exposure.n_pix, dtype=np.float64)
    wrong = next((s for s in solutions if s is not None and s.domain != (0.0, exposure.n_pix - 1.0)), None)
    if wrong is not None:
        raise ValueError(
            f"the arcs have pixels {wrong.domain[0]:g} to {wrong.domain[1]:g}, the exposure has {exposure.n_pix}"
        )
    wavelength = np.array(exposure.wavelength)
    solved = np.array([s is not None for s in solutions])
    for i in np.flatnonzero(solved):
        wavelength[i] = solutions[i](pixel).value
    if wanted is not None:
        first = next(s for s in solutions if s is not None)
        drift = measure_drift(
            replace(exposure, wavelength=wavelength), wanted, center=center, window=_same_window(first)
        )
        value, error, number = drift.mean("pixel")
        value, error = _shrink(np.where(solved, value, np.nan), error)
        if not np.any(np.isfinite(value)):
            value = np.zeros(value.shape)
            warnings.warn("no sky line could be measured: the drift stays in", FitWarning, stacklevel=3)
        for i in np.flatnonzero(solved):
            solutions[i] = shift_solution(solutions[i], float(value[i]), lines=int(number[i]))
            wavelength[i] = solutions[i](pixel).value
        facts |= {"drift": value.tolist(), "drift_error": error.tolist(), "sky_lines": number.tolist()}
    meta = {**exposure.meta, "wavelength_center": series.center, "recalibration": facts}
    mask = exposure.mask | ~solved[:, None]
    return replace(exposure, wavelength=wavelength / factor, mask=mask, meta=meta)
