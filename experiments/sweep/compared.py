"""Variants against each other: paired differences of each component, and every test of their totals."""

import math
from collections.abc import Iterable, Sequence

from diffenc.measuring import significance
from diffenc.measuring.significance import LEVEL, Finding
from diffenc.rounding import MISSING, Digits, Figure, digits, rounded
from experiments.sweep.shown import Cell, Sheet
from experiments.sweep.summary import COMPONENTS, Summary, mean_and_error

NOTES = (
    "A lower figure is better: of a negative difference A is ahead.",
    "Welch and paired t: seeds stand for all seeds. Bootstrap over images: for these seeds only. Over seeds and "
    "images: both, too narrow with few seeds.",
)


def common_seeds(a: Summary, b: Summary) -> tuple[int, ...]:
    return tuple(seed for seed in a.seeds if seed in b.seeds)


def differences(a: Summary, b: Summary) -> tuple[Cell, ...]:
    """A − B by component: the mean over the seeds they share, and its standard error from the paired differences."""
    shared = common_seeds(a, b)
    if not shared:
        return (MISSING,) * len(COMPONENTS)
    one, two = a.of(shared), b.of(shared)
    return tuple(mean_and_error(one.values(name) - two.values(name)) for name in COMPONENTS)


def findings(a: Summary, b: Summary) -> list[Finding]:
    """Every test of A's total against B's."""
    one, two = (dict(zip(each.seeds, each.values("total"), strict=True)) for each in (a, b))
    return significance.findings(one, two, lambda seed: a.terms(seed)["total"].minus(b.terms(seed)["total"]))


def sheets(pairs: Iterable[tuple[Summary, Summary]]) -> tuple[Sheet, Sheet]:
    """Differences and tests of each A − B."""
    by_component, tests = [], []
    for a, b in pairs:
        label = f"{a.name} − {b.name}"
        by_component.append((label, *differences(a, b), len(common_seeds(a, b))))
        tests += [finding_row(label, finding) for finding in findings(a, b)]
    return differences_sheet(by_component), tests_sheet(tests)


def differences_sheet(rows: Sequence[tuple[Cell, ...]]) -> Sheet:
    """Rows: label, component by component, n."""
    heads = ("A − B", *COMPONENTS, "pairs")
    return Sheet("differences", "Differences, paired by seed, bits/dim", heads, tuple(rows))


def tests_sheet(rows: Sequence[tuple[Cell, ...]]) -> Sheet:
    """Rows as `finding_row` makes them."""
    level = f"{LEVEL:.0%}"
    heads = ("A − B", "test", "n", "total", f"{level} from", f"{level} to", "p, two-sided", "p, A lower")
    return Sheet("tests", "Tests of the total", heads, tuple(rows), NOTES)


def finding_row(label: str, finding: Finding) -> tuple[Cell, ...]:
    """A line of `tests_sheet`."""
    unknown = math.isnan(finding.difference)
    difference = Figure(MISSING) if unknown else rounded(finding.difference, finding.error)
    low, high = finding.interval or (None, None)
    edges = (digits(low, finding.error), digits(high, finding.error))
    return label, finding.test, finding.of, difference, *edges, p(finding.two_sided), p(finding.lower)


def p(value: float | None) -> str:
    """Two significant digits."""
    return MISSING if value is None else Digits(f"{value:.2g}")
