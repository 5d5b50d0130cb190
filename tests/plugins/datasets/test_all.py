"""What every data set promises. A new one needs an entry in FILES if it lies in files."""

import gzip
import io
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diffenc_plugins  # noqa: F401  registers what is tested
from diffenc import interfaces, testing
from diffenc.cli.prepare import main as prepare_main
from diffenc.data import shard_reading, versions
from diffenc.data.prepare import PrepareArgs, prepare
from diffenc.data.recipe import Preparable
from diffenc.errors import UserError
from diffenc.registry import datasets
from diffenc.workdir import provenance

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


def write_pngs(folder: Path) -> None:
    for seed, (part, count) in enumerate((("train_32x32", 20), ("valid_32x32", 6))):
        (folder / part).mkdir()
        for k in range(count):
            levels = np.random.default_rng((seed, k)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(levels).save(folder / part / f"{k:05d}.png")


FILES = {
    "mnist": write_mnist,
    "cifar10": write_cifar10,
    "imagenet32": write_imagenet32,
    "imagenet32_oord": write_pngs,
}
OF_FOLDER = {"array_record": {"folder": "mine"}}  # fields without which a data set is not whole


@pytest.fixture(params=OURS)
def name(request, monkeypatch, tmp_path) -> str:
    """A data set's name; small official files of it are prepared under $DIFFENC_DATA."""
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "data"))
    (tmp_path / "files").mkdir()
    if request.param in FILES:
        FILES[request.param](tmp_path / "files")
        prepare(PrepareArgs(request.param, tmp_path / "files", tmp_path / "data"))
    if request.param == "array_record":
        write_mnist(tmp_path / "files")
        prepare(PrepareArgs("mnist", tmp_path / "files", tmp_path / "data", folder="mine"))
    return request.param


def make(name: str, **fields: Any) -> interfaces.Dataset:
    return datasets[name](**OF_FOLDER.get(name, {}) | fields)


def everything(source: interfaces.Source) -> interfaces.Batch:
    return source.__getitems__(np.arange(len(source)))


def test_all_are_registered():
    assert set(OURS) >= {"digits", "array_record", *FILES}


@pytest.mark.parametrize("check", testing.CHECKS["dataset"])
def test_it_keeps_what_a_data_set_keeps(name, check):
    check(make(name, validation=3))


def test_it_is_prepared_from_files_and_read_by_index(name):
    dataset = make(name)
    assert name not in FILES or isinstance(datasets[name], Preparable)
    for split in ("train", "test"):
        assert isinstance(dataset.source(split), interfaces.Source)


@pytest.mark.parametrize("name", ["digits", *FILES], indirect=True)
def test_origin_and_licence_are_on_the_card_and_in_the_docs(name, tiny):
    card = provenance.dataset_card(tiny(dataset=make(name)), 1)
    docs = " ".join((Path(__file__).parents[3] / "docs" / "datasets.md").read_text().split())
    assert "http" in card["origin"]
    assert re.split(r" \(|; its|:", card["licence"])[0] in re.sub(r"[][]|\(http.*?\)", "", docs)


def test_what_is_known_of_images_in_any_folder():
    assert versions.published_terms("images of the folder mine") == {}
    assert (
        versions.published_terms("Fashion-MNIST (Xiao et al. 2017): all of train, unknown version of test")[
            "licence"
        ]
        == "MIT"
    )
    assert (
        "none is stated"
        in versions.published_terms("unknown version of CIFAR-10 (Krizhevsky 2009)")["licence"]
    )


def test_validation_is_cut_from_train_alone(name):
    whole, parted = make(name), make(name, validation=7)
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
        make(name).source("eval")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", [*FILES, *OF_FOLDER], indirect=True)
def test_what_does_not_fit_in_memory_is_read_the_same_from_its_shards(name, monkeypatch, split):
    dataset = make(name)
    held = everything(dataset.source(split))
    monkeypatch.setattr(shard_reading, "IN_MEMORY", 1)
    source = dataset.source(split)
    assert isinstance(source, shard_reading.ShardSource)
    read = everything(source)
    np.testing.assert_array_equal(read["image"], held["image"])
    np.testing.assert_array_equal(read["label"], held["label"])


@pytest.mark.parametrize("name", FILES)
def test_absent_files_come_with_the_folder_and_the_command(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "nothing"))
    with pytest.raises(UserError) as caught:
        datasets[name]().source("test")
    message = str(caught.value)
    assert str(tmp_path / "nothing" / name) in message
    assert f"python -m diffenc.prepare {name} --source=FILE_OR_DIR --data_dir={tmp_path}/nothing" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", FILES)
def test_official_files_that_lie_unprepared_are_told_with_the_command(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    (tmp_path / name).mkdir()
    FILES[name](tmp_path / name)
    with pytest.raises(UserError, match="holds official files that are not prepared yet") as caught:
        datasets[name]().source("test")
    (command,) = re.findall(
        r"run python -m diffenc\.prepare (\S+ --source=\S+ --data_dir=[^ ;]+)", str(caught.value)
    )
    assert prepare_main(command.split()) == 0  # in place, beside the files
    assert len(datasets[name]().source("test")) > 0


def test_images_of_another_shape_are_refused_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "data"))
    write_mnist(tmp_path)
    prepare(PrepareArgs("mnist", tmp_path, tmp_path / "data", folder="cifar10"))
    with pytest.raises(
        UserError, match=r"images \(28, 28, 1\).*not \(32, 32, 3\).*array_record\.folder = 'cifar10'"
    ):
        make("cifar10").source("train")


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", ".hidden", ""])
def test_a_folder_is_one_in_the_data_directory(folder):
    with pytest.raises(UserError, match=r"dataset\.mnist\.folder"):
        make("mnist", folder=folder).source("train")
