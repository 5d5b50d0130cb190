import numpy as np
from sklearn.datasets import load_digits

from diffenc_plugins.datasets import Digits


def test_every_sixth_image_is_test_and_the_others_train():
    pixels, targets = load_digits(return_X_y=True)
    parts = {"train": [], "test": []}
    for k, image in enumerate(pixels.reshape(-1, 8, 8)):
        parts["test" if k % 6 == 5 else "train"].append((image, targets[k]))
    assert (len(parts["train"]), len(parts["test"])) == (1498, 299)
    for split, expected in parts.items():
        source = Digits().source(split)
        assert len(source) == len(expected)
        batch = source.__getitems__(np.arange(len(source)))
        np.testing.assert_array_equal(batch["image"][..., 0], np.stack([image for image, _ in expected]))
        np.testing.assert_array_equal(batch["label"], [label for _, label in expected])


def test_both_ends_of_the_17_levels_occur():
    batch = Digits().source("train").__getitems__(np.arange(1498))
    assert (batch["image"].min(), batch["image"].max()) == (0, Digits.num_levels - 1)


def test_a_validation_split_has_every_class():
    batch = Digits(validation=150).source("validation").__getitems__(np.arange(150))
    assert np.bincount(batch["label"], minlength=10).min() >= 8
