"""What functions of log_snr alone keep alike: parameterizations and means."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.testing.assertions import require_close, require_finite, require_like

LOG_SNR = np.linspace(-15, 15, 31)


def each_is_shaped_like_log_snr(plugin: Any) -> None:
    """And of its dtype, compiled or not, float64 too."""
    for x64 in (False, True):
        with jax.enable_x64(x64):
            log_snr = jnp.asarray(LOG_SNR, jnp.result_type(float))
            eager, compiled = plugin(log_snr), jax.jit(plugin)(log_snr)
            for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
                require_like(one, log_snr, plugin, "a coefficient")
                require_close(other, one, plugin, "compiled, a coefficient is another", 1e-6)


def values_and_derivatives_are_finite(plugin: Any) -> None:
    """For log_snr in [-15, 15]."""
    log_snr = jnp.asarray(LOG_SNR, jnp.float32)
    both = jax.jvp(plugin, (log_snr,), (jnp.ones_like(log_snr),))
    require_finite(both, plugin, "a value or slope for log_snr in [-15, 15]")


def no_noise_level_sees_another(plugin: Any) -> None:
    """In another order each has the coefficients it had."""
    log_snr, order = jnp.asarray([3.0, -1.0, 0.5]), jnp.asarray([2, 0, 1])
    for one, moved in zip(
        jax.tree.leaves(plugin(log_snr)), jax.tree.leaves(plugin(log_snr[order])), strict=True
    ):
        require_close(moved, one[order], plugin, "the order of noise levels changes a coefficient", 1e-6)


CHECKS = (each_is_shaped_like_log_snr, values_and_derivatives_are_finite, no_noise_level_sees_another)
