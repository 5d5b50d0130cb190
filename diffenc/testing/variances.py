"""What every variance keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import EXCESS, LearnedVariance
from diffenc.testing.assertions import require_close, require_declared, require_finite, require_like

LOG_SNR = np.linspace(-15, 15, 12)
MEASURED = np.geomspace(1e-6, 30, 11)


def _log_w(plugin: Any, order: np.ndarray | None = None) -> Any:
    order = np.arange(11) if order is None else order
    plugin = _begun(plugin)
    steps = (LOG_SNR[:-1][order], LOG_SNR[1:][order], MEASURED[order])
    return plugin(*(jnp.asarray(values, jnp.result_type(float)) for values in steps))


def _begun(plugin: Any) -> Any:
    """Returns a variance of 11 steps; a learned one is as at the start of training."""
    return plugin.given(plugin.init(11)) if isinstance(plugin, LearnedVariance) else plugin


def log_w_is_one_number_a_step(plugin: Any) -> None:
    """Finite, of the inputs' dtype, float64 too, and the same compiled."""
    for x64 in (False, True):
        with jax.enable_x64(x64):
            eager, compiled = _log_w(plugin), jax.jit(lambda: _log_w(plugin))()
            require_like(eager, jnp.zeros(11, jnp.result_type(float)), plugin, "log w of 11 steps")
            require_finite(eager, plugin, "log w")
            require_close(compiled, eager, plugin, "compiled, log w is another", 1e-6, 1e-6)


def no_step_sees_another(plugin: Any) -> None:
    """In another order each has the w it had."""
    order = np.random.default_rng(0).permutation(11)
    moved, whole = _log_w(plugin, order), np.asarray(_log_w(plugin))
    require_close(moved, whole[order], plugin, "the order of steps changes w", 1e-6, 1e-7)


def what_it_requires_is_declared(plugin: Any) -> None:
    """Without a measurement that it does not require it works; what it requires is known."""

    def log_w() -> Any:
        steps = (jnp.asarray(values, jnp.float32) for values in (LOG_SNR[:-1], LOG_SNR[1:]))
        return _begun(plugin)(*steps, None)

    require_declared(plugin, EXCESS, "log w without `excess`", log_w, "excess")


CHECKS = (log_w_is_one_number_a_step, no_step_sees_another, what_it_requires_is_declared)
