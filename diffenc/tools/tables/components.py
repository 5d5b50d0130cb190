"""Tables 2 to 7: total, latent, diffusion and reconstruction loss, the paper's rows, and comparisons with VDMv."""

from collections.abc import Iterator, Sequence

from diffenc.evaluation.significance import TestResult, welch_from_errors
from diffenc.tools.sweep import comparison, results
from diffenc.tools.sweep.results import COMPONENTS
from diffenc.tools.sweep.runs import TASKS
from diffenc.tools.sweep.sheets import Page, Sheet
from diffenc.tools.tables import collection, paper
from diffenc.tools.tables.collection import TableLine

BASELINE = "VDMv"


def components_page(table: int, lines: Sequence[TableLine]) -> Page:
    """Returns the page of `lines`, as far as they have been evaluated.

    Raises:
      UserError: evaluations are of different images, or have different settings.
    """
    variants = [line.results for line in lines]
    results.require_comparable(variants)
    with_paper = all_on_published_images(lines)
    facts = (
        *results.describe_evaluations(variants),
        *collection.describe_deviations(lines),
        *_paper_notes(table, lines, with_paper),
        *collection.describe_missing(lines, TASKS),
    )
    return Page(table_title(table), facts, tuple(_make_sheets(lines, with_paper)))


def table_title(table: int) -> str:
    return f"Table {table} of DiffEnc (arXiv:2310.19789)"


def all_on_published_images(lines: Sequence[TableLine]) -> bool:
    """Returns whether all evaluations are on the paper's images."""
    return all(
        collection.uses_published_images(line.row.dataset, record)
        for line in lines
        for record in collection.evaluation_records([line])
    )


def _paper_notes(table: int, lines: Sequence[TableLine], with_paper: bool) -> Iterator[str]:
    published = paper.published_images(lines[0].row.dataset)
    if not with_paper:
        yield f"the paper's numbers are of {published}; these are other images, so its rows are omitted"
        return
    if not all(map(collection.covers_test_split, lines)):
        yield f"the paper's numbers are of the whole test split of {published}"
    yield from paper.paper_notes(table)


def _make_sheets(lines: Sequence[TableLine], with_paper: bool) -> Iterator[Sheet]:
    yield Sheet(
        "table", "Bits/dim, mean ± standard error over seeds", _HEADS, tuple(_table_rows(lines, with_paper))
    )
    pairs = list(pair_with_baseline(lines))
    published = [_paper_test(a, b) for a, b in pairs if with_paper]
    planned = {line.row.name: {run.seed for run in line.runs} for line in lines}
    yield from comparison.comparison_sheets([(a.results, b.results) for a, b in pairs], planned, published)


_HEADS = ("model", "noise", "from", *COMPONENTS, "seeds", "parameters")


def _table_rows(lines: Sequence[TableLine], with_paper: bool) -> Iterator[tuple]:
    for line in lines:
        head = line.row.model, line.row.noise
        yield *head, "here", *results.result_cells(line.results)
        if with_paper:
            yield *head, "paper", *paper.paper_cells(line.row)


def pair_with_baseline(lines: Sequence[TableLine]) -> Iterator[tuple[TableLine, TableLine]]:
    """Yields each other model with the VDMv of the same noise."""
    baselines = {line.row.noise: line for line in lines if line.row.model.startswith(BASELINE)}
    for line in lines:
        baseline = baselines.get(line.row.noise)
        if baseline is not None and line is not baseline:
            yield line, baseline


def _paper_test(a: TableLine, b: TableLine) -> tuple[str, TestResult]:
    return f"{a.row.name} − {b.row.name}, paper", welch_from_errors(a.row.total, b.row.total)
