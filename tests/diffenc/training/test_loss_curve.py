"""Times of training drawn where the loss is large: the same loss and gradient on average, with less noise."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.model import UNIFORM, Draws, Model
from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT, Images
from diffenc.parallel.sharding import data_mesh, to_devices
from diffenc.training import loss_curve, schedule_objective, time_curves
from diffenc.training.gradient import batch_gradient
from diffenc.training.loop import train
from diffenc.training.loss_curve import BINS, DECAY, LossCurve
from diffenc.training.state import init_state, make_train_step
from diffenc.training.trained_bound import trained_bound
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.parameterizations import X
from diffenc_plugins.schedules import Linear, Monotone
from diffenc_plugins.time_samplers import Importance

BATCH, NUM_DIMS = 16, 16
IMAGE = np.random.default_rng(0).integers(0, 5, (4, 4, 1))
LEVELS = np.stack([IMAGE] * BATCH).astype(np.uint8)
SCHEDULE = Linear(4.0, -4.0)


@dataclasses.dataclass(frozen=True)
class Blind:
    """An estimate that is the same for every image and noise level."""

    def init(self, key, z, log_snr):
        return {"b": 0.5 * jax.random.normal(key, z.shape[1:])}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return jnp.broadcast_to(params["b"][None], z.shape)


@pytest.fixture
def blind(tiny):
    def make(**changes):
        model = Model(Identity(), changes.pop("schedule", SCHEDULE), X(), VDM(), Blind())
        return tiny(**{"model": model, "batch_size": BATCH, "time_sampler": Importance(), **changes})

    return make


def exact(b):
    """The diffusion loss in bits/dim, 1/2 (SNR_0 - SNR_1) || b - x ||^2, and its gradient in b."""
    x = (2 * IMAGE + 1) / 5 - 1.0
    per_bit = 0.5 * (np.exp(4.0) - np.exp(-4.0)) / (NUM_DIMS * np.log(2))
    return per_bit * np.sum(np.square(b - x)), per_bit * 2 * (b - x)


def test_the_curve_is_the_root_mean_square_of_what_was_drawn():
    """By hand, for three steps; bins without a draw have that of all draws."""
    random, curve = np.random.default_rng(3), loss_curve.begin_loss_curve()
    np.testing.assert_array_equal(loss_curve.root_mean_squares(curve), np.ones(BINS))
    squares, counts = np.zeros(BINS), np.zeros(BINS)
    for _ in range(3):
        t, loss, weight = random.uniform(0, 0.5, 20), random.normal(size=20), random.uniform(0.5, 2, 20)
        draws = Draws(*(jnp.asarray(a, jnp.float32) for a in (t, t, t, weight)))
        curve = loss_curve.update_loss_curve(curve, draws, jnp.asarray(weight * loss, jnp.float32))
        squares, counts = DECAY * squares, DECAY * counts
        for at, one in zip(t, loss, strict=True):
            squares[int(at * BINS)] += one**2
            counts[int(at * BINS)] += 1
    overall = squares.sum() / counts.sum()
    want = np.sqrt([s / n if n else overall for s, n in zip(squares, counts, strict=True)])
    np.testing.assert_allclose(loss_curve.root_mean_squares(curve), want, rtol=1e-5)


def test_uniform_times_are_drawn_without_a_curve(blind, tiny):
    experiment = blind(time_sampler=UNIFORM)
    assert jax.eval_shape(lambda: init_state(experiment)).curve is None
    assert tiny().time_sampler == UNIFORM
    u = jnp.linspace(0, 1, 7, endpoint=False)
    t, weight = time_curves.bind_curve(UNIFORM, None)(u)
    np.testing.assert_array_equal(t, u)
    np.testing.assert_array_equal(weight, np.ones(7))


@pytest.mark.parametrize("depth", [{}, {"num_timesteps": 3}], ids=["continuous", "three steps"])
def test_loss_and_gradient_are_unbiased_and_less_noisy(blind, depth):
    experiment = blind(**depth)
    params = jax.jit(lambda: init_state(experiment).params)()
    middle = (np.arange(BINS) + 0.5) / BINS
    rms = np.exp(4 - 8 * middle)  # of -1/2 dSNR/dt || . ||^2
    if depth:
        rms = -np.diff(np.exp(4 - 8 * np.arange(4) / 3))[(3 * middle).astype(int)]
    curve = LossCurve(jnp.asarray(np.square(rms), jnp.float32), jnp.ones(BINS))

    @jax.jit
    def drawn(key):
        found = []
        for sample in (partial(experiment.time_sampler, curve=loss_curve.root_mean_squares(curve)), UNIFORM):
            # each time on its own: stratified ones have next to no noise in so smooth a loss
            one = Images(jnp.asarray(LEVELS[:1]))
            batch = batch_gradient(
                params, experiment, trained_bound(experiment), sample, one, key, data_mesh()
            )
            found.append((batch.terms.diffusion, batch.gradient["network"]["b"]))
        return found

    by, uniform = jax.lax.map(drawn, jax.random.split(jax.random.key(1), 4000))
    b = np.asarray(params["network"]["b"], np.float64)
    want = exact(b)
    if depth:  # the sum of 1/2 (SNR_s - SNR_t) over three steps is that of the whole
        np.testing.assert_allclose(uniform[0].mean(), want[0], rtol=0.1)
    for got, exactly in zip(by, want, strict=True):
        values = np.asarray(got, np.float64)
        error = values.std(axis=0) / np.sqrt(len(values))
        assert np.all(np.abs(values.mean(axis=0) - exactly) < 5 * error + 1e-3 * np.abs(exactly))
    assert np.std(by[0]) < 0.7 * np.std(uniform[0])


def test_the_interior_of_a_schedule_has_the_same_objective_on_average(blind):
    """Of the losses without the weights, weighted once: by a sum over a fine grid."""
    schedule = Monotone(4.0, -4.0, units=3)
    experiment = blind(schedule=schedule)
    params = jax.jit(lambda: init_state(experiment).params)()
    sample = partial(experiment.time_sampler, curve=jnp.asarray([1.0, 3.0]))
    many = Images(jnp.asarray(np.stack([IMAGE] * 512).astype(np.uint8)))
    experiment = dataclasses.replace(experiment, batch_size=512)
    bound = trained_bound(experiment)
    key, mesh = jax.random.key(4), data_mesh()
    got = jax.jit(lambda p: batch_gradient(p, experiment, bound, sample, many, key, mesh))(params).gradient[
        "schedule"
    ]["interior"]
    t = jnp.asarray((np.arange(4096) + 0.5) / 4096)

    @jax.jit
    def interior_of(params):
        rate = jax.jvp(lambda t: schedule.apply(params, t), (t,), (jnp.ones_like(t),))
        loss = -rate[1] * jnp.exp(rate[0])
        return jax.grad(lambda p: schedule_objective.surrogate(schedule, p, t, loss))(params)["interior"]

    want = interior_of(params["schedule"])
    for name, leaf in want.items():
        np.testing.assert_allclose(
            got[name], leaf, rtol=3e-2, atol=2e-3 * float(np.abs(want["weight"]).max())
        )


def test_the_curve_of_a_run_becomes_that_of_its_loss(blind):
    """Its ratio at two times is that of the rates of SNR there, where nothing else depends on time."""
    experiment, mesh = blind(steps=60, batch_size=BATCH), data_mesh()
    experiment = dataclasses.replace(
        experiment, optimizer=dataclasses.replace(experiment.optimizer, learning_rate=0.0)
    )
    state, step = jax.jit(lambda: init_state(experiment))(), make_train_step(experiment, mesh)
    images = Images(to_devices(LEVELS, mesh))
    for _ in range(60):
        state = step(state, images)
    assert isinstance(state.curve, LossCurve)
    drawn = np.asarray(state.curve.counts)
    np.testing.assert_allclose(drawn.sum(), BATCH * (1 - DECAY**60) / (1 - DECAY), rtol=1e-4)
    # more draws where the loss is large
    assert drawn[: BINS // 4].sum() > 0.6 * drawn.sum()
    rms, middle = np.asarray(loss_curve.root_mean_squares(state.curve)), (np.arange(BINS) + 0.5) / BINS
    well = drawn > 3
    np.testing.assert_allclose(
        np.log(rms[well]) + 8 * middle[well], np.mean(np.log(rms[well]) + 8 * middle[well]), atol=0.08
    )


def test_a_run_that_stops_goes_on_with_its_curve(tiny, tmp_path):
    experiment = tiny(time_sampler=Importance(), steps=6, checkpoint_every=3)
    whole = train(experiment, tmp_path / "whole").state
    train(dataclasses.replace(experiment, steps=3), tmp_path / "parts")
    parts = train(experiment, tmp_path / "parts").state
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert whole.curve is not None
    with pytest.raises(UserError, match="time_sampler"):
        train(dataclasses.replace(experiment, time_sampler=Importance(0.5), steps=7), tmp_path / "parts")
