import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry, testing
from diffenc_plugins.generative_means import VDM, Counterterm


@pytest.mark.parametrize("check", testing.CHECKS["generative_mean"])
@pytest.mark.parametrize("name", list(registry.generative_means))
def test_it_keeps_what_a_mean_keeps(name, check):
    check(registry.generative_means[name]())


def test_kappa_is_sigma_squared():
    log_snr = np.array([-15.0, -5.0, 0.0, 13.3], np.float32)
    want = 1 / (1 + np.exp(log_snr.astype(np.float64)))
    np.testing.assert_allclose(Counterterm()(jnp.asarray(log_snr)), want, rtol=1e-6)


def test_it_is_the_relative_slope_of_alpha_squared():
    """d log x_nt / d lambda for x_nt = alpha^2 x [16]."""
    log_snr, h = np.array([-3.0, 0.4, 6.0]), 1e-5
    log_alpha_2 = [-np.log1p(np.exp(-(log_snr + d))) for d in (h, -h)]
    want = (log_alpha_2[0] - log_alpha_2[1]) / (2 * h)
    np.testing.assert_allclose(Counterterm()(jnp.asarray(log_snr, jnp.float32)), want, rtol=1e-5)


def test_the_representation_is_taken_to_stand_still():
    np.testing.assert_array_equal(VDM()(jnp.asarray([-15.0, 0.0, 15.0])), 0)
