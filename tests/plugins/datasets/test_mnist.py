import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from diffenc.data.prepare import PrepareArgs, prepare
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
def folder(tmp_path) -> Path:
    """Seven images in the official layout, the same in both splits."""
    (tmp_path / "files").mkdir()
    for prefix in ("train", "t10k"):
        (tmp_path / "files" / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images()))
        (tmp_path / "files" / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels()))
    return tmp_path / "files"


def check(source):
    batch = source.__getitems__(np.arange(len(source)))
    np.testing.assert_array_equal(batch["image"], IMAGES[..., None])
    np.testing.assert_array_equal(batch["label"], LABELS)


def test_gzipped_files_are_read(folder, read):
    check(read("mnist", folder, "train"))
    check(read("mnist", folder, "test"))


def test_unpacked_files_are_read_beside_packed_ones(folder, read):
    (folder / "train-images-idx3-ubyte.gz").unlink()
    (folder / "train-images-idx3-ubyte").write_bytes(images())
    check(read("mnist", folder, "train"))


def test_shards_are_read_once_a_process(folder, read, tmp_path):
    first = read("mnist", folder, "train")
    for path in (tmp_path / "data" / "mnist").glob("*.array_record"):
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
def test_bad_image_files_are_refused_by_name(folder, read, content, says):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read("mnist", folder, "train")
    assert "train-images-idx3-ubyte.gz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_out_of_range_is_refused(folder, read):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels(values=[0, 1, 2, 3, 4, 5, 10])))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz: label 10 is not below 10"):
        read("mnist", folder, "test")


def test_more_images_than_there_can_be_are_not_waited_for(folder):
    """4,097 images: the chunks that they are read in, and one more."""
    many = np.tile(IMAGES, (586, 1, 1))[:4097]
    found = {f"train-{kind}": folder / f"many-{kind}" for kind in ("images", "labels")}
    found["train-images"].write_bytes(struct.pack(">4I", 2051, 4097, 28, 28) + many.tobytes())
    found["train-labels"].write_bytes(struct.pack(">2I", 2049, 4097) + bytes(k % 10 for k in range(4097)))
    for first in (0, 5, 4096):
        parts = list(Mnist.read(found, "train", first))
        np.testing.assert_array_equal(np.concatenate([part["image"] for part in parts])[..., 0], many[first:])
        expected = np.arange(4097) % 10
        np.testing.assert_array_equal(np.concatenate([part["label"] for part in parts]), expected[first:])


def test_the_real_files(read):
    if "DIFFENC_SHARED" not in os.environ:
        pytest.skip("DIFFENC_SHARED is not set")
    real = Path(os.environ["DIFFENC_SHARED"]) / "data" / "mnist"
    for split, prefix, count in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        raw = gzip.decompress((real / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        classes = gzip.decompress((real / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        source = read("mnist", real, split)
        assert len(source) == count
        everything = source.__getitems__(np.arange(count))
        assert everything["image"].tobytes() == raw[16:]
        assert everything["label"].tolist() == list(classes[8:])
    as_everybody_knows_them = [5, 0, 4, 1, 9]
    assert [int(Mnist().source("train")[k]["label"]) for k in range(5)] == as_everybody_knows_them
    assert Mnist().source_name == "MNIST (LeCun et al. 1998)"


@pytest.mark.slow
def test_fashion_mnist_is_read_beside_mnist_and_known(folder, read, tmp_path):
    debian = Path("/usr/share/datasets/fashion-mnist")
    if not debian.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    read("mnist", folder, "train")
    prepare(PrepareArgs("mnist", debian, tmp_path / "data", folder="fashion_mnist"))
    fashion = Mnist(folder="fashion_mnist")
    raw = gzip.decompress((debian / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert fashion.source("test").__getitems__(np.arange(10_000))["image"].tobytes() == raw[16:]
    assert fashion.source_name == "Fashion-MNIST (Xiao et al. 2017)"
    assert len(fashion.source("train")) == 60_000
    assert Mnist().source_name == "unknown version of MNIST (LeCun et al. 1998)"
    assert len(Mnist().source("train")) == 7
