"""All tables of the study, made from the records of its runs alone."""

from collections import defaultdict
from collections.abc import Sequence

from diffenc.tools.sweep.sheets import Page, Sheet, to_markdown
from experiments.study.parts import Part, Primary
from experiments.study.records import code_history
from experiments.study.results import part_page, read_part
from experiments.study.verdicts import detail_sheet, judge, primary_sheet

HEADING = "Made from the runs' records by `python -m experiments.study --only_tables`; not edited by hand."


def tables(parts: Sequence[Part], primaries: Sequence[Primary]) -> str:
    """Returns all tables as Markdown."""
    outcomes = judge(primaries)
    sheets = (primary_sheet(outcomes), detail_sheet(outcomes))
    first = Page("Tables of the study", (HEADING,), tuple(sheet for sheet in sheets if sheet is not None))
    pages = [to_markdown(first), *(to_markdown(part_page(part), level=2) for part in parts)]
    code = code_sheet(parts)
    return "\n".join([*pages, *([to_markdown(Page("Code", (), (code,)), level=2)] if code else [])])


def code_sheet(parts: Sequence[Part]) -> Sheet | None:
    """Returns the commits that trained the runs, by part and seed; None if nothing is recorded."""
    rows = []
    for part, results in ((part, read_part(part)) for part in parts):
        for seed in part.seeds:
            arms = defaultdict(list)
            for arm in part.arms:
                if seed in results[arm].seeds:
                    arms[code_history(part.workdir(arm, seed))].append(arm)
            rows += [(part.name, str(seed), ", ".join(names), history) for history, names in arms.items()]
    if not rows:
        return None
    heads = ("part", "seed", "arms", "commit")
    note = "A + after a commit: with changes that were not committed."
    return Sheet("code", "Commits that trained the runs", heads, tuple(rows), (note,))
