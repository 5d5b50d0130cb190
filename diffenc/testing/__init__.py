"""Conformance checks of plugins, by kind, to be run by the tests of a plugin.

    @pytest.mark.parametrize("check", testing.CHECKS["encoder"])
    def test_it_is_an_encoder(check):
        check(MyBlur())

A check takes the plugin, small enough to compile in a second, and raises AssertionError with a description of the
violation. The checks of encoders and networks also take `image_shape`, (8, 8, 2) by default.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from diffenc.errors import UserError
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

_CHECKS_OF_KIND: Mapping[str, tuple[Check, ...]] = {
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
    kind: (*any_plugin.CHECKS, *checks) for kind, checks in _CHECKS_OF_KIND.items()
}


def check(plugin: Any, **options: Any) -> None:
    """Runs all checks of the plugin's kind, for use without pytest.

    Args:
      options: `image_shape`, for encoders and networks.

    Raises:
      AssertionError: the first check that fails.
      UserError: `plugin` is a class, or no plugin at all.
    """
    if isinstance(plugin, type):
        raise UserError(f"testing.check({plugin.__name__}): pass an instance, as {plugin.__name__}()")
    if not dataclasses.is_dataclass(plugin):
        raise UserError(f"testing.check({plugin!r}): pass an instance of a plugin, which is a dataclass")
    for each in any_plugin.CHECKS:  # first: the others call what these make sure is there
        each(plugin)
    for each in _CHECKS_OF_KIND[any_plugin.kind_of(plugin)]:
        each(plugin, **options)


__all__ = ["CHECKS", "Check", "check"]
