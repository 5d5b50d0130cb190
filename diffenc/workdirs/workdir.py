"""The folder of one run: who may write to it, and the evaluations it collects."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffenc.errors import UserError
from diffenc.files import atomic, record_seal

LOCK = ".lock"
NPZ = "npz"  # key of a record: SHA-256 of the .npz file beside it
NO_HARD_LINKS = errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS  # how disks say it


@contextlib.contextmanager
def claim(workdir: atomic.PathLike, option: str = "--workdir") -> Iterator[Path]:
    """Make `workdir` if need be and be its only trainer until leaving, or until the process dies.

    `option` is what names another one, for messages.

    Raises:
      UserError: another process trains there (named by its pid), or the folder cannot be made.
    """
    workdir = _made(Path(workdir), option)
    descriptor = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, workdir, option)
        yield workdir
    finally:
        os.close(descriptor)  # lets go of the lock; the file stays, for removing it would race a newcomer


def keep(
    workdir: atomic.PathLike, name: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> int:
    """File a measurement as NAMEs/NNNN.{json,npz} for good, and as NAME.{json,npz} until the next.

    Args:
      name: "evaluation", "k_sample", "likelihood" or "fid".
      record: JSON-able figures; NaN and infinities are written as null. The files have two more keys: the SHA-256 of
        the arrays' file as `npz`, and the record's own checksum (see `diffenc.files.record_seal`).
      arrays: what is behind them, for numpy.savez.

    Returns:
      The measurement's number, counted from 1.

    Raises:
      UserError: the disk refused; nothing is left half-written.
    """
    workdir = Path(workdir)
    data = atomic.npz(arrays)
    content = record_seal.sealed({**record, NPZ: hashlib.sha256(data).hexdigest()})
    text = atomic.to_json(content, indent=1).encode() + b"\n"
    folder = _made(workdir / f"{name}s")
    number = _file_new(folder, data)
    atomic.write_bytes(folder / f"{number:04d}.json", text)
    atomic.write_bytes(workdir / f"{name}.npz", data)
    atomic.write_bytes(workdir / f"{name}.json", text)  # last: where it stands, its arrays stand too
    return number


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


def _lock(descriptor: int, workdir: Path, option: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise UserError(
            f"{workdir} is in use by the training process with pid {owner}; wait for it, stop it, "
            f"or choose another {option}"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _file_new(folder: Path, data: bytes) -> int:
    """Write `data` as NNNN.npz under the next free number, also against others who do the same now."""
    number = _free(folder)
    staged = folder / f".{number:04d}-{os.getpid()}.npz"
    atomic.write_bytes(staged, data)
    try:
        while not _linked(staged, folder / f"{number:04d}.npz"):
            number += 1
    finally:
        staged.unlink(missing_ok=True)
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
