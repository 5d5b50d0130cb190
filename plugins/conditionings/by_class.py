import dataclasses

import numpy as np
from jaxtyping import Int

from diffenc.errors import UserError
from diffenc.registry import conditionings


@conditionings.register("by_class")
@dataclasses.dataclass(frozen=True)
class ByClass:
    """Its class, to every encoder and network with a field `classes` that is not 0.

    Attributes:
      drop: share of the images that training tells nothing of, so that the network also learns p(x); what
        sample.guidance needs.
    """

    drop: float = 0.0

    def __post_init__(self):
        if not 0 <= self.drop < 1:
            raise UserError(f"conditioning.by_class.drop = {self.drop}: must be in [0, 1)")

    @property
    def what(self) -> str:
        return "class"

    def __call__(self, labels: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        return (labels + 1).astype(np.int32)
