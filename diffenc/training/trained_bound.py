"""The bound that training minimises: in continuous time, or of a chain of T steps."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import check_num_timesteps, network_precision
from diffenc.core.discretization import equal_times, make_chain, variance_given
from diffenc.core.model import Model
from diffenc.core.objective import StepRule, continuous, discrete
from diffenc.interfaces import Key, LearnedInterior, LogSNR, Params, Schedule, Times


class TrainedBound(NamedTuple):
    """The bound that training minimises.

    Attributes:
      model: the model of which it is -ELBO.
      rule_of: maps parameters to the step rule.
    """

    model: Model
    rule_of: Callable[[Params], StepRule]


@dataclasses.dataclass(frozen=True)
class TrainedByBound:
    """A wrapper of a schedule with a learned interior, which gives the interior the gradient of the bound, as the ends have.

    At finite T the bound depends on the interior too. The wrapper is deliberately not a `LearnedInterior`, so that
    `diffenc.training.schedule_objective` adds no gradient.
    """

    schedule: LearnedInterior

    def init(self, key: Key) -> Params:
        return self.schedule.init(key)

    def apply(self, params: Params, t: Times) -> LogSNR:
        # t is stopped here and not below: d lambda / dt must be counted once, through `apply`.
        interior = self.schedule.interior(params, jax.lax.stop_gradient(t))
        # Adds zero to the value of `apply`, and the interior's gradient to its gradient.
        return self.schedule.apply(params, t) + (interior - jax.lax.stop_gradient(interior))


def check_trained_bound(experiment: Experiment) -> None:
    """Raises UserError if the T of training is too large for the precision of the networks."""
    check_num_timesteps(network_precision(experiment), experiment.num_timesteps)


def trained_bound(experiment: Experiment) -> TrainedBound:
    """Returns the bound that the experiment minimises; at T > 0 all parameters of the schedule have its gradient."""
    model, num_timesteps, variance = experiment.model, experiment.num_timesteps, experiment.variance
    # T = 0 stands for T -> infinity, in continuous time.
    if num_timesteps == 0:
        return TrainedBound(model, lambda params: continuous)
    times = equal_times(num_timesteps)
    # `apply` of a LearnedInterior stops the gradient of its interior,
    # since in continuous time the bound does not depend on it.
    model = dataclasses.replace(model, schedule=_trained_by_bound(model.schedule))

    def rule_of(params: Params) -> StepRule:
        # Rebuilt from the parameters in every step, so that a learned
        # schedule and learned variances get gradients through the chain.
        return discrete(make_chain(partial(model.log_snr, params), times, variance_given(variance, params)))

    return TrainedBound(model, rule_of)


def _trained_by_bound(schedule: Schedule) -> Schedule:
    return TrainedByBound(schedule) if isinstance(schedule, LearnedInterior) else schedule
