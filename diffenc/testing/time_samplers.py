"""Conformance checks of time samplers: weights must keep every mean over t unbiased."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import GRADIENT_CURVE, LOSS_CURVE, requires
from diffenc.testing.assertions import require, require_close, require_declared, require_finite, require_like

# Shapes on which inverse-transform sampling may fail: empty bins, a single bin, a curve that is zero.
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
NUM_QUADRATURE = 400_000


def weighted_means_equal_uniform_means(plugin: Any) -> None:
    """Requires weighted means to equal means over uniform t, by quadrature in float64."""
    uniform = (np.arange(10**6) + 0.5) / 10**6
    for curve, _, t, weight in _sample_times(plugin, NUM_QUADRATURE):
        for name, function in FUNCTIONS.items():
            message = f"the weighted mean of {name} differs from its mean over uniform t (curve: {curve})"
            got, want = np.mean(weight * function(t)), np.mean(function(uniform))
            require_close(got, want, plugin, message, 1e-4, 1e-4)


def weight_is_dt_du(plugin: Any) -> None:
    """Requires weight = dt / du = 1 / density, apart from the few steps that straddle two bins."""
    # A prime number of times, so that they do not align with the bins of a curve.
    for curve, u, t, weight in _sample_times(plugin, 20_011):
        errors = np.sort(np.abs(np.diff(t) / np.diff(u) / (0.5 * (weight[1:] + weight[:-1])) - 1))
        message = f"the weight differs from dt / du (curve: {curve})"
        require_close(errors[: -2 * len(CURVES[curve])], 0, plugin, message, 0.0, 1e-6)


def _sample_times(plugin: Any, count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (name of the curve, u, t, weight) for each curve, at `count` midpoints of [0, 1], in float64."""
    u = (np.arange(count) + 0.5) / count
    for name, curve in CURVES.items():
        with jax.enable_x64(True):
            t, weight = plugin(jnp.asarray(u), jnp.asarray(curve))
            yield name, u, np.asarray(t, np.float64), np.asarray(weight, np.float64)


def times_increase_from_0_to_1(plugin: Any) -> None:
    """Requires t that increases with u from 0 to 1 and finite positive weights, compiled and in float32."""
    # u is drawn from [0, 1), so this is its largest value.
    last = np.nextafter(np.float32(1), 0)
    u = jnp.asarray(np.r_[0, (np.arange(5000) + 0.5) / 5000, last], jnp.float32)
    for name, curve in CURVES.items():
        t, weight = jax.jit(plugin)(u, jnp.asarray(curve, jnp.float32))
        require_like(t, u, plugin, "t")
        require_like(weight, u, plugin, "the weight")
        require(np.all(np.diff(t) >= 0), plugin, f"t does not increase with u (curve: {name})")
        ends = 0 <= t[0] < 1e-3 and 1 - 1e-3 < t[-1] <= 1
        require(ends, plugin, f"t goes from {t[0]} to {t[-1]}, not from 0 to 1 (curve: {name})")
        require_finite(weight, plugin, f"the weight (curve: {name})")
        require(np.all(np.asarray(weight) > 0), plugin, f"a weight is not positive (curve: {name})")


def requirements_are_declared(plugin: Any) -> None:
    """Requires that it works without a curve unless it declares LOSS_CURVE or GRADIENT_CURVE."""
    curve = GRADIENT_CURVE if requires(plugin, GRADIENT_CURVE) else LOSS_CURVE
    require_declared(
        plugin, curve, "t without a curve", lambda: plugin(jnp.asarray([0.0, 0.5]), None), "curve"
    )


CHECKS = (
    weighted_means_equal_uniform_means,
    weight_is_dt_du,
    times_increase_from_0_to_1,
    requirements_are_declared,
)
