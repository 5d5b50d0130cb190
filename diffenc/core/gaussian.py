"""The algebra of the variance-preserving Gaussian process: everything is a function of log_snr."""

import jax
import jax.numpy as jnp

from diffenc.interfaces import Data, LogSNR, PerExample


@jax.custom_jvp
def alpha_squared(log_snr: LogSNR) -> LogSNR:
    """alpha^2 = sigmoid(log_snr)."""
    return jax.nn.sigmoid(log_snr)


@alpha_squared.defjvp
def _alpha_squared_jvp(primals, tangents):
    # d alpha^2 / d lambda = alpha^2 sigma^2. JAX's own rule, s (1 - s), keeps one digit of sigma^2
    # at lambda = 13 in float32.
    (log_snr,), (tangent,) = primals, tangents
    # Through `alpha_squared` and not jax.nn.sigmoid: higher
    # derivatives, such as the gradient of a jvp, use this rule again.
    value = alpha_squared(log_snr)
    return value, value * sigma_squared(log_snr) * tangent


def sigma_squared(log_snr: LogSNR) -> LogSNR:
    """sigma^2 = sigmoid(-log_snr)."""
    # Not 1 - alpha^2: at lambda = 13.3 that is 1.7e-6 as the
    # difference of two numbers near 1, one digit or two in float32.
    return alpha_squared(-log_snr)


def alpha_sigma(log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
    """(alpha, sigma)."""
    return jnp.sqrt(alpha_squared(log_snr)), jnp.sqrt(sigma_squared(log_snr))


def scale(coefficient: PerExample, x: Data) -> Data:
    """coefficient[b] * x[b, ...]."""
    # [B] broadcast over all but the batch axis: plain multiplication would align it with the channels.
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - 1)) * x


def diffuse(x_phi: Data, eps: Data, log_snr: LogSNR) -> Data:
    """z = alpha x_phi + sigma eps [10]."""
    alpha, sigma = alpha_sigma(log_snr)
    return scale(alpha, x_phi) + scale(sigma, eps)


def step_fraction(log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
    """c = sigma_{t|s}^2 / sigma_t^2 = 1 - exp(lambda_t - lambda_s), without cancellation as s -> t."""
    # c falls like 1 / T (2e-2 at T = 1,000 between the published ends), and secants are divided by it:
    # 1 - exp(...) has an absolute error of 6e-8 whatever the size of c.
    return -jnp.expm1(log_snr_t - log_snr_s)


def sum_squares(x: Data) -> PerExample:
    """Squared norm of each example."""
    return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))


def sum_data(x: Data) -> PerExample:
    """Sum over all but the batch axis."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
