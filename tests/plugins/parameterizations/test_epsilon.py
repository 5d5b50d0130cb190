import jax.numpy as jnp
import numpy as np

from diffenc_plugins.parameterizations import Epsilon


def test_it_is_the_noise():
    np.testing.assert_array_equal(Epsilon()(jnp.asarray([-15.0, 0.0, 15.0])), [[0, 0, 0], [1, 1, 1]])
