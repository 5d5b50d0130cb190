"""The gradient of a batch's loss, taken in one piece or in several that follow each other."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from diffenc import interior, loops
from diffenc.errors import UserError
from diffenc.experiment import Experiment
from diffenc.interfaces import Key, Params
from diffenc.model import Draws, Terms, bits_per_dim, draw
from diffenc.pixels import Levels
from diffenc.sharding import check_divisible

Scalar = Float[Array, ""]
Part = tuple[Levels, Draws, Key]


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


def batch_gradient(params: Params, experiment: Experiment, levels: Levels, key: Key) -> tuple[Params, Terms]:
    """The gradient of -ELBO of a batch in bits/dim, and its three terms; dropout on.

    The batch is taken in `Experiment.microbatches` parts, one after the other, so that the activations of one
    alone take memory. Times and noise are those of the undivided batch; only the dropout masks are others. To
    the parameters of a schedule's interior the gradient is that of its own objective.
    """
    draw_key, dropout_key, more_key = jax.random.split(key, 3)
    draws = draw(draw_key, levels.shape)
    count = experiment.microbatches
    # an undivided batch has the key that is also the first part's
    keys = jnp.concatenate([dropout_key[None], jax.random.split(more_key, count - 1)])
    summed, nats = _sum_over_parts(params, experiment, (*divide((levels, draws), count), keys))
    gradient = jax.tree.map(lambda leaf, total: (total / count).astype(leaf.dtype), params, summed)
    terms = unite(nats)
    of_interior = jax.grad(interior.objective, argnums=1)(
        experiment.model.schedule, params["schedule"], draws.t, terms.diffusion
    )
    schedule = jax.tree.map(jnp.add, gradient["schedule"], of_interior)
    return {**gradient, "schedule": schedule}, _mean_bits(terms, levels[0].size)


def divide(batch: Any, count: int) -> Any:
    """Arrays [B, ...] as [count, B / count, ...], image i in part i mod count.

    So a batch that is split over devices needs none of its images moved.
    """

    def cut(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(-1, count, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(cut, batch)


def unite(parts: Any) -> Any:
    """Undoes `divide`."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), parts)


def _sum_over_parts(params: Params, experiment: Experiment, parts: tuple[Any, ...]) -> tuple[Params, Terms]:
    """Sum of the parts' gradients in float32, and the terms in nats [count, B / count]; `parts`: a stacked Part."""
    gradient_of = jax.grad(_part_loss, has_aux=True)

    def turn(total: Params, part: Part) -> tuple[Params, Terms]:
        images, key = part[:2], part[2]
        gradient, nats = gradient_of(params, experiment, (*loops.after(total, images), key))
        return jax.tree.map(jnp.add, total, gradient), nats

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return loops.scan(turn, nothing, parts)


def _part_loss(params: Params, experiment: Experiment, part: Part) -> tuple[Scalar, Terms]:
    """-ELBO of a part in bits/dim, and its terms in nats [B / count]."""
    levels, draws, key = part
    num_levels = experiment.dataset.num_levels
    nats = experiment.model.elbo(params, levels, draws, num_levels=num_levels, key=key)
    return _mean_bits(nats, levels[0].size).total, nats


def _mean_bits(nats: Terms, num_dims: int) -> Terms:
    """Means over the images, in bits/dim."""
    return jax.tree.map(lambda term: bits_per_dim(jnp.mean(term), num_dims), nats)
