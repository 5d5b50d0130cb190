"""One seed, several uses: keys that never meet."""

import zlib

import jax

from diffenc.interfaces import Key


def root_key(seed: int, purpose: str) -> Key:
    """The key from which all draws of one purpose come: "init", "train", "evaluate", "sample", ...

    Without the purpose, evaluation would see the very noise that training saw, for split and fold_in of
    one key give the same children.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
