"""Parameterizations: the network estimates p x_phi + q eps."""

import dataclasses

import jax.numpy as jnp

from diffenc.core.gaussian import alpha_sigma
from diffenc.interfaces import LogSNR
from diffenc.registry import parameterizations


@parameterizations.register("epsilon")
@dataclasses.dataclass(frozen=True)
class Epsilon:
    """The network estimates the noise eps."""

    def __call__(self, log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
        return jnp.zeros_like(log_snr), jnp.ones_like(log_snr)


@parameterizations.register("v")
@dataclasses.dataclass(frozen=True)
class V:
    """The network estimates v = alpha eps - sigma x_phi [19, 20]."""

    def __call__(self, log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
        alpha, sigma = alpha_sigma(log_snr)
        # v is bounded in variance at both ends: it is eps where alpha = 1 and -x_phi where sigma = 1, so that
        # its error enters x_hat with the factor sigma [19, 20].
        return -sigma, alpha


@parameterizations.register("x")
@dataclasses.dataclass(frozen=True)
class X:
    """The network estimates the encoded data x_phi. Poor in float32 at large log_snr: prefer v."""

    def __call__(self, log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
        return jnp.ones_like(log_snr), jnp.zeros_like(log_snr)
