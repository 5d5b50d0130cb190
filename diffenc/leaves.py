"""A tree's leaves by name, out of it to host memory and back onto devices, as its shardings say."""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.arrays import Cut, Index, Piece, whole

Tree = Any
Described = dict[str, list]  # name: [shape, dtype]


def by_name(tree: Tree) -> dict[str, Any]:
    """The leaves by name: the parts of the path joined by "/".

    A part with a "/" of its own (haiku's) is quoted, so no two paths share a name.
    """
    return {"/".join(map(_part, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def describe(named: Mapping[str, Any]) -> Described:
    """Shape and dtype of each leaf, or of each `Cut`, as JSON has them."""
    return {name: [list(leaf.shape), str(np.dtype(leaf.dtype))] for name, leaf in named.items()}


def branch(name: str) -> str:
    """The first part of a name."""
    quoted = re.match(r'"(\\.|[^"\\])*"', name)
    return quoted[0] if quoted else name.split("/")[0]


def cut(tree: Tree) -> dict[str, Cut]:
    """Copies in host memory of the pieces that this process has to write; no piece is another's too.

    Raises:
      TypeError: jax could not hold a leaf (64 bits without x64).
    """
    named = {
        name: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for name, leaf in by_name(tree).items()
    }
    shards = {name: _owned(leaf) for name, leaf in named.items()}
    for of_leaf in shards.values():
        for _, data in of_leaf:
            if isinstance(data, jax.Array):
                data.copy_to_host_async()  # all transfers at once, before the first is waited for
    return {name: _cut(name, leaf, shards[name]) for name, leaf in named.items()}


def index_here(leaf: Any) -> Index | None:
    """The smallest box that holds all that this process's devices need of an abstract leaf; None = everything."""
    places = _places(leaf)
    if places is None:
        return None
    corners = [
        [span.indices(size)[:2] for span, size in zip(at, leaf.shape, strict=True)] for at in places.values()
    ]
    return tuple(
        slice(min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*corners, strict=True)
    )


def place(abstract: Tree, host: Mapping[str, np.ndarray]) -> Tree:
    """Onto the devices: `host` holds, for each leaf of `abstract`, what `index_here` says."""
    named = by_name(abstract)
    parts = {name: _parts(leaf, host[name]) for name, leaf in named.items()}
    pieces = [piece for of_leaf in parts.values() for piece, _ in of_leaf]
    devices = [device for of_leaf in parts.values() for _, device in of_leaf]
    placed = iter(jax.device_put(pieces, devices))  # one call: a thousand take longer than the copying
    leaves = [_joined(leaf, [next(placed) for _ in parts[name]]) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _part(key: Any) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    return json.dumps(text) if "/" in text or '"' in text else text


def _owned(leaf: Any) -> list[tuple[Index, Any]]:
    """The pieces of which this process has the first copy: what is not on devices is the first process's."""
    if isinstance(leaf, jax.Array):
        return [(shard.index, shard.data) for shard in leaf.addressable_shards if shard.replica_id == 0]
    return [whole(np.asarray(leaf)).pieces[0]] if jax.process_index() == 0 else []


def _cut(name: str, leaf: Any, shards: list[tuple[Index, Any]]) -> Cut:
    if leaf.dtype != jax.dtypes.canonicalize_dtype(leaf.dtype):
        raise TypeError(f"leaf {name} is {leaf.dtype}, which jax would cut to 32 bits on reading")
    # np.asarray of a CPU array is a view of the device's buffer, which the caller is about to donate.
    pieces = [Piece(index, np.array(data, copy=True)) for index, data in shards]
    chunk = leaf.sharding.shard_shape(leaf.shape) if isinstance(leaf, jax.Array) else leaf.shape
    return Cut(tuple(leaf.shape), np.dtype(leaf.dtype), tuple(chunk), pieces)


def _places(leaf: Any) -> dict[Any, Index] | None:
    """What each device of this process needs of an abstract leaf; None = it has no sharding."""
    sharding = getattr(leaf, "sharding", None)
    return None if sharding is None else sharding.addressable_devices_indices_map(tuple(leaf.shape))


def _parts(leaf: Any, host: np.ndarray) -> list[tuple[np.ndarray, Any]]:
    places, box = _places(leaf), index_here(leaf)
    if places is None or box is None:
        return [(host, None)]
    # the dots keep a scalar an array
    return [(host[(..., *_within(box, at, leaf.shape))], device) for device, at in places.items()]


def _within(box: Index, at: Index, shape: tuple[int, ...]) -> Index:
    """`at`, counted from the corner of `box`."""
    spans = [(span.indices(size), edge.start) for span, size, edge in zip(at, shape, box, strict=True)]
    return tuple(slice(start - edge, stop - edge) for (start, stop, _), edge in spans)


def _joined(leaf: Any, parts: list[jax.Array]) -> jax.Array:
    if getattr(leaf, "sharding", None) is None:
        return parts[0]
    return jax.make_array_from_single_device_arrays(tuple(leaf.shape), leaf.sharding, parts)
