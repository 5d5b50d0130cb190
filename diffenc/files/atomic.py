"""Atomic writes: a file is written under a temporary name, synced, then renamed."""

import contextlib
import errno
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffenc.errors import UserError
from diffenc.files import location
from diffenc.files.temporaries import temporary_file

PathLike = str | os.PathLike[str]

READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk is full, or the quota, or the largest file size


@contextlib.contextmanager
def replace_file(path: PathLike) -> Iterator[Path]:
    """Yields a temporary path to write to, in the folder of `path`; on exit that file replaces `path`.

    If the body raises, `path` keeps its old content and the temporary file is removed.

    Raises:
      UserError: the file cannot be written (disk full or read-only, a file in place of a folder), or the folder that
        this process works in was moved (see `diffenc.files.location`).
    """
    try:
        with _replace_file(Path(path)) as temporary:
            yield temporary
    except OSError as error:
        raise write_error(path, error) from error


@contextlib.contextmanager
def _replace_file(path: Path) -> Iterator[Path]:
    location.check(path)
    with temporary_file(path) as temporary:
        yield temporary
        # Synced before the rename: after a power loss the name must not refer to an empty file.
        sync(temporary)
        # Again right before the rename: the folder may have been moved while the body wrote.
        location.check(path)
        os.replace(temporary, path)
        # The rename itself is durable only once its folder is.
        sync(path.parent)


@contextlib.contextmanager
def replace_files(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """`replace_file` for several files: none is replaced before all are completely on disk.

    They are replaced in the order of `paths`.

    Raises:
      OSError: a file cannot be written.
      MovedError: as `replace_file`.
    """
    paths = list(paths)
    for path in paths:
        location.check(path)
    with contextlib.ExitStack() as stack:
        temporaries = [stack.enter_context(temporary_file(path)) for path in paths]
        yield temporaries
        # All contents are on disk before the first rename: the operations
        # that can fail for lack of space have then succeeded.
        for temporary in temporaries:
            sync(temporary)
        for temporary, path in zip(temporaries, paths, strict=True):
            location.check(path)
            os.replace(temporary, path)
        for folder in {path.parent for path in paths}:
            sync(folder)


def replace_bytes(path: PathLike, data: bytes) -> None:
    """Writes as `write_bytes` does, but raises OSError, for callers with a better message."""
    with _replace_file(Path(path)) as temporary:
        temporary.write_bytes(data)


def write_bytes(path: PathLike, data: bytes) -> None:
    """Replaces the content of `path` by `data`, all or nothing. Raises UserError like `replace_file`."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: PathLike, text: str) -> None:
    """Replaces the content of `path` by `text` in UTF-8, all or nothing. Raises UserError like `replace_file`."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
    """Replaces the content of `path` by `value` as indented JSON (see `to_json`), all or nothing."""
    write_text(path, to_json(value, indent=1) + "\n")


def encode_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns `arrays` as the content of an .npz file, without pickles."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns `value` as standard JSON: NaN and infinities, which JSON lacks, become null.

    Scalars of numpy and jax become plain numbers.

    Raises:
      TypeError: something in `value` has no JSON form.
    """
    # allow_nan=False: a NaN that `_plain` does not convert raises, instead of becoming invalid JSON.
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def sync(path: PathLike) -> None:
    """Flushes the content of a file, or the names in a folder, to the disk, so that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: PathLike) -> None:
    """Flushes a folder and everything in it to the disk."""
    for inner, _, files in os.walk(folder):
        for file in files:
            sync(os.path.join(inner, file))
        sync(inner)


def write_error(path: PathLike, error: OSError) -> UserError:
    """Returns the UserError for a failed write of `path`."""
    reason = error.strerror or str(error)
    hint = "free space there" if error.errno in _FULL else "fix that"
    if error.errno in READ_ONLY:
        hint = "copy what lies there to a folder that you may write to, name that,"
    return UserError(f"could not write {path}: {reason}; {hint} and run the same command again")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
