import jax
import jax.numpy as jnp
import numpy as np

from diffenc_plugins.encoders import Identity


def test_the_image_stands_still():
    x, log_snr = jnp.asarray([[0.3, -0.9]]), jnp.asarray([-5.0])
    value, slope = jax.jvp(lambda v: Identity().apply({}, x, v), (log_snr,), (jnp.ones(1),))
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(slope, jnp.zeros_like(x))
    assert Identity().init(jax.random.key(0), x, log_snr) == {}
