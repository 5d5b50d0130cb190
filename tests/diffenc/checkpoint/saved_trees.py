"""Checkpoints of a small pytree, for the tests of what comes back and of damage."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.checkpoint.checkpoints import Checkpoints


def make_tree(value: float) -> Any:
    return {
        "params": {
            "unet/~/conv": {"w": jnp.full((3, 40), float(value)), "b": jnp.zeros(3)},
            "log_snr": jnp.float32(value),
        },
        "ema": {"w": jnp.full((2,), value, jnp.bfloat16)},
        "opt_state": (jnp.int32(value), (), None, {"mu": [jnp.full((2, 2), float(value))]}),
        "step": jnp.uint32(value),
    }


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


ABSTRACT = abstract(make_tree(0))


def save_steps(directory: Path, *steps: int, keep_last: int = 99, keep_every: int = 0) -> Checkpoints:
    with Checkpoints(directory, keep_last, keep_every) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_tree(step), {"name": "täglich", "step": step})
    return checkpoints


def are_equal(a: Any, b: Any) -> bool:
    """Same structure, and every leaf the same bit for bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
