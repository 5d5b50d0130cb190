"""Table 1: totals beside the published ones of other models, each in the column of its very own images."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from diffenc.evaluation.uncertainty_format import MISSING, Digits
from diffenc.tools.sweep import summary
from diffenc.tools.sweep.formatting import Cell, Page, Sheet
from diffenc.tools.sweep.runs import TASKS
from diffenc.tools.tables import collection, paper
from diffenc.tools.tables.collection import Line
from diffenc.tools.tables.components import title

TABLE = 1
DATASETS = ("cifar10", "imagenet32", "imagenet32_oord")


def page(lines: Sequence[Line]) -> Page:
    """Of `lines`, as far as they have been evaluated.

    Raises:
      UserError: figures of one column are of different images, or measured differently.
    """
    columns = defaultdict(list)
    for line in lines:
        columns[column(line)].append(line)
    facts = [fact for of in columns.values() for fact in _facts(of)]
    facts += [*paper.notes(TABLE), *collection.missing(lines, TASKS)]
    heads = list(dict.fromkeys([*map(paper.images_of, DATASETS), *columns]))
    rows = (*_published(heads), *(_ours(line, heads) for line in lines))
    note = "Figures are to be compared within a column only."
    sheet = Sheet("table", "Bits/dim", ("model", "type", *heads), rows, (note,))
    return Page(title(TABLE), tuple(facts), (sheet,))


def column(line: Line) -> str:
    """Which images a line is of: those of a published column, or others under their own name."""
    record = next(collection.records([line]), None)
    if record is None:
        return paper.images_of(line.row.dataset)
    whole = collection.all_of_test(line)
    if whole and any(collection.of_published_images(name, record) for name in DATASETS):
        return record["source"]
    part = "" if whole else f", {record['num_images']:,} images of {record['split']}"
    return f"{record.get('source', record['dataset'])}{part}"


def _facts(lines: Sequence[Line]) -> tuple[str, ...]:
    summaries = [line.summary for line in lines]
    summary.require_alike(summaries)
    return *summary.facts(summaries), *collection.how_published(lines)


def _published(heads: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    for line in paper.others():
        figures = {paper.images_of(name): Digits(line[name]) for name in DATASETS if name in line}
        yield line["model"], line["type"], *(figures.get(head, MISSING) for head in heads)


def _ours(line: Line, heads: Sequence[str]) -> tuple[Cell, ...]:
    seeds = len(line.summary.seeds)
    name = f"{line.row.model}, here ({line.runs[0].experiment.steps:,} steps, {seeds} seed(s))"
    figure = line.summary.figure("total") if seeds else MISSING
    return name, "Diff", *(figure if head == column(line) else MISSING for head in heads)
