"""One writer at a time: a lock that the operating system frees when its holder dies."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["folder_lock"]

_POLL_S = 0.02
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _acquire(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _release(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _acquire(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def folder_lock(path: Path, timeout: float) -> Iterator[None]:
    """Hold ``path`` locked against other processes and other threads.

    The lock belongs to the open file, not to the file's existence: nothing is left to clean up after a ``kill -9``.

    Parameters
    ----------
    path : Path
        Lock file; made where it is missing, and left there.
    timeout : float
        Seconds to wait for another holder.

    Raises
    ------
    TimeoutError
        Somebody else held the lock all that time.
    OSError
        The file system has no locks.
    """
    # read and write: network file systems refuse an exclusive lock on a file opened for reading
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                _acquire(descriptor)
                break
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    raise OSError(
                        error.errno,
                        f"the file system of {path.parent} has no locks; pass lock=False where only one writer runs",
                    ) from None
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                    raise
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another writer has held {path.parent} for {timeout:g} s")
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            _release(descriptor)
    finally:
        os.close(descriptor)
