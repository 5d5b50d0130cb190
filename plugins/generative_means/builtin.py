"""Generative means: the slope d x_phi / d lambda that the reverse process assumes, kappa x_hat."""

import dataclasses

import jax.numpy as jnp

from diffenc.core.gaussian import sigma_squared
from diffenc.interfaces import LogSNR
from diffenc.registry import generative_means


@generative_means.register("counterterm")
@dataclasses.dataclass(frozen=True)
class Counterterm:
    """kappa = sigma^2: the slope of the non-trainable encoder [17]."""

    def __call__(self, log_snr: LogSNR) -> LogSNR:
        return sigma_squared(log_snr)


@generative_means.register("vdm")
@dataclasses.dataclass(frozen=True)
class VDM:
    """kappa = 0: no counterterm [6]."""

    def __call__(self, log_snr: LogSNR) -> LogSNR:
        return jnp.zeros_like(log_snr)
