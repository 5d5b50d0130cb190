"""Conversions between integer pixel levels and values in the open interval (-1, 1)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from diffenc.core.gaussian import scale
from diffenc.interfaces import Data, PerExample

Levels = Integer[Array, "b *d"]


def scale_pixels(levels: Levels, num_levels: int) -> Data:
    """Returns x = 2 (v + 1/2) / num_levels - 1 in (-1, 1), float of the default precision."""
    # Centres of num_levels equal cells that tile [-1, 1]. `levels + 0.5`
    # converts before the product, which would overflow in uint8.
    return 2 * (levels + 0.5) / num_levels - 1


def nearest_levels(x: Data, num_levels: int) -> Levels:
    """Returns the levels with scaled values nearest to `x`, int32 in 0 .. num_levels - 1."""
    # The inverse of `scale_pixels`; clipped, since samples and z_0 / alpha_0 leave (-1, 1).
    levels = jnp.round((x + 1) * (num_levels / 2) - 0.5)
    return jnp.clip(levels, 0, num_levels - 1).astype(jnp.int32)


def level_values(num_levels: int) -> Float[Array, " levels"]:
    """Returns the scaled value of every level, in increasing order."""
    return 2 * (jnp.arange(num_levels) + 0.5) / num_levels - 1


def level_probabilities(pixels: Data, half_snr: PerExample, num_levels: int) -> Float[Array, "b *d levels"]:
    """Returns the probability of every level given z_0 [55], of each pixel; `pixels` is z_0 / alpha_0."""
    gap = pixels[..., None] - jnp.expand_dims(level_values(num_levels), tuple(range(pixels.ndim)))
    return jax.nn.softmax(scale(-half_snr, jnp.square(gap)), axis=-1)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_partition(pixels: Data, half_snr: PerExample, num_levels: int) -> Data:
    """Returns log sum_v exp(-half_snr (pixels - v)^2) over the scaled level values v, shaped like `pixels`.

    The derivatives are means over the distribution normalised by the sum, so neither they nor the value store an
    array with an axis of levels. Differentiating logsumexp would store several, num_levels times the images each.
    """
    return _log_sum(pixels, half_snr, num_levels)[0]


@log_partition.defjvp
def _log_partition_jvp(num_levels: int, primals, tangents) -> tuple[Data, Data]:
    pixels, half_snr = primals
    log_sum, gap, square = _log_sum(pixels, half_snr, num_levels)
    # d/d pixels and d/d half_snr of the exponent, averaged over the normalised terms
    return log_sum, scale(-2 * half_snr, gap) * tangents[0] - scale(tangents[1], square)


def _log_sum(pixels: Data, half_snr: PerExample, num_levels: int) -> tuple[Data, Data, Data]:
    """Returns the log of the sum, and the means of (pixels - v) and its square, weighted by the terms."""
    nearest = scale_pixels(nearest_levels(pixels, num_levels), num_levels)
    least = jnp.square(
        pixels - nearest
    )  # of the largest term: subtracted below, so that no exp underflows to 0 / 0
    # [B, H, W, C, levels]: never stored as a whole, as it is only an operand of the fused reduction below.
    gap = pixels[..., None] - jnp.expand_dims(level_values(num_levels), tuple(range(pixels.ndim)))
    terms = jnp.exp(scale(-half_snr, jnp.square(gap) - least[..., None]))
    # One reduction of three operands: XLA fuses their computation into it. With three reductions it would store them.
    zeros = (jnp.zeros((), pixels.dtype),) * 3
    total, first, second = jax.lax.reduce(
        (terms, terms * gap, terms * jnp.square(gap)),
        zeros,
        lambda sums, terms: tuple(a + b for a, b in zip(sums, terms, strict=True)),
        (pixels.ndim,),
    )
    return jnp.log(total) - scale(half_snr, least), first / total, second / total
