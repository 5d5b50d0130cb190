"""Tables and figures of the study, made from the records of its runs alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffenc.evaluation import plots
from diffenc.evaluation.significance import LEVEL, TestResult, holm_correction, paired_test
from diffenc.evaluation.uncertainty_format import MISSING, format_digits, round_to_error
from diffenc.tools.sweep.comparison import common_seeds, differences_sheet, format_p
from diffenc.tools.sweep.results import (
    VariantResults,
    describe_evaluations,
    read_results,
    require_comparable,
    results_sheet,
)
from diffenc.tools.sweep.sheets import Cell, Page, Sheet, to_markdown
from experiments.study.parts import Part, Primary

Results = dict[str, VariantResults]  # by arm
HEADING = "Made from the runs' records by `python -m experiments.study --only_tables`; not edited by hand."


class Outcome(NamedTuple):
    """What came out of a primary comparison.

    Attributes:
      b: the rival with the lowest mean.
      test: the paired t-test over the seeds; None while a run is missing.
      p_holm: its p, corrected for the number of primary comparisons.
      missing: runs, as ARM/seed_K.
    """

    primary: Primary
    b: str | None
    test: TestResult | None
    p_holm: float | None
    missing: tuple[str, ...]


def read_part(part: Part) -> Results:
    """Returns the results of a part's own arms, as far as they are recorded.

    Raises:
      UserError: records cannot be compared.
    """
    own = {arm: _read_arm(part, arm, part.seeds) for arm in part.arms}
    # Each arm by itself, where their steps differ: its seeds have to agree in any case.
    for group in [own.values()] if part.equal_steps else [[result] for result in own.values()]:
        require_comparable(group)
    return own


def _borrow(part: Part) -> Results:
    return {arm: _read_arm(other, arm, part.seeds) for other, arm in part.borrowed}


def _read_arm(part: Part, arm: str, seeds: Sequence[int]) -> VariantResults:
    return read_results(arm, {seed: part.records / arm / f"seed_{seed}" for seed in seeds})


def part_page(part: Part) -> Page:
    """Returns the table of a part: bits/dim of each arm, and the paired differences that it describes."""
    own = read_part(part)
    everything = {**_borrow(part), **own}
    recorded = [result for result in own.values() if result.seeds]
    pairs = [(everything[a], everything[b]) for a, b in part.pairs]
    pairs = [(a, b) for a, b in pairs if common_seeds(a, b)]
    missing = list(_missing_runs(part, everything))
    facts = describe_evaluations(recorded)
    if missing:
        facts = (*facts, f"{len(missing)} of {len(everything) * len(part.seeds)} runs are missing")
    sheets = [results_sheet(recorded)] if recorded else []
    return Page(part.title, facts, (*sheets, *([differences_sheet(pairs)] if pairs else [])))


def _missing_runs(part: Part, results: Results) -> Iterator[str]:
    for arm, result in results.items():
        yield from (f"{arm}/seed_{seed}" for seed in part.seeds if seed not in result.seeds)


def judge(primaries: Sequence[Primary]) -> list[Outcome]:
    """Returns the outcome of every primary comparison; none has a p until all its runs are recorded.

    Comparisons whose runs are missing count in Holm's correction with p = 1.
    """
    outcomes = [_compare(primary) for primary in primaries]
    p_values = [1.0 if each.test is None else each.test.two_sided for each in outcomes]
    corrected = holm_correction(p_values)
    return [
        outcome if outcome.test is None else outcome._replace(p_holm=p)
        for outcome, p in zip(outcomes, corrected, strict=True)
    ]


def _compare(primary: Primary) -> Outcome:
    arms = (primary.a, *primary.rivals)
    results = {arm: _read_arm(primary.part, arm, primary.part.seeds) for arm in arms}
    missing = tuple(_missing_runs(primary.part, results))
    if missing:
        return Outcome(primary, None, None, None, missing)
    totals = {arm: result.values("total") for arm, result in results.items()}
    b = min(primary.rivals, key=lambda arm: totals[arm].mean())
    return Outcome(primary, b, paired_test(totals[primary.a], totals[b]), None, ())


def primary_sheet(outcomes: Sequence[Outcome]) -> Sheet:
    """Returns the table of the primary comparisons."""
    level = f"{LEVEL:.0%}"
    heads = ("primary comparison", "part", "pairs", "A − B", f"{level} from", f"{level} to", "p", "p, Holm")
    rows = tuple(_primary_row(outcome) for outcome in outcomes)
    notes = [
        "Bits/dim, lower is better; mean ± standard error of the differences paired by seed; two-sided paired t-tests, corrected "
        f"after Holm for {len(outcomes)} comparisons."
    ]
    notes += [
        f"{outcome.primary.a} − {' or '.join(outcome.primary.rivals)}: no p, {len(outcome.missing)} runs are missing."
        for outcome in outcomes
        if outcome.missing
    ]
    return Sheet("primary", "Primary comparisons", heads, rows, tuple(notes))


def _primary_row(outcome: Outcome) -> tuple[Cell, ...]:
    primary, test = outcome.primary, outcome.test
    label = f"{primary.a} − {outcome.b or ' or '.join(primary.rivals)}"
    if test is None:
        return (label, primary.part.title, *[MISSING] * 6)
    low, high = test.interval or (None, None)
    return (
        label,
        primary.part.title,
        len(primary.part.seeds),
        round_to_error(test.difference, test.error),
        format_digits(low, test.error),
        format_digits(high, test.error),
        format_p(test.two_sided),
        format_p(outcome.p_holm),
    )


def tables(parts: Sequence[Part], primaries: Sequence[Primary]) -> str:
    """Returns all tables as Markdown."""
    first = Page("Tables of the study", (HEADING,), (primary_sheet(judge(primaries)),))
    pages = [to_markdown(page) for page in (first, *map(part_page, parts))]
    return "\n".join(pages)


def differences(part: Part) -> list[tuple[str, Float[np.ndarray, " n"]]]:
    """Returns the label and the differences by seed, bits/dim, of every pair that the part describes."""
    everything = {**_borrow(part), **read_part(part)}
    found = []
    for a, b in part.pairs:
        seeds = common_seeds(everything[a], everything[b])
        if seeds:
            one, two = (everything[arm].select(seeds).values("total") for arm in (a, b))
            found.append((f"{a} − {b}", one - two))
    return found


def plot_differences(parts: Sequence[Part]) -> plots.Figure | None:
    """Plots every described difference: a dot a seed, and mean ± standard error; None if there is no record.

    One panel a part, as differences of different data do not share an axis.
    """
    shown = [(part, found) for part in parts if (found := differences(part))]
    if not shown:
        return None
    heights = [1 + len(found) for _, found in shown]
    figure = plots.Figure((7.2, 0.34 * sum(heights) + 0.5 * len(shown)), layout="constrained")
    every_axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (part, found) in zip(every_axes, shown, strict=True):
        axes.set_title(part.title, fontsize="medium", loc="left")
        axes.axvline(0, color="0.4", linewidth=0.8)
        for place, (_, values) in enumerate(found):
            axes.plot(values, np.full(len(values), place), "o", color="C0", markersize=3.5, alpha=0.5)
            error = _standard_error(values)
            axes.errorbar(values.mean(), place, xerr=error, color="C1", marker="|", markersize=12, capsize=4)
        axes.set_yticks(range(len(found)), [label for label, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    every_axes[-1].set_xlabel("A − B, bits/dim; left of 0: A is better")
    return figure


def plot_sizes(part: Part, sizes: Mapping[str, int]) -> plots.Figure | None:
    """Plots bits/dim over the encoder's blocks, `sizes` by arm: a dot a seed, and mean ± standard error; None without records."""
    results = read_part(part)
    points = [(size, results[arm].values("total")) for arm, size in sizes.items() if results[arm].seeds]
    if not points:
        return None
    figure, axes = plots.make_axes(part.title, "blocks of the encoder (0 = VDM)", "bits/dim")
    for size, values in points:
        axes.plot(np.full(len(values), size), values, "o", color="C0", markersize=3.5, alpha=0.5)
        axes.errorbar(
            size, values.mean(), _standard_error(values), color="C1", marker="_", markersize=12, capsize=4
        )
    axes.set_xticks([size for size, _ in points])
    return figure


def _standard_error(values: Float[np.ndarray, " n"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
