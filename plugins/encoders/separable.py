import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import (
    NO_CONTEXT,
    Context,
    Data,
    Key,
    LogSNR,
    Network,
    Params,
    PreparedOnce,
)
from diffenc.registry import encoders
from diffenc_plugins.encoders.builtin import blend
from diffenc_plugins.schedule_ends import check_ends

AllChannels = Float[Array, "b h w terms_c"]


@encoders.register("separable")
@dataclasses.dataclass(frozen=True)
class Separable(PreparedOnce):
    """x_phi = alpha^2 x + sigma^2 sum_k b_k(lambda) f_k(x): one call of the network serves all noise levels.

    b_k are the Bernstein polynomials of a logistic function s(lambda), 0.02 at log_snr_max and 0.98 at log_snr_min. They are
    positive and sum to one, so that y stays within the bounds of the f_k. A slope costs no further call of the network. The
    encoder's mean is generative_mean.counterterm.

    Attributes:
      network: computes f_1 .. f_K side by side as channels of one image; its input is x repeated K times, at log_snr_max. If
        its last layer starts at zero, this encoder equals the non-trainable one at initialisation.
      terms: K.
      log_snr_max, log_snr_min: the noise levels between which y moves from f_1 to f_K.
    """

    generative_mean: ClassVar[str] = "generative_mean.counterterm"

    network: Network
    terms: int = 4
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0

    def __post_init__(self):
        if not 1 <= self.terms <= 64:
            raise UserError(f"encoder.separable.terms = {self.terms}: must be from 1 to 64")
        check_ends("encoder.separable", self.log_snr_max, self.log_snr_min)

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        return self.network.init(key, self._repeat(x), log_snr)

    def prepare(self, params: Params, x: Data, context: Context = NO_CONTEXT) -> tuple[Data, AllChannels]:
        """Returns x, and all f_k side by side."""
        least_noise = jnp.full(len(x), self.log_snr_max, x.dtype)
        return x, self.network.apply(params, self._repeat(x), least_noise, context)

    def at(self, params: Params, prepared: tuple[Data, AllChannels], log_snr: LogSNR) -> Data:
        x, functions = prepared
        functions = functions.reshape(*x.shape[:-1], self.terms, x.shape[-1])
        # s = sigmoid(-4) = 0.018 at log_snr_max and sigmoid(4) at log_snr_min. Smooth and monotone, and its
        # slope is finite for every lambda, also beyond these ends where a schedule learns its own.
        middle, width = (self.log_snr_max + self.log_snr_min) / 2, self.log_snr_max - self.log_snr_min
        weights = bernstein(jax.nn.sigmoid(8 * (middle - log_snr) / width), self.terms)
        # Full precision: the slope and secants of y come from these weights alone.
        y = jnp.einsum("bk,b...kc->b...c", weights, functions, precision="highest")
        return blend(x, y, log_snr)

    def _repeat(self, x: Data) -> AllChannels:
        # A network's output has the channels of its input: K copies of x in, K images out.
        return jnp.concatenate([x] * self.terms, axis=-1)


def bernstein(s: Float[Array, " b"], count: int) -> Float[Array, "b count"]:
    """Returns the `count` Bernstein polynomials of degree `count` - 1 at `s`, in [0, 1]."""
    degree = count - 1
    # Integer powers are products, with finite slopes at both ends.
    values = [
        math.comb(degree, k) * jax.lax.integer_pow(s, k) * jax.lax.integer_pow(1 - s, degree - k)
        for k in range(count)
    ]
    return jnp.stack(values, axis=-1)
