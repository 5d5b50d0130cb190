"""Measures the training speed of a run, and the parts of its time.

  python -m experiments.benchmark --gin_file=gin/mnist_diffenc_8_2.gin --json=mnist.json
  python -m experiments.benchmark --gin_file=gin/mnist_diffenc_8_2.gin --only=step,variants --batch_size=32

Images have random levels: no data is read. Parts:

  step          the train step: parameters, FLOPs, tracing and compiling, seconds, share of the peak, memory
  variants      the same step with VDMv, DiffEnc-nt and the file's own encoder, interleaved; compile time and FLOPs
  sampler       a step of ancestral sampling and one call of the network, interleaved
  input         the input pipeline, and the time that the step waits for it
  checkpoint    saving and restoring the state, compared with one file of the same size
  contractions  every convolution and matrix product of the step by itself, compared with the step
  program       the step of VDMv, DiffEnc-nt and the file's own encoder, traced: arrays, equations, convolutions; nothing runs

Times are medians over rounds, with quartiles. Run it on an otherwise idle machine.
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

from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.config.serialize import config_text
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import exit_status, start_up
from experiments.benchmark import formatting, host, program, steps
from experiments.benchmark.machine import cpu_model, package_versions
from experiments.benchmark.subject import Settings, Subject

PARTS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "step": steps.measure_step,
    "variants": steps.measure_variants,
    "sampler": steps.measure_sampling,
    "input": host.measure_pipeline,
    "checkpoint": host.measure_checkpoints,
    "contractions": steps.measure_contractions,
    "program": program.measure_program,
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
        help=f"number of timings of each (default: {default.rounds})",
    )
    add(
        "--least",
        type=float,
        default=default.least,
        help=f"seconds a timing lasts (default: {default.least})",
    )
    add("--sampling_steps", type=int, default=default.sampling_steps, help="steps of one sampled chain")
    add("--images", type=int, default=default.images, help="in the synthetic data set")
    add("--json", metavar="FILE", type=path_argument, help="write the results to this file")
    return parser.parse_args(argv)


def select_parts(only: str | None) -> list[str]:
    """Returns the parts to run. Raises UserError for an unknown one."""
    names = list(PARTS) if only is None else only.split(",")
    for name in names:
        if name not in PARTS:
            raise UserError(f"--only={only}: {name!r} is not a part; parts: {', '.join(PARTS)}")
    return [name for name in PARTS if name in names]


def load_experiment(args: argparse.Namespace) -> Experiment:
    """Loads the experiment, with the batch size of the flag, if given."""
    experiment = gin_loader.load_experiment(args.gin_file, args.gin_bindings)
    if args.batch_size is None:
        return experiment
    return dataclasses.replace(experiment, batch_size=args.batch_size)


def describe_measurement(experiment: Experiment, argv: Sequence[str]) -> dict[str, Any]:
    """Returns date, command, hardware, versions and config."""
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
        "versions": {"python": platform.python_version(), **package_versions()},
        "batch_size": experiment.batch_size,
        "image_shape": list(experiment.dataset.image_shape),
        "config": config_text(experiment),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)

    def perform() -> None:
        start_up()
        names, experiment = select_parts(args.only), load_experiment(args)
        check_writable(args.json)
        settings = Settings(args.rounds, args.least, args.sampling_steps, args.images)
        figures = describe_measurement(experiment, argv) | {"rounds": args.rounds}
        subject = Subject(experiment, settings)
        for name in names:
            logging.info("part %s", name)
            figures[name] = PARTS[name](subject)
            if args.json:  # after each part, as a later one may fail
                atomic.write_json(args.json, figures)
        print_tables(figures)

    return exit_status(perform)


def check_writable(path: Path | None) -> None:
    """Raises UserError if the folder of `path` does not exist, before the measurement takes its time."""
    if path is not None and not path.resolve().parent.is_dir():
        raise UserError(f"--json={path}: create the folder {path.resolve().parent} first")


def print_tables(figures: dict[str, Any]) -> None:
    """Prints the tables."""
    console = Console(width=140)  # wide enough for all lines, also when not printing to a terminal
    for part in formatting.format_tables(figures):
        if isinstance(part, str):
            print(part)
        else:
            console.print(part)


if __name__ == "__main__":
    sys.exit(main())
