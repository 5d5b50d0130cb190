import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffenc.core import gaussian

LOG_SNR = np.linspace(-15, 15, 121)


def alpha_sigma_squared(log_snr):
    """(alpha^2, sigma^2) in float64, from alpha^2 + sigma^2 = 1 and alpha^2 / sigma^2 = e^lambda."""
    odds = np.exp(np.asarray(log_snr, np.float64))
    return odds / (1 + odds), 1 / (1 + odds)


def test_alpha_and_sigma_have_the_given_log_snr_and_preserve_variance(x64):
    alpha, sigma = map(np.asarray, gaussian.alpha_sigma(jnp.asarray(LOG_SNR)))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), LOG_SNR, atol=1e-13)


def test_alpha_and_sigma_keep_their_digits_in_float32():
    alpha, sigma = gaussian.alpha_sigma(jnp.asarray(LOG_SNR, jnp.float32))
    assert alpha.dtype == sigma.dtype == jnp.float32
    want_alpha, want_sigma = np.sqrt(alpha_sigma_squared(LOG_SNR.astype(np.float32)))
    np.testing.assert_allclose(alpha, want_alpha, rtol=1e-6)
    np.testing.assert_allclose(sigma, want_sigma, rtol=1e-6)


@pytest.mark.parametrize("log_snr", [13.3, -5.0, 0.0, -13.3])
@pytest.mark.parametrize("differentiate", [jax.jacfwd, jax.jacrev])
def test_derivatives_keep_their_digits_in_float32(differentiate, log_snr):
    at = jnp.asarray([log_snr], jnp.float32)
    alpha_2, sigma_2 = alpha_sigma_squared(np.float32(log_snr))
    rise = float(differentiate(gaussian.alpha_squared)(at)[0, 0])
    fall = float(differentiate(gaussian.sigma_squared)(at)[0, 0])
    np.testing.assert_allclose([rise, fall], [alpha_2 * sigma_2, -alpha_2 * sigma_2], rtol=2e-6)


def test_the_second_derivative_of_alpha_squared(x64):
    at, h = jnp.asarray([-3.0, 0.2, 13.3]), 1e-4
    second = jax.grad(lambda v: jnp.sum(jax.grad(lambda w: jnp.sum(gaussian.alpha_squared(w)))(v)))(at)
    rise = [np.prod(alpha_sigma_squared(at + d), axis=0) for d in (h, -h)]
    np.testing.assert_allclose(second, (rise[0] - rise[1]) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 4, 2)])
def test_scale_multiplies_each_example_by_its_own_number(shape):
    x, coefficient = (
        np.random.default_rng(0).normal(size=shape).astype(np.float32),
        np.array([2, -1, 0.5], np.float32),
    )
    got = gaussian.scale(jnp.asarray(coefficient), jnp.asarray(x))
    np.testing.assert_array_equal(got, np.stack([c * row for c, row in zip(coefficient, x, strict=True)]))


def test_diffuse_is_alpha_x_plus_sigma_eps(x64):
    rng = np.random.default_rng(1)
    x, eps, log_snr = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), np.array([-4.0, 0.3, 9.0])
    alpha_2, sigma_2 = alpha_sigma_squared(log_snr)
    want = np.sqrt(alpha_2)[:, None] * x + np.sqrt(sigma_2)[:, None] * eps
    got = gaussian.diffuse(jnp.asarray(x), jnp.asarray(eps), jnp.asarray(log_snr))
    np.testing.assert_allclose(got, want, rtol=1e-13)


@given(t=st.floats(-12, 12), rise=st.floats(1e-2, 10))
@settings(deadline=None, max_examples=50)
def test_step_fraction_is_the_share_of_noise_added_since_s(t, rise):
    """sigma_{t|s}^2 / sigma_t^2, with sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma_squared(t), alpha_sigma_squared(t + rise)
    with jax.enable_x64(True):
        got = gaussian.step_fraction(jnp.asarray([t]), jnp.asarray([t + rise]))
    np.testing.assert_allclose(got, [1 - alpha_t / alpha_s * sigma_s / sigma_t], rtol=1e-10, atol=1e-13)


def test_step_fraction_keeps_its_digits_in_float32_for_a_tiny_step():
    rise = 2.0**-18
    got = gaussian.step_fraction(jnp.asarray([1.0], jnp.float32), jnp.asarray([1.0 + rise], jnp.float32))
    np.testing.assert_allclose(got, [1 - np.exp(-np.float64(rise))], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 4, 3)])
def test_sums_leave_the_batch_axis(shape):
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    flat = x.reshape(2, -1).astype(np.float64)
    np.testing.assert_allclose(gaussian.sum_data(jnp.asarray(x)), flat.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(gaussian.sum_squares(jnp.asarray(x)), (flat**2).sum(axis=1), rtol=1e-5)
