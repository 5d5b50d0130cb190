"""Checks shared by parameterizations and generative means: functions of log_snr alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.testing.assertions import require_close, require_finite, require_like

LOG_SNR = np.linspace(-15, 15, 31)


def coefficients_match_log_snr(plugin: Any) -> None:
    """Requires the shape and dtype of log_snr, in float32 and float64, and the same values when compiled."""
    for x64 in (False, True):
        with jax.enable_x64(x64):
            log_snr = jnp.asarray(LOG_SNR, jnp.result_type(float))
            eager, compiled = plugin(log_snr), jax.jit(plugin)(log_snr)
            for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
                require_like(one, log_snr, plugin, "a coefficient")
                # not exactly equal: XLA may reorder operations when it fuses them
                require_close(other, one, plugin, "a coefficient changes when compiled", 1e-6)


def values_and_derivatives_are_finite(plugin: Any) -> None:
    """Requires finite coefficients and derivatives for log_snr in [-15, 15]."""
    log_snr = jnp.asarray(LOG_SNR, jnp.float32)
    both = jax.jvp(plugin, (log_snr,), (jnp.ones_like(log_snr),))
    require_finite(both, plugin, "a value or slope for log_snr in [-15, 15]")


def log_snrs_do_not_interact(plugin: Any) -> None:
    """Requires that permuting the noise levels permutes the coefficients."""
    log_snr, order = jnp.asarray([3.0, -1.0, 0.5]), jnp.asarray([2, 0, 1])
    for one, permuted in zip(
        jax.tree.leaves(plugin(log_snr)), jax.tree.leaves(plugin(log_snr[order])), strict=True
    ):
        require_close(permuted, one[order], plugin, "the order of noise levels changes a coefficient", 1e-6)


CHECKS = (coefficients_match_log_snr, values_and_derivatives_are_finite, log_snrs_do_not_interact)
