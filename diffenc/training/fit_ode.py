"""--mode=fit_ode: a second head of a trained run, with which its probability-flow ODE has the marginals of its SDE.

The bound determines only the sum G value + slope, and a single trained head fits that sum, not the value on its own. Here a
second network is fitted to a correction of the value by denoising x_phi, with the gradients of all trained parameters stopped.
The loss is the mean square of (value - x_phi) / sigma, which is that of v. Its minimiser is value = E[x_phi | z]. The
correction of the value is compensated in the slope, so that the bound and ancestral samples do not change.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc.config.experiment import Experiment
from diffenc.core.compiled_once import compiled_once
from diffenc.core.gaussian import sigma_squared, sum_squares
from diffenc.core.model import Model, draw_noise
from diffenc.core.objective import continuous
from diffenc.core.parameters import count_parameters, name_leaves
from diffenc.core.pixels import scale_pixels
from diffenc.core.rng import root_key
from diffenc.core.unroll import trace_for
from diffenc.data.batches import train_batches
from diffenc.errors import UserError
from diffenc.evaluation.evaluation_record import model_metadata
from diffenc.evaluation.restore_params import restore_ema
from diffenc.evaluation.second_head import abstract_head, with_head_params, with_value_head
from diffenc.interfaces import Context, Images, Key, Params
from diffenc.parallel.sharding import data_mesh, images_to_devices, platform_of, replicated, rows_here
from diffenc.registry import selector_of
from diffenc.runtime.progress import Progress
from diffenc.sampling.solvers import slope_is_modelled
from diffenc.training.state import update_ema
from diffenc.workdir import fitted_chains, second_heads
from diffenc.workdir.mirror import on_local_copy


class ValueLosses(NamedTuple):
    """Means over a batch of the squares of (value - x_phi) / sigma, per dimension.

    Attributes:
      head: loss with the second head.
      one_head: loss of the trained head alone.
    """

    head: Float[Array, ""]
    one_head: Float[Array, ""]


class HeadState(NamedTuple):
    """The state of the fit: step number, parameters, their moving average, and the optimizer's state."""

    step: Int[Array, ""]
    head: Params
    ema: Params
    opt_state: optax.OptState


@on_local_copy
def fit_ode(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Fits a second head to the averaged parameters in `fit.head_steps` steps, writes it to the workdir; returns its record.

    The fit uses the train split, with the batch size, optimizer and EMA decay of training.

    Raises:
      UserError: there is no run, or its ODE needs no head or cannot have one.
    """
    check_fittable(experiment)
    mesh, num_steps = data_mesh(experiment.mesh), experiment.fit.head_steps
    ema, step = restore_ema(experiment, workdir, mesh, experiment.evaluate.step)
    if slope_is_modelled(experiment.model, ema, experiment.dataset.image_shape):
        raise UserError(
            "--mode=fit_ode: value and slope of this run's generative mean are those of its encoder as they are, so that its ODE "
            "needs no second head"
        )
    head, losses = fit_head(experiment, mesh, ema)
    # The mean over the last tenth of the steps: the loss of a single batch is noisy.
    last = losses[-max(1, num_steps // 10) :].mean(axis=0)
    record = {
        "value_loss": float(last[0]),
        "value_loss_one_head": float(last[1]),
        "num_params": count_parameters(head),
        **model_metadata(experiment),
        second_heads.ORIGIN: {**fitted_chains.fit_origin(experiment, step), "head_steps": num_steps},
    }
    wanted = name_leaves(abstract_head(experiment.model, experiment.dataset.image_shape))
    # In float32 even if the fit was in float64, as in checkpoints.
    arrays = {name: np.asarray(leaf).astype(wanted[name].dtype) for name, leaf in name_leaves(head).items()}
    second_heads.save_head(workdir, arrays, record)
    logging.info(
        "mean square of (value - x_phi) / sigma over the last tenth of steps: %.5f, of one head %.5f; in %s",
        *(*last, second_heads.head_file(workdir)),
    )
    return record


def check_fittable(experiment: Experiment) -> None:
    """Raises UserError if the run has a second head already, or was trained at T steps, where G value + slope is another sum."""
    mean = experiment.model.generative_mean
    if mean.learns_value:
        raise UserError(
            f"--mode=fit_ode: {selector_of(type(mean))} has learned the value in training: there is nothing to fit"
        )
    if experiment.num_timesteps:
        raise UserError(
            f"--mode=fit_ode: the run was trained at T = {experiment.num_timesteps}, and its sum of value and slope is that of "
            "those steps; an ODE needs one trained in continuous time"
        )


def fit_head(
    experiment: Experiment, mesh: Mesh, params: Params
) -> tuple[Params, Float[np.ndarray, "steps 2"]]:
    """Returns the averaged parameters of the second network, and `ValueLosses` of each step."""
    num_steps, size = experiment.fit.head_steps, experiment.batch_size
    key = root_key(experiment.fit.seed, "fit_ode")
    take_step = compile_head_step(experiment, mesh)
    init_key, step_key = jax.random.split(key)
    state = init_head(experiment, init_key)
    batches = train_batches(
        experiment.dataset.source("train"), size, experiment.fit.seed, rows=rows_here(mesh, size)
    )
    losses, progress = [], Progress("fit of the second head", num_steps)
    try:
        for k in range(num_steps):
            images = images_to_devices(next(batches), experiment.model.conditioning, mesh)
            state, loss = take_step(params, state, images, jax.random.fold_in(step_key, k))
            losses.append(loss)
            if k % 16 == 15:
                jax.block_until_ready(loss)  # the host does not run ahead without end
            progress()
    finally:
        batches.close()
    fetched = np.asarray(jax.device_get(losses), np.float64)
    if not np.isfinite(fetched).all():
        raise UserError(
            "--mode=fit_ode: the loss became NaN or infinite: bind a lower learning rate of the optimizer"
        )
    return jax.device_get(state.ema), fetched


def init_head(experiment: Experiment, key: Key) -> HeadState:
    """Returns the state before the first step."""
    optimizer = experiment.optimizer.build(experiment.fit.head_steps)
    shape = experiment.dataset.image_shape

    @jax.jit
    def init() -> HeadState:
        head = experiment.model.network.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,)))
        return HeadState(jnp.zeros((), jnp.int32), head, jax.tree.map(jnp.copy, head), optimizer.init(head))

    return init()


@compiled_once
def compile_head_step(experiment: Experiment, mesh: Mesh) -> Any:
    """Returns the compiled step: (params, state, images, key) -> (state, `ValueLosses`)."""
    optimizer, model = experiment.optimizer.build(experiment.fit.head_steps), experiment.model
    num_levels = experiment.dataset.num_levels

    def take_step(
        params: Params, state: HeadState, images: Images, key: Key
    ) -> tuple[HeadState, ValueLosses]:
        loss = partial(value_losses, model, num_levels, params, images, key)
        gradient, losses = jax.grad(loss, has_aux=True)(state.head)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.head)
        head = optax.apply_updates(state.head, updates)
        ema = update_ema(state.ema, head, state.step, experiment.ema_decay)
        return HeadState(state.step + 1, head, ema, opt_state), losses

    traced = trace_for(platform_of(mesh), take_step)
    return jax.jit(traced, donate_argnums=1, out_shardings=replicated(mesh))


def value_losses(
    model: Model, num_levels: int, params: Params, images: Images, key: Key, head: Params
) -> tuple[Float[Array, ""], ValueLosses]:
    """Returns the loss of a second network with parameters `head`, and `ValueLosses`, with times and noise drawn by `key`.

    Without dropout.
    """
    context, draws = Context(images.condition), draw_noise(key, images.levels.shape)
    encode = model.prepare(params, scale_pixels(images.levels, num_levels), context)
    step = continuous(encode, partial(model.log_snr, params), partial(model.increment, params), draws.t)

    def loss(model: Model, params: Params) -> Float[Array, ""]:
        error, _ = model.estimate_error(params, step, draws.eps, context)
        return jnp.mean(sum_squares(error.value) / sigma_squared(step.log_snr)) / step.x_phi[0].size

    # Both at the same times and noise, so that their difference has little variance.
    both = ValueLosses(loss(with_value_head(model), with_head_params(params, head)), loss(model, params))
    return both.head, both
