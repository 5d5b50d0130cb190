"""Plots the learned chain and path of trained models: times, variances and the path's noise, in one picture.

  python -m experiments.tighter --output=learned.png "VDM=runs/vdm" "DiffEnc=runs/diffenc_learned_path"

Each argument is a label and a workdir. The picture shows eta^2 = dh/dlambda of each model's path, beside 1 + 2 sigma^2, with
which the bound of the non-trainable encoder is tight; and, for a model trained at T steps, lambda at its stops and w =
sigma_Q^2 / sigma_P^2 of its steps.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffenc.evaluation import plots
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import exit_status, start_up
from experiments.learned import plot_learned, read_learned


def labelled_run(text: str) -> tuple[str, Path]:
    """Returns the label and the workdir of an argument LABEL=WORKDIR."""
    label, equals, workdir = text.partition("=")
    if not (label and equals and workdir):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=WORKDIR")
    return label, path_argument(workdir)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        "python -m experiments.tighter", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", type=labelled_run, metavar="LABEL=WORKDIR")
    parser.add_argument("--output", required=True, type=path_argument, help="PNG file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)

    def perform() -> None:
        start_up()
        plots.save_png(
            plot_learned([(label, read_learned(workdir)) for label, workdir in args.runs]), args.output
        )
        print(args.output)

    return exit_status(perform)


if __name__ == "__main__":
    sys.exit(main())
