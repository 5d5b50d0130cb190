"""Pieces of named arrays in folders: the bytes of all of a folder's one after the other, and where each lies.

  blocks/c/0, 1, …  one zarr3 array of bytes in blocks, each under a crc32c
  index.json        {"size": bytes, "pieces": {name: [[start, shape, offset], …]}}, under a SHA-256

so that damage to any byte is noticed on reading. Many small arrays cost no more than a large one. Each process
that writes has a folder of its own; to read an array, every piece that overlaps what is wanted is looked up.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from jaxtyping import UInt8

from diffenc.files import checksummed_json
from diffenc.files.checksummed_json import UnreadableError
from diffenc.files.stores import CONTEXT, REFUSALS, Store, as_os_error, is_damage

BLOCKS, INDEX = "blocks", "index.json"
BLOCK = 16 << 20  # bytes, at most
ALIGN = 64  # bytes; XLA for CPUs takes over what lies so without copying it

Bytes = UInt8[np.ndarray, " n"]


class Box(NamedTuple):
    """A box within an array: its corner, its shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]


class Piece(NamedTuple):
    """Where the content of a box of an array begins in a folder's bytes."""

    name: str
    box: Box
    offset: int


class Part(NamedTuple):
    """What goes into one folder."""

    data: Bytes
    pieces: list[Piece]


def pack(arrays: Iterable[tuple[str, tuple[int, ...], np.ndarray]], memory: Bytes | None = None) -> Part:
    """Copies of (name, corner, content), one after the other.

    Args:
      memory: of an earlier `Part` that is of no more use; taken if it fits, for memory that is new costs more
        time than the copying.
    """
    arrays = list(arrays)
    ends = np.cumsum([0, *(-(-array.nbytes // ALIGN) * ALIGN for _, _, array in arrays)]).tolist()
    data = memory if memory is not None and memory.size == ends[-1] else _aligned(ends[-1])
    for (_, _, array), offset, end in zip(arrays, ends, ends[1:], strict=False):
        np.copyto(_view(data, offset, array.shape, array.dtype), array)
        data[offset + array.nbytes : end] = 0  # what the memory held before is not for the disk
    boxes = (
        Piece(name, Box(start, array.shape), at)
        for (name, start, array), at in zip(arrays, ends, strict=False)
    )
    return Part(data, list(boxes))


def write(store: Store, folder: str, part: Part) -> None:
    """Write `part`, which must not change meanwhile (see `Store.copies`), into `folder`. Does not sync.

    Raises:
      OSError: the disk refused; what is in the folder is then of no use.
    """
    index: dict[str, list] = {}
    for name, box, offset in part.pieces:
        index.setdefault(name, []).append([*box, offset])
    text = checksummed_json.text({"size": part.data.size, "pieces": index})
    try:
        files = ts.KvStore.open(store.kvstore(folder), context=_context()).result()
        pending: list[ts.Future[Any]] = [files.write(INDEX, text)]
        if part.data.size:
            pending += _writing(_open(store, folder, part.data.size).result(), part.data)
        failed = [error for write in pending if (error := write.exception()) is not None]
        if failed:  # and all others are done, so that what is there can be removed for good
            raise failed[0]
    except REFUSALS as error:
        raise as_os_error(error, f"{store}/{folder}") from error


def read(
    store: Store, folders: Iterable[str], wanted: Mapping[str, tuple[Box, np.dtype]]
) -> dict[str, np.ndarray]:
    """The boxes of arrays named in `wanted`, from the pieces in all `folders`.

    Raises:
      UnreadableError: something needed is missing or damaged; the message says what.
      OSError: the store refused.
    """
    readings = [_Reading(store, folder, wanted) for folder in folders]
    found: dict[str, list[tuple[Box, np.ndarray]]] = {}
    for reading in readings:
        for name, box, content in reading.result(wanted):
            found.setdefault(name, []).append((box, content))
    return {name: _assembled(name, box, dtype, found.get(name, [])) for name, (box, dtype) in wanted.items()}


class _Run(NamedTuple):
    """Bytes on their way, and the pieces within."""

    begin: int
    data: Bytes
    pieces: list[Piece]
    pending: Any


class _Reading:
    """Of one folder what is wanted; begun when made."""

    def __init__(self, store: Store, folder: str, wanted: Mapping[str, tuple[Box, np.dtype]]):
        self._where = folder
        self._store = store
        index = checksummed_json.read(store, f"{folder}/{INDEX}")
        needed = [
            Piece(name, Box(tuple(start), tuple(shape)), offset)
            for name, (box, _) in wanted.items()
            for start, shape, offset in index["pieces"].get(name, [])
            if _overlap(Box(start, shape), box) is not None
        ]
        self._runs = []
        if needed:
            blocks = _open(store, folder, index["size"])
            ends = {piece: _end(piece, wanted[piece.name][1]) for piece in needed}
            self._runs = [_begin(blocks, run, ends) for run in _runs(needed, ends)]

    def result(self, wanted: Mapping[str, tuple[Box, np.dtype]]) -> Iterable[tuple[str, Box, np.ndarray]]:
        for run in self._runs:
            try:
                run.pending.result()
            except Exception as error:  # tensorstore turns damage into errors of many types
                if not is_damage(error):
                    raise as_os_error(error, f"{self._store}/{self._where}") from error
                names = run.pieces[0].name if len(run.pieces) == 1 else f"{run.pieces[0].name} …"
                reason = str(error).splitlines()[0][:200]
                raise UnreadableError(f"{self._where}, array {names}: {reason}") from error
            for piece in run.pieces:
                dtype = wanted[piece.name][1]
                yield piece.name, piece.box, _view(run.data, piece.offset - run.begin, piece.box.shape, dtype)


def _writing(blocks: ts.TensorStore, data: Bytes) -> "list[ts.Future[Any]]":
    """Each block by itself."""
    step = _block(data.size)
    spans = [slice(begin, min(begin + step, data.size)) for begin in range(0, data.size, step)]
    return [blocks[at].write(data[at], can_reference_source_data_indefinitely=True).commit for at in spans]


def _runs(pieces: list[Piece], ends: Mapping[Piece, int]) -> list[list[Piece]]:
    """Pieces that follow on each other, together."""
    runs: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if runs and piece.offset - ends[runs[-1][-1]] < ALIGN:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _begin(blocks: Any, pieces: list[Piece], ends: Mapping[Piece, int]) -> _Run:
    begin, end = pieces[0].offset, ends[pieces[-1]]
    data = _aligned(end - begin)
    return _Run(begin, data, pieces, ts.array(data).write(blocks.result()[begin:end]))


def _end(piece: Piece, dtype: np.dtype) -> int:
    return piece.offset + math.prod(piece.box.shape) * dtype.itemsize


def _assembled(name: str, box: Box, dtype: np.dtype, parts: list[tuple[Box, np.ndarray]]) -> np.ndarray:
    for found, content in parts:
        if found == box:
            return content
    whole, missing = np.empty(box.shape, dtype), math.prod(box.shape)
    for found, content in parts:
        both = _overlap(found, box)
        if both is not None:
            whole[_within(both, box)] = content[_within(both, found)]
            missing -= math.prod(both.shape)
    if missing:
        raise UnreadableError(f"array {name}: {missing} of its numbers are missing")
    return whole


def _overlap(one: Box, other: Box) -> Box | None:
    start = tuple(map(max, one.start, other.start))
    ends = [min(a + n, b + m) for a, n, b, m in zip(*one, *other, strict=True)]
    shape = tuple(end - begin for end, begin in zip(ends, start, strict=True))
    return Box(start, shape) if all(size > 0 for size in shape) else None


def _within(inner: Box, outer: Box) -> tuple[slice, ...]:
    """The indices of `inner`, counted from the corner of `outer`."""
    corners = zip(inner.start, outer.start, inner.shape, strict=True)
    return tuple(slice(a - b, a - b + n) for a, b, n in corners)


def _view(data: Bytes, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    return data[offset : offset + size].view(dtype).reshape(shape)


def _aligned(size: int) -> Bytes:
    data = np.empty(size + ALIGN, np.uint8)
    begin = -data.ctypes.data % ALIGN
    return data[begin : begin + size]


def _block(size: int) -> int:
    """The size of all blocks: alike, for a smaller last one would be filled up."""
    return -(-size // -(-size // BLOCK))


def _context() -> ts.Context:
    """No cache: all is read once. No fsync by tensorstore: the store syncs all files at the end."""
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False}, parent=CONTEXT)


def _open(store: Store, folder: str, size: int) -> "ts.Future[ts.TensorStore]":
    """The bytes of a folder. What they are is known, so there is no file to say it, and to be damaged."""
    spec = {
        "driver": "zarr3",
        "kvstore": store.kvstore(f"{folder}/{BLOCKS}"),
        "fill_missing_data_reads": False,  # a lost block is an error, not zeros
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": [size],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [_block(size)]}},
            "codecs": [{"name": "bytes"}, {"name": "crc32c"}],
        },
    }
    return ts.open(spec, open=True, assume_metadata=True, context=_context())
