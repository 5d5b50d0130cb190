"""Loops over equal parts of a computation, compiled in the form that is fast on the device."""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

Carry = TypeVar("Carry")
P = ParamSpec("P")
R = TypeVar("R")


# A context variable, not an argument: networks are plugins and their interface does not mention devices. It
# is read while tracing; a compiled program does not look at it again.
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def trace_for(platform: str, function: Callable[P, R]) -> Callable[P, R]:
    """Returns `function` with loops in the form for devices of `platform` while it runs, that is, while it is traced.

    The host need not have such devices: a step can be compiled ahead of time for others.
    """

    @functools.wraps(function)
    def traced(*args: P.args, **options: P.kwargs) -> R:
        token = _platform.set(platform)
        try:
            return function(*args, **options)
        finally:
            _platform.reset(token)

    return traced


def on_cpu() -> bool:
    """Returns whether the code is traced for a CPU: by the platform of `trace_for`, else by JAX's default backend."""
    return (_platform.get() or jax.default_backend()) == "cpu"


def unrolls() -> bool:
    """Returns whether loops are unrolled: on the CPU.

    On the CPU, XLA's gradient of a convolution takes 15 to 50 times longer within a loop than outside of one.
    Elsewhere a loop compiles in the time of one turn, and runs as fast.
    """
    return on_cpu()


def scan(turn: Callable[[Carry, Any], tuple[Carry, Any]], first: Carry, parts: Any) -> tuple[Carry, Any]:
    """Computes `jax.lax.scan(turn, first, parts)`, unrolled where `unrolls()`.

    Args:
      turn: (carry, part) -> (carry, result).
      parts: a pytree of arrays [n, ...].

    Returns:
      The last carry, and the results stacked [n, ...].
    """
    # 0 is all of it; True is the length, and a length of 1 stays a loop of one turn
    return jax.lax.scan(turn, first, parts, unroll=0 if unrolls() else 1)


def after(done: Any, part: Any) -> Any:
    """Returns `part` unchanged, but usable only after `done` is computed; for turns that do not depend on each other.

    A loop runs its turns one after the other. Unrolled, turns would be interleaved and hold all their intermediate
    results in memory at once: on the CPU, XLA drops `jax.lax.optimization_barrier` before scheduling. So a zero is
    added that XLA cannot fold: 0 times the sum of all arrays in `done`, NaN where that sum is not finite.
    """
    if not unrolls():
        return part
    # XLA does not fold 0 * x in floating point, since it is NaN
    # for an infinite or NaN x: the dependence survives all passes.
    zero = 0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(done))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(zero).astype(leaf.dtype), part)


def stored(value: Array) -> Array:
    """Returns `value` unchanged, but computed once and stored; for sums that the turns of a loop accumulate.

    In an unrolled loop XLA fuses such a sum into each of its readers, which then add up all earlier turns again: a
    fifth of the train step of an 8-block U-Net on a CPU. An operand of a conditional has to be stored, since XLA
    cannot predict the branch. The other branch, twice the value, is taken only where the first number is NaN anyway.
    """
    if not unrolls():
        return value
    return jax.lax.cond(jnp.isnan(value.ravel()[0]), lambda kept: 2 * kept, lambda kept: kept, value)
