"""Digits: the set inside scikit-learn."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from diffenc.data import sources
from diffenc.interfaces import Source
from diffenc.registry import datasets


@datasets.register("digits")
@dataclasses.dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits, 8x8x1 in 17 levels, that come with scikit-learn: no download.

    Test is every image with index % 6 == 5 (299 images), train the other 1,498.

    Attributes:
      validation: number of images cut from train, spread over it.
    """

    validation: int = 0

    image_shape = (8, 8, 1)
    num_levels = 17
    num_classes = 10
    terms: ClassVar[dict[str, str]] = {
        "origin": "E. Alpaydin and C. Kaynak 1998, the test set of UCI's Optical Recognition of Handwritten Digits, "
        "as it comes with scikit-learn; https://archive.ics.uci.edu/dataset/80",
        "licence": "CC BY 4.0, as the UCI repository states",
    }

    def source(self, split: str) -> Source:
        return sources.split_source(_read, split, self.validation, "digits")

    def fingerprint(self, split: str) -> str:
        return sources.fingerprint(self.source(split))


@functools.lru_cache(maxsize=2)
def _read(split: str) -> sources.ArraySource:
    from sklearn.datasets import load_digits  # seconds to import, and only this data set needs it

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
    chosen = (np.arange(len(images)) % 6 == 5) == (split == "test")
    return sources.ArraySource(images[chosen], labels[chosen].astype(np.int32))
