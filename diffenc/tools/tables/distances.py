"""Table 8: distances of samples from a data set, under the name of what was measured."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diffenc.config import serialize
from diffenc.evaluation.records import RequiredKeys
from diffenc.evaluation.uncertainty_format import MISSING, Figure
from diffenc.registry import features
from diffenc.tools.fid.fid import choose_features, sampling_metadata
from diffenc.tools.sweep import summary
from diffenc.tools.sweep.formatting import Cell, Page, Sheet
from diffenc.tools.sweep.runs import Run, Task, trained
from diffenc.tools.sweep.summary import Record, mean_and_error
from diffenc.tools.tables import collection
from diffenc.tools.tables.collection import Line
from diffenc.tools.tables.components import title

TABLE = 8
PUBLISHED = "fid"
NAMES = {PUBLISHED: ("FID", "KID")}  # any other metric goes by its own name
# of the record's distances: the one shown, and of how many samples it is
SHEETS = {"table": ("distance", "num"), "kid": ("kid", "kid_num")}
ALIKE = (
    *("metric", "features_identity", "images", "sampling", "seed", "batch_size", "step", "precision"),
    *("matmul_precision", "prng", "kid_images", "kid_block"),
)

NEEDED: RequiredKeys = {"metric": (str,), "distances": (list,), "images": (dict,)}

Measured = tuple[int, str]  # number of samples, split


def compared(run: Run) -> bool:
    """Whether its last distances are those that its config asks for, of its last step."""
    record, experiment = summary.read(run.workdir, "fid", NEEDED), run.experiment
    if record is None:
        return False
    settings = experiment.fid
    asked = {
        "features": features.spell(choose_features(experiment)),
        "step": experiment.sample.step or experiment.steps,
        "precision": serialize.network_precision(experiment),
        **{key: getattr(settings, key) for key in ("num_images", "kid_images", "kid_block")},
        **sampling_metadata(experiment),
    }
    wanted = {(num, split) for num in settings.nums for split in settings.splits}
    there = wanted == set(by_column(record, "distance"))
    return there and all(key in record and record[key] == value for key, value in asked.items())


TASKS = (Task("train", lambda run: compared(run) or trained(run)), Task("fid", compared))


def by_column(record: Record, key: str) -> dict[Measured, float]:
    """The figures `key` of a record."""
    count = dict(SHEETS.values())[key]
    return {(found[count], found["split"]): found[key] for found in record["distances"]}


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
        *summary.unsealed([record for _, record in found]),
        *collection.how_published(lines),
        *([] if beside else [_why_alone(metric, [record for _, record in found])]),
        *collection.missing(lines, TASKS),
    )
    return Page(title(TABLE), facts, tuple(_sheets(lines, records, metric, beside)))


def _records(line: Line) -> list[tuple[Path, Record]]:
    done = [run.workdir for run in line.runs if compared(run)]
    return [(workdir, summary.read(workdir, "fid", NEEDED) or {}) for workdir in done]


def _of_published(line: Line, record: Record) -> bool:
    """Whether the samples were compared with whole splits of the paper's images."""
    images = record["images"].values()
    return record["num_images"] is None and all(
        collection.of_published_images(line.row.dataset, of) for of in images
    )


def _why_alone(metric: str, records: Sequence[Record]) -> str:
    if metric != PUBLISHED:
        return f"{metric} is not FID: the paper's figures are of other features, and are left out"
    if any(record["num_images"] is not None for record in records):
        return "the paper's figures are of whole splits, and are left out"
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
    published = {_key(name) for line in lines for name in line.row.figures} if beside else set()
    heads_of = NAMES.get(metric, (metric, f"kernel distance ({metric})"))
    for (name, (key, _)), shown in zip(SHEETS.items(), heads_of, strict=True):
        measured = {
            column for of in records.values() for _, record in of for column in by_column(record, key)
        }
        wanted = measured | published if name == "table" else measured
        columns = sorted(wanted, key=lambda column: (column[0], column[1] != "train"))
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
        column: [by_column(of, key)[column] for _, of in found if column in by_column(of, key)]
        for column in columns
    }
    cells = (mean_and_error(np.array(of, np.float64)) if of else MISSING for of in values.values())
    return *cells, len(found)


def _paper(line: Line, columns: Sequence[Measured]) -> tuple[Cell, ...]:
    figures: dict[Measured, Figure] = {_key(name): figure for name, figure in line.row.figures.items()}
    return *(figures.get(column, MISSING) for column in columns), line.row.seeds
