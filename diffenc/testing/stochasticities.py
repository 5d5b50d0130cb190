"""Conformance checks of stochasticities: increments are differences of an increasing function, to the last digits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import LogSNR, Params
from diffenc.testing.assertions import require, require_close, require_finite, require_like
from diffenc.testing.make_inputs import checked_init, perturb, require_trainable

LOG_SNR = np.array([-15.0, -8.0, -5.0, -2.1, 0.0, 1.3, 4.0, 9.0, 13.3, 15.0])
RISES = np.array([1e-4 * 18, 1e-2, 0.3, 2.0, 18.3])  # of log_snr over a step, the first at T = 10,000
STEP = 1e-5  # of log_snr
LEARNED = (0.3, 1.0)  # standard deviations of what training may add to parameters


def parameters_are_trainable(plugin: Any) -> None:
    """Requires a pytree of float32 arrays of the same structure at each call of `init`."""
    require_trainable(plugin)


def increments_are_shaped_like_log_snr(plugin: Any) -> None:
    """Requires increments with the shape and dtype of log_snr, in float32 and float64, and the same values when compiled."""
    for x64 in (False, True):
        with jax.enable_x64(x64):
            log_snr = jnp.asarray(LOG_SNR, jnp.result_type(float))
            increment = _learned(plugin)[1]
            eager, compiled = (f(log_snr, log_snr + 0.3) for f in (increment, jax.jit(increment)))
            require_like(eager, log_snr, plugin, "the increment")
            require_close(compiled, eager, plugin, "compiled, the increment is another", 1e-5)


def increments_rise_with_log_snr(plugin: Any) -> None:
    """Requires increments > 0 where log_snr_s > log_snr_t, and exactly 0 where they are equal, in float32, for any parameters."""
    for log_snr_t, log_snr_s in _steps():
        for increment in _learned(plugin, seeds=8):
            rise = np.asarray(increment(log_snr_t, log_snr_s))
            require_finite(rise, plugin, "the increment")
            require(np.all(rise > 0), plugin, "an increment to a higher log_snr is not above 0")
            same = np.asarray(increment(log_snr_t, log_snr_t))
            require(np.all(same == 0), plugin, "the increment from a log_snr to itself is not 0")


def increments_add_up(plugin: Any) -> None:
    """Requires two steps' increments to add up to that of the whole, and a step back to undo a step, in float64."""
    with jax.enable_x64(True):
        low, middle, high = (jnp.asarray(LOG_SNR + shift) for shift in (0.0, 0.7, 3.0))
        for increment in _learned(plugin):
            both = increment(low, middle) + increment(middle, high)
            message = "the increments of two steps do not add up to that of both"
            require_close(both, increment(low, high), plugin, message, 1e-10)
            back = increment(high, low)
            require_close(-back, increment(low, high), plugin, "a step back does not undo a step", 1e-10)


def short_steps_keep_their_digits(plugin: Any) -> None:
    """Requires increments in float32 to agree with float64, down to steps of T = 10,000 and at both usual ends of log_snr."""
    for log_snr_t, log_snr_s in _steps():
        single = [increment(log_snr_t, log_snr_s) for increment in _learned(plugin)]
        with jax.enable_x64(True):
            # The ends as rounded to float32, so that only the increment's own rounding counts.
            t, s = (jnp.asarray(np.asarray(end), jnp.float64) for end in (log_snr_t, log_snr_s))
            double = [increment(t, s) for increment in _learned(plugin)]
        require_close(single, double, plugin, "float32 has lost digits of the increment", 2e-5)


def eta_squared_is_the_rate_of_the_increment(plugin: Any) -> None:
    """Requires jax.jvp's derivative by log_snr_s, at a step of length 0, to be positive and to agree with finite differences."""
    single = [_rate(increment, jnp.asarray(LOG_SNR, jnp.float32)) for increment in _learned(plugin)]
    with jax.enable_x64(True):
        log_snr = jnp.asarray(LOG_SNR)
        for increment, in_float32 in zip(_learned(plugin), single, strict=True):
            rate = _rate(increment, log_snr)
            require(np.all(np.asarray(rate) > 0), plugin, "eta^2 is not above 0")
            difference = increment(log_snr - STEP, log_snr + STEP) / (2 * STEP)
            require_close(rate, difference, plugin, "jax.jvp's rate is not that of the increment", 1e-7)
            require_close(in_float32, rate, plugin, "float32 has lost digits of eta^2", 2e-5)


def gradients_are_finite(plugin: Any) -> None:
    """Requires finite gradients of increments and of eta^2, in both ends and in the parameters."""

    def total(params: Params, log_snr: LogSNR, rise: LogSNR) -> Any:
        def increment(t: LogSNR, s: LogSNR) -> LogSNR:
            return plugin.increment(params, t, s)

        return jnp.sum(increment(log_snr, log_snr + rise) + _rate(increment, log_snr))

    params, log_snr = checked_init(plugin)(jax.random.key(0)), jnp.asarray(LOG_SNR, jnp.float32)
    for rise in RISES:
        gradient = jax.grad(total, argnums=(0, 1, 2))(params, log_snr, jnp.full_like(log_snr, rise))
        require_finite(gradient, plugin, "a gradient of an increment or of eta^2")


def no_step_sees_another(plugin: Any) -> None:
    """Requires that permuting the steps permutes the increments."""
    order = np.random.default_rng(0).permutation(len(LOG_SNR))
    log_snr, increment = jnp.asarray(LOG_SNR, jnp.float32), _learned(plugin)[1]
    moved, whole = increment(log_snr[order], log_snr[order] + 1), increment(log_snr, log_snr + 1)
    require_close(moved, whole[order], plugin, "the order of steps changes an increment", 1e-6)


def _learned(plugin: Any, seeds: int = 1) -> list[Callable[[LogSNR, LogSNR], LogSNR]]:
    """Returns the plugin's increments, for the initial parameters and for perturbed ones that training may reach."""
    first = checked_init(plugin)(jax.random.key(0))
    reached = [perturb(first, scale, seed) for seed in range(seeds) for scale in LEARNED]
    return [functools.partial(plugin.increment, params) for params in (first, *reached)]


def _rate(increment: Callable[[LogSNR, LogSNR], LogSNR], log_snr: LogSNR) -> LogSNR:
    return jax.jvp(lambda log_snr_s: increment(log_snr, log_snr_s), (log_snr,), (jnp.ones_like(log_snr),))[1]


def _steps() -> list[tuple[LogSNR, LogSNR]]:
    """Returns both ends of steps of every length, at every log_snr, in float32."""
    starts = jnp.asarray(LOG_SNR, jnp.float32)
    return [(starts, starts + jnp.float32(rise)) for rise in RISES]


CHECKS = (
    parameters_are_trainable,
    increments_are_shaped_like_log_snr,
    increments_rise_with_log_snr,
    increments_add_up,
    short_steps_keep_their_digits,
    eta_squared_is_the_rate_of_the_increment,
    gradients_are_finite,
    no_step_sees_another,
)
