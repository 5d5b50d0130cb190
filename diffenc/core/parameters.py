"""Pytrees of parameters, of any shape: the names of their leaves, and which leaves are accepted."""

import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffenc.errors import UserError
from diffenc.interfaces import Params

Spell = Callable[[Any], str]

# 16 TiB: a bound against mistyped sizes, which would
# otherwise end in an allocation failure without a message.
MOST_BYTES = 1 << 44  # of all that a run carries


def name_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by name, in the order of `jax.tree.leaves`: the parts of their paths joined by "/".

    These are the names in parameters.txt, in exported weights and for `mesh.rules`. Where two leaves would share a
    name, all are named as by `name_leaves_quoted`.

    Raises:
      UserError: the tree cannot be flattened, or two leaves have the same path.
    """
    named = _spell_paths(tree, _plain)
    # Plain names are for people and for patterns; {"a/b": x}
    # beside {"a": {"b": y}} is the case where they collide.
    return dict(named) if len({name for name, _ in named}) == len(named) else name_leaves_quoted(tree)


def name_leaves_quoted(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by name, each part that contains "/" or '"' in quotes: the names in checkpoints.

    Raises:
      UserError: the tree cannot be flattened, or two leaves have the same path.
    """
    # Quoting makes names injective: {"a/b": x} and {"a": {"b": x}} have
    # different ones, so a checkpoint cannot restore one into the other.
    leaves: dict[str, Any] = {}
    for name, leaf in _spell_paths(tree, _quoted):
        if name in leaves:
            raise UserError(
                f"two leaves of a pytree are both called {name}: give the children of its node distinct keys"
            )
        leaves[name] = leaf
    return leaves


def as_parameters(owner: str, tree: PyTree) -> Params:
    """Returns the result of a plugin's `init` with every leaf as a float32 array (float64 where that is the default).

    Python and numpy floats become arrays. None is no leaf.

    Args:
      owner: the plugin's name in messages.

    Raises:
      UserError: the tree cannot be flattened, or its structure hashed; or a leaf is no array of the default precision.
    """
    try:
        # Names, flattening, hashing: everything that later code needs of the tree is tried here, with its name.
        named = name_leaves(tree)
        leaves, structure = jax.tree.flatten(tree)
        # jit looks compiled programs up by the hash of the tree's
        # structure: static fields that have none would fail there.
        hash(structure)
    except (UserError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{owner}: what init returns is no pytree that can be compiled: {reason}") from None
    # name_leaves keeps the order of jax.tree.leaves, so zip pairs names with leaves.
    arrays = [_as_array(owner, name, leaf) for name, leaf in zip(named, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def require_same_structure(owner: str, *inits: Callable[[], PyTree]) -> None:
    """Raises UserError unless all calls of a plugin's `init` return pytrees of the same structure."""
    try:
        # Compiled steps look states up by their structure: static
        # fields that differ between two calls would be another state.
        first, *others = [jax.tree.structure(init()) for init in inits]
        differ = any(other != first for other in others)
    except ValueError as error:
        if "metadata fields of pytree" not in str(
            error
        ):  # JAX, which compares them to look up what it compiled
            raise
        differ = True
    if differ:
        raise UserError(
            f"{owner}: two calls of init return pytrees of different structure: what their nodes hold beside leaves "
            "(static fields) must compare equal, so no lambdas or arrays there"
        )


def _spell_paths(tree: PyTree, spell: Spell) -> list[tuple[str, Any]]:
    try:
        found = jax.tree_util.tree_leaves_with_path(tree)
    except ValueError as error:  # keys of a dict that cannot be sorted
        raise UserError(f"no pytree that JAX can flatten: {' '.join(str(error).split())[:200]}") from None
    return [("/".join(map(spell, path)), leaf) for path, leaf in found]


def _plain(key: Any) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    return text if text.isprintable() else json.dumps(text)


def _quoted(key: Any) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    return json.dumps(text) if "/" in text or '"' in text else text


def _as_array(owner: str, name: str, leaf: Any) -> jax.Array:
    where = f"{owner}: init returns {name or 'a leaf'}"
    if isinstance(leaf, (str, bytes)) or not (np.isscalar(leaf) or hasattr(leaf, "dtype")):
        raise UserError(
            f"{where}, which is {_kind(leaf)}: parameters are arrays; leave the rest out of them "
            "(equinox.filter(module, equinox.is_inexact_array), a static field, or a field of the plugin)"
        )
    if isinstance(leaf, jax.ShapeDtypeStruct) or not _is_default_float(leaf):
        raise UserError(
            f"{where}, which is {_kind(leaf)}: parameters are trained and averaged in float32; {_way_out(leaf)}"
        )
    return jnp.asarray(leaf, _dtype(leaf))


def _is_default_float(leaf: Any) -> bool:
    return _dtype(leaf) in (jnp.float32, jnp.result_type(float))


def _dtype(leaf: Any) -> Any:
    """Returns the dtype of the leaf as a JAX array: float64 becomes float32 unless x64 is enabled."""
    dtype = getattr(leaf, "dtype", None)
    return jax.dtypes.canonicalize_dtype(
        np.result_type(leaf) if dtype is None else dtype, allow_extended_dtype=True
    )


def _way_out(leaf: Any) -> str:
    if jnp.issubdtype(_dtype(leaf), jnp.floating):
        return "keep them in float32, and cast within apply"
    return "what is not trained belongs into the fields of the plugin"


def _kind(leaf: Any) -> str:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "a shape without values"
    if hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(getattr(leaf, 'shape', ()))}"
    kind = type(leaf).__name__
    return f"of type {kind}" if not callable(leaf) else f"a function ({getattr(leaf, '__name__', kind)})"


def count_parameters(params: Params) -> int:
    """Returns the number of scalars in a pytree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def abstract_arrays(init: Callable[[], PyTree]) -> PyTree:
    """Returns shapes and dtypes of the arrays of `init`. Raises UserError if they are larger than any machine's memory."""
    try:
        # Abstract evaluation: nothing is allocated, however large the model.
        shapes = jax.eval_shape(init)
    except OverflowError as error:  # a dimension, or a product of some, of more than 64 bits
        raise UserError("the model is too large to be described: bind fewer channels or blocks") from error
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    if size > MOST_BYTES:
        raise UserError(
            f"the model's parameters and their moments take {size:,} bytes, more than any machine holds: bind fewer "
            "channels or blocks"
        )
    return shapes
