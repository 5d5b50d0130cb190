"""Variants against each other: paired differences of each component, and every test of their totals."""

import math
from collections import Counter
from collections.abc import Sequence

from diffenc.evaluation import significance
from diffenc.evaluation.significance import FEWEST_SEEDS, LEVEL, TestResult, holm_correction
from diffenc.evaluation.uncertainty_format import MISSING, Digits, Figure, format_digits, round_to_error
from diffenc.tools.sweep.formatting import Cell, Sheet
from diffenc.tools.sweep.summary import COMPONENTS, Summary, mean_and_error

NOTES = (
    "A lower figure is better: of a negative difference A is ahead.",
    "Welch and paired t: seeds stand for all seeds. Bootstrap over images: for these seeds only. Over seeds and "
    "images: both, too narrow with few seeds.",
    f"With fewer than {FEWEST_SEEDS} seeds of each, no p supports a claim about other seeds.",
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


def findings(a: Summary, b: Summary) -> list[TestResult]:
    """Every test of A's total against B's."""
    one, two = (dict(zip(each.seeds, each.values("total"), strict=True)) for each in (a, b))
    return significance.test_results(
        one, two, lambda seed: a.terms(seed)["total"].minus(b.terms(seed)["total"])
    )


def sheets(pairs: Sequence[tuple[Summary, Summary]]) -> tuple[Sheet, Sheet]:
    """Differences and tests of each A − B."""
    return differences_of(pairs), tests_sheet(tests_of(pairs))


def differences_of(pairs: Sequence[tuple[Summary, Summary]]) -> Sheet:
    """Component by component, and how many seeds they share."""
    rows = [(_label(a, b), *differences(a, b), len(common_seeds(a, b))) for a, b in pairs]
    heads = ("A − B", *COMPONENTS, "pairs")
    return Sheet("differences", "Differences, paired by seed, bits/dim", heads, tuple(rows))


def tests_of(pairs: Sequence[tuple[Summary, Summary]]) -> list[tuple[str, TestResult]]:
    """Every test of each A − B, under its label."""
    return [(_label(a, b), finding) for a, b in pairs for finding in findings(a, b)]


def _label(a: Summary, b: Summary) -> str:
    return f"{a.name} − {b.name}"


def tests_sheet(tests: Sequence[tuple[str, TestResult]]) -> Sheet:
    """Every test of each A − B, by label. p is corrected for all comparisons by the same test that the sheet shows."""
    level = f"{LEVEL:.0%}"
    heads = (
        "A − B",
        "test",
        "n",
        "total",
        f"{level} from",
        f"{level} to",
        "p, two-sided",
        "p, Holm",
        "p, A lower",
    )
    rows = (
        _row(label, finding, corrected)
        for (label, finding), corrected in zip(tests, _corrected([found for _, found in tests]), strict=True)
    )
    counts = Counter(finding.test for _, finding in tests if finding.two_sided is not None)
    compared = ", ".join(f"{count} by {test}" for test, count in counts.items())
    holm = (f"p, Holm: two-sided p corrected for the number of comparisons: {compared}.",) if compared else ()
    return Sheet("tests", "Tests of the total", heads, tuple(rows), (*NOTES, *holm))


def _corrected(found: Sequence[TestResult]) -> list[float | None]:
    """Two-sided p after Holm, for each test over all that it was used for."""
    result: list[float | None] = [None] * len(found)
    for test in {finding.test for finding in found}:
        places = [place for place, finding in enumerate(found) if finding.test == test]
        for place, value in zip(
            places, holm_correction([found[place].two_sided for place in places]), strict=True
        ):
            result[place] = value
    return result


def _row(label: str, finding: TestResult, corrected: float | None) -> tuple[Cell, ...]:
    unknown = math.isnan(finding.difference)
    difference = Figure(MISSING) if unknown else round_to_error(finding.difference, finding.error)
    low, high = finding.interval or (None, None)
    edges = (format_digits(low, finding.error), format_digits(high, finding.error))
    ps = map(p, (finding.two_sided, corrected, finding.lower))
    return label, finding.test, finding.of, difference, *edges, *ps


def p(value: float | None) -> str:
    """Two significant digits."""
    return MISSING if value is None else Digits(f"{value:.2g}")
