"""What every schedule keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import LearnedInterior
from diffenc.testing.assertions import require, require_close, require_finite, require_like
from diffenc.testing.make_inputs import init_of, require_trainable, shaken

STEP = 1e-6  # of t
LEARNED = (0.3, 3.0)  # standard deviations of what training may add to parameters


def its_parameters_can_be_trained(plugin: Any) -> None:
    """A pytree of float32 arrays, of any shape, whose structure is the same at each call of `init`."""
    require_trainable(plugin)


def log_snr_is_shaped_like_t(plugin: Any) -> None:
    """And float32, compiled or not."""
    params, t = init_of(plugin)(jax.random.key(0)), jnp.linspace(0, 1, 7)
    got = plugin.apply(params, t)
    require_like(got, t, plugin, "log_snr")
    require_close(jax.jit(plugin.apply)(params, t), got, plugin, "compiled, log_snr is another", 1e-6, 1e-6)


def log_snr_falls_strictly(plugin: Any) -> None:
    """From t = 0 to t = 1, in float32, in a thousand steps."""
    log_snr = np.asarray(plugin.apply(init_of(plugin)(jax.random.key(0)), jnp.linspace(0, 1, 1001)))
    _require_falling(log_snr, plugin, "at first")


def log_snr_falls_strictly_whatever_is_learned(plugin: Any) -> None:
    """In a hundred steps, for parameters that training may reach."""
    params, apply, t = init_of(plugin)(jax.random.key(0)), jax.jit(plugin.apply), jnp.linspace(0, 1, 101)
    for scale in LEARNED:
        for seed in range(8):
            _require_falling(
                np.asarray(apply(shaken(params, scale, seed), t)), plugin, f"parameters moved by {scale}"
            )


def _require_falling(log_snr: np.ndarray, plugin: Any, when: str) -> None:
    require_finite(log_snr, plugin, f"log_snr, {when}")
    steps = np.diff(log_snr)
    worst = int(np.argmax(steps))
    require(steps[worst] < 0, plugin, f"log_snr does not fall at t = {worst / len(steps):.3f} ({when})")


def the_rate_is_that_of_the_value(plugin: Any) -> None:
    """d log_snr / dt as jax.jvp gives it, against differences, in float64."""
    with jax.enable_x64(True):
        params, t = init_of(plugin)(jax.random.key(0)), jnp.linspace(0.1, 0.9, 9)
        apply = jax.jit(lambda t: plugin.apply(params, t))
        _, rate = jax.jvp(apply, (t,), (jnp.ones_like(t),))
        difference = (apply(t + STEP) - apply(t - STEP)) / (2 * STEP)
        require_close(rate, difference, plugin, "jax.jvp's rate is not that of the value", 1e-7)


def gradients_are_finite(plugin: Any) -> None:
    """Of log_snr and of its rate, in t and in the parameters, both ends included."""

    def total(params, t):
        value, rate = jax.jvp(lambda t: plugin.apply(params, t), (t,), (jnp.ones_like(t),))
        return jnp.sum(value + rate)

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(
        init_of(plugin)(jax.random.key(0)), jnp.linspace(0, 1, 9)
    )
    require_finite(gradient, plugin, "a gradient of log_snr or of its rate")


def no_time_sees_another(plugin: Any) -> None:
    """In another order each has the log_snr it had."""
    params, t = init_of(plugin)(jax.random.key(0)), jnp.asarray([0.9, 0.0, 0.4, 1.0])
    order = jnp.asarray([2, 0, 3, 1])
    moved = plugin.apply(params, t[order])
    require_close(
        moved, plugin.apply(params, t)[order], plugin, "the order of times changes log_snr", 1e-6, 1e-6
    )


def an_interior_leaves_ends_and_bound_alone(plugin: Any) -> None:
    """Of a schedule with `interior`: the value of `apply`, and gradients that reach none of its parameters."""
    if not isinstance(plugin, LearnedInterior):
        return
    params, t = shaken(init_of(plugin)(jax.random.key(0)), 2.0), jnp.linspace(0, 1, 9)
    same = plugin.interior(params, t)
    require_close(same, plugin.apply(params, t), plugin, "`interior` is not the value of `apply`", 1e-6, 1e-6)
    bound, interior = (jax.jacobian(f)(params, t) for f in (plugin.apply, plugin.interior))
    for one, other in zip(jax.tree.leaves(bound), jax.tree.leaves(interior), strict=True):
        both = np.any(one != 0) and np.any(other != 0)
        require(not both, plugin, "a parameter has gradients of both `apply` and `interior`")
        require_close(other[np.array([0, -1])], 0, plugin, "the interior moves an end", 0.0, 1e-5)
    reached = any(np.any(leaf != 0) for leaf in jax.tree.leaves(interior))
    require(reached, plugin, "no gradient of `interior` reaches a parameter")


CHECKS = (
    its_parameters_can_be_trained,
    log_snr_is_shaped_like_t,
    log_snr_falls_strictly,
    log_snr_falls_strictly_whatever_is_learned,
    the_rate_is_that_of_the_value,
    gradients_are_finite,
    no_time_sees_another,
    an_interior_leaves_ends_and_bound_alone,
)
