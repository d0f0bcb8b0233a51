"""`RVMachine`: radial velocities of many spectra, chunk by chunk, with everything that is common made once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import astropy.units as u
import numpy as np
from specutils import Spectrum

from lamost_lsf.convolution.basis import Coefficients
from lamost_lsf.convolution.basis import _on_grid as on_grid
from lamost_lsf.errors import CenterMismatchWarning, LamostLSFError
from lamost_lsf.lsf import LSF, as_lsf
from lamost_lsf.profile import resolve_center
from lamost_lsf.rv.budget import WavelengthError, ip_error, ip_error_modes, wavelength_error
from lamost_lsf.rv.combine import combine_windows
from lamost_lsf.rv.engine import Found, VelocityEngine
from lamost_lsf.rv.family import TOLERANCE, LSFFamily
from lamost_lsf.rv.frames import to_frame
from lamost_lsf.rv.lattice import Lattice
from lamost_lsf.rv.models import lag_transform
from lamost_lsf.rv.prepare import Pixels, center_name, check_options, check_templates, velocity_limits
from lamost_lsf.rv.result import RVFlag
from lamost_lsf.rv.rows import blank_row
from lamost_lsf.rv.spectra import ObservedArrays, as_arrays, cut
from lamost_lsf.rv.templates import check_coverage, convolve_templates
from lamost_lsf.rv.trial import COARSEST_STEP, STEPS_PER_WIDTH, log_shift, velocity_of_shift
from lamost_lsf.rv.windows import Window, default_degree, parse_windows

__all__ = ["RVMachine"]

#: Spectra that are worked on at a time: enough to make matrix products worth their while.
CHUNK = 256
#: Bytes of models that all windows together may keep.
_KEPT = 1_000_000_000
#: Engines (windows, pixel spacings, degrees) that are kept.
_ENGINES = 12
#: Representative LSFs from which a basis is first made; others extend it where it does not serve them.
_REPRESENTATIVE = 24


#: Limits of a window, pixels of the search per 1e-4 in log10(wavelength), degree of the continuum.
_Key = tuple[float, float, int, int]


@dataclass
class _Task:
    """One spectrum in one window, ready to be measured."""

    row: dict[str, Any]
    pixels: Pixels
    lsf: LSF
    spectrum: ObservedArrays
    coefficients: Coefficients | None = None
    modes: tuple[np.ndarray, np.ndarray] | None = None
    wave: np.ndarray | None = None

    @property
    def uncertain(self) -> bool:
        """Whether anything is known of these errors."""
        return self.modes is not None or self.wave is not None


class RVMachine:
    """Radial velocities of many spectra against the same templates: `measure_rvs` without input and output.

    Convolved templates, bases of the LSFs and the models of the search are made when they are first needed and kept.
    Its state follows from its arguments and can be made again anywhere: a worker of a cluster is sent the arguments, or
    the machine itself, which pickles without what it keeps.

    Parameters
    ----------
    templates, lsf, windows, center, velocity_range, continuum, degree, cosmic_sigma, frame, zero_points,
    window_scatter, wavelength_error, mask, extension
        As in `measure_rvs`; ``lsf`` may be None where `measure` is given one for each spectrum.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from specutils import Spectrum
    >>> import lamost_lsf as ll
    >>> from lamost_lsf.rv import RVMachine
    >>> from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template
    >>> from astropy.time import Time
    >>> template, observatory = synthetic_template(6000), Observatory()
    >>> star = simulate_star(template, observatory, time=Time("2017-01-10T15:00"), fiber=31, velocity=20 * u.km / u.s)
    >>> machine = RVMachine(template, observatory, windows=(5000, 5300) * u.AA, velocity_range=(-300, 300))
    >>> (row,) = machine.measure([star])
    >>> bool(abs(row["rv"] - 20) < 4 * row["rv_err"]), row["frame"]
    (True, 'heliocentric')
    """

    def __init__(
        self,
        templates: Spectrum | Sequence[Spectrum],
        lsf: LSF | Any = None,
        *,
        windows: Any = None,
        center: str | Callable | None = None,
        velocity_range: u.Quantity | tuple[float, float] = (-1000.0, 1000.0),
        continuum: str = "ratio",
        degree: int | None = None,
        cosmic_sigma: float | None = 6.0,
        frame: str | None = None,
        zero_points: Mapping[str, Any] | Callable | None = None,
        window_scatter: u.Quantity | Mapping[str, Any] | None = None,
        wavelength_error: WavelengthError = None,
        mask: str = "and",
        extension: str | None = None,
    ) -> None:
        check_options(continuum, degree, cosmic_sigma)
        if frame not in (None, "heliocentric", "barycentric", "topocentric"):
            raise ValueError(f"frame must be 'heliocentric', 'barycentric', 'topocentric' or None, got {frame!r}")
        if mask not in ("and", "or", "ivar"):
            raise ValueError(f"mask must be 'and', 'or' or 'ivar', got {mask!r}")
        self.templates, self.names = check_templates(templates)
        self.limits = velocity_limits(velocity_range)
        self.windows = parse_windows(windows)
        self.center, self.continuum, self.degree, self.cosmic_sigma = center, continuum, degree, cosmic_sigma
        self.frame, self.zero_points, self.window_scatter = frame, zero_points, window_scatter
        self.wavelength_error, self.mask, self.extension = wavelength_error, mask, extension
        self._lookup: Callable[[Mapping[str, Any]], Any] | None = None
        self._fixed: LSF | None = None
        self.lsf = lsf
        if lsf is None:
            pass
        elif hasattr(lsf, "lsf_for"):
            self._lookup = lsf.lsf_for
        elif callable(lsf) and not isinstance(lsf, LSF):
            self._lookup = lsf
        else:
            self._fixed = as_lsf(lsf)
        for window in self.windows:
            if np.isfinite(window.high):
                # with the wings of the profile, again, when they are known
                _check_reach(self.templates, self.names, window, self.limits)
        self._families: dict[tuple[float, float], LSFFamily] = {}
        self._engines: dict[_Key, VelocityEngine] = {}
        self._bases: dict[tuple[float, float], Any] = {}
        self._modes: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """All but what can be made again; templates as arrays, for specutils' spectra do not pickle."""
        kept = ("_families", "_engines", "_bases", "_modes")
        plain = [
            (t.flux.value, t.flux.unit, np.asarray(t.spectral_axis.value), t.spectral_axis.unit, t.mask, dict(t.meta))
            for t in self.templates
        ]
        return {**self.__dict__, **{k: {} for k in kept}, "templates": plain}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.templates = [
            Spectrum(flux=flux * unit, spectral_axis=axis * axis_unit, mask=mask, meta=meta)
            for flux, unit, axis, axis_unit, mask, meta in self.templates
        ]

    # -- measuring --------------------------------------------------------------------------------------

    def iterate(
        self, spectra: Iterable[Any], lsfs: Iterable[Any] | None = None, *, chunk: int = CHUNK
    ) -> Iterator[list]:
        """Rows of any number of spectra, a list for every ``chunk``: memory does not grow with their number."""
        spectra, lsfs = iter(spectra), None if lsfs is None else iter(lsfs)
        number = 0
        while part := list(islice(spectra, chunk)):
            yield self.measure(part, None if lsfs is None else list(islice(lsfs, len(part))), first=number)
            number += len(part)

    def measure(
        self, spectra: Sequence[Any], lsfs: Sequence[Any] | None = None, *, first: int = 0
    ) -> list[dict[str, Any]]:
        """Rows of some spectra: one for each spectrum and window, and one for all windows where there are several.

        Parameters
        ----------
        spectra : sequence
            Paths, `~specutils.Spectrum` or `~lamost_lsf.io.LamostArrays` objects.
        lsfs : sequence of LSF, optional
            Of each spectrum, in place of the machine's.
        first : int
            Number of the first spectrum, for the column ``spectrum``.

        Returns
        -------
        list of dict
            The columns of `lamost_lsf.rv.rows.COLUMNS`, plain numbers and strings, in order of the spectra. What could
            not be measured has NaN, flags and a message; nothing raises for a single spectrum's sake.
        """
        if lsfs is not None and len(lsfs) != len(spectra):
            raise ValueError(f"{len(lsfs)} LSFs for {len(spectra)} spectra")
        if lsfs is None and self._lookup is None and self._fixed is None:
            raise ValueError("give the machine an LSF or an archive, or measure() one LSF for each spectrum")
        rows: list[dict[str, Any]] = []
        tasks: dict[_Key, list[_Task]] = {}
        mixed = 0
        observed = [as_arrays(item, mask=self.mask, extension=self.extension) for item in spectra]
        found = self._lsfs_of(observed, lsfs)
        centered: dict[tuple[int, Any], LSF] = {}
        for number, spectrum in enumerate(observed):
            mine = [self._blank(first + number, spectrum, w) for w in self.windows]
            rows += mine
            if spectrum.flags:
                continue
            if isinstance(found[number], Exception):
                self._fail(mine, RVFlag.NO_LSF, found[number])
                continue
            lsf, center, mismatch = self._centered(found[number], spectrum, centered)
            mixed += mismatch
            for row, window in zip(mine, self.windows, strict=True):
                row["center"] = center
                try:
                    self._plan(row, window, spectrum, lsf, tasks)
                except Exception as error:  # numbers beyond all bounds
                    self._fail([row], RVFlag.BAD_INPUT, error)
        for key, group in tasks.items():
            for begin in range(0, len(group), CHUNK):
                self._measure_group(key, group[begin : begin + CHUNK])
        if mixed:
            warnings.warn(
                f"{mixed} of {len(spectra)} spectra have wavelengths calibrated with another centre than the one at "
                "lag 0: their velocities are off by the difference",
                CenterMismatchWarning,
                stacklevel=2,
            )
        if self.frame is not None:
            to_frame(rows, self.frame)
        if len(self.windows) > 1:
            n = len(self.windows)
            out = []
            for begin in range(0, len(rows), n):
                part = rows[begin : begin + n]
                out += [*part, combine_windows(part, self.zero_points, self.window_scatter)]
            rows = out
        for row in rows:
            row.pop("_meta", None)
            row["reasons"] = RVFlag(row["flags"]).reasons() if row["flags"] else ""
        return rows

    def _blank(self, number: int, spectrum: ObservedArrays, window: Window) -> dict[str, Any]:
        row = blank_row()
        meta = spectrum.meta
        row["spectrum"], row["window"] = number, window.name
        row["file"], row["obsid"] = (
            str(meta.get("filename") or ""),
            "" if meta.get("obsid") is None else str(meta["obsid"]),
        )
        row["frame"] = meta.get("frame") or ""
        row["flags"], row["message"] = int(spectrum.flags), spectrum.message
        row["_meta"] = meta
        if np.isfinite(window.high):
            row["window_low"], row["window_high"] = window.low, window.high
        return row

    @staticmethod
    def _fail(rows: Sequence[dict[str, Any]], flag: RVFlag, error: BaseException | str) -> None:
        text = error if isinstance(error, str) else f"{type(error).__name__}: {' '.join(str(error).split())}"
        for row in rows:
            row["flags"] |= int(flag)
            row["message"] = text

    def _lsfs_of(self, spectra: Sequence[ObservedArrays], own: Sequence[Any] | None) -> list[LSF | Exception | None]:
        """LSF of every spectrum that can be used, or why there is none."""
        out: list[Any] = [None] * len(spectra)
        usable = [i for i, s in enumerate(spectra) if not s.flags]
        if own is None and self._fixed is None and hasattr(self.lsf, "lsfs_for"):
            # those of an archive in one go
            for i, lsf in zip(usable, self.lsf.lsfs_for([spectra[i].meta for i in usable]), strict=True):
                out[i] = lsf
            return out
        for i in usable:
            given = None if own is None else own[i]
            try:
                if given is not None:
                    out[i] = as_lsf(given.lsf_for(spectra[i].meta) if hasattr(given, "lsf_for") else given)
                else:
                    out[i] = self._fixed if self._fixed is not None else as_lsf(self._lookup(spectra[i].meta))
            except Exception as error:  # a user's own function raises what it likes
                out[i] = error
        return out

    def _centered(self, lsf: LSF, spectrum: ObservedArrays, known: dict[tuple[int, Any], LSF]) -> tuple[LSF, str, bool]:
        """LSF with the centre that it is to be used with, its name, and whether that mixes two definitions.

        Spectra that share an LSF share what is ``known`` of it.
        """
        definition = resolve_center(self.center, {"wavelength_center": lsf.center}, spectrum.meta)
        calibrated = spectrum.meta.get("wavelength_center")
        name = center_name(definition)
        mixed = (
            calibrated is not None and "zero" not in (name, center_name(calibrated)) and name != center_name(calibrated)
        )
        if lsf.center != definition:
            key = id(lsf), definition
            lsf = known[key] if key in known else known.setdefault(key, lsf.centered(definition))
        return lsf, name, mixed

    def _plan(
        self, row: dict[str, Any], window: Window, spectrum: ObservedArrays, lsf: LSF, tasks: dict[Any, list[_Task]]
    ) -> None:
        """Cut the window out of a spectrum and put it in a group of its like, or flag the row."""
        found = cut(spectrum, window.low, window.high)
        if found is None:
            self._fail([row], RVFlag.TOO_FEW_PIXELS, "no usable pixel in the window")
            return
        pixels, n, row["snr"] = found
        low, high = window.of(pixels.wavelength)
        row["window_low"], row["window_high"], row["n_pixels"] = low, high, n
        degree = self.degree
        if degree is None:
            degree = default_degree(pixels.wavelength[-1] - pixels.wavelength[0])
        row["degree"] = degree
        if n < max(10, 3 * (degree + 2)):
            self._fail([row], RVFlag.TOO_FEW_PIXELS, f"{n} usable pixels, a continuum of degree {degree} needs more")
            return
        # of the search's pixels: an integer fraction of LAMOST's
        spacing = math.log(pixels.wavelength[-1] / pixels.wavelength[0]) / max(pixels.wavelength.size - 1, 1)
        tasks.setdefault((low, high, _spacing_class(spacing), degree), []).append(_Task(row, pixels, lsf, spectrum))

    def _measure_group(self, key: _Key, group: list[_Task]) -> None:
        group = self._express(key[:2], group)
        if not group:
            return
        engine = self._engine(key)
        for task in group:
            self._uncertainties(task)
        wanted = [t.uncertain for t in group]
        try:
            found = engine.find([t.pixels for t in group], [t.coefficients for t in group], self.cosmic_sigma, wanted)
        except Exception:
            # one spectrum must not cost the others theirs
            found = [self._alone(engine, t) for t in group]
        for task, result in zip(group, found, strict=True):
            if result is not None:
                self._fill(task, result, engine)

    def _alone(self, engine: VelocityEngine, task: _Task) -> Found | None:
        try:
            return engine.find([task.pixels], [task.coefficients], self.cosmic_sigma, [task.uncertain])[0]
        except Exception as error:
            self._fail([task.row], RVFlag.FAILED, error)
            return None

    def _express(self, window: tuple[float, float], group: list[_Task]) -> list[_Task]:
        """Tasks with their LSF's coefficients; those without an LSF in the window are flagged and left out."""
        family = self._families.get(window) or self._first_family(window, group)
        if family is None:
            return []
        for attempt in range(3):
            distinct = {id(task.lsf): task.lsf for task in group}
            cache = dict(zip(distinct, family.coefficients_many(list(distinct.values())), strict=True))
            usable, missed = [], {}
            for task in group:
                key = id(task.lsf)
                known = cache[key]
                if isinstance(known, Exception):
                    self._fail([task.row], RVFlag.NO_LSF, known)
                    continue
                task.coefficients, left = known
                usable.append(task)
                if left > TOLERANCE and not any(lsf is task.lsf for lsf in family.lsfs):
                    missed[key] = left, task.lsf
            if not missed or attempt == 2:
                break
            # the worst ones: what they need, the others need, too
            worst = sorted(missed.values(), key=lambda m: -m[0])[:_REPRESENTATIVE]
            group, family = usable, family.extended([lsf for _, lsf in worst])
            self._bases.pop(window, None)
            for k in [k for k in self._engines if k[:2] == window]:
                del self._engines[k]
        self._families[window] = family
        return usable

    def _first_family(self, window: tuple[float, float], group: list[_Task]) -> LSFFamily | None:
        distinct = list({id(t.lsf): t for t in group}.values())
        stride = max(1, len(distinct) // _REPRESENTATIVE)
        good = []
        for task in distinct:
            try:
                task.lsf._check_range(np.array(window))
                task.lsf.sample(np.array(window))
                good.append(task.lsf)
            except Exception as error:
                self._fail([t.row for t in group if t.lsf is task.lsf], RVFlag.NO_LSF, error)
        return LSFFamily(good[::stride], window) if good else None

    def _engine(self, key: _Key) -> VelocityEngine:
        if key in self._engines:
            self._engines[key] = engine = self._engines.pop(key)  # the last one used comes last
            return engine
        low, high, fraction, degree = key
        family = self._families[low, high]
        if (low, high) not in self._bases:
            self._bases[low, high] = convolve_templates(
                self.templates, self.names, family.basis, (low, high), self.limits
            )
        lattice = Lattice.covering(np.log(low), np.log(high), 1e-4 * np.log(10.0) / fraction)
        step = min(COARSEST_STEP, family.basis.width / STEPS_PER_WIDTH)
        # spectra lie up to half a pixel off the lattice: its trial velocities reach beyond the range by as much
        pad = 0.5 * lattice.step
        first, last = log_shift(self.limits[0]) - pad, log_shift(self.limits[1]) + pad
        trial = velocity_of_shift(np.linspace(first, last, max(int(np.ceil((last - first) / step)) + 1, 5)))
        most = max(_ENGINES, len(self.windows))
        while len(self._engines) >= most:
            del self._engines[next(iter(self._engines))]
        self._engines[key] = engine = VelocityEngine(
            self._bases[low, high], family.typical, lattice, trial, degree, self.continuum,
            limits=self.limits, single=True, keep=_KEPT // most,
        )  # fmt: skip
        return engine

    def _fill(self, task: _Task, found: Found, engine: VelocityEngine) -> None:
        row, reduced = task.row, found.chi2 / found.dof if found.dof > 0 else np.nan
        n_used = found.n_used
        row.update(
            rv=found.velocity,
            rv_err=found.error,
            rv_err_scaled=found.error * math.sqrt(max(reduced, 1.0)),
            chi2=found.chi2,
            dof=found.dof,
            flags=row["flags"] | int(found.flags),
            template_index=found.best,
            template=self.names[found.best],
            runner_up="" if found.runner_up is None else self.names[found.runner_up],
            runner_up_delta_chi2=found.runner_up_delta_chi2,
            second_rv=found.second_velocity,
            second_delta_chi2=found.second_delta_chi2,
            n_rejected=row["n_pixels"] - n_used,
            n_pixels=n_used,
        )
        if not found.success:
            row["message"] = row["message"] or found.flags.reasons()
            return
        if task.modes is not None:
            sensitivity = engine.sensitivity(found, self._lag_transform(found.best, engine))
            row["rv_err_ip"] = ip_error(task.modes, sensitivity)
        if task.wave is not None:
            row["rv_err_wave"] = float(abs(found.influence.shares @ task.wave))
        errors = (row[k] for k in ("rv_err_scaled", "rv_err_ip", "rv_err_wave"))
        row["rv_err_total"] = math.sqrt(sum(e**2 for e in errors if math.isfinite(e)))

    def _uncertainties(self, task: _Task) -> None:
        """What is known of the errors of a spectrum's LSF and of its wavelengths."""
        family = self._families[task.row["window_low"], task.row["window_high"]]
        try:
            task.modes = ip_error_modes(task.lsf, family, self._modes)
            task.wave = wavelength_error(self.wavelength_error, task.spectrum, task.pixels)
        except LamostLSFError as error:
            task.row["message"] = f"{type(error).__name__}: {error}"

    def _lag_transform(self, template: int, engine: VelocityEngine) -> np.ndarray:
        """Of a template on the grid of an engine, before any convolution."""
        key = "template", id(engine.templates), template
        if key not in self._modes:
            grid, basis = engine.templates.grid, engine.templates.basis
            spectrum = on_grid(self.templates[template], grid, basis.width)[0]
            self._modes[key] = (engine.templates, lag_transform(spectrum, basis.components.shape[1]))
        return self._modes[key][1]


def _spacing_class(spacing: float) -> int:
    """Search pixels per 1e-4 in log10(wavelength): a power of two, no coarser than the spectrum's own.

    LAMOST's low resolution has 1. Few classes, because each needs models of its own.
    """
    ratio = 1e-4 * np.log(10.0) / spacing
    return 1 if ratio < 1.3 else 2 ** int(np.ceil(np.log2(ratio / 1.3)))


def _check_reach(templates: list[Spectrum], names: list[str], window: Window, limits: tuple[float, float]) -> None:
    from types import SimpleNamespace

    # a profile without wings: what is short of that is short of everything
    basis = SimpleNamespace(refinement=1, first_lag=0, components=np.zeros((1, 0)))
    check_coverage(templates, names, basis, (window.low, window.high), limits)
