"""Trains, evaluates and compares a grid of variants of one experiment, each with several seeds.

  python -m diffenc.sweep --gin_file=gin/mnist_diffenc_8_2.gin --seeds=3 \\
      --grid='network.encoder_unet.blocks = [1, 2, 4, 8]'
  python -m diffenc.sweep --gin_file=gin/mnist_diffenc_8_2.gin --seeds=3 \\
      --grid='Model.encoder, Model.generative_mean = [(@encoder.identity(), @generative_mean.vdm()), (@encoder.trainable(), @generative_mean.counterterm())]'

  python -m diffenc.sweep --gin_file=gin/mnist_diffenc_8_2.gin --seeds=5 \\
      --variant=gin/learned_endpoints.gin --variant=gin/learned_path.gin --compare=learned_path,learned_endpoints

Repeated --grid flags multiply, with each other and with --variant. Each run is trained and then evaluated in
OUTPUT/VARIANT/seed_K, a workdir of diffenc.run; its output is in seed_K.log next to it. With the same seed all variants
see the same data order, times and noise, and all are evaluated on the same draws, so differences between variants vary
less than their bits/dim. A run that fails does not stop the others. The same command resumes a sweep: it runs only what is missing, all variants of one
seed first; of a run that was evaluated, no checkpoint is needed. The results, and paired differences from the first
variant or those of --compare, are written to OUTPUT: table.md, table.tex, *.csv. A comparison is tested, and given a p,
when all its runs are there; p is corrected for the number of comparisons.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from diffenc.errors import UserError
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import STOPPED, exit_status, start_up


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line. Raises UserError for an invalid value."""
    parser = argparse.ArgumentParser(prog="python -m diffenc.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--gin_file",
        action="append",
        default=[],
        required=True,
        help="a gin file, as for diffenc.run; may be repeated",
    )
    add("--gin_bindings", action="append", default=[], help="a binding for every run; may be repeated")
    add(
        "--variant",
        action="append",
        default=[],
        help="a gin file of one variant, which stacks on those of --gin_file; may be repeated",
    )
    add(
        "--compare",
        action="append",
        default=[],
        metavar="A,B",
        help="compare variant A with B, by their names; may be repeated (default: each with the first)",
    )
    add("--grid", action="append", default=[], help="NAME = [VALUE, ...]; repeated flags multiply")
    add("--seeds", default="5", help="how many, e.g. 5, or which, e.g. 3,7 (default: 5)")
    add(
        "--output", type=path_argument, help="folder of the sweep (default: sweeps/NAME, after the gin files)"
    )
    add("--jobs", type=int, help="runs at a time, which share the machine (default: 1; on Slurm: all)")
    add(
        "--slurm",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help="run as jobs of a Slurm cluster, with these options of sbatch",
    )
    add("--data_dir", type=path_argument, help="folder of data sets (default: $DIFFENC_DATA, else a cache)")
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status(lambda: _sweep(sys.argv[1:] if argv is None else argv), STOPPED)


def _sweep(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from diffenc.tools.sweep.sweep import sweep  # not for --help: it takes seconds to import

    start_up()
    if args.data_dir:
        os.environ["DIFFENC_DATA"] = os.path.abspath(args.data_dir)
    sweep(args)
