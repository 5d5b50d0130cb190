"""The primary comparisons of the study: what is tested, the verdicts, and their tables."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.significance import (
    LEVEL,
    TestResult,
    holm_correction,
    paired_test,
    welch_test,
)
from diffenc.evaluation.uncertainty_format import (
    MISSING,
    Digits,
    format_digits,
    round_to_error,
)
from diffenc.tools.sweep.comparison import format_p
from diffenc.tools.sweep.results import VariantResults, mean_and_standard_error
from diffenc.tools.sweep.sheets import Cell, Sheet
from experiments.study.parts import Primary
from experiments.study.results import (
    ERROR_HEADS,
    ERROR_NOTE,
    BySeed,
    difference_by_pass,
    error_cells,
    interval_cells,
    interval_heads,
    missing_runs,
    name_difference,
    read_part,
)

ALPHA = 1 - LEVEL


class Contrast(NamedTuple):
    """A - B of the total, bits/dim, over the seeds that both have.

    Attributes:
      b: the arm B.
      differences: by seed.
      test: the paired t-test.
      welch: the unpaired one.
      by_pass: of each image in each pass, the mean over the seeds.
    """

    b: str
    differences: BySeed
    test: TestResult
    welch: TestResult
    by_pass: PassValues


class Outcome(NamedTuple):
    """What came out of a primary comparison.

    Attributes:
      missing: runs that are not there, as ARM/seed_K; with any, nothing is tested.
      not_finite: runs without a finite bound; likewise.
      contrasts: to every rival, B first: the rival with the lowest mean.
      p_holm: p, corrected for the number of primary comparisons.
    """

    primary: Primary
    missing: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    p_holm: float | None = None

    @property
    def p(self) -> float | None:
        """The largest p of its contrasts, as A has to differ from every rival; None if nothing is tested."""
        found = [contrast.test.two_sided for contrast in self.contrasts]
        return max((1.0 if p is None else p for p in found), default=None)

    @property
    def verdict(self) -> str:
        """The words that the rules, fixed before the results, have for it."""
        if self.missing or self.not_finite:
            return "runs missing" if self.missing else "not finite"
        first = self.contrasts[0]
        signs = {float(np.sign(contrast.test.difference)) for contrast in self.contrasts}
        # All draws are shared by the seeds, so their error does not show in the spread over seeds.
        are_small = all(each.by_pass.mc_se <= stats.sem(each.differences) / 2 for each in self.contrasts)
        if self.p_holm is None or self.p_holm > ALPHA or len(signs) > 1 or not are_small:
            return "cannot be told"
        return "A ahead" if first.test.difference < 0 else "A behind"


def judge(primaries: Sequence[Primary]) -> list[Outcome]:
    """Returns the outcome of every primary comparison; none has a p unless all its runs have a finite bound.

    A comparison without p counts in Holm's correction with p = 1.
    """
    outcomes = [_compare(primary) for primary in primaries]
    found = [outcome.p for outcome in outcomes]
    corrected = holm_correction([1.0 if p is None else p for p in found])
    return [
        outcome._replace(p_holm=None if p is None else holm)
        for outcome, p, holm in zip(outcomes, found, corrected, strict=True)
    ]


def _compare(primary: Primary) -> Outcome:
    read = read_part(primary.part)
    results = {arm: read[arm] for arm in (primary.a, *primary.rivals)}
    not_finite = []
    for arm, result in results.items():
        totals = zip(result.seeds, result.values("total"), strict=True)
        not_finite += [f"{arm}/seed_{seed}" for seed, total in totals if not math.isfinite(total)]
    missing = tuple(missing_runs(primary.part, results))
    if missing or not_finite:
        return Outcome(primary, missing, tuple(not_finite))
    rivals = sorted(primary.rivals, key=lambda arm: results[arm].values("total").mean())
    return Outcome(primary, contrasts=tuple(_contrast(results[primary.a], results[arm]) for arm in rivals))


def _contrast(a: VariantResults, b: VariantResults) -> Contrast:
    one, two = a.values("total"), b.values("total")
    return Contrast(b.name, one - two, paired_test(one, two), welch_test(one, two), difference_by_pass(a, b))


def primary_sheet(outcomes: Sequence[Outcome]) -> Sheet:
    """Returns the table of the primary comparisons, with a row for every rival."""
    num_rows = sum(len(outcome.primary.rivals) for outcome in outcomes)
    level = 1 - ALPHA / max(num_rows, 1)
    heads = ("A − B", "part", "bits/dim", *interval_heads(level), "p", "p, Holm", "verdict")
    notes = [
        "Lower is better: a negative difference is in favour of A. ± is the standard error over seeds. p: two-sided paired t-tests. "
        f"Holm: the largest p of a comparison's rows, corrected for {len(outcomes)} comparisons; it may be below {ALPHA:.2f} where an "
        f"interval contains 0. Intervals, Student's t, hold for all {num_rows} rows together at {100 * LEVEL:.0f} %.",
        "Of several rivals the first is the one with the lowest mean. A verdict is final when no runs are missing.",
    ]
    for outcome in outcomes:
        for what, runs in (("missing", outcome.missing), ("not finite", outcome.not_finite)):
            if runs:
                notes.append(f"{_label(outcome)}, {what}: {', '.join(runs)}.")
    rows = (row for outcome in outcomes for row in _primary_rows(outcome, level))
    return Sheet("primary", "Primary comparisons", heads, tuple(rows), tuple(notes))


def _label(outcome: Outcome) -> str:
    return name_difference(outcome.primary.a, " or ".join(outcome.primary.rivals))


def _primary_rows(outcome: Outcome, level: float) -> Iterator[tuple[Cell, ...]]:
    title = outcome.primary.part.title
    if not outcome.contrasts:
        yield (_label(outcome), title, *[MISSING] * 5, outcome.verdict)
    for place, contrast in enumerate(outcome.contrasts):
        test, ends = contrast.test, interval_cells(contrast.differences, level)
        of_all = (format_p(outcome.p_holm), outcome.verdict) if place == 0 else (MISSING, MISSING)
        difference = round_to_error(test.difference, test.error)
        label = name_difference(outcome.primary.a, contrast.b)
        yield (label, title, difference, *ends, format_p(test.two_sided), *of_all)


def detail_sheet(outcomes: Sequence[Outcome]) -> Sheet | None:
    """Returns the differences of the primary comparisons by seed, with their other errors; None if none is complete."""
    complete = [(outcome, contrast) for outcome in outcomes for contrast in outcome.contrasts]
    if not complete:
        return None
    # A primary comparison has all seeds of its part, and its parts have the same.
    seeds = complete[0][0].primary.part.seeds
    assert all(outcome.primary.part.seeds == seeds for outcome, _ in complete)
    by_seed = [f"seed {seed}" for seed in seeds]
    heads = (
        "A − B",
        "part",
        *by_seed,
        *interval_heads(LEVEL),
        "p, Welch",
        "without the first seed",
        "SD over seeds",
        *ERROR_HEADS,
    )
    notes = (f"None of this enters a verdict but the Monte-Carlo error. {ERROR_NOTE}",)
    return Sheet(
        "detail",
        "Primary comparisons, by seed and with other errors",
        heads,
        tuple(_detail_row(*each) for each in complete),
        notes,
    )


def _detail_row(outcome: Outcome, contrast: Contrast) -> tuple[Cell, ...]:
    values = contrast.differences
    return (
        name_difference(outcome.primary.a, contrast.b),
        outcome.primary.part.title,
        *(format_digits(value, contrast.by_pass.mc_se) for value in values),
        *interval_cells(values, LEVEL),
        format_p(contrast.welch.two_sided),
        mean_and_standard_error(values[1:]),
        Digits(f"{values.std(ddof=1):.2g}"),
        *error_cells(contrast.by_pass),
    )
