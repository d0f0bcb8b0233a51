"""`simulate_arc`, `simulate_sky`, `simulate_season`: whole exposures of 250 fibres."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import astropy.units as u
import numpy as np
from astropy.time import Time, TimeDelta
from scipy.interpolate import CubicSpline

from lamost_lsf.models.base import IPModel
from lamost_lsf.simulation._random import deviate, generator
from lamost_lsf.simulation.detector import SimulatedExposure, detector_scale, fiber_throughput, record
from lamost_lsf.simulation.ip import N_FIBER, N_PIXELS, PIXEL_WIDTH, SimulatedIP
from lamost_lsf.simulation.lines import EmissionLine, arc_lines, sky_lines
from lamost_lsf.simulation.optics import add_series
from lamost_lsf.simulation.splines import add_profiles
from lamost_lsf.time import season_range
from lamost_lsf.units import SPEED_OF_LIGHT

__all__ = ["published_wavelength", "season_times", "simulate_arc", "simulate_season", "simulate_sky"]

_LAMPS = {"blue": "HgCd", "red": "NeAr"}
#: Offset, Angstrom, beyond which a line's light is left out: less than 1e-9 of the peak for any simulated profile.
_REACH = 25.0


def simulate_arc(
    ip: IPModel,
    time: Time,
    lines: Sequence[EmissionLine] | None = None,
    *,
    arm: str | None = None,
    spectrograph: int | None = None,
    fiber: np.ndarray | None = None,
    n_pixels: int = N_PIXELS,
    center: str | Callable = "zero",
    blends: bool = False,
    peak: float = 2.0e4,
    background: float = 60.0,
    background_slope: float = 0.3,
    read_noise: float = 10.0,
    cosmic_rate: float = 5e-6,
    cosmic_flagged: float = 0.0,
    saturation: float = 2.5e5,
    drift: u.Quantity = 0.0 * u.AA,
    calibration_error: u.Quantity = 0.0 * u.AA,
    throughput_scatter: float = 0.25,
    dead_fibers: int | Sequence[int] = 3,
    noise: bool = True,
    ivar: str = "true",
    seed: int | tuple[int, ...] | np.random.Generator = 0,
) -> SimulatedExposure:
    """Exposure of an arc lamp.

    Parameters
    ----------
    ip : IPModel
        The true instrumental profile: `SimulatedIP`, or any other model that covers the arm.
    time : `~astropy.time.Time`
        Scalar.
    lines : sequence of EmissionLine, optional
        The lamp; `arc_lines` of the arm by default.
    arm : {"blue", "red"}, optional
        By default ``ip.meta["arm"]``.
    spectrograph : int, optional
        By default ``ip.meta["spectrograph"]``, else 1.
    fiber : array_like of int, optional
        Fibre numbers; 1-250, or as many as the IP has, by default.
    n_pixels : int
        Pixels of the whole arm.
    center : str or callable
        Line centre that the published wavelengths rest on. "zero": the scale on which a line at w0 has the profile
        ``h(w - w0)``. Any other: that of a pipeline which takes this centre of a line for its wavelength (LAMOST's:
        "sersic").
    blends : bool
        With unlisted contaminants (see `arc_lines`); only where ``lines`` is not given.
    peak : float
        Electrons at the peak of a line of intensity 1 in a fibre of throughput 1. 20,000 is a signal-to-noise ratio
        of 140.
    background : float
        Electrons per pixel, in the middle of the arm.
    background_slope : float
        Relative change of the background from the middle to the red end.
    read_noise : float
        Electrons, per extracted pixel.
    cosmic_rate : float
        Cosmic-ray hits per pixel; 5e-6 is a short exposure, 3e-4 half an hour.
    cosmic_flagged : float
        Share of the pixels hit that the pipeline has masked.
    saturation : float
        Electrons at which a pixel is full; it then reads this number.
    drift : `~astropy.units.Quantity`
        Shift of the light on the detector since the wavelength scale was made, to the red: length, or velocity (the
        same in
        km/s at all wavelengths). Lines appear at true + drift.
    calibration_error : `~astropy.units.Quantity`
        Rms of a smooth (cubic) random error of each fibre's published scale, length.
    throughput_scatter : float
        Sigma of ln(throughput) between fibres; the same fibres are faint in every exposure.
    dead_fibers : int or sequence of int
        Fibre numbers, or how many (chosen by the seed of the IP).
    noise : bool
        False gives the expected flux (cosmic rays included).
    ivar : {"true", "data"}
        Inverse of the true variance, or of the one that the noisy counts suggest, as pipelines do.
    seed : int, tuple of int, or Generator
        Of everything random in this exposure alone.

    Returns
    -------
    SimulatedExposure

    Raises
    ------
    ValueError
        Arguments out of range; the message says which and what is allowed.
    OutOfRangeError
        Fibres or wavelengths that the IP does not cover.

    Examples
    --------
    >>> from astropy.time import Time
    >>> from lamost_lsf.simulation import SimulatedIP, simulate_arc
    >>> arc = simulate_arc(SimulatedIP("blue"), Time("2017-01-10T15:00"), fiber=[1, 2, 3])
    >>> arc
    <SimulatedExposure HgCd, spectrograph 1, blue arm, 2017-01-10T15:00:00.000, 3 fibres x 4096 pixels>
    """
    arm, spectrograph = _which(ip, arm, spectrograph)
    if lines is None:
        base = int(ip.meta.get("seed", 0))
        lines = arc_lines(arm, blends=blends, seed=base + spectrograph)
    elif blends:
        raise ValueError("blends=True adds to the built-in lamp; put contaminants among the lines given")
    return _expose(
        ip,
        time,
        lines,
        arm=arm,
        spectrograph=spectrograph,
        lamp=_LAMPS[arm],
        fiber=fiber,
        n_pixels=n_pixels,
        center=center,
        peak=peak,
        background=background,
        background_slope=background_slope,
        read_noise=read_noise,
        cosmic_rate=cosmic_rate,
        cosmic_flagged=cosmic_flagged,
        saturation=saturation,
        drift=drift,
        calibration_error=calibration_error,
        throughput_scatter=throughput_scatter,
        dead_fibers=dead_fibers,
        noise=noise,
        ivar=ivar,
        seed=seed,
    )


def simulate_sky(
    ip: IPModel,
    time: Time,
    lines: Sequence[EmissionLine] | None = None,
    *,
    peak: float = 1.0e4,
    background: float = 400.0,
    cosmic_rate: float = 3e-4,
    cosmic_flagged: float = 0.8,
    **kwargs: Any,
) -> SimulatedExposure:
    """Half an hour of night sky through every fibre: [O I] 5577, Na, OH, city light and a continuum.

    Parameters
    ----------
    ip, time, lines
        As in `simulate_arc`; `sky_lines` by default.
    peak : float
        Electrons at the peak of [O I] 5577 at a throughput of 1.
    background : float
        Sky continuum, electrons per pixel, in the middle of the arm.
    cosmic_rate, cosmic_flagged : float
        As in `simulate_arc`.
    **kwargs
        Any other option of `simulate_arc`, except ``blends``; ``drift`` above all.

    Returns
    -------
    SimulatedExposure
        Topocentric, lamp "sky".

    Examples
    --------
    >>> from astropy.time import Time
    >>> import astropy.units as u
    >>> sky = simulate_sky(SimulatedIP("blue"), Time("2017-01-10T15:00"), fiber=[7], drift=5 * u.km / u.s)
    >>> sky.lamp
    'sky'
    """
    if "blends" in kwargs:
        raise TypeError("simulate_sky() has no blends; put them among the lines")
    arm, spectrograph = _which(ip, kwargs.pop("arm", None), kwargs.pop("spectrograph", None))
    return _expose(
        ip,
        time,
        sky_lines() if lines is None else lines,
        arm=arm,
        spectrograph=spectrograph,
        lamp="sky",
        continuum=True,
        **{
            "fiber": None,
            "n_pixels": N_PIXELS,
            "center": "zero",
            "peak": peak,
            "background": background,
            "background_slope": 0.2,
            "read_noise": 10.0,
            "cosmic_rate": cosmic_rate,
            "cosmic_flagged": cosmic_flagged,
            "saturation": 2.5e5,
            "drift": 0.0 * u.AA,
            "calibration_error": 0.0 * u.AA,
            "throughput_scatter": 0.25,
            "dead_fibers": 3,
            "noise": True,
            "ivar": "true",
            "seed": 0,
            **kwargs,
        },
    )


def season_times(season: int, n_exposures: int = 24, n_nights: int = 12, *, seed: int = 0) -> Time:
    """Times of a season's arcs: spread over nights from mid-September to mid-June, 18 h to 6 h local time.

    Parameters
    ----------
    season : int
        By its last year (see `lamost_lsf.time.season`).
    n_exposures, n_nights : int
        At least as many exposures as nights.
    seed : int

    Returns
    -------
    `~astropy.time.Time`, shape (n_exposures,)
        In order.

    Examples
    --------
    >>> from lamost_lsf.time import season
    >>> season(season_times(2018, 3, 3))
    array([2018, 2018, 2018])
    """
    if not 1 <= n_nights <= 270 or n_exposures < n_nights:
        raise ValueError(f"n_nights must be 1-270 and n_exposures at least n_nights, got {n_nights} and {n_exposures}")
    start, _ = season_range(season)
    rng = np.random.default_rng((seed, season))
    # one night in each of n_nights equal parts of the season, so that it is covered whatever the seed
    edges = np.linspace(15, 285, n_nights + 1)
    nights = np.floor(edges[:-1] + rng.uniform(size=n_nights) * np.diff(edges))
    night = nights[np.arange(n_exposures) * n_nights // n_exposures]
    minutes = np.round(1080.0 + 720.0 * rng.uniform(size=n_exposures))
    elapsed = np.sort(night * 1440.0 + minutes)
    times = start + TimeDelta(elapsed * 60.0, format="sec")
    times.format = "isot"
    return times


def simulate_season(
    ip: IPModel,
    season: int,
    n_exposures: int = 24,
    n_nights: int = 12,
    *,
    seed: int = 0,
    **kwargs: Any,
) -> Iterator[SimulatedExposure]:
    """Arcs of a season, one at a time: memory holds one exposure.

    Parameters
    ----------
    ip : IPModel
    season, n_exposures, n_nights, seed
        As in `season_times`; exposure i has the seed ``(seed, season, i)``.
    **kwargs
        Options of `simulate_arc`.

    Yields
    ------
    SimulatedExposure
        In order of time.

    Examples
    --------
    >>> ip = SimulatedIP("blue")
    >>> len([arc.time for arc in simulate_season(ip, 2017, 4, 2, fiber=[1, 2])])
    4
    """
    times = season_times(season, n_exposures, n_nights, seed=seed)

    def generate() -> Iterator[SimulatedExposure]:
        for i, time in enumerate(times):
            yield simulate_arc(ip, time, seed=(seed, season, i), **kwargs)

    return generate()


# -- inside ---------------------------------------------------------------------------------------------------


def _which(ip: IPModel, arm: str | None, spectrograph: int | None) -> tuple[str, int]:
    if not isinstance(ip, IPModel):
        raise TypeError(f"ip must be an IPModel, such as SimulatedIP('blue'), got {type(ip).__name__}")
    arm = arm if arm is not None else ip.meta.get("arm")
    if arm not in PIXEL_WIDTH:
        raise ValueError(f"arm must be 'blue' or 'red', got {arm!r} (this IP does not say its arm: pass arm=...)")
    own = ip.meta.get("arm")
    if own in PIXEL_WIDTH and own != arm:
        raise ValueError(f"the IP is that of the {own} arm, arm={arm!r} was asked for")
    spectrograph = spectrograph if spectrograph is not None else ip.meta.get("spectrograph", 1)
    if not 1 <= spectrograph <= 16:
        raise ValueError(f"spectrograph must be 1-16, got {spectrograph!r}")
    return arm, int(spectrograph)


def _fibers(ip: IPModel, fiber: np.ndarray | None) -> np.ndarray:
    if fiber is None:
        return np.arange(1, min(N_FIBER, getattr(ip, "n_fiber", N_FIBER) if ip.needs_fiber else N_FIBER) + 1)
    fibers = np.atleast_1d(np.asarray(fiber))
    if fibers.ndim != 1 or fibers.size == 0 or not np.issubdtype(fibers.dtype, np.integer):
        raise ValueError(f"fiber must be a non-empty list of integers, got {fiber!r}")
    if np.unique(fibers).size != fibers.size or fibers.min() < 1 or fibers.max() > N_FIBER:
        raise ValueError(f"fibres must be different numbers 1-{N_FIBER}, got {fibers}")
    return fibers


def _dead(dead: int | Sequence[int], ip: IPModel, spectrograph: int) -> np.ndarray:
    if np.ndim(dead) == 0:
        if not 0 <= dead <= N_FIBER:
            raise ValueError(f"dead_fibers must be a count 0-{N_FIBER} or fibre numbers, got {dead!r}")
        candidates = np.arange(1, N_FIBER + 1)
        # the defective fibre lives: it is there to be seen
        candidates = candidates[candidates != (ip.meta.get("defective_fiber") or 0)]
        rank = np.argsort(deviate(int(ip.meta.get("seed", 0)), spectrograph, 304, candidates))
        return np.sort(candidates[rank[: int(dead)]])
    return np.unique(np.asarray(dead, dtype=int))


def _shift(drift: u.Quantity, wavelength: np.ndarray) -> np.ndarray | float:
    """Drift, Angstrom, at wavelengths."""
    if isinstance(drift, u.Quantity) and drift.isscalar and np.isfinite(drift.value):
        if drift.unit.is_equivalent(u.km / u.s):
            return wavelength * (drift.to_value(u.km / u.s) / SPEED_OF_LIGHT)
        if drift.unit.is_equivalent(u.AA):
            return float(drift.to_value(u.AA))
    raise TypeError(f"drift must be a scalar, finite length or velocity, e.g. 0.05 * u.AA, got {drift!r}")


def _add_lines(
    flux: np.ndarray,
    wavelength: np.ndarray,
    ip: IPModel,
    time: Time,
    fiber: np.ndarray,
    lines: Sequence[EmissionLine],
    amplitude: np.ndarray,
) -> None:
    """Add lines to flux (n_fiber, n_pix); ``amplitude`` (n_fiber, n_lines) are integrals over wavelength."""
    center = np.array([line.vacuum for line in lines])
    inside = (center > wavelength.min() - _REACH) & (center < wavelength.max() + _REACH)
    center, amplitude = center[inside], amplitude[:, inside]
    if center.size == 0:
        return
    row = np.repeat(np.arange(fiber.size), center.size)
    centers, amplitudes = np.tile(center, fiber.size), amplitude.ravel()
    if isinstance(ip, SimulatedIP):
        lmjm = np.full(row.size, float(ip._time_label(time)))
        add_series(flux, wavelength, row, centers, amplitudes, ip._parameters(lmjm, fiber[row], centers), _REACH)
    else:
        labels = {"time": time if ip.needs_time else None, "fiber": fiber[row] if ip.needs_fiber else None}
        profiles = ip.profile(**labels, wavelength=centers * u.AA, extrapolate=True).normalized("area")
        add_profiles(flux, wavelength, row, centers, amplitudes, ip.offset, profiles.flux)


def published_wavelength(
    optical: np.ndarray, ip: IPModel, time: Time, fiber: np.ndarray, center: str | Callable
) -> np.ndarray:
    """Wavelength scale of a pipeline that takes the named centre of a line's image for the line's wavelength.

    On the optical scale the image of a line at w0 has its centre at w0 + c(w0), c being the centre of the IP. The
    pipeline
    calls that pixel w0.

    Parameters
    ----------
    optical : ndarray (n_fiber, n_pix)
        Vacuum Angstrom.
    ip : IPModel
    time : `~astropy.time.Time`
    fiber : ndarray (n_fiber,)
    center : str or callable
        "zero" returns ``optical``.

    Returns
    -------
    ndarray (n_fiber, n_pix)
    """
    if isinstance(center, str) and center.lower() == "zero":
        return optical
    low, high = optical.min() - 30.0, optical.max() + 30.0
    # the centre is a smooth function of wavelength: 21 nodes along an arm leave less than 2e-4 A
    nodes = np.linspace(low, high, 21)
    labels = {"time": time if ip.needs_time else None, "fiber": fiber[:, None] if ip.needs_fiber else None}
    value = ip.profile(**labels, wavelength=nodes * u.AA, extrapolate=True).center(center).to_value(u.AA)
    value = np.broadcast_to(value, (fiber.size, nodes.size))
    if not np.all(np.isfinite(value)):
        raise ValueError(f"the centre {center!r} of some of the profiles could not be determined")
    published = np.empty_like(optical)
    for i in range(fiber.size):
        published[i] = optical[i] - CubicSpline(nodes + value[i], value[i])(optical[i])
    return published


def _check(name: str, value: float, low: float, high: float = np.inf) -> float:
    if isinstance(value, bool) or not np.isscalar(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a number between {low:g} and {high:g}, got {value!r}")
    return float(value)


def _expose(
    ip: IPModel,
    time: Time,
    lines: Sequence[EmissionLine],
    *,
    arm: str,
    spectrograph: int,
    lamp: str,
    fiber: np.ndarray | None,
    n_pixels: int,
    center: str | Callable,
    peak: float,
    background: float,
    background_slope: float,
    read_noise: float,
    cosmic_rate: float,
    cosmic_flagged: float,
    saturation: float,
    drift: u.Quantity,
    calibration_error: u.Quantity,
    throughput_scatter: float,
    dead_fibers: int | Sequence[int],
    noise: bool,
    ivar: str,
    seed: int | tuple[int, ...] | np.random.Generator,
    continuum: bool = False,
) -> SimulatedExposure:
    if not isinstance(time, Time) or not time.isscalar:
        raise TypeError(f"time must be a scalar astropy Time, got {time!r}")
    if int(n_pixels) != n_pixels or n_pixels < 256:
        raise ValueError(f"n_pixels must be an integer of at least 256, got {n_pixels!r}")
    if ivar not in ("true", "data"):
        raise ValueError(f"ivar must be 'true' or 'data', got {ivar!r}")
    lines = tuple(lines)
    if not all(isinstance(line, EmissionLine) for line in lines):
        raise TypeError("lines must be EmissionLine objects (see arc_lines)")
    for name, value, high in (
        ("peak", peak, np.inf), ("background", background, np.inf), ("read_noise", read_noise, np.inf),
        ("cosmic_rate", cosmic_rate, 0.1), ("cosmic_flagged", cosmic_flagged, 1.0),
        ("throughput_scatter", throughput_scatter, 3.0),
    ):  # fmt: skip
        _check(name, value, 0.0, high)
    _check("saturation", saturation, 1.0)
    _check("background_slope", background_slope, -1.0, 1.0)
    rng = generator(seed)
    instrument = int(ip.meta.get("seed", 0))
    fibers = _fibers(ip, fiber)
    dead = _dead(dead_fibers, ip, spectrograph)
    optical = detector_scale(arm, fibers, n_pixels=int(n_pixels), spectrograph=spectrograph, seed=instrument)
    # The pixel labelled w by the scale receives, after a drift to the red, light of true wavelength w - drift.
    true = optical - _shift(drift, optical)
    throughput = fiber_throughput(
        fibers, scatter=throughput_scatter, dead=dead, spectrograph=spectrograph, seed=instrument
    )
    x = np.linspace(-1.0, 1.0, int(n_pixels))
    expected = background * (1.0 + background_slope * x) * np.ones((fibers.size, 1))
    if continuum:
        expected = expected * throughput[:, None]
    # A line of intensity 1 has its peak at `peak` where the IP's equivalent width is the arm's typical one.
    width = 2.8 * PIXEL_WIDTH[arm] / PIXEL_WIDTH["blue"]
    intensity = np.array([line.intensity for line in lines])
    _add_lines(expected, true, ip, time, fibers, lines, peak * width * throughput[:, None] * intensity)
    flux, weight, mask, cosmic, saturated = record(
        rng,
        expected,
        read_noise=read_noise,
        saturation=saturation,
        cosmic_rate=cosmic_rate,
        cosmic_flagged=cosmic_flagged,
        noise=noise,
        ivar=ivar,
    )
    wavelength = published_wavelength(optical, ip, time, fibers, center)
    error = u.Quantity(calibration_error)
    if not error.isscalar or not error.unit.is_equivalent(u.AA) or not error.value >= 0:
        raise TypeError(f"calibration_error must be a scalar length of at least 0, got {calibration_error!r}")
    if error.value > 0:
        # three Legendre terms beyond the mean carry one third of the variance each (P_n has the mean square 1 / (2n
        # + 1))
        terms = rng.normal(size=(fibers.size, 3)) * np.sqrt(np.array([3.0, 5.0, 7.0]) / 3.0)
        basis = np.polynomial.legendre.legvander(x, 3)[:, 1:]
        wavelength = wavelength + error.to_value(u.AA) * (terms @ basis.T)
    meta = {
        "instrument": f"lamost-lrs-{arm}",
        "fiber": fibers,
        "wavelength_medium": "vacuum",
        "wavelength_center": center if isinstance(center, str) else getattr(center, "name", repr(center)),
        "frame": "topocentric",
        "saturation": float(saturation),
        "read_noise": float(read_noise),
        "seed": None if isinstance(seed, np.random.Generator) else seed,
        "truth": {
            "lines": lines,
            "ip": ip,
            "noiseless": expected,
            "wavelength": true,
            "drift": drift,
            "cosmic": cosmic,
            "saturated": saturated,
            "throughput": throughput,
            "dead": np.intersect1d(dead, fibers),
        },
    }
    if isinstance(ip, SimulatedIP):
        meta["temperature"] = float(ip.temperature(time).value)
    return SimulatedExposure(flux, weight, mask, wavelength, time, spectrograph, arm, lamp, meta)
