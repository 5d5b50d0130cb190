"""Chains' weights against densities written out in numpy, and the bound against exact likelihoods."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry
from diffenc.core import objective
from diffenc.core.discretization import Chain
from diffenc.core.model import Draws, Model
from diffenc.core.stochasticity import MARKOV
from diffenc.evaluation import k_sample
from diffenc.interfaces import NO_CONTEXT
from diffenc_plugins.schedules import Linear
from diffenc_plugins.stochasticities import Constant

NUM_LEVELS = 5
VALUES = (2 * np.arange(NUM_LEVELS) + 1) / NUM_LEVELS - 1
ENCODERS = (
    "identity",
    "nontrainable",
    "trainable",
)  # those that do without an image's shape, and without its class
MEANS = ("vdm", "counterterm", "rescaled")  # whose slope is a number times x_hat
PARAMETERIZATIONS = list(registry.parameterizations)


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form that depends on all it is given."""

    gain: float = 2.0

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        assert context.keys is None, "dropout in a bound"
        return 0.4 * jnp.sin(self.gain * z + log_snr.reshape(-1, *[1] * (z.ndim - 1)) / 3)


def make(
    encoder="trainable", mean="counterterm", parameterization="v", network: Any = None, path: Any = MARKOV
):
    needs: Any = {"network": Wave(1.3)} if encoder == "trainable" else {}
    return Model(
        encoder=registry.encoders[encoder](**needs),
        schedule=Linear(log_snr_max=3.0, log_snr_min=-4.0),
        parameterization=registry.parameterizations[parameterization](),
        generative_mean=registry.generative_means[mean](),
        network=network or Wave(),
        stochasticity=path,
    )


PARAMS: Any = {"encoder": {}, "schedule": {}, "network": {}}
TIMES, LOG_W = np.array([0.0, 0.2, 0.7, 1.0]), np.array([-0.3, 0.2, -0.8])
CHAIN = Chain(jnp.asarray(TIMES), jnp.asarray(LOG_W))


def weigh(model, levels, chain, samples, seed=0):
    def compute(key):
        return k_sample.log_weights(model, PARAMS, jnp.asarray(levels), chain, key, NUM_LEVELS, samples)

    return np.asarray(jax.jit(compute)(jax.random.key(seed)))


def ends(log_snr):
    """(alpha, sigma) of a float."""
    return 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))


def step_gain(mean, log_snr_t, log_snr_s):
    """x_hat(lambda_s) / x_hat - 1, as each mean has it."""
    (alpha_t, sigma_t), (alpha_s, _) = ends(log_snr_t), ends(log_snr_s)
    return {
        "vdm": 0.0,
        "counterterm": (log_snr_s - log_snr_t) * sigma_t**2,
        "rescaled": alpha_s**2 / alpha_t**2 - 1,
    }[str(registry.generative_means.name_of(type(mean)))]


def log_normal(z, mean, variance):
    return -0.5 * np.sum((z - mean) ** 2 / variance + np.log(2 * np.pi * variance), axis=-1)


class ByHand:
    """p and q of a chain in numpy, from the definitions [4, 10, 11, 17]. Data are [B, d]."""

    def __init__(self, model, x, times=TIMES, log_w=LOG_W):
        self.model, self.x, self.log_w = model, x, log_w
        self.log_snrs = 3.0 - 7.0 * times
        self.x_phi = [
            np.asarray(model.encoder.apply({}, jnp.asarray(x), self._all(v))) for v in self.log_snrs
        ]

    def _all(self, log_snr):
        return jnp.full(len(self.x), log_snr)

    def posterior(self, index, z_t):
        """Mean and variance of q(z_s | z_t, x), s = times[index]: q(z_t | z_s, x) times q(z_s | x)."""
        x_t, x_s, ratio, noise, alpha_t, alpha_s, sigma_s = self._step(index)
        variance = 1 / (1 / sigma_s**2 + ratio**2 / noise)
        pull = ratio * (z_t - alpha_t * (x_t - x_s)) / noise
        return variance * (alpha_s * x_s / sigma_s**2 + pull), variance

    def reverse(self, index, z_t):
        """Mean and variance of p(z_s | z_t)."""
        _, _, ratio, noise, _, alpha_s, sigma_s = self._step(index)
        log_snr_t, log_snr_s = self.log_snrs[index + 1], self.log_snrs[index]
        x_hat = self.x_hat(z_t, log_snr_t)
        variance = 1 / (1 / sigma_s**2 + ratio**2 / noise)
        gain = step_gain(self.model.generative_mean, log_snr_t, log_snr_s)
        mean = variance * (alpha_s * x_hat / sigma_s**2 + ratio * z_t / noise)
        mean = mean + alpha_s * gain * x_hat
        return mean, variance / np.exp(self.log_w[index])

    def x_hat(self, z, log_snr):
        """From the output p x_hat + q eps_hat and z = alpha x_hat + sigma eps_hat, two equations solved."""
        alpha, sigma = ends(log_snr)
        each = jnp.full(len(z), log_snr)
        p, q = (float(v[0]) for v in self.model.parameterization(each))
        out = np.asarray(self.model.network.apply({}, jnp.asarray(z), each))
        return np.linalg.solve([[alpha, sigma], [p, q]], [z.ravel(), out.ravel()])[0].reshape(z.shape)

    def _step(self, index):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = (ends(self.log_snrs[index + k]) for k in (0, 1))
        ratio = alpha_t / alpha_s
        noise = sigma_t**2 - ratio**2 * sigma_s**2
        return self.x_phi[index + 1], self.x_phi[index], ratio, noise, alpha_t, alpha_s, sigma_s

    def log_likelihood(self, z_0):
        """log p(x | z_0), [B]."""
        alpha, sigma = ends(self.log_snrs[0])
        logits = -0.5 * ((z_0[..., None] - alpha * VALUES) / sigma) ** 2
        chosen = -0.5 * ((z_0 - alpha * self.x) / sigma) ** 2
        return np.sum(chosen - np.logaddexp.reduce(logits, axis=-1), axis=-1)


class OnAPath(ByHand):
    """The same where the path's noise is eta times the Markov process's: h = eta^2 lambda."""

    def _moved(self, index, z_t, now, later):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = (ends(self.log_snrs[index + k]) for k in (0, 1))
        rise = self.model.stochasticity.eta**2 * (self.log_snrs[index] - self.log_snrs[index + 1])
        mean = alpha_s * later + sigma_s / sigma_t * np.exp(-rise / 2) * (z_t - alpha_t * now)
        return mean, sigma_s**2 * (1 - np.exp(-rise))

    def posterior(self, index, z_t):
        return self._moved(index, z_t, self.x_phi[index + 1], self.x_phi[index])

    def reverse(self, index, z_t):
        log_snr_t, log_snr_s = self.log_snrs[index + 1], self.log_snrs[index]
        x_hat = self.x_hat(z_t, log_snr_t)
        gain = step_gain(self.model.generative_mean, log_snr_t, log_snr_s)
        mean, variance = self._moved(index, z_t, x_hat, x_hat + gain * x_hat)
        return mean, variance / np.exp(self.log_w[index])


PATHS = pytest.mark.parametrize(
    ("path", "definition"),
    [(MARKOV, ByHand), (Constant(1.0), OnAPath), (Constant(0.6), OnAPath), (Constant(1.5), OnAPath)],
)


@pytest.mark.thin(pairs=True)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("log_w", [0.0, -0.7, 0.4])
@PATHS
def test_a_steps_weight_is_the_ratio_of_its_two_gaussians(x64, encoder, mean, log_w, path, definition):
    """z_s from the walk of the noise; both densities at it from their definitions. In between lies nothing."""
    model, rng = make(encoder, mean, path=path), np.random.default_rng(0)
    x, eps = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    by_hand = definition(model, x, TIMES, np.full(3, log_w))
    index, key = 1, jax.random.key(3)
    log_snr_t, log_snr_s = (jnp.full(4, by_hand.log_snrs[index + k]) for k in (1, 0))
    encode = lambda v: model.encode({"encoder": {}}, jnp.asarray(x), v)  # noqa: E731
    increment = functools.partial(model.increment, PARAMS)
    step = objective.secant(encode, increment, log_snr_t, log_snr_s)
    walk = k_sample.make_walk(model, PARAMS, step, log_snr_s, jnp.asarray(log_w))
    eps_s, got = walk((jnp.asarray(eps), key))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (ends(by_hand.log_snrs[index + k]) for k in (1, 0))
    z_t = alpha_t * by_hand.x_phi[index + 1] + sigma_t * eps
    z_s = alpha_s * by_hand.x_phi[index] + sigma_s * np.asarray(eps_s)
    mean_q, variance_q = by_hand.posterior(index, z_t)
    mean_p, variance_p = by_hand.reverse(index, z_t)
    want = log_normal(z_s, mean_p, variance_p) - log_normal(z_s, mean_q, variance_q)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    fresh = np.asarray(jax.random.normal(key, (4, 3)))
    np.testing.assert_allclose(z_s, mean_q + np.sqrt(variance_q) * fresh, rtol=1e-9, atol=1e-12)


def test_the_priors_weight_is_the_ratio_of_its_two_gaussians(x64):
    rng = np.random.default_rng(1)
    x_phi, eps, log_snr = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), -4.0
    alpha, sigma = ends(log_snr)
    z = alpha * x_phi + sigma * eps
    got = k_sample.prior_log_weight(jnp.asarray(x_phi), jnp.asarray(eps), jnp.full(3, log_snr))
    np.testing.assert_allclose(
        got, log_normal(z, 0, np.ones(4)) - log_normal(z, alpha * x_phi, sigma**2), 1e-9
    )


def test_a_step_of_nearly_equal_gaussians_keeps_its_digits_in_float32():
    rng = np.random.default_rng(2)
    eps, shift = rng.normal(size=(1, 3072)), 1e-3 * rng.normal(size=(1, 3072))
    w = np.exp(-1e-6)
    want = 0.5 * np.sum(eps**2) - 0.5 * w * np.sum((eps - shift) ** 2) + 0.5 * 3072 * np.log(w)
    got = k_sample.step_log_weight(jnp.float32(eps), jnp.float32(shift), jnp.float32(-1e-6))
    np.testing.assert_allclose(got, [want], rtol=1e-4)


@pytest.mark.thin
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("mean", "path"), [("vdm", MARKOV), ("counterterm", MARKOV), ("counterterm", Constant(1.5))]
)
def test_the_mean_log_weight_is_the_elbo(x64, encoder, mean, path):
    """-ELBO by model.elbo with each of the T steps in turn, over draws of its own; 4 standard errors."""
    model, levels, n = make(encoder, mean, path=path), np.array([[0, 3]]), 8_000
    log_w = weigh(model, np.repeat(levels, 1000, axis=0), CHAIN, n // 1000).ravel()
    elbo_of = jax.jit(
        functools.partial(model.elbo, PARAMS, num_levels=NUM_LEVELS, step_rule=objective.discrete(CHAIN))
    )
    rng, many = np.random.default_rng(3), jnp.asarray(np.repeat(levels, n, axis=0))
    steps = []
    for index in range(3):
        draws = Draws(
            jnp.full(n, (index + 0.5) / 3),
            jnp.asarray(rng.normal(size=(n, 2))),
            jnp.asarray(rng.normal(size=(n, 2))),
        )
        steps.append(elbo_of(many, draws))
    diffusion = sum(np.asarray(terms.diffusion) / 3 for terms in steps)
    elbo = -(diffusion + np.asarray(steps[0].latent) + np.asarray(steps[0].reconstruction))
    error = np.sqrt((elbo.var() + log_w.var()) / n)
    assert abs(log_w.mean() - elbo.mean()) < 4 * error
    assert error < 0.02 * abs(elbo.mean())


@pytest.mark.thin
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_weights_average_to_the_models_likelihood(x64, encoder, parameterization):
    """T = 1 in one dimension: p(x) = integral of p(x|z_0) p(z_0|z_1) p(z_1), whatever q."""
    model, level = make(encoder, parameterization=parameterization), 3
    times, log_w = np.array([0.0, 1.0]), np.array([-1.5])
    by_hand = ByHand(model, VALUES[[level]][None], times, log_w)
    z_1, z_0 = np.linspace(-7, 7, 1401)[:, None], np.linspace(-9, 9, 3601)
    mean, variance = by_hand.reverse(0, z_1)
    likelihood = np.exp(by_hand.log_likelihood(z_0[:, None]))
    inner = np.exp(log_normal(z_0[None, :, None], mean[:, None], variance)) @ likelihood * 0.005
    exact = np.sum(np.exp(log_normal(z_1, 0, np.ones(1))) * inner) * 0.01
    chain = Chain(jnp.asarray(times), jnp.asarray(log_w))
    w = np.exp(weigh(model, np.full((5000, 1), level), chain, 20)).ravel()
    error = w.std() / np.sqrt(w.size)
    assert abs(w.mean() - exact) < 4 * error
    assert error < 0.06 * exact


@pytest.mark.thin
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("path", "definition"), [(MARKOV, ByHand), (Constant(0.8), OnAPath)])
@pytest.mark.slow
def test_two_steps_too_average_to_the_models_likelihood(x64, encoder, path, definition):
    """T = 2: p(z_0) by quadrature, first over z_1, then over z_{1/2}."""
    model, level = make(encoder, path=path), 1
    times, log_w = np.array([0.0, 0.6, 1.0]), np.array([-0.4, -0.2])
    by_hand = definition(model, VALUES[[level]][None], times, log_w)
    grid = np.linspace(-14, 14, 1401)[:, None]
    density = np.exp(log_normal(grid, 0, np.ones(1)))
    for index in (1, 0):
        mean, variance = by_hand.reverse(index, grid)
        density = density @ np.exp(log_normal(grid[None], mean[:, None], variance)) * 0.02
    np.testing.assert_allclose(density.sum() * 0.02, 1, rtol=1e-6)
    exact = density @ np.exp(by_hand.log_likelihood(grid)) * 0.02
    w = np.exp(
        weigh(model, np.full((5000, 1), level), Chain(jnp.asarray(times), jnp.asarray(log_w)), 20)
    ).ravel()
    error = w.std() / np.sqrt(w.size)
    assert abs(w.mean() - exact) < 4 * error
    assert error < 0.06 * exact


@dataclasses.dataclass(frozen=True)
class Exact:
    """The network that means x_hat(z, log_snr), in v."""

    x_hat: Any

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(v))[:, None] for v in (log_snr, -log_snr))
        return (
            alpha * z - self.x_hat(z, log_snr)
        ) / sigma  # v = alpha eps - sigma x, eps = (z - alpha x) / sigma


@pytest.mark.parametrize("encoder", ["identity", "nontrainable"])
def test_with_the_best_denoiser_the_bound_lies_between_likelihood_and_elbo(x64, mixture, encoder):
    """Levels drawn with known frequencies: their entropy, the least any model can cost, is in closed form."""
    frequency = np.array([0.1, 0.3, 0.05, 0.35, 0.2])
    data = mixture(
        1, encoder, weights=tuple(frequency), means=tuple((v,) for v in VALUES), variances=(0.0,) * 5
    )
    model = make(
        encoder, {"identity": "vdm", "nontrainable": "counterterm"}[encoder], network=Exact(data.x_hat)
    )
    levels = np.repeat(np.arange(5), 400)[:, None]
    t = np.linspace(0, 1, 9)
    log_w = weigh(model, levels, Chain(jnp.asarray(t), jnp.zeros(8)), 64)
    each = np.repeat(frequency / 400, 400)

    def cost(samples):
        """Mean of -bound over data and chains, nats, and its standard error."""
        groups = -k_sample.k_sample_bound(log_w.reshape(64 // samples, samples, -1)).mean(axis=0)
        by_level = groups.reshape(5, 400)
        return each @ groups, np.sqrt(frequency**2 @ by_level.var(axis=1) / 400)

    entropy = -frequency @ np.log(frequency)
    costs, errors = np.array([cost(samples) for samples in (1, 4, 16, 64)]).T
    assert np.all(np.diff(costs) < 0)
    assert costs[0] - costs[-1] > 10 * errors[0]
    assert np.all(costs > entropy - 4 * errors)
    assert costs[-1] - entropy < 0.5 * (costs[0] - entropy)


def test_the_bound_is_the_log_of_the_mean_weight():
    log_w = np.random.default_rng(4).normal(size=(2, 7, 3))
    np.testing.assert_allclose(k_sample.k_sample_bound(log_w), np.log(np.exp(log_w).mean(axis=1)), rtol=1e-12)
    np.testing.assert_allclose(
        k_sample.k_sample_bound(log_w - 5000), np.log(np.exp(log_w).mean(axis=1)) - 5000
    )
    np.testing.assert_array_equal(k_sample.k_sample_bound(log_w[:, :1]), log_w[:, 0])


def test_chains_images_and_steps_have_noise_of_their_own(x64):
    log_w = weigh(make(), np.full((50, 2), 2), CHAIN, 20)
    assert len(np.unique(log_w)) == log_w.size
    correlations = np.corrcoef(weigh(make(), np.full((2000, 2), 2), CHAIN, 4)) - np.eye(4)
    assert np.all(np.abs(correlations) < 4 / np.sqrt(2000))
