"""The paper's published tables: their runs and their numbers."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffenc.evaluation.uncertainty_format import Figure
from diffenc.tools.sweep.results import COMPONENTS
from diffenc.tools.sweep.variants import Variant

FILE = Path(__file__).with_name("paper_results.json")
COMPONENT_TABLES = (2, 3, 4, 5, 6, 7)
TABLES = (1, *COMPONENT_TABLES, 8)
LEARNED_ENDS = "gin/learned_endpoints.gin"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a published table.

    Attributes:
      model: e.g. DiffEnc-8-2.
      noise: "fixed", or "trainable" for learned ends of the log-SNR.
      dataset: registered name of the data set.
      name: name of the folder with its runs; includes the noise if the table has both kinds.
      figures: numbers as printed, by component or column.
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
def load_results() -> dict[str, Any]:
    """Reads paper_results.json."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def published_images(dataset: str) -> str:
    """Returns the name, as recorded by prepared data, of the images on which the paper reports `dataset`."""
    return load_results()["images"][dataset]


def paper_notes(table: int) -> list[str]:
    """Returns the remarks on the numbers printed in a table."""
    start = f"Table {table}: "
    return [
        f"the paper: {note.removeprefix(start)}" for note in load_results()["notes"] if note.startswith(start)
    ]


def load_rows(table: int) -> list[Row]:
    """Returns the lines of one of tables 2 to 8, in the paper's order."""
    published = load_results()["tables"][str(table)]
    lines = published["rows"]
    has_both_noises = len({line["noise"] for line in lines}) > 1
    return [_make_row(line, has_both_noises, published) for line in lines]


def load_rows_and_trainers(table: int) -> list[tuple[Row, int]]:
    """Returns the rows of a table that have runs, each with the table that trains it (for tables 1 and 8 another one)."""
    if table == 1:
        return [(row, trainer) for trainer in (2, 6) for row in load_rows(trainer)]
    return [(row, 2 if table == 8 else table) for row in load_rows(table)]


def _make_row(line: Mapping[str, Any], has_both_noises: bool, table: Mapping[str, Any]) -> Row:
    keys = ("model", "noise", "seeds")
    name = f"{line['model']}_{line['noise']}" if has_both_noises else line["model"]
    figures = {key: Figure(*value) for key, value in line.items() if key not in keys}
    metadata = {key: line[key] for key in keys} | {
        key: table[key] for key in ("dataset", "steps", "batch_size")
    }
    return Row(name=name, figures=figures, **metadata)


def other_models() -> list[dict[str, str]]:
    """Returns the lines of table 1: `model`, `type`, and bits/dim by data set."""
    return load_results()["tables"]["1"]["rows"]


def paper_cells(row: Row) -> tuple[Figure | int | str, ...]:
    """Returns cells in the order of `results.result_cells`; the paper states no number of parameters here."""
    return (*(row.figures[component] for component in COMPONENTS), row.seeds, "-")
