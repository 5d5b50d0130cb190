"""Lines of a published table, with the local runs of each."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffenc.errors import UserError
from diffenc.tools.sweep.results import Record, VariantResults, read_results
from diffenc.tools.sweep.runs import Run, Task, is_evaluated, make_runs, remaining_modes
from diffenc.tools.tables import paper
from diffenc.tools.tables.paper import Row
from diffenc.tools.tables.scale import Scale, find_deviations


@dataclasses.dataclass(frozen=True)
class TableLine:
    """One line of a table.

    Attributes:
      folder: folder of the table that trains its runs.
      runs: one run for each seed, whether or not it exists on disk.
    """

    row: Row
    folder: Path
    runs: tuple[Run, ...]

    @functools.cached_property
    def results(self) -> VariantResults:
        """The results of the runs that are evaluated with the settings of their config."""
        return read_results(self.row.name, {run.seed: run.workdir for run in self.runs if is_evaluated(run)})


def load_lines(table: int, folder: Path, scale: Scale, pattern: str = "") -> list[TableLine]:
    """Returns the lines of `table` with a DATASET/NAME that matches `pattern`, with their runs at `scale`.

    Args:
      folder: the table's folder. Tables 1 and 8 use the runs in the sibling folders of the tables that train them.

    Raises:
      UserError: no line matches, a config is invalid, or a workdir holds a run of another config.
    """
    rows = [
        (row, folder if trainer == table else folder.parent / str(trainer))
        for row, trainer in paper.load_rows_and_trainers(table)
    ]
    selected = [(row, runs_folder) for row, runs_folder in rows if _matches(pattern, row)]
    if not selected:
        known = ", ".join(f"{row.dataset}/{row.name}" for row, _ in rows)
        raise UserError(f"--rows={pattern}: matches none of {known}")
    return [
        TableLine(row, runs_folder, tuple(make_runs(runs_folder, [scale.variant(row)], scale.seeds_of(row))))
        for row, runs_folder in selected
    ]


def _matches(pattern: str, row: Row) -> bool:
    try:
        return re.search(pattern, f"{row.dataset}/{row.name}") is not None
    except re.error as error:
        raise UserError(f"--rows={pattern}: not a valid regular expression: {error}") from None


def evaluation_records(lines: Sequence[TableLine]) -> Iterator[Record]:
    """Yields the record of every evaluated run."""
    for line in lines:
        yield from line.results.records.values()


def uses_published_images(dataset: str, record: Record) -> bool:
    """Returns whether a record is of the images on which the paper reports `dataset`."""
    return record.get("source") == paper.published_images(dataset) and record.get("condition") is None


def covers_test_split(line: TableLine) -> bool:
    """Returns whether a line is evaluated on the whole test split, as in the paper."""
    settings = line.runs[0].experiment.evaluate
    return settings.split == "test" and settings.num_images is None


def describe_deviations(lines: Sequence[TableLine]) -> tuple[str, ...]:
    """Returns lines that state whether the training is the published one, and otherwise its deviations."""
    by_line = (find_deviations(line.row, line.runs[0].experiment, len(line.runs)) for line in lines)
    differing = dict.fromkeys(itertools.chain.from_iterable(by_line))
    if not differing:
        return ("training: as published",)
    return (
        f"NOT the published training: {'; '.join(differing)}",
        "the paper's numbers are of its own training and cannot be compared with those from here",
    )


def describe_missing(lines: Sequence[TableLine], tasks: Sequence[Task]) -> tuple[str, ...]:
    """Returns a line on the missing runs of each line that has any."""
    return tuple(filter(None, (_describe_missing_runs(line, tasks) for line in lines)))


def _describe_missing_runs(line: TableLine, tasks: Sequence[Task]) -> str:
    by_modes: dict[str, list[str]] = {}
    for run in line.runs:
        if modes := remaining_modes(run, tasks):
            by_modes.setdefault(", ".join(modes), []).append(str(run.seed))
    if not by_modes:
        return ""
    parts = (f"seed {', '.join(seeds)} (to do: {modes})" for modes, seeds in by_modes.items())
    return f"missing: {line.folder / line.row.name}: {'; '.join(parts)}"
