"""Sharding of parameters over the mesh's `fsdp` axis: one rule, and exceptions by name.

A parameter is split along its longest axis that `mesh.fsdp` divides (among equal ones the last, which is the output
channels of a convolution); a small parameter is replicated. The parts of the train state that belong to a parameter, its
average and the optimizer's moments, are sharded like it; everything else is replicated.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from diffenc.config.experiment import Experiment
from diffenc.config.settings import MeshConfig
from diffenc.core.parameters import name_leaves
from diffenc.errors import UserError
from diffenc.interfaces import Params
from diffenc.parallel.sharding import AXES

SPLIT = AXES[1]
SMALL = 4096  # elements; gathering fewer costs more time than the memory is worth

Specs = Any  # a pytree of PartitionSpec


def specs_of(params: Params, shape: MeshConfig) -> Specs:
    """Returns the PartitionSpec of each parameter, which depends only on names and shapes.

    Raises:
      UserError: a pattern of mesh.rules matches no parameter, or an axis that it names cannot be split.
    """
    named = name_leaves(params)
    for pattern, _ in shape.rules:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in named):
            example = max(named, key=len, default="")
            raise UserError(f"mesh.rules: {pattern!r} matches no parameter; they have names like {example!r}")
    specs = [_spec(name, leaf.shape, shape) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(params), specs)


def shardings_of(
    state: PyTree, params: Params, mesh: Mesh | AbstractMesh, shape: MeshConfig
) -> PyTree[NamedSharding]:
    """Returns the sharding of each leaf of a train state with parameters `params`. Raises as `specs_of`."""
    specs = specs_of(params, shape)
    # By path: the paths of an optimizer's moments, in its own
    # trees, end in the path of their parameter.
    known = {
        path: (leaf.shape, spec)
        for (path, leaf), spec in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(specs), strict=True
        )
    }

    def sharding_of(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec_of_state_leaf(path, leaf.shape, known))

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def abstract_params(experiment: Experiment, mesh: Mesh) -> Params:
    """Returns shapes, dtypes and shardings of the parameters; nothing is computed.

    Raises:
      UserError: as `specs_of`; a plugin cannot be built for these images, or the model is larger than any machine.
    """
    shapes = experiment.abstract_params()
    return with_shardings(shapes, shapes, mesh, experiment.mesh)


def with_shardings(state: PyTree, params: Params, mesh: Mesh, shape: MeshConfig) -> PyTree:
    """Returns the abstract arrays of `state` with their shardings by `shardings_of`. Raises as `specs_of`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings_of(state, params, mesh, shape),
    )


def gather(params: Params, specs: Specs) -> Params:
    """Gathers each parameter from its shards. For use within `jax.shard_map`."""

    def gather_leaf(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = _split_axis(spec)
        # tiled: shards are concatenated along the axis along which they were split, without a new axis.
        return leaf if axis is None else jax.lax.all_gather(leaf, SPLIT, axis=axis, tiled=True)

    return jax.tree.map(gather_leaf, params, specs)


def sum_over_devices(gradient: Params, specs: Specs) -> Params:
    """Sums the devices' gradients; each device keeps its shard. For use within `jax.shard_map`."""

    def sum_leaf(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = _split_axis(spec)
        if axis is None:
            return _psum(leaf, AXES)
        # Reduce-scatter within a group of fsdp devices, then a sum of only the shard over groups: less
        # traffic than summing whole gradients and slicing them.
        scattered = jax.lax.psum_scatter(leaf, SPLIT, scatter_dimension=axis, tiled=True)
        # The sum over `data`; the sum over `fsdp` was part of the reduce-scatter.
        return _psum(scattered, AXES[:1])

    return jax.tree.map(sum_leaf, gradient, specs)


def _psum(leaf: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Sums over the mesh axes with more than one device: XLA does not remove a sum over one device."""
    several = tuple(axis for axis in axes if jax.lax.axis_size(axis) > 1)
    return jax.lax.psum(leaf, several) if several else leaf


def _spec(name: str, param_shape: tuple[int, ...], shape: MeshConfig) -> PartitionSpec:
    # The first matching pattern applies, before the general
    # rule: exceptions may also split small arrays.
    for pattern, axis in shape.rules:
        if fnmatch.fnmatchcase(name, pattern):
            if axis is None:
                return PartitionSpec()
            return _split_along(axis, param_shape, shape.fsdp, f"{pattern!r} for {name}")
    divisible = [axis for axis, size in enumerate(param_shape) if size % shape.fsdp == 0]
    if shape.fsdp == 1 or not divisible or np.prod(param_shape) < SMALL:
        return PartitionSpec()
    # The axis in the key settles ties, towards the last axis.
    longest = max(divisible, key=lambda axis: (param_shape[axis], axis))
    return _split_along(longest, param_shape, shape.fsdp, name)


def _split_along(axis: int, shape: tuple[int, ...], fsdp: int, name: str) -> PartitionSpec:
    if not 0 <= axis < len(shape) or shape[axis] % fsdp:
        raise UserError(
            f"mesh.rules: {name}: axis {axis} of the shape {shape} does not split into mesh.fsdp = {fsdp} parts"
        )
    return PartitionSpec(*(SPLIT if each == axis else None for each in range(len(shape))))


def _split_axis(spec: PartitionSpec) -> int | None:
    # At most one axis is split, by construction of `_split_along`.
    return next((axis for axis, name in enumerate(spec) if name is not None), None)


def _spec_of_state_leaf(path: tuple, shape: tuple[int, ...], known: Mapping[tuple, tuple]) -> PartitionSpec:
    """Returns the spec of the parameter with a path that is a suffix of `path`, if it has the same shape."""
    # Longest suffix first. The shape must agree as well: factored
    # moments have the path of a parameter but another shape.
    for start in range(len(path)):
        param_shape, spec = known.get(path[start:], (None, None))
        if spec is not None and param_shape == shape:
            return spec
    return PartitionSpec()
