import dataclasses

import jax.numpy as jnp

from diffenc.interfaces import LogSNR
from diffenc.registry import generative_means


@generative_means.register("vdm")
@dataclasses.dataclass(frozen=True)
class VDM:
    """kappa = 0: no counterterm [6]."""

    def __call__(self, log_snr: LogSNR) -> LogSNR:
        return jnp.zeros_like(log_snr)
