"""What makes a survey's velocities those velocities: a description of templates, LSF and options that can be compared.

A survey that is taken up again must not mix two ways of measuring in one folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lamost_lsf.lsf import LSF, as_lsf
from lamost_lsf.models import IPArchive
from lamost_lsf.rv import RVMachine
from lamost_lsf.rv.prepare import center_name

__all__ = ["describe_lsf", "describe_machine", "file_digest"]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in part."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:24]


def _array_digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
    return digest.hexdigest()[:24]


def describe_lsf(lsf: Any) -> Any:
    """Plain description of an archive, an LSF or a function.

    An archive is its models' files by content, an LSF its samples at a few wavelengths. A function is known by its
    name only, unless it has an attribute ``identity``, of plain values.
    """
    own = getattr(lsf, "identity", None)
    if own is not None:
        return own() if callable(own) else own
    if isinstance(lsf, IPArchive):
        kind = type(lsf).__name__
        if getattr(lsf, "_files", None):
            return {"kind": kind, "files": {str(p.relative_to(lsf.path)): file_digest(p) for p in lsf._files.values()}}
        return {"kind": kind, "seed": getattr(lsf, "seed", None), "options": repr(getattr(lsf, "options", None))}
    if isinstance(lsf, LSF):
        samples = [lsf.offset]
        for wavelength in np.linspace(3700.0, 9100.0, 28):
            try:
                samples.append(lsf.sample(np.array([wavelength])).ravel())
            except Exception:  # beyond its range
                samples.append(np.array([wavelength]))
        return {"kind": type(lsf).__name__, "center": _plain(lsf.center), "samples": _array_digest(*samples)}
    if callable(lsf):
        return {"kind": "function", "name": f"{lsf.__module__}.{getattr(lsf, '__qualname__', type(lsf).__name__)}"}
    try:
        return describe_lsf(as_lsf(lsf))
    except TypeError:
        return {"kind": type(lsf).__name__}


def _plain(value: Any) -> Any:
    """Something that JSON keeps as it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if callable(value):
        return center_name(value) if hasattr(value, "name") else getattr(value, "__qualname__", type(value).__name__)
    return str(value)


def describe_machine(machine: RVMachine) -> dict[str, Any]:
    """Plain description of how a machine measures."""
    from lamost_lsf import __version__

    templates = [
        [name, _array_digest(t.spectral_axis.value, t.flux.value)]
        for name, t in zip(machine.names, machine.templates, strict=True)
    ]
    windows = [[w.name, w.low, w.high if np.isfinite(w.high) else None] for w in machine.windows]
    options = (
        "center", "continuum", "degree", "cosmic_sigma", "frame", "zero_points", "window_scatter",
        "wavelength_error", "mask", "extension",
    )  # fmt: skip
    return {
        "version": __version__,
        "templates": templates,
        "lsf": _plain(describe_lsf(machine.lsf)),
        "windows": windows,
        "velocity_range": list(machine.limits),
        **{name: _plain(getattr(machine, name)) for name in options},
    }
