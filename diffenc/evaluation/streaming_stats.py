"""Streaming means by bin, with standard errors over values or over images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


class StreamingMean:
    """Means and standard errors of values that arrive in groups, for each of `size` bins."""

    def __init__(self, size: int):
        self.count = np.zeros(size, np.int64)
        self.mean = np.zeros(size)
        self._squares = np.zeros(size)  # sum of squared deviations from the mean

    def add(self, index: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"]) -> None:
        """Adds each value to the bin of its index (update of Chan, Golub and LeVeque)."""
        # Within this group of values, by bin.
        count = np.bincount(index, minlength=len(self.mean))
        mean = np.bincount(index, value, len(self.mean)) / np.maximum(count, 1)
        # Deviations from the group's own mean, then the shift
        # between the means: no difference of large sums of squares.
        squares = np.bincount(index, np.square(value - mean[index]), len(self.mean))
        total = np.maximum(self.count + count, 1)
        shift = np.where(count > 0, mean - self.mean, 0.0)
        self._squares += squares + np.square(shift) * self.count * count / total
        self.mean += shift * count / total
        self.count += count

    @property
    def standard_error(self) -> Float[np.ndarray, " size"]:
        """The standard error of each mean; infinite for fewer than two values."""
        variance = self._squares / np.maximum(self.count - 1, 1)
        return np.where(self.count > 1, np.sqrt(variance / np.maximum(self.count, 1)), np.inf)


class ImageMeans:
    """Means by bin of values of images, where values of the same image are not independent.

    Standard errors are over images: a mean is a ratio of two sums over images, and its error is linearised in them.
    """

    def __init__(self, num_images: int, size: int):
        self._counts = np.zeros((num_images, size))
        self._sums = np.zeros((num_images, size))

    def add(
        self, image: Int[np.ndarray, " n"], index: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"]
    ) -> None:
        """Adds each value of an image to the bin of its index."""
        # not +=, which would count repeated pairs once
        np.add.at(self._counts, (image, index), 1)
        np.add.at(self._sums, (image, index), value)

    def select(self, images: Bool[np.ndarray, " images"]) -> "ImageMeans":
        """Returns the means over some of the images."""
        return _image_means(self._counts[images], self._sums[images])

    @classmethod
    def combine(
        cls, parts: Sequence[tuple[Float[np.ndarray, "#images #size"], "ImageMeans"]]
    ) -> "ImageMeans":
        """Returns the means of a sum of values times weights of each image and bin; all are of the same draws."""
        sums = np.sum([weight * part._sums for weight, part in parts], axis=0)
        return _image_means(parts[0][1]._counts, sums)

    @property
    def num_images(self) -> int:
        return len(self._sums)

    @property
    def by_image(self) -> Float[np.ndarray, " images"]:
        """The mean of each image over its draws in all bins."""
        return self._sums.sum(axis=1) / np.maximum(self._counts.sum(axis=1), 1)

    @property
    def count(self) -> Int[np.ndarray, " size"]:
        return self._counts.sum(axis=0).astype(np.int64)

    @property
    def mean(self) -> Float[np.ndarray, " size"]:
        return self._sums.sum(axis=0) / np.maximum(self.count, 1)

    @property
    def standard_error(self) -> Float[np.ndarray, " size"]:
        """The standard error of each mean."""
        return sum_errors(self.shares)

    @property
    def mean_error(self) -> float:
        """The standard error of the mean over bins."""
        return float(sum_errors(self.shares.mean(axis=1, keepdims=True))[0])

    @property
    def shares(self) -> Float[np.ndarray, "images size"]:
        """The contribution of each image to the deviation of each mean, to first order."""
        # Linearised ratio: d(sum / count) of one image, (its
        # sum - mean * its count) / count. They sum to zero.
        return (self._sums - self._counts * self.mean) / np.maximum(self.count, 1)


def _image_means(counts: np.ndarray, sums: np.ndarray) -> ImageMeans:
    made = ImageMeans(*counts.shape)
    made._counts, made._sums = counts, sums
    return made


def sum_errors(shares: Float[np.ndarray, "images size"]) -> Float[np.ndarray, " size"]:
    """Returns the standard errors of sums over independent images, for shares that sum to zero."""
    # n / (n - 1) is Bessel's correction.
    return np.sqrt(np.square(shares).sum(axis=0) * len(shares) / max(len(shares) - 1, 1))
