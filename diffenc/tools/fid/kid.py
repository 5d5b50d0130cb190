"""Kernel distance between two sets of features (KID, arXiv:1801.01401): an unbiased estimate with its standard error."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Vectors = Float[np.ndarray, "_ size"]

MIN_BLOCKS = 4  # if there are enough vectors, so that the standard error can be estimated


class KernelDistance(NamedTuple):
    """Mean over blocks, its standard error (None for a single block), and the number of vectors used of each set."""

    value: float
    error: float | None
    num: int


def kernel_distance(one: Vectors, other: Vectors, block: int) -> KernelDistance:
    """Returns the mean MMD^2 of disjoint blocks of vectors in random order; vectors beyond the last block are left out.

    Blocks share no vector, so their results are independent and their spread estimates the standard error of the mean.

    Args:
      block: vectors of each set in a block; fewer if there would be less than MIN_BLOCKS.

    Raises:
      ValueError: less than two vectors in either set.
    """
    fewest = min(len(one), len(other))
    block = max(2, min(block, fewest // MIN_BLOCKS))
    count = max(1, fewest // block)
    each = [squared_mmd(*(part[k * block : (k + 1) * block] for part in (one, other))) for k in range(count)]
    error = float(np.std(each, ddof=1) / np.sqrt(count)) if count > 1 else None
    return KernelDistance(float(np.mean(each)), error, count * block)


def squared_mmd(one: Vectors, other: Vectors) -> float:
    """Returns the unbiased estimate of MMD^2 under the kernel (x . y / size + 1)^3, float64; it can be negative."""
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{len(one)} and {len(other)} vectors: two of each are needed")
    one, other = one.astype(np.float64), other.astype(np.float64)
    return mean_within(one) + mean_within(other) - 2 * float(cubic_kernel(one, other).mean())


def mean_within(vectors: Vectors) -> float:
    """Returns the mean of the kernel over all pairs of different vectors."""
    pairs = cubic_kernel(vectors, vectors)
    # Without the diagonal: its terms k(x, x) would bias the estimate upwards.
    return float((pairs.sum() - np.trace(pairs)) / (len(pairs) * (len(pairs) - 1)))


def cubic_kernel(one: Vectors, other: Vectors) -> Float[np.ndarray, "n m"]:
    return (one @ other.T / one.shape[1] + 1) ** 3
