"""`LSF`: the instrumental profile of one spectrum as a function of the true wavelength alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import astropy.units as u
import numpy as np
from scipy.interpolate import make_interp_spline

from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.profile import InstrumentalProfile
from lamost_lsf.spline import SplineFamily, quadrature_weights
from lamost_lsf.units import to_vacuum_angstrom

__all__ = ["LSF", "JoinedLSF", "MeanLSF", "Segment", "ShiftedLSF", "TabulatedLSF", "as_lsf"]


@dataclass(frozen=True)
class Segment:
    """Part of the true-wavelength axis on which one smooth LSF holds: low <= wavelength < high (Angstrom)."""

    low: float
    high: float
    lsf: LSF


class LSF(ABC):
    """Instrumental profile of one spectrum at any true wavelength.

    Sub-classes give ``_sample``; everything else follows. Wavelengths are vacuum, in the frame of the spectrum that
    the LSF is for. ``center`` names the point of the profile that sits at lag 0 when the LSF is used as a kernel;
    None leaves the choice to whoever uses it (`lamost_lsf.convolve` then takes the spectrum's own, else "zero").
    """

    #: Offsets of the samples, Angstrom, uniform, shape (n,).
    offset: np.ndarray
    #: Wavelengths (low, high), Angstrom, between which the LSF may be asked for.
    wavelength_range: tuple[float, float] = (0.0, np.inf)
    #: Name of, or estimator for, the centre at lag 0; None: undecided.
    center: str | Callable | None = None

    #: What to do about a wavelength outside of it, for the message.
    _range_hint = "pass extrapolate=True where the LSF is made (model.at, archive.lsf_for, TabulatedLSF) to go beyond"

    def __init__(self, meta: Mapping[str, Any] | None = None) -> None:
        self.meta: dict[str, Any] = dict(meta or {})

    @abstractmethod
    def _sample(self, wavelength: np.ndarray) -> np.ndarray:
        """Profiles at ``wavelength`` (m,), vacuum Angstrom, of any normalisation: shape (m, n)."""

    def sample(self, wavelength: np.ndarray) -> np.ndarray:
        """Unit-area profiles on ``self.offset``.

        Parameters
        ----------
        wavelength : ndarray (m,)
            True vacuum wavelength, Angstrom.

        Returns
        -------
        ndarray (m, n)
            Per Angstrom; the spline through each row integrates to 1.

        Raises
        ------
        OutOfRangeError
            A wavelength outside ``wavelength_range``.
        ValueError
            A profile without positive area.
        """
        wavelength = np.asarray(wavelength, dtype=np.float64)
        if wavelength.ndim != 1:
            raise ValueError(f"wavelength must have shape (m,), got {wavelength.shape}")
        self._check_range(wavelength)
        profiles = np.asarray(self._sample(wavelength), dtype=np.float64)
        area = profiles @ quadrature_weights(self.offset)
        bad = ~(area > 0)
        if np.any(bad):
            raise ValueError(
                f"the profile at {wavelength[np.argmax(bad)]:.2f} A has no positive area; the LSF is not usable there"
            )
        return profiles / area[:, None]

    def _check_range(self, wavelength: np.ndarray) -> None:
        low, high = self.wavelength_range
        if wavelength.size and not (wavelength.min() >= low and wavelength.max() <= high):
            raise OutOfRangeError(
                f"wavelengths {np.min(wavelength):.2f}-{np.max(wavelength):.2f} A (vacuum) reach outside "
                f"{low:.2f}-{high:.2f} A, the range of this LSF; {self._range_hint}"
            )

    def zero_point(self, wavelength: np.ndarray, center: str | Callable | None = None) -> np.ndarray:
        """Offset (Angstrom) of the profile's centre by a definition, at each wavelength (m,) of vacuum Angstrom."""
        center = center if center is not None else (self.center or "zero")
        wavelength = np.asarray(wavelength, dtype=np.float64)
        if isinstance(center, str) and center.lower() == "zero":
            return np.zeros(wavelength.shape)
        from lamost_lsf.plugins import apply_center, get_center

        value = np.asarray(apply_center(get_center(center), self.offset, self.sample(wavelength)))
        if not np.all(np.isfinite(value)):
            where = wavelength[~np.isfinite(value)][0]
            raise ValueError(f"the centre {center!r} of the profile at {where:.2f} A could not be determined")
        return value

    def profile(self, wavelength: u.Quantity, *, medium: str = "vacuum") -> InstrumentalProfile:
        """Instrumental profile(s) at true wavelength(s).

        Parameters
        ----------
        wavelength : `~astropy.units.Quantity`
            Scalar or array, measured in ``medium``.
        medium : {"vacuum", "air"}
            Medium of ``wavelength``.

        Returns
        -------
        InstrumentalProfile
            Unit area, of shape ``wavelength.shape``.
        """
        angstrom = to_vacuum_angstrom(wavelength, medium)
        flux = self.sample(angstrom.ravel()).reshape((*angstrom.shape, self.offset.size))
        meta = dict(self.meta)
        if self.center is not None:
            meta["wavelength_center"] = self.center
        return InstrumentalProfile(self.offset * u.AA, flux, wavelength=angstrom * u.AA, meta=meta)

    def segments(self) -> tuple[Segment, ...]:
        """Smooth parts of the LSF, in order of wavelength; one unless arms are joined."""
        return (Segment(0.0, np.inf, self),)

    def centered(self, center: str | Callable | None) -> LSF:
        """The same LSF with another centre at lag 0 (see `lamost_lsf.list_plugins` for the names)."""
        if center is self.center:
            return self
        new = copy(self)
        new.center = center
        return new

    def shifted(self, factor: float) -> LSF:
        """The LSF of a spectrum whose wavelengths were divided by ``factor``.

        A LAMOST file's heliocentric wavelengths are those of the detector divided by ``1 + HELIO_RV / c``: the LSF for
        the file is the detector's LSF ``.shifted(1 + HELIO_RV / c)``.
        """
        return self if factor == 1.0 else ShiftedLSF(self, factor)


class TabulatedLSF(LSF):
    """LSF through given profiles, cubic (or linear, with fewer than four) in wavelength between them.

    Parameters
    ----------
    profiles : InstrumentalProfile
        Shape (m,) with increasing ``wavelength``, or a single profile, which then holds everywhere. Their
        ``meta["wavelength_center"]``, if any, becomes the LSF's centre.
    extrapolate : bool
        Whether the first and last profiles hold beyond their wavelengths.

    Raises
    ------
    ValueError
        Profiles of another shape, without positive finite area, or whose wavelengths are missing or do not increase.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from lamost_lsf import InstrumentalProfile
    >>> from lamost_lsf.lsf import TabulatedLSF
    >>> x = np.linspace(-8, 8, 161) * u.AA
    >>> ip = InstrumentalProfile(x, np.exp(-0.5 * (x.value / 1.2) ** 2))
    >>> print(f"{TabulatedLSF(ip).profile(5000 * u.AA).fwhm:.3f}")
    2.826 Angstrom
    """

    def __init__(self, profiles: InstrumentalProfile, *, extrapolate: bool = False) -> None:
        super().__init__(profiles.meta)
        if profiles.ndim > 1 or profiles.size == 0:
            raise ValueError(f"profiles must have shape (m,) or (), got {profiles.shape}")
        self.center = profiles.meta.get("wavelength_center")
        offset = profiles._offset
        step = np.diff(offset)
        flux = np.atleast_2d(profiles.flux)
        if np.ptp(step) > 1e-9 * np.mean(step):
            # uniform offsets are what the fast convolution works on: resample no coarser than the finest step
            uniform = np.linspace(offset[0], offset[-1], int(np.ceil((offset[-1] - offset[0]) / step.min())) + 1)
            flux, offset = SplineFamily(offset, flux)(uniform), uniform
        area = flux @ quadrature_weights(offset)
        if not np.all(np.isfinite(area) & (area > 0)):
            raise ValueError(f"profile {int(np.argmin(np.isfinite(area) & (area > 0)))} has no positive finite area")
        self.offset = offset
        self._flux = flux / area[:, None]
        self._nodes = None
        if profiles.shape and profiles.shape[0] > 1:
            if profiles.wavelength is None:
                raise ValueError("profiles need their wavelengths to be tabulated")
            self._nodes = profiles.wavelength.to_value(u.AA)
            if not np.all(np.isfinite(self._nodes)) or np.any(np.diff(self._nodes) <= 0):
                raise ValueError("the profiles' wavelengths must be finite and increase strictly")
            if not extrapolate:
                self.wavelength_range = (float(self._nodes[0]), float(self._nodes[-1]))
            # not-a-knot through four or more; through two or three, straight lines
            order = 3 if self._nodes.size >= 4 else 1
            self._interpolate = make_interp_spline(self._nodes, self._flux, k=order)

    def _sample(self, wavelength: np.ndarray) -> np.ndarray:
        if self._nodes is None:
            return np.broadcast_to(self._flux, (wavelength.size, self.offset.size))
        return self._interpolate(np.clip(wavelength, self._nodes[0], self._nodes[-1]))


class MeanLSF(LSF):
    """Mean of several LSFs on one offset grid: what a co-add of equal exposures has.

    Parameters
    ----------
    lsfs : sequence of LSF
    weights : array_like, optional
        Relative weight of each exposure; equal by default.

    Raises
    ------
    ValueError
        No LSFs, different offset grids or centres, ranges without a common part, or unusable weights.
    """

    def __init__(self, lsfs: Sequence[LSF], weights: np.ndarray | None = None) -> None:
        if not lsfs:
            raise ValueError("the mean of no LSFs is not defined")
        self.offset = lsfs[0].offset
        if not all(_same(o.offset, self.offset) for o in lsfs):
            raise ValueError("LSFs on different offset grids cannot be averaged")
        self.wavelength_range = (
            max(o.wavelength_range[0] for o in lsfs),
            min(o.wavelength_range[1] for o in lsfs),
        )
        if not self.wavelength_range[0] < self.wavelength_range[1]:
            raise ValueError("the LSFs have no common range of wavelengths")
        self.center = _common_center(lsfs)
        self._lsfs = tuple(lsfs)
        weights = np.ones(len(lsfs)) if weights is None else np.asarray(weights, dtype=np.float64)
        if weights.shape != (len(lsfs),) or np.any(weights < 0) or not weights.sum() > 0:
            raise ValueError(f"weights must be {len(lsfs)} non-negative numbers that are not all 0")
        self._weights = weights / weights.sum()

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Entries that all LSFs agree on, and their number."""
        return {**_common_meta(self._lsfs), "n_exposures": len(self._lsfs)}

    def _sample(self, wavelength: np.ndarray) -> np.ndarray:
        return sum(w * lsf.sample(wavelength) for w, lsf in zip(self._weights, self._lsfs, strict=True))

    def segments(self) -> tuple[Segment, ...]:
        """Smooth parts: means of the exposures' own parts."""
        pieces = [lsf.segments() for lsf in self._lsfs]
        if all(len(piece) == 1 for piece in pieces):
            return super().segments()
        # joined arms: a mean of each part, in which every exposure is smooth
        edges = sorted({edge for piece in pieces for s in piece for edge in (s.low, s.high)})
        out = []
        for low, high in pairwise(edges):
            parts = [s.lsf for piece in pieces for s in piece if s.low <= low and high <= s.high]
            if len(parts) == len(pieces):
                out.append(Segment(low, high, MeanLSF(parts, self._weights).centered(self.center)))
        return tuple(out)


class ShiftedLSF(LSF):
    """An LSF seen in a frame whose wavelengths are those of the inner LSF divided by ``factor``."""

    def __init__(self, inner: LSF, factor: float) -> None:
        super().__init__(inner.meta)
        self._range_hint = inner._range_hint
        if not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"factor must be positive, got {factor}")
        self._inner, self._factor = inner, float(factor)
        self.offset = inner.offset / self._factor
        self.wavelength_range = tuple(w / self._factor for w in inner.wavelength_range)
        self.center = inner.center

    def _sample(self, wavelength: np.ndarray) -> np.ndarray:
        # rounding must not push the ends of the range out of the inner LSF's
        return self._inner.sample(np.clip(wavelength * self._factor, *self._inner.wavelength_range))

    def segments(self) -> tuple[Segment, ...]:
        """Smooth parts: those of the inner LSF, in this frame."""
        inner = self._inner.segments()
        if len(inner) == 1:
            return super().segments()
        f = self._factor
        return tuple(Segment(s.low / f, s.high / f, s.lsf.shifted(f).centered(self.center)) for s in inner)


class JoinedLSF(LSF):
    """LSFs of adjoining wavelength ranges (the arms of a spectrograph) as one.

    Parameters
    ----------
    parts : sequence of Segment
        In order of wavelength and without gaps: the ``high`` of each is the ``low`` of the next.

    Raises
    ------
    ValueError
        No parts, parts that do not adjoin, or parts with different centres.
    """

    def __init__(self, parts: Sequence[Segment]) -> None:
        if not parts:
            raise ValueError("no parts to join")
        if not all(p.low < p.high for p in parts):
            raise ValueError("every part must end at a longer wavelength than it begins")
        if any(a.high != b.low for a, b in pairwise(parts)):
            raise ValueError("the parts must adjoin: each must begin where the one before ends")
        self._parts = tuple(parts)
        self.center = _common_center([p.lsf for p in parts])
        self.wavelength_range = (
            max(parts[0].low, parts[0].lsf.wavelength_range[0]),
            min(parts[-1].high, parts[-1].lsf.wavelength_range[1]),
        )

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Entries that all parts agree on."""
        return _common_meta([p.lsf for p in self._parts])

    @cached_property
    def offset(self) -> np.ndarray:
        """One grid that holds every part's window, as fine as the finest, for profiles on both sides of a join."""
        offsets = [p.lsf.offset for p in self._parts]
        if all(_same(o, offsets[0]) for o in offsets):
            return offsets[0]
        low, high = min(o[0] for o in offsets), max(o[-1] for o in offsets)
        step = min(np.diff(o).min() for o in offsets)
        return np.linspace(low, high, int(np.ceil((high - low) / step)) + 1)

    def _sample(self, wavelength: np.ndarray) -> np.ndarray:
        out = np.empty((wavelength.size, self.offset.size))
        # each part holds from its low up to, not including, its high; the last one includes it
        index = np.searchsorted([p.low for p in self._parts[1:]], wavelength, side="right")
        for i, part in enumerate(self._parts):
            here = index == i
            if np.any(here):
                samples = part.lsf.sample(wavelength[here])
                if part.lsf.offset is not self.offset:
                    samples = SplineFamily(part.lsf.offset, samples)(self.offset)
                out[here] = samples
        return out

    def segments(self) -> tuple[Segment, ...]:
        """Return the joined parts."""
        return tuple(Segment(p.low, p.high, p.lsf.centered(self.center)) for p in self._parts)

    def shifted(self, factor: float) -> LSF:
        """The LSF of a spectrum whose wavelengths were divided by ``factor``: every part and its limits shifted."""
        if factor == 1.0:
            return self
        joined = JoinedLSF([Segment(p.low / factor, p.high / factor, p.lsf.shifted(factor)) for p in self._parts])
        joined.center, joined._range_hint = self.center, self._range_hint
        return joined


def _common_meta(lsfs: Sequence[LSF]) -> dict[str, Any]:
    """Entries of ``meta`` that all LSFs agree on."""
    first = lsfs[0].meta
    return {k: v for k, v in first.items() if all(k in o.meta and _same(o.meta[k], v) for o in lsfs[1:])}


def _same(a: Any, b: Any) -> bool:
    """`numpy.array_equal`; what is the same object or text needs no arrays."""
    return a is b or (a == b if type(a) is type(b) is str else np.array_equal(a, b))


def _common_center(lsfs: Sequence[LSF]) -> str | Callable | None:
    """Centre of all LSFs; raise where they differ."""
    center = lsfs[0].center
    if any(o.center != center for o in lsfs):
        raise ValueError(f"LSFs with different centres ({', '.join(repr(o.center) for o in lsfs)}) cannot be combined")
    return center


def as_lsf(obj: Any) -> LSF:
    """LSF from whatever describes one: an `LSF`, an IP model that needs neither time nor fibre, or profiles.

    Raises
    ------
    TypeError
        Anything else; the message says what is accepted.
    """
    if isinstance(obj, LSF):
        return obj
    if isinstance(obj, InstrumentalProfile):
        return TabulatedLSF(obj)
    if hasattr(obj, "at"):
        return obj.at()
    raise TypeError(
        "lsf must be an LSF (model.at(time=..., fiber=...)), an IP model that depends on wavelength only "
        f"(GaussianIP) or an InstrumentalProfile, got {type(obj).__name__}"
    )
