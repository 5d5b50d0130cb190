"""Conformance checks of optimizers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffenc.registry import selector_of
from diffenc.testing.assertions import require, require_finite, require_like

STEPS = 300


def _start() -> Any:
    return {"layer": {"w": jnp.asarray([[1.0, -2.0]]), "b": jnp.asarray([0.5])}}


# Minimal at 3, away from 0: weight decay alone would raise the loss.
def _loss(params: Any) -> Any:
    return sum(jnp.sum(jnp.square(leaf - 3)) for leaf in jax.tree.leaves(params))


def it_builds_an_optax_transformation(plugin: Any) -> None:
    """Requires `build` to return an optax.GradientTransformation."""
    built = plugin.build(STEPS)
    is_optax = isinstance(built, optax.GradientTransformation)
    require(is_optax, plugin, f"build returns {type(built).__name__}, no optax.GradientTransformation")


def it_reduces_a_quadratic_loss(plugin: Any) -> None:
    """Requires a lower quadratic loss after 300 compiled steps, with unchanged shapes and dtypes."""
    optimizer = plugin.build(STEPS)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = _start(), optimizer.init(_start())
    for _ in range(STEPS):
        params, state = step(params, state)
    require_finite(params, plugin, "a parameter")
    first, last = float(_loss(_start())), float(_loss(params))
    require(last < first, plugin, f"a quadratic loss goes from {first:.3g} to {last:.3g} in {STEPS} steps")
    for old, new in zip(jax.tree.leaves(_start()), jax.tree.leaves(params), strict=True):
        require_like(new, old, plugin, "a parameter after training")


class _Pair(NamedTuple):
    w: Any
    b: Any


def it_takes_any_pytree(plugin: Any) -> None:
    """Requires support of dicts, lists, NamedTuples, None, a single array and an empty pytree as parameters."""
    w, b = jnp.asarray([[1.0, -2.0]]), jnp.asarray([0.5])
    optimizer = plugin.build(STEPS)
    for params in ({"layer": [w, b]}, [w, (b, None)], _Pair(w, b), w, {"a/b": {"w": w}}, {}):
        try:
            updates, _ = optimizer.update(params, optimizer.init(params), params)
            new = optax.apply_updates(params, updates)
        except Exception as error:  # whatever a mask or a rule by names raises
            structure = jax.tree.structure(params)
            raise AssertionError(
                f"{selector_of(type(plugin))}: parameters of the structure {structure} raise {error!r}"
            ) from error
        same = jax.tree.structure(new) == jax.tree.structure(params)
        require(same, plugin, f"a step changes the structure of parameters {jax.tree.structure(params)}")


def state_is_arrays_of_fixed_shape(plugin: Any) -> None:
    """Requires a state of finite arrays with constant shapes and dtypes, as checkpoints and jit need it."""
    optimizer = plugin.build(STEPS)
    before = optimizer.init(_start())
    _, after = optimizer.update(jax.grad(_loss)(_start()), before, _start())
    same = jax.tree.structure(before) == jax.tree.structure(after)
    require(same, plugin, "a step changes the structure of the optimizer's state")
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        arrays = all(isinstance(each, jax.Array | np.ndarray) for each in (old, new))
        require(arrays, plugin, "its state has a leaf that is not an array")
        keys = any(jnp.issubdtype(each.dtype, jax.dtypes.prng_key) for each in (old, new))
        require(not keys, plugin, "its state holds a typed key: store its jax.random.key_data")
        require_like(new, old, plugin, "the optimizer's state after a step")
        require_finite(new, plugin, "the optimizer's state")


CHECKS = (
    it_builds_an_optax_transformation,
    it_reduces_a_quadratic_loss,
    it_takes_any_pytree,
    state_is_arrays_of_fixed_shape,
)
