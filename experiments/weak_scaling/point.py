"""One point of weak scaling: the train step on the devices of this process, and its collectives.

  python -m experiments.weak_scaling.point --gin_file=gin/quickstart.gin --devices=1 --images=8

Started by `experiments.weak_scaling` for each number of devices. The last line of its output is JSON.
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

from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from diffenc.runtime.console import exit_status, start_up
from experiments.benchmark.subject import Settings, Subject
from experiments.timing import time_interleaved

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
# asynchronous collectives count at their start, not again at -done
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
# dtype, bits and sizes; pred has no bits, and takes a byte
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


def find_collectives(hlo: str) -> list[tuple[str, int]]:
    """Returns (kind, bytes of the result) of every collective in the HLO text of a compiled program, in order."""
    return [(kind, result_bytes(shape)) for shape, kind in COLLECTIVE.findall(hlo)]


def result_bytes(shape: str) -> int:
    """Returns the bytes of a shape in HLO text, such as "f32[3,4]{1,0}", or of a tuple of shapes."""
    return sum(
        math.ceil(int(bits or 8) / 8) * math.prod(int(size) for size in sizes.split(",") if size)
        for _, bits, sizes in ARRAY.findall(shape)
    )


def measure_step(experiment: Experiment, settings: Settings) -> dict[str, Any]:
    """Measures the times of a train step, and its collectives.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    subject = Subject(experiment, settings)
    name = "step"
    times = time_interleaved({name: subject.stepper}, settings.rounds, settings.least)[name]
    text = subject.compiled.step.as_text() or ""
    sent = find_collectives(text) if jax.device_count() > 1 else []  # over one device nothing is sent
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
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)

    def perform() -> None:
        start_up()
        if jax.device_count() != args.devices:
            raise UserError(f"--devices={args.devices}: this process has {jax.device_count()}")
        experiment = gin_loader.load_experiment(args.gin_file, args.gin_bindings)
        experiment = dataclasses.replace(experiment, batch_size=args.devices * args.images)
        print(json.dumps(measure_step(experiment, Settings(rounds=args.rounds, least=args.least))))

    return exit_status(perform)


if __name__ == "__main__":
    sys.exit(main())
