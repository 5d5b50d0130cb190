"""Weak scaling: the efficiency of a run on more devices, with the same number of images per device.

  python -m experiments.weak_scaling --gin_file=gin/quickstart.gin --images=16

Measured on 1, 2, 4 and 8 devices: GPUs if present, else virtual devices that share the cores of the CPU; each number
of devices in its own process. Estimated for TPU slices and nodes of GPUs. Images have random levels: no data is read.
The results are written to experiments/weak_scaling.md, or to --page.
"""

import argparse
import dataclasses
import datetime
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.parallel.sharding import make_mesh
from diffenc.runtime.console import exit_status, start_up
from diffenc.runtime.gpus import visible_gpus
from diffenc.training.state import abstract_state
from experiments.benchmark.machine import cpu_model, package_versions
from experiments.benchmark.subject import count_share_work
from experiments.launch import local
from experiments.weak_scaling import paper
from experiments.weak_scaling.page import render_page
from experiments.weak_scaling.paper import CLUSTERS, Row

PAGE = Path(__file__).parents[1] / "weak_scaling.md"


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError for invalid numbers."""
    parser = argparse.ArgumentParser(prog="python -m experiments.weak_scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--gin_file", action="append", required=True, help="the measured run")
    add("--gin_bindings", action="append", default=[], help="overrides, as 'network.unet.blocks = 2'")
    add("--images", type=int, default=16, help="per device, measured (default: 16)")
    add("--devices", type=parse_counts, default=[1, 2, 4, 8], metavar="N,N,...", help="default: 1,2,4,8")
    add("--rounds", type=int, default=5, help="timings of each per turn (default: 5)")
    add("--least", type=float, default=0.5, help="seconds a timing lasts (default: 0.5)")
    add("--turns", type=int, default=2, help="repetitions over all numbers of devices (default: 2)")
    add("--paper", default="gin/imagenet32_diffenc_32_8.gin", metavar="GIN_FILE", help="the estimated run")
    add("--paper_images", type=int, default=8, help="per device, estimated (default: 8)")
    add("--remark", default="", help="added to the page, such as the load of the machine")
    add("--page", type=path_argument, default=PAGE, help=f"default: experiments/{PAGE.name}")
    args = parser.parse_args(argv)
    for name in ("images", "rounds", "turns", "paper_images"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: must be at least 1")
    return args


def parse_counts(text: str) -> list[int]:
    """Parses a list of positive integers such as "1,2,4"."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def measure_points(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the points in the order of --devices, each with the times of all turns."""
    # whole turns, so that a slow drift of the machine affects all numbers of devices alike
    turns = [[measure_point(args, devices) for devices in args.devices] for _ in range(args.turns)]
    return [
        of_one[0] | {"seconds": [second for one in of_one for second in one["seconds"]]}
        for of_one in zip(*turns, strict=True)
    ]


def measure_point(args: argparse.Namespace, devices: int) -> dict[str, Any]:
    """Measures one point in a process of its own with `devices` devices.

    Raises:
      UserError: the process failed, after printing the reason; or there are too few GPUs.
    """
    logging.info("measuring on %d device(s)", devices)
    env = dict(os.environ)
    (env,) = local.make_environments(1, devices, env, visible_gpus(env))
    flags = [f"--gin_file={name}" for name in args.gin_file]
    flags += [f"--gin_bindings={binding}" for binding in args.gin_bindings]
    flags += [f"--{name}={getattr(args, name)}" for name in ("images", "rounds", "least")]
    command = [sys.executable, "-m", "experiments.weak_scaling.point", *flags, f"--devices={devices}"]
    # standard error is inherited, so that the reason of a failure is visible
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"measuring on {devices} device(s) failed")
    return json.loads(done.stdout.splitlines()[-1])


def estimate_clusters(args: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    """Returns the properties common to all clusters, and the estimate of each."""
    experiment = gin_loader.load_experiment([args.paper], [])
    experiment = dataclasses.replace(experiment, batch_size=args.paper_images)
    parameters, share = count_model_parameters(experiment), experiment.plan.share
    work = count_share_work(experiment, 1)
    rows = [paper.estimate_row(one, work, args.paper_images, parameters, share) for one in CLUSTERS]
    common = {
        "run": args.paper,
        "images": args.paper_images,
        "parameters": parameters,
        "flops_per_image": work.flops / args.paper_images,
        "share": share,
    }
    return common, rows


def count_model_parameters(experiment: Experiment) -> int:
    """Returns the number of parameters."""
    return count_parameters(abstract_state(experiment, make_mesh()).params)


def describe_measurement(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Returns date, command, hardware, versions and the measured run."""
    bound = [*(f"`{name}`" for name in args.gin_file), *(f"`{binding}`" for binding in args.gin_bindings)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "experiments.weak_scaling", *argv]),
        "cpu": cpu_model(),
        "cores": cores,
        "versions": package_versions(),
        "run": ", ".join(bound),
        "images": args.images,
        "remark": args.remark,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv

    def perform() -> None:
        start_up()
        args = parse_args(argv)
        points = measure_points(args)  # before JAX of this process reserves the memory of a GPU
        common, rows = estimate_clusters(args)
        figures = describe_measurement(args, argv) | {"points": points, "paper": common}
        atomic.write_text(args.page, render_page(figures, rows))
        print(f"wrote {args.page}")

    return exit_status(perform)


if __name__ == "__main__":
    sys.exit(main())
