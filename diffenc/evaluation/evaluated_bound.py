"""The model that is evaluated: in continuous time, or a chain of T steps with its times and variances."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffenc.config.settings import Evaluate
from diffenc.core.discretization import Chain
from diffenc.core.objective import StepRule, continuous, discrete
from diffenc.errors import UserError
from diffenc.interfaces import Params, Schedule
from diffenc.registry import variances
from diffenc.workdir import fitted_chains

# With more steps, a secant of the encoder over one step has too few digits left.
MAX_TIMESTEPS = {"bfloat16": 300, "float32": 10_000}


def bound_metadata(settings: Evaluate) -> dict[str, Any]:
    """Returns T, and in discrete time the times and variances of the chain, as entries of a record."""
    if settings.num_timesteps == 0:
        return {"T": "continuous"}
    return {
        "T": settings.num_timesteps,
        "times": settings.times,
        "variance": variances.spell(settings.variance),
    }


def check_num_timesteps(precision: str, num_timesteps: int) -> None:
    """Raises UserError if T is too large for `precision` (see `diffenc.config.serialize.network_precision`)."""
    most = MAX_TIMESTEPS.get(precision)
    if most is None or num_timesteps <= most:
        return
    hint = {"float32": "add --x64", "bfloat16": "bind the networks' precision to 'float32'"}[precision]
    raise UserError(
        f"T = {num_timesteps}: in {precision} the bound is accurate up to T = {most}, and no further; {hint}"
    )


class EvaluatedBound(NamedTuple):
    """The bound that is estimated.

    Attributes:
      chain_of: params -> the chain; None in continuous time.
      rule: chain -> the step rule.
      fitted_on: origin of fitted times and variances; entries of a record.
    """

    chain_of: Callable[[Params], Chain | None]
    rule: Callable[[Any], StepRule]
    fitted_on: dict[str, Any]


def evaluated_bound(
    settings: Evaluate, schedule: Schedule, precision: str, workdir: Path | None, step: int | None = None
) -> EvaluatedBound:
    """Returns the bound that the settings name; fits are read from `workdir`, for the checkpoint of `step`.

    Raises:
      UserError: T is too large for `precision`, or something that must be fitted first is missing.
    """
    if settings.num_timesteps == 0:
        return EvaluatedBound(lambda params: None, lambda chain: continuous, {})
    check_num_timesteps(precision, settings.num_timesteps)
    fit = fitted_chains.find_chain(workdir, settings, step)
    fit.check()
    return EvaluatedBound(lambda params: fit.chain(schedule, params["schedule"]), discrete, fit.of)
