"""Tables and figures of the study, made from the records of its runs alone."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffenc.evaluation import plots
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.saved_records import COMPARABLE_KEYS
from diffenc.evaluation.significance import LEVEL, TestResult, average_seeds, holm_correction, paired_test
from diffenc.evaluation.uncertainty_format import (
    MISSING,
    Digits,
    format_digits,
    format_estimate,
    round_to_error,
)
from diffenc.tools.sweep.comparison import common_seeds, differences_sheet, format_p
from diffenc.tools.sweep.results import (
    VariantResults,
    describe_evaluations,
    read_results,
    require_comparable,
    results_sheet,
)
from diffenc.tools.sweep.sheets import Cell, Page, Sheet, to_markdown
from diffenc.workdir.writers import METRICS
from experiments.study.parts import Part, Primary

Results = dict[str, VariantResults]  # by arm
BySeed = Float[np.ndarray, " seeds"]
HEADING = "Made from the runs' records by `python -m experiments.study --only_tables`; not edited by hand."


class Outcome(NamedTuple):
    """What came out of a primary comparison A - B.

    Attributes:
      lacking: runs without a finite bound, as ARM/seed_K; with any, there is neither B nor a test.
      b: the rival with the lowest mean.
      test: the paired t-test over the seeds.
      p_holm: its p, corrected for the number of primary comparisons.
      by_pass: A - B of each image in each pass, the mean over the seeds.
    """

    primary: Primary
    lacking: tuple[str, ...] = ()
    b: str | None = None
    test: TestResult | None = None
    p_holm: float | None = None
    by_pass: PassValues | None = None


def read_part(part: Part) -> Results:
    """Returns the results of a part's arms, the borrowed ones first, as far as they are recorded.

    Raises:
      UserError: they were not measured alike, or not trained for equally many steps where the part demands it.
    """
    borrowed = {arm: _read_arm(other, arm, part.seeds) for other, arm in part.borrowed}
    results = {**borrowed, **{arm: _read_arm(part, arm, part.seeds) for arm in part.arms}}
    require_comparable(
        results.values(), [key for key in COMPARABLE_KEYS if key != "step" or part.equal_steps]
    )
    return results


def _read_arm(part: Part, arm: str, seeds: Sequence[int]) -> VariantResults:
    return read_results(arm, {seed: part.records / arm / f"seed_{seed}" for seed in seeds})


def part_page(part: Part) -> Page:
    """Returns the table of a part: bits/dim of each arm, and the paired differences that it describes."""
    results = read_part(part)
    recorded = [result for result in results.values() if result.seeds]
    pairs = [(results[a], results[b]) for a, b in part.pairs if common_seeds(results[a], results[b])]
    facts, missing = describe_evaluations(recorded), list(_missing(part, results))
    hours = [
        training_hours(part.records / arm / f"seed_{seed}")
        for arm in part.arms
        for seed in results[arm].seeds
    ]
    if hours:
        facts = (*facts, f"training took {sum(hours):.1f} h, the sum over {len(hours)} runs")
    if missing:
        facts = (*facts, f"{len(missing)} of {len(results) * len(part.seeds)} runs missing")
    sheets = [results_sheet(recorded)] if recorded else []
    return Page(part.title, facts, (*sheets, *([differences_sheet(pairs)] if pairs else [])))


def training_hours(workdir: Path) -> float:
    """Returns how long a run trained, from the steps per second in its metrics; without compilation and evaluation."""
    lines = (workdir / METRICS).read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "steps_per_second" in row]
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(sum(steps / [row["steps_per_second"] for row in rows])) / 3600


def _missing(part: Part, results: Results) -> Iterator[str]:
    for arm, result in results.items():
        yield from (f"{arm}/seed_{seed}" for seed in part.seeds if seed not in result.seeds)


def judge(primaries: Sequence[Primary]) -> list[Outcome]:
    """Returns the outcome of every primary comparison; none has a p unless all its runs have a finite bound.

    A comparison without p counts in Holm's correction with p = 1.
    """
    outcomes = [_compare(primary) for primary in primaries]
    found = [outcome.test.two_sided if outcome.test else None for outcome in outcomes]
    corrected = holm_correction([1.0 if p is None else p for p in found])
    return [
        outcome._replace(p_holm=None if p is None else holm)
        for outcome, p, holm in zip(outcomes, found, corrected, strict=True)
    ]


def _compare(primary: Primary) -> Outcome:
    read = read_part(primary.part)
    results = {arm: read[arm] for arm in (primary.a, *primary.rivals)}
    lacking = [*_missing(primary.part, results)]
    for arm, result in results.items():
        totals = zip(result.seeds, result.values("total"), strict=True)
        lacking += [f"{arm}/seed_{seed}" for seed, total in totals if not math.isfinite(total)]
    if lacking:
        return Outcome(primary, tuple(lacking))
    b = min(primary.rivals, key=lambda arm: results[arm].values("total").mean())
    one, two = results[primary.a], results[b]
    test = paired_test(one.values("total"), two.values("total"))
    by_seed = [one.terms(seed)["total"].minus(two.terms(seed)["total"]) for seed in one.seeds]
    return Outcome(primary, b=b, test=test, by_pass=average_seeds(by_seed))


def primary_sheet(outcomes: Sequence[Outcome]) -> Sheet:
    """Returns the table of the primary comparisons."""
    level = f"{LEVEL:.0%}"
    heads = ("primary comparison", "part", "pairs", "A − B", f"{level} from", f"{level} to", "p", "p, Holm")
    heads += ("± over images", "± Monte Carlo")
    notes = [
        "Bits/dim, lower is better: a negative difference is in favour of A. ± of A − B: over seeds. Two-sided paired t-tests, "
        f"corrected after Holm for {len(outcomes)} comparisons.",
        "All seeds were measured on the same images, times and noise: interval and p are about other seeds, on these. The last two "
        "columns are the errors of A − B by the choice of images, and of times and noise.",
    ]
    notes += [
        f"{_label(outcome)}: no p, without a finite bound: {', '.join(outcome.lacking)}."
        for outcome in outcomes
        if outcome.lacking
    ]
    return Sheet("primary", "Primary comparisons", heads, tuple(map(_primary_row, outcomes)), tuple(notes))


def _label(outcome: Outcome) -> str:
    return f"{outcome.primary.a} − {outcome.b or ' or '.join(outcome.primary.rivals)}"


def _primary_row(outcome: Outcome) -> tuple[Cell, ...]:
    part, test, by_pass = outcome.primary.part, outcome.test, outcome.by_pass
    if test is None or by_pass is None:
        return (_label(outcome), part.title, *[MISSING] * 8)
    low, high = test.interval or (None, None)
    over_images = by_pass.over_images
    _, *errors = format_estimate(test.difference, over_images.se, over_images.upper, by_pass.mc_se)
    return (
        _label(outcome),
        part.title,
        len(part.seeds),
        round_to_error(test.difference, test.error),
        format_digits(low, test.error),
        format_digits(high, test.error),
        format_p(test.two_sided),
        format_p(outcome.p_holm),
        *map(Digits, errors),
    )


def tables(parts: Sequence[Part], primaries: Sequence[Primary]) -> str:
    """Returns all tables as Markdown."""
    first = Page("Tables of the study", (HEADING,), (primary_sheet(judge(primaries)),))
    return "\n".join([to_markdown(first), *(to_markdown(part_page(part), level=2) for part in parts)])


def differences(part: Part) -> list[tuple[str, BySeed]]:
    """Returns the label and the differences by seed, bits/dim, of every pair that the part describes."""
    results = read_part(part)
    found = []
    for a, b in part.pairs:
        seeds = common_seeds(results[a], results[b])
        if seeds:
            one, two = (results[arm].select(seeds).values("total") for arm in (a, b))
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
            axes.errorbar(
                values.mean(), place, xerr=_error(values), color="C1", marker="|", markersize=12, capsize=4
            )
        axes.set_yticks(range(len(found)), [label for label, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    every_axes[-1].set_xlabel("A − B, bits/dim; left of 0: A is better")
    return figure


def plot_sizes(part: Part, sizes: Mapping[str, int], reference: str) -> plots.Figure | None:
    """Plots bits/dim over the encoder's blocks, `sizes` by arm, beside the arm `reference`; None if there is no record.

    A dot a seed, and mean ± standard error. VDM is no encoder of 0 blocks (that is the non-trainable one), so it is a line.
    """
    results = read_part(part)
    points = [(size, results[arm].values("total")) for arm, size in sizes.items() if results[arm].seeds]
    if not points or not results[reference].seeds:
        return None
    figure, axes = plots.make_axes(part.title, "blocks of the encoder", "bits/dim")
    for size, values in points:
        axes.plot(np.full(len(values), size), values, "o", color="C0", markersize=3.5, alpha=0.5)
        axes.errorbar(size, values.mean(), _error(values), color="C1", marker="_", markersize=12, capsize=4)
    level = results[reference].values("total")
    axes.axhline(level.mean(), color="0.4", linewidth=1, label=f"{reference}, ± standard error")
    axes.axhspan(level.mean() - _error(level), level.mean() + _error(level), color="0.4", alpha=0.15)
    axes.set_xticks([size for size, _ in points])
    axes.legend()
    return figure


def _error(values: BySeed) -> float:
    """Returns the standard error of the mean; NaN, which is not drawn, of one value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan
