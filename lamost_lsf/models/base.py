"""What every model of the instrumental profile offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import astropy.units as u
import numpy as np
from astropy.time import Time

from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.kernel import IPKernel
from lamost_lsf.lsf import LSF, MeanLSF
from lamost_lsf.models.labels import label_arrays, profile_at_labels
from lamost_lsf.profile import InstrumentalProfile
from lamost_lsf.time import time_to_lmjm
from lamost_lsf.units import to_vacuum_angstrom

__all__ = ["IPModel"]


class IPModel(ABC):
    """Instrumental profile as a function of time, fibre and true wavelength.

    A sub-class gives ``offset``, ``needs_time``, ``needs_fiber``, ``wavelength_range`` and ``_evaluate``.
    """

    #: Offsets of the samples, Angstrom, uniform, shape (n,).
    offset: np.ndarray
    needs_time: bool = False
    needs_fiber: bool = False
    #: Wavelengths (low, high), vacuum Angstrom, that the model was made for.
    wavelength_range: tuple[float, float] = (0.0, np.inf)
    #: Names of the labels that the model takes besides time, fibre and wavelength, and a typical value of each.
    extra_labels: Mapping[str, float] = MappingProxyType({})
    meta: dict[str, Any]

    @abstractmethod
    def _evaluate(self, time: np.ndarray | None, fiber: np.ndarray | None, wavelength: np.ndarray) -> np.ndarray:
        """Profiles (m, n) at m times, fibres and vacuum wavelengths (Angstrom), all of shape (m,).

        ``time`` is what `_time_label` makes of an astropy Time. Ranges were checked by whoever calls.
        """

    def _error_function(
        self, time: np.ndarray | None, fiber: np.ndarray | None, wavelength: np.ndarray
    ) -> Callable[[], np.ndarray] | None:
        """What gives the 1-sigma error (m, n) of `_evaluate`, in its normalisation; None where the model has none."""
        return None

    def _time_label(self, time: Time) -> np.ndarray:
        """Plain number that stands for a time in this model: local modified Julian minutes."""
        return time_to_lmjm(time)

    def _check_labels(self, time: Time | None, fiber: np.ndarray | None, extrapolate: bool) -> None:
        """Raise where a time or fibre is missing or outside the model's range."""
        name = type(self).__name__
        if self.needs_time and time is None:
            raise ValueError(f"{name} depends on time: pass time=astropy.time.Time(...)")
        if self.needs_fiber and fiber is None:
            raise ValueError(f"{name} depends on the fibre: pass fiber=1..250")
        if time is not None and not isinstance(time, Time):
            raise TypeError(f"time must be an astropy Time, got {type(time).__name__}")
        if fiber is not None and not (
            np.issubdtype(fiber.dtype, np.number) and np.all(np.equal(np.floor(fiber), fiber))
        ):
            raise ValueError(f"fiber must be a whole number, got {fiber}")

    def _check_wavelength(self, wavelength: np.ndarray) -> None:
        """Raise where a vacuum wavelength (Angstrom) is outside the model's range, or not a number."""
        low, high = self.wavelength_range
        outside = ~((wavelength >= low) & (wavelength <= high))
        if np.any(outside):
            raise OutOfRangeError(
                f"wavelength {wavelength[outside].flat[0]:.2f} A (vacuum) lies outside {low:.2f}-{high:.2f} A, the "
                f"range of this {type(self).__name__}; pass extrapolate=True to go beyond"
            )

    def with_labels(
        self, labels: Mapping[str, float] | Literal["median"] | None, *, extrapolate: bool = False
    ) -> IPModel:
        """The model at given values of its extra labels; one that has none is returned as it is.

        Raises
        ------
        ValueError
            Labels for a model that takes none.
        """
        if labels is not None and not (isinstance(labels, str) and labels == "median"):
            label_arrays(self, labels)
        return self

    def profile(
        self,
        *,
        time: Time | None = None,
        fiber: int | np.ndarray | None = None,
        wavelength: u.Quantity,
        medium: str = "vacuum",
        labels: Mapping[str, Any] | Literal["median"] | None = None,
        extrapolate: bool = False,
    ) -> InstrumentalProfile:
        """Instrumental profile(s).

        Parameters
        ----------
        time : `~astropy.time.Time`, optional
            Mid-exposure; scalar or array.
        fiber : int or array_like of int, optional
            Fibre number as in the survey's files (LAMOST: 1-250).
        wavelength : `~astropy.units.Quantity`
            True wavelength in the detector's frame, measured in ``medium``. ``time``, ``fiber`` and ``wavelength``
            broadcast against one another.
        medium : {"vacuum", "air"}
            Medium of ``wavelength``.
        labels : mapping of str to array_like, or "median", optional
            Values of the model's ``extra_labels``, where it has any; they broadcast against the others. "median" takes
            those of the training set.
        extrapolate : bool
            Allow labels outside the range that the model was trained on.

        Returns
        -------
        InstrumentalProfile
            Of the broadcast shape; with ``error`` where the model knows its own.

        Raises
        ------
        OutOfRangeError
            A label outside the trained range, unless ``extrapolate``.
        ValueError
            A missing label, a fibre that is not a whole number, or shapes that do not broadcast.
        TypeError
            A time that is not a Time, or a wavelength without a unit of length.
        """
        if labels is not None:
            where = {"time": time, "fiber": fiber, "wavelength": wavelength, "medium": medium}
            if isinstance(labels, Mapping) and any(np.ndim(v) for v in labels.values()):
                return profile_at_labels(self, labels, **where, extrapolate=extrapolate)
            return self.with_labels(labels, extrapolate=extrapolate).profile(**where, extrapolate=extrapolate)
        vacuum = to_vacuum_angstrom(wavelength, medium)
        fibers = None if fiber is None else np.asarray(fiber)
        self._check_labels(time, fibers, extrapolate)
        if not extrapolate:
            self._check_wavelength(vacuum)
        elif not np.all(np.isfinite(vacuum) & (vacuum > 0)):
            raise ValueError("wavelength must be positive and finite")
        shapes = {"wavelength": vacuum.shape}
        if time is not None:
            shapes["time"] = time.shape
        if fibers is not None:
            shapes["fiber"] = fibers.shape
        try:
            shape = np.broadcast_shapes(*shapes.values())
        except ValueError:
            raise ValueError(f"shapes do not broadcast: {shapes}") from None
        wide = np.broadcast_to(vacuum, shape)
        labels = (
            None if time is None else np.broadcast_to(self._time_label(time), shape).ravel(),
            None if fibers is None else np.broadcast_to(fibers, shape).ravel(),
            wide.ravel(),
        )
        flux = self._evaluate(*labels).reshape((*shape, self.offset.size))
        make = self._error_function(*labels)
        # as large as the profiles, and seldom wanted: made when it is asked for
        error = None if make is None else lambda: make().reshape(flux.shape)
        return InstrumentalProfile(self.offset * u.AA, flux, wavelength=wide * u.AA, error=error, meta=self.meta)

    def at(
        self,
        *,
        time: Time | None = None,
        fiber: int | None = None,
        labels: Mapping[str, Any] | Literal["median"] | None = None,
        extrapolate: bool = False,
    ) -> LSF:
        """LSF of one fibre at one time (or the mean over several times: a co-add).

        Parameters
        ----------
        time : `~astropy.time.Time`, optional
            Scalar, or the times of the exposures that were co-added.
        fiber : int, optional
        labels : mapping of str to float, or "median", optional
            Values of the model's ``extra_labels``, where it has any: one, or one for each of the times.
        extrapolate : bool
            Allow times, fibres and, later, wavelengths outside the trained range.

        Returns
        -------
        `~lamost_lsf.lsf.LSF`

        Raises
        ------
        OutOfRangeError
            A time or fibre outside the trained range, unless ``extrapolate``.
        ValueError
            A missing or empty label, or several fibres.
        """
        if labels is not None:
            if time is not None and isinstance(labels, Mapping) and any(np.ndim(v) for v in labels.values()):
                return self._mean_at(time, fiber, labels, extrapolate)
            return self.with_labels(labels, extrapolate=extrapolate).at(time=time, fiber=fiber, extrapolate=extrapolate)
        if fiber is not None and np.ndim(fiber):
            raise ValueError("at() makes the LSF of one fibre; profile() takes arrays of fibres")
        self._check_labels(time, None if fiber is None else np.asarray(fiber), extrapolate)
        if time is None:
            return _ModelLSF(self, None, fiber, extrapolate)
        if time.size == 0:
            raise ValueError("time is empty")
        return self._lsf(self._time_label(time), fiber, extrapolate)

    def _lsf(self, label: np.ndarray, fiber: int | None, extrapolate: bool) -> LSF:
        """LSF at a time's label, or the mean over several; everything has been checked."""
        if label.ndim == 0:
            return _ModelLSF(self, float(label), fiber, extrapolate)
        return MeanLSF([_ModelLSF(self, t, fiber, extrapolate) for t in label.ravel().tolist()])

    def _mean_at(self, time: Time, fiber: int | None, labels: Mapping[str, Any], extrapolate: bool) -> LSF:
        """LSF of a co-add of exposures that differ in the extra labels."""
        values = label_arrays(self, labels)
        if not time.shape or any(v.shape not in ((), time.shape) for v in values.values()):
            shapes = {name: v.shape for name, v in values.items()}
            raise ValueError(f"labels must be numbers, or one for each of the times ({time.shape}), got {shapes}")
        rows = zip(*(np.broadcast_to(v, time.shape).ravel().tolist() for v in values.values()), strict=True)
        lsfs = []
        for when, row in zip(time.ravel(), rows, strict=True):
            own = dict(zip(values, row, strict=True))
            lsfs.append(self.at(time=when, fiber=fiber, labels=own, extrapolate=extrapolate))
        return MeanLSF(lsfs)

    def kernel(
        self,
        *,
        time: Time | None = None,
        fiber: int | None = None,
        wavelength: u.Quantity,
        medium: str = "vacuum",
        dispersion: u.Quantity | None = None,
        spectral_axis: u.Quantity | None = None,
        center: str | Callable | None = None,
        labels: Mapping[str, float] | Literal["median"] | None = None,
        extrapolate: bool = False,
    ) -> IPKernel:
        """Convolution kernel straight from the model; see `profile` and `InstrumentalProfile.to_kernel`."""
        where = {"time": time, "fiber": fiber, "wavelength": wavelength, "medium": medium}
        ip = self.profile(**where, labels=labels, extrapolate=extrapolate)
        return ip.to_kernel(dispersion=dispersion, spectral_axis=spectral_axis, center=center)


class _ModelLSF(LSF):
    """LSF of a model at one time (by its label) and fibre."""

    def __init__(self, model: IPModel, time: float | None, fiber: int | None, extrapolate: bool) -> None:
        super().__init__(model.meta)
        self.model, self.fiber, self._time = model, fiber, time
        self.offset = model.offset
        if not extrapolate:
            self.wavelength_range = model.wavelength_range

    def _sample(self, wavelength: np.ndarray) -> np.ndarray:
        size = wavelength.size
        time = None if self._time is None else np.full(size, self._time)
        fiber = None if self.fiber is None else np.full(size, self.fiber)
        return self.model._evaluate(time, fiber, wavelength)
