"""What every plugin of a kind keeps, as checks that a test runs on it.

    @pytest.mark.parametrize("check", testing.CHECKS["encoder"])
    def test_it_is_an_encoder(check):
        check(MyBlur())

A check takes the plugin, small enough to compile in a second, and raises AssertionError that says what broke. Those of
encoders and networks also take `image_shape`, (8, 8, 2) unless given.
"""

from collections.abc import Callable, Mapping
from typing import Any

from diffenc.testing import (
    any_plugin,
    conditionings,
    datasets,
    encoders,
    features,
    generative_means,
    networks,
    optimizers,
    parameterizations,
    schedules,
    stochasticities,
    time_samplers,
    variances,
    writers,
)

Check = Callable[..., None]

_OF_KIND: Mapping[str, tuple[Check, ...]] = {
    "encoder": encoders.CHECKS,
    "schedule": schedules.CHECKS,
    "stochasticity": stochasticities.CHECKS,
    "parameterization": parameterizations.CHECKS,
    "generative_mean": generative_means.CHECKS,
    "network": networks.CHECKS,
    "conditioning": conditionings.CHECKS,
    "variance": variances.CHECKS,
    "time_sampler": time_samplers.CHECKS,
    "dataset": datasets.CHECKS,
    "features": features.CHECKS,
    "optimizer": optimizers.CHECKS,
    "writer": writers.CHECKS,
}

CHECKS: Mapping[str, tuple[Check, ...]] = {
    kind: (*any_plugin.CHECKS, *checks) for kind, checks in _OF_KIND.items()
}


def check(plugin: Any, **given: Any) -> None:
    """All checks of the plugin's kind, for where there is no pytest; `given` is for those of encoders and networks.

    Raises:
      AssertionError: at the first that fails.
    """
    for each in any_plugin.CHECKS:
        each(plugin)
    for each in _OF_KIND[any_plugin.kind_of(plugin)]:
        each(plugin, **given)


__all__ = ["CHECKS", "Check", "check"]
