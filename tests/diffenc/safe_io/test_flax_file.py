"""Checkpoints as flax itself writes them, and bytes that nobody should."""

import msgpack
import numpy as np
import pytest
from flax import serialization

from diffenc.errors import UserError
from diffenc.safe_io import flax_file

STATE = {
    "step": 1200,
    "params": {
        "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 2), np.float32)}
    },
    "opt_state": {
        "0": {
            "count": np.array(7, np.int32),
            "mu": None,
            "on": True,
            "name": "adamw",
            "rate": np.float64(0.5),
        }
    },
}


def _written(tmp_path, content):
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    return path


def test_what_flax_wrote_is_read(tmp_path):
    found = flax_file.load(_written(tmp_path, serialization.msgpack_serialize(STATE)))
    assert found.keys() == {
        "step", "params/a/kernel", "params/a/none", "opt_state/0/count", "opt_state/0/on", "opt_state/0/rate"
    }  # fmt: skip
    np.testing.assert_array_equal(found["params/a/kernel"], [[0, 1, 2], [3, 4, 5]])
    assert found["params/a/kernel"].dtype == np.float32
    assert found["params/a/none"].shape == (0, 2)
    assert (found["step"], found["opt_state/0/count"], found["opt_state/0/rate"]) == (1200, 7, 0.5)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float64", "bool"])
def test_plain_numbers_of_any_size(tmp_path, dtype):
    array = np.array([[1, 0], [1, 1]], dtype)
    found = flax_file.load(_written(tmp_path, serialization.msgpack_serialize({"a": array})))
    assert found["a"].dtype == dtype
    np.testing.assert_array_equal(found["a"], array)


def _array(shape, dtype, content, code=1):
    return msgpack.packb({"a": msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))})


WHOLE = serialization.msgpack_serialize(STATE)
BAD = {
    "cut": WHOLE[:-9],
    "empty": b"",
    "more": WHOLE + b"\0",
    "no tree": msgpack.packb([1, 2]),
    "too few bytes": _array((4, 4), "float32", b"\0" * 60),
    "too many bytes": _array((4,), "float32", b"\0" * 20),
    "a bomb": _array((2**40, 2**20), "float32", b""),
    "a negative side": _array((-2, -2), "float32", b"\0" * 16),
    "sides that are no numbers": _array(("2",), "float32", b"\0" * 8),
    "objects": _array((1,), "object", b"\0" * 8),
    "records": _array((1,), "f4,f4", b"\0" * 8),
    "another extension": msgpack.packb({"a": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}),
    "no triple": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([1]))}),
    "a name twice": b"\x82\xa1a\x01\xa1a\x02",
    "a path twice": msgpack.packb({"a/b": 1, "a": {"b": 2}}),
    "a long list": b"\xdd" + (5_000_000).to_bytes(4, "big") + b"\x80" * 5_000_000,
    "a long map": b"\xdf"
    + (100_000).to_bytes(4, "big")
    + b"".join(b"\xce" + n.to_bytes(4, "big") + b"\xc0" for n in range(100_000)),
    "deep": b"\x81\xa1a" * 100_000 + b"\xc0",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_what_is_none_is_refused_in_a_line(tmp_path, content):
    path = _written(tmp_path, content)
    with pytest.raises(UserError) as refused:
        flax_file.load(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def _many(empty):
    """A million of them, in lists of lists of 32, in a megabyte."""
    for _ in range(4):
        empty = b"\xdc" + (32).to_bytes(2, "big") + empty * 32
    return empty


@pytest.mark.parametrize("empty", [b"\x80", b"\x90"], ids=["maps", "lists"])
def test_bytes_that_become_a_hundred_each_are_counted(tmp_path, empty):
    shape = b"\x93" + _many(empty) + msgpack.packb("float32") + msgpack.packb(b"")
    for content in (b"\x81\xa1a" + _many(empty), msgpack.packb({"a": msgpack.ExtType(1, shape)})):
        with pytest.raises(UserError, match="more than 131,072 entries"):
            flax_file.load(_written(tmp_path, content))
