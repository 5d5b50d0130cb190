"""The running curve of the gradient's norm over time, from which a time sampler derives the density of training times.

Drawing times by the size of the loss reduces the variance of the network's gradient, but may increase that of the encoder's,
which also comes through z and through the encoder's slope. Here the gradient itself is measured: every `MEASURE_EVERY` steps,
for `MEASURED_IMAGES` images one by one, at times spread evenly. The second moment of the gradient estimated at times with
density p is int E|g_t|^2 / p dt, minimal for p proportional to the square root of E|g_t|^2. The squared gradients of the encoder
and of all other parts are each divided by their mean over time, so that their scales do not matter, and added with the weights
`SHARES`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc.config.experiment import Experiment
from diffenc.core.compiled_once import compiled_once
from diffenc.core.model import Draws, bits_per_dim
from diffenc.core.objective import step_index
from diffenc.core.rng import root_key
from diffenc.core.unroll import trace_for
from diffenc.interfaces import ImageKeys, Images, Key, Params, Source, Times
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import (
    OVER_BATCH,
    images_to_devices,
    platform_of,
    replicated,
    rows_here,
    to_devices,
)
from diffenc.runtime.compile_options import brief_options
from diffenc.training.trained_bound import TrainedBound, trained_bound

BINS = 16
MEASURE_EVERY = 20
MEASURED_IMAGES = 16
DECAY = 0.95  # of a measurement with each one after it
PRIOR_COUNT = 1.0  # draws of the mean over all bins that each bin is given: a bin has few of its own at first
# With these weights the variance of the network's gradient is nearly as low as it can be, and that of the encoder's no
# higher than with uniform times (experiments/benchmark.md).
SHARES = {"encoder": 0.15, "others": 0.85}

Scalar = Float[Array, ""]


class GradientCurve(NamedTuple):
    """Decaying sums over the measurements of a run, in equal bins of t.

    Attributes:
      squares: sums of the squared norm of an image's gradient, (bits/dim)^2, by group of `SHARES`.
      counts: numbers of images.
    """

    squares: dict[str, Float[Array, " bins"]]
    counts: Float[Array, " bins"]


class Rows(NamedTuple):
    """Images that are measured at once, one per device.

    Attributes:
      number: number of the image within its measurement, which determines its noise and dropout mask.
      t: its time.
      weight: 1; 0 for an image that only fills up the last turn.
    """

    number: Int[Array, " b"]
    t: Times
    weight: Float[Array, " b"]


AddGradients = Callable[[GradientCurve, Params, Images, Rows, Key], GradientCurve]


def begin_gradient_curve() -> GradientCurve:
    """Returns the curve before the first measurement."""
    return GradientCurve({group: jnp.zeros(BINS) for group in SHARES}, jnp.zeros(BINS))


def gradient_sizes(curve: GradientCurve) -> Float[Array, " bins"]:
    """Returns the root mean square of the gradient's norm in each bin, groups weighted by `SHARES`; 1 before any measurement."""

    def share(squares: Float[Array, " bins"]) -> Float[Array, " bins"]:
        """Returns the group's mean square in each bin over its mean of all bins; 0 for a group without a gradient."""
        total = jnp.sum(squares)
        overall = total / jnp.maximum(jnp.sum(curve.counts), 1)
        # Shrunk towards the overall mean: a bin has few measurements at
        # first, and a single small one would make its times rare.
        means = (squares + PRIOR_COUNT * overall) / (curve.counts + PRIOR_COUNT)
        # Divided by the mean, so that each group's shape counts and
        # its scale does not. The inner where avoids 0 / 0.
        return jnp.where(total > 0, means / jnp.where(total > 0, jnp.mean(means), 1.0), 0.0)

    shares = sum(SHARES[group] * share(squares) for group, squares in curve.squares.items())
    # The density of least variance is proportional to the square root of the mean square.
    return jnp.sqrt(jnp.where(jnp.any(shares > 0), shares, 1.0))


class GradientMeasurement:
    """Measures the norm of the gradient of train images, one image per device at a time.

    Not in a loop inside the compiled step: on a CPU, XLA computes gradients of convolutions many times slower there. Not
    several images at once: the gradient of each takes as much memory as the parameters.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self._experiment, self._mesh = experiment, mesh
        self._source: Source = experiment.dataset.source("train")

    def update(self, curve: GradientCurve, params: Params, step: int) -> GradientCurve:
        """Returns the curve with a measurement; the seed and `step` determine its draws.

        Args:
          params: sharded over the mesh by `diffenc.parallel.param_sharding`.
        """
        mesh, count = self._mesh, MEASURED_IMAGES
        # A function of (seed, step) alone: a resumed run measures the same images at the same times, and
        # every process of a run draws the same indices without communication.
        random = np.random.default_rng((self._experiment.seed, step))
        index = random.choice(len(self._source), count, replace=count > len(self._source))
        # Stratified: one time in each of `count` equal parts of [0, 1), all shifted by one common offset.
        times = ((random.random() + np.arange(count)) / count).astype(np.float32)
        key = jax.random.fold_in(root_key(self._experiment.seed, "gradient_curve"), step)
        add, decay = _compiled_add(self._experiment, mesh), _compiled_decay(mesh)
        # Once per measurement, before its turns, so that all images of a measurement have the same weight.
        curve = decay(curve)
        # A host loop over one compiled program; each turn adds
        # to the sums on the device, and none is waited for.
        for first in range(0, count, mesh.size):
            # An image's draws depend on its number alone, so that they are the same on any number of devices.
            number = first + rows_here(mesh, mesh.size)
            # The last turn is filled up with images of weight 0.
            image, weight = number % count, (number < count).astype(np.float32)
            batch = self._source.__getitems__(index[image])
            # Each process loads only the rows of its own devices.
            images = images_to_devices(batch, self._experiment.model.conditioning, mesh)
            rows = Rows(
                *(to_devices(array, mesh) for array in (number.astype(np.int32), times[image], weight))
            )
            curve = add(curve, params, images, rows, key)
        return curve


@compiled_once
def _compiled_decay(mesh: Mesh) -> Callable[[GradientCurve], GradientCurve]:
    return jax.jit(partial(jax.tree.map, lambda total: DECAY * total), out_shardings=replicated(mesh))


@compiled_once
def _compiled_add(experiment: Experiment, mesh: Mesh) -> AddGradients:
    platform = platform_of(mesh)
    add = trace_for(platform, partial(add_gradients, experiment, trained_bound(experiment), mesh))
    return jax.jit(add, out_shardings=replicated(mesh), compiler_options=brief_options(platform))


def add_gradients(
    experiment: Experiment,
    bound: TrainedBound,
    mesh: Mesh,
    curve: GradientCurve,
    params: Params,
    images: Images,
    rows: Rows,
    key: Key,
) -> GradientCurve:
    """Returns the curve with the gradients of `images`, one per device."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(rows.number)
    noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    eps = jax.vmap(lambda key: jax.random.normal(key, images.levels.shape[1:]))(noise_keys)
    specs = param_sharding.specs_of(params, experiment.mesh)
    over_devices = jax.shard_map(
        partial(_squared_norms, experiment, bound, specs),
        mesh=mesh,
        in_specs=(specs, *[OVER_BATCH] * 3),
        out_specs=OVER_BATCH,
        check_vma=False,
    )
    # The noise in z_0 serves the losses at the ends, which are not differentiated.
    draws = Draws(rows.t, eps, eps, jnp.ones_like(rows.t))
    # One image per device, so that the gradient within shard_map is that of
    # a single image: the norm of a batch's gradient does not determine E|g|^2.
    norms = over_devices(params, images, draws, dropout_keys)
    in_bins = jax.nn.one_hot(step_index(rows.t, BINS), BINS) * rows.weight[:, None]  # [B, bins]
    # Sums of products, not a matrix product: by default a TPU rounds its factors to bfloat16.
    squares = {
        group: curve.squares[group] + jnp.sum(norms[group][:, None] * in_bins, axis=0) for group in SHARES
    }
    return GradientCurve(squares, curve.counts + jnp.sum(in_bins, axis=0))


def _squared_norms(
    experiment: Experiment,
    bound: TrainedBound,
    specs: param_sharding.Specs,
    params: Params,
    images: Images,
    draws: Draws,
    keys: ImageKeys,
) -> dict[str, Float[Array, " 1"]]:
    """Returns the squared norm of the gradient of one image's losses, without those at the ends, by group of `SHARES`."""

    def loss(params: Params) -> Scalar:
        losses = bound.model.losses(
            params,
            images.levels,
            draws,
            num_levels=experiment.dataset.num_levels,
            condition=images.condition,
            keys=keys,
            step_rule=bound.rule_of(params),
        )
        # Weight 1, no end losses: g_t is the contribution of a draw at time t before its importance weight.
        diffusion = bits_per_dim(losses.bound.diffusion, images.levels[0].size)
        return jnp.sum(sum(losses.auxiliary.values(), diffusion))

    gradient = jax.grad(loss)(param_sharding.gather(params, specs))
    others = {part: leaves for part, leaves in gradient.items() if part not in ("encoder", "schedule")}
    return {"encoder": _squared_norm(gradient["encoder"]), "others": _squared_norm(others)}


def _squared_norm(tree: Params) -> Float[Array, " 1"]:
    return jnp.sum(jnp.asarray([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]))[None]
