"""Detects that the folder a process works in was moved, deleted or replaced.

Within `watch(folder)`, `diffenc.files.atomic` refuses to write below the folder's path once another folder, or none, is there.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from diffenc.errors import UserError

_WATCHED: "dict[Path, Location]" = {}


class MovedError(UserError):
    """The folder at a path is no longer the one that was opened there: nothing may be written or removed below it."""


class Location:
    """An open folder. While the descriptor is open, the file system cannot reuse the folder's inode number."""

    def __init__(self, folder: Path):
        """Opens `folder`. Raises OSError if that fails."""
        self.folder = folder
        self.descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self.descriptor)

    def check(self) -> None:
        """Raises MovedError unless the path still leads to the folder."""
        # The cheap test first; the probe decides where inode numbers are not reliable.
        if not self._is_at(self.folder) and not self._shows_a_new_file():
            raise MovedError(
                f"{self.folder} is no longer the folder that this process works in, {self._whereabouts()}; "
                "nothing more is written there"
            )

    def _is_at(self, path: str | Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(path))
        except OSError:
            return False

    def _shows_a_new_file(self) -> bool:
        """Whether a file created through the descriptor appears at the path: some network disks renumber inodes."""
        name = f".probe-{secrets.token_hex(8)}"
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=self.descriptor))
            found = (self.folder / name).exists()
            os.unlink(name, dir_fd=self.descriptor)
        except OSError:
            return False
        return found

    def _whereabouts(self) -> str:
        link = f"/proc/self/fd/{self.descriptor}"  # on Linux
        if not os.path.exists("/proc/self/fd"):
            return "which was moved, replaced or deleted"
        if not self._is_at(os.path.realpath(link)):
            return "which was deleted"
        return (
            f"which is at {os.path.realpath(link)} now: continue there, with the same command and --workdir"
        )


@contextlib.contextmanager
def watch(folder: Path) -> Iterator[None]:
    """Within the context, `check` fails below `folder` once its path leads elsewhere. A missing folder is not watched."""
    try:
        location = Location(folder)
    except OSError:
        yield
        return
    before = _WATCHED.get(folder)
    _WATCHED[folder] = location
    try:
        yield
    finally:
        _WATCHED.pop(folder)
        if before is not None:
            _WATCHED[folder] = before
        location.close()


def check(path: Path) -> None:
    """Raises MovedError if `path` is, or is inside, a watched folder that is no longer at its path."""
    for folder in (path, *path.parents):
        if folder in _WATCHED:
            _WATCHED[folder].check()
