"""--mode=fit_variance: the best variances of a chain's reverse steps [70], from a data set, without training.

With sigma_P = sigma_Q a step costs || mu_P - mu_Q ||^2 / (2 sigma_Q^2) nats, and its mean over data
determines the best sigma_P^2 = sigma_Q^2 + E || mu_P - mu_Q ||^2 / d: sigma_P^2 / sigma_Q^2 = 1 + 2 E KL / d.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import check_num_timesteps, network_precision
from diffenc.core.discretization import Chain, equal_times
from diffenc.core.model import Model, draw_noise
from diffenc.core.objective import discrete, step_index
from diffenc.errors import UserError
from diffenc.evaluation.batches import (
    EvaluationBatch,
    EvaluationBatches,
    compile_on_mesh,
    map_batches,
    resolve_batch_size,
)
from diffenc.evaluation.evaluation_record import model_metadata
from diffenc.evaluation.measured_path import measured_model
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.evaluation.streaming_stats import StreamingMean
from diffenc.interfaces import Images, Key, Params, PerExample, Times
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.workdir import fitted_chains
from diffenc.workdir.fitted_chains import measured_path
from diffenc.workdir.mirror import on_local_copy


@on_local_copy
def fit_variance(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measures the excess of every step of the chain that `evaluate` names, and writes it to the workdir.

    Raises:
      UserError: no T is given, there is no run, or a step was drawn less than twice.
    """
    mesh, settings = data_mesh(experiment.mesh), experiment.evaluation
    dataset, num_timesteps = experiment.dataset, settings.num_timesteps
    if num_timesteps == 0:
        raise UserError("--mode=fit_variance needs T: give --num_timesteps=T")
    check_num_timesteps(network_precision(experiment), num_timesteps)
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    model, path_of = measured_model(experiment, workdir, step)
    on_path = fitted_chains.path_origin(experiment, path_of)
    target = fitted_chains.fit_path(workdir, settings)
    # Fitted times first, if any: the best variances belong to the steps between them.
    times, fitted_on = equal_times(num_timesteps), {}
    if settings.times != "equal":
        schedule_fit = fitted_chains.find_chain(workdir, settings, step)
        times = schedule_fit.times
        fitted_on = {key: origin for key, origin in schedule_fit.of.items() if key == "times_of"}
    fit = resolve_batch_size(experiment.fit, experiment.batch_size)
    # One time per image and pass here, so times_per_image passes stand for one.
    passes = fit.passes * fit.times_per_image
    batches = EvaluationBatches(dataset, model.conditioning, fit, mesh, "fit", passes)
    # Before compiling: each step needs two draws for a standard error.
    check_draws(num_timesteps, batches)
    # Measured with sigma_P = sigma_Q: this cost determines the best sigma_P^2 in closed form.
    costs = measure_chain_costs(model, dataset.num_levels, mesh, ema, times, batches)
    # Cost = || mu_P - mu_Q ||^2 / (2 sigma_Q^2), excess = E || mu_P - mu_Q ||^2 / (d sigma_Q^2) = 2 cost / d.
    to_excess = 2 / np.prod(dataset.image_shape)
    record = {
        "excess": (to_excess * costs.mean).tolist(),
        "excess_se": (to_excess * costs.standard_error).tolist(),
        "fewest_draws": int(costs.count.min()),
        "num_images": len(batches.source),
        **model_metadata(experiment),
        **measured_path(experiment),
        **fitted_on,
        **path_of,
        "excess_of": {**fitted_chains.fit_origin(experiment, step), **on_path},
    }
    saved = fitted_chains.save_fit(target, times, record)
    logging.info(
        "variances of %d steps, each from %d draws or more, in %s", num_timesteps, costs.count.min(), target
    )
    return saved


def check_draws(num_steps: int, batches: EvaluationBatches) -> None:
    """Raises UserError unless every step is drawn at least twice: a single draw has no standard error."""
    count, passes = len(batches.source), range(batches.passes)
    # Times are a known sequence, so too few draws for a step are found before anything is computed.
    index = np.concatenate([even_times(number, 0, count) for number in passes]) * num_steps
    fewest = np.bincount(index.astype(int), minlength=num_steps).min()
    if fewest < 2:
        raise UserError(
            f"{count * batches.passes} draws for {num_steps} steps leave {fewest} for one of them: bind "
            "fit.num_images, fit.passes or fit.times_per_image higher"
        )


def measure_chain_costs(
    model: Model,
    num_levels: int,
    mesh: Mesh,
    params: Params,
    times: Float[np.ndarray, " stops"],
    batches: EvaluationBatches,
) -> StreamingMean:
    """Returns the mean cost in nats of each step between `times` with sigma_P = sigma_Q.

    Its standard errors assume independent draws, which two draws of one image at the same step are not.
    """
    num_steps, chain = len(times) - 1, fitted_chains.FittedChain(times).chain(model.schedule, params)
    compiled = compile_on_mesh(mesh, batch_costs, model, num_levels)

    def inputs(batch: EvaluationBatch) -> tuple[Images, tuple[Key, Float[np.ndarray, " b"]]]:
        return batch.images, (batch.key, even_times(batch.pass_index, batch.first, batches.batch_size))

    costs, progress = StreamingMean(num_steps), Progress("fitting", len(batches))
    for result, batch in map_batches(compiled, (params, chain), batches, inputs, progress):
        index, nats = batch.without_padding(result)
        # The mean over the draws of each step by itself: the optimal variance is one number a step [70].
        costs.add(index, nats.astype(np.float64))
    return costs


def batch_costs(
    model: Model,
    num_levels: int,
    bound_params: tuple[Params, Chain],
    images: Images,
    key_and_times: tuple[Key, Times],
) -> tuple[Int[Array, " b"], PerExample]:
    """Returns the step of each image's time, and the cost of that step in nats."""
    (params, chain), (levels, condition), (key, t) = bound_params, images, key_and_times
    # Noise as in training, but given times: random ones could miss a step.
    draws, num_steps = draw_noise(key, levels.shape)._replace(t=t), len(chain.log_w)
    terms = model.elbo(
        params, levels, draws, num_levels=num_levels, condition=condition, step_rule=discrete(chain)
    )
    # The discrete rule multiplies by T, for it estimates a sum over steps by one of them.
    return step_index(t, num_steps), terms.diffusion / num_steps


def even_times(pass_index: int, first: int, count: int) -> Float[np.ndarray, " count"]:
    """Returns times for images `first`, `first` + 1, ... in a pass, spread evenly over steps and over passes.

    The golden ratio's sequence fills equal parts of [0, 1) evenly, where of thousands of random times some
    would miss one of a thousand steps; the root of two shifts an image's time from pass to pass.
    """
    positions = np.arange(first, first + count) * ((np.sqrt(5) - 1) / 2) + pass_index * np.sqrt(2)
    below_one = np.nextafter(np.float32(1), np.float32(0))  # where rounding would reach 1
    return np.minimum(np.mod(positions, 1.0), below_one).astype(jnp.zeros(()).dtype)
