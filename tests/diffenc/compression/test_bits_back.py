"""Bits-back coding on a chain of Gaussians made up here, against the bound of that chain computed by numpy alone."""

from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from diffenc.compression.bits_back import REACH, make_lattice, pop_images, push_images
from diffenc.compression.initial_bits import initial_words
from diffenc.compression.stack import Stack
from diffenc.errors import UserError

STD_Q = np.array([0.3, 0.4, 0.5, 0.9])  # at stops 0 .. 3
RATIO = np.array([1.0, 1.2, 0.7, 1 / 0.9])  # of the standard deviation of p to that of q
LEVELS = 4


def values(levels):
    return (levels - 1.5) / 2


class Made:
    """A chain of 3 steps whose means are made up: p knows z alone, q knows x."""

    def __init__(self, shape, bins=16, dtype: type = np.float32):
        self.shape, self.dtype = shape, dtype
        self.lattices = tuple(make_lattice(q, q * ratio, bins) for q, ratio in zip(STD_Q, RATIO, strict=True))

    def generative_mean(self, index, z):
        return np.zeros(self.shape, self.dtype) if z is None else self.p_mean(index, z)

    def p_mean(self, index, z):
        return np.asarray(np.tanh(1.5 * z) * (0.4 + 0.1 * index), self.dtype)

    def infer(self, levels):
        return Posterior(self, values(levels))

    def level_probabilities(self, z_0):
        return np.exp(self.log_levels(z_0))

    def log_levels(self, z_0):
        log_p = -0.5 * ((z_0[..., None] - values(np.arange(LEVELS))) / 0.4) ** 2
        return log_p - logsumexp(log_p, axis=-1, keepdims=True)


class Posterior:
    def __init__(self, chain, x):
        self.chain, self.x = chain, x

    def mean(self, index, z):
        if z is None:
            return np.asarray(0.3 * self.x, self.chain.dtype)
        return np.asarray(0.3 * z + (0.7 - 0.15 * index) * self.x, self.chain.dtype)


def bound(levels, rng, draws=5):
    """-ELBO in bits a pixel, by drawing chains of real numbers."""
    chain, found = Made(levels.shape, dtype=np.float64), []
    z: Any
    posterior = chain.infer(levels)
    for _ in range(draws):
        z, nats = None, 0.0
        for index in (3, 2, 1, 0):
            mu_q, mu_p = posterior.mean(index, z), chain.generative_mean(index, z)
            z = mu_q + STD_Q[index] * rng.normal(size=levels.shape)
            std_p = STD_Q[index] * RATIO[index]
            nats += (0.5 * ((z - mu_p) / std_p) ** 2 + np.log(std_p)).mean()
            nats -= (0.5 * ((z - mu_q) / STD_Q[index]) ** 2 + np.log(STD_Q[index])).mean()
        log_p = chain.log_levels(z)
        nats -= np.take_along_axis(log_p, levels[..., None], -1).mean()
        found.append(nats / np.log(2))
    return np.mean(found)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def coded(batches, bins=16, seed=3):
    stack = Stack(seed=seed)
    for levels, count in batches:
        push_images(stack, Made(levels.shape, bins), levels, count)
    return stack


@pytest.mark.parametrize("bins", [4, 16])
def test_the_bits_of_many_images_are_the_bound(rng, bins):
    levels = rng.integers(0, LEVELS, (1000, 10, 10))
    expected = bound(levels, rng)
    stack = coded([(levels, 1000)], bins)
    assert stack.net_bits / levels.size == pytest.approx(expected, rel=0.01)
    assert 1 < expected < 4


def test_every_image_comes_back_and_so_do_the_initial_bits(rng):
    batches = [(rng.integers(0, LEVELS, (5, 3, 4)), count) for count in (5, 5, 2)]
    batches[2][0][2:] = 0
    sent = coded(batches)
    stack = Stack(sent.words())
    for levels, count in reversed(batches):
        np.testing.assert_array_equal(pop_images(stack, Made(levels.shape), count), levels[:count])
    np.testing.assert_array_equal(stack.words(), initial_words(3, sent.num_initial_words)[::-1])


def test_padding_is_not_coded(rng):
    levels = rng.integers(0, LEVELS, (1, 40, 40))
    padded = np.concatenate([levels, np.zeros((7, 40, 40), int)])
    alone, among = coded([(levels, 1)]), coded([(padded, 1)])
    assert alone.net_bits == among.net_bits
    assert alone.num_initial_words == among.num_initial_words


def test_initial_bits_are_those_of_one_batch(rng):
    batch = rng.integers(0, LEVELS, (8, 10, 10)), 8
    one, many = coded([batch]), coded([batch] * 6)
    cells = np.array([lattice.std_q for lattice in Made((1,)).lattices])
    each = np.log2(cells * np.sqrt(2 * np.pi * np.e)).sum()
    assert 32 * one.num_initial_words == pytest.approx(800 * each, rel=0.02, abs=128)
    assert many.num_initial_words == pytest.approx(one.num_initial_words, rel=0.02)


def test_symbols_are_counted_from_the_cell_of_the_mean_of_p():
    lattice = make_lattice(0.3, 0.2, 10)
    assert (lattice.width, lattice.std_q, lattice.std_p) == pytest.approx((0.02, 15, 10))
    assert lattice.window == REACH * 15
    mean_p = np.array([0.031, -5.0])
    np.testing.assert_allclose(lattice.place(mean_p), [2, -250])
    np.testing.assert_allclose(lattice.latent(np.array([3, 0]), mean_p), [0.1, -5.0])
    np.testing.assert_allclose(lattice.offset(np.array([0.05, -5.0]), mean_p), [0.5, 0.0])


def test_too_many_cells_are_refused():
    with pytest.raises(UserError, match=r"compress\.bins = 16"):
        make_lattice(1e-6, 1.0, 16)
