"""The running curve of the loss over time, from which a time sampler derives the density of training times.

It estimates the curve of `--mode=diagnose`, the root mean square of the diffusion loss in equal bins of t, from the losses of
training itself. The importance weights of the time sampler keep the loss unbiased for any curve; a more accurate curve gives
less variance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffenc.core.model import Draws
from diffenc.core.objective import step_index
from diffenc.interfaces import PerExample

BINS = 64
DECAY = 0.99  # of a step's losses with each step after it


class LossCurve(NamedTuple):
    """Decaying sums over the draws of a run, in equal bins of t.

    Attributes:
      squares: sums of the squared diffusion loss, nats^2.
      counts: numbers of draws.
    """

    squares: Float[Array, " bins"]
    counts: Float[Array, " bins"]


def begin_loss_curve() -> LossCurve:
    """Returns the curve before the first step."""
    return LossCurve(jnp.zeros(BINS), jnp.zeros(BINS))


def root_mean_squares(curve: LossCurve) -> Float[Array, " bins"]:
    """Returns the root mean square in each bin; of all draws in a bin without one, and 1 before the first draw."""
    squares, counts = jnp.sum(curve.squares), jnp.sum(curve.counts)
    # The inner where avoids 0 / 0 in the branch that is not taken.
    overall = jnp.where(counts > 0, squares / jnp.where(counts > 0, counts, 1.0), 1.0)
    drawn = curve.counts > 0
    # Weights of old draws have decayed alike in both sums, so their quotient is a weighted mean.
    means = jnp.where(drawn, curve.squares / jnp.where(drawn, curve.counts, 1.0), overall)
    return jnp.sqrt(means)


def update_loss_curve(curve: LossCurve, draws: Draws, weighted: PerExample) -> LossCurve:
    """Returns the curve with a batch's draws.

    Args:
      weighted: the diffusion losses as they enter the bound, with the importance weight 1 / (density of t).
    """
    index = step_index(draws.t, BINS)

    def sum_in_bins(values: PerExample) -> Float[Array, " bins"]:
        return jax.ops.segment_sum(values, index, BINS)

    # Without the importance weight: the curve is that of l(t) itself, whichever density t was drawn from.
    squares = sum_in_bins(jnp.square(weighted / draws.weight))
    return LossCurve(
        DECAY * curve.squares + squares, DECAY * curve.counts + sum_in_bins(jnp.ones_like(weighted))
    )
