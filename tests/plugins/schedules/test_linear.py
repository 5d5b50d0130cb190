import jax
import jax.numpy as jnp
import numpy as np

from diffenc_plugins.schedules import Linear


def test_equal_times_are_equal_steps():
    got = Linear(6.0, -2.0).apply({}, jnp.asarray([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_array_equal(got, [6, 4, 2, -2])


def test_it_has_no_parameters():
    assert Linear().init(jax.random.key(0)) == {}
