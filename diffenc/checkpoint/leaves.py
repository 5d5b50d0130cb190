"""Named leaves of a pytree: copied to host memory for a checkpoint, and placed on devices by their shardings."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.checkpoint import arrays
from diffenc.checkpoint.arrays import Box, Part, Wanted
from diffenc.core.parameters import name_leaves_quoted

Tree = Any
NamedLeaves = dict[str, Any]
LeafSpecs = dict[str, list]  # name: [shape, dtype]


def leaves_by_name(tree: Tree) -> NamedLeaves:
    """Returns the leaves by their names in checkpoints (`parameters.name_leaves_quoted`), with Python numbers as arrays."""
    named = name_leaves_quoted(tree)
    return {name: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for name, leaf in named.items()}


def describe_leaves(named: NamedLeaves) -> LeafSpecs:
    """Returns shape and dtype of each leaf in JSON form."""
    return {name: [list(leaf.shape), str(np.dtype(leaf.dtype))] for name, leaf in named.items()}


def top_level_branch(name: str) -> str:
    """Returns the first part of a leaf's name."""
    quoted = re.match(r'"(\\.|[^"\\])*"', name)
    return quoted[0] if quoted else name.split("/")[0]


def pack_leaves(named: NamedLeaves, memory: arrays.Bytes | None = None) -> Part:
    """Copies the pieces that this process must write to host memory; each piece is written by one process.

    Args:
      memory: see `arrays.pack_arrays`.

    Raises:
      TypeError: jax cannot hold a leaf (64 bits without x64).
    """
    pieces = [piece for name, leaf in named.items() for piece in _owned_pieces(name, leaf)]
    for _, _, data in pieces:
        if isinstance(data, jax.Array):
            data.copy_to_host_async()  # start all transfers before waiting for the first
    # On a CPU np.asarray is a view of the device's buffer, which the caller is about to donate: pack_arrays copies it.
    return arrays.pack_arrays(((name, start, np.asarray(data)) for name, start, data in pieces), memory)


def local_boxes(abstract: NamedLeaves) -> dict[str, Wanted]:
    """Returns, for each leaf, the box that this process's devices need, and its shape and dtype."""
    return {
        name: Wanted(_local_box(leaf), tuple(leaf.shape), np.dtype(leaf.dtype))
        for name, leaf in abstract.items()
    }


def place_leaves(abstract: NamedLeaves, host: Mapping[str, np.ndarray]) -> list[jax.Array]:
    """Returns the leaves on devices, in order; `host` holds the content of each leaf's box from `local_boxes`."""
    return [_place_leaf(leaf, host[name]) for name, leaf in abstract.items()]


def _owned_pieces(name: str, leaf: Any) -> list[tuple[str, tuple[int, ...], Any]]:
    """Returns (name, start indices, data) of the pieces of which this process has replica 0.

    A leaf that is not on devices belongs to the main process.
    """
    if leaf.dtype != jax.dtypes.canonicalize_dtype(leaf.dtype):
        raise TypeError(f"leaf {name} is {leaf.dtype}, which jax would truncate to 32 bits on reading")
    if not isinstance(leaf, jax.Array):
        return [(name, (0,) * leaf.ndim, leaf)] if jax.process_index() == 0 else []
    # Of each replicated piece exactly one device in the whole run
    # has replica 0: it is written once, without communication.
    first = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    return [(name, _corners(shard.index, leaf.shape)[0], shard.data) for shard in first]


def _local_box(leaf: Any) -> Box:
    """Returns the smallest box that contains all shards of an abstract leaf on this process's devices."""
    shape, sharding = tuple(leaf.shape), getattr(leaf, "sharding", None)
    if sharding is None or sharding.is_fully_replicated:
        return Box((0,) * len(shape), shape)
    corners = [_corners(at, shape) for at in sharding.addressable_devices_indices_map(shape).values()]
    # corners is [devices, 2, axes]: the least start and the greatest end over this process's shards.
    start, end = np.min(corners, axis=0)[0].tolist(), np.max(corners, axis=0)[1].tolist()
    return Box(tuple(start), tuple(b - a for a, b in zip(start, end, strict=True)))


def _place_leaf(leaf: Any, host: np.ndarray) -> jax.Array:
    if getattr(leaf, "sharding", None) is None:
        return jax.device_put(host)
    shape, edge = tuple(leaf.shape), _local_box(leaf).start

    def part(at: tuple[slice, ...] | None) -> np.ndarray:
        begin, end = _corners(at or (), shape)
        return host[(..., *(slice(a - c, b - c) for a, b, c in zip(begin, end, edge, strict=True)))]

    # Each device gets its slice of the host's box: no device has to hold a whole sharded array.
    return jax.make_array_from_callback(shape, leaf.sharding, part, dtype=leaf.dtype)


def _corners(at: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the start and end indices of a shard."""
    spans = [span.indices(size)[:2] for span, size in zip(at, shape, strict=True)]
    return tuple(a for a, _ in spans), tuple(b for _, b in spans)
