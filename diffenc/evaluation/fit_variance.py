"""The best variances of a chain's reverse steps [70], from a data set, without training.

With sigma_P = sigma_Q a step costs || mu_P - mu_Q ||^2 / (2 sigma_Q^2) nats, so its mean over data is all
that the best sigma_P^2 = sigma_Q^2 + E || mu_P - mu_Q ||^2 / d takes to know: sigma_P^2 / sigma_Q^2 = 1 + 2 E KL / d.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.core.discretization import equal_times
from diffenc.core.model import draw_noise
from diffenc.core.objective import discrete, step_index
from diffenc.errors import UserError
from diffenc.evaluation.batches import EvaluationBatches, compile_on_mesh
from diffenc.evaluation.commands import restore_for_bound
from diffenc.evaluation.evaluated_bound import check_num_timesteps
from diffenc.evaluation.streaming_stats import StreamingMean
from diffenc.interfaces import Images, Key, Params, PerExample, Times
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.workdir import fitted_chains
from diffenc.workdir.mirror import on_local_copy


@on_local_copy
def fit_variance(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measure the excess of every step of the chain that `evaluate` names, and file it in the workdir.

    Raises:
      UserError: no T is given, there is no run, or a step was drawn less than twice.
    """
    mesh, settings = data_mesh(experiment.mesh), experiment.evaluate
    if settings.num_timesteps == 0:
        raise UserError("--mode=fit_variance needs T: give --num_timesteps=T")
    check_num_timesteps(serialize.network_precision(experiment), settings.num_timesteps)
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    target = fitted_chains.path(workdir, settings.num_timesteps, settings.times, settings.variance)
    times, chosen = equal_times(settings.num_timesteps), {}
    if settings.times != "equal":
        plan = fitted_chains.plan(workdir, settings, step)
        times, chosen = plan.times, {key: of for key, of in plan.of.items() if key == "times_of"}
    passes = EvaluationBatches(
        experiment, experiment.fit, mesh, "fit", experiment.fit.passes * experiment.fit.times_per_image
    )
    check_draws(settings.num_timesteps, passes)
    costs = measure_chain_costs(experiment, mesh, ema, times, passes)
    to_excess = 2 / np.prod(experiment.dataset.image_shape)
    record = {
        "excess": (to_excess * costs.mean).tolist(),
        "excess_se": (to_excess * costs.standard_error).tolist(),
        "fewest_draws": int(costs.count.min()),
        "num_images": len(passes.source),
        **chosen,
        "excess_of": fitted_chains.origin(experiment, step),
    }
    fit = fitted_chains.save(target, times, record)
    logging.info(
        "variances of %d steps, each from %d draws or more, in %s",
        settings.num_timesteps,
        costs.count.min(),
        target,
    )
    return fit


def check_draws(num_steps: int, passes: EvaluationBatches) -> None:
    """Raise UserError unless every step is drawn twice at least, without which it has no standard error."""
    number, visits = len(passes.source), range(passes.passes)
    index = np.concatenate([even_times(visit, 0, number) for visit in visits]) * num_steps
    fewest = np.bincount(index.astype(int), minlength=num_steps).min()
    if fewest < 2:
        raise UserError(
            f"{number * passes.passes} draws for {num_steps} steps leave {fewest} for one of them: bind "
            "fit.num_images, fit.passes or fit.times_per_image higher"
        )


def measure_chain_costs(
    experiment: Experiment,
    mesh: Mesh,
    params: Params,
    times: Float[np.ndarray, " stops"],
    passes: EvaluationBatches,
) -> StreamingMean:
    """Mean cost in nats of each step between `times` with sigma_P = sigma_Q.

    Its errors take draws to be independent; those of one image at one step are not, if that comes twice.
    """
    model, num_levels, num_steps = experiment.model, experiment.dataset.num_levels, len(times) - 1
    plan = fitted_chains.FittedChain(times)

    def costs(given: tuple[Params, Times], images: Images, key: Key) -> tuple[Int[Array, " b"], PerExample]:
        (params, t), (levels, condition) = given, images
        draws = draw_noise(key, levels.shape)._replace(t=t)
        rule = discrete(plan.chain(model.schedule, params["schedule"]))
        terms = model.elbo(params, levels, draws, num_levels=num_levels, condition=condition, step_rule=rule)
        return step_index(t, num_steps), terms.diffusion / num_steps

    compiled, result = compile_on_mesh(mesh, costs), StreamingMean(num_steps)
    progress = Progress("fitting", len(passes))
    for visit in passes:
        t = even_times(visit.number, visit.first, passes.batch_size)
        index, nats = jax.device_get(compiled((params, t), visit.images, visit.key))
        result.add(index[visit.real], nats[visit.real].astype(np.float64))
        progress()
    return result


def even_times(visit: int, first: int, count: int) -> Float[np.ndarray, " count"]:
    """Times for images `first`, `first` + 1, ... in a visit to all of them, even over steps and over visits.

    The golden ratio's sequence visits equal parts of [0, 1) evenly, where of thousands of random times some
    would miss one of a thousand steps; the root of two moves an image's time from visit to visit.
    """
    places = np.arange(first, first + count) * ((np.sqrt(5) - 1) / 2) + visit * np.sqrt(2)
    below_one = np.nextafter(np.float32(1), np.float32(0))  # where rounding would reach 1
    return np.minimum(np.mod(places, 1.0), below_one).astype(jnp.zeros(()).dtype)
