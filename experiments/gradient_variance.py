"""The variance of a training gradient over batches, by uniform times and by two kinds of importance-sampled times.

  python -m diffenc.run --gin_file=gin/quickstart.gin
  python -m diffenc.run --workdir=runs/quickstart --mode=diagnose
  python -m experiments.gradient_variance --workdir=runs/quickstart

At the averaged parameters of one checkpoint, the gradient of the training loss is computed for the same batches of train
images under each density of times; all are stratified over the batch, as in training. The table lists for each part of the
model the variance E |g - E g|^2 summed over its parameters, and its ratio to that under uniform times, with a jackknife error
over batches. `importance` draws by the loss curve of --mode=diagnose, `importance_by_gradient` by the size of the
gradient, measured here as in training.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.core.model import SampleTimes
from diffenc.errors import UserError
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.evaluation.uncertainty_format import round_to_error
from diffenc.files.user_paths import path_argument
from diffenc.interfaces import Images, Key, Params
from diffenc.parallel.sharding import data_mesh, images_to_devices
from diffenc.runtime.console import exit_status, start_up
from diffenc.runtime.progress import Progress
from diffenc.training.gradient import batch_gradient
from diffenc.training.gradient_curve import GradientCurve, GradientMeasurement, begin_gradient_curve
from diffenc.training.time_curves import bind_curve
from diffenc.training.trained_bound import trained_bound
from diffenc.workdir import loss_curves
from diffenc.workdir.config_check import CONFIG
from diffenc_plugins.time_samplers import Importance, ImportanceByGradient, Uniform

CURVE_MEASUREMENTS = 20  # of the gradient's size, as many as training remembers
UNIFORM = "uniform"

Gradients = dict[str, Float[np.ndarray, "batches size"]]  # by part
BatchOf = Callable[[int], Images]  # of a number


@dataclasses.dataclass(frozen=True)
class PartVariance:
    """The variance of the gradient of one part of the model over batches, under a density of times.

    Attributes:
      ratio: ratio to the variance under uniform times.
      ratio_se: jackknife error of the ratio over batches.
    """

    variance: float
    ratio: float
    ratio_se: float


def total_variance(gradients: Float[np.ndarray, "batches size"]) -> float:
    """Returns E |g - E g|^2, unbiased."""
    return float(gradients.var(axis=0, ddof=1).sum())


def compare_variances(
    uniform: Float[np.ndarray, "batches size"], other: Float[np.ndarray, "batches size"]
) -> PartVariance:
    """Returns the variance of `other` and its ratio to that of `uniform`, gradients of the same batches."""
    count = len(uniform)

    def ratio_without(index: int) -> float:
        kept = np.arange(count) != index
        return total_variance(other[kept]) / total_variance(uniform[kept])

    left_out = np.array([ratio_without(index) for index in range(count)])
    error = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))
    variance = total_variance(other)
    return PartVariance(variance, variance / total_variance(uniform), float(error))


def train_batches(experiment: Experiment, mesh: Mesh) -> BatchOf:
    """Returns a function that draws a batch of train images with a number as seed."""
    source = experiment.dataset.source("train")

    def batch_of(number: int) -> Images:
        index = np.random.default_rng(number).choice(len(source), experiment.batch_size, replace=False)
        return images_to_devices(source.__getitems__(index), experiment.model.conditioning, mesh)

    return batch_of


def measure_gradients(
    experiment: Experiment,
    mesh: Mesh,
    params: Params,
    batch_of: BatchOf,
    sample_times: SampleTimes,
    num_batches: int,
    progress: Callable[[], None],
) -> Gradients:
    """Returns the gradients by `num_batches` batches of train images, for each part of the model that has parameters."""
    bound = trained_bound(experiment)

    @jax.jit
    def gradient(params: Params, images: Images, key: Key) -> Params:
        return batch_gradient(params, experiment, bound, sample_times, images, key, mesh).gradient

    rows: dict[str, list[np.ndarray]] = {}
    for number in range(num_batches):
        # Batch and key depend on the number alone: all samplers get the same images and noise.
        parts = jax.device_get(gradient(params, batch_of(number), jax.random.key(number)))
        for part, leaves in parts.items():
            if jax.tree.leaves(leaves):
                flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(leaves)])
                rows.setdefault(part, []).append(flat.astype(np.float64))
        progress()
    return {part: np.stack(each) for part, each in rows.items()}


def measure_gradient_curve(experiment: Experiment, mesh: Mesh, params: Params) -> GradientCurve:
    """Returns the size of the gradient over time, measured as in training."""
    measurement, curve = GradientMeasurement(experiment, mesh), begin_gradient_curve()
    progress = Progress("the gradient's size over time", CURVE_MEASUREMENTS)
    for number in range(CURVE_MEASUREMENTS):
        curve = measurement.update(curve, params, number)
        progress()
    return curve


def gradient_variances(
    experiment: Experiment, workdir: Path, step: int | None, num_batches: int
) -> dict[str, dict[str, PartVariance]]:
    """Returns the variance of the gradient of each part of the model, by time sampler.

    Raises:
      UserError: there is no run, no such checkpoint, or no loss curve.
    """
    mesh = data_mesh(experiment.mesh)
    params, _ = restore_for_bound(experiment, workdir, mesh, step)
    by_loss, batch_of = loss_curves.bind_curve(Importance(), workdir)[0], train_batches(experiment, mesh)
    curve = measure_gradient_curve(experiment, mesh, params)
    samplers = {
        UNIFORM: partial(Uniform(), curve=None),
        "importance": by_loss,
        "importance_by_gradient": bind_curve(ImportanceByGradient(), curve),
    }
    progress = Progress("gradients", num_batches * len(samplers))
    gradients = {
        name: measure_gradients(experiment, mesh, params, batch_of, sampler, num_batches, progress)
        for name, sampler in samplers.items()
    }
    uniform = gradients[UNIFORM]
    return {
        part: {name: compare_variances(uniform[part], each[part]) for name, each in gradients.items()}
        for part in uniform
    }


def format_table(variances: Mapping[str, Mapping[str, PartVariance]]) -> Table:
    """Returns the variances as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("part", "times", "variance", "ratio to uniform"):
        table.add_column(column, justify="right" if column in ("variance", "ratio to uniform") else "left")
    for part, by_sampler in variances.items():
        for name, each in by_sampler.items():
            ratio = "1" if name == UNIFORM else str(round_to_error(each.ratio, each.ratio_se))
            table.add_row(part, name, f"{each.variance:.3g}", ratio)
    return table


def run_command(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gradient_variance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", type=path_argument, required=True, help="of a trained run")
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the newest)")
    parser.add_argument("--batches", type=int, default=64, help="how many (default: 64)")
    args = parser.parse_args(argv)
    if args.batches < 3:
        raise UserError(f"--batches={args.batches}: must be at least 3")
    start_up()
    experiment: Any = gin_loader.load_experiment([str(args.workdir / CONFIG)], [])
    variances = gradient_variances(experiment, args.workdir, args.step, args.batches)
    Console().print(format_table(variances))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status(lambda: run_command(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
