import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc_plugins.datasets import Mnist

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 9, 1, 8, 2, 7, 3], np.uint8)


def images(count=None, rows=28, columns=28, magic=2051, body=None) -> bytes:
    header = struct.pack(">4I", magic, len(IMAGES) if count is None else count, rows, columns)
    return header + (IMAGES.tobytes() if body is None else body)


def labels(values: Sequence[int] = tuple(LABELS.tolist()), magic: int = 2049) -> bytes:
    return struct.pack(">2I", magic, len(values)) + bytes(values)


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    """Seven images in the official layout, the same in both splits, under $DIFFENC_DATA."""
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for prefix in ("train", "t10k"):
        (tmp_path / "mnist" / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images()))
        (tmp_path / "mnist" / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels()))
    return tmp_path / "mnist"


def check(source):
    batch = source.__getitems__(np.arange(len(source)))
    np.testing.assert_array_equal(batch["image"], IMAGES[..., None])
    np.testing.assert_array_equal(batch["label"], LABELS)


def test_gzipped_files_are_read(folder):
    check(Mnist().source("train"))
    check(Mnist().source("test"))


def test_unpacked_files_are_read_beside_packed_ones(folder):
    (folder / "train-images-idx3-ubyte.gz").unlink()
    (folder / "train-images-idx3-ubyte").write_bytes(images())
    check(Mnist().source("train"))


def test_files_are_read_once_a_process(folder):
    first = Mnist().source("train")
    for path in folder.iterdir():
        path.unlink()
    assert Mnist().source("train") is first
    assert len(Mnist(validation=2).source("validation")) == 2


BAD_IMAGES = {
    "cut gzip": (gzip.compress(images())[:-20], "cannot be read"),
    "damaged gzip": (
        gzip.compress(images())[:200] + b"\0" * 50 + gzip.compress(images())[250:],
        "cannot be read",
    ),
    "gzip whose sum is wrong": (
        gzip.compress(images())[:-8] + b"\1\2\3\4" + gzip.compress(images())[-4:],
        "CRC",
    ),
    "not gzip": (images(), "cannot be read"),
    "empty": (b"", "ends within its header"),
    "cut header": (gzip.compress(images()[:11]), "ends within its header"),
    "labels": (gzip.compress(labels(values=[1] * 20)), "0x00000801, not with 0x00000803"),
    "int32 IDX": (gzip.compress(images(magic=0x0C03)), "0x00000c03"),
    "other size": (gzip.compress(images(rows=32)), r"dimensions \(7, 32, 28\)"),
    "no image": (gzip.compress(images(count=0, body=b"")), r"dimensions \(0, 28, 28\)"),
    "absurd count": (gzip.compress(images(count=2**32 - 1)), r"dimensions \(4294967295, 28, 28\)"),
    "too few": (gzip.compress(images(body=IMAGES.tobytes()[:-1])), "fewer than the 5488 bytes"),
    "too many": (gzip.compress(images(body=IMAGES.tobytes() + b"x")), "more than the 5488 bytes"),
    "one image less": (gzip.compress(images(count=6, body=IMAGES[:6].tobytes())), "7 labels for 6 images"),
}


@pytest.mark.parametrize(("content", "says"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image_files_are_refused_by_name(folder, content, says):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        Mnist().source("train")
    assert "train-images-idx3-ubyte.gz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_out_of_range_is_refused(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels(values=[0, 1, 2, 3, 4, 5, 10])))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz: label 10 is not below 10"):
        Mnist().source("test")


def test_absent_files_are_named(folder):
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match=r"no train-labels-idx1-ubyte\.gz.*python -m diffenc\.prepare mnist --source="
    ):
        Mnist().source("train")


def test_the_real_files(monkeypatch, tmp_path):
    if "DIFFENC_SHARED" not in os.environ:
        pytest.skip("DIFFENC_SHARED is not set")
    real = Path(os.environ["DIFFENC_SHARED"]) / "data" / "mnist"
    (tmp_path / "mnist").symlink_to(real)
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    for split, prefix, count in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        raw = gzip.decompress((real / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        classes = gzip.decompress((real / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        source = Mnist().source(split)
        assert len(source) == count
        for k in (0, 1, 777, count - 1):
            example = source[k]
            assert example["image"].tobytes() == raw[16 + 784 * k : 16 + 784 * (k + 1)]
            assert int(example["label"]) == classes[8 + k]
    assert [int(Mnist().source("train")[k]["label"]) for k in range(5)] == [
        5,
        0,
        4,
        1,
        9,
    ]  # as everybody knows them
