"""Checks of variances, time_samplers and conditionings: each refuses a plugin with its own fault."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from diffenc.interfaces import EXCESS
from diffenc.testing import conditionings, time_samplers, variances


@dataclasses.dataclass(frozen=True)
class Conditional:
    """The class number plus one."""

    label = "class"
    drop = 0.1

    def __call__(self, labels):
        return (labels + 1).astype(np.int32)


class Silent(Conditional):
    def __call__(self, labels):
        return None


class FromZero(Conditional):
    def __call__(self, labels):
        return labels.astype(np.int32)


class Wide(Conditional):
    def __call__(self, labels):
        return super().__call__(labels).astype(np.int64)


class DropsAll(Conditional):
    drop = 1.0


class ByOrder(Conditional):
    def __call__(self, labels):
        return (np.unique(labels, return_index=True)[1].max() + labels).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Log:
    """log w = -log(1 + excess)."""

    requires: ClassVar[frozenset[str]] = frozenset({EXCESS})

    def __call__(self, log_snr_t, log_snr_s, excess):
        return -jnp.log1p(excess)


class Single(Log):
    def __call__(self, *args):
        return super().__call__(*args).astype(jnp.float32)


class One(Log):
    def __call__(self, *args):
        return jnp.sum(super().__call__(*args))


class Infinite(Log):
    def __call__(self, log_snr_t, log_snr_s, excess):
        return super().__call__(log_snr_t, log_snr_s, excess) - jnp.exp(jnp.exp(log_snr_s))


class OtherWhenCompiled(Log):
    def __call__(self, *args):
        log_w = super().__call__(*args)
        return log_w - isinstance(log_w, Tracer)


class ByStep(Log):
    def __call__(self, *args):
        return jnp.cumsum(super().__call__(*args))


class Undeclared(Log):
    requires = frozenset()


class Unknown(Log):
    requires = frozenset({"bias"})


class NoSet(Log):
    requires: Any = EXCESS


@dataclasses.dataclass(frozen=True)
class Tilted:
    """Density 2 / 3 (1 + t): u = (2 t + t^2) / 3."""

    def t(self, u):
        return 3 * u / (1 + jnp.sqrt(1 + 3 * u))

    def weight(self, t):
        return 1.5 / (1 + t)

    def __call__(self, u, curve):
        t = self.t(u)
        return t, self.weight(t)


class Unweighted(Tilted):
    def weight(self, t):
        return jnp.ones_like(t)


class RightOnAverage(Tilted):
    """Weights of each pair of neighbours are exchanged, as if cut off at random."""

    def __call__(self, u, curve):
        t, weight = super().__call__(u, curve)
        wave = 1 + 0.01 * jnp.sin(2e5 * u)
        return t, weight * wave


class Backwards(Tilted):
    def t(self, u):
        return super().t(1 - u)


class NotAll(Tilted):
    def t(self, u):
        return 0.5 * super().t(u)


class Bare(Tilted):
    def __call__(self, u, curve):
        return u, jnp.float32(1.0)


class Half(Tilted):
    def __call__(self, u, curve):
        t, weight = super().__call__(u, curve)
        return t.astype(jnp.float16), weight


class Never(Tilted):
    def weight(self, t):
        return 1 / t


class Negative(Tilted):
    def weight(self, t):
        return super().weight(t) - 1


class NeedsCurve(Tilted):
    def __call__(self, u, curve):
        return super().__call__(u + 0 * curve[0], curve)


FAULTS = [
    (conditionings.conditions_are_positive_int32, Silent(), "one is None, one is not"),
    (conditionings.conditions_are_positive_int32, FromZero(), "condition 0, which means no condition"),
    (conditionings.conditions_are_positive_int32, Wide(), "int64"),
    (conditionings.drop_is_a_probability, DropsAll(), r"drop = 1\.0: must be in \[0, 1\)"),
    (conditionings.conditions_ignore_other_labels, ByOrder(), "the order of labels"),
    (variances.log_w_is_finite_for_each_step, Single(), "log w of 11 steps is float32"),
    (variances.log_w_is_finite_for_each_step, One(), r"log w of 11 steps is float32 \(\)"),
    (variances.log_w_is_finite_for_each_step, Infinite(), "NaN or infinite"),
    (variances.log_w_is_finite_for_each_step, OtherWhenCompiled(), "compiled"),
    (variances.log_w_ignores_other_steps, ByStep(), "the order of steps"),
    (
        variances.requirements_are_declared,
        Undeclared(),
        "without `excess` it raises TypeError.*declare the measurement",
    ),
    (
        variances.requirements_are_declared,
        Unknown(),
        "must be a frozenset of excess, gradient_curve, loss_curve",
    ),
    (variances.requirements_are_declared, NoSet(), "requires = 'excess': must be a frozenset"),
    (
        time_samplers.weighted_means_equal_uniform_means,
        Unweighted(),
        "the weighted mean of t differs",
    ),
    (time_samplers.weight_is_dt_du, RightOnAverage(), "differs from dt / du"),
    (time_samplers.times_increase_from_0_to_1, Backwards(), "does not increase"),
    (time_samplers.times_increase_from_0_to_1, NotAll(), r"not from 0 to 1 \(curve: flat\)"),
    (time_samplers.times_increase_from_0_to_1, Half(), r"t is float16 \(\d+,\), not float32"),
    (time_samplers.times_increase_from_0_to_1, Bare(), r"the weight is float32 \(\)"),
    (time_samplers.times_increase_from_0_to_1, Never(), "the weight .*NaN or infinite"),
    (time_samplers.times_increase_from_0_to_1, Negative(), "a weight is not positive"),
    (
        time_samplers.requirements_are_declared,
        NeedsCurve(),
        "without `curve` it raises TypeError.*declare the measurement",
    ),
]


@pytest.mark.thin
@pytest.mark.parametrize(
    ("plugin", "check"),
    [
        *((Conditional(), check) for check in conditionings.CHECKS),
        *((Log(), check) for check in variances.CHECKS),
        *((Tilted(), check) for check in time_samplers.CHECKS),
    ],
)
def test_what_keeps_all_passes_all(plugin, check):
    check(plugin)


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_a_weight_fault_that_means_do_not_show():
    time_samplers.weighted_means_equal_uniform_means(RightOnAverage())


def test_every_check_has_a_fault():
    every = {*conditionings.CHECKS, *variances.CHECKS, *time_samplers.CHECKS}
    assert {check for check, _, _ in FAULTS} == every
