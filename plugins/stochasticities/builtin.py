"""Stochasticities without parameters."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffenc.core import stochasticity
from diffenc.errors import UserError
from diffenc.interfaces import Key, LogSNR, Params
from diffenc.registry import stochasticities

Markov = stochasticities.register("markov")(stochasticity.Markov)


@stochasticities.register("nontrainable")
@dataclasses.dataclass(frozen=True)
class Nontrainable:
    """eta^2 = 1 + 2 sigma^2, which makes the bound of encoder.nontrainable tight.

    At the log-SNR h = log(alpha^6 / sigma^2) = lambda - 2 softplus(-lambda), diffused x is as informative about x as alpha^2 x
    diffused at lambda: with this path the encoder is VDM at another scale of z (derived in docs/concepts.md).
    """

    def init(self, key: Key) -> Params:
        return {}

    def increment(self, params: Params, log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
        rise = log_snr_s - log_snr_t
        # h(lambda_s) - h(lambda_t) = rise + 2 (softplus(-lambda_t) - softplus(-lambda_s)),
        # and -lambda_s + rise = -lambda_t.
        return rise + 2 * softplus_rise(-log_snr_s, rise)


@stochasticities.register("constant")
@dataclasses.dataclass(frozen=True)
class Constant:
    """The same eta at all lambda: h = eta^2 lambda. As eta falls to 0 the bound grows without limit.

    Attributes:
      eta: the noise of the path relative to that of the Markov process.
    """

    eta: float = 1.0

    def __post_init__(self):
        if not self.eta > 0:
            raise UserError(f"stochasticity.constant.eta = {self.eta}: must be positive")

    def init(self, key: Key) -> Params:
        return {}

    def increment(self, params: Params, log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
        return self.eta**2 * (log_snr_s - log_snr_t)


def softplus_rise(low: Float[Array, "..."], rise: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns softplus(low + rise) - softplus(low), without overflow, and without cancellation where `rise` is small."""
    # log((1 + e^(low + rise)) / (1 + e^low)) = log(1 + sigmoid(low) (e^rise - 1)). Clipped because `where`
    # differentiates both branches: an overflow in the branch not taken would make the gradient NaN.
    near = jnp.log1p(jax.nn.sigmoid(low) * jnp.expm1(jnp.clip(rise, -1, 1)))
    return jnp.where(jnp.abs(rise) < 1, near, jax.nn.softplus(low + rise) - jax.nn.softplus(low))
