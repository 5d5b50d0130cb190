import jax
import jax.numpy as jnp
import numpy as np

from diffenc_plugins.encoders import Nontrainable

LOG_SNR = np.array([-15.0, -5.0, 0.0, 13.3], np.float32)


def test_value_and_slope_keep_their_digits_in_float32():
    """[16]: alpha^2 x and, exactly, sigma^2 alpha^2 x."""
    x, log_snr = jnp.full((4, 2), 0.7), jnp.asarray(LOG_SNR)
    value, slope = jax.jvp(lambda v: Nontrainable().apply({}, x, v), (log_snr,), (jnp.ones(4),))
    odds = np.exp(LOG_SNR.astype(np.float64))[:, None]
    np.testing.assert_allclose(value, np.float32(0.7) * odds / (1 + odds) * np.ones((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(slope, np.float32(0.7) * odds / (1 + odds) ** 2 * np.ones((1, 2)), rtol=2e-6)
    assert Nontrainable().init(jax.random.key(0), x, log_snr) == {}
