"""What every generative mean keeps: its loss, from the Gaussians of a step and estimates in numpy."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid

from diffenc import registry, testing
from diffenc.core import objective
from diffenc.core.discretization import Chain, equal_steps
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import MARKOV
from diffenc.interfaces import NO_CONTEXT
from diffenc_plugins.encoders import Identity, Nontrainable, Trainable
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear
from diffenc_plugins.stochasticities import Constant


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form that depends on all it is given."""

    gain: float = 2.0

    def init(self, key, z, log_snr):
        return {"size": jnp.asarray(0.7)}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        shift = log_snr.reshape(-1, *[1] * (z.ndim - 1)) / 3
        return params.get("size", 1.0) * jnp.sin(self.gain * z + shift)


NEEDS: dict[str, Any] = {"two_heads": {"network": Wave(0.9)}}
# learned parameters other than the first ones
PARAMS: dict[str, Any] = {
    "two_heads": {"size": jnp.asarray(0.7)},
    "learned_counterterm": {"log_m": np.array([0.3, -0.5, 0.2, 0.6, -0.4, 0.1, -0.2])},
}
ENCODERS: dict[str, Any] = {
    "identity": Identity(),
    "nontrainable": Nontrainable(),
    "trainable": Trainable(Wave(1.3)),
}
ETA = {"markov": 1.0, "constant": 1.4}
every_mean = pytest.mark.parametrize("name", list(registry.generative_means))
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)
every_path = pytest.mark.parametrize("path", ETA)


@pytest.fixture
def wave_is_registered(monkeypatch):
    monkeypatch.setitem(registry.networks._classes, "wave", Wave)


@every_mean
@pytest.mark.parametrize("check", testing.CHECKS["generative_mean"])
def test_it_keeps_what_a_mean_keeps(name, check, wave_is_registered):
    check(registry.generative_means[name](**NEEDS.get(name, {})))


def clock(path):
    return partial((MARKOV if path == "markov" else Constant(ETA[path])).increment, {})


def prepare_with(encoder):
    return lambda x: lambda log_snr: ENCODERS[encoder].apply({}, x, log_snr)


def bound(name, encoder, dtype=None):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PARAMS.get(name, {}))
    return BoundMean(registry.generative_means[name](**NEEDS.get(name, {})), params, prepare_with(encoder))


def network_for(x_hat, parameterization):
    """The network that means x_hat, whatever z: out = p x_hat + q eps_hat."""

    def network(z, log_snr):
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(v))[:, None] for v in (log_snr, -log_snr))
        p, q = parameterization(log_snr)
        return p[:, None] * x_hat + q[:, None] * (z - alpha * x_hat) / sigma

    return network


def encode(encoder, x, log_snr):
    """x_phi of one image in numpy [15, 16]."""
    wave = np.sin(1.3 * x + log_snr / 3)
    return {
        "identity": x,
        "nontrainable": sigmoid(log_snr) * x,
        "trainable": sigmoid(log_snr) * x + sigmoid(-log_snr) * wave,
    }[encoder]


def size_of_learned(log_snr):
    """m of the learned counterterm: e to the sum of bumps, written as differences of sigmoids on seven knots."""
    edges = [1.0, *(sigmoid((log_snr - knot) / 1.0) for knot in (-6, -4, -2, 0, 2, 4, 6))]
    return np.exp(
        sum(a * (edges[k] - edges[k + 1]) for k, a in enumerate(PARAMS["learned_counterterm"]["log_m"]))
    )


def estimates(name, encoder, x_hat, z, log_snr_t, log_snr_s, kept):
    """What p(z_s | z_t) takes x_phi(lambda_t) and x_phi(lambda_s) to be, by hand. `kept`: g of the step."""
    rise, sigma_2 = log_snr_s - log_snr_t, sigmoid(-log_snr_t)
    if name == "reencoded":
        return encode(encoder, x_hat, log_snr_t), encode(encoder, x_hat, log_snr_s)
    if name == "two_heads":
        value = x_hat + np.sqrt(sigma_2) * 0.7 * np.sin(0.9 * z + log_snr_t / 3)
        total = (1 - kept + rise * sigma_2) * x_hat  # what the first head gives: (1 - g) value + (x_s - x_t)
        return value, value + total - (1 - kept) * value
    return x_hat, x_hat * {
        "vdm": 1,
        "counterterm": 1 + rise * sigma_2,
        "rescaled": sigmoid(log_snr_s) / sigmoid(log_snr_t),
        "learned_counterterm": 1 + rise * sigma_2 * size_of_learned(log_snr_t),
    }[name]


def kl_by_hand(name, encoder, path, times, log_w, k, x, eps, x_hat):
    """Of one image's step k: N(alpha_s x_s + f (z_t - alpha_t x_t), v) with the encoder's and the estimated x_t, x_s."""
    log_snr_t, log_snr_s = (13.3 - 18.3 * times[k + i] for i in (1, 0))
    alpha_t, sigma_t, alpha_s, sigma_s = (
        np.sqrt(sigmoid(v)) for v in (log_snr_t, -log_snr_t, log_snr_s, -log_snr_s)
    )
    left = np.exp(-0.5 * ETA[path] ** 2 * (log_snr_s - log_snr_t))
    factor, variance = sigma_s / sigma_t * left, sigma_s**2 * (1 - left**2)
    truth = [encode(encoder, x, v) for v in (log_snr_t, log_snr_s)]
    z_t = alpha_t * truth[0] + sigma_t * eps
    guess = estimates(name, encoder, x_hat, z_t, log_snr_t, log_snr_s, alpha_t * factor / alpha_s)
    of_q, of_p = (alpha_s * later + factor * (z_t - alpha_t * now) for now, later in (truth, guess))
    w = np.exp(log_w[k])
    return 0.5 * np.sum(w - 1 - log_w[k] + w * (of_p - of_q) ** 2 / variance)


def normals(seed, *shape):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape) for _ in range(3))


def log_snr_at(t):
    return Linear().apply({}, t)


@every_mean
@every_encoder
@every_path
def test_the_discrete_loss_is_the_kl_of_its_two_gaussians(x64, name, encoder, path):
    x, eps, x_hat = normals(0, 6, 3)
    rng = np.random.default_rng(1)
    for num_steps in (1, 7, 300):
        gaps = rng.uniform(0.2, 1, num_steps)
        times, log_w = np.append(0, np.cumsum(gaps) / gaps.sum()), rng.normal(0, 0.7, num_steps)
        t = np.array([0.0, 0.15, 0.3, 0.62, 0.9, 0.99999])
        rule = objective.discrete(Chain(jnp.asarray(times), jnp.asarray(log_w)))
        step = rule(prepare_with(encoder)(jnp.asarray(x)), log_snr_at, clock(path), jnp.asarray(t))
        want = [
            num_steps
            * kl_by_hand(name, encoder, path, times, log_w, int(at * num_steps), x[i], eps[i], x_hat[i])
            for i, at in enumerate(t)
        ]
        network = network_for(jnp.asarray(x_hat), V())
        got = objective.diffusion_loss(step, jnp.asarray(eps), network, V(), bound(name, encoder))
        np.testing.assert_allclose(got, want, rtol=1e-9)


def loss_at(
    t, name, encoder, path, rule=objective.continuous, dtype: Any = np.float64, network=None, count=3
):
    x, eps, x_hat = (jnp.asarray(v, dtype) for v in normals(1, len(t), count))
    step = rule(prepare_with(encoder)(x), log_snr_at, clock(path), jnp.asarray(t, dtype))
    network = network or network_for(x_hat, V())
    return np.asarray(
        objective.diffusion_loss(step, eps, network, V(), bound(name, encoder, dtype)), np.float64
    )


@every_mean
@every_encoder
@every_path
def test_discrete_tends_to_continuous_at_first_order(x64, name, encoder, path):
    t, depths = np.array([0.25, 0.75]), [2**10, 2**12, 2**14]
    limit = loss_at(t, name, encoder, path)
    errors = [
        np.abs(loss_at(t, name, encoder, path, objective.discrete(equal_steps(depth))) / limit - 1)
        for depth in depths
    ]
    orders = -np.polyfit(np.log(depths), np.log(errors), 1)[0]
    np.testing.assert_allclose(orders, 1, atol=0.1)


@every_mean
@pytest.mark.parametrize("encoder", ["nontrainable", "trainable"])
@pytest.mark.parametrize(("depth", "tolerance"), [(None, 1e-5), (1000, 1e-4), (10**4, 1e-3)])
def test_the_mean_loss_keeps_its_digits_in_float32(name, encoder, depth, tolerance):
    t = (np.arange(256) + 0.5) / 256
    rule = objective.continuous if depth is None else objective.discrete(equal_steps(depth))
    network = lambda z, log_snr: 0.3 * jnp.sin(z + log_snr[:, None] / 3)  # noqa: E731
    options: Any = {"rule": rule, "network": network, "count": 8}
    single = loss_at(t, name, encoder, "markov", dtype=np.float32, **options).mean()
    with jax.enable_x64(True):
        double = loss_at(t, name, encoder, "markov", **options).mean()
    np.testing.assert_allclose(single, double, rtol=tolerance)
