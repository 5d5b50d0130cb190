"""On-disk format of named arrays: each folder holds the concatenated bytes of pieces of arrays, and an index.

  blocks/c/0, 1, …  one zarr3 array of bytes in blocks, each under a crc32c
  index.json        {"size": bytes, "pieces": {name: [[start, shape, offset], …]}}, under a SHA-256

Damage to any byte is detected on reading, and many small arrays cost no more than one large array. Each process writes
its own folder; a reader collects every piece that overlaps the requested box of an array. Not tensorstore's own packing,
OCDBT: its index is compressed, and a forged one takes any amount of memory (experiments/benchmark.md).
"""

import math
from collections import Counter
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
MAX_BYTES = 2**62  # more than any store holds, and few enough to add
ALIGN = 64  # bytes; XLA on CPUs uses a buffer of this alignment without copying it

Bytes = UInt8[np.ndarray, " n"]


class Box(NamedTuple):
    """A box within an array: start indices and shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]


class Piece(NamedTuple):
    """A box of a named array, and the offset of its content in a folder's bytes."""

    name: str
    box: Box
    offset: int


class Wanted(NamedTuple):
    """The box of an array that is to be read, and the shape and dtype of the whole array."""

    box: Box
    shape: tuple[int, ...]
    dtype: np.dtype


class Part(NamedTuple):
    """The content of one folder."""

    data: Bytes
    pieces: list[Piece]


def pack_arrays(
    arrays: Iterable[tuple[str, tuple[int, ...], np.ndarray]], memory: Bytes | None = None
) -> Part:
    """Copies arrays, each given as (name, start indices, content), into one buffer.

    Args:
      memory: the buffer of an earlier `Part`, which is reused if it fits: allocating costs more time than copying.
    """
    arrays = list(arrays)
    # Every piece starts at a multiple of ALIGN, so that reading can return aligned views of one buffer.
    ends = np.cumsum([0, *(-(-array.nbytes // ALIGN) * ALIGN for _, _, array in arrays)]).tolist()
    data = memory if memory is not None and memory.size == ends[-1] else _allocate_aligned(ends[-1])
    for (_, _, array), offset, end in zip(arrays, ends, ends[1:], strict=False):
        # One buffer for all: small arrays would otherwise cost a file and a checksum each.
        np.copyto(_view(data, offset, array.shape, array.dtype), array)
        data[offset + array.nbytes : end] = 0  # padding: do not write stale memory to disk
    boxes = (
        Piece(name, Box(start, array.shape), at)
        for (name, start, array), at in zip(arrays, ends, strict=False)
    )
    return Part(data, list(boxes))


def write_arrays(store: Store, folder: str, part: Part) -> None:
    """Writes `part`, which must not change during the write (see `Store.copies`), into `folder`. Does not sync.

    Raises:
      OSError: a write failed; the folder's content is then unusable.
    """
    index: dict[str, list] = {}
    for name, box, offset in part.pieces:
        index.setdefault(name, []).append([*box, offset])
    # The index has its own SHA-256, as the blocks have their
    # crc32c: no byte of a folder is without a checksum.
    text = checksummed_json.dumps({"size": part.data.size, "pieces": index})
    try:
        files = ts.KvStore.open(store.kvstore(folder), context=_context()).result()
        pending: list[ts.Future[Any]] = [files.write(INDEX, text)]
        if part.data.size:
            pending += _write_blocks(_open(store, folder, part.data.size).result(), part.data)
        # exception() waits for each write, so none is still
        # running, with a reference to the buffer, when this raises.
        failed = [error for write in pending if (error := write.exception()) is not None]
        if failed:  # all writes have ended by now, so the caller can remove the folder
            raise failed[0]
    except REFUSALS as error:
        raise as_os_error(error, f"{store}/{folder}") from error


def read_arrays(store: Store, folders: Iterable[str], wanted: Mapping[str, Wanted]) -> dict[str, np.ndarray]:
    """Reads the boxes of arrays in `wanted` from the pieces in all `folders`.

    Raises:
      UnreadableError: a required piece is missing or damaged; the message names it.
      OSError: the store cannot be read.
    """
    # All reads start before the first one is waited for, so that they overlap.
    readings = [_Reading(store, folder, wanted) for folder in folders]
    found: dict[str, list[tuple[Box, np.ndarray]]] = {}
    for reading in readings:
        for name, box, content in reading.result(wanted):
            found.setdefault(name, []).append((box, content))
    return {name: _assemble(name, one, found.get(name, [])) for name, one in wanted.items()}


class _Span(NamedTuple):
    """Consecutive bytes that are being read, and the pieces they contain."""

    begin: int
    data: Bytes
    pieces: list[Piece]
    pending: Any


class _Reading:
    """Asynchronous read of the wanted pieces of one folder, started on construction."""

    def __init__(self, store: Store, folder: str, wanted: Mapping[str, Wanted]):
        self._where = folder
        self._store = store
        size, pieces = _read_index(store, folder, wanted)
        # Reads only the pieces that this process's devices need, regardless of the number of devices that wrote them.
        needed = [piece for piece in pieces if _overlap(piece.box, wanted[piece.name].box) is not None]
        ends = {piece: _end(piece, wanted[piece.name].dtype) for piece in needed}
        self._spans = []
        if needed:
            _require_apart(folder, ends, size)
            blocks = _open(store, folder, size)
            self._spans = [_read_span(blocks, pieces, ends) for pieces in _group_adjacent(needed, ends)]

    def result(self, wanted: Mapping[str, Wanted]) -> Iterable[tuple[str, Box, np.ndarray]]:
        """Waits for the read; yields name, box and content of each piece."""
        for span in self._spans:
            try:
                span.pending.result()
            except Exception as error:  # tensorstore reports damage by errors of many types
                if not is_damage(error):
                    raise as_os_error(error, f"{self._store}/{self._where}") from error
                names = span.pieces[0].name if len(span.pieces) == 1 else f"{span.pieces[0].name} …"
                reason = str(error).splitlines()[0][:200]
                raise UnreadableError(f"{self._where}, array {names}: {reason}") from error
            for piece in span.pieces:
                dtype = wanted[piece.name].dtype
                yield (
                    piece.name,
                    piece.box,
                    _view(span.data, piece.offset - span.begin, piece.box.shape, dtype),
                )


def _read_index(store: Store, folder: str, wanted: Mapping[str, Wanted]) -> tuple[int, list[Piece]]:
    """Returns the number of bytes of a folder, and the pieces of the wanted arrays in it.

    Raises:
      UnreadableError: the index is damaged, or is not as `write_arrays` writes it for such arrays.
    """
    content = checksummed_json.read(store, f"{folder}/{INDEX}")
    try:
        size, found = content["size"], content["pieces"]
        pieces = [
            Piece(name, Box(tuple(start), tuple(shape)), offset)
            for name in wanted
            for start, shape, offset in found.get(name, [])
        ]
        numbers = [size, *(n for _, box, offset in pieces for n in (*box.start, *box.shape, offset))]
        if (
            all(type(n) is int and 0 <= n < MAX_BYTES for n in numbers)
            and all(_is_within(piece.box, wanted[piece.name].shape) for piece in pieces)
            and all(n <= math.prod(wanted[name].shape) for name, n in _count_entries(pieces).items())
        ):
            return size, pieces
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # refused as below
    # The checksum is valid, so that this is no damage: the file was forged, or written by a bug.
    raise UnreadableError(f"{folder}/{INDEX}: not an index of these arrays")


def _count_entries(pieces: list[Piece]) -> Counter[str]:
    """Returns the number of entries in the pieces of each array."""
    counts = Counter[str]()
    for piece in pieces:
        counts[piece.name] += math.prod(piece.box.shape)
    return counts


def _is_within(box: Box, shape: tuple[int, ...]) -> bool:
    return len(box.start) == len(box.shape) == len(shape) and all(
        start + length <= whole for start, length, whole in zip(*box, shape, strict=True)
    )


def _require_apart(folder: str, ends: Mapping[Piece, int], size: int) -> None:
    """Raises UnreadableError unless pieces with these ends follow each other within `size` bytes."""
    pieces = sorted(ends, key=lambda piece: (piece.offset, ends[piece]))
    limits = [*(piece.offset for piece in pieces[1:]), size]
    for piece, limit in zip(pieces, limits, strict=True):
        if ends[piece] > limit:
            raise UnreadableError(
                f"{folder}/{INDEX}: array {piece.name} ends at byte {ends[piece]}, beyond {limit}"
            )


def _write_blocks(blocks: ts.TensorStore, data: Bytes) -> "list[ts.Future[Any]]":
    """Starts one write for each block."""
    step = _block_size(data.size)
    spans = [slice(begin, min(begin + step, data.size)) for begin in range(0, data.size, step)]
    # Without copying the data, which the caller does not change until all writes are done.
    return [blocks[at].write(data[at], can_reference_source_data_indefinitely=True).commit for at in spans]


def _group_adjacent(pieces: list[Piece], ends: Mapping[Piece, int]) -> list[list[Piece]]:
    """Groups pieces that are adjacent in the file, so that each group is one read."""
    groups: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        # A gap below ALIGN is padding only.
        if groups and piece.offset - ends[groups[-1][-1]] < ALIGN:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _read_span(blocks: Any, pieces: list[Piece], ends: Mapping[Piece, int]) -> _Span:
    # Reads directly into an aligned buffer; the arrays are views of it.
    begin, end = pieces[0].offset, ends[pieces[-1]]
    data = _allocate_aligned(end - begin)
    return _Span(begin, data, pieces, ts.array(data).write(blocks.result()[begin:end]))


def _end(piece: Piece, dtype: np.dtype) -> int:
    return piece.offset + math.prod(piece.box.shape) * dtype.itemsize


def _assemble(name: str, wanted: Wanted, parts: list[tuple[Box, np.ndarray]]) -> np.ndarray:
    """Returns the content of the wanted box of an array, given `parts`, its pieces."""
    box = wanted.box
    # The usual case: with the same sharding as in the save, a piece is the box, and needs no copy.
    for found, content in parts:
        if found == box:
            return content
    whole, missing = np.empty(box.shape, wanted.dtype), np.ones(box.shape, bool)
    for found, content in parts:
        both = _overlap(found, box)
        if both is not None:
            whole[_relative_slices(both, box)] = content[_relative_slices(both, found)]
            missing[_relative_slices(both, box)] = False
    if missing.any():
        raise UnreadableError(f"array {name}: {missing.sum()} of its elements are missing")
    return whole


def _overlap(one: Box, other: Box) -> Box | None:
    """Returns the intersection of two boxes, or None if it is empty."""
    start = tuple(map(max, one.start, other.start))
    ends = [min(a + n, b + m) for a, n, b, m in zip(*one, *other, strict=True)]
    shape = tuple(end - begin for end, begin in zip(ends, start, strict=True))
    return Box(start, shape) if all(size > 0 for size in shape) else None


def _relative_slices(inner: Box, outer: Box) -> tuple[slice, ...]:
    """Returns the slices that select `inner` from the content of `outer`."""
    axes = zip(inner.start, outer.start, inner.shape, strict=True)
    return tuple(slice(a - b, a - b + n) for a, b, n in axes)


def _view(data: Bytes, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    return data[offset : offset + size].view(dtype).reshape(shape)


def _allocate_aligned(size: int) -> Bytes:
    # numpy guarantees less alignment: allocates ALIGN more bytes, and begins at the first aligned one.
    data = np.empty(size + ALIGN, np.uint8)
    begin = -data.ctypes.data % ALIGN
    return data[begin : begin + size]


def _block_size(size: int) -> int:
    """Returns a block size of at most BLOCK that divides `size` nearly evenly, since zarr pads the last block to full size."""
    # ceil(size / number of blocks of at most BLOCK bytes).
    return -(-size // -(-size // BLOCK))


def _context() -> ts.Context:
    """Returns a context without a cache, since all data is read once, and without fsync, since the store syncs at the end."""
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False}, parent=CONTEXT)


def _open(store: Store, folder: str, size: int) -> "ts.Future[ts.TensorStore]":
    """Opens the bytes of a folder. The metadata are known, so that no zarr.json is stored, which could be damaged."""
    spec = {
        "driver": "zarr3",
        "kvstore": store.kvstore(f"{folder}/{BLOCKS}"),
        "fill_missing_data_reads": False,  # a lost block is an error, not zeros
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": [size],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [_block_size(size)]}},
            "codecs": [{"name": "bytes"}, {"name": "crc32c"}],
        },
    }
    return ts.open(spec, open=True, assume_metadata=True, context=_context())
