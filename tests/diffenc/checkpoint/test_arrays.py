"""Pieces of arrays in folders come back bit for bit, or not at all."""

import itertools
import json
import math

import ml_dtypes
import numpy as np
import pytest

from diffenc.checkpoint import arrays
from diffenc.checkpoint.arrays import Box, Wanted
from diffenc.files import checksummed_json, stores
from diffenc.files.checksummed_json import UnreadableError

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


def _write(place, named, folder="part"):
    whole = ((name, (0,) * array.ndim, array) for name, array in named.items())
    arrays.write_arrays(stores.open_store(place), folder, arrays.pack_arrays(whole))


def _whole(array):
    return Wanted(Box((0,) * array.ndim, array.shape), array.shape, array.dtype)


def _read(place, names, folders=("part",)):
    wanted = {name: _whole(ARRAYS[name]) for name in names}
    return arrays.read_arrays(stores.open_store(place), folders, wanted)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("block", [16 << 20, 1000])
@pytest.mark.parametrize("where", ["", "memory://"])
def test_round_trip_is_exact(tmp_path, monkeypatch, where, block):
    monkeypatch.setattr(arrays, "BLOCK", block)
    _write(f"{where}{tmp_path}", ARRAYS)
    back = _read(f"{where}{tmp_path}", ARRAYS)
    assert [name for name in ARRAYS if not _same(ARRAYS[name], back[name])] == []


def test_the_files_are_as_documented(tmp_path):
    """Blocks of one size, each followed by a checksum of 4 bytes; in all, the arrays at the offsets told."""
    _write(tmp_path, ARRAYS)
    index = json.loads((tmp_path / "part" / "index.json").read_text())
    blocks = [path.read_bytes() for path in (tmp_path / "part" / "blocks").rglob("*") if path.is_file()]
    (data,) = [block[:-4] for block in blocks]
    assert len(data) == index["size"]
    for name, array in ARRAYS.items():
        ((start, shape, offset),) = index["pieces"][name]
        assert (start, tuple(shape), offset % 64) == ([0] * array.ndim, array.shape, 0)
        assert data[offset : offset + array.nbytes] == array.tobytes()


def test_packing_copies_into_memory_that_fits():
    first = arrays.pack_arrays([("a", (0,), np.arange(5))])
    assert first.data.ctypes.data % 64 == 0
    again = arrays.pack_arrays([("b", (0,), np.arange(5, 10))], first.data)
    assert np.shares_memory(again.data, first.data)
    assert again.data[:40].view(np.int64).tolist() == [5, 6, 7, 8, 9]
    assert not np.shares_memory(arrays.pack_arrays([("b", (0,), np.arange(50))], first.data).data, first.data)


POISON = 0xA5


def _poisoned(size):
    """Memory as the process may have left it."""
    data = np.full(size + arrays.ALIGN, POISON, np.uint8)
    begin = -data.ctypes.data % arrays.ALIGN
    return data[begin : begin + size]


@pytest.mark.parametrize("block", [16 << 20, 1000])
@pytest.mark.parametrize("sizes", [[1], [3, 64, 65], [0, 1, 0], [63, 127, 1, 1, 500, 0], 40 * [1]])
def test_nothing_of_what_memory_held_before_is_written(tmp_path, monkeypatch, sizes, block):
    """In new memory, and in that of an earlier checkpoint, whose arrays were other ones."""
    monkeypatch.setattr(arrays, "BLOCK", block)
    monkeypatch.setattr(arrays, "_allocate_aligned", _poisoned)
    named = [(f"a{k}", (0,), np.zeros(size, dtype)) for k, size in enumerate(sizes) for dtype in ("u1", "f4")]
    first = arrays.pack_arrays(named)
    assert not first.data.any()
    first.data[:] = POISON
    again = arrays.pack_arrays(named, first.data)
    assert np.shares_memory(again.data, first.data)
    for name, part in (("new", first._replace(data=arrays.pack_arrays(named).data)), ("reused", again)):
        arrays.write_arrays(stores.open_store(tmp_path), name, part)
        files = [path for path in (tmp_path / name / "blocks").rglob("*") if path.is_file()]
        content = b"".join(path.read_bytes()[:-4] for path in files)  # without the crc32c
        assert len(content) >= sum(5 * size for size in sizes)
        assert not content.strip(b"\0")


def test_some_can_be_read_alone(tmp_path):
    _write(tmp_path, ARRAYS)
    assert list(_read(tmp_path, ["count", "bits"])) == ["count", "bits"]
    assert _same(_read(tmp_path, ["bits"])["bits"], ARRAYS["bits"])


def test_any_box_out_of_pieces_cut_otherwise(tmp_path):
    """6 x 8 numbers cut 2 x 2 into two folders, crosswise; read cut in every other way."""
    whole = np.arange(48, dtype=np.float32).reshape(6, 8)
    for folder, corners in {"one": [(0, 0), (3, 4)], "two": [(0, 4), (3, 0)]}.items():
        pieces = (("a", (i, j), whole[i : i + 3, j : j + 4]) for i, j in corners)
        arrays.write_arrays(stores.open_store(tmp_path), folder, arrays.pack_arrays(pieces))
    for i, j, rows, columns in itertools.product(range(0, 6, 2), range(0, 8, 3), (1, 2), (1, 2)):
        wanted = {"a": Wanted(Box((i, j), (rows, columns)), (6, 8), whole.dtype)}
        back = arrays.read_arrays(stores.open_store(tmp_path), ["one", "two"], wanted)["a"]
        np.testing.assert_array_equal(back, whole[i : i + rows, j : j + columns])
    with pytest.raises(UnreadableError, match="array a: 24 of its elements are missing"):
        arrays.read_arrays(stores.open_store(tmp_path), ["two"], {"a": _whole(whole)})


def test_only_what_is_wanted_is_read(tmp_path, monkeypatch):
    """A lost block is no matter to arrays that lie elsewhere."""
    monkeypatch.setattr(arrays, "BLOCK", 1024)
    named = {name: np.full(256, i, np.float32) for i, name in enumerate("abcd")}
    _write(tmp_path, named)
    (tmp_path / "part" / "blocks" / "c" / "2").unlink()
    box = Wanted(Box((0,), (256,)), (256,), np.dtype(np.float32))
    back = arrays.read_arrays(stores.open_store(tmp_path), ["part"], {"a": box, "b": box, "d": box})
    assert {name: set(array.tolist()) for name, array in back.items()} == {"a": {0}, "b": {1}, "d": {3}}
    with pytest.raises(UnreadableError, match="part, array c: "):
        arrays.read_arrays(stores.open_store(tmp_path), ["part"], {"c": box})


def test_an_absent_array_is_named(tmp_path):
    _write(tmp_path, {"count": ARRAYS["count"]})
    with pytest.raises(UnreadableError, match="array bits: 1 of its elements are missing"):
        _read(tmp_path, ["bits"])


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
            with pytest.raises(UnreadableError):
                _read(tmp_path, ARRAYS)
        path.write_bytes(whole)
    _read(tmp_path, ARRAYS)


def test_a_lost_or_cut_file_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 4096)
    _write(tmp_path, ARRAYS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    total = sum(-(-array.nbytes // 64) * 64 for array in ARRAYS.values())
    assert len(files) == 1 + math.ceil(total / 4096)
    for path in files:
        whole = path.read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(UnreadableError):
                _read(tmp_path, ARRAYS)
        path.unlink()
        with pytest.raises(UnreadableError):
            _read(tmp_path, ARRAYS)
        path.write_bytes(whole)


def test_a_refusing_disk_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        _write(tmp_path / "file", {"bits": ARRAYS["bits"]})


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (704, []),
        (704, {"a": 5}),
        (704, {"a": [[[0], [100]]]}),
        (704, {"a": [["x", [100], 0]]}),
        (704, {"a": [[[0], [100.5], 0]]}),
        (704, {"a": [[[0, 0], [100, 1], 0]]}),
        (704, {"a": [[[0], [True], 0]]}),
        (704, {"a": [[[0], [-100], 0]]}),
        (704, {"a": [[[-10], [110], 0]]}),
        (704, {"a": [[[0], [100], -64]]}),
        (704, {"a": [[[0], [100], 704]]}),
        (704, {"a": [[[0], [100], 0], [[0], [60], 0]]}),
        (704, {"a": [[[0], [10**13], 0]]}),
        (10**14, {"a": [[[0], [10**13], 0]], "b": [[[0], [50], 4 * 10**13]]}),
        (704, {"a": [[[0], [101], 0]]}),
        (704, {"a": [[[0], [50], 0], [[0], [50], 0], [[50], [50], 200]]}),
        (10**9, {"a": [[[0], [100], 0], [[0], [100], 10**8]]}),
        (2**63, None),
        (64, None),
        (0, None),
        (-5, None),
        (1.5, None),
        ("704", None),
    ],
    ids=repr,
)
def test_a_forged_index_is_refused(tmp_path, size, pieces):
    """Under a valid checksum: nothing is read, or allocated, for it."""
    named = {"a": np.arange(100, dtype=np.float32), "b": np.arange(50, dtype=np.float32)}
    _write(tmp_path, named)
    wanted = {name: _whole(array) for name, array in named.items()}
    store, path = stores.open_store(tmp_path), tmp_path / "part" / "index.json"
    assert _same(arrays.read_arrays(store, ["part"], wanted)["a"], named["a"])
    true = json.loads(path.read_text())
    assert true["size"] == 704
    forged = true["pieces"] if pieces is None else pieces and true["pieces"] | pieces
    path.write_text(checksummed_json.dumps({"size": size, "pieces": forged}))
    with pytest.raises(UnreadableError, match=r"part/index\.json: (not an index|array [ab] ends at byte)"):
        arrays.read_arrays(store, ["part"], wanted)
