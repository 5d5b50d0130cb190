"""Two heads: the bound is one head's, the second learns the value alone, and with both the ODE is that of the SDE."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.discretization import equal_steps
from diffenc.core.model import Draws, Model
from diffenc.core.objective import discrete
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import MARKOV
from diffenc.evaluation import commands, ode
from diffenc.interfaces import NO_CONTEXT
from diffenc.training import loop
from diffenc_plugins.encoders import Identity, Trainable
from diffenc_plugins.generative_means import VDM, Counterterm, Reencoded, TwoHeads
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import LearnedEndpoints
from diffenc_plugins.stochasticities import Learned

SHAPE, NUM_LEVELS = (6, 4, 4, 1), 16


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form with one parameter."""

    gain: float = 2.0

    def init(self, key, z, log_snr):
        return {"size": jnp.asarray(0.7)}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        shift = log_snr.reshape(-1, *[1] * (z.ndim - 1)) / 3
        return params["size"] * jnp.sin(self.gain * z + shift)


def model_of(mean, encoder: Any = None):
    encoder = encoder or Trainable(Wave(1.3))
    return Model(encoder, LearnedEndpoints(6.0, -5.0), V(), mean, Wave(), stochasticity=Learned())


def inputs():
    rng = np.random.default_rng(0)
    levels = jnp.asarray(rng.integers(0, NUM_LEVELS, SHAPE))
    t, eps, eps_0 = rng.uniform(size=SHAPE[0]), rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    return levels, Draws(jnp.asarray(t), jnp.asarray(eps), jnp.asarray(eps_0))


def losses_of(model, params, **options):
    return model.losses(params, *inputs(), num_levels=NUM_LEVELS, **options)


def parameters(model):
    first = model.init(jax.random.key(0), SHAPE[1:])
    return jax.tree.map(lambda leaf: leaf + 0.05, first)


RULES: dict[str, Any] = {"continuous": {}, "discrete": {"step_rule": discrete(equal_steps(5))}}


@pytest.mark.parametrize("rule", RULES)
def test_the_bound_and_its_gradient_are_those_of_one_head(x64, rule):
    two, one = model_of(TwoHeads(Wave(0.9))), model_of(Counterterm())
    params = parameters(two)

    def total(model, params):
        return losses_of(model, params, **RULES[rule]).bound.total.sum()

    np.testing.assert_allclose(total(two, params), total(one, params), rtol=1e-12)
    got, want = (jax.grad(partial(total, model))(params) for model in (two, one))
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(want)))
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12 * norm)
    assert abs(float(got["generative_mean"]["size"])) < 1e-12 * norm


def test_the_values_loss_is_plain_denoising_of_the_second_head_alone(x64):
    model = model_of(TwoHeads(Wave(0.9)))
    params = parameters(model)

    def value_loss(params):
        return losses_of(model, params).auxiliary["value_loss"]

    (levels, draws), x_hat_like = inputs(), partial(model.denoise, params)
    log_snr = model.log_snr(params, draws.t)
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(-s * log_snr)))[:, None, None, None] for s in (1, -1))
    x_phi = np.asarray(model.encode(params, (2 * levels + 1) / NUM_LEVELS - 1, log_snr))
    z = alpha * x_phi + sigma * np.asarray(draws.eps)
    r = 0.75 * np.sin(0.9 * z + np.asarray(log_snr)[:, None, None, None] / 3)
    value = np.asarray(x_hat_like(jnp.asarray(z), log_snr)) + sigma * r
    want = np.mean(((value - x_phi) / sigma) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(value_loss(params), want, rtol=1e-9)
    gradient = jax.grad(lambda params: value_loss(params).sum())(params)
    assert float(gradient["generative_mean"]["size"]) != 0
    others = {part: leaves for part, leaves in gradient.items() if part != "generative_mean"}
    for leaf in jax.tree.leaves(others):
        np.testing.assert_array_equal(leaf, 0)


def test_other_means_have_no_loss_beside_the_bound():
    model = model_of(Counterterm())
    assert losses_of(model, parameters(model)).auxiliary == {}


def test_reencoding_with_the_identity_is_vdm(x64):
    re, vdm = (model_of(mean, Identity()) for mean in (Reencoded(), VDM()))
    params = parameters(re)
    for options in RULES.values():
        got, want = (losses_of(model, params, **options).bound.diffusion for model in (re, vdm))
        np.testing.assert_allclose(got, want, rtol=1e-9)


# One dimension, eight levels, exact posteriors

FREQUENCIES = np.array([0.02, 0.1, 0.3, 0.05, 0.03, 0.2, 0.25, 0.05])
VALUES = (2 * np.arange(8) + 1) / 8 - 1


def encode(log_snr):
    """x_phi of every level, [B, 8]: like a trained encoder, no multiple of x."""
    alpha_2, x = jax.nn.sigmoid(log_snr)[:, None], jnp.asarray(VALUES)[None]
    y = 0.6 * jnp.sin(3 * x + log_snr[:, None] / 3) - 0.3 * x
    return alpha_2 * x + (1 - alpha_2) * y


def log_joint(z, log_snr):
    """log of frequency times density of z [B, 1], [B, 8]."""
    alpha, sigma_2 = jnp.sqrt(jax.nn.sigmoid(log_snr))[:, None], jax.nn.sigmoid(-log_snr)[:, None]
    squares = (z - alpha * encode(log_snr)) ** 2 / sigma_2
    return jnp.log(jnp.asarray(FREQUENCIES))[None] - 0.5 * (squares + jnp.log(2 * jnp.pi * sigma_2))


def posterior_means(z, log_snr):
    """E[x_phi | z] and E[d x_phi / d lambda | z], [B, 1]."""
    share = jax.nn.softmax(log_joint(z, log_snr), axis=1)
    x_phi, slope = jax.jvp(encode, (log_snr,), (jnp.ones_like(log_snr),))
    return tuple(jnp.sum(share * each, axis=1, keepdims=True) for each in (x_phi, slope))


def best_x_hat(z, log_snr):
    """What the bound trains the one head to: E[x_phi + slope | z] / (1 + sigma^2)."""
    value, slope = posterior_means(z, log_snr)
    return (value + slope) / (1 + jax.nn.sigmoid(-log_snr)[:, None])


@dataclasses.dataclass(frozen=True)
class ExactSecondHead:
    """r for which x_hat + sigma r is E[x_phi | z]."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        value = posterior_means(z, log_snr)[0]
        return (value - best_x_hat(z, log_snr)) / jnp.sqrt(jax.nn.sigmoid(-log_snr))[:, None]


def test_with_both_heads_the_ode_has_the_datas_density(x64):
    """-E log p_0(z_0) less the noise's own: the entropy of the levels, to 1e-3 bits; one head is far off."""
    node, weight = np.polynomial.hermite_e.hermegauss(24)
    weight = weight / weight.sum()
    top = jnp.full(8 * len(node), 9.0)
    x_phi = np.asarray(encode(top[:8]))[0]
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-9.0))), np.sqrt(1 / (1 + np.exp(9.0)))
    z = jnp.asarray((alpha * x_phi[:, None] + sigma * node[None]).reshape(-1, 1))
    share = (FREQUENCIES[:, None] * weight[None]).ravel()
    want = -share @ np.asarray(jax.nn.logsumexp(log_joint(z, top), axis=1)) / np.log(2)

    @partial(jax.jit, static_argnums=0)
    def density(mean):
        velocity = ode.ode_velocity(BoundMean(mean).estimator(best_x_hat), partial(MARKOV.increment, {}))
        return ode.log_density(
            z, jnp.asarray(9.0), jnp.asarray(-12.0), velocity, ode.exact_divergence, 1e-6, 1e-6
        )

    bits = {}
    for mean in (TwoHeads(ExactSecondHead()), Counterterm()):
        log_p, stats = density(mean)
        ode.require_reached(stats)
        bits[type(mean)] = -share @ np.asarray(log_p) / np.log(2)
    entropy_of_noise = 0.5 * np.log2(2 * np.pi * np.e * sigma**2)
    entropy = -FREQUENCIES @ np.log2(FREQUENCIES)
    np.testing.assert_allclose(want - entropy_of_noise, entropy, atol=1e-6)
    np.testing.assert_allclose(bits[TwoHeads] - entropy_of_noise, entropy, atol=1e-3)
    assert bits[Counterterm] - entropy_of_noise > entropy + 0.01


def test_a_run_logs_the_values_loss_resumes_and_samples_by_the_ode(tiny, tmp_path, caplog):
    """It falls; the bound of each step is that of the run without a second head."""
    affine = tiny().model.network
    runs = {}
    for name, mean in (("two", TwoHeads(affine)), ("one", Counterterm())):
        model = dataclasses.replace(tiny().model, generative_mean=mean)
        for steps in (6, 12):
            loop.train(tiny(model=model, steps=steps), tmp_path / name)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        runs[name] = [row for row in rows if "bpd_diffusion" in row]
    losses = [row["value_loss"] for row in runs["two"]]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    for two, one in zip(runs["two"], runs["one"], strict=True):
        assert "value_loss" not in one
        np.testing.assert_allclose(two["bpd"], one["bpd"], rtol=1e-5)
    sampled = tiny(model=dataclasses.replace(tiny().model, generative_mean=TwoHeads(affine)), steps=12)
    with caplog.at_level("WARNING", logger="absl"):
        commands.sample(
            dataclasses.replace(sampled, sample=dataclasses.replace(sampled.sample, sampler="ddim")),
            tmp_path / "two",
        )
    assert "samples of another model" not in caplog.text
