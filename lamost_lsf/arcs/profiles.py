"""`ProfileSet`: extracted line profiles, their labels, native pixels, flags and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table, vstack

from lamost_lsf.arcs.quality import ProfileFlag
from lamost_lsf.lines import LineList
from lamost_lsf.profile import InstrumentalProfile

__all__ = ["EXPOSURE_COLUMNS", "ProfileSet"]

#: Columns of `ProfileSet.exposures` and their types.
EXPOSURE_COLUMNS: dict[str, Any] = {
    "file": str,
    "sha256": str,
    "time": str,
    "lmjm": np.float64,
    "time_reference": str,
    "lamp": str,
    "spectrograph": np.int32,
    "temperature": np.float64,
    "wavelength_center": str,
}

#: Arrays with one entry (or row) a profile, and their types.
PROFILE_ARRAYS: dict[str, Any] = {
    "profile": np.float32,
    "noise": np.float32,
    "native_offset": np.float32,
    "native_flux": np.float32,
    "native_ivar": np.float32,
    "lmjm": np.float64,
    "fiber": np.int16,
    "wavelength": np.float64,
    "line": np.int16,
    "exposure": np.int32,
    "flag": np.int32,
}
_TWO_DIMENSIONAL = ("profile", "native_offset", "native_flux", "native_ivar")


@dataclass(frozen=True, eq=False)
class ProfileSet:
    """Profiles of one arm of one spectrograph, on one grid of offsets.

    Attributes
    ----------
    instrument : str
        Name of the instrument.
    digest : str
        Fingerprint of its lines and grid, see `~lamost_lsf.instruments.Instrument.digest`.
    arm : str
    spectrograph : int
    offset : ndarray (n_samples,)
        Observed minus true wavelength, Angstrom.
    lines : LineList
        The lines that ``line`` counts in.
    profile : ndarray of float32 (n, n_samples)
        Background-subtracted, 1 at the peak of the spline; NaN where there is none.
    noise : ndarray of float32 (n,)
        Estimate of the standard deviation of a sample, in units of the peak: root mean square over the window, photon
        noise of the line included. Samples closer than a pixel are correlated.
    native_offset, native_flux, native_ivar : ndarray of float32 (n, n_native)
        The detector's pixels in the window: offset (Angstrom), counts with the background still in, inverse variance.
        Bad, saturated and hit pixels, and the padding of shorter rows, have an inverse variance of 0.
    lmjm : ndarray (n,)
        Time, local modified Julian minutes.
    fiber : ndarray of int16 (n,)
    wavelength : ndarray (n,)
        True wavelength of the line, vacuum Angstrom.
    line : ndarray of int16 (n,)
        Index into ``lines``.
    exposure : ndarray of int32 (n,)
        Index into ``exposures``.
    flag : ndarray of int32 (n,)
        Bits of `ProfileFlag`; 0 is good.
    exposures : `~astropy.table.Table`
        One row an exposure: file, sha256 of the native pixels, time (UTC), lmjm, time_reference, lamp, spectrograph,
        temperature (deg C, NaN where unknown), wavelength_center, and the exposures' own ``labels``.

    Raises
    ------
    ValueError
        Arrays of different lengths, indices that point nowhere.

    Examples
    --------
    >>> from astropy.time import Time
    >>> from lamost_lsf.arcs import ArcExposure, extract_profiles
    >>> from lamost_lsf.simulation import SimulatedIP, simulate_arc
    >>> arc = simulate_arc(SimulatedIP("blue"), Time("2017-01-10T15:00"), fiber=list(range(1, 9)), dead_fibers=[])
    >>> profiles = extract_profiles(ArcExposure.from_simulation(arc), instrument="lamost-lrs-blue")
    >>> profiles.select(profiles.good & (profiles.fiber == 3)).to_profile().shape
    (7,)
    """

    instrument: str
    digest: str
    arm: str
    spectrograph: int
    offset: np.ndarray
    lines: LineList
    profile: np.ndarray
    noise: np.ndarray
    native_offset: np.ndarray
    native_flux: np.ndarray
    native_ivar: np.ndarray
    lmjm: np.ndarray
    fiber: np.ndarray
    wavelength: np.ndarray
    line: np.ndarray
    exposure: np.ndarray
    flag: np.ndarray
    exposures: Table

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", np.asarray(self.offset, dtype=np.float64))
        for name, kind in PROFILE_ARRAYS.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        n = self.flag.size
        for name in PROFILE_ARRAYS:
            values = getattr(self, name)
            if values.shape[:1] != (n,) or values.ndim != (2 if name in _TWO_DIMENSIONAL else 1):
                raise ValueError(f"{name} has shape {values.shape}, but there are {n} flags")
        if self.profile.shape[1] != self.offset.size:
            raise ValueError(f"profiles have {self.profile.shape[1]} samples, offset {self.offset.size}")
        if not self.native_offset.shape == self.native_flux.shape == self.native_ivar.shape:
            raise ValueError("native_offset, native_flux and native_ivar must be of one shape")
        for name, length in (("line", len(self.lines)), ("exposure", len(self.exposures))):
            values = getattr(self, name)
            if n and not (values.min() >= 0 and values.max() < length):
                raise ValueError(f"{name} must be 0 to {length - 1}, got {values.min()} to {values.max()}")

    def __len__(self) -> int:
        return self.flag.size

    def __repr__(self) -> str:
        count = len(self.exposures)
        return (
            f"<ProfileSet {self.instrument}, spectrograph {self.spectrograph}: {len(self)} profiles, "
            f"{np.count_nonzero(self.good)} good, {count} exposure{'s' if count != 1 else ''}>"
        )

    @property
    def good(self) -> np.ndarray:
        """Profiles without any flag, bool (n,)."""
        return self.flag == 0

    def reasons(self) -> list[str]:
        """Names of the flags of each profile, joined by "|"; "" for a good one."""
        names = {int(value): "|".join(f.name or "" for f in ProfileFlag(int(value))) for value in np.unique(self.flag)}
        return [names[int(value)] for value in self.flag]

    def select(self, which: np.ndarray | slice) -> ProfileSet:
        """Some of the profiles: a boolean array, indices or a slice. The provenance is kept whole.

        Raises
        ------
        IndexError
            Indices or a boolean array that do not fit.
        """
        return replace(self, **{name: getattr(self, name)[which] for name in PROFILE_ARRAYS})

    def to_table(self) -> Table:
        """Labels and flags, one row a profile; without the profiles themselves."""
        return Table(
            {
                "exposure": self.exposure,
                "lmjm": self.lmjm * u.min,
                "fiber": self.fiber,
                "line": self.line,
                "species": self.lines.species[self.line],
                "wavelength": self.wavelength * u.AA,
                "noise": self.noise,
                "flag": self.flag,
                "reason": self.reasons(),
            },
            meta={"instrument": self.instrument, "arm": self.arm, "spectrograph": self.spectrograph},
        )

    def yields(self, by: str | Sequence[str] = ("fiber", "line")) -> Table:
        """How many profiles are good, and why the others are not.

        Parameters
        ----------
        by : str or sequence of str
            What rows are counted by: any of "fiber", "line" and "exposure", or "reason" alone.

        Returns
        -------
        `~astropy.table.Table`
            One row a combination, with ``n``, ``good`` and ``yield``, and a column for each `ProfileFlag` in lower
            case. A profile with two reasons counts in two columns. By "reason": a row a flag, with ``n`` and ``share``.

        Raises
        ------
        ValueError
            Another word.
        """
        keys = (by,) if isinstance(by, str) else tuple(by)
        flags = list(ProfileFlag)
        if keys == ("reason",):
            counts = np.array([np.count_nonzero(self.flag & f) for f in flags], dtype=np.int64)
            share = counts / max(len(self), 1)
            return Table({"reason": [str(f.name) for f in flags], "n": counts, "share": share})
        if not keys or len(set(keys)) != len(keys) or not set(keys) <= {"fiber", "line", "exposure"}:
            raise ValueError(f"by must be some of 'fiber', 'line', 'exposure', or 'reason' alone, got {by!r}")
        labels = np.stack([getattr(self, key).astype(np.int64) for key in keys], axis=1)
        groups, inverse = np.unique(labels, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        table = Table({key: groups[:, i] for i, key in enumerate(keys)})
        if "line" in keys:
            table["wavelength"] = self.lines.vacuum[table["line"]] * u.AA
        table["n"] = np.bincount(inverse, minlength=len(groups))
        table["good"] = np.bincount(inverse, weights=self.good, minlength=len(groups)).astype(np.int64)
        table["yield"] = table["good"] / np.maximum(table["n"], 1)
        for f in flags:
            hits = (self.flag & f) != 0
            table[str(f.name).lower()] = np.bincount(inverse, weights=hits, minlength=len(groups)).astype(np.int64)
        return table

    def to_profile(self) -> InstrumentalProfile:
        """Array (n,) of `~lamost_lsf.InstrumentalProfile`, peak-normalised, each sample's error being ``noise``."""
        centers = sorted({str(c) for c in self.exposures["wavelength_center"]} - {""}) if len(self.exposures) else []
        meta = {"instrument": self.instrument, "arm": self.arm, "spectrograph": self.spectrograph}
        if len(centers) == 1:
            meta["wavelength_center"] = centers[0]
        error = np.broadcast_to(self.noise[:, None].astype(np.float64), self.profile.shape)
        return InstrumentalProfile(
            self.offset * u.AA, self.profile, wavelength=self.wavelength * u.AA, error=error, meta=meta
        )

    def concatenate(self, *others: ProfileSet) -> ProfileSet:
        """Join sets of the same arm, spectrograph, lines and grid.

        Raises
        ------
        TypeError
            Something that is no ProfileSet.
        ValueError
            Sets that do not belong together; the message says what differs.
        """
        sets = [self, *others]
        for other in others:
            if not isinstance(other, ProfileSet):
                raise TypeError(f"only ProfileSets can be joined, got {type(other).__name__}")
            self.check_compatible(other)
        width = max(s.native_offset.shape[1] for s in sets)
        parts = {}
        for name in PROFILE_ARRAYS:
            arrays = [getattr(s, name) for s in sets]
            if name.startswith("native"):
                arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
            parts[name] = np.concatenate(arrays)
        start = np.cumsum([0] + [len(s.exposures) for s in sets[:-1]])
        parts["exposure"] = np.concatenate([s.exposure + first for s, first in zip(sets, start, strict=True)])
        return replace(self, **parts, exposures=vstack([s.exposures for s in sets], metadata_conflicts="silent"))

    def check_compatible(self, other: ProfileSet) -> None:
        """Raise ``ValueError`` unless profiles of ``other`` may stand beside these.

        Same instrument, arm, spectrograph, grid of offsets, and lines.
        """
        for name in ("instrument", "arm", "spectrograph"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"{name} differs: {getattr(self, name)!r} and {getattr(other, name)!r}")
        if not np.array_equal(self.offset, other.offset):
            raise ValueError(
                f"grids differ: {self.offset.size} samples {self.offset[0]:+.3f}..{self.offset[-1]:+.3f} A, and "
                f"{other.offset.size} samples {other.offset[0]:+.3f}..{other.offset[-1]:+.3f} A"
            )
        if self.digest != other.digest:
            raise ValueError(f"{self.instrument} was described differently: fingerprints {self.digest}, {other.digest}")
        if self.lines != other.lines:
            raise ValueError(f"line lists differ: {self.lines!r} and {other.lines!r}")
