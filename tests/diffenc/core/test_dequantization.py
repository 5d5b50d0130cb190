"""Dequantisation against scipy's truncated normal, and its bound against probabilities by quadrature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffenc.core.dequantization import DEQUANTISATIONS, ENTROPY_LOST
from diffenc.sampling.sampler import decode

each = pytest.mark.parametrize("name", DEQUANTISATIONS)
CASES = [(13.3, 256), (9.0, 16), (2.0, 8), (-3.0, 2), (25.0, 256)]


def ends(log_snr):
    """(alpha, sigma) of a float."""
    return 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))


def drawn(name, log_snr, num_levels, x, seed=0):
    """z_0 and log q of the array `x`, float64 numpy."""
    log_snrs = jnp.full(len(x), log_snr)
    z, log_q = DEQUANTISATIONS[name](jax.random.key(seed), jnp.asarray(x), log_snrs, num_levels)
    assert z.dtype == log_q.dtype == jnp.zeros(()).dtype
    return np.asarray(z, np.float64), np.asarray(log_q, np.float64)


def reference(name, log_snr, num_levels, x) -> Any:
    """The distribution of z_0, by scipy."""
    alpha, sigma = ends(log_snr)
    if name == "uniform":
        return stats.uniform(alpha * (x - 1 / num_levels), 2 * alpha / num_levels)
    reach = alpha / num_levels / sigma
    return stats.truncnorm(-reach, reach, loc=alpha * x, scale=sigma)


def level_of(num_levels, index):
    return 2 * (index + 0.5) / num_levels - 1


@each
@pytest.mark.parametrize(("log_snr", "num_levels"), CASES)
def test_draws_and_their_density_are_scipys(x64, name, log_snr, num_levels):
    x = level_of(num_levels, num_levels // 2)
    z, log_q = drawn(name, log_snr, num_levels, np.full((20_000, 1), x))
    want = reference(name, log_snr, num_levels, x)
    np.testing.assert_allclose(log_q, want.logpdf(z[:, 0]), rtol=1e-7, atol=1e-7)
    assert stats.kstest(z[:, 0], want.cdf).pvalue > 1e-3
    assert abs(z.mean() - want.mean()) < 4 * want.std() / np.sqrt(len(z))


@each
@pytest.mark.parametrize(("log_snr", "num_levels"), CASES)
def test_the_entropy_lost_is_scipys(x64, name, log_snr, num_levels):
    want = stats.norm(scale=ends(log_snr)[1]).entropy() - reference(name, log_snr, num_levels, 0.0).entropy()
    (got,) = ENTROPY_LOST[name](jnp.asarray([log_snr]), num_levels)
    assert float(got) == pytest.approx(want, rel=1e-6, abs=1e-9)


@each
@pytest.mark.parametrize(("log_snr", "num_levels"), CASES)
def test_the_density_integrates_to_one(x64, name, log_snr, num_levels):
    z, log_q = drawn(name, log_snr, num_levels, np.full((20_000, 1), level_of(num_levels, 0)))
    order = np.argsort(z[:, 0])
    assert np.trapezoid(np.exp(log_q[order]), z[order, 0]) == pytest.approx(1, abs=2e-3)


@each
@pytest.mark.parametrize(("log_snr", "num_levels"), CASES)
def test_float32_stays_finite_and_within_the_cell(name, log_snr, num_levels):
    index = np.random.default_rng(0).integers(0, num_levels, (500, 20, 20, 1))
    x = level_of(num_levels, index).astype(np.float32)
    z, log_q = drawn(name, log_snr, num_levels, x)
    alpha, sigma = ends(log_snr)
    assert np.isfinite(log_q).all()
    offset = np.abs(z - alpha * x)
    assert offset.max() <= alpha / num_levels + 3e-7, "a rounding or two beyond the edge"
    if name == "truncated_normal":  # 200,000 draws: none further out than float32 can know
        assert offset.max() <= 6 * sigma + 3e-7
    decoded = np.asarray(decode(jnp.asarray(z, jnp.float32), jnp.full(500, log_snr), num_levels))
    assert (decoded != index).mean() < 1e-3, "but for the rounding"


@each
def test_the_rarest_draw_is_finite_too(monkeypatch, name):
    """One float32 in 2^23 is the lowest that a uniform draw can be; a data set has more pixels."""
    monkeypatch.setattr(
        jax.random, "uniform", lambda key, shape, dtype, low, high: jnp.full(shape, low, dtype)
    )
    for log_snr in (13.3, 25.0):
        z, log_q = drawn(name, log_snr, 256, np.zeros((2, 1), np.float32))
        assert np.isfinite(log_q).all()
        assert np.abs(z).max() <= ends(log_snr)[0] / 256 * (1 + 1e-6)


@each
def test_float32_has_the_density_of_float64(name):
    """Summed over the dimensions: 192 of them, at the data end of a CIFAR-10 run."""
    x = level_of(256, np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3))).astype(np.float32)
    z, log_q = drawn(name, 13.3, 256, x)
    want = reference(name, 13.3, 256, x.astype(np.float64))
    inside = np.clip(z, want.ppf(1e-9), want.ppf(1 - 1e-9))
    np.testing.assert_allclose(log_q, want.logpdf(inside).sum(axis=(1, 2, 3)), rtol=1e-4)


@each
def test_every_pixel_of_every_image_draws_for_itself(name):
    z, _ = drawn(name, 9.0, 16, np.zeros((50, 4, 4, 1), np.float32))
    assert len(np.unique(z)) > 0.99 * z.size
    other, _ = drawn(name, 9.0, 16, np.zeros((50, 4, 4, 1), np.float32), seed=1)
    assert not np.any(other == z)


def probabilities(data, log_snr, num_levels):
    """log P of every level: p_0 over its cell, by Gauss and Legendre in 20 parts."""
    alpha, _ = ends(log_snr)
    node, weight = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(-1, 1, 20 * num_levels + 1)
    half = np.diff(edges)[0] / 2
    points = (edges[:-1] + half)[:, None] + half * node
    log_p = jax.jit(data.log_density)(
        jnp.asarray(alpha * points.reshape(-1, 1)), jnp.full(points.size, log_snr)
    )
    mass = np.exp(np.asarray(log_p)).reshape(points.shape) @ weight * half * alpha
    return np.log(mass.reshape(num_levels, 20).sum(axis=1))


def weights(name, data, log_snr, num_levels, count=4000):
    """log p_0(z_0) - log q(z_0 | x) of draws for every level, [levels, count]."""
    x = np.repeat(level_of(num_levels, np.arange(num_levels)), count)[:, None]
    z, log_q = drawn(name, log_snr, num_levels, x)
    log_p = np.asarray(jax.jit(data.log_density)(jnp.asarray(z), jnp.full(len(z), log_snr)))
    return (log_p - log_q).reshape(num_levels, count)


@each
def test_the_bound_lies_just_below_the_probability_of_each_level(x64, mixture, name):
    """A smooth density in 64 narrow cells, on which either q is nearly flat, as p_0 is."""
    data, log_snr, num_levels = mixture(), 7.0, 64
    log_p = probabilities(data, log_snr, num_levels)
    assert 0.95 < np.exp(log_p).sum() <= 1, "some of the mixture lies beyond"
    log_w = weights(name, data, log_snr, num_levels)
    error = 4 * log_w.std(axis=1) / np.sqrt(log_w.shape[1])
    assert np.all(log_w.mean(axis=1) <= log_p + error)
    gap = log_p - log_w.mean(axis=1)
    assert np.exp(log_p) @ gap < 0.02
    ratio = np.exp(log_w - log_p[:, None])  # importance weights: on average p_0's mass in the cell
    assert np.all(np.abs(ratio.mean(axis=1) - 1) <= 4 * ratio.std(axis=1) / np.sqrt(ratio.shape[1]) + 1e-9)


def test_of_data_that_is_discrete_the_truncated_normal_loses_nothing(x64, mixture):
    """p_0 is the levels' own noise, then, which is that q: the bound is tight at every draw."""
    values = tuple((float(level_of(8, index)),) for index in range(8))
    shares = (0.05, 0.2, 0.1, 0.15, 0.25, 0.05, 0.1, 0.1)
    data = mixture(weights=shares, means=values, variances=(0.0,) * 8)
    log_p = probabilities(data, 8.0, 8)
    np.testing.assert_allclose(log_p, np.log(shares), atol=1e-6)
    tight = weights("truncated_normal", data, 8.0, 8)
    np.testing.assert_allclose(tight, np.broadcast_to(log_p[:, None], tight.shape), atol=1e-5)
    assert np.all(weights("uniform", data, 8.0, 8).mean(axis=1) < log_p - 1)
