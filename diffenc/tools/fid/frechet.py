"""Fréchet distance between normal distributions with the moments of two sets of features (arXiv:1706.08500).

| mu_1 - mu_2 |^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2}), all in float64.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh


class Moments:
    """Mean and covariance of vectors that arrive in groups."""

    def __init__(self, size: int):
        self.count = 0
        self.mean = np.zeros(size)
        self._scatter = np.zeros((size, size))  # sum of outer products of deviations from the mean

    def add(self, vectors: Float[np.ndarray, "n size"]) -> None:
        """Adds vectors by Chan, Golub and LeVeque's update, which does not cancel where the mean is large."""
        if not len(vectors):
            return
        vectors = vectors.astype(np.float64)
        mean, total = vectors.mean(axis=0), self.count + len(vectors)
        shift, centred = mean - self.mean, vectors - mean
        # Deviations from the group's own mean, then the rank-one term of the two means' distance.
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * len(vectors) / total)
        self.mean = self.mean + shift * len(vectors) / total
        self.count = total

    @property
    def gaussian(self) -> "Gaussian":
        """Moments so far; the covariance is unbiased, and zero for a single vector."""
        return Gaussian(self.mean.copy(), self._scatter / max(self.count - 1, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """A mean and a covariance."""

    mean: Float[np.ndarray, " size"]
    covariance: Float[np.ndarray, "size size"]


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Returns the squared distance, negative only by rounding; either covariance may be singular.

    With C = L L^T the eigenvalues of C_1 C_2 are those of the symmetric L_1^T C_2 L_1, so the trace of the root is
    the sum of the singular values of L_1^T L_2. Unlike a matrix square root, this takes no roots of rounding errors.
    """
    shift = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    product = covariance_factor(one.covariance).T @ covariance_factor(other.covariance)
    # tr (C_1 C_2)^{1/2} is the sum of the roots of the eigenvalues of L_1^T C_2 L_1 = (L_1^T L_2)(L_1^T
    # L_2)^T, which are the singular values of L_1^T L_2.
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    return float(shift @ shift + traces - 2 * overlap)


def covariance_factor(covariance: Float[np.ndarray, "size size"]) -> Float[np.ndarray, "size rank"]:
    """Returns L with at least one column and L L^T = C, for symmetric, positive semidefinite C (up to rounding)."""
    values, vectors = eigh(covariance)
    # numpy's usual bound on the rank: smaller eigenvalues are rounding, and their roots would not be small.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    kept[-1] = True
    return vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0))
