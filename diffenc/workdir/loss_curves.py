"""The loss as a function of time, written by --mode=diagnose and used for importance sampling of times."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.core.model import SampleTimes
from diffenc.errors import UserError
from diffenc.files import record_checksum
from diffenc.interfaces import GRADIENT_CURVE, LOSS_CURVE, PerExample, Times, TimeSampler, requires
from diffenc.registry import selector_of, time_samplers
from diffenc.workdir.fitted_chains import NO_WORKDIR

FOLDER = "diagnostics"
ORIGIN_KEYS = ("step", "split", "num_images", "passes", "seed")


@dataclasses.dataclass(frozen=True)
class BoundSampler:
    """A time sampler with its curve, if it requires one. Without a curve, equal samplers are equal keys of `compiled_once`."""

    sampler: TimeSampler
    curve: Float[Array, " bins"] | None

    def __call__(self, u: Times) -> tuple[Times, PerExample]:
        return self.sampler(u, curve=self.curve)


def curve_path(workdir: Path) -> Path:
    """Returns the file of a run's curve."""
    return workdir / FOLDER / "loss.json"


def bind_curve(sampler: TimeSampler, workdir: Path | None) -> tuple[SampleTimes, dict[str, Any]]:
    """Returns a time sampler bound to the loss curve, if it requires one, and the origin of the curve ({} if none).

    Raises:
      UserError: the sampler requires the curve, but it was not measured, or its file is invalid; or the sampler is only for
        training.
    """
    if requires(sampler, GRADIENT_CURVE):
        raise UserError(
            f"{selector_of(type(sampler))} draws by the gradients of training: bind it to Experiment.time_sampler; "
            "to measure with fewer passes there is time_sampler.importance"
        )
    if not requires(sampler, LOSS_CURVE):
        return BoundSampler(sampler, None), {}
    if workdir is None:
        raise UserError(f"time_sampler.{time_samplers.spell(sampler)}: {NO_WORKDIR}")
    if not curve_path(workdir).is_file():
        raise UserError(
            f"{selector_of(type(sampler))} needs a loss curve: run the same command with "
            "--mode=diagnose first"
        )
    curve, origin = load_curve(curve_path(workdir))
    return BoundSampler(sampler, curve), {"curve_of": origin}


def load_curve(file: Path) -> tuple[Float[Array, " bins"], dict[str, Any]]:
    """Returns the root mean square of the diffusion loss in bits/dim, in equal bins of t, and the origin of the measurement.

    Raises:
      UserError: the file is not a valid curve.
    """
    try:
        content = json.loads(file.read_text())
        if record_checksum.is_broken(content):
            raise ValueError(record_checksum.BROKEN)
        # For independent draws the optimal density is proportional to the root mean square.
        curve = np.asarray(content["rms"], np.float64)
        origin = {key: content[key] for key in ORIGIN_KEYS if key in content}
        # Checked explicitly: Python's json also accepts NaN and Infinity.
        is_valid = curve.ndim == 1 and curve.size > 0 and bool(np.all(np.isfinite(curve) & (curve >= 0)))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{_advice(file)} ({type(error).__name__}: {error})") from error
    if not is_valid:
        raise UserError(f"{_advice(file)} (its values are not root mean squares)")
    return jnp.asarray(curve), origin


def _advice(file: Path) -> str:
    return f"{file} is not a loss curve: delete it, and measure it again with --mode=diagnose"
