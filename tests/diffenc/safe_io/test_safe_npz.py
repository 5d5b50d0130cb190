import io
import zipfile

import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.safe_io import safe_npz


def load(content: bytes, limit: int = 10_000):
    return safe_npz.load(io.BytesIO(content), "batch", ("data", "labels"), limit)


def saved(save=np.savez, **arrays) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def test_all_arrays_together_are_limited():
    content = saved(a=np.zeros(100), b=np.ones(100))
    whole = safe_npz.load(io.BytesIO(content), "file", None, 2000)
    assert {name: array.sum() for name, array in whole.items()} == {"a": 0, "b": 100}
    with pytest.raises(UserError, match=r"^file: claims 1,856 bytes, more than the 1,500 it may have$"):
        safe_npz.load(io.BytesIO(content), "file", None, 1500)


ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.arange(5, dtype=">i4"),
    np.array([1.5, -2.25]),
    np.array([True, False]),
    np.zeros((0, 5), np.uint8),
    np.array(7),
]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_arrays_come_back_as_numpy_gives_them(array, save):
    content = saved(save, data=array, mean=np.zeros(3))
    found = load(content)
    assert list(found) == ["data"]
    np.testing.assert_array_equal(found["data"], np.load(io.BytesIO(content))["data"])
    assert found["data"].dtype == array.dtype


BAD = {
    "objects": (saved(data=np.array([None])), "dtype object"),
    "records": (saved(data=np.zeros(2, [("a", "u1")])), "only plain numbers"),
    "text": (saved(data=np.array(["a"])), "only plain numbers"),
    "too large": (saved(data=np.zeros(20_000, np.uint8)), "claims 20,128 bytes, more than the 10,000"),
    "no zip": (b"abc", "cannot be read"),
}


@pytest.mark.parametrize(("content", "says"), BAD.values(), ids=BAD)
def test_what_is_no_plain_array_is_refused(content, says):
    with pytest.raises(UserError, match=f"^batch.*{says}") as caught:
        load(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(101,), (99,), (-100,), (2**62, 4), (2**70,)])
def test_a_shape_that_is_not_that_of_the_content_is_refused(shape):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        packed.writestr("data.npy", header.getvalue() + bytes(100))
    with pytest.raises(UserError, match=r"^batch:data: (claims|has not)"):
        load(stream.getvalue())


def test_every_truncation_is_a_user_error():
    content = saved(data=np.arange(40, dtype=np.uint8), labels=np.arange(3))
    for length in range(0, len(content), 5):
        with pytest.raises(UserError, match=r"^batch"):
            load(content[:length])
