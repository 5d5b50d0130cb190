"""The bounds of one trained run side by side: at many T, in continuous time, with K samples, and of its ODE.

  python -m experiments.bounds --workdir=runs/mnist_small

In discrete time with sigma_P = sigma_Q, with fitted variances, with fitted variances on fitted times, and with
a fixed w = sigma_Q^2 / sigma_P^2 other than 1, whose bound grows like T. Variances and times are fitted on train
and stay in WORKDIR/fits. All columns share images, times and noise. The table, its figures and the plot of bound
against T go to WORKDIR/bounds; what was measured before is not measured again, so one may stop and go on.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int
from rich.console import Console

from diffenc.cli.console import exit_status, start_up
from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.config.settings import KSample
from diffenc.data.sources import epoch_order, require_same_images, subsample
from diffenc.errors import UserError
from diffenc.evaluation import k_sample, likelihood, plots
from diffenc.evaluation.commands import restore_ema
from diffenc.evaluation.evaluator import STRATIFIED, Evaluator, image_metadata
from diffenc.evaluation.fit_schedule import fit_schedule
from diffenc.evaluation.fit_variance import fit_variance
from diffenc.evaluation.image_error import PassValues
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.interfaces import EXCESS, requires
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.sampling.solvers import slope_is_modelled
from diffenc.workdir import fitted_chains
from diffenc.workdir.config_check import CONFIG
from diffenc_plugins.variances import Equal, Fitted, Fixed
from experiments.bounds.shown import Results, figures, plot, table, table_beside

STEPS = (5, 10, 25, 50, 100, 250, 1000)


class Bounds:
    """Measures what it is asked for, or takes it from an earlier time."""

    def __init__(self, experiment: Experiment, workdir: Path):
        self.experiment = experiment
        self.workdir = workdir
        self.mesh = data_mesh(experiment.mesh)
        self.params, self.step = restore_ema(experiment, workdir, self.mesh, experiment.evaluate.step)
        self.num_dims = int(np.prod(experiment.dataset.image_shape))
        settings = experiment.evaluate
        images = experiment.dataset.source(settings.split)
        self.num_images = len(subsample(images, settings.num_images, settings.seed))
        self.compared: list[dict[str, Any]] = []  # which images each figure is of, or is of some of

    def _with(self, **changes: Any) -> Experiment:
        evaluate = dataclasses.replace(self.experiment.evaluate, step=self.step, **changes)
        return dataclasses.replace(self.experiment, evaluate=evaluate)

    def _kept(
        self, name: str, experiment: Experiment, compute: Callable[[], dict[str, np.ndarray]], *more: Any
    ) -> dict:
        """What `compute` gives, filed with all that it depends on, and measured anew where that differs."""
        self.compared.append(image_metadata(experiment, experiment.evaluate, self.num_images))
        file = self.workdir / "bounds" / "cells" / f"{name}.npz"
        origin = self._origin(experiment, *more)
        if file.is_file():
            with np.load(file, allow_pickle=False) as arrays:
                if str(arrays["origin"]) == origin:
                    return dict(arrays)
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = compute()
        atomic.write_bytes(file, atomic.encode_npz(arrays | {"origin": np.asarray(origin)}))
        return arrays

    def _origin(self, experiment: Experiment, *more: Any) -> str:
        split, dataset = experiment.evaluate.split, experiment.dataset
        settings = (experiment.evaluate, *more)
        return repr(
            (fitted_chains.origin(experiment, self.step), settings, STRATIFIED, dataset.fingerprint(split))
        )

    def elbo(self, label: str, **changes: Any) -> PassValues:
        """The ELBO under these settings of `evaluate`; what they need is fitted first."""
        experiment = self._with(**changes)
        settings = experiment.evaluate

        def compute() -> dict[str, np.ndarray]:
            say(f"{label}, T = {settings.num_timesteps or 'continuous'}")
            fit_what_is_missing(experiment, self.workdir, self.step)
            evaluator = Evaluator(experiment, self.mesh, self.workdir, self.step)
            measured = evaluator.measure(self.params, Progress("evaluation", evaluator.num_batches))
            return {"nats": np.sum(list(measured.terms.values()), axis=0), "times": measured.times}

        kept = self._kept(f"{label}_T{settings.num_timesteps}", experiment, compute)
        return PassValues(self._bits(kept["nats"]), kept["times"])

    def k_sample(self, steps: int, samples: int, few: int) -> dict[str, PassValues]:
        """The K-sample bound of the chain of T = `steps` with fitted variances, and the ELBO of its chains."""
        experiment = self._with(steps=steps, variance=Fitted(), num_images=few, passes=2)
        experiment = dataclasses.replace(experiment, k_sample=KSample(samples))

        def compute() -> dict[str, np.ndarray]:
            say(f"the {samples}-sample bound, T = {steps}")
            fit_what_is_missing(experiment, self.workdir, self.step)
            measured = k_sample.measure_log_weights(
                experiment, self.mesh, self.params, self.workdir, self.step
            )
            return {"log_w": measured.log_w}

        log_w = self._kept(f"k{samples}_T{steps}", experiment, compute, experiment.k_sample)["log_w"]
        return {
            f"ELBO, T = {steps}, fitted": PassValues(-self._bits(log_w.mean(axis=1))),
            f"{samples} samples, T = {steps}, fitted": PassValues(
                -self._bits(k_sample.k_sample_bound(log_w))
            ),
        }

    def ode(self, few: int) -> dict[str, PassValues]:
        """The likelihood of the probability-flow ODE."""
        experiment = self._with(num_images=few, passes=2)

        def compute() -> dict[str, np.ndarray]:
            say("the likelihood of the ODE")
            return {"nats": likelihood.solve_images(experiment, self.mesh, self.params).nats}

        nats = self._kept("ode", experiment, compute, experiment.likelihood)["nats"]
        shape = self.experiment.dataset.image_shape
        modelled = slope_is_modelled(self.experiment.model, self.params, shape)
        name = "ODE" if modelled else "ODE (a model of its own)"
        return {name: PassValues(self._bits(nats))}

    def places(self, few: int) -> Int[np.ndarray, " few"]:
        """Where the `few` images stand among all that are measured: a smaller draw is part of a larger one."""
        settings, dataset = self.experiment.evaluate, self.experiment.dataset
        order = epoch_order(len(dataset.source(settings.split)), settings.seed, 0)
        return np.searchsorted(np.sort(order[: settings.num_images]), np.sort(order[:few]))

    def _bits(self, nats: np.ndarray) -> np.ndarray:
        return nats / (self.num_dims * np.log(2))


def say(what: str) -> None:
    """What is being measured, for whoever waits."""
    logging.info("measuring %s", what)


def fit_what_is_missing(experiment: Experiment, workdir: Path, step: int) -> None:
    """Fit the times and variances that `experiment.evaluate` asks for, unless just these are there."""
    settings = experiment.evaluate
    file = fitted_chains.path(workdir, settings.num_timesteps, settings.times, settings.variance)
    if file.is_file() and fitted_chains.load(file).get("excess_of") == fitted_chains.origin(experiment, step):
        return
    if settings.times == "fitted":
        fit_schedule(experiment, workdir)
    elif requires(settings.variance, EXCESS):
        fit_variance(experiment, workdir)


def columns(w: float) -> dict[str, dict[str, Any]]:
    """Settings of `evaluate` by the heading of their column."""
    return {
        "equal": {"variance": Equal()},
        "fitted": {"variance": Fitted()},
        "fitted, times too": {"variance": Fitted(), "times": "fitted"},
        f"w = {w:g}": {"variance": Fixed(w)},
    }


def gather(bounds: Bounds, given: argparse.Namespace) -> Results:
    """Measure, or find measured, everything."""
    continuous = bounds.elbo("equal")
    by_steps = {
        name: {steps: bounds.elbo(slug(name), num_timesteps=steps, **settings) for steps in given.steps}
        for name, settings in columns(given.w).items()
    }
    beside = bounds.k_sample(given.k_steps, given.k, given.few) | bounds.ode(given.few)
    require_same_images(bounds.compared)  # the data may have been replaced meanwhile
    few = {name: (bits, continuous.of(bounds.places(given.few))) for name, bits in beside.items()}
    settings = bounds.experiment.evaluate
    of = image_metadata(bounds.experiment, settings, continuous.values.shape[1])
    return Results(by_steps, continuous, few, of | {"passes": settings.passes, "step": bounds.step})


def slug(name: str) -> str:
    """A column's heading as part of a file's name."""
    return "".join(letter if letter.isalnum() or letter == "." else "_" for letter in name)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.bounds", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--workdir", required=True, type=path_argument, help="a trained run")
    add("--data_dir", type=path_argument, help="where data sets live; default $DIFFENC_DATA, else a cache")
    add(
        "--num_timesteps",
        type=lambda text: [int(part) for part in text.split(",")],
        default=list(STEPS),
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


def prepared(given: argparse.Namespace) -> Experiment:
    """The run's experiment, with the images and passes asked for."""
    if given.data_dir:
        os.environ["DIFFENC_DATA"] = os.path.abspath(given.data_dir)
    if given.passes < 2:
        raise UserError(f"--passes={given.passes}: the Monte-Carlo error takes at least 2")
    if given.few > given.num_images:
        raise UserError(f"--few={given.few}: must not be more than --num_images={given.num_images}")
    if not (given.workdir / CONFIG).is_file():
        raise UserError(f"{given.workdir} holds no run: train first, or name its --workdir")
    experiment = gin_loader.load_experiment(
        [str(given.workdir / CONFIG)], given.gin_bindings, given.allow_imports
    )
    changes = {"num_images": given.num_images, "passes": given.passes}
    return dataclasses.replace(experiment, evaluate=dataclasses.replace(experiment.evaluate, **changes))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parse_args(argv)

    def perform() -> None:
        start_up()
        results = gather(Bounds(prepared(given), given.workdir), given)
        folder = given.workdir / "bounds"
        atomic.write_json(folder / "bounds.json", figures(results))
        plots.save_png(plot(results), folder / "bounds.png")
        console = Console(width=140)  # wide enough for its lines, wherever they go
        console.print(table(results))
        console.print(table_beside(results))
        print(f"in {folder}")

    return exit_status(perform, "interrupted: the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
