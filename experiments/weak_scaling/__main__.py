"""Weak scaling: what a run loses by more devices, each with as many images as ever.

  python -m experiments.weak_scaling --gin_file=gin/quickstart.gin --images=16

Measured on 1, 2, 4 and 8 devices: the GPUs that are here, else virtual devices that share the CPU's cores; each number
of devices in a process of its own. And on paper, for TPU slices and nodes of GPUs. Images are of random levels: no data
is read. The page is experiments/weak_scaling.md, unless --page says otherwise.
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

from diffenc.cli.console import exit_status, start_up
from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.parallel.sharding import make_mesh
from diffenc.runtime.gpus import visible_gpus
from diffenc.training.state import abstract_state
from experiments.benchmark.machine import cpu_model, versions
from experiments.benchmark.subject import work_of_share
from experiments.launch import local
from experiments.weak_scaling import paper
from experiments.weak_scaling.paper import CLUSTERS, Row
from experiments.weak_scaling.shown import render_page

PAGE = Path(__file__).parents[1] / "weak_scaling.md"


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. Raises UserError for a number that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m experiments.weak_scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--gin_file", action="append", required=True, help="the run that is measured")
    add("--gin_bindings", action="append", default=[], help="over its files, as 'network.unet.blocks = 2'")
    add("--images", type=int, default=16, help="of each device, measured (default: 16)")
    add("--devices", type=parse_counts, default=[1, 2, 4, 8], metavar="N,N,...", help="default: 1,2,4,8")
    add("--rounds", type=int, default=5, help="timings of each, in each turn (default: 5)")
    add("--least", type=float, default=0.5, help="seconds a timing lasts (default: 0.5)")
    add("--turns", type=int, default=2, help="through all numbers of devices (default: 2)")
    add("--paper", default="gin/imagenet32_diffenc_32_8.gin", metavar="GIN_FILE", help="the run on paper")
    add("--paper_images", type=int, default=8, help="of each device, on paper (default: 8)")
    add("--remark", default="", help="to be told beside the figures, as what else the machine was doing")
    add("--page", type=path_argument, default=PAGE, help=f"default: experiments/{PAGE.name}")
    given = parser.parse_args(argv)
    for name in ("images", "rounds", "turns", "paper_images"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name}={getattr(given, name)}: must be at least 1")
    return given


def parse_counts(text: str) -> list[int]:
    """ "1,2,4" as a list of positive integers."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def measure_points(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The points, in the order of --devices; the times of all turns together."""
    turns = [[measure_point(given, devices) for devices in given.devices] for _ in range(given.turns)]
    return [
        of_one[0] | {"seconds": [second for one in of_one for second in one["seconds"]]}
        for of_one in zip(*turns, strict=True)
    ]


def measure_point(given: argparse.Namespace, devices: int) -> dict[str, Any]:
    """One point, measured in a process of its own, which has so many devices.

    Raises:
      UserError: it failed, and has said why; or there are not so many GPUs.
    """
    logging.info("measuring on %d device(s)", devices)
    env = dict(os.environ)
    (env,) = local.make_environments(1, devices, env, visible_gpus(env))
    flags = [f"--gin_file={name}" for name in given.gin_file]
    flags += [f"--gin_bindings={binding}" for binding in given.gin_bindings]
    flags += [f"--{name}={getattr(given, name)}" for name in ("images", "rounds", "least")]
    command = [sys.executable, "-m", "experiments.weak_scaling.point", *flags, f"--devices={devices}"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"measuring on {devices} device(s) failed")
    return json.loads(done.stdout.splitlines()[-1])


def estimate_clusters(given: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    """What holds for all clusters, and each of them."""
    experiment = gin_loader.load_experiment([given.paper], [])
    experiment = dataclasses.replace(experiment, batch_size=given.paper_images)
    parameters, share = count_model_parameters(experiment), experiment.plan.share
    work = work_of_share(experiment, 1)
    rows = [paper.estimate_row(one, work, given.paper_images, parameters, share) for one in CLUSTERS]
    common = {
        "run": given.paper,
        "images": given.paper_images,
        "parameters": parameters,
        "flops_per_image": work.flops / given.paper_images,
        "share": share,
    }
    return common, rows


def count_model_parameters(experiment: Experiment) -> int:
    """Its parameters."""
    return count_parameters(abstract_state(experiment, make_mesh()).params)


def describe_measurement(given: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """When, where and of what."""
    bound = [*(f"`{name}`" for name in given.gin_file), *(f"`{binding}`" for binding in given.gin_bindings)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "experiments.weak_scaling", *argv]),
        "cpu": cpu_model(),
        "cores": cores,
        "versions": versions(),
        "run": ", ".join(bound),
        "images": given.images,
        "remark": given.remark,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv

    def perform() -> None:
        start_up()
        given = parse_args(argv)
        points = measure_points(given)  # before this process takes a GPU for itself
        common, rows = estimate_clusters(given)
        figures = describe_measurement(given, argv) | {"points": points, "paper": common}
        atomic.write_text(given.page, render_page(figures, rows))
        print(f"in {given.page}")

    return exit_status(perform)


if __name__ == "__main__":
    sys.exit(main())
