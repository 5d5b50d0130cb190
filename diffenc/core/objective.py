"""The three terms of -ELBO, in nats per example; the diffusion loss once for all plugins and depths.

A reverse step from lambda_t to lambda_s costs

    offset + weight * || value_weight (x_hat - x_phi) + stretch kappa x_hat - slope ||^2,

in discrete time with the secant of x_phi over the step, in the limit T -> infinity with its tangent. The weights
depend on how noisy the forward path is (`diffenc.core.stochasticity`); value_weight = 1 for the paper's.
A *step rule* says which: it makes a `Step` from the encoder, the schedule, the path's clock and the drawn times.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffenc.core.discretization import Chain
from diffenc.core.gaussian import (
    alpha_sigma,
    alpha_squared,
    diffuse,
    scale,
    step_fraction,
    sum_data,
    sum_squares,
)
from diffenc.core.pixels import Levels, log_partition, scale_pixels
from diffenc.core.stochasticity import Increment, eta_squared, mean_fraction, renewed_fraction
from diffenc.interfaces import Data, GenerativeMean, LogSNR, Parameterization, PerExample, Times

Encode = Callable[[LogSNR], Data]
LogSNRAt = Callable[[Times], LogSNR]
Denoise = Callable[[Data, LogSNR], Data]


class Step(NamedTuple):
    """One reverse step seen from its noisier end.

    Attributes:
      log_snr: lambda_t.
      weight: of the squared error, the factor that makes a uniformly drawn t unbiased included.
      offset: what unequal variances cost where the means agree.
      value_weight: (1 - g) / c, of the error of x_hat itself; (1 + eta^2) / 2 in continuous time.
      stretch: (lambda_s - lambda_t) / c, which multiplies kappa; 1 in continuous time.
      x_phi: x_phi(lambda_t).
      slope: (x_phi(lambda_s) - x_phi(lambda_t)) / c, or d x_phi / d lambda in continuous time.
    """

    log_snr: LogSNR
    weight: PerExample
    offset: PerExample
    value_weight: PerExample
    stretch: PerExample
    x_phi: Data
    slope: Data


StepRule = Callable[[Encode, LogSNRAt, Increment, Times], Step]


def continuous(encode: Encode, log_snr_at: LogSNRAt, increment: Increment, t: Times) -> Step:
    """T -> infinity [14, 18]: weight -1/2 dSNR/dt / eta^2. One jvp gives x_phi and its slope under one mask.

    By Girsanov's theorem for the path of noise eta sigma dW (derived in docs/concepts.md); [14] has eta = 1.
    """
    log_snr, rate = jax.jvp(log_snr_at, (t,), (jnp.ones_like(t),))
    x_phi, slope = jax.jvp(encode, (log_snr,), (jnp.ones_like(log_snr),))
    eta_2 = eta_squared(increment, log_snr)
    weight = -0.5 * rate * jnp.exp(log_snr) / eta_2
    return Step(log_snr, weight, jnp.zeros_like(t), 0.5 * (1 + eta_2), jnp.ones_like(t), x_phi, slope)


def secant(encode: Encode, increment: Increment, log_snr_t: LogSNR, log_snr_s: LogSNR) -> Step:
    """The step from lambda_t to lambda_s with sigma_P = sigma_Q: weight 1/2 (SNR_s - SNR_t) c / c_eta [8].

    The encoder is evaluated at full precision on every device: its difference over a short step has few digits.
    """
    rise, clock_rise = log_snr_s - log_snr_t, increment(log_snr_t, log_snr_s)
    fraction = step_fraction(log_snr_t, log_snr_s)
    with jax.default_matmul_precision("highest"):
        x_t, x_s = encode(log_snr_t), encode(log_snr_s)
    weight = 0.5 * fraction * jnp.exp(log_snr_s) * (fraction / renewed_fraction(clock_rise))
    value_weight = mean_fraction(rise, clock_rise) / fraction
    slope = scale(1 / fraction, x_s - x_t)
    return Step(log_snr_t, weight, jnp.zeros_like(weight), value_weight, rise / fraction, x_t, slope)


def discrete(chain: Chain) -> StepRule:
    """One of the chain's T steps, drawn uniformly [9]: weight T w/2 (SNR_s - SNR_t) c / c_eta."""
    num_steps = len(chain.log_w)

    def rule(encode: Encode, log_snr_at: LogSNRAt, increment: Increment, t: Times) -> Step:
        index = step_index(t, num_steps)
        log_snr_t, log_snr_s = log_snr_at(chain.times[index + 1]), log_snr_at(chain.times[index])
        step, log_w = secant(encode, increment, log_snr_t, log_snr_s), chain.log_w[index]
        offset = 0.5 * step.x_phi[0].size * num_steps * (jnp.expm1(log_w) - log_w)
        return step._replace(weight=num_steps * jnp.exp(log_w) * step.weight, offset=offset)

    return rule


def step_index(t: Times, num_steps: int) -> Int[Array, " b"]:
    """In which of `num_steps` equal parts of [0, 1) t lies: 0 .. T - 1, also where t T rounds up to T."""
    return jnp.minimum(jnp.floor(t * num_steps), num_steps - 1).astype(jnp.int32)


def x_hat_from_output(out: Data, z: Data, log_snr: LogSNR, parameterization: Parameterization) -> Data:
    """Returns x_hat, from out = p x_hat + q eps_hat and z = alpha x_hat + sigma eps_hat."""
    alpha, sigma = alpha_sigma(log_snr)
    p, q = parameterization(log_snr)
    return scale(1 / (q * alpha - p * sigma), scale(q, z) - scale(sigma, out))


def network_error(
    log_snr: LogSNR, x_phi: Data, eps: Data, network: Denoise, parameterization: Parameterization
) -> Data:
    """x_hat - x_phi at z = alpha x_phi + sigma eps, for a network that estimates p x_phi + q eps.

    Written through the network's own error, which stays exact in float32 where alpha or sigma vanish:
    -sigma / (q alpha - p sigma) (out - p x_phi - q eps).
    """
    alpha, sigma = alpha_sigma(log_snr)
    p, q = parameterization(log_snr)
    out = network(diffuse(x_phi, eps, log_snr), log_snr)
    return scale(-sigma / (q * alpha - p * sigma), out - scale(p, x_phi) - scale(q, eps))


def step_error(step: Step, error: Data, mean: GenerativeMean) -> Data:
    """value_weight (x_hat - x_phi) + stretch kappa x_hat - slope, from `error` = x_hat - x_phi.

    In discrete time it is (mu_P - mu_Q) / (alpha_s c), for the two means are alpha_s (x_s + g (z_t / alpha_t - x_t)) of
    the encoder's x_t, x_s and of the estimates x_hat, (1 + (lambda_s - lambda_t) kappa) x_hat in their place.
    """
    kappa = step.stretch * mean(step.log_snr)
    return scale(step.value_weight + kappa, error) + scale(kappa, step.x_phi) - step.slope


def residual(
    step: Step, eps: Data, network: Denoise, parameterization: Parameterization, mean: GenerativeMean
) -> Data:
    """`step_error` of what the network makes of x_phi and `eps`."""
    return step_error(step, network_error(step.log_snr, step.x_phi, eps, network, parameterization), mean)


def diffusion_loss(
    step: Step, eps: Data, network: Denoise, parameterization: Parameterization, mean: GenerativeMean
) -> PerExample:
    """One draw of the diffusion loss [9, 14, 18]."""
    return step.offset + step.weight * sum_squares(residual(step, eps, network, parameterization, mean))


def latent_loss(x_phi: Data, log_snr: LogSNR) -> PerExample:
    """KL(q(z_1 | x) || N(0, 1)) [51]; `x_phi` and `log_snr` at t = 1."""
    alpha_2, num_dims = alpha_squared(log_snr), x_phi[0].size
    # sigma^2 - 1 - log sigma^2 = softplus(lambda) - alpha^2
    return 0.5 * (alpha_2 * sum_squares(x_phi) + num_dims * (jax.nn.softplus(log_snr) - alpha_2))


def reconstruction_loss(pixels: Data, levels: Levels, log_snr: LogSNR, num_levels: int) -> PerExample:
    """-log p(x | z_0) [55], p(v | z_0) proportional to N(z_0; alpha_0 v, sigma_0^2) over the levels v.

    Args:
      pixels: z_0 / alpha_0; made by `diffused_pixels`, since a product by alpha and its undoing cost digits.
      levels: the image's integers.
      log_snr: at t = 0.
    """
    half_snr = 0.5 * jnp.exp(log_snr)
    chosen = scale(half_snr, jnp.square(pixels - scale_pixels(levels, num_levels)))
    return sum_data(chosen + log_partition(pixels, half_snr, num_levels))


def diffused_pixels(x_phi: Data, eps: Data, log_snr: LogSNR) -> Data:
    """z / alpha = x_phi + (sigma / alpha) eps."""
    return x_phi + scale(jnp.exp(-0.5 * log_snr), eps)


def stratified_times(u: Float[Array, ""], count: int) -> Times:
    """t_i = (u + i / count) mod 1: each uniform on [0, 1), together one in every stratum (VDM, App. I.1)."""
    return jnp.mod(u + jnp.arange(count) / count, 1.0)
