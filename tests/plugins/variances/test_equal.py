import jax.numpy as jnp
import numpy as np

from diffenc.core.discretization import EQUAL
from diffenc_plugins.variances import Equal


def test_w_is_one_whatever_was_measured():
    log_snr = jnp.asarray([-3.0, 0.0, 9.0])
    for excess in (None, jnp.asarray([0.1, 5.0, 0.0])):
        np.testing.assert_array_equal(Equal()(log_snr, log_snr + 1, excess), np.zeros(3))


def test_it_is_what_settings_default_to():
    assert Equal() == EQUAL
