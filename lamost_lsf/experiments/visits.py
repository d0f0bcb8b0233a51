"""One exposure of a star, on the wavelengths that were published and on those of a chosen line centre."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance
from astropy.time import Time
from specutils import Spectrum

from lamost_lsf.arcs import ArcExposure
from lamost_lsf.calibration import ArcSeries, recalibrate, shift_center
from lamost_lsf.calibration.shift import replace_axis
from lamost_lsf.errors import FitWarning
from lamost_lsf.instruments import get_instrument
from lamost_lsf.io.frames import check_heliocentric
from lamost_lsf.lsf import LSF
from lamost_lsf.units import SPEED_OF_LIGHT

__all__ = ["ArcBook", "PixelVisit", "PublishedVisit", "Visit", "pixel_spectrum"]


class ArcBook:
    """The arcs of an experiment: each is calibrated once for each centre, when first needed.

    Parameters
    ----------
    arcs : sequence of ArcExposure
        Of one arm of one spectrograph.
    lines : LineList, optional
        The lamp's; those of the arcs' instrument by default.
    fiber : sequence of int, optional
        Fibres to calibrate; all by default. An experiment on one star needs no other.
    **options
        Of `~lamost_lsf.calibration.calibrate`, such as ``fitter`` and ``degree``.

    Raises
    ------
    ValueError
        No arcs, arcs that name no instrument (which has the lines and the window in which they are centred), a fibre
        that an arc does not have.
    """

    def __init__(
        self, arcs: Sequence[ArcExposure], lines: Any = None, *, fiber: Sequence[int] | None = None, **options: Any
    ) -> None:
        if not arcs:
            raise ValueError("no arcs were given")
        if lines is None:
            names = {arc.instrument for arc in arcs}
            if len(names) != 1 or "" in names:
                raise ValueError(f"arcs must name one instrument, or lines be given; they name {sorted(names)}")
            lines = get_instrument(names.pop()).lines
        self._arcs = [arc if fiber is None else _rows(arc, fiber) for arc in arcs]
        self._lines, self._options = lines, options
        self._series: dict[str, ArcSeries] = {}

    def series(self, center: str) -> ArcSeries:
        """The arcs, calibrated by one centre."""
        if center not in self._series:
            self._series[center] = ArcSeries(self._arcs, self._lines, center=center, **self._options)
        return self._series[center]


def _rows(arc: ArcExposure, fiber: Sequence[int]) -> ArcExposure:
    """The exposure's spectra of some fibres."""
    index = [np.flatnonzero(arc.fiber == number) for number in fiber]
    missing = [number for number, i in zip(fiber, index, strict=True) if not i.size]
    if missing:
        raise ValueError(f"the arc of {arc.time.utc.isot} has no fibre {', '.join(map(str, missing))}")
    rows = np.concatenate(index)
    names = ("flux", "ivar", "mask", "wavelength", "fiber")
    return replace(arc, **{name: getattr(arc, name)[rows] for name in names})


class Visit(ABC):
    """One exposure of the star."""

    name: str
    time: Time
    #: "before" or "after" the change; None leaves it to the time.
    epoch: str | None
    #: Heliocentric velocity where it is known, km/s.
    velocity: float | None

    @abstractmethod
    def published(self) -> Spectrum:
        """The spectrum on the pipeline's wavelengths; ``meta["wavelength_center"]`` is the pipeline's centre."""

    @abstractmethod
    def recalibrated(self, center: str, lsf: LSF) -> Spectrum:
        """The spectrum on wavelengths that rest on another centre; ``lsf`` is that of the published spectrum."""

    def truth(self) -> tuple[np.ndarray, ...] | None:
        """Wavelength, noiseless flux, its derivative per km/s, inverse variance, (n_pix,) each; where known."""
        return None


def pixel_spectrum(exposure: ArcExposure, fiber: int) -> Spectrum:
    """One fibre of an exposure, with what an LSF is looked up by in its meta."""
    one = _rows(exposure, [fiber])
    meta = {
        **{k: v for k, v in exposure.meta.items() if k in ("wavelength_center", "filename")},
        "fiber": int(fiber), "time": exposure.time, "spectrograph": exposure.spectrograph,
        "arm": exposure.arm, "instrument": exposure.instrument or None, "wavelength_medium": "vacuum",
        "frame": "topocentric",
    }  # fmt: skip
    return Spectrum(
        flux=one.flux[0] * u.one, spectral_axis=one.wavelength[0] * u.AA, uncertainty=InverseVariance(one.ivar[0]),
        mask=one.mask[0], meta=meta,
    )  # fmt: skip


@dataclass(eq=False)
class PixelVisit(Visit):
    """A spectrum whose samples are the detector's pixels, and the arcs around it.

    Attributes
    ----------
    name : str
    spectrum : `~specutils.Spectrum`
        With ``fiber``, ``spectrograph``, ``arm`` and ``time`` in its meta, in the detector's frame.
    arcs : ArcBook
    helio_rv : float
        HELIO_RV, km/s: *minus* the heliocentric correction.
    pipeline_center : str
        Centre that the published wavelengths rest on, if the spectrum's own do not say; LAMOST's is "sersic".
    epoch : {"before", "after"}, optional
    velocity : float, optional
        Known heliocentric velocity, km/s.
    known : tuple of ndarray, optional
        What `truth` returns.
    """

    name: str
    spectrum: Spectrum
    arcs: ArcBook
    helio_rv: float = 0.0
    pipeline_center: str = "sersic"
    epoch: str | None = None
    velocity: float | None = None
    known: tuple[np.ndarray, ...] | None = field(default=None, repr=False)

    @property
    def time(self) -> Time:
        """Of the exposure."""
        return self.spectrum.meta["time"]

    def truth(self) -> tuple[np.ndarray, ...] | None:
        """As for `Visit`."""
        return self.known

    def published(self) -> Spectrum:
        """As for `Visit`: the spectrum's own wavelengths if they say their centre, else the pipeline's recipe."""
        own = self.spectrum.meta.get("wavelength_center")
        if own is None:
            return self.recalibrated(self.pipeline_center)
        meta = {**self.spectrum.meta, "frame": "heliocentric", "helio_rv": self.helio_rv * u.km / u.s}
        axis = self.spectrum.spectral_axis / (1.0 + self.helio_rv / SPEED_OF_LIGHT)
        return replace_axis(self.spectrum, u.Quantity(axis), meta)

    def recalibrated(self, center: str, lsf: LSF | None = None) -> Spectrum:
        """As for `Visit`: by the arc nearest in time."""
        series = self.arcs.series(center)
        with warnings.catch_warnings():
            # one for each arc would drown everything else; what a poor fit does shows in the velocities
            warnings.simplefilter("ignore", FitWarning)
            new = recalibrate(
                self.spectrum, series, center=center, fiber=self.spectrum.meta["fiber"],
                velocity=self.helio_rv * u.km / u.s,
            )  # fmt: skip
        new.meta.update(frame="heliocentric", helio_rv=self.helio_rv * u.km / u.s)
        return new


@dataclass(eq=False)
class PublishedVisit(Visit):
    """A published spectrum without its arc: other centres by the distance that the profile's centres have.

    Attributes
    ----------
    name : str
    spectrum : `~specutils.Spectrum`
        As from `~lamost_lsf.read_lamost`, with ``wavelength_center`` in its meta.
    epoch, velocity
        As for `PixelVisit`.

    Notes
    -----
    `~lamost_lsf.calibration.shift_center` moves wavelengths and kernel alike: "IP + recalibration" gives what the IP
    gives with the pipeline's own centre, by whatever centre. It does not mend what the pipeline did to the scale.
    """

    name: str
    spectrum: Spectrum
    epoch: str | None = None
    velocity: float | None = None

    @property
    def time(self) -> Time:
        """Mean of the exposures' times."""
        time = self.spectrum.meta["time"]
        return time if time.isscalar else Time(np.mean(time.utc.mjd), format="mjd", scale="utc")

    def published(self) -> Spectrum:
        """As for `Visit`."""
        return self.spectrum

    def recalibrated(self, center: str, lsf: LSF) -> Spectrum:
        """As for `Visit`."""
        return shift_center(self.spectrum, lsf, to=center)


def heliocentric_velocity(time: Time, ra: u.Quantity, dec: u.Quantity) -> float:
    """HELIO_RV of a target, km/s: minus the heliocentric correction."""
    known = {"time": time, "ra": ra, "dec": dec}
    return float(check_heliocentric(known, warn=False).computed.to_value(u.km / u.s))
