"""`ArcExposure`: one exposure of an arc lamp by one arm, all fibres."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance, NDUncertainty
from astropy.time import Time
from numpy.typing import ArrayLike

from lamost_lsf.arcs.profiles import EXPOSURE_COLUMNS
from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.instruments import get_instrument
from lamost_lsf.time import time_to_lmjm
from lamost_lsf.units import check_medium, to_vacuum_angstrom

if TYPE_CHECKING:
    from specutils import SpectrumList

    from lamost_lsf.simulation import SimulatedExposure
    from lamost_lsf.wavelength import WavelengthSolution

__all__ = ["ArcExposure"]


@dataclass(frozen=True, eq=False)
class ArcExposure:
    """Extracted exposure of an arc lamp: one spectrum a fibre, wavelength-calibrated.

    Use `from_arrays`, which takes Quantities and either medium; this constructor takes what is stored.

    Attributes
    ----------
    flux : ndarray (n_fiber, n_pix)
        Counts, not background-subtracted.
    ivar : ndarray (n_fiber, n_pix)
        Inverse variance of ``flux``; 0 where ``mask``.
    mask : ndarray of bool (n_fiber, n_pix)
        True = bad: masked by the caller, without a finite flux, or without a positive inverse variance.
    wavelength : ndarray (n_fiber, n_pix)
        Vacuum Angstrom at the centres of the pixels, increasing along each fibre, in the detector's frame.
    time : `~astropy.time.Time`
        Scalar, of ``time_reference``.
    fiber : ndarray (n_fiber,)
        Fibre numbers, from 1, all different.
    spectrograph : int
    arm : str
    lamp : str
    instrument : str
        Name of the instrument; "" where it is not known.
    time_reference : {"start", "mid"}
        Which moment of the exposure ``time`` is. LAMOST's minutes (LMJM) are those of the start, and so are the labels
        of the published models.
    meta : dict
        What else is known. ``temperature`` (deg C), ``saturation`` (counts), ``file`` and ``wavelength_center`` are
        used, and so is ``labels``: a dict of other numbers from the header (by names that Python would take for a
        variable), which go with the profiles and may serve as labels of a model (`lamost_lsf.train`).

    Raises
    ------
    TypeError
        ``time`` that is not a `~astropy.time.Time`.
    ValueError
        Shapes that do not match, wavelengths that do not increase, fibres twice, an arm that is not the instrument's.
    `~lamost_lsf.errors.OutOfRangeError`
        Fibres or a spectrograph that the instrument does not have; a fibre below 1.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from astropy.time import Time
    >>> from lamost_lsf.arcs import ArcExposure
    >>> wavelength = np.linspace(5440, 5480, 80) * u.AA
    >>> flux = 1000 * np.exp(-0.5 * ((wavelength.value - 5462.27) / 1.3) ** 2) + 50
    >>> arc = ArcExposure.from_arrays(
    ...     flux[None], 1 / flux[None], wavelength, medium="vacuum", time=Time("2017-01-10T15:00"), fiber=[12],
    ...     spectrograph=1, arm="blue", lamp="HgCd",
    ... )
    >>> arc
    <ArcExposure HgCd, spectrograph 1, blue arm, 2017-01-10T15:00:00.000, 1 fibre x 80 pixels>
    """

    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    wavelength: np.ndarray
    time: Time
    fiber: np.ndarray
    spectrograph: int = 1
    arm: str = ""
    lamp: str = ""
    instrument: str = ""
    time_reference: str = "start"
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # contiguous float64 copies: nobody else's array changes under a frozen object, and numba takes them as they are
        flux = np.array(self.flux, dtype=np.float64, order="C")
        if flux.ndim != 2 or 0 in flux.shape:
            raise ValueError(f"flux must have the shape (n_fiber, n_pix), got {flux.shape}")
        arrays = {"flux": flux}
        for name, kind in (("ivar", np.float64), ("wavelength", np.float64), ("mask", bool)):
            arrays[name] = np.array(getattr(self, name), dtype=kind, order="C")
            if arrays[name].shape != flux.shape:
                raise ValueError(f"{name} has shape {arrays[name].shape}, flux {flux.shape}")
        wavelength, ivar = arrays["wavelength"], arrays["ivar"]
        if not np.all(np.isfinite(wavelength)) or wavelength.min() <= 0:
            raise ValueError(
                "wavelengths must be finite and positive; mask bad pixels, but leave them their wavelengths"
            )
        if np.any(falling := np.diff(wavelength, axis=1) <= 0):
            row, pixel = (int(i) for i in np.argwhere(falling)[0])
            way = "flip the arrays" if np.all(falling) else "sort them"
            raise ValueError(
                f"wavelengths must increase along the pixels: row {row} has {wavelength[row, pixel]:.3f} and then "
                f"{wavelength[row, pixel + 1]:.3f} A at pixel {pixel}; {way} first"
            )
        bad = arrays["mask"] | ~np.isfinite(flux) | ~np.isfinite(ivar) | ~(ivar > 0)
        flux[~np.isfinite(flux)] = 0.0
        ivar[bad] = 0.0
        arrays["mask"] = bad
        fiber = np.atleast_1d(np.array(self.fiber))
        if fiber.shape != (flux.shape[0],) or not np.issubdtype(fiber.dtype, np.integer):
            raise ValueError(f"fiber must be {flux.shape[0]} integers, one a row, got {self.fiber!r}")
        if np.unique(fiber).size != fiber.size:
            raise ValueError("fibre numbers must differ from one another")
        if fiber.min() < 1:
            raise OutOfRangeError(f"fibres are counted from 1, got {fiber.min()}")
        arrays["fiber"] = fiber.astype(np.int64)
        for name, values in arrays.items():
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if not isinstance(self.time, Time) or not self.time.isscalar:
            raise TypeError(f"time must be a scalar astropy Time, got {self.time!r}")
        if self.time_reference not in ("start", "mid"):
            raise ValueError(f"time_reference must be 'start' or 'mid', got {self.time_reference!r}")
        if isinstance(self.spectrograph, bool) or int(self.spectrograph) != self.spectrograph or self.spectrograph < 1:
            raise ValueError(f"spectrograph must be a number from 1, got {self.spectrograph!r}")
        object.__setattr__(self, "spectrograph", int(self.spectrograph))
        object.__setattr__(self, "meta", dict(self.meta))
        if "labels" in self.meta:
            self.meta["labels"] = _checked_labels(self.meta["labels"])
        if self.instrument:
            self.check_instrument(self.instrument)

    def check_instrument(self, name: str | PathLike) -> None:
        """Raise unless arm, fibres and spectrograph belong to an instrument.

        Raises
        ------
        LookupError
            No such instrument.
        ValueError
            Another arm.
        `~lamost_lsf.errors.OutOfRangeError`
            Fibres or a spectrograph that it does not have.
        """
        instrument = get_instrument(name)
        if self.arm != instrument.arm:
            raise ValueError(f"{instrument.name} is the {instrument.arm} arm, the exposure is of the {self.arm!r} arm")
        instrument.check_fibers(self.fiber)
        instrument.check_spectrograph(self.spectrograph)

    @property
    def n_fiber(self) -> int:
        """Number of fibres."""
        return self.flux.shape[0]

    @property
    def n_pix(self) -> int:
        """Number of pixels of a fibre."""
        return self.flux.shape[1]

    @property
    def lmjm(self) -> float:
        """`time` as a local modified Julian minute."""
        return float(time_to_lmjm(self.time))

    def __repr__(self) -> str:
        fibres = "fibre" if self.n_fiber == 1 else "fibres"
        return (
            f"<ArcExposure {self.lamp}, spectrograph {self.spectrograph}, {self.arm} arm, {self.time.utc.isot}, "
            f"{self.n_fiber} {fibres} x {self.n_pix} pixels>"
        )

    # -- construction ----------------------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls,
        flux: ArrayLike,
        ivar: ArrayLike,
        wavelength: u.Quantity,
        *,
        medium: str,
        time: Time,
        fiber: ArrayLike,
        arm: str,
        spectrograph: int = 1,
        lamp: str = "",
        mask: ArrayLike | None = None,
        instrument: str = "",
        time_reference: str = "start",
        meta: Mapping[str, Any] | None = None,
    ) -> ArcExposure:
        """Exposure from arrays.

        Parameters
        ----------
        flux, ivar : array_like (n_fiber, n_pix)
            Counts and their inverse variance.
        wavelength : `~astropy.units.Quantity`, (n_pix,) or (n_fiber, n_pix)
            Centres of the pixels, increasing; one scale, or one for each fibre.
        medium : {"vacuum", "air"}
            Of ``wavelength``; air is converted.
        time : `~astropy.time.Time`
        fiber : array_like of int (n_fiber,)
        arm : str
        spectrograph, lamp, instrument, time_reference, meta
            As for the class.
        mask : array_like of bool (n_fiber, n_pix), optional
            True = bad.

        Raises
        ------
        TypeError, ValueError, `~lamost_lsf.errors.OutOfRangeError`
            As for the class; ``wavelength`` without a unit; another medium.
        """
        flux = np.asarray(flux)
        vacuum = to_vacuum_angstrom(wavelength, medium)
        if vacuum.ndim == 1 and flux.ndim == 2 and vacuum.size == flux.shape[1]:
            vacuum = np.broadcast_to(vacuum, flux.shape)
        return cls(
            flux=flux,
            ivar=ivar,
            mask=np.zeros(flux.shape, dtype=bool) if mask is None else mask,
            wavelength=vacuum,
            time=time,
            fiber=fiber,
            spectrograph=spectrograph,
            arm=arm,
            lamp=lamp,
            instrument=instrument,
            time_reference=time_reference,
            meta={} if meta is None else dict(meta),
        )

    @classmethod
    def from_spectra(
        cls,
        spectra: SpectrumList | Sequence[Any],
        *,
        medium: str | None = None,
        time: Time | None = None,
        fiber: ArrayLike | None = None,
        arm: str | None = None,
        spectrograph: int | None = None,
        lamp: str = "",
        instrument: str = "",
        time_reference: str = "start",
        meta: Mapping[str, Any] | None = None,
    ) -> ArcExposure:
        """Exposure from one spectrum a fibre.

        Parameters
        ----------
        spectra : `~specutils.SpectrumList`
            Of equal length, each with an uncertainty.
        medium, time, fiber, arm, spectrograph
            Where None, taken from the spectra's ``meta`` (``wavelength_medium``, ``time``, ``fiber``, ``arm``,
            ``spectrograph``), which must then have them and, but for the fibre, agree.
        lamp, instrument, time_reference, meta
            As for the class.

        Raises
        ------
        ValueError
            Spectra of different lengths or media, without uncertainty, not one-dimensional; a missing entry.
        """
        spectra = list(spectra)
        if not spectra:
            raise ValueError("no spectra")
        lengths = sorted({s.flux.shape for s in spectra})
        if len(lengths) > 1 or len(lengths[0]) != 1:
            raise ValueError(f"spectra must be one-dimensional and of one length, got the shapes {lengths}")
        if missing := [i for i, s in enumerate(spectra) if s.uncertainty is None]:
            raise ValueError(f"spectrum {missing[0]} has no uncertainty")
        medium = _common(spectra, "wavelength_medium", medium, "medium")
        scales = np.array([to_vacuum_angstrom(s.spectral_axis.to(u.AA), medium) for s in spectra])
        unit = spectra[0].flux.unit
        masks = [np.zeros(lengths[0], dtype=bool) if s.mask is None else s.mask for s in spectra]
        if fiber is None:
            fiber = [_entry(s, "fiber", i) for i, s in enumerate(spectra)]
        if time is None:
            # a list of one exposure is that exposure
            times = [np.atleast_1d(_entry(s, "time", i)) for i, s in enumerate(spectra)]
            if any(t.shape != (1,) or abs((t[0] - times[0][0]).to_value(u.s)) > 1e-3 for t in times):
                raise ValueError("the spectra are not of one exposure: their times differ; pass time=")
            time = times[0][0]
        return cls(
            flux=np.array([s.flux.to_value(unit) for s in spectra]),
            ivar=np.array([_inverse_variance(s.uncertainty, unit) for s in spectra]),
            mask=np.array(masks),
            wavelength=scales,
            time=time,
            fiber=np.asarray(fiber),
            spectrograph=_common(spectra, "spectrograph", spectrograph),
            arm=_common(spectra, "arm", arm),
            lamp=lamp,
            instrument=instrument,
            time_reference=time_reference,
            meta={} if meta is None else dict(meta),
        )

    @classmethod
    def from_simulation(cls, exposure: SimulatedExposure, *, instrument: str = "") -> ArcExposure:
        """Exposure from the simulator's, without its truth.

        Parameters
        ----------
        exposure : `~lamost_lsf.simulation.SimulatedExposure`
        instrument : str
            As for the class.

        Examples
        --------
        >>> from astropy.time import Time
        >>> from lamost_lsf.arcs import ArcExposure
        >>> from lamost_lsf.simulation import SimulatedIP, simulate_arc
        >>> arc = simulate_arc(SimulatedIP("red"), Time("2018-02-01T14:00"), fiber=[7, 8])
        >>> ArcExposure.from_simulation(arc, instrument="lamost-lrs-red").fiber
        array([7, 8])
        """
        meta = {k: copy.copy(v) for k, v in exposure.meta.items() if k not in ("truth", "fiber")}
        return cls.from_arrays(
            exposure.flux,
            exposure.ivar,
            exposure.wavelength * u.AA,
            medium=meta.get("wavelength_medium", "vacuum"),
            mask=exposure.mask,
            time=exposure.time,
            fiber=exposure.meta["fiber"],
            spectrograph=exposure.spectrograph,
            arm=exposure.arm,
            lamp=exposure.lamp,
            instrument=instrument,
            meta=meta,
        )

    @classmethod
    def from_long_slit(
        cls,
        frame: ArrayLike,
        solution: WavelengthSolution | Sequence[WavelengthSolution],
        *,
        rows: tuple[int, int],
        time: Time,
        arm: str,
        tilt: ArrayLike | None = None,
        ivar: ArrayLike | None = None,
        gain: float | None = None,
        read_noise: float | None = None,
        mask: ArrayLike | None = None,
        spectrograph: int = 1,
        lamp: str = "",
        instrument: str = "",
        time_reference: str = "start",
        meta: Mapping[str, Any] | None = None,
    ) -> ArcExposure:
        """Exposure from a two-dimensional frame of a long slit; rows play the fibres.

        Parameters
        ----------
        frame : array_like (n_rows, n_columns)
            Counts; dispersion along the columns, wavelength increasing or decreasing.
        solution : `~lamost_lsf.WavelengthSolution`, or a sequence of them
            Of the column, one for all rows or one for each of ``rows``. Columns beyond its domain are left off.
        rows : (int, int)
            First row and the row after the last, counted from 0. Row r becomes fibre r + 1.
        time : `~astropy.time.Time`
        arm : str
        tilt : array_like (n_rows used, n_columns), optional
            Where the light of a row lies, in columns, relative to the row that ``solution`` was made for, as
            `measure_tilt` gives it. None: no tilt.
        ivar : array_like (n_rows, n_columns), optional
            Inverse variance. None: from ``gain`` (electrons per count) and ``read_noise`` (electrons), which must then
            be given.
        mask : array_like of bool (n_rows, n_columns), optional
        spectrograph, lamp, instrument, time_reference, meta
            As for the class.

        Raises
        ------
        ValueError
            Shapes or rows that do not fit, no noise given, a solution that is not defined anywhere on the frame.
        """
        from lamost_lsf.arcs.longslit import row_wavelengths

        frame = np.asarray(frame, dtype=np.float64)
        if frame.ndim != 2:
            raise ValueError(f"frame must be two-dimensional, got shape {frame.shape}")
        first, last = (int(r) for r in rows)
        if not 0 <= first < last <= frame.shape[0]:
            raise ValueError(f"rows must be first and after-last, within 0 to {frame.shape[0]}, got {rows}")
        if ivar is None:
            if gain is None or read_noise is None or not gain > 0 or not read_noise >= 0:
                raise ValueError("pass ivar=, or gain= (electrons per count) and read_noise= (electrons)")
            ivar = 1.0 / (
                np.maximum(frame, 0.0) / gain + (read_noise / gain) ** 2 + (1e-12 if read_noise == 0 else 0.0)
            )
        others = {"ivar": ivar, "mask": np.zeros(frame.shape, dtype=bool) if mask is None else mask}
        for name, values in others.items():
            if np.shape(values) != frame.shape:
                raise ValueError(f"{name} has shape {np.shape(values)}, frame {frame.shape}")
        wavelength, columns = row_wavelengths(solution, first, last, frame.shape[1], tilt)
        return cls(
            flux=frame[first:last, columns],
            ivar=np.asarray(others["ivar"])[first:last, columns],
            mask=np.asarray(others["mask"])[first:last, columns],
            wavelength=wavelength,
            time=time,
            fiber=np.arange(first, last) + 1,
            spectrograph=spectrograph,
            arm=arm,
            lamp=lamp,
            instrument=instrument,
            time_reference=time_reference,
            meta={} if meta is None else dict(meta),
        )

    # -- files -----------------------------------------------------------------------------------------------

    def write(self, path: str | PathLike, *, overwrite: bool = False) -> None:
        """Write a FITS file; see `lamost_lsf.arcs.files` for its layout.

        Raises
        ------
        FileExistsError
            ``path`` exists and ``overwrite`` is False.
        TypeError
            An entry of ``meta`` that a file cannot hold; the message names it.
        """
        from lamost_lsf.arcs.files import write_exposure

        write_exposure(self, path, overwrite=overwrite)

    @classmethod
    def read(cls, path: str | PathLike) -> ArcExposure:
        """Read a file that `write` made.

        Raises
        ------
        FileNotFoundError
            No such file.
        `~lamost_lsf.errors.FormatError`
            Another file, another version, a damaged file; the message says which.
        """
        from lamost_lsf.arcs.files import read_exposure

        return read_exposure(path)


def _checked_labels(labels: Any) -> dict[str, float]:
    """Numbers from the header by name."""
    if not isinstance(labels, Mapping):
        raise TypeError(f"meta['labels'] must be a dict of names and numbers, got {type(labels).__name__}")
    out = {}
    for name, value in labels.items():
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            raise ValueError(f"the name of a label must be such as Python has for variables, got {name!r}")
        if name in EXPOSURE_COLUMNS:
            raise ValueError(f"a label cannot be named {name!r}: that is a column of all exposures")
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"label {name!r} must be a plain number, got {value!r}")
        out[name] = float(value)
    return out


def _entry(spectrum: Any, key: str, index: int) -> Any:
    value = spectrum.meta.get(key)
    if value is None:
        raise ValueError(f"spectrum {index} has no {key!r} in its meta; pass {key}=")
    return value


def _common(spectra: list[Any], key: str, given: Any, argument: str | None = None) -> Any:
    """``given``, or what the meta of all spectra agree on."""
    if given is not None:
        return check_medium(given) if key == "wavelength_medium" else given
    values = []
    for i, spectrum in enumerate(spectra):
        if spectrum.meta.get(key) is None:
            raise ValueError(f"spectrum {i} has no {key!r} in its meta; pass {argument or key}=")
        values.append(spectrum.meta[key])
    if len(set(values)) > 1:
        raise ValueError(f"the spectra differ in {key}: {sorted(set(values), key=str)}")
    return values[0]


def _inverse_variance(uncertainty: NDUncertainty, unit: u.UnitBase) -> np.ndarray:
    converted = uncertainty.represent_as(InverseVariance)
    ivar_unit = converted.unit if converted.unit is not None else unit**-2
    return u.Quantity(converted.array, ivar_unit).to_value(unit**-2)
