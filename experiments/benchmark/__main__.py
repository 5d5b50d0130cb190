"""How fast a run trains, and where its time goes.

  python -m experiments.benchmark --gin_file=gin/mnist_diffenc_8_2.gin --json=mnist.json
  python -m experiments.benchmark --gin_file=gin/mnist_diffenc_8_2.gin --only=step,variants --batch_size=32

Images are of random levels: no data is read. Parts:

  step          the train step: parameters, FLOPs, tracing and compiling, seconds, share of the peak, memory
  variants      the same step with VDMv, DiffEnc-nt and the file's own encoder, in turns; building them, their FLOPs
  sampler       a step of ancestral sampling beside one call of the network, in turns
  input         the input pipeline, and how long the step waits for it
  checkpoint    saving and restoring the state, beside one file of the same size
  contractions  every convolution and matrix product of the step by itself, beside the step

Times are medians over rounds, with quartiles. Run it on a machine that does nothing else.
"""

import argparse
import dataclasses
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from rich.console import Console

from diffenc.cli.console import exit_status, start_up
from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.config.serialize import config_text
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from experiments.benchmark import host, shown, steps
from experiments.benchmark.machine import cpu_model, versions
from experiments.benchmark.subject import Settings, Subject

PARTS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "step": steps.step,
    "variants": steps.variants,
    "sampler": steps.sampling,
    "input": host.pipeline,
    "checkpoint": host.checkpoints,
    "contractions": steps.contractions,
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add, default = parser.add_argument, Settings()
    add("--gin_file", action="append", required=True, help="a run; a later file overrides an earlier one")
    add("--gin_bindings", action="append", default=[], help="over the files, as 'network.unet.blocks = 2'")
    add("--only", metavar="PART,PART", help=f"of {','.join(PARTS)} (default: all)")
    add("--batch_size", type=int, help="over all devices (default: the run's own)")
    add(
        "--rounds",
        type=int,
        default=default.rounds,
        help=f"timings of each thing (default: {default.rounds})",
    )
    add(
        "--least",
        type=float,
        default=default.least,
        help=f"seconds a timing lasts (default: {default.least})",
    )
    add("--sampling_steps", type=int, default=default.sampling_steps, help="in one walk of the sampler")
    add("--images", type=int, default=default.images, help="in the synthetic data set")
    add("--json", metavar="FILE", type=path_argument, help="write the figures there")
    return parser.parse_args(argv)


def chosen(only: str | None) -> list[str]:
    """The parts to run. Raises UserError for one that is none."""
    names = list(PARTS) if only is None else only.split(",")
    for name in names:
        if name not in PARTS:
            raise UserError(f"--only={only}: {name!r} is no part; parts: {', '.join(PARTS)}")
    return [name for name in PARTS if name in names]


def load(given: argparse.Namespace) -> Experiment:
    """The experiment, with the batch size that is asked for."""
    experiment = gin_loader.load_experiment(given.gin_file, given.gin_bindings)
    if given.batch_size is None:
        return experiment
    return dataclasses.replace(experiment, batch_size=given.batch_size)


def measure(subject: Subject, names: Sequence[str]) -> dict[str, Any]:
    """The figures of each part by name."""
    figures = {}
    for name in names:
        logging.info("part %s", name)
        figures[name] = PARTS[name](subject)
    return figures


def circumstances(experiment: Experiment, argv: Sequence[str]) -> dict[str, Any]:
    """When, where and of what."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "experiments.benchmark", *argv]),
        "hardware": {
            "platform": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "cores_usable": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
        },
        "versions": {"python": platform.python_version(), **versions()},
        "batch_size": experiment.batch_size,
        "image_shape": list(experiment.dataset.image_shape),
        "config": config_text(experiment),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    given = parse_args(argv)

    def perform() -> None:
        start_up()
        names, experiment = chosen(given.only), load(given)
        check_writable(given.json)
        settings = Settings(given.rounds, given.least, given.sampling_steps, given.images)
        figures = circumstances(experiment, argv) | {"rounds": given.rounds}
        figures |= measure(Subject(experiment, settings), names)
        show(figures)
        if given.json:
            atomic.write_json(given.json, figures)

    return exit_status(perform)


def check_writable(path: Path | None) -> None:
    """Raise UserError if there is no folder for `path`: better now than when all is measured."""
    if path is not None and not path.resolve().parent.is_dir():
        raise UserError(f"--json={path}: there is no folder {path.resolve().parent}")


def show(figures: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=140)  # wide enough for their lines, wherever they go
    for part in shown.tables(figures):
        if isinstance(part, str):
            print(part)
        else:
            console.print(part)


if __name__ == "__main__":
    sys.exit(main())
