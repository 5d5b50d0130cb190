"""Variances sigma_P^2 of the reverse steps."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from diffenc.core.discretization import EqualVariance
from diffenc.errors import UserError
from diffenc.interfaces import EXCESS, PerStep
from diffenc.registry import variances

Equal = variances.register("equal")(EqualVariance)


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


@variances.register("fitted")
@dataclasses.dataclass(frozen=True)
class Fitted:
    """The best sigma_P^2 of each step, sigma_Q^2 + E || mu_P - mu_Q ||^2 / d [70], from --mode=fit_variance."""

    requires: ClassVar[frozenset[str]] = frozenset({EXCESS})

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        assert excess is not None  # required: see diffenc.core.discretization.require_excess
        return -jnp.log1p(excess)
