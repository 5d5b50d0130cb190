"""Saves a state in OCDBT, tensorstore's own packing, one array per leaf: what checkpoints are compared with."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts


class OcdbtSaver:
    """A call saves the state in one transaction, synced to disk, then removes the previous one.

    Attributes:
      folder: of the newest state.
    """

    def __init__(self, folder: Path, state: Any):
        self._parent, self._state, self._number = folder, state, 0

    def __call__(self) -> None:
        previous = self.folder
        self._number += 1
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self._state)]
        transaction = ts.Transaction(atomic=True)
        specs = [
            make_spec(self.folder, i) | {"metadata": make_metadata(leaf)} for i, leaf in enumerate(leaves)
        ]
        arrays = open_all(specs, transaction=transaction, create=True)
        copies = [array.write(leaf) for array, leaf in zip(arrays, leaves, strict=True)]
        for copy in copies:
            copy.copy.result()
        transaction.commit_async().result()
        shutil.rmtree(previous, ignore_errors=True)

    @property
    def folder(self) -> Path:
        return self._parent / str(self._number)

    def restore(self) -> Any:
        """Returns the newest state, on its devices."""
        leaves, structure = jax.tree.flatten(self._state)
        arrays = open_all([make_spec(self.folder, i) for i in range(len(leaves))], open=True)
        reads = [array.read() for array in arrays]
        placed = [
            jax.device_put(read.result(), leaf.sharding) for read, leaf in zip(reads, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, placed)


def open_all(specs: list[dict[str, Any]], **options: Any) -> list[ts.TensorStore]:
    """Opens arrays at once, through one cache of the index."""
    context = ts.Context({"cache_pool": {"total_bytes_limit": 100_000_000}})
    opening = [ts.open(each, context=context, **options) for each in specs]
    return [each.result() for each in opening]


def make_spec(folder: Path, number: int) -> dict[str, Any]:
    """Returns where an array lies."""
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{number}/"},
    }


def make_metadata(leaf: np.ndarray) -> dict[str, Any]:
    """Returns the shape of an array, in one chunk under a crc32c."""
    return {
        "shape": leaf.shape,
        "data_type": leaf.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": leaf.shape}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
