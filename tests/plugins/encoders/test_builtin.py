import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.model import Draws, Model
from diffenc.interfaces import NO_CONTEXT, Context
from diffenc_plugins.encoders import Identity, Nontrainable, Trainable
from diffenc_plugins.generative_means import Counterterm
from diffenc_plugins.networks import EncoderUNet
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear


def test_the_image_stands_still():
    x, log_snr = jnp.asarray([[0.3, -0.9]]), jnp.asarray([-5.0])
    value, slope = jax.jvp(lambda v: Identity().apply({}, x, v), (log_snr,), (jnp.ones(1),))
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(slope, jnp.zeros_like(x))
    assert Identity().init(jax.random.key(0), x, log_snr) == {}


LOG_SNR = np.array([-15.0, -5.0, 0.0, 13.3], np.float32)


def test_value_and_slope_keep_their_digits_in_float32():
    """[16]: alpha^2 x and, exactly, sigma^2 alpha^2 x."""
    x, log_snr = jnp.full((4, 2), 0.7), jnp.asarray(LOG_SNR)
    value, slope = jax.jvp(lambda v: Nontrainable().apply({}, x, v), (log_snr,), (jnp.ones(4),))
    odds = np.exp(LOG_SNR.astype(np.float64))[:, None]
    np.testing.assert_allclose(value, np.float32(0.7) * odds / (1 + odds) * np.ones((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(slope, np.float32(0.7) * odds / (1 + odds) ** 2 * np.ones((1, 2)), rtol=2e-6)
    assert Nontrainable().init(jax.random.key(0), x, log_snr) == {}


SHAPE = (2, 8, 8, 1)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def initial(encoder):
    """Its parameters, from a generator that compiles fast."""
    return quick(encoder.init)(jax.random.key(0, impl="unsafe_rbg"), jnp.zeros(SHAPE), jnp.zeros(2))


def image(seed, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape))


@pytest.mark.parametrize("blocks", [1, *(pytest.param(more, marks=pytest.mark.slow) for more in (2, 4))])
def test_at_initialisation_it_is_the_nontrainable_one_bit_for_bit(blocks):
    encoder = Trainable(EncoderUNet(blocks, channels=4))
    params, log_snr = initial(encoder), jnp.asarray([-5.0, 7.7])

    @quick
    def both(x):
        jvp = lambda f: jax.jvp(f, (log_snr,), (jnp.ones(2),))  # noqa: E731
        learned = jvp(lambda v: encoder.apply(params, x, v))
        return learned, jvp(lambda v: Nontrainable().apply({}, x, v))

    for side in (8, 28, 32):
        learned, closed = both(image(side, (2, side, side, 1)))
        np.testing.assert_array_equal(learned, closed)


@pytest.fixture(scope="module")
def shaken():
    """(encoder, params): dropout 1/2, and no kernel left at zero."""
    encoder = Trainable(EncoderUNet(1, channels=8, dropout=0.5))
    rng = np.random.default_rng(1)
    shake = lambda leaf: np.asarray(leaf, np.float64) + 0.2 * rng.normal(size=leaf.shape)  # noqa: E731
    return encoder, jax.tree.map(shake, initial(encoder))


def test_value_and_slope_under_a_key_are_those_of_one_function(x64, shaken):
    encoder, params = shaken
    params, x, log_snr, h = jax.tree.map(jnp.asarray, params), image(2), jnp.asarray([-2.0, 3.0]), 1e-6

    @quick
    def value_slope_and_neighbours(keys):
        encode = lambda v: encoder.apply(params, x, v, Context(keys=keys))  # noqa: E731
        shifted = jnp.stack([log_snr, log_snr + h, log_snr - h])
        return *jax.jvp(encode, (log_snr,), (jnp.ones(2),)), jax.vmap(encode)(shifted)

    value, slope, (alone, above, below) = value_slope_and_neighbours(jax.random.split(jax.random.key(3), 2))
    np.testing.assert_allclose(value, alone, rtol=1e-12)
    np.testing.assert_allclose(slope, (above - below) / (2 * h), atol=1e-6)
    other = value_slope_and_neighbours(jax.random.split(jax.random.key(4), 2))[1]
    assert jnp.max(jnp.abs(slope - other)) > 1e-2  # another mask


@dataclasses.dataclass(frozen=True)
class Overheard:
    """An encoder that passes on its calls; whatever it is called with under jvp and vmap, it notes the keys."""

    encoder: Any
    keys: list

    def init(self, *args, **options):
        return self.encoder.init(*args, **options)

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        self.keys.append(context.keys)
        return self.encoder.apply(params, x, log_snr, context)


@dataclasses.dataclass(frozen=True)
class Zero:
    """A network that answers zero."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return jnp.zeros_like(z)


def test_all_three_terms_share_one_mask(x64, shaken):
    """The terms under a key, by hand, from x_phi at lambda_0, lambda_t and lambda_1, all under the key heard."""
    encoder, params = shaken
    rng, h, t = np.random.default_rng(5), 1e-6, np.array([0.3, 0.8])
    levels, eps = rng.integers(0, 16, SHAPE), rng.normal(size=SHAPE)
    x, log_snr = (2 * levels + 1) / 16 - 1, 6 - 11 * t
    shifted = np.stack([np.full(2, 6.0), log_snr, log_snr + h, log_snr - h, np.full(2, -5.0)])

    @quick
    def terms_and_x_phi(params, levels, draws, keys):
        overheard = Overheard(encoder, [])
        model = Model(overheard, Linear(6.0, -5.0), V(), Counterterm(), Zero())
        everything = {"encoder": params, "schedule": {}, "network": {}}
        terms = model.elbo(everything, levels, draws, num_levels=16, keys=keys)
        heard = overheard.keys[0]
        encode = lambda v: encoder.apply(params, jnp.asarray(x), v, Context(keys=heard))  # noqa: E731
        return terms, jax.vmap(encode)(jnp.asarray(shifted))

    arguments: Any = jax.tree.map(jnp.asarray, (params, levels, Draws(t, eps, eps)))  # pyright: ignore[reportArgumentType]
    terms, (x_0, x_t, above, below, x_1) = jax.tree.map(
        np.asarray, terms_and_x_phi(*arguments, jax.random.split(jax.random.key(6), 2))
    )

    alpha_2, sigma_2 = 1 / (1 + np.exp(5)), 1 / (1 + np.exp(-5))
    latent = 0.5 * np.sum(alpha_2 * x_1**2 + sigma_2 - np.log(sigma_2) - 1, axis=(1, 2, 3))
    np.testing.assert_allclose(terms.latent, latent, rtol=1e-9)

    snr = np.exp(log_snr)[:, None, None, None]
    alpha, sigma_2 = np.sqrt(snr / (1 + snr)), 1 / (1 + snr)
    x_hat = alpha * (alpha * x_t + np.sqrt(sigma_2) * eps)  # v_hat = 0
    error = (1 + sigma_2) * x_hat - x_t - (above - below) / (2 * h)
    diffusion = 0.5 * 11 * np.sum(snr * error**2, axis=(1, 2, 3))
    np.testing.assert_allclose(terms.diffusion, diffusion, rtol=1e-6)

    pixels, values = x_0 + np.exp(-3.0) * eps, (2 * np.arange(16) + 1) / 16 - 1
    log_sum = np.logaddexp.reduce(-0.5 * np.exp(6.0) * (pixels[..., None] - values) ** 2, axis=-1)
    reconstruction = np.sum(log_sum + 0.5 * np.exp(6.0) * (pixels - x) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(terms.reconstruction, reconstruction, rtol=1e-9)
