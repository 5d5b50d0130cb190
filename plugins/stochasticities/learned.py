"""A path whose noise is learned by the bound."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import Key, LogSNR, Params
from diffenc.registry import stochasticities
from diffenc_plugins.ends import check_ends
from diffenc_plugins.stochasticities.builtin import softplus_rise

PerKnot = Float[Array, "b knots"]


@stochasticities.register("learned")
@dataclasses.dataclass(frozen=True)
class Learned:
    """A learned eta^2, smooth and positive, trained by the bound; 1 where lambda is large, and at first everywhere.

    eta^2 = sum_k e^(a_k) (S_k - S_(k+1)) + S_K with S_0 = 1 and S_k = sigmoid((lambda - knot_k) / width): weights that sum
    to one, of pieces between the knots. Above the last knot eta^2 tends to 1, which is best where x_phi hardly changes;
    below it may be above or below 1. Its integral over a step is in closed form.

    Attributes:
      log_snr_min: the first knot.
      log_snr_max: the last knot, from where on eta^2 tends to 1.
      knots: how many, spread evenly; as many parameters. The width of each sigmoid is half their distance.
    """

    log_snr_min: float = -6.0
    log_snr_max: float = 6.0
    knots: int = 7

    def __post_init__(self):
        check_ends("stochasticity.learned", self.log_snr_max, self.log_snr_min)
        if self.knots < 2:
            raise UserError(f"stochasticity.learned.knots = {self.knots}: must be at least 2")

    def init(self, key: Key) -> Params:
        return {"log_eta_2": jnp.zeros(self.knots)}

    def increment(self, params: Params, log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
        knots = np.linspace(self.log_snr_min, self.log_snr_max, self.knots)
        width = 0.5 * float(knots[1] - knots[0])
        low, high = (self._scaled(log_snr, knots, width) for log_snr in (log_snr_t, log_snr_s))
        pieces = jnp.exp(params["log_eta_2"])[None] * _pieces(low, ((log_snr_s - log_snr_t) / width)[:, None])
        return width * (jnp.sum(pieces, axis=1) + softplus_rise(low[:, -1], high[:, -1]))

    def _scaled(self, log_snr: LogSNR, knots: np.ndarray, width: float) -> PerKnot:
        return (log_snr[:, None] - jnp.asarray(knots, log_snr.dtype)[None]) / width


def _pieces(low: PerKnot, rise: Float[Array, "b 1"]) -> PerKnot:
    """Integrals of S_k - S_(k+1) over a step, k = 0 .. K - 1, in units of the width. S_0 = 1.

    The integral of S is log(1 - S + S e^rise), so that of a difference is, without cancellation or overflow,

        log1p(c (S_k - S_(k+1)) / (e^(-rise) + c S_(k+1))),  c = 1 - e^(-rise),  S at the step's beginning,

    and S_k - S_(k+1) = S_k (1 - S_(k+1)) (1 - e^(-2)), for knots are two widths apart.

    Args:
      low: (lambda_t - knot) / width.
      rise: (lambda_s - lambda_t) / width.
    """
    above, below = jax.nn.sigmoid(low), jax.nn.sigmoid(-low)
    between = -float(np.expm1(-2.0)) * above[:, :-1] * below[:, 1:]
    weight = jnp.concatenate([below[:, :1], between], axis=1)
    return jnp.log1p(-jnp.expm1(-rise) * weight / (jnp.exp(-rise) - jnp.expm1(-rise) * above))
