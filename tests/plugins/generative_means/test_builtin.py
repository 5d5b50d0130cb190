"""The slopes that are a number times x_hat, and what the non-trainable encoder is with the right ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid

from diffenc.core import objective
from diffenc.core.discretization import Chain
from diffenc.core.interval import chord, tangent
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import MARKOV
from diffenc_plugins.encoders import Identity
from diffenc_plugins.encoders import Nontrainable as NontrainableEncoder
from diffenc_plugins.generative_means import VDM, Counterterm, LearnedCounterterm, Rescaled
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear, NontrainableSNR
from diffenc_plugins.stochasticities import Nontrainable

LOG_SNR = np.array([-15.0, -5.0, 0.0, 13.3], np.float32)
markov = partial(MARKOV.increment, {})


def kappa(mean, log_snr, log_snr_s=None, params=None):
    at = jnp.asarray(log_snr)
    where = tangent(markov, at) if log_snr_s is None else chord(markov, at, jnp.asarray(log_snr_s))
    return mean.kappa(params or {}, where)


@pytest.mark.parametrize("mean", [Counterterm(), Rescaled()])
def test_in_continuous_time_kappa_is_sigma_squared(mean):
    np.testing.assert_allclose(kappa(mean, LOG_SNR), sigmoid(-LOG_SNR.astype(np.float64)), rtol=1e-6)


def test_it_is_the_relative_slope_of_alpha_squared():
    """d log x_nt / d lambda for x_nt = alpha^2 x [16]."""
    log_snr, h = np.array([-3.0, 0.4, 6.0]), 1e-5
    log_alpha_2 = [-np.log1p(np.exp(-(log_snr + d))) for d in (h, -h)]
    want = (log_alpha_2[0] - log_alpha_2[1]) / (2 * h)
    np.testing.assert_allclose(kappa(Counterterm(), log_snr.astype(np.float32)), want, rtol=1e-5)


def test_rescaled_is_the_secant_of_alpha_squared(x64):
    log_snr, later = np.array([-5.0, -1.0, 2.0]), np.array([-4.9, 3.0, 13.3])
    want = (sigmoid(later) / sigmoid(log_snr) - 1) / (1 - np.exp(log_snr - later))
    np.testing.assert_allclose(kappa(Rescaled(), log_snr, later), want, rtol=1e-12)


def test_the_representation_is_taken_to_stand_still():
    np.testing.assert_array_equal(kappa(VDM(), LOG_SNR), 0)


def test_a_learned_counterterm_starts_as_the_papers_and_ends_as_it_without_noise():
    mean = LearnedCounterterm()
    first = mean.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))
    np.testing.assert_array_equal(kappa(mean, LOG_SNR, params=first), kappa(Counterterm(), LOG_SNR))
    large = {"log_m": jnp.full(7, 2.0)}
    ratio = np.asarray(kappa(mean, LOG_SNR, params=large)) / np.asarray(kappa(Counterterm(), LOG_SNR))
    np.testing.assert_allclose(ratio[[0, -1]], [np.exp(2.0), 1.0], rtol=5e-3)


def posterior_like(z, log_snr):
    """An estimate of x from z = alpha x + sigma eps, any function of z / sigma and the signal-to-noise ratio."""
    ratio = jnp.exp(0.5 * log_snr)[:, None]
    return jnp.tanh(
        0.7 * ratio * z / jnp.sqrt(jax.nn.sigmoid(-log_snr))[:, None] / (1 + ratio**2) + 0.2 * ratio
    )


@pytest.mark.parametrize("num_steps", [None, 1, 3, 50])
def test_the_non_trainable_encoder_on_its_path_is_vdm_on_its_schedule(x64, num_steps):
    """z = alpha^3 x + sigma eps is VDM's z at SNR alpha^6 / sigma^2 in another scale, and x_hat is alpha^2 times VDM's."""
    rng = np.random.default_rng(0)
    x, eps = (jnp.asarray(rng.normal(size=(5, 4))) for _ in range(2))
    t = jnp.asarray([0.0, 0.2, 0.5, 0.8, 0.999])

    def vdm_network(z, log_snr):
        return v_of(posterior_like(z, log_snr), z, log_snr)

    def nt_network(z, log_snr):
        effective = log_snr - 2 * jax.nn.softplus(-log_snr)
        sigma, own = (jnp.sqrt(jax.nn.sigmoid(-v))[:, None] for v in (effective, log_snr))
        x_hat = posterior_like(z * sigma / own, effective)
        return v_of(jax.nn.sigmoid(log_snr)[:, None] * x_hat, z, log_snr)

    def v_of(x_hat, z, log_snr):
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(v))[:, None] for v in (log_snr, -log_snr))
        return alpha * (z - alpha * x_hat) / sigma - sigma * x_hat

    def loss(encoder, mean, path, schedule, network):
        rule = objective.continuous
        if num_steps is not None:
            log_w = jnp.asarray(rng_of_w.normal(0, 0.5, num_steps))
            rule = objective.discrete(Chain(jnp.linspace(0, 1, num_steps + 1), log_w))
        encode = lambda log_snr: encoder.apply({}, x, log_snr)  # noqa: E731
        step = rule(encode, lambda t: schedule.apply({}, t), partial(path.increment, {}), t)
        return np.asarray(objective.diffusion_loss(step, eps, network, V(), BoundMean(mean)))

    rng_of_w = np.random.default_rng(1)
    vdm = loss(Identity(), VDM(), MARKOV, NontrainableSNR(), vdm_network)
    rng_of_w = np.random.default_rng(1)
    nt = loss(NontrainableEncoder(), Rescaled(), Nontrainable(), Linear(), nt_network)
    np.testing.assert_allclose(nt, vdm, rtol=1e-9)
    if num_steps is not None:  # to first order the slope is not the secant
        rng_of_w = np.random.default_rng(1)
        first_order = loss(NontrainableEncoder(), Counterterm(), Nontrainable(), Linear(), nt_network)
        assert np.max(np.abs(first_order / vdm - 1)) > 1e-5
