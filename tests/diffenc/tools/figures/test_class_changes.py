"""Distances between classes against one-way analysis of variance written out, and against data of known spread."""

import jax
import numpy as np
import pytest

from diffenc.tools.figures import class_changes
from diffenc.tools.figures.class_changes import MIN_IMAGES, class_distances


def anova(values, labels):
    """Variance of class means over that within classes, from the estimates of variance components, by loops."""
    groups = [values[labels == label] for label in np.unique(labels)]
    sizes = np.array([len(group) for group in groups])
    grand = values.mean(axis=0)
    between = sum(len(g) * np.sum((g.mean(axis=0) - grand) ** 2) for g in groups) / (len(groups) - 1)
    within = sum(np.sum((g - g.mean(axis=0)) ** 2) for g in groups) / (len(values) - len(groups))
    size = (len(values) - np.sum(sizes**2) / len(values)) / (len(groups) - 1)
    return (between - within) / size / within


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Quicker than as many permutations as a figure takes."""
    monkeypatch.setattr(class_changes, "PERMUTATIONS", 99)


@pytest.fixture
def unbalanced():
    """Images [n, t, 2, 3, 1] of three classes of 4, 3 and 6, in no order."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat([2, 5, 7], [4, 3, 6]))
    images = random.normal(size=(13, 2, 2, 3, 1)) + 0.7 * labels[:, None, None, None, None]
    return images, labels


def test_the_ratio_and_its_error_by_the_definitions(unbalanced):
    images, labels = unbalanced
    for time, got in enumerate(class_distances(images, labels, seed=0)):
        values = images[:, time].reshape(13, -1)
        assert got.ratio == pytest.approx(anova(values, labels), rel=1e-9)
        left = [anova(np.delete(values, k, axis=0), np.delete(labels, k)) for k in range(13)]
        error = np.sqrt(12 / 13 * np.sum((np.array(left) - np.mean(left)) ** 2))
        assert got.error == pytest.approx(error, rel=1e-9)


def test_classes_of_known_distance():
    """Class means with a variance of 4 around nothing, images with 1 around them: 4, over 80 classes of 3."""
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(80), 3)
    means = 2 * random.normal(size=(80, 1, 4, 4, 1))
    images = means[labels] + random.normal(size=(240, 1, 4, 4, 1))
    (got,) = class_distances(images, labels, seed=0)
    assert abs(got.ratio - 4) < 4 * 4 * np.sqrt(2 / (80 * 16) + 2 / (160 * 16))
    assert got.p_value == 1 / 100


def test_the_error_is_the_spread_of_many_sets():
    """Of images drawn anew in four fixed classes."""
    random = np.random.default_rng(2)
    labels = np.repeat(np.arange(4), 12)
    means = random.normal(size=(4, 1, 2, 2, 1))
    sets = [
        class_distances(means[labels] + random.normal(size=(48, 1, 2, 2, 1)), labels, 0)[0] for _ in range(60)
    ]
    spread = np.std([one.ratio for one in sets], ddof=1)
    assert np.mean([one.error for one in sets]) == pytest.approx(spread, rel=0.3)


def test_without_classes_the_ratio_is_about_nothing_and_p_is_uniform():
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(3), 6)
    sets = [class_distances(random.normal(size=(18, 1, 2, 2, 1)), labels, seed)[0] for seed in range(60)]
    ratios, p_values = (np.array([getattr(one, name) for one in sets]) for name in ("ratio", "p_value"))
    assert abs(ratios.mean()) < 4 * ratios.std(ddof=1) / np.sqrt(60)
    assert abs(p_values.mean() - 0.5) < 4 / np.sqrt(12 * 60)
    assert 0 < p_values.min() < 0.15


def test_images_of_a_class_that_are_all_alike_have_no_spread_to_compare_with():
    labels = np.repeat([0, 1], 3)
    images = np.ones((6, 1, 2, 2, 1)) * labels[:, None, None, None, None]
    assert np.isnan(class_distances(images, labels, 0)[0].ratio)


def bright(x, log_snr):
    """Brightens an image by its own mean pixel's sign, late alone: the classes are dark and bright images."""
    sign = jax.numpy.sign(x.mean(axis=(1, 2, 3), keepdims=True))
    return x + jax.nn.sigmoid(-20 * (log_snr + 4)) * (sign + 0.1 * x)


def test_an_encoder_that_tells_dark_from_bright(subject_of):
    random = np.random.default_rng(4)
    labels = np.repeat([0, 1], 8)
    images = (random.integers(0, 100, (16, 4, 4, 1)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    subject = subject_of(bright, images, labels, times=(0.1, 1.0))
    numbers = class_changes.measure_class_changes(subject)
    x = (2.0 * images + 1) / 256 - 1
    late = 1 / (1 + np.exp(-20.0)) / 0.1  # but for 1e-9 at t = 0.9
    added = late * (np.where(labels, 1, -1)[:, None, None, None] + 0.1 * x)
    np.testing.assert_allclose(
        numbers.record["change_ratio"][1], anova(added.reshape(16, -1), labels), rtol=1e-5
    )
    np.testing.assert_allclose(numbers.record["x_ratio"], [anova(x.reshape(16, -1), labels)], rtol=1e-9)
    assert numbers.record["change_p_value"][1] == 0.01
    means = np.array([added[labels == label].mean(axis=0)[..., 0] for label in (0, 1)])
    np.testing.assert_allclose(numbers.arrays["mean_change"][:, 1], means, rtol=1e-5)
    np.testing.assert_allclose(numbers.arrays["mean_x"][1], x[8:].mean(axis=0))
    assert (numbers.record["rows"], numbers.record["num_of_class"]) == (["class 0", "class 1"], [8, 8])
    maps, curves = class_changes.plot_class_changes(numbers, "dots test, step 7").axes
    assert [text.get_text() for text in maps.get_yticklabels()] == ["class 0", "class 1"]
    np.testing.assert_allclose(np.asarray(curves.lines[0].get_ydata()), numbers.record["change_ratio"])


def test_of_what_only_shrinks_classes_are_as_far_apart_as_images(subject_of, images_of):
    labels = np.arange(20) % 3
    subject = subject_of(lambda x, log_snr: jax.nn.sigmoid(log_snr) * x, images_of(5, 20), labels)
    got = class_changes.measure_class_changes(subject).record
    np.testing.assert_allclose(got["change_ratio"], got["x_ratio"] * 10, rtol=1e-6)
    assert np.isnan(got["learned_ratio"]).all()


@pytest.mark.parametrize(
    ("formula", "labels", "note"),
    [
        (bright, [0] * 6, "has no classes"),
        (lambda x, log_snr: x, [0, 0, 0, 1, 1, 1], "changes nothing"),
        (bright, [0, 0, 0, 1, 1, 2], f"Fewer than two classes have {MIN_IMAGES} of the 6 images"),
    ],
)
def test_where_there_is_nothing_to_compare_it_says_why(subject_of, images_of, formula, labels, note):
    record = class_changes.measure_class_changes(subject_of(formula, images_of(6, 6), labels)).record
    assert note in record["note"]


def test_a_class_of_too_few_images_is_left_out(subject_of, images_of):
    subject = subject_of(bright, images_of(7, 8), [0, 0, 0, 1, 1, 1, 2, 2])
    assert class_changes.measure_class_changes(subject).record["classes"] == [0, 1]
