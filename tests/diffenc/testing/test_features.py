import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from diffenc.testing import features as checks

COUNTER = itertools.count()


def moments(weights, images):
    """Mean and mean square over places, of three channels."""
    colour = jnp.broadcast_to(images, (*images.shape[:-1], 3)).astype(jnp.float32)
    return weights[None] * jnp.concatenate(
        [colour.mean((1, 2)), jnp.square(colour / 16).mean((1, 2))], axis=-1
    )


@dataclasses.dataclass(frozen=True)
class Fine:
    """Moments."""

    num_features = 6
    function = staticmethod(moments)

    def metric(self) -> str:
        return "fd_moments"

    def identity(self) -> str:
        return "moments v1"

    def load(self) -> Any:
        return Partial(self.function, jnp.ones(6))


class CalledFid(Fine):
    def metric(self):
        return "fid"


class TwoWords(Fine):
    def metric(self):
        return "my distance"


class Renamed(Fine):
    def identity(self):
        return f"moments {next(COUNTER)}"


class Closure(Fine):
    def load(self):
        return lambda images: moments(jnp.ones(6), images)


class Miscounted(Fine):
    num_features = 5


class Double(Fine):
    @staticmethod
    def function(weights, images):
        return moments(weights, images).astype(jnp.result_type(float))


class DividesByZero(Fine):
    @staticmethod
    def function(weights, images):
        return moments(weights, images) / jnp.asarray(images.shape[-1] - 3, jnp.float32)


class OfTheBatch(Fine):
    @staticmethod
    def function(weights, images):
        return jnp.cumsum(moments(weights, images), axis=0)


class Constant(Fine):
    @staticmethod
    def function(weights, images):
        return 1 + 0 * moments(weights, images)


class Colourful(Fine):
    @staticmethod
    def function(weights, images):
        return moments(weights, images) * images.shape[-1]


FAULTS = [
    (checks.metric_and_identity_are_valid, CalledFid(), 'metric.* = "fid"'),
    (checks.metric_and_identity_are_valid, TwoWords(), "must be an identifier"),
    (checks.metric_and_identity_are_valid, Renamed(), "the same at every call"),
    (checks.weights_are_a_pytree, Closure(), "no pytree of its weights"),
    (checks.features_are_float32_of_declared_size, Miscounted(), r"float32 \(3, 6\), not float32 \(3, 5\)"),
    (checks.features_are_float32_of_declared_size, Double(), "float64"),
    (checks.features_are_float32_of_declared_size, DividesByZero(), "NaN or infinite"),
    (checks.features_ignore_other_images, OfTheBatch(), "the order of the batch"),
    (checks.features_ignore_other_images, Constant(), "the same features"),
    (checks.grey_images_equal_three_equal_channels, Colourful(), "three equal channels"),
]


@pytest.mark.parametrize("check", checks.CHECKS)
def test_what_keeps_all_passes_all(check):
    check(Fine())


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == set(checks.CHECKS)


def test_images_are_of_all_levels():
    assert np.ptp(checks._images(3)) > 250
