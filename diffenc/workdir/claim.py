"""The folder of one run: who may write to it, and the evaluations it collects."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from diffenc.errors import UserError
from diffenc.files import atomic, location, locks, record_checksum
from diffenc.files.temporaries import temporary_file

LOCK = ".lock"
NPZ = "npz"  # key of a record: SHA-256 of the .npz file beside it
NO_HARD_LINKS = errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS  # how disks say it


class Claim:
    """The right to train in a folder: the lock of its file `.lock`.

    Attributes:
      folder: the folder.
    """

    def __init__(self, folder: Path, option: str):
        """Takes the lock. Raises UserError if another process holds it or the disk refuses."""
        self.folder = folder
        self._option = option
        self._place = location.Location(folder)
        try:
            self._descriptor = self._locked(os.O_CREAT)
        except UserError:
            self._place.close()
            raise

    def close(self) -> None:
        """Releases the lock. Its file stays, for removing it would race a newcomer."""
        os.close(self._descriptor)
        self._place.close()

    def check(self) -> None:
        """Makes the lock's file anew, with a warning, if it alone was deleted.

        Raises:
          MovedError: the folder is no longer where it was.
          UserError: another process has claimed it meanwhile.
        """
        self._check_lock()
        self._place.check()

    def _check_lock(self) -> None:
        try:
            found = os.stat(LOCK, dir_fd=self._place.descriptor)
        except FileNotFoundError:
            if os.fstat(self._place.descriptor).st_nlink:  # else the folder is deleted too
                self._renew()
            return
        if not os.path.samestat(found, os.fstat(self._descriptor)) and self._owner() != str(os.getpid()):
            raise self._in_use()

    def _renew(self) -> None:
        renewed = self._locked(os.O_CREAT | os.O_EXCL)
        os.close(self._descriptor)
        self._descriptor = renewed
        logging.warning("%s was deleted, and is made anew", self.folder / LOCK)

    def _locked(self, flags: int) -> int:
        """The descriptor of the locked file, in the very folder that is open here."""
        try:
            descriptor = os.open(LOCK, os.O_RDWR | flags, 0o644, dir_fd=self._place.descriptor)
        except FileExistsError as error:  # made just now, by another process
            raise self._in_use() from error
        except OSError as error:
            raise self._refused(error) from error
        try:
            locks.lock_or_warn(descriptor, self.folder, "a second training from it: start only one there")
        except OSError as error:
            os.close(descriptor)
            raise (self._in_use() if isinstance(error, BlockingIOError) else self._refused(error)) from error
        with contextlib.suppress(OSError):  # for people only; a full disk is reported by what follows
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def _refused(self, error: OSError) -> UserError:
        return UserError(f"cannot lock {self.folder / LOCK}: {error.strerror}; choose another {self._option}")

    def _in_use(self) -> UserError:
        return UserError(
            f"{self.folder} is in use by the training process with pid {self._owner()}; wait for it, stop it, "
            f"or choose another {self._option}"
        )

    def _owner(self) -> str:
        with contextlib.suppress(OSError):
            descriptor = os.open(LOCK, os.O_RDONLY, dir_fd=self._place.descriptor)
            try:
                return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            finally:
                os.close(descriptor)
        return "unknown"


@contextlib.contextmanager
def claim(workdir: atomic.PathLike, option: str = "--workdir") -> Iterator[Claim]:
    """Make `workdir` if need be and be its only trainer until leaving, or until the process dies.

    While entered, nothing is written below its path if another folder is found there (`diffenc.files.location`).

    `option` is what names another one, for messages.

    Raises:
      UserError: another process trains there (named by its pid), or the folder cannot be made.
    """
    folder = _made(Path(workdir), option)
    claimed = Claim(folder, option)
    try:
        with location.watched(folder):
            yield claimed
    finally:
        claimed.close()


def save_measurement(
    workdir: atomic.PathLike, name: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> int:
    """File a measurement as NAMEs/NNNN.{json,npz} for good, and as NAME.{json,npz} until the next.

    Args:
      name: "evaluation", "k_sample", "likelihood" or "fid".
      record: JSON-able figures; NaN and infinities are written as null. The files have two more keys: the SHA-256 of
        the arrays' file as `npz`, and the record's own checksum (see `diffenc.files.record_checksum`).
      arrays: what is behind them, for numpy.savez.

    Returns:
      The measurement's number, counted from 1.

    Raises:
      UserError: the disk refused, and nothing is left half-written; or the folder was moved.
    """
    workdir = Path(workdir)
    location.check(workdir)
    data = atomic.npz(arrays)
    content = record_checksum.with_checksum({**record, NPZ: hashlib.sha256(data).hexdigest()})
    text = atomic.to_json(content, indent=1).encode() + b"\n"
    folder = _made(workdir / f"{name}s")
    latest = [
        workdir / f"{name}.npz",
        workdir / f"{name}.json",
    ]  # where the record stands, its arrays stand too
    try:
        with atomic.replacing_all(latest) as temporaries:
            for temporary, content in zip(temporaries, (data, text), strict=True):
                temporary.write_bytes(content)
            return _file_new(folder, data, text)
    except OSError as error:
        raise atomic.unwritable(latest[-1], error) from error


def _made(folder: Path, option: str = "--workdir") -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if path.exists())
        raise UserError(
            f"cannot make the folder {folder}: {file} is a file; choose another {option}"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}; choose another {option}"
        ) from error
    return folder


def _file_new(folder: Path, data: bytes, text: bytes) -> int:
    """Writes NNNN.npz and NNNN.json under the next free number, also against others who do the same now.

    Both are on the disk in full before either has its name, so a disk that is full by then has neither.
    """
    with temporary_file(folder / "new.npz") as arrays, temporary_file(folder / "new.json") as record:
        for staged, content in ((arrays, data), (record, text)):
            staged.write_bytes(content)
            atomic.sync(staged)
        number = _free(folder)
        while not _linked(arrays, folder / f"{number:04d}.npz"):
            number += 1
        try:
            record.replace(folder / f"{number:04d}.json")
        except OSError:
            (folder / f"{number:04d}.npz").unlink()
            raise
        atomic.sync(folder)
    return number


def _free(folder: Path) -> int:
    return 1 + max((int(path.stem) for path in folder.glob("[0-9]*.*") if path.stem.isdigit()), default=0)


def _linked(source: Path, target: Path) -> bool:
    """Whether `target` was free, and is now `source`; renaming alone would overwrite.

    Where the disk has no hard links, as exFAT, the name is taken by an empty file first.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        return _moved(source, target)
    return True


def _moved(source: Path, target: Path) -> bool:
    try:
        target.touch(exist_ok=False)
    except FileExistsError:
        return False
    source.replace(target)
    return True
