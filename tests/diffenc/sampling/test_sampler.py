import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffenc import registry
from diffenc.core import objective
from diffenc.core.discretization import Chain, equal_steps
from diffenc.core.interval import chord, tangent
from diffenc.core.model import Model
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import MARKOV
from diffenc.interfaces import NO_CONTEXT, Context, Estimate, ProportionalMean
from diffenc.sampling import sampler, solvers
from diffenc.sampling.solvers import ancestral
from diffenc_plugins.stochasticities import Constant

PARAMETERIZATIONS = {name: registry.parameterizations[name]() for name in registry.parameterizations}
MEANS: dict[str, Any] = {
    name: registry.generative_means[name]() for name in ("vdm", "counterterm", "rescaled")
}


markov = partial(MARKOV.increment, {})


def ends(log_snr):
    """(alpha, sigma) of a float."""
    return 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_x_hat_is_what_the_network_means(x64, name):
    rng = np.random.default_rng(0)
    x_hat, eps_hat, log_snr = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), np.array([-5.0, 1.0, 13.3])
    p, q = (np.asarray(v)[:, None] for v in PARAMETERIZATIONS[name](jnp.asarray(log_snr)))
    alpha, sigma = (v[:, None] for v in ends(log_snr))
    out, z = p * x_hat + q * eps_hat, alpha * x_hat + sigma * eps_hat
    got = objective.x_hat_from_output(
        jnp.asarray(out), jnp.asarray(z), jnp.asarray(log_snr), PARAMETERIZATIONS[name]
    )
    np.testing.assert_allclose(got, x_hat, rtol=1e-9)


@dataclasses.dataclass(frozen=True)
class Kappa(ProportionalMean):
    """The slope is a number times x_hat."""

    number: float

    def kappa(self, params, interval):
        return interval.stretch * self.number


def reverse_step(z, x_hat, log_snr_t, log_snr_s, mean, increment=markov):
    """The product's step for single numbers."""
    step = chord(increment, jnp.asarray([log_snr_t]), jnp.asarray([log_snr_s]))
    z, x_hat = jnp.asarray([[z]]), jnp.asarray([[x_hat]])
    mu, sigma = solvers.reverse_step(z, BoundMean(mean).estimate(x_hat, z, step), step)
    return float(mu[0, 0]), float(sigma[0])


@pytest.mark.parametrize(("log_snr_t", "log_snr_s"), [(-1.3, 0.4), (-5.0, -4.0), (3.0, 3.1)])
def test_without_a_counterterm_a_step_is_bayes_rule(x64, log_snr_t, log_snr_s):
    """q(z_s|z_t,x) by quadrature from q(z_t|z_s) and q(z_s|x), for a constant x_phi."""
    x, z_t = 0.6, -0.7
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(log_snr_t), ends(log_snr_s)
    ratio, z_s = alpha_t / alpha_s, np.linspace(-12, 12, 200_001)
    noise = sigma_t**2 - ratio**2 * sigma_s**2
    log_density = -0.5 * ((z_t - ratio * z_s) ** 2 / noise + (z_s - alpha_s * x) ** 2 / sigma_s**2)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = density @ z_s
    got = reverse_step(z_t, x, log_snr_t, log_snr_s, MEANS["vdm"])
    np.testing.assert_allclose(got, [mean, np.sqrt(density @ (z_s - mean) ** 2)], rtol=1e-8)


def test_the_counterterm_moves_the_mean_alone(x64):
    log_snr_t, log_snr_s, z, x_hat = -1.3, 0.4, 0.9, -0.5
    mu, sigma = reverse_step(z, x_hat, log_snr_t, log_snr_s, MEANS["vdm"])
    moved, same = reverse_step(z, x_hat, log_snr_t, log_snr_s, MEANS["counterterm"])
    counterterm = ends(log_snr_s)[0] * (log_snr_s - log_snr_t) * ends(log_snr_t)[1] ** 2 * x_hat
    np.testing.assert_allclose([moved - mu, same], [counterterm, sigma], rtol=1e-12)


@pytest.mark.parametrize("eta", [1.0, 0.3, 2.5])
def test_a_step_that_knows_the_secant_has_the_forward_marginal(x64, eta):
    """If kappa x_hat is the encoder's secant, z_s ~ N(alpha_s x_s, sigma_s^2) for z_t ~ N(alpha_t x_t, sigma_t^2)."""
    log_snr_t, log_snr_s, x_t, x_s = -1.3, 0.4, 0.7, -0.2
    kappa = (x_s - x_t) / ((log_snr_s - log_snr_t) * x_t)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(log_snr_t), ends(log_snr_s)
    node, weight = np.polynomial.hermite_e.hermegauss(5)
    weight = weight / weight.sum()
    increment = partial(Constant(eta).increment, {})
    steps = [
        reverse_step(alpha_t * x_t + sigma_t * n, x_t, log_snr_t, log_snr_s, Kappa(kappa), increment)
        for n in node
    ]
    mu, sigma = np.array(steps).T
    variance = weight @ (mu - weight @ mu) ** 2 + sigma[0] ** 2
    np.testing.assert_allclose([weight @ mu, variance], [alpha_s * x_s, sigma_s**2], rtol=1e-12)


def test_a_tiny_step_keeps_its_digits_in_float32():
    log_snr_t, rise = 5.0, 2.0**-14
    with jax.enable_x64(True):
        double = reverse_step(0.3, -0.8, log_snr_t, log_snr_t + rise, MEANS["counterterm"])
    single = reverse_step(0.3, -0.8, log_snr_t, log_snr_t + rise, MEANS["counterterm"])
    np.testing.assert_allclose(single, double, rtol=1e-6)
    np.testing.assert_allclose(single[0] - 0.3, double[0] - 0.3, rtol=2e-2)


@pytest.mark.parametrize("mean", MEANS)
def test_a_drawn_step_has_that_mean_and_deviation(mean):
    n, z, log_snrs = 100_000, 0.4, [-1.0, 0.5]
    x_hat = lambda z, log_snr: 0.5 * z  # noqa: E731
    start = jax.random.key(0), jnp.full((n, 1), z)
    estimate = BoundMean(MEANS[mean]).estimator(x_hat)
    drawn = sampler.walk(*start, jnp.asarray(log_snrs), jnp.zeros(1), estimate, markov, ancestral)
    mu, sigma = reverse_step(z, 0.5 * z, log_snrs[0], log_snrs[1], MEANS[mean])
    drawn = np.asarray(drawn, np.float64)
    assert abs(drawn.mean() - mu) < 4 * sigma / np.sqrt(n)
    assert abs(drawn.var() / sigma**2 - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.thin("encoder")
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("encoder", ["identity", "nontrainable"])
def test_samples_of_gaussian_data_have_the_data_variance(name, encoder):
    """x ~ N(0, 2) and the exact denoiser; both encoders' slope is kappa x_phi, with which the chain is exact."""
    variance, n, prm = 2.0, 40_000, PARAMETERIZATIONS[name]
    mean = MEANS[{"identity": "vdm", "nontrainable": "counterterm"}[encoder]]

    def x_hat(z, log_snr):
        alpha_2, sigma_2 = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        spread = variance * (alpha_2**2 if encoder == "nontrainable" else 1.0)
        guess = (spread * jnp.sqrt(alpha_2) / (spread * alpha_2 + sigma_2))[:, None] * z
        p, q = prm(log_snr)
        eps_hat = (z - jnp.sqrt(alpha_2)[:, None] * guess) / jnp.sqrt(sigma_2)[:, None]
        return objective.x_hat_from_output(p[:, None] * guess + q[:, None] * eps_hat, z, log_snr, prm)

    log_snrs = jnp.linspace(-8.0, 6.0, 513)
    key, z_key = jax.random.split(jax.random.key(1))
    start = key, jax.random.normal(z_key, (n, 1))
    z = sampler.walk(*start, log_snrs, jnp.zeros(512), BoundMean(mean).estimator(x_hat), markov, ancestral)
    alpha, sigma = ends(6.0)
    spread = variance * (alpha**4 if encoder == "nontrainable" else 1.0)
    truth = alpha**2 * spread + sigma**2
    bias = 8e-3  # of 512 steps: it falls as 1 / T
    assert abs(float(jnp.var(z)) / truth - 1) < 4 * np.sqrt(2 / n) + bias


def walk(key, z, log_snrs, log_w=None, **options):
    x_hat = lambda z, log_snr: jnp.tanh(z + log_snr[:, None] / 9)  # noqa: E731
    log_w = jnp.zeros(len(log_snrs) - 1) if log_w is None else log_w
    estimate = BoundMean(MEANS["counterterm"]).estimator(x_hat)
    return sampler.walk(key, z, log_snrs, log_w, estimate, markov, ancestral, **options)


@pytest.mark.parametrize("cuts", [[7], [1, 19], [4, 5, 12]])
def test_a_walk_in_stretches_is_the_whole_walk(cuts, x64):
    key, z, log_snrs = jax.random.key(2), jnp.ones((3, 5)), jnp.linspace(-5.0, 13.3, 21)
    log_w = jnp.linspace(-0.3, 0.2, 20)
    whole, stretch = jax.jit(walk)(key, z, log_snrs, log_w), jax.jit(walk)
    for first, last in zip([0, *cuts], [*cuts, 20], strict=True):
        z = stretch(key, z, log_snrs[first : last + 1], log_w[first:last], first=first)
    # scans of other lengths are other programs, whose last bits need not agree; other noise would be O(1) off
    np.testing.assert_allclose(z, whole, rtol=1e-12, atol=1e-12)


def test_every_step_has_its_own_noise():
    key, z, log_snrs = jax.random.key(2), jnp.zeros((2000, 1)), jnp.asarray([-1.0, 0.0])
    noises = [np.asarray(walk(key, z, log_snrs, first=first)).ravel() for first in (0, 1, 2)]
    assert np.all(np.abs(np.corrcoef(noises) - np.eye(3)) < 4 / np.sqrt(2000))


@given(
    z=st.floats(-1.5, 1.5, width=32),
    log_snr=st.floats(-5, 15, width=32),
    levels=st.sampled_from([2, 16, 256]),
)
@settings(deadline=None, max_examples=100)
def test_decode_takes_the_most_likely_level(z, log_snr, levels):
    got = int(sampler.decode(jnp.full((1, 1), z), jnp.full(1, log_snr), levels)[0, 0])
    alpha, sigma = ends(np.float64(log_snr))
    values = (2 * np.arange(levels) + 1) / levels - 1
    log_p = -0.5 * ((np.float64(z) - alpha * values) / sigma) ** 2
    slack = 1e-5 * (1 + np.abs(z) / alpha) / sigma**2  # float32, between two levels as good
    assert log_p[got] >= log_p.max() - slack


@dataclasses.dataclass(frozen=True)
class Unused:
    """An encoder no sampler may touch."""

    def init(self, *args, **options):
        raise AssertionError

    def apply(self, *args, **options):
        raise AssertionError


@dataclasses.dataclass(frozen=True)
class Means:
    """A network that means one image whatever z; `condition` lightens it."""

    image: Any
    parameterization: Any

    def init(self, key, z, log_snr):
        return {"gain": 1.0}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        condition, keys = context
        assert keys is None, "dropout in sampling"
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(v))[:, None, None, None] for v in (log_snr, -log_snr))
        p, q = (v[:, None, None, None] for v in self.parameterization(log_snr))
        x_hat = jnp.broadcast_to(self.image, z.shape) * params["gain"]
        x_hat = x_hat if condition is None else x_hat + condition[:, None, None, None] * 0.5
        return p * x_hat + q * (z - alpha * x_hat) / sigma


def model_that_means(image, parameterization="v", schedule=None):
    prm = PARAMETERIZATIONS[parameterization]
    network: Any = Means(image, prm)
    model = Model(Unused(), schedule or registry.schedules["linear"](), prm, MEANS["vdm"], network)
    return model, {"encoder": None, "schedule": {}, "network": {"gain": 1.0}}


def test_a_walk_descends_the_chain_from_its_noisy_end():
    @dataclasses.dataclass(frozen=True)
    class Quadratic:
        def init(self, key):
            return 4.0

        def apply(self, params, t):
            return params - 10 * t**2

    model, _ = model_that_means(jnp.zeros((1, 1, 1)), schedule=Quadratic())
    chain = Chain(jnp.asarray([0.0, 0.1, 0.5, 1.0]), jnp.asarray([-0.1, -0.2, -0.3]))
    log_snrs, log_w = sampler.reverse_chain(model, {"schedule": 4.0}, chain)
    np.testing.assert_allclose(log_snrs, [-6, 1.5, 3.9, 4], rtol=1e-6)
    np.testing.assert_allclose(log_w, [-0.3, -0.2, -0.1])


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_a_model_sure_of_an_image_samples_it(parameterization):
    levels = np.arange(16).reshape(4, 4, 1)
    model, params = model_that_means(jnp.asarray((2 * levels + 1) / 16 - 1, jnp.float32), parameterization)
    shape = (3, 4, 4, 1)
    images = sampler.sample(model, params, jax.random.key(0), shape, num_levels=16, chain=equal_steps(50))
    assert images.dtype == jnp.int32
    np.testing.assert_array_equal(images, np.broadcast_to(levels, shape))


@pytest.mark.slow
def test_sampling_takes_parameters_key_and_condition():
    model, params = model_that_means(jnp.full((8, 8, 1), -0.25))

    def sample(key=0, params=params, **options):
        key = jax.random.key(key)
        options = {"num_levels": 256, "chain": equal_steps(10), **options}
        return np.asarray(sampler.sample(model, params, key, (2, 8, 8, 1), **options))

    np.testing.assert_array_equal(sample(), sample())
    assert np.any(sample() != sample(key=1))
    lit = sample(condition=jnp.asarray([0, 1]))
    np.testing.assert_array_equal(lit[0], sample()[0])
    assert abs(lit[1].mean() - 160) < 2  # x = 0.25
    doubled = sample(params={**params, "network": {"gain": 2.0}})
    assert abs(doubled.mean() - 64) < 2  # x = -0.5


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_guidance_leaves_the_plain_estimate_along_a_line(x64, parameterization):
    """In numpy: x_hat of an image that `condition` lightens by half of itself; w = 0 is none."""
    image = np.random.default_rng(0).normal(size=(4, 4, 1))
    model, params = model_that_means(jnp.asarray(image), parameterization)
    z, log_snr = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 1))), jnp.asarray([-3.0, 6.0])
    condition = jnp.asarray([1, 3])
    lightened = image + np.array([0.5, 1.5])[:, None, None, None]
    plain = model.denoise(params, z, log_snr, Context(condition))
    np.testing.assert_allclose(plain, lightened, rtol=1e-9)
    at = tangent(markov, log_snr)
    for w in (0.0, 0.5, 2.0):
        got = sampler.estimator_of(model, params, condition, w)(z, at).value
        np.testing.assert_allclose(got, (1 + w) * lightened - w * image, rtol=1e-9)
    unguided = sampler.estimator_of(model, params, condition, 0.0)(z, at).value
    np.testing.assert_array_equal(unguided, plain)


def test_guidance_is_the_same_for_v_and_eps(x64):
    """Guided in v_hat and in eps_hat, by hand, and turned into x_hat: what is guided in x_hat."""
    rng = np.random.default_rng(2)
    (z, given, without), w = rng.normal(size=(3, 2, 4, 4, 1)), 1.7
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-0.7))), np.sqrt(1 / (1 + np.exp(0.7)))
    eps_hat = [(z - alpha * x_hat) / sigma for x_hat in (given, without)]
    v_hat = [alpha * eps - sigma * x_hat for eps, x_hat in zip(eps_hat, (given, without), strict=True)]
    of_eps = (z - sigma * ((1 + w) * eps_hat[0] - w * eps_hat[1])) / alpha
    of_v = alpha * z - sigma * ((1 + w) * v_hat[0] - w * v_hat[1])
    estimators = [lambda *_, value=value: Estimate(jnp.asarray(value), 0 * z) for value in (given, without)]
    got = sampler.guided(estimators[0], estimators[1], w)(
        jnp.asarray(z), tangent(markov, jnp.full(2, 0.7))
    ).value
    np.testing.assert_allclose(of_eps, got, rtol=1e-9)
    np.testing.assert_allclose(of_v, got, rtol=1e-9)
