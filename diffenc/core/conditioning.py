"""What a model is told of an image beside its noisy self: nothing, or its class.

A condition is an integer an image: 0 tells nothing, k + 1 tells class k. Encoders and networks that take it have a
field `classes`, their number; with 0, or without the field, they do not look at it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from diffenc.fields.values import objects_in
from diffenc.interfaces import Condition, Key
from diffenc.registry import selector_of


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """Nothing: the model is one of p(x)."""

    @property
    def what(self) -> None:
        return None

    @property
    def drop(self) -> float:
        return 0.0

    def __call__(self, labels: Int[np.ndarray, " b"]) -> None:
        return None


UNCONDITIONAL = Unconditional()


def drop_condition(condition: Condition | None, share: float, key: Key) -> Condition | None:
    """`condition` for training: a `share` of the images are told nothing."""

    def drop(each: Condition) -> Condition:
        return jnp.where(jax.random.bernoulli(key, share, each.shape), 0, each)

    return jax.tree.map(drop, condition)


def conditioned_modules(part: Any) -> list[tuple[str, int]]:
    """`SELECTOR.classes` of all in an encoder or a network that takes a condition, and how many classes it takes."""
    counts = [
        (f"{selector_of(type(each))}.classes", getattr(each, "classes", 0)) for each in objects_in(part)
    ]
    return [(field, count) for field, count in counts if count]
