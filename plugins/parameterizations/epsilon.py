import dataclasses

import jax.numpy as jnp

from diffenc.interfaces import LogSNR
from diffenc.registry import parameterizations


@parameterizations.register("epsilon")
@dataclasses.dataclass(frozen=True)
class Epsilon:
    """The network estimates the noise eps."""

    def __call__(self, log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
        return jnp.zeros_like(log_snr), jnp.ones_like(log_snr)
