"""Means and their standard errors, of values that come in groups."""

import numpy as np
from jaxtyping import Float, Int


class StreamingMean:
    """Means and their standard errors of values that arrive in groups, one mean for each of `size` bins."""

    def __init__(self, size: int):
        self.count = np.zeros(size, np.int64)
        self.mean = np.zeros(size)
        self._squares = np.zeros(size)  # sum of squared deviations from the mean

    def add(self, index: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"]) -> None:
        """Put each value in the bin of its index (Chan, Golub and LeVeque's update)."""
        count = np.bincount(index, minlength=len(self.mean))
        seen = np.maximum(count, 1)
        mean = np.bincount(index, value, len(self.mean)) / seen
        squares = np.bincount(index, np.square(value - mean[index]), len(self.mean))
        total = np.maximum(self.count + count, 1)
        shift = np.where(count > 0, mean - self.mean, 0.0)
        self._squares += squares + np.square(shift) * self.count * count / total
        self.mean += shift * count / total
        self.count += count

    @property
    def standard_error(self) -> Float[np.ndarray, " size"]:
        """Of each mean; infinite below two values."""
        variance = self._squares / np.maximum(self.count - 1, 1)
        return np.where(self.count > 1, np.sqrt(variance / np.maximum(self.count, 1)), np.inf)
