"""Compares the bounds of one trained run: at many T, in continuous time, with K samples, and by its ODE.

  python -m experiments.bounds --workdir=runs/mnist_small

Columns in discrete time: sigma_P = sigma_Q, fitted variances, fitted variances on fitted times, and a fixed
w = sigma_Q^2 / sigma_P^2 other than 1, with a bound that grows like T. Variances and times are fitted on train
and stay in WORKDIR/fits. All columns share images, times and noise. The table, its numbers as JSON and the plot of bound
over T go to WORKDIR/bounds. Finished measurements are kept there, so that the program can be stopped and resumed.
"""

import argparse
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int
from rich.console import Console

from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.config.settings import KSample
from diffenc.data.sources import epoch_order, require_same_images, subsample
from diffenc.errors import UserError
from diffenc.evaluation import k_sample, ode_likelihood, plots
from diffenc.evaluation.evaluation_record import STRATIFIED, image_metadata, model_metadata
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.fit_schedule import fit_schedule
from diffenc.evaluation.fit_variance import fit_variance
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.restore_params import restore_ema
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.interfaces import EXCESS, requires
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.console import exit_status, start_up
from diffenc.runtime.progress import Progress
from diffenc.safe_io import safe_npz
from diffenc.sampling.solvers import slope_is_modelled
from diffenc.workdir.config_check import CONFIG
from diffenc.workdir.fitted_chains import fit_origin, fit_path, load_fit
from diffenc_plugins.variances import Equal, Fitted, Fixed
from experiments.bounds.formatting import Results, bounds_record, bounds_table, few_images_table, plot_bounds

MAX_BYTES = 1 << 32  # limit of an unpacked cell
NUM_TIMESTEPS = (5, 10, 25, 50, 100, 250, 1000)


def _read_cell(file: Path) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a cell; None if it is missing or, with a warning, damaged."""
    if not file.is_file():
        return None
    try:
        return safe_npz.load(io.BytesIO(file.read_bytes()), str(file), None, MAX_BYTES)
    except UserError as error:
        logging.warning("%s, or is of a version before 0.1.0: measuring again", error)
        return None


class Bounds:
    """Measures bounds of one run, or reads them from the cache of earlier measurements."""

    def __init__(self, experiment: Experiment, workdir: Path):
        self.experiment = experiment
        self.workdir = workdir
        self.mesh = data_mesh(experiment.mesh)
        self.params, self.step = restore_ema(experiment, workdir, self.mesh, experiment.evaluate.step)
        self.num_dims = int(np.prod(experiment.dataset.image_shape))
        settings = experiment.evaluate
        images = experiment.dataset.source(settings.split)
        self.num_images = len(subsample(images, settings.num_images, settings.seed))
        self.compared: list[dict[str, Any]] = []  # metadata of the images of each result

    def _with(self, **changes: Any) -> Experiment:
        evaluate = dataclasses.replace(self.experiment.evaluate, step=self.step, **changes)
        return dataclasses.replace(self.experiment, evaluate=evaluate)

    def _cached(
        self, name: str, experiment: Experiment, compute: Callable[[], dict[str, np.ndarray]], *more: Any
    ) -> dict:
        """Returns the arrays of `compute`, or those in the cache if they were computed with the same settings."""
        self.compared.append(
            image_metadata(experiment.dataset, experiment.model, experiment.evaluate.split, self.num_images)
        )
        file = self.workdir / "bounds" / "cells" / f"{name}.npz"
        origin = self._origin(experiment, *more)
        cached = _read_cell(file)
        if cached is not None and cached.pop("origin", np.zeros(0)).tobytes() == origin.encode():
            return cached
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = compute()
        stored = arrays | {"origin": np.frombuffer(origin.encode(), np.uint8)}
        atomic.write_bytes(file, atomic.encode_npz(stored))
        return arrays

    def _origin(self, experiment: Experiment, *more: Any) -> str:
        split, dataset = experiment.evaluate.split, experiment.dataset
        settings = (experiment.evaluation, *more)
        return repr((fit_origin(experiment, self.step), settings, STRATIFIED, dataset.fingerprint(split)))

    def elbo(self, label: str, **changes: Any) -> PassValues:
        """Returns the ELBO with these settings of `evaluate`; times and variances are fitted first."""
        experiment = self._with(**changes)
        settings = experiment.evaluation

        def compute() -> dict[str, np.ndarray]:
            log_progress(f"{label}, T = {settings.num_timesteps or 'continuous'}")
            fit_if_missing(experiment, self.workdir, self.step)
            evaluator = Evaluator(experiment, self.mesh, self.workdir, self.step)
            terms = evaluator.measure(self.params, Progress("evaluation", evaluator.num_batches))
            return {"nats": np.sum(list(terms.terms.values()), axis=0), "times": terms.times}

        cached = self._cached(f"{label}_T{settings.num_timesteps}", experiment, compute)
        return PassValues(self._bits(cached["nats"]), cached["times"])

    def k_sample(self, num_timesteps: int, samples: int, few: int) -> dict[str, PassValues]:
        """Returns the K-sample bound of T steps with fitted variances, and the ELBO of its chains."""
        experiment = self._with(num_timesteps=num_timesteps, variance=Fitted(), num_images=few, passes=2)
        experiment = dataclasses.replace(experiment, k_sample=KSample(samples))

        def compute() -> dict[str, np.ndarray]:
            log_progress(f"the {samples}-sample bound, T = {num_timesteps}")
            fit_if_missing(experiment, self.workdir, self.step)
            weights = k_sample.measure_log_weights(
                experiment, self.mesh, self.params, self.workdir, self.step
            )
            return {"log_w": weights.log_w}

        log_w = self._cached(f"k{samples}_T{num_timesteps}", experiment, compute, experiment.k_sample)[
            "log_w"
        ]
        return {
            f"ELBO, T = {num_timesteps}, fitted": PassValues(-self._bits(log_w.mean(axis=1))),
            f"{samples} samples, T = {num_timesteps}, fitted": PassValues(
                -self._bits(k_sample.k_sample_bound(log_w))
            ),
        }

    def ode(self, few: int) -> dict[str, PassValues]:
        """Returns the likelihood of the probability-flow ODE."""
        experiment = self._with(num_images=few, passes=2)

        def compute() -> dict[str, np.ndarray]:
            log_progress("the likelihood of the ODE")
            return {
                "nats": ode_likelihood.solve_images(experiment, experiment.model, self.mesh, self.params).nats
            }

        nats = self._cached("ode", experiment, compute, experiment.likelihood)["nats"]
        shape = self.experiment.dataset.image_shape
        modelled = slope_is_modelled(self.experiment.model, self.params, shape, self.experiment.num_timesteps)
        name = "ODE" if modelled else "ODE (a model of its own)"
        return {name: PassValues(self._bits(nats))}

    def indices_of(self, few: int) -> Int[np.ndarray, " few"]:
        """Returns the indices of the `few` images among all measured images: a smaller subset is part of a larger one."""
        settings, dataset = self.experiment.evaluate, self.experiment.dataset
        order = epoch_order(len(dataset.source(settings.split)), settings.seed, 0)
        return np.searchsorted(np.sort(order[: settings.num_images]), np.sort(order[:few]))

    def _bits(self, nats: np.ndarray) -> np.ndarray:
        return nats / (self.num_dims * np.log(2))


def log_progress(name: str) -> None:
    """Logs the name of the measurement that begins."""
    logging.info("measuring %s", name)


def fit_if_missing(experiment: Experiment, workdir: Path, step: int) -> None:
    """Fits the times and variances that `experiment.evaluate` needs, unless they have been fitted before."""
    settings = experiment.evaluation
    file = fit_path(workdir, settings)
    if file.is_file() and load_fit(file).get("excess_of") == fit_origin(experiment, step):
        return
    if settings.times == "fitted":
        fit_schedule(experiment, workdir)
    elif requires(settings.variance, EXCESS):
        fit_variance(experiment, workdir)


def column_settings(w: float) -> dict[str, dict[str, Any]]:
    """Returns settings of `evaluate` by the heading of their column."""
    return {
        "equal": {"variance": Equal()},
        "fitted": {"variance": Fitted()},
        "fitted, times too": {"variance": Fitted(), "times": "fitted"},
        f"w = {w:g}": {"variance": Fixed(w)},
    }


def measure_all(bounds: Bounds, args: argparse.Namespace) -> Results:
    """Returns all bounds, measured now or before."""
    continuous = bounds.elbo("equal", num_timesteps=0)
    by_num_timesteps = {
        name: {
            num_timesteps: bounds.elbo(file_slug(name), num_timesteps=num_timesteps, **settings)
            for num_timesteps in args.num_timesteps
        }
        for name, settings in column_settings(args.w).items()
    }
    others = bounds.k_sample(args.k_steps, args.k, args.few) | bounds.ode(args.few)
    require_same_images(bounds.compared)  # the data may have been replaced since a cached result
    same_images = continuous.select(bounds.indices_of(args.few))
    experiment, settings = bounds.experiment, bounds.experiment.evaluate
    num_images = continuous.values.shape[1]
    metadata = {
        **image_metadata(experiment.dataset, experiment.model, settings.split, num_images),
        **model_metadata(experiment),
        "passes": settings.passes,
        "step": bounds.step,
    }
    few = {name: (bits, same_images) for name, bits in others.items()}
    return Results(by_num_timesteps, continuous, few, metadata)


def file_slug(name: str) -> str:
    """Returns a column's heading as part of a file name."""
    return "".join(letter if letter.isalnum() or letter == "." else "_" for letter in name)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bounds", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--workdir", required=True, type=path_argument, help="a trained run")
    add("--data_dir", type=path_argument, help="where data sets live; default $DIFFENC_DATA, else a cache")
    add(
        "--num_timesteps",
        type=lambda text: [int(part) for part in text.split(",")],
        default=list(NUM_TIMESTEPS),
        metavar="T,T,...",
    )
    add("--w", type=float, default=0.9, help="the fixed sigma_Q^2 / sigma_P^2 (default: 0.9)")
    add("--num_images", type=int, default=512, help="of evaluate.split (default: 512)")
    add("--passes", type=int, default=4, help="over them; at least 2, for the Monte-Carlo error (default: 4)")
    add("--few", type=int, default=16, help="images for the K-sample bound and the ODE (default: 16)")
    add("--k", type=int, default=16, help="K (default: 16)")
    add("--k_steps", type=int, default=25, help="T of the K-sample bound (default: 25)")
    add("--allow_imports", action="append", default=[], help="a module that the run's config may import")
    add(
        "--gin_bindings", action="append", default=[], help="over the run's config, as 'fit.num_images = 256'"
    )
    return parser.parse_args(argv)


def load_experiment(args: argparse.Namespace) -> Experiment:
    """Returns the run's experiment, with the images and passes of the command line."""
    if args.data_dir:
        os.environ["DIFFENC_DATA"] = os.path.abspath(args.data_dir)
    if args.passes < 2:
        raise UserError(f"--passes={args.passes}: the Monte-Carlo error takes at least 2")
    if args.few > args.num_images:
        raise UserError(f"--few={args.few}: must not be more than --num_images={args.num_images}")
    if not (args.workdir / CONFIG).is_file():
        raise UserError(f"{args.workdir} holds no run: train first, or name its --workdir")
    experiment = gin_loader.load_experiment(
        [str(args.workdir / CONFIG)], args.gin_bindings, args.allow_imports
    )
    changes = {"num_images": args.num_images, "passes": args.passes}
    return dataclasses.replace(experiment, evaluate=dataclasses.replace(experiment.evaluate, **changes))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)

    def perform() -> None:
        start_up()
        results = measure_all(Bounds(load_experiment(args), args.workdir), args)
        folder = args.workdir / "bounds"
        atomic.write_json(folder / "bounds.json", bounds_record(results))
        plots.save_png(plot_bounds(results), folder / "bounds.png")
        console = Console(width=140)  # wide enough for the table, also when the output is not a terminal
        console.print(bounds_table(results))
        console.print(few_images_table(results))
        print(f"in {folder}")

    return exit_status(perform, "interrupted: the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
