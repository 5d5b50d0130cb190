"""A second network that shifts the value to E[x_phi | z] and keeps the sum of value and slope that the bound determines."""

import dataclasses
from typing import ClassVar

from diffenc.core.gaussian import alpha_sigma, scale
from diffenc.interfaces import (
    Context,
    Data,
    Estimate,
    GenerativeMean,
    Interval,
    Key,
    LogSNR,
    Network,
    Params,
    StepInputs,
)


def value_shift(network: Network, params: Params, z: Data, log_snr: LogSNR, context: Context) -> Data:
    """Returns sigma r, the shift of the value, for a network r of (z, lambda)."""
    # Scaled as x_hat's error under v-prediction (`objective.network_error`): r is of order 1 at every noise.
    return scale(alpha_sigma(log_snr)[1], network.apply(params, z, log_snr, context))


def move_value(estimate: Estimate, shift: Data, interval: Interval) -> Estimate:
    """Returns the estimate with `shift` added to its value, and G `shift` subtracted from its slope, G = `value_weight`.

    G value + slope is unchanged. Errors of estimates shift by the same amounts.
    """
    return Estimate(estimate.value + shift, estimate.slope - scale(interval.value_weight, shift))


@dataclasses.dataclass(frozen=True)
class ValueHead(GenerativeMean):
    """A trained mean with a second network, fitted afterwards so that its value is E[x_phi | z].

    Bound and ancestral steps are those of `mean`; the probability-flow ODE becomes that of the trained SDE.

    Attributes:
      mean: the trained mean.
      network: r; the value is that of `mean` plus sigma r.
    """

    mean: GenerativeMean
    network: Network
    learns_value: ClassVar[bool] = True

    def init(self, key: Key, z: Data, log_snr: LogSNR) -> Params:
        return {"mean": self.mean.init(key, z, log_snr), "head": self.network.init(key, z, log_snr)}

    def apply(self, params: Params, x_hat: Data, step: StepInputs) -> Estimate:
        """Returns the estimates of `mean`, with the value shifted."""
        return move_value(
            self.mean.apply(params["mean"], x_hat, step), self._shift(params, step), step.interval
        )

    def error(self, params: Params, x_hat_error: Data, truth: Estimate, step: StepInputs) -> Estimate:
        """Returns the errors of `mean`, with that of the value shifted."""
        error = self.mean.error(params["mean"], x_hat_error, truth, step)
        return move_value(error, self._shift(params, step), step.interval)

    def _shift(self, params: Params, step: StepInputs) -> Data:
        return value_shift(self.network, params["head"], step.z, step.interval.log_snr, step.context)
