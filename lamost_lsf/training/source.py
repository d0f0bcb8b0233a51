"""Where training data come from: a `ProfileStore` on disk, or a `ProfileSet` in memory, seen alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.table import Table

from lamost_lsf.time import lmjm_to_time, season
from lamost_lsf.training.data import Labels

__all__ = ["TrainingSource", "open_source"]


@dataclass(frozen=True)
class TrainingSource:
    """Good profiles of one instrument, spectrograph, arm and season.

    Attributes
    ----------
    labels : Labels
    offset : ndarray (n_sample,)
        Offsets of the resampled profiles, Angstrom.
    instrument, arm : str
    spectrograph : int
    season : int or None
    id : str
        Identity of the data, recorded in the model.
    neighbours : ndarray (n_line, Q)
        Offsets, Angstrom, of the lamp's lines whose wings reach into the window of each line of the list that
        ``labels.line`` counts in; NaN-padded.
    """

    labels: Labels
    offset: np.ndarray
    instrument: str
    arm: str
    spectrograph: int
    season: int | None
    id: str
    neighbours: np.ndarray
    _backing: Any
    _numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: np.ndarray, *columns: str) -> list[np.ndarray]:
        """Columns of some profiles, by number."""
        numbers = self._numbers[index]
        if hasattr(self._backing, "load"):
            table = self._backing.load(numbers, columns)
            return [table[c] for c in columns]
        return [getattr(self._backing, c)[numbers] for c in columns]

    def pixels(self, index: np.ndarray | None = None, chunk: int = 20_000) -> Iterator[tuple[np.ndarray, ...]]:
        """Native offset, flux and ivar (k, n_pixel) and neighbours (k, Q), chunk by chunk, in order."""
        index = np.arange(len(self)) if index is None else index
        for start in range(0, index.size, chunk):
            part = index[start : start + chunk]
            native = self.load(part, "native_offset", "native_flux", "native_ivar")
            yield (*native, self.neighbours[self.labels.line[part]])


def open_source(data: Any, extra: Sequence[str] = ()) -> TrainingSource:
    """Make a source of a `ProfileStore` or `ProfileSet`; ``extra`` names labels from its exposures.

    Raises
    ------
    TypeError
        Something else.
    ValueError
        No good profile in it, or an extra label that an exposure lacks.
    """
    from lamost_lsf.arcs import ProfileSet
    from lamost_lsf.store import ProfileStore

    if isinstance(data, ProfileStore):
        numbers = np.flatnonzero(data.good)
        columns = {c: data.labels[c][numbers] for c in ("lmjm", "fiber", "wavelength", "line", "exposure")}
        identity, year = data.id, data.season
    elif isinstance(data, ProfileSet):
        numbers = np.flatnonzero(data.good)
        columns = {c: getattr(data, c)[numbers] for c in ("lmjm", "fiber", "wavelength", "line", "exposure")}
        digest = hashlib.sha256()
        for name in ("native_offset", "native_flux", "native_ivar"):
            digest.update(np.ascontiguousarray(getattr(data, name)[numbers]))
        identity = digest.hexdigest()[:16]
        years = np.unique(season(lmjm_to_time(columns["lmjm"]))) if numbers.size else []
        year = int(years[0]) if len(years) == 1 else None
    else:
        raise TypeError(f"data must be a ProfileStore or a ProfileSet, got {type(data).__name__}")
    if numbers.size == 0:
        raise ValueError("there is not one good profile to train on; look at its yields() for the reasons")
    labels = Labels(
        columns["lmjm"].astype(np.float64), columns["fiber"].astype(np.int64), columns["wavelength"].astype(np.float64),
        columns["line"].astype(np.int64), columns["exposure"].astype(np.int64),
        _exposure_labels(data.exposures, columns["exposure"], extra),
    )  # fmt: skip
    return TrainingSource(
        labels, np.asarray(data.offset, dtype=np.float64), data.instrument, data.arm, int(data.spectrograph), year,
        identity, _neighbours(data), data, numbers,
    )  # fmt: skip


#: Columns of exposures that say nothing of the instrument's state.
_NOT_LABELS = {"lmjm", "spectrograph", "n_profiles", "n_rejected", "night"}


def _exposure_labels(exposures: Table, exposure: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Columns of the exposures (n, m) for the profiles' exposures (n,)."""
    known = [n for n in exposures.colnames if exposures[n].dtype.kind in "iuf" and n not in _NOT_LABELS]
    out = np.empty((exposure.size, len(names)))
    used = np.unique(exposure)
    for i, name in enumerate(names):
        if name not in known:
            raise ValueError(f"the exposures have no label {name!r}; they have {', '.join(known) or 'none'}")
        values = np.ma.filled(np.ma.asarray(exposures[name]).astype(np.float64), np.nan)
        missing = used[~np.isfinite(values[used])]
        if missing.size:
            when = lmjm_to_time(float(exposures["lmjm"][missing[0]])).isot
            raise ValueError(
                f"{missing.size} of {used.size} exposures have no {name}, the first of {when} UTC; leave them out, or "
                "train without that label"
            )
        if np.ptp(values[used]) == 0:
            raise ValueError(f"{name} is {values[used[0]]:g} in all exposures: nothing can be learned of it")
        out[:, i] = values[exposure]
    return out


def _neighbours(data: Any) -> np.ndarray:
    """Offsets of neighbours (n_line, Q) of the data's lines; a line that is none of the instrument's has none known."""
    from lamost_lsf.instruments import get_instrument

    instrument = get_instrument(data.instrument)
    known = instrument.neighbour_offsets()
    out = np.full((len(data.lines), known.shape[1]), np.nan)
    distance = np.abs(data.lines.vacuum[:, None] - instrument.lines.vacuum[None])
    same = np.min(distance, axis=1) < 0.05
    out[same] = known[np.argmin(distance, axis=1)[same]]
    return out
