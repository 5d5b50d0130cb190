import jax.numpy as jnp
import numpy as np

from diffenc_plugins.parameterizations import V


def test_it_is_the_velocity_along_the_circle():
    """v = dz / d angle for z = cos(angle) x + sin(angle) eps, log_snr = 2 log cot(angle)."""
    angle, h = np.array([0.05, 0.5, 1.2, 1.5]), 1e-6
    log_snr = jnp.asarray(-2 * np.log(np.tan(angle)), jnp.float32)
    for_x = (np.cos(angle + h) - np.cos(angle - h)) / (2 * h)
    for_eps = (np.sin(angle + h) - np.sin(angle - h)) / (2 * h)
    np.testing.assert_allclose(V()(log_snr), [for_x, for_eps], rtol=1e-5)
