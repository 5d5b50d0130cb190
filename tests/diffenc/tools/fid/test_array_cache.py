import numpy as np
import pytest
from absl import logging

from diffenc.errors import UserError
from diffenc.tools.fid import array_cache


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda line, *values: lines.append(line % values))
    return lines


def test_what_is_kept_is_not_made_again(tmp_path, warnings):
    calls = []

    def made():
        calls.append(None)
        return np.arange(6, dtype=np.uint8).reshape(2, 3)

    for _ in range(2):
        found = array_cache.load_or_compute(tmp_path / "a" / "b.npy", made, (2, 3), "uint8")
        np.testing.assert_array_equal(found, [[0, 1, 2], [3, 4, 5]], strict=False)
        assert found.dtype == np.uint8
    assert len(calls) == 1
    assert warnings == []
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.npy"]


@pytest.mark.parametrize("content", [b"", b"text", "half", "pickled", "claims", "archive", "shape", "dtype"])
def test_what_is_no_such_array_is_made_anew(tmp_path, warnings, content):
    file = tmp_path / "a.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "half":
        np.save(file, np.zeros(1000))
        file.write_bytes(file.read_bytes()[:500])
    elif content == "pickled":
        np.save(file, np.array([print], object), allow_pickle=True)
    elif content == "claims":
        with file.open("wb") as stream:  # a header alone
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
            )
    elif content == "archive":
        np.savez(tmp_path / "b.npz", a=np.zeros(3))
        (tmp_path / "b.npz").rename(file)
    else:
        np.save(file, np.zeros(3, np.int32) if content == "dtype" else np.zeros(4))
    assert array_cache.load_array(file, (3,), "float64") is None
    assert len(warnings) == (content not in ("shape", "dtype", "archive"))
    np.testing.assert_array_equal(
        array_cache.load_or_compute(file, lambda: np.ones(3), (3,), "float64"), np.ones(3)
    )
    np.testing.assert_array_equal(np.load(file), np.ones(3))


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=r"could not write .*a/b\.npy"):
        array_cache.save_array(tmp_path / "a" / "b.npy", np.zeros(1))
