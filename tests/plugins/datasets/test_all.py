"""What every data set promises. A new one needs an entry in FILES if it lies in files."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffenc_plugins  # noqa: F401  registers what is tested
from diffenc import interfaces
from diffenc.errors import UserError
from diffenc.prepare import Preparable
from diffenc.registry import datasets

OURS = [name for name in datasets if datasets[name].__module__.startswith("diffenc_plugins.")]


def rows(seed: int, first_label: int) -> bytes:
    data = np.random.default_rng(seed).integers(0, 256, (4, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, "labels": [first_label + (seed + k) % 10 for k in range(4)]}, 2)


def write_mnist(folder: Path) -> None:
    for seed, (prefix, count) in enumerate((("train", 20), ("t10k", 6))):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images = struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes()
        labels = struct.pack(">2I", 2049, count) + bytes(k % 10 for k in range(count))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_cifar10(folder: Path) -> None:
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for seed, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            content = rows(seed, 0)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_imagenet32(folder: Path) -> None:
    parts = {"train": [f"train_data_batch_{k}" for k in range(1, 11)], "val": ["val_data"]}
    for part, names in parts.items():
        with zipfile.ZipFile(folder / f"Imagenet32_{part}.zip", "w") as archive:
            for seed, name in enumerate(names):
                archive.writestr(name, rows(seed + 20 * (part == "val"), 1))


FILES = {"mnist": write_mnist, "cifar10": write_cifar10, "imagenet32": write_imagenet32}


@pytest.fixture(params=OURS)
def name(request, monkeypatch, tmp_path) -> str:
    """A data set's name, its official files laid out small under $DIFFENC_DATA."""
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    if request.param in FILES:
        (tmp_path / request.param).mkdir()
        FILES[request.param](tmp_path / request.param)
    return request.param


def make(name: str, **fields: Any) -> interfaces.Dataset:
    return datasets[name](**fields)


def everything(source: interfaces.Source) -> interfaces.Batch:
    return source.__getitems__(np.arange(len(source)))


def test_all_four_are_registered():
    assert set(OURS) >= {"digits", "mnist", "cifar10", "imagenet32"}


def test_interface(name):
    dataset = datasets[name]()
    assert isinstance(dataset, interfaces.Dataset)
    assert name not in FILES or isinstance(datasets[name], Preparable)
    assert datasets[name].__doc__
    for split in ("train", "test"):
        assert isinstance(dataset.source(split), interfaces.Source)


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_are_what_they_claim(name, split):
    dataset = datasets[name]()
    source = dataset.source(split)
    batch = everything(source)
    assert batch["image"].shape == (len(source), *dataset.image_shape)
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
    assert batch["image"].max() < dataset.num_levels
    assert batch["label"].min() >= 0
    assert batch["label"].max() < dataset.num_classes
    for k in (0, len(source) // 2, len(source) - 1):
        np.testing.assert_array_equal(source[k]["image"], batch["image"][k])
        assert int(source[k]["label"]) == batch["label"][k]


def test_it_reads_the_same_again(name):
    first, second = (everything(datasets[name]().source("train")) for _ in range(2))
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["label"], second["label"])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_fingerprint_is_the_hash_of_the_pixels(name, split):
    dataset = make(name, validation=3)
    digest = hashlib.sha256()
    source = dataset.source(split)
    for k in range(len(source)):
        digest.update(bytes(source[k]["image"].flatten().tolist()))
    assert dataset.fingerprint(split) == digest.hexdigest()


def test_validation_is_cut_from_train_alone(name):
    whole, parted = datasets[name](), make(name, validation=7)
    rows = {split: images(parted.source(split)) for split in ("train", "validation", "test")}
    assert len(rows["validation"]) == 7
    assert sorted(rows["train"] + rows["validation"]) == sorted(images(whole.source("train")))
    assert rows["test"] == images(whole.source("test"))


def images(source: interfaces.Source) -> list[bytes]:
    return [image.tobytes() for image in everything(source)["image"]]


@pytest.mark.parametrize(("validation", "split"), [(0, "validation"), (10**7, "train"), (-1, "train")])
def test_a_validation_that_does_not_fit_names_its_key(name, validation, split):
    with pytest.raises(UserError, match=rf"dataset\.{name}\.validation = {validation}"):
        make(name, validation=validation).source(split)


def test_another_split_is_refused(name):
    with pytest.raises(UserError, match=rf"dataset\.{name} has no split 'eval'"):
        datasets[name]().source("eval")


def test_data_sets_and_sources_pickle(name):
    dataset = make(name, validation=2)
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    for split in ("train", "validation", "test"):
        source = dataset.source(split)
        again = pickle.loads(pickle.dumps(source))
        assert images(again) == images(source)


@pytest.mark.parametrize("name", FILES)
def test_absent_files_come_with_the_folder_and_the_command(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "nothing"))
    with pytest.raises(UserError) as caught:
        datasets[name]().source("test")
    message = str(caught.value)
    assert str(tmp_path / "nothing" / name) in message
    assert f"python -m diffenc.prepare {name} --source=FILE_OR_DIR --data_dir={tmp_path}/nothing" in message
    assert "\n" not in message
