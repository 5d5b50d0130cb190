"""Checks and benchmarks on one accelerator, in one program of a few minutes.

  python -m experiments.on_device --output=on_device --golden=FOLDER

Stages: the device and its rate of matrix products; the authors' losses from their own recorded parameters (--golden, a
folder of .npz); the train steps of DiffEnc-32-8 and 32-4 in bfloat16 on images of random levels, their share of the
peak, and a profile; the quickstart, trained and evaluated. Stages that do not fit into the time are skipped
and listed. OUTPUT/table.md and OUTPUT/figures.json are rewritten after each stage, so that no result is lost when the
machine goes away. `--small` does the same at tiny sizes, to try the program on a CPU.
"""

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.runtime import jax_settings
from diffenc.runtime.console import exit_status, start_up
from experiments.on_device import stages
from experiments.on_device.schedule import Record, Stage, run_stages

BFLOAT16 = "PRECISION = 'bfloat16'"
# The run file, and the number of microbatches with which a step fits into 80 GB.
BENCHMARKS = {"DiffEnc-32-8": ("imagenet32_diffenc_32_8", 4), "DiffEnc-32-4": ("cifar10_diffenc_32_4", 1)}
SMALL = [
    "network.unet.blocks = 1",
    "network.unet.channels = 8",
    "network.encoder_unet.blocks = 1",
    "network.encoder_unet.channels = 4",
    "Experiment.batch_size = 8",
]
SMALL_RUN = [
    *SMALL,
    "Experiment.steps = 4",
    "evaluate.num_images = 8",
    "evaluate.passes = 1",
    "sample.num_timesteps = 2",
]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.on_device", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--output", type=path_argument, default=Path("on_device"), help="a new folder (default: on_device)")
    add("--golden", type=path_argument, help="folder of the recorded arrays (default: without)")
    add("--minutes", type=float, default=8.0, help="that all may take (default: 8)")
    add("--small", action="store_true", help="tiny sizes: a dry run")
    return parser.parse_args(argv)


def load_benchmarks(small: bool) -> dict[str, Experiment]:
    """Returns the experiments for the timing of train steps."""
    bindings = [BFLOAT16, *(SMALL if small else [])]
    return {
        name: gin_loader.load_experiment(
            [f"gin/{file}.gin"], [*bindings, f"Experiment.microbatches = {parts}"]
        )
        for name, (file, parts) in BENCHMARKS.items()
    }


def make_stages(
    benchmarks: dict[str, Experiment], quickstart: Experiment, golden: Path | None, output: Path
) -> list[Stage]:
    """Returns the stages in order; their seconds are estimates for an H100 with an empty compile cache."""
    first, *others = benchmarks.items()
    found = [Stage("device", 15, stages.describe_device)]
    if golden is not None:
        found += [Stage("golden arrays", 60, lambda: stages.compare_golden(golden))]
    found += [Stage(first[0], 150, lambda: stages.time_step(first[1], output / "profile"))]
    found += [Stage("quickstart", 120, lambda: stages.run_quickstart(quickstart, output / "quickstart"))]
    return [*found, *(Stage(name, 120, _timing(experiment)) for name, experiment in others)]


def _timing(experiment: Experiment) -> Any:
    return lambda: stages.time_step(experiment, None)


def perform(args: argparse.Namespace, command: Sequence[str]) -> Record:
    """Runs all stages; returns their record.

    Raises:
      UserError: --output is not empty, the folder of --golden does not exist, or --minutes is not positive.
    """
    if args.output.exists() and any(args.output.iterdir()):
        raise UserError(f"--output={args.output}: is not empty: name another folder")
    if args.golden is not None and not args.golden.is_dir():
        raise UserError(f"--golden={args.golden}: no such folder")
    if not args.minutes > 0:
        raise UserError(f"--minutes={args.minutes}: must be above 0")
    args.output.mkdir(parents=True, exist_ok=True)
    jax_settings.check_backend()
    quickstart = gin_loader.load_experiment(["gin/quickstart.gin"], SMALL_RUN if args.small else [])
    made = make_stages(load_benchmarks(args.small), quickstart, args.golden, args.output)
    record = Record(
        shlex.join(["python", "-m", "experiments.on_device", *command]),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )

    def save(record: Record) -> None:
        atomic.write_text(args.output / "table.md", record.table())
        atomic.write_json(args.output / "figures.json", record.figures())

    run_stages(made, 60 * args.minutes, record, save)
    print(record.table())
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 1 if a stage failed."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)

    def run() -> None:
        start_up()
        failed = perform(args, argv).failed
        logging.info("all of it is in %s", args.output)
        if failed:
            raise UserError(f"failed: {', '.join(failed)}; see {args.output}/table.md")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
