"""What every generative mean keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry

every_mean = pytest.mark.parametrize("name", list(registry.means))
LOG_SNR = np.linspace(-15, 15, 31).astype(np.float32)


@every_mean
def test_shape_dtype_and_compilation(name):
    kappa = registry.means[name]()
    got = kappa(jnp.asarray(LOG_SNR))
    assert (got.shape, got.dtype) == (LOG_SNR.shape, jnp.float32)
    np.testing.assert_allclose(jax.jit(kappa)(jnp.asarray(LOG_SNR)), got, rtol=1e-6)


@every_mean
def test_value_and_derivative_are_finite(name):
    value, slope = jax.jvp(registry.means[name](), (jnp.asarray(LOG_SNR),), (jnp.ones(31),))
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()


@every_mean
def test_no_noise_level_sees_another(name):
    log_snr, order = jnp.asarray([3.0, -1.0, 0.5]), jnp.asarray([2, 0, 1])
    kappa = registry.means[name]()
    np.testing.assert_array_equal(kappa(log_snr[order]), kappa(log_snr)[order])


@every_mean
def test_the_estimate_minimising_the_loss_stays_defined(name):
    """x_hat* = E[x_phi + dx_phi | z] / (1 + kappa)."""
    assert np.all(registry.means[name]()(jnp.asarray(LOG_SNR)) > -1)
