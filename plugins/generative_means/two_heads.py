"""Two heads: the sum that the bound determines, and beside it the value alone, for the probability-flow ODE."""

import dataclasses
from typing import ClassVar

import jax

from diffenc.core.gaussian import scale, sigma_squared, sum_squares
from diffenc.core.value_head import move_value, value_shift
from diffenc.interfaces import (
    Data,
    Estimate,
    GenerativeMean,
    Interval,
    Key,
    LogSNR,
    Network,
    Params,
    PerExample,
    StepInputs,
)
from diffenc.registry import generative_means

VALUE_LOSS = "value_loss"


@generative_means.register("two_heads")
@dataclasses.dataclass(frozen=True)
class TwoHeads(GenerativeMean):
    """A second network learns the value E[x_phi | z]; the slope is the remainder of the first network's sum.

    With G = `value_weight`, the bound and ancestral steps depend on G value + slope alone. The model's network gives that
    sum, as the counterterm's: (G + stretch sigma^2) x_hat. The second, r, gives the value x_hat + sigma r, hence the slope
    stretch sigma^2 x_hat - G sigma r: r cancels from the bound and has no gradient of it. r is trained by plain denoising,
    on the mean square of (value - x_phi) / sigma, the squared error of v, with a stop-gradient on encoder and first network.
    It is a network of its own rather than more outputs of the first, so that it leaves the bound's gradients unchanged.

    Attributes:
      network: r as a function of (z, lambda).
    """

    network: Network
    learns_value: ClassVar[bool] = True
    auxiliary: ClassVar[tuple[str, ...]] = (VALUE_LOSS,)

    def init(self, key: Key, z: Data, log_snr: LogSNR) -> Params:
        return self.network.init(key, z, log_snr)

    def apply(self, params: Params, x_hat: Data, step: StepInputs) -> Estimate:
        """Returns (x_hat + sigma r, stretch sigma^2 x_hat - G sigma r)."""
        shift = value_shift(self.network, params, step.z, step.interval.log_snr, step.context)
        return move_value(Estimate(x_hat, scale(_kappa(step.interval), x_hat)), shift, step.interval)

    def error(self, params: Params, x_hat_error: Data, truth: Estimate, step: StepInputs) -> Estimate:
        """Returns the errors; r is a function of its own parameters alone, encoder and schedule stopped."""
        interval = step.interval
        # Stopped at its inputs: gradients of the value's loss would
        # otherwise reach the encoder and the schedule through z and lambda.
        shift = value_shift(
            self.network, params, *jax.lax.stop_gradient((step.z, interval.log_snr)), step.context
        )
        kappa = _kappa(interval)
        # The error of the counterterm's slope, kappa (x_phi + e) - slope, with
        # e kept apart from x_phi: as in `AffineMean`, nothing large cancels.
        of_one_head = scale(kappa, x_hat_error) + (scale(kappa, truth.value) - truth.slope)
        return move_value(Estimate(x_hat_error, of_one_head), shift, interval)

    def auxiliary_losses(self, error: Estimate, x_hat_error: Data, log_snr: LogSNR) -> dict[str, PerExample]:
        """Returns the mean square of (value - x_phi) / sigma, a function of the second network alone."""
        # Recovered from the error rather than computed again: the second network runs once.
        shift = error.value - x_hat_error  # sigma r
        # value - x_phi = x_hat_error + sigma r, as a function of r alone.
        stopped = jax.lax.stop_gradient(x_hat_error) + shift
        # Stopped, for a learned schedule could otherwise lower this loss by raising sigma.
        sigma_2 = jax.lax.stop_gradient(sigma_squared(log_snr))
        return {VALUE_LOSS: sum_squares(stopped) / (sigma_2 * x_hat_error[0].size)}


def _kappa(interval: Interval) -> PerExample:
    return interval.stretch * sigma_squared(interval.log_snr)
