"""Reads plain arrays from untrusted .npz files."""

import io
import math
import zipfile
from collections.abc import Collection

import numpy as np

from diffenc.errors import UserError
from diffenc.safe_io.bounded_reader import BoundedReader
from diffenc.safe_io.reading import convert_errors


def load(stream: io.BytesIO, name: str, wanted: Collection[str] | None, limit: int) -> dict[str, np.ndarray]:
    """Returns the `wanted` arrays that are in the .npz file `stream`.

    Args:
      name: the name of the file in messages.
      wanted: names of arrays; None = all.
      limit: maximal number of bytes of one array, and of all if `wanted` is None.

    Raises:
      UserError: the file is damaged, or an array is not of plain numbers, is larger than `limit` or has not the size in its
        header.
    """
    with convert_errors(name), zipfile.ZipFile(stream) as archive:
        held = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if wanted is None:
            wanted = tuple(held)
            refuse_bombs(archive, name, limit)
        return {key: _array(archive, held[key], f"{name}:{key}", limit) for key in wanted if key in held}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, limit: int) -> np.ndarray:
    refuse_bomb(member, name, limit)
    with archive.open(member) as packed:
        stream = BoundedReader(packed, limit, name)
        # Only version 1.0, which limits headers to 64 KB; numpy.savez writes plain arrays in it.
        if np.lib.format.read_magic(stream) != (1, 0):  # pyright: ignore[reportArgumentType]
            raise UserError(f"{name}: is no plain array")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # pyright: ignore[reportArgumentType]
        # Kind O (objects) would be unpickled, and V (structured) may have fields of objects.
        if dtype.kind not in "biuf":
            raise UserError(f"{name}: is of dtype {dtype}; only plain numbers are admitted")
        length = math.prod(shape) * dtype.itemsize
        content = stream.read(length)
        if len(content) != length or stream.read(1):  # reading to the end also has zip check its sum
            raise UserError(f"{name}: has not the {length:,} bytes that it claims; download it again")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def refuse_bombs(archive: zipfile.ZipFile, name: str, limit: int) -> None:
    """Raises UserError if the members of an archive together claim more than `limit` bytes."""
    claimed = sum(member.file_size for member in archive.infolist())
    if claimed > limit:
        raise UserError(f"{name}: claims {claimed:,} bytes, more than the {limit:,} it may have")


def refuse_bomb(member: zipfile.ZipInfo, name: str, limit: int) -> None:
    """Raises UserError if a member of an archive claims more than `limit` bytes; zipfile never returns more than claimed."""
    if member.file_size > limit:
        raise UserError(f"{name}: claims {member.file_size:,} bytes, more than the {limit:,} it may have")
