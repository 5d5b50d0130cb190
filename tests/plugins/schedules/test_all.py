"""What every schedule keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry, testing
from diffenc.errors import UserError

every_schedule = pytest.mark.parametrize("name", list(registry.schedules))


def make(name, *ends):
    schedule = registry.schedules[name](*ends)
    return schedule, schedule.init(jax.random.key(0))


def own(name, log_snr):
    """The log-SNR of a schedule where the field's is `log_snr`."""
    return np.asarray(log_snr) - (
        2 * np.logaddexp(0, -np.asarray(log_snr)) if name == "nontrainable_snr" else 0
    )


@every_schedule
@pytest.mark.parametrize("check", testing.CHECKS["schedule"])
def test_it_keeps_what_a_schedule_keeps(name, check):
    check(make(name)[0])


@every_schedule
@pytest.mark.parametrize("ends", [(13.3, -5.0), (8.0, -5.0), (1.0, 0.5), (40.0, -40.0)])
def test_it_falls_strictly_from_end_to_end(name, ends):
    schedule, params = make(name, *ends)
    log_snr = np.asarray(schedule.apply(params, jnp.linspace(0, 1, 1001)))
    np.testing.assert_allclose(log_snr[[0, -1]], own(name, ends), rtol=1e-6)
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


@every_schedule
def test_the_published_ends_are_the_defaults(name):
    schedule, params = make(name)
    published = own(name, [13.3, -5.0])
    np.testing.assert_allclose(schedule.apply(params, jnp.asarray([0.0, 1.0])), published, rtol=1e-6)


@every_schedule
@pytest.mark.parametrize("ends", [(-5.0, 13.3), (1.0, 1.0)])
def test_ends_in_the_wrong_order_are_refused(name, ends):
    with pytest.raises(UserError, match=rf"^schedule\.{name}\.log_snr_max = .*greater than.*$") as caught:
        registry.schedules[name](*ends)
    assert "\n" not in str(caught.value)


@every_schedule
@pytest.mark.parametrize("field", ["log_snr_max", "log_snr_min"])
@pytest.mark.parametrize("end", [float("nan"), float("inf"), float("-inf")])
def test_ends_that_are_not_finite_are_refused(name, field, end):
    with pytest.raises(UserError) as caught:
        registry.schedules[name](**{field: end})
    assert str(caught.value) == f"schedule.{name}.{field} = {end}: expected a finite float"
