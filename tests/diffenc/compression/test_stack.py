"""The stack against code lengths from scipy's normal distribution, and against itself run backwards."""

import sys

import numpy as np
import pytest
from scipy.stats import norm

from diffenc.compression import stack as stack_module
from diffenc.compression.initial_bits import initial_words
from diffenc.compression.stack import Stack
from diffenc.errors import UserError

GOLDEN = [
    2190758636,
    2557658197,
    3838047788,
]  # of hashlib.shake_256(b"initial bits 0"), little-endian, bit 31 of the first set


def bits_of_cells(symbols, mean, std):
    """-log2 of the probability that a normal variate rounds to each symbol."""
    return -np.log2(norm.cdf((symbols + 0.5 - mean) / std) - norm.cdf((symbols - 0.5 - mean) / std))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("std", [1.5, 16.0])
def test_a_pushed_symbol_takes_the_bits_of_its_cell(rng, std):
    mean = rng.uniform(-3, 3, 5000)
    symbols = np.rint(mean + std * rng.normal(size=5000)).astype(np.int32)
    stack = Stack()
    stack.push_normal(symbols, mean, std, 200)
    assert stack.net_bits == pytest.approx(bits_of_cells(symbols, mean, std).sum(), rel=2e-4, abs=64)


def test_popped_symbols_are_drawn_from_the_distribution(rng):
    stack, mean = Stack(seed=1), rng.uniform(-3, 3, 20_000)
    error = stack.pop_normal(mean, 16.0, 128) - mean
    assert abs(error.mean()) < 4 * 16 / np.sqrt(20_000)
    assert error.std() == pytest.approx(16, rel=0.03)
    assert -stack.net_bits == pytest.approx(20_000 * np.log2(16 * np.sqrt(2 * np.pi * np.e)), rel=5e-3)


def test_what_is_popped_and_pushed_again_leaves_the_initial_bits(rng):
    sender, drawn = Stack(seed=7), []
    for _ in range(12):
        mean = rng.normal(size=300)
        drawn.append((mean, sender.pop_normal(mean, 9.0, 90)))
    sender.push_categorical(labels := rng.integers(0, 4, 500), np.tile([[0.1, 0.2, 0.3, 0.4]], (500, 1)))
    sender.push_uniform(labels, 10)
    for mean, symbols in reversed(drawn):
        sender.push_normal(symbols, mean, 9.0, 90)
    count, words = sender.num_initial_words, sender.words()
    lengths = -np.log2(np.array([0.1, 0.2, 0.3, 0.4]))[labels] + np.log2(10)
    assert sender.net_bits == pytest.approx(lengths.sum(), rel=1e-3, abs=64)
    needed = 12 * 300 * np.log2(9 * np.sqrt(2 * np.pi * np.e)) / 32
    assert count == pytest.approx(needed, rel=0.02), "no more than was drawn"
    assert len(words) == pytest.approx(count + lengths.sum() / 32, abs=2)

    receiver = Stack(words)
    for mean, symbols in drawn:
        np.testing.assert_array_equal(receiver.pop_normal(mean, 9.0, 90), symbols)
    np.testing.assert_array_equal(receiver.pop_uniform(500, 10), labels)
    probabilities = np.tile([[0.1, 0.2, 0.3, 0.4]], (500, 1))
    np.testing.assert_array_equal(receiver.pop_categorical(probabilities), labels)
    for mean, symbols in reversed(drawn):
        receiver.push_normal(symbols, mean, 9.0, 90)
    np.testing.assert_array_equal(receiver.words(), initial_words(7, count)[::-1])


def test_whitened_bits_come_back_and_pop_as_random_ones_do():
    sender, dirty = Stack(seed=1), np.full(8000, 7, np.int32)
    sender.push_uniform(dirty, 256)  # words that are all alike
    sender.whiten(4)
    mean = np.zeros(2000)
    symbols = sender.pop_normal(mean, 16.0, 200)
    assert symbols.std() == pytest.approx(16, rel=0.1)
    sender.push_normal(symbols, mean, 16.0, 200)
    words = sender.words()

    receiver = Stack(words)
    np.testing.assert_array_equal(receiver.pop_normal(mean, 16.0, 200), symbols)
    receiver.push_normal(symbols, mean, 16.0, 200)
    receiver.whiten(4)
    np.testing.assert_array_equal(receiver.pop_uniform(8000, 256), dirty)


def test_words_drawn_later_are_not_whitened():
    sender, mean = Stack(seed=1), np.zeros(3000)
    sender.pop_normal(mean[:100], 16.0, 200)
    count = sender.whiten(1)
    symbols = sender.pop_normal(mean, 16.0, 200)
    words, initial = sender.words(), sender.num_initial_words
    assert initial > count + 100

    receiver = Stack(words)
    receiver.push_normal(symbols, mean, 16.0, 200)
    assert receiver.whiten(1, count) == count
    first = Stack(seed=1).pop_normal(mean[:100], 16.0, 200)
    receiver.push_normal(first, mean[:100], 16.0, 200)
    np.testing.assert_array_equal(receiver.words(), initial_words(1, initial)[::-1])


def test_a_mean_far_outside_the_window_is_coded_too():
    stack, mean = Stack(seed=0), np.array([1e4, -1e4, 1e30])
    symbols = stack.pop_normal(mean, 4.0, 32)
    np.testing.assert_array_equal(symbols, [32, -32, 32])
    stack.push_normal(symbols, mean, 4.0, 32)
    assert abs(stack.net_bits) <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(UserError, match="not finite"):
        Stack(seed=0).pop_normal(np.array([0.0, value]), 1.0, 8)
    with pytest.raises(UserError, match="not finite"):
        Stack(seed=0).push_categorical(np.array([0]), np.array([[value, 1.0]]))


def test_initial_words_are_fixed_and_a_longer_stream_begins_with_a_shorter_one():
    np.testing.assert_array_equal(initial_words(5, 100)[:10], initial_words(5, 10))
    assert len(np.unique(initial_words(5, 1000))) == 1000
    assert not np.array_equal(initial_words(5, 10), initial_words(6, 10))
    assert initial_words(0, 3).tolist() == GOLDEN, "files of earlier versions stay readable"


def test_without_the_package_there_is_one_line(monkeypatch):
    stack_module.constriction.cache_clear()
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(UserError, match=r"pip install 'diffenc\[compress\]'"):
        Stack()
