"""A tree's leaves by name, out of it to host memory and back onto devices, as its shardings say."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.checkpoint import arrays
from diffenc.checkpoint.arrays import Box, Part
from diffenc.core.parameters import name_leaves_quoted

Tree = Any
Named = dict[str, Any]  # leaves
Described = dict[str, list]  # name: [shape, dtype]


def by_name(tree: Tree) -> Named:
    """The leaves by their names in checkpoints (`parameters.name_leaves_quoted`). Python's numbers become arrays."""
    named = name_leaves_quoted(tree)
    return {name: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for name, leaf in named.items()}


def describe(named: Named) -> Described:
    """Shape and dtype of each leaf, as JSON has them."""
    return {name: [list(leaf.shape), str(np.dtype(leaf.dtype))] for name, leaf in named.items()}


def branch(name: str) -> str:
    """The first part of a name."""
    quoted = re.match(r'"(\\.|[^"\\])*"', name)
    return quoted[0] if quoted else name.split("/")[0]


def pack(named: Named, memory: arrays.Bytes | None = None) -> Part:
    """Copies in host memory of the pieces that this process has to write; no piece is another's too.

    Args:
      memory: see `arrays.pack`.

    Raises:
      TypeError: jax could not hold a leaf (64 bits without x64).
    """
    pieces = [piece for name, leaf in named.items() for piece in _owned(name, leaf)]
    for _, _, data in pieces:
        if isinstance(data, jax.Array):
            data.copy_to_host_async()  # all transfers at once, before the first is waited for
    # np.asarray of a CPU array is a view of the device's buffer, which the caller is about to donate: pack copies.
    return arrays.pack(((name, start, np.asarray(data)) for name, start, data in pieces), memory)


def boxes_here(abstract: Named) -> dict[str, tuple[Box, np.dtype]]:
    """Of each leaf what this process's devices need, and its dtype."""
    return {name: (_box_here(leaf), np.dtype(leaf.dtype)) for name, leaf in abstract.items()}


def place(abstract: Named, host: Mapping[str, np.ndarray]) -> list[jax.Array]:
    """Onto the devices, in order: `host` holds, for each leaf of `abstract`, what `boxes_here` says."""
    return [_placed(leaf, host[name]) for name, leaf in abstract.items()]


def _owned(name: str, leaf: Any) -> list[tuple[str, tuple[int, ...], Any]]:
    """The pieces, and their corners, of which this process has the first copy.

    What is not on devices is the first process's.
    """
    if leaf.dtype != jax.dtypes.canonicalize_dtype(leaf.dtype):
        raise TypeError(f"leaf {name} is {leaf.dtype}, which jax would cut to 32 bits on reading")
    if not isinstance(leaf, jax.Array):
        return [(name, (0,) * leaf.ndim, leaf)] if jax.process_index() == 0 else []
    first = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    return [(name, _corners(shard.index, leaf.shape)[0], shard.data) for shard in first]


def _box_here(leaf: Any) -> Box:
    """The smallest box that holds all that this process's devices need of an abstract leaf."""
    shape, sharding = tuple(leaf.shape), getattr(leaf, "sharding", None)
    if sharding is None or sharding.is_fully_replicated:
        return Box((0,) * len(shape), shape)
    corners = [_corners(at, shape) for at in sharding.addressable_devices_indices_map(shape).values()]
    start, end = np.min(corners, axis=0)[0].tolist(), np.max(corners, axis=0)[1].tolist()
    return Box(tuple(start), tuple(b - a for a, b in zip(start, end, strict=True)))


def _placed(leaf: Any, host: np.ndarray) -> jax.Array:
    if getattr(leaf, "sharding", None) is None:
        return jax.device_put(host)
    shape, edge = tuple(leaf.shape), _box_here(leaf).start

    def part(at: tuple[slice, ...] | None) -> np.ndarray:
        begin, end = _corners(at or (), shape)
        return host[(..., *(slice(a - c, b - c) for a, b, c in zip(begin, end, edge, strict=True)))]

    return jax.make_array_from_callback(shape, leaf.sharding, part, dtype=leaf.dtype)


def _corners(at: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first and the last corner of a box."""
    spans = [span.indices(size)[:2] for span, size in zip(at, shape, strict=True)]
    return tuple(a for a, _ in spans), tuple(b for _, b in spans)
