"""Loops over equal parts of a computation, compiled as what the device is good at."""

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
    """Returns `function`, with loops as the devices of `platform` want them while it runs, that is, while it is traced.

    This machine need not have such devices: a step can be compiled ahead for others.
    """

    @functools.wraps(function)
    def traced(*args: P.args, **options: P.kwargs) -> R:
        token = _platform.set(platform)
        try:
            return function(*args, **options)
        finally:
            _platform.reset(token)

    return traced


def unrolls() -> bool:
    """Whether loops are written out in full: on the CPU, that of `trace_for` or else of this machine.

    There XLA takes the gradient of a convolution 15 to 50 times longer within a loop than outside of one.
    Elsewhere a loop compiles in the time of one turn, and runs as fast.
    """
    return (_platform.get() or jax.default_backend()) == "cpu"


def scan(turn: Callable[[Carry, Any], tuple[Carry, Any]], first: Carry, parts: Any) -> tuple[Carry, Any]:
    """`jax.lax.scan(turn, first, parts)`, written out where `unrolls()`.

    Args:
      turn: (carry, part) -> (carry, result).
      parts: a pytree of arrays [n, ...].

    Returns:
      The last carry, and the results stacked [n, ...].
    """
    # 0 is all of it; True is the length, and a length of 1 stays a loop of one turn
    return jax.lax.scan(turn, first, parts, unroll=0 if unrolls() else 1)


def after(done: Any, part: Any) -> Any:
    """`part` unchanged, but not to be worked on before `done` is known; for turns that do not need each other.

    A loop keeps them apart by itself. Written out, turns would be mixed and their intermediate results take
    memory all at once: XLA drops `jax.lax.optimization_barrier` on the CPU before it settles the order. So a
    zero is added that it cannot foresee: 0 times the sum of all in `done`, NaN where that is not finite.
    """
    if not unrolls():
        return part
    # XLA does not fold 0 * x in floating point, since it is NaN
    # for an infinite or NaN x: the dependence survives all passes.
    zero = 0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(done))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(zero).astype(leaf.dtype), part)


def stored(value: Array) -> Array:
    """`value` unchanged, but computed once and kept; for what the turns of a loop add to, one after the other.

    Written out, XLA fuses such a sum into everything that reads it, and adds up all turns before anew in each: a
    fifth of the train step of an 8-block U-Net on a CPU. What goes through a branch it has to keep. Which branch
    cannot be foreseen, and does not matter: the other one is taken where the first number is NaN, and all is lost.
    """
    if not unrolls():
        return value
    return jax.lax.cond(jnp.isnan(value.ravel()[0]), lambda kept: 2 * kept, lambda kept: kept, value)
