"""`simulate_epochs`: one star through an instrument whose profile changes."""

from __future__ import annotations

from dataclasses import replace

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance
from astropy.time import Time, TimeDelta
from specutils import Spectrum

from lamost_lsf.arcs import ArcExposure
from lamost_lsf.experiments.visits import ArcBook, PixelVisit, heliocentric_velocity
from lamost_lsf.rv.prepare import SEGMENT_HALF_WIDTH
from lamost_lsf.simulation import Observatory, detector_scale, season_times, simulate_arc, simulate_star
from lamost_lsf.units import SPEED_OF_LIGHT, to_angstrom

__all__ = ["LINE", "TARGET", "simulate_epochs"]

#: The star of Liu et al. 2026, section 5.2: right ascension, declination (deg), Gaia's radial velocity (km/s).
TARGET = (93.9960641, 23.2585934, 31.93)
#: Hg I 4358.34 (air), about which the paper's segment lies: vacuum Angstrom.
LINE = 4359.56
#: Seasons before and after the change that the paper's star was observed in.
SEASONS = ((2017, 2018), (2022, 2023))
#: Angstrom beyond the segment that are simulated too: recalibration moves the segment's ends.
_MARGIN = 10.0
#: Difference of velocity, km/s, that the derivative is taken over: far less than the width of any line.
_STEP = 0.1


def simulate_epochs(
    template: Spectrum,
    observatory: Observatory | None = None,
    *,
    n_exposures: int = 240,
    n_nights: int = 24,
    arcs_per_night: int = 4,
    spectrograph: int = 1,
    arm: str = "blue",
    fiber: int = 100,
    wavelength: u.Quantity = LINE * u.AA,
    velocity: u.Quantity = TARGET[2] * u.km / u.s,
    snr: tuple[float, float] = (20.0, 40.0),
    drift: u.Quantity = 0.1 * u.AA,
    flexure: u.Quantity = 0.0 * u.km / u.s,
    pipeline_center: str = "sersic",
    seasons: tuple[tuple[int, ...], tuple[int, ...]] = SEASONS,
    arc_peak: float = 2.0e4,
    noise: bool = True,
    seed: int = 0,
) -> list[PixelVisit]:
    """Exposures of one star before and after a change of the instrumental profile (Liu et al. 2026, section 5.2).

    Star and arcs are in the detector's pixels. The scale that the light falls on is the instrument's optics', shifted
    by the night's drift; nothing of it is told to the calibration.

    Parameters
    ----------
    template : `~specutils.Spectrum`
        The star at rest.
    observatory : Observatory, optional
        The instrument; its ``epoch`` is that of the change.
    n_exposures, n_nights, arcs_per_night : int
        Exposures and nights in all, shared evenly by the seasons; arcs of each night, spread over its exposures.
    spectrograph, arm, fiber
        Where the star is.
    wavelength : `~astropy.units.Quantity`
        Middle of the segment of 300 A that is simulated, vacuum.
    velocity : `~astropy.units.Quantity`
        Heliocentric.
    snr : (float, float)
        Limits of the median signal-to-noise ratio per pixel of the segment, drawn evenly.
    drift : `~astropy.units.Quantity`
        Rms shift of the detector from night to night, common to arcs and star.
    flexure : `~astropy.units.Quantity`
        Rms shift, velocity, between the arcs and each exposure. No arc can take it out.
    pipeline_center : str
        Line centre of the published wavelengths; LAMOST's is Sersic's.
    seasons : pair of tuples of int
        Before and after.
    arc_peak : float
        Electrons at the peak of an arc line of intensity 1.
    noise : bool
        False: neither star nor arcs have any (the uncertainties stay), so that what is left is the method's own error.
    seed : int

    Returns
    -------
    list of PixelVisit
        In order of time, all of one `ArcBook`, with the true velocity and what the Cramer-Rao bound takes.

    Raises
    ------
    ValueError
        Numbers that do not fit, a segment that is not on the detector.

    Examples
    --------
    >>> from lamost_lsf.experiments import simulate_epochs
    >>> from lamost_lsf.simulation import synthetic_template
    >>> visits = simulate_epochs(synthetic_template(6200), n_exposures=4, n_nights=4, arcs_per_night=1)
    >>> [visit.epoch for visit in visits]
    ['before', 'before', 'after', 'after']
    """
    observatory = Observatory() if observatory is None else observatory
    groups = [(season, epoch) for epoch, years in zip(("before", "after"), seasons, strict=True) for season in years]
    if n_nights < len(groups) or n_exposures < n_nights or arcs_per_night < 1:
        raise ValueError(
            f"at least {len(groups)} nights (one a season), an exposure and an arc a night are needed, got {n_nights} "
            f"nights, {n_exposures} exposures and {arcs_per_night} arcs a night"
        )
    low, high = (float(v) for v in snr)
    if not 0.0 < low <= high:
        raise ValueError(f"snr must be two positive numbers, the first no larger, got {snr}")
    ip = observatory.ip(spectrograph, arm)
    optical = detector_scale(arm, np.array([fiber]), spectrograph=spectrograph, seed=int(observatory.seed))[0]
    middle = float(to_angstrom(wavelength, "wavelength"))
    reach = SEGMENT_HALF_WIDTH + _MARGIN
    here = np.abs(optical - middle) < reach
    if not optical[0] < middle - SEGMENT_HALF_WIDTH < middle + SEGMENT_HALF_WIDTH < optical[-1]:
        raise ValueError(f"the segment about {middle:.1f} A is not on the {arm} detector")
    rng = np.random.default_rng((seed, 51))
    shared = {"fiber": fiber, "spectrograph": spectrograph, "arm": arm, "center": "zero"}
    arcs: list[ArcExposure] = []
    stars: list[tuple[Time, str, float]] = []
    for k, (season, epoch) in enumerate(groups):
        exposures = (n_exposures * (k + 1)) // len(groups) - (n_exposures * k) // len(groups)
        nights = (n_nights * (k + 1)) // len(groups) - (n_nights * k) // len(groups)
        times = season_times(season, exposures, nights, seed=seed)
        night = np.floor(times.utc.mjd + 1.0 / 3.0 - 0.5)  # from noon to noon, local time
        for number in np.unique(night):
            own = times[night == number]
            shift = rng.normal() * u.Quantity(drift)
            first, last = own.min() - TimeDelta(1200.0, format="sec"), own.max() + TimeDelta(1200.0, format="sec")
            for share in (np.arange(arcs_per_night) + 0.5) / arcs_per_night:
                arc = simulate_arc(
                    ip, first + share * (last - first), fiber=[fiber], dead_fibers=0, drift=shift, noise=noise,
                    cosmic_rate=5e-6 if noise else 0.0, peak=arc_peak, throughput_scatter=0.0,
                    seed=(seed, 52, len(arcs)),
                )  # fmt: skip
                arcs.append(ArcExposure.from_simulation(arc, instrument=f"lamost-lrs-{arm}"))
            stars += [(time, epoch, shift) for time in own]
    book = ArcBook(arcs)
    visits = []
    ra, dec = TARGET[0] * u.deg, TARGET[1] * u.deg
    speed = float(velocity.to_value(u.km / u.s))
    for k, (time, epoch, shift) in enumerate(stars):
        helio = heliocentric_velocity(time, ra, dec)
        moved = shift + rng.normal() * flexure.to_value(u.km / u.s) / SPEED_OF_LIGHT * middle * u.AA
        ratio = rng.uniform(low, high)
        options = {
            **shared, "time": time, "wavelength": optical[here] / (1.0 + helio / SPEED_OF_LIGHT) * u.AA,
            "helio_rv": helio * u.km / u.s, "drift": moved, "snr": ratio,
        }  # fmt: skip
        star = simulate_star(
            template, observatory, velocity=speed * u.km / u.s, noise=noise, seed=(seed, 53, k), **options
        )
        faster = simulate_star(template, observatory, velocity=(speed + _STEP) * u.km / u.s, noise=False, **options)
        expected = star.meta["truth"]["noiseless"]
        slope = (faster.flux.value - expected) / _STEP
        ivar = star.uncertainty.array
        flux, weight = np.zeros(optical.size), np.zeros(optical.size)
        flux[here], weight[here] = star.flux.value, ivar
        meta = {key: star.meta[key] for key in ("fiber", "spectrograph", "arm", "instrument", "wavelength_medium")}
        spectrum = Spectrum(
            flux=flux * star.flux.unit, spectral_axis=optical * u.AA, uncertainty=InverseVariance(weight),
            mask=weight == 0, meta={**meta, "time": time, "frame": "topocentric"},
        )  # fmt: skip
        truth = (optical[here] / (1.0 + helio / SPEED_OF_LIGHT), expected, slope, ivar)
        visit = PixelVisit(f"{k + 1:03d}", spectrum, book, helio_rv=helio, pipeline_center=pipeline_center)
        visits.append(replace(visit, epoch=epoch, velocity=speed, known=truth))
    return visits
