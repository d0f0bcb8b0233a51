"""`IPArchive`: many models, one for each season, spectrograph and arm, found by what a spectrum's header says."""

from __future__ import annotations

from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table
from astropy.time import Time
from specutils import Spectrum

from lamost_lsf.errors import ModelNotFoundError
from lamost_lsf.lsf import LSF, JoinedLSF, Segment
from lamost_lsf.models.neural import ARM_BOUNDARY_AIR, NeuralIP, parse_model_name
from lamost_lsf.profile import InstrumentalProfile
from lamost_lsf.time import season
from lamost_lsf.units import air_to_vacuum, to_vacuum_angstrom

__all__ = ["IPArchive"]

_SUFFIXES = (".safetensors", ".npz")  # in order of preference
_ARMS = ("blue", "red")


class IPArchive:
    """Folder of IP models named by spectrograph, arm and season.

    Parameters
    ----------
    path : path
        Folder with ``{spectrograph:02d}_{b|r}_{season}.safetensors`` (this package's) or
        ``NN_normalized_spectra_{spectrograph:02d}_{b|r}_{season}.npz`` (published) files, at any depth. Where both exist for
        one set, the safetensors file is used.

    Raises
    ------
    NotADirectoryError
        ``path`` is not a folder.
    ModelNotFoundError
        The folder holds no model.

    Examples
    --------
    >>> archive = IPArchive("models/")                                    # doctest: +SKIP
    >>> archive.lsf(spectrograph=1, time=Time("2017-01-05T14:00"), fiber=12)   # doctest: +SKIP
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is not a folder of IP models")
        self._files: dict[tuple[int, int, str], Path] = {}
        for suffix in reversed(_SUFFIXES):
            for file in sorted(self.path.rglob(f"*{suffix}")):
                key = parse_model_name(file)
                if key is not None:
                    self._files[key["season"], key["spectrograph"], key["arm"]] = file
        if not self._files:
            raise ModelNotFoundError(
                f"{self.path} holds no IP model; expected names such as 01_b_2017.safetensors "
                "or NN_normalized_spectra_01_b_2017.npz"
            )
        self._load = lru_cache(maxsize=64)(_read_model)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        seasons = sorted({k[0] for k in self._files})
        return f"<IPArchive {self.path}: {len(self)} models, seasons {seasons[0]}-{seasons[-1]}>"

    # -- what is there -----------------------------------------------------------------------------------

    def table(self) -> Table:
        """One row a model: season, spectrograph, arm, file."""
        keys = sorted(self._files)
        return Table(
            {
                "season": [k[0] for k in keys],
                "spectrograph": [k[1] for k in keys],
                "arm": [k[2] for k in keys],
                "file": [str(self._files[k].relative_to(self.path)) for k in keys],
            }
        )

    def gaps(self) -> Table:
        """Sets that are missing among the seasons (first to last) and spectrographs that the archive covers."""
        seasons = [k[0] for k in self._files]
        spectrographs = sorted({k[1] for k in self._files})
        missing = [
            (s, sp, arm)
            for s in range(min(seasons), max(seasons) + 1)
            for sp in spectrographs
            for arm in _ARMS
            if (s, sp, arm) not in self._files
        ]
        return Table(rows=missing or None, names=("season", "spectrograph", "arm"), dtype=(int, int, "U4"))

    # -- models ------------------------------------------------------------------------------------------

    def model(self, *, spectrograph: int, arm: str, season: int) -> NeuralIP:
        """The model of one set, read once and kept.

        Raises
        ------
        ModelNotFoundError
            No such set; the message names the seasons that the archive has for that spectrograph and arm.
        ValueError
            An arm other than "blue" and "red".
        """
        if arm not in _ARMS:
            raise ValueError(f"arm must be 'blue' or 'red', got {arm!r}")
        key = (int(season), int(spectrograph), arm)
        if key not in self._files:
            spectrographs = sorted({k[1] for k in self._files})
            if key[1] not in spectrographs:
                raise ModelNotFoundError(
                    f"no model of spectrograph {key[1]}; the archive has spectrographs {_ranges(spectrographs)}"
                )
            seasons = sorted(k[0] for k in self._files if k[1:] == key[1:])
            has = _ranges(seasons) if seasons else "none"
            raise ModelNotFoundError(
                f"no model of season {key[0]} for spectrograph {key[1]}, {arm} arm; seasons there: {has}"
            )
        return self._load(self._files[key])

    def profile(
        self,
        *,
        spectrograph: int,
        time: Time,
        fiber: int | np.ndarray,
        wavelength: u.Quantity,
        medium: str = "vacuum",
        extrapolate: bool = False,
    ) -> InstrumentalProfile:
        """Instrumental profile(s); season and arm follow from time and wavelength.

        ``time``, ``fiber`` and ``wavelength`` (true, detector's frame, in ``medium``) broadcast. All must fall into one arm, for
        the arms have different offset grids.

        Raises
        ------
        ValueError
            Wavelengths of both arms in one call.
        ModelNotFoundError, OutOfRangeError
            No model, or labels outside its trained range (unless ``extrapolate``).
        """
        vacuum = to_vacuum_angstrom(wavelength, medium)
        red = vacuum > air_to_vacuum(ARM_BOUNDARY_AIR)
        if np.any(red) and not np.all(red):
            raise ValueError("wavelengths of both arms in one call: ask for each arm by itself, or use lsf()")
        arm = "red" if np.all(red) else "blue"
        shape = np.broadcast_shapes(vacuum.shape, time.shape, np.shape(fiber))
        seasons = np.broadcast_to(season(time), shape)
        fibers, wide = np.broadcast_to(fiber, shape), np.broadcast_to(vacuum, shape)
        index = np.broadcast_to(np.arange(time.size).reshape(time.shape), shape)
        flux, offset, meta = None, None, {}
        for year in np.unique(seasons):
            model = self.model(spectrograph=spectrograph, arm=arm, season=int(year))
            here = seasons == year
            part = model.profile(
                time=time.ravel()[index[here]] if time.shape else time,
                fiber=fibers[here],
                wavelength=wide[here] * u.AA,
                extrapolate=extrapolate,
            )
            if flux is None:
                flux, offset, meta = np.empty((*shape, part.flux.shape[-1])), part.offset, part.meta
            elif offset.shape != part.offset.shape or not np.all(offset == part.offset):
                raise ValueError("the seasons asked for have different offset grids: ask for each by itself")
            flux[here] = part.flux
        return InstrumentalProfile(offset, flux, wavelength=wide * u.AA, meta=meta)

    def lsf(
        self,
        *,
        spectrograph: int,
        time: Time,
        fiber: int,
        arm: str | None = None,
        extrapolate: bool = False,
    ) -> LSF:
        """LSF of one fibre, in the detector's frame.

        Parameters
        ----------
        spectrograph : int
        time : `~astropy.time.Time`
            Scalar, or the times of the co-added exposures, whose LSFs are averaged.
        fiber : int
        arm : {"blue", "red"}, optional
            One arm only. By default both, joined at 5800 A (air), or the only one that the archive has.
        extrapolate : bool
            Allow labels outside the trained ranges.
        """
        if arm is not None:
            return self._arm_lsf(spectrograph, time, fiber, arm, extrapolate)
        parts, first_error = {}, None
        for name in _ARMS:
            try:
                parts[name] = self._arm_lsf(spectrograph, time, fiber, name, extrapolate)
            except ModelNotFoundError as error:
                first_error = first_error or error
        if not parts:
            raise first_error
        if len(parts) == 1:
            return next(iter(parts.values()))
        boundary = float(air_to_vacuum(ARM_BOUNDARY_AIR))
        return JoinedLSF([Segment(0.0, boundary, parts["blue"]), Segment(boundary, np.inf, parts["red"])])

    def _arm_lsf(self, spectrograph: int, time: Time, fiber: int, arm: str, extrapolate: bool) -> LSF:
        seasons = np.unique(season(time))
        if seasons.size > 1:
            raise ValueError(f"the exposures of one co-add fall into several seasons: {seasons.tolist()}")
        model = self.model(spectrograph=spectrograph, arm=arm, season=int(seasons[0]))
        return model.at(time=time, fiber=fiber, extrapolate=extrapolate)

    def lsf_for(self, spectrum: Spectrum | dict[str, Any], *, extrapolate: bool = False) -> LSF:
        """LSF of a LAMOST spectrum, from its ``meta``: spectrograph, fibre, exposure times, arm and frame.

        Returns it in the spectrum's own frame (HELIO_RV undone), averaged over the co-added exposures, with the
        spectrum's centre definition.

        Raises
        ------
        ValueError
            ``meta`` lacks an entry that is needed.
        """
        from lamost_lsf.io import detector_factor

        meta = spectrum if isinstance(spectrum, dict) else spectrum.meta
        needed = {name: meta.get(name) for name in ("spectrograph", "fiber", "time")}
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ValueError(
                f"the spectrum's meta lacks {', '.join(missing)}; read it with Spectrum.read(path, format='LAMOST LRS')"
            )
        arm = meta.get("arm")
        lsf = self.lsf(**needed, arm=arm if arm in _ARMS else None, extrapolate=extrapolate)
        return lsf.shifted(detector_factor(meta)).centered(meta.get("wavelength_center"))


def _read_model(path: Path) -> NeuralIP:
    return NeuralIP.read(path) if path.suffix == ".safetensors" else NeuralIP.from_pylamostip(path)


def _ranges(numbers: list[int]) -> str:
    """Numbers as "1-3, 5": short even for sixteen spectrographs."""
    numbers = sorted(set(numbers))
    parts, start = [], numbers[0]
    for previous, number in zip(numbers, [*numbers[1:], None], strict=True):
        if number != previous + 1 if number is not None else True:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = number
    return ", ".join(parts)
