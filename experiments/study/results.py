"""Tables of the study's parts, made from the records of its runs alone."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.saved_records import COMPARABLE_KEYS
from diffenc.evaluation.significance import LEVEL, average_seeds
from diffenc.evaluation.uncertainty_format import MISSING, Digits, format_digits, format_estimate
from diffenc.tools.sweep.comparison import common_seeds, component_differences
from diffenc.tools.sweep.results import (
    COMPONENTS,
    VariantResults,
    describe_evaluations,
    mean_and_standard_error,
    read_results,
    require_comparable,
)
from diffenc.tools.sweep.sheets import Cell, Page, Sheet
from diffenc.workdir.fitted_chains import MEASURED_PATH
from experiments.study.parts import Part
from experiments.study.records import WINDOW, mean_losses, training_hours, training_slope

Results = dict[str, VariantResults]  # by arm
BySeed = Float[np.ndarray, " seeds"]
FEWEST = 3  # seeds of an interval
ERROR_HEADS = ("± over images", "± Monte Carlo")
TRAINING_HEADS = (f"training, first {WINDOW:,} steps", f"training, last {WINDOW:,} steps")
ERROR_NOTE = (
    "± over images: by the choice of the test images; after <= an upper bound, where it is not resolved. The seeds share it, and "
    "the Monte-Carlo error."
)
ARM_NOTES = (
    "Means over different seeds are not comparable: see the differences, which are paired.",
    "± 0: the same for every seed, as of a term without trained parameters. Without ±: one seed; terms to the digits of their "
    "Monte-Carlo error.",
    "Loss in 100 steps: by how much the loss of training batches changes (with dropout, and the parameters themselves in place "
    f"of their averages), least squares over the last {WINDOW:,} steps.",
)


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
    missing = list(missing_runs(part, {arm: results[arm] for arm in part.arms}))
    if missing:
        facts.append(f"{len(missing)} of {len(part.arms) * len(part.seeds)} runs missing")
    sheets = [*([arms_sheet(recorded)] if recorded else []), *([pairs_sheet(pairs)] if pairs else [])]
    paths = other_paths_sheet(part, results)
    return Page(part.title, tuple(facts), (*sheets, *([paths] if paths.rows else [])))


def recorded_pairs(part: Part, results: Results) -> list[tuple[VariantResults, VariantResults]]:
    """Returns the pairs (A, B) that a part describes, both of the seeds that both have; not those without such seeds."""
    pairs = [(results[a], results[b], common_seeds(results[a], results[b])) for a, b in part.pairs]
    return [(a.select(seeds), b.select(seeds)) for a, b, seeds in pairs if seeds]


def name_difference(a: str, b: str) -> str:
    """Returns the label of the difference of two arms."""
    return f"{a} − {b}"


def arms_sheet(results: Sequence[VariantResults]) -> Sheet:
    """Returns a row for each arm: mean ± standard error over its seeds of every term, its training and its parameters."""
    heads = ("arm", *COMPONENTS, "seeds", "steps", "loss in 100 steps", "parameters")
    rows = []
    for result in results:
        ((steps, params),) = {(each["step"], each["num_params"]) for each in result.records.values()}
        rows.append(
            (
                result.name,
                *(_mean(result, component) for component in COMPONENTS),
                _list_seeds(result.seeds),
                steps,
                _mean_slope(result),
                params,
            )
        )
    return Sheet("arms", "Bits/dim", heads, tuple(rows), ARM_NOTES)


def _mean(result: VariantResults, component: str) -> Cell:
    if len(result.seeds) > 1:
        return result.mean(component)
    (record,) = result.records.values()
    return format_digits(float(result.values(component)[0]), record.get(f"{COMPONENTS[component]}_mc_se"))


def _mean_slope(result: VariantResults) -> Cell:
    slopes = np.array([training_slope(workdir) for workdir in result.workdirs.values()])
    return mean_and_standard_error(slopes) if len(slopes) > 1 else format_digits(float(slopes[0]))


def _list_seeds(seeds: Sequence[int]) -> str:
    together = len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}–{seeds[-1]}" if together else ", ".join(map(str, seeds))


def pairs_sheet(pairs: Sequence[tuple[VariantResults, VariantResults]]) -> Sheet:
    """Returns a row for each pair (A, B) of the same seeds: A - B of every term, and the interval of the total."""
    heads = (
        "A − B",
        *COMPONENTS,
        *interval_heads(LEVEL),
        "A is lower in",
        "seeds",
        *ERROR_HEADS,
        *TRAINING_HEADS,
    )
    rows = []
    for a, b in pairs:
        differences = a.values("total") - b.values("total")
        ends = interval_cells(differences, LEVEL)
        lower, errors = MISSING, [MISSING] * len(ERROR_HEADS)
        if np.isfinite(differences).all():
            lower = f"{(differences < 0).sum()} of {len(differences)}"
            errors = error_cells(difference_by_pass(a, b))
        rows.append(
            (
                name_difference(a.name, b.name),
                *component_differences(a, b),
                *ends,
                lower,
                _list_seeds(a.seeds),
                *errors,
                *_training_cells(a, b),
            )
        )
    note = (
        "Lower is better: a negative difference is in favour of A. Intervals are about the total with other seeds, each for itself, "
        f"not corrected; none for fewer than {FEWEST} seeds. {ERROR_NOTE}"
    )
    training = "Training: of the mean loss of training batches; the last steps are compared of arms that were trained for equally many."
    return Sheet("pairs", "Differences, paired by seed, bits/dim", heads, tuple(rows), (note, training))


def _training_cells(a: VariantResults, b: VariantResults) -> tuple[Cell, Cell]:
    """Returns the differences of the training loss over the first and the last WINDOW steps."""
    means = [np.array([mean_losses(each.workdirs[seed]) for seed in a.seeds]) for each in (a, b)]
    first, last = (mean_and_standard_error(values) for values in (means[0] - means[1]).T)
    steps = {record["step"] for each in (a, b) for record in each.records.values()}
    return first, last if len(steps) == 1 else MISSING


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
            ends = interval_cells(differences, LEVEL)
            rows.append(
                (other.arm, other.name, mean_and_standard_error(differences), *ends, _list_seeds(there.seeds))
            )
    heads = ("arm", "measured on", "minus on its own path", *interval_heads(LEVEL), "seeds")
    note = "The same networks, images, times and noise, on another path."
    return Sheet("paths", "The same networks on another path, bits/dim", heads, tuple(rows), (note,))


def difference_by_pass(a: VariantResults, b: VariantResults) -> PassValues:
    """Returns A - B of the total of each image in each pass, the mean over their seeds, which are the same."""
    return average_seeds([a.terms(seed)["total"].minus(b.terms(seed)["total"]) for seed in a.seeds])


def error_cells(by_pass: PassValues) -> list[Cell]:
    """Returns the errors of a difference that the seeds share: over images, and of Monte Carlo."""
    images = by_pass.over_images
    _, *errors = format_estimate(float(by_pass.values.mean()), images.se, images.upper, by_pass.mc_se)
    return [Digits(error) for error in errors]


def interval_heads(level: float) -> tuple[str, str]:
    """Returns the heads of an interval's two columns."""
    return f"{100 * level:.4g} % from", f"{100 * level:.4g} % to"


def interval_cells(differences: BySeed, level: float) -> list[str]:
    """Returns both ends of `t_interval`, to the digits of the standard error."""
    interval = t_interval(differences, level)
    if interval is None:
        return [MISSING] * 2
    return [format_digits(end, float(stats.sem(differences))) for end in interval]


def t_interval(values: BySeed, level: float) -> tuple[float, float] | None:
    """Returns the interval of Student's t for the mean; None of fewer than FEWEST values, with which it says little.

    None too of values that do not vary, or are not finite.
    """
    if len(values) < FEWEST or not 0 < stats.sem(values) < math.inf:
        return None
    low, high = stats.t.interval(level, len(values) - 1, values.mean(), stats.sem(values))
    return float(low), float(high)


def missing_runs(part: Part, results: Mapping[str, VariantResults]) -> Iterator[str]:
    """Yields the runs of `results`, by arm, that are not recorded, as ARM/seed_K."""
    for arm, result in results.items():
        yield from (f"{arm}/seed_{seed}" for seed in part.seeds if seed not in result.seeds)
