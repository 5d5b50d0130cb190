"""How deep the model is whose bound is measured: continuous time, or T steps with their times and variances."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.settings import Evaluate
from diffenc.core.discretization import Chain
from diffenc.core.objective import StepRule, continuous, discrete
from diffenc.errors import UserError
from diffenc.interfaces import Params
from diffenc.registry import variances
from diffenc.workdir import fitted_chains

# Deeper, a secant of the encoder over one step has too few digits left.
DEEPEST = {"bfloat16": 300, "float32": 10_000}


def bound_metadata(settings: Evaluate) -> dict[str, Any]:
    """Which model's bound it is: T, and in discrete time its times and variances."""
    if settings.num_timesteps == 0:
        return {"T": "continuous"}
    return {
        "T": settings.num_timesteps,
        "times": settings.times,
        "variance": variances.spell(settings.variance),
    }


def check_num_timesteps(precision: str, steps: int) -> None:
    """Raise UserError if T = `steps` is too deep for `precision`, as `describe.precision` tells it."""
    deepest = DEEPEST.get(precision)
    if deepest is None or steps <= deepest:
        return
    way_out = {"float32": "add --x64", "bfloat16": "bind the networks' precision to 'float32'"}[precision]
    raise UserError(
        f"T = {steps}: in {precision} the bound is good up to T = {deepest}, and no further; {way_out}"
    )


class EvaluatedBound(NamedTuple):
    """What decides how deep the measured model is.

    Attributes:
      chain_of: params -> its chain; None in continuous time.
      rule: chain -> the step rule.
      of: what its times and variances were fitted on, where they were.
    """

    chain_of: Callable[[Params], Chain | None]
    rule: Callable[[Any], StepRule]
    of: dict[str, Any]


def evaluated_bound(experiment: Experiment, workdir: Path | None, step: int | None = None) -> EvaluatedBound:
    """What `experiment.evaluate` asks for; fits are read from `workdir`.

    Raises:
      UserError: T is too deep for float32, or what must be fitted is not.
    """
    settings, schedule = experiment.evaluate, experiment.model.schedule
    if settings.num_timesteps == 0:
        return EvaluatedBound(lambda params: None, lambda chain: continuous, {})
    check_num_timesteps(serialize.network_precision(experiment), settings.num_timesteps)
    plan = fitted_chains.plan(workdir, settings, step)
    plan.check()
    return EvaluatedBound(lambda params: plan.chain(schedule, params["schedule"]), discrete, plan.of)
