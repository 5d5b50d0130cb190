"""Pseudorandom bits that sender and receiver share: initial bits for the first latents, and bits that whiten the stack later."""

import hashlib

import numpy as np
from jaxtyping import UInt32

Words = UInt32[np.ndarray, " words"]

_TOP_BIT = np.uint32(1 << 31)


def initial_words(seed: int, count: int) -> Words:
    """Returns the first `count` words of the stream of `seed`, in the order in which they are drawn.

    They are the output of SHAKE-256: the same on every machine, and a longer stream begins with a shorter one.
    The first has its top bit set: a stack of n words then holds 32 n bits.
    """
    words = _stream(f"initial bits {seed}", count)
    words[:1] |= _TOP_BIT
    return words


def whitening_words(number: int, count: int) -> Words:
    """Returns the first `count` words of whitening stream `number`."""
    return _stream(f"whitening {number}", count)


def _stream(name: str, count: int) -> Words:
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * count), "<u4").astype(np.uint32)
