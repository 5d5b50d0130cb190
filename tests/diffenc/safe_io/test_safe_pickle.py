import io
import itertools
import os
import pickle
import struct
import subprocess
import time
import tracemalloc

import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.safe_io import safe_pickle


def load(content: bytes):
    return safe_pickle.load(io.BytesIO(content), "batch", 2**20)


ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.arange(256, dtype=np.uint8).reshape(2, 128),  # bytes above 127
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.arange(5, dtype=">i4"),
    np.array([1.5, -2.25]),
    np.array([True, False]),
    np.zeros((0, 3072), np.uint8),
]


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_arrays_come_back_as_the_stock_unpickler_gives_them(array, protocol):
    content = pickle.dumps({"data": array, "labels": [3, 1], "note": "text"}, protocol)
    if array.size == 0 and protocol == 2:
        pytest.skip("protocol 2 writes empty bytes as a call of bytes(), which is refused")
    found, expected = load(content), pickle.loads(content)
    np.testing.assert_array_equal(found["data"], expected["data"])
    assert (found["data"].dtype, found["labels"]) == (array.dtype, [3, 1])


def test_arrays_in_lists_come_back_too():
    found = load(pickle.dumps({"layer": [ARRAYS[0], ARRAYS[4]], "other": [1, "text"]}, 3))
    for one, other in zip(found["layer"], (ARRAYS[0], ARRAYS[4]), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    assert found["other"] == [1, "text"]


def test_python_2_pickles_are_read():
    """What `pickle.dumps({'data': uint8 [[1, 200]], 'labels': [7]}, 2)` gave under Python 2, by hand."""
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x01\xc8tbU\x06labels]K\x07au."
    )
    found = load(content)
    np.testing.assert_array_equal(found["data"], np.array([[1, 200]], np.uint8))
    assert found["labels"] == [7]


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, "touch {}"), r"\.system"),
        ((subprocess.Popen, ["touch", "{}"]), r"\.Popen"),
        ((eval, "open('{}', 'w')"), r"\.eval"),
        ((open, "{}", "w"), r"\.open"),
        ((np.fromfile, "{}"), r"\.fromfile"),
    ],
)
def test_a_pickle_that_calls_anything_else_is_refused_by_name_and_not_run(tmp_path, call, name, protocol):
    trace = tmp_path / "run"
    fill = [part.replace("{}", str(trace)) if isinstance(part, str) else part for part in call]
    fill = [
        [str(trace) if item == "{}" else item for item in part] if isinstance(part, list) else part
        for part in fill
    ]
    content = pickle.dumps({"data": Evil(*fill), "labels": []}, protocol)
    with pytest.raises(UserError, match=f"^batch: its pickle asks for .*{name}") as caught:
        load(content)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\nb\x1b[31m", "c" * 500])
def test_the_name_of_what_is_refused_is_shown_short_and_in_one_line(name):
    content = b"\x80\x04X\x02\0\0\0osX" + len(name).to_bytes(4, "little") + name.encode() + b"\x93."
    with pytest.raises(UserError, match=r"^batch: its pickle asks for 'os\.") as refused:
        load(content)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 160


def state(dtype: bytes, raw: bytes, count: int, shape: bytes = b"K\x02\x85") -> bytes:
    """A pickled array with the given parts of its state."""
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + b"cnumpy\ndtype\n" + dtype + b"\x89U" + struct.pack("B", count) + raw + b"tbu."
    )


PLAIN = b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def test_the_hand_made_array_is_good():
    np.testing.assert_array_equal(load(state(PLAIN, b"\x05\x06", 2))["data"], np.array([5, 6], np.uint8))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (state(PLAIN, b"\x05\x06\x07", 3), "3 bytes for an array"),
        (state(PLAIN, b"\x05\x06", 2, b"J\xff\xff\xff\x7f\x85"), "2 bytes for an array"),
        (state(PLAIN, b"\x05\x06", 2, b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"), "cannot be read"),
        (state(PLAIN.replace(b"u1", b"O8"), b"\x05" * 16, 16), "O8"),
        (state(PLAIN.replace(b"u1", b"V8"), b"\x05" * 16, 16), "V8"),
        # a dtype of pointers that says it holds none: numpy's own __setstate__ is not to be asked
        (state(PLAIN.replace(b"NNN", b"NU\x01a\x85}"), b"\x05\x06", 2), "structured"),
    ],
)
def test_forged_arrays_are_refused(content, says):
    with pytest.raises(UserError, match=f"^batch: .*{says}"):
        load(content)


def number(size: int) -> bytes:
    """A pickled number of `size` bytes."""
    return b"\x8b" + struct.pack("<i", size) + b"\x55" * size


def pairs(depth: int, inner: bytes = b"K\x01") -> bytes:
    """A pickled pair of a pair of ...: twice the same each time, so that it takes 2^depth to go through."""
    return inner + b"2\x86" * depth


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (state(PLAIN, b"\x05", 1, number(400_000) + number(400_000) + b"\x86"), "KeyError"),
        (b"\x80\x02}(" + number(400_000) + b"K\x01u.", "KeyError"),
        (state(PLAIN, b"\x05", 1, b"(" + b"K\x01" * 33 + b"t"), "shape"),
        (state(PLAIN, b"\x05", 1, b"(" + b"\x8a\xff" + b"\x55" * 255 + b"K\x00t"), "shape"),
        (state(PLAIN, b"\x05", 1, pairs(24)), "shape"),
        (state(PLAIN, b"\x05", 1, pairs(24, b"U\x01a")), "shape"),
        (state(PLAIN, b"\x05", 1, b"K\x02K\x03\x86J\xff\xff\xff\x7f\x86"), "shape"),
        (state(PLAIN, b"\x05", 1, b"X\x01\x00\x00\x00a"), "shape"),
        (state(PLAIN.replace(b"U\x02u1", pairs(24)), b"\x05", 1), "where text belongs"),
        (b"\x80\x02}" + pairs(24) + b"K\x01s.", "tuple"),
        (b"\x80\x02}(" + pairs(24) + b"K\x01u.", "tuple"),
        (b"\x80\x02(" + pairs(24) + b"K\x01d.", "tuple"),
        (b"\x80\x04\x8f(" + pairs(24) + b"\x90.", "KeyError"),
        (b"\x80\x04(" + pairs(24) + b"\x91.", "KeyError"),
    ],
    ids=itertools.count(),
)
def test_what_takes_long_to_go_through_is_refused_at_once(content, says):
    began = time.process_time()
    with pytest.raises(UserError, match=f"^batch: .*({says})") as caught:
        load(content)
    assert time.process_time() - began < 0.2
    assert len(str(caught.value)) < 200


def test_operations_have_an_end(monkeypatch):
    monkeypatch.setattr(safe_pickle, "_MAX_OPERATIONS", 1000)
    assert load(b"\x80\x02}" + b"]0" * 400 + b".") == {}
    with pytest.raises(UserError, match="more than 1,000 operations"):
        load(b"\x80\x02}" + b"]0" * 600 + b".")


def test_attributes_that_a_pickle_sets_do_not_outlive_it():
    kept = safe_pickle._from_buffer.__doc__
    # BUILD with (None, {"__doc__": "bad"}) on a function, then POP it and answer {}
    assert load(b"\x80\x02cnumpy.core.numeric\n_frombuffer\nN}V__doc__\nVbad\ns\x86b0}.") == {}
    assert safe_pickle._from_buffer.__doc__ == kept


def test_every_truncation_is_a_user_error():
    content = pickle.dumps({"data": np.arange(6, dtype=np.uint8), "labels": [1, 2]}, 2)
    for length in range(len(content)):
        with pytest.raises(UserError, match=r"^batch: "):
            load(content[:length])


def test_flipped_bytes_give_a_dictionary_or_a_user_error():
    content = pickle.dumps({"data": np.arange(6, dtype=np.uint8), "labels": [1, 2]}, 2)
    refusals = []
    for place in range(len(content)):
        for flip in (0x01, 0xFF):
            try:
                found = load(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
            except UserError as error:
                refusals.append(str(error))
            else:
                assert isinstance(found, dict)
    assert len(refusals) > len(content)
    assert all(refusal.startswith("batch: ") and "\n" not in refusal for refusal in refusals)


def test_a_forged_memo_index_takes_no_memory():
    content = b"\x80\x02}r\xff\xff\xff\x7f."  # LONG_BINPUT 2**31 - 1
    tracemalloc.start()
    try:
        assert load(content) == {}
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [pickle.dumps([1, 2]), pickle.dumps({}) + b"more", pickle.dumps({3: 4}), b"", b"\x00"]
)
def test_anything_but_one_dictionary_of_names_is_refused(content):
    with pytest.raises(UserError, match=r"^batch: "):
        load(content)
