"""The three terms of -ELBO, in nats per example; the diffusion loss once for all plugins and depths.

A reverse step from lambda_t to lambda_s costs

    offset + weight * || value_weight (value - x_phi) + (slope - slope of x_phi) ||^2,

where value and slope are the generative mean's estimates from the network's x_hat; in discrete time the slope is the secant
over the step, in the limit T -> infinity the tangent (`diffenc.core.interval`). A *step rule* makes such a `Step` from
the encoder, the schedule, the path's clock and the drawn times.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffenc.core.discretization import Chain
from diffenc.core.gaussian import alpha_sigma, alpha_squared, diffuse, scale, sum_data, sum_squares
from diffenc.core.interval import EncodeAt, chord, tangent
from diffenc.core.pixels import Levels, log_partition, scale_pixels
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import Increment
from diffenc.interfaces import Data, Estimate, Interval, LogSNR, Parameterization, PerExample, Times

LogSNRAt = Callable[[Times], LogSNR]
Denoise = Callable[[Data, LogSNR], Data]


class Step(NamedTuple):
    """One reverse step seen from its noisier end.

    Attributes:
      interval: from lambda_t to lambda_s.
      weight: of the squared error, including the factor that makes a uniformly drawn t unbiased.
      offset: the cost of unequal variances where the means agree.
      truth: x_phi(lambda_t) and its slope.
    """

    interval: Interval
    weight: PerExample
    offset: PerExample
    truth: Estimate

    @property
    def log_snr(self) -> LogSNR:
        """lambda_t."""
        return self.interval.log_snr

    @property
    def x_phi(self) -> Data:
        """x_phi(lambda_t)."""
        return self.truth.value


StepRule = Callable[[EncodeAt, LogSNRAt, Increment, Times], Step]


def continuous(encode: EncodeAt, log_snr_at: LogSNRAt, increment: Increment, t: Times) -> Step:
    """T -> infinity [14, 18]: weight -1/2 dSNR/dt / eta^2. One jvp gives x_phi and its slope under one mask.

    By Girsanov's theorem for the path of noise eta sigma dW (derived in docs/concepts.md); [14] has eta = 1.
    """
    # rate = d lambda / dt per image, by a jvp: the training gradient then reaches the parameters of a
    # learned schedule through lambda as well as through rate.
    log_snr, rate = jax.jvp(log_snr_at, (t,), (jnp.ones_like(t),))
    # dSNR/dt = rate e^lambda, negative since lambda falls with t: the weight is positive.
    at = tangent(increment, log_snr)
    weight = -0.5 * rate * jnp.exp(log_snr) / at.eta_2
    return Step(at, weight, jnp.zeros_like(t), at.follow(encode))


def secant(encode: EncodeAt, increment: Increment, log_snr_t: LogSNR, log_snr_s: LogSNR) -> Step:
    """The step from lambda_t to lambda_s with sigma_P = sigma_Q: weight 1/2 (SNR_s - SNR_t) c / c_eta [8]."""
    # || mu_P - mu_Q ||^2 / (2 sigma_Q^2) with mu_P - mu_Q = alpha_s c error
    # (`step_error`) and sigma_Q^2 = c_eta sigma_s^2 is 1/2 SNR_s c^2 / c_eta || error
    # ||^2. SNR_s c = SNR_s - SNR_t without the cancellation of that difference.
    step = chord(increment, log_snr_t, log_snr_s)
    weight = 0.5 * step.fraction * jnp.exp(log_snr_s) * (step.fraction / step.renewed)
    return Step(step, weight, jnp.zeros_like(weight), step.follow(encode))


def discrete(chain: Chain) -> StepRule:
    """One of the chain's T steps, drawn uniformly [9]: weight T w/2 (SNR_s - SNR_t) c / c_eta."""
    num_steps = len(chain.log_w)

    def rule(encode: EncodeAt, log_snr_at: LogSNRAt, increment: Increment, t: Times) -> Step:
        # t in [i / T, (i + 1) / T) stands for step i, from times[i + 1] to
        # times[i], wherever the chain puts these: a stratified batch of t is
        # stratified over the steps. floor, since ceil would give 0 at t = 0.
        index = step_index(t, num_steps)
        log_snr_t, log_snr_s = log_snr_at(chain.times[index + 1]), log_snr_at(chain.times[index])
        step, log_w = secant(encode, increment, log_snr_t, log_snr_s), chain.log_w[index]
        # (d / 2) (w - 1 - log w): w is close to 1 for short steps, and d T would multiply the rounding of
        # w - 1. Both terms have the factor T of a sum over steps that is estimated by one of them.
        offset = 0.5 * step.x_phi[0].size * num_steps * (jnp.expm1(log_w) - log_w)
        return step._replace(weight=num_steps * jnp.exp(log_w) * step.weight, offset=offset)

    return rule


def noisier_ends(chain: Chain, t: Times) -> Times:
    """Returns the time, of the chain's, at the noisier end of the step that each drawn `t` stands for."""
    return chain.times[step_index(t, len(chain.log_w)) + 1]


def step_index(t: Times, num_steps: int) -> Int[Array, " b"]:
    """Returns the index of the part of [0, 1), in `num_steps` equal parts, that t lies in: 0 .. T - 1, also at t = 1."""
    # The minimum serves t = 1, which a time sampler's rounding
    # may reach: there floor gives T, past the last step.
    return jnp.minimum(jnp.floor(t * num_steps), num_steps - 1).astype(jnp.int32)


def x_hat_from_output(out: Data, z: Data, log_snr: LogSNR, parameterization: Parameterization) -> Data:
    """Returns x_hat, from out = p x_hat + q eps_hat and z = alpha x_hat + sigma eps_hat."""
    alpha, sigma = alpha_sigma(log_snr)
    p, q = parameterization(log_snr)
    # Two linear equations in x_hat and eps_hat, solved for x_hat by Cramer's rule. The determinant is 1 for
    # v-prediction (p, q) = (-sigma, alpha), alpha for eps-prediction and -sigma for x-prediction.
    return scale(1 / (q * alpha - p * sigma), scale(q, z) - scale(sigma, out))


def network_error(
    log_snr: LogSNR, x_phi: Data, eps: Data, network: Denoise, parameterization: Parameterization
) -> Data:
    """Returns x_hat - x_phi at z = alpha x_phi + sigma eps, for a network that estimates p x_phi + q eps.

    Written through the network's own error, which stays exact in float32 where alpha or sigma vanish:
    -sigma / (q alpha - p sigma) (out - p x_phi - q eps).
    """
    alpha, sigma = alpha_sigma(log_snr)
    p, q = parameterization(log_snr)
    # Inserting z = alpha x_phi + sigma eps into `x_hat_from_output` and subtracting
    # x_phi cancels all terms but these. The factor is -sigma for v: the small error is
    # a small factor times an error of order 1, not a difference of two numbers of order
    # 1. With the weight e^lambda that is the v- or eps-form of the loss [19, 20, 123].
    out = network(diffuse(x_phi, eps, log_snr), log_snr)
    return scale(-sigma / (q * alpha - p * sigma), out - scale(p, x_phi) - scale(q, eps))


def estimate_error(
    step: Step, eps: Data, network: Denoise, parameterization: Parameterization, mean: BoundMean
) -> tuple[Estimate, Data]:
    """Returns the errors of the estimates of x_phi and its slope, and x_hat - x_phi, at z = alpha x_phi + sigma eps."""
    x_hat_error = network_error(step.log_snr, step.x_phi, eps, network, parameterization)
    z = diffuse(step.x_phi, eps, step.log_snr)
    return mean.error(x_hat_error, step.truth, z, step.interval), x_hat_error


def step_error(interval: Interval, error: Estimate) -> Data:
    """Returns value_weight (value - x_phi) + (slope - slope of x_phi): in discrete time (mu_P - mu_Q) / (alpha_s c)."""
    # Only this sum enters the bound: heads for value and
    # slope could trade one for the other without changing it.
    return scale(interval.value_weight, error.value) + error.slope


def step_loss(step: Step, error: Estimate) -> PerExample:
    """Returns one draw of the diffusion loss, from the errors of the estimates [9, 14, 18]."""
    # [B] in nats; all factors are per image, the network's error alone is of the size of an image.
    return step.offset + step.weight * sum_squares(step_error(step.interval, error))


def diffusion_loss(
    step: Step, eps: Data, network: Denoise, parameterization: Parameterization, mean: BoundMean
) -> PerExample:
    """Returns one draw of the diffusion loss, from the noise `eps` [9, 14, 18]."""
    return step_loss(step, estimate_error(step, eps, network, parameterization, mean)[0])


def latent_loss(x_phi: Data, log_snr: LogSNR) -> PerExample:
    """KL(q(z_1 | x) || N(0, 1)) [51]; `x_phi` and `log_snr` at t = 1."""
    alpha_2, num_dims = alpha_squared(log_snr), x_phi[0].size
    # The value is 2e-5 at lambda = -5: here a difference of
    # numbers of 0.007, in the textbook form one of numbers near 1.
    # sigma^2 - 1 - log sigma^2 = softplus(lambda) - alpha^2
    return 0.5 * (alpha_2 * sum_squares(x_phi) + num_dims * (jax.nn.softplus(log_snr) - alpha_2))


def reconstruction_loss(pixels: Data, levels: Levels, log_snr: LogSNR, num_levels: int) -> PerExample:
    """-log p(x | z_0) [55], p(v | z_0) proportional to N(z_0; alpha_0 v, sigma_0^2) over the levels v.

    Args:
      pixels: z_0 / alpha_0; made by `diffused_pixels`, since a product by alpha and its undoing cost digits.
      levels: the image's integers.
      log_snr: at t = 0.
    """
    # (z_0 - alpha_0 v)^2 / (2 sigma_0^2) = (SNR_0 / 2) (z_0 / alpha_0 - v)^2: the constant of the normal
    # density is common to all levels and cancels in the normalised probability.
    half_snr = 0.5 * jnp.exp(log_snr)
    # Levels are those of x, not of x_phi(lambda_0): the decoder must not need the encoder [55].
    chosen = scale(half_snr, jnp.square(pixels - scale_pixels(levels, num_levels)))
    return sum_data(chosen + log_partition(pixels, half_snr, num_levels))


def diffused_pixels(x_phi: Data, eps: Data, log_snr: LogSNR) -> Data:
    """z / alpha = x_phi + (sigma / alpha) eps."""
    # sigma / alpha = e^(-lambda / 2) for any variance-preserving
    # process: no quotient of two rounded square roots.
    return x_phi + scale(jnp.exp(-0.5 * log_snr), eps)


def stratified_times(u: Float[Array, ""], count: int) -> Times:
    """t_i = (u + i / count) mod 1: each uniform on [0, 1), together one in every stratum (VDM, App. I.1)."""
    # Each t_i alone is uniform, so that the estimate of the bound is unbiased; together they cover [0, 1)
    # evenly, which removes most of the variance between batches that comes from t.
    return jnp.mod(u + jnp.arange(count) / count, 1.0)
