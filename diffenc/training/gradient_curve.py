"""The running curve of the gradient's size over time, by which a time sampler draws the times of training.

Drawing times by the size of the loss serves the network, whose output that loss is of, and may harm the encoder, whose
gradient also comes through z and through its slope. Here the gradient itself is measured: every `MEASURE_EVERY` steps, for
`MEASURED_IMAGES` images of the batch one by one, at times spread evenly. The variance of the mean over draws of density p is
int E|g_t|^2 / p dt, least for p proportional to the root of E|g_t|^2. Of the encoder's gradient and that of all other parts,
each counts by its share in its own integral, so that neither is served at the other's cost, whatever their scales are.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from diffenc.config.experiment import Experiment
from diffenc.core.model import Draws, bits_per_dim, draw_noise
from diffenc.core.objective import step_index
from diffenc.interfaces import ImageKeys, Images, Key, Params, PerExample
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import OVER_BATCH
from diffenc.training.trained_bound import TrainedBound

BINS = 16
MEASURE_EVERY = 20
MEASURED_IMAGES = 16
DECAY = 0.95  # of a measurement with each one after it
PRIOR_COUNT = 4.0  # draws of the mean over all bins that each bin is given: a bin has few of its own at first
GROUPS = ("encoder", "others")


class GradientCurve(NamedTuple):
    """Decaying sums over the measurements of a run, in equal bins of t.

    Attributes:
      squares: of the norm of an image's gradient, (bits/dim)^2, of each of `GROUPS`.
      counts: of images.
    """

    squares: dict[str, Float[Array, " bins"]]
    counts: Float[Array, " bins"]


def begin_gradient_curve() -> GradientCurve:
    """Returns the curve before the first measurement."""
    return GradientCurve({group: jnp.zeros(BINS) for group in GROUPS}, jnp.zeros(BINS))


def gradient_sizes(curve: GradientCurve) -> Float[Array, " bins"]:
    """Returns the root mean square of the gradient's size, groups weighed against each other; before a measurement 1."""

    def share(squares: Float[Array, " bins"]) -> Float[Array, " bins"]:
        """Returns the group's mean square in each bin over that of all; 0 for a group that has no gradient."""
        total = jnp.sum(squares)
        overall = total / jnp.maximum(jnp.sum(curve.counts), 1)
        means = (squares + PRIOR_COUNT * overall) / (curve.counts + PRIOR_COUNT)
        return jnp.where(total > 0, means / jnp.where(total > 0, jnp.mean(means), 1.0), 0.0)

    shares = sum(map(share, curve.squares.values()))
    return jnp.sqrt(jnp.where(jnp.any(shares > 0), shares, 1.0))


def update_gradient_curve(
    curve: GradientCurve,
    params: Params,
    experiment: Experiment,
    bound: TrainedBound,
    images: Images,
    key: Key,
    mesh: Mesh,
) -> GradientCurve:
    """Returns the curve with a measurement on some of `images`, as many from each device.

    Args:
      params: sharded over `mesh` by `diffenc.parallel.param_sharding`.
      images: sharded over all of `mesh`.
    """
    batch_size = images.levels.shape[0]
    on_device = min(max(1, MEASURED_IMAGES // mesh.size), batch_size // mesh.size)
    count = on_device * mesh.size
    chosen = jax.tree.map(lambda leaf: _first_of_each(leaf, mesh.size, on_device), images)
    draw_key, dropout_key = jax.random.split(key)
    draws = draw_noise(draw_key, (count, *images.levels.shape[1:]), num_ends=count)
    specs = param_sharding.specs_of(params, experiment.mesh)
    over_devices = jax.shard_map(
        partial(_squared_norms, experiment, bound, specs),
        mesh=mesh,
        in_specs=(specs, *[OVER_BATCH] * 3),
        out_specs=OVER_BATCH,
        check_vma=False,
    )
    norms = over_devices(params, chosen, draws, jax.random.split(dropout_key, count))
    index = step_index(draws.t, BINS)

    def add(total: Float[Array, " bins"], values: PerExample) -> Float[Array, " bins"]:
        return DECAY * total + jax.ops.segment_sum(values, index, BINS)

    squares = {group: add(curve.squares[group], norms[group]) for group in GROUPS}
    return GradientCurve(squares, add(curve.counts, jnp.ones(count)))


def _first_of_each(leaf: Array, num_devices: int, count: int) -> Array:
    """Returns the first `count` entries of each device's part of an array [B, ...]."""
    return leaf.reshape(num_devices, -1, *leaf.shape[1:])[:, :count].reshape(-1, *leaf.shape[1:])


def _squared_norms(
    experiment: Experiment,
    bound: TrainedBound,
    specs: param_sharding.Specs,
    params: Params,
    images: Images,
    draws: Draws,
    keys: ImageKeys,
) -> dict[str, PerExample]:
    """Returns the squared norm of the gradient of each image's losses but those at the ends, of each of `GROUPS`."""
    gathered, num_levels = param_sharding.gather(params, specs), experiment.dataset.num_levels

    def loss(params: Params, images: Images, draws: Draws, keys: ImageKeys) -> Float[Array, ""]:
        losses = bound.model.losses(
            params,
            images.levels,
            draws,
            num_levels=num_levels,
            condition=images.condition,
            keys=keys,
            step_rule=bound.rule_of(params),
        )
        diffusion = bits_per_dim(losses.bound.diffusion, images.levels[0].size)
        return jnp.sum(sum(losses.auxiliary.values(), diffusion))

    def norms_of_image(image: tuple[Images, Draws, Key]) -> dict[str, Float[Array, ""]]:
        gradient = jax.grad(loss)(gathered, *jax.tree.map(lambda leaf: leaf[None], image))
        squares = {
            part: sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(branch)), jnp.zeros(()))
            for part, branch in gradient.items()
        }
        others = sum(value for part, value in squares.items() if part not in ("encoder", "schedule"))
        return {"encoder": squares["encoder"], "others": jnp.asarray(others)}

    # one by one: gradients of several images at once would each take the memory of the parameters
    return jax.lax.map(norms_of_image, (images, draws, keys))
