"""Digests of source files and of images, which identify them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffenc.data.walk import regular_files
from diffenc.errors import UserError
from diffenc.runtime.progress import Advance, StartBar, no_bar
from diffenc.safe_io.reading import one_line

_CHUNK = 2**20  # bytes read at a time


def digest_path(
    path: Path, start: StartBar = no_bar, members: Sequence[Path] | None = None
) -> dict[str, Any]:
    """Returns the digests of the file or folder at `path`, as a manifest lists them.

    Args:
      members: the files of the folder that are digested; None = all of them.
      start: makes the bar that shows how many bytes have been read.

    Raises:
      UserError: `path` cannot be read.
    """
    try:
        paths = _list_files(path) if members is None else members
        advance = start(f"reading {path.name}", sum(one.stat().st_size for one in paths))
        return _digest_folder(path, paths, advance) if path.is_dir() else digest_file(path, advance)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error


def _list_files(path: Path) -> list[Path]:
    if path.is_dir():
        return list(regular_files(path))
    if path.exists() and not path.is_file():
        raise UserError(
            f"{path}: is a FIFO, socket or device, not a file that can be read twice; save it as one"
        )
    return [path]


def digest_file(path: Path, advance: Advance = lambda count: None) -> dict[str, Any]:
    """Returns `bytes`, `md5` and `sha256` (hex) of a file."""
    # MD5 is compared with published digests; `usedforsecurity=False` permits it where FIPS mode forbids MD5.
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
            advance(len(chunk))
    return {"bytes": path.stat().st_size, "md5": md5.hexdigest(), "sha256": sha256.hexdigest()}


def _digest_folder(folder: Path, paths: Sequence[Path], advance: Advance) -> dict[str, Any]:
    """Returns `files`, `bytes`, and a `sha256` of the names and contents of all files."""
    digest, total = hashlib.sha256(), 0
    for path in paths:
        held = digest_file(path, advance)
        # Names count as well as contents, as they decide order and classes. NUL cannot occur in a name.
        line = f"{path.relative_to(folder).as_posix()}\0{held['sha256']}\n"
        digest.update(line.encode(errors="surrogateescape"))
        total += held["bytes"]
    return {"files": len(paths), "bytes": total, "sha256": digest.hexdigest()}


class ImageDigest:
    """SHA-256 of images [N, H, W, C] added in pieces: one digest that depends on their order, and one that does not."""

    def __init__(self):
        self._ordered = hashlib.sha256()
        self._images: list[bytes] = []

    def update(self, images: UInt8[np.ndarray, "n h w c"]) -> None:
        """Appends `images`."""
        for image in np.ascontiguousarray(images):
            self._ordered.update(image)
            self._images.append(hashlib.sha256(image).digest())

    @property
    def ordered(self) -> str:
        """Hex SHA-256 of all pixels in their order."""
        return self._ordered.hexdigest()

    @property
    def unordered(self) -> str:
        """Hex SHA-256 of the sorted SHA-256s of the images."""
        # Sorted: the same set of images in another order has the same digest.
        return hashlib.sha256(b"".join(sorted(self._images))).hexdigest()
