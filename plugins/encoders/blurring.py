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
    """Another encoder's x_phi blurred, the more the noisier, as heat dissipates (arXiv:2209.05557). Its mean is that one's.

    The blur is a Gaussian of standard deviation width sigma^2 pixels: none where there is no noise, and gone with
    sigma^4 as the noise goes, too fast for the reconstruction to notice. A mode of f radians a pixel is damped by
    exp(-1/2 f^2 width^2 sigma^4), so that its slope is the other encoder's and f^2 width^2 alpha^2 sigma^4 x_phi. No
    mean, a factor for all modes, is right for each of them. That of the other encoder (generative_mean.vdm for the identity,
    generative_mean.counterterm for alpha^2 x) is right for the lowest, which hold most of an image; the rest x_hat has to learn.

    Attributes:
      encoder: whose x_phi is blurred.
      width: of the blur where all is noise, in pixels.
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
        """Returns what the other encoder prepares."""
        # Nothing of the blur can be prepared: it acts on x_phi, which depends on lambda.
        return prepare_once(self.encoder, params, x, context)

    def at(self, params: Params, prepared: Any, log_snr: LogSNR) -> Data:
        x_phi = apply_prepared(self.encoder, params, prepared, log_snr)
        return blur(x_phi, self.width * sigma_squared(log_snr))


def blur(images: Float[Array, "b h w c"], width: PerExample) -> Float[Array, "b h w c"]:
    """Heat that flows for a time width^2 / 2 (in pixels^2), none of it over the edges.

    What is lost is taken from the image: so a blur of width 0 is exact, and a short step keeps its digits. Products
    with the cosines, not a fast transform: for images of so few pixels they cost less, and split with the batch.
    """
    # The DCT-II diagonalises diffusion with reflecting boundaries:
    # each mode decays by itself, and the mean is kept.
    rows, columns = (cosines(size) for size in images.shape[1:3])
    squared = frequencies(len(rows))[:, None] ** 2 + frequencies(len(columns))[None, :] ** 2
    # [b, modes_h, modes_w]: a width per image, since each has its own noise level.
    exponent = jnp.multiply.outer(-0.5 * jnp.square(width), jnp.asarray(squared, images.dtype))
    rows, columns = jnp.asarray(rows, images.dtype), jnp.asarray(columns, images.dtype)
    # Full precision: a bfloat16 or TF32 product would leave errors far above what a short step changes.
    modes = jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision="highest")
    # e^x - 1 is what a mode loses. The image plus what it loses keeps x_phi(lambda_0) within rounding of x,
    # where transforming back the damped modes would add the error of two transforms.
    lost = jnp.expm1(exponent)[..., None] * modes
    return images + jnp.einsum("ih,bijc,jw->bhwc", rows, lost, columns, precision="highest")


def cosines(size: int) -> Float[np.ndarray, "modes positions"]:
    """The modes of a row of pixels, each of norm 1."""
    from scipy import fft  # here, so that listing plugins does not import it

    return np.asarray(fft.dct(np.eye(size), norm="ortho", axis=0))


def frequencies(size: int) -> Float[np.ndarray, " modes"]:
    """Theirs, in radians a pixel."""
    return np.pi * np.arange(size) / size
