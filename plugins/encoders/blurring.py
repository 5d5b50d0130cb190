import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.core.gaussian import sigma_squared
from diffenc.errors import UserError
from diffenc.interfaces import (
    NO_CONTEXT,
    Context,
    Data,
    Encoder,
    Key,
    LogSNR,
    Params,
    PerExample,
    PreparedOnce,
    apply_prepared,
    prepare_once,
)
from diffenc.registry import encoders
from diffenc_plugins.encoders.builtin import Identity

IDENTITY = Identity()


@encoders.register("blurring")
@dataclasses.dataclass(frozen=True)
class Blurring(PreparedOnce):
    """Another encoder's x_phi, blurred more at higher noise, as heat dissipates (arXiv:2209.05557). Its mean is that encoder's.

    The blur is a Gaussian with a standard deviation of width sigma^2 pixels. Its effect vanishes like sigma^4 at low noise,
    too fast to matter for the reconstruction term. A mode of f radians per pixel is damped by
    exp(-1/2 f^2 width^2 sigma^4), so that its slope is the other encoder's plus f^2 width^2 alpha^2 sigma^4 x_phi. No
    generative mean with one factor for all modes is right for each of them. The other encoder's (generative_mean.vdm for
    the identity, generative_mean.counterterm for alpha^2 x) is right for the lowest modes, which hold most of an image; x_hat
    has to learn the rest.

    Attributes:
      encoder: the encoder that gives the x_phi to blur.
      width: standard deviation of the blur at sigma = 1, in pixels.
    """

    generative_mean: ClassVar[str] = "that of encoder.blurring.encoder"

    encoder: Encoder = IDENTITY
    width: float = 4.0

    def __post_init__(self):
        if self.width < 0:
            raise UserError(f"encoder.blurring.width = {self.width}: must not be negative")

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        return self.encoder.init(key, x, log_snr)

    def prepare(self, params: Params, x: Data, context: Context = NO_CONTEXT) -> Any:
        """Returns the other encoder's prepared values."""
        # The blur acts on x_phi, which depends on lambda, so no part of it can be prepared.
        return prepare_once(self.encoder, params, x, context)

    def at(self, params: Params, prepared: Any, log_snr: LogSNR) -> Data:
        x_phi = apply_prepared(self.encoder, params, prepared, log_snr)
        return blur(x_phi, self.width * sigma_squared(log_snr))


def blur(images: Float[Array, "b h w c"], width: PerExample) -> Float[Array, "b h w c"]:
    """Returns the images after heat flow for a time width^2 / 2 (in pixels^2), with no flow over the edges.

    Subtracts each mode's loss from the image, so that a blur of width 0 is exact and short steps keep their digits. Uses
    products with the cosines instead of a fast transform: at these image sizes they cost less, and they shard with the batch.
    """
    # The DCT-II diagonalises diffusion with reflecting boundaries:
    # each mode decays by itself, and the mean is kept.
    rows, columns = (cosines(size) for size in images.shape[1:3])
    squared = frequencies(len(rows))[:, None] ** 2 + frequencies(len(columns))[None, :] ** 2
    # [b, modes_h, modes_w]: a width per image, since each has its own noise level.
    exponent = jnp.multiply.outer(-0.5 * jnp.square(width), jnp.asarray(squared, images.dtype))
    rows, columns = jnp.asarray(rows, images.dtype), jnp.asarray(columns, images.dtype)
    # Full precision: a bfloat16 or TF32 product would leave errors far above the change over a short step.
    modes = jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision="highest")
    # expm1(x) is a mode's relative change. Adding the change to the image keeps x_phi(lambda_0) within rounding of x;
    # transforming back the damped modes would add the error of two transforms.
    lost = jnp.expm1(exponent)[..., None] * modes
    return images + jnp.einsum("ih,bijc,jw->bhwc", rows, lost, columns, precision="highest")


def cosines(size: int) -> Float[np.ndarray, "modes positions"]:
    """Returns the DCT-II modes of a row of pixels, each of norm 1."""
    from scipy import fft  # here, so that listing plugins does not import it

    return np.asarray(fft.dct(np.eye(size), norm="ortho", axis=0))


def frequencies(size: int) -> Float[np.ndarray, " modes"]:
    """Returns the frequencies of `cosines`, in radians per pixel."""
    return np.pi * np.arange(size) / size
