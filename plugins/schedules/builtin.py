"""Schedules linear in t, between fixed or learned ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import Key, LogSNR, Params, Times
from diffenc.registry import schedules
from diffenc_plugins.ends import check_ends


@schedules.register("linear")
@dataclasses.dataclass(frozen=True)
class Linear:
    """log_snr linear in t, from log_snr_max at t = 0 to log_snr_min at t = 1."""

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0

    def __post_init__(self):
        check_ends("schedule.linear", self.log_snr_max, self.log_snr_min)

    def init(self, key: Key) -> Params:
        return {}

    def apply(self, params: Params, t: Times) -> LogSNR:
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * t


SMALLEST_DROP = 1e-2


@schedules.register("learned_endpoints")
@dataclasses.dataclass(frozen=True)
class LearnedEndpoints:
    """log_snr linear in t between two learned ends: log_snr = start - drop * t.

    drop = softplus(raw) + 0.01 > 0, so that it falls strictly whatever the parameters (in float32, over a thousand
    steps, while |start| <= 64). Ends closer than 0.01 start 0.01 apart.

    Attributes:
      log_snr_max: the first value at t = 0.
      log_snr_min: the first value at t = 1.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0

    def __post_init__(self):
        check_ends("schedule.learned_endpoints", self.log_snr_max, self.log_snr_min)

    def init(self, key: Key) -> Params:
        drop = max(self.log_snr_max - self.log_snr_min - SMALLEST_DROP, 1e-6)
        raw = drop + np.log(-np.expm1(-drop))  # the inverse of softplus
        return {"start": jnp.asarray(float(self.log_snr_max)), "raw_drop": jnp.asarray(float(raw))}

    def apply(self, params: Params, t: Times) -> LogSNR:
        return params["start"] - (jax.nn.softplus(params["raw_drop"]) + SMALLEST_DROP) * t
