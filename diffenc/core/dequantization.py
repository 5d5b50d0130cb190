"""Discrete images as points of the continuous space a density lives in.

The decoder maps z_0 to the level nearest to z_0 / alpha_0, so a density p_0 gives the image x the probability

    P(x) = integral of p_0 over the cell alpha_0 [x - 1 / num_levels, x + 1 / num_levels]

(the outermost cells reach further, which only adds), and for any q(z_0 | x) on that cell

    log P(x) >= E_q[log p_0(z_0) - log q(z_0 | x)].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfinv

from diffenc.core.gaussian import alpha_sigma, scale, sum_data
from diffenc.interfaces import Data, Key, LogSNR, PerExample

Dequantise = Callable[[Key, Data, LogSNR, int], tuple[Data, PerExample]]


def dequantize_uniform(key: Key, x: Data, log_snr_0: LogSNR, num_levels: int) -> tuple[Data, PerExample]:
    """Returns z_0 uniform on the cell of `x`, scaled pixels; and log q(z_0 | x)."""
    alpha, _ = alpha_sigma(log_snr_0)
    offset = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0) / num_levels
    # Level values are 2 / num_levels apart, so the cell of each of the d dimensions is 2 alpha / num_levels
    # wide, and the uniform density on the d-dimensional cell is that to the power -d.
    return scale(alpha, x + offset), -x[0].size * jnp.log(2 * alpha / num_levels)


def dequantize_truncated_normal(
    key: Key, x: Data, log_snr_0: LogSNR, num_levels: int
) -> tuple[Data, PerExample]:
    """Returns z_0 of N(alpha_0 x, sigma_0^2) truncated to the cell of `x`, scaled pixels; and log q(z_0 | x).

    The noise has the width of the noise in training at t = 0 (Zheng et al., 2023).
    """
    # N(alpha_0 x, sigma_0^2) is the model's z_0 at t = 0;
    # truncated to the cell, it decodes to x for certain.
    alpha, sigma = alpha_sigma(log_snr_0)
    reach = jnp.exp(0.5 * log_snr_0) / num_levels  # half a cell, in units of sigma_0
    # P(|eps| < reach) for a standard normal eps: the mass within the cell.
    mass = erf(reach / jnp.sqrt(2.0))
    # where rounding makes the mass 1, one draw in 2^24 would be infinite
    quantile = jnp.minimum(mass, 1 - jnp.finfo(x.dtype).eps)
    # Inverse transform sampling: Phi(eps) = (1 + u) / 2 with u uniform on (-mass, mass) has |eps| < reach,
    # without rejection, so a draw costs the same at every noise level.
    u = scale(quantile, jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0))
    eps = jnp.sqrt(2.0) * erfinv(u)
    log_normal = -0.5 * (jnp.square(eps) + jnp.log(2 * jnp.pi))
    # log sigma = 1/2 log sigmoid(-lambda) = -1/2 softplus(lambda). log q per dimension is that of the normal
    # density, less log sigma for the change of scale and log mass for the truncation.
    log_sigma = -0.5 * jax.nn.softplus(log_snr_0)
    log_q = sum_data(log_normal) - x[0].size * (log_sigma + jnp.log(mass))
    return scale(alpha, x) + scale(sigma, eps), log_q


def entropy_lost_uniform(log_snr_0: LogSNR, num_levels: int) -> LogSNR:
    """Returns the entropy of N(., sigma_0^2) less that of `dequantize_uniform`, nats per dimension."""
    alpha, _ = alpha_sigma(log_snr_0)
    return 0.5 * (1 + jnp.log(2 * jnp.pi) - jax.nn.softplus(log_snr_0)) - jnp.log(2 * alpha / num_levels)


def entropy_lost_truncated_normal(log_snr_0: LogSNR, num_levels: int) -> LogSNR:
    """Returns the entropy of N(., sigma_0^2) less that of `dequantize_truncated_normal`, nats per dimension; never negative."""
    reach = jnp.exp(0.5 * log_snr_0) / num_levels
    mass = erf(reach / jnp.sqrt(2.0))
    # Var(eps) of the truncated normal is 1 - 2 reach density /
    # mass; its entropy has half of that in place of 1/2.
    density = jnp.exp(-0.5 * jnp.square(reach)) / jnp.sqrt(2 * jnp.pi)
    return reach * density / mass - jnp.log(mass)


ENTROPY_LOST: dict[str, Callable[[LogSNR, int], LogSNR]] = {
    "truncated_normal": entropy_lost_truncated_normal,
    "uniform": entropy_lost_uniform,
}
DEQUANTISATIONS: dict[str, Dequantise] = {
    "truncated_normal": dequantize_truncated_normal,
    "uniform": dequantize_uniform,
}
