"""Conformance checks of schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import LearnedInterior
from diffenc.testing.assertions import require, require_close, require_finite, require_like
from diffenc.testing.make_inputs import checked_init, perturb, require_trainable

STEP = 1e-6  # of t
PERTURBED = (0.3, 3.0)  # standard deviations of the noise on parameters that stands for training


def parameters_are_trainable(plugin: Any) -> None:
    """Requires a pytree of float32 arrays of the same structure at each call of `init`."""
    require_trainable(plugin)


def log_snr_matches_t(plugin: Any) -> None:
    """Requires float32 log_snr with the shape of t, and the same values when compiled."""
    params, t = checked_init(plugin)(jax.random.key(0)), jnp.linspace(0, 1, 7)
    got = plugin.apply(params, t)
    require_like(got, t, plugin, "log_snr")
    require_close(jax.jit(plugin.apply)(params, t), got, plugin, "log_snr changes when compiled", 1e-6, 1e-6)


def log_snr_falls_strictly(plugin: Any) -> None:
    """Requires that log_snr decreases strictly from t = 0 to t = 1, on 1001 float32 times."""
    log_snr = np.asarray(plugin.apply(checked_init(plugin)(jax.random.key(0)), jnp.linspace(0, 1, 1001)))
    _require_falling(log_snr, plugin, "at initialisation")


def log_snr_falls_strictly_after_training(plugin: Any) -> None:
    """Requires the same, on 101 times, for perturbed parameters that training may reach."""
    params, apply, t = checked_init(plugin)(jax.random.key(0)), jax.jit(plugin.apply), jnp.linspace(0, 1, 101)
    for scale in PERTURBED:
        for seed in range(8):
            log_snr = np.asarray(apply(perturb(params, scale, seed), t))
            _require_falling(log_snr, plugin, f"parameters perturbed by {scale}")


def _require_falling(log_snr: np.ndarray, plugin: Any, case: str) -> None:
    require_finite(log_snr, plugin, f"log_snr, {case}")
    steps = np.diff(log_snr)
    worst = int(np.argmax(steps))
    require(steps[worst] < 0, plugin, f"log_snr does not decrease at t = {worst / len(steps):.3f} ({case})")


def rate_agrees_with_differences(plugin: Any) -> None:
    """Requires jax.jvp's d log_snr / dt to agree with finite differences, in float64."""
    with jax.enable_x64(True):
        params, t = checked_init(plugin)(jax.random.key(0)), jnp.linspace(0.1, 0.9, 9)
        apply = jax.jit(lambda t: plugin.apply(params, t))
        _, rate = jax.jvp(apply, (t,), (jnp.ones_like(t),))
        difference = (apply(t + STEP) - apply(t - STEP)) / (2 * STEP)
        require_close(rate, difference, plugin, "jax.jvp's rate differs from finite differences", 1e-7)


def gradients_are_finite(plugin: Any) -> None:
    """Requires finite gradients of log_snr and its rate, in t and in the parameters, both ends included."""

    def total(params, t):
        value, rate = jax.jvp(lambda t: plugin.apply(params, t), (t,), (jnp.ones_like(t),))
        return jnp.sum(value + rate)

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(
        checked_init(plugin)(jax.random.key(0)), jnp.linspace(0, 1, 9)
    )
    require_finite(gradient, plugin, "a gradient of log_snr or of its rate")


def log_snr_ignores_other_times(plugin: Any) -> None:
    """Requires that permuting the times permutes log_snr."""
    params, t = checked_init(plugin)(jax.random.key(0)), jnp.asarray([0.9, 0.0, 0.4, 1.0])
    order = jnp.asarray([2, 0, 3, 1])
    permuted = plugin.apply(params, t[order])
    require_close(
        permuted, plugin.apply(params, t)[order], plugin, "the order of times changes log_snr", 1e-6, 1e-6
    )


def interior_changes_neither_ends_nor_bound(plugin: Any) -> None:
    """Requires of a LearnedInterior that `interior` equals `apply` and that both train disjoint parameters."""
    if not isinstance(plugin, LearnedInterior):
        return
    params, t = perturb(checked_init(plugin)(jax.random.key(0)), 2.0), jnp.linspace(0, 1, 9)
    same = plugin.interior(params, t)
    require_close(same, plugin.apply(params, t), plugin, "`interior` differs from `apply`", 1e-6, 1e-6)
    bound, interior = (jax.jacobian(f)(params, t) for f in (plugin.apply, plugin.interior))
    for one, other in zip(jax.tree.leaves(bound), jax.tree.leaves(interior), strict=True):
        # one parameter must not serve both objectives: the bound would train the interior, or the variance the ends
        both = np.any(one != 0) and np.any(other != 0)
        require(not both, plugin, "a parameter has gradients of both `apply` and `interior`: stop one")
        require_close(other[np.array([0, -1])], 0, plugin, "the interior changes an end", 0.0, 1e-5)
    reached = any(np.any(leaf != 0) for leaf in jax.tree.leaves(interior))
    require(reached, plugin, "`interior` has no gradient in any parameter")


CHECKS = (
    parameters_are_trainable,
    log_snr_matches_t,
    log_snr_falls_strictly,
    log_snr_falls_strictly_after_training,
    rate_agrees_with_differences,
    gradients_are_finite,
    log_snr_ignores_other_times,
    interior_changes_neither_ends_nor_bound,
)
