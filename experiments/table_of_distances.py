"""Table 8: distances of samples from a data set, under the name of what was measured."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diffenc.fid import features_of, of_sampling
from diffenc.registry import features
from experiments import collected, summary
from experiments.collected import Line
from experiments.runs import Run, Task, trained
from experiments.summary import Record, mean_and_error
from experiments.table_of_components import title
from experiments.table_shown import MISSING, Cell, Figure, Page, Sheet

TABLE = 8
PUBLISHED = "fid"
NAMES = {PUBLISHED: ("FID", "KID")}  # any other metric goes by its own name
ALIKE = (
    *("metric", "features_identity", "images", "sampling", "seed", "batch_size", "step", "precision"),
    *("matmul_precision", "kid_images", "kid_block"),
)

Measured = tuple[int, str]  # number of samples, split


def compared(run: Run) -> bool:
    """Whether its last distances are those that its config asks for, of its last step."""
    record, experiment = summary.read(run.workdir, "fid"), run.experiment
    if record is None:
        return False
    chosen = features_of(experiment)
    asked = {
        "metric": chosen.metric,
        "features": features.spell(chosen),
        "step": experiment.sample.step or experiment.steps,
        **of_sampling(experiment),
    }
    settings = experiment.fid
    measured = {(num, split) for num in settings.nums for split in settings.splits}
    return measured == set(by_column(record)) and all(record[key] == value for key, value in asked.items())


TASKS = (Task("train", lambda run: compared(run) or trained(run)), Task("fid", compared))


def by_column(record: Record) -> dict[Measured, Record]:
    return {(found["num"], found["split"]): found for found in record["distances"]}


def page(lines: Sequence[Line]) -> Page:
    """Of `lines`, as far as distances have been measured.

    Raises:
      UserError: they are not of the same kind.
    """
    records = {line.row.name: _records(line) for line in lines}
    found = [pair for of in records.values() for pair in of]
    summary.require_same(found, ALIKE)
    metric = found[0][1]["metric"] if found else PUBLISHED
    beside = metric == PUBLISHED and all(_of_published(lines[0], record) for _, record in found)
    facts = (
        *(_facts(found[0][1]) if found else ("nothing has been measured yet",)),
        *collected.how_published(lines),
        *([] if beside else [_why_alone(metric)]),
        *collected.missing(lines, TASKS),
    )
    return Page(title(TABLE), facts, tuple(_sheets(lines, records, metric, beside)))


def _records(line: Line) -> list[tuple[Path, Record]]:
    done = [run.workdir for run in line.runs if compared(run)]
    return [(workdir, summary.read(workdir, "fid") or {}) for workdir in done]


def _of_published(line: Line, record: Record) -> bool:
    """Whether the samples were compared with whole splits of the paper's images."""
    images = record["images"].values()
    whole = line.runs[0].experiment.fid.num_images is None
    return whole and all(collected.of_published_images(line.row.dataset, of) for of in images)


def _why_alone(metric: str) -> str:
    if metric != PUBLISHED:
        return f"{metric} is not FID: the paper's figures are of other features, and are left out"
    return "the paper's figures are of other images, and are left out"


def _facts(record: Record) -> Iterator[str]:
    for of in record["images"].values():
        yield f"compared with {of['num_images']:,} of {summary.images(of)}"
    sampling = record["sampling"]
    yield f"samples: {sampling['steps']:,} steps of {sampling['sampler']}, of {record['step']:,} steps of training"
    yield f"features: {record['metric']}, weights {record['features_identity'][:16]}"
    yield "± is the standard error over seeds"


def _sheets(
    lines: Sequence[Line], records: dict[str, list[tuple[Path, Record]]], metric: str, beside: bool
) -> Iterator[Sheet]:
    measured = {key for of in records.values() for _, record in of for key in by_column(record)}
    published = {_key(name) for line in lines for name in line.row.figures} if beside else set()
    columns = sorted(measured | published, key=lambda column: (column[0], column[1] != "train"))
    frechet, kernel = NAMES.get(metric, (metric, f"kernel distance ({metric})"))
    for name, shown, key in (("table", frechet, "distance"), ("kid", kernel, "kid")):
        heads = ("model", "from", *(f"{shown} {num:,} {split}" for num, split in columns), "seeds")
        rows = []
        for line in lines:
            rows.append((line.row.model, "here", *_here(records[line.row.name], key, columns)))
            if beside and name == "table":
                rows.append((line.row.model, "paper", *_paper(line, columns)))
        yield Sheet(name, f"{shown}, mean ± standard error over seeds", heads, tuple(rows))


def _key(name: str) -> Measured:
    num, split = name.split()
    return int(num), split


def _here(found: Sequence[tuple[Path, Record]], key: str, columns: Sequence[Measured]) -> tuple[Cell, ...]:
    values = {
        column: [by_column(of)[column][key] for _, of in found if column in by_column(of)]
        for column in columns
    }
    cells = (mean_and_error(np.array(of, np.float64)) if of else MISSING for of in values.values())
    return *cells, len(found)


def _paper(line: Line, columns: Sequence[Measured]) -> tuple[Cell, ...]:
    figures: dict[Measured, Figure] = {_key(name): figure for name, figure in line.row.figures.items()}
    return *(figures.get(column, MISSING) for column in columns), line.row.seeds
