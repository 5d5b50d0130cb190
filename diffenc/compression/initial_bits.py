"""The bits that bits-back coding draws its first latents from: a stream fixed by a seed, which the receiver gets back."""

import hashlib

import numpy as np
from jaxtyping import UInt32

Words = UInt32[np.ndarray, " words"]

_TOP_BIT = np.uint32(1 << 31)


def initial_words(seed: int, count: int) -> Words:
    """Returns the first `count` words of the stream of `seed`, the one that is drawn first in front.

    They are the output of SHAKE-256, so that they are the same on every machine, and a longer stream begins with a shorter one.
    The first has its top bit set: a stack of n words then holds 32 n bits.
    """
    digest = hashlib.shake_256(f"initial bits {seed}".encode()).digest(4 * count)
    words = np.frombuffer(digest, "<u4").astype(np.uint32)
    words[:1] |= _TOP_BIT
    return words
