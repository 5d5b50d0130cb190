"""What figures are of: which images, and what encoders of known formulas make of them."""

import dataclasses

import jax
import numpy as np
import pytest

from diffenc.config.figure_settings import Figures
from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT, ClassConditional
from diffenc.tools.figures import figure_data as figure_subject
from diffenc.tools.figures.figure_data import encode_images, map_images, select_shown, spread_evenly
from diffenc_plugins.conditionings import ByClass

TIMES = (0.2, 0.7, 1.0)


def alpha_squared(t):
    """At 13.3 - 18.3 t, in numpy."""
    return 1 / (1 + np.exp(-(13.3 - 18.3 * np.asarray(t))))


def scaled(images):
    return (2.0 * images + 1) / 256 - 1


def test_an_encoder_of_known_formula(subject_of, images_of):
    """x_phi = alpha^2 x + sigma^2 x^2: every number by the definitions, in numpy."""
    images = images_of(0, 5)
    subject = subject_of(
        lambda x, log_snr: jax.nn.sigmoid(log_snr) * x + jax.nn.sigmoid(-log_snr) * x**2,
        images,
        times=TIMES,
        gap=0.2,
    )
    got = encode_images(subject, subject.many, "test")
    x, t = scaled(images), np.array(TIMES)

    def x_phi(t):
        a = alpha_squared(t)[:, None, None, None]
        return a * x[:, None] + (1 - a) * x[:, None] ** 2

    np.testing.assert_allclose(got.x, x, rtol=1e-15)
    np.testing.assert_allclose(got.x_phi, x_phi(t), rtol=1e-12)
    np.testing.assert_allclose(got.change, (x_phi(t) - x_phi(t - 0.2)) / 0.2, atol=1e-12)
    rest = -(alpha_squared(t) - alpha_squared(t - 0.2)) / 0.2
    np.testing.assert_allclose(got.learned, rest[:, None, None, None] * x[:, None] ** 2, atol=1e-12)
    assert got.change.dtype == np.float64


def test_what_only_shrinks_has_no_learned_part(subject_of, images_of):
    subject = subject_of(lambda x, log_snr: jax.nn.sigmoid(log_snr) * x, images_of(1, 3))
    got = encode_images(subject, subject.many, "test")
    assert got.change.any()
    np.testing.assert_array_equal(got.learned, 0)


def test_what_does_nothing_changes_nothing(subject_of, images_of):
    subject = subject_of(lambda x, log_snr: x, images_of(1, 3))
    np.testing.assert_array_equal(subject.many_encoded.change, 0)


def test_parameters_may_be_bound_in_float32_and_images_come_in_several_batches(subject_of, images_of):
    """70 images are 3 batches of 32, the last filled up; each image's number is its own."""
    images = images_of(2, 70, 2, 2)
    subject = subject_of(lambda x, log_snr: x, images)
    got = map_images(
        subject,
        subject.many,
        np.array([1.0, 2.0]),
        lambda encode, x, log_snr: {"first": x[:, 0, 0, 0] + log_snr},
        "test",
    )
    np.testing.assert_allclose(got["first"], scaled(images)[:, 0, 0] + [1.0, 2.0], rtol=1e-15)


def test_one_of_each_class_is_shown_in_order_of_classes(subject_of, images_of):
    labels = [3, 3, 1, 0, 3, 1, 0, 5]  # no 2, no 4
    subject = subject_of(lambda x, log_snr: x, images_of(3, 8, 2, 2), labels)
    shown = figure_subject.read_labels(subject.shown)
    assert shown.tolist() == [0, 1, 3, 5]
    chosen = {tuple(select_shown(subject.experiment.dataset, Figures(seed=seed))) for seed in range(20)}
    assert len(chosen) > 5, "the seed chooses among a class's images"
    assert all({labels[place] for place in one} == {0, 1, 3, 5} for one in chosen)


def test_of_many_classes_ten_are_shown_evenly_spread(subject_of, images_of):
    labels = np.arange(600) % 100
    subject = subject_of(lambda x, log_snr: x, images_of(4, 600, 2, 2), labels)
    assert figure_subject.read_labels(subject.shown).tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert spread_evenly(np.array([4, 7, 9])).tolist() == [4, 7, 9]


def test_images_without_classes_are_the_first_ten_of_the_seed(subject_of, images_of):
    subject = subject_of(lambda x, log_snr: x, images_of(5, 30, 2, 2))
    one, other = (select_shown(subject.experiment.dataset, Figures(seed=seed)) for seed in (0, 1))
    assert len(set(one.tolist())) == 10
    assert one.tolist() != other.tolist()


def test_images_chosen_by_place_are_shown_in_that_order(subject_of, images_of):
    images = images_of(6, 9, 2, 2)
    subject = subject_of(lambda x, log_snr: x, images, images=(7, 2))
    np.testing.assert_array_equal(subject.shown[0]["image"], images[7])
    np.testing.assert_array_equal(subject.shown[1]["image"], images[2])
    with pytest.raises(
        UserError, match=r"^figures\.images: there is no image 9 in test: it has 9, from 0 on$"
    ):
        select_shown(subject.experiment.dataset, dataclasses.replace(subject.settings, images=(2, 9)))


@dataclasses.dataclass(frozen=True)
class Told(ClassConditional):
    """x times what it is told."""

    classes: int = 4

    def init(self, key, x, log_snr):
        return {}

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        assert context.condition is not None
        return x * context.condition[:, None, None, None]


def test_an_encoder_is_told_each_images_class(subject_of, images_of):
    images, labels = images_of(7, 40, 2, 2), np.arange(40) % 4
    subject = subject_of(lambda x, log_snr: x, images, labels)
    model = dataclasses.replace(subject.experiment.model, encoder=Told(), conditioning=ByClass())
    subject = dataclasses.replace(subject, experiment=dataclasses.replace(subject.experiment, model=model))
    told = subject.many_encoded.x_phi[:, 0] / scaled(images)
    np.testing.assert_allclose(told, np.ones((40, 2, 2, 1)) * (labels + 1)[:, None, None, None], rtol=1e-12)
