"""Conformance checks of variances."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import EXCESS, LearnedVariance
from diffenc.testing.assertions import require_close, require_declared, require_finite, require_like

LOG_SNR = np.linspace(-15, 15, 12)
# from a negligible excess to one far above sigma_Q^2
MEASURED = np.geomspace(1e-6, 30, 11)


def _log_w(plugin: Any, order: np.ndarray | None = None) -> Any:
    order = np.arange(11) if order is None else order
    plugin = _begun(plugin)
    steps = (LOG_SNR[:-1][order], LOG_SNR[1:][order], MEASURED[order])
    return plugin(*(jnp.asarray(values, jnp.result_type(float)) for values in steps))


def _begun(plugin: Any) -> Any:
    """Returns a variance of 11 steps; a learned one is as at the start of training."""
    return plugin.given(plugin.init(11)) if isinstance(plugin, LearnedVariance) else plugin


def log_w_is_finite_for_each_step(plugin: Any) -> None:
    """Requires a finite log w for each step, in the dtype of the inputs, and the same values when compiled."""
    for x64 in (False, True):
        with jax.enable_x64(x64):
            eager, compiled = _log_w(plugin), jax.jit(lambda: _log_w(plugin))()
            require_like(eager, jnp.zeros(11, jnp.result_type(float)), plugin, "log w of 11 steps")
            require_finite(eager, plugin, "log w")
            require_close(compiled, eager, plugin, "log w changes when compiled", 1e-6, 1e-6)


def log_w_ignores_other_steps(plugin: Any) -> None:
    """Requires that permuting the steps permutes log w."""
    order = np.random.default_rng(0).permutation(11)
    permuted, whole = _log_w(plugin, order), np.asarray(_log_w(plugin))
    require_close(permuted, whole[order], plugin, "the order of steps changes w", 1e-6, 1e-7)


def requirements_are_declared(plugin: Any) -> None:
    """Requires that it works without `excess` unless it declares EXCESS."""

    def log_w() -> Any:
        steps = (jnp.asarray(values, jnp.float32) for values in (LOG_SNR[:-1], LOG_SNR[1:]))
        return _begun(plugin)(*steps, None)

    require_declared(plugin, EXCESS, "log w without `excess`", log_w, "excess")


CHECKS = (log_w_is_finite_for_each_step, log_w_ignores_other_steps, requirements_are_declared)
