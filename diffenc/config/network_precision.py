"""The precision of the networks' arithmetic, and the largest T for which it suffices."""

from typing import Any

import jax

from diffenc.errors import UserError
from diffenc.fields.values import nested_objects

# With more steps, the secant of the encoder over one step, a difference of nearly equal numbers, loses too many digits.
MAX_TIMESTEPS = {"bfloat16": 300, "float32": 10_000}


def network_precision(experiment: Any) -> str:
    """Returns the precision of the networks: bfloat16 if any part of `experiment` has it, else JAX's default."""
    chosen = {getattr(item, "precision", None) for item in nested_objects(experiment)}
    return "bfloat16" if "bfloat16" in chosen else jax.dtypes.canonicalize_dtype(float).name


def check_num_timesteps(precision: str, num_timesteps: int) -> None:
    """Raises UserError if T is too large for `precision` (see `network_precision`)."""
    most = MAX_TIMESTEPS.get(precision)
    if most is None or num_timesteps <= most:
        return
    hint = {"float32": "add --x64", "bfloat16": "bind the networks' precision to 'float32'"}[precision]
    raise UserError(
        f"T = {num_timesteps}: in {precision} the bound is accurate up to T = {most}, and no further; {hint}"
    )
