"""Data sets of in-memory arrays, and checks of images and labels passed by a caller."""

import dataclasses
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int, UInt8

from diffenc.data import sources
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.interfaces import Dataset, Source


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """The properties of a data set that a model depends on, without its images.

    Attributes:
      name: as in evaluation records.
      image_shape: (H, W, C).
    """

    name: str
    image_shape: tuple[int, int, int]
    num_levels: int
    num_classes: int

    def source(self, split: str) -> NoReturn:
        raise UserError(
            f"weights come without the {split} images of {self.name}: take them from the data set itself"
        )

    # A fingerprint is a digest of the pixels, which are absent: it fails with the same message as `source`.
    fingerprint = source


# eq=False, comparison by identity: `==` of two arrays is an array, which has no truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A data set with the given images as every split, and the properties of `like`."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    like: Dataset

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.like.image_shape

    @property
    def num_levels(self) -> int:
        return self.like.num_levels

    @property
    def num_classes(self) -> int:
        return self.like.num_classes

    def source(self, split: str) -> Source:
        del split
        return ArraySource(self.images, self.labels)

    def fingerprint(self, split: str) -> str:
        return sources.fingerprint(self.source(split))


def check_images(images: Any, like: Dataset) -> UInt8[np.ndarray, "n h w c"]:
    """Returns `images` as an array. Raises UserError unless they are uint8 levels of the image shape of `like`, N >= 1."""
    array, shape, top = np.asarray(images), like.image_shape, like.num_levels - 1
    want = f"uint8 levels 0 .. {top} of shape [N, {', '.join(map(str, shape))}]"
    if array.dtype != np.uint8:
        raise UserError(f"images are of {array.dtype}: this model takes {want}")
    if array.ndim != 4 or array.shape[1:] != tuple(shape) or len(array) == 0:
        raise UserError(f"images are of shape {list(array.shape)}: this model takes {want}, N >= 1")
    if array.max() > top:
        raise UserError(f"images have the level {array.max()}: this model takes {want}")
    return array


def check_labels(labels: Any, count: int, num_classes: int, is_conditional: bool) -> Int[np.ndarray, " n"]:
    """Returns the classes of `count` images, zeros if omitted for an unconditional model. Raises UserError if invalid."""
    if labels is None and not is_conditional:
        return np.zeros(count, np.int32)
    if labels is None:
        raise UserError(f"this model is conditional on the class of each image: give labels, {count} of them")
    array = np.asarray(labels)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise UserError(
            f"labels are {array.dtype}{list(array.shape)}, not one integer for each of {count} images"
        )
    if array.min() < 0 or array.max() >= num_classes:
        raise UserError(
            f"labels go from {array.min()} to {array.max()}: this model has classes 0 .. {num_classes - 1}"
        )
    return array.astype(np.int32)
