"""`IPArchive`: many models, one for each season, spectrograph and arm, found by what a spectrum's header says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

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
        ``NN_normalized_spectra_{spectrograph:02d}_{b|r}_{season}.npz`` (published) files, at any depth. Where both
        exist for one set, the safetensors file is used.

    Raises
    ------
    NotADirectoryError
        ``path`` is not a folder.
    ModelNotFoundError
        The folder holds no model.

    Examples
    --------
    >>> import tempfile
    >>> import astropy.units as u, numpy as np
    >>> from astropy.time import Time
    >>> from lamost_lsf import IPArchive, NeuralIP
    >>> x = np.linspace(-8.335, 9.25, 600)
    >>> model = NeuralIP([np.zeros((600, 3))], [np.exp(-0.5 * (x / 1.2) ** 2)], offset=x,
    ...                  label_min=[82820000, 0, 4046.565], label_max=[83190000, 249, 5790.670])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.write(f"{folder}/01_b_2017.safetensors")
    ...     archive = IPArchive(folder)
    ...     lsf = archive.lsf(spectrograph=1, time=Time("2017-01-05T14:00"), fiber=12)
    >>> print(f"{lsf.profile(5000 * u.AA).fwhm:.3f}")
    2.826 Angstrom
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is not a folder of IP models")
        self._files: dict[tuple[int, int, str], Path] = {}
        self._rivals: dict[tuple[int, int, str], list[Path]] = {}
        for suffix in _SUFFIXES:
            for file in sorted(self.path.rglob(f"*{suffix}")):
                name = parse_model_name(file)
                if name is None or not file.is_file():
                    continue
                key = name["season"], name["spectrograph"], name["arm"]
                first = self._files.setdefault(key, file)
                if first is not file and first.suffix == suffix:
                    self._rivals.setdefault(key, [first]).append(file)
        if not self._files:
            raise ModelNotFoundError(
                f"{self.path} holds no IP model; expected names such as 01_b_2017.safetensors "
                "or NN_normalized_spectra_01_b_2017.npz"
            )
        self._load = lru_cache(maxsize=64)(_read_model)

    def __getstate__(self) -> dict[str, Any]:
        """All but the models that are kept: a cache does not pickle as one."""
        return {key: value for key, value in self.__dict__.items() if key != "_load"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
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
            An arm other than "blue" and "red", or several files of one set, none of which is preferred.
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
        if key in self._rivals:
            files = ", ".join(str(f.relative_to(self.path)) for f in self._rivals[key])
            raise ValueError(f"several models of season {key[0]}, spectrograph {key[1]}, {arm} arm: {files}; keep one")
        return self._load(self._files[key])

    def profile(
        self,
        *,
        spectrograph: int,
        time: Time,
        fiber: int | np.ndarray,
        wavelength: u.Quantity,
        medium: str = "vacuum",
        labels: Mapping[str, float] | Literal["median"] | None = None,
        extrapolate: bool = False,
    ) -> InstrumentalProfile:
        """Instrumental profile(s); season and arm follow from time and wavelength.

        ``time``, ``fiber`` and ``wavelength`` (true, detector's frame, in ``medium``) broadcast. All must fall into one
        arm, for the arms have different offset grids. ``labels`` are numbers as in `NeuralIP.with_labels`, for models
        that need any.

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
        if not isinstance(time, Time):
            raise TypeError(f"time must be an astropy Time, got {type(time).__name__}")
        shapes = {"wavelength": vacuum.shape, "time": time.shape, "fiber": np.shape(fiber)}
        try:
            shape = np.broadcast_shapes(*shapes.values())
        except ValueError:
            raise ValueError(f"shapes do not broadcast: {shapes}") from None
        if 0 in shape:
            raise ValueError(f"nothing to evaluate: shapes {shapes}")
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
                labels=labels,
                extrapolate=extrapolate,
            )
            if flux is None:
                flux, offset, meta = np.empty((*shape, part.flux.shape[-1])), part.offset, part.meta
            elif offset.shape != part.offset.shape or not np.all(offset == part.offset):
                raise ValueError("the seasons asked for have different offset grids: ask for each by itself")
            flux[here] = part.flux
            meta = {k: v for k, v in meta.items() if part.meta.get(k) == v}  # "season" goes where there are several
        return InstrumentalProfile(offset, flux, wavelength=wide * u.AA, meta=meta)

    def lsf(
        self,
        *,
        spectrograph: int,
        time: Time,
        fiber: int,
        arm: str | None = None,
        labels: Mapping[str, Any] | Literal["median"] | None = None,
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
        labels : mapping of str to float, or "median", optional
            Values of the models' extra labels, where they have any; see `IPModel.at`.
        extrapolate : bool
            Allow labels outside the trained ranges, but not an arm that the archive does not have.

        Raises
        ------
        ModelNotFoundError
            No model of that season, spectrograph or arm.
        OutOfRangeError
            A time or fibre outside the trained range, unless ``extrapolate``.
        ValueError
            Exposures of several seasons, or an arm other than "blue" and "red".
        """
        if not isinstance(time, Time):
            raise TypeError(f"time must be an astropy Time, got {type(time).__name__}")
        if time.size == 0:
            raise ValueError("time is empty")
        seasons = np.unique(season(time))
        if seasons.size > 1:
            raise ValueError(f"the exposures of one co-add fall into several seasons: {seasons.tolist()}")
        models, hint = self._arm_models(spectrograph, int(seasons[0]), arm)
        lsfs = [model.at(time=time, fiber=fiber, labels=labels, extrapolate=extrapolate) for model in models.values()]
        return lsfs[0] if arm is not None else _joined(models, lsfs, hint)

    def _arm_models(self, spectrograph: int, year: int, arm: str | None) -> tuple[dict[str, NeuralIP], str | None]:
        """Model of one arm, or of each that there is; what to say about wavelengths of the other."""
        if arm is not None:
            return {arm: self.model(spectrograph=spectrograph, arm=arm, season=year)}, None
        models, errors = {}, []
        for name in _ARMS:
            try:
                models[name] = self.model(spectrograph=spectrograph, arm=name, season=year)
            except ModelNotFoundError as error:
                errors.append(error)
        if not models:
            raise errors[0]
        return models, f"of the other arm there is {errors[0]}" if errors else None

    def lsf_for(
        self,
        spectrum: Spectrum | dict[str, Any],
        *,
        labels: Mapping[str, Any] | Literal["median"] | None = None,
        extrapolate: bool = False,
    ) -> LSF:
        """LSF of a LAMOST spectrum, from its ``meta``: spectrograph, fibre, exposure times, arm and frame.

        Returns it in the spectrum's own frame (HELIO_RV undone), averaged over the co-added exposures, with the
        spectrum's centre definition. ``labels`` (by default ``meta["labels"]``) are for models that need any, see
        `lsf`.

        Raises
        ------
        ValueError
            ``meta`` lacks an entry that is needed, or names another instrument than the models'.
        ModelNotFoundError, OutOfRangeError
            As `lsf`.
        """
        from lamost_lsf.io import detector_factor

        meta = spectrum if isinstance(spectrum, dict) else spectrum.meta
        needed = {name: meta.get(name) for name in ("spectrograph", "fiber", "time")}
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ValueError(
                f"the spectrum's meta lacks {', '.join(missing)}; read it with Spectrum.read(path, format='LAMOST LRS')"
            )
        labels = meta.get("labels") if labels is None else labels
        lsf = self.lsf(**needed, arm=_arm(meta), labels=labels, extrapolate=extrapolate)
        for segment in lsf.segments():
            _check_instrument(meta.get("instrument"), segment.lsf.meta)
        return lsf.shifted(detector_factor(meta)).centered(meta.get("wavelength_center"))

    def lsfs_for(
        self, spectra: Sequence[Spectrum | Mapping[str, Any]], *, extrapolate: bool = False
    ) -> list[LSF | Exception]:
        """`lsf_for` of many spectra in a fraction of the time: what is the same for all of them is done once.

        Returns
        -------
        list of LSF or Exception
            One for each spectrum: its LSF, or what `lsf_for` raises.

        Examples
        --------
        >>> from lamost_lsf.time import lmjm_to_time
        >>> from lamost_lsf.simulation import Observatory
        >>> meta = {"spectrograph": 1, "fiber": 12, "time": lmjm_to_time([83169780]), "frame": "topocentric"}
        >>> lsf, error = Observatory().lsfs_for([meta, {**meta, "spectrograph": 17}])
        >>> print(lsf.wavelength_range[0] < 4000, error)
        True no model of spectrograph 17; the observatory has 1-16
        """
        metas = [s if isinstance(s, Mapping) else s.meta for s in spectra]
        out: list[LSF | Exception | None] = [None] * len(metas)
        if type(self).lsf_for is IPArchive.lsf_for:  # a sub-class's own has the word
            for members in _alike(metas).values():
                try:
                    lsfs = self._lsfs_of_alike([metas[i] for i in members], extrapolate)
                except Exception:  # which one it is, and why, is found out one by one
                    continue
                for i, lsf in zip(members, lsfs, strict=True):
                    out[i] = lsf
        for i, meta in enumerate(metas):
            if out[i] is None:
                try:
                    out[i] = self.lsf_for(dict(meta), extrapolate=extrapolate)
                except Exception as error:  # a header holds whatever it likes
                    out[i] = error
        return out

    def _lsfs_of_alike(self, metas: list[Mapping[str, Any]], extrapolate: bool) -> list[LSF | Exception]:
        """LSFs of spectra of one instrument, spectrograph and arm, whose times and fibres are checked all at once."""
        from lamost_lsf.io import detector_factor

        size = np.array([meta["time"].size for meta in metas])
        ends = np.cumsum(size)
        # both parts of the Julian dates, as Time keeps them
        jd1, jd2 = (np.concatenate([np.ravel(getattr(m["time"], part)) for m in metas]) for part in ("jd1", "jd2"))
        times, fibers = Time(jd1, jd2, format="jd", scale="utc"), np.array([meta["fiber"] for meta in metas])
        seasons = season(times)
        if np.any(seasons != np.repeat(seasons[ends - size], size)):
            raise ValueError("the exposures of one co-add fall into several seasons")
        out: list[Any] = [None] * len(metas)
        for year in np.unique(seasons).tolist():
            here = seasons == year
            models, hint = self._arm_models(metas[0]["spectrograph"], year, _arm(metas[0]))
            labels = []
            for model in models.values():
                _check_instrument(metas[0].get("instrument"), model.meta)
                model._check_labels(times[here], np.repeat(fibers, size)[here], extrapolate)
                labels.append(model._time_label(times))
            for i in np.flatnonzero(here[ends - size]).tolist():
                meta = metas[i]
                try:
                    factor = detector_factor(meta)
                except ValueError as error:
                    out[i] = error
                    continue
                which = slice(ends[i] - size[i], ends[i]) if meta["time"].shape else ends[i] - 1
                lsfs = [
                    model._lsf(label[which], meta["fiber"], extrapolate).shifted(factor)
                    for model, label in zip(models.values(), labels, strict=True)
                ]
                lsf = lsfs[0] if _arm(meta) else _joined(models, lsfs, hint, factor)
                out[i] = lsf.centered(meta.get("wavelength_center"))
        return out


def _read_model(path: Path) -> NeuralIP:
    return NeuralIP.read(path) if path.suffix == ".safetensors" else NeuralIP.from_pylamostip(path)


#: Limits of an arm, vacuum Angstrom.
_LIMITS = {
    "blue": (0.0, float(air_to_vacuum(ARM_BOUNDARY_AIR))),
    "red": (float(air_to_vacuum(ARM_BOUNDARY_AIR)), np.inf),
}


def _joined(models: Mapping[str, Any], lsfs: Sequence[LSF], hint: str | None, factor: float = 1.0) -> JoinedLSF:
    """LSFs of the arms as one, in the frame of the detector's wavelengths divided by ``factor``.

    One arm alone is joined too, so that extrapolation cannot carry it into the other.
    """
    limits = [tuple(w / factor for w in _LIMITS[arm]) for arm in models]
    joined = JoinedLSF([Segment(*pair, lsf) for pair, lsf in zip(limits, lsfs, strict=True)])
    if hint:
        joined._range_hint = hint
    return joined


def _arm(meta: Mapping[str, Any]) -> str | None:
    """The one arm that a spectrum is of, None for a stitched one."""
    arm = meta.get("arm")
    return arm if arm in _ARMS else None


def _alike(metas: Sequence[Mapping[str, Any]]) -> dict[tuple, list[int]]:
    """Numbers of the spectra of each instrument, spectrograph and arm; those that are out of the ordinary in none."""
    groups: dict[tuple, list[int]] = {}
    for i, meta in enumerate(metas):
        time, spectrograph, fiber = meta.get("time"), meta.get("spectrograph"), meta.get("fiber")
        ordinary = (
            isinstance(time, Time) and time.scale == "utc" and time.size and not time.masked
            and isinstance(spectrograph, int | np.integer) and isinstance(fiber, int | np.integer)
            and meta.get("labels") is None
        )  # fmt: skip
        if ordinary:
            groups.setdefault((meta.get("instrument"), int(spectrograph), _arm(meta)), []).append(i)
    return groups


def _check_instrument(instrument: str | None, model: Mapping[str, Any]) -> None:
    trained = model.get("instrument")
    if instrument and trained and not _same_instrument(instrument, trained):
        raise ValueError(f"the spectrum was taken with {instrument}, the archive's model is of {trained}")


def _same_instrument(spectrum: str, model: str) -> bool:
    """Whether a model's instrument is the spectrum's or one of its arms ("lamost-lrs", "lamost-lrs-blue")."""
    arms = tuple(f"-{arm}" for arm in _ARMS)
    return spectrum.removesuffix(arms[0]).removesuffix(arms[1]) == model.removesuffix(arms[0]).removesuffix(arms[1])


def _ranges(numbers: list[int]) -> str:
    """Numbers as "1-3, 5": short even for sixteen spectrographs."""
    numbers = sorted(set(numbers))
    parts, start = [], numbers[0]
    for previous, number in zip(numbers, [*numbers[1:], None], strict=True):
        if number != previous + 1 if number is not None else True:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = number
    return ", ".join(parts)
