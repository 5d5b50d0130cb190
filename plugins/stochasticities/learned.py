"""A path with noise learned by the bound."""

import dataclasses

import jax.numpy as jnp

from diffenc.interfaces import Key, LogSNR, Params
from diffenc.registry import stochasticities
from diffenc_plugins.sigmoid_knots import check_knots, from_knots
from diffenc_plugins.stochasticities.builtin import softplus_rise


@stochasticities.register("learned")
@dataclasses.dataclass(frozen=True)
class Learned:
    """A learned eta^2, smooth and positive, trained by the bound; 1 where lambda is large, and at first everywhere.

    eta^2 = sum_k e^(a_k) (S_k - S_(k+1)) + S_K with S_0 = 1 and S_k = sigmoid((lambda - knot_k) / width): weights that sum
    to one, of pieces between the knots. Above the last knot eta^2 tends to 1, which is best where x_phi hardly changes;
    below, it may be above or below 1. The integral of eta^2 over a step has a closed form.

    Attributes:
      log_snr_min: the first knot.
      log_snr_max: the last knot, from where on eta^2 tends to 1.
      knots: number of evenly spaced knots, and of parameters. The width of each sigmoid is half their distance.
    """

    log_snr_min: float = -6.0
    log_snr_max: float = 6.0
    knots: int = 7

    def __post_init__(self):
        check_knots("stochasticity.learned", self.log_snr_max, self.log_snr_min, self.knots)

    def init(self, key: Key) -> Params:
        return {"log_eta_2": jnp.zeros(self.knots)}

    def increment(self, params: Params, log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
        low, width = from_knots(log_snr_t, self.log_snr_min, self.log_snr_max, self.knots)
        rise = ((log_snr_s - log_snr_t) / width)[:, None]
        # the integrals of S_0 = 1, S_1, ..., S_K over the step, in units of the width; pieces that lose digits are small ones
        integrals = jnp.concatenate([rise, softplus_rise(low, rise)], axis=1)
        # H = sum_k e^(a_k) int (S_k - S_(k+1)) + int S_K, with int sigmoid(x / w) dx = w softplus(x / w):
        # H > 0 for all parameters, since S_k falls with k.
        pieces = jnp.exp(params["log_eta_2"])[None] * (integrals[:, :-1] - integrals[:, 1:])
        return width * (jnp.sum(pieces, axis=1) + integrals[:, -1])
