"""Measurements of a run, kept in its workdir: numbered for good, and the newest by name."""

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
    """Writes a measurement to NAMEs/NNNN.{json,npz} for good, and to NAME.{json,npz} until the next.

    Args:
      name: "evaluation", "k_sample", "likelihood" or "fid".
      record: numbers and what they are of, as JSON; NaN and infinities are written as null. The files have two more keys: the SHA-256 of
        the arrays' file as `npz`, and the record's own checksum (see `diffenc.files.record_checksum`).
      arrays: the values behind them, for numpy.savez.

    Returns:
      The measurement's number, counted from 1.

    Raises:
      UserError: the disk refused, and nothing is left half-written; or the folder was moved.
    """
    workdir = Path(workdir)
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
        # The newest ones are staged, then the numbered pair is written, and only on leaving do the newest get
        # their names: after a failure in between, the newest files are still those of the measurement before.
        with atomic.replace_files(latest) as temporaries:
            for temporary, content in zip(temporaries, (data, text), strict=True):
                temporary.write_bytes(content)
            return _write_numbered(folder, data, text)
    except OSError as error:
        raise atomic.write_error(latest[-1], error) from error


def _write_numbered(folder: Path, data: bytes, text: bytes) -> int:
    """Writes NNNN.npz and NNNN.json under the next free number; other processes may do the same at the same time.

    Both are whole on the disk before either has its name, so a full disk ends up with neither.
    """
    with temporary_file(folder / "new.npz") as arrays, temporary_file(folder / "new.json") as record:
        for staged, content in ((arrays, data), (record, text)):
            staged.write_bytes(content)
            atomic.sync(staged)
        number = _next_number(folder)
        # Linking fails if the name exists, which makes the number this
        # process's own: the .npz is the claim on it, the .json the commit.
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
    """Gives `source` the name `target` too, unless that exists; returns whether it did. Renaming would overwrite.

    Where the disk has no hard links, as exFAT, an empty file takes the name first.
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
