"""The ODE's likelihood, its average along q and the parts of its gap to the ELBO: data of eight levels, whose posteriors are sums."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.config.settings import Evaluate, Likelihood
from diffenc.core.model import Draws, Model
from diffenc.core.stochasticity import MARKOV
from diffenc.data.sources import ArraySource
from diffenc.evaluation import along_q, ode
from diffenc.evaluation.ode_gap import OdeGap
from diffenc.evaluation.ode_likelihood import solve_images
from diffenc.interfaces import NO_CONTEXT, Images
from diffenc.parallel.sharding import data_mesh
from diffenc_plugins.generative_means import VDM, Counterterm, TwoHeads
from diffenc_plugins.parameterizations import V, X
from diffenc_plugins.schedules import Linear
from diffenc_plugins.stochasticities import Constant, Nontrainable

FREQUENCIES = np.array([0.02, 0.1, 0.3, 0.05, 0.03, 0.2, 0.25, 0.05])
VALUES = (2 * np.arange(8) + 1) / 8 - 1
ENTROPY = -FREQUENCIES @ np.log2(FREQUENCIES)
HIGH, LOW = 13.3, -12.0
NO_PARAMS = {part: {} for part in ("encoder", "schedule", "network", "stochasticity", "generative_mean")}


def trained_like(x, log_snr):
    """No multiple of x, and of another shape at each lambda, as a trained encoder's."""
    alpha_2 = jax.nn.sigmoid(log_snr)
    return alpha_2 * x + (1 - alpha_2) * (0.6 * jnp.sin(3 * x + log_snr / 3) - 0.3 * x)


FORMULAS: dict[str, Callable] = {
    "identity": lambda x, log_snr: x + 0 * log_snr,
    "nontrainable": lambda x, log_snr: jax.nn.sigmoid(log_snr) * x,
    "trained_like": trained_like,
}


@dataclasses.dataclass(frozen=True)
class Encoder:
    name: str

    def init(self, key, x, log_snr):
        return {}

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return FORMULAS[self.name](x, log_snr[:, None, None, None])


def posterior_means(name, z, log_snr):
    """E[x_phi | z] and E[d x_phi / d lambda | z] of z [B], by Bayes."""
    encode = partial(FORMULAS[name], jnp.asarray(VALUES)[None])
    x_phi, slope = jax.jvp(encode, (log_snr[:, None],), (jnp.ones_like(log_snr)[:, None],))
    alpha, sigma_2 = jnp.sqrt(jax.nn.sigmoid(log_snr))[:, None], jax.nn.sigmoid(-log_snr)[:, None]
    logits = jnp.log(FREQUENCIES)[None] - 0.5 * (z[:, None] - alpha * x_phi) ** 2 / sigma_2
    share = jax.nn.softmax(logits, axis=1)
    return jnp.sum(share * x_phi, axis=1), jnp.sum(share * slope, axis=1)


@dataclasses.dataclass(frozen=True)
class Best:
    """x_hat of the least bound: E[x_phi + slope | z] / (1 + kappa); as `second`, the r for which x_hat + sigma r is E[x_phi | z]."""

    name: str
    second: bool = False

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        value, slope = posterior_means(self.name, z.ravel(), log_snr)
        sigma_2 = jax.nn.sigmoid(-log_snr)
        x_hat = (value + slope) / (1 + (0 if self.name == "identity" else sigma_2))
        out = (value - x_hat) / jnp.sqrt(sigma_2) if self.second else x_hat
        return out.reshape(z.shape)


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network that is best at nothing."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        shift = log_snr[:, None, None, None] / 3
        return 0.7 * jnp.sin(1.3 * z + shift)


MEANS: dict[str, Any] = {
    "identity": VDM(),
    "nontrainable": Counterterm(),
    "trained_like": TwoHeads(Best("trained_like", second=True)),
}
every_encoder = pytest.mark.parametrize("name", FORMULAS)


def exact(name, mean=None, path: Any = MARKOV):
    """A model of exact posterior means."""
    return Model(Encoder(name), Linear(HIGH, LOW), X(), mean or MEANS[name], Best(name), stochasticity=path)


NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(110)
EPS = np.linspace(-6.5, 6.5, 131)
EPS_WEIGHTS = np.exp(-0.5 * EPS**2) / np.exp(-0.5 * EPS**2).sum()
SHAPE = len(NODES), 8, len(EPS)


def grid():
    """Times, levels and noise of all combinations, flat, and their weights in an expectation."""
    t, levels, eps = np.meshgrid((NODES + 1) / 2, np.arange(8), EPS, indexing="ij")
    weights = (NODE_WEIGHTS / 2)[:, None, None] * FREQUENCIES[None, :, None] * EPS_WEIGHTS
    return t.ravel(), levels.ravel(), eps.ravel(), weights.ravel()


def draw_integrals(model, t, levels, eps, weight=1.0):
    """The integrals of one draw each, of times, levels and noise [B]."""
    column = lambda values: jnp.asarray(values).reshape(-1, 1, 1, 1)  # noqa: E731
    draws = Draws(jnp.asarray(t), column(eps), column(eps), jnp.full(len(t), weight))
    compiled = jax.jit(partial(along_q.integrals, model, 8, ode.exact_divergence))
    return compiled(NO_PARAMS, Images(column(levels)), draws)


@cache
def averages(model):
    """Expectation of each integral over data, times and noise in bits, by quadrature. In float64."""
    t, levels, eps, weights = grid()
    found = draw_integrals(model, t, levels, eps)
    return {name: float(weights @ np.asarray(nats)) / np.log(2) for name, nats in found._asdict().items()}


@every_encoder
def test_with_exact_posterior_means_the_average_along_q_is_the_entropy(x64, name):
    """And the errors have no part in the gap; at lambda = 13.3 the levels are certain, and dequantisation costs nothing."""
    found = averages(exact(name))
    assert found["latent"] + found["divergence"] == pytest.approx(ENTROPY, abs=1e-4)
    assert found["reconstruction"] == pytest.approx(0, abs=1e-9)
    assert found["miscalibration"] == pytest.approx(0, abs=1e-6)
    elbo = found["reconstruction"] + found["latent"] + found["diffusion"]
    assert elbo + found["looseness"] == pytest.approx(ENTROPY, abs=1e-4)
    least, most = {"identity": (0, 0), "nontrainable": (0.03, 0.07), "trained_like": (0.01, 0.1)}[name]
    assert least <= -found["looseness"] <= most


def test_on_its_own_path_the_nontrainable_encoders_elbo_is_not_loose(x64):
    found = averages(exact("nontrainable", path=Nontrainable()))
    assert found["looseness"] == pytest.approx(0, abs=1e-12)
    assert found["latent"] + found["diffusion"] == pytest.approx(ENTROPY, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "mean", "path"),
    [
        ("identity", VDM(), Constant(0.8)),
        ("trained_like", Counterterm(), MARKOV),
        ("trained_like", TwoHeads(Wave()), Constant(1.3)),
    ],
)
def test_the_parts_add_up_whatever_the_network_is(x64, name, mean, path):
    """The divergence, by derivatives, is the diffusion loss with both parts of the errors: by parts in z."""
    found = averages(Model(Encoder(name), Linear(4.0, -5.0), V(), mean, Wave(), stochasticity=path))
    parts = found["diffusion"] + found["looseness"] + found["miscalibration"]
    assert found["divergence"] == pytest.approx(parts, abs=1e-6 * found["diffusion"])
    assert abs(found["miscalibration"]) > 1e-3
    assert found["looseness"] < -0.01 * found["diffusion"]


def test_one_head_is_inconsistent_with_a_trained_encoder(x64):
    """Best for the bound, and not calibrated as a value: its average along q is no likelihood."""
    one, two = averages(exact("trained_like", Counterterm())), averages(exact("trained_like"))
    for term in ("latent", "diffusion"):
        assert one[term] == pytest.approx(two[term], abs=1e-12)
    assert abs(one["miscalibration"]) > 0.01


def errors_by_hand(model_path, log_snr, x, eps):
    """Errors of value and slope of `Wave`, v and the counterterm, on the encoder `trained_like`, in numpy."""
    alpha, sigma = (1 / np.sqrt(1 + np.exp(-sign * log_snr)) for sign in (1, -1))
    h = 1e-5
    x_phi, more, less = (np.asarray(trained_like(x, log_snr + shift)) for shift in (0.0, h, -h))
    z = alpha * x_phi + sigma * eps
    x_hat = alpha * z - sigma * 0.7 * np.sin(1.3 * z + log_snr / 3)
    return z, x_hat, x_hat - x_phi, sigma**2 * x_hat - (more - less) / (2 * h)


def test_each_part_is_its_definition(x64):
    eta, random = 0.8, np.random.default_rng(0)
    t, eps = random.uniform(0.05, 0.95, 8), random.normal(size=8)
    log_snr = 4 - 9 * t
    z, value, e_x, e_s = errors_by_hand(eta, log_snr, VALUES, eps)
    snr, sigma_2 = np.exp(log_snr), 1 / (1 + np.exp(log_snr))
    loose = 0.5 * (1 - eta**2) * e_x + e_s
    want = {
        "diffusion": 9 * snr / (2 * eta**2) * (0.5 * (1 + eta**2) * e_x + e_s) ** 2,
        "looseness": -9 * snr / (2 * eta**2) * loose**2,
        "miscalibration": 9
        * np.sqrt(1 - sigma_2)
        / sigma_2
        * (0.5 * e_x + e_s)
        * (z - np.sqrt(1 - sigma_2) * value),
    }
    model = Model(
        Encoder("trained_like"), Linear(4.0, -5.0), V(), Counterterm(), Wave(), stochasticity=Constant(eta)
    )
    found = draw_integrals(model, t, np.arange(8), eps)
    for name, values in want.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-7, err_msg=name)
    halved = draw_integrals(model, t, np.arange(8), eps, weight=0.5)
    for name in (*want, "divergence"):
        np.testing.assert_allclose(getattr(halved, name), 0.5 * np.asarray(getattr(found, name)), rtol=1e-12)


def test_at_the_best_noise_of_the_path_looseness_is_what_a_and_b_leave(x64):
    """-1/2 e^lambda (1/2 A (eta^2 - 1) - B), eta^4 = 1 + 4 (B + C) / A, with second moments A, B, C of the errors."""
    log_snr, eps = 0.7, np.random.default_rng(1).normal(size=8)
    _, _, e_x, e_s = errors_by_hand(1.0, np.full(8, log_snr), VALUES, eps)
    a, b, c = np.mean(e_x**2), np.mean(e_x * e_s), np.mean(e_s**2)
    eta_2 = np.sqrt(1 + 4 * (b + c) / a)
    path = Constant(float(np.sqrt(eta_2)))
    model = Model(Encoder("trained_like"), Linear(4.0, -5.0), V(), Counterterm(), Wave(), stochasticity=path)
    found = draw_integrals(model, np.full(8, (4 - log_snr) / 9), np.arange(8), eps)
    want = -9 * 0.5 * np.exp(log_snr) * (0.5 * a * (eta_2 - 1) - b)
    np.testing.assert_allclose(np.mean(found.looseness), want, rtol=1e-7)


@dataclasses.dataclass(frozen=True)
class Levels:
    """Every level once, as an image of one pixel."""

    image_shape = (1, 1, 1)
    num_levels = 8
    num_classes = 1

    def source(self, split):
        return ArraySource(np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1), np.zeros(8, np.int32))

    def fingerprint(self, split):
        return "levels"


@every_encoder
def test_the_odes_likelihood_is_the_entropy_and_leaves_q_nowhere(x64, tiny, name):
    """To 1e-3 bits; what the value leaves of z is as large on the solved paths as along q, and z - alpha x_phi is not."""
    settings = {
        "evaluate": Evaluate(passes=40, batch_size=8),
        "likelihood": Likelihood(rtol=1e-5, atol=1e-6, times_per_image=4),
    }
    experiment = tiny(model=exact(name), dataset=Levels(), **settings)
    solved, tighter = (
        solve_images(experiment, experiment.model, data_mesh(), NO_PARAMS, factor) for factor in (1.0, 0.1)
    )
    bits = tighter.nats.mean(axis=0) / np.log(2)
    assert FREQUENCIES @ bits == pytest.approx(ENTROPY, abs=1e-3)
    assert np.any(solved.nats != tighter.nats)
    assert FREQUENCIES @ solved.nats.mean(axis=0) / np.log(2) == pytest.approx(ENTROPY, abs=1e-3)
    of_path, of_q, from_encoded = (FREQUENCIES @ squares.mean(axis=0).T for squares in tighter.noise)
    assert np.all(np.abs(of_path / of_q - 1) < 0.25), "40 draws of each level"
    assert np.abs(of_path / of_q - 1).mean() < 0.08
    assert from_encoded.min() < 0.6
    averaged = along_q.measure_along_q(experiment, experiment.model, data_mesh(), NO_PARAMS)
    gap = OdeGap.of(experiment, solved.nats, tighter.nats, averaged, HIGH)
    parts = [values for key, values in gap._asdict().items() if key.startswith("gap_")]
    np.testing.assert_allclose(sum(part.values for part in parts), gap.gap.values, atol=1e-9)
    want = averages(experiment.model)
    for key, values in averaged.nats.items():
        by_pass = values @ FREQUENCIES / np.log(2)
        assert by_pass.mean() == pytest.approx(want[key], abs=5 * by_pass.std() / np.sqrt(40) + 1e-6), key
