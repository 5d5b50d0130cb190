"""Variances sigma_P^2 of the reverse steps."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from diffenc.core.discretization import EqualVariance
from diffenc.errors import UserError
from diffenc.interfaces import EXCESS, Params, PerStep
from diffenc.registry import variances

Equal = variances.register("equal")(EqualVariance)


@variances.register("fixed")
@dataclasses.dataclass(frozen=True)
class Fixed:
    """sigma_P^2 = sigma_Q^2 / w at every step. Its bound grows like T unless w = 1, which it serves to demonstrate.

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
        # w = sigma_Q^2 / sigma_P^2 = 1 / (1 + excess): the excess
        # is in units of sigma_Q^2 and small for short steps.
        return -jnp.log1p(excess)


@dataclasses.dataclass(frozen=True)
class _Given:
    """log w of given steps."""

    log_w: PerStep

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        assert len(log_snr_t) == len(self.log_w)  # Experiment has seen to it
        return self.log_w


@variances.register("learned")
@dataclasses.dataclass(frozen=True)
class Learned:
    """log w of each of the T steps of training, as parameters trained by the bound; w = 1 at first.

    For a given model, the bound is lowest at the w of variance.fitted. This variance is for Experiment.variance.
    """

    def init(self, num_steps: int) -> Params:
        return {"log_w": jnp.zeros(num_steps)}

    def given(self, params: Params) -> _Given:
        return _Given(params["log_w"])

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        raise UserError(
            "variance.learned has a w for the T equal steps of training alone: bind another evaluate.variance"
        )
