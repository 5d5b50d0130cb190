import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.core import Tracer

from diffenc.testing import stochasticities as checks

stop = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Fine:
    """A constant eta, learned."""

    def init(self, key):
        return {"raw": jnp.asarray(0.0)}

    def increment(self, params, log_snr_t, log_snr_s):
        return jnp.exp(params["raw"]) * (log_snr_s - log_snr_t)


class Column(Fine):
    def increment(self, params, log_snr_t, log_snr_s):
        return super().increment(params, log_snr_t, log_snr_s)[:, None]


class HalfParameters(Fine):
    def init(self, key):
        return {"raw": jnp.asarray(0.0, jnp.bfloat16)}


class OtherWhenCompiled(Fine):
    def increment(self, params, log_snr_t, log_snr_s):
        return super().increment(params, log_snr_t, log_snr_s) * (1 + isinstance(log_snr_t, Tracer))


class Falls(Fine):
    def increment(self, params, log_snr_t, log_snr_s):
        return super().increment(params, log_snr_s, log_snr_t)


class FreeSign(Fine):
    """Rises at first."""

    def increment(self, params, log_snr_t, log_snr_s):
        return (0.1 + params["raw"]) * (log_snr_s - log_snr_t)


class Jumps(Fine):
    def increment(self, params, log_snr_t, log_snr_s):
        return super().increment(params, log_snr_t, log_snr_s) + 1e-3


class OfTheStep(Fine):
    """No difference of one function."""

    def increment(self, params, log_snr_t, log_snr_s):
        return jnp.sinh((log_snr_s - log_snr_t) / 10)


class Subtracts(Fine):
    def increment(self, params, log_snr_t, log_snr_s):
        of_s, of_t = (log_snr - 2 * jax.nn.softplus(-log_snr) for log_snr in (log_snr_s, log_snr_t))
        return of_s - of_t


class NoRate(Fine):
    def increment(self, params, log_snr_t, log_snr_s):
        return super().increment(params, log_snr_t, stop(log_snr_s))


class Steep(Fine):
    """Its slope is infinite at steps of no length."""

    def increment(self, params, log_snr_t, log_snr_s):
        rise = log_snr_s - log_snr_t
        return rise + 0 * jnp.sqrt(jnp.abs(rise) + 0 * params["raw"])


class ByPlace(Fine):
    def increment(self, params, log_snr_t, log_snr_s):
        return (1 + 0.1 * jnp.arange(len(log_snr_t))) * super().increment(params, log_snr_t, log_snr_s)


FAULTS = [
    (
        checks.parameters_are_trainable,
        HalfParameters(),
        r"raw, which is bfloat16\[\].*cast within apply",
    ),
    (checks.increments_are_shaped_like_log_snr, Column(), r"is float32 \(10, 1\), not float32 \(10,\)"),
    (checks.increments_are_shaped_like_log_snr, OtherWhenCompiled(), "compiled, the increment is another"),
    (checks.increments_rise_with_log_snr, Falls(), "is not above 0"),
    (checks.increments_rise_with_log_snr, FreeSign(), "is not above 0"),
    (checks.increments_rise_with_log_snr, Jumps(), "from a log_snr to itself is not 0"),
    (checks.increments_add_up, OfTheStep(), "do not add up"),
    (checks.short_steps_keep_their_digits, Subtracts(), "float32 has lost digits of the increment"),
    (checks.eta_squared_is_the_rate_of_the_increment, NoRate(), "eta\\^2 is not above 0"),
    (checks.gradients_are_finite, Steep(), "NaN or infinite"),
    (checks.no_step_sees_another, ByPlace(), "the order of steps changes an increment"),
]


@pytest.mark.parametrize("check", checks.CHECKS)
def test_a_fine_one_passes(check):
    check(Fine())


@pytest.mark.parametrize(("check", "fault", "message"), FAULTS)
def test_a_fault_is_told_by_the_check_it_is_for(check, fault, message):
    with pytest.raises(AssertionError, match=message):
        check(fault)


def test_every_check_has_a_fault_of_its_own():
    assert {check for check, _, _ in FAULTS} == set(checks.CHECKS)
