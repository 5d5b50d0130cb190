"""The bound of a path of any noise against its stochastic differential equation, and against exact posteriors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry
from diffenc.core import objective
from diffenc.core.discretization import Chain, equal_steps
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import MARKOV, eta_squared
from diffenc.interfaces import NO_CONTEXT
from diffenc_plugins.encoders import Identity, Nontrainable, Trainable
from diffenc_plugins.generative_means import VDM, Counterterm
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear, NontrainableSNR
from diffenc_plugins.stochasticities import Constant, Learned
from diffenc_plugins.stochasticities import Nontrainable as NontrainablePath

RAW = np.array([1.5, -1.0, 0.4, 0.9, -0.7, 0.3, -0.2])  # log eta^2 of the pieces


def sigmoid(log_snr):
    return 1 / (1 + np.exp(-np.asarray(log_snr, np.float64)))


def eta_2_learned(log_snr):
    """A partition of unity between knots two widths of a sigmoid apart."""
    steps = sigmoid(np.asarray(log_snr)[..., None] - np.array([-6.0, -4, -2, 0, 2, 4, 6]))
    ones, zeros = np.ones_like(steps[..., :1]), np.zeros_like(steps[..., :1])
    weights = -np.diff(np.concatenate([ones, steps, zeros], axis=-1), axis=-1)
    np.testing.assert_allclose(weights.sum(axis=-1), 1)
    return weights @ np.exp(np.append(RAW, 0.0))


# by name: the plugin, its parameters, and eta^2 by another way
PATHS: dict[str, Any] = {
    "markov": (MARKOV, {}, np.ones_like),
    "nontrainable": (NontrainablePath(), {}, lambda log_snr: 1 + 2 * sigmoid(-log_snr)),
    "constant": (Constant(0.6), {}, lambda log_snr: np.full_like(log_snr, 0.36)),
    "learned": (Learned(), {"log_eta_2": RAW}, eta_2_learned),
}
every_path = pytest.mark.parametrize("path", PATHS)


def clock(path, params=None):
    plugin, fixed, _ = PATHS[path]
    params = jax.tree.map(jnp.asarray, fixed) if params is None else params
    return functools.partial(plugin.increment, params)


NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(160)


def integral(f, low, high):
    """Over the last axis of the nodes; `low` and `high` broadcast."""
    half = 0.5 * (high - low)
    return half * (f(0.5 * (high + low)[..., None] + half[..., None] * NODES) @ NODE_WEIGHTS)


def transition(path, log_snr_t, log_snr_s):
    """Factor and variance of r_s given r_t, r = z - alpha x_phi, dr = -1/2 (alpha^2 + eta^2) r dlambda + eta sigma dW."""
    eta_2 = PATHS[path][2]

    def log_factor(low, high):
        return -0.5 * integral(lambda u: sigmoid(u) + eta_2(u), low, high)

    def noise(u):
        return eta_2(u) * sigmoid(-u) * np.exp(2 * log_factor(u, np.full_like(u, log_snr_s)))

    low, high = np.float64(log_snr_t), np.float64(log_snr_s)
    return np.exp(log_factor(low, high)), integral(noise, low, high)


@every_path
@pytest.mark.parametrize(("log_snr_t", "log_snr_s"), [(-5.0, 13.3), (-1.3, 0.4), (3.0, 3.1), (-5.0, -4.99)])
def test_the_increment_is_that_of_the_differential_equation(x64, path, log_snr_t, log_snr_s):
    """Its noise is sigma_s^2 (1 - e^(-H)); what it keeps, sigma_s / sigma_t e^(-H / 2); together they are sigma_s^2."""
    factor, variance = transition(path, log_snr_t, log_snr_s)
    sigma_2_t, sigma_2_s = sigmoid(-log_snr_t), sigmoid(-log_snr_s)
    np.testing.assert_allclose(factor**2 * sigma_2_t + variance, sigma_2_s, rtol=1e-11)
    rise = clock(path)(jnp.asarray([log_snr_t]), jnp.asarray([log_snr_s]))
    np.testing.assert_allclose(sigma_2_s * -np.expm1(-rise), [variance], rtol=1e-10)
    np.testing.assert_allclose(np.sqrt(sigma_2_s / sigma_2_t) * np.exp(-rise / 2), [factor], rtol=1e-10)


@every_path
def test_a_step_back_and_the_step_forward_differ_in_variance_as_their_ends_do(x64, path):
    """By Bayes's rule; so that a variance such as the forward step's, sigma_t^2 c_eta, has a w that no path enters."""
    factor, variance = transition(path, -1.3, 0.4)
    sigma_2_t, sigma_2_s = sigmoid(1.3), sigmoid(-0.4)
    forward = sigma_2_t - (factor * sigma_2_t) ** 2 / sigma_2_s
    np.testing.assert_allclose(variance / forward, sigma_2_s / sigma_2_t, rtol=1e-10)


@every_path
def test_two_steps_are_one(x64, path):
    """Factors multiply, and the first step's noise goes through the second."""
    stops = [-4.0, 0.5, 7.0]
    (first, noise), (second, more) = (transition(path, *stops[i : i + 2]) for i in (0, 1))
    np.testing.assert_allclose(
        transition(path, stops[0], stops[2]), (first * second, second**2 * noise + more), rtol=1e-10
    )
    a, b, c = (jnp.asarray([v]) for v in stops)
    np.testing.assert_allclose(clock(path)(a, b) + clock(path)(b, c), clock(path)(a, c), rtol=1e-13)


@every_path
def test_eta_squared_is_the_rate_of_the_clock(x64, path):
    log_snr = np.linspace(-15.0, 15.0, 61)
    got = eta_squared(clock(path), jnp.asarray(log_snr))
    np.testing.assert_allclose(got, PATHS[path][2](log_snr), rtol=1e-12)


class Wave:
    """A network in closed form that depends on all it is given."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return jnp.sin(2 * z + log_snr[:, None] / 3)


ENCODERS: dict[str, Any] = {
    "identity": Identity(),
    "nontrainable": Nontrainable(),
    "trainable": Trainable(Wave()),
}
MEANS: dict[str, Any] = {"vdm": VDM(), "counterterm": Counterterm()}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)
every_mean = pytest.mark.parametrize("mean", MEANS)


def encode_with(encoder, x):
    return lambda log_snr: ENCODERS[encoder].apply({}, x, log_snr)


def network_for(x_hat, parameterization):
    """The network that means x_hat, whatever z: out = p x_hat + q eps_hat."""

    def network(z, log_snr):
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(v))[:, None] for v in (log_snr, -log_snr))
        p, q = parameterization(log_snr)
        return p[:, None] * x_hat + q[:, None] * (z - alpha * x_hat) / sigma

    return network


def normals(seed, *shape):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape) for _ in range(3))


def kl_by_hand(path, encoder, mean, times, log_w, k, x, eps, x_hat):
    """Of one example's step k. q by the path's differential equation; p the same with the estimates for x_t and x_s."""
    log_snr_t, log_snr_s = (13.3 - 18.3 * times[k + i] for i in (1, 0))
    x_t, x_s = (
        np.asarray(ENCODERS[encoder].apply({}, jnp.asarray(x)[None], jnp.asarray([v])))[0]
        for v in (log_snr_t, log_snr_s)
    )
    (alpha_t, sigma_t), alpha_s = (
        np.sqrt([sigmoid(log_snr_t), sigmoid(-log_snr_t)]),
        np.sqrt(sigmoid(log_snr_s)),
    )
    z_t = alpha_t * x_t + sigma_t * eps
    factor, variance = transition(path, log_snr_t, log_snr_s)
    kappa = sigma_t**2 if mean == "counterterm" else 0.0
    x_hat_s = x_hat + (log_snr_s - log_snr_t) * kappa * x_hat
    of_q, of_p = (
        alpha_s * later + factor * (z_t - alpha_t * now) for now, later in ((x_t, x_s), (x_hat, x_hat_s))
    )
    w = np.exp(log_w[k])
    return 0.5 * np.sum(w - 1 - log_w[k] + w * (of_p - of_q) ** 2 / variance)


@pytest.mark.thin(pairs=True)
@every_path
@every_encoder
@every_mean
@pytest.mark.parametrize("num_steps", [1, 7, 300])
def test_the_discrete_loss_is_the_kl_of_its_two_gaussians(x64, path, encoder, mean, num_steps):
    x, eps, x_hat = normals(0, 4, 3)
    rng = np.random.default_rng(num_steps)
    gaps = rng.uniform(0.2, 1, num_steps)
    times, log_w = np.append(0, np.cumsum(gaps) / gaps.sum()), rng.normal(0, 0.7, num_steps)
    t = np.array([0.0, 0.3, 0.62, 0.99999])
    rule = objective.discrete(Chain(jnp.asarray(times), jnp.asarray(log_w)))
    step = rule(
        encode_with(encoder, jnp.asarray(x)), lambda t: Linear().apply({}, t), clock(path), jnp.asarray(t)
    )
    want = [
        num_steps
        * kl_by_hand(path, encoder, mean, times, log_w, int(t[i] * num_steps), x[i], eps[i], x_hat[i])
        for i in range(4)
    ]
    for name in registry.parameterizations:
        prm = registry.parameterizations[name]()
        network = network_for(jnp.asarray(x_hat), prm)
        got = objective.diffusion_loss(step, jnp.asarray(eps), network, prm, BoundMean(MEANS[mean]))
        np.testing.assert_allclose(got, want, rtol=2e-10)


def loss_at(
    t, path, encoder, mean, rule=objective.continuous, dtype: Any = np.float64, network=None, count=3
):
    """Of examples at times t."""
    x, eps, x_hat = (jnp.asarray(v, dtype) for v in normals(1, len(t), count))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PATHS[path][1])
    step = rule(
        encode_with(encoder, x), lambda t: Linear().apply({}, t), clock(path, params), jnp.asarray(t, dtype)
    )
    network = network or network_for(x_hat, V())
    return np.asarray(objective.diffusion_loss(step, eps, network, V(), BoundMean(MEANS[mean])), np.float64)


@pytest.mark.thin(pairs=True)
@every_path
@every_encoder
@every_mean
def test_the_continuous_loss_is_that_of_girsanov(x64, path, encoder, mean):
    """1/2 |lambda'| e^lambda / eta^2 || 1/2 (1 + eta^2)(x_hat - x_phi) + kappa x_hat - dx_phi ||^2."""
    x, _, x_hat = normals(1, 3, 3)
    t, h = np.array([0.1, 0.5, 0.9]), 1e-5
    log_snr = 13.3 - 18.3 * t
    encode = encode_with(encoder, jnp.asarray(x))
    slope = np.asarray(encode(jnp.asarray(log_snr + h)) - encode(jnp.asarray(log_snr - h))) / (2 * h)
    eta_2, kappa = PATHS[path][2](log_snr)[:, None], sigmoid(-log_snr)[:, None] * (mean == "counterterm")
    error = 0.5 * (1 + eta_2) * (x_hat - encode(jnp.asarray(log_snr))) + kappa * x_hat - slope
    want = 0.5 * 18.3 * np.exp(log_snr) * np.sum(error**2 / eta_2, axis=1)
    np.testing.assert_allclose(loss_at(t, path, encoder, mean), want, rtol=1e-7)


@pytest.mark.thin
@every_path
@every_encoder
@every_mean
def test_discrete_tends_to_continuous_at_first_order(x64, path, encoder, mean):
    t, depths = np.array([0.25, 0.75]), [2**10, 2**12, 2**14]
    limit = loss_at(t, path, encoder, mean)
    errors = [
        np.abs(loss_at(t, path, encoder, mean, objective.discrete(equal_steps(depth))) / limit - 1)
        for depth in depths
    ]
    orders = -np.polyfit(np.log(depths), np.log(errors), 1)[0]
    np.testing.assert_allclose(orders, 1, atol=0.1)


@pytest.mark.thin
@every_path
@every_encoder
@every_mean
@pytest.mark.parametrize(("depth", "tolerance"), [(None, 1e-5), (1000, 1e-4), (10**4, 1e-3)])
def test_the_mean_loss_keeps_its_digits_in_float32(path, encoder, mean, depth, tolerance):
    t = (np.arange(256) + 0.5) / 256
    rule = objective.continuous if depth is None else objective.discrete(equal_steps(depth))
    network = lambda z, log_snr: 0.3 * jnp.sin(z + log_snr[:, None] / 3)  # noqa: E731
    options: Any = {"rule": rule, "network": network, "count": 8}
    single = loss_at(t, path, encoder, mean, dtype=np.float32, **options).mean()
    with jax.enable_x64(True):
        double = loss_at(t, path, encoder, mean, **options).mean()
    np.testing.assert_allclose(single, double, rtol=tolerance)


def test_of_the_markov_path_every_weight_is_the_papers_to_the_bit():
    """So that its numbers are those of a loss without a path."""
    log_snr = jnp.linspace(13.3, -5.0, 101)
    for chain in (equal_steps(3), equal_steps(10**4)):
        step = objective.discrete(chain)(
            encode_with("identity", jnp.ones((101, 1))),
            lambda t: Linear().apply({}, t),
            clock("markov"),
            jnp.linspace(0, 0.9999, 101),
        )
        np.testing.assert_array_equal(step.interval.value_weight, 1)
    step = objective.secant(
        encode_with("identity", jnp.ones((100, 1))), clock("markov"), log_snr[1:], log_snr[:-1]
    )
    plain = 0.5 * -jnp.expm1(log_snr[1:] - log_snr[:-1]) * jnp.exp(log_snr[:-1])
    np.testing.assert_array_equal(step.weight, plain)
    np.testing.assert_array_equal(eta_squared(clock("markov"), log_snr), 1)


# Data of one dimension and eight levels, whose posteriors are sums

LEVELS = np.arange(8)
FREQUENCIES = np.array([0.02, 0.1, 0.3, 0.05, 0.03, 0.2, 0.25, 0.05])
VALUES = (2 * LEVELS + 1) / 8 - 1
ENTROPY = -FREQUENCIES @ np.log2(FREQUENCIES)


def posterior_mean(z, log_snr, encoder):
    """E[x_phi | z] by Bayes, in v."""
    alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(v))[:, None] for v in (log_snr, -log_snr))
    gain = alpha**2 if encoder == "nontrainable" else jnp.ones_like(alpha)
    values = jnp.asarray(VALUES)[None]
    logits = jnp.log(FREQUENCIES)[None] - 0.5 * ((z - alpha * gain * values) / sigma) ** 2
    x_hat = gain * (jax.nn.softmax(logits, axis=1) @ jnp.asarray(VALUES))[:, None]
    return alpha * (z - alpha * x_hat) / sigma - sigma * x_hat


EPS = np.linspace(-7.0, 7.0, 281)
EPS_WEIGHTS = np.exp(-0.5 * EPS**2) / np.exp(-0.5 * EPS**2).sum()


def diffusion_of(encoder, mean, stochasticity, schedule=None, t=None):
    """E[diffusion loss], bits: over times by Gauss and Legendre, over noise by the trapezoid rule; or at times t."""
    u, weight = np.polynomial.legendre.leggauss(120)
    times, time_weight = ((u + 1) / 2, weight / 2) if t is None else (t, np.eye(len(t)))
    shape = len(times), 8, len(EPS)
    each = lambda axis, values: jnp.asarray(  # noqa: E731
        np.broadcast_to(values.reshape([-1 if i == axis else 1 for i in range(3)]), shape).ravel()
    )
    network = functools.partial(posterior_mean, encoder=encoder)
    step = objective.continuous(
        encode_with(encoder, each(1, VALUES)[:, None]),
        lambda t: (schedule or Linear()).apply({}, t),
        functools.partial(stochasticity.increment, {}),
        each(0, times),
    )
    loss = objective.diffusion_loss(step, each(2, EPS)[:, None], network, V(), BoundMean(MEANS[mean]))
    by_time = np.asarray(loss).reshape(shape) @ EPS_WEIGHTS @ FREQUENCIES
    return time_weight @ by_time / np.log(2)


def excess_of(encoder, mean, stochasticity):
    """-ELBO less the entropy, bits. At lambda = 13.3 the levels are certain: the reconstruction costs nothing."""
    ends = jnp.full(8, -5.0)
    x_phi = encode_with(encoder, jnp.asarray(VALUES)[:, None])(ends)
    latent = np.asarray(objective.latent_loss(x_phi, ends)) @ FREQUENCIES / np.log(2)
    return diffusion_of(encoder, mean, stochasticity) + latent - ENTROPY


def test_with_exact_posteriors_each_encoder_is_tight_on_its_own_path(x64):
    nt = functools.partial(excess_of, "nontrainable", "counterterm")
    vdm = functools.partial(excess_of, "identity", "vdm")
    assert abs(nt(NontrainablePath())) < 1e-4
    assert 0.03 < nt(MARKOV) < 0.07
    assert abs(vdm(MARKOV)) < 1e-4
    for eta_2 in (0.5, 2.0):  # both have (1/2 (1 + eta^2))^2 / eta^2 = 9 / 8 of the loss
        loose = diffusion_of("identity", "vdm", Constant(np.sqrt(eta_2)))
        np.testing.assert_allclose(loose, 9 / 8 * diffusion_of("identity", "vdm", MARKOV), rtol=1e-9)
        assert vdm(Constant(np.sqrt(eta_2))) > 0.1


def test_on_its_path_the_nontrainable_encoder_is_vdm_by_the_snr_of_x(x64):
    """SNR alpha^6 / sigma^2, at every time."""
    t = np.array([0.3, 0.6, 0.75, 0.99])
    one = diffusion_of("nontrainable", "counterterm", NontrainablePath(), t=t)
    other = diffusion_of("identity", "vdm", MARKOV, NontrainableSNR(), t=t)
    np.testing.assert_allclose(one, other, rtol=1e-9)
    markov = diffusion_of("nontrainable", "counterterm", MARKOV, t=t)
    sigma_2 = sigmoid(-(13.3 - 18.3 * t))
    np.testing.assert_allclose(markov / one, 1 + sigma_2**2 / (1 + 2 * sigma_2), rtol=1e-9)
