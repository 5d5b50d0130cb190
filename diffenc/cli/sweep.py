"""Many runs of one experiment: a grid of bindings, each value with several seeds.

  python -m experiments.sweep --gin_file=gin/mnist_diffenc_8_2.gin --seeds=3 \\
      --grid='network.encoder_unet.blocks = [1, 2, 4, 8]'
  python -m experiments.sweep --gin_file=gin/mnist_diffenc_8_2.gin --seeds=3 \\
      --grid='Model.encoder, Model.generative_mean = [(@encoder.identity(), @generative_mean.vdm()), (@encoder.trainable(), @generative_mean.counterterm())]'

Several --grid make a product. Each run is trained and then evaluated in OUTPUT/VARIANT/seed_K, a workdir of
diffenc.run; what it writes is in seed_K.log beside it. The same seed gives every variant the same order of the data,
the same times and noise, and all are evaluated on the same draws, so differences between variants vary less than their
figures do. A run that fails does not stop the others. The same command goes on: it runs what is missing, and nothing
else. What came out, and the paired differences from the first variant, are in OUTPUT: table.md, table.tex, *.csv.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from diffenc.cli.console import STOPPED, exit_status, start_up
from diffenc.errors import UserError
from diffenc.files.user_paths import path_argument


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the arguments. Raises UserError if there is no positive number of jobs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--gin_file", action="append", default=[], required=True, help="as for diffenc.run; may be repeated")
    add("--gin_bindings", action="append", default=[], help="over the files, in every run; may be repeated")
    add("--grid", action="append", default=[], help="NAME = [VALUE, ...]; may be repeated, for a product")
    add("--seeds", default="5", help="how many, as 5, or which, as 3,7 (default: 5)")
    add("--output", type=path_argument, help="the sweep's folder (default: sweeps/NAME, after the gin files)")
    add(
        "--jobs", type=int, help="runs at a time, each on its share of the machine (default: 1; on Slurm all)"
    )
    add(
        "--slurm", nargs="?", const="", metavar="OPTIONS", help="as jobs of a Slurm cluster; sbatch's options"
    )
    add("--data_dir", type=path_argument, help="where data sets live; default $DIFFENC_DATA, else a cache")
    given = parser.parse_args(argv)
    if given.jobs is not None and given.jobs < 1:
        raise UserError(f"--jobs={given.jobs}: must be at least 1")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return exit_status(lambda: _sweep(sys.argv[1:] if argv is None else argv), STOPPED)


def _sweep(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from diffenc.tools.sweep.sweep import sweep  # not for --help: it takes seconds to import

    start_up()
    if args.data_dir:
        os.environ["DIFFENC_DATA"] = os.path.abspath(args.data_dir)
    sweep(args)
