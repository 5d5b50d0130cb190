"""Measurements of a run in its workdir: numbered files that are never replaced, and the newest under a fixed name."""

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffenc.files import atomic, location, record_checksum
from diffenc.files.directories import make_directory
from diffenc.files.temporaries import temporary_file

NPZ = "npz"  # key of a record: SHA-256 of the .npz file of the same name
NO_HARD_LINKS = errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS  # errors of disks without them


def save_measurement(
    workdir: atomic.PathLike, name: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> int:
    """Writes a measurement to NAMEs/NNNN.{json,npz} permanently, and to NAME.{json,npz}, replacing the previous one.

    Args:
      name: "evaluation", "k_sample", "likelihood" or "fid".
      record: the results with their description, as JSON; NaN and infinities are written as null. The files have two more
        keys: the SHA-256 of the arrays' file as `npz`, and the record's own checksum (see `diffenc.files.record_checksum`).
      arrays: the values from which the results were computed, for numpy.savez.

    Returns:
      The measurement's number, counted from 1.

    Raises:
      UserError: the files cannot be written (none is left incomplete), or the folder was moved.
    """
    workdir = Path(workdir)
    # Before `make_directory`, which would create folders at the old path of a workdir that was moved.
    location.check(workdir)
    data = atomic.encode_npz(arrays)
    content = record_checksum.with_checksum({**record, NPZ: hashlib.sha256(data).hexdigest()})
    text = atomic.to_json(content, indent=1).encode() + b"\n"
    folder = make_directory(workdir / f"{name}s")
    latest = [
        workdir / f"{name}.npz",
        workdir / f"{name}.json",
    ]  # in this order: no record without its arrays
    try:
        # The newest files are staged, then the numbered pair is written, and only on exit are the newest files
        # renamed: after a failure in between, they are still those of the previous measurement.
        with atomic.replace_files(latest) as temporaries:
            for temporary, content in zip(temporaries, (data, text), strict=True):
                temporary.write_bytes(content)
            return _write_numbered(folder, data, text)
    except OSError as error:
        raise atomic.write_error(latest[-1], error) from error


def _write_numbered(folder: Path, data: bytes, text: bytes) -> int:
    """Writes NNNN.npz and NNNN.json under the next free number; other processes may do the same at the same time.

    Both are completely on disk before either gets its name, so that a full disk leaves neither.
    """
    with temporary_file(folder / "new.npz") as arrays, temporary_file(folder / "new.json") as record:
        for staged, content in ((arrays, data), (record, text)):
            staged.write_bytes(content)
            atomic.sync(staged)
        number = _next_number(folder)
        # Linking fails if the name exists, so that no two processes get
        # one number: the .npz claims the number, the .json is the commit.
        while not _link_new(arrays, folder / f"{number:04d}.npz"):
            number += 1
        try:
            record.replace(folder / f"{number:04d}.json")
        except OSError:
            (folder / f"{number:04d}.npz").unlink()
            raise
        atomic.sync(folder)
    return number


def _next_number(folder: Path) -> int:
    return 1 + max((int(path.stem) for path in folder.glob("[0-9]*.*") if path.stem.isdigit()), default=0)


def _link_new(source: Path, target: Path) -> bool:
    """Links `target` to `source` unless `target` exists; returns whether it did. Renaming would overwrite `target`.

    On disks without hard links, such as exFAT, an empty file claims the name first.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        return _rename_new(source, target)
    return True


def _rename_new(source: Path, target: Path) -> bool:
    try:
        target.touch(exist_ok=False)
    except FileExistsError:
        return False
    source.replace(target)
    return True
