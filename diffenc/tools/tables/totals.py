"""Table 1: totals, and published totals of other models, with a column for each set of images."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from diffenc.evaluation.uncertainty_format import MISSING, Digits
from diffenc.tools.sweep import results
from diffenc.tools.sweep.runs import TASKS
from diffenc.tools.sweep.sheets import Cell, Page, Sheet
from diffenc.tools.tables import collection, paper
from diffenc.tools.tables.collection import TableLine
from diffenc.tools.tables.components import table_title

TABLE = 1
DATASETS = ("cifar10", "imagenet32", "imagenet32_oord")


def totals_page(lines: Sequence[TableLine]) -> Page:
    """Returns the page of `lines`, as far as they have been evaluated.

    Raises:
      UserError: evaluations within a column are of different images, or have different settings.
    """
    columns = defaultdict(list)
    for line in lines:
        columns[images_column(line)].append(line)
    facts = [fact for members in columns.values() for fact in _describe_lines(members)]
    facts += [*paper.paper_notes(TABLE), *collection.describe_missing(lines, TASKS)]
    heads = list(dict.fromkeys([*map(paper.published_images, DATASETS), *columns]))
    rows = (*_published_rows(heads), *(_measured_row(line, heads) for line in lines))
    note = "Numbers are comparable within a column only."
    sheet = Sheet("table", "Bits/dim", ("model", "type", *heads), rows, (note,))
    return Page(table_title(TABLE), tuple(facts), (sheet,))


def images_column(line: TableLine) -> str:
    """Returns the head of a line's column: the name of the published images, or of the line's own images."""
    record = next(collection.evaluation_records([line]), None)
    if record is None:
        return paper.published_images(line.row.dataset)
    whole = collection.covers_test_split(line)
    if whole and any(collection.uses_published_images(name, record) for name in DATASETS):
        return record["source"]
    part = "" if whole else f", {record['num_images']:,} images of {record['split']}"
    return f"{record.get('source', record['dataset'])}{part}"


def _describe_lines(lines: Sequence[TableLine]) -> tuple[str, ...]:
    variants = [line.results for line in lines]
    results.require_comparable(variants)
    return *results.describe_evaluations(variants), *collection.describe_deviations(lines)


def _published_rows(heads: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    for line in paper.other_models():
        totals = {paper.published_images(name): Digits(line[name]) for name in DATASETS if name in line}
        yield line["model"], line["type"], *(totals.get(head, MISSING) for head in heads)


def _measured_row(line: TableLine, heads: Sequence[str]) -> tuple[Cell, ...]:
    seeds = len(line.results.seeds)
    name = f"{line.row.model}, here ({line.runs[0].experiment.steps:,} steps, {seeds} seed(s))"
    total = line.results.mean("total") if seeds else MISSING
    return name, "Diff", *(total if head == images_column(line) else MISSING for head in heads)
