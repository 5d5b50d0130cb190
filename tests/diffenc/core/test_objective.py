"""The loss against its definition: Gaussians rebuilt in numpy float64 from the forward process."""

import dataclasses
import functools
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
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import MARKOV
from diffenc.interfaces import NO_CONTEXT


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form that depends on all it is given."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return jnp.sin(2 * z + log_snr[:, None] / 3)


markov = functools.partial(MARKOV.increment, {})
NEEDS: dict[str, dict[str, Any]] = {"trainable": {"network": Wave()}}
OF_ANY_SHAPE = ("identity", "nontrainable", "trainable")  # the others need an image, or its class
combined = {
    "encoder": pytest.mark.parametrize("encoder", OF_ANY_SHAPE),
    # those whose slope is a number times x_hat
    "generative_mean": pytest.mark.parametrize("generative_mean", ["vdm", "counterterm", "rescaled"]),
    **{
        kind: pytest.mark.parametrize(kind, list(registry.REGISTRIES[kind]))
        for kind in ("schedule", "parameterization")
    },
}


def make(kind, name) -> Any:
    return registry.REGISTRIES[kind][name](**NEEDS.get(name, {}))


def functions(encoder, schedule, x):
    """encode(log_snr) and log_snr_at(t)."""
    e, s = make("encoder", encoder), make("schedule", schedule)
    params = s.init(jax.random.key(0))
    return lambda log_snr: e.apply({}, x, log_snr), lambda t: s.apply(params, t)


def network_for(x_hat, parameterization):
    """The network that means x_hat, whatever z: out = p x_hat + q eps_hat."""

    def network(z, log_snr):
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(v))[:, None] for v in (log_snr, -log_snr))
        p, q = parameterization(log_snr)
        return p[:, None] * x_hat + q[:, None] * (z - alpha * x_hat) / sigma

    return network


def normals(seed, *shape):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape)) for _ in range(3))


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
    }[mean]


def kl(mean_q, variance_q, mean_p, variance_p) -> Any:
    ratio = variance_q / variance_p
    return 0.5 * np.sum(ratio - 1 - np.log(ratio) + (mean_q - mean_p) ** 2 / variance_p)


@pytest.mark.thin(pairs=True)
@combined["encoder"]
@combined["parameterization"]
@combined["generative_mean"]
@combined["schedule"]
@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_the_discrete_loss_is_the_kl_of_its_two_gaussians(
    x64, encoder, parameterization, generative_mean, schedule, num_steps
):
    x, eps, x_hat = normals(0, 4, 3)
    t = jnp.asarray([0.0, 0.3, 0.62, 0.99999])
    encode, log_snr_at = functions(encoder, schedule, x)
    prm, mean = (
        make("parameterization", parameterization),
        BoundMean(make("generative_mean", generative_mean)),
    )
    step = objective.discrete(equal_steps(num_steps))(encode, log_snr_at, markov, t)
    got = objective.diffusion_loss(step, eps, network_for(x_hat, prm), prm, mean)
    want = [
        num_steps
        * step_kl(i, int(t[i] * num_steps), num_steps, encode, log_snr_at, eps, x_hat, generative_mean)
        for i in range(4)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@combined["encoder"]
@combined["generative_mean"]
@given(data=st.data())
@settings(deadline=None, max_examples=5)
def test_any_times_and_variances_give_the_kl_of_their_two_gaussians(encoder, generative_mean, data):
    """sigma_P^2 = sigma_Q^2 / w [9]."""
    gaps = data.draw(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
    log_w = data.draw(st.lists(st.floats(-3, 3), min_size=len(gaps), max_size=len(gaps)))
    times = np.concatenate([[0.0], np.cumsum(gaps) / np.sum(gaps)])
    with jax.enable_x64(True):
        x, eps, x_hat = normals(0, 4, 3)
        encode, log_snr_at = functions(encoder, "linear", x)
        prm, mean = make("parameterization", "v"), BoundMean(make("generative_mean", generative_mean))
        t = jnp.asarray([0.0, 0.3, 0.62, 0.99999])
        step = objective.discrete(Chain(jnp.asarray(times), jnp.asarray(log_w)))(
            encode, log_snr_at, markov, t
        )
        got = objective.diffusion_loss(step, eps, network_for(x_hat, prm), prm, mean)
        index = [int(v * len(gaps)) for v in t]
        want = [
            len(gaps)
            * kl_between(i, times[k + 1], times[k], encode, log_snr_at, eps, x_hat, generative_mean, log_w[k])
            for i, k in enumerate(index)
        ]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def step_kl(i, index, num_steps, encode, log_snr_at, eps, x_hat, mean):
    """`kl_between` for s = index / T, t = (index + 1) / T and sigma_P = sigma_Q."""
    t, s = (index + 1) / num_steps, index / num_steps
    return kl_between(i, t, s, encode, log_snr_at, eps, x_hat, mean, 0.0)


def kl_between(i, t, s, encode, log_snr_at, eps, x_hat, mean, log_w):
    """KL(q(z_s|z_t,x) || p(z_s|z_t)) of example i, by Bayes's rule.

    q(z_s|z_t,x) is proportional to q(z_t|z_s,x) [11] times q(z_s|x) [10]: a product of two Gaussians in z_s.
    """
    log_snr_t, log_snr_s = (float(log_snr_at(jnp.full(4, v))[i]) for v in (t, s))
    x_t, x_s = (np.asarray(encode(jnp.full(4, v)))[i] for v in (log_snr_t, log_snr_s))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(log_snr_t), ends(log_snr_s)
    z_t = alpha_t * x_t + sigma_t * np.asarray(eps)[i]
    ratio = alpha_t / alpha_s
    noise = sigma_t**2 - ratio**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + ratio**2 / noise)
    mean_q = variance * (alpha_s * x_s / sigma_s**2 + ratio * (z_t - alpha_t * (x_t - x_s)) / noise)
    guess = np.asarray(x_hat)[i]
    mean_p = variance * (alpha_s * guess / sigma_s**2 + ratio * z_t / noise)  # the posterior if x_phi = x_hat
    mean_p = mean_p + alpha_s * step_gain(mean, log_snr_t, log_snr_s) * guess  # and its counterterm [17]
    return kl(mean_q, variance, mean_p, variance / np.exp(log_w))


@pytest.mark.parametrize("num_steps", [1, 3, 1000, 10**4, 10**6])
def test_every_time_belongs_to_one_of_the_steps(num_steps):
    t = np.array([0, 0.5, np.nextafter(np.float32(1), np.float32(0))], np.float32)
    want = [0, num_steps // 2, num_steps - 1]
    np.testing.assert_array_equal(objective.step_index(jnp.asarray(t), num_steps), want)


def test_a_drawn_t_stands_for_a_step_wherever_the_chain_puts_it():
    chain = Chain(jnp.array([0.0, 0.7, 0.8, 1.0]), jnp.zeros(3))
    ends = objective.noisier_ends(chain, jnp.array([0.0, 0.3, 0.5, 0.99, 1.0]))
    assert ends == pytest.approx([0.7, 0.7, 0.8, 1.0, 1.0])


@pytest.mark.thin
@combined["encoder"]
@combined["parameterization"]
@combined["generative_mean"]
@combined["schedule"]
def test_discrete_tends_to_continuous_at_first_order(
    x64, encoder, parameterization, generative_mean, schedule
):
    x, eps, x_hat = normals(1, 2, 3)
    encode, log_snr_at = functions(encoder, schedule, x)
    prm, mean = (
        make("parameterization", parameterization),
        BoundMean(make("generative_mean", generative_mean)),
    )

    def loss(rule):
        step = rule(encode, log_snr_at, markov, jnp.asarray([0.25, 0.75]))
        return np.asarray(objective.diffusion_loss(step, eps, network_for(x_hat, prm), prm, mean))

    depths, limit = [2**10, 2**12, 2**14], loss(objective.continuous)
    errors = np.array([np.abs(loss(objective.discrete(equal_steps(depth))) / limit - 1) for depth in depths])
    orders = -np.polyfit(np.log(depths), np.log(errors), 1)[0]
    np.testing.assert_allclose(orders, 1, atol=0.1)


@combined["encoder"]
@combined["generative_mean"]
def test_the_continuous_loss_is_the_papers(x64, encoder, generative_mean):
    """[18], its derivatives by central differences: -1/2 SNR' || x_hat + kappa x_hat - x_phi - dx_phi ||^2."""
    x, eps, x_hat = normals(2, 3, 4)
    t, h = jnp.asarray([0.1, 0.5, 0.9]), 1e-5
    encode, log_snr_at = functions(encoder, "linear", x)
    prm, mean = make("parameterization", "v"), BoundMean(make("generative_mean", generative_mean))
    step = objective.continuous(encode, log_snr_at, markov, t)
    got = objective.diffusion_loss(step, eps, network_for(x_hat, prm), prm, mean)
    log_snr = log_snr_at(t)
    snr_rate = (np.exp(log_snr_at(t + h)) - np.exp(log_snr_at(t - h))) / (2 * h)
    slope = (encode(log_snr + h) - encode(log_snr - h)) / (2 * h)
    kappa = 0.0 if generative_mean == "vdm" else ends(np.asarray(log_snr))[1] ** 2
    error = (1 + kappa * np.ones(3))[:, None] * x_hat - encode(log_snr) - slope
    np.testing.assert_allclose(got, -0.5 * snr_rate * np.sum(error**2, axis=1), rtol=1e-7)


@pytest.mark.thin
@combined["parameterization"]
@combined["schedule"]
@pytest.mark.parametrize("variance", [0.1, 1.0, 4.0])
def test_gaussian_data_meet_the_i_mmse_integral(x64, parameterization, schedule, variance):
    """x ~ N(0, v), best denoiser: the loss integrates to 1/2 log((1 + v SNR_max) / (1 + v SNR_min))."""
    prm = make("parameterization", parameterization)
    u, weight = np.polynomial.legendre.leggauss(200)
    node, node_weight = np.polynomial.hermite_e.hermegauss(3)  # exact: the loss is quadratic in (x, eps)
    node_weight = node_weight / node_weight.sum()

    def best(z, log_snr):
        alpha_2, sigma_2 = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        gain = variance * jnp.sqrt(alpha_2) / (variance * alpha_2 + sigma_2)
        return network_for(gain[:, None] * z, prm)(z, log_snr)

    def integral(x, eps):
        encode, log_snr_at = functions("identity", schedule, jnp.full((200, 1), np.sqrt(variance) * x))
        step = objective.continuous(encode, log_snr_at, markov, jnp.asarray((u + 1) / 2))
        loss = objective.diffusion_loss(
            step, jnp.full((200, 1), eps), best, prm, BoundMean(make("generative_mean", "vdm"))
        )
        return weight / 2 @ np.asarray(loss)

    total = sum(
        node_weight[i] * node_weight[j] * integral(node[i], node[j]) for i in range(3) for j in range(3)
    )
    _, log_snr_at = functions("identity", schedule, jnp.zeros((2, 1)))
    snr_max, snr_min = np.exp(np.asarray(log_snr_at(jnp.asarray([0.0, 1.0]))))
    np.testing.assert_allclose(
        total, 0.5 * np.log((1 + variance * snr_max) / (1 + variance * snr_min)), rtol=1e-9
    )


@pytest.mark.thin
@combined["encoder"]
@combined["parameterization"]
@combined["generative_mean"]
@pytest.mark.parametrize(("depth", "tolerance"), [(None, 1e-5), (100, 1e-4), (1000, 1e-4), (10**4, 1e-3)])
def test_the_mean_loss_keeps_its_digits_in_float32(
    encoder, parameterization, generative_mean, depth, tolerance
):
    prm, mean = (
        make("parameterization", parameterization),
        BoundMean(make("generative_mean", generative_mean)),
    )
    rng = np.random.default_rng(3)
    x, eps = rng.uniform(-1, 1, (256, 8)).astype(np.float32), rng.normal(size=(256, 8)).astype(np.float32)
    t = (np.arange(256, dtype=np.float32) + 0.5) / 256

    def network(z, log_snr):
        return 0.3 * jnp.sin(z + log_snr[:, None] / 3)

    def mean_loss(dtype):
        rule = objective.continuous if depth is None else objective.discrete(equal_steps(depth))
        encode, log_snr_at = functions(encoder, "linear", jnp.asarray(x, dtype))
        step = rule(encode, log_snr_at, markov, jnp.asarray(t, dtype))
        return float(jnp.mean(objective.diffusion_loss(step, jnp.asarray(eps, dtype), network, prm, mean)))

    single = mean_loss(jnp.float32)
    with jax.enable_x64(True):
        double = mean_loss(jnp.float64)
    np.testing.assert_allclose(single, double, rtol=tolerance)


@pytest.mark.parametrize("log_snr", [-12.0, -5.0, 0.0, 4.0])
def test_the_latent_loss_is_the_kl_to_the_standard_normal(log_snr):
    x = np.random.default_rng(4).uniform(-1, 1, (3, 2, 2, 1)).astype(np.float32)
    alpha, sigma = ends(np.float64(log_snr))
    want = [kl(alpha * image, np.full(image.shape, sigma**2), 0.0, 1.0) for image in x.astype(np.float64)]
    got = objective.latent_loss(jnp.asarray(x), jnp.full(3, log_snr))
    np.testing.assert_allclose(got, want, rtol=2e-5)


def log_likelihood(z, levels, log_snr, num_levels):
    """log p(x | z_0) [55] of each example, straight from the normalised densities."""
    alpha, sigma = ends(np.float64(log_snr))
    values = (2 * np.arange(num_levels) + 1) / num_levels - 1
    log_density = -0.5 * ((z[..., None] - alpha * values) / sigma) ** 2
    top = log_density.max(axis=-1, keepdims=True)
    log_p = log_density - top - np.log(np.exp(log_density - top).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_p, levels[..., None], axis=-1)[..., 0]
    return chosen.reshape(len(z), -1).sum(axis=1)


@pytest.mark.parametrize("log_snr", [13.3, 5.0, -2.0])
@pytest.mark.parametrize("num_levels", [17, 256])
def test_the_reconstruction_loss_is_the_likelihood_of_the_levels(x64, log_snr, num_levels):
    rng = np.random.default_rng(5)
    levels, eps = rng.integers(0, num_levels, (3, 2, 2, 1)), rng.normal(size=(3, 2, 2, 1))
    x_phi = 0.9 * ((2 * levels + 1) / num_levels - 1)  # an encoder's: not x, so that only the levels' are
    alpha, sigma = ends(log_snr)
    log_snrs = jnp.full(3, log_snr)
    pixels = objective.diffused_pixels(jnp.asarray(x_phi), jnp.asarray(eps), log_snrs)
    np.testing.assert_allclose(pixels, (alpha * x_phi + sigma * eps) / alpha, rtol=1e-12)
    got = objective.reconstruction_loss(pixels, jnp.asarray(levels), log_snrs, num_levels)
    want = -log_likelihood(alpha * x_phi + sigma * eps, levels, log_snr, num_levels)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@given(pixel=st.floats(-1.25, 1.25, width=32), log_snr=st.floats(-4, 15, width=32))
@settings(deadline=None, max_examples=50)
def test_the_probabilities_of_all_levels_sum_to_one(pixel, log_snr):
    levels = jnp.arange(256)[:, None]
    loss = objective.reconstruction_loss(jnp.full((256, 1), pixel), levels, jnp.full(256, log_snr), 256)
    np.testing.assert_allclose(np.exp(-np.asarray(loss, np.float64)).sum(), 1, rtol=2e-4)


def test_reconstruction_tends_to_one_hot():
    levels = jnp.arange(256)[:, None]
    pixel = jnp.full((256, 1), 2 * (77 + 0.7) / 256 - 1)  # a fifth of a level above level 77
    losses = [
        np.asarray(objective.reconstruction_loss(pixel, levels, jnp.full(256, log_snr), 256))
        for log_snr in (8.0, 11.0, 14.0)
    ]
    own = [loss[77] for loss in losses]
    assert own[0] > own[1] > own[2]
    np.testing.assert_allclose(np.exp(-losses[-1]), np.eye(256)[77], atol=2e-3)


@given(u=st.floats(0, 1, exclude_max=True, width=32), count=st.sampled_from([1, 2, 7, 64, 300]))
@settings(deadline=None, max_examples=100)
def test_stratified_times_lie_one_in_every_stratum(u, count):
    t = np.sort(np.asarray(objective.stratified_times(jnp.float32(u), count), np.float64))
    assert t.shape == (count,)
    assert t[0] >= 0
    assert t[-1] < 1
    offset = np.mod(t - u + 1, 1 / count)  # all stand at the same place in their stratum
    np.testing.assert_allclose(np.minimum(offset, 1 / count - offset), 0, atol=1e-6)
    gaps = np.diff(np.append(t, t[0] + 1))
    np.testing.assert_allclose(gaps, 1 / count, atol=1e-6)


def test_each_stratified_time_is_uniform():
    grid = (np.arange(60) + 0.5) / 60  # u uniform on [0, 1)
    t = np.stack([objective.stratified_times(jnp.float32(u), 6) for u in grid])
    np.testing.assert_allclose(np.sort(t, axis=0), np.repeat(grid[:, None], 6, axis=1), atol=1e-6)
