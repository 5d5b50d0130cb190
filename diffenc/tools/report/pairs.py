"""Runs against each other: which may be compared, what tests find, and in words what they say and do not say."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from diffenc.errors import UserError
from diffenc.evaluation import records, significance
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.significance import FEWEST_SEEDS, TestResult
from diffenc.runtime.progress import Progress
from diffenc.tools.report import formatting
from diffenc.tools.report.grouping import Group, not_alike
from diffenc.tools.report.run_data import RunData

ALPHA = 0.05
MOST = 15  # pairs; of more groups, each is compared with the first alone
# What makes two bounds of different things, and what makes their draws others: then images cannot be paired.
SAME = (
    "split",
    "T",
    "times",
    "variance",
    "time_sampler",
    "times_per_image",
    "passes",
    "batch_size",
    "seed",
    "prng",
    "stratified",
)
TOLD = ("step", "precision", "matmul_precision")  # what may differ, and is said


@dataclasses.dataclass(frozen=True)
class Pair:
    """A against B.

    Attributes:
      refused: why they are not compared; None if they are.
      findings: what each test found of A − B.
      rests_on: the finding that the words rest on; None where no test could be made.
      corrected: its p, after Holm for all pairs.
      says: what that means; and what it does not.
    """

    a: str
    b: str
    refused: str | None = None
    findings: tuple[TestResult, ...] = ()
    rests_on: TestResult | None = None
    corrected: float | None = None
    says: tuple[str, ...] = ()
    says_not: tuple[str, ...] = ()


class Claim(NamedTuple):
    """p of a pair after Holm's correction for `pairs` tests."""

    p: float | None
    pairs: int

    def __str__(self) -> str:
        how = f", corrected after Holm for {self.pairs} tests" if self.pairs > 1 else ""
        return formatting.p_stated(self.p) + how


def compared(groups: Sequence[Group]) -> list[Pair]:
    """Every pair of groups; each with the first alone where these were too many."""
    pairs = list(itertools.combinations(groups, 2))
    if len(pairs) > MOST:
        pairs = [(groups[0], other) for other in groups[1:]]
    progress, found = Progress("comparing runs", len(pairs)), []
    for a, b in pairs:
        found.append(tested(a, b))
        progress()
    corrected = significance.holm_correction([pair.rests_on and pair.rests_on.two_sided for pair in found])
    tests = sum(p is not None for p in corrected)
    return [
        in_words(a, b, pair, Claim(p, tests)) for (a, b), pair, p in zip(pairs, found, corrected, strict=True)
    ]


def tested(a: Group, b: Group) -> Pair:
    """Two groups against each other, without words."""
    refused = why_not(a, b)
    if refused:
        return Pair(a.name, b.name, refused)
    try:
        found = _of_one_run_each(a.evaluated[0], b.evaluated[0]) if _one_each(a, b) else _of_seeds(a, b)
    except UserError as error:
        return Pair(a.name, b.name, f"The terms of their images cannot be compared: {error}.")
    rests_on = found[0] if _one_each(a, b) else _of_every_run(a, b, found)
    return Pair(a.name, b.name, None, tuple(found), rests_on)


def in_words(a: Group, b: Group, pair: Pair, claim: Claim) -> Pair:
    """The pair with what its tests say, once p is corrected for the other pairs."""
    if pair.refused:
        return pair
    says, says_not = (_in_words_of_images if _one_each(a, b) else _in_words_of_seeds)(a, b, pair, claim)
    shared = [seed for seed in a.by_seed if seed in b.by_seed]
    told = _told(a, b, _one_each(a, b) and not shared)
    return dataclasses.replace(pair, corrected=claim.p, says=tuple(says), says_not=(*says_not, *told))


def _one_each(a: Group, b: Group) -> bool:
    return len(a.evaluated) == len(b.evaluated) == 1


def why_not(a: Group, b: Group) -> str | None:
    """Why A and B have no difference that means something; None if they have."""
    for group in (a, b):
        if not group.evaluated:
            return f"{group.name} has not been evaluated."
        if group.refused:
            return f"The seeds of {group.name} do not go together: {group.refused}."
    for one, two in itertools.product(a.records, b.records):
        reason = not_alike(one, two, SAME)
        if reason:
            return f"Not compared: {reason}."
    if not all(map(math.isfinite, (*a.totals.values(), *b.totals.values()))):
        return "Not compared: a figure is not finite."
    return None


def by_pass(held: RunData) -> PassValues:
    """Returns bits/dim of each image in each pass."""
    name = f"{held.label}/{held.terms_name}"
    return records.terms_by_pass(held.terms, held.evaluation or {}, name)["total"]


def _of_one_run_each(a: RunData, b: RunData) -> list[TestResult]:
    one, two = by_pass(a), by_pass(b)
    return [
        significance.paired_test(
            one.values.mean(axis=0), two.values.mean(axis=0), "images and their draws, under both runs"
        ),
        significance.bootstrap_images([one.minus(two)]),
    ]


def _of_seeds(a: Group, b: Group) -> list[TestResult]:
    of = functools.cache(by_pass)
    return significance.test_results(
        a.totals, b.totals, lambda seed: of(a.by_seed[seed]).minus(of(b.by_seed[seed]))
    )


def _in_words_of_images(a: Group, b: Group, pair: Pair, claim: Claim) -> tuple[list[str], list[str]]:
    said = _of_images(claim, a.records[0]["num_images"])
    says = [f"{_ahead(a, b, pair.findings[0])} on these images. {said}"]
    says_not = [
        f"{_once(a, b)} Whether other seeds would come out the same way is not tested: that takes several "
        "evaluated runs of each, with seeds of their own."
    ]
    return says, says_not


def _once(a: Group, b: Group) -> str:
    if len(a.runs) == len(b.runs) == 1:
        return "Each was trained once."
    return f"Of each one run alone was evaluated, {a.evaluated[0].label} and {b.evaluated[0].label}."


def _in_words_of_seeds(a: Group, b: Group, pair: Pair, claim: Claim) -> tuple[list[str], list[str]]:
    test, fewest = pair.rests_on, min(len(a.evaluated), len(b.evaluated))
    said = _of_seeds_said(test, claim, fewest)
    says = [f"{_ahead(a, b, test or pair.findings[0])}, averaged over seeds. {said}"]
    says_not = [
        f"With {fewest} seed{'s' if fewest > 1 else ''} a test sees large differences only: a large p is no sign "
        "that the two are equal. The bootstrap over images takes these seeds as they are, and that over seeds and "
        "images is too narrow with few seeds."
    ]
    return says, says_not


def _of_every_run(a: Group, b: Group, found: Sequence[TestResult]) -> TestResult | None:
    """The test that the words rest on, which passes no run over: paired only where both have the same seeds."""
    names = ("paired t", "Welch") if a.totals.keys() == b.totals.keys() else ("Welch",)
    tests = {finding.test: finding for finding in found if _known(finding)}
    return next((tests[name] for name in names if name in tests), None)


def _ahead(a: Group, b: Group, finding: TestResult) -> str:
    size = formatting.figure(abs(finding.difference), finding.error).mean
    if finding.difference == 0:
        return f"{a.name} and {b.name} have the same bits/dim"
    return f"{a.name} is {'lower' if finding.difference < 0 else 'higher'} than {b.name} by {size} bits/dim"


def _of_images(claim: Claim, num_images: int) -> str:
    if num_images < 2:
        return "One image is too few for a test."
    if claim.p is None:
        return "Their images do not vary, so there is no test."
    if claim.p <= ALPHA:
        return (
            f"The difference is more than which images were drawn explains ({claim}): of these two "
            "trained models, it would likely have the same sign on other images of this kind."
        )
    return f"Which images were drawn may explain the difference ({claim})."


def _of_seeds_said(test: TestResult | None, claim: Claim, fewest: int) -> str:
    if test is None:
        return "Too few seeds for a test."
    how = f"({test.test}, {test.of}, {claim})"
    if fewest < FEWEST_SEEDS:
        return f"With fewer than {FEWEST_SEEDS} seeds of each, nothing is claimed of other seeds {how}."
    if claim.p is not None and claim.p <= ALPHA:
        return f"The difference is more than the choice of seeds explains {how}."
    return f"The choice of seeds may explain the difference {how}."


def _known(finding: TestResult) -> bool:
    return finding.two_sided is not None


def _told(a: Group, b: Group, other_seeds: bool) -> list[str]:
    differing = records.list_differences(a.records[0], b.records[0], TOLD)
    said = [f"They differ in more than their config: {', '.join(differing)}."] if differing else []
    return [*said, *(["They were trained with different seeds."] if other_seeds else [])]
