"""--mode=fit_schedule: the best times for a chain of T steps, the noise schedule for inference.

L_T is the sum of the costs of the steps, so that the best times are the cheapest path from t = 1 to t = 0 with
T edges. The costs are measured once per checkpoint (diffenc.evaluation.step_costs) and reused for every T and variance.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float

from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import check_num_timesteps, network_precision
from diffenc.core.discretization import equal_times
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.cheapest_path import cheapest_path
from diffenc.evaluation.evaluation_record import model_metadata
from diffenc.evaluation.measured_path import measured_model
from diffenc.evaluation.restore_params import restore_for_bound, to_default_precision
from diffenc.evaluation.step_costs import StepCosts, apply_variance, measure_step_costs
from diffenc.files import atomic
from diffenc.interfaces import LearnedVariance, Params, Variance
from diffenc.parallel.distributed import main_process_only
from diffenc.parallel.sharding import data_mesh
from diffenc.registry import variances
from diffenc.safe_io import safe_npz
from diffenc.workdir import fitted_chains
from diffenc.workdir.fitted_chains import measured_path
from diffenc.workdir.mirror import on_local_copy

CACHE = "costs.npz"
MAX_BYTES = 1 << 30  # limit of the unpacked costs
MAX_STEPS = 1024
_MIN_CELLS = 512  # of the grid that times are chosen from
_CELLS_PER_STEP = 4
_EDGES_AT_A_TIME = 2**18

Stops = Float[np.ndarray, " stops"]
LogSNROf = Callable[[Stops], Stops]


@dataclasses.dataclass(frozen=True)
class FittedSchedule:
    """Times of T steps, and their predicted cost.

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
    """Finds the best times for the T and the variance that `evaluate` names, and writes them to the workdir.

    Raises:
      UserError: T is not given or too large, or there is no run.
    """
    num_steps = experiment.evaluation.num_timesteps
    check_steps(num_steps)
    mesh, dataset = data_mesh(experiment.mesh), experiment.dataset
    # as an evaluation with these times resolves them, so that it finds the fit
    settings = dataclasses.replace(experiment.evaluate, times="fitted").resolve(experiment.trained)
    check_variance(settings.variance)
    check_num_timesteps(network_precision(experiment), num_steps)
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    model, path_of = measured_model(experiment, workdir, step)
    origin = fitted_chains.fit_origin(experiment, step) | fitted_chains.path_origin(experiment, path_of)

    def measure() -> StepCosts:
        fit = resolve_batch_size(experiment.fit, experiment.batch_size)
        return measure_step_costs(model, dataset, fit, mesh, ema)

    # Measured once per checkpoint: every T, variance and schedule of inference is found from the same table.
    costs = load_or_measure_costs(workdir / fitted_chains.FOLDER / CACHE, origin, measure)
    num_dims = int(np.prod(dataset.image_shape))
    log_snr_of = exact_log_snr(model, ema)
    # Both by the same predicted costs, so that their difference is that of the times.
    best, equal = (
        choose(costs, log_snr_of, settings.variance, num_steps, num_dims)
        for choose in (fit_times, equal_schedule)
    )
    nats, to_bits = {"equal": equal.nats, "fitted": best.nats}, 1 / (num_dims * np.log(2))
    record = {
        "excess": best.excess.tolist(),
        **{f"nats_diffusion_{name}": value for name, value in nats.items()},
        **{f"bpd_diffusion_{name}": value * to_bits for name, value in nats.items()},
        "num_images": costs.num_images,
        **model_metadata(experiment),
        **measured_path(experiment),
        **path_of,
        "times_of": origin,
        "excess_of": origin,
    }
    target = fitted_chains.fit_path(workdir, settings)
    saved = fitted_chains.save_fit(target, best.times, record)
    logging.info(
        "diffusion loss of %d steps with variance.%s: equal %.4f -> fitted %.4f bits/dim, predicted on the images "
        "fitted to; times in %s",
        num_steps,
        variances.spell(settings.variance),
        record["bpd_diffusion_equal"],
        record["bpd_diffusion_fitted"],
        target,
    )
    return saved


def check_steps(num_steps: int) -> None:
    """Raises UserError unless times can be fitted for T = `num_steps`."""
    if num_steps == 0:
        raise UserError("--mode=fit_schedule needs T: give --num_timesteps=T")
    if num_steps > MAX_STEPS:
        raise UserError(
            f"T = {num_steps}: times are fitted up to T = {MAX_STEPS}, beyond which equal ones are as good"
        )


def check_variance(variance: Variance) -> None:
    """Raises UserError for a learned variance: its w belong to the T equal steps of training."""
    if isinstance(variance, LearnedVariance):
        raise UserError(
            "--mode=fit_schedule: a learned variance belongs to the T equal steps of training; bind another, as "
            "evaluate.variance = @variance.fitted()"
        )


def fit_times(
    costs: StepCosts, log_snr_of: LogSNROf, variance: Variance, num_steps: int, num_dims: int
) -> FittedSchedule:
    """Returns the best times on a grid that contains the T equal steps, so that their predicted cost is never higher."""
    # A multiple of T cells, so that the T equal steps are a path on the grid as well.
    grid = equal_times(num_steps * max(_CELLS_PER_STEP, -(-_MIN_CELLS // num_steps)))
    log_snr = log_snr_of(grid)
    cost = costs.all_edges(grid, log_snr)
    t, s = np.tril_indices(len(grid), -1)
    # In parts, for the variance is evaluated on devices with several temporaries per edge.
    for part in np.array_split(np.arange(len(t)), -(-len(t) // _EDGES_AT_A_TIME)):
        edges = t[part], s[part]
        cost[edges], _ = apply_variance(cost[edges], log_snr[edges[0]], log_snr[edges[1]], variance, num_dims)
    # The cost of a path is a sum over its edges, since each step's best variance is chosen by itself: so the
    # best T-step schedule is a cheapest path.
    return _apply_costs(grid[cheapest_path(cost, num_steps)], costs, log_snr_of, variance, num_dims)


def equal_schedule(
    costs: StepCosts, log_snr_of: LogSNROf, variance: Variance, num_steps: int, num_dims: int
) -> FittedSchedule:
    """Returns the schedule of equal steps of t, with its predicted cost."""
    return _apply_costs(equal_times(num_steps), costs, log_snr_of, variance, num_dims)


def _apply_costs(
    times: Stops, costs: StepCosts, log_snr_of: LogSNROf, variance: Variance, num_dims: int
) -> FittedSchedule:
    log_snr = log_snr_of(times)
    nats = costs.edges(times[1:], times[:-1], log_snr[1:], log_snr[:-1])
    cost, excess = apply_variance(nats, log_snr[1:], log_snr[:-1], variance, num_dims)
    return FittedSchedule(times, excess, float(cost.sum()))


def exact_log_snr(model: Model, params: Params) -> LogSNROf:
    """Returns the schedule as a function of times in float64: differences between neighbours of a fine grid are small."""

    def log_snr_of(times: Stops) -> Stops:
        with jax.enable_x64(True):
            # Within enable_x64 the default precision is float64: the parameters stay those of float32, and
            # differences between neighbours keep their digits.
            exact = {"schedule": jax.tree.map(to_default_precision, params["schedule"])}
            return np.asarray(model.log_snr(exact, jnp.asarray(times)), np.float64)

    return log_snr_of


def load_or_measure_costs(
    file: Path, origin: Mapping[str, Any], measure: Callable[[], StepCosts]
) -> StepCosts:
    """Returns the step costs of one checkpoint from `file`, or measures them and writes them there.

    Args:
      origin: `fitted_chains.fit_origin` of the checkpoint; a file of another origin is not used.

    Raises:
      UserError: writing failed.
    """
    # costs depend on all that a fit depends on, except the draws per image: the knots take their place
    fit = {key: value for key, value in origin["fit"].items() if key != "times_per_image"}
    key = json.dumps({**origin, "fit": fit}, sort_keys=True)
    costs = _read(file, key)
    if costs is not None:
        logging.info("costs of steps: as measured before, in %s", file)
        return costs
    costs = measure()
    _write(file, costs, key)
    logging.info("costs of steps: measured on %d images, in %s", costs.num_images, file)
    return costs


@main_process_only
def _write(file: Path, costs: StepCosts, origin: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {field.name: np.asarray(getattr(costs, field.name)) for field in dataclasses.fields(costs)}
    # The origin is in the file itself: costs and the checkpoint they belong to cannot come apart.
    atomic.write_bytes(
        file, atomic.encode_npz({"origin": np.frombuffer(origin.encode(), np.uint8), **arrays})
    )


def _read(file: Path, origin: str) -> StepCosts | None:
    """Returns the costs in `file`; None if it is missing, damaged or of another `origin`."""
    if not file.is_file():
        return None
    try:
        arrays = safe_npz.load(io.BytesIO(file.read_bytes()), str(file), None, MAX_BYTES)
        if arrays["origin"].tobytes() != origin.encode():
            logging.info("%s is of another checkpoint, config or settings of fit: measuring again", file)
            return None
        names = ("knots", "mean", "standard_error")
        return StepCosts(*(arrays[name] for name in names), num_images=int(arrays["num_images"]))
    except (UserError, ValueError, KeyError, OSError) as error:
        logging.warning("%s cannot be read (%s): measuring again", file, error)
        return None
