import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffenc_plugins.networks import UNet
from diffenc_plugins.networks.unet import fourier_features

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_fourier_features(x64):
    z = np.random.default_rng(0).normal(size=(2, 3, 3, 2))
    waves = [f(2 * np.pi * 2.0**k * z[..., c]) for f in (np.sin, np.cos) for c in (0, 1) for k in (6, 7)]
    want = np.concatenate([z, np.stack(waves, axis=-1)], axis=-1)
    np.testing.assert_allclose(fourier_features(jnp.asarray(z), (6, 7)), want, atol=1e-11)


def test_fourier_features_keep_enough_digits_in_float32():
    z = np.random.default_rng(0).uniform(-4, 4, (1, 8, 8, 1)).astype(np.float32)
    got = np.asarray(fourier_features(jnp.asarray(z), (6, 7)), np.float64)
    angles = 2 * np.pi * np.array([64, 128]) * z.astype(np.float64)
    want = np.concatenate([z, np.sin(angles), np.cos(angles)], axis=-1)
    np.testing.assert_allclose(got, want, atol=804 * 4 * 2.0**-23)


def test_at_initialisation_it_returns_z():
    network, z = UNet(blocks=1, channels=4), jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 3)))
    params = quick(network.init)(jax.random.key(0, impl="unsafe_rbg"), z, jnp.zeros(2))
    np.testing.assert_array_equal(quick(network.apply)(params, z, jnp.asarray([-5.0, 13.3])), z)


def test_more_blocks_are_more_of_the_same():
    """n blocks down and n + 1 up; the parameters of one more of each, and nothing else."""

    def names(n):
        shapes = jax.eval_shape(
            UNet(blocks=n, channels=8).init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)
        )
        return {name.split("/")[0] for name in shapes}

    assert names(3) - names(2) == {"down_2", "up_3"}
    assert names(2) - names(3) == set()
