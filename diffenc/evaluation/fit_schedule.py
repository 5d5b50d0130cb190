"""The best times for a chain of T steps, by --mode=fit_schedule: the noise schedule for inference.

L_T is a sum over steps of what each costs, so that the best times are the cheapest path from t = 1 to t = 0 with
T edges. What edges cost is measured once a checkpoint (diffenc.evaluation.step_costs) and kept for every T and variance.
"""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.core.discretization import equal_times
from diffenc.errors import UserError
from diffenc.evaluation.cheapest_path import cheapest_path
from diffenc.evaluation.commands import restore_for_bound, to_default_precision
from diffenc.evaluation.evaluated_bound import check_num_timesteps
from diffenc.evaluation.step_costs import StepCosts, apply_variance, measure_step_costs
from diffenc.files import atomic
from diffenc.interfaces import Params, Variance
from diffenc.parallel.distributed import main_process_only
from diffenc.parallel.sharding import data_mesh
from diffenc.registry import variances
from diffenc.workdir import fitted_chains
from diffenc.workdir.mirror import on_local_copy

CACHE = "costs.npz"
MOST_STEPS = 1024
_FEWEST_CELLS = 512  # of the grid that times are chosen from
_CELLS_A_STEP = 4
_EDGES_AT_A_TIME = 2**18

Stops = Float[np.ndarray, " stops"]
LogSNROf = Callable[[Stops], Stops]


@dataclasses.dataclass(frozen=True)
class FittedSchedule:
    """Times of T steps, and what they are predicted to cost.

    Attributes:
      times: 0 = t_0 < ... < t_T = 1.
      excess: E || mu_P - mu_Q ||^2 / (d sigma_Q^2) of each step.
      nats: the diffusion loss.
    """

    times: Stops
    excess: Float[np.ndarray, " steps"]
    nats: float


@on_local_copy
def fit_schedule(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Find the best times for the T and the variance that `evaluate` names, and file them in the workdir.

    Raises:
      UserError: T is not given or too large, or there is no run.
    """
    mesh, settings = data_mesh(experiment.mesh), experiment.evaluate
    check_steps(settings.num_timesteps)
    check_num_timesteps(serialize.network_precision(experiment), settings.num_timesteps)
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    table = load_or_measure_costs(experiment, workdir, mesh, ema, step)
    num_dims = int(np.prod(experiment.dataset.image_shape))
    log_snr_of = exact_log_snr(experiment, ema)
    best, equal = (
        make(table, log_snr_of, settings.variance, settings.num_timesteps, num_dims)
        for make in (fit_times, equal_schedule)
    )
    to_bits = 1 / (num_dims * np.log(2))
    record = {
        "excess": best.excess.tolist(),
        **{f"nats_diffusion_{name}": made.nats for name, made in (("equal", equal), ("fitted", best))},
        **{
            f"bpd_diffusion_{name}": made.nats * to_bits
            for name, made in (("equal", equal), ("fitted", best))
        },
        "num_images": table.num_images,
        "times_of": fitted_chains.origin(experiment, step),
        "excess_of": fitted_chains.origin(experiment, step),
    }
    target = fitted_chains.path(workdir, settings.num_timesteps, "fitted", settings.variance)
    fit = fitted_chains.save(target, best.times, record)
    logging.info(
        "diffusion loss of %d steps with variance.%s: equal %.4f -> fitted %.4f bits/dim, predicted on the images fitted to; times in %s",
        settings.num_timesteps,
        variances.spell(settings.variance),
        record["bpd_diffusion_equal"],
        record["bpd_diffusion_fitted"],
        target,
    )
    return fit


def check_steps(num_steps: int) -> None:
    """Raise UserError unless times can be fitted for T = `num_steps`."""
    if num_steps == 0:
        raise UserError("--mode=fit_schedule needs T: give --num_timesteps=T")
    if num_steps > MOST_STEPS:
        raise UserError(
            f"T = {num_steps}: times are fitted up to T = {MOST_STEPS}, beyond which equal ones are as good"
        )


def fit_times(
    table: StepCosts, log_snr_of: LogSNROf, variance: Variance, num_steps: int, num_dims: int
) -> FittedSchedule:
    """The best times on a grid that holds the equal ones too, so that they are never worse."""
    grid = equal_times(num_steps * max(_CELLS_A_STEP, -(-_FEWEST_CELLS // num_steps)))
    log_snr = log_snr_of(grid)
    cost = table.all_edges(grid, log_snr)
    t, s = np.tril_indices(len(grid), -1)
    for part in np.array_split(np.arange(len(t)), -(-len(t) // _EDGES_AT_A_TIME)):
        edges = t[part], s[part]
        cost[edges], _ = apply_variance(cost[edges], log_snr[edges[0]], log_snr[edges[1]], variance, num_dims)
    return _priced(grid[cheapest_path(cost, num_steps)], table, log_snr_of, variance, num_dims)


def equal_schedule(
    table: StepCosts, log_snr_of: LogSNROf, variance: Variance, num_steps: int, num_dims: int
) -> FittedSchedule:
    """Equal steps of t."""
    return _priced(equal_times(num_steps), table, log_snr_of, variance, num_dims)


def _priced(
    times: Stops, table: StepCosts, log_snr_of: LogSNROf, variance: Variance, num_dims: int
) -> FittedSchedule:
    log_snr = log_snr_of(times)
    nats = table.edges(times[1:], times[:-1], log_snr[1:], log_snr[:-1])
    cost, excess = apply_variance(nats, log_snr[1:], log_snr[:-1], variance, num_dims)
    return FittedSchedule(times, excess, float(cost.sum()))


def exact_log_snr(experiment: Experiment, params: Params) -> LogSNROf:
    """log_snr at times, computed in float64: the differences between neighbours of a fine grid are small."""

    def log_snr_of(times: Stops) -> Stops:
        with jax.enable_x64(True):
            exact = jax.tree.map(to_default_precision, params["schedule"])
            return np.asarray(experiment.model.schedule.apply(exact, jnp.asarray(times)), np.float64)

    return log_snr_of


def load_or_measure_costs(
    experiment: Experiment, workdir: Path, mesh: Mesh, params: Params, step: int
) -> StepCosts:
    """The table of the checkpoint of `step`: the one filed in the workdir, or else measured and filed there.

    Raises:
      UserError: the disk refused.
    """
    file, origin = (
        workdir / fitted_chains.FOLDER / CACHE,
        json.dumps(_origin(experiment, step), sort_keys=True),
    )
    table = _read(file, origin)
    if table is not None:
        logging.info("costs of steps: as measured before, in %s", file)
        return table
    table = measure_step_costs(experiment, mesh, params)
    _write(file, table, origin)
    logging.info("costs of steps: measured on %d images, in %s", table.num_images, file)
    return table


def _origin(experiment: Experiment, step: int) -> dict[str, Any]:
    """All that a table depends on: all that a fit does, but for the draws a time, whose place the knots take."""
    origin = fitted_chains.origin(experiment, step)
    origin["fit"].pop("times_per_image")
    return origin


@main_process_only
def _write(file: Path, table: StepCosts, origin: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {field.name: np.asarray(getattr(table, field.name)) for field in dataclasses.fields(table)}
    atomic.write_bytes(file, atomic.encode_npz({"origin": np.asarray(origin), **arrays}))


def _read(file: Path, origin: str) -> StepCosts | None:
    """The table filed, if it is there, whole, and of `origin`."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if str(arrays["origin"]) != origin:
                logging.info("%s is of another checkpoint, config or settings of fit: measuring anew", file)
                return None
            names = ("knots", "mean", "standard_error")
            return StepCosts(*(arrays[name] for name in names), num_images=int(arrays["num_images"]))
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        logging.warning("%s cannot be read (%s): measuring anew", file, error)
        return None
