"""The model that is evaluated: in continuous time, or a chain of T steps with its times and variances."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffenc.config.network_precision import check_num_timesteps
from diffenc.config.settings import ResolvedEvaluate
from diffenc.core.discretization import Chain
from diffenc.core.objective import StepRule, continuous, discrete
from diffenc.interfaces import Params, Schedule
from diffenc.registry import variances
from diffenc.workdir import fitted_chains


def bound_metadata(settings: ResolvedEvaluate) -> dict[str, Any]:
    """Returns T, and in discrete time the times and variances of the chain, as entries of a record."""
    if settings.num_timesteps == 0:
        return {"T": "continuous"}
    return {
        "T": settings.num_timesteps,
        "times": settings.times,
        "variance": variances.spell(settings.variance),
    }


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
    settings: ResolvedEvaluate,
    schedule: Schedule,
    precision: str,
    workdir: Path | None,
    step: int | None = None,
) -> EvaluatedBound:
    """Returns the bound that the settings name; fits are read from `workdir`, for the checkpoint of `step`.

    Raises:
      UserError: T is too large for `precision`, or something that must be fitted first is missing.
    """
    if settings.num_timesteps == 0:
        return EvaluatedBound(lambda params: None, continuous_rule, {})
    check_num_timesteps(precision, settings.num_timesteps)
    fit = fitted_chains.find_chain(workdir, settings, step)
    fit.check()
    # The chain is made from the parameters at hand, since log w may depend on a learned schedule.
    return EvaluatedBound(lambda params: fit.chain(schedule, params), discrete, fit.of)


# A module-level function, not a lambda: compiled functions are looked up by their rule (`compile_on_mesh`).
def continuous_rule(_: None) -> StepRule:
    """Returns the rule of continuous time, which has no chain."""
    return continuous
