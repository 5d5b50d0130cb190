import dataclasses

import numpy as np
import pytest

from diffenc.data.array_dataset import ArrayDataset, DatasetSpec, check_images, check_labels
from diffenc.errors import UserError

KIND = DatasetSpec("dots", (4, 4, 1), 5, 3)
IMAGES = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1) % 5


def test_good_images_pass_as_they_are():
    assert check_images(IMAGES, KIND) is IMAGES
    np.testing.assert_array_equal(check_images(IMAGES[:1], KIND), IMAGES[:1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), "images are of float32: this model takes uint8 levels 0 .. 4 of shape [N, 4, 4, 1]"),
        (IMAGES.astype(np.int64), "images are of int64"),
        (IMAGES[0], "images are of shape [4, 4, 1]"),
        (IMAGES[:, :3], "images are of shape [2, 3, 4, 1]"),
        (IMAGES[:0], "images are of shape [0, 4, 4, 1]"),
        (IMAGES + 1, "images have the level 5: this model takes uint8 levels 0 .. 4"),
    ],
)  # fmt: skip
def test_other_images_are_refused(images, message):
    with pytest.raises(UserError) as refused:
        check_images(images, KIND)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_conditional_model_needs_labels():
    np.testing.assert_array_equal(check_labels(None, 2, 3, is_conditional=False), [0, 0])
    np.testing.assert_array_equal(check_labels([2, 0], 2, 3, is_conditional=True), [2, 0])
    assert check_labels(np.array([2, 0]), 2, 3, is_conditional=True).dtype == np.int32
    with pytest.raises(UserError, match="give labels, 2 of them"):
        check_labels(None, 2, 3, is_conditional=True)


@pytest.mark.parametrize("labels", [[0], [[0, 1]], [0.0, 1.0], [0, 3], [-1, 0]])
def test_labels_that_are_none_are_refused(labels):
    with pytest.raises(UserError, match=r"^labels "):
        check_labels(labels, 2, 3, is_conditional=True)


def test_images_in_hand_are_every_split():
    given = ArrayDataset(IMAGES, np.array([1, 2], np.int32), KIND)
    assert (given.image_shape, given.num_levels, given.num_classes) == ((4, 4, 1), 5, 3)
    for split in ("train", "test"):
        batch = given.source(split).__getitems__(np.array([1, 0]))
        np.testing.assert_array_equal(batch["image"], IMAGES[::-1])
        np.testing.assert_array_equal(batch["label"], [2, 1])


def test_other_images_have_another_fingerprint():
    prints = {
        ArrayDataset(images, np.zeros(2, np.int32), KIND).fingerprint("test")
        for images in (IMAGES, IMAGES[::-1])
    }
    assert len(prints) == 2


def test_a_kind_has_no_images():
    for ask in (KIND.source, dataclasses.replace(KIND).fingerprint):
        with pytest.raises(UserError, match="weights come without the test images of dots"):
            ask("test")
