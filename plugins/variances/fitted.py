import dataclasses

import jax.numpy as jnp

from diffenc.errors import UserError
from diffenc.interfaces import PerStep
from diffenc.registry import variances


@variances.register("fitted")
@dataclasses.dataclass(frozen=True)
class Fitted:
    """The best sigma_P^2 of each step, sigma_Q^2 + E || mu_P - mu_Q ||^2 / d [70], from --mode=fit_variance."""

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        if excess is None:
            raise UserError(
                f"variance.fitted was not fitted for these {len(log_snr_t)} steps: run the same command with "
                f"--mode=fit_variance --num_timesteps={len(log_snr_t)} first"
            )
        return -jnp.log1p(excess)
