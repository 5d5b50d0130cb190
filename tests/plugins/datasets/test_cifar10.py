import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from PIL import Image

from diffenc.data import manifest
from diffenc.data.prepare import PrepareArgs, prepare
from diffenc.errors import UserError
from diffenc.interfaces import Source
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
def folder(tmp_path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def check(source: Source, names: list[str]) -> None:
    assert len(source) == 3 * len(names)
    for k in range(len(source)):
        name, row = names[k // 3], k % 3
        example = source[k]
        assert int(example["label"]) == classes(name)[row]
        for y, x, channel in ((0, 0, 0), (0, 1, 2), (31, 30, 1), (5, 17, 2)):
            assert example["image"][y, x, channel] == rows(name)[row, 1024 * channel + 32 * y + x]


def test_the_archive_is_read(folder, read):
    pack(folder / "cifar-10-python.tar.gz", {"./cifar-10-batches-py/readme.html": b"hello", **official()})
    check(read("cifar10", folder, "train"), NAMES[:5])
    check(read("cifar10", folder, "test"), NAMES[5:])


def test_the_order_is_that_of_the_names_not_of_the_archive(folder, read):
    pack(folder / "cifar-10-python.tar.gz", dict(reversed(official().items())))
    check(read("cifar10", folder, "train"), NAMES[:5])


def test_the_unpacked_folder_is_read(folder, read):
    for name, content in official().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    check(read("cifar10", folder, "train"), NAMES[:5])
    check(read("cifar10", folder, "test"), NAMES[5:])


def test_images_that_are_not_the_official_ones_are_warned_of(folder, read, caplog):
    caplog.set_level("WARNING", logger=logging.get_absl_logger().name)
    pack(folder / "cifar-10-python.tar.gz", official())
    read("cifar10", folder, "test")
    (record,) = caplog.records
    assert "unknown version of CIFAR-10 (Krizhevsky 2009), 15 train images, 3 test" in record.getMessage()
    assert "not comparable" in record.getMessage()


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
def test_a_bad_batch_is_refused_by_name(folder, read, other, says):
    pack(
        folder / "cifar-10-python.tar.gz",
        official() | {"cifar-10-batches-py/data_batch_4": batch("data_batch_4", **other)},
    )
    with pytest.raises(UserError, match=says) as caught:
        read("cifar10", folder, "train")
    assert "cifar-10-python.tar.gz:data_batch_4" in str(caught.value)
    assert "\n" not in str(caught.value)


def everything(folder: Path) -> None:
    """Reads what training needs."""
    for _ in Cifar10.read(Cifar10.files.locate(folder), "train", 0):
        pass


class Evil:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_an_evil_batch_is_named_and_not_run(folder, read, tmp_path):
    evil = pickle.dumps({"data": Evil(tmp_path / "trace")}, 2)
    pack(folder / "cifar-10-python.tar.gz", official() | {"cifar-10-batches-py/test_batch": evil})
    with pytest.raises(UserError, match=r"test_batch: its pickle asks for 'posix\.system'"):
        read("cifar10", folder, "test")
    assert not (tmp_path / "trace").exists()


def test_nothing_in_an_archive_is_written_to_disk(folder, read, tmp_path):
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
    check(read("cifar10", folder, "train"), NAMES[:5])
    assert not [path for path in tmp_path.rglob("*") if path.name in ("escaped", "link", "data_batch_1")]
    assert not Path("/escaped").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "cifar-10-batches-py/data_batch_1", "../../escaped"])
def test_a_link_is_no_batch(folder, read, kind, target):
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, content in list(official().items())[:5]:
            add(archive, name, content)
        add(archive, "cifar-10-batches-py/test_batch", b"", type=kind, linkname=target)
    with pytest.raises(UserError, match="has no member cifar-10-batches-py/test_batch"):
        read("cifar10", folder, "test")


def test_an_absurd_size_is_refused_before_memory_is_taken(folder, read):
    member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    member.size = 2**40
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, content in list(official().items())[:5]:
            add(archive, name, content)
        archive.fileobj.write(member.tobuf())  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(UserError, match="claims 1,099,511,627,776 bytes"):
        read("cifar10", folder, "test")


def test_every_way_to_damage_the_archive_is_a_user_error(folder):
    path = folder / "cifar-10-python.tar.gz"
    pack(path, official())
    good = path.read_bytes()
    refused = 0
    for cut in (0, 1, 9, 100, len(good) // 2, len(good) - 9, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
            everything(folder)
    for place in range(0, len(good), len(good) // 60):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        try:
            everything(folder)
        except UserError:
            refused += 1
    assert refused >= 58  # a few bytes of gzip's header say nothing


BINARY = [f"{name}.bin" for name in NAMES]


def binary(name: str) -> bytes:
    """A byte of label and 3,072 of pixels an image."""
    pairs = zip(classes(name), rows(name), strict=True)
    return b"".join(bytes([label]) + row.tobytes() for label, row in pairs)


@pytest.mark.parametrize("packed", [True, False])
def test_the_binary_version_is_read(folder, read, packed):
    members = {f"cifar-10-batches-bin/{name}.bin": binary(name) for name in NAMES}
    if packed:
        pack(folder / "cifar-10-binary.tar.gz", members)
    else:
        (folder / "cifar-10-batches-bin").mkdir()
        for name, content in members.items():
            (folder / name).write_bytes(content)
    check(read("cifar10", folder, "train"), NAMES[:5])
    check(read("cifar10", folder, "test"), NAMES[5:])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (binary("data_batch_2")[:-1], "9,218 bytes are no whole number of images"),
        (b"", "holds no image"),
        (b"\x0a" + binary("data_batch_2")[1:], r"labels 0 \.\. 10 are not within 0 \.\. 9"),
    ],
)
def test_a_bad_binary_batch_is_refused_by_name(folder, read, content, says):
    members = {f"cifar-10-batches-bin/{name}.bin": binary(name) for name in NAMES}
    pack(folder / "cifar-10-binary.tar.gz", members | {"cifar-10-batches-bin/data_batch_2.bin": content})
    with pytest.raises(UserError, match=says) as caught:
        read("cifar10", folder, "train")
    assert "cifar-10-binary.tar.gz:data_batch_2.bin" in str(caught.value)


def trusted(archive: tarfile.TarFile, name: str) -> tuple[np.ndarray, list[int]]:
    """A batch as the stock unpickler gives it: images [N, 32, 32, 3] and labels."""
    stream = archive.extractfile(f"cifar-10-batches-py/{name}")
    assert stream is not None
    batch = {key.decode(): value for key, value in pickle.load(stream, encoding="bytes").items()}
    planes = [batch["data"][:, 1024 * channel : 1024 * (channel + 1)] for channel in range(3)]
    return np.stack([plane.reshape(-1, 32, 32) for plane in planes], axis=-1), batch["labels"]


CIFAR10 = "CIFAR-10 (Krizhevsky 2009)"
TRAIN_SHA256 = "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"  # published with the sheets


@pytest.fixture
def sheets() -> Path:
    """The real CIFAR-10 in sheets of 1,000 images: all of train, the first 1,000 of test."""
    if "DIFFENC_SHARED" not in os.environ:
        pytest.skip("DIFFENC_SHARED is not set")
    return Path(os.environ["DIFFENC_SHARED"]) / "data" / "cifar10"


@pytest.mark.slow
def test_the_real_binary_files_are_known_split_by_split(sheets, folder, read, caplog):
    caplog.set_level("INFO", logger=logging.get_absl_logger().name)
    subprocess.run([sys.executable, sheets / "unpack.py", folder], check=True)
    assert len(read("cifar10", folder, "train")) == 50_000
    assert caplog.records == []
    assert len(read("cifar10", folder, "test")) == 1000
    assert Cifar10().source_name == f"{CIFAR10}: all of train, first 1,000 of test"
    assert Cifar10().fingerprint("train") == TRAIN_SHA256
    (record,) = caplog.records
    assert "bits/dim are of the first 1,000 of test, published ones of all of it" in record.getMessage()


def test_real_images_are_known_as_files_in_any_order(sheets, tmp_path):
    """The first 1,000 of test, as PNGs in folders of classes; of train, two others."""
    images = np.asarray(Image.open(sheets / "batch_50.png")).reshape(-1, 32, 32, 3)
    classes = np.fromfile(sheets / "labels.u8", np.uint8)[50_000:]
    for k, image in enumerate(images):
        for split in ("test", "train") if k < 50 else ("test",):
            path = tmp_path / "images" / split / str(classes[k]) / f"{k:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=0)
    done = prepare(PrepareArgs("folder", tmp_path / "images", tmp_path / "data"))
    assert f"{CIFAR10}: unknown version of train, first 1,000 of test" in done


def test_files_with_official_checksums_are_known_split_by_split(tmp_path):
    """As a manifest from before digests of both splits were compared, which called all of it unknown."""
    train = {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    }
    test = {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"}
    unknown = f"unknown version of {CIFAR10}"
    assert source_in_old_manifest(tmp_path, train | test) == CIFAR10
    assert source_in_old_manifest(tmp_path, train) == f"{CIFAR10}: all of train, unknown version of test"
    assert source_in_old_manifest(tmp_path, test) == f"{CIFAR10}: unknown version of train, all of test"
    assert source_in_old_manifest(tmp_path, {**train, "data_batch_5.bin": "0"}) == unknown
    archive = {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}
    assert source_in_old_manifest(tmp_path, archive) == CIFAR10
    assert (
        source_in_old_manifest(tmp_path, {}, TRAIN_SHA256)
        == f"{CIFAR10}: all of train, unknown version of test"
    )


def source_in_old_manifest(folder: Path, md5s: dict[str, str], train_sha256: str = "0") -> str:
    """What is read of a manifest without digests over any order."""
    said = {
        "format": 1, "name": "cifar10", "source": f"unknown version of {CIFAR10}", "image_shape": [32, 32, 3],
        "num_levels": 256, "num_classes": 10, "classes": [], "note": "", "diffenc_version": "0.1.0",
        "splits": {"train": {"count": 0, "sha256": train_sha256, "shards": []}, "test": {"count": 0, "sha256": "0", "shards": []}},
        "files": {f"cifar-10-batches-bin/{name}": {"bytes": 1, "md5": md5, "sha256": "0"} for name, md5 in md5s.items()},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(said))
    found = manifest.read(folder)
    assert found is not None
    return found.source


@pytest.mark.slow
def test_the_real_archive(read):
    if "DIFFENC_SHARED" not in os.environ:
        pytest.skip("DIFFENC_SHARED is not set")
    real = Path(os.environ["DIFFENC_SHARED"]) / "data" / "cifar10_jpeg"
    with tarfile.open(real / "cifar-10-python.tar.gz") as archive:
        batches = {name: trusted(archive, name) for name in NAMES}
    for split, names, count in (("train", NAMES[:5], 15_000), ("test", NAMES[5:], 2_000)):
        source = read("cifar10", real, split)
        assert len(source) == count
        found = source.__getitems__(np.arange(count))
        np.testing.assert_array_equal(found["image"], np.concatenate([batches[name][0] for name in names]))
        np.testing.assert_array_equal(found["label"], np.concatenate([batches[name][1] for name in names]))
