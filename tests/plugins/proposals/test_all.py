"""Every proposal: times and weights that keep any mean over t as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry

CURVES = {
    "flat": np.ones(8),
    "peaked": np.exp(-np.square(np.arange(64) - 9.5) / 8),
    "rough": np.random.default_rng(0).exponential(size=33) ** 4,
    "mostly nothing": np.r_[np.zeros(15), 1e6, np.zeros(4)],
    "nothing": np.zeros(5),
    "of one bin": np.full(1, 3.0),
}
every_proposal = pytest.mark.parametrize("name", list(registry.proposals))
every_curve = pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())


def proposed(name, curve, count):
    """(u, t, weight) at the middles of `count` equal parts of [0, 1)."""
    u = (np.arange(count) + 0.5) / count
    t, weight = registry.proposals[name]()(jnp.asarray(u), jnp.asarray(curve))
    return u, np.asarray(t, np.float64), np.asarray(weight, np.float64)


@every_proposal
@every_curve
@pytest.mark.parametrize(
    "function",
    [np.ones_like, lambda t: t, lambda t: np.exp(3 * t), lambda t: np.sin(40 * t), lambda t: t > 0.37],
    ids=["one", "t", "exp", "sin", "jump"],
)
def test_weighted_means_are_means_over_uniform_times(x64, name, curve, function):
    """By quadrature over u; 'one' says that the density integrates to one."""
    _, t, weight = proposed(name, curve, 400_000)
    want = np.mean(function((np.arange(10**6) + 0.5) / 10**6))
    np.testing.assert_allclose(np.mean(weight * function(t)), want, rtol=1e-4, atol=1e-4)


@every_proposal
@every_curve
def test_the_weight_is_the_slope_of_t(x64, name, curve):
    """dt / du = 1 / density, apart from the few steps that straddle two bins."""
    u, t, weight = proposed(name, curve, 20_011)
    slope = np.diff(t) / np.diff(u)
    np.testing.assert_allclose(np.sort(np.abs(slope / weight[1:] - 1))[: -2 * len(curve)], 0, atol=1e-6)


@every_proposal
@every_curve
def test_times_rise_with_u_through_all_of_time_in_float32(name, curve):
    u = jnp.asarray(np.r_[0, (np.arange(5000) + 0.5) / 5000, np.nextafter(np.float32(1), 0)], jnp.float32)
    t, weight = jax.jit(registry.proposals[name]())(u, jnp.asarray(curve, jnp.float32))
    assert (t.dtype, weight.dtype, t.shape, weight.shape) == (jnp.float32, jnp.float32, u.shape, u.shape)
    assert np.all(np.diff(t) >= 0)
    assert 0 <= t[0] < 1e-3
    assert 1 - 1e-3 < t[-1] <= 1
    assert np.all(np.isfinite(weight) & (np.asarray(weight) > 0))
