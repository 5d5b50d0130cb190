"""Named arrays in a folder: one tensorstore OCDBT key-value store, one zarr3 array per name.

Every byte lies under a crc32c (OCDBT's own over its nodes, zarr's over the values), so that damage is
noticed on reading. An array is cut into chunks as the devices that wrote it had cut it. Each process writes
the pieces it has to a folder of its own; `merge` makes them one, without copying them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from diffenc.stores import CONTEXT, REFUSALS, Store, as_os_error

Index = tuple[slice, ...]

# Given on creation only: a reader that names another value is refused.
_CONFIG = {"max_inline_value_bytes": 1024}


class UnreadableError(Exception):
    """What is in the folder is not there whole, or not as it was written."""


class Piece(NamedTuple):
    """A part of an array, in host memory, and where in the array it lies."""

    at: Index
    data: np.ndarray


class Cut(NamedTuple):
    """An array of which this process has some of the pieces; each is one chunk, so all are of one shape."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    pieces: list[Piece]


def whole(array: np.ndarray) -> Cut:
    """An array in one piece."""
    everywhere = tuple(slice(0, n) for n in array.shape)
    return Cut(array.shape, array.dtype, array.shape, [Piece(everywhere, array)])


def write(store: Store, folder: str, arrays: Mapping[str, Cut]) -> None:
    """Write all pieces into `folder`, which should be empty, in one transaction. Does not sync.

    Names must be such that none is another one followed by "/…". The pieces must not change meanwhile.

    Raises:
      OSError: the disk refused; what is in the folder is then of no use.
    """
    context = _context()
    base = store.kvstore(folder)
    # Not atomic, it may commit in several goes and leave nodes that nothing refers to and no checksum guards.
    transaction = ts.Transaction(atomic=True)
    try:
        opened = [
            ts.open(_new_spec(base, name, cut), create=True, context=context, transaction=transaction)
            for name, cut in arrays.items()
        ]
        writes = [
            array.result()[piece.at].write(piece.data, can_reference_source_data_indefinitely=True)
            for array, cut in zip(opened, arrays.values(), strict=True)
            for piece in cut.pieces
        ]
        for pending in writes:
            pending.result()
        transaction.commit_sync()
    except REFUSALS as error:
        raise as_os_error(error, f"{store}/{folder}") from error


def merge(store: Store, folder: str, parts: Iterable[str]) -> None:
    """Make `folder` hold all that its subfolders `parts` hold, which must stay. Does not sync.

    Raises:
      OSError: the disk refused.
    """
    context, transaction = _context(), ts.Transaction(atomic=True)
    spec = {"driver": "ocdbt", "config": _CONFIG}
    try:
        target = ts.KvStore.open({**spec, "base": store.kvstore(folder)}, context=context).result()
        sources = [
            ts.KvStore.open({**spec, "base": store.kvstore(f"{folder}/{part}")}, context=context)
            for part in parts
        ]
        copies = [
            source.result().experimental_copy_range_to(target.with_transaction(transaction))
            for source in sources
        ]
        for pending in copies:
            pending.result()
        transaction.commit_sync()
    except REFUSALS as error:
        raise as_os_error(error, f"{store}/{folder}") from error


def read(store: Store, folder: str, wanted: Mapping[str, Index | None]) -> dict[str, np.ndarray]:
    """Of each array named in `wanted` what lies in the index given there, or all of it for None.

    Raises:
      UnreadableError: one of them is missing or damaged; the message names it.
    """
    context = _context()
    base = store.kvstore(folder)
    opened = {name: ts.open(_spec(base, name), read=True, context=context) for name in wanted}
    pending = {name: _reading(name, array, wanted[name]) for name, array in opened.items()}
    return {name: _result(name, reading) for name, reading in pending.items()}


def _context() -> ts.Context:
    """Anew each time: what was read once is not taken for what is there now.

    The cache is for OCDBT's nodes, which else are read again for each array. No fsync by tensorstore: the
    store syncs all files at the end.
    """
    return ts.Context({"cache_pool": {"total_bytes_limit": 64 << 20}, "file_io_sync": False}, parent=CONTEXT)


def _reading(name: str, array: "ts.Future[ts.TensorStore]", index: Index | None) -> "ts.Future[np.ndarray]":
    opened = _result(name, array)
    return (opened if index is None else opened[index]).read()


def _result(name: str, pending: "ts.Future[Any]") -> Any:
    try:
        return pending.result()
    except Exception as error:  # tensorstore turns damage into errors of many types
        raise UnreadableError(f"array {name}: {str(error).splitlines()[0][:200]}") from error


def _spec(base: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "fill_missing_data_reads": False,  # a lost chunk is an error, not zeros
        "recheck_cached_metadata": "open",
        "recheck_cached_data": "open",
    }


def _new_spec(base: dict[str, Any], name: str, cut: Cut) -> dict[str, Any]:
    spec = _spec(base, name)
    spec["kvstore"]["config"] = _CONFIG
    spec["store_data_equal_to_fill_value"] = True
    spec["metadata"] = {
        "shape": list(cut.shape),
        "data_type": str(cut.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in cut.chunk]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    return spec
