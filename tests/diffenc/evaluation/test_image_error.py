"""The error over images against data whose error over images is known."""

import numpy as np
import pytest

from diffenc.evaluation.image_error import PassValues, between_images, hat_functions, remove_time_dependence


def drawn(random, count, passes, times_per_image=1, of_images=0.25, noise=1.0):
    """Images' expectations, and an evaluation of them whose draws all depend on time, and on image and time together."""
    strata = np.stack(
        [[random.permutation(count) for _ in range(times_per_image)] for _ in range(passes)]
    ).transpose(0, 2, 1)
    offset = random.uniform(size=(passes, 1, times_per_image))
    times = ((strata + offset) / count + np.arange(times_per_image)) / times_per_image
    means, own = (
        of_images * (random.gamma(2.0, size=count) - 2) / np.sqrt(2),
        random.uniform(-0.4, 0.4, count),
    )
    peak = 6 * np.exp(-np.square((times - 0.3) / 0.12))
    values = (
        means[:, None]
        + (1 + own[:, None]) * peak
        + noise * (0.1 + 0.3 * peak) * random.normal(size=times.shape)
    )
    return means + 6 * 0.12 * np.sqrt(np.pi) * own, PassValues(values.mean(axis=-1), times)


@pytest.mark.parametrize(("passes", "times_per_image"), [(4, 1), (32, 1), (4, 4)])
def test_the_variance_between_images_is_unbiased_whatever_the_noise(passes, times_per_image):
    random, found, truth = np.random.default_rng(passes), [], []
    for _ in range(60):
        means, evaluation = drawn(random, 299, passes, times_per_image)
        component = between_images(evaluation.values, evaluation.times)
        assert component is not None
        found.append(component.variance)
        truth.append(means.var(ddof=1))
    error = np.std(np.subtract(found, truth)) / np.sqrt(60)
    assert abs(np.mean(found) - np.mean(truth)) < 3 * error
    assert error < 0.05 * np.mean(truth)


def test_many_times_an_image_add_no_noise_of_their_own():
    """Their means hardly differ between passes, so that a dependence on time fitted to these may be anything."""
    random, found, truth = np.random.default_rng(7), [], []
    for _ in range(60):
        means, evaluation = drawn(random, 64, 2, 64)
        component = between_images(evaluation.values, evaluation.times)
        assert component is not None
        found.append(component.variance)
        truth.append(means.var(ddof=1))
    differences = np.subtract(found, truth)
    assert abs(np.mean(differences)) < 3 * np.std(differences) / np.sqrt(60)
    assert np.std(differences) < 0.1 * np.mean(truth)


def test_an_estimate_may_be_negative_and_is_then_not_resolved():
    """Unclamped: among images that are all alike about half of the estimates are below 0."""
    random, found = np.random.default_rng(0), []
    for _ in range(200):
        evaluation = PassValues(random.normal(size=(4, 50)))
        component, error = between_images(evaluation.values), evaluation.over_images
        assert component is not None
        found.append(component.variance)
        if component.variance < 0:
            assert error.se is error.uncertainty is None
            assert error.upper > 0
    assert 0.4 < np.mean(np.array(found) < 0) < 0.65
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)


def test_32_and_128_passes_agree_within_their_stated_uncertainty():
    random = np.random.default_rng(1)
    for _ in range(5):
        means, evaluation = drawn(random, 299, 128)
        some = PassValues(evaluation.values[:32], evaluation.times[:32])  # pyright: ignore[reportOptionalSubscript]
        few, many = some.over_images, evaluation.over_images
        assert few.se is not None
        assert many.se is not None
        assert abs(few.se - many.se) < 2 * few.uncertainty  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
        assert many.se == pytest.approx(means.std(ddof=1) / np.sqrt(299), rel=0.06)
        assert few.upper > 1.3 * few.se
        assert some.over_images == few


@pytest.mark.slow
def test_the_uncertainty_is_the_spread_over_samples_of_images():
    random, errors, uncertainties = np.random.default_rng(2), [], []
    for _ in range(200):
        _, evaluation = drawn(random, 200, 16)
        error = evaluation.over_images
        assert error.se is not None
        errors.append(error.se)
        uncertainties.append(error.uncertainty)
    assert np.mean(uncertainties) == pytest.approx(np.std(errors), rel=0.25)


@pytest.mark.parametrize("passes", [2, 4, 16])
def test_the_noise_is_the_spread_over_draws_of_the_same_images(passes):
    random = np.random.default_rng(passes)
    of_images, scale = 0.5 * random.normal(size=60), random.uniform(0.5, 1.5, 60)
    found = [between_images(of_images + scale * random.normal(size=(passes, 60))) for _ in range(800)]
    variances, noises = zip(*((one.variance, one.noise) for one in found if one), strict=True)
    assert np.sqrt(np.mean(np.square(noises))) == pytest.approx(np.std(variances), rel=0.12)


def test_values_without_noise_have_the_plain_error():
    of_images = np.random.default_rng(3).gamma(2.0, size=7)
    error = PassValues(
        np.tile(of_images, (3, 1)), np.random.default_rng(4).uniform(size=(3, 7, 1))
    ).over_images
    plain = np.sqrt(np.sum(np.square(of_images - of_images.mean())) / 6 / 7)
    assert (error.se, error.upper) == pytest.approx((plain, plain), rel=1e-9)


def test_a_single_pass_or_values_that_are_not_finite_resolve_nothing():
    one = PassValues(np.random.default_rng(5).normal(size=(1, 9)))
    assert one.over_images.se is None
    assert one.over_images.upper == pytest.approx(one.values.std(ddof=1) / 3)
    assert between_images(np.array([[1.0, np.nan], [1.0, 2.0]])) is None


def test_what_is_removed_is_the_dependence_that_images_share():
    random = np.random.default_rng(6)
    times = random.uniform(size=(8, 400, 2))
    of_images, shared = random.normal(size=400), np.abs(times - 0.5).mean(axis=2)
    left = remove_time_dependence(of_images + 3 * shared, times)
    assert np.std(left - left.mean(axis=0)) < 0.02 * np.std(3 * shared)
    np.testing.assert_allclose(np.corrcoef(left.mean(axis=0), of_images)[0, 1], 1, atol=1e-3)


def test_hat_functions_reproduce_lines_and_sum_to_one():
    times = np.array([[0.0, 1.0], [0.25, 0.5], [np.nextafter(1, 0), 0.99]])
    basis = hat_functions(times, 5)
    np.testing.assert_allclose(basis.sum(axis=1), 1)
    np.testing.assert_allclose(basis @ (3 * np.linspace(0, 1, 5) - 1), 3 * times.mean(axis=1) - 1)
