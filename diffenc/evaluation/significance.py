"""Whether A's figure is lower than B's: tests over seeds, and bootstraps over images.

Each answers a question of its own. Welch's t-test and the paired t-test take seeds as drawn from all seeds; the
bootstrap over images takes the test images as drawn from all images and the seeds as they are; the bootstrap over
seeds and images draws both. The same seed shares data order, times, noise and evaluation draws between variants, so
paired differences vary less than the figures themselves.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from diffenc.evaluation.image_error import PassValues, between_images

LEVEL = 0.95
FEWEST_SEEDS = 5  # of each variant, before a difference is claimed to be more than the choice of seeds
RESAMPLES = 4_000
_AT_ONCE = 2**22  # resampled values held at a time

Values = Float[np.ndarray, " n"]
Others = Float[np.ndarray, " m"]
OneAndAll = Float[np.ndarray, "seeds images"]


@dataclasses.dataclass(frozen=True)
class TestResult:
    """What one test says of A − B.

    Attributes:
      test: its name.
      of: what n it rests on.
      difference: A − B.
      error: standard error of the difference; None where it is not known.
      interval: of LEVEL; None where it is not known.
      two_sided: p of "no difference"; None where there is none.
      lower: p against "A is lower".
    """

    test: str
    of: str
    difference: float
    error: float | None = None
    interval: tuple[float, float] | None = None
    two_sided: float | None = None
    lower: float | None = None


def test_results(
    a: Mapping[int, float], b: Mapping[int, float], by_pass: Callable[[int], PassValues]
) -> list[TestResult]:
    """Every test of A against B.

    Args:
      a, b: their figures by seed; where one is not finite, images are left out of it.
      by_pass: seed -> A − B of each image in each pass; asked of the seeds that both have.
    """
    one, two = (np.array(list(each.values()), np.float64) for each in (a, b))
    found, shared = [welch_test(one, two)], [seed for seed in a if seed in b]
    if not shared:
        return found
    one, two = (np.array([each[seed] for seed in shared], np.float64) for each in (a, b))
    found.append(paired_test(one, two))
    if np.isfinite([one, two]).all():
        differences = [by_pass(seed) for seed in shared]
        found += [bootstrap_images(differences), bootstrap_seeds_and_images(differences)]
    return found


def welch_test(a: Values, b: Others) -> TestResult:
    """Welch's t-test of two samples, which may be of different sizes and variances."""
    of = f"{len(a)} + {len(b)} runs"
    if min(len(a), len(b)) < 2:
        return _unknown("Welch", of, a, b)
    error = math.hypot(*(sample.std(ddof=1) / math.sqrt(len(sample)) for sample in (a, b)))
    both, lower = (_quietly(stats.ttest_ind, a, b, equal_var=False, alternative=side) for side in _SIDES)
    return TestResult("Welch", of, float(a.mean() - b.mean()), error, *_of_t(both, lower))


def welch_from_errors(a: tuple[float, float, int], b: tuple[float, float, int]) -> TestResult:
    """Welch's t-test from (mean, standard error, n) of both."""
    of = f"{a[2]} + {b[2]} runs, their means and errors"
    samples = [value for mean, error, n in (a, b) for value in (mean, error * math.sqrt(n), n)]
    both, lower = (
        _quietly(stats.ttest_ind_from_stats, *samples, equal_var=False, alternative=side) for side in _SIDES
    )
    ps = _finite(both.pvalue), _finite(lower.pvalue)
    return TestResult("Welch", of, a[0] - b[0], math.hypot(a[1], b[1]), None, *ps)


def paired_test(a: Values, b: Values, what: str = "pairs of runs") -> TestResult:
    """The paired t-test; a[k] and b[k] are of one seed, or of one image: `what` says so."""
    of = f"{len(a)} {what}"
    if len(a) < 2:
        return _unknown("paired t", of, a, b)
    differences = a - b
    error = float(differences.std(ddof=1) / math.sqrt(len(a)))
    both, lower = (_quietly(stats.ttest_rel, a, b, alternative=side) for side in _SIDES)
    return TestResult("paired t", of, float(differences.mean()), error, *_of_t(both, lower))


def bootstrap_images(differences: Sequence[PassValues], seed: int = 0) -> TestResult:
    """Percentile bootstrap of the mean difference over images, averaged over these seeds.

    Covers which images were drawn, not which seeds, times or noise: another seed may well fall outside. Each image's
    deviation from the mean is shrunk to the variance between images (`diffenc.evaluation.image_error`), for the spread of
    per-image means counts Monte-Carlo noise as if times were not stratified. Where that variance is not resolved there
    is no interval.
    """
    averaged = _averaged(differences)
    of = f"{averaged.values.shape[1]} images, seeds as they are"
    share = share_between_images(averaged)
    if share is None:
        return TestResult("bootstrap", of, averaged.mean)
    by_image = _shrunk(averaged.values.mean(axis=0), share)
    found = stats.bootstrap(
        (by_image,), np.mean, method="percentile", confidence_level=LEVEL, n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // by_image.size), rng=np.random.default_rng(seed),
    )  # fmt: skip
    interval = found.confidence_interval
    return TestResult(
        "bootstrap",
        of,
        averaged.mean,
        float(found.standard_error),
        (float(interval.low), float(interval.high)),
    )


def bootstrap_seeds_and_images(differences: Sequence[PassValues], seed: int = 0) -> TestResult:
    """Percentile bootstrap that draws seeds and, of all of them alike, images: both with replacement.

    Covers both, but of n seeds a bootstrap sees only (n - 1) / n of their variance: with a few seeds the interval
    is too narrow, and the paired t-test is the safer one. Images are shrunk as in `bootstrap_images`.
    """
    averaged, seeds = _averaged(differences), len(differences)
    of = f"{seeds} pairs of runs x {averaged.values.shape[1]} images"
    share = share_between_images(averaged)
    if seeds < 2 or share is None:
        return TestResult("bootstrap", of, averaged.mean)
    by_seed = np.stack([_shrunk(each.values.mean(axis=0), share) for each in differences])
    means = resampled_means(by_seed, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return TestResult("bootstrap", of, averaged.mean, float(means.std(ddof=1)), (float(low), float(high)))


def share_between_images(values: PassValues) -> float | None:
    """Returns which part of the variance of per-image means is between images; None where it is not resolved."""
    if values.values.shape[1] < 2:
        return None
    component = between_images(values.values, values.times)
    if component is None or not component.resolved:
        return None
    spread = float(values.values.mean(axis=0).var(ddof=1))
    return min(1.0, component.variance / spread) if spread else 1.0


def _averaged(differences: Sequence[PassValues]) -> PassValues:
    """The mean over seeds, whose evaluations share their draws."""
    return PassValues(np.mean([each.values for each in differences], axis=0), differences[0].times)


def _shrunk(by_image: Values, share: float) -> Values:
    mean = by_image.mean()
    return mean + np.sqrt(share) * (by_image - mean)


def resampled_means(differences: OneAndAll, random: np.random.Generator) -> Float[np.ndarray, " resamples"]:
    """The mean of `differences` over rows and columns drawn anew, RESAMPLES times."""
    seeds, images = differences.shape
    size = max(1, _AT_ONCE // images)
    means = []
    for first in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - first)
        rows = random.integers(seeds, size=(count, seeds))
        times_drawn = np.stack([np.bincount(row, minlength=seeds) for row in rows]) / seeds
        columns = random.integers(images, size=(count, images))
        by_seed = np.stack([row[columns].mean(axis=1) for row in differences], axis=1)
        means.append((times_drawn * by_seed).sum(axis=1))
    return np.concatenate(means)


def holm_correction(ps: Sequence[float | None]) -> list[float | None]:
    """Returns p of each of several comparisons, corrected after Holm (1979) for how many there are; None stays None.

    If all below some level are claimed, the probability that any claim is false is at most that level.
    """
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[place] = least
    return corrected


_SIDES = ("two-sided", "less")


def _quietly(test: Any, *given: Any, **options: Any) -> Any:
    """Samples without any spread have no p; what numpy says of that is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return test(*given, **options)


def _of_t(both: Any, lower: Any) -> tuple[tuple[float, float] | None, float | None, float | None]:
    """The interval, and both p."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = both.confidence_interval(LEVEL)
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    return (
        (float(interval.low), float(interval.high)) if known else None,
        _finite(both.pvalue),
        _finite(lower.pvalue),
    )


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _unknown(test: str, of: str, a: Values, b: Others) -> TestResult:
    """Of too few runs: the difference alone, or nothing."""
    difference = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
    return TestResult(test, of, difference)
