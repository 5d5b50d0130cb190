import dataclasses

import jax
import jax.numpy as jnp
import pytest

from diffenc.interfaces import NO_CONTEXT
from diffenc.testing import encoders as checks
from diffenc.testing import image_maps
from diffenc_plugins.encoders import ClassTemplate


@dataclasses.dataclass(frozen=True)
class Fine:
    """(1 + gain s) x, s = sigmoid(-log_snr)."""

    def init(self, key, x, log_snr):
        return {"gain": jnp.ones(())}

    def s(self, log_snr):
        return jax.nn.sigmoid(-log_snr)

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return x + (params["gain"] * self.s(log_snr))[:, None, None, None] * x


class NoSlope(Fine):
    def s(self, log_snr):
        return jax.lax.stop_gradient(super().s(log_snr))


@jax.custom_jvp
def nearly(log_snr):
    return jax.nn.sigmoid(-log_snr)


nearly.defjvp(
    lambda primals, tangents: (
        nearly(*primals),
        -0.999 * nearly(*primals) * nearly(-primals[0]) * tangents[0],
    )
)


class OwnSlope(Fine):
    def s(self, log_snr):
        return nearly(log_snr)


class Single(Fine):
    def apply(self, *args, **kwargs):
        return super().apply(*args, **kwargs).astype(jnp.float32)


class Kept(Fine):
    """Slopes right without dropout alone."""

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return super().apply(params, x, log_snr if context.keys is None else jax.lax.stop_gradient(log_snr))


@dataclasses.dataclass(frozen=True)
class Listed(Fine):
    sizes: list[int] = dataclasses.field(default_factory=lambda: [8, 8])


@pytest.mark.parametrize("check", checks.CHECKS)
def test_what_is_not_hashable_is_told_so(check):
    """Each check by itself, as pytest runs them."""
    with pytest.raises(AssertionError, match="it is not hashable: its field sizes is a list"):
        check(Listed())


class NeverTheImage(Fine):
    def s(self, log_snr):
        return super().s(log_snr) + 1e-5


class AwayFromTheImage(Fine):
    """It is, until a parameter moves."""

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return super().apply(params, x, log_snr) + params["gain"] - 1


FAULTS = [
    (checks.slope_agrees_with_differences, NoSlope(), "NoSlope: jax.jvp's slope is off by"),
    (checks.slope_agrees_with_differences, OwnSlope(), "jax.jvp's slope is off by"),
    (checks.slope_agrees_with_differences, Kept(), "jax.jvp's slope is off by"),
    (checks.slope_agrees_with_differences, Single(), "the slope for float64 inputs is float32"),
    (checks.encoding_without_noise_is_the_image, NeverTheImage(), "x_phi is not x"),
    (checks.encoding_without_noise_is_the_image, AwayFromTheImage(), "x_phi is not x"),
]


@pytest.mark.thin
@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("plugin", [Fine(), ClassTemplate(classes=2)], ids=["whole", "split"])
def test_what_keeps_all_passes_all(check, plugin):
    check(plugin)


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == set(checks.CHECKS) - set(image_maps.CHECKS)
