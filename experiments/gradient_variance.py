"""The variance of a training gradient over batches, by uniform and by importance-sampled times.

  python -m diffenc.run --gin_file=gin/quickstart.gin
  python -m diffenc.run --workdir=runs/quickstart --mode=diagnose
  python -m experiments.gradient_variance --workdir=runs/quickstart

At the averaged parameters of one checkpoint, the gradient of the training loss is computed for the same batches of train
images under both densities of times; each is stratified over the batch, as in training. Stated for each part of the model is
the variance E |g - E g|^2 summed over its parameters, and the ratio importance / uniform, with a jackknife error over batches.
The importance sampler draws by the loss curve that --mode=diagnose measured.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
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

from diffenc.cli.console import exit_status, start_up
from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.core.model import SampleTimes
from diffenc.errors import UserError
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.evaluation.uncertainty_format import round_to_error
from diffenc.files.user_paths import path_argument
from diffenc.interfaces import Images, Key, Params
from diffenc.parallel.sharding import data_mesh, images_to_devices
from diffenc.runtime.progress import Progress
from diffenc.training.gradient import batch_gradient
from diffenc.training.trained_bound import trained_bound
from diffenc.workdir import loss_curves
from diffenc.workdir.config_check import CONFIG
from diffenc_plugins.time_samplers import Importance, Uniform

Gradients = dict[str, Float[np.ndarray, "batches size"]]  # by part


@dataclasses.dataclass(frozen=True)
class PartVariance:
    """The variance of the gradient of one part of the model over batches, under two densities of times.

    Attributes:
      ratio: importance / uniform.
      ratio_se: its jackknife error over batches.
    """

    uniform: float
    importance: float
    ratio: float
    ratio_se: float


def total_variance(gradients: Float[np.ndarray, "batches size"]) -> float:
    """Returns E |g - E g|^2, unbiased."""
    return float(gradients.var(axis=0, ddof=1).sum())


def compare_variances(
    uniform: Float[np.ndarray, "batches size"], importance: Float[np.ndarray, "batches size"]
) -> PartVariance:
    """Returns both variances and their ratio, from gradients of the same batches."""
    count = len(uniform)

    def ratio_without(index: int) -> float:
        kept = np.arange(count) != index
        return total_variance(importance[kept]) / total_variance(uniform[kept])

    left_out = np.array([ratio_without(index) for index in range(count)])
    error = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))
    variances = total_variance(uniform), total_variance(importance)
    return PartVariance(*variances, variances[1] / variances[0], float(error))


def measure_gradients(
    experiment: Experiment, mesh: Mesh, params: Params, sample_times: SampleTimes, num_batches: int
) -> Gradients:
    """Returns the gradient of each part with parameters for each of `num_batches` batches of train images."""
    bound, source = trained_bound(experiment), experiment.dataset.source("train")

    @jax.jit
    def gradient(params: Params, images: Images, key: Key) -> Params:
        return batch_gradient(params, experiment, bound, sample_times, images, key, mesh).gradient

    rows: dict[str, list[np.ndarray]] = {}
    progress = Progress("gradients", num_batches)
    for number in range(num_batches):
        index = np.random.default_rng(number).choice(len(source), experiment.batch_size, replace=False)
        images = images_to_devices(source.__getitems__(index), experiment.model.conditioning, mesh)
        parts = jax.device_get(gradient(params, images, jax.random.key(number)))
        for part, leaves in parts.items():
            if jax.tree.leaves(leaves):
                flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(leaves)])
                rows.setdefault(part, []).append(flat.astype(np.float64))
        progress()
    return {part: np.stack(each) for part, each in rows.items()}


def gradient_variances(
    experiment: Experiment, workdir: Path, step: int | None, num_batches: int
) -> dict[str, PartVariance]:
    """Returns the variance of the gradient of each part of the model.

    Raises:
      UserError: there is no run, no such checkpoint, or no loss curve.
    """
    mesh = data_mesh(experiment.mesh)
    params, _ = restore_for_bound(experiment, workdir, mesh, step)
    curve = loss_curves.bind_curve(Importance(), workdir)[0]
    uniform, importance = (
        measure_gradients(experiment, mesh, params, sample_times, num_batches)
        for sample_times in (partial(Uniform(), curve=None), curve)
    )
    return {part: compare_variances(uniform[part], importance[part]) for part in uniform}


def format_table(variances: Mapping[str, PartVariance]) -> Table:
    """For people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("part", "uniform", "importance", "importance / uniform"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, each in variances.items():
        ratio = str(round_to_error(each.ratio, each.ratio_se))
        table.add_row(part, f"{each.uniform:.3g}", f"{each.importance:.3g}", ratio)
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
    """The command line; returns the exit status."""
    return exit_status(lambda: run_command(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
