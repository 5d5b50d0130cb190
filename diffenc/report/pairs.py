"""Runs against each other: which may be compared, what tests find, and in words what they say and do not say."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

from diffenc.errors import UserError
from diffenc.measuring import evaluations, significance
from diffenc.measuring.image_error import PassValues
from diffenc.measuring.significance import Finding
from diffenc.progress import Progress
from diffenc.report import shown
from diffenc.report.held import Held
from diffenc.report.seeds import Group, not_alike

ALPHA = 0.05
MOST = 15  # pairs; of more groups, each is compared with the first alone
# What makes two bounds of different things, and what makes their draws others: then images cannot be paired.
SAME = (
    "split",
    "T",
    "times",
    "variance",
    "proposal",
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
      says: what that means; and what it does not.
    """

    a: str
    b: str
    refused: str | None = None
    findings: tuple[Finding, ...] = ()
    says: tuple[str, ...] = ()
    says_not: tuple[str, ...] = ()


def compared(groups: Sequence[Group]) -> list[Pair]:
    """Every pair of groups; each with the first alone where these were too many."""
    pairs = list(itertools.combinations(groups, 2))
    if len(pairs) > MOST:
        pairs = [(groups[0], other) for other in groups[1:]]
    progress, found = Progress("comparing runs", len(pairs)), []
    for a, b in pairs:
        found.append(pair(a, b))
        progress()
    return found


def pair(a: Group, b: Group) -> Pair:
    """Two groups against each other."""
    refused = why_not(a, b)
    if refused:
        return Pair(a.name, b.name, refused)
    shared = [seed for seed in a.by_seed if seed in b.by_seed]
    one_each = len(a.evaluated) == len(b.evaluated) == 1
    try:
        found = _of_one_run_each(a.evaluated[0], b.evaluated[0]) if one_each else _of_seeds(a, b)
    except UserError as error:
        return Pair(a.name, b.name, f"The terms of their images cannot be compared: {error}.")
    says, says_not = (_in_words_of_images if one_each else _in_words_of_seeds)(a, b, found)
    told = _told(a, b, one_each and not shared)
    return Pair(a.name, b.name, None, tuple(found), tuple(says), (*says_not, *told))


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


def by_pass(held: Held) -> PassValues:
    """Returns bits/dim of each image in each pass."""
    name = f"{held.label}/{held.terms_name}"
    return evaluations.terms_by_pass(held.terms, held.evaluation or {}, name)["total"]


def _of_one_run_each(a: Held, b: Held) -> list[Finding]:
    one, two = by_pass(a), by_pass(b)
    return [
        significance.paired(
            one.values.mean(axis=0), two.values.mean(axis=0), "images and their draws, under both runs"
        ),
        significance.over_images([one.minus(two)]),
    ]


def _of_seeds(a: Group, b: Group) -> list[Finding]:
    of = functools.cache(by_pass)
    return significance.findings(
        a.totals, b.totals, lambda seed: of(a.by_seed[seed]).minus(of(b.by_seed[seed]))
    )


def _in_words_of_images(a: Group, b: Group, found: Sequence[Finding]) -> tuple[list[str], list[str]]:
    test = found[0]
    says = [f"{_ahead(a, b, test)} on these images. {_of_images(test.two_sided, a.records[0]['num_images'])}"]
    says_not = [
        f"{_once(a, b)} Whether other seeds would come out the same way is not tested: that takes several "
        "evaluated runs of each, with seeds of their own."
    ]
    return says, says_not


def _once(a: Group, b: Group) -> str:
    if len(a.runs) == len(b.runs) == 1:
        return "Each was trained once."
    return f"Of each one run alone was evaluated, {a.evaluated[0].label} and {b.evaluated[0].label}."


def _in_words_of_seeds(a: Group, b: Group, found: Sequence[Finding]) -> tuple[list[str], list[str]]:
    test = _of_every_run(a, b, found)
    says = [f"{_ahead(a, b, test or found[0])}, averaged over seeds. {_of_seeds_said(test)}"]
    fewest = min(len(a.evaluated), len(b.evaluated))
    says_not = [
        f"With {fewest} seed{'s' if fewest > 1 else ''} a test sees large differences only: a large p is no sign "
        "that the two are equal. The bootstrap over images takes these seeds as they are, and that over seeds and "
        "images is too narrow with few seeds."
    ]
    return says, says_not


def _of_every_run(a: Group, b: Group, found: Sequence[Finding]) -> Finding | None:
    """The test that the words rest on, which passes no run over: paired only where both have the same seeds."""
    names = ("paired t", "Welch") if a.totals.keys() == b.totals.keys() else ("Welch",)
    tests = {finding.test: finding for finding in found if _known(finding)}
    return next((tests[name] for name in names if name in tests), None)


def _ahead(a: Group, b: Group, finding: Finding) -> str:
    size = shown.figure(abs(finding.difference), finding.error).mean
    if finding.difference == 0:
        return f"{a.name} and {b.name} have the same bits/dim"
    return f"{a.name} is {'lower' if finding.difference < 0 else 'higher'} than {b.name} by {size} bits/dim"


def _of_images(p: float | None, num_images: int) -> str:
    if num_images < 2:
        return "One image is too few for a test."
    if p is None:
        return "Their images do not vary, so there is no test."
    if p <= ALPHA:
        return (
            f"The difference is more than which images were drawn explains ({shown.p_stated(p)}): of these two "
            "trained models, it would likely have the same sign on other images of this kind."
        )
    return f"Which images were drawn may explain the difference ({shown.p_stated(p)})."


def _of_seeds_said(test: Finding | None) -> str:
    if test is None:
        return "Too few seeds for a test."
    p = shown.p_stated(test.two_sided)
    if test.two_sided is not None and test.two_sided <= ALPHA:
        return f"The difference is more than the choice of seeds explains ({test.test}, {test.of}, {p})."
    return f"The choice of seeds may explain the difference ({test.test}, {test.of}, {p})."


def _known(finding: Finding) -> bool:
    return finding.two_sided is not None


def _told(a: Group, b: Group, other_seeds: bool) -> list[str]:
    differing = evaluations.differing(a.records[0], b.records[0], TOLD)
    said = [f"They differ in more than their config: {', '.join(differing)}."] if differing else []
    return [*said, *(["They were trained with different seeds."] if other_seeds else [])]
