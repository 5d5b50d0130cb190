"""The curve of the loss over time, as --mode=diagnose files it and importance sampling of times reads it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.core.model import SampleTimes
from diffenc.errors import UserError
from diffenc.files import record_checksum
from diffenc.interfaces import LOSS_CURVE, TimeSampler, requires
from diffenc.registry import selector_of, time_samplers
from diffenc.workdir.fitted_chains import NOT_HERE

FOLDER = "diagnostics"
OF = ("step", "split", "num_images", "passes", "seed")


def path(workdir: Path) -> Path:
    """Where the curve of a run is filed."""
    return workdir / FOLDER / "loss.json"


def bind_curve(sampler: TimeSampler, workdir: Path | None) -> tuple[SampleTimes, dict[str, Any]]:
    """Returns how a time sampler draws times, and what the curve it needs is of; {} if it needs none.

    Raises:
      UserError: it needs the curve, and that was not measured, or the file is no such curve.
    """
    if not requires(sampler, LOSS_CURVE):
        return partial(sampler, curve=None), {}
    if workdir is None:
        raise UserError(f"time_sampler.{time_samplers.spell(sampler)}: {NOT_HERE}")
    if not path(workdir).is_file():
        raise UserError(
            f"{selector_of(type(sampler))} was given no curve of the loss: run the same command with "
            "--mode=diagnose first"
        )
    curve, of = load(path(workdir))
    return partial(sampler, curve=curve), {"curve_of": of}


def load(file: Path) -> tuple[Float[Array, " bins"], dict[str, Any]]:
    """Root mean square of the diffusion loss, bits/dim, in equal bins of t; and what it was measured on.

    Raises:
      UserError: the file is no such curve.
    """
    try:
        content = json.loads(file.read_text())
        if record_checksum.is_broken(content):
            raise ValueError(record_checksum.BROKEN)
        curve = np.asarray(content["rms"], np.float64)
        of = {key: content[key] for key in OF if key in content}
        sound = curve.ndim == 1 and curve.size > 0 and bool(np.all(np.isfinite(curve) & (curve >= 0)))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{_advice(file)} ({type(error).__name__}: {error})") from error
    if not sound:
        raise UserError(f"{_advice(file)} (its figures are no root mean squares)")
    return jnp.asarray(curve), of


def _advice(file: Path) -> str:
    return f"{file} is no curve of the loss: delete it, and measure it again with --mode=diagnose"
