import dataclasses

import jax
import jax.numpy as jnp
import pytest

from diffenc.interfaces import NO_CONTEXT
from diffenc.testing import image_maps
from diffenc.testing import networks as checks


@dataclasses.dataclass(frozen=True)
class Fine:
    """sin(w z + b log_snr)."""

    def init(self, key, z, log_snr):
        return {"w": jax.random.normal(key, z.shape[-1:]), "b": jnp.ones(())}

    def level(self, log_snr):
        return log_snr

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        shift = (params["b"] * self.level(log_snr))[:, None, None, None]
        return jnp.sin(jnp.broadcast_to(params["w"], z.shape) * z + shift)


class Idle(Fine):
    def init(self, key, z, log_snr):
        return {**super().init(key, z, log_snr), "idle": jnp.ones(3)}


class Blind(Fine):
    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return super().apply(params, jnp.ones_like(z), log_snr)


class Timeless(Fine):
    def level(self, log_snr):
        return jnp.ones_like(log_snr)


class Clipped(Fine):
    def level(self, log_snr):
        return jnp.clip(log_snr, -10, 10)


FAULTS = [
    (checks.gradients_reach_every_parameter, Idle(), r"Idle: no gradient reaches the parameter idle"),
    (checks.gradients_reach_every_parameter, Blind(), "does not depend on z"),
    (checks.gradients_reach_every_parameter, Timeless(), "does not depend on log_snr"),
    (checks.output_depends_on_noise_level, Clipped(), "changes an image's output by only 0"),
]


@pytest.mark.thin
@pytest.mark.parametrize("check", checks.CHECKS)
def test_what_keeps_all_passes_all(check):
    check(Fine())


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == set(checks.CHECKS) - set(image_maps.CHECKS)
