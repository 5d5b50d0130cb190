"""Comparison of variants: paired differences of each component, and significance tests of their totals."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from diffenc.evaluation import significance
from diffenc.evaluation.significance import LEVEL, MIN_SEEDS, TestResult, holm_correction
from diffenc.evaluation.uncertainty_format import MISSING, Digits, Figure, format_digits, round_to_error
from diffenc.tools.sweep.results import COMPONENTS, VariantResults, mean_and_standard_error
from diffenc.tools.sweep.sheets import Cell, Sheet

NOTES = (
    "Lower is better: a negative difference is in favour of A.",
    "Welch and paired t: about all seeds, of which these are a sample. Bootstrap over images: about these seeds only. "
    "Bootstrap over seeds and images: about both, but too narrow with few seeds.",
    f"With fewer than {MIN_SEEDS} seeds of each, no p supports a claim about other seeds.",
)


def common_seeds(a: VariantResults, b: VariantResults) -> tuple[int, ...]:
    """Returns the seeds that both variants were evaluated with."""
    return tuple(seed for seed in a.seeds if seed in b.seeds)


def component_differences(a: VariantResults, b: VariantResults) -> tuple[Cell, ...]:
    """Returns A − B for each component: the mean over common seeds and the standard error of the paired differences."""
    seeds = common_seeds(a, b)
    if not seeds:
        return (MISSING,) * len(COMPONENTS)
    one, two = a.select(seeds), b.select(seeds)
    return tuple(mean_and_standard_error(one.values(name) - two.values(name)) for name in COMPONENTS)


def compare_totals(a: VariantResults, b: VariantResults) -> list[TestResult]:
    """Returns every significance test of the total of A against that of B."""
    one, two = (dict(zip(each.seeds, each.values("total"), strict=True)) for each in (a, b))
    return significance.test_results(
        one, two, lambda seed: a.terms(seed)["total"].minus(b.terms(seed)["total"])
    )


def comparison_sheets(
    pairs: Sequence[tuple[VariantResults, VariantResults]],
    planned: Mapping[str, Collection[int]],
    others: Sequence[tuple[str, TestResult]] = (),
) -> tuple[Sheet, ...]:
    """Returns the sheets of differences and of tests, with rows for each pair (A, B); none without anything to compare.

    Args:
      pairs: all that are to be compared, those of which no run is done yet too.
      planned: the seeds that each variant is to have, by its name; a pair that lacks one of them is not tested.
      others: further tests with the labels of their pairs, which are corrected for together with these.
    """
    begun = [(a, b) for a, b in pairs if a.seeds and b.seeds]
    complete = [pair for pair in begun if all(set(planned[each.name]) <= set(each.seeds) for each in pair)]
    missing = [_label(a, b) for a, b in pairs if (a, b) not in complete]
    notes = (f"Not tested, as runs are missing: {'; '.join(missing)}.",) if missing else ()
    tests = [*_collect_tests(complete), *others]
    return (
        *([_differences_sheet(begun)] if begun else []),
        *([_tests_sheet(tests, notes, len(missing))] if begun or tests else []),
    )


def _differences_sheet(pairs: Sequence[tuple[VariantResults, VariantResults]]) -> Sheet:
    """Returns the sheet of differences by component, with the number of common seeds."""
    rows = [(_label(a, b), *component_differences(a, b), len(common_seeds(a, b))) for a, b in pairs]
    heads = ("A − B", *COMPONENTS, "pairs")
    return Sheet("differences", "Differences, paired by seed, bits/dim", heads, tuple(rows))


def _collect_tests(pairs: Sequence[tuple[VariantResults, VariantResults]]) -> list[tuple[str, TestResult]]:
    """Returns every test of each pair, with the label of the pair."""
    return [(_label(a, b), result) for a, b in pairs for result in compare_totals(a, b)]


def _label(a: VariantResults, b: VariantResults) -> str:
    return f"{a.name} − {b.name}"


def _tests_sheet(tests: Sequence[tuple[str, TestResult]], notes: Sequence[str], untested: int) -> Sheet:
    """Returns the sheet of labelled tests; p is corrected for the number of comparisons made with the same test.

    Args:
      untested: number of comparisons still to come, which the correction counts too.
    """
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
        _test_row(label, result, corrected)
        for (label, result), corrected in zip(
            tests, _correct_p_values([one for _, one in tests], untested), strict=True
        )
    )
    counts = Counter(result.test for _, result in tests if result.two_sided is not None)
    comparisons = ", ".join(f"{count + untested} by {test}" for test, count in counts.items())
    holm_note = f"p, Holm: two-sided p corrected for the number of comparisons: {comparisons}."
    notes = (*NOTES, *((holm_note,) if comparisons else ()), *notes)
    return Sheet("tests", "Tests of the total", heads, tuple(rows), notes)


def _correct_p_values(results: Sequence[TestResult], untested: int) -> list[float | None]:
    """Returns two-sided p values after Holm's correction, which is applied to the results of each test separately.

    Comparisons still to come count with p = 1.
    """
    corrected: list[float | None] = [None] * len(results)
    for test in {result.test for result in results}:
        indices = [index for index, result in enumerate(results) if result.test == test]
        p_values = [results[index].two_sided for index in indices]
        # p = 1 is the largest possible: Holm's factors then are those of the whole family of comparisons.
        to_come = [None if all(p is None for p in p_values) else 1.0] * untested
        for index, value in zip(indices, holm_correction([*p_values, *to_come]), strict=False):
            corrected[index] = value
    return corrected


def _test_row(label: str, result: TestResult, corrected: float | None) -> tuple[Cell, ...]:
    unknown = math.isnan(result.difference)
    difference = Figure(MISSING) if unknown else round_to_error(result.difference, result.error)
    low, high = result.interval or (None, None)
    bounds = (format_digits(low, result.error), format_digits(high, result.error))
    p_values = map(format_p, (result.two_sided, corrected, result.lower))
    return label, result.test, result.of, difference, *bounds, *p_values


def format_p(value: float | None) -> str:
    """Formats a p value with two significant digits."""
    return MISSING if value is None else Digits(f"{value:.2g}")
