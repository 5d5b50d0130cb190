"""The gradient of the loss against that of the same loss written as one first would, and computed with more work."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.model import Draws, Model
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.generative_means import Counterterm
from diffenc_plugins.networks import EncoderUNet, UNet
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import LearnedEndpoints

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

NUM_LEVELS, SHAPE, ENDS = 32, (4, 8, 8, 1), (7.0, -5.0)


@pytest.fixture(scope="module")
def inputs():
    """Random parameters, levels and draws."""
    rng = np.random.default_rng(0)
    network, encoder = UNet(1, 8, fourier_powers=(1, 2)), EncoderUNet(1, 8)
    model = Model(Trainable(encoder), LearnedEndpoints(*ENDS), V(), Counterterm(), network)
    shapes = jax.eval_shape(lambda key: model.init(key, SHAPE[1:]), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    params["schedule"] = LearnedEndpoints(*ENDS).init(jax.random.key(0))
    eps, eps_0 = (jnp.asarray(rng.normal(size=SHAPE), jnp.float32) for _ in range(2))
    levels = jnp.asarray(rng.integers(0, NUM_LEVELS, SHAPE), jnp.uint8)
    return model, params, levels, Draws(jnp.asarray([0.1, 0.35, 0.6, 0.85]), eps, eps_0)


def plain(model, params, levels, draws):
    """-ELBO in nats, the mean over images: every value of the encoder a call of its own, a one-hot of the levels."""
    x = (2 * levels + 1) / NUM_LEVELS - 1
    log_snr_of = lambda t: model.schedule.apply(params["schedule"], t)  # noqa: E731
    over_pixels = lambda value: value[:, None, None, None]  # noqa: E731

    def x_phi(log_snr):
        y = model.encoder.network.apply(params["encoder"], x, log_snr)
        return over_pixels(jax.nn.sigmoid(log_snr)) * x + over_pixels(jax.nn.sigmoid(-log_snr)) * y

    ones = jnp.ones(len(x))
    log_snr_0, log_snr_1, log_snr = log_snr_of(0 * ones), log_snr_of(ones), log_snr_of(draws.t)
    rate = jax.jvp(log_snr_of, (draws.t,), (ones,))[1]

    z_0 = x_phi(log_snr_0) + over_pixels(jnp.exp(-log_snr_0 / 2)) * draws.eps_0
    values = (2 * jnp.arange(NUM_LEVELS) + 1) / NUM_LEVELS - 1
    gaps = z_0[..., None] - values[None, None, None, None]
    logits = -0.5 * jnp.exp(log_snr_0)[:, None, None, None, None] * gaps**2
    log_p = jnp.sum(jax.nn.one_hot(levels, NUM_LEVELS) * jax.nn.log_softmax(logits, axis=-1), axis=-1)

    alpha_2, sigma_2 = jax.nn.sigmoid(log_snr_1), jax.nn.sigmoid(-log_snr_1)
    mean_2 = over_pixels(alpha_2) * x_phi(log_snr_1) ** 2
    latent = 0.5 * (mean_2 + over_pixels(sigma_2 - 1 - jnp.log(sigma_2)))

    alpha, sigma = (over_pixels(jnp.sqrt(jax.nn.sigmoid(sign * log_snr))) for sign in (1, -1))
    z = alpha * x_phi(log_snr) + sigma * draws.eps
    x_hat = alpha * z - sigma * model.network.apply(params["network"], z, log_snr)
    slope = jax.jvp(x_phi, (log_snr,), (ones,))[1]
    error = x_phi(log_snr) + slope - (1 + sigma**2) * x_hat
    diffusion = -0.5 * over_pixels(rate * jnp.exp(log_snr)) * error**2
    return (jnp.sum(latent) + jnp.sum(diffusion) - jnp.sum(log_p)) / len(x)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_plain_loss(inputs):
    model, *arguments = inputs

    def ours(params, levels, draws):
        return jnp.mean(model.elbo(params, levels, draws, num_levels=NUM_LEVELS).total)

    losses = [ours, lambda *arguments: plain(model, *arguments)]
    (loss, gradient), (want, expected) = (quick(jax.value_and_grad(f))(*arguments) for f in losses)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    for part in ("encoder", "schedule", "network"):
        ours_, plain_ = (jax.flatten_util.ravel_pytree(tree[part])[0] for tree in (gradient, expected))
        assert jnp.linalg.norm(ours_ - plain_) < 1e-5 * jnp.linalg.norm(plain_), part
