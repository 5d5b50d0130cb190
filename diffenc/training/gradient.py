"""The gradient of a batch's loss, taken in one piece or in several that follow each other."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from diffenc.config.experiment import Experiment
from diffenc.core import conditioning, unroll
from diffenc.core.model import Draws, Terms, bits_per_dim, draw_noise
from diffenc.errors import UserError
from diffenc.interfaces import Condition, ImageKeys, Images, Key, Params, PerExample
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import AXES, OVER_BATCH, check_divisible
from diffenc.training import schedule_objective

Scalar = Float[Array, ""]
DROPS_CONDITION = 2  # the number of a key beside those two that one key is split into


class Part(NamedTuple):
    """Images, and all that is random in their loss.

    Attributes:
      told: what the network is told of each; None: their condition.
    """

    images: Images
    told: Condition | None
    draws: Draws
    keys: ImageKeys


def check_batch(experiment: Experiment, mesh: Mesh) -> None:
    """Raise UserError unless every device gets as many images of each part of a batch as every other."""
    check_divisible("Experiment.batch_size", experiment.batch_size, mesh)
    least = experiment.microbatches * mesh.devices.size
    if experiment.batch_size % least:
        raise UserError(
            f"Experiment.batch_size = {experiment.batch_size} does not divide evenly into "
            f"Experiment.microbatches = {experiment.microbatches} parts, each split over the devices "
            f"({mesh.devices.size}): take a multiple of {least}, or another number of parts"
        )


def batch_gradient(
    params: Params, experiment: Experiment, images: Images, key: Key, mesh: Mesh
) -> tuple[Params, Terms]:
    """The gradient of -ELBO of a batch in bits/dim, and its three terms; dropout on.

    Each device takes its own images, in `Experiment.microbatches` parts, one after the other, so that the activations
    of one alone take memory. The devices' gradients are then added up, once. Times, noise, dropout masks and of which
    images the network is told nothing are those of the undivided batch. To the parameters of a schedule's interior the
    gradient is that of its own objective.

    Args:
      params: split over `mesh` as `diffenc.parallel.param_sharding` says; so is the gradient.
      images: split over all of `mesh`.
    """
    draw_key, dropout_key = jax.random.split(key)
    share, drop_key = experiment.model.conditioning.drop, jax.random.fold_in(key, DROPS_CONDITION)
    told, shape = conditioning.drop_condition(images.condition, share, drop_key), images.levels.shape
    batch = Part(images, told, draw_noise(draw_key, shape), jax.random.split(dropout_key, shape[0]))
    specs = param_sharding.specs_of(params, experiment.mesh)
    over_devices = jax.shard_map(
        partial(_device_gradient, experiment, specs, mesh.devices.size),
        mesh=mesh,
        in_specs=(specs, OVER_BATCH),
        out_specs=(specs, PartitionSpec(), OVER_BATCH),
        check_vma=False,  # it would add up the gradients of each use of a parameter on its own
    )
    gradient, means, diffusion = over_devices(params, batch)
    of_interior = jax.grad(schedule_objective.objective, argnums=1)(
        experiment.model.schedule, params["schedule"], batch.draws.t, diffusion
    )
    schedule = jax.tree.map(jnp.add, gradient["schedule"], of_interior)
    return {**gradient, "schedule": schedule}, means


def _device_gradient(
    experiment: Experiment, specs: param_sharding.Specs, num_devices: int, params: Params, share: Part
) -> tuple[Params, Terms, PerExample]:
    """The batch's mean gradient and terms in bits/dim, and the diffusion losses of this device's images in nats."""
    summed, nats = _sum_over_parts(
        param_sharding.gather(params, specs), experiment, divide(share, experiment.microbatches)
    )
    mean = jax.tree.map(lambda total: total / (experiment.microbatches * num_devices), summed)
    gradient = param_sharding.sum_over_devices(mean, specs)
    gradient = jax.tree.map(lambda leaf, total: total.astype(leaf.dtype), params, gradient)
    terms = unite(nats)
    means = jax.lax.pmean(_mean_bits(terms, share.images.levels[0].size), AXES)
    return gradient, means, terms.diffusion


def divide(batch: Any, count: int) -> Any:
    """Arrays [B, ...] as [count, B / count, ...], image i in part i mod count."""

    def cut(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(-1, count, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(cut, batch)


def unite(parts: Any) -> Any:
    """Undoes `divide`."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), parts)


def _sum_over_parts(params: Params, experiment: Experiment, parts: Part) -> tuple[Params, Terms]:
    """Sum of the parts' gradients in float32, and the terms in nats [count, B / count]; `parts`: stacked."""
    gradient_of = jax.grad(_part_loss, has_aux=True)

    def turn(total: Params, part: Part) -> tuple[Params, Terms]:
        images, told, draws = unroll.after(total, part[:-1])
        gradient, nats = gradient_of(params, experiment, Part(images, told, draws, part.keys))
        return jax.tree.map(jnp.add, total, gradient), nats

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return unroll.scan(turn, nothing, parts)


def _part_loss(params: Params, experiment: Experiment, part: Part) -> tuple[Scalar, Terms]:
    """-ELBO of a part in bits/dim, and its terms in nats [B / count]."""
    (levels, condition), told, draws, keys = part
    num_levels = experiment.dataset.num_levels
    nats = experiment.model.elbo(
        params, levels, draws, num_levels=num_levels, condition=condition, told=told, keys=keys
    )
    return _mean_bits(nats, levels[0].size).total, nats


def _mean_bits(nats: Terms, num_dims: int) -> Terms:
    """Means over the images, in bits/dim."""
    return jax.tree.map(lambda term: bits_per_dim(jnp.mean(term), num_dims), nats)
