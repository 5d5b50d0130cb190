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
    means,
    networks,
    optimizers,
    parameterizations,
    proposals,
    schedules,
    variances,
    writers,
)

Check = Callable[..., None]

CHECKS: Mapping[str, tuple[Check, ...]] = {
    kind: (*any_plugin.CHECKS, *module.CHECKS)
    for kind, module in {
        "encoder": encoders,
        "schedule": schedules,
        "parameterization": parameterizations,
        "mean": means,
        "network": networks,
        "conditioning": conditionings,
        "variance": variances,
        "proposal": proposals,
        "dataset": datasets,
        "features": features,
        "optimizer": optimizers,
        "writer": writers,
    }.items()
}


def check(plugin: Any, **given: Any) -> None:
    """All checks of the plugin's kind, for where there is no pytest. Raises AssertionError at the first that fails."""
    any_plugin.is_registered(plugin)
    for each in CHECKS[any_plugin.kind_of(plugin)]:
        each(plugin, **given)


__all__ = ["CHECKS", "Check", "check"]
