"""Checks of generative means: each refuses a plugin with its own fault."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import pytest

from diffenc.interfaces import AffineMean, Estimate, GenerativeMean, ProportionalMean
from diffenc.testing import generative_means as checks


@dataclasses.dataclass(frozen=True)
class Fine(ProportionalMean):
    """A slope of half of x_hat."""

    def kappa(self, params, interval):
        return 0.5 * interval.stretch


class Sure(Fine):
    """Has a parameter of integers, which no optimizer can train."""

    def init(self, key, z, log_snr):
        return {"gain": jnp.ones((), jnp.int32)}


class Single(Fine):
    """Forgets float64."""

    def apply(self, params, x_hat, step):
        value, slope = super().apply(params, x_hat, step)
        return Estimate(value, slope.astype(jnp.float32))


class Divides(Fine):
    """Is not finite where there is no noise."""

    def kappa(self, params, interval):
        return jnp.exp(40 * interval.log_snr)


class Mixes(Fine):
    """Lets an image see its neighbour."""

    def apply(self, params, x_hat, step):
        return super().apply(params, x_hat + 0.1 * jnp.roll(step.z, 1, axis=0), step)


@dataclasses.dataclass(frozen=True)
class Curved(AffineMean):
    """Is called affine, and is not."""

    def apply(self, params, x_hat, step):
        return Estimate(x_hat, x_hat + 0.1 * jnp.sin(x_hat))


class Against(Fine):
    """Has a slope that takes the value back."""

    def kappa(self, params, interval):
        return -1.5 * interval.stretch


class Undeclared(Fine):
    """Has a loss that it does not declare."""

    def auxiliary_losses(self, error, x_hat_error, log_snr):
        return {"other": log_snr}


class Misnamed(Fine):
    """Has a loss that would pass for another metric."""

    auxiliary: ClassVar[tuple[str, ...]] = ("bpd",)

    def auxiliary_losses(self, error, x_hat_error, log_snr):
        return {"bpd": log_snr}


class Missing(Fine):
    """Declares a loss that it does not have."""

    auxiliary: ClassVar[tuple[str, ...]] = ("gone",)


@dataclasses.dataclass(frozen=True)
class Encodes(GenerativeMean):
    """Runs the encoder, and does not say so."""

    def apply(self, params, x_hat, step):
        return step.encode(x_hat)


FAULTS = [
    (checks.parameters_can_be_trained, Sure(), "int32"),
    (checks.estimates_are_like_x_hat, Single(), "the slope over a tangent is float32 .*, not float64"),
    (checks.estimates_are_like_x_hat, Divides(), "the slope over a tangent: NaN or infinite"),
    (checks.examples_do_not_interact, Mixes(), "the order of examples"),
    (checks.errors_are_differences, Curved(), "`error` is not `apply` less the truth over a tangent"),
    (checks.the_bound_determines_x_hat, Against(), "does not rise with x_hat"),
    (checks.auxiliary_losses_are_declared, Undeclared(), r"are \['other'\], and `auxiliary` declares \[\]"),
    (checks.auxiliary_losses_are_declared, Misnamed(), "must end in _loss"),
    (checks.auxiliary_losses_are_declared, Missing(), r"are \[\], and `auxiliary` declares \['gone'\]"),
]


@pytest.mark.parametrize("check", checks.CHECKS)
def test_a_mean_that_keeps_all_passes_all(check):
    check(Fine())


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_an_encoder_that_was_not_asked_for_is_not_there():
    with pytest.raises(ValueError, match="was given none"):
        checks.estimates_are_like_x_hat(Encodes())


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == {*checks.CHECKS}
