import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core import compiled_once
from diffenc.core.compiled_once import KEPT


@dataclasses.dataclass(frozen=True)
class Power:
    exponent: int

    def __call__(self, x):
        return x**self.exponent


@pytest.fixture
def traced():
    """The functions that were traced, in order."""
    return []


@pytest.fixture
def make(traced):
    @compiled_once.compiled_once
    def make(function, factor=1.0):
        def scaled(x):
            traced.append(function)
            return factor * function(x)

        return jax.jit(scaled)

    return make


def test_equal_arguments_are_traced_once_and_others_anew(make, traced):
    x = jnp.array([2.0, 3.0])
    for _ in range(2):
        np.testing.assert_array_equal(make(Power(2))(x), [4, 9])
        np.testing.assert_array_equal(make(Power(3))(x), [8, 27])
        np.testing.assert_array_equal(make(Power(2), factor=0.5)(x), [2, 4.5])
    assert traced == [Power(2), Power(3), Power(2)]
    assert make(Power(2)) is make(Power(2))


def test_arguments_of_the_compiled_function_are_no_part_of_it(make):
    function = make(Power(2))
    np.testing.assert_array_equal([function(jnp.float32(value)) for value in (1, 2, 5)], [1, 4, 25])


@dataclasses.dataclass(frozen=True)
class Shift:
    by: np.ndarray

    def __call__(self, x):
        return x + self.by


def test_what_holds_arrays_is_compiled_each_time(make):
    """Equality of arrays is no yes or no: the second shift must not find the first one's function."""
    for by in (1.0, 7.0):
        np.testing.assert_array_equal(make(Shift(np.array([by])))(jnp.zeros(1)), [by])
        np.testing.assert_array_equal(make(Power(1), factor=np.array([by]))(jnp.ones(1)), [by])


def test_an_error_of_the_function_that_makes_it_is_shown():
    @compiled_once.compiled_once
    def refuse(value):
        raise TypeError(f"no {value}")

    for value in (1, [1]):
        with pytest.raises(TypeError, match="no "):
            refuse(value)


def test_as_many_are_kept_as_is_said(make):
    first = make(Power(0))
    for exponent in range(1, KEPT):
        make(Power(exponent))
    assert make(Power(0)) is first
    for exponent in range(1, KEPT + 1):
        make(Power(exponent))
    assert make(Power(0)) is not first
