"""What every schedule keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry
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
