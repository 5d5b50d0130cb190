"""The diffusion loss by log_snr, from the draws that an evaluation makes anyway."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

POINTS = 1000


class LossDraws(NamedTuple):
    """The single draws of times: [..., B] in a compiled function, [draws] once they are gathered.

    Attributes:
      log_snr: at the drawn time.
      diffusion: the diffusion loss of the draw, nats, weighted as in the bound.
    """

    log_snr: Float[Array | np.ndarray, "*draws"]
    diffusion: Float[Array | np.ndarray, "*draws"]


def concatenate_draws(rows: list[LossDraws]) -> LossDraws:
    """Returns the draws of all batches, each field flattened to one array."""
    return jax.tree.map(lambda *parts: np.concatenate([np.ravel(part) for part in parts]), *rows)


def equal_shares(draws: LossDraws, count: int = POINTS) -> Float[np.ndarray, " count"]:
    """Returns `count` values of log_snr, rising, each standing for an equal share of the diffusion loss.

    A histogram of them shows the loss by log_snr, whatever times were drawn. A negative loss counts as 0. Empty if no draw
    has a positive loss, or if a loss is not finite.
    """
    order = np.argsort(draws.log_snr, kind="stable")
    loss = np.cumsum(np.maximum(np.asarray(draws.diffusion, np.float64)[order], 0))
    if not loss.size or not 0 < loss[-1] < np.inf:
        return np.empty(0)
    # The inverse of the cumulative loss at the middle of each share.
    middles = (np.arange(count) + 0.5) / count * loss[-1]
    return np.asarray(draws.log_snr)[order][np.searchsorted(loss, middles)]
