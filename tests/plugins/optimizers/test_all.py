"""What every optimizer keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffenc import registry

every_optimizer = pytest.mark.parametrize("name", list(registry.optimizers))
START = {"layer": {"w": jnp.asarray([[1.0, -2.0]]), "b": jnp.asarray([0.5])}}


def loss(params):
    return sum(jnp.sum(jnp.square(leaf - 3)) for leaf in jax.tree.leaves(params))


@every_optimizer
def test_it_goes_downhill(name):
    optimizer = registry.optimizers[name]().build()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = START, optimizer.init(START)
    for _ in range(300):
        params, state = step(params, state)
    assert loss(params) < loss(START)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), START
    )


@every_optimizer
def test_its_state_is_arrays_of_fixed_shape(name):
    """A checkpoint holds it, and a compiled step takes it again and again."""
    optimizer = registry.optimizers[name]().build()
    before = optimizer.init(START)
    _, after = optimizer.update(jax.grad(loss)(START), before, START)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert np.isfinite(new).all()
