"""What every stochasticity keeps, and each by its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry, testing
from diffenc.core.stochasticity import eta_squared
from diffenc.errors import UserError
from diffenc_plugins.stochasticities import Constant, Learned, Nontrainable
from diffenc_plugins.stochasticities.builtin import softplus_rise

NEEDS = {"fitted": {"log_snr": (-6.0, -1.0, 2.5, 14.0), "eta_2": (0.4, 1.7, 1.1)}}


@pytest.mark.parametrize("name", list(registry.stochasticities))
@pytest.mark.parametrize("check", testing.CHECKS["stochasticity"])
def test_it_keeps_what_a_stochasticity_keeps(name, check):
    check(registry.stochasticities[name](**NEEDS.get(name, {})))


@pytest.mark.parametrize("check", testing.CHECKS["stochasticity"])
def test_a_learned_one_with_knots_that_binary_fractions_miss_keeps_it_too(check):
    check(Learned(knots=6))


@pytest.mark.parametrize("knots", [7, 50])
@pytest.mark.parametrize("end", [-15.0, -5.0, -1.0, 0.0])
def test_a_learned_step_over_all_of_log_snr_is_finite_and_undone_by_the_step_back(knots, end):
    """In float32, for tables of costs hold steps in both directions."""
    plugin = Learned(log_snr_min=-15.0, log_snr_max=13.3, knots=knots)
    params = {"log_eta_2": jnp.asarray(np.random.default_rng(0).normal(size=knots), jnp.float32)}
    low, high = jnp.asarray([end]), jnp.asarray([13.3])
    up, down = plugin.increment(params, low, high), plugin.increment(params, high, low)
    np.testing.assert_allclose(down, -up, rtol=1e-5)
    at_start = plugin.increment(plugin.init(jax.random.key(0)), high, low)
    np.testing.assert_allclose(at_start, low - high, rtol=1e-5)


def test_the_nontrainable_encoders_clock_is_the_log_snr_of_x(x64):
    """log(alpha^6 / sigma^2)."""
    log_snr = np.array([-5.0, -1.0, 0.3, 4.0, 13.3])
    h = 3 * np.log(1 / (1 + np.exp(-log_snr))) - np.log(1 / (1 + np.exp(log_snr)))
    got = Nontrainable().increment({}, jnp.asarray(log_snr[:-1]), jnp.asarray(log_snr[1:]))
    np.testing.assert_allclose(got, np.diff(h), rtol=1e-12)


def test_a_constant_eta_scales_log_snr(x64):
    got = Constant(0.5).increment({}, jnp.asarray([-1.0]), jnp.asarray([3.0]))
    np.testing.assert_allclose(got, [1.0], rtol=1e-14)


@pytest.mark.parametrize("eta", [0.0, -1.0])
def test_a_path_without_noise_is_refused(eta):
    with pytest.raises(UserError, match=rf"^stochasticity\.constant\.eta = {eta}: must be positive$"):
        Constant(eta)


def test_a_learned_path_starts_as_the_markov_process(x64):
    plugin = Learned()
    params = jax.tree.map(lambda leaf: leaf.astype(float), plugin.init(jax.random.key(0)))
    low, high = jnp.asarray([-60.0, -5.0, 1.0, 13.0]), jnp.asarray([-5.0, 13.3, 1.001, 70.0])
    np.testing.assert_allclose(plugin.increment(params, low, high), high - low, rtol=1e-12)


def test_a_learned_path_has_the_pieces_of_its_parameters(x64):
    """Far below the first knot, in the middle of a piece wide against its sigmoids, and far above the last."""
    plugin, params = Learned(-20.0, 20.0, 3), {"log_eta_2": jnp.asarray([1.5, -1.0, 0.5])}
    got = eta_squared(lambda t, s: plugin.increment(params, t, s), jnp.asarray([-400.0, -10.0, 10.0, 400.0]))
    sides = 1 / (1 + np.exp(1))  # the share of both neighbours' sigmoids, half a piece away
    far = 1 / (1 + np.exp(3))
    middle = [
        (1 - sides) - sides,  # of its own piece, between two sigmoids
        sides - far,  # of the next
    ]
    np.testing.assert_allclose(got[0], np.exp(1.5), rtol=1e-9)
    np.testing.assert_allclose(got[3], 1.0, rtol=1e-9)
    own, beyond = middle
    want = sides * np.exp(1.5) + own * np.exp(-1.0) + beyond * np.exp(0.5) + far
    np.testing.assert_allclose(got[1], want, rtol=1e-9)
    want = far * np.exp(1.5) + beyond * np.exp(-1.0) + own * np.exp(0.5) + sides
    np.testing.assert_allclose(got[2], want, rtol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"knots": 1}, r"^stochasticity\.learned\.knots = 1: must be at least 2$"),
        ({"log_snr_min": 7.0}, r"^stochasticity\.learned\.log_snr_max = 6\.0 must be greater"),
    ],
)
def test_knots_that_are_none_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Learned(**fields)


@pytest.mark.parametrize(
    ("low", "high"), [(-90.0, 90.0), (-3.0, -2.999), (40.0, 40.5), (2.0, -1.0), (-50.0, -49.9)]
)
def test_a_rise_of_softplus_neither_overflows_nor_loses_digits(low, high):
    low, rise = np.float32(low), np.float32(high - low)
    single = softplus_rise(jnp.asarray([low]), jnp.asarray([rise]))
    want = [np.logaddexp(0, np.float64(low) + np.float64(rise)) - np.logaddexp(0, np.float64(low))]
    np.testing.assert_allclose(single, want, rtol=3e-7)
