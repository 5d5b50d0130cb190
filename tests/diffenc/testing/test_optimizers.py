import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from diffenc.testing import optimizers as checks


@dataclasses.dataclass(frozen=True)
class Fine:
    """Gradient descent with momentum."""

    def build(self, num_steps: int) -> Any:
        return optax.sgd(0.01, momentum=0.9)


def with_update(change) -> Any:
    plain = optax.sgd(0.01, momentum=0.9)

    def update(updates, state, params=None):
        return change(*plain.update(updates, state, params))

    return optax.GradientTransformation(plain.init, update)


class Class(Fine):
    def build(self, num_steps):
        return optax.sgd


class Uphill(Fine):
    def build(self, num_steps):
        return optax.sgd(-0.01)


class Diverges(Fine):
    def build(self, num_steps):
        return optax.sgd(3.0)


class Grows(Fine):
    def build(self, num_steps):
        return with_update(lambda updates, state: (updates, (state, jnp.ones(1))))


class OtherDtype(Fine):
    def build(self, num_steps):
        return with_update(
            lambda updates, state: (updates, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
        )


class CountsInPython(Fine):
    def build(self, num_steps):
        return optax.GradientTransformation(
            lambda params: 0, lambda updates, state, params=None: (updates, state + 1)
        )


class Unset(Fine):
    def build(self, num_steps):
        return with_update(lambda updates, state: (updates, jax.tree.map(lambda leaf: leaf / 0, state)))


class ByKey(Fine):
    """Knows dicts alone."""

    def build(self, num_steps):
        def mask(params):
            return jax.tree_util.tree_map_with_path(lambda path, leaf: path[-1].key == "w", params)

        return optax.masked(optax.sgd(0.1), mask)


class Keyed(Fine):
    def build(self, num_steps):
        return optax.chain(
            optax.sgd(0.1),
            optax.GradientTransformation(
                lambda params: jax.random.key(0), lambda updates, state, params=None: (updates, state)
            ),
        )


FAULTS = [
    (checks.it_takes_any_pytree, ByKey(), "parameters of the structure .* raise AttributeError"),
    (checks.state_is_arrays_of_fixed_shape, Keyed(), "holds a typed key"),
    (checks.it_builds_an_optax_transformation, Class(), "build returns function"),
    (checks.it_reduces_a_quadratic_loss, Uphill(), "a quadratic loss goes from"),
    (checks.it_reduces_a_quadratic_loss, Diverges(), "NaN or infinite"),
    (checks.state_is_arrays_of_fixed_shape, Grows(), "changes the structure"),
    (checks.state_is_arrays_of_fixed_shape, OtherDtype(), "is bfloat16"),
    (checks.state_is_arrays_of_fixed_shape, CountsInPython(), "not an array"),
    (checks.state_is_arrays_of_fixed_shape, Unset(), "NaN or infinite"),
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
