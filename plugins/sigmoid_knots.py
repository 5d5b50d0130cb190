"""Sigmoids on knots evenly spaced in log_snr, the basis of learned functions of log_snr."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import LogSNR
from diffenc_plugins.schedule_ends import check_ends


def check_knots(name: str, log_snr_max: float, log_snr_min: float, knots: int) -> None:
    """Raises UserError unless there are two knots or more, from `log_snr_min` up to `log_snr_max`."""
    check_ends(name, log_snr_max, log_snr_min)
    if knots < 2:
        raise UserError(f"{name}.knots = {knots}: must be at least 2")


def from_knots(
    log_snr: LogSNR, log_snr_min: float, log_snr_max: float, knots: int
) -> tuple[Float[Array, "b knots"], float]:
    """Returns the distance of `log_snr` from each knot in widths of the sigmoids, and the width: half of that between knots."""
    places = np.linspace(log_snr_min, log_snr_max, knots)
    # Neighbouring sigmoids overlap: sums of them are smooth, without plateaus between knots.
    width = 0.5 * float(places[1] - places[0])
    return (log_snr[:, None] - jnp.asarray(places, log_snr.dtype)[None]) / width, width
