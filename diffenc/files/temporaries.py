"""Temporary files and folders next to the files they will replace, and the removal of those of killed processes.

Each is locked by its process for as long as it exists, so that one without a lock belongs to no live process.
"""

import contextlib
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffenc.files.locks import try_lock

_NAME = re.compile(r"\..+\.tmp-[0-9a-f]{8}")


def temporary_name(path: Path) -> Path:
    """Returns a new hidden name in the folder of `path`."""
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Creates an empty file next to `path`, removed on exit if it still exists; first removes stale temporaries of `path`.

    If it cannot be created, as in a folder that does not exist yet, only its name is yielded: writing to it raises the
    error.
    """
    sweep(path)
    temporary = temporary_name(path)
    descriptor = None
    try:
        with contextlib.suppress(OSError):
            descriptor = _create_locked(temporary)
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # gone if it was renamed, never there if opening failed
            temporary.unlink()
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks a temporary folder of this process within the context, if the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def sweep(path: Path) -> None:
    """Removes temporary files of `path` left by killed processes."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        # The glob also matches names that `temporary_name` never makes: those are not ours to remove.
        if _NAME.fullmatch(left.name):
            remove_unlocked(left)


def sweep_folder(folder: Path, skipped: str) -> None:
    """Removes stale temporary files and folders in `folder` and the folders below it, except those named `skipped`."""
    for inner, folders, names in os.walk(folder):
        for name in (name for name in [*folders, *names] if _NAME.fullmatch(name)):
            remove_unlocked(Path(inner, name))
        folders[:] = [name for name in folders if name != skipped and not _NAME.fullmatch(name)]


def remove_unlocked(path: Path, owner: int | None = None) -> None:
    """Removes a temporary file or folder, unless a process holds its lock, the file system has no locks, or removal fails.

    Args:
      owner: the user id that must own it; None = any.
    """
    is_folder = path.is_dir()
    with contextlib.suppress(OSError):
        # NOFOLLOW: a link of this name could lead anywhere. NONBLOCK: opening a FIFO would wait for a writer. RDWR: NFS
        # emulates an exclusive flock by a write lock, which needs a writable descriptor.
        descriptor = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if try_lock(descriptor) and owner in (None, os.fstat(descriptor).st_uid):
                shutil.rmtree(path) if is_folder else path.unlink()
        finally:
            os.close(descriptor)


def _create_locked(path: Path) -> int:
    """Creates an empty file; returns the descriptor that locks it. Raises OSError if it cannot be created."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):
            try_lock(descriptor, wait=True)  # for a process that is about to sweep it away
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked
            # Between open and lock a sweep may have removed the file: the lock is then on a file without a
            # name, and the next iteration creates a new one.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
