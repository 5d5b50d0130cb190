"""Training at finite T: the loss against the sum over all steps, enumerated in float64 from the Gaussians themselves."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.model import UNIFORM, Model
from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT, Images
from diffenc.parallel.sharding import data_mesh, to_devices
from diffenc.training.gradient import batch_gradient
from diffenc.training.loop import train
from diffenc.training.state import init_state, make_train_step
from diffenc.training.trained_bound import check_trained_bound, trained_bound
from diffenc_plugins.encoders import Identity, Nontrainable
from diffenc_plugins.generative_means import VDM, Counterterm
from diffenc_plugins.networks import UNet
from diffenc_plugins.parameterizations import X
from diffenc_plugins.schedules import Linear, Monotone
from diffenc_plugins.variances import Equal, Fixed, Learned

NUM_DIMS, NUM_STEPS, W = 16, 5, 1.3
BATCH = 4 * NUM_STEPS  # stratified times are in every step equally often
IMAGE = np.random.default_rng(0).integers(0, 5, (4, 4, 1))
LEVELS = jnp.asarray(np.stack([IMAGE] * BATCH).astype(np.uint8))
SCHEDULE = Monotone(6.0, -4.0, units=3)
KEY = jax.random.key(3)
ENCODED = {"encoder": Nontrainable(), "generative_mean": Counterterm()}
AS_IT_IS = {"encoder": Identity(), "generative_mean": VDM()}


@dataclasses.dataclass(frozen=True)
class Blind:
    """An estimate that depends on the noise level alone, so that nothing in the diffusion loss is random but the step."""

    def init(self, key, z, log_snr):
        return {"b": 0.5 * jax.random.normal(key, z.shape[1:])}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return (1 + 0.1 * log_snr[:, None, None, None]) * params["b"][None]


@pytest.fixture
def deep(tiny):
    def make(parts=ENCODED, **changes):
        model = Model(
            schedule=changes.pop("schedule", SCHEDULE), parameterization=X(), network=Blind(), **parts
        )
        return tiny(**{"model": model, "batch_size": BATCH, "num_timesteps": NUM_STEPS, **changes})

    return make


def start_of(experiment):
    """Parameters, those of the schedule's interior moved at random."""
    params = jax.jit(lambda: init_state(experiment).params)()
    random = np.random.default_rng(1)
    interior = jax.tree.map(
        lambda a: jnp.asarray(random.normal(0, 0.7, a.shape), a.dtype), params["schedule"]["interior"]
    )
    return {**params, "schedule": {**params["schedule"], "interior": interior}}


def enumerated(log_snr, b, w=W, encoded=True):
    """The diffusion loss in bits/dim, every step in turn: KL of the posterior by Bayes' rule from the reverse step.

    Args:
      log_snr: at t = 0, 1/T, ..., 1.
      encoded: whether x_phi is alpha^2 x with the counterterm; else x without.
    """
    x = (2 * IMAGE + 1) / 5 - 1.0
    total, z_t = 0.0, np.random.default_rng(2).normal(size=x.shape)
    for s, t in itertools.pairwise(log_snr):
        var_s, var_t = sigmoid(-s), sigmoid(-t)
        alpha_s, alpha_t = np.sqrt(sigmoid(s)), np.sqrt(sigmoid(t))
        x_s, x_t = (x * sigmoid(s), x * sigmoid(t)) if encoded else (x, x)
        alpha_ts = alpha_t / alpha_s
        var_ts = var_t - alpha_ts**2 * var_s
        # z_s ~ N(alpha_s x_s, var_s), and z_t given z_s ~ N(alpha_ts z_s + alpha_t (x_t - x_s), var_ts)
        var_q = 1 / (1 / var_s + alpha_ts**2 / var_ts)
        pulled = alpha_ts * (z_t - alpha_t * (x_t - x_s)) / var_ts
        mu_q = var_q * (alpha_s * x_s / var_s + pulled)
        x_hat = (1 + 0.1 * t) * b
        c = var_ts / var_t
        kappa = sigmoid(-t) if encoded else 0.0
        mu_p = alpha_s / alpha_t * (1 - c) * z_t + alpha_s * (c + (s - t) * kappa) * x_hat
        var_p = var_q / w
        kl = 0.5 * (np.log(var_p / var_q) + (var_q + np.square(mu_p - mu_q)) / var_p - 1)
        total += kl.sum()
    return total / (NUM_DIMS * np.log(2))


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


def stops(schedule_params, num_steps=NUM_STEPS, schedule=SCHEDULE):
    """log_snr at T + 1 equal times, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), schedule_params)
        return np.asarray(schedule.apply(params, jnp.linspace(0, 1, num_steps + 1)))


def bits_of(params, **changes):
    return enumerated(stops(params["schedule"]), np.asarray(params["network"]["b"], np.float64), **changes)


@pytest.mark.thin
@pytest.mark.parametrize(
    ("variance", "w"), [(Equal(), 1.0), (Fixed(W), W)], ids=["equal variance", "another"]
)
@pytest.mark.parametrize("parts", [ENCODED, AS_IT_IS], ids=["encoded", "as it is"])
def test_the_train_step_lowers_the_sum_over_all_steps(deep, variance, w, parts):
    experiment, mesh = deep(parts, variance=variance), data_mesh()
    state = jax.jit(lambda: init_state(experiment))()
    want = bits_of(jax.device_get(state.params), w=w, encoded=parts is ENCODED)
    state = make_train_step(experiment, mesh)(state, Images(to_devices(np.asarray(LEVELS), mesh)))
    np.testing.assert_allclose(state.sums.terms.diffusion, want, rtol=2e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_the_chain_has_as_many_equal_steps_as_are_asked_for(deep, num_steps):
    experiment = deep(num_timesteps=num_steps, schedule=Linear(5.0, -3.0), variance=Fixed(W))
    params = jax.jit(lambda: init_state(experiment).params)()
    terms = jax.jit(lambda p: measure(experiment, p)[1])(params)
    log_snr = 5.0 - 8.0 * np.arange(num_steps + 1) / num_steps
    want = enumerated(log_snr, np.asarray(params["network"]["b"], np.float64))
    np.testing.assert_allclose(terms.diffusion, want, rtol=2e-5)


def measure(experiment, params):
    return batch_gradient(
        params, experiment, trained_bound(experiment), UNIFORM, Images(LEVELS), KEY, data_mesh()
    )[:2]


def test_the_interior_of_a_schedule_has_the_gradient_of_the_bound(deep):
    """And of nothing else: by differences of the sum over steps, which neither other term joins in."""
    experiment = deep(variance=Fixed(W))
    params = start_of(experiment)
    got = jax.jit(lambda p: measure(experiment, p)[0])(params)["schedule"]["interior"]
    schedule, h = params["schedule"], 1e-3
    for name, leaf in schedule["interior"].items():
        for index in np.ndindex(leaf.shape):
            ahead, behind = (
                bits_of(
                    {**params, "schedule": {**schedule, "interior": {**schedule["interior"], name: moved}}}
                )
                for moved in _moved(leaf, index, h)
            )
            want = (ahead - behind) / (2 * h)
            np.testing.assert_allclose(got[name][index], want, rtol=2e-3, atol=2e-5)


def _moved(leaf, index, h):
    whole = np.asarray(leaf, np.float64)
    for d in (h, -h):
        moved = whole.copy()
        moved[index] += d
        yield moved


def test_the_ends_and_the_network_have_its_gradient_too(deep):
    experiment = deep(variance=Fixed(W))
    params = start_of(experiment)
    measured = jax.jit(lambda p: measure(experiment, p))
    gradient = measured(params)[0]
    schedule, h = params["schedule"], 2e-2

    def others(start):
        """The two other terms, which are the product's own."""
        ends = {**schedule["ends"], "start": jnp.asarray(start, jnp.float32)}
        terms = measured({**params, "schedule": {**schedule, "ends": ends}})[1]
        return float(terms.reconstruction + terms.latent)

    first = float(schedule["ends"]["start"])
    sums = [
        bits_of({**params, "schedule": {**schedule, "ends": {**schedule["ends"], "start": np.float64(at)}}})
        + others(at)
        for at in (first + h, first - h)
    ]
    got = gradient["schedule"]["ends"]["start"]
    np.testing.assert_allclose(got, (sums[0] - sums[1]) / (2 * h), rtol=5e-3)
    b = np.asarray(params["network"]["b"], np.float64)
    for index in ((0, 0, 0), (2, 1, 0)):
        ahead, behind = (enumerated(stops(schedule), moved) for moved in _moved(b, index, 1e-4))
        np.testing.assert_allclose(
            gradient["network"]["b"][index], (ahead - behind) / 2e-4, rtol=1e-3, atol=1e-6
        )


def test_in_continuous_time_the_interior_has_an_objective_of_its_own(deep):
    shallow, whole = deep(num_timesteps=0), deep()
    params = start_of(whole)
    interiors = [
        jax.jit(lambda p, e=e: measure(e, p)[0])(params)["schedule"]["interior"]["weight"]
        for e in (shallow, whole)
    ]
    assert np.abs(interiors[0] - interiors[1]).max() > 1e-3


@pytest.mark.slow
def test_descent_brings_the_bound_of_its_own_depth_down_most(deep):
    """Trained at T, a schedule and an estimate have a lower bound at T than those trained in continuous time."""
    found = {}
    for num_steps in (0, 3):
        experiment = deep(num_timesteps=num_steps, batch_size=BATCH, steps=150)
        mesh = data_mesh()
        state, step = jax.jit(lambda e=experiment: init_state(e))(), make_train_step(experiment, mesh)
        for _ in range(150):
            state = step(state, Images(to_devices(np.asarray(LEVELS), mesh)))
        params = jax.device_get(state.params)
        b = np.asarray(params["network"]["b"], np.float64)
        found[num_steps] = enumerated(stops(params["schedule"], 3), b, w=1.0)
    assert found[3] < found[0]


def excess_of(params):
    """E || mu_P - mu_Q ||^2 / (d sigma_Q^2) of each step, from what each costs in turn with equal variances."""
    log_snr, b = stops(params["schedule"]), np.asarray(params["network"]["b"], np.float64)
    return np.array([2 * np.log(2) * enumerated(step, b, w=1.0) for step in itertools.pairwise(log_snr)])


def test_a_learned_w_has_the_gradient_of_the_bound(deep):
    """d/2 (w - 1 - log w) + w d/2 excess of each step, by hand."""
    experiment = deep(variance=Learned())
    log_w = jnp.asarray([0.3, -0.2, 0.0, -2.0, 0.1])
    params = {**start_of(experiment), "variance": {"log_w": log_w}}
    gradient, terms = jax.jit(lambda p: measure(experiment, p))(params)
    excess, w = excess_of(params), np.exp(np.asarray(log_w, np.float64))
    bits = 2 * np.log(2)
    np.testing.assert_allclose(terms.diffusion, np.sum(w * (1 + excess) - 1 - np.log(w)) / bits, rtol=2e-5)
    np.testing.assert_allclose(
        gradient["variance"]["log_w"], (w * (1 + excess) - 1) / bits, rtol=1e-4, atol=1e-6
    )


def test_with_the_model_frozen_w_becomes_the_fitted_one(deep):
    experiment = deep(variance=Learned())
    params = start_of(experiment)
    gradient = jax.jit(lambda p: measure(experiment, p)[0]["variance"])
    log_w = params["variance"]["log_w"]
    for _ in range(25):  # Newton's method: at the best w the second derivative is 1 / (2 ln 2)
        slope = gradient({**params, "variance": {"log_w": log_w}})["log_w"]
        log_w -= jnp.clip(2 * np.log(2) * slope, -1, 1)
    excess = excess_of(params)
    assert excess.max() > 0.3
    np.testing.assert_allclose(log_w, -np.log1p(excess), rtol=1e-4)


def test_a_depth_without_enough_digits_is_not_trained(tiny, tmp_path):
    with pytest.raises(UserError, match=r"^T = 10001: in float32 .* add --x64$"):
        train(tiny(num_timesteps=10_001), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_read_in_a_precision_that_it_could_not_be_trained_in(tiny):
    """As a run in float32 is, to sample it in bfloat16."""
    model = dataclasses.replace(tiny().model, network=UNet(precision="bfloat16"))
    experiment = tiny(model=model, num_timesteps=1000)
    with pytest.raises(
        UserError, match=r"^T = 1000: in bfloat16 .* bind the networks' precision to 'float32'$"
    ):
        check_trained_bound(experiment)
