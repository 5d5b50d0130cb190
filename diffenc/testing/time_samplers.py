"""What every time sampler keeps: times and weights that leave any mean over t as it is."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import LOSS_CURVE
from diffenc.testing.assertions import require, require_close, require_declared, require_finite, require_like

CURVES = {
    "flat": np.ones(8),
    "peaked": np.exp(-np.square(np.arange(64) - 9.5) / 8),
    "rough": np.random.default_rng(0).exponential(size=33) ** 4,
    "mostly nothing": np.r_[np.zeros(15), 1e6, np.zeros(4)],
    "nothing": np.zeros(5),
    "of one bin": np.full(1, 3.0),
}
FUNCTIONS = {
    "1": np.ones_like,
    "t": lambda t: t,
    "exp(3 t)": lambda t: np.exp(3 * t),
    "sin(40 t)": lambda t: np.sin(40 * t),
    "t > 0.37": lambda t: t > 0.37,
}
MANY = 400_000


def weighted_means_are_means_over_uniform_times(plugin: Any) -> None:
    """By quadrature over u, in float64; of 1, it says that the density integrates to one."""
    uniform = (np.arange(10**6) + 0.5) / 10**6
    for curve, _, t, weight in _proposed(plugin, MANY):
        for name, function in FUNCTIONS.items():
            message = f"the weighted mean of {name} is not its mean over uniform t (curve: {curve})"
            got, want = np.mean(weight * function(t)), np.mean(function(uniform))
            require_close(got, want, plugin, message, 1e-4, 1e-4)


def the_weight_is_the_slope_of_t(plugin: Any) -> None:
    """dt / du = 1 / density, apart from the few steps that straddle two bins."""
    for curve, u, t, weight in _proposed(plugin, 20_011):
        off = np.sort(np.abs(np.diff(t) / np.diff(u) / (0.5 * (weight[1:] + weight[:-1])) - 1))
        message = f"the weight is not dt / du (curve: {curve})"
        require_close(off[: -2 * len(CURVES[curve])], 0, plugin, message, 0.0, 1e-6)


def _proposed(plugin: Any, count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """For each curve (its name, u, t, weight) at the middles of `count` equal parts of [0, 1), in float64."""
    u = (np.arange(count) + 0.5) / count
    for name, curve in CURVES.items():
        with jax.enable_x64(True):
            t, weight = plugin(jnp.asarray(u), jnp.asarray(curve))
            yield name, u, np.asarray(t, np.float64), np.asarray(weight, np.float64)


def times_rise_with_u_through_all_of_time(plugin: Any) -> None:
    """In float32, compiled, from 0 to 1, with weights that are finite and positive."""
    last = np.nextafter(np.float32(1), 0)
    u = jnp.asarray(np.r_[0, (np.arange(5000) + 0.5) / 5000, last], jnp.float32)
    for name, curve in CURVES.items():
        t, weight = jax.jit(plugin)(u, jnp.asarray(curve, jnp.float32))
        require_like(t, u, plugin, "t")
        require_like(weight, u, plugin, "the weight")
        require(np.all(np.diff(t) >= 0), plugin, f"t does not rise with u (curve: {name})")
        ends = 0 <= t[0] < 1e-3 and 1 - 1e-3 < t[-1] <= 1
        require(ends, plugin, f"t goes from {t[0]} to {t[-1]}, not from 0 to 1 (curve: {name})")
        require_finite(weight, plugin, f"the weight (curve: {name})")
        require(np.all(np.asarray(weight) > 0), plugin, f"a weight is not positive (curve: {name})")


def what_it_requires_is_declared(plugin: Any) -> None:
    """Without a measurement that it does not require it works; what it requires is known."""
    require_declared(
        plugin, LOSS_CURVE, "t without a curve", lambda: plugin(jnp.asarray([0.0, 0.5]), None), "curve"
    )


CHECKS = (
    weighted_means_are_means_over_uniform_times,
    the_weight_is_the_slope_of_t,
    times_rise_with_u_through_all_of_time,
    what_it_requires_is_declared,
)
