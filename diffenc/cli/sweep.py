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
from functools import partial
from pathlib import Path

from diffenc.cli.console import STOPPED, start_up, status_of
from diffenc.config.settings import check_seed
from diffenc.errors import UserError
from diffenc.files.user_paths import path_argument
from diffenc.tools.sweep import comparison
from diffenc.tools.sweep.execution import Execute, check_done, here, perform
from diffenc.tools.sweep.formatting import Page, show, write
from diffenc.tools.sweep.on_slurm import executor_of, on_slurm, parse_options
from diffenc.tools.sweep.runs import TASKS, Run, left
from diffenc.tools.sweep.summary import facts, require_alike, sheet, summarise
from diffenc.tools.sweep.variants import Variant, parse_grid, variants_of


def parse_seeds(text: str) -> list[int]:
    """`5` is 0 to 4; `3,7` are those two; `3,` is one. Raises UserError for anything else."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    seeds = numbers if "," in text else [*range(numbers[0])] if numbers else []
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text}: give how many, as 5, or which, as 3,7")
    for seed in seeds:
        check_seed("--seeds", seed)
    return seeds


def parse(argv: Sequence[str]) -> argparse.Namespace:
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


def chosen(given: argparse.Namespace) -> tuple[str, list[Variant]]:
    """The sweep's name, after its gin files, and what it compares.

    Raises:
      UserError: a grid is at fault.
    """
    name = "+".join(Path(file).stem for file in given.gin_file)
    grids = [parse_grid(text) for text in given.grid]
    return name, variants_of(given.gin_file, given.gin_bindings, grids, name)


def chosen_place(given: argparse.Namespace, folder: Path) -> Execute:
    """Where and how many at a time.

    Raises:
      UserError: --slurm, but options are at fault, or something is not installed.
    """
    if given.slurm is None:
        return partial(here, given.jobs or 1)
    return partial(on_slurm, executor_of(parse_options(given.slurm), given.jobs), folder)


def run(argv: Sequence[str]) -> None:
    """The program."""
    given = parse(argv)
    start_up()
    name, variants = chosen(given)
    if given.data_dir:
        os.environ["DIFFENC_DATA"] = os.path.abspath(given.data_dir)
    folder = given.output or Path("sweeps") / name
    runs = perform(folder, variants, parse_seeds(given.seeds), execute=chosen_place(given, folder))
    page = page_of(name, runs)
    write(page, folder)
    show(page)
    check_done(runs)


def page_of(name: str, runs: Sequence[Run]) -> Page:
    """The variants, of the runs that are done, and each of them against the first."""
    workdirs: dict[str, dict[int, Path]] = {}
    for run in runs:
        if not left(run, TASKS):
            workdirs.setdefault(run.variant.name, {})[run.seed] = run.workdir
    summaries = [summarise(variant, of) for variant, of in workdirs.items()]
    require_alike(summaries)
    against = comparison.sheets([(one, summaries[0]) for one in summaries[1:]]) if len(summaries) > 1 else ()
    return Page(f"Sweep {name}", facts(summaries), (sheet(summaries), *against))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return status_of(lambda: run(sys.argv[1:] if argv is None else argv), STOPPED)
