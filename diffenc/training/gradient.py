"""The gradient of a batch's loss, computed at once or accumulated over microbatches."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from diffenc.config.experiment import Experiment
from diffenc.core import conditioning, unroll
from diffenc.core.model import Draws, Losses, SampleTimes, SelectImages, Terms, bits_per_dim, draw_noise
from diffenc.errors import UserError
from diffenc.interfaces import Condition, ImageKeys, Images, Key, Params, PerExample
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import AXES, OVER_BATCH, check_divisible
from diffenc.training import schedule_objective
from diffenc.training.trained_bound import TrainedBound

Scalar = Float[Array, ""]
# Not 0 and 1: with JAX's partitionable threefry, fold_in(key, i) equals split(key)[i].
DROP_STREAM, ENDS_STREAM = 2, 3  # folded into a key whose split into two keys is used as well


class Microbatch(NamedTuple):
    """Images, and all random numbers that their loss depends on.

    Attributes:
      network_condition: the condition passed to the network, after dropout of conditions; None = that of the images.
    """

    images: Images
    network_condition: Condition | None
    draws: Draws
    keys: ImageKeys


Loss = Callable[[Params, Microbatch], tuple[Scalar, Losses]]


class BatchGradient(NamedTuple):
    """The gradient of a batch's losses.

    Attributes:
      gradient: of the mean of -ELBO in bits/dim plus the means of the auxiliary losses, shaped like the parameters.
      terms: means of the terms of -ELBO in bits/dim.
      auxiliary: means of the auxiliary losses, by name.
      draws: the times of the images, and their noise.
      diffusion: the diffusion loss of each image in nats, times the importance weight of its time.
    """

    gradient: Params
    terms: Terms
    auxiliary: dict[str, Scalar]
    draws: Draws
    diffusion: PerExample


def check_batch(experiment: Experiment, mesh: Mesh) -> None:
    """Raises UserError unless each microbatch divides evenly over the devices."""
    check_divisible("Experiment.batch_size", experiment.batch_size, mesh)
    least = experiment.microbatches * mesh.devices.size
    if experiment.batch_size % least:
        raise UserError(
            f"Experiment.batch_size = {experiment.batch_size} does not divide evenly into "
            f"Experiment.microbatches = {experiment.microbatches} parts, each split over the devices "
            f"({mesh.devices.size}): take a multiple of {least}, or another number of parts"
        )


def batch_gradient(
    params: Params,
    experiment: Experiment,
    bound: TrainedBound,
    sample_times: SampleTimes,
    images: Images,
    key: Key,
    mesh: Mesh,
) -> BatchGradient:
    """Returns the gradient of a batch's losses, and the losses and draws that it was computed from; with dropout.

    Each device processes its images in `Experiment.microbatches` microbatches, one after the other, so that only the
    activations of one microbatch are in memory. The gradients of the devices are summed once, at the end. Times, noise,
    dropout masks and dropped conditions do not depend on the division into devices and microbatches; nor do the images
    chosen for the losses at the ends of time, as long as the stride is the same. These losses are computed for one image
    in `find_ends_stride`, at an offset drawn in each step: an unbiased estimate of their mean over the batch. In continuous
    time the gradient with respect to the interior of a learned schedule is that of its own objective
    (`diffenc.training.schedule_objective`).

    Args:
      params: sharded over `mesh` by `diffenc.parallel.param_sharding`; the gradient is sharded likewise.
      bound: the bound of the experiment (`diffenc.training.trained_bound`).
      sample_times: as for `draw_noise`.
      images: sharded over all of `mesh`.
    """
    # All random numbers are drawn here, for the whole batch, and then sharded as images are: inside of
    # shard_map they would depend on the number of devices.
    draw_key, dropout_key = jax.random.split(key)
    # A separate stream (see DROP_STREAM), so that conditional and
    # unconditional models draw the same times and noise.
    share, drop_key = experiment.model.conditioning.drop, jax.random.fold_in(key, DROP_STREAM)
    shape = images.levels.shape
    # The stride divides each device's part of a microbatch, since shapes
    # must be the same on all devices and in all microbatches.
    stride = find_ends_stride(shape[0] // (experiment.microbatches * mesh.size), experiment.ends_stride)
    network_condition = conditioning.drop_condition(images.condition, share, drop_key)
    # A key per image, so that its dropout mask depends neither on
    # other images of the batch nor on the image's device.
    dropout_keys = jax.random.split(dropout_key, shape[0])
    # eps_0 is drawn for the images at the ends alone.
    draws = draw_noise(draw_key, shape, sample_times, shape[0] // stride)
    batch = Microbatch(images, network_condition, draws, dropout_keys)
    # A random offset: a fixed one would leave out the same positions in every batch. All offsets are equally
    # likely, which makes the mean over the chosen images an unbiased estimate of the mean over all.
    first = jax.random.randint(jax.random.fold_in(key, ENDS_STREAM), (), 0, stride)
    specs = param_sharding.specs_of(params, experiment.mesh)
    over_devices = jax.shard_map(
        partial(_device_gradient, experiment, bound, specs, mesh.devices.size, stride),
        mesh=mesh,
        # Parameters arrive as they are stored (a shard each
        # under fsdp) and the gradient leaves in the same form.
        in_specs=(specs, OVER_BATCH, PartitionSpec()),
        out_specs=(specs, PartitionSpec(), OVER_BATCH),
        check_vma=False,  # with it, the gradients of each use of a parameter would be summed over devices separately
    )
    gradient, (means, auxiliary), diffusion = over_devices(params, batch, first)
    weight = batch.draws.weight
    # Outside of shard_map and after all microbatches: this objective is a quotient of means over the whole
    # batch, which is not a sum over parts of it. It uses only the values of the losses, so it needs no second
    # pass of the network. Division by `weight` recovers l(t).
    interior_gradient = jax.grad(schedule_objective.interior_objective, argnums=1)(
        bound.model.schedule, params["schedule"], batch.draws.t, diffusion / weight, weight
    )
    # No double counting: in continuous time the bound has no gradient with
    # respect to the interior, and this objective none with respect to the ends.
    schedule = jax.tree.map(jnp.add, gradient["schedule"], interior_gradient)
    return BatchGradient({**gradient, "schedule": schedule}, means, auxiliary, batch.draws, diffusion)


def _device_gradient(
    experiment: Experiment,
    bound: TrainedBound,
    specs: param_sharding.Specs,
    num_devices: int,
    stride: int,
    params: Params,
    batch: Microbatch,
    first: Int[Array, ""],
) -> tuple[Params, Losses, PerExample]:
    """Returns the batch's mean gradient and losses (`mean_losses`), and this device's diffusion losses in nats."""
    # 1. Accumulate the gradient over this device's microbatches, with whole parameters.
    microbatches = divide_batch(batch, experiment.microbatches)
    select_ends = partial(take_every, stride, first)
    loss = partial(_loss, bound, experiment.dataset.num_levels, select_ends)
    # Parameters are gathered once per step, outside of the loop over microbatches.
    summed, losses = _accumulate(loss, param_sharding.gather(params, specs), microbatches)
    # 2. Average. Each microbatch's loss is a mean over its own images and all have the same number of them,
    # so the mean of these means is that of the batch.
    mean = jax.tree.map(lambda total: total / (experiment.microbatches * num_devices), summed)
    # 3. One collective per step, not one per microbatch; under fsdp each device keeps its shard of the sum.
    gradient = param_sharding.sum_over_devices(mean, specs)
    # Accumulated in float32, but returned in the parameters' dtype, as optimizers expect.
    gradient = jax.tree.map(lambda leaf, total: total.astype(leaf.dtype), params, gradient)
    # 4. Losses of all microbatches as one batch, in the order
    # of this device's images; logged means are over all devices.
    losses = merge_microbatches(losses)
    means = jax.lax.pmean(mean_losses(losses, batch.images.levels[0].size), AXES)
    return gradient, means, losses.bound.diffusion


def find_ends_stride(images: int, ends_stride: int) -> int:
    """Returns k: training computes the losses at the ends of time for one image in k.

    The largest divisor, up to `ends_stride`, of `images`, the number of images in a device's part of a microbatch.
    """
    # 1 always divides: then the losses at the ends are those of all images.
    return max(k for k in range(1, min(images, ends_stride) + 1) if images % k == 0)


def take_every(stride: int, first: Int[Array, ""], images: Any) -> Any:
    """Returns entries `first`, `first` + `stride`, ... of arrays [B, ...], B a multiple of `stride`."""
    # A reshape and one dynamic index instead of a gather with computed row indices.
    return jax.tree.map(lambda leaf: leaf.reshape(-1, stride, *leaf.shape[1:])[:, first], images)


def divide_batch(batch: Any, count: int) -> Any:
    """Reshapes arrays [B, ...] to [count, B / count, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch)


def merge_microbatches(microbatches: Any) -> Any:
    """Undoes `divide_batch`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), microbatches)


def _accumulate(loss: Loss, params: Params, microbatches: Microbatch) -> tuple[Params, Losses]:
    """Returns the sum of the gradients of stacked microbatches in float32, and their losses, stacked."""
    # grad, not value_and_grad: the value is the mean of the losses, which are returned as aux.
    compute_gradient = jax.grad(loss, has_aux=True)

    def add_gradient(total: Params, microbatch: Microbatch) -> tuple[Params, Losses]:
        # Everything but the keys, which are small, waits for the sum so far: otherwise the activations of unrolled
        # microbatches could be in memory at the same time.
        images, network_condition, draws = unroll.after(total, microbatch[:-1])
        microbatch = Microbatch(images, network_condition, draws, microbatch.keys)
        gradient, losses = compute_gradient(params, microbatch)
        return jax.tree.map(jnp.add, total, gradient), losses

    # float32 regardless of the networks' compute dtype: a bfloat16 sum would lose small contributions.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return unroll.scan(add_gradient, zeros, microbatches)


def _loss(
    bound: TrainedBound, num_levels: int, select_ends: SelectImages, params: Params, microbatch: Microbatch
) -> tuple[Scalar, Losses]:
    """Returns the scalar to differentiate, and a microbatch's losses, -ELBO in nats per image (end losses: of chosen images)."""
    (levels, condition), network_condition, draws, keys = microbatch
    losses = bound.model.losses(
        params,
        levels,
        draws,
        num_levels=num_levels,
        condition=condition,
        network_condition=network_condition,
        keys=keys,
        step_rule=bound.rule_of(params),
        select_ends=select_ends,
    )
    means = mean_losses(losses, levels[0].size)
    # The auxiliary losses have weight 1: the bound has no gradient with respect
    # to their parameters, so a weight would not trade one against the other.
    return sum(jax.tree.leaves(means.auxiliary), means.bound.total), losses


def mean_losses(losses: Losses, num_dims: int) -> Losses:
    """Returns the means over images, with -ELBO in bits/dim instead of nats."""
    # A mean per term: the losses at the ends have fewer entries than the diffusion loss, and no weights.
    means = jax.tree.map(jnp.mean, losses)
    return means._replace(bound=jax.tree.map(lambda nats: bits_per_dim(nats, num_dims), means.bound))
