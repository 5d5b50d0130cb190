"""The reverse process's estimates of x_phi and its slope: a generative mean with all inputs bound except the step."""

import dataclasses
from collections.abc import Callable
from typing import Any

from diffenc.core.interval import EncodeAt
from diffenc.interfaces import (
    NO_CONTEXT,
    Context,
    Data,
    Estimate,
    GenerativeMean,
    Interval,
    LogSNR,
    StepInputs,
)

XHat = Callable[[Data, LogSNR], Data]  # (z, lambda) -> x_hat
Estimator = Callable[[Data, Interval], Estimate]  # (z, step) -> the estimates that the step takes


def no_encoder(x: Data) -> EncodeAt:
    """Stands in for the encoder where there is none; raises ValueError."""
    raise ValueError("this generative mean runs the encoder, and it was given none")


@dataclasses.dataclass(frozen=True)
class BoundMean:
    """A generative mean under parameters.

    Attributes:
      params: the mean's own.
      prepare: x -> x_phi as a function of lambda, by the model's encoder; only means that need the encoder call it.
      context: of the mean's own networks.
    """

    mean: GenerativeMean
    params: Any = dataclasses.field(default_factory=dict)
    prepare: Callable[[Data], EncodeAt] = no_encoder
    context: Context = NO_CONTEXT

    def estimate(self, x_hat: Data, z: Data, interval: Interval) -> Estimate:
        """Returns the estimates of x_phi and its slope over a step, from the network's `x_hat` at `z`."""
        return self.mean.apply(self.params, x_hat, self._inputs(z, interval))

    def error(self, x_hat_error: Data, truth: Estimate, z: Data, interval: Interval) -> Estimate:
        """Returns the errors of the estimates at x_hat = x_phi + `x_hat_error`; `truth` is the encoder's value and slope."""
        return self.mean.error(self.params, x_hat_error, truth, self._inputs(z, interval))

    def estimator(self, x_hat: XHat) -> Estimator:
        """Returns the estimates as a function of (z, step), for a network with the estimate `x_hat`."""
        return lambda z, interval: self.estimate(x_hat(z, interval.log_snr), z, interval)

    def _inputs(self, z: Data, interval: Interval) -> StepInputs:
        # A lambda, so that the encoder runs only if the mean calls it: most need x_hat alone.
        return StepInputs(z, interval, lambda x: interval.follow(self.prepare(x)), self.context)
