"""A stack of bits that symbols are pushed to and popped from: asymmetric numeral systems, by the package constriction.

Popping a symbol under a distribution from random bits draws it from that distribution; pushing the symbol again
restores the same bits.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from diffenc.compression.initial_bits import Words, initial_words, whitening_words
from diffenc.errors import UserError

Symbols = Integer[np.ndarray, " n"]

MOST_BITS = 24  # that a symbol can take: constriction's probabilities are multiples of 2^-24
_STATE = 2  # words of the coder's own state, which lie on top of the others
_SPARE = 4  # words that are left when symbols are popped, at least


@functools.cache
def constriction() -> Any:
    """Imports and returns the package constriction.

    Raises:
      UserError: it is not installed.
    """
    try:
        import constriction
    except ImportError as error:
        raise UserError(
            f"compression needs the package constriction ({error}): install it with pip install 'diffenc[compress]'"
        ) from None
    return constriction


class Stack:
    """A stack of bits.

    A stack made from `words` holds these alone. A stack made from `seed` adds initial bits of that seed at its bottom whenever
    it holds too few, and counts the words of them that were needed.
    """

    def __init__(self, words: Words | None = None, seed: int | None = None):
        """Makes the stack of `words`, the last on top; if None, an empty one, with initial bits if `seed` is given."""
        self._ans = constriction().stream.stack
        self._models = constriction().stream.model
        self._coder = self._ans.AnsCoder(None if words is None else np.ascontiguousarray(words))
        self._seed = seed
        self._drawn = self._touched = 0  # initial words, and how many of them were reached

    @property
    def net_bits(self) -> int:
        """Number of bits beyond the initial bits; negative while symbols drawn from initial bits are not pushed back."""
        return int(self._coder.num_valid_bits()) - 32 * self._drawn

    @property
    def num_initial_words(self) -> int:
        """Number of words of initial bits that were needed."""
        return min(self._drawn, self._touched + _STATE)

    def words(self) -> Words:
        """Returns the content, the top last, without initial bits that were never reached."""
        return self._coder.get_compressed()[self._drawn - self.num_initial_words :]

    def pop_normal(self, mean: Float[np.ndarray, " n"], std: float, window: int) -> Symbols:
        """Pops integers within +-`window`, each distributed as a normal variate rounded to the nearest.

        Raises:
          UserError: a mean is not finite.
        """
        model, means, stds = self._normal(mean, std, window)
        self._draw_for(len(means))
        symbols = self._coder.decode(model, means, stds)
        self._note_depth()
        return symbols

    def push_normal(self, symbols: Symbols, mean: Float[np.ndarray, " n"], std: float, window: int) -> None:
        """Pushes `symbols`; `pop_normal` with the same mean, std and window returns them."""
        model, means, stds = self._normal(mean, std, window)
        # In reverse, since the last symbol pushed is the first that is popped.
        self._coder.encode_reverse(np.ascontiguousarray(symbols, np.int32), model, means, stds)

    def pop_categorical(self, probabilities: Float[np.ndarray, "n values"]) -> Symbols:
        """Pops integers below `values`, each distributed as a row of `probabilities`."""
        self._draw_for(len(probabilities))
        symbols = self._coder.decode(self._categorical, _finite(probabilities))
        self._note_depth()
        return symbols

    def push_categorical(self, symbols: Symbols, probabilities: Float[np.ndarray, "n values"]) -> None:
        """Pushes `symbols`; `pop_categorical` with the same probabilities returns them."""
        self._coder.encode_reverse(
            np.ascontiguousarray(symbols, np.int32), self._categorical, _finite(probabilities)
        )

    def pop_uniform(self, count: int, values: int) -> Symbols:
        """Pops `count` integers below `values`, all equally likely."""
        return self.pop_categorical(np.full((count, values), 1 / values))

    def push_uniform(self, symbols: Symbols, values: int) -> None:
        """Pushes `symbols`; `pop_uniform` with the same `values` returns them."""
        self.push_categorical(symbols, np.full((len(symbols), values), 1 / values))

    def whiten(self, number: int, most: int | None = None) -> int:
        """XORs the content with a pseudorandom stream; a second call undoes the first.

        The stack's bits are random only as far as symbols followed the distributions that they were pushed under. Symbols popped
        from other bits would not have the distribution that they are popped under; from whitened bits they have.

        Args:
          number: number of the stream.
          most: number of words to change, from the top but below the coder's state; None = all.

        Returns:
          The number of words that were changed.
        """
        words = self._coder.get_compressed()
        end = max(0, len(words) - _STATE)
        count = end if most is None else min(end, most)
        words[end - count : end] ^= whitening_words(number, count)[::-1]
        self._coder = self._ans.AnsCoder(words)
        return count

    @property
    def _categorical(self) -> Any:
        return self._models.Categorical(perfect=False)

    def _normal(self, mean: Float[np.ndarray, " n"], std: float, window: int) -> tuple[Any, Any, Any]:
        means = _finite(np.ascontiguousarray(mean, np.float64))
        return self._models.QuantizedGaussian(-window, window), means, np.full(len(means), float(std))

    def _draw_for(self, count: int) -> None:
        """Adds initial bits at the bottom if `count` symbols could need more bits than the stack holds."""
        needed = -(-count * MOST_BITS // 32) + _STATE + _SPARE
        have = self._coder.num_words()
        if self._seed is None or have >= needed:
            return
        more = max(needed - have, self._drawn)  # at least doubled, so that few copies are made
        below = initial_words(self._seed, self._drawn + more)[self._drawn :][::-1]
        self._coder = self._ans.AnsCoder(np.concatenate([below, self._coder.get_compressed()]))
        self._drawn += more

    def _note_depth(self) -> None:
        # Words that are still below the coder's state have not been read.
        untouched = max(0, self._coder.num_words() - _STATE)
        self._touched = max(self._touched, self._drawn - untouched)


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise UserError("the model's output is not finite: it has no distribution to code with")
    return array
