"""The train state, and the train step: a pure function of (state, batch)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from diffenc.config.experiment import Experiment
from diffenc.config.names import SETTINGS
from diffenc.core.compiled_once import compiled_once
from diffenc.core.model import Terms
from diffenc.core.parameters import abstract_arrays, require_same_structure
from diffenc.core.rng import root_key
from diffenc.core.unroll import trace_for
from diffenc.interfaces import Images, Params
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import batch_sharded, platform_of
from diffenc.runtime.compile_options import brief_options, steady_options
from diffenc.training.gradient import batch_gradient
from diffenc.training.time_curves import Curve, begin_curve, bind_curve, update_curve
from diffenc.training.trained_bound import trained_bound

Scalar = Float[Array, ""]
Count = Int[Array, ""]


class Sums(NamedTuple):
    """Sums over the steps since the last log row, kept on the device so that no step waits for the host.

    Attributes:
      steps: number of steps summed.
      terms: sums of the terms of -ELBO, in bits/dim.
      auxiliary: sums of the generative mean's auxiliary losses, by name.
      grad_norm: sum of the global norms of the gradient.
      bad_step: first step of the run whose loss, gradient or update was not finite; 0 = none.
    """

    steps: Count
    terms: Terms
    auxiliary: dict[str, Scalar]
    grad_norm: Scalar
    bad_step: Count


class TrainState(NamedTuple):
    """The complete state of a run between two steps.

    Attributes:
      step: optimizer steps taken. With the seed it determines data, noise and dropout masks, and with `curve` the times.
      params: parameters of each part of the model, by name, and under "variance" those of a learned variance.
      ema: exponential moving average of `params`, which evaluation and sampling use.
      curve: the loss or the gradient over time; None if the time sampler uses no curve.
    """

    step: Count
    params: Params
    ema: Params
    opt_state: optax.OptState
    sums: Sums
    curve: Curve = None


# Number of EMA updates assumed for parameters taken from another run, so that the decay starts at its full value.
ORIGIN_UPDATES = 10**6

# Fields of an experiment that neither its first state nor its train step depends on.
OUTSIDE_A_STEP = (
    "log_every", "checkpoint_every", "evaluate_every", "sample_every", "keep_last", "keep_every", "profile_at", "writers",
    *(name for name in SETTINGS if name != "mesh"),
)  # fmt: skip
_DEFAULTS = {
    field.name: field.default for field in dataclasses.fields(Experiment) if field.name in OUTSIDE_A_STEP
}

TrainStep = Callable[[TrainState, Images], TrainState]


def zero_sums(auxiliary: Sequence[str] = ()) -> Sums:
    """Returns sums over zero steps, with auxiliary losses of these names."""
    # Separate buffers, because all of them are donated to the train step.
    terms = Terms(*(jnp.zeros(()) for _ in Terms._fields))
    losses = {name: jnp.zeros(()) for name in auxiliary}
    return Sums(jnp.zeros((), jnp.int32), terms, losses, jnp.zeros(()), jnp.zeros((), jnp.int32))


def init_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step. Slow unless under `jax.jit`."""
    params = experiment.init_params(root_key(experiment.seed, "init"))
    # A copy: a buffer that occurs twice in the state could not be donated twice.
    ema = jax.tree.map(jnp.copy, params)
    opt_state = experiment.optimizer.build(experiment.steps).init(params)
    # Part of the state, hence of the checkpoint: a resumed run draws its times by the same curve.
    curve = begin_curve(experiment.time_sampler)
    sums = zero_sums(experiment.model.generative_mean.auxiliary)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, opt_state, sums, curve)


def abstract_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the state; computes nothing.

    Raises:
      UserError: a plugin cannot be built for these images, or the model is larger than any machine.
    """
    # Traced, never run: neither shapes and shardings nor the checks on them take device memory.
    shapes = abstract_arrays(lambda: init_state(experiment))
    return param_sharding.with_shardings(shapes, shapes.params, mesh, experiment.mesh)


def check_structure(experiment: Experiment, params: Params) -> None:
    """Raises UserError unless a second `init` returns the pytree structure of `params`, as compiled steps need."""
    owners = " or ".join(map(experiment.name_part, params))
    require_same_structure(owners, lambda: params, experiment.abstract_params)


def shardings(abstract: PyTree) -> PyTree:
    """Returns the sharding of each leaf of an abstract state."""
    return jax.tree.map(lambda a: a.sharding, abstract)


def abstract_images(experiment: Experiment, mesh: Mesh, count: int | None = None) -> Images:
    """Returns shapes, dtypes and shardings of `count` images; None = a batch."""
    shape = (experiment.batch_size if count is None else count, *experiment.dataset.image_shape)
    condition = experiment.model.conditioning(np.zeros(shape[0], np.int32))
    images: Any = Images(jax.ShapeDtypeStruct(shape, jnp.uint8), condition)  # pyright: ignore[reportArgumentType]
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharded(mesh)), images
    )


def make_train_step(experiment: Experiment, mesh: Mesh) -> TrainStep:
    """Returns the jitted train step, which takes the old state's buffers by donation.

    Experiments that differ only in settings outside of a step (`OUTSIDE_A_STEP`) share one compiled function.
    """
    return _jit_train_step(only_training(experiment), mesh)


def make_init(experiment: Experiment, mesh: Mesh) -> Callable[[], TrainState]:
    """Returns the jitted `init_state`, with sharded leaves; experiments with equal training settings share it."""
    # The shape is an argument of its own: for data sets that read it from their files, equality does not cover it.
    return _jit_init(only_training(experiment), mesh, experiment.dataset.image_shape)


def only_training(experiment: Experiment) -> Experiment:
    """Returns the experiment with defaults for the fields that affect neither its first state nor its train step."""
    return dataclasses.replace(experiment, **_DEFAULTS)


@compiled_once
def _jit_init(experiment: Experiment, mesh: Mesh, image_shape: tuple[int, ...]) -> Callable[[], TrainState]:
    state_shardings = shardings(abstract_state(experiment, mesh))
    options = brief_options(platform_of(mesh))
    return jax.jit(lambda: init_state(experiment), out_shardings=state_shardings, compiler_options=options)


@compiled_once
def _jit_train_step(experiment: Experiment, mesh: Mesh) -> TrainStep:
    optimizer = experiment.optimizer.build(experiment.steps)
    updates_before = 0 if experiment.init_from is None else ORIGIN_UPDATES
    step_key, bound = root_key(experiment.seed, "train"), trained_bound(experiment)

    def train_step(state: TrainState, images: Images) -> TrainState:
        # Keys come from the step number, which is part of the state: a resumed run draws the same numbers.
        key = jax.random.fold_in(step_key, state.step)
        sample_times = bind_curve(experiment.time_sampler, state.curve)
        # 1. Gradient of this batch, at times drawn by the curve of earlier steps.
        batch = batch_gradient(state.params, experiment, bound, sample_times, images, key, mesh)
        gradient = batch.gradient
        # 2. Optimizer, then the average of the new parameters.
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, state.step + updates_before, experiment.ema_decay)
        # 3. Sums for the log and the check for NaN, both on the
        # device; the curve is updated last, for the next step.
        norms = optax.tree.norm(gradient), optax.tree.norm(updates)
        sums = add_step(state.sums, batch.terms, batch.auxiliary, *norms, state.step + 1)
        curve = update_curve(state.curve, batch)
        return TrainState(state.step + 1, params, ema, opt_state, sums, curve)

    state_shardings = shardings(abstract_state(experiment, mesh))
    return jax.jit(
        trace_for(platform_of(mesh), train_step),
        # The same shardings in and out: the new state fits the
        # donated buffers, and the next call needs no transfer.
        in_shardings=(state_shardings, batch_sharded(mesh)),
        out_shardings=state_shardings,
        # Parameters, average and moments are updated in place:
        # without donation the peak would hold both states.
        donate_argnums=0,
        compiler_options=steady_options(platform_of(mesh)),
    )


def update_ema(ema: Params, params: Params, step: Count, decay: float) -> Params:
    """Returns the moving average with decay min(decay, (1 + k) / (10 + k)) at update k, so that initial values fade fast."""
    # average + rate (new - average) rather than decay average + (1 - decay) new: with a rate of 1e-4 the
    # increment is rounded, not the sum of two products.
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, new: average + rate.astype(new.dtype) * (new - average), ema, params)


def add_step(
    sums: Sums,
    terms: Terms,
    auxiliary: dict[str, Scalar],
    grad_norm: Scalar,
    update_norm: Scalar,
    step: Count,
) -> Sums:
    """Returns the sums with one more step, and records the first step that was not finite.

    The update is checked too: a finite gradient may still lead to parameters with a non-finite loss, computed only a step
    later.
    """
    # One boolean on the device; no branch, so that the step's program does not depend on it.
    finite = (
        jnp.isfinite(sum(auxiliary.values(), terms.total))
        & jnp.isfinite(grad_norm)
        & jnp.isfinite(update_norm)
    )
    # The first bad step is kept: all later ones follow from it.
    bad_step = jnp.where((sums.bad_step == 0) & ~finite, step, sums.bad_step)
    terms, auxiliary = jax.tree.map(jnp.add, (sums.terms, sums.auxiliary), (terms, auxiliary))
    return Sums(sums.steps + 1, terms, auxiliary, sums.grad_norm + grad_norm, bad_step)
