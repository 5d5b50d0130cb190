"""The interior's gradient against finite differences of the variance it is to lower, and what it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffenc.core.model import UNIFORM
from diffenc.interfaces import Images
from diffenc.parallel.sharding import data_mesh, to_devices
from diffenc.training import schedule_objective
from diffenc.training.gradient import batch_gradient
from diffenc.training.state import init_state, make_train_step
from diffenc.training.trained_bound import trained_bound
from diffenc_plugins.schedules import LearnedEndpoints, Linear, Monotone

SCHEDULE = Monotone(6.0, -4.0, units=8)
GRID = (np.arange(1000) + 0.5) / 1000
apply = jax.jit(SCHEDULE.apply)


def random_params(seed, scale=0.7):
    params = SCHEDULE.init(jax.random.key(0))
    random = np.random.default_rng(seed)
    moved = jax.tree.map(lambda a: jnp.asarray(random.normal(0, scale, a.shape)), params["interior"])
    return {**params, "interior": moved}


def loss_per_log_snr(log_snr):
    """A bump; its square is m2."""
    return 0.3 + np.exp(-np.square(np.asarray(log_snr) - 2) / 4)


def rate_of(params, t):
    """|d lambda / dt| by central differences."""
    h = 1e-6
    ahead, behind = (np.asarray(apply(params, jnp.asarray(t + d))) for d in (h, -h))
    return (behind - ahead) / (2 * h)


def losses(params, t):
    return rate_of(params, t) * loss_per_log_snr(apply(params, jnp.asarray(t)))


def mean_square(params):
    """integral of m2 / p d lambda, in lambda: on the grid of lambda that equal steps of t give."""
    edges = np.linspace(0, 1, 1001)
    log_snr = np.asarray(apply(params, jnp.asarray(edges)))
    middle = np.asarray(apply(params, jnp.asarray(GRID)))
    return np.sum(np.square(loss_per_log_snr(middle)) * rate_of(params, GRID) * -np.diff(log_snr))


surrogate = jax.jit(functools.partial(schedule_objective.surrogate, SCHEDULE))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_its_gradient_is_that_of_the_mean_square(x64, seed):
    params = random_params(seed)
    loss = jnp.asarray(losses(params, GRID))
    got = jax.jit(jax.grad(lambda p: surrogate(p, jnp.asarray(GRID), loss)))(params)
    h = 1e-4
    for name, leaf in params["interior"].items():
        for index in np.ndindex(leaf.shape):
            ahead, behind = (
                mean_square({**params, "interior": {**params["interior"], name: leaf.at[index].add(d)}})
                for d in (h, -h)
            )
            want = (ahead - behind) / (2 * h) / np.mean(loss) ** 2
            np.testing.assert_allclose(got["interior"][name][index], want, rtol=1e-3, atol=1e-6)
    assert all(not leaf for leaf in jax.tree.leaves(got["ends"]))


def test_its_value_is_the_mean_square_over_the_squared_mean(x64):
    params = random_params(2)
    loss = jnp.asarray(losses(params, GRID))
    got = surrogate(params, jnp.asarray(GRID), loss)
    np.testing.assert_allclose(got, np.mean(np.square(loss)) / np.mean(loss) ** 2, rtol=1e-6)
    scaled = surrogate(params, jnp.asarray(GRID), 1e3 * loss)
    np.testing.assert_allclose(scaled, got, rtol=1e-9)


def test_the_objective_is_zero_with_the_gradient_of_the_surrogate(x64):
    params, t = random_params(3), jnp.asarray(GRID[::25])
    loss = jnp.asarray(losses(params, GRID[::25]))
    value, gradient = jax.jit(
        jax.value_and_grad(lambda p: schedule_objective.interior_objective(SCHEDULE, p, t, loss))
    )(params)
    assert value == 0
    want = jax.jit(jax.grad(lambda p: surrogate(p, t, loss)))(params)
    jax.tree.map(np.testing.assert_array_equal, gradient, want)
    assert np.linalg.norm(gradient["interior"]["weight"]) > 1e-4


def test_none_of_the_losss_own_gradient_is_used(x64):
    params, t = random_params(3), jnp.asarray(GRID[::25])
    objective = functools.partial(schedule_objective.interior_objective, SCHEDULE, params, t)
    through = jax.jit(jax.grad(lambda c: objective(c * jnp.exp(t))))(2.0)
    assert through == 0


@pytest.mark.parametrize("schedule", [Linear(), LearnedEndpoints()])
def test_a_schedule_without_an_interior_gets_nothing(schedule):
    params = schedule.init(jax.random.key(0))
    t = jnp.asarray([0.2, 0.7])
    value, gradient = jax.jit(
        jax.value_and_grad(lambda p: schedule_objective.interior_objective(schedule, p, t, t))
    )(params)
    assert value == 0
    assert all(leaf == 0 for leaf in jax.tree.leaves(gradient))


def test_descent_finds_the_quietest_density(x64):
    """1 / rate proportional to sqrt(m2); here the loss is known at each lambda, so that nothing is left to vary."""
    params = SCHEDULE.init(jax.random.key(0))
    t = jnp.asarray((np.arange(200) + 0.5) / 200)
    optimizer = optax.adam(0.03)

    @jax.jit
    def step(params, state):
        def value(params):
            log_snr, rate = jax.jvp(lambda t: SCHEDULE.apply(params, t), (t,), (jnp.ones_like(t),))
            loss = -rate * (0.3 + jnp.exp(-jnp.square(log_snr - 2) / 4))
            return schedule_objective.interior_objective(SCHEDULE, params, t, loss)

        updates, state = optimizer.update(jax.grad(value)(params), state)
        return optax.apply_updates(params, updates), state

    first, state = params, jax.jit(optimizer.init)(params)
    for _ in range(1500):
        params, state = step(params, state)
    before, after = losses(first, GRID), losses(params, GRID)
    np.testing.assert_allclose(after.mean(), before.mean(), rtol=1e-4)  # the mean is the bound's
    assert after.var() < before.var() / 30
    lam = np.linspace(-4, 6, 20_001)
    total = np.trapezoid(loss_per_log_snr(lam), lam)
    log_snr = apply(params, jnp.asarray(GRID))
    np.testing.assert_allclose(rate_of(params, GRID), total / loss_per_log_snr(log_snr), rtol=0.25)
    np.testing.assert_allclose(log_snr[0], 6.0, atol=0.02)


@pytest.fixture(scope="module")
def learning(tiny):
    model = tiny().model
    return tiny(model=type(model)(**{**vars(model), "schedule": SCHEDULE}))


def levels_of(step):
    return np.random.default_rng(step).integers(0, 5, (4, 4, 4, 1)).astype(np.uint8)


@pytest.mark.slow
def test_training_moves_ends_and_interior_and_stays_finite(learning):
    mesh, step = data_mesh(), make_train_step(learning, data_mesh())
    state = jax.jit(lambda: init_state(learning))()
    first = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state.params["schedule"])
    for number in range(30):
        state = step(state, Images(to_devices(levels_of(number), mesh)))
    last = jax.tree.map(np.asarray, state.params["schedule"])
    assert int(state.sums.bad_step) == 0
    for old, new in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True):
        assert np.isfinite(new).all()
        assert np.abs(new - old).max() > 1e-3


def test_what_is_reported_stays_the_bound_and_its_gradient_that_of_the_ends(learning):
    params = jax.jit(lambda: learning.model.init(jax.random.key(1), (4, 4, 1)))()
    schedule = params["schedule"]

    @jax.jit
    def measured(schedule):
        changed = {**params, "schedule": schedule}
        return batch_gradient(
            changed,
            learning,
            trained_bound(learning),
            UNIFORM,
            Images(jnp.asarray(levels_of(0))),
            jax.random.key(2),
            data_mesh(),
        )[:2]

    def bits(schedule):
        return sum(map(float, measured(schedule)[1]))

    gradient = measured(schedule)[0]["schedule"]
    h, start = 1e-2, schedule["ends"]["start"]
    ahead, behind = (bits({**schedule, "ends": {**schedule["ends"], "start": start + d}}) for d in (h, -h))
    np.testing.assert_allclose(gradient["ends"]["start"], (ahead - behind) / (2 * h), rtol=2e-2)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["interior"]))
