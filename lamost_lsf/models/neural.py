"""`NeuralIP`: a trained network (time, fibre, wavelength -> profile), evaluated without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.time import Time
from safetensors.numpy import save_file

from lamost_lsf.errors import FormatError, OutOfRangeError
from lamost_lsf.files import atomic_path
from lamost_lsf.modelfile import damaged_model, model_metadata, read_model_file
from lamost_lsf.models.base import IPModel
from lamost_lsf.models.expansion import Expansion
from lamost_lsf.models.labels import label_arrays
from lamost_lsf.time import lmjm_to_time
from lamost_lsf.units import air_to_vacuum, check_medium, vacuum_to_air

__all__ = ["ARM_BOUNDARY_AIR", "LAMOST_WINDOWS", "NeuralIP", "parse_model_name"]

FORMAT = "lamost-lsf/neural-ip"
FORMAT_VERSION = 1

#: Offsets (Angstrom) that the published profiles cover (Liu et al. 2026, section 2.2).
LAMOST_WINDOWS = {"blue": (-8.335, 9.25), "red": (-9.163, 9.833)}
#: Air wavelength (Angstrom) up to which a line belongs to the blue arm, as in the published reader.
ARM_BOUNDARY_AIR = 5800.0
N_SAMPLES = 600
#: Relative rounding of a float32.
_SINGLE = 2.0**-23
#: What evaluation in float32 may cost, in units of a profile's peak.
_PRECISION = 1e-6
#: Labels that are evaluated at a time.
_BLOCK = 256

_NAME = re.compile(r"(?:NN_normalized_spectra_)?(?P<spectrograph>\d{2})_(?P<arm>[br])_(?P<season>\d{4})$")


def parse_model_name(path: str | PathLike) -> dict[str, Any] | None:
    """Spectrograph, arm and season from a file name such as ``NN_normalized_spectra_01_b_2017.npz``.

    Returns None for another kind of name.

    Examples
    --------
    >>> parse_model_name("01_r_2018.safetensors")
    {'spectrograph': 1, 'arm': 'red', 'season': 2018}
    """
    match = _NAME.match(Path(path).stem)
    if match is None:
        return None
    return {
        "spectrograph": int(match["spectrograph"]),
        "arm": {"b": "blue", "r": "red"}[match["arm"]],
        "season": int(match["season"]),
    }


_ACTIVATIONS = ("leaky_relu", "silu")


class NeuralIP(IPModel):
    """Multilayer perceptron from (time, fibre, wavelength) to a sampled profile (Liu et al. 2026, section 3.1, Eq. 3).

    ``y = W_L s(... s(W_0 x + b_0) ...) + b_L`` with s = LeakyReLU and labels x scaled linearly to [-0.5, 0.5].

    Parameters
    ----------
    weights, biases : sequence of array_like
        One pair a layer; ``weights[i]`` has shape (n_out, n_in), the first n_in is 3 and the number of extra labels.
    label_min, label_max : array_like (3 + m,)
        Range of the labels that is scaled to [-0.5, 0.5], which is also the trained range: time (local modified Julian
        minutes), fibre - ``fiber_origin``, wavelength (Angstrom in ``label_medium``), m extra labels.
    offset : array_like (n,)
        Offsets of the output samples, Angstrom, uniform.
    label_medium : {"air", "vacuum"}
        Medium of the wavelength label. The published networks have air.
    fiber_origin : int
        Subtracted from the fibre number to make its label. The published networks have 1.
    slope : float
        Slope of the LeakyReLU for negative input.
    activation : {"leaky_relu", "silu"}
        Between the layers. The published networks have LeakyReLU; SiLU is smooth, and so is the LSF then.
    expansion : Expansion, optional
        What turns the outputs into a profile, where they are the coefficients of a basis and not its samples; with
        terms of
        single fibres and nights, and the profile's uncertainty. The models that `lamost_lsf.train` makes have one.
    extra_labels : mapping of str to float, optional
        Names of the labels besides the three, in the order of the network's inputs, and their medians in the training
        set: values from the exposures' headers, such as a temperature. Whoever asks for a profile or an LSF then says
        what they are, see `with_labels`.
    meta : dict, optional
        Provenance: spectrograph, arm, season, instrument, ... Values must be what JSON holds.

    Raises
    ------
    ValueError
        Layers that do not chain, or a range that is empty.

    Notes
    -----
    A label outside the trained range raises `OutOfRangeError` unless ``extrapolate=True`` is passed where the profile
    or the LSF is asked for. Networks extrapolate poorly; the paper itself warns of wavelengths between its lines
    (section 4). Ranges are taken to the precision of float32, which a file may keep them in: a label that departs by
    less than that (10 minutes, 5e-4 A) is inside.

    Weights are kept in float64 and evaluated in float32, twice as fast, where that changes the profile by less than
    1e-6 of its peak (1e-7 is usual); a network for which it would change more is evaluated in float64.

    Examples
    --------
    A network without a hidden layer that gives the same profile everywhere:

    >>> import astropy.units as u, numpy as np
    >>> from astropy.time import Time
    >>> from lamost_lsf import NeuralIP
    >>> x = np.linspace(-8.335, 9.25, 600)
    >>> model = NeuralIP([np.zeros((600, 3))], [np.exp(-0.5 * (x / 1.2) ** 2)], offset=x,
    ...                  label_min=[82820000, 0, 4046.565], label_max=[83190000, 249, 5790.670])
    >>> ip = model.profile(time=Time("2017-01-05T14:00"), fiber=[12, 13], wavelength=5000 * u.AA)
    >>> ip.shape
    (2,)
    >>> print(f"{ip[0].fwhm:.3f}")
    2.826 Angstrom
    """

    needs_time = True
    needs_fiber = True

    def __init__(
        self,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        *,
        label_min: np.ndarray,
        label_max: np.ndarray,
        offset: np.ndarray,
        label_medium: str = "air",
        fiber_origin: int = 1,
        slope: float = 0.01,
        activation: str = "leaky_relu",
        expansion: Expansion | None = None,
        extra_labels: Mapping[str, float] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
        self.activation = activation
        self.expansion = expansion
        self.extra_labels = {str(name): float(value) for name, value in (extra_labels or {}).items()}
        self.weights = tuple(np.ascontiguousarray(w, dtype=np.float64) for w in weights)
        self.biases = tuple(np.ascontiguousarray(b, dtype=np.float64).reshape(-1) for b in biases)
        self.offset = np.asarray(offset, dtype=np.float64)
        self.label_min = np.asarray(label_min, dtype=np.float64).reshape(-1)
        self.label_max = np.asarray(label_max, dtype=np.float64).reshape(-1)
        step = np.diff(self.offset)
        if self.offset.ndim != 1 or self.offset.size < 5 or not np.all(step > 0) or np.ptp(step) > 1e-6 * step.mean():
            raise ValueError("offset must be one-dimensional with 5 samples or more, increasing and uniform")
        self._check_layers()
        self.label_medium = check_medium(label_medium)
        self.fiber_origin = int(fiber_origin)
        self.slope = float(slope)
        if not 0.0 <= self.slope <= 1.0:
            raise ValueError(f"slope must be between 0 and 1, got {slope}")
        self.meta = {"model": "NeuralIP", **(meta or {})}
        slack = _SINGLE * np.abs(np.stack([self.label_min, self.label_max]))
        self._trained = np.stack([self.label_min, self.label_max]) + slack * np.array([[-1.0], [1.0]])
        low, high = (float(w) for w in self._trained[:, 2])
        if self.label_medium == "air":
            low, high = (float(air_to_vacuum(w)) for w in (low, high))
        self.wavelength_range = (low, high)

    def _check_layers(self) -> None:
        if len(self.weights) != len(self.biases) or not self.weights:
            raise ValueError(f"{len(self.weights)} weight arrays and {len(self.biases)} bias arrays do not pair up")
        n_in = n_label = 3 + len(self.extra_labels)
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            if w.ndim != 2 or w.shape[1] != n_in or b.size != w.shape[0]:
                raise ValueError(
                    f"layer {i}: weights of shape {w.shape} and biases of shape {b.shape} do not follow {n_in} inputs"
                )
            n_in = w.shape[0]
        n_out = self.offset.size
        if self.expansion is not None:
            n_out, n_sample = self.expansion.components.shape
            if self.expansion.n_extra != len(self.extra_labels):
                raise ValueError(
                    f"the expansion has {self.expansion.n_extra} extra labels, the network {len(self.extra_labels)}"
                )
            if n_sample != self.offset.size:
                raise ValueError(f"the expansion has {n_sample} samples, offset has {self.offset.size}")
        if n_in != n_out:
            raise ValueError(f"the last layer gives {n_in} numbers, {n_out} are needed")
        if self.label_min.shape != (n_label,) or self.label_max.shape != (n_label,):
            names = ", ".join(("time", "fibre", "wavelength", *self.extra_labels))
            raise ValueError(f"label_min and label_max must hold {names}")
        arrays = (*self.weights, *self.biases, self.label_min, self.label_max, list(self.extra_labels.values()))
        if not all(np.all(np.isfinite(a)) for a in arrays):
            raise ValueError("the network holds non-finite numbers")
        if np.any(self.label_max <= self.label_min):
            raise ValueError("label_max must exceed label_min for every label")

    # -- evaluation ------------------------------------------------------------------------------------

    def labels(self, lmjm: np.ndarray, fiber: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        """Scaled labels (m, 3) of times (LMJM), fibres and vacuum wavelengths (Angstrom), all of shape (m,)."""
        label = vacuum_to_air(wavelength) if self.label_medium == "air" else np.asarray(wavelength)
        raw = np.empty((label.size, 3))
        raw[:, 0], raw[:, 1], raw[:, 2] = lmjm, fiber, label
        raw[:, 1] -= self.fiber_origin
        return (raw - self.label_min) / (self.label_max - self.label_min) - 0.5

    @cached_property
    def _in_single(self) -> bool:
        """Whether float32, which takes half the time, departs from float64 by no more than `_PRECISION`."""
        layers = self._all_layers()
        single = [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]
        label = np.linspace(-0.5, 0.5, 5)
        x = np.zeros((label.size**3, self.label_min.size))
        x[:, :3] = np.stack(np.meshgrid(*3 * [label], indexing="ij"), axis=-1).reshape(-1, 3)
        exact, rounded = (self._profiles(x, None, arrays) for arrays in (layers, single))
        close = np.max(np.abs(rounded - exact), axis=1) <= _PRECISION * np.max(np.abs(exact), axis=1)
        return bool(np.all(close))

    def _all_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weights (n_in, n_out) and biases, an expansion's components and mean at the end."""
        layers = [(w.T, b) for w, b in zip(self.weights, self.biases, strict=True)]
        return layers if self.expansion is None else [*layers, (self.expansion.components, self.expansion.mean)]

    @cached_property
    def _layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same in the precision that they are evaluated in."""
        kind = np.float32 if self._in_single else np.float64
        return [(np.array(w, dtype=kind, order="C"), b.astype(kind)) for w, b in self._all_layers()]

    def _profiles(
        self, x: np.ndarray, terms: np.ndarray | None, layers: list[tuple[np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        """Profiles (m, n) for scaled labels (m, 3) and what an expansion adds to the network's outputs (m, K)."""
        out = np.empty((x.shape[0], self.offset.size))
        *inner, (last, constant) = layers
        # blocks whose activations stay in the processor's cache
        for start in range(0, x.shape[0], _BLOCK):
            rows = slice(start, start + _BLOCK)
            y = x[rows].astype(last.dtype)
            for number, (w, b) in enumerate(inner, start=1):
                y = y @ w
                y += b
                if number == len(self.weights):  # the network's outputs, of which a profile is made next
                    if terms is not None:
                        y += terms[rows]
                elif self.activation == "silu":
                    # x / (1 + exp(-x)); the exponent is bounded so that a far label gives 0 and not a warning
                    gate = np.minimum(-y, 80.0)
                    np.exp(gate, out=gate)
                    gate += 1.0
                    y /= gate
                else:
                    np.maximum(y, self.slope * y, out=y)  # LeakyReLU for a slope below 1
            y = y @ last
            y += constant
            out[rows] = y
        return out

    def _check_labels(self, time: Time | None, fiber: np.ndarray | None, extrapolate: bool) -> None:
        super()._check_labels(time, fiber, extrapolate)
        if self.extra_labels:
            self.with_labels(None)  # says what is missing
        if np.any(fiber < self.fiber_origin):
            raise ValueError(f"fibres are counted from {self.fiber_origin}, got {fiber}")
        lmjm = self._time_label(time)
        if not np.all(np.isfinite(lmjm)):
            raise ValueError("time must be finite (not masked)")
        if extrapolate:
            return
        (first, low, _), (last, high, _) = self._trained
        label = fiber - self.fiber_origin
        if np.any(label < low) or np.any(label > high):
            low, high = (round(float(f)) + self.fiber_origin for f in (self.label_min[1], self.label_max[1]))
            raise OutOfRangeError(
                f"fiber must be {low}-{high} in this model, got {fiber}; pass extrapolate=True to go beyond"
            )
        outside = (lmjm < first) | (lmjm > last)
        if np.any(outside):
            first, last = (lmjm_to_time(t).iso[:16] for t in (self.label_min[0], self.label_max[0]))
            worst = time.utc.iso if time.isscalar else time[outside].utc.iso[0]
            raise OutOfRangeError(
                f"time {worst} lies outside the trained range {first} to {last} UTC; "
                "choose the model of that season or pass extrapolate=True"
            )

    def with_labels(
        self, labels: Mapping[str, float] | Literal["median"] | None, *, extrapolate: bool = False
    ) -> NeuralIP:
        """The model at given values of its extra labels: a model of time, fibre and wavelength alone.

        Parameters
        ----------
        labels : mapping of str to float, or "median"
            A value for each of ``extra_labels``; "median" takes those of the training set.
        extrapolate : bool
            Allow values outside the trained range.

        Raises
        ------
        ValueError
            A label that is missing, that the model does not have, or that is not one finite number.
        OutOfRangeError
            A value outside the trained range, unless ``extrapolate``.

        Examples
        --------
        A width that grows with the temperature:

        >>> import astropy.units as u, numpy as np
        >>> from astropy.time import Time
        >>> from lamost_lsf import NeuralIP
        >>> x = np.linspace(-8.335, 9.25, 600)
        >>> wide, narrow = (np.exp(-0.5 * (x / sigma) ** 2) for sigma in (1.3, 1.1))
        >>> weights = np.stack([*np.zeros((3, 600)), wide - narrow], axis=1)
        >>> model = NeuralIP([weights], [0.5 * (wide + narrow)], offset=x, extra_labels={"temperature": 4.0},
        ...                  label_min=[82820000, 0, 4046.565, -10], label_max=[83190000, 249, 5790.670, 20])
        >>> when = {"time": Time("2017-01-05T14:00"), "fiber": 12}
        >>> for t in (-10, 20):
        ...     lsf = model.with_labels({"temperature": t}).at(**when)
        ...     print(f"{lsf.profile(5000 * u.AA).fwhm:.3f}")
        2.590 Angstrom
        3.061 Angstrom
        >>> ip = model.profile(**when, wavelength=5000 * u.AA, labels={"temperature": [-10, 5, 20]})
        >>> ip.shape
        (3,)
        """
        if not self.extra_labels:
            return super().with_labels(labels, extrapolate=extrapolate)
        if isinstance(labels, str) and labels == "median":
            values = np.array(list(self.extra_labels.values()))
        else:
            values = np.array([float(v) for v in label_arrays(self, labels).values()])
        low, high = self._trained[:, 3:]
        outside = (values < low) | (values > high)
        if np.any(outside) and not extrapolate:
            i = int(np.argmax(outside))
            raise OutOfRangeError(
                f"{list(self.extra_labels)[i]} must be {self.label_min[3 + i]:g} to {self.label_max[3 + i]:g} in this "
                f"model, got {values[i]:g}; pass extrapolate=True to go beyond"
            )
        scaled = (values - self.label_min[3:]) / (self.label_max[3:] - self.label_min[3:]) - 0.5
        new = copy(self)
        new._in_single = self._in_single
        new.__dict__.pop("_layers", None)
        first = self.weights[0]
        new.weights = (np.ascontiguousarray(first[:, :3]), *self.weights[1:])
        new.biases = (self.biases[0] + first[:, 3:] @ scaled, *self.biases[1:])
        new.label_min, new.label_max, new._trained = self.label_min[:3], self.label_max[:3], self._trained[:, :3]
        new.expansion = None if self.expansion is None else self.expansion.at_labels(scaled)
        new.extra_labels = {}
        new.meta = {**self.meta, "labels": dict(zip(self.extra_labels, values.tolist(), strict=True))}
        return new

    def _evaluate(self, time: np.ndarray | None, fiber: np.ndarray | None, wavelength: np.ndarray) -> np.ndarray:
        labels = self.labels(time, fiber, wavelength)
        terms = None if self.expansion is None else self.expansion.particular(labels, time, fiber)
        return self._profiles(labels, terms, self._layers)

    def _error_function(
        self, time: np.ndarray | None, fiber: np.ndarray | None, wavelength: np.ndarray
    ) -> Callable[[], np.ndarray] | None:
        return None if self.expansion is None else lambda: self.expansion.error(fiber)

    # -- files -------------------------------------------------------------------------------------------

    def write(self, path: str | PathLike, *, overwrite: bool = False) -> None:
        """Write to a safetensors file whose metadata carry format version, label scaling, medium and trained range.

        Raises
        ------
        FileExistsError
            The file exists and ``overwrite`` is False.
        TypeError
            ``meta`` holds what JSON does not.
        """
        tensors = {f"w{i}": w for i, w in enumerate(self.weights)}
        tensors |= {f"b{i}": b for i, b in enumerate(self.biases)}
        tensors["offset"] = self.offset
        if self.expansion is not None:
            tensors |= {f"expansion.{f.name}": getattr(self.expansion, f.name) for f in fields(Expansion)}
        header = {
            "format_version": FORMAT_VERSION,
            "n_layers": len(self.weights),
            "labels": ["time [LMJM min]", "fiber - fiber_origin", "wavelength [Angstrom]", *self.extra_labels],
            "label_min": self.label_min.tolist(),
            "label_max": self.label_max.tolist(),
            "label_medium": self.label_medium,
            "fiber_origin": self.fiber_origin,
            "slope": self.slope,
            "activation": self.activation,
            "extra_labels": self.extra_labels,
            "meta": self.meta,
        }
        metadata = model_metadata(FORMAT, header)
        with atomic_path(path, overwrite=overwrite) as temporary:
            # safetensors writes memory as it lies: a transposed view would come back as another array
            save_file({k: np.array(v, order="C") for k, v in tensors.items()}, temporary, metadata=metadata)

    @classmethod
    def read(cls, path: str | PathLike) -> NeuralIP:
        """Read a file written by `write`.

        Raises
        ------
        FileNotFoundError
        FormatError
            Not such a file, another format version, or a damaged one.
        """
        header, tensors = read_model_file(path, FORMAT, FORMAT_VERSION, "numpy")
        with damaged_model(path):
            n = int(header["n_layers"])
            prefix = "expansion."
            parts = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            return cls(
                [tensors[f"w{i}"] for i in range(n)],
                [tensors[f"b{i}"] for i in range(n)],
                label_min=header["label_min"],
                label_max=header["label_max"],
                offset=tensors["offset"],
                label_medium=header["label_medium"],
                fiber_origin=int(header["fiber_origin"]),
                slope=float(header["slope"]),
                activation=header["activation"],
                expansion=Expansion(**parts) if parts else None,
                extra_labels=header.get("extra_labels"),
                meta=dict(header["meta"]),
            )

    @classmethod
    def from_pylamostip(cls, path: str | PathLike, *, arm: str | None = None) -> NeuralIP:
        """Weights published with Liu et al. 2026 (Zenodo 10.5281/zenodo.18667269): one season, spectrograph and arm.

        Parameters
        ----------
        path : path
            ``NN_normalized_spectra_{spectrograph:02d}_{b|r}_{season}.npz`` with arrays ``w_array_0..2`` (n_out, n_in),
            ``b_array_0..2``, ``x_min``, ``x_max``.
        arm : {"blue", "red"}, optional
            Which window the 600 samples cover. By default from the file name, else from the wavelength label's range.

        Returns
        -------
        NeuralIP
            With labels (LMJM, fibre - 1, air wavelength).

        Raises
        ------
        FileNotFoundError
        FormatError
            Missing arrays, shapes that do not chain, or a damaged file.
        ValueError
            An arm other than "blue" and "red".
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no weights file {path}")
        names = [f"{kind}_array_{i}" for i in range(3) for kind in "wb"] + ["x_min", "x_max"]
        try:
            # opened here: numpy leaves its own handle open where the archive is damaged
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as npz:
                missing = [n for n in names if n not in npz.files]
                if missing:
                    raise FormatError(f"{path}: arrays {', '.join(missing)} are missing; found {', '.join(npz.files)}")
                arrays = {n: np.asarray(npz[n]) for n in names}
        except FormatError:
            raise
        except Exception as error:  # a damaged zip raises many types
            raise FormatError(f"{path}: not a readable npz file ({error})") from None
        meta = parse_model_name(path) or {}
        if arm is not None and arm not in LAMOST_WINDOWS:
            raise ValueError(f"arm must be 'blue' or 'red', got {arm!r}")
        if arrays["x_min"].size != 3 or arrays["x_max"].size != 3:
            raise FormatError(
                f"{path}: x_min and x_max must hold time, fibre and wavelength, got shapes "
                f"{arrays['x_min'].shape} and {arrays['x_max'].shape}"
            )
        try:
            if arm is None:
                arm = meta.get("arm") or ("blue" if float(arrays["x_max"].flat[2]) <= ARM_BOUNDARY_AIR else "red")
            meta |= {"arm": arm, "instrument": f"lamost-lrs-{arm}", "source": Path(path).name}
            return cls(
                [arrays[f"w_array_{i}"] for i in range(3)],
                [arrays[f"b_array_{i}"] for i in range(3)],
                label_min=arrays["x_min"],
                label_max=arrays["x_max"],
                offset=np.linspace(*LAMOST_WINDOWS[arm], N_SAMPLES),
                meta=meta,
            )
        except (ValueError, TypeError) as error:
            raise FormatError(f"{path}: {error}") from None
