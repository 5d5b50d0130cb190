"""The decoder of DDPM against scipy's normal distribution."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from diffenc.evaluation.level_decoder import log_normal_mass, losses_by_std, normal_level_loss

NUM_LEVELS, HALF_CELL = 17, 1 / 16
VALUES = np.linspace(-1, 1, NUM_LEVELS)


def loss(mean: float, std: float) -> np.ndarray:
    """Of each level; nats."""
    levels = jnp.arange(NUM_LEVELS).reshape(-1, 1)
    residual = jnp.asarray(VALUES - mean).reshape(-1, 1)
    return np.asarray(normal_level_loss(residual, levels, HALF_CELL, jnp.asarray(std), NUM_LEVELS))


@pytest.mark.parametrize("std", [1e-3, 0.05, 0.4, 3.0])
@pytest.mark.parametrize("mean", [-1.7, -0.3, 0.0, 0.99])
def test_levels_sum_to_one(mean, std):
    assert logsumexp(-loss(mean, std).astype(np.float64)) == pytest.approx(0, abs=2e-5)


@pytest.mark.parametrize("std", [0.05, 0.4, 3.0])
def test_each_level_has_its_cell(std):
    mean = 0.21
    edges = np.concatenate([[-np.inf], (VALUES[1:] + VALUES[:-1]) / 2, [np.inf]])
    upper, lower = norm.cdf(edges[1:], mean, std), norm.cdf(edges[:-1], mean, std)
    tail = norm.sf(edges[:-1], mean, std) - norm.sf(edges[1:], mean, std)
    expected = np.where(edges[:-1] > mean, tail, upper - lower)
    seen = expected > 1e-12
    np.testing.assert_allclose(loss(mean, std)[seen], -np.log(expected[seen]), rtol=2e-4, atol=1e-5)


def test_far_tails_keep_their_digits():
    """log(Phi(-39) - Phi(-40)) is that of Phi(-39) but for e^-39.5."""
    given = jnp.array([-40.0, 39.0]), jnp.array([-39.0, 40.0])
    np.testing.assert_allclose(log_normal_mass(*given), norm.logcdf(-39.0), rtol=1e-6)


def test_losses_of_several_widths():
    levels = jnp.arange(NUM_LEVELS).reshape(-1, 1)
    residual = jnp.asarray(VALUES - 0.1).reshape(-1, 1)
    by_std = losses_by_std(residual, levels, HALF_CELL, jnp.array([0.1, 0.5]), NUM_LEVELS)
    np.testing.assert_allclose(by_std, [loss(0.1, 0.1), loss(0.1, 0.5)], rtol=1e-5)
