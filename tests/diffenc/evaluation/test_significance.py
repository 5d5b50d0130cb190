"""Tests and intervals against textbook formulas, exact enumeration, and their coverage on data made for it."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from diffenc.evaluation import significance
from diffenc.evaluation.image_error import PassValues


def exact(differences):
    """By seed, differences of images [seeds, images] that two passes agree on: all their spread is over images."""
    return [PassValues(np.stack([row, row])) for row in np.asarray(differences)]


def p_of_t(t, degrees):
    """P(T < t) of Student's distribution, by its relation to the incomplete beta function."""
    tail = special.betainc(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2
    return tail if t < 0 else 1 - tail


def by_hand(mean, error, degrees):
    """p two-sided and one-sided, of a difference of `mean`."""
    lower = p_of_t(mean / error, degrees)
    return 2 * min(lower, 1 - lower), lower


def test_the_one_sided_test_gives_the_papers_p():
    found = significance.welch_from_errors((2.620, 0.006, 3), (2.641, 0.003, 3))  # table 2
    assert found.lower == pytest.approx(0.027, abs=5e-4)
    assert found.two_sided == pytest.approx(0.053, abs=5e-4)
    assert found.difference / (found.error or 0) == pytest.approx(-3.13, abs=5e-3)


def test_welch_is_the_textbooks():
    a, b = np.array([2.1, 2.4, 1.9]), np.array([2.6, 2.5, 2.9, 2.8, 2.55])
    parts = [np.var(sample, ddof=1) / len(sample) for sample in (a, b)]
    error = math.sqrt(sum(parts))
    degrees = sum(parts) ** 2 / sum(part**2 / (len(s) - 1) for part, s in zip(parts, (a, b), strict=True))
    both, lower = by_hand(a.mean() - b.mean(), error, degrees)
    found = significance.welch_test(a, b)
    assert found.of == "3 + 5 runs"
    assert (found.difference, found.error) == pytest.approx((a.mean() - b.mean(), error))
    assert (found.two_sided, found.lower) == pytest.approx((both, lower))
    half = error * special.stdtrit(degrees, 0.975)
    assert found.interval == pytest.approx((found.difference - half, found.difference + half))
    errors = [(s.mean(), math.sqrt(part), len(s)) for s, part in zip((a, b), parts, strict=True)]
    again = significance.welch_from_errors(*errors)
    assert (again.two_sided, again.lower) == pytest.approx((both, lower))


def test_pairing_takes_out_what_seeds_share():
    shared = np.array([0.0, 5.0, -3.0, 1.0])
    a, b = (shared + np.array(own) for own in ([0.1, 0.2, 0.1, 0.3], [0.4, 0.4, 0.5, 0.6]))
    differences = np.array([-0.3, -0.2, -0.4, -0.3])
    error = math.sqrt(((differences - differences.mean()) ** 2).sum() / (4 * 3))
    both, lower = by_hand(differences.mean(), error, 3)
    found = significance.paired_test(a, b)
    assert found.of == "4 pairs of runs"
    assert (found.difference, found.error) == pytest.approx((-0.3, error))
    assert (found.two_sided, found.lower) == pytest.approx((both, lower))
    half = error * special.stdtrit(3, 0.975)
    assert found.interval == pytest.approx((-0.3 - half, -0.3 + half))
    assert (significance.welch_test(a, b).two_sided or 0) > 0.9


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("test", [significance.welch_test, significance.paired_test])
def test_of_less_than_two_runs_there_is_no_error(test, count):
    found = test(np.full(count, 2.0), np.full(count, 1.5))
    assert (found.error, found.interval, found.two_sided, found.lower) == (None,) * 4
    assert found.difference == 0.5 if count else math.isnan(found.difference)


def test_runs_that_do_not_differ_have_no_p():
    same = np.full(3, 2.0)
    for found in (significance.welch_test(same, same), significance.paired_test(same, same)):
        assert (found.difference, found.error, found.two_sided, found.lower) == (0, 0, None, None)


def test_a_run_that_is_not_finite_gives_no_p():
    a, b = np.array([1.0, math.nan, 2.0]), np.array([1.0, 2.0, 3.0])
    for found in (significance.welch_test(a, b), significance.paired_test(a, b)):
        assert math.isnan(found.difference)
        assert (found.interval, found.two_sided, found.lower) == (None, None, None)
    found = significance.bootstrap_images(exact([[1.0, math.nan]]))
    assert (found.error, found.interval) == (None, None)


def weights(n):
    """How often each of n is drawn, in all n^n draws."""
    return np.array([np.bincount(draw, minlength=n) / n for draw in itertools.product(range(n), repeat=n)])


def test_the_bootstrap_over_images_is_that_of_all_draws():
    differences = np.array([[1.0, 4.0, -2.0, 0.5], [0.0, 2.0, 0.0, 1.5]])
    means = weights(4) @ differences.mean(axis=0)
    found = significance.bootstrap_images(exact(differences))
    assert found.difference == pytest.approx(differences.mean())
    assert found.error == pytest.approx(means.std(), rel=0.05)
    assert found.interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.15)


def test_the_bootstrap_over_both_is_that_of_all_draws(monkeypatch):
    differences = np.array([[1.0, 4.0, -2.0], [0.0, 2.0, 0.5], [9.0, 7.0, 8.0]])
    means = (weights(3) @ differences @ weights(3).T).ravel()
    monkeypatch.setattr(significance, "_BATCH_VALUES", 3 * 700)  # several parts, the last smaller
    found = significance.bootstrap_seeds_and_images(exact(differences))
    assert found.of == "3 pairs of runs x 3 images"
    assert found.difference == pytest.approx(differences.mean())
    assert found.error == pytest.approx(means.std(), rel=0.05)
    assert found.interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.3)
    assert len(significance.resampled_means(differences, np.random.default_rng(0))) == significance.RESAMPLES


def test_the_bootstrap_over_both_draws_the_same_images_for_every_seed():
    of_images = np.array(
        [0.0, 6.0, -6.0, 3.0]
    )  # alike for all seeds, so images drawn anew for each would average out
    differences = of_images + np.array([[0.0], [0.1], [-0.1]])
    means = (weights(3) @ differences @ weights(4).T).ravel()
    found = significance.bootstrap_seeds_and_images(exact(differences))
    assert found.error == pytest.approx(means.std(), rel=0.05)


def test_of_one_seed_or_one_image_nothing_can_be_drawn():
    one_seed = significance.bootstrap_seeds_and_images(exact([[1.0, 2.0]]))
    one_image = significance.bootstrap_images(exact([[1.0], [2.0]]))
    for found in (one_seed, one_image):
        assert (found.difference, found.error, found.interval) == (1.5, None, None)


def coverage(test, seeds, images, spread, rounds=120):
    """How often the interval holds 0, the true difference. `spread`: of seeds, and of images."""
    random, hits = np.random.default_rng(5), 0
    for number in range(rounds):
        of_seeds, of_images = random.normal(size=(seeds, 1)), random.gamma(1.0, size=(1, images)) - 1
        noise = 0.3 * random.normal(size=(seeds, images))
        low, high = test(exact(spread[0] * of_seeds + spread[1] * of_images + noise), seed=number).interval
        hits += low <= 0 <= high
    return hits / rounds


def test_the_intervals_cover_what_they_say_and_no_more(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 400)
    images, both = significance.bootstrap_images, significance.bootstrap_seeds_and_images
    assert coverage(images, 3, 60, (0.0, 1.0)) > 0.88  # images alone vary
    assert coverage(images, 3, 60, (1.0, 1.0)) < 0.6  # another seed falls outside
    assert coverage(both, 12, 60, (1.0, 1.0)) > 0.87
    assert 0.6 < coverage(both, 3, 60, (1.0, 0.3)) < 0.9  # too narrow with few seeds, as said


def test_the_same_numbers_come_out_again():
    differences = exact(np.random.default_rng(0).normal(size=(2, 30)))
    for test in (significance.bootstrap_images, significance.bootstrap_seeds_and_images):
        assert test(differences) == test(differences)
        assert test(differences).interval != test(differences, seed=1).interval


def test_each_agrees_with_scipy():
    random = np.random.default_rng(1)
    a, b = random.normal(2.0, 0.1, 7), random.normal(2.1, 0.2, 7)
    for found, theirs in (
        (significance.welch_test(a, b), stats.ttest_ind(a, b, equal_var=False)),
        (significance.paired_test(a, b), stats.ttest_1samp(a - b, 0.0)),
    ):
        low, high = theirs.confidence_interval(0.95)
        assert found.two_sided == pytest.approx(theirs.pvalue, rel=1e-12)  # pyright: ignore[reportAttributeAccessIssue]
        assert found.interval == pytest.approx((low, high), rel=1e-12)


def test_the_interval_over_images_leaves_monte_carlo_noise_out():
    """Noise with twice the images' spread in each of 64 passes, and an error that is that of the images alone."""
    random, wide, narrow = np.random.default_rng(3), [], []
    for _ in range(20):
        of_images = random.normal(size=200)
        by_pass = of_images + 2 * random.normal(size=(64, 200)) + 5
        found = significance.bootstrap_images([PassValues(by_pass)])
        narrow.append((found.error or 0) / (of_images.std(ddof=1) / np.sqrt(200)))
        wide.append(by_pass.mean(axis=0).std(ddof=1) / of_images.std(ddof=1))
    assert np.mean(narrow) == pytest.approx(1.0, abs=0.01)
    assert np.mean(wide) == pytest.approx(math.sqrt(1 + 4 / 64), abs=0.01)


@pytest.mark.parametrize("test", [significance.bootstrap_images, significance.bootstrap_seeds_and_images])
def test_where_noise_hides_the_images_there_is_no_interval(test):
    random = np.random.default_rng(4)
    drowned = [PassValues(0.01 * random.normal(size=50) + random.normal(size=(4, 50))) for _ in range(2)]
    one_pass = [PassValues(random.normal(size=(1, 50))) for _ in range(2)]
    for given in (drowned, one_pass):
        found = test(given)
        assert (found.error, found.interval) == (None, None)
        assert found.difference == pytest.approx(np.mean([each.values for each in given]))


def test_all_tests_of_two_sets_of_seeds():
    a, b = {0: 2.0, 1: 2.2, 5: 2.1}, {1: 2.5, 0: 2.4, 7: 2.3}
    images = dict(enumerate(exact([[-0.5, -0.3], [-0.2, -0.4]])))
    welch, paired, over_images, both = significance.test_results(a, b, images.__getitem__)
    assert (welch.of, welch.difference) == ("3 + 3 runs", pytest.approx(-0.3))
    assert (paired.of, paired.difference) == ("2 pairs of runs", pytest.approx(-0.35))
    assert (over_images.of, over_images.difference) == ("2 images, seeds as they are", pytest.approx(-0.35))
    assert (both.of, both.difference) == ("2 pairs of runs x 2 images", pytest.approx(-0.35))
    (alone,) = significance.test_results(a, {9: 2.0}, images.__getitem__)
    assert alone.test == "Welch"
    assert len(significance.test_results(a, {**b, 1: math.nan}, images.__getitem__)) == 2


def test_pairs_of_images_are_called_so():
    found = significance.paired_test(
        np.array([1.0, 2.0]), np.array([1.5, 2.6]), "images, each under both runs"
    )
    assert found.of == "2 images, each under both runs"


@pytest.mark.parametrize(
    ("ps", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; 1 x 0.04, no less than that of 0.03
        ([0.02], [0.02]),
        ([0.5, None, 0.9], [1.0, None, 1.0]),
        ([None], [None]),
        ([], []),
    ],
)
def test_holm_by_hand(ps, corrected):
    assert significance.holm_correction(ps) == pytest.approx(corrected)


def test_holm_claims_a_false_difference_as_seldom_as_it_says():
    """Of 4,000 families of ten true null hypotheses, at most 5 % have one claimed; uncorrected it would be 40 %."""
    ps = np.random.default_rng(0).uniform(size=(4_000, 10))
    claimed = [min(p for p in significance.holm_correction(list(row)) if p is not None) <= 0.05 for row in ps]
    assert 0.03 < np.mean(claimed) < 0.06
    assert np.mean(ps.min(axis=1) <= 0.05) > 0.35
