"""Every parameterization: (p, q) such that the network's p x_phi + q eps, with z, gives x_phi and eps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry

LOG_SNR = np.linspace(-15, 15, 31)
every_parameterization = pytest.mark.parametrize("name", list(registry.parameterizations))


@every_parameterization
def test_shape_dtype_and_compilation(name):
    log_snr = jnp.asarray(LOG_SNR, jnp.float32)
    for eager, compiled in zip(
        registry.parameterizations[name]()(log_snr),
        jax.jit(registry.parameterizations[name]())(log_snr),
        strict=True,
    ):
        assert (eager.shape, eager.dtype) == (log_snr.shape, jnp.float32)
        np.testing.assert_allclose(eager, compiled, rtol=1e-6)


@every_parameterization
def test_x_phi_and_eps_come_back_from_z_and_the_output(x64, name):
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-LOG_SNR)), 1 / np.sqrt(1 + np.exp(LOG_SNR))
    p, q = map(np.asarray, registry.parameterizations[name]()(jnp.asarray(LOG_SNR)))
    for i in range(len(LOG_SNR)):
        both = np.array([[alpha[i], sigma[i]], [p[i], q[i]]]) @ [0.7, -1.1]
        solved = np.linalg.solve([[alpha[i], sigma[i]], [p[i], q[i]]], both)
        np.testing.assert_allclose(solved, [0.7, -1.1], rtol=1e-9)


@every_parameterization
def test_derivatives_are_finite(name):
    p_slope, q_slope = jax.jacfwd(registry.parameterizations[name]())(jnp.asarray(LOG_SNR, jnp.float32))
    assert np.isfinite(p_slope).all()
    assert np.isfinite(q_slope).all()


@every_parameterization
def test_no_noise_level_sees_another(name):
    log_snr, order = jnp.asarray([3.0, -1.0, 0.5]), jnp.asarray([2, 0, 1])
    whole, moved = (registry.parameterizations[name]()(v) for v in (log_snr, log_snr[order]))
    np.testing.assert_array_equal(moved, np.asarray(whole)[:, order])
