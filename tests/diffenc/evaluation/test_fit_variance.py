"""Fitted variances: optimal by central differences, and what they do to the bound as T grows (oracle 8)."""

import dataclasses
import functools
import json
import logging as std_logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry
from diffenc.config.settings import Evaluate, Fit
from diffenc.core import objective
from diffenc.core.discretization import EQUAL, Chain, equal_times
from diffenc.core.model import Draws, Model
from diffenc.core.reverse import BoundMean
from diffenc.errors import UserError
from diffenc.evaluation import commands, fit_schedule, fit_variance
from diffenc.evaluation.restore_params import restore_ema
from diffenc.interfaces import NO_CONTEXT
from diffenc.training import loop
from diffenc.workdir import fitted_chains
from diffenc_plugins.schedules import Linear
from diffenc_plugins.stochasticities import Constant

FITTED = registry.variances["fitted"]()
NUM_LEVELS, NUM_IMAGES, NUM_DIMS, TOP, DROP = 5, 300, 3, 6.0, 10.0
LEVELS = np.random.default_rng(0).integers(0, NUM_LEVELS, (NUM_IMAGES, NUM_DIMS))
PARAMS: Any = {"encoder": {}, "schedule": {}, "network": {}}


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form that depends on all it is given."""

    gain: float = 2.0

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return 0.4 * jnp.sin(self.gain * z + log_snr.reshape(-1, *[1] * (z.ndim - 1)) / 3)


MODEL = Model(
    registry.encoders["trainable"](**{"network": Wave(1.3)}),
    Linear(TOP, TOP - DROP),
    registry.parameterizations["v"](),
    registry.generative_means["counterterm"](),
    Wave(),
)


@functools.partial(jax.jit, static_argnums=0)
def elbo_of(model, chain, draws):
    rule = objective.discrete(chain)
    return model.elbo(PARAMS, jnp.asarray(LEVELS), draws, num_levels=NUM_LEVELS, step_rule=rule)


def per_step(times, log_w, model=MODEL):
    """Mean cost of each of the T steps in turn, nats; the same noise for every `times` and `log_w`."""
    num_steps, costs = len(times) - 1, []
    chain = Chain(jnp.asarray(times), jnp.asarray(log_w))

    eps = jnp.asarray(np.random.default_rng(1).normal(size=LEVELS.shape))
    for index in range(num_steps):
        draws = Draws(jnp.full(NUM_IMAGES, (index + 0.5) / num_steps), eps, jnp.zeros_like(eps))
        costs.append(float(elbo_of(model, chain, draws).diffusion.mean()) / num_steps)
    return np.array(costs)


def best_log_w(times, model=MODEL):
    """Of each step, as --mode=fit_variance has it: from the mean cost with sigma_P = sigma_Q."""
    excess = 2 * per_step(times, np.zeros(len(times) - 1), model) / NUM_DIMS
    return np.asarray(FITTED(jnp.asarray(times[1:]), jnp.asarray(times[:-1]), jnp.asarray(excess)))


@pytest.mark.parametrize("path", [MODEL.stochasticity, Constant(0.5), Constant(1.6)])
def test_no_other_variance_is_better(x64, path):
    times, model = np.array([0.0, 0.15, 0.4, 0.8, 1.0]), dataclasses.replace(MODEL, stochasticity=path)
    best, h = best_log_w(times, model), 1e-4
    at, above, below = (per_step(times, best + shift, model) for shift in (0, h, -h))
    np.testing.assert_allclose((above - below) / (2 * h), 0, atol=1e-6)
    for shift in (-2, -0.1, 0.1, 2):
        assert np.all(per_step(times, best + shift, model) > at)
    np.testing.assert_allclose(at, -NUM_DIMS / 2 * best, rtol=1e-9)  # d/2 log(sigma_P^2 / sigma_Q^2) is left


def test_the_best_variances_help_less_the_deeper_the_chain(x64):
    gains = []
    for num_steps in (1, 4, 16, 64):
        times = equal_times(num_steps)
        equal, best = per_step(times, np.zeros(num_steps)).sum(), per_step(times, best_log_w(times)).sum()
        assert best < equal
        gains.append(1 - best / equal)
    assert np.all(np.diff(gains) < 0)
    assert gains[-1] < 0.5 * gains[-2]  # in the limit, a quarter: they meet as 1 / T


@pytest.mark.parametrize("log_w", [-0.5, 0.3])
def test_a_fixed_ratio_other_than_one_costs_in_proportion_to_the_depth(x64, log_w):
    """Sixteen steps stand for all, each a chain of its own."""
    x = jnp.asarray((2 * LEVELS + 1) / NUM_LEVELS - 1)
    eps = jnp.asarray(np.random.default_rng(1).normal(size=LEVELS.shape))

    def encode(log_snr):
        return MODEL.encode({"encoder": {}}, x, log_snr)

    def network(z, log_snr):
        return MODEL.predict({"network": {}}, z, log_snr)

    @jax.jit
    def cost(times):
        rule = objective.discrete(Chain(times, jnp.asarray([log_w])))
        step = rule(
            encode,
            lambda t: TOP - DROP * t,
            functools.partial(MODEL.increment, PARAMS),
            jnp.zeros(NUM_IMAGES),
        )
        return objective.diffusion_loss(
            step, eps, network, MODEL.parameterization, BoundMean(MODEL.generative_mean)
        ).mean()

    depths = np.array([2**12, 2**14, 2**16])
    index = [np.linspace(0, depth - 1, 16).astype(int) for depth in depths]
    means = [
        np.mean([float(cost(jnp.asarray([i, i + 1]) / depth)) for i in steps])
        for depth, steps in zip(depths, index, strict=True)
    ]
    slope = np.polyfit(np.log(depths), np.log(depths * np.array(means)), 1)[0]
    np.testing.assert_allclose(slope, 1, atol=0.05)


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit_variance") / "run"
    loop.train(tiny(steps=3), folder)
    return folder


@pytest.fixture
def fitting(tiny, workdir):
    """Runs a mode on `workdir`; changes of `evaluate` by name, of `fit` as a dict."""

    def fit(fit=None, mode=fit_variance.fit_variance, folder=workdir, **evaluate):
        settings = Fit(**{"batch_size": 8, "passes": 4, "knots": 9, **(fit or {})})
        return mode(
            tiny(steps=3, fit=settings, evaluate=Evaluate(**{"num_timesteps": 4, **evaluate})), folder
        )

    return fit


def test_the_excess_is_the_mean_cost_of_each_step(fitting, tiny, workdir):
    """Measured again with each step forced in turn, over every image and noise of its own."""
    fit = fitting(fit={"passes": 40, "batch_size": 23})
    experiment = tiny(steps=3)
    ema, step = restore_ema(experiment, workdir, fit_variance.data_mesh(), None)
    levels = jnp.asarray(np.repeat(experiment.dataset.source("train").images, 200, axis=0))
    rule = objective.discrete(Chain(jnp.linspace(0, 1, 5), jnp.zeros(4)))
    elbo = jax.jit(functools.partial(experiment.model.elbo, num_levels=5, step_rule=rule))
    eps = jax.random.normal(jax.random.key(9), levels.shape)
    for index in range(4):
        draws = Draws(jnp.full(len(levels), (index + 0.5) / 4), eps, eps)
        costs = 2 / 16 * np.asarray(elbo(ema, levels, draws).diffusion, np.float64) / 4
        error = np.hypot(fit["excess_se"][index], costs.std() / np.sqrt(len(levels)))
        assert abs(fit["excess"][index] - costs.mean()) < 4 * error
        assert error < 0.1 * costs.mean()
    assert {"num_images": 23, "steps": 4}.items() <= fit.items()
    assert (fit["excess_of"]["step"], fit["excess_of"]["fit"]["split"]) == (step, "train")
    # 23 images, 40 passes, 8 times each, shared out equally among four steps
    assert 0.8 * 23 * 40 * 8 / 4 < fit["fewest_draws"] <= 23 * 40 * 8 / 4


def test_what_is_filed_serves_evaluation_at_once(fitting, workdir, caplog):
    with caplog.at_level(std_logging.INFO, logger="absl"):
        fit = fitting()
    file = workdir / "fits" / "T4.json"
    assert json.loads(file.read_text())["excess"] == fit["excess"].tolist()
    assert str(file) in caplog.text
    equal, best = (
        fitting(mode=commands.evaluate, variance=variance, split="train", passes=60, batch_size=23)
        for variance in (EQUAL, FITTED)
    )
    assert best["bpd"] < equal["bpd"]
    assert (equal["variance"], best["variance"]) == ("equal", "fitted")
    want = 0.5 * np.log1p(fit["excess"]).sum() / np.log(2)  # what the best variances leave, a dimension
    np.testing.assert_allclose(best["bpd_diffusion"], want, rtol=0.1)


def test_fitted_times_get_their_variances_beside_what_is_known_of_them(fitting, workdir):
    filed = fitting(mode=fit_schedule.fit_schedule, variance=FITTED)
    fit = fitting(times="fitted", variance=FITTED)
    np.testing.assert_array_equal(fit["times"], filed["times"])
    assert fit["times_of"] == filed["times_of"]
    assert "bpd_diffusion_fitted" not in fit, "it was predicted from another excess"
    assert "excess_se" in fit
    assert "excess_se" not in filed
    assert (
        fitted_chains.load_fit(workdir / "fits" / "T4_fitted_fitted.json")["fewest_draws"]
        == fit["fewest_draws"]
    )


@pytest.mark.slow
def test_the_same_seed_fits_the_same(fitting):
    one, again, other = fitting(), fitting(), fitting(fit={"seed": 1})
    np.testing.assert_array_equal(one["excess"], again["excess"])
    assert np.all(one["excess"] != other["excess"])


@pytest.mark.parametrize(
    ("fit", "changes", "message"),
    [
        ({}, {"num_timesteps": 0}, r"--mode=fit_variance needs T: give --num_timesteps=T"),
        ({}, {"num_timesteps": 20_000}, r"T = 20000: in float32 .*; add --x64"),
        (
            {},
            {"times": "fitted", "num_timesteps": 9},
            r"no times are fitted for T = 9 .*--mode=fit_schedule --num_timesteps=9",
        ),
        (
            {"passes": 1},
            {"num_timesteps": 1000},
            r"^184 draws for 1000 steps leave 0 for one of them: bind fit\.num_images",
        ),
        ({}, {"step": 2}, r"no checkpoint of step 2"),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_leaves_nothing(fitting, workdir, fit, changes, message):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as refused:
        fitting(fit=fit, **changes)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("steps", "images", "visits"), [(5, 40, 1), (1000, 1024, 8), (997, 300, 10), (100, 144, 8)]
)
def test_times_come_to_every_step_and_to_every_image_evenly(steps, images, visits):
    """Independent times would come to a step draws / steps times give or take the root of that."""
    firsts = range(0, images, 16)
    t = [[fit_variance.even_times(visit, first, 16) for first in firsts] for visit in range(visits)]
    t = np.array(t, np.float64).reshape(visits, -1)[:, :images]
    assert np.all((t >= 0) & (t < 1))
    count = np.bincount((t.ravel() * steps).astype(int), minlength=steps)
    assert count.max() - count.min() <= 6
    assert abs(count - images * visits / steps).mean() < 0.5 * np.sqrt(images * visits / steps)
    if (
        visits == 8
    ):  # 144 is a Fibonacci number, and 1024 none: an image must not meet one time again and again
        assert np.all(np.diff(np.sort(t, axis=0), axis=0).max(axis=0) < 0.4)
