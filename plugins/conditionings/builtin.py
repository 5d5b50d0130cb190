"""Conditioning on nothing, or on the class of each image."""

import dataclasses

import numpy as np
from jaxtyping import Int

from diffenc.core.conditioning import Unconditional
from diffenc.errors import UserError
from diffenc.registry import conditionings

Nothing = conditionings.register("none")(Unconditional)


@conditionings.register("by_class")
@dataclasses.dataclass(frozen=True)
class ByClass:
    """The class of each image, for every encoder and network with `classes` > 0.

    Attributes:
      drop: the probability with which training drops an image's class, so that the network also learns p(x), as
        sample.guidance needs.
    """

    drop: float = 0.0

    def __post_init__(self):
        if not 0 <= self.drop < 1:
            raise UserError(f"conditioning.by_class.drop = {self.drop}: must be in [0, 1)")

    @property
    def label(self) -> str:
        return "class"

    def __call__(self, labels: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        # 0 is reserved for "no class": dropping a condition sets it to 0.
        return (labels + 1).astype(np.int32)
