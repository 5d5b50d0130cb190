"""Named arrays in a folder: one tensorstore OCDBT key-value store, one zarr3 array per name.

Every byte lies under a crc32c (OCDBT's own over its nodes, zarr's over the values), so that damage is
noticed on reading. One array is one chunk.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorstore as ts

# No cache: everything is read once. No fsync by tensorstore: `write` syncs all files at the end.
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False})


class UnreadableError(Exception):
    """What is in the folder is not there whole, or not as it was written."""


def write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write all arrays into `folder`, which should be empty, in one transaction. Does not sync.

    Names must be such that none is another one followed by "/…". The arrays must not change meanwhile.

    Raises:
      OSError: the disk refused; what is in the folder is then of no use.
    """
    # Not atomic, it may commit in several goes and leave nodes that nothing refers to and no checksum guards.
    transaction = ts.Transaction(atomic=True)
    try:
        stores = [
            ts.open(_new_spec(folder, name, array), create=True, context=_CONTEXT, transaction=transaction)
            for name, array in arrays.items()
        ]
        writes = [
            store.result().write(array, can_reference_source_data_indefinitely=True)
            for store, array in zip(stores, arrays.values(), strict=True)
        ]
        for pending in writes:
            pending.result()
        transaction.commit_sync()
    except ValueError as error:
        raise _as_os_error(error) from error


def read(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays called `names`.

    Raises:
      UnreadableError: one of them is missing or damaged; the message names it.
    """
    pending = {name: ts.open(_spec(folder, name), read=True, context=_CONTEXT) for name in names}
    return {name: _result(name, store) for name, store in pending.items()}


def _result(name: str, store: "ts.Future[ts.TensorStore]") -> np.ndarray:
    try:
        return store.result().read().result()
    except Exception as error:  # tensorstore turns damage into errors of many types
        raise UnreadableError(f"array {name}: {str(error).splitlines()[0][:200]}") from error


def _spec(folder: Path, name: str) -> dict:
    base = {"driver": "file", "path": f"{folder}/"}
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "fill_missing_data_reads": False,  # a lost chunk is an error, not zeros
    }


def _new_spec(folder: Path, name: str, array: np.ndarray) -> dict:
    spec = _spec(folder, name)
    # Given on creation only: a reader that names another value is refused.
    spec["kvstore"]["config"] = {"max_inline_value_bytes": 1024}
    spec["store_data_equal_to_fill_value"] = True
    spec["metadata"] = {
        "shape": list(array.shape),
        "data_type": str(array.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in array.shape]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    return spec


def _as_os_error(error: ValueError) -> OSError:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return OSError(int(code[1]), os.strerror(int(code[1])))
    return OSError(errno.EIO, str(error).splitlines()[0][:200])
