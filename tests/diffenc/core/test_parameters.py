"""Names of leaves: one for each, the same everywhere; and which leaves a run can train."""

import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.checkpoint import leaves
from diffenc.core.parameters import as_parameters, name_leaves, name_leaves_quoted, require_same_structure
from diffenc.errors import UserError


class Pair(NamedTuple):
    w: Any
    b: Any


@jax.tree_util.register_pytree_with_keys_class
class Twice:
    """Calls both of its children x."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("x"), child) for child in self.children], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_names_are_the_parts_of_paths():
    tree = {
        "network": {"down_0/conv_0": {"w": 1, "b": 2}},
        "encoder": [3, (4, None)],
        "schedule": Pair(5, {7: 6}),
        "more": eqx.nn.Linear(1, 1, key=jax.random.key(0)),
        "bare": 8,
    }
    want = {
        "bare", "encoder/0", "encoder/1/0", "more/weight", "more/bias",
        "network/down_0/conv_0/b", "network/down_0/conv_0/w", "schedule/w", "schedule/b/7",
    }  # fmt: skip
    assert name_leaves(tree).keys() == want
    assert [*name_leaves(tree).values()] == jax.tree.leaves(tree)


def test_checkpoints_quote_what_has_a_slash():
    """The names of checkpoints that exist."""
    tree = {"params": {"network": {"down_0/conv_0": {"w": 1.0}, 'a"b': [2.0]}}}
    want = {'params/network/"down_0/conv_0"/w': 1.0, 'params/network/"a\\"b"/0': 2.0}
    assert name_leaves_quoted(tree) == want
    assert leaves.leaves_by_name(tree).keys() == want.keys()


def test_names_that_would_meet_are_quoted():
    tree = {"a/b": {"c": 1}, "a": {"b/c": 2}}
    assert name_leaves(tree) == name_leaves_quoted(tree) == {'a/"b/c"': 2, '"a/b"/c': 1}


@pytest.mark.parametrize("name", [name_leaves, name_leaves_quoted])
def test_leaves_of_one_path_are_refused(name):
    with pytest.raises(UserError, match="two leaves of a pytree are both called a/x"):
        name({"a": Twice(1, 2)})


def test_a_name_is_one_line():
    (name,) = name_leaves({"two\nlines": 1})
    assert name == r'"two\nlines"'


@pytest.mark.parametrize(
    "leaf",
    [1.0, np.float64(1), np.float32(1), np.ones(1), np.ones(1, np.float32), jnp.ones(1), jnp.asarray(2.0)],
)
def test_floats_of_all_makes_become_arrays(leaf):
    (array,) = as_parameters("network N", [leaf])
    assert (type(array), array.dtype, array.weak_type) == (type(jnp.ones(1)), jnp.float32, False)
    np.testing.assert_array_equal(array, leaf)
    (traced,) = jax.jit(lambda: as_parameters("network N", [leaf]))()
    assert traced.dtype == jnp.float32


def test_under_x64_both_precisions_are_taken(x64):
    single, double = as_parameters("network N", [np.ones(1, np.float32), 1.0])
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ([1], "init returns 0, which is of type int: parameters are trained and averaged in float32"),
        ([True], "init returns 0, which is of type bool"),
        ([1j], "init returns 0, which is of type complex"),
        ([np.arange(3)], "init returns 0, which is int64[3]"),
        ({"k": jax.random.key(0)}, "init returns k, which is key<fry>[]"),
        ({"k": jax.random.PRNGKey(0)}, "init returns k, which is uint32[2]"),
        ({"k": jnp.ones(2, "bfloat16")}, "k, which is bfloat16[2]: parameters are trained and averaged in float32; "
         "keep them in float32, and cast within apply"),
        ({"k": np.float16(0)}, "init returns k, which is float16[]"),
        ({"k": jnp.ones(1, complex)}, "init returns k, which is complex64[1]"),
        ({"k": jax.ShapeDtypeStruct((2,), jnp.float32)}, "init returns k, which is a shape without values"),
        ({"k": "relu"}, "init returns k, which is of type str: parameters are arrays"),
        ({"k": jax.nn.relu}, "init returns k, which is a function (relu): parameters are arrays"),
        ({"k": object()}, "init returns k, which is of type object: parameters are arrays"),
        (np.array(["a"]), "init returns a leaf, which is <U1[1]"),
        (eqx.nn.MLP(1, 1, 1, 1, key=jax.random.key(0)), "equinox.filter(module, equinox.is_inexact_array)"),
        (eqx.nn.Dropout(0.5), "init returns inference, which is of type bool"),
        ({1: 1.0, "b": 2.0}, "is no pytree that can be compiled"),
        ([Twice(1.0, 2.0)], "are both called 0/x"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_line(tree, says):
    with pytest.raises(UserError, match=f"^network N: .*{re.escape(says)}") as refused:
        as_parameters("network N", tree)
    assert "\n" not in str(refused.value)


def test_the_structure_of_init_must_not_change():
    require_same_structure("network N", lambda: [1, None], lambda: [2, None])
    with pytest.raises(
        UserError, match=r"^network N: two calls of init return pytrees of different structure"
    ):
        require_same_structure("network N", lambda: [1, None], lambda: [1, 2])
