import dataclasses

import jax.numpy as jnp

from diffenc.errors import UserError
from diffenc.interfaces import PerStep
from diffenc.registry import variances


@variances.register("fixed")
@dataclasses.dataclass(frozen=True)
class Fixed:
    """sigma_P^2 = sigma_Q^2 / w at every step. Its bound grows like T unless w = 1: to show just that.

    Attributes:
      w: sigma_Q^2 / sigma_P^2.
    """

    w: float = 1.0

    def __post_init__(self):
        if not self.w > 0:
            raise UserError(f"variance.fixed.w = {self.w}: must be positive")

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        return jnp.full_like(log_snr_t, jnp.log(self.w))
