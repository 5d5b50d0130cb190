"""The tables of the DiffEnc paper, each by one command: the runs it needs, what came of them, the paper's rows beside.

  python -m experiments.tables --table=4
  python -m experiments.tables --table=4 --rows=fixed --steps=1000 --seeds=3 --batch_size=16 --blocks=1 --channels=32 \\
      --encoder_channels=16

Without further flags a table is trained as published: steps, seeds, batch and networks. Flags scale it down, and the
table then says so. Each run lies in OUTPUT/ROW/seed_K, a workdir of diffenc.run; the same command goes on, and runs
only what is missing. --norun shows what is there. Tables 1 and 8 are of the runs of tables 2 and 6, which lie, and are
trained, in the folders 2 and 6 beside OUTPUT. What is printed is written to OUTPUT too: table.md, table.tex, and a .csv
for each of its parts.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffenc.cli.console import STOPPED, exit_status, start_up
from diffenc.errors import UserError
from diffenc.files.user_paths import path_argument
from diffenc.tools.sweep.execution import check_done, here, perform
from diffenc.tools.sweep.formatting import Page, show, write
from diffenc.tools.sweep.runs import TASKS, Task
from diffenc.tools.tables import components, distances, others
from diffenc.tools.tables.collection import Line, lines_of
from diffenc.tools.tables.paper import TABLES
from diffenc.tools.tables.scale import Scale


def page(table: int, lines: Sequence[Line]) -> Page:
    """What `table` shows of its runs."""
    if table == others.TABLE:
        return others.page(lines)
    if table == distances.TABLE:
        return distances.page(lines)
    return components.page(table, lines)


def tasks_of(table: int) -> tuple[Task, ...]:
    """What a run goes through to be in `table`."""
    return distances.TASKS if table == distances.TABLE else TASKS


def run_missing(lines: Sequence[Line], tasks: Sequence[Task], jobs: int) -> None:
    """Bring every run through `tasks`, as far as they do not fail.

    Raises:
      UserError: a config is at fault, or another process works there.
      Interrupted: SIGTERM or Ctrl-C came; runs in training are saved.
    """
    groups: dict[tuple[Path, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.folder, len(line.runs)), []).append(line)
    for (folder, seeds), group in groups.items():
        variants = [line.runs[0].variant for line in group]
        perform(folder, variants, range(seeds), tasks, partial(here, jobs))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
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
    add("--rows", default="", metavar="REGEX", help="only rows whose DATASET/NAME it is found in, as 'fixed'")
    add("--gin_bindings", action="append", default=[], help="over all of it, in every row; may be repeated")
    add("--output", type=path_argument, help="the table's folder (default: tables/N)")
    add("--jobs", type=int, default=1, help="runs at a time, each on its share of the machine (default: 1)")
    add("--data_dir", type=path_argument, help="where data sets live; default $DIFFENC_DATA, else a cache")
    add("--run", action="store_true", default=True, help="run what is missing (the default)")
    add("--norun", dest="run", action="store_false", help="show what there is, and what is missing")
    return parser.parse_args(argv)


def scale_of(given: argparse.Namespace) -> Scale:
    """The scale that the flags name.

    Raises:
      UserError: a number is no positive one.
    """
    names = [field.name for field in dataclasses.fields(Scale) if field.name != "bindings"]
    numbers = {name: getattr(given, name) for name in names}
    for name, number in (numbers | {"jobs": given.jobs}).items():
        if number is not None and number < 1:
            raise UserError(f"--{name}={number}: must be at least 1")
    return Scale(**numbers, bindings=tuple(given.gin_bindings))


def run(argv: Sequence[str]) -> None:
    """The program."""
    given = parse_args(argv)
    scale = scale_of(given)
    start_up()
    if given.data_dir:
        os.environ["DIFFENC_DATA"] = os.path.abspath(given.data_dir)
    folder = given.output or Path("tables") / str(given.table)
    lines = lines_of(given.table, folder, scale, given.rows)
    if given.run:
        run_missing(lines, tasks_of(given.table), given.jobs)
    made = page(given.table, lines)
    write(made, folder)
    show(made)
    print(f"in {folder}")
    if given.run:
        check_done([run for line in lines for run in line.runs], tasks_of(given.table))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return exit_status(lambda: run(sys.argv[1:] if argv is None else argv), STOPPED)
