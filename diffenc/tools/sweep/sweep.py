"""Trains and evaluates the runs of a sweep, and compares its variants; `diffenc.cli.sweep` reads the arguments."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffenc.config.settings import check_seed
from diffenc.errors import UserError
from diffenc.tools.sweep import comparison
from diffenc.tools.sweep.execution import Execute, check_done, here, perform
from diffenc.tools.sweep.formatting import Page, show, write
from diffenc.tools.sweep.on_slurm import executor_of, on_slurm, parse_options
from diffenc.tools.sweep.runs import TASKS, Run, left
from diffenc.tools.sweep.summary import facts, require_alike, sheet, summarise
from diffenc.tools.sweep.variants import Variant, parse_grid, variants_of


def sweep(args: argparse.Namespace) -> None:
    """Runs what is missing of the sweep and writes its tables.

    Raises:
      UserError: an argument or a config is at fault, or a run failed.
    """
    name, variants = make_variants(args)
    folder = args.output or Path("sweeps") / name
    runs = perform(folder, variants, parse_seeds(args.seeds), execute=make_executor(args, folder))
    page = _page(name, runs)
    write(page, folder)
    show(page)
    check_done(runs)


def make_variants(args: argparse.Namespace) -> tuple[str, list[Variant]]:
    """Returns the name of the sweep, after its gin files, and the variants that it compares.

    Raises:
      UserError: a grid is at fault.
    """
    name = "+".join(Path(file).stem for file in args.gin_file)
    grids = [parse_grid(text) for text in args.grid]
    return name, variants_of(args.gin_file, args.gin_bindings, grids, name)


def parse_seeds(text: str) -> list[int]:
    """Returns the seeds 0 to 4 for `5`, 3 and 7 for `3,7`, 3 for `3,`. Raises UserError for anything else."""
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


def make_executor(args: argparse.Namespace, folder: Path) -> Execute:
    """Returns the function that executes runs, here or on Slurm.

    Raises:
      UserError: options of --slurm are at fault, or its package is not installed.
    """
    if args.slurm is None:
        return partial(here, args.jobs or 1)
    return partial(on_slurm, executor_of(parse_options(args.slurm), args.jobs), folder)


def _page(name: str, runs: Sequence[Run]) -> Page:
    """Returns a sheet of the variants whose runs are done, and one for each variant's differences from the first."""
    workdirs: dict[str, dict[int, Path]] = {}
    for run in runs:
        if not left(run, TASKS):
            workdirs.setdefault(run.variant.name, {})[run.seed] = run.workdir
    summaries = [summarise(variant, by_seed) for variant, by_seed in workdirs.items()]
    require_alike(summaries)
    against = comparison.sheets([(one, summaries[0]) for one in summaries[1:]]) if len(summaries) > 1 else ()
    return Page(f"Sweep {name}", facts(summaries), (sheet(summaries), *against))
