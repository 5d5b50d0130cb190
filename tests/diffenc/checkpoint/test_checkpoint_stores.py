"""Checkpoints on an object store, which cannot rename and has no folders: tensorstore's, in memory."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.checkpoint import arrays
from diffenc.checkpoint.checkpoints import Checkpoints, restore_from
from diffenc.errors import UserError
from diffenc.files import stores

ABSTRACT = {"w": jax.ShapeDtypeStruct((2000,), jnp.float32), "step": jax.ShapeDtypeStruct((), jnp.int32)}


@pytest.fixture
def url(tmp_path, monkeypatch) -> str:
    """A fresh place; whoever renames a file fails."""

    def refuse(*_, **__):
        raise OSError(95, "Operation not supported")

    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, refuse)
    return f"memory://{tmp_path}/run/checkpoints"


def _save(url: str, *steps: int, value: float | None = None, **keep) -> Checkpoints:
    with Checkpoints(url, **keep) as checkpoints:
        for step in steps:
            number = step if value is None else value
            checkpoints.save(
                step, {"w": jnp.full(2000, float(number)), "step": jnp.int32(step)}, {"at": step}
            )
    return checkpoints


def _value(url: str, step: int | None = None) -> float:
    (value,) = np.unique(Checkpoints(url).restore(ABSTRACT, step).tree["w"])
    return float(value)


def _folders(url: str) -> list[str]:
    return sorted(stores.open_store(url).names())


def test_saved_kept_and_restored(url):
    assert _save(url, 1, 2, 3, 4, keep_last=2, keep_every=3).steps() == [3, 4]
    assert _folders(url) == ["000000003", "000000004"]
    assert (_value(url), _value(url, 3)) == (4, 3)
    workdir = url.removesuffix("/checkpoints")
    for place in (workdir, url, f"{url}/000000004"):
        assert restore_from(place, ABSTRACT).metadata == {"at": 4}
    with pytest.raises(UserError, match=rf"^{url}: no checkpoint of step 2; there are \[3, 4\]$"):
        Checkpoints(url).restore(ABSTRACT, step=2)


def test_without_its_marker_there_is_no_checkpoint(url):
    _save(url, 1, 2)
    stores.open_store(url).remove("000000002/META.json")
    assert Checkpoints(url).steps() == [1]
    assert _value(url) == 1
    assert _save(url, 2).steps() == [1, 2]
    assert _folders(url) == ["000000001", "000000002-1"]
    assert _value(url) == 2


def test_saved_again_the_newer_one_counts_and_the_older_one_goes(url):
    _save(url, 1, 2)
    _save(url, 2, value=20)
    _save(url, 2, value=21)
    assert _folders(url) == ["000000001", "000000002-2"]
    assert _value(url, 2) == 21


def test_what_fails_to_be_saved_again_endangers_nothing(url, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    _save(url, 2)
    monkeypatch.setattr(arrays, "write_arrays", fail)
    with pytest.raises(UserError, match=r"the checkpoint of step 2 was not saved: .*Input/output error"):
        _save(url, 2, value=20)
    assert _folders(url) == ["000000002"]
    assert _value(url) == 2


def test_the_newest_generation_that_can_be_read_counts(url):
    """Both stand where a process died between commit and removal."""
    _save(url, 2)
    store, other = stores.open_store(url), f"{url}-other"
    _save(other, 2, value=20)
    for name in stores.open_store(other).files():
        store.write(name.replace("000000002/", "000000002-10/"), stores.open_store(other).read(name) or b"")
    assert (Checkpoints(url).steps(), _value(url), _value(url, 2)) == ([2], 20, 20)
    store.write("000000002-10/process_0/index.json", b"damaged")
    assert (_value(url), _value(url, 2)) == (2, 2)
    _save(url, 3)
    assert _folders(url) == ["000000002-10", "000000003"]


def test_a_lost_block_is_noticed(url):
    _save(url, 1, 2)
    stores.open_store(url).remove("000000002/process_0/blocks/c/0")
    assert _value(url) == 1
