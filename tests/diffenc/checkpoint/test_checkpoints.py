"""Checkpoints: what comes back, what is kept. Kills and damage: test_checkpoint_damage.py."""

import json
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.checkpoint import arrays
from diffenc.checkpoint.checkpoints import Checkpoints, restore_from, select_branches
from diffenc.errors import UserError
from tests.diffenc.checkpoint.saved_trees import ABSTRACT, abstract, are_equal, make_tree, save_steps


def test_round_trip_is_exact(tmp_path):
    save_steps(tmp_path, 5, 7)
    restored = Checkpoints(tmp_path).restore(ABSTRACT)
    assert are_equal(restored.tree, make_tree(7))
    assert (restored.metadata, restored.step) == ({"name": "täglich", "step": 7}, 7)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored.tree))
    earlier = Checkpoints(tmp_path).restore(ABSTRACT, step=5)
    assert are_equal(earlier.tree, make_tree(5))
    assert earlier.step == 5


def test_the_format_is_as_documented(tmp_path):
    save_steps(tmp_path, 7)
    meta = json.loads((tmp_path / "000000007" / "META.json").read_text())
    assert (meta["format"], meta["step"], meta["parts"]) == (3, 7, 1)
    assert meta["leaves"] == {
        "ema/w": [[2], "bfloat16"],
        "opt_state/0": [[], "int32"],
        "opt_state/3/mu/0": [[2, 2], "float32"],
        'params/"unet/~/conv"/b': [[3], "float32"],
        'params/"unet/~/conv"/w': [[3, 40], "float32"],
        "params/log_snr": [[], "float32"],
        "step": [[], "uint32"],
    }


def test_paths_that_read_alike_are_kept_apart(tmp_path):
    tree = {
        "a": {"b/c": jnp.float32(1), "b": {"c": jnp.float32(2)}},
        "a/b": {"c": jnp.float32(3)},
        '"': jnp.ones(1),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
    assert are_equal(Checkpoints(tmp_path).restore(abstract(tree)).tree, tree)


def test_a_bare_leaf_python_scalars_and_an_empty_tree(tmp_path):
    for tree, back in [
        (jnp.arange(3), jnp.arange(3)),
        ({"a": 3, "b": 0.5, "c": True}, None),
        ((), ()),
        (None, None),
    ]:
        expected = jax.tree.map(jnp.asarray, tree) if back is None else back
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, tree, {})
        assert are_equal(Checkpoints(tmp_path).restore(abstract(expected)).tree, expected)


def test_saving_leaves_the_buffers_to_the_caller(tmp_path, monkeypatch):
    donated, write = threading.Event(), arrays.write_arrays
    monkeypatch.setattr(arrays, "write_arrays", lambda *args: donated.wait(10) and write(*args))
    update = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    x, host = jnp.full((512, 512), 3.0), np.full(1000, 3.0, np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x, "host": host}, {})
        after = update(x)  # takes x's memory while the write waits
        host[:] = float(after[0, 0])
        donated.set()
    assert x.is_deleted()
    assert host[0] == -1
    tree = Checkpoints(tmp_path).restore(abstract({"x": after, "host": host})).tree
    assert float(tree["x"].min()) == float(tree["host"].min()) == 3


def test_restored_arrays_can_be_donated(tmp_path):
    save_steps(tmp_path, 4)
    tree = Checkpoints(tmp_path).restore(ABSTRACT).tree
    doubled = jax.jit(lambda t: jax.tree.map(lambda x: x + x, t), donate_argnums=0)(tree)
    assert are_equal(doubled["params"]["log_snr"], jnp.float32(8))


def test_a_leaf_with_a_sharding_is_placed_by_it(tmp_path):
    save_steps(tmp_path, 4)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), ABSTRACT)
    tree = Checkpoints(tmp_path).restore(abstract).tree
    assert {leaf.sharding for leaf in jax.tree.leaves(tree)} == {sharding}
    assert are_equal(tree, make_tree(4))


def test_metadata_without_json_form_and_64_bits_are_refused_at_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(1, {}, {"a": object()})
        with pytest.raises(TypeError, match="leaf a is float64"):
            checkpoints.save(1, {"a": np.zeros(2)}, {})
    assert checkpoints.steps() == []


def test_reading_writes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert checkpoints.steps() == []
    with pytest.raises(UserError, match="no checkpoint there"):
        checkpoints.restore(ABSTRACT)
    assert os.listdir(tmp_path) == []
    save_steps(tmp_path, 1)
    (tmp_path / "000000002").mkdir()
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        checkpoints.restore(ABSTRACT)
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, 0, [7]), (3, 0, [5, 6, 7]), (2, 3, [3, 6, 7]), (1, 2, [2, 4, 6, 7])],
)
def test_retention(tmp_path, keep_last, keep_every, kept):
    checkpoints = save_steps(tmp_path, 1, 2, 3, 4, 5, 6, 7, keep_last=keep_last, keep_every=keep_every)
    assert checkpoints.steps() == kept
    assert sorted(os.listdir(tmp_path)) == [f"{step:09d}" for step in kept]


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/000000020"])
def test_branches_of_another_run(tmp_path, where):
    save_steps(tmp_path / "checkpoints", 10, 20)
    wanted = {name: ABSTRACT[name] for name in ("params", "ema")}
    restored = restore_from(tmp_path / where, wanted)
    assert restored.step == 20
    assert are_equal(restored.tree, {name: make_tree(20)[name] for name in wanted})


def test_branches_of_another_run_must_agree_and_exist(tmp_path):
    save_steps(tmp_path / "checkpoints", 10, 20)
    assert restore_from(tmp_path, {"step": ABSTRACT["step"]}, step=10).tree == {"step": 10}
    with pytest.raises(UserError, match=r"params/log_snr is .* there and absent here"):
        restore_from(tmp_path, {"params": {"unet/~/conv": ABSTRACT["params"]["unet/~/conv"]}})
    with pytest.raises(UserError, match=r"opt/mu is absent there"):
        restore_from(tmp_path, {"opt": {"mu": jax.ShapeDtypeStruct((), jnp.float32)}})
    with pytest.raises(UserError, match="nowhere: no checkpoint there"):
        restore_from(tmp_path / "nowhere", ABSTRACT)
    (tmp_path / "checkpoints" / "000000020" / "process_0" / "index.json").unlink()
    with pytest.raises(UserError, match="000000020 cannot be read"):
        restore_from(tmp_path / "checkpoints" / "000000020", ABSTRACT)
    assert restore_from(tmp_path, ABSTRACT).step == 10


def test_a_branch_whose_name_needs_quotes(tmp_path):
    tree = {"a/b": {"c": jnp.ones(2)}, "a/d": jnp.zeros(3), "a": jnp.zeros(1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
    wanted = {"a/b": abstract(tree)["a/b"]}
    assert are_equal(Checkpoints(tmp_path).restore(wanted, select=select_branches).tree, {"a/b": tree["a/b"]})
