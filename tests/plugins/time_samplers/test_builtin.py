import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry, testing
from diffenc.errors import UserError
from diffenc.workdir import loss_curves
from diffenc_plugins.time_samplers import Importance, Uniform


@pytest.mark.parametrize("check", testing.CHECKS["time_sampler"])
@pytest.mark.parametrize("name", list(registry.time_samplers))
def test_it_keeps_what_a_proposal_keeps(name, check):
    check(registry.time_samplers[name]())


@pytest.mark.parametrize("curve", [None, jnp.asarray([1.0, 9.0])])
def test_times_are_u_and_weights_one_whatever_the_curve(curve):
    u = jnp.asarray([0.0, 0.3, 0.99])
    t, weight = Uniform()(u, curve)
    np.testing.assert_array_equal(t, u)
    np.testing.assert_array_equal(weight, 1)


BINS = 20
CENTRES = (np.arange(BINS) + 0.5) / BINS
PEAK = np.exp(-np.square(CENTRES - 0.3) / 0.01) + 0.01


@pytest.mark.parametrize("floor", [0.05, 0.5, 1.0])
def test_times_fall_into_each_bin_as_often_as_the_mixture_says(x64, floor):
    count = 200_000
    t, weight = Importance(floor)(jnp.asarray((np.arange(count) + 0.5) / count), jnp.asarray(PEAK))
    shares = np.histogram(t, np.linspace(0, 1, BINS + 1))[0] / count
    want = floor / BINS + (1 - floor) * PEAK / PEAK.sum()
    np.testing.assert_allclose(shares, want, atol=2 / count)
    place = np.minimum((np.asarray(t) * BINS).astype(int), BINS - 1)
    away = np.abs(np.asarray(t) * BINS - np.round(np.asarray(t) * BINS)) > 1e-9
    np.testing.assert_allclose(np.asarray(weight)[away], (1 / BINS / want)[place][away], rtol=1e-9)


def test_no_weight_exceeds_the_floors_inverse():
    curve = jnp.asarray(np.r_[np.zeros(63), 1.0])
    _, weight = Importance(0.2)(jnp.linspace(0, 0.9999, 1000), curve)
    assert np.max(weight) <= 1 / 0.2 * (1 + 1e-5)


def test_the_variance_falls_as_in_closed_form():
    """A loss of `PEAK` times an exponential variable, constant in each bin: E l^2 = 2 PEAK^2.

    Uniform times: mean of 2 PEAK^2, less the squared mean; importance: mean of 2 PEAK^2 / density, less the same.
    """
    curve = np.sqrt(2) * PEAK
    density = 0.1 + 0.9 * PEAK / PEAK.mean()
    variances = [np.mean(2 * PEAK**2 / q) - PEAK.mean() ** 2 for q in (np.ones(BINS), density)]
    assert variances[1] < variances[0] / 3, "this is what it is for"
    time_key, noise_key = jax.random.split(jax.random.key(0))
    u, noise = jax.random.uniform(time_key, (400_000,)), jax.random.exponential(noise_key, (400_000,))
    t, weight = Importance()(u, jnp.asarray(curve))
    for times, weights, variance in ((u, 1.0, variances[0]), (t, weight, variances[1])):
        place = np.minimum((np.asarray(times) * BINS).astype(int), BINS - 1)
        losses = np.asarray(weights) * PEAK[place] * np.asarray(noise)
        np.testing.assert_allclose(losses.mean(), PEAK.mean(), atol=4 * np.sqrt(variance / losses.size))
        np.testing.assert_allclose(losses.var(), variance, rtol=0.05)


def test_without_a_curve_the_error_says_how_to_get_one(tmp_path):
    with pytest.raises(UserError, match=r"^time_sampler\.importance .*--mode=diagnose first$") as caught:
        loss_curves.bind_curve(Importance(), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.1])
def test_a_floor_out_of_range_is_refused(floor):
    with pytest.raises(
        UserError, match=r"^time_sampler\.importance\.floor = .*: must be above 0 and at most 1$"
    ):
        Importance(floor)


@pytest.mark.parametrize("floor", [float("nan"), float("inf")])
def test_a_floor_that_is_not_finite_is_refused(floor):
    with pytest.raises(
        UserError, match=rf"^time_sampler\.importance\.floor = {floor}: expected a finite float$"
    ):
        Importance(floor)
