"""Temporary files and folders beside what they will replace, and how those of killed processes are removed.

Each is locked by its process for as long as it exists, so that one without a lock is left over.
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
    """Creates an empty file beside `path`, removed on leaving if it is still there; removes leftovers of `path` first.

    Where it cannot be created, as in a folder that does not exist yet, only its name is returned: writing to it then
    raises the reason.
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
    """Locks a temporary folder of this process while entered, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def sweep(path: Path) -> None:
    """Removes the temporary files beside `path` that processes killed amid writing it left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        if _NAME.fullmatch(left.name):
            remove_unlocked(left)


def sweep_folder(folder: Path, skipped: str) -> None:
    """The same for every name in `folder` and in the folders below, except the one called `skipped`."""
    for inner, folders, names in os.walk(folder):
        for name in (name for name in [*folders, *names] if _NAME.fullmatch(name)):
            remove_unlocked(Path(inner, name))
        folders[:] = [name for name in folders if name != skipped and not _NAME.fullmatch(name)]


def remove_unlocked(path: Path, owner: int | None = None) -> None:
    """Removes a temporary file or folder, unless a process holds its lock or the file system has no locks, or refuses.

    Args:
      owner: the user who must own it; None = anyone.
    """
    is_folder = path.is_dir()
    with contextlib.suppress(OSError):
        # NOFOLLOW: a link of this name could lead anywhere. NONBLOCK: opening a FIFO would wait for a writer.
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
            # Between open and lock a sweep may have removed the file: the lock then is on a file without a
            # name, and the next turn makes a new one.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
