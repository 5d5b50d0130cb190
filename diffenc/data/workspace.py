"""A locked folder for work in progress, renamed into place when the work is complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from diffenc.errors import UserError
from diffenc.files import locks


@contextlib.contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Yields the folder `.NAME.partial` next to `target`, locked within the context.

    The folder keeps the files of an interrupted earlier call. It is removed at the end if it is empty.

    Raises:
      UserError: another process holds the lock.
    """
    folder = target.with_name(f".{target.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    # The folder itself is locked: it is renamed into place at the end, and the lock goes with it.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        try:
            yield folder
        finally:
            if _is_at(descriptor, folder):  # renamed into place, it may already have a successor there
                with contextlib.suppress(OSError):  # something is left for the next call
                    folder.rmdir()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Locks the folder. The operating system releases the lock of a killed process, so no lock is ever stale."""
    unprotected = "another process from preparing the same data set at the same time: start one alone"
    busy = UserError(f"{folder} is in use: another process prepares the same data set; wait for it")
    try:
        locks.lock_or_warn(descriptor, folder, unprotected)
    except BlockingIOError:
        raise busy from None
    if not _is_at(descriptor, folder):  # its owner renamed or removed it between our open and our lock
        raise busy


def _is_at(descriptor: int, folder: Path) -> bool:
    return folder.exists() and os.path.samestat(os.fstat(descriptor), os.stat(folder))
