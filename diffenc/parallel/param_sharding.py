"""Which parameters are split over the devices, and along which of their axes: one rule, and exceptions by name.

A parameter is split along its longest axis that `mesh.fsdp` divides (of equals the last, which convolutions give
their output channels); a small one is copied. What the train state holds for each parameter, its average and the
optimiser's moments, lies where the parameter does; all else is copied.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from diffenc.config.settings import MeshConfig
from diffenc.core.model import Model
from diffenc.core.parameters import abstract_arrays, name_leaves
from diffenc.errors import UserError
from diffenc.interfaces import Params
from diffenc.parallel.sharding import AXES

SPLIT = AXES[1]
SMALL = 4096  # scalars; to gather fewer than these costs more than the memory is worth

Specs = Any  # a pytree of PartitionSpec


def specs_of(params: Params, shape: MeshConfig) -> Specs:
    """For each parameter, how it is split. Only shapes matter.

    Raises:
      UserError: a pattern of mesh.rules fits no parameter, or an axis that it names cannot be split.
    """
    named = name_leaves(params)
    for pattern, _ in shape.rules:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in named):
            example = max(named, key=len, default="")
            raise UserError(f"mesh.rules: {pattern!r} fits no parameter; they have names like {example!r}")
    specs = [_spec(name, leaf.shape, shape) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(params), specs)


def shardings_of(
    state: PyTree, params: Params, mesh: Mesh | AbstractMesh, shape: MeshConfig
) -> PyTree[NamedSharding]:
    """For each leaf of a train state whose parameters are `params`, where it lies. Raises as `specs_of`."""
    specs = specs_of(params, shape)
    known = {
        path: (leaf.shape, spec)
        for (path, leaf), spec in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(specs), strict=True
        )
    }

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec_within(path, leaf.shape, known))

    return jax.tree_util.tree_map_with_path(place, state)


def abstract_params(model: Model, image_shape: tuple[int, ...], mesh: Mesh, shape: MeshConfig) -> Params:
    """Returns shapes, dtypes and shardings of a model's parameters; nothing is computed.

    Raises:
      UserError: as `specs_of`; a plugin cannot be built for these images, or the model is larger than any machine.
    """
    shapes = abstract_arrays(lambda: model.init(jax.random.key(0), image_shape))
    shardings = shardings_of(shapes, shapes, mesh, shape)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )


def gather(params: Params, specs: Specs) -> Params:
    """The whole of each parameter, from its parts. For use within `jax.shard_map`."""

    def whole(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = _axis(spec)
        return leaf if axis is None else jax.lax.all_gather(leaf, SPLIT, axis=axis, tiled=True)

    return jax.tree.map(whole, params, specs)


def sum_over_devices(gradient: Params, specs: Specs) -> Params:
    """The devices' gradients added up, each device left with its part. For use within `jax.shard_map`."""

    def part(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = _axis(spec)
        if axis is None:
            return _sum(leaf, AXES)
        scattered = jax.lax.psum_scatter(leaf, SPLIT, scatter_dimension=axis, tiled=True)
        return _sum(scattered, AXES[:1])

    return jax.tree.map(part, gradient, specs)


def _sum(leaf: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Over those axes that have more than one place; XLA does not take out a sum over one."""
    several = tuple(axis for axis in axes if jax.lax.axis_size(axis) > 1)
    return jax.lax.psum(leaf, several) if several else leaf


def _spec(name: str, of: tuple[int, ...], shape: MeshConfig) -> PartitionSpec:
    for pattern, axis in shape.rules:
        if fnmatch.fnmatchcase(name, pattern):
            return (
                PartitionSpec() if axis is None else _along(axis, of, shape.fsdp, f"{pattern!r} for {name}")
            )
    fitting = [axis for axis, size in enumerate(of) if size % shape.fsdp == 0]
    if shape.fsdp == 1 or not fitting or np.prod(of) < SMALL:
        return PartitionSpec()
    return _along(max(fitting, key=lambda axis: (of[axis], axis)), of, shape.fsdp, name)


def _along(axis: int, of: tuple[int, ...], fsdp: int, what: str) -> PartitionSpec:
    if not 0 <= axis < len(of) or of[axis] % fsdp:
        raise UserError(
            f"mesh.rules: {what}: axis {axis} of the shape {of} does not split into mesh.fsdp = {fsdp} parts"
        )
    return PartitionSpec(*(SPLIT if place == axis else None for place in range(len(of))))


def _axis(spec: PartitionSpec) -> int | None:
    return next((axis for axis, name in enumerate(spec) if name is not None), None)


def _spec_within(path: tuple, of: tuple[int, ...], known: Mapping[tuple, tuple]) -> PartitionSpec:
    """That of the parameter whose path `path` ends in, if it has the same shape."""
    for start in range(len(path)):
        shape, spec = known.get(path[start:], (None, None))
        if spec is not None and shape == of:
            return spec
    return PartitionSpec()
