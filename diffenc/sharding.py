"""Where arrays live: one mesh over all devices, batches split along it, everything else on each."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffenc.errors import UserError


def data_mesh() -> Mesh:
    """All devices along one axis, `data`.

    Raises:
      UserError: there are several processes; each would train on a copy of the same batch.
    """
    if jax.process_count() > 1:
        raise UserError(
            "training by several processes is not supported: start one, which uses all local devices"
        )
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def split_over(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def on_each(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raise UserError unless `batch_size` splits evenly over the devices."""
    devices = mesh.devices.size
    if batch_size % devices:
        raise UserError(
            f"{name} = {batch_size} does not divide evenly over {devices} devices: take a multiple of {devices}"
        )


def to_devices(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's part of a batch, as one array split over all devices."""
    return jax.make_array_from_process_local_data(split_over(mesh), np.asarray(array))
