"""The device mesh, over all devices of all processes, and batches sharded over all of it.

The mesh has two axes. Parameters are replicated along `data`, and may be sharded along `fsdp` (see
`diffenc.parallel.param_sharding`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, Shaped

from diffenc.config.settings import MeshConfig
from diffenc.errors import UserError
from diffenc.interfaces import Batch, Conditioning, Images

AXES = ("data", "fsdp")
# The batch is split over both axes: fsdp divides the parameters' memory, not the work.
OVER_BATCH = PartitionSpec(AXES)


def platform_of(mesh: Mesh) -> str:
    """Returns the platform of a mesh's devices: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def data_mesh(shape: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of the given shape with all devices; `devices` replaces those of this run.

    Raises:
      UserError: the shape does not match the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    data = shape.data or max(1, count // shape.fsdp)
    if data * shape.fsdp != count:
        raise UserError(
            f"mesh.data = {shape.data} and mesh.fsdp = {shape.fsdp} do not arrange the {count} devices there are: "
            "mesh.data x mesh.fsdp must be their number; mesh.data = 0 computes it from mesh.fsdp"
        )
    return make_mesh(data, shape.fsdp, devices)


def make_mesh(data: int = 1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of the first data x fsdp devices, neighbours along `fsdp` where the topology allows it."""
    devices = (jax.devices() if devices is None else devices)[: data * fsdp]
    try:
        grid = mesh_utils.create_device_mesh((data, fsdp), devices=devices, allow_split_physical_axes=True)
    except (
        NotImplementedError,
        ValueError,
    ):  # the topology has no such arrangement, or there are several slices
        grid = np.array(devices).reshape(data, fsdp)
    # Auto axes: with explicit axes, the default of jax.make_mesh, shardings
    # are part of array types, and plugins would have to state theirs.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis over all devices."""
    return NamedSharding(mesh, OVER_BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless `batch_size` divides evenly over the devices."""
    devices = mesh.devices.size
    if batch_size % devices:
        raise UserError(
            f"{name} = {batch_size} does not divide evenly over {devices} devices: take a multiple of {devices}"
        )


def rows_here(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """Returns the indices in a batch, ascending, of the images on this process's devices."""
    spans = batch_sharded(mesh).addressable_devices_indices_map((batch_size,)).values()
    # np.unique sorts, and drops rows that several of this process's devices hold.
    return np.unique(np.concatenate([np.arange(batch_size)[span] for span in spans]))


def to_devices(array: Shaped[np.ndarray, "rows ..."], mesh: Mesh) -> jax.Array:
    """Returns a batch as one array sharded over all devices; each process passes its own rows."""
    # No process needs the rows of others: the global array is assembled from each process's part.
    return jax.make_array_from_process_local_data(batch_sharded(mesh), np.asarray(array))


def images_to_devices(batch: Batch, conditioning: Conditioning, mesh: Mesh) -> Images:
    """Returns images and conditions of a batch sharded over all devices; each process passes its own rows."""
    rows = Images(batch["image"], conditioning(batch["label"]))  # pyright: ignore[reportArgumentType]
    return jax.tree.map(lambda array: to_devices(array, mesh), rows)
