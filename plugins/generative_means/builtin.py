"""Generative means with a slope proportional to x_hat."""

import dataclasses

import jax.numpy as jnp

from diffenc.core.gaussian import alpha_squared, sigma_squared
from diffenc.interfaces import Interval, Params, PerExample, ProportionalMean
from diffenc.registry import generative_means


@generative_means.register("vdm")
@dataclasses.dataclass(frozen=True)
class VDM(ProportionalMean):
    """The slope is 0: no counterterm [6]."""

    def kappa(self, params: Params, interval: Interval) -> PerExample:
        return jnp.zeros_like(interval.log_snr)


@generative_means.register("counterterm")
@dataclasses.dataclass(frozen=True)
class Counterterm(ProportionalMean):
    """The slope is sigma^2 x_hat, that of the non-trainable encoder to first order in the step [17]."""

    def kappa(self, params: Params, interval: Interval) -> PerExample:
        # stretch = (lambda_s - lambda_t) / c turns a derivative by lambda into the slope of a step: c kappa
        # x_hat is then [17]'s (lambda_s - lambda_t) sigma_t^2 x_hat.
        return interval.stretch * sigma_squared(interval.log_snr)


@generative_means.register("rescaled")
@dataclasses.dataclass(frozen=True)
class Rescaled(ProportionalMean):
    """The slope of the non-trainable encoder, alpha_s^2 / alpha_t^2 x_hat at lambda_s, exact for steps of any length.

    (alpha_s^2 / alpha_t^2 - 1) / c = sigma_t^2 alpha_s^2 / alpha_t^2, for alpha_s^2 - alpha_t^2 = alpha_s^2 sigma_t^2 c. In
    continuous time it is the counterterm.
    """

    def kappa(self, params: Params, interval: Interval) -> PerExample:
        # A product instead of the difference alpha_s^2 / alpha_t^2 - 1 over c: both vanish as s -> t.
        growth = alpha_squared(interval.log_snr_s) / alpha_squared(interval.log_snr)
        return growth * sigma_squared(interval.log_snr)
