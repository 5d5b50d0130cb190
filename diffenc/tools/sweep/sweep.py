"""The command `diffenc.sweep`: trains and evaluates the runs of a sweep, and compares its variants."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffenc.config.settings import check_seed
from diffenc.errors import UserError
from diffenc.tools.sweep import comparison
from diffenc.tools.sweep.execution import Execute, require_done, run_locally, run_sweep
from diffenc.tools.sweep.results import describe_evaluations, read_results, require_comparable, results_sheet
from diffenc.tools.sweep.runs import TASKS, Run, remaining_modes
from diffenc.tools.sweep.sheets import Page, print_page, write_page
from diffenc.tools.sweep.slurm import executor_factory, parse_options, run_on_slurm
from diffenc.tools.sweep.variants import Variant, make_variants, parse_grid


def sweep(args: argparse.Namespace) -> None:
    """Executes the missing runs of a sweep, and writes and prints its tables.

    Raises:
      UserError: an argument or a config is invalid, or a run failed.
    """
    name, variants = parse_variants(args)
    folder = args.output or Path("sweeps") / name
    pairs = parse_pairs(args.compare, [variant.name for variant in variants])
    runs = run_sweep(folder, variants, parse_seeds(args.seeds), execute=select_executor(args, folder))
    page = make_page(name, runs, pairs)
    write_page(page, folder)
    print_page(page)
    require_done(runs)


def parse_seeds(text: str) -> list[int]:
    """Parses a count or a list: `5` means 0 to 4, `3,7` these two, `3,` one. Raises UserError for anything else."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    seeds = numbers if "," in text else [*range(numbers[0])] if numbers else []
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text}: must be a number of seeds, e.g. 5, or a list of seeds, e.g. 3,7")
    for seed in seeds:
        check_seed("--seeds", seed)
    return seeds


def parse_variants(args: argparse.Namespace) -> tuple[str, list[Variant]]:
    """Returns the sweep's name, the joined stems of its gin files, and its variants.

    Raises:
      UserError: a grid is invalid.
    """
    name = "+".join(Path(file).stem for file in args.gin_file)
    grids = [parse_grid(text) for text in args.grid]
    return name, make_variants(args.gin_file, args.gin_bindings, grids, name, args.variant)


def parse_pairs(texts: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs of variants to compare: those of `texts`, each "A,B"; without any, each variant with the first.

    Names may contain commas.

    Raises:
      UserError: a text does not name two variants.
    """
    pairs = [(a, b) for a in names for b in names if a != b]
    chosen = []
    for text in texts:
        found = [pair for pair in pairs if ",".join(pair) == text]
        if not found:
            known = " ".join(names)
            raise UserError(f"--compare={text}: must be two of the variants {known}, with a comma between")
        if len(found) > 1:
            meanings = " or ".join(map(" with ".join, found))
            raise UserError(f"--compare={text}: can be {meanings}; rename a --variant")
        chosen += found
    return chosen or [(other, names[0]) for other in names[1:]]


def select_executor(args: argparse.Namespace, folder: Path) -> Execute:
    """Returns the function that executes the runs: on this machine, or on Slurm.

    Raises:
      UserError: options of --slurm are invalid, or Slurm or submitit is not installed.
    """
    if args.slurm is None:
        return partial(run_locally, args.jobs or 1)
    return partial(run_on_slurm, executor_factory(parse_options(args.slurm), args.jobs), folder)


def make_page(name: str, runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> Page:
    """Returns the results of the runs that are done, and the comparisons of the pairs of variants."""
    workdirs: dict[str, dict[int, Path]] = {run.variant.name: {} for run in runs}
    for run in runs:
        if not remaining_modes(run, TASKS):
            workdirs[run.variant.name][run.seed] = run.workdir
    by_name = {name: read_results(name, by_seed) for name, by_seed in workdirs.items()}
    variants = [variant for variant in by_name.values() if variant.seeds]
    require_comparable(variants)
    # Pairs without any run too: they count among the comparisons that p is corrected for.
    compared = [(by_name[a], by_name[b]) for a, b in pairs]
    planned = dict.fromkeys(by_name, tuple(run.seed for run in runs))
    comparisons = comparison.comparison_sheets(compared, planned)
    return Page(f"Sweep {name}", describe_evaluations(variants), (results_sheet(variants), *comparisons))
