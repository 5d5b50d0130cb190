"""Conditioning: an optional class label per image.

A condition is an integer per image: 0 = no class, k + 1 = class k. Encoders and networks that read it derive from
`diffenc.interfaces.ClassConditional` and declare `classes`, the number of classes; with 0 they ignore the condition.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from diffenc.fields.values import nested_objects
from diffenc.interfaces import ClassConditional, Condition, Key
from diffenc.registry import selector_of


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """No condition: the model is one of p(x)."""

    @property
    def label(self) -> None:
        return None

    @property
    def drop(self) -> float:
        return 0.0

    def __call__(self, labels: Int[np.ndarray, " b"]) -> None:
        return None


UNCONDITIONAL = Unconditional()


def drop_condition(condition: Condition | None, share: float, key: Key) -> Condition | None:
    """Returns `condition` with each image's dropped (set to 0) with probability `share`, for training."""

    def drop(each: Condition) -> Condition:
        return jnp.where(jax.random.bernoulli(key, share, each.shape), 0, each)

    # None is an empty pytree: an unconditional model draws nothing.
    return jax.tree.map(drop, condition)


def conditioned_modules(part: Any) -> list[tuple[str, int]]:
    """Returns `SELECTOR.classes` and its value for all plugins within an encoder or a network that read the condition."""
    # Nested: an encoder may hold a network, and a generative mean one of its own.
    declared = [each for each in nested_objects(part) if isinstance(each, ClassConditional)]
    return [(f"{selector_of(type(each))}.classes", each.classes) for each in declared if each.classes]
