import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT
from diffenc_plugins.encoders import Separable
from diffenc_plugins.encoders.separable import bernstein


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Channel i times (i + 1) w; records how often it is called, and at which noise levels."""

    calls: list = dataclasses.field(default_factory=list, compare=False)

    def init(self, key, z, log_snr):
        return {"w": jnp.ones(())}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        self.calls.append(np.asarray(log_snr))
        return params["w"] * z * (1 + jnp.arange(z.shape[-1]))[None, None, None]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_weights_are_those_of_a_binomial_distribution(x64, count):
    s = np.array([0.0, 0.3, 1.0])
    want = stats.binom.pmf(np.arange(count), count - 1, s[:, None])
    np.testing.assert_allclose(bernstein(jnp.asarray(s), count), want, atol=1e-14)


def test_x_phi_from_its_definition(x64):
    network = Scaled()
    encoder, rng = Separable(network, terms=3, log_snr_max=8.0, log_snr_min=-4.0), np.random.default_rng(0)
    x, log_snr = rng.uniform(-1, 1, (2, 4, 4, 2)), np.array([6.0, -1.0])
    params = encoder.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(log_snr))
    got = encoder.apply(params, jnp.asarray(x), jnp.asarray(log_snr))
    s = 1 / (1 + np.exp(-8 * (2.0 - log_snr) / 12))
    for i in range(2):
        weights = stats.binom.pmf(np.arange(3), 2, s[i])
        # f_k: channel c of x times its place 2 k + c + 1 among all channels
        y = sum(weights[k] * x[i] * (2 * k + 1 + np.arange(2)) for k in range(3))
        alpha_2 = 1 / (1 + np.exp(-log_snr[i]))
        np.testing.assert_allclose(got[i], alpha_2 * x[i] + (1 - alpha_2) * y, rtol=1e-12)


def test_one_call_of_the_network_serves_all_noise_levels_and_the_slope():
    network = Scaled()
    encoder, x = Separable(network, terms=3), jnp.ones((2, 4, 4, 1))
    params = encoder.init(jax.random.key(0), x, jnp.zeros(2))
    prepared = encoder.prepare(params, x)
    encode = lambda log_snr: encoder.at(params, prepared, log_snr)  # noqa: E731
    jax.jvp(encode, (jnp.zeros(2),), (jnp.ones(2),))
    encode(jnp.full(2, 13.3))
    assert len(network.calls) == 1


def test_it_starts_as_the_nontrainable_encoder():
    """With a network that starts at zero."""
    encoder = Separable(Scaled())
    x, log_snr = jnp.ones((1, 2, 2, 1)), jnp.asarray([0.0])
    np.testing.assert_allclose(encoder.apply({"w": jnp.zeros(())}, x, log_snr), 0.5 * x, rtol=1e-6)


@pytest.mark.parametrize("terms", [0, 65])
def test_the_number_of_terms_has_bounds(terms):
    with pytest.raises(UserError, match=rf"^encoder\.separable\.terms = {terms}: must be from 1 to 64$"):
        Separable(Scaled(), terms=terms)
