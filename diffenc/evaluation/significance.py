"""Tests whether A has a lower value than B: t-tests over seeds, and bootstraps over images.

They answer different questions. Welch's t-test and the paired t-test treat seeds as a sample; the bootstrap over images
treats the test images as a sample and the seeds as fixed; the bootstrap over seeds and images treats both as samples.
Variants with the same seed share data order, times, noise and evaluation draws, so paired differences vary less than
the values themselves.
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
MIN_SEEDS = 5  # of each variant, to claim a difference beyond the choice of seeds
RESAMPLES = 4_000
_BATCH_VALUES = 2**22  # resampled values in memory at a time

Values = Float[np.ndarray, " n"]
Others = Float[np.ndarray, " m"]
BySeed = Float[np.ndarray, "seeds images"]


@dataclasses.dataclass(frozen=True)
class TestResult:
    """Result of a test of A − B.

    Attributes:
      test: name of the test.
      of: description of the sample and its size.
      difference: A − B.
      error: standard error of the difference; None if unknown.
      interval: confidence interval at LEVEL; None if unknown.
      two_sided: p-value of "no difference"; None if undefined.
      lower: one-sided p-value, small if A is lower; None if undefined.
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
    """Returns the results of all tests of A against B.

    Args:
      a, b: values by seed; if one is not finite, the bootstraps are omitted.
      by_pass: seed -> A − B of each image in each pass; called for the shared seeds only.
    """
    one, two = (np.array(list(each.values()), np.float64) for each in (a, b))
    # Unpaired first, over all seeds; the paired tests use the shared seeds alone.
    results, shared = [welch_test(one, two)], [seed for seed in a if seed in b]
    if not shared:
        return results
    one, two = (np.array([each[seed] for seed in shared], np.float64) for each in (a, b))
    results.append(paired_test(one, two))
    # A bootstrap of NaN has no interval; the t-tests report NaN by themselves.
    if np.isfinite([one, two]).all():
        differences = [by_pass(seed) for seed in shared]
        results += [bootstrap_images(differences), bootstrap_seeds_and_images(differences)]
    return results


def welch_test(a: Values, b: Others) -> TestResult:
    """Returns Welch's t-test of two samples of possibly different sizes and variances."""
    of = f"{len(a)} + {len(b)} runs"
    if min(len(a), len(b)) < 2:
        return _unknown("Welch", of, a, b)
    # The samples are independent, so their squared errors add.
    error = math.hypot(*(sample.std(ddof=1) / math.sqrt(len(sample)) for sample in (a, b)))
    both, lower = (_run_test(stats.ttest_ind, a, b, equal_var=False, alternative=side) for side in _SIDES)
    return TestResult("Welch", of, float(a.mean() - b.mean()), error, *_t_statistics(both, lower))


def welch_from_errors(a: tuple[float, float, int], b: tuple[float, float, int]) -> TestResult:
    """Returns Welch's t-test from (mean, standard error, n) of each sample."""
    of = f"{a[2]} + {b[2]} runs, their means and errors"
    samples = [value for mean, error, n in (a, b) for value in (mean, error * math.sqrt(n), n)]
    both, lower = (
        _run_test(stats.ttest_ind_from_stats, *samples, equal_var=False, alternative=side) for side in _SIDES
    )
    ps = _finite(both.pvalue), _finite(lower.pvalue)
    return TestResult("Welch", of, a[0] - b[0], math.hypot(a[1], b[1]), None, *ps)


def paired_test(a: Values, b: Values, unit: str = "pairs of runs") -> TestResult:
    """Returns the paired t-test; a[k] and b[k] share a seed, or an image, as named by `unit`."""
    of = f"{len(a)} {unit}"
    if len(a) < 2:
        return _unknown("paired t", of, a, b)
    differences = a - b
    error = float(differences.std(ddof=1) / math.sqrt(len(a)))
    both, lower = (_run_test(stats.ttest_rel, a, b, alternative=side) for side in _SIDES)
    return TestResult("paired t", of, float(differences.mean()), error, *_t_statistics(both, lower))


def bootstrap_images(differences: Sequence[PassValues], seed: int = 0) -> TestResult:
    """Returns the percentile bootstrap over images of the mean difference, averaged over the given seeds.

    The interval covers the choice of images, not that of seeds, times or noise: another seed may fall outside. Deviations of
    images from the mean are shrunk to the variance between images (`diffenc.evaluation.image_error`), since the spread
    of per-image means also contains Monte-Carlo noise. There is no interval if that variance is not resolved.
    """
    averaged = average_seeds(differences)
    of = f"{averaged.values.shape[1]} images, seeds as they are"
    share = share_between_images(averaged)
    if share is None:
        return TestResult("bootstrap", of, averaged.mean)
    # Without shrinking, the bootstrap would resample Monte-Carlo
    # noise as if it were a difference between images.
    by_image = _shrink(averaged.values.mean(axis=0), share)
    # A fixed seed: the same evaluations give the same interval.
    result = stats.bootstrap(
        (by_image,), np.mean, method="percentile", confidence_level=LEVEL, n_resamples=RESAMPLES,
        batch=max(1, _BATCH_VALUES // by_image.size), rng=np.random.default_rng(seed),
    )  # fmt: skip
    interval = result.confidence_interval
    return TestResult(
        "bootstrap",
        of,
        averaged.mean,
        float(result.standard_error),
        (float(interval.low), float(interval.high)),
    )


def bootstrap_seeds_and_images(differences: Sequence[PassValues], seed: int = 0) -> TestResult:
    """Returns the percentile bootstrap that resamples seeds and images, the same images for all seeds.

    The interval covers the choice of both. But a bootstrap of n seeds has only (n - 1) / n of their variance: with few
    seeds the interval is too narrow; prefer the paired t-test. Images are shrunk as in `bootstrap_images`.
    """
    averaged, seeds = average_seeds(differences), len(differences)
    of = f"{seeds} pairs of runs x {averaged.values.shape[1]} images"
    share = share_between_images(averaged)
    # One seed cannot be resampled: its bootstrap would claim no variance between seeds.
    if seeds < 2 or share is None:
        return TestResult("bootstrap", of, averaged.mean)
    by_seed = np.stack([_shrink(each.values.mean(axis=0), share) for each in differences])
    means = resampled_means(by_seed, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return TestResult("bootstrap", of, averaged.mean, float(means.std(ddof=1)), (float(low), float(high)))


def share_between_images(values: PassValues) -> float | None:
    """Returns the share of the variance of per-image means that is between images; None if it is not resolved."""
    if values.values.shape[1] < 2:
        return None
    component = between_images(values.values, values.times)
    if component is None or not component.resolved:
        return None
    # At most 1: the estimate may exceed the plain variance by chance.
    total = float(values.values.mean(axis=0).var(ddof=1))
    return min(1.0, component.variance / total) if total else 1.0


def average_seeds(differences: Sequence[PassValues]) -> PassValues:
    """Returns the mean over seeds, all of which were evaluated with the same draws."""
    return PassValues(np.mean([each.values for each in differences], axis=0), differences[0].times)


def _shrink(by_image: Values, share: float) -> Values:
    """Returns `by_image` with deviations from the mean scaled by sqrt(share), so that their variance is scaled by `share`."""
    mean = by_image.mean()
    return mean + np.sqrt(share) * (by_image - mean)


def resampled_means(differences: BySeed, random: np.random.Generator) -> Float[np.ndarray, " resamples"]:
    """Returns RESAMPLES means of `differences`, each over seeds and images drawn with replacement."""
    seeds, images = differences.shape
    size = max(1, _BATCH_VALUES // images)
    means = []
    for first in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - first)
        rows = random.integers(seeds, size=(count, seeds))
        # Seeds enter as weights, how often each was drawn: no array of resamples x seeds x images is needed.
        weights = np.stack([np.bincount(row, minlength=seeds) for row in rows]) / seeds
        # The same images for all seeds of a resample: images are common to all runs.
        columns = random.integers(images, size=(count, images))
        by_seed = np.stack([row[columns].mean(axis=1) for row in differences], axis=1)
        means.append((weights * by_seed).sum(axis=1))
    return np.concatenate(means)


def holm_correction(ps: Sequence[float | None]) -> list[float | None]:
    """Returns the p-values of several comparisons, corrected for their number after Holm (1979); None stays None.

    If all corrected values below a level are claimed, the probability of any false claim is at most that level.
    """
    known = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    running_max = 0.0  # corrected values must keep the order of the p-values
    for rank, (p, index) in enumerate(known):
        # The smallest p of n is multiplied by n, the next by n - 1, ...
        running_max = max(running_max, min(1.0, (len(known) - rank) * p))
        corrected[index] = running_max
    return corrected


_SIDES = ("two-sided", "less")


def _run_test(test: Any, *samples: Any, **options: Any) -> Any:
    """Calls a test without numpy's warnings about samples of zero variance, for which p is NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return test(*samples, **options)


def _t_statistics(both: Any, lower: Any) -> tuple[tuple[float, float] | None, float | None, float | None]:
    """Returns the confidence interval, the two-sided and the one-sided p-value."""
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
    """Returns the result of a test with too few runs: the difference alone, NaN if a sample is empty."""
    difference = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
    return TestResult(test, of, difference)
