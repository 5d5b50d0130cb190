"""Integer pixel levels and the open interval (-1, 1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from diffenc.interfaces import Data

Levels = Integer[Array, "b *d"]


def scale_pixels(levels: Levels, num_levels: int) -> Data:
    """x = 2 (v + 1/2) / num_levels - 1, float of the default precision."""
    return 2 * (levels + 0.5) / num_levels - 1


def nearest_levels(x: Data, num_levels: int) -> Levels:
    """The levels whose scaled values lie nearest to `x`, int32."""
    levels = jnp.round((x + 1) * (num_levels / 2) - 0.5)
    return jnp.clip(levels, 0, num_levels - 1).astype(jnp.int32)


def level_values(num_levels: int) -> Float[Array, " levels"]:
    """The scaled value of every level."""
    return 2 * (jnp.arange(num_levels) + 0.5) / num_levels - 1
