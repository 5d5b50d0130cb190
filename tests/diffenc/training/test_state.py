"""The step against trajectories in closed form, and what makes it a function of (state, batch) alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffenc.config.settings import Compress, Evaluate, Fit, Likelihood, Sample
from diffenc.core.model import Losses, Model, Terms, draw_noise
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from diffenc.interfaces import Images
from diffenc.parallel.sharding import data_mesh, to_devices
from diffenc.training import state as train_state
from diffenc.training.state import TrainState, abstract_state, init_state, make_init, make_train_step
from diffenc_plugins.networks import UNet
from diffenc_plugins.time_samplers import Importance

RATE, NUM_DIMS, BATCH = 2.0, 16, 4


class BoundAlone(Model):
    """A model whose losses are its `elbo`."""

    def losses(self, *args, **options):
        return Losses(self.elbo(*args, **options), {})


@dataclasses.dataclass(frozen=True)
class Quadratic(BoundAlone):
    """-ELBO of an image: half its squared distance to w, and a constant."""

    def init(self, key, image_shape):
        return {"encoder": {}, "schedule": {}, "network": {"w": jax.random.normal(key, image_shape)}}

    def elbo(self, params, levels, draws, *, num_levels, **_):
        squares = 0.5 * jnp.square(params["network"]["w"][None] - levels / num_levels)
        zero = jnp.zeros(len(levels))
        return Terms(reconstruction=squares.sum(axis=(1, 2, 3)), latent=zero + 3.0, diffusion=zero)


@dataclasses.dataclass(frozen=True)
class Noise(Quadratic):
    """Terms that tell what was random: times, noise, dropout's key."""

    def elbo(self, params, levels, draws, *, keys=None, **_):
        assert keys is not None, "training drops out"
        zero = 0 * params["network"]["w"].sum()
        return Terms(
            reconstruction=draws.eps[:, 0, 0, 0] + zero,
            latent=jax.vmap(jax.random.uniform)(keys) + zero,
            diffusion=jnp.square(draws.t) + zero,
        )


@dataclasses.dataclass(frozen=True)
class Waves(Quadratic):
    """cos 2 pi m t at m = 1, 2 and 4: over 4 stratified times the first two vanish, the third does not."""

    def elbo(self, params, levels, draws, **_):
        zero = 0 * params["network"]["w"].sum()
        return Terms(*(jnp.cos(2 * jnp.pi * m * draws.t) + zero for m in (1, 2, 4)))


@dataclasses.dataclass(frozen=True)
class Sgd:
    """Plain gradient descent."""

    rate: float = RATE

    def build(self, num_steps):
        return optax.sgd(self.rate)


@dataclasses.dataclass(frozen=True)
class PerStep:
    """Gradient descent whose rate is one over the number of steps."""

    def build(self, num_steps):
        return optax.sgd(1 / num_steps)


@pytest.fixture
def stub(tiny):
    """The tiny experiment with a model in closed form and gradient descent."""

    def make(model: type[Quadratic], **changes):
        return tiny(model=model(**vars(tiny().model)), optimizer=Sgd(), **changes)

    return make


def _levels(step: int, batch: int = BATCH) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 5, (batch, 4, 4, 1)).astype(np.uint8)


@functools.cache
def _compiled(experiment):
    """(what makes the first state, the step)."""
    return jax.jit(lambda: init_state(experiment)), make_train_step(experiment, data_mesh())


def _host(tree):
    """Copies, which outlive the buffers that the next step takes."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def _train(experiment, steps: int, state: TrainState | None = None) -> list[TrainState]:
    """The states after each of `steps` steps, the first one before."""
    first, step = _compiled(experiment)
    state = state or first()
    states = [_host(state)]
    for number in range(int(state.step), int(state.step) + steps):
        state = step(state, Images(to_devices(_levels(number), data_mesh())))
        states.append(_host(state))
    return states


def _assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_steps_follow_the_gradient_of_bits_per_dim(stub):
    states = _train(stub(Quadratic), 5)
    w = states[0].params["network"]["w"].astype(np.float64)
    bits, norms = 0.0, 0.0
    for k, state in enumerate(states[1:]):
        x = _levels(k) / 5
        gradient = (w - x.mean(axis=0)) / (NUM_DIMS * np.log(2))
        bits += (0.5 * np.square(w - x).sum(axis=(1, 2, 3))).mean() / (NUM_DIMS * np.log(2))
        norms += np.sqrt(np.square(gradient).sum())
        w = w - RATE * gradient
        np.testing.assert_allclose(state.params["network"]["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.sums.terms.reconstruction, bits, rtol=1e-5)
        np.testing.assert_allclose(state.sums.terms.latent, (k + 1) * 3 / (NUM_DIMS * np.log(2)), rtol=1e-5)
        np.testing.assert_allclose(state.sums.grad_norm, norms, rtol=1e-5)
        assert (state.step, state.sums.steps, state.sums.terms.diffusion) == (k + 1, k + 1, 0)


@pytest.mark.parametrize("decay", [0.9999, 0.2, 0.0])
def test_ema_is_the_average_that_numpy_makes(stub, decay):
    states = _train(stub(Quadratic, ema_decay=decay), 6)
    average = states[0].params["network"]["w"].astype(np.float64)
    for k, state in enumerate(states[1:]):
        used = min(decay, (1 + k) / (10 + k))
        average = used * average + (1 - used) * state.params["network"]["w"]
        np.testing.assert_allclose(state.ema["network"]["w"], average, rtol=1e-5)
    if decay:
        assert np.abs(states[-1].ema["network"]["w"] - states[-1].params["network"]["w"]).max() > 1e-2


def test_late_updates_of_the_ema_have_the_bound_decay():
    new = train_state.update_ema({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, jnp.int32(2_000_000), 0.9999)
    np.testing.assert_allclose(new["w"], 1e-4, rtol=1e-3)  # (1 + k) / (10 + k) is 0.9999955 by then


def test_the_same_state_and_batch_give_the_same_bits(tiny):
    first, second = _train(tiny(), 4), _train(tiny(), 4)
    _assert_same(first[-1], second[-1])


def test_going_on_from_a_state_is_the_run_itself(tiny):
    whole = _train(tiny(), 6)
    resumed = _train(tiny(), 3, jax.device_put(whole[3]))
    _assert_same(whole[-1], resumed[-1])


def _noise(experiment, at_step: int) -> list[float]:
    """What one step from `at_step` draws."""
    state = _compiled(experiment)[0]()._replace(step=jnp.int32(at_step))
    return [float(term) for term in _train(experiment, 1, state)[-1].sums.terms]


def test_randomness_is_a_function_of_seed_and_step(stub):
    one = _noise(stub(Noise, seed=1), at_step=7)
    assert _noise(stub(Noise, seed=1), at_step=7) == one
    for other in (_noise(stub(Noise, seed=2), 7), _noise(stub(Noise, seed=1), 8)):
        assert all(a != b for a, b in zip(one, other, strict=True)), "times, noise and dropout all change"


def test_noise_does_not_hang_on_how_the_step_was_reached(stub):
    states = _train(stub(Noise), 3)
    third = [after - before for after, before in zip(states[3].sums.terms, states[2].sums.terms, strict=True)]
    np.testing.assert_allclose(third, _noise(stub(Noise), at_step=2), rtol=1e-4)


def test_times_are_stratified_over_the_whole_batch(stub):
    first, second, fourth = np.array(_train(stub(Waves), 1)[-1].sums.terms) * NUM_DIMS * np.log(2)
    assert abs(first) < 1e-5
    assert abs(second) < 1e-5
    assert abs(fourth) > 1e-2
    t = np.sort(draw_noise(jax.random.key(3), (BATCH, 4, 4, 1)).t)
    np.testing.assert_allclose(np.diff(t), 1 / BATCH, atol=1e-6)


def test_seeds_give_other_parameters_and_other_noise(tiny):
    one, two = (_compiled(tiny(seed=seed))[0]() for seed in (1, 2))
    assert np.abs(one.params["network"]["w"] - two.params["network"]["w"]).max() > 0.01


def test_the_first_average_is_the_first_parameters(tiny):
    state = _compiled(tiny())[0]()
    _assert_same(state.params, state.ema)
    assert int(state.step) == 0
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state)), "the step would compile twice"


def test_the_old_state_is_given_up_to_the_new_one(tiny):
    first, step = _compiled(tiny())
    old = first()
    new = step(old, Images(to_devices(_levels(0), data_mesh())))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


def test_the_abstract_state_has_the_form_of_the_first(tiny):
    shapes = train_state.abstract_state(tiny(), data_mesh())
    state = _compiled(tiny())[0]()
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert shape.sharding.is_fully_replicated


def test_parameters_are_counted_by_scalars(tiny):
    # w and b of both networks, 16 pixels each, and the schedule's two ends
    assert count_parameters(train_state.abstract_state(tiny(), data_mesh()).params) == 4 * 16 + 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["terms", "auxiliary", "gradient", "update"])
def test_the_first_bad_step_is_remembered(where, bad):
    sums = train_state.zero_sums(["own"])
    good = Terms(*(jnp.float32(v) for v in (1, 2, 3)))
    wrong = good._replace(latent=jnp.float32(bad))
    for step in range(1, 7):
        broken = step in (3, 5)
        terms = wrong if broken and where == "terms" else good
        gradient, update = (jnp.float32(bad if broken and where == n else 1) for n in ("gradient", "update"))
        auxiliary = {"own": jnp.float32(bad if broken and where == "auxiliary" else 1)}
        sums = train_state.add_step(sums, terms, auxiliary, gradient, update, jnp.int32(step))
        assert int(sums.bad_step) == (3 if step >= 3 else 0)
    assert int(sums.steps) == 6


@pytest.mark.parametrize("channels", [2**25, 2**31, 2**40, 2**62])
def test_a_model_larger_than_any_machine_is_one_line(tiny, channels):
    model = dataclasses.replace(tiny().model, network=UNet(blocks=1, channels=channels))
    with pytest.raises(UserError, match=r"^the model.*: bind fewer channels or blocks$"):
        abstract_state(tiny(model=model), data_mesh())


def test_the_optimizer_knows_the_number_of_steps(stub):
    """The first step's update is the gradient of the mean over images of the squares, divided by `Experiment.steps`."""
    moved = {}
    for steps in (5, 10):
        experiment = dataclasses.replace(stub(Quadratic), optimizer=PerStep(), steps=steps)
        before, after = (np.asarray(state.params["network"]["w"]) for state in _train(experiment, 1))
        moved[steps] = after - before
    assert np.abs(moved[5]).max() > 0
    np.testing.assert_allclose(moved[5], 2 * moved[10], rtol=1e-4)


def test_only_what_is_trained_tells_compiled_steps_apart(tiny):
    """An evaluation of another kind, or other cadences, leave step and first state as they are compiled."""
    mesh, one = data_mesh(), tiny()
    other = tiny(
        **{"log_every": 1, "checkpoint_every": 2, "evaluate_every": 4, "sample_every": 6, "keep_last": 1},
        **{"keep_every": 6, "profile_at": 3, "evaluate": Evaluate(seed=5), "sample": Sample(num=2)},
        **{"fit": Fit(seed=5), "likelihood": Likelihood(rtol=1e-3), "compress": Compress(seed=5)},
    )
    assert make_train_step(one, mesh) is make_train_step(other, mesh)
    assert make_init(one, mesh) is make_init(other, mesh)
    changes = {"seed": 1, "steps": 13, "num_timesteps": 3, "time_sampler": Importance(), "batch_size": 8}
    changes |= {"microbatches": 2, "ema_decay": 0.5, "init_from": "other"}
    for name, value in changes.items():
        assert make_train_step(tiny(**{name: value}), mesh) is not make_train_step(one, mesh), name
