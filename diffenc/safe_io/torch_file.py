"""Reads tensors from untrusted files written by torch.save, without torch and without executing code from the file.

Not `torch.load(weights_only=True)`: the wheel of torch for Linux takes 540 MB, and its CUDA packages gigabytes more.

Both formats are read: the archive (since PyTorch 1.6), a zip file with a pickle that refers to storages by name,
each a separate member; and the older format, five pickles followed by all storages.
"""

import math
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from diffenc.errors import UserError
from diffenc.safe_io.bounded_reader import BoundedReader
from diffenc.safe_io.reading import Stream, convert_errors
from diffenc.safe_io.safe_npz import refuse_bomb
from diffenc.safe_io.safe_pickle import MAX_DIMS, Unpickler, decode_text, is_size, short_repr

_MAGIC = 0x1950A86A20F9469CFC6C  # what the older format opens with
_PROTOCOL = 1001
_LARGEST_PICKLE = 2**24  # bytes; that of a network with thousands of tensors has one of these

_DTYPES = {
    "Double": "f8",
    "Float": "f4",
    "Half": "f2",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}


class _Storage(NamedTuple):
    """A block of numbers outside of the pickle, as the pickle describes it."""

    key: str
    dtype: np.dtype
    numel: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Ordered(dict):
    """Replaces collections.OrderedDict; the attributes that torch adds to a state dict are dropped."""

    def __init__(self):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        del state


def load(path: Path, limit: int) -> dict[str, np.ndarray]:
    """Returns the dictionary of tensors (a state dict) in the file `path`, as numpy arrays.

    Args:
      limit: maximal number of bytes of all tensors together, and of the file's content.

    Raises:
      UserError: the file does not exist, is damaged, or contains anything but a dictionary of tensors.
    """
    name = str(path)
    with convert_errors(name), open(path, "rb") as stream:
        archived = stream.read(4) == b"PK\x03\x04"
        stream.seek(0)
        tensors, storages = (_read_archive if archived else _read_older)(stream, name, limit)
        return dict(_arrays(tensors, storages, limit))


def _read_archive(
    stream: BinaryIO, name: str, limit: int
) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    size = stream.seek(0, os.SEEK_END)
    if size > limit:  # zipfile takes memory for as large a directory as the file's end claims
        raise UserError(f"{name}: has {size:,} bytes, more than the {limit:,} it may have")
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [member for member in members if member.endswith("/data.pkl") and member.count("/") == 1]
        # torch.save writes all members to one folder of the archive, with any name.
        if len(pickles) != 1:
            raise UserError(f"{name}: is a zip file that torch.save did not write")
        root = pickles[0].removesuffix("data.pkl")

        def read(member: str, most: int) -> bytes | bytearray:
            if member not in members:
                raise UserError(f"{name}: lacks {short_repr(member)}; download it again")
            refuse_bomb(members[member], f"{name}: {short_repr(member)}", most)
            with archive.open(members[member]) as packed:
                return BoundedReader(packed, most, f"{name}: {short_repr(member)}").read()

        swapped = f"{root}byteorder" in members and read(f"{root}byteorder", 16) != sys.byteorder.encode()
        with archive.open(members[pickles[0]]) as packed:
            tensors, named = _unpickle(packed, name, _LARGEST_PICKLE)
        storages, left = {}, limit
        for storage in named.values():
            raw = read(f"{root}data/{storage.key}", left)
            # All storages share one limit, so that many small ones cannot exceed it together.
            left -= len(raw)
            storages[storage.key] = _numbers(raw, storage, swapped)
        return tensors, storages


def _read_older(stream: BinaryIO, name: str, limit: int) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    limited = BoundedReader(stream, limit, name)
    if _plain(limited, name) != _MAGIC or _plain(limited, name) != _PROTOCOL:
        raise UserError(f"{name}: is not a file of torch.save")
    swapped = _plain(limited, name)["little_endian"] != (sys.byteorder == "little")
    tensors, named = _unpickle(limited, name, limit)
    storages = {}
    for key in map(decode_text, _plain(limited, name)):
        (numel,) = struct.unpack(">q" if swapped else "<q", limited.read(8))
        if key not in named or numel != named[key].numel:
            raise ValueError(f"storage {short_repr(key)} has {numel} numbers, and no tensor that says so")
        storages[key] = _numbers(limited.read(numel * named[key].dtype.itemsize), named[key], swapped)
    if limited.read(1):
        raise UserError(f"{name}: bytes follow the last storage; download it again")
    return tensors, storages


def _plain(stream: Stream, name: str) -> Any:
    """Reads a pickle of plain values."""
    return Unpickler(stream, name, _LARGEST_PICKLE, {}).load()


def _unpickle(stream: Stream, name: str, limit: int) -> tuple[dict[str, _Tensor], dict[str, _Storage]]:
    """Reads the dictionary of tensors, and the descriptions of all storages that it refers to."""
    unpickler = _Unpickler(BoundedReader(stream, limit, name), name, limit)
    found = unpickler.load()
    if not isinstance(found, dict):
        raise UserError(f"{name}: holds a {type(found).__name__}, not a dictionary of tensors")
    for key, value in found.items():
        if not isinstance(value, _Tensor):
            raise UserError(
                f"{name}: has a {type(value).__name__} as {short_repr(key)}; only tensors are admitted"
            )
    return {decode_text(key): value for key, value in found.items()}, unpickler.storages


class _Unpickler(Unpickler):
    """Unpickler that admits the globals of torch's state dicts, and collects the storages of their tensors."""

    def __init__(self, stream: Stream, name: str, limit: int):
        super().__init__(stream, name, limit, _KNOWN)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage of ("storage", type, key, device, number of numbers) and, in older files, a view (must be None)."""
        kind, make_dtype, key, _, numel, *view = pid
        if decode_text(kind) != "storage" or not is_size(numel) or any(part is not None for part in view):
            raise ValueError("a reference to something other than a storage")
        dtype = make_dtype()
        if not isinstance(dtype, np.dtype):
            raise ValueError("a storage of an unknown type")
        storage = _Storage(decode_text(key), dtype, numel)
        # Tensors such as tied weights may share a storage; its description must then be the same.
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {short_repr(storage.key)} is described in two ways")
        return storage


def _numbers(raw: bytes | bytearray, storage: _Storage, swapped: bool) -> np.ndarray:
    if len(raw) != storage.numel * storage.dtype.itemsize:
        raise ValueError(
            f"storage {short_repr(storage.key)}: {len(raw)} bytes for {storage.numel} {storage.dtype}"
        )
    found = np.frombuffer(raw, storage.dtype)
    return found.byteswap() if swapped else found


def _arrays(
    tensors: Mapping[str, _Tensor], storages: Mapping[str, np.ndarray], left: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors one by one, copied out of their storages; together they take at most `left` bytes."""
    for key, (storage, offset, shape, strides) in tensors.items():
        flat = storages[storage.key]
        count = math.prod(shape)
        # Checked before the copy: with strides of 0 a single number can make a tensor of any size.
        left -= count * flat.itemsize
        if left < 0:
            raise ValueError("tensors larger than the file may be")
        # The largest index that the view touches; strides are not negative
        # (`_rebuild`), so 0 is the least. as_strided itself checks nothing.
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if count and last >= len(flat):
            raise ValueError(f"{short_repr(key)}: reaches beyond its storage")
        steps = [stride * flat.itemsize for stride in strides]
        yield key, np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    """Replaces torch's functions that construct a tensor; `requires_grad` and hooks are dropped."""
    del rest
    sizes = (shape, strides)
    if not isinstance(storage, _Storage) or not all(isinstance(one, tuple) for one in sizes):
        raise ValueError("a tensor without a storage or a shape")
    if len(shape) > MAX_DIMS or len(shape) != len(strides):
        raise ValueError("a shape that no tensor has")
    if not all(map(is_size, (offset, *shape, *strides))):
        raise ValueError("a shape that no tensor has")
    return _Tensor(storage, offset, shape, strides)


def _dtype(code: str) -> Callable[[], np.dtype]:
    return lambda: np.dtype(code)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Ordered,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
    **{("torch", f"{name}Storage"): _dtype(code) for name, code in _DTYPES.items()},
}
