"""The curve of the loss over time, as --mode=diagnose files it and importance sampling of times reads it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.errors import UserError

FOLDER = "diagnostics"


def path(workdir: Path) -> Path:
    """Where the curve of a run is filed."""
    return workdir / FOLDER / "loss.json"


def load(workdir: Path) -> Float[Array, " bins"] | None:
    """Root mean square of the diffusion loss, bits/dim, in equal bins of t; None if it was not measured.

    Raises:
      UserError: the file is no such curve.
    """
    file = path(workdir)
    if not file.is_file():
        return None
    try:
        curve = np.asarray(json.loads(file.read_text())["rms"], np.float64)
        sound = curve.ndim == 1 and curve.size > 0 and bool(np.all(np.isfinite(curve) & (curve >= 0)))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{_advice(file)} ({type(error).__name__}: {error})") from error
    if not sound:
        raise UserError(f"{_advice(file)} (its figures are no root mean squares)")
    return jnp.asarray(curve)


def _advice(file: Path) -> str:
    return f"{file} is no curve of the loss: delete it, and measure it again with --mode=diagnose"
