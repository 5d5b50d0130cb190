"""One point of weak scaling: the train step on the devices of this process, and what its program sends between them.

  python -m experiments.weak_scaling.point --gin_file=gin/quickstart.gin --devices=1 --images=8

For `experiments.weak_scaling`, which starts it once for each number of devices. The last line it prints is JSON.
"""

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax

from diffenc.cli.console import exit_status, start_up
from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from experiments.benchmark.subject import Settings, Subject
from experiments.timing import time_interleaved

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


def find_collectives(hlo: str) -> list[tuple[str, int]]:
    """(kind, bytes of the result) of every collective in the text of a compiled program, in its order."""
    return [(kind, result_bytes(shape)) for shape, kind in COLLECTIVE.findall(hlo)]


def result_bytes(shape: str) -> int:
    """Bytes of a result as HLO writes it: "f32[3,4]{1,0}", or a tuple of such."""
    return sum(
        math.ceil(int(bits or 8) / 8) * math.prod(int(size) for size in sizes.split(",") if size)
        for _, bits, sizes in ARRAY.findall(shape)
    )


def measure_step(experiment: Experiment, settings: Settings) -> dict[str, Any]:
    """Times of a train step and what it sends, by name.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    subject = Subject(experiment, settings)
    name = "step"
    times = time_interleaved({name: subject.stepper}, settings.rounds, settings.least)[name]
    text = subject.compiled.step.as_text() or ""
    sent = find_collectives(text) if jax.device_count() > 1 else []  # a sum over one sends nothing
    return {
        "devices": jax.device_count(),
        "batch_size": experiment.batch_size,
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "parameters": count_parameters(subject.stepper.state.params),
        "seconds": times.seconds.tolist(),
        "sent": sent,
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.weak_scaling.point", description=__doc__)
    add = parser.add_argument
    add("--gin_file", action="append", required=True)
    add("--gin_bindings", action="append", default=[])
    add("--devices", type=int, required=True)
    add("--images", type=int, required=True)
    add("--rounds", type=int, default=5)
    add("--least", type=float, default=0.5)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parse_args(argv)

    def perform() -> None:
        start_up()
        if jax.device_count() != given.devices:
            raise UserError(f"--devices={given.devices}: there are {jax.device_count()}")
        experiment = gin_loader.load_experiment(given.gin_file, given.gin_bindings)
        experiment = dataclasses.replace(experiment, batch_size=given.devices * given.images)
        print(json.dumps(measure_step(experiment, Settings(rounds=given.rounds, least=given.least))))

    return exit_status(perform)


if __name__ == "__main__":
    sys.exit(main())
