"""The published tables: which runs they are of, and what they say."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffenc.evaluation.uncertainty_format import Figure
from diffenc.tools.sweep.summary import COMPONENTS
from diffenc.tools.sweep.variants import Variant

FILE = Path(__file__).with_name("paper_results.json")
OF_COMPONENTS = (2, 3, 4, 5, 6, 7)
TABLES = (1, *OF_COMPONENTS, 8)
LEARNED_ENDS = "gin/learned_endpoints.gin"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a published table.

    Attributes:
      model: as DiffEnc-8-2.
      noise: "fixed", or "trainable" for learned ends of the log-SNR.
      dataset: registered name.
      name: of the folder of its runs; with the noise where the table has both.
      figures: digits as printed, by component or column.
    """

    model: str
    noise: str
    dataset: str
    name: str
    seeds: int
    steps: int
    batch_size: int
    figures: Mapping[str, Figure]

    @property
    def gin_files(self) -> tuple[str, ...]:
        stem = self.model.lower().replace("-", "_")
        return (f"gin/{self.dataset}_{stem}.gin", *([LEARNED_ENDS] if self.noise == "trainable" else []))

    @property
    def variant(self) -> Variant:
        """The published training."""
        scale = f"Experiment.steps = {self.steps}", f"Experiment.batch_size = {self.batch_size}"
        return Variant(self.name, self.gin_files, scale)

    @property
    def total(self) -> tuple[float, float, int]:
        """Mean, standard error and number of seeds."""
        figure = self.figures["total"]
        return float(figure.mean), float(figure.error or "nan"), self.seeds


@functools.cache
def results() -> dict[str, Any]:
    """All of paper_results.json."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def images_of(dataset: str) -> str:
    """Which images the paper's figures are of, as prepared data state it."""
    return results()["images"][dataset]


def notes(table: int) -> list[str]:
    """What is to be known of the numbers printed in a table."""
    start = f"Table {table}: "
    return [f"the paper: {note.removeprefix(start)}" for note in results()["notes"] if note.startswith(start)]


def rows(table: int) -> list[Row]:
    """The lines of one of tables 2 to 8, in the paper's order."""
    found = results()["tables"][str(table)]
    lines = found["rows"]
    both = len({line["noise"] for line in lines}) > 1
    return [_row(line, both, found) for line in lines]


def rows_and_trainers(table: int) -> list[tuple[Row, int]]:
    """The rows of a table with runs, and the table that trains each: those of 1 and 8 are trained by others."""
    if table == 1:
        return [(row, trainer) for trainer in (2, 6) for row in rows(trainer)]
    return [(row, 2 if table == 8 else table) for row in rows(table)]


def _row(line: Mapping[str, Any], both: bool, of: Mapping[str, Any]) -> Row:
    about = ("model", "noise", "seeds")
    name = f"{line['model']}_{line['noise']}" if both else line["model"]
    figures = {key: Figure(*value) for key, value in line.items() if key not in about}
    about = {key: line[key] for key in about} | {key: of[key] for key in ("dataset", "steps", "batch_size")}
    return Row(name=name, figures=figures, **about)


def others() -> list[dict[str, str]]:
    """The lines of table 1: `model`, `type`, and bits/dim by data set."""
    return results()["tables"]["1"]["rows"]


def cells(row: Row) -> tuple[Figure | int | str, ...]:
    """As `experiments.summary.cells`: the components, the number of seeds, and of parameters, which it does not say."""
    return (*(row.figures[component] for component in COMPONENTS), row.seeds, "-")
