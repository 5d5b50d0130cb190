"""Every variance: log w of each step on its own, compiled or not; nothing to add where a step is short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry

every_variance = pytest.mark.parametrize("name", list(registry.variances))

LOG_SNR = np.linspace(-5, 13.3, 12)
EXCESS = np.geomspace(1e-6, 30, 11)


def log_w(name, log_snr_t=LOG_SNR[:-1], log_snr_s=LOG_SNR[1:], excess=EXCESS):
    return registry.variances[name]()(jnp.asarray(log_snr_t), jnp.asarray(log_snr_s), jnp.asarray(excess))


@every_variance
def test_shape_dtype_and_compilation(name):
    inputs = [jnp.asarray(v, jnp.float32) for v in (LOG_SNR[:-1], LOG_SNR[1:], EXCESS)]
    eager, compiled = registry.variances[name]()(*inputs), jax.jit(registry.variances[name]())(*inputs)
    assert (eager.shape, eager.dtype) == ((11,), jnp.float32)
    assert np.isfinite(eager).all()
    np.testing.assert_allclose(eager, compiled, rtol=1e-6)


@every_variance
def test_no_step_sees_another(name):
    order = np.random.default_rng(0).permutation(11)
    moved = log_w(name, LOG_SNR[:-1][order], LOG_SNR[1:][order], EXCESS[order])
    np.testing.assert_array_equal(moved, np.asarray(log_w(name))[order])


@every_variance
def test_in_float64_it_is_float64(x64, name):
    """The search for times computes in it."""
    assert log_w(name).dtype == jnp.float64


@every_variance
def test_plugins_are_values(name):
    """So that they can be compared, and a config can say them."""
    assert registry.variances[name]() == registry.variances[name]()
    assert registry.variances.name_of(registry.variances[name]) == name
