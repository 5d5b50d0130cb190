import jax.numpy as jnp
import numpy as np
import pytest

from diffenc_plugins.time_samplers import Uniform


@pytest.mark.parametrize("curve", [None, jnp.asarray([1.0, 9.0])])
def test_times_are_u_and_weights_one_whatever_the_curve(curve):
    u = jnp.asarray([0.0, 0.3, 0.99])
    t, weight = Uniform()(u, curve)
    np.testing.assert_array_equal(t, u)
    np.testing.assert_array_equal(weight, 1)
