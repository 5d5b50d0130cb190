import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from diffenc.interfaces import EXCESS, PerStep
from diffenc.registry import variances


@variances.register("fitted")
@dataclasses.dataclass(frozen=True)
class Fitted:
    """The best sigma_P^2 of each step, sigma_Q^2 + E || mu_P - mu_Q ||^2 / d [70], from --mode=fit_variance."""

    requires: ClassVar[frozenset[str]] = frozenset({EXCESS})

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        assert excess is not None  # required: see diffenc.core.discretization.require_excess
        return -jnp.log1p(excess)
