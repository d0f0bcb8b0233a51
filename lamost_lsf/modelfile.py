"""Safetensors files of models: one JSON header and tensors, read with reasons where something is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lamost_lsf.errors import FormatError

__all__ = ["damaged_model", "model_metadata", "read_model_file"]


def model_metadata(kind: str, header: dict[str, Any]) -> dict[str, str]:
    """Metadata of a file that `read_model_file` reads.

    One entry, for safetensors writes several in random order, and the same model shall make the same file. JSON keeps
    every digit of a float64.
    """
    try:
        return {kind: json.dumps(header)}
    except TypeError as error:
        raise TypeError(f"meta cannot be written: {error}") from None


def read_model_file(
    path: str | PathLike, kind: str, version: int, framework: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and tensors of a model file.

    Parameters
    ----------
    path : path
    kind : str
        Entry of the metadata that holds the header.
    version : int
        The ``format_version`` that can be read.
    framework : {"numpy", "pt"}
        What the tensors come as.

    Raises
    ------
    FileNotFoundError
    FormatError
        Not such a file, another format version, or a damaged one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no model file {path}")
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: not a readable safetensors file ({error})") from None
    if kind not in metadata:
        raise FormatError(f"{path}: its metadata lack the entry {kind!r}; found {', '.join(metadata) or 'none'}")
    with damaged_model(path):
        header = json.loads(metadata[kind])
        found = header["format_version"]
        if found != version:
            raise FormatError(
                f"{path}: format version {found} cannot be read by this release (it reads version "
                f"{version}); upgrade lamost-lsf or convert the file"
            )
    return header, tensors


@contextmanager
def damaged_model(path: str | PathLike) -> Iterator[None]:
    """FormatError for what is raised when a model is made of a damaged file's content."""
    try:
        yield
    except FormatError:
        raise
    except KeyError as error:
        raise FormatError(f"{path}: damaged model file ({error} is missing)") from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"{path}: damaged model file ({error})") from None
