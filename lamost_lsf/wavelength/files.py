"""`WavelengthSolution` in files: ASDF (binary or not, for pipelines) and ECSV (text, for people)."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import asdf
import astropy.units as u
import numpy as np
import yaml
from astropy.modeling import Model
from astropy.table import QTable

from lamost_lsf.errors import FormatError
from lamost_lsf.files import atomic_path
from lamost_lsf.wavelength.solution import LINE_COLUMNS, WavelengthSolution

__all__ = ["FORMAT", "VERSION", "read_solution", "write_solution"]

#: What the files call themselves, and the version of their layout.
FORMAT = "lamost_lsf.WavelengthSolution"
VERSION = 1
_KEY = "wavelength_solution"
_TEXT_COLUMNS = ("label", "reason")


def _digest(solution: WavelengthSolution) -> str:
    """SHA-256 of everything that a file holds.

    A table cut off in its last number is still a valid table; only a sum tells that a digit is missing.
    """
    total = hashlib.sha256()
    lines = solution.lines
    for name in LINE_COLUMNS:
        if name in _TEXT_COLUMNS:
            total.update(json.dumps([str(text) for text in lines[name]]).encode())
        else:
            value = lines[name].value if LINE_COLUMNS[name] else lines[name]
            total.update(np.ascontiguousarray(value, dtype="<f8").tobytes())
    total.update(np.ascontiguousarray(solution.covariance, dtype="<f8").tobytes())
    total.update(np.ascontiguousarray(solution.model.parameters, dtype="<f8").tobytes())
    total.update(np.array(solution.domain, dtype="<f8").tobytes())
    # the curve itself, for models whose content is not in their parameters (tables)
    total.update(np.ascontiguousarray(solution.model(np.linspace(*solution.domain, 33)), dtype="<f8").tobytes())
    facts = [solution.fitter, solution.center, solution.degree, dict(solution.provenance)]
    total.update(json.dumps(facts, sort_keys=True).encode())
    return total.hexdigest()


def _header(solution: WavelengthSolution) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "fitter": solution.fitter,
        "center": solution.center,
        "degree": solution.degree,
        "medium": solution.medium,
        "domain": list(solution.domain),
        "n_lines": len(solution.lines),
        "provenance": dict(solution.provenance),
        "sha256": _digest(solution),
    }


def _write_asdf(solution: WavelengthSolution, path: Path) -> None:
    lines = {
        name: [str(text) for text in solution.lines[name]]
        if name in _TEXT_COLUMNS
        else np.array(solution.lines[name].value if unit else solution.lines[name])
        for name, unit in LINE_COLUMNS.items()
    }
    tree = {
        **_header(solution),
        "model": solution.model,
        "covariance": np.array(solution.covariance),
        "lines": lines,
        "units": {name: str(unit) for name, unit in LINE_COLUMNS.items() if unit},
    }
    with asdf.AsdfFile({_KEY: tree}) as file:
        file.write_to(path)


def _write_ecsv(solution: WavelengthSolution, path: Path) -> None:
    # The model as ASDF's own text: any model that asdf-astropy knows, floats to the last bit, no code to run.
    text = io.BytesIO()
    with asdf.AsdfFile({"model": solution.model}) as file:
        file.write_to(text, all_array_storage="inline")
    table = QTable(solution.lines, copy=True)
    table.meta = {
        _KEY: {
            **_header(solution),
            "covariance": solution.covariance.tolist(),
            "model": text.getvalue().decode("utf-8"),
        }
    }
    table.write(path, format="ascii.ecsv", overwrite=True)


def write_solution(
    solution: WavelengthSolution, path: str | PathLike, *, format: str | None = None, overwrite: bool = False
) -> None:
    """Write a solution: see `WavelengthSolution.write`."""
    kind = (format or Path(path).suffix.lstrip(".")).lower()
    writers = {"asdf": _write_asdf, "ecsv": _write_ecsv}
    if kind not in writers:
        raise ValueError(f"format must be 'asdf' or 'ecsv', or {str(path)!r} must end in .asdf or .ecsv")
    with atomic_path(path, overwrite=overwrite) as temporary:
        try:
            writers[kind](solution, temporary)
        except yaml.representer.RepresenterError:
            raise TypeError(
                f"{type(solution.model).__name__} has no ASDF representation, so its solution cannot be saved; "
                "its package would have to register an asdf converter for it"
            ) from None


def _check_header(header: Any, path: Path) -> dict[str, Any]:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FormatError(f"{path} does not hold a wavelength solution of lamost_lsf")
    if header.get("version") != VERSION:
        raise FormatError(
            f"{path} is a wavelength solution of format version {header.get('version')!r}; this release of "
            f"lamost_lsf reads version {VERSION}"
        )
    return header


def _read_asdf(path: Path) -> tuple[dict[str, Any], Model, QTable, Any]:
    with asdf.open(path, lazy_load=False, memmap=False, validate_checksums=True) as file:
        header = _check_header(file.tree.get(_KEY), path)
        columns = {
            name: (
                np.array(header["lines"][name], dtype=str)
                if name in _TEXT_COLUMNS
                else np.array(header["lines"][name]) * (unit or 1)
            )
            for name, unit in LINE_COLUMNS.items()
        }
        columns["used"] = np.array(header["lines"]["used"], dtype=bool)
        return header, header["model"], QTable(columns), np.array(header["covariance"])


def _read_ecsv(path: Path) -> tuple[dict[str, Any], Model, QTable, Any]:
    table = QTable.read(path, format="ascii.ecsv")
    header = _check_header(table.meta.get(_KEY), path)
    with asdf.open(io.BytesIO(header["model"].encode("utf-8"))) as file:
        model = file["model"]
    n_parameters = len(header["covariance"])
    return header, model, table, np.reshape(header["covariance"], (n_parameters, n_parameters))


def read_solution(path: str | PathLike) -> WavelengthSolution:
    """Read a solution: see `WavelengthSolution.read`."""
    path = Path(path)
    with open(path, "rb") as stream:
        start = stream.read(16)
    if start.startswith(b"#ASDF"):
        reader = _read_asdf
    elif start.startswith(b"# %ECSV"):
        reader = _read_ecsv
    else:
        raise FormatError(f"{path} is neither an ASDF nor an ECSV file")
    try:
        with warnings.catch_warnings():
            # a reader that has to warn about a file of ours has met a damaged or foreign one
            warnings.simplefilter("error")
            header, model, lines, covariance = reader(path)
            for name in _TEXT_COLUMNS:
                # ECSV gives back empty text as missing values
                filled = lines[name].filled("") if hasattr(lines[name], "filled") else lines[name]
                lines[name] = np.array(filled, dtype=str)
            for name, unit in LINE_COLUMNS.items():
                if unit:
                    lines[name] = u.Quantity(lines[name], unit)
            solution = WavelengthSolution(
                model=model,
                domain=tuple(header["domain"]),
                lines=lines,
                covariance=covariance,
                fitter=header["fitter"],
                center=header["center"],
                degree=header["degree"],
                provenance=header["provenance"],
            )
            intact = len(lines) == header["n_lines"] and _digest(solution) == header["sha256"]
    except FormatError:
        raise
    except Exception as problem:
        # whatever a damaged file makes the readers stumble over, it is one thing to the user
        raise FormatError(f"{path} is damaged or truncated: {type(problem).__name__}: {problem}") from problem
    if not intact:
        raise FormatError(f"{path} was altered or truncated after it was written: its checksum does not match")
    return solution
