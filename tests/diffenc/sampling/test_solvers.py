"""Every solver's step against closed forms, its order, and what it samples where the best denoiser is known."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import ks_2samp

from diffenc import registry
from diffenc.core.gaussian import scale
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import MARKOV
from diffenc.interfaces import NO_CONTEXT, ClassConditional, ProportionalMean
from diffenc.sampling.sampler import walk
from diffenc.sampling.solvers import ODE_SOLVERS, SDE_SOLVERS, SOLVERS, slope_is_modelled
from diffenc_plugins.conditionings import ByClass
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.stochasticities import Constant, Nontrainable

KAPPA: dict[str, Any] = {"none": jnp.zeros_like, "sigma_2": lambda log_snr: jax.nn.sigmoid(-log_snr)}
# by name: the clock of a path, and its h and eta^2 by hand
PATHS: dict[str, Any] = {
    "markov": (partial(MARKOV.increment, {}), lambda v: v, lambda v: 1.0),
    "constant": (partial(Constant(1.4).increment, {}), lambda v: 1.96 * v, lambda v: 1.96),
    "nontrainable": (
        partial(Nontrainable().increment, {}),
        lambda v: v - 2 * np.log1p(np.exp(-v)),
        lambda v: 1 + 2 / (1 + np.exp(v)),
    ),
}
markov = PATHS["markov"][0]
STEPS = [(-9.0, -8.5), (-1.3, 0.4), (3.0, 3.1), (5.0, 9.0)]


def ends(log_snr):
    """(alpha, sigma) of a float."""
    return 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))


def guess(z, log_snr):
    """A denoiser that depends on all it is given."""
    return 0.3 * z + 0.1 * log_snr[:, None] - 0.2


@dataclasses.dataclass(frozen=True)
class Kappa(ProportionalMean):
    """One of KAPPA."""

    name: str

    def kappa(self, params, interval):
        return interval.stretch * KAPPA[self.name](interval.log_snr)


def estimator(x_hat, kappa):
    return BoundMean(Kappa(kappa)).estimator(x_hat)


def step(name, z, log_snr_t, log_snr_s, kappa="sigma_2", *, log_w=0.0, noise=0.0, x_hat=guess, path="markov"):
    """The product's step for [B, d] of numbers."""
    z = jnp.atleast_2d(jnp.asarray(z, jnp.zeros(()).dtype))
    t, s, log_w = (jnp.full(len(z), value, z.dtype) for value in (log_snr_t, log_snr_s, log_w))
    noise = jnp.broadcast_to(jnp.asarray(noise, z.dtype), z.shape)
    return np.asarray(SOLVERS[name](z, t, s, log_w, estimator(x_hat, kappa), PATHS[path][0], noise))


def x_hat_and_kappa(z, log_snr, kappa):
    return 0.3 * z + 0.1 * log_snr - 0.2, {"none": 0.0, "sigma_2": 1 / (1 + np.exp(log_snr))}[kappa]


def ancestral(z, t, s, kappa, log_w):
    """[13, 17, 9], from alpha_{t|s} and sigma_{t|s}^2."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(t), ends(s)
    x_hat, kappa = x_hat_and_kappa(z, t, kappa)
    ratio = alpha_t / alpha_s
    between = sigma_t**2 - ratio**2 * sigma_s**2
    mean = ratio * sigma_s**2 / sigma_t**2 * z + alpha_s * between / sigma_t**2 * x_hat
    return mean + alpha_s * (s - t) * kappa * x_hat, np.sqrt(between / np.exp(log_w)) * sigma_s / sigma_t


def euler_maruyama(z, t, s, kappa, log_w):
    """[App. H] with lambda = -3 time, so lambda' = -3, and time running backwards."""
    alpha, sigma = ends(t)
    x_hat, kappa = x_hat_and_kappa(z, t, kappa)
    rate, past = -3.0, (t - s) / 3
    score = (alpha * x_hat - z) / sigma**2
    g_2 = -rate * sigma**2
    drift = 0.5 * rate * sigma**2 * z + alpha * rate * kappa * x_hat - g_2 * score
    return z + past * drift, np.sqrt(g_2 * -past)


def ddim(z, t, s, kappa, log_w):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(t), ends(s)
    x_hat, kappa = x_hat_and_kappa(z, t, kappa)
    eps_hat = (z - alpha_t * x_hat) / sigma_t
    return alpha_s * (x_hat + (s - t) * kappa * x_hat) + sigma_s * eps_hat, 0.0


def exponential_midpoint(z, t, s, kappa, log_w):
    """In y = z / sigma, which moves by the integral of e^(lambda/2)."""

    def move(y, begin, end, at, z_at):
        x_hat, value = x_hat_and_kappa(z_at, at, kappa)
        return y + 2 * (np.exp(end / 2) - np.exp(begin / 2)) * (0.5 + value) * x_hat

    middle, y = (t + s) / 2, z / ends(t)[1]
    z_middle = ends(middle)[1] * move(y, t, middle, t, z)
    return ends(s)[1] * move(y, t, s, middle, z_middle), 0.0


EXPECTED = {f.__name__: f for f in (ancestral, euler_maruyama, ddim, exponential_midpoint)}


@pytest.mark.thin(pairs=True)
@pytest.mark.parametrize("kappa", KAPPA)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_a_step_is_its_formula(x64, name, kappa, t, s):
    for log_w in (0.0, -0.7):
        mean, deviation = EXPECTED[name](0.6, t, s, kappa, log_w)
        for noise in (0.0, 1.0, -2.0):
            got = step(name, 0.6, t, s, kappa, log_w=log_w, noise=noise)
            np.testing.assert_allclose(got, mean + deviation * noise, rtol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_drawn_steps_have_that_mean_and_deviation(name):
    n, z, t, s, log_w = 50_000, 0.6, -1.3, 0.4, -0.7
    start = jax.random.key(0), jnp.full((n, 1), z), jnp.array([t, s]), jnp.array([log_w])
    drawn = np.asarray(walk(*start, estimator(guess, "sigma_2"), markov, SOLVERS[name]), np.float64)
    mean, deviation = EXPECTED[name](z, t, s, "sigma_2", log_w)
    assert abs(drawn.mean() - mean) < 4 * deviation / np.sqrt(n) + 1e-6
    assert abs(drawn.std() - deviation) < 4 * deviation / np.sqrt(2 * n) + 1e-6


def ancestral_on(path, z, t, s, kappa, log_w):
    """The kept part of the noise, e^(-H/2) of it, and new noise that makes up for the rest."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(t), ends(s)
    x_hat, kappa = x_hat_and_kappa(z, t, kappa)
    kept = np.exp(-0.5 * (PATHS[path][1](s) - PATHS[path][1](t)))
    mean = alpha_s * x_hat * (1 + (s - t) * kappa) + sigma_s * kept * (z - alpha_t * x_hat) / sigma_t
    return mean, sigma_s * np.sqrt((1 - kept**2) / np.exp(log_w))


def euler_maruyama_on(path, z, t, s, kappa, log_w):
    """dz = (d log alpha + ...) dlambda: alpha x_phi moves by its slope, the residual relaxes by (alpha^2 + eta^2) / 2."""
    alpha, sigma = ends(t)
    x_hat, kappa = x_hat_and_kappa(z, t, kappa)
    eta_2 = PATHS[path][2](t)
    moved = 0.5 * alpha * sigma**2 * x_hat + alpha * kappa * x_hat
    drift = moved - 0.5 * (alpha**2 + eta_2) * (z - alpha * x_hat)
    return z + (s - t) * drift, sigma * np.sqrt(eta_2 * (s - t))


ON_A_PATH = {"ancestral": ancestral_on, "euler_maruyama": euler_maruyama_on}


@pytest.mark.thin(pairs=True)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kappa", KAPPA)
@pytest.mark.parametrize("name", SDE_SOLVERS)
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_a_step_on_any_path_is_its_formula(x64, name, kappa, path, t, s):
    for log_w in (0.0, -0.7):
        mean, deviation = ON_A_PATH[name](path, 0.6, t, s, kappa, log_w)
        if name == "euler_maruyama" or path != "markov":
            expected = mean, deviation
        else:  # the same step by the paper's formula
            expected = ancestral(0.6, t, s, kappa, log_w)
            np.testing.assert_allclose((mean, deviation), expected, rtol=1e-9)
        for noise in (0.0, 1.0, -2.0):
            got = step(name, 0.6, t, s, kappa, log_w=log_w, noise=noise, path=path)
            np.testing.assert_allclose(got, expected[0] + expected[1] * noise, rtol=1e-9)


@pytest.mark.parametrize("path", ["constant", "nontrainable"])
@pytest.mark.parametrize("name", SDE_SOLVERS)
def test_drawn_steps_on_a_path_have_that_mean_and_deviation(name, path):
    n, z, t, s, log_w = 50_000, 0.6, -1.3, 0.4, -0.7
    start = jax.random.key(0), jnp.full((n, 1), z), jnp.array([t, s]), jnp.array([log_w])
    drawn = np.asarray(walk(*start, estimator(guess, "sigma_2"), PATHS[path][0], SOLVERS[name]), np.float64)
    mean, deviation = ON_A_PATH[name](path, z, t, s, "sigma_2", log_w)
    assert abs(drawn.mean() - mean) < 4 * deviation / np.sqrt(n)
    assert abs(drawn.std() - deviation) < 4 * deviation / np.sqrt(2 * n)


@pytest.mark.parametrize("name", ODE_SOLVERS)
def test_no_path_enters_an_ode(name):
    ends_of = [step(name, 0.6, -1.3, 0.4, path=path) for path in PATHS]
    assert len(np.unique(ends_of)) == 1


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_ddim_keeps_a_constant_exactly(x64, t, s):
    """If x_hat is x itself, one step goes from alpha_t x + sigma_t eps to alpha_s x + sigma_s eps."""
    x, eps = np.array([[0.7, -0.2]]), np.array([[0.4, -1.5]])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ends(t), ends(s)
    known = lambda z, log_snr: jnp.asarray(x)  # noqa: E731
    got = step("ddim", alpha_t * x + sigma_t * eps, t, s, "none", x_hat=known)
    np.testing.assert_allclose(got, alpha_s * x + sigma_s * eps, rtol=1e-12)


@pytest.mark.thin
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("t", "rise"), [(5.0, 2.0**-14), (13.0, 2.0**-12), (-4.0, 2.0**-14), (-15.0, 30.0)])
def test_a_step_keeps_its_digits_in_float32(name, t, rise):
    """Also of the little that x_hat moves z by: alone where z = 0."""
    for z, tolerance in ((0.0, 3e-6), (0.6, 1e-6)):
        single = step(name, z, t, t + rise, noise=0.3 * (z != 0))
        with jax.enable_x64(True):
            double = step(name, z, t, t + rise, noise=0.3 * (z != 0))
        np.testing.assert_allclose(single, double, rtol=tolerance * max(1, rise))


# Orders of convergence


def flow(mixture, z, begin, end):
    """z at `end` by the probability-flow ODE of z = a x + sigma eps: a linear SDE, of the exact score.

    dz/dlambda = (log a)' z - 1/2 (d sigma^2/dlambda - 2 (log a)' sigma^2) score.
    """
    score_of = jax.jit(jax.grad(lambda z, log_snr: mixture.log_density(z, log_snr).sum()))
    power = {"identity": 0.5, "nontrainable": 1.5}[mixture.encoder]  # a = alpha^(2 power)

    def slope(log_snr, z):
        score = np.asarray(score_of(jnp.asarray(z)[:, None], jnp.full(len(z), log_snr)))[:, 0]
        alpha, sigma = ends(log_snr)
        rate = power * sigma**2
        return rate * z - 0.5 * (-(alpha**2) * sigma**2 - 2 * rate * sigma**2) * score

    return solve_ivp(slope, (begin, end), z, method="DOP853", rtol=1e-10, atol=1e-10).y[:, -1]


@pytest.mark.thin
@pytest.mark.parametrize("encoder", ["identity", "nontrainable"])
@pytest.mark.parametrize(("name", "order", "within"), [("ddim", 1, 0.15), ("exponential_midpoint", 2, 0.2)])
def test_the_order_of_an_ode_solver(x64, mixture, encoder, name, order, within):
    smooth = mixture(1, encoder, variances=(0.1, 0.2, 0.05))
    z, counts = np.linspace(-2, 2, 7), np.array([64, 128, 256, 512])
    truth = flow(smooth, z, -6.0, 6.0)
    errors = []
    for count in counts:
        down = jnp.linspace(-6.0, 6.0, count + 1), jnp.zeros(count)
        got = walk(
            jax.random.key(0),
            jnp.asarray(z)[:, None],
            *down,
            smooth.estimate,
            markov,
            SOLVERS[name],
        )
        errors.append(np.abs(np.asarray(got)[:, 0] - truth).max())
    fitted = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(fitted - order) < within
    assert errors[-1] < 5e-3


# What is sampled, from lambda = -9 to 9


def sampled(name, mixture, kappa=None, count=250, n=4000, increment=markov):
    """[n, d] from the mixture's best denoiser; `kappa` replaces the one it was made for."""
    dimensions = len(mixture.means[0])
    key, z_key = jax.random.split(jax.random.key(5))
    down = jnp.linspace(-9.0, 9.0, count + 1), jnp.zeros(count)
    z = jax.random.normal(z_key, (n, dimensions))
    estimate = mixture.estimate if kappa is None else estimator(mixture.x_hat, kappa)
    return np.asarray(walk(key, z, *down, estimate, increment, SOLVERS[name]), np.float64)


def p_value(drawn, mixture):
    """Of the least likely of a few projections, each a Kolmogorov-Smirnov test against exact samples."""
    rng = np.random.default_rng(11)
    exact = mixture.sample_z(rng, 10 * len(drawn), 9.0)
    angles = np.arange(6) * np.pi / 6 if drawn.shape[1] == 2 else [0.0]
    directions = [np.array([np.cos(angle), np.sin(angle)])[: drawn.shape[1]] for angle in angles]
    tests: list[Any] = [ks_2samp(drawn @ u, exact @ u) for u in directions]
    return min(1.0, len(tests) * min(test.pvalue for test in tests))


@pytest.mark.thin
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("encoder", ["identity", "nontrainable"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_samples_are_of_the_mixture(mixture, dimensions, encoder, name):
    data = mixture(dimensions, encoder)
    assert p_value(sampled(name, data), data) > 1e-3


@pytest.mark.thin
@pytest.mark.parametrize("path", [path for path in PATHS if path != "markov"])
@pytest.mark.parametrize("name", SDE_SOLVERS)
@pytest.mark.parametrize("encoder", ["identity", "nontrainable"])
def test_samples_are_of_the_mixture_on_any_path(mixture, encoder, name, path):
    data = mixture(1, encoder)
    assert p_value(sampled(name, data, increment=PATHS[path][0], count=500), data) > 1e-3


@pytest.mark.parametrize("name", SOLVERS)
def test_that_test_sees_a_dropped_counterterm(mixture, name):
    data = mixture(1, "nontrainable")
    assert p_value(sampled(name, data, "none"), data) < 1e-6


@pytest.mark.thin
@pytest.mark.parametrize(("encoder", "kappa"), [("identity", "sigma_2"), ("nontrainable", "none")])
@pytest.mark.parametrize("name", SOLVERS)
def test_only_the_sde_may_model_another_slope_than_the_encoders(mixture, encoder, kappa, name):
    """The best denoiser makes up for it in (1 + kappa) x_hat, and in nothing else."""
    data = mixture(1, encoder, kappa=KAPPA[kappa])
    p = p_value(sampled(name, data), data)
    assert p > 1e-3 if name in SDE_SOLVERS else p < 1e-6


# What any solver must keep


def test_every_solver_is_of_one_kind():
    assert list(SOLVERS) == [*SDE_SOLVERS, *ODE_SOLVERS] == list(EXPECTED)


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_is_for_the_sde_alone(name):
    pair = [step(name, [[0.6, -0.4]], -1.0, 0.5, noise=noise) for noise in (0.0, 1.0)]
    assert np.all(pair[0] != pair[1]) if name in SDE_SOLVERS else np.all(pair[0] == pair[1])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shape", [(3, 2), (3, 4, 4, 1)])
def test_shapes_precision_and_one_example_at_a_time(name, shape):
    rng = np.random.default_rng(2)
    z, noise = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    log_snr_t, log_w = jnp.array([-8.0, 0.3, 7.0]), jnp.array([0.1, -0.2, 0.0])
    x_hat = lambda z, log_snr: jnp.tanh(z + log_snr.reshape(-1, *[1] * (z.ndim - 1)))  # noqa: E731

    def take(z, log_snr_t, log_snr_s, log_w, noise):
        return SOLVERS[name](z, log_snr_t, log_snr_s, log_w, estimator(x_hat, "sigma_2"), markov, noise)

    arguments = z, log_snr_t, log_snr_t + jnp.array([0.5, 0.1, 1.0]), log_w, noise
    whole = jax.jit(take)(*arguments)
    assert (whole.shape, whole.dtype) == (shape, jnp.float32)
    for index in range(3):
        alone = take(*(value[index : index + 1] for value in arguments))
        np.testing.assert_allclose(whole[index], alone[0], rtol=2e-6, atol=1e-6)


@pytest.mark.thin
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("count", [1, 60])
def test_nothing_overflows_from_pure_noise_to_clean_data(name, count):
    down = jnp.linspace(-15.0, 15.0, count + 1), jnp.linspace(-0.5, 0.0, count)
    start = jax.random.key(0), jax.random.normal(jax.random.key(1), (50, 2))
    end = walk(*start, *down, estimator(lambda z, log_snr: jnp.tanh(z), "sigma_2"), markov, SOLVERS[name])
    assert np.all(np.isfinite(end))
    if count == 60:
        assert np.abs(end).max() < 2


# Whether an ODE's solver is of the model


@dataclasses.dataclass(frozen=True)
class Gain:
    """y = gain x."""

    def init(self, key, z, log_snr):
        return {"gain": 0.0}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        assert context.keys is None, "dropout in sampling"
        return params["gain"] * z


class Curve(Gain):
    """y = gain x^2."""

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return super().apply(params, z**2, log_snr, context)


@pytest.mark.parametrize(
    ("encoder", "mean", "gain", "modelled", "at_steps"),
    [
        ("identity", "vdm", 0.0, True, True),
        ("identity", "counterterm", 0.0, False, False),
        ("nontrainable", "counterterm", 0.0, True, False),
        ("nontrainable", "vdm", 0.0, False, False),
        ("trainable", "counterterm", 0.0, True, False),  # as it is born
        ("trainable", "counterterm", 1e-3, False, False),
        ("trainable", "counterterm", -0.5, False, False),
        ("nontrainable", "rescaled", 0.0, True, False),
        ("identity", "reencoded", 0.0, True, True),
        ("nontrainable", "reencoded", 0.0, True, False),
        ("trainable", "reencoded", -0.5, True, False),  # affine in x
        ("curved", "reencoded", -0.5, False, False),
        ("curved", "two_heads", -0.5, True, False),
    ],
)
def test_whether_the_slope_is_modelled(tiny, encoder, mean, gain, modelled, at_steps):
    """`at_steps`: of a model trained at T steps."""
    inner = {"trainable": Gain(), "curved": Curve()}.get(encoder)
    arguments = [] if inner is None else [inner]
    needs: Any = {"network": Gain()} if mean == "two_heads" else {}
    model = dataclasses.replace(
        tiny().model,
        encoder=registry.encoders["trainable" if encoder == "curved" else encoder](*arguments),
        generative_mean=registry.generative_means[mean](**needs),
    )
    params = {"encoder": {"gain": jnp.array(gain)} if arguments else {}, "generative_mean": {"gain": 0.0}}
    assert slope_is_modelled(model, params, (4, 4, 1)) is modelled
    assert slope_is_modelled(model, params, (4, 4, 1), trained_at=8) is at_steps


@dataclasses.dataclass(frozen=True)
class GainByClass(ClassConditional):
    """y = gain x, with a gain for each class."""

    classes: int = 3

    def init(self, key, z, log_snr):
        return {"gain": jnp.zeros(self.classes)}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        assert context.condition is not None
        return scale(params["gain"][context.condition - 1], z)


@pytest.mark.parametrize("gain", [(0.0, 0.0, 0.0), (0.0, 0.0, 0.5), (0.5, 0.0, 0.0)])
def test_the_slope_of_every_class_counts(tiny, gain):
    model = dataclasses.replace(tiny().model, encoder=Trainable(GainByClass()), conditioning=ByClass())
    params = {"encoder": {"gain": jnp.array(gain)}, "generative_mean": {}}
    assert slope_is_modelled(model, params, (4, 4, 1)) is not any(gain)
