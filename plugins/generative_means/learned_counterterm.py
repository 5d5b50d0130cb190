"""A counterterm of learned size."""

import dataclasses

import jax
import jax.numpy as jnp

from diffenc.core.gaussian import sigma_squared
from diffenc.interfaces import Data, Interval, Key, LogSNR, Params, PerExample, ProportionalMean
from diffenc.registry import generative_means
from diffenc_plugins.sigmoid_knots import check_knots, from_knots


@generative_means.register("learned_counterterm")
@dataclasses.dataclass(frozen=True)
class LearnedCounterterm(ProportionalMean):
    """The slope is sigma^2 m(lambda) x_hat, m learned by the bound: positive, smooth, and 1 at first.

    log m = sum_k a_k B_k(lambda), with bumps B_k = S_k - S_(k+1), S_k = sigmoid((lambda - knot_k) / width), S_0 = 1; above
    the last knot m tends to 1, where the slope vanishes.

    Attributes:
      log_snr_min: the first knot.
      log_snr_max: the last knot.
      knots: number of evenly spaced knots, and of parameters. The width of each sigmoid is half their distance.
    """

    log_snr_min: float = -6.0
    log_snr_max: float = 6.0
    knots: int = 7

    def __post_init__(self):
        name = "generative_mean.learned_counterterm"
        check_knots(name, self.log_snr_max, self.log_snr_min, self.knots)

    def init(self, key: Key, z: Data, log_snr: LogSNR) -> Params:
        return {"log_m": jnp.zeros(self.knots)}

    def kappa(self, params: Params, interval: Interval) -> PerExample:
        distance, _ = from_knots(interval.log_snr, self.log_snr_min, self.log_snr_max, self.knots)
        steps = jax.nn.sigmoid(distance)
        # [b, knots]: S_k - S_(k+1), which sum to 1 - S_K. Below the
        # first knot the first bump is nearly all: m is constant there.
        bumps = jnp.concatenate([jnp.ones_like(steps[:, :1]), steps[:, :-1]], axis=1) - steps
        m = jnp.exp(jnp.sum(bumps * params["log_m"][None], axis=1))  # no matrix product, for its digits
        return interval.stretch * m * sigma_squared(interval.log_snr)
