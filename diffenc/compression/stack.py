"""A stack of bits that symbols are pushed to and popped from: asymmetric numeral systems, by the package constriction.

Popping a symbol under a distribution from bits that hold nothing yet draws it from that distribution; pushing it again
gives the same bits back.
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
    """Imports the package.

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

    One that begins with `words` holds these alone. One that begins with none draws initial bits of `seed` from below whenever
    it holds too few, and counts those that were needed.
    """

    def __init__(self, words: Words | None = None, seed: int | None = None):
        """The stack of `words`, the last on top; or, of None, one of initial bits alone."""
        self._ans = constriction().stream.stack
        self._models = constriction().stream.model
        self._coder = self._ans.AnsCoder(None if words is None else np.ascontiguousarray(words))
        self._seed = seed
        self._drawn = self._touched = 0  # initial words, and how many of them were reached

    @property
    def net_bits(self) -> int:
        """How many bits it holds beyond its initial bits; negative while symbols drawn from these are out."""
        return int(self._coder.num_valid_bits()) - 32 * self._drawn

    @property
    def num_initial_words(self) -> int:
        """How many words of initial bits were needed."""
        return min(self._drawn, self._touched + _STATE)

    def words(self) -> Words:
        """Returns its content, the top last, without initial bits that were never reached."""
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
        """Pushes what `pop_normal` would pop with the same arguments."""
        model, means, stds = self._normal(mean, std, window)
        self._coder.encode_reverse(np.ascontiguousarray(symbols, np.int32), model, means, stds)

    def pop_categorical(self, probabilities: Float[np.ndarray, "n values"]) -> Symbols:
        """Pops integers below `values`, each distributed as a row of `probabilities`."""
        self._draw_for(len(probabilities))
        symbols = self._coder.decode(self._categorical, _finite(probabilities))
        self._note_depth()
        return symbols

    def push_categorical(self, symbols: Symbols, probabilities: Float[np.ndarray, "n values"]) -> None:
        """Pushes what `pop_categorical` would pop with the same probabilities."""
        self._coder.encode_reverse(
            np.ascontiguousarray(symbols, np.int32), self._categorical, _finite(probabilities)
        )

    def pop_uniform(self, count: int, values: int) -> Symbols:
        """Pops `count` integers below `values`, all equally likely."""
        return self.pop_categorical(np.full((count, values), 1 / values))

    def push_uniform(self, symbols: Symbols, values: int) -> None:
        """Pushes what `pop_uniform` would pop."""
        self.push_categorical(symbols, np.full((len(symbols), values), 1 / values))

    def whiten(self, number: int, most: int | None = None) -> int:
        """Adds a stream of random bits to its content, and when called again takes them away.

        Bits that were pushed are random as far as the distributions that they were pushed under are true. What is popped from
        others does not have the distribution that it is popped under: from bits to which random ones were added it has.

        Args:
          number: of the stream.
          most: so many words from the top, but for the coder's state; None = all.

        Returns:
          How many words were changed.
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
        """Puts initial bits below the others where `count` symbols could need more than there are."""
        needed = -(-count * MOST_BITS // 32) + _STATE + _SPARE
        have = self._coder.num_words()
        if self._seed is None or have >= needed:
            return
        more = max(needed - have, self._drawn)  # at least doubled, so that few copies are made
        below = initial_words(self._seed, self._drawn + more)[self._drawn :][::-1]
        self._coder = self._ans.AnsCoder(np.concatenate([below, self._coder.get_compressed()]))
        self._drawn += more

    def _note_depth(self) -> None:
        untouched = max(0, self._coder.num_words() - _STATE)
        self._touched = max(self._touched, self._drawn - untouched)


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise UserError("the model's output is not finite: it has no distribution to code with")
    return array
