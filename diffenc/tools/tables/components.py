"""Tables 2 to 7: total, latent, diffusion and reconstruction loss, with the paper's rows and every comparison."""

from collections.abc import Iterator, Sequence

from diffenc.evaluation.significance import TestResult, welch_from_errors
from diffenc.tools.sweep import comparison, summary
from diffenc.tools.sweep.formatting import Page, Sheet
from diffenc.tools.sweep.runs import TASKS
from diffenc.tools.sweep.summary import COMPONENTS
from diffenc.tools.tables import collection, paper
from diffenc.tools.tables.collection import Line

BASELINE = "VDMv"


def page(table: int, lines: Sequence[Line]) -> Page:
    """Of `lines`, as far as they have been evaluated.

    Raises:
      UserError: figures are of different images, or measured differently.
    """
    summaries = [line.summary for line in lines]
    summary.require_alike(summaries)
    beside = same_images(lines)
    facts = (
        *summary.facts(summaries),
        *collection.how_published(lines),
        *_of_paper(table, lines, beside),
        *collection.missing(lines, TASKS),
    )
    return Page(title(table), facts, tuple(_sheets(lines, beside)))


def title(table: int) -> str:
    return f"Table {table} of DiffEnc (arXiv:2310.19789)"


def same_images(lines: Sequence[Line]) -> bool:
    """Whether all that has been evaluated is of the paper's images."""
    return all(
        collection.of_published_images(line.row.dataset, record)
        for line in lines
        for record in collection.records([line])
    )


def _of_paper(table: int, lines: Sequence[Line], beside: bool) -> Iterator[str]:
    published = paper.images_of(lines[0].row.dataset)
    if not beside:
        yield f"the paper's figures are of {published}; these images are others, so its rows are left out"
        return
    if not all(map(collection.all_of_test, lines)):
        yield f"the paper's figures are of the whole test split of {published}"
    yield from paper.notes(table)


def _sheets(lines: Sequence[Line], beside: bool) -> Iterator[Sheet]:
    yield Sheet("table", "Bits/dim, mean ± standard error over seeds", _HEADS, tuple(_rows(lines, beside)))
    pairs = list(against_baseline(lines))
    here = [(a.summary, b.summary) for a, b in pairs if a.summary.seeds and b.summary.seeds]
    if here:
        yield comparison.differences_of(here)
    tests = comparison.tests_of(here) + [_of_pair(a, b) for a, b in pairs if beside]
    if tests:
        yield comparison.tests_sheet(tests)


_HEADS = ("model", "noise", "from", *COMPONENTS, "seeds", "parameters")


def _rows(lines: Sequence[Line], beside: bool) -> Iterator[tuple]:
    for line in lines:
        of = line.row.model, line.row.noise
        yield *of, "here", *summary.cells(line.summary)
        if beside:
            yield *of, "paper", *paper.cells(line.row)


def against_baseline(lines: Sequence[Line]) -> Iterator[tuple[Line, Line]]:
    """Each other model with the VDMv of the same noise."""
    baselines = {line.row.noise: line for line in lines if line.row.model.startswith(BASELINE)}
    for line in lines:
        baseline = baselines.get(line.row.noise)
        if baseline is not None and line is not baseline:
            yield line, baseline


def _of_pair(a: Line, b: Line) -> tuple[str, TestResult]:
    return f"{a.row.name} − {b.row.name}, paper", welch_from_errors(a.row.total, b.row.total)
