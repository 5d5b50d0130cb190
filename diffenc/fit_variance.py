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

from diffenc import fits
from diffenc.data import some_of
from diffenc.errors import UserError
from diffenc.evaluate import check_precision
from diffenc.experiment import Experiment
from diffenc.interfaces import Key, Params, PerExample, Times
from diffenc.model import draw
from diffenc.modes import restore_ema
from diffenc.objective import discrete, step_index
from diffenc.passes import Passes, compile_over
from diffenc.pixels import Levels
from diffenc.progress import Progress
from diffenc.sharding import data_mesh
from diffenc.streaming import StreamingMean


def fit_variance(experiment: Experiment, workdir: str | Path) -> dict[str, Any]:
    """Measure the excess of every step of the chain that `evaluate` names, and file it in the workdir.

    Raises:
      UserError: no T is given, there is no run, or a step was drawn less than twice.
    """
    workdir, mesh, settings = Path(workdir), data_mesh(), experiment.evaluate
    if settings.steps == 0:
        raise UserError("--mode=fit_variance needs T: give --steps=T")
    check_precision(settings.steps)
    ema, step = restore_ema(experiment, workdir, mesh, settings.step)
    plan = fits.plan(workdir, settings)
    costs = measure(experiment, mesh, ema, fits.Plan(plan.times))
    if costs.count.min() < 2:
        raise UserError(
            f"only {costs.count.sum()} draws for {settings.steps} steps, {costs.count.min()} for one of them: "
            "bind fit.num_images, fit.passes or fit.times_per_image higher"
        )
    split = experiment.dataset.source(experiment.fit.split)
    to_excess = 2 / np.prod(experiment.dataset.image_shape)
    target = fits.path(workdir, settings.steps, settings.times, settings.variance)
    record = {
        **(fits.load(target) if target.is_file() else {}),
        "excess": (to_excess * costs.mean).tolist(),
        "excess_se": (to_excess * costs.standard_error).tolist(),
        "fewest_draws": int(costs.count.min()),
        "split": experiment.fit.split,
        "num_images": len(some_of(split, experiment.fit.num_images, experiment.fit.seed)),
        "step": step,
    }
    fits.save(target, plan.times, record)
    logging.info(
        "variances of %d steps, each from %d draws or more, in %s", settings.steps, costs.count.min(), target
    )
    return fits.load(target)


def measure(experiment: Experiment, mesh: Mesh, params: Params, plan: fits.Plan) -> StreamingMean:
    """Mean cost in nats of each step of `plan` with sigma_P = sigma_Q, over the images of `experiment.fit`."""
    settings, model, num_levels = experiment.fit, experiment.model, experiment.dataset.num_levels
    num_steps = len(plan.times) - 1

    def costs(given: tuple[Params, Times], levels: Levels, key: Key) -> tuple[Int[Array, " b"], PerExample]:
        params, t = given
        draws = draw(key, levels.shape)._replace(t=t)
        rule = discrete(plan.chain(model.schedule, params["schedule"]))
        terms = model.elbo(params, levels, draws, num_levels=num_levels, step_rule=rule)
        return step_index(t, num_steps), terms.diffusion / num_steps

    passes = Passes(experiment, settings, mesh, "fit", settings.passes * settings.times_per_image)
    compiled, result = compile_over(mesh, costs), StreamingMean(num_steps)
    progress = Progress("fitting", len(passes))
    for number, (_, levels, real, key) in enumerate(passes):
        t = even_times(number * passes.batch_size, passes.batch_size)
        index, nats = jax.device_get(compiled((params, t), levels, key))
        result.add(index[real], nats[real].astype(np.float64))
        progress()
    return result


def even_times(first: int, count: int) -> Float[np.ndarray, " count"]:
    """Places `first`, `first` + 1, ... of the golden ratio's sequence, which visits equal parts of [0, 1) evenly.

    Drawn at random, some of a thousand steps would be missed by eight thousand draws.
    """
    t = np.mod(np.arange(first, first + count) * ((np.sqrt(5) - 1) / 2), 1.0)
    return t.astype(jnp.zeros(()).dtype)
