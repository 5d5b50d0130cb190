import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry, testing
from diffenc_plugins.parameterizations import Epsilon, V, X


@pytest.mark.parametrize("check", testing.CHECKS["parameterization"])
@pytest.mark.parametrize("name", list(registry.parameterizations))
def test_it_keeps_what_a_parameterization_keeps(name, check):
    check(registry.parameterizations[name]())


def test_it_is_the_noise():
    np.testing.assert_array_equal(Epsilon()(jnp.asarray([-15.0, 0.0, 15.0])), [[0, 0, 0], [1, 1, 1]])


def test_it_is_the_velocity_along_the_circle():
    """v = dz / d angle for z = cos(angle) x + sin(angle) eps, log_snr = 2 log cot(angle)."""
    angle, h = np.array([0.05, 0.5, 1.2, 1.5]), 1e-6
    log_snr = jnp.asarray(-2 * np.log(np.tan(angle)), jnp.float32)
    for_x = (np.cos(angle + h) - np.cos(angle - h)) / (2 * h)
    for_eps = (np.sin(angle + h) - np.sin(angle - h)) / (2 * h)
    np.testing.assert_allclose(V()(log_snr), [for_x, for_eps], rtol=1e-5)


def test_it_is_the_encoded_data():
    np.testing.assert_array_equal(X()(jnp.asarray([-15.0, 0.0, 15.0])), [[1, 1, 1], [0, 0, 0]])
