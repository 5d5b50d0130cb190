import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.testing import datasets as checks


@dataclasses.dataclass(frozen=True)
class Fine:
    """20 images to train on, 10 to test on."""

    image_shape = (4, 3, 2)
    num_levels = 7
    num_classes = 3

    def arrays(self, split) -> Any:
        random = np.random.default_rng(len(split))
        count = {"train": 20, "test": 10}[split]
        return random.integers(0, 7, (count, 4, 3, 2), np.uint8), np.arange(count, dtype=np.int32) % 3

    def source(self, split) -> Any:
        if split not in ("train", "test"):
            raise UserError(f"no split {split}")
        return self.made(*self.arrays(split))

    made = ArraySource

    def fingerprint(self, split):
        return hashlib.sha256(self.arrays(split)[0].tobytes()).hexdigest()


class WithValidation(Fine):
    def source(self, split):
        return super().source("test" if split == "validation" else split)

    def fingerprint(self, split):
        return super().fingerprint("test" if split == "validation" else split)


class ForgotValidation(WithValidation):
    def fingerprint(self, split):
        return Fine.fingerprint(self, "train" if split == "validation" else split)


class Flat(Fine):
    image_shape = (4, 3)


class OneLevel(Fine):
    num_levels = 1


class NoClass(Fine):
    num_classes = 0


class Transposed(Fine):
    image_shape = (3, 4, 2)


class FewerLevels(Fine):
    num_levels = 6


class FewerClasses(Fine):
    num_classes = 2


class LongLabels(Fine):
    class Source:
        def __init__(self, source):
            self.of = source

        def __len__(self):
            return len(self.of)

        def __getitem__(self, index):
            return self.of[index]

        def __getitems__(self, indices):
            batch = self.of.__getitems__(indices)
            return {"image": batch["image"], "label": batch["label"].astype(np.int64)}

    def source(self, split):
        return self.Source(super().source(split))


class Empty(Fine):
    def arrays(self, split):
        return tuple(array[:0] for array in super().arrays(split))


class Shifted(ArraySource):
    def __getitem__(self, index):
        return super().__getitem__((index + 3) % len(self))


class Relabelled(ArraySource):
    def __getitem__(self, index) -> Any:
        return {"image": super().__getitem__(index)["image"], "label": 0}


class Darkened(ArraySource):
    def __getitem__(self, index) -> Any:
        found = super().__getitem__(index)
        return {**found, "image": found["image"] // 2}


class OtherOnes(Fine):
    made = Darkened


class OneOff(Fine):
    made = Shifted


class OneLabel(Fine):
    made = Relabelled


class Reshuffled(Fine):
    def arrays(self, split):
        images, labels = super().arrays(split)
        return np.random.default_rng().permutation(images), labels


class OtherLabels(Fine):
    def arrays(self, split):
        images, labels = super().arrays(split)
        return images, np.random.default_rng().permutation(labels).astype(np.int32)


class OfLabels(Fine):
    def fingerprint(self, split):
        images, labels = self.arrays(split)
        return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


class TakesAll(Fine):
    def source(self, split):
        return super().source(split if split in ("train", "validation") else "test")


class TwoLines(Fine):
    def source(self, split):
        if split not in ("train", "test"):
            raise UserError("no split\nof that name")
        return super().source(split)


class Crashes(Fine):
    def source(self, split):
        return super().source({"train": "train", "test": "test", "validation": "validation"}[split])


class Open(ArraySource):
    def __getstate__(self):
        raise TypeError("an open file")


class OpenFile(Fine):
    made = Open


class Loses(ArraySource):
    def __reduce__(self):
        return ArraySource, (self.images[::-1], self.labels)


class LosesOrder(Fine):
    made = Loses


FAULTS = [
    (checks.shape_levels_and_classes_are_valid, Flat(), r"image_shape = \(4, 3\)"),
    (checks.shape_levels_and_classes_are_valid, OneLevel(), "num_levels = 1: must be"),
    (checks.shape_levels_and_classes_are_valid, NoClass(), "num_classes = 0: must be"),
    (checks.examples_match_the_declaration, Transposed(), r"images of train are .*\(20, 4, 3, 2\)"),
    (checks.examples_match_the_declaration, FewerLevels(), "train has level 6: num_levels = 6"),
    (checks.examples_match_the_declaration, FewerClasses(), r"train has labels 0 \.\. 2: num_classes = 2"),
    (checks.examples_match_the_declaration, LongLabels(), "labels of train are .*int64"),
    (checks.examples_match_the_declaration, Empty(), "train is empty"),
    (checks.single_and_batched_examples_agree, OneOff(), r"train\[\d+\] differs from .* __getitems__"),
    (checks.single_and_batched_examples_agree, OtherOnes(), r"train\[\d+\] differs from .* __getitems__"),
    (checks.single_and_batched_examples_agree, OneLabel(), r"train\[\d+\] differs from .*its label"),
    (checks.sources_are_reproducible, Reshuffled(), "train has other images when read again"),
    (checks.sources_are_reproducible, OtherLabels(), "train has other labels when read again"),
    (checks.fingerprint_is_sha256_of_pixels, OfLabels(), r"fingerprint\('train'\) is not the SHA-256"),
    (checks.fingerprint_is_sha256_of_pixels, ForgotValidation(), r"fingerprint\('validation'\)"),
    (checks.unknown_splits_are_refused, TwoLines(), "has more than one line"),
    (checks.unknown_splits_are_refused, TakesAll(), "is accepted"),
    (checks.unknown_splits_are_refused, Crashes(), "raises KeyError.*: raise a UserError"),
    (checks.sources_pickle, OpenFile(), "cannot be pickled: an open file"),
    (checks.sources_pickle, LosesOrder(), "other images after pickling"),
]


@pytest.mark.thin
@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("plugin", [Fine(), WithValidation()], ids=["two splits", "three"])
def test_what_keeps_all_passes_all(check, plugin):
    check(plugin)


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == set(checks.CHECKS)
