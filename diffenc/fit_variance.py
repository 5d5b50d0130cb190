"""The best variances of a chain's reverse steps [70], from a data set, without training.

With sigma_P = sigma_Q a step costs || mu_P - mu_Q ||^2 / (2 sigma_Q^2) nats, so its mean over data is all
that the best sigma_P^2 = sigma_Q^2 + E || mu_P - mu_Q ||^2 / d takes to know: sigma_P^2 / sigma_Q^2 = 1 + 2 E KL / d.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc import fits
from diffenc.data import eval_batches, some_of
from diffenc.errors import UserError
from diffenc.evaluate import check_precision
from diffenc.experiment import Experiment
from diffenc.interfaces import Key, Params, PerExample, Times
from diffenc.model import draw
from diffenc.modes import restore_ema
from diffenc.objective import discrete, step_index
from diffenc.pixels import Levels
from diffenc.progress import Progress
from diffenc.randomness import root_key
from diffenc.sharding import check_divisible, data_mesh, on_each, split_over, to_devices


class StreamingMean:
    """Means and their standard errors of values that arrive in groups, one mean for each of `size` bins."""

    def __init__(self, size: int):
        self.count = np.zeros(size, np.int64)
        self.mean = np.zeros(size)
        self._squares = np.zeros(size)  # sum of squared deviations from the mean

    def add(self, index: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"]) -> None:
        """Put each value in the bin of its index (Chan, Golub and LeVeque's update)."""
        count = np.bincount(index, minlength=len(self.mean))
        seen = np.maximum(count, 1)
        mean = np.bincount(index, value, len(self.mean)) / seen
        squares = np.bincount(index, np.square(value - mean[index]), len(self.mean))
        total = np.maximum(self.count + count, 1)
        shift = np.where(count > 0, mean - self.mean, 0.0)
        self._squares += squares + np.square(shift) * self.count * count / total
        self.mean += shift * count / total
        self.count += count

    @property
    def standard_error(self) -> Float[np.ndarray, " size"]:
        """Of each mean; infinite below two values."""
        variance = self._squares / np.maximum(self.count - 1, 1)
        return np.where(self.count > 1, np.sqrt(variance / np.maximum(self.count, 1)), np.inf)


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
    to_excess = 2 / np.prod(experiment.dataset.image_shape)
    target = fits.path(workdir, settings.steps, settings.times, settings.variance)
    record = {
        **(fits.load(target) if target.is_file() else {}),
        "excess": (to_excess * costs.mean).tolist(),
        "excess_se": (to_excess * costs.standard_error).tolist(),
        "fewest_draws": int(costs.count.min()),
        "split": experiment.fit.split,
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
    source = some_of(experiment.dataset.source(settings.split), settings.num_images, settings.seed)
    batch_size = settings.batch_size or experiment.batch_size
    check_divisible("fit.batch_size", batch_size, mesh)
    num_steps = len(plan.times) - 1

    def costs(params: Params, levels: Levels, t: Times, key: Key) -> tuple[Int[Array, " b"], PerExample]:
        draws = draw(key, levels.shape)._replace(t=t)
        rule = discrete(plan.chain(model.schedule, params["schedule"]))
        terms = model.elbo(params, levels, draws, num_levels=num_levels, step_rule=rule)
        return step_index(draws.t, num_steps), terms.diffusion / num_steps

    compiled = jax.jit(
        costs,
        in_shardings=(on_each(mesh), split_over(mesh), split_over(mesh), on_each(mesh)),
        out_shardings=on_each(mesh),
    )
    result, root, drawn = StreamingMean(num_steps), root_key(settings.seed, "fit"), 0
    visits = settings.passes * settings.times_per_image
    progress: Callable[[], None] = Progress("fitting", visits * -(-len(source) // batch_size))
    for visit in range(visits):
        for number, (batch, weight) in enumerate(eval_batches(source, batch_size)):
            key = jax.random.fold_in(jax.random.fold_in(root, visit), number)
            levels, t = (to_devices(array, mesh) for array in (batch["image"], even_times(drawn, batch_size)))
            index, nats = jax.device_get(compiled(params, levels, t, key))
            result.add(index[weight > 0], nats[weight > 0].astype(np.float64))
            drawn += batch_size
            progress()
    return result


def even_times(first: int, count: int) -> Float[np.ndarray, " count"]:
    """Places `first`, `first` + 1, ... of the golden ratio's sequence, which visits equal parts of [0, 1) evenly.

    Drawn at random, some of a thousand steps would be missed by eight thousand draws.
    """
    t = np.mod(np.arange(first, first + count) * ((np.sqrt(5) - 1) / 2), 1.0)
    return t.astype(jnp.zeros(()).dtype)
