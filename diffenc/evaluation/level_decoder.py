"""The decoder of DDPM: the probability of an integer level under a normal distribution of its value (arXiv:2006.11239, [13])."""

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from diffenc.core.gaussian import sum_data
from diffenc.core.pixels import Levels
from diffenc.interfaces import Data, PerExample

Scalar = Float[Array, ""]


def normal_level_loss(
    residual: Data, levels: Levels, half_cell: float, std: Scalar, num_levels: int
) -> PerExample:
    """Returns -log of the mass that N(x_hat, std^2) has in the cell of each level, summed over pixels; nats.

    Cells reach half way to the next level, and those of level 0 and of the top level to infinity: they sum to one.

    Args:
      residual: x - x_hat.
      half_cell: half the distance of neighbouring levels, in the units of `residual`.
    """
    # The level's cell relative to x_hat, in standard deviations.
    lower = jnp.where(levels == 0, -jnp.inf, (residual - half_cell) / std)
    upper = jnp.where(levels == num_levels - 1, jnp.inf, (residual + half_cell) / std)
    return -sum_data(log_normal_mass(lower, upper))


def log_normal_mass(lower: Data, upper: Data) -> Data:
    """Returns log(Phi(upper) - Phi(lower)), with its digits in either tail; `lower` may be -inf, or `upper` inf."""
    mirrored = lower + upper > 0  # to the lower tail, where log Phi has digits
    low, high = jnp.where(mirrored, -upper, lower), jnp.where(mirrored, -lower, upper)
    log_high = log_ndtr(high)
    # log(Phi(high) - Phi(low)) = log Phi(high) + log(1 - e^-gap): never the difference of two numbers near 1.
    gap = log_high - log_ndtr(low)
    # log(1 - e^-gap), by the form that keeps digits
    rest = jnp.where(gap < jnp.log(2.0), jnp.log(-jnp.expm1(-gap)), jnp.log1p(-jnp.exp(-gap)))
    return log_high + rest


def losses_by_std(
    residual: Data, levels: Levels, half_cell: float, stds: Float[Array, " stds"], num_levels: int
) -> Float[Array, "stds b"]:
    """Returns the loss of each image with each of `stds`."""
    return jax.lax.map(lambda std: normal_level_loss(residual, levels, half_cell, std, num_levels), stds)
