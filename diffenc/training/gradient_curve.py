"""The running curve of the gradient's size over time, by which a time sampler draws the times of training.

Drawing times by the size of the loss serves the network, whose output that loss is of, and may harm the encoder, whose
gradient also comes through z and through its slope. Here the gradient itself is measured: every `MEASURE_EVERY` steps, for
`MEASURED_IMAGES` images one by one, at times spread evenly. The variance of the mean over draws of density p is
int E|g_t|^2 / p dt, least for p proportional to the root of E|g_t|^2. The encoder's gradient and that of all other parts are
weighed against each other, each by its share in its own integral, so that their scales do not matter: `SHARES`.
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
# By these the network has nearly what it could have alone, and the encoder no more variance than with uniform times
# (experiments/benchmark.md).
SHARES = {"encoder": 0.15, "others": 0.85}

Scalar = Float[Array, ""]


class GradientCurve(NamedTuple):
    """Decaying sums over the measurements of a run, in equal bins of t.

    Attributes:
      squares: of the norm of an image's gradient, (bits/dim)^2, of each group of `SHARES`.
      counts: of images.
    """

    squares: dict[str, Float[Array, " bins"]]
    counts: Float[Array, " bins"]


class Rows(NamedTuple):
    """Images that are measured at once, one of each device.

    Attributes:
      number: of the image in its measurement, which decides on its draws.
      t: its time.
      weight: 1; 0 for one that only fills up the last turn.
    """

    number: Int[Array, " b"]
    t: Times
    weight: Float[Array, " b"]


AddGradients = Callable[[GradientCurve, Params, Images, Rows, Key], GradientCurve]


def begin_gradient_curve() -> GradientCurve:
    """Returns the curve before the first measurement."""
    return GradientCurve({group: jnp.zeros(BINS) for group in SHARES}, jnp.zeros(BINS))


def gradient_sizes(curve: GradientCurve) -> Float[Array, " bins"]:
    """Returns the root mean square of the gradient's size, groups weighed against each other; before a measurement 1."""

    def share(squares: Float[Array, " bins"]) -> Float[Array, " bins"]:
        """Returns the group's mean square in each bin over that of all; 0 for a group that has no gradient."""
        total = jnp.sum(squares)
        overall = total / jnp.maximum(jnp.sum(curve.counts), 1)
        # Shrunk towards the overall mean: a bin has seen few gradients
        # at first, and a single small one would make its times rare.
        means = (squares + PRIOR_COUNT * overall) / (curve.counts + PRIOR_COUNT)
        # Over the mean, so that each group's shape counts and
        # its scale does not. The inner where keeps 0 / 0 out.
        return jnp.where(total > 0, means / jnp.where(total > 0, jnp.mean(means), 1.0), 0.0)

    shares = sum(SHARES[group] * share(squares) for group, squares in curve.squares.items())
    # The density of least variance is proportional to the root of the mean square.
    return jnp.sqrt(jnp.where(jnp.any(shares > 0), shares, 1.0))


class GradientMeasurement:
    """Measures the size of the gradient on train images: one of each device at a time.

    In a loop of the compiled step, XLA would take gradients of convolutions many times longer on a CPU; for several images
    in one go, each would take the memory of the parameters.
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
        # every process of a run draws the same index without communication.
        random = np.random.default_rng((self._experiment.seed, step))
        index = random.choice(len(self._source), count, replace=count > len(self._source))
        # Stratified: one time in each of `count` equal parts, moved by one common offset.
        times = ((random.random() + np.arange(count)) / count).astype(np.float32)
        key = jax.random.fold_in(root_key(self._experiment.seed, "gradient_curve"), step)
        add, decay = _compiled_add(self._experiment, mesh), _compiled_decay(mesh)
        # Once per measurement, before its turns: all images of a measurement have the same weight.
        curve = decay(curve)
        # A host loop over one compiled program; each turn adds
        # to the sums on the device, and none is waited for.
        for first in range(0, count, mesh.size):
            # An image's number alone decides on its draws, so that they are the same on any number of devices.
            number = first + rows_here(mesh, mesh.size)
            # The last turn may be filled up, by images of no weight.
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
    """Returns the curve with the gradients of `images`, one of each device."""
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
    # One image a device, so that the gradient within shard_map is that of
    # a single image: the norm of a batch's gradient would not tell E|g|^2.
    norms = over_devices(params, images, draws, dropout_keys)
    in_bins = jax.nn.one_hot(step_index(rows.t, BINS), BINS) * rows.weight[:, None]  # [B, bins]
    # sums of products, not a matrix product, whose factors a TPU would round
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
    """Returns the squared norm of the gradient of one image's losses but those at the ends, of each group of `SHARES`."""

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
        # Weight 1, no end losses: g_t is what a draw at time t contributes before its importance weight.
        diffusion = bits_per_dim(losses.bound.diffusion, images.levels[0].size)
        return jnp.sum(sum(losses.auxiliary.values(), diffusion))

    gradient = jax.grad(loss)(param_sharding.gather(params, specs))
    others = {part: leaves for part, leaves in gradient.items() if part not in ("encoder", "schedule")}
    return {"encoder": _squared_norm(gradient["encoder"]), "others": _squared_norm(others)}


def _squared_norm(tree: Params) -> Float[Array, " 1"]:
    return jnp.sum(jnp.asarray([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]))[None]
