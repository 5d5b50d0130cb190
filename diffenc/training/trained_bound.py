"""The bound that training lowers: in continuous time, or that of a chain of T steps."""

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
    """The bound that training lowers.

    Attributes:
      model: whose -ELBO it is.
      rule_of: the step rule under given parameters.
    """

    model: Model
    rule_of: Callable[[Params], StepRule]


@dataclasses.dataclass(frozen=True)
class TrainedByBound:
    """A schedule whose interior has the gradient of the bound, as its ends have.

    At finite T the bound depends on the interior too. It is no `LearnedInterior`: no other objective is left for it.
    """

    schedule: LearnedInterior

    def init(self, key: Key) -> Params:
        return self.schedule.init(key)

    def apply(self, params: Params, t: Times) -> LogSNR:
        # t is stopped here and not below: d lambda / dt must come once, from `apply`.
        interior = self.schedule.interior(params, jax.lax.stop_gradient(t))
        # the value of `apply`, to which this adds 0, with the gradients of both
        return self.schedule.apply(params, t) + (interior - jax.lax.stop_gradient(interior))


def check_trained_bound(experiment: Experiment) -> None:
    """Raises UserError if the T that is trained at is too large for the precision of the networks."""
    check_num_timesteps(network_precision(experiment), experiment.num_timesteps)


def trained_bound(experiment: Experiment) -> TrainedBound:
    """Returns the bound that the experiment trains; at T > 0 all parameters of the schedule have its gradient."""
    model, num_timesteps, variance = experiment.model, experiment.num_timesteps, experiment.variance
    # T = 0 stands for T -> infinity, in continuous time.
    if num_timesteps == 0:
        return TrainedBound(model, lambda params: continuous)
    times = equal_times(num_timesteps)
    # A LearnedInterior's `apply` stops its interior's gradient,
    # since in continuous time it has none of the bound.
    model = dataclasses.replace(model, schedule=_trained_by_bound(model.schedule))

    def rule_of(params: Params) -> StepRule:
        # Made anew from the parameters in every step, so that learned
        # schedule and variances get gradients through the chain.
        return discrete(make_chain(partial(model.log_snr, params), times, variance_given(variance, params)))

    return TrainedBound(model, rule_of)


def _trained_by_bound(schedule: Schedule) -> Schedule:
    return TrainedByBound(schedule) if isinstance(schedule, LearnedInterior) else schedule
