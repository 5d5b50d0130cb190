"""Solvers of the reverse process: one step from z at lambda_t to z at lambda_s, h = lambda_s - lambda_t > 0.

With G = (1 + eta^2) / 2, 1 on the paper's path (`diffenc.core.stochasticity`), the minimiser of the diffusion loss is
x_hat = E[G x_phi + d x_phi / d lambda | z] / (G + kappa). The steps of the generative SDE, on the same path, use x_hat
only as (G + kappa) x_hat, so they are consistent for every encoder. The steps of the probability-flow ODE need
E[x_phi | z] and E[d x_phi / d lambda | z] separately, and approximate them by x_hat and kappa x_hat, which is exact where
d x_phi / d lambda = kappa x_phi (`slope_is_modelled`). For any other encoder, in particular a trained one, they sample
from a different model than the one of the trained bound. They do not depend on the path, whose marginals are all alike.

A model trained at T steps has another minimiser, of those steps alone: with g the fraction of the residual that stays,
E[(1 - g) x_t + (x_s - x_t) | z] / (1 - g + (lambda_s - lambda_t) kappa). It is E[x_phi | z], which serves any step of any
solver, only where x_phi does not depend on lambda, as for the identity encoder. For any other encoder only steps of
`ancestral` as long as those of training are consistent with the trained bound.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.core.conditioning import conditioned_modules
from diffenc.core.gaussian import alpha_sigma, alpha_squared, scale
from diffenc.core.model import Model
from diffenc.core.stochasticity import Increment, eta_squared, mean_fraction, renewed_fraction
from diffenc.interfaces import Context, Data, GenerativeMean, LogSNR, Params, PerExample

XHat = Callable[[Data, LogSNR], Data]

# (z, log_snr_t, log_snr_s, log_w, x_hat, mean, increment, noise) -> z_s; the noise is standard normal, shaped like z
Solver = Callable[[Data, LogSNR, LogSNR, PerExample, XHat, GenerativeMean, Increment, Data], Data]


def reverse_step(
    z: Data, x_hat: Data, log_snr_t: LogSNR, log_snr_s: LogSNR, mean: GenerativeMean, increment: Increment
) -> tuple[Data, LogSNR]:
    """Returns mean and standard deviation of p(z_s | z_t) [17], with sigma_P = sigma_Q.

    The mean is that of q(z_s | z_t, x), with x_hat for x_t and (1 + (lambda_s - lambda_t) kappa) x_hat for x_s:
    alpha_s (x_s + g (z / alpha_t - x_t)), g and sigma_Q those of `diffenc.core.stochasticity`.
    """
    alpha_t, _ = alpha_sigma(log_snr_t)
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    rise, clock_rise = log_snr_s - log_snr_t, increment(log_snr_t, log_snr_s)
    fraction = mean_fraction(rise, clock_rise)
    gain = fraction + rise * mean(log_snr_t)
    mu = scale(alpha_s / alpha_t * (1 - fraction), z) + scale(alpha_s * gain, x_hat)
    return mu, sigma_s * jnp.sqrt(renewed_fraction(clock_rise))


def ancestral(
    z: Data,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    log_w: PerExample,
    x_hat: XHat,
    mean: GenerativeMean,
    increment: Increment,
    noise: Data,
) -> Data:
    """Draws from p(z_s | z_t) = N(mu_P, sigma_P^2) [17], sigma_P^2 = sigma_Q^2 / w [9]. Valid for any encoder.

    The only solver that samples from the model of the discrete-time bound.
    """
    mu, sigma = reverse_step(z, x_hat(z, log_snr_t), log_snr_t, log_snr_s, mean, increment)
    return mu + scale(sigma * jnp.exp(-0.5 * log_w), noise)


def euler_maruyama(
    z: Data,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    log_w: PerExample,
    x_hat: XHat,
    mean: GenerativeMean,
    increment: Increment,
    noise: Data,
) -> Data:
    """Weak first-order step of the generative SDE [App. H] in lambda. Valid for any encoder.

    dz = (-1/2 (alpha^2 + eta^2) z + alpha (1/2 (1 + eta^2) + kappa) x_hat) dlambda + eta sigma dW.
    """
    alpha, sigma = alpha_sigma(log_snr_t)
    rise, eta_2 = log_snr_s - log_snr_t, eta_squared(increment, log_snr_t)
    to_z = -0.5 * rise * (alpha_squared(log_snr_t) + eta_2)
    to_x_hat = rise * alpha * (0.5 * (1 + eta_2) + mean(log_snr_t))
    drift = scale(to_z, z) + scale(to_x_hat, x_hat(z, log_snr_t))
    return z + drift + scale(sigma * jnp.sqrt(rise * eta_2), noise)


def ddim(
    z: Data,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    log_w: PerExample,
    x_hat: XHat,
    mean: GenerativeMean,
    increment: Increment,
    noise: Data,
) -> Data:
    """Keeps eps_hat and moves x_hat along its modelled slope. Valid only where `slope_is_modelled`.

    z_s = alpha_s (1 + h kappa) x_hat + sigma_s eps_hat, eps_hat = (z - alpha_t x_hat) / sigma_t. Deterministic,
    first order for dz/dlambda = -1/2 alpha^2 z + alpha (kappa + 1/2) x_hat; exact if x_hat = x and kappa = 0.
    """
    rise = log_snr_s - log_snr_t
    # alpha_s - alpha_t sigma_s / sigma_t = alpha_s (1 - e^(-h/2)), without cancellation
    gain = rise * mean(log_snr_t) - jnp.expm1(-0.5 * rise)
    return _exponential_step(z, log_snr_t, log_snr_s, gain, x_hat(z, log_snr_t))


def exponential_midpoint(
    z: Data,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    log_w: PerExample,
    x_hat: XHat,
    mean: GenerativeMean,
    increment: Increment,
    noise: Data,
) -> Data:
    """Second-order step of the probability-flow ODE. Valid only where `slope_is_modelled`. Calls x_hat twice.

    y = z / sigma obeys dy/dlambda = e^(lambda/2) (1/2 + kappa) x_hat. The factor e^(lambda/2) is integrated exactly,
    the rest evaluated at the midpoint in lambda, which a first-order step of the same form reaches.
    """
    middle = 0.5 * (log_snr_t + log_snr_s)

    def step(end: LogSNR, at: LogSNR, estimate: Data) -> Data:
        # sigma_s 2 (e^(lambda_s/2) - e^(lambda_t/2)) = 2 alpha_s (1 - e^(-h/2)), which cannot overflow at any lambda
        gain = -2 * jnp.expm1(0.5 * (log_snr_t - end)) * (0.5 + mean(at))
        return _exponential_step(z, log_snr_t, end, gain, estimate)

    z_middle = step(middle, log_snr_t, x_hat(z, log_snr_t))
    return step(log_snr_s, middle, x_hat(z_middle, middle))


def _exponential_step(z: Data, log_snr_t: LogSNR, log_snr_s: LogSNR, gain: PerExample, x_hat: Data) -> Data:
    """Returns (sigma_s / sigma_t) z + alpha_s gain x_hat."""
    (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(log_snr_t), alpha_sigma(log_snr_s)
    return scale(sigma_s / sigma_t, z) + scale(alpha_s * gain, x_hat)


SDE_SOLVERS: dict[str, Solver] = {"ancestral": ancestral, "euler_maruyama": euler_maruyama}
ODE_SOLVERS: dict[str, Solver] = {"ddim": ddim, "exponential_midpoint": exponential_midpoint}
SOLVERS: dict[str, Solver] = SDE_SOLVERS | ODE_SOLVERS


def slope_is_modelled(
    model: Model, params: Params, image_shape: tuple[int, ...], trained_at: int = 0
) -> bool:
    """Returns whether d x_phi / d lambda = kappa x_phi, to 1e-4 of |x_phi|, as ODE solvers and likelihood assume.

    For a model trained at T = `trained_at` > 0 both sides must be 0, for else x_hat is that of the T steps alone.

    Tests a random image at each of three values of log_snr, and of each class that the encoder knows, by one jvp of
    the encoder. Compiles at each call.
    """
    error, mean = jax.jit(partial(_slope_error, model, image_shape=image_shape))(params)
    return bool(error <= 1e-4) and (trained_at == 0 or bool(mean <= 1e-4))


def _slope_error(
    model: Model, params: Params, image_shape: tuple[int, ...]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns max |d x_phi / d lambda - kappa x_phi| / |x_phi|, norms over an image, and max |kappa|."""
    count = max((count for _, count in conditioned_modules(model.encoder)), default=1)
    # No larger values: at low noise x_phi approaches x whatever the encoder, and its slope vanishes.
    log_snr = jnp.tile(jnp.array([-4.0, -1.0, 2.0]), count)
    x = jax.random.uniform(jax.random.key(0), (len(log_snr), *image_shape), minval=-1.0)
    condition = jax.tree.map(jnp.asarray, model.conditioning(np.repeat(np.arange(count, dtype=np.int32), 3)))
    encode = model.prepare(params, x, Context(condition))
    x_phi, slope = jax.jvp(encode, (log_snr,), (jnp.ones_like(log_snr),))
    mean = model.generative_mean(log_snr)
    error = slope - scale(mean, x_phi)
    axes = tuple(range(1, x.ndim))
    return jnp.max(jnp.sqrt(jnp.sum(error**2, axes) / jnp.sum(x_phi**2, axes))), jnp.max(jnp.abs(mean))
