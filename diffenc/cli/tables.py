"""Reproduces a table of the DiffEnc paper: trains and evaluates the runs it needs, and shows the paper's rows for comparison.

  python -m experiments.tables --table=4
  python -m experiments.tables --table=4 --rows=fixed --steps=1000 --seeds=3 --batch_size=16 --blocks=1 --channels=32 \\
      --encoder_channels=16

Without further flags a table is trained as published: steps, seeds, batch size and networks. Flags scale it down, and
the table then lists the differences. Each run is in OUTPUT/ROW/seed_K, a workdir of diffenc.run; the same command
resumes, and runs only what is missing. --norun shows the results so far. Tables 1 and 8 use the runs of tables 2 and 6,
in the sibling folders 2 and 6 of OUTPUT. The page is also written to OUTPUT: table.md, table.tex, and a .csv for each
of its parts.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffenc.errors import UserError
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import STOPPED, exit_status, start_up
from diffenc.tools.sweep.execution import require_done, run_locally, run_sweep
from diffenc.tools.sweep.runs import TASKS, Task
from diffenc.tools.sweep.sheets import Page, print_page, write_page
from diffenc.tools.tables import components, distances, totals
from diffenc.tools.tables.collection import TableLine, load_lines
from diffenc.tools.tables.paper import TABLES
from diffenc.tools.tables.scale import Scale


def make_page(table: int, lines: Sequence[TableLine]) -> Page:
    """Returns the page of `table`."""
    if table == totals.TABLE:
        return totals.totals_page(lines)
    if table == distances.TABLE:
        return distances.distances_page(lines)
    return components.components_page(table, lines)


def table_tasks(table: int) -> tuple[Task, ...]:
    """Returns the tasks of each run of `table`."""
    return distances.TASKS if table == distances.TABLE else TASKS


def run_missing(lines: Sequence[TableLine], tasks: Sequence[Task], jobs: int) -> None:
    """Executes `tasks` for every run; one that fails does not stop the others.

    Raises:
      UserError: a config is invalid, or another process is using a folder.
      Interrupted: SIGTERM or Ctrl-C was received; runs in training have saved a checkpoint.
    """
    # By folder and number of seeds, as a sweep has one folder and the same seeds for all its variants.
    groups: dict[tuple[Path, int], list[TableLine]] = {}
    for line in lines:
        groups.setdefault((line.folder, len(line.runs)), []).append(line)
    for (folder, seeds), group in groups.items():
        variants = [line.runs[0].variant for line in group]
        run_sweep(folder, variants, range(seeds), tasks, partial(run_locally, jobs))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--table", type=int, required=True, choices=TABLES)
    add("--steps", type=int, help="of training (default: as published)")
    add("--seeds", type=int, help="how many (default: as published)")
    add("--batch_size", type=int, help="of training (default: as published)")
    add("--blocks", type=int, help="of the score network (default: as published)")
    add("--channels", type=int, help="of the score network (default: as published)")
    add("--encoder_channels", type=int, help="of the encoder's network, in rows that have one")
    add("--num_images", type=int, help="to evaluate on (default: all of the test split)")
    add("--passes", type=int, help="of the evaluation (default: 1)")
    add("--rows", default="", metavar="REGEX", help="only rows whose DATASET/NAME matches, e.g. 'fixed'")
    add("--gin_bindings", action="append", default=[], help="a binding for every row; may be repeated")
    add("--output", type=path_argument, help="folder of the table (default: tables/N)")
    add("--jobs", type=int, default=1, help="runs at a time, which share the machine (default: 1)")
    add("--data_dir", type=path_argument, help="folder of data sets (default: $DIFFENC_DATA, else a cache)")
    add("--run", action="store_true", default=True, help="run what is missing (the default)")
    add("--norun", dest="run", action="store_false", help="show the results so far, and what is missing")
    return parser.parse_args(argv)


def parse_scale(args: argparse.Namespace) -> Scale:
    """Returns the scale that the flags set.

    Raises:
      UserError: a number is not positive.
    """
    names = [field.name for field in dataclasses.fields(Scale) if field.name != "bindings"]
    numbers = {name: getattr(args, name) for name in names}
    for name, number in (numbers | {"jobs": args.jobs}).items():
        if number is not None and number < 1:
            raise UserError(f"--{name}={number}: must be at least 1")
    return Scale(**numbers, bindings=tuple(args.gin_bindings))


def run_command(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = parse_args(argv)
    scale = parse_scale(args)
    start_up()
    if args.data_dir:
        os.environ["DIFFENC_DATA"] = os.path.abspath(args.data_dir)
    folder = args.output or Path("tables") / str(args.table)
    lines = load_lines(args.table, folder, scale, args.rows)
    if args.run:
        run_missing(lines, table_tasks(args.table), args.jobs)
    page = make_page(args.table, lines)
    write_page(page, folder)
    print_page(page)
    print(f"in {folder}")
    if args.run:
        require_done([run for line in lines for run in line.runs], table_tasks(args.table))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status(lambda: run_command(sys.argv[1:] if argv is None else argv), STOPPED)
