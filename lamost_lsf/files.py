"""Writing files so that nothing half-written ever stands under its final name; reading files that may be damaged."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from lamost_lsf.errors import FormatError

__all__ = ["atomic_path", "damage"]


@contextmanager
def atomic_path(path: str | PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Temporary path in the folder of ``path``, renamed to it on success and removed on failure.

    Parameters
    ----------
    path : path
        Final name.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    FileExistsError
        ``path`` exists and ``overwrite`` is False.
    FileNotFoundError
        The folder does not exist.
    IsADirectoryError
        ``path`` is a folder.
    """
    final = Path(path)
    if final.is_dir():
        raise IsADirectoryError(f"{final} is a folder")
    if final.exists() and not overwrite:
        raise FileExistsError(f"{final} exists; pass overwrite=True to replace it")
    if not final.parent.is_dir():
        raise FileNotFoundError(f"folder {final.parent} does not exist")
    # keep the suffix: writers such as astropy's choose format and compression by it
    handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.stem}-", suffix="".join(final.suffixes))
    os.close(handle)
    temporary = Path(name)
    # mkstemp makes private files; a finished product gets the user's usual permissions
    umask = os.umask(0)
    os.umask(umask)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # a crash of the machine must not leave an empty file under the final name
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def damage(path: str | PathLike, what: str) -> Iterator[None]:
    """FormatError, in one line, for whatever is raised on a damaged file; ``what`` names what it should have been."""
    try:
        yield
    except (FileNotFoundError, PermissionError, FormatError):
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path}: not a readable {what}: {detail}") from None
