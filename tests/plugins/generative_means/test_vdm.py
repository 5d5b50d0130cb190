import jax.numpy as jnp
import numpy as np

from diffenc_plugins.generative_means import VDM


def test_the_representation_is_taken_to_stand_still():
    np.testing.assert_array_equal(VDM()(jnp.asarray([-15.0, 0.0, 15.0])), 0)
