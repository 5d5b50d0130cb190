from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from diffenc import registry, testing
from diffenc.core.discretization import EQUAL, make_chain
from diffenc.errors import UserError
from diffenc_plugins.variances import Equal, Fitted, Learned


@pytest.mark.parametrize("check", testing.CHECKS["variance"])
@pytest.mark.parametrize("name", list(registry.variances))
def test_it_keeps_what_a_variance_keeps(name, check):
    check(registry.variances[name]())


def test_w_is_one_whatever_was_measured():
    log_snr = jnp.asarray([-3.0, 0.0, 9.0])
    for excess in (None, jnp.asarray([0.1, 5.0, 0.0])):
        np.testing.assert_array_equal(Equal()(log_snr, log_snr + 1, excess), np.zeros(3))


def test_it_is_what_settings_default_to():
    assert Equal() == EQUAL


EXCESS = np.array([1e-4, 0.03, 0.7, 12.0])
ZEROS, ONES = jnp.zeros(4), jnp.ones(4)


def test_sigma_p_is_the_one_that_costs_least(x64):
    """The mean KL of N(mu_Q, 1) from N(mu_P, v) a dimension, E (mu_P - mu_Q)^2 = excess, minimised by scipy."""
    log_w = Fitted()(ZEROS, ONES, jnp.asarray(EXCESS))
    for excess, got in zip(EXCESS, np.asarray(log_w), strict=True):

        def kl(log_v, excess=excess):
            return 0.5 * (np.exp(-log_v) * (1 + excess) - 1 + log_v)

        best: Any = minimize_scalar(kl, bounds=(-1, 5), method="bounded", options={"xatol": 1e-10})
        np.testing.assert_allclose(-got, best.x, atol=1e-6)


def test_steps_that_cost_nothing_are_of_equal_variance():
    np.testing.assert_array_equal(Fitted()(ZEROS, ONES, jnp.zeros(4)), np.zeros(4))


def test_small_excesses_keep_their_digits_in_float32():
    got = Fitted()(ZEROS[:2], ONES[:2], jnp.asarray([1e-7, 1e-10], jnp.float32))
    np.testing.assert_allclose(got, [-1e-7, -1e-10], rtol=1e-6)


def test_a_learned_w_is_a_parameter_a_step_and_begins_as_one():
    params = Learned().init(4)
    np.testing.assert_array_equal(Learned().given(params)(ZEROS, ONES, None), np.zeros(4))
    moved = {"log_w": params["log_w"] + jnp.arange(4.0)}
    np.testing.assert_array_equal(Learned().given(moved)(ZEROS, ONES, None), np.arange(4))
    with pytest.raises(UserError, match=r"variance\.learned has a w for the T equal steps of training alone"):
        Learned()(ZEROS, ONES, None)


def test_what_is_not_fitted_is_refused_with_the_way_out():
    with pytest.raises(
        UserError,
        match=r"variance\.fitted was not fitted for these 4 steps.*--mode=fit_variance --num_timesteps=4",
    ):
        make_chain(lambda t: -t, np.linspace(0.0, 1.0, 5), Fitted())
