"""Finding an instrument by name or file."""

from __future__ import annotations

import difflib
import os
from functools import lru_cache
from importlib import resources
from os import PathLike
from pathlib import Path

from astropy.table import Table

from lamost_lsf.errors import FormatError
from lamost_lsf.instruments.instrument import Instrument

__all__ = ["ENVIRONMENT", "get_instrument", "list_instruments"]

#: Environment variable with the folder of a user's own TOML files.
ENVIRONMENT = "LAMOST_LSF_INSTRUMENTS"


@lru_cache(maxsize=1)
def _builtin() -> dict[str, Instrument]:
    folder = resources.files("lamost_lsf.instruments") / "data"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    found = [Instrument.from_text(f.read_bytes(), f.name) for f in files]
    return {instrument.name: instrument for instrument in found}


def _own_files() -> list[Path]:
    folder = os.environ.get(ENVIRONMENT)
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{ENVIRONMENT}={folder} is not a folder")
    return sorted(Path(folder).glob("*.toml"))


def _own() -> dict[str, tuple[Instrument, Path]]:
    found: dict[str, tuple[Instrument, Path]] = {}
    for path in _own_files():
        instrument = Instrument.read(path)
        if instrument.name in _builtin():
            raise FormatError(f"{path}: {instrument.name!r} is a built-in instrument; choose another name")
        if instrument.name in found:
            raise FormatError(f"{path} and {found[instrument.name][1]} are both called {instrument.name!r}")
        found[instrument.name] = (instrument, path)
    return found


def get_instrument(name: str | PathLike | Instrument) -> Instrument:
    """Instrument of a name, or of a TOML file.

    Parameters
    ----------
    name : str, path or Instrument
        A built-in name, one from the folder that the environment variable ``LAMOST_LSF_INSTRUMENTS`` names, or the path
        of a file that ends in ``.toml``. An `Instrument` is returned as it is.

    Raises
    ------
    LookupError
        No instrument of that name; the message has the nearest ones.
    FileNotFoundError
        No such file.
    `~lamost_lsf.errors.FormatError`
        A file that does not describe an instrument.

    Examples
    --------
    >>> from lamost_lsf.instruments import get_instrument
    >>> get_instrument("lamost-lrs-red").lines.air[:2]
    array([5944.834, 6096.163])
    """
    if isinstance(name, Instrument):
        return name
    if not isinstance(name, (str, PathLike)):
        raise TypeError(f"an instrument is a name or a path, got {type(name).__name__}")
    if not isinstance(name, str) or name.lower().endswith(".toml"):
        return Instrument.read(name)
    # Built-in names need no look at the user's folder: a broken file there must not stop them.
    if (key := name.strip().lower()) in _builtin():
        return _builtin()[key]
    known = {**_builtin(), **{k: v[0] for k, v in _own().items()}}
    for candidate, instrument in known.items():
        if candidate.lower() == key:
            return instrument
    near = difflib.get_close_matches(key, [k.lower() for k in known], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
    raise LookupError(f"no instrument {name!r}; {hint} A file of your own: pass its path, or set {ENVIRONMENT}")


def list_instruments() -> Table:
    """Table of the instruments that can be had by name: built in, and in the folder of ``LAMOST_LSF_INSTRUMENTS``.

    Examples
    --------
    >>> from lamost_lsf.instruments import list_instruments
    >>> "lamost-mrs-red" in list_instruments()["name"]
    True
    """
    entries = [(i, "built-in") for i in _builtin().values()]
    entries += [(i, str(path)) for i, path in _own().values()]
    return Table(
        {
            "name": [i.name for i, _ in entries],
            "arm": [i.arm for i, _ in entries],
            "n_lines": [len(i.lines) for i, _ in entries],
            "window_low": [i.window[0] for i, _ in entries],
            "window_high": [i.window[1] for i, _ in entries],
            "n_samples": [i.n_samples for i, _ in entries],
            "n_fibers": [i.fibers[1] - i.fibers[0] + 1 for i, _ in entries],
            "source": [source for _, source in entries],
            "description": [i.description for i, _ in entries],
        }
    )
