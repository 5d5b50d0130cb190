"""Schedules linear in t, between fixed or learned ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.interfaces import Key, LogSNR, Params, Times
from diffenc.registry import schedules
from diffenc_plugins.schedule_ends import check_ends


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
        # d lambda / dt is constant: in continuous time uniform t is uniform lambda.
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * t


@schedules.register("nontrainable_snr")
@dataclasses.dataclass(frozen=True)
class NontrainableSNR:
    """log(alpha^6 / sigma^2) of a linear log_snr: the control of encoder.nontrainable, for VDM.

    At every t, alpha^2 x diffused by schedule.linear is as informative about x as x diffused by this schedule. With
    stochasticity.nontrainable the two have the same exact diffusion loss (derived in docs/concepts.md).

    Attributes:
      log_snr_max: the linear log_snr at t = 0; nearly the schedule's own.
      log_snr_min: the linear log_snr at t = 1; the schedule's own is three times as low, -15.01 by default.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0

    def __post_init__(self):
        check_ends("schedule.nontrainable_snr", self.log_snr_max, self.log_snr_min)

    def init(self, key: Key) -> Params:
        return {}

    def apply(self, params: Params, t: Times) -> LogSNR:
        log_snr = Linear(self.log_snr_max, self.log_snr_min).apply({}, t)
        # log(alpha^6 / sigma^2) = lambda + 2 log alpha^2, and log alpha^2 = -softplus(-lambda).
        return log_snr - 2 * jax.nn.softplus(-log_snr)


SMALLEST_DROP = 1e-2


@schedules.register("learned_endpoints")
@dataclasses.dataclass(frozen=True)
class LearnedEndpoints:
    """log_snr linear in t between two learned ends: log_snr = start - drop * t.

    drop = softplus(raw) + 0.01 > 0, so that log_snr falls strictly for all parameters (in float32, over a thousand
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
        # float64 on the host: the ends at step 0 are the bound ones to float32's digits.
        drop = max(self.log_snr_max - self.log_snr_min - SMALLEST_DROP, 1e-6)
        raw = drop + np.log(-np.expm1(-drop))  # the inverse of softplus
        return {"start": jnp.asarray(float(self.log_snr_max)), "raw_drop": jnp.asarray(float(raw))}

    def apply(self, params: Params, t: Times) -> LogSNR:
        # The floor is added rather than clipped: a clipped drop would have no gradient, and could never grow again.
        return params["start"] - (jax.nn.softplus(params["raw_drop"]) + SMALLEST_DROP) * t
