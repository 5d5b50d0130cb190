import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from diffenc.errors import UserError
from diffenc_plugins.datasets import Cifar10

NAMES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def rows(name: str) -> np.ndarray:
    return np.random.default_rng(NAMES.index(name)).integers(0, 256, (3, 3072), dtype=np.uint8)


def classes(name: str) -> list[int]:
    return [NAMES.index(name), 9, 0]


def batch(name: str, **other) -> bytes:
    content = {"batch_label": name, "labels": classes(name), "data": rows(name), **other}
    return pickle.dumps({key.encode(): value for key, value in content.items()}, 2)


def add(archive: tarfile.TarFile, name: str, content: bytes, **attributes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    archive.addfile(member, io.BytesIO(content))


def pack(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            add(archive, name, content)


def official() -> dict[str, bytes]:
    return {f"cifar-10-batches-py/{name}": batch(name) for name in NAMES}


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    return tmp_path / "cifar10"


def check(split: str, names: list[str]) -> None:
    source = Cifar10().source(split)
    assert len(source) == 3 * len(names)
    for k in range(len(source)):
        name, row = names[k // 3], k % 3
        example = source[k]
        assert int(example["label"]) == classes(name)[row]
        for y, x, channel in ((0, 0, 0), (0, 1, 2), (31, 30, 1), (5, 17, 2)):
            assert example["image"][y, x, channel] == rows(name)[row, 1024 * channel + 32 * y + x]


def test_the_archive_is_read(folder):
    pack(folder / "cifar-10-python.tar.gz", {"./cifar-10-batches-py/readme.html": b"hello", **official()})
    check("train", NAMES[:5])
    check("test", NAMES[5:])


def test_the_order_is_that_of_the_names_not_of_the_archive(folder):
    pack(folder / "cifar-10-python.tar.gz", dict(reversed(official().items())))
    check("train", NAMES[:5])


def test_the_unpacked_folder_is_read(folder):
    for name, content in official().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    check("train", NAMES[:5])
    check("test", NAMES[5:])


def test_counts_that_are_not_the_official_ones_are_warned_of(folder, caplog):
    caplog.set_level("WARNING", logger=logging.get_absl_logger().name)
    pack(folder / "cifar-10-python.tar.gz", official())
    Cifar10().source("test")
    (record,) = caplog.records
    assert record.getMessage().startswith("not the official CIFAR-10: 3 test images, not 10,000")


BAD = {
    "label out of range": ({"labels": [0, 1, 10]}, r"labels 0 \.\. 10 are not within 0 \.\. 9"),
    "negative label": ({"labels": [0, -1, 1]}, "not within"),
    "too few labels": ({"labels": [0, 1]}, "not 3 integers"),
    "fractional labels": ({"labels": [0.5, 1.0, 2.0]}, "not 3 integers"),
    "no labels": ({"labels": None}, "not 3 integers"),
    "narrow rows": ({"data": np.zeros((3, 3071), np.uint8)}, r"uint8 \(3, 3071\), not uint8 \(N, 3072\)"),
    "float data": ({"data": np.zeros((3, 3072), np.float32)}, "float32"),
    "no data": ({"data": b"abc"}, "its data are bytes"),
}


@pytest.mark.parametrize(("other", "says"), BAD.values(), ids=BAD)
def test_a_bad_batch_is_refused_by_name(folder, other, says):
    pack(
        folder / "cifar-10-python.tar.gz",
        official() | {"cifar-10-batches-py/data_batch_4": batch("data_batch_4", **other)},
    )
    with pytest.raises(UserError, match=says) as caught:
        Cifar10().source("train")
    assert "cifar-10-python.tar.gz:data_batch_4" in str(caught.value)
    assert "\n" not in str(caught.value)


class Evil:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_an_evil_batch_is_named_and_not_run(folder, tmp_path):
    evil = pickle.dumps({"data": Evil(tmp_path / "trace")}, 2)
    pack(folder / "cifar-10-python.tar.gz", official() | {"cifar-10-batches-py/test_batch": evil})
    with pytest.raises(UserError, match=r"test_batch: its pickle asks for posix\.system"):
        Cifar10().source("test")
    assert not (tmp_path / "trace").exists()


def test_nothing_in_an_archive_is_written_to_disk(folder, tmp_path):
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in (
            "../../escaped",
            "/escaped",
            f"{tmp_path}/escaped",
            "cifar-10-batches-py/../../../escaped",
        ):
            add(archive, name, b"out")
        add(archive, "cifar-10-batches-py/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        for name, content in official().items():
            add(archive, name, content)
    check("train", NAMES[:5])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cifar-10-python.tar.gz", "cifar10"]
    assert not Path("/escaped").exists()


def test_a_link_is_no_batch(folder):
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        add(archive, "cifar-10-batches-py/test_batch", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(UserError, match="has no member cifar-10-batches-py/test_batch"):
        Cifar10().source("test")


def test_an_absurd_size_is_refused_before_memory_is_taken(folder):
    member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    member.size = 2**40
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.fileobj.write(member.tobuf())  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(UserError, match="claims 1,099,511,627,776 bytes"):
        Cifar10().source("test")


def test_every_way_to_damage_the_archive_is_a_user_error(folder):
    path = folder / "cifar-10-python.tar.gz"
    pack(path, official())
    good = path.read_bytes()
    refused = 0
    for cut in (0, 1, 9, 100, len(good) // 2, len(good) - 9, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
            Cifar10.read(folder, "train")
    for place in range(0, len(good), len(good) // 60):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        try:
            Cifar10.read(folder, "train")
        except UserError:
            refused += 1
    assert refused >= 58  # a few bytes of gzip's header say nothing


def test_the_real_archive(monkeypatch, tmp_path):
    if "DIFFENC_SHARED" not in os.environ:
        pytest.skip("DIFFENC_SHARED is not set")
    real = Path(os.environ["DIFFENC_SHARED"]) / "data" / "cifar10_jpeg"
    (tmp_path / "cifar10").symlink_to(real)
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    with tarfile.open(real / "cifar-10-python.tar.gz") as archive:
        stream = archive.extractfile("cifar-10-batches-py/test_batch")
        assert stream is not None
        expected = pickle.load(stream, encoding="latin1")  # the stock unpickler, on a file that is trusted
        key = "data" if "data" in expected else b"data"
        labels = expected.get("labels") or expected[b"labels"]
    source = Cifar10().source("test")
    found = source.__getitems__(np.arange(len(source)))
    planes = [
        expected[key][:, 1024 * channel : 1024 * (channel + 1)].reshape(-1, 32, 32) for channel in range(3)
    ]
    np.testing.assert_array_equal(found["image"], np.stack(planes, axis=-1))
    np.testing.assert_array_equal(found["label"], labels)
