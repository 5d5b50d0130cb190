"""Lines of a published table with the runs of them that are here."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffenc.errors import UserError
from diffenc.tools.sweep.runs import Run, Task, evaluated, left, runs_of
from diffenc.tools.sweep.summary import Record, Summary, summarise
from diffenc.tools.tables import paper
from diffenc.tools.tables.paper import Row
from diffenc.tools.tables.scale import Scale, deviations


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
      folder: where the table that trains it has its runs.
      runs: of all its seeds, there or not.
    """

    row: Row
    folder: Path
    runs: tuple[Run, ...]

    @functools.cached_property
    def summary(self) -> Summary:
        """Of the runs that are evaluated as their configs ask for."""
        return summarise(self.row.name, {run.seed: run.workdir for run in self.runs if evaluated(run)})


def lines_of(table: int, folder: Path, scale: Scale, wanted: str = "") -> list[Line]:
    """The lines of `table`, of which DATASET/NAME matches `wanted`, with their runs at `scale`.

    Args:
      folder: the table's; one that trains nothing itself takes the runs of the folders beside it.

    Raises:
      UserError: no line matches, a config is at fault, or a workdir holds a run of another.
    """
    rows = [
        (row, folder if trainer == table else folder.parent / str(trainer))
        for row, trainer in paper.rows_and_trainers(table)
    ]
    chosen = [(row, place) for row, place in rows if _matches(wanted, row)]
    if not chosen:
        known = ", ".join(f"{row.dataset}/{row.name}" for row, _ in rows)
        raise UserError(f"--rows={wanted}: matches none of {known}")
    lines = [
        Line(row, place, tuple(runs_of(place, [scale.variant(row)], scale.seeds_of(row))))
        for row, place in chosen
    ]
    return lines


def _matches(wanted: str, row: Row) -> bool:
    try:
        return re.search(wanted, f"{row.dataset}/{row.name}") is not None
    except re.error as error:
        raise UserError(f"--rows={wanted}: is no regular expression: {error}") from None


def records(lines: Sequence[Line]) -> Iterator[Record]:
    """Of every run that was evaluated."""
    for line in lines:
        yield from line.summary.records.values()


def of_published_images(dataset: str, record: Record) -> bool:
    """Whether a record is of the images that the paper's figures of `dataset` are of."""
    return record.get("source") == paper.images_of(dataset) and record.get("condition") is None


def all_of_test(line: Line) -> bool:
    """Whether a line is measured on the whole test split, as the paper is."""
    settings = line.runs[0].experiment.evaluate
    return settings.split == "test" and settings.num_images is None


def how_published(lines: Sequence[Line]) -> tuple[str, ...]:
    """Whether the training is the published one, and if not, how it differs."""
    by_line = (deviations(line.row, line.runs[0].experiment, len(line.runs)) for line in lines)
    differing = dict.fromkeys(itertools.chain.from_iterable(by_line))
    if not differing:
        return ("training: as published",)
    return (
        f"NOT the published training: {'; '.join(differing)}",
        "the paper's figures are of its own training: not to be compared with those from here",
    )


def missing(lines: Sequence[Line], tasks: Sequence[Task]) -> tuple[str, ...]:
    """What the table still lacks, a line for each of its lines."""
    return tuple(filter(None, (_missing(line, tasks) for line in lines)))


def _missing(line: Line, tasks: Sequence[Task]) -> str:
    by_modes: dict[str, list[str]] = {}
    for run in line.runs:
        if modes := left(run, tasks):
            by_modes.setdefault(", ".join(modes), []).append(str(run.seed))
    if not by_modes:
        return ""
    parts = (f"seed {', '.join(seeds)} (to do: {modes})" for modes, seeds in by_modes.items())
    return f"missing: {line.folder / line.row.name}: {'; '.join(parts)}"
