"""Tables of the study, made from the records of its runs alone."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.saved_records import COMPARABLE_KEYS
from diffenc.evaluation.significance import (
    LEVEL,
    TestResult,
    average_seeds,
    holm_correction,
    paired_test,
    welch_test,
)
from diffenc.evaluation.uncertainty_format import (
    MISSING,
    Digits,
    format_digits,
    format_estimate,
    round_to_error,
)
from diffenc.tools.sweep.comparison import common_seeds, component_differences, format_p
from diffenc.tools.sweep.results import (
    COMPONENTS,
    VariantResults,
    describe_evaluations,
    mean_and_standard_error,
    read_results,
    require_comparable,
)
from diffenc.tools.sweep.sheets import Cell, Page, Sheet, to_markdown
from diffenc.workdir.fitted_chains import MEASURED_PATH
from experiments.study.parts import Part, Primary
from experiments.study.records import code_history, training_hours

Results = dict[str, VariantResults]  # by arm
BySeed = Float[np.ndarray, " seeds"]
ALPHA = 1 - LEVEL
FEWEST = 3  # seeds of an interval
HEADING = "Made from the runs' records by `python -m experiments.study --only_tables`; not edited by hand."
ARM_NOTES = (
    "Means over different seeds are not comparable: see the differences, which are paired.",
    "± 0: the same for every seed, as of a term without trained parameters. Without ±: one seed, to the digits of its "
    "Monte-Carlo error.",
)


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
        is_small = first.by_pass.mc_se <= stats.sem(first.differences) / 2
        if self.p_holm is None or self.p_holm > ALPHA or len(signs) > 1 or not is_small:
            return "cannot be told"
        return "A ahead" if first.test.difference < 0 else "A behind"


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
    result = read_results(arm, {seed: part.workdir(arm, seed) for seed in seeds})
    require_comparable([result])
    return result


def part_page(part: Part) -> Page:
    """Returns the tables of a part: bits/dim of each arm, and the paired differences that it describes."""
    results = read_part(part)
    recorded = [result for result in results.values() if result.seeds]
    pairs = recorded_pairs(part, results)
    hours = [training_hours(part.workdir(arm, seed)) for arm in part.arms for seed in results[arm].seeds]
    facts = list(describe_evaluations(recorded))
    if hours:
        facts.append(f"training took {sum(hours):.1f} h, the sum over {len(hours)} runs")
    missing = list(_missing(part, {arm: results[arm] for arm in part.arms}))
    if missing:
        facts.append(f"{len(missing)} of {len(part.arms) * len(part.seeds)} runs missing")
    sheets = [*([arms_sheet(recorded)] if recorded else []), *([pairs_sheet(pairs)] if pairs else [])]
    paths = other_paths_sheet(part, results)
    return Page(part.title, tuple(facts), (*sheets, *([paths] if paths.rows else [])))


def recorded_pairs(part: Part, results: Results) -> list[tuple[VariantResults, VariantResults]]:
    """Returns the pairs (A, B) that a part describes, both of the seeds that both have; not those without such seeds."""
    pairs = [(results[a], results[b], common_seeds(results[a], results[b])) for a, b in part.pairs]
    return [(a.select(seeds), b.select(seeds)) for a, b, seeds in pairs if seeds]


def arms_sheet(results: Sequence[VariantResults]) -> Sheet:
    """Returns a row for each arm: mean ± standard error over its seeds of every term, its steps and its parameters."""
    heads = ("arm", *COMPONENTS, "seeds", "steps", "parameters")
    rows = []
    for result in results:
        ((steps, params),) = {(each["step"], each["num_params"]) for each in result.records.values()}
        rows.append(
            (
                result.name,
                *(_mean(result, component) for component in COMPONENTS),
                _list_seeds(result.seeds),
                steps,
                params,
            )
        )
    return Sheet("arms", "Bits/dim", heads, tuple(rows), ARM_NOTES)


def _mean(result: VariantResults, component: str) -> Cell:
    if len(result.seeds) > 1:
        return result.mean(component)
    (record,) = result.records.values()
    return format_digits(float(result.values(component)[0]), record.get(f"{COMPONENTS[component]}_mc_se"))


def _list_seeds(seeds: Sequence[int]) -> str:
    together = len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}–{seeds[-1]}" if together else ", ".join(map(str, seeds))


def pairs_sheet(pairs: Sequence[tuple[VariantResults, VariantResults]]) -> Sheet:
    """Returns a row for each pair (A, B) of the same seeds: A - B of every term, and the interval of the total."""
    heads = ("A − B", *COMPONENTS, *_interval_heads(LEVEL), "seeds")
    rows = []
    for a, b in pairs:
        differences = a.values("total") - b.values("total")
        ends = _interval_cells(differences, LEVEL)
        rows.append((f"{a.name} − {b.name}", *component_differences(a, b), *ends, _list_seeds(a.seeds)))
    note = (
        "Lower is better: a negative difference is in favour of A. Intervals are about the total with other seeds; "
        f"none for fewer than {FEWEST} seeds."
    )
    return Sheet("pairs", "Differences, paired by seed, bits/dim", heads, tuple(rows), (note,))


def other_paths_sheet(part: Part, results: Results) -> Sheet:
    """Returns a row for each path on which an arm was measured besides its own: the bound on that path minus that on its own.

    Raises:
      UserError: a record is not of the same images and draws.
    """
    rows = []
    for other in part.other_paths:
        own = results[other.arm]
        there = read_results(other.arm, own.workdirs, other.record_name)
        if there.seeds:
            require_comparable([there, own], [key for key in COMPARABLE_KEYS if key != MEASURED_PATH])
            differences = there.values("total") - own.select(there.seeds).values("total")
            ends = _interval_cells(differences, LEVEL)
            rows.append(
                (other.arm, other.name, mean_and_standard_error(differences), *ends, _list_seeds(there.seeds))
            )
    heads = ("arm", "measured on", "minus on its own path", *_interval_heads(LEVEL), "seeds")
    note = "The same networks, images, times and noise, on another path."
    return Sheet("paths", "The same networks on another path, bits/dim", heads, tuple(rows), (note,))


def _interval_heads(level: float) -> tuple[str, str]:
    return f"{100 * level:.4g} % from", f"{100 * level:.4g} % to"


def _interval_cells(differences: BySeed, level: float) -> list[str]:
    interval = t_interval(differences, level)
    if interval is None:
        return [MISSING] * 2
    return [format_digits(end, float(stats.sem(differences))) for end in interval]


def t_interval(values: BySeed, level: float) -> tuple[float, float] | None:
    """Returns the interval of Student's t for the mean; None of fewer than FEWEST values, with which it says little."""
    if len(values) < FEWEST:
        return None
    low, high = stats.t.interval(level, len(values) - 1, values.mean(), stats.sem(values))
    return float(low), float(high)


def _missing(part: Part, results: Mapping[str, VariantResults]) -> Iterator[str]:
    for arm, result in results.items():
        yield from (f"{arm}/seed_{seed}" for seed in part.seeds if seed not in result.seeds)


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
    missing = tuple(_missing(primary.part, results))
    if missing or not_finite:
        return Outcome(primary, missing, tuple(not_finite))
    rivals = sorted(primary.rivals, key=lambda arm: results[arm].values("total").mean())
    return Outcome(primary, contrasts=tuple(_contrast(results[primary.a], results[arm]) for arm in rivals))


def _contrast(a: VariantResults, b: VariantResults) -> Contrast:
    one, two = a.values("total"), b.values("total")
    by_seed = [a.terms(seed)["total"].minus(b.terms(seed)["total"]) for seed in a.seeds]
    return Contrast(b.name, one - two, paired_test(one, two), welch_test(one, two), average_seeds(by_seed))


def primary_sheet(outcomes: Sequence[Outcome]) -> Sheet:
    """Returns the table of the primary comparisons, with a row for every rival."""
    num_rows = sum(len(outcome.primary.rivals) for outcome in outcomes)
    level = 1 - ALPHA / max(num_rows, 1)
    heads = ("A − B", "part", "bits/dim", *_interval_heads(level), "p", "p, Holm", "verdict")
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
    return f"{outcome.primary.a} − {' or '.join(outcome.primary.rivals)}"


def _primary_rows(outcome: Outcome, level: float) -> Iterator[tuple[Cell, ...]]:
    title = outcome.primary.part.title
    if not outcome.contrasts:
        yield (_label(outcome), title, *[MISSING] * 5, outcome.verdict)
    for place, contrast in enumerate(outcome.contrasts):
        test, ends = contrast.test, _interval_cells(contrast.differences, level)
        of_all = (format_p(outcome.p_holm), outcome.verdict) if place == 0 else (MISSING, MISSING)
        difference = round_to_error(test.difference, test.error)
        label = f"{outcome.primary.a} − {contrast.b}"
        yield (label, title, difference, *ends, format_p(test.two_sided), *of_all)


def detail_sheet(outcomes: Sequence[Outcome]) -> Sheet | None:
    """Returns the differences of the primary comparisons by seed, with their other errors; None if none is complete."""
    complete = [(outcome, contrast) for outcome in outcomes for contrast in outcome.contrasts]
    if not complete:
        return None
    (seeds,) = {outcome.primary.part.seeds for outcome, _ in complete}
    by_seed = [f"seed {seed}" for seed in seeds]
    heads = (
        "A − B",
        "part",
        *by_seed,
        *_interval_heads(LEVEL),
        "p, Welch",
        "without the first seed",
        "± over images",
        "± Monte Carlo",
    )
    notes = (
        "None of this enters a verdict but the Monte-Carlo error, which all seeds share. ± over images: by the choice of the "
        "test images; after <= an upper bound, where it is not resolved.",
    )
    return Sheet(
        "detail",
        "Primary comparisons, by seed and with other errors",
        heads,
        tuple(_detail_row(*each) for each in complete),
        notes,
    )


def _detail_row(outcome: Outcome, contrast: Contrast) -> tuple[Cell, ...]:
    values, test, images = contrast.differences, contrast.test, contrast.by_pass.over_images
    _, *errors = format_estimate(test.difference, images.se, images.upper, contrast.by_pass.mc_se)
    return (
        f"{outcome.primary.a} − {contrast.b}",
        outcome.primary.part.title,
        *(format_digits(value, contrast.by_pass.mc_se) for value in values),
        *_interval_cells(values, LEVEL),
        format_p(contrast.welch.two_sided),
        mean_and_standard_error(values[1:]),
        *map(Digits, errors),
    )


def code_sheet(parts: Sequence[Part]) -> Sheet | None:
    """Returns the commits that trained the runs, by part and seed; None if nothing is recorded."""
    rows = []
    for part, results in ((part, read_part(part)) for part in parts):
        for seed in part.seeds:
            arms = defaultdict(list)
            for arm in part.arms:
                if seed in results[arm].seeds:
                    arms[code_history(part.workdir(arm, seed))].append(arm)
            rows += [(part.name, str(seed), ", ".join(names), history) for history, names in arms.items()]
    if not rows:
        return None
    heads = ("part", "seed", "arms", "commit")
    note = "A + after a commit: with changes that were not committed."
    return Sheet("code", "Commits that trained the runs", heads, tuple(rows), (note,))


def tables(parts: Sequence[Part], primaries: Sequence[Primary]) -> str:
    """Returns all tables as Markdown."""
    outcomes = judge(primaries)
    sheets = (primary_sheet(outcomes), detail_sheet(outcomes))
    first = Page("Tables of the study", (HEADING,), tuple(sheet for sheet in sheets if sheet is not None))
    pages = [to_markdown(first), *(to_markdown(part_page(part), level=2) for part in parts)]
    code = code_sheet(parts)
    return "\n".join([*pages, *([to_markdown(Page("Code", (), (code,)), level=2)] if code else [])])
