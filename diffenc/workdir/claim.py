"""The right to train in a workdir: one process at a time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from diffenc.errors import UserError
from diffenc.files import atomic, location, locks
from diffenc.files.directories import make_directory

LOCK = ".lock"


class Claim:
    """The right to train in a folder: the lock of its file `.lock`.

    Attributes:
      folder: the folder.
    """

    def __init__(self, folder: Path, option: str):
        """Takes the lock. Raises UserError if another process holds it or the file cannot be opened."""
        self.folder = folder
        self._option = option
        self._location = location.Location(folder)
        try:
            self._descriptor = self._open_locked(os.O_CREAT)
        except UserError:
            self._location.close()
            raise

    def close(self) -> None:
        """Releases the lock. The file is kept: removing it would race with the next process that opens it."""
        os.close(self._descriptor)
        self._location.close()

    def check(self) -> None:
        """Creates the lock file again, with a warning, if only that file was deleted.

        Raises:
          MovedError: the folder is no longer at its path.
          UserError: another process has claimed the folder in the meantime.
        """
        self._check_lock()
        self._location.check()

    def _check_lock(self) -> None:
        try:
            # dir_fd: relative to the opened folder, even if its path leads elsewhere by now.
            found = os.stat(LOCK, dir_fd=self._location.descriptor)
        except FileNotFoundError:
            if os.fstat(self._location.descriptor).st_nlink:  # else the folder is deleted too
                self._create_again()
            return
        if not os.path.samestat(found, os.fstat(self._descriptor)) and self._owner() != str(os.getpid()):
            raise self._in_use_error()

    def _create_again(self) -> None:
        # O_EXCL: if another process creates the file first, the claim is its own.
        # The old lock is released only once the new one is held.
        renewed = self._open_locked(os.O_CREAT | os.O_EXCL)
        os.close(self._descriptor)
        self._descriptor = renewed
        logging.warning("%s was deleted; creating it again", self.folder / LOCK)

    def _open_locked(self, flags: int) -> int:
        """Opens and locks the file in the opened folder; returns its descriptor."""
        try:
            descriptor = os.open(LOCK, os.O_RDWR | flags, 0o644, dir_fd=self._location.descriptor)
        except FileExistsError as error:  # created just now, by another process
            raise self._in_use_error() from error
        except OSError as error:
            raise self._refused_error(error) from error
        try:
            # The kernel releases the lock when the process ends in any way: there
            # are no stale claims, and the pid in the file is only information.
            locks.lock_or_warn(descriptor, self.folder, "a second training from it: start only one there")
        except OSError as error:
            os.close(descriptor)
            raise (
                self._in_use_error() if isinstance(error, BlockingIOError) else self._refused_error(error)
            ) from error
        with contextlib.suppress(OSError):  # for people only; a full disk is reported by what follows
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def _refused_error(self, error: OSError) -> UserError:
        return UserError(f"cannot lock {self.folder / LOCK}: {error.strerror}; choose another {self._option}")

    def _in_use_error(self) -> UserError:
        return UserError(
            f"{self.folder} is in use by the training process with pid {self._owner()}; wait for it, stop it, "
            f"or choose another {self._option}"
        )

    def _owner(self) -> str:
        with contextlib.suppress(OSError):
            descriptor = os.open(LOCK, os.O_RDONLY, dir_fd=self._location.descriptor)
            try:
                return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            finally:
                os.close(descriptor)
        return "unknown"


@contextlib.contextmanager
def claim(workdir: atomic.PathLike, option: str = "--workdir") -> Iterator[Claim]:
    """Creates `workdir` if necessary, and claims it within the context, or until the process dies.

    Within the context, nothing is written below its path if another folder is there (`diffenc.files.location`).

    Args:
      option: the command-line option that chooses the folder, for messages.

    Raises:
      UserError: another process trains there (named by its pid), or the folder cannot be created.
    """
    folder = make_directory(Path(workdir), option)
    claimed = Claim(folder, option)
    try:
        with location.watch(folder):
            yield claimed
    finally:
        claimed.close()
