"""Ancestral sampling, once for all plugins; one compiled scan over the steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffenc.gaussian import alpha_sigma, scale, step_fraction
from diffenc.interfaces import Condition, Data, GenerativeMean, Key, LogSNR, Parameterization, Params
from diffenc.model import Model
from diffenc.pixels import Levels, nearest_levels

XHat = Callable[[Data, LogSNR], Data]


def x_hat_from(out: Data, z: Data, log_snr: LogSNR, parameterization: Parameterization) -> Data:
    """x_hat, from out = p x_hat + q eps_hat and z = alpha x_hat + sigma eps_hat."""
    alpha, sigma = alpha_sigma(log_snr)
    p, q = parameterization(log_snr)
    return scale(1 / (q * alpha - p * sigma), scale(q, z) - scale(sigma, out))


def reverse_step(
    z: Data, x_hat: Data, log_snr_t: LogSNR, log_snr_s: LogSNR, mean: GenerativeMean
) -> tuple[Data, LogSNR]:
    """Mean and standard deviation of p(z_s | z_t) [17], with sigma_P = sigma_Q."""
    alpha_t, _ = alpha_sigma(log_snr_t)
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    fraction = step_fraction(log_snr_t, log_snr_s)
    gain = fraction + (log_snr_s - log_snr_t) * mean(log_snr_t)
    mu = scale(alpha_s / alpha_t * (1 - fraction), z) + scale(alpha_s * gain, x_hat)
    return mu, sigma_s * jnp.sqrt(fraction)


def ancestral(
    key: Key,
    z: Data,
    log_snrs: Float[Array, " steps_plus_one"],
    x_hat: XHat,
    mean: GenerativeMean,
    first: int | Int[Array, ""] = 0,
) -> Data:
    """z at log_snrs[-1], from z at log_snrs[0], the noisiest.

    The noise of step i is fold_in(key, first + i), so that a chain cut into stretches stays the same chain.
    """

    def body(z: Data, step) -> tuple[Data, None]:
        index, log_snr_t, log_snr_s = step
        log_snr_t, log_snr_s = (jnp.broadcast_to(value, z.shape[:1]) for value in (log_snr_t, log_snr_s))
        mu, sigma = reverse_step(z, x_hat(z, log_snr_t), log_snr_t, log_snr_s, mean)
        noise = jax.random.normal(jax.random.fold_in(key, index), z.shape, z.dtype)
        return mu + scale(sigma, noise), None

    steps = (first + jnp.arange(len(log_snrs) - 1), log_snrs[:-1], log_snrs[1:])
    return jax.lax.scan(body, z, steps)[0]


def decode(z_0: Data, log_snr_0: LogSNR, num_levels: int) -> Levels:
    """argmax over the levels of p(x | z_0) [55]: the level nearest to z_0 / alpha_0."""
    return nearest_levels(scale(1 / alpha_sigma(log_snr_0)[0], z_0), num_levels)


def x_hat_of(model: Model, params: Params, condition: Condition | None = None) -> XHat:
    """The model's estimate of x_phi as a function of (z, log_snr), without dropout."""

    def x_hat(z: Data, log_snr: LogSNR) -> Data:
        out = model.network.apply(params["network"], z, log_snr, condition=condition)
        return x_hat_from(out, z, log_snr, model.parameterization)

    return x_hat


def sampling_log_snrs(model: Model, params: Params, steps: int) -> Float[Array, " steps_plus_one"]:
    """log_snr at `steps` equal steps of t, from 1 down to 0."""
    return model.schedule.apply(params["schedule"], jnp.linspace(1.0, 0.0, steps + 1))


def sample(
    model: Model,
    params: Params,
    key: Key,
    shape: tuple[int, ...],
    *,
    num_levels: int,
    steps: int,
    condition: Condition | None = None,
) -> Levels:
    """Images of `shape` [B, H, W, C], int32 levels, by `steps` equal steps of t. The encoder is not used."""
    z_key, step_key = jax.random.split(key)
    log_snrs = sampling_log_snrs(model, params, steps)
    z_1 = jax.random.normal(z_key, shape)
    z_0 = ancestral(step_key, z_1, log_snrs, x_hat_of(model, params, condition), model.mean)
    return decode(z_0, jnp.broadcast_to(log_snrs[-1], shape[:1]), num_levels)
