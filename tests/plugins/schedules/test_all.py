"""What every schedule keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import interfaces, registry
from diffenc.errors import UserError

every_schedule = pytest.mark.parametrize("name", list(registry.schedules))


def make(name, *ends):
    schedule = registry.schedules[name](*ends)
    return schedule, schedule.init(jax.random.key(0))


@every_schedule
def test_shape_dtype_and_compilation(name):
    schedule, params = make(name)
    t = jnp.linspace(0, 1, 7)
    got = schedule.apply(params, t)
    assert (got.shape, got.dtype) == (t.shape, jnp.float32)
    np.testing.assert_allclose(jax.jit(schedule.apply)(params, t), got, rtol=1e-6, atol=1e-6)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@every_schedule
@pytest.mark.parametrize("ends", [(13.3, -5.0), (8.0, -5.0), (1.0, 0.5), (40.0, -40.0)])
def test_it_falls_strictly_from_end_to_end(name, ends):
    schedule, params = make(name, *ends)
    log_snr = np.asarray(schedule.apply(params, jnp.linspace(0, 1, 1001)))
    np.testing.assert_allclose(log_snr[[0, -1]], ends, rtol=1e-6)
    assert np.all(np.diff(log_snr) < 0)


def perturbed(params, seed, scale):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + jnp.asarray(random.normal(0, scale, a.shape), a.dtype), params)


@every_schedule
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_it_falls_strictly_whatever_was_learned(name, scale):
    schedule, params = make(name, 8.0, -5.0)
    compiled = jax.jit(schedule.apply)
    for seed in range(8):
        log_snr = np.asarray(compiled(perturbed(params, seed, scale), jnp.linspace(0, 1, 101)))
        assert np.isfinite(log_snr).all()
        assert np.all(np.diff(log_snr) < 0)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in registry.schedules
        if isinstance(registry.schedules[name](), interfaces.LearnedInterior)
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_an_interior_moves_no_end_and_shares_no_parameter_with_the_bound(name, seed):
    schedule, params = make(name, 8.0, -5.0)
    assert isinstance(schedule, interfaces.LearnedInterior)
    params, t = perturbed(params, seed, 2.0), jnp.linspace(0, 1, 9)
    np.testing.assert_array_equal(schedule.interior(params, t), schedule.apply(params, t))
    bound, interior = (jax.jacobian(f)(params, t) for f in (schedule.apply, schedule.interior))
    for one, other in zip(jax.tree.leaves(bound), jax.tree.leaves(interior), strict=True):
        assert not (np.any(one != 0) and np.any(other != 0))
        np.testing.assert_allclose(other[np.array([0, -1])], 0, atol=1e-5)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(interior))


@every_schedule
def test_the_published_ends_are_the_defaults(name):
    schedule, params = make(name)
    np.testing.assert_allclose(schedule.apply(params, jnp.asarray([0.0, 1.0])), [13.3, -5.0], rtol=1e-6)


@every_schedule
def test_its_rate_is_that_of_the_value(x64, name):
    schedule, params = make(name)
    t, h = jnp.linspace(0.1, 0.9, 9), 1e-6
    apply = lambda t: schedule.apply(params, t)  # noqa: E731
    _, rate = jax.jvp(apply, (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(rate, (apply(t + h) - apply(t - h)) / (2 * h), rtol=1e-7)


@every_schedule
def test_no_time_sees_another(name):
    schedule, params = make(name)
    t, order = jnp.asarray([0.9, 0.0, 0.4, 1.0]), jnp.asarray([2, 0, 3, 1])
    np.testing.assert_array_equal(schedule.apply(params, t[order]), schedule.apply(params, t)[order])


@every_schedule
@pytest.mark.parametrize("ends", [(-5.0, 13.3), (1.0, 1.0), (float("nan"), 0.0)])
def test_ends_in_the_wrong_order_are_refused(name, ends):
    with pytest.raises(UserError, match=rf"^schedule\.{name}\.log_snr_max = .*greater than.*$") as caught:
        registry.schedules[name](*ends)
    assert "\n" not in str(caught.value)
