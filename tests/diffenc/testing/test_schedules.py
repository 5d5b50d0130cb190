import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.core import Tracer

from diffenc.testing import schedules as checks

stop = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Fine:
    """Falls by an amount learned, 18 at first."""

    def init(self, key):
        return {"raw": jnp.asarray(18.0)}

    def apply(self, params, t):
        return 13.0 - (jax.nn.softplus(params["raw"]) + 0.01) * t


@dataclasses.dataclass(frozen=True)
class FineInside(Fine):
    """Falls along t + bend t (1 - t), the bend learned for the variance alone."""

    def init(self, key):
        return {"raw": jnp.asarray(18.0), "bend": jnp.asarray(0.5)}

    def inside(self, params, t):
        return t + 0.9 * jnp.tanh(params["bend"]) * t * (1 - t)

    def apply(self, params, t):
        return super().apply(params, self.inside({"bend": stop(params["bend"])}, t))

    def interior(self, params, t):
        return super().apply({"raw": stop(params["raw"])}, self.inside(params, t))


class Column(Fine):
    def apply(self, params, t):
        return super().apply(params, t)[:, None]


class HalfParameters(Fine):
    def init(self, key):
        return {"raw": jnp.asarray(18.0, jnp.bfloat16)}


class OtherWhenCompiled(Fine):
    def apply(self, params, t):
        return super().apply(params, t) - isinstance(t, Tracer)


class Level(Fine):
    """For the first tenth."""

    def apply(self, params, t):
        return super().apply(params, jnp.maximum(t, 0.1))


class Upwards(Fine):
    def apply(self, params, t):
        return -super().apply(params, t)


class FreeSign(Fine):
    """Falls at first."""

    def init(self, key):
        return {"raw": jnp.asarray(1.0)}

    def apply(self, params, t):
        return 13.0 - params["raw"] * t


class Blows(Fine):
    def apply(self, params, t):
        return super().apply(params, t) - jnp.exp(30 * (params["raw"] - 18.0)) * t


class NoRate(Fine):
    def apply(self, params, t):
        return super().apply(params, stop(t))


class Steep(Fine):
    """Infinitely, at t = 0."""

    def apply(self, params, t):
        return super().apply(params, jnp.sqrt(t))


class ByPlace(Fine):
    def apply(self, params, t):
        return super().apply(params, t) - jnp.arange(len(t)) * 1e-3


class OtherInside(FineInside):
    def interior(self, params, t):
        return super().interior(params, t) + 1e-3


class Shared(FineInside):
    def apply(self, params, t):
        return (
            self.interior({"raw": params["raw"], "bend": params["bend"]}, t)
            + params["bend"]
            - stop(params["bend"])
        )

    def interior(self, params, t):
        return Fine.apply(self, {"raw": stop(params["raw"])}, self.inside(params, t))


class MovesTheEnd(FineInside):
    def inside(self, params, t):
        return t * (1 + jnp.tanh(params["bend"]) / 2)


class Nothing(FineInside):
    def interior(self, params, t):
        return stop(super().interior(params, t))


FAULTS = [
    (
        checks.parameters_are_trainable,
        HalfParameters(),
        r"raw, which is bfloat16\[\].*cast within apply",
    ),
    (checks.log_snr_matches_t, Column(), r"log_snr is float32 \(7, 1\), not float32 \(7,\)"),
    (checks.log_snr_matches_t, OtherWhenCompiled(), "changes when compiled"),
    (checks.log_snr_falls_strictly, Level(), r"does not decrease at t = 0\.000 \(at init"),
    (checks.log_snr_falls_strictly, Upwards(), "does not decrease"),
    (checks.log_snr_falls_strictly_after_training, FreeSign(), r"does not decrease.*parameters perturbed by"),
    (checks.log_snr_falls_strictly_after_training, Blows(), "NaN or infinite"),
    (checks.rate_agrees_with_differences, NoRate(), "differs from finite differences"),
    (checks.gradients_are_finite, Steep(), "NaN or infinite"),
    (checks.log_snr_ignores_other_times, ByPlace(), "the order of times"),
    (checks.interior_changes_neither_ends_nor_bound, OtherInside(), "differs from `apply`"),
    (checks.interior_changes_neither_ends_nor_bound, Shared(), "gradients of both"),
    (checks.interior_changes_neither_ends_nor_bound, MovesTheEnd(), "changes an end"),
    (checks.interior_changes_neither_ends_nor_bound, Nothing(), "no gradient in any parameter"),
]


@pytest.mark.thin
@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("plugin", [Fine(), FineInside()], ids=["without interior", "with"])
def test_what_keeps_all_passes_all(check, plugin):
    check(plugin)


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == set(checks.CHECKS)
