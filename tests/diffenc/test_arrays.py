"""Arrays in a folder come back bit for bit, or not at all."""

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from diffenc import arrays, stores

ARRAYS = {
    "count": np.array(7, np.int32),
    'params/"unet/~/conv_in"/w': np.random.default_rng(0).normal(size=(3, 3, 8, 16)).astype(np.float32),
    "zeros": np.zeros(3000, np.float32),
    "negative zero and nan": np.array([-0.0, np.nan], np.float32),
    "none": np.zeros((0, 3), np.float32),
    "half": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "mask": np.array([True, False]),
    "bits": np.array([2**32 - 1], np.uint32),
    "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
}


def _write(folder, named):
    arrays.write(stores.at(folder), "", {name: arrays.whole(array) for name, array in named.items()})


def _read(folder, names):
    return arrays.read(stores.at(folder), "", dict.fromkeys(names))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_round_trip_is_exact(tmp_path):
    _write(tmp_path, ARRAYS)
    back = _read(tmp_path, ARRAYS)
    assert [name for name in ARRAYS if not _same(ARRAYS[name], back[name])] == []


def test_some_can_be_read_alone(tmp_path):
    _write(tmp_path, ARRAYS)
    assert list(_read(tmp_path, ["count"])) == ["count"]


def test_an_absent_array_is_named(tmp_path):
    _write(tmp_path, {"a": np.zeros(2)})
    with pytest.raises(arrays.UnreadableError, match="array b:"):
        _read(tmp_path, ["b"])


def test_no_file_is_left_that_reading_does_not_check(tmp_path):
    """Many arrays of mixed sizes used to leave, one time in three, files with superseded nodes."""
    many = {f"a/{i}": np.full(n, i, np.float32) for i, n in enumerate([1, 2, 5000, 100_000, 40, 7] * 10)}
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        _write(folder, many)
        assert len([path for path in folder.rglob("*") if path.is_file()]) == 2  # the manifest and its data


def _flips(size: int) -> list[int]:
    ends = [*range(min(size, 150)), *range(max(0, size - 150), size)]
    return sorted({*ends, *range(0, size, 97)})


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    _write(tmp_path, ARRAYS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        whole = path.read_bytes()
        for at in _flips(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            with pytest.raises(arrays.UnreadableError):
                _read(tmp_path, ARRAYS)
        path.write_bytes(whole)
    _read(tmp_path, ARRAYS)


def test_a_lost_or_cut_file_is_noticed(tmp_path):
    _write(tmp_path, ARRAYS)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(arrays.UnreadableError):
                _read(tmp_path, ARRAYS)
        path.unlink()
        with pytest.raises(arrays.UnreadableError):
            _read(tmp_path, ARRAYS)
        path.write_bytes(whole)


def test_a_lost_value_is_not_read_as_zeros(tmp_path):
    _write(tmp_path, {"a": np.ones(3000, np.float32)})
    base = {"driver": "file", "path": f"{tmp_path}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    assert store.list().result() == [b"a/c/0", b"a/zarr.json"]
    store.delete_range(ts.KvStore.KeyRange(b"a/c", b"a/d")).result()
    with pytest.raises(arrays.UnreadableError, match="array a:"):
        _read(tmp_path, ["a"])


def test_a_refusing_disk_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        _write(tmp_path / "file", {"a": np.zeros(2)})
