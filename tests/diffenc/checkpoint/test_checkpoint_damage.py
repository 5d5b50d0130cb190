"""Checkpoints under real damage, and of another architecture."""

import json
import os
import random
import shutil

import jax
import jax.numpy as jnp
import pytest

from diffenc.checkpoint import meta
from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.errors import UserError
from diffenc.files import checksummed_json
from tests.diffenc.checkpoint.saved_trees import ABSTRACT, list_files, save_steps

FORGED = "META.json is not that of a checkpoint"


def test_a_run_that_went_back_keeps_what_it_writes(tmp_path):
    """The newest is damaged: the run resumes from before it and passes it again."""
    save_steps(tmp_path, 10, 20)
    (tmp_path / "000000020" / "process_0" / "index.json").write_bytes(b"")
    assert save_steps(tmp_path, 15, keep_last=1).steps() == [15, 20]
    assert Checkpoints(tmp_path).restore(ABSTRACT).step == 15
    assert save_steps(tmp_path, 20, keep_last=1).steps() == [20]
    assert os.listdir(tmp_path) == ["000000020-1"], "the older one stood until this was committed"
    assert Checkpoints(tmp_path).restore(ABSTRACT).step == 20


def test_what_the_dead_left_is_swept_on_the_first_save(tmp_path):
    save_steps(tmp_path / "other", 3)
    for left in ("000000003", "000000001", "000000001-2"):
        shutil.copytree(tmp_path / "other" / "000000003", tmp_path / "run" / left)
        (tmp_path / "run" / left / "META.json").unlink()
    (tmp_path / "run" / "notes").mkdir()
    assert Checkpoints(tmp_path / "run").steps() == []
    assert save_steps(tmp_path / "run", 1).steps() == [1]
    assert sorted(os.listdir(tmp_path / "run")) == ["000000001-3", "notes"]


def test_an_interrupted_removal_leaves_nothing_that_counts(tmp_path, monkeypatch, caplog):
    def interrupted(path, **_):
        raise OSError(5, "Input/output error")

    save_steps(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        save_steps(tmp_path, 2, keep_last=1)
    assert "old checkpoints could not be removed: [Errno 5] Input/output error" in caplog.text
    assert Checkpoints(tmp_path).steps() == [2]
    assert save_steps(tmp_path, 3, keep_last=1).steps() == [3]
    assert os.listdir(tmp_path) == ["000000003"]


def test_every_damage_to_the_newest_is_named_and_passed_over(tmp_path, caplog):
    save_steps(tmp_path, 10, 20)
    rng = random.Random(0)
    for path in list_files(tmp_path / "000000020"):
        whole = path.read_bytes()
        flips = [
            whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(0, len(whole), 29)
        ]
        cuts = [whole[:size] for size in (0, 1, rng.randrange(len(whole)), len(whole) - 1)]
        for damaged in [*flips, *cuts, None]:
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            caplog.clear()
            restored = Checkpoints(tmp_path).restore(ABSTRACT)
            assert restored.step == 10, (path, damaged)
            if path.name != "META.json" or damaged is not None:  # without it there is no checkpoint
                assert "000000020 cannot be read, skipped" in caplog.text
            path.write_bytes(whole)
    assert Checkpoints(tmp_path).restore(ABSTRACT).step == 20


def test_where_none_can_be_read_the_user_is_told(tmp_path):
    save_steps(tmp_path, 10, 20)
    for path in list_files(tmp_path):
        path.write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match=r"none of its checkpoints \[10, 20\] can be read"):
        Checkpoints(tmp_path).restore(ABSTRACT)
    with pytest.raises(UserError, match="000000010 cannot be read"):
        Checkpoints(tmp_path).restore(ABSTRACT, step=10)


def test_a_step_that_is_not_there_lists_those_that_are(tmp_path):
    save_steps(tmp_path, 10, 20)
    with pytest.raises(UserError, match=r"no checkpoint of step 15; there are \[10, 20\]"):
        Checkpoints(tmp_path).restore(ABSTRACT, step=15)


def _with(change):
    tree = jax.tree.map(lambda leaf: leaf, ABSTRACT)
    change(tree)
    return tree


@pytest.mark.parametrize(
    ("abstract", "message"),
    [
        (
            _with(lambda t: t["params"]["unet/~/conv"].update(w=jax.ShapeDtypeStruct((3, 64), jnp.float32))),
            r'params/"unet/~/conv"/w is float32\[3, 40\] there and float32\[3, 64\] here',
        ),
        (
            _with(lambda t: t["ema"].update(w=jax.ShapeDtypeStruct((2,), jnp.float32))),
            r"ema/w is bfloat16\[2\] there and float32\[2\] here",
        ),
        (
            _with(lambda t: t["ema"].update(v=jax.ShapeDtypeStruct((), jnp.float32))),
            r"ema/v is absent there and float32\[\] here",
        ),
        (_with(lambda t: t["params"].pop("log_snr")), r"params/log_snr is float32\[\] there and absent here"),
        (_with(lambda t: t.pop("opt_state")), r"opt_state/0 is int32\[\] there and absent here"),
    ],
)
def test_another_architecture_is_refused_and_never_passed_over(tmp_path, abstract, message):
    save_steps(tmp_path, 10, 20)
    for step in (None, 10):
        with pytest.raises(
            UserError, match=rf"0000000{step or 20} is of another .*{message}; use the"
        ) as refused:
            Checkpoints(tmp_path).restore(abstract, step)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("other", [2, 4])
def test_an_earlier_and_a_later_format_are_refused(tmp_path, other):
    save_steps(tmp_path, 1)
    content = {"format": other, "step": 1, "leaves": {}, "metadata": {}}
    (tmp_path / "000000001" / "META.json").write_text(meta.format_meta(content))
    with pytest.raises(
        UserError, match=f"has format {other}, not 3; use the version of diffenc that wrote it"
    ):
        Checkpoints(tmp_path).restore(ABSTRACT)


def test_leaving_by_an_error_does_not_hide_it(tmp_path, caplog):
    (tmp_path / "file").write_text("")

    def fail():
        with Checkpoints(tmp_path / "file") as checkpoints:
            checkpoints.save(1, {}, {})
            raise KeyError("the real trouble")

    with pytest.raises(KeyError, match="the real trouble"):
        fail()
    assert "could not write" in caplog.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"parts": 10**12}, "process_1/index.json"),
        ({"parts": 0}, FORGED),
        ({"parts": None}, FORGED),
        ({"step": "20"}, FORGED),
        ({"metadata": []}, FORGED),
        ({"leaves": []}, FORGED),
        ({"leaves": {"count": "int32"}}, FORGED),
        ({"leaves": {"count": [[-1], "int32"]}}, FORGED),
    ],
    ids=repr,
)
def test_a_forged_meta_json_is_passed_over(tmp_path, changed, said, caplog):
    """Under a valid checksum."""
    save_steps(tmp_path, 10, 20)
    path = tmp_path / "000000020" / "META.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(checksummed_json.dumps(content))
    assert Checkpoints(tmp_path).restore(ABSTRACT).step == 20
    path.write_text(checksummed_json.dumps(content | changed))
    assert Checkpoints(tmp_path).restore(ABSTRACT).step == 10
    assert said in caplog.text
