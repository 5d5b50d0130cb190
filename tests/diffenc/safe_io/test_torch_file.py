"""Files of torch.save, written here by the description of both formats, and what must not be read from them."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.safe_io import torch_file

LIMIT = 2**20
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
WANTED = {
    "whole": BASE,
    "transposed": BASE.T,
    "part": BASE[1:3, 2:5],
    "row": BASE[2],
    "half": np.array([1.5, -2.0], np.float16),
    "count": np.array(7, np.int64),
    "flags": np.array([True, False, True]),
    "wide": np.array([1e300]),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture(params=["archive", "older"])
def write(request, torch_writer, tmp_path):
    """Writes a value in one of the formats."""

    def to_file(value, **options):
        return getattr(torch_writer, request.param)(tmp_path / "weights.pth", value, **options)

    return to_file


def views(writer):
    shared = ("whole", "transposed", "part", "row")
    return {name: writer.tensor(BASE if name in shared else array, array) for name, array in WANTED.items()}


@pytest.mark.parametrize("make", [dict, OrderedDict])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_tensors_come_back_whatever_part_of_a_storage_they_are(write, torch_writer, make, byteorder):
    found = torch_file.load(write(make(views(torch_writer)), byteorder=byteorder), LIMIT)
    assert list(found) == list(WANTED)
    for name, array in WANTED.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    found["whole"][:] = 0
    np.testing.assert_array_equal(found["row"], BASE[2])


def test_the_attributes_of_a_state_dict_are_dropped(write, torch_writer):
    found = torch_file.load(write(torch_writer.state({"a.weight": BASE})), LIMIT)
    assert type(found) is dict
    np.testing.assert_array_equal(found["a.weight"], BASE)


def test_a_parameter_is_its_tensor(write, torch_writer):
    class Parameter:
        def __reduce__(self):
            return torch_writer.utils._rebuild_parameter, (torch_writer.tensor(BASE), True, OrderedDict())

    np.testing.assert_array_equal(torch_file.load(write({"p": Parameter()}), LIMIT)["p"], BASE)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def test_nothing_in_the_file_is_run(write, tmp_path):
    path = write({"a": Evil(os.mkdir, str(tmp_path / "made"))})
    with pytest.raises(UserError, match=r"weights\.pth: its pickle asks for 'posix\.mkdir'"):
        torch_file.load(path, LIMIT)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"offset": 1}, "beyond its storage"),
        ({"shape": (4, 7)}, "beyond its storage"),
        ({"strides": (6, 2)}, "beyond its storage"),
        ({"strides": (-6, 1)}, "a shape that no tensor has"),
        ({"offset": -1}, "a shape that no tensor has"),
        ({"shape": (24,)}, "a shape that no tensor has"),
        ({"shape": [4, 6]}, "without a storage or a shape"),
        ({"shape": (2**20, 1), "strides": (0, 1)}, "tensors larger than the file may be"),
        ({"numel": 25}, "100|25|numbers"),
        ({"numel": 2**40}, "a reference to something other than a storage"),
    ],
)
def test_a_forged_tensor_is_refused(write, torch_writer, changes, says):
    with pytest.raises(UserError, match=says) as refused:
        torch_file.load(write({"a": torch_writer.tensor(BASE, **changes)}), LIMIT)
    assert "\n" not in str(refused.value)


def test_many_small_views_of_one_storage_take_no_more_than_was_agreed(write, torch_writer):
    one = torch_writer.tensor(BASE, key="one", shape=(1000, 100), strides=(0, 0))
    value = {f"t{k}": torch_writer.tensor(BASE, key="one", **one.said) for k in range(3)}
    path = write(value)
    assert torch_file.load(path, 3 * 400_000)["t2"].shape == (1000, 100)
    with pytest.raises(UserError, match="tensors larger than the file may be"):
        torch_file.load(path, 3 * 400_000 - 1)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1, 2], "holds a list, not a dictionary of tensors"),
        ({"state_dict": {}}, "has a dict as 'state_dict'; only tensors are admitted"),
        ({"step": 3}, "has a int as 'step'"),
        ({3: 4}, "cannot be read"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(write, value, says):
    with pytest.raises(UserError, match=says):
        torch_file.load(write(value), LIMIT)


def test_storages_may_not_be_larger_than_agreed(write, torch_writer):
    big = np.zeros(2**18, np.float32)
    path = write({"a": torch_writer.tensor(big)})
    assert len(torch_file.load(path, 2 * LIMIT)["a"]) == 2**18
    with pytest.raises(UserError, match="more than"):
        torch_file.load(path, LIMIT - 1)


def test_all_storages_together_may_not_be_larger_than_agreed(write, torch_writer):
    blocks = [np.full(2**16, k, np.float32) for k in range(3)]
    path = write({f"t{k}": torch_writer.tensor(block, block[:1]) for k, block in enumerate(blocks)})
    assert torch_file.load(path, 2**20)["t2"] == 2
    with pytest.raises(UserError, match="more than"):
        torch_file.load(path, 5 * 2**17)


def test_one_storage_described_twice_is_refused(write, torch_writer):
    other = torch_writer.tensor(BASE.astype(np.float16), key="one")
    with pytest.raises(UserError, match="described in two ways"):
        torch_file.load(write({"a": torch_writer.tensor(BASE, key="one"), "b": other}), LIMIT)


def test_a_cut_or_lengthened_file_is_refused(write, torch_writer):
    path = write(views(torch_writer))
    whole = path.read_bytes()
    for content in (b"", whole[:3], whole[:40], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.pth: .*"):
            torch_file.load(path, LIMIT)
    if not whole.startswith(b"PK"):
        path.write_bytes(whole + b"\0")
        with pytest.raises(UserError, match="bytes follow the last storage"):
            torch_file.load(path, LIMIT)


def test_other_files_are_told_apart(tmp_path):
    path = tmp_path / "other.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "text")
    with pytest.raises(UserError, match=r"a zip file that torch\.save did not write"):
        torch_file.load(path, LIMIT)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"is not a file of torch\.save"):
        torch_file.load(path, LIMIT)
    with pytest.raises(UserError, match=r"absent\.pth: cannot be read"):
        torch_file.load(tmp_path / "absent.pth", LIMIT)


def test_an_archives_directory_takes_no_more_memory_than_was_agreed(tmp_path):
    """Its end says that the directory fills the file, which has holes on disk alone."""
    path, size = tmp_path / "w.pth", 2**26
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size - 22, 0, 0)
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(size - len(end))
        file.write(end)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"w\.pth: has 67,108,864 bytes, more than the 1,048,576 it may have"):
        torch_file.load(path, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    tracemalloc.stop()


LONG = "a\n\x1b[31m" + "b" * 200


def test_names_out_of_the_file_are_shown_short_and_in_one_line(write, torch_writer):
    values = {LONG: {}}, {LONG: torch_writer.tensor(BASE, offset=1)}, {"a": torch_writer.tensor(BASE, key=LONG, numel=25)}  # fmt: skip
    for value in values:
        with pytest.raises(UserError) as refused:
            torch_file.load(write(value), LIMIT)
        said = str(refused.value)
        assert "b" * 80 not in said
        assert said.isprintable()


def test_a_damaged_storage_of_an_archive_is_refused(torch_writer, tmp_path):
    path = torch_writer.archive(tmp_path / "w.pth", {"a": torch_writer.tensor(BASE, key="0")}, data_0=b"few")
    with pytest.raises(UserError, match="3 bytes for 24 float32"):
        torch_file.load(path, LIMIT)
