"""The table of costs against KL divergences of Gaussians rebuilt in numpy, with the table's own noise."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry
from diffenc.config.settings import Fit
from diffenc.core.discretization import EQUAL
from diffenc.core.model import Model
from diffenc.core.stochasticity import MARKOV
from diffenc.errors import UserError
from diffenc.evaluation import step_costs
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.interfaces import NO_CONTEXT
from diffenc.parallel.sharding import data_mesh
from diffenc_plugins.schedules import Linear
from diffenc_plugins.stochasticities import Constant, Nontrainable

NUM_LEVELS, TOP, DROP = 5, 6.0, 10.0
PARAMS: Any = {"encoder": {}, "schedule": {}, "network": {}}
LEVELS = np.random.default_rng(0).integers(0, NUM_LEVELS, (40, 3))
X = (2 * LEVELS + 1) / NUM_LEVELS - 1
EPS = np.random.default_rng(1).normal(size=(40, 3))
ENCODERS = (
    "identity",
    "nontrainable",
    "trainable",
)  # those that do without an image's shape, and without its class
MEANS = ("vdm", "counterterm", "rescaled")  # whose slope is a number times x_hat


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form that depends on all it is given."""

    gain: float = 2.0

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        assert context.keys is None, "dropout in a bound"
        return 0.4 * jnp.sin(self.gain * z + log_snr.reshape(-1, *[1] * (z.ndim - 1)) / 3)


def make(encoder="trainable", mean="counterterm", parameterization="v", path: Any = MARKOV):
    needs: Any = {"network": Wave(1.3)} if encoder == "trainable" else {}
    return Model(
        encoder=registry.encoders[encoder](**needs),
        schedule=Linear(TOP, TOP - DROP),
        parameterization=registry.parameterizations[parameterization](),
        generative_mean=registry.generative_means[mean](),
        network=Wave(),
        stochasticity=path,
    )


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


def log_snr_of(t):
    return TOP - DROP * np.asarray(t)


def x_hat(model, z, log_snr):
    """From the output p x_hat + q eps_hat and z = alpha x_hat + sigma eps_hat, two equations solved."""
    each = jnp.full(len(z), log_snr)
    p, q = (float(v[0]) for v in model.parameterization(each))
    out = np.asarray(model.network.apply({}, jnp.asarray(z), each))
    solved = np.linalg.solve([list(ends(log_snr)), [p, q]], [z.ravel(), out.ravel()])
    return solved[0].reshape(z.shape)


def step_kl(model, t, s):
    """KL(q(z_s|z_t,x) || p(z_s|z_t)) of each image, sigma_P = sigma_Q; q by Bayes's rule from [10, 11]."""
    log_snr_t, log_snr_s = log_snr_of(t), log_snr_of(s)
    x_t, x_s = (
        np.asarray(model.encoder.apply({}, jnp.asarray(X), jnp.full(40, v))) for v in (log_snr_t, log_snr_s)
    )
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(log_snr_t), ends(log_snr_s)
    z_t = alpha_t * x_t + sigma_t * EPS
    ratio = alpha_t / alpha_s
    noise = sigma_t**2 - ratio**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + ratio**2 / noise)
    mean_q = variance * (alpha_s * x_s / sigma_s**2 + ratio * (z_t - alpha_t * (x_t - x_s)) / noise)
    guess = x_hat(model, z_t, log_snr_t)
    mean_p = variance * (alpha_s * guess / sigma_s**2 + ratio * z_t / noise)
    mean_p = mean_p + alpha_s * step_gain(model.generative_mean, log_snr_t, log_snr_s) * guess
    return 0.5 * np.sum((mean_q - mean_p) ** 2, axis=1) / variance


def step_kl_on(h, model, t, s):
    """The same on the path of clock h, whose noise keeps e^(-H / 2) of itself."""
    log_snr_t, log_snr_s = log_snr_of(t), log_snr_of(s)
    x_t, x_s = (
        np.asarray(model.encoder.apply({}, jnp.asarray(X), jnp.full(40, v))) for v in (log_snr_t, log_snr_s)
    )
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(log_snr_t), ends(log_snr_s)
    kept = np.exp(-0.5 * (h(log_snr_s) - h(log_snr_t)))
    guess = x_hat(model, alpha_t * x_t + sigma_t * EPS, log_snr_t)
    of_x_s = alpha_s * (x_s - guess * (1 + step_gain(model.generative_mean, log_snr_t, log_snr_s)))
    difference = of_x_s - sigma_s * kept * alpha_t / sigma_t * (x_t - guess)
    return 0.5 * np.sum(difference**2, axis=1) / (sigma_s**2 * (1 - kept**2))


def squares(model, knots):
    """Of the product, [t, s, B]."""

    def compute(knots):
        levels, eps = jnp.asarray(LEVELS), jnp.asarray(EPS)
        return step_costs.weighted_squares(model, PARAMS, levels, eps, knots, NUM_LEVELS)

    return np.asarray(jax.jit(compute)(jnp.asarray(knots)))


def table_of(model, num_knots):
    knots = np.linspace(0, 1, num_knots)
    q = squares(model, knots)
    return step_costs.StepCosts(knots, q.mean(axis=2), q.std(axis=2, ddof=1) / np.sqrt(40), 40)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("mean", "parameterization"), [("counterterm", "v"), ("vdm", "epsilon"), ("counterterm", "x")]
)
def test_each_step_costs_the_kl_of_its_two_gaussians(x64, encoder, mean, parameterization):
    model, knots = make(encoder, mean, parameterization), np.linspace(0, 1, 5)
    q = squares(model, knots)
    snr = np.exp(log_snr_of(knots))
    for t in range(1, 5):
        for s in range(t):
            got = 0.5 * (snr[s] - snr[t]) * q[t, s]
            np.testing.assert_allclose(got, step_kl(model, knots[t], knots[s]), rtol=1e-8)


CLOCKS = {
    "markov": (MARKOV, lambda v: v),
    "constant": (Constant(0.7), lambda v: 0.49 * v),
    "nontrainable": (Nontrainable(), lambda v: v - 2 * np.log1p(np.exp(-v))),
}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("path", CLOCKS)
def test_on_any_path_each_step_costs_the_kl_of_its_two_gaussians(x64, encoder, path):
    plugin, h = CLOCKS[path]
    model, knots = make(encoder, path=plugin), np.linspace(0, 1, 5)
    q, snr = squares(model, knots), np.exp(log_snr_of(knots))
    for t in range(1, 5):
        for s in range(t):
            got = 0.5 * (snr[s] - snr[t]) * q[t, s]
            np.testing.assert_allclose(got, step_kl_on(h, model, knots[t], knots[s]), rtol=1e-8)


@pytest.mark.thin
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("path", CLOCKS)
def test_no_step_at_all_is_the_limit_of_short_ones(x64, encoder, path):
    """From both sides: half of the difference of the two is of second order."""
    model, h = make(encoder, path=CLOCKS[path][0]), 1e-4
    q = squares(model, [0.5 - h, 0.5, 0.5 + h])
    np.testing.assert_allclose(q[1, 1], (q[1, 0] + q[1, 2]) / 2, rtol=1e-6)
    assert np.isfinite(squares(model, [0.0, 1.0])).all()


def test_noise_is_shared_by_all_knots_of_an_image(x64):
    """Where a knot is in a list of knots does not matter, and so the table is smooth."""
    model = make()
    few, many = squares(model, [0.0, 0.5, 1.0]), squares(model, np.linspace(0, 1, 9))
    np.testing.assert_allclose(few, many[::4, ::4], rtol=1e-12)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_steps_between_knots_cost_their_kl(x64, encoder):
    model = make(encoder)
    table = table_of(model, 65)
    rng = np.random.default_rng(2)
    s, t = np.sort(rng.uniform(size=(2, 20)), axis=0)
    t[:3] = s[:3] + 1e-3  # short ones
    got = table.edges(t, s, log_snr_of(t), log_snr_of(s))
    want = [step_kl(model, t[i], s[i]).mean() for i in range(20)]
    np.testing.assert_allclose(got, want, rtol=1e-3)
    times = np.linspace(0, 1, 12)
    whole = table.all_edges(times, log_snr_of(times))
    for i in (1, 5, 11):
        pairs = times[[i, i]], times[[0, i - 1]]
        np.testing.assert_allclose(
            whole[i, [0, i - 1]], table.edges(*pairs, *map(log_snr_of, pairs)), rtol=1e-9
        )


def test_a_perfect_model_costs_nothing_and_breaks_nothing():
    table = step_costs.StepCosts(np.linspace(0, 1, 5), np.zeros((5, 5)), np.zeros((5, 5)), 3)
    t, s = np.array([0.7]), np.array([0.2])
    assert 0 <= table.edges(t, s, log_snr_of(t), log_snr_of(s))[0] < 1e-20


def test_the_price_is_the_kl_of_gaussians_of_unequal_variance():
    """d independent dimensions, each with the same shift: KL by its textbook form."""
    rng, num_dims = np.random.default_rng(3), 7
    nats = rng.uniform(0.01, 3, 10)  # with sigma_P = sigma_Q: d shift^2 / (2 sigma_Q^2)
    log_snr_t, log_snr_s = np.zeros(10), np.ones(10)

    def plugin(log_w):
        return lambda log_snr_t, log_snr_s, excess: jnp.asarray(log_w)

    log_w = rng.normal(size=10)
    got, excess = step_costs.apply_variance(nats, log_snr_t, log_snr_s, plugin(log_w), num_dims)
    ratio, shift_2 = np.exp(log_w), 2 * nats / num_dims  # of sigma_Q^2
    want = num_dims * 0.5 * (ratio + shift_2 * ratio - 1 - np.log(ratio))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(excess, shift_2, rtol=1e-12)
    same, _ = step_costs.apply_variance(nats, log_snr_t, log_snr_s, EQUAL, num_dims)
    np.testing.assert_allclose(same, nats, rtol=1e-12)
    best, _ = step_costs.apply_variance(nats, log_snr_t, log_snr_s, registry.variances["fitted"](), num_dims)
    np.testing.assert_allclose(best, num_dims / 2 * np.log(1 + shift_2), rtol=1e-9)


def test_a_variance_is_told_of_the_steps_in_float64():
    seen = []

    def plugin(log_snr_t, log_snr_s, excess):
        seen.extend((log_snr_t, log_snr_s, excess))
        return jnp.zeros_like(excess)

    step_costs.apply_variance(np.array([1.0, 2.0]), np.array([-1.0, 0.0]), np.array([0.1, 0.3]), plugin, 4)
    for got, want in zip(seen, [[-1, 0], [0.1, 0.3], [0.5, 1.0]], strict=True):
        np.testing.assert_array_equal(np.asarray(got), want)
        assert got.dtype == np.float64


@pytest.fixture
def measure(tiny):
    """The table of a model as it is at the start, over the images that `fit` names."""

    def make(**changes):
        experiment = tiny(fit=Fit(**{"knots": 5, "num_images": None, **changes}))
        params = jax.jit(lambda key: experiment.model.init(key, (4, 4, 1)))(jax.random.key(0))
        fit = resolve_batch_size(experiment.fit, experiment.batch_size)
        table = step_costs.measure_step_costs(experiment.model, experiment.dataset, fit, data_mesh(), params)
        return experiment, params, table

    return make


@pytest.mark.parametrize(
    ("split", "batch_size", "passes"), [("train", 0, 2), ("test", 5, 1), ("test", 13, 3)]
)
def test_the_table_is_the_mean_over_images_of_the_mean_over_passes(
    measure, split, batch_size, passes, monkeypatch
):
    seen = {}

    def stub(model, params, levels, eps, knots, num_levels, condition):
        """Random numbers, the same for the same image and noise: told apart by what numpy kept of them."""
        each = jnp.sum(levels, axis=(1, 2, 3)) + jnp.sum(eps, axis=(1, 2, 3)) ** 2
        jax.debug.callback(
            lambda levels, eps: seen.setdefault(np.asarray(eps).tobytes(), (levels, eps)), levels, eps
        )
        return jnp.broadcast_to(each, (len(knots), len(knots), len(levels))) * (1 + knots[:, None, None])

    monkeypatch.setattr(step_costs, "weighted_squares", stub)
    experiment, _, table = measure(split=split, batch_size=batch_size, passes=passes)
    jax.effects_barrier()
    images = experiment.dataset.source(split).images
    count, size = len(images), batch_size or 4
    batches = list(seen.values())
    assert len(batches) == passes * -(-count // size), "noise of its own for each batch and pass"
    by_image = np.zeros(count)
    for number in range(-(-count // size)):
        for levels, eps in batches[number * passes : (number + 1) * passes]:
            real = min(size, count - number * size)
            rows = slice(number * size, number * size + real)
            np.testing.assert_array_equal(np.asarray(levels)[:real], images[rows])
            values = np.asarray(levels).sum(axis=(1, 2, 3)) + np.float64(eps).sum(axis=(1, 2, 3)) ** 2
            by_image[rows] += values[:real] / passes
    assert table.num_images == count
    rows = 1 + table.knots[:, None] * np.ones((1, 5))
    np.testing.assert_allclose(table.mean, rows * by_image.mean(), rtol=1e-5)
    np.testing.assert_allclose(table.standard_error, rows * by_image.std(ddof=1) / np.sqrt(count), rtol=1e-4)


@pytest.mark.slow
def test_knots_images_and_seed_are_those_bound(measure):
    _, _, one = measure()
    _, _, again = measure()
    _, _, other = measure(seed=1)
    _, _, few = measure(num_images=9, knots=7)
    np.testing.assert_array_equal(one.mean, again.mean)
    assert (one.mean != other.mean).all()
    assert (one.num_images, few.num_images) == (23, 9)
    np.testing.assert_allclose(few.knots, np.arange(7) / 6)


def test_a_batch_that_does_not_divide_is_named(measure, monkeypatch):
    def refuse(name, batch_size, mesh):
        raise UserError(f"{name} = {batch_size}")

    monkeypatch.setattr("diffenc.evaluation.batches.check_divisible", refuse)
    with pytest.raises(UserError, match=r"fit\.batch_size = 6"):
        measure(batch_size=6)
