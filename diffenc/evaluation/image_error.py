"""The error of a mean over images, separated from the Monte-Carlo error over times and noise.

In pass p, image i has the value x_ip = m_i + f(u_ip) + e_ip: its expectation m_i, a dependence on the drawn time
shared by all images, and noise. The choice of images contributes Var(m) / N to the variance of the mean. The variance of
per-image means over passes is larger by Var(f + e) / P, which is no error of the mean where times are stratified. So f
is fitted by least squares and removed, and Var(m) is estimated as a variance component (of the two-way layout of images
and passes), without clamping it at 0.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MAX_KNOTS = 64
DRAWS_PER_KNOT = 16  # at least, so that a height is not fitted to a few noisy draws
FOLDS = 8
RESOLVED = 2.0  # Var(m) counts as resolved from so many standard errors of its Monte-Carlo noise

ByPass = Float[np.ndarray, "passes images"]
DrawnTimes = Float[np.ndarray, "passes images times"]
Basis = Float[np.ndarray, "images knots"]


class ImageError(NamedTuple):
    """The standard error of a mean over images.

    Attributes:
      se: the standard error; None if Monte-Carlo noise hides it (more passes resolve it).
      uncertainty: standard error of `se`, over images and draws; None if `se` is None.
      upper: standard error from the spread of per-image means, including Monte-Carlo noise; never below `se`.
    """

    se: float | None
    uncertainty: float | None
    upper: float


class Component(NamedTuple):
    """Var(m), the variance between images.

    Attributes:
      variance: an unbiased estimate; may be negative.
      noise: standard error of `variance` over times and noise alone; exact for normal noise, too large for heavier tails.
      uncertainty: standard error of `variance` over images, times and noise.
      of_means: variance of the per-image means after f is removed; `variance` is a part of it.
    """

    variance: float
    noise: float
    uncertainty: float
    of_means: float

    @property
    def resolved(self) -> bool:
        """Whether Var(m) exceeds its Monte-Carlo noise."""
        return self.variance >= 0 and self.variance >= RESOLVED * self.noise


@dataclasses.dataclass(frozen=True)
class PassValues:
    """A value of each image in each pass.

    Attributes:
      values: [P, N].
      times: uniform variates from which diffusion times were drawn, stratified over the images of a pass; None if the
        draws of different images are independent.
    """

    values: ByPass
    times: DrawnTimes | None = None

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def over_images(self) -> "ImageError":
        """The error of the mean over images. Needs two images."""
        return error_over_images(self.values, self.times)

    @property
    def mc_se(self) -> float:
        """The standard error of the mean over times and noise. Needs two passes."""
        independent = self.values if self.times is None else self.values.mean(axis=1, keepdims=True)
        return monte_carlo_error(independent)

    def select(self, images: Int[np.ndarray, " n"]) -> "PassValues":
        """Returns the values of a subset of the images. Its times are no longer stratified."""
        times = None if self.times is None else self.times[:, images]
        return PassValues(self.values[:, images], times)

    def minus(self, other: "PassValues") -> "PassValues":
        """Returns the difference for each image and pass; both must be evaluated with the same draws."""
        return PassValues(self.values - other.values, self.times)


def monte_carlo_error(values: Float[np.ndarray, "passes independent"]) -> float:
    """Returns the standard error of the mean of `values` over times and noise, from the variance over passes.

    Columns must be independent. Images with stratified times are not: then pass the means of whole passes, as the
    only column.
    """
    passes, count = values.shape
    return float(np.sqrt(values.var(axis=0, ddof=1).sum() / passes) / count)


def error_over_images(values: ByPass, times: DrawnTimes | None = None) -> ImageError:
    """Returns the error over images of the mean of `values`, which are of at least two images.

    Args:
      times: uniform variates from which diffusion times were drawn; None if no times were drawn.
    """
    count = values.shape[1]
    # The plain spread of per-image means, with the Monte-Carlo noise of P passes in it.
    upper = float(np.sqrt(values.mean(axis=0).var(ddof=1) / count))
    component = between_images(values, times)
    if component is None or not component.resolved:
        return ImageError(None, None, upper)
    # The error of the mean from the choice of images alone: Var(m) / N.
    se = float(np.sqrt(component.variance / count))
    # d se / d variance = 1 / (2 se count)
    return ImageError(se, component.uncertainty / (2 * se * count) if se else 0.0, max(upper, se))


def between_images(values: ByPass, times: DrawnTimes | None = None) -> Component | None:
    """Returns the variance component of images; None for a single pass, or if a value is not finite."""
    passes, count = values.shape
    # One pass cannot tell differences between images from noise.
    if passes < 2 or not np.isfinite(values).all():
        return None
    if times is not None:
        values = remove_time_dependence(values, times)
    means = values.mean(axis=0)
    # Residuals of the two-way layout images x passes: an effect
    # that all images of a pass share is no noise of an image.
    within = values - means - values.mean(axis=1, keepdims=True) + values.mean()
    # (P - 1) (N - 1) degrees of freedom over all images, so
    # count / ((P - 1) (N - 1)) per image, and 1 / P for a mean.
    noise = np.square(within).sum(axis=0) * count / ((passes - 1) * (count - 1)) / passes  # of each mean
    squares = np.square(means - means.mean()) * count / (count - 1)
    # for normal noise, an unbiased estimate of the square of the variance that `noise` estimates
    fourth = np.square(noise) * (passes - 1) / (passes + 1)
    # Given m_i, squares - noise has the variance 4 m_i^2 s + 2 s^2 P / (P - 1), s that of an image's mean
    # over passes; m_i^2 s is estimated by squares noise - s^2.
    cross = max(4 * np.sum(squares * noise - fourth), 0.0)
    own = 2 * np.sum(fourth) * passes / (passes - 1)
    return Component(
        # Not clamped at 0: clamping would bias it, and a negative estimate shows that passes are too few.
        variance=float(np.mean(squares - noise)),
        noise=float(np.sqrt(cross + own) / count),
        uncertainty=float(np.std(squares - noise, ddof=1) / np.sqrt(count)),
        of_means=float(squares.mean()),
    )


def remove_time_dependence(values: ByPass, times: DrawnTimes) -> ByPass:
    """Returns `values` minus f, the function of the drawn time that all images share.

    f is piecewise linear and fitted to the differences between passes, so that differences between images remain. The
    f removed from an image is fitted to other images only: it is independent of the image's own noise, which keeps the
    variance component unbiased even if the fit is bad; up to O(1 / N), since the images of a pass share the strata of time.
    """
    passes, count = values.shape
    # Degrees of freedom of differences between passes, over draws wanted for a knot.
    num_knots = min(MAX_KNOTS, (passes - 1) * count // DRAWS_PER_KNOT)
    if num_knots < 2:
        return values
    # Cross-fitting: an image's own noise must not enter the function that is subtracted from it.
    fold, mean = np.arange(count) % FOLDS, values.mean(axis=0)
    # Values and basis less their means over passes: differences between images drop out of the fit.
    mean_basis = sum(hat_functions(one, num_knots) for one in times) / passes
    gram, moment = np.zeros((FOLDS, num_knots, num_knots)), np.zeros((FOLDS, num_knots))
    for one, value in zip(times, values, strict=True):
        basis, change = hat_functions(one, num_knots) - mean_basis, value - mean
        for k in range(FOLDS):
            gram[k] += basis[fold == k].T @ basis[fold == k]
            moment[k] += basis[fold == k].T @ change[fold == k]
    # The sums over all folds less a fold's own: one pass over the data serves all FOLDS fits.
    others = zip(gram.sum(axis=0) - gram, moment.sum(axis=0) - moment, strict=True)
    # Ridge: a priori, heights are as large as the values. Means over many stratified times hardly differ between
    # passes; without it, heights of a hundred times the values fit that, and removing them adds noise.
    ridge = np.square(values - mean).mean() / max(values.var(), 1e-300) * np.eye(num_knots)
    # lstsq with a cutoff: knots without draws make a system singular where nothing varies between passes
    heights = np.stack([np.linalg.lstsq(gram + ridge, moment, rcond=1e-10)[0] for gram, moment in others])
    return values - [np.sum(hat_functions(one, num_knots) * heights[fold], axis=1) for one in times]


def hat_functions(times: Float[np.ndarray, "images times"], num_knots: int) -> Basis:
    """Returns piecewise linear basis functions on equal knots in [0, 1], averaged over the times of each image."""
    position = np.asarray(times, np.float64) * (num_knots - 1)
    # t = 1 belongs to the last interval.
    left = np.clip(position.astype(int), 0, num_knots - 2)
    basis, image = np.zeros((len(times), num_knots)), np.arange(len(times))[:, None]
    np.add.at(basis, (image, left), 1 - (position - left))
    np.add.at(basis, (image, left + 1), position - left)
    return basis / times.shape[1]
