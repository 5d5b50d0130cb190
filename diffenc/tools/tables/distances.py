"""Table 8: distances between samples and a data set, named after the measured metric."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diffenc.config.network_precision import network_precision
from diffenc.evaluation.saved_records import RequiredKeys
from diffenc.evaluation.uncertainty_format import MISSING, Figure
from diffenc.registry import features
from diffenc.tools.fid.fid import choose_features, sampling_metadata
from diffenc.tools.sweep import results
from diffenc.tools.sweep.results import Record, mean_and_standard_error
from diffenc.tools.sweep.runs import Run, Task, is_trained
from diffenc.tools.sweep.sheets import Cell, Page, Sheet
from diffenc.tools.tables import collection
from diffenc.tools.tables.collection import TableLine
from diffenc.tools.tables.components import table_title

TABLE = 8
PUBLISHED = "fid"
NAMES = {PUBLISHED: ("FID", "KID")}  # other metrics keep their own name
# By sheet: the keys of the distance, and of the number of its samples, in the record's `distances`.
SHEETS = {"table": ("distance", "num"), "kid": ("kid", "kid_num")}
EQUAL_KEYS = (
    *("metric", "features_identity", "images", "sampling", "seed", "batch_size", "step", "precision"),
    *("matmul_precision", "prng", "kid_images", "kid_block"),
)

NEEDED: RequiredKeys = {"metric": (str,), "distances": (list,), "images": (dict,)}

Column = tuple[int, str]  # number of samples, split


def is_measured(run: Run) -> bool:
    """Returns whether the run's last distances are of its last step, with the settings of its config."""
    record, experiment = results.read_record(run.workdir, "fid", NEEDED), run.experiment
    if record is None:
        return False
    settings = experiment.fid
    expected = {
        "features": features.spell(choose_features(experiment.fid, experiment.dataset.image_shape)),
        "step": experiment.sample.step or experiment.steps,
        "precision": network_precision(experiment),
        **{key: getattr(settings, key) for key in ("num_images", "kid_images", "kid_block")},
        **sampling_metadata(experiment.sampling, experiment.fid),
    }
    columns = {(num, split) for num in settings.nums for split in settings.splits}
    is_complete = columns == set(distances_by_column(record, "distance"))
    return is_complete and all(key in record and record[key] == value for key, value in expected.items())


TASKS = (Task("train", lambda run: is_measured(run) or is_trained(run)), Task("fid", is_measured))


def distances_by_column(record: Record, key: str) -> dict[Column, float]:
    """Returns the record's values of `key`, by number of samples and split."""
    count = dict(SHEETS.values())[key]
    return {(entry[count], entry["split"]): entry[key] for entry in record["distances"]}


def distances_page(lines: Sequence[TableLine]) -> Page:
    """Returns the page of `lines`, as far as distances have been measured.

    Raises:
      UserError: the distances are not comparable.
    """
    measured = {line.row.name: _read_records(line) for line in lines}
    pairs = [pair for of_line in measured.values() for pair in of_line]
    results.require_same_metadata(pairs, EQUAL_KEYS)
    records = [record for _, record in pairs]
    metric = records[0]["metric"] if records else PUBLISHED
    with_paper = metric == PUBLISHED and all(
        _uses_whole_published_splits(lines[0], record) for record in records
    )
    facts = (
        *(_describe_measurement(records[0]) if records else ("nothing has been measured yet",)),
        *results.checksum_note(records),
        *collection.describe_deviations(lines),
        *([] if with_paper else [_why_paper_is_omitted(metric, records)]),
        *collection.describe_missing(lines, TASKS),
    )
    return Page(table_title(TABLE), facts, tuple(_make_sheets(lines, measured, metric, with_paper)))


def _read_records(line: TableLine) -> list[tuple[Path, Record]]:
    workdirs = [run.workdir for run in line.runs if is_measured(run)]
    return [(workdir, results.read_record(workdir, "fid", NEEDED) or {}) for workdir in workdirs]


def _uses_whole_published_splits(line: TableLine, record: Record) -> bool:
    """Returns whether the samples were compared with whole splits of the paper's images."""
    images = record["images"].values()
    return record["num_images"] is None and all(
        collection.uses_published_images(line.row.dataset, of) for of in images
    )


def _why_paper_is_omitted(metric: str, records: Sequence[Record]) -> str:
    if metric != PUBLISHED:
        return f"{metric} is not FID: the paper's numbers, of other features, are omitted"
    if any(record["num_images"] is not None for record in records):
        return "the paper's numbers, of whole splits, are omitted"
    return "the paper's numbers, of other images, are omitted"


def _describe_measurement(record: Record) -> Iterator[str]:
    for split in record["images"].values():
        yield f"compared with {split['num_images']:,} of {results.describe_evaluated_images(split)}"
    sampling = record["sampling"]
    yield f"samples: {sampling['num_timesteps']:,} steps of {sampling['sampler']}, of {record['step']:,} steps of training"
    yield f"features: {record['metric']}, weights {record['features_identity'][:16]}"
    yield "± is the standard error over seeds"


def _make_sheets(
    lines: Sequence[TableLine],
    measured: dict[str, list[tuple[Path, Record]]],
    metric: str,
    with_paper: bool,
) -> Iterator[Sheet]:
    published = {_parse_column(name) for line in lines for name in line.row.figures} if with_paper else set()
    metric_names = NAMES.get(metric, (metric, f"kernel distance ({metric})"))
    for (sheet, (key, _)), metric_name in zip(SHEETS.items(), metric_names, strict=True):
        with_rows_of_paper = with_paper and sheet == "table"  # which has no kernel distances
        columns = {
            column
            for of_line in measured.values()
            for _, record in of_line
            for column in distances_by_column(record, key)
        }
        columns |= published if with_rows_of_paper else set()
        ordered = sorted(columns, key=lambda column: (column[0], column[1] != "train"))
        heads = ("model", "from", *(f"{metric_name} {num:,} {split}" for num, split in ordered), "seeds")
        rows = []
        for line in lines:
            rows.append((line.row.model, "here", *_measured_cells(measured[line.row.name], key, ordered)))
            if with_rows_of_paper:
                rows.append((line.row.model, "paper", *_paper_cells(line, ordered)))
        yield Sheet(sheet, f"{metric_name}, mean ± standard error over seeds", heads, tuple(rows))


def _parse_column(name: str) -> Column:
    num, split = name.split()
    return int(num), split


def _measured_cells(
    measured: Sequence[tuple[Path, Record]], key: str, columns: Sequence[Column]
) -> tuple[Cell, ...]:
    by_seed = [distances_by_column(record, key) for _, record in measured]
    values = [[distances[column] for distances in by_seed if column in distances] for column in columns]
    cells = (mean_and_standard_error(np.array(one, np.float64)) if one else MISSING for one in values)
    return *cells, len(measured)


def _paper_cells(line: TableLine, columns: Sequence[Column]) -> tuple[Cell, ...]:
    figures: dict[Column, Figure] = {_parse_column(name): figure for name, figure in line.row.figures.items()}
    return *(figures.get(column, MISSING) for column in columns), line.row.seeds
