"""Variants against each other: paired differences of each component, and every test of their totals."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from experiments import significance
from experiments.significance import LEVEL, Finding
from experiments.summary import COMPONENTS, Summary, mean_and_error
from experiments.table_shown import MISSING, Cell, Digits, Figure, Sheet, digits, rounded

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
    found = [significance.welch(a.values("total"), b.values("total"))]
    shared = common_seeds(a, b)
    if not shared:
        return found
    one, two = a.of(shared), b.of(shared)
    found.append(significance.paired(one.values("total"), two.values("total")))
    if np.isfinite([one.values("total"), two.values("total")]).all():
        by_image = np.stack([one.terms(seed)["total"] - two.terms(seed)["total"] for seed in shared])
        found += [significance.over_images(by_image), significance.over_seeds_and_images(by_image)]
    return found


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
