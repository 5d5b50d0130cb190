"""Comparison of groups of runs: whether they can be compared, the tests, and their conclusions in words."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from diffenc.errors import UserError
from diffenc.evaluation import saved_records, significance
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.significance import MIN_SEEDS, TestResult
from diffenc.runtime.progress import Progress
from diffenc.tools.report import formatting
from diffenc.tools.report.grouping import Group, find_incompatibility
from diffenc.tools.report.run_data import RunData
from diffenc.workdir.fitted_chains import MEASURED_PATH

ALPHA = 0.05
MAX_PAIRS = 15  # with more, each group is compared with the first alone
# Keys that must be equal: those that define the bound, and those that determine the draws, without which images cannot
# be paired.
EQUAL_KEYS = (
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
    MEASURED_PATH,
)
# Keys that may differ, and are then mentioned.
REPORTED_KEYS = ("step", "stochasticity", "trained_at", "precision", "matmul_precision")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The comparison of group A with group B.

    Attributes:
      refusal: the reason why they are not compared; None if they are.
      results: the result of each test of A − B.
      primary: the result that the conclusions are based on; None if no test was possible.
      corrected: p of `primary` after Holm's correction for all pairs.
      conclusions: sentences on the findings of the tests.
      caveats: sentences on the limits of the tests.
    """

    a: str
    b: str
    refusal: str | None = None
    results: tuple[TestResult, ...] = ()
    primary: TestResult | None = None
    corrected: float | None = None
    conclusions: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


class CorrectedP(NamedTuple):
    """p after Holm's correction for `pairs` tests."""

    p: float | None
    pairs: int

    def __str__(self) -> str:
        correction = f", corrected after Holm for {self.pairs} tests" if self.pairs > 1 else ""
        return formatting.format_p_equation(self.p) + correction


def compare_groups(groups: Sequence[Group]) -> list[Pair]:
    """Compares every pair of groups, or, if there are too many pairs, each group with the first."""
    pairs = list(itertools.combinations(groups, 2))
    if len(pairs) > MAX_PAIRS:
        pairs = [(groups[0], other) for other in groups[1:]]
    progress, compared = Progress("comparing runs", len(pairs)), []
    for a, b in pairs:
        compared.append(compare_pair(a, b))
        progress()
    # One test per pair enters the correction; the others are shown, and no conclusion is drawn from them.
    corrected = significance.holm_correction([pair.primary and pair.primary.two_sided for pair in compared])
    num_tests = sum(p is not None for p in corrected)
    return [
        describe_pair(a, b, pair, CorrectedP(p, num_tests))
        for (a, b), pair, p in zip(pairs, compared, corrected, strict=True)
    ]


def compare_pair(a: Group, b: Group) -> Pair:
    """Runs the tests of two groups, without conclusions."""
    refusal = find_refusal(a, b)
    if refusal:
        return Pair(a.name, b.name, refusal)
    single = _have_one_run_each(a, b)
    try:
        results = _compare_single_runs(a.evaluated[0], b.evaluated[0]) if single else _compare_seeds(a, b)
    except UserError as error:
        return Pair(a.name, b.name, f"The terms of their images cannot be compared: {error}.")
    primary = results[0] if single else _select_primary_test(a, b, results)
    return Pair(a.name, b.name, None, tuple(results), primary)


def describe_pair(a: Group, b: Group, pair: Pair, p: CorrectedP) -> Pair:
    """Returns the pair with its conclusions and caveats, given p corrected for all pairs."""
    if pair.refusal:
        return pair
    single = _have_one_run_each(a, b)
    conclusion, caveat = (_describe_single_runs if single else _describe_seeds)(a, b, pair, p)
    shared_seeds = [seed for seed in a.by_seed if seed in b.by_seed]
    others = _describe_other_differences(a, b, single and not shared_seeds)
    return dataclasses.replace(pair, corrected=p.p, conclusions=(conclusion,), caveats=(caveat, *others))


def _have_one_run_each(a: Group, b: Group) -> bool:
    return len(a.evaluated) == len(b.evaluated) == 1


def find_refusal(a: Group, b: Group) -> str | None:
    """Returns the reason why the difference of A and B is not meaningful; None if it is."""
    for group in (a, b):
        if not group.evaluated:
            return f"{group.name} has not been evaluated."
        if group.refusal:
            return f"The seeds of {group.name} cannot be averaged: {group.refusal}."
    for one, two in itertools.product(a.records, b.records):
        reason = find_incompatibility(one, two, EQUAL_KEYS)
        if reason:
            return f"Not compared: {reason}."
    if not all(map(math.isfinite, (*a.totals.values(), *b.totals.values()))):
        return "Not compared: bits/dim are not finite."
    return None


def total_by_pass(run: RunData) -> PassValues:
    """Returns bits/dim of each image in each pass."""
    name = f"{run.label}/{run.terms_name}"
    return saved_records.terms_by_pass(run.terms, run.evaluation or {}, name)["total"]


def _compare_single_runs(a: RunData, b: RunData) -> list[TestResult]:
    one, two = total_by_pass(a), total_by_pass(b)
    return [
        significance.paired_test(
            one.values.mean(axis=0), two.values.mean(axis=0), "images and their draws, under both runs"
        ),
        significance.bootstrap_images([one.minus(two)]),
    ]


def _compare_seeds(a: Group, b: Group) -> list[TestResult]:
    total = functools.cache(total_by_pass)
    return significance.test_results(
        a.totals, b.totals, lambda seed: total(a.by_seed[seed]).minus(total(b.by_seed[seed]))
    )


def _describe_single_runs(a: Group, b: Group, pair: Pair, p: CorrectedP) -> tuple[str, str]:
    """Returns conclusion and caveat."""
    verdict = _conclude_about_images(p, a.records[0]["num_images"])
    conclusion = f"{_describe_difference(a, b, pair.results[0])} on these images. {verdict}"
    caveat = (
        f"{_describe_sample_size(a, b)} Whether other seeds would give the same result is not tested: that "
        "requires several evaluated runs of each, with different seeds."
    )
    return conclusion, caveat


def _describe_sample_size(a: Group, b: Group) -> str:
    if len(a.runs) == len(b.runs) == 1:
        return "Each was trained once."
    return f"Only one run of each was evaluated, {a.evaluated[0].label} and {b.evaluated[0].label}."


def _describe_seeds(a: Group, b: Group, pair: Pair, p: CorrectedP) -> tuple[str, str]:
    """Returns conclusion and caveat."""
    fewest = min(len(a.evaluated), len(b.evaluated))
    verdict = _conclude_about_seeds(pair.primary, p, fewest)
    difference = _describe_difference(a, b, pair.primary or pair.results[0])
    caveat = (
        f"With {fewest} seed{'s' if fewest > 1 else ''} a test detects only large differences: a large p is not "
        "evidence that the two are equal. The bootstrap over images holds for these seeds only, and that over seeds "
        "and images is too narrow with few seeds."
    )
    return f"{difference}, averaged over seeds. {verdict}", caveat


def _select_primary_test(a: Group, b: Group, results: Sequence[TestResult]) -> TestResult | None:
    """Returns the test that uses every run: the paired one only if both groups have the same seeds."""
    names = ("paired t", "Welch") if a.totals.keys() == b.totals.keys() else ("Welch",)
    tests = {result.test: result for result in results if result.two_sided is not None}
    return next((tests[name] for name in names if name in tests), None)


def _describe_difference(a: Group, b: Group, result: TestResult) -> str:
    size = formatting.format_figure(abs(result.difference), result.error).mean
    if result.difference == 0:
        return f"{a.name} and {b.name} have the same bits/dim"
    return f"{a.name} is {'lower' if result.difference < 0 else 'higher'} than {b.name} by {size} bits/dim"


def _conclude_about_images(p: CorrectedP, num_images: int) -> str:
    if num_images < 2:
        return "One image is too few for a test."
    if p.p is None:
        return "Their images do not vary, so there is no test."
    if p.p <= ALPHA:
        return (
            f"The difference is larger than the choice of images explains ({p}): for these two trained models, it "
            "would likely have the same sign on other images of this kind."
        )
    return f"The choice of images may explain the difference ({p})."


def _conclude_about_seeds(test: TestResult | None, p: CorrectedP, fewest: int) -> str:
    if test is None:
        return "Too few seeds for a test."
    basis = f"({test.test}, {test.of}, {p})"
    if fewest < MIN_SEEDS:
        return f"With fewer than {MIN_SEEDS} seeds of each, no claim is made about other seeds {basis}."
    if p.p is not None and p.p <= ALPHA:
        return f"The difference is larger than the choice of seeds explains {basis}."
    return f"The choice of seeds may explain the difference {basis}."


def _describe_other_differences(a: Group, b: Group, have_other_seeds: bool) -> list[str]:
    differing = saved_records.list_differences(a.records[0], b.records[0], REPORTED_KEYS)
    sentences = [f"They differ, among others, in {'; '.join(differing)}."] if differing else []
    return [*sentences, *(["They were trained with different seeds."] if have_other_seeds else [])]
