import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffenc_plugins.schedules import LearnedEndpoints, Linear


def test_equal_times_are_equal_steps():
    got = Linear(6.0, -2.0).apply({}, jnp.asarray([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_array_equal(got, [6, 4, 2, -2])


def test_it_has_no_parameters():
    assert Linear().init(jax.random.key(0)) == {}


PUBLISHED = LearnedEndpoints()
apply = jax.jit(PUBLISHED.apply)


def parameters(start, raw_drop):
    return {"start": jnp.float32(start), "raw_drop": jnp.float32(raw_drop)}


def finite(bound):
    return st.floats(-bound, bound, width=32)


@given(start=finite(64), raw_drop=finite(2.0**100))
@settings(deadline=None, max_examples=200)
def test_a_thousand_steps_fall_strictly_whatever_the_parameters(start, raw_drop):
    """In float32, for ends up to 64: beyond, the smallest drop's 1e-5 a step is less than float32 resolves."""
    log_snr = np.asarray(apply(parameters(start, raw_drop), jnp.linspace(0, 1, 1001)), np.float64)
    assert np.all(np.isfinite(log_snr))
    assert np.all(np.diff(log_snr) < 0)


@given(start=finite(2.0**120), raw_drop=finite(2.0**120))
@settings(deadline=None, max_examples=100)
def test_it_never_rises(start, raw_drop):
    log_snr = np.asarray(apply(parameters(start, raw_drop), jnp.linspace(0, 1, 1001)), np.float64)
    assert np.all(np.diff(log_snr) <= 0)


@pytest.mark.parametrize(("start", "raw_drop"), [(3.0, -2.0), (13.3, 18.29), (-4.0, 0.0)])
def test_it_is_linear_between_its_ends(x64, start, raw_drop):
    t = np.linspace(0, 1, 5)
    want = start - (np.log1p(np.exp(raw_drop)) + 0.01) * t
    params = {"start": jnp.asarray(start), "raw_drop": jnp.asarray(raw_drop)}
    np.testing.assert_allclose(PUBLISHED.apply(params, jnp.asarray(t)), want, rtol=1e-12)


def test_both_ends_learn():
    """At t = 1, d lambda / d start = 1 and d lambda / d raw = -sigmoid(raw); at t = 0 only the start counts."""
    slopes = jax.jacobian(PUBLISHED.apply)(parameters(13.3, 0.4), jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(slopes["start"], [1, 1])
    np.testing.assert_allclose(slopes["raw_drop"], [0, -1 / (1 + np.exp(-0.4))], rtol=1e-6)


def test_two_parameters():
    assert sum(leaf.size for leaf in jax.tree.leaves(PUBLISHED.init(jax.random.key(0)))) == 2
