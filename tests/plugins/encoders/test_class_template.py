import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.interfaces import Context
from diffenc_plugins.encoders import ClassTemplate, Nontrainable

RNG = np.random.default_rng(0)
X, TEMPLATE = RNG.uniform(-1, 1, (4, 2, 2, 1)), RNG.normal(size=(3, 2, 2, 1))
LOG_SNR = np.array([-5.0, -1.0, 2.0, 7.0])
CONDITION = np.array([0, 3, 1, 3])  # none, the last class, the first, the last


def test_value_and_slope_in_closed_form(x64):
    encoder, params = ClassTemplate(classes=3), {"template": jnp.asarray(TEMPLATE)}

    def encode(log_snr):
        return encoder.apply(params, jnp.asarray(X), log_snr, Context(jnp.asarray(CONDITION)))

    value, slope = jax.jvp(encode, (jnp.asarray(LOG_SNR),), (jnp.ones(4),))
    y = np.stack([0 * X[0], np.tanh(TEMPLATE[2]), np.tanh(TEMPLATE[0]), np.tanh(TEMPLATE[2])])
    alpha_2 = (1 / (1 + np.exp(-LOG_SNR)))[:, None, None, None]
    np.testing.assert_allclose(value, alpha_2 * X + (1 - alpha_2) * y, rtol=1e-12)
    np.testing.assert_allclose(slope, alpha_2 * (1 - alpha_2) * (X - y), rtol=1e-12)


def test_it_starts_as_the_nontrainable_one_and_stays_it_for_no_class():
    encoder, x, log_snr = (
        ClassTemplate(classes=3),
        jnp.asarray(X, jnp.float32),
        jnp.asarray(LOG_SNR, jnp.float32),
    )
    params = encoder.init(jax.random.key(0), x, log_snr)
    assert params["template"].shape == (3, 2, 2, 1)
    want = Nontrainable().apply({}, x, log_snr)
    np.testing.assert_array_equal(encoder.apply(params, x, log_snr, Context(jnp.asarray(CONDITION))), want)
    learned = {"template": jnp.asarray(TEMPLATE, jnp.float32)}
    np.testing.assert_array_equal(encoder.apply(learned, x, log_snr), want)


def test_no_classes_are_refused():
    with pytest.raises(UserError, match=r"^encoder\.class_template\.classes = 0: must be at least 1$"):
        ClassTemplate(classes=0)
