import sys
from pathlib import Path

import numpy as np
import pytest

from diffenc.data import tfds_folder
from diffenc.data.prepare import PrepareArgs, prepare
from diffenc.errors import UserError
from diffenc_plugins.datasets import ArrayRecord


def examples(count: int):
    """Images by their number, with what tensorflow-datasets wants of an example: a key and its features."""
    for k in range(count):
        levels = np.random.default_rng(k).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        yield k, {"image": levels, "label": k % 3}


def build(folder: Path, file_format: str = "array_record", second: str = "test") -> Path:
    """A data set of 11 + 4 images, prepared by tensorflow-datasets itself."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")  # which it writes with; it reads without
    image = tfds.features.Image(shape=(6, 5, 3), encoding_format="png")
    label = tfds.features.ClassLabel(names=["ant", "bee", "cow"])
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_datasets={"train": list(examples(11)), second: list(examples(4))},
        data_dir=folder,
        file_format=file_format,
    )
    return folder / "tiny" / "1.0.0"


def test_what_it_prepared_is_converted(monkeypatch, tmp_path):
    source = build(tmp_path)
    done = prepare(PrepareArgs("tfds", source, tmp_path / "data", folder="mine"))
    assert "11 train images, 4 test images" in done
    assert "tiny/1.0.0 of tensorflow-datasets" in done
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "data"))
    dataset = ArrayRecord(folder="mine")
    assert (dataset.image_shape, dataset.num_levels, dataset.num_classes) == ((6, 5, 3), 256, 3)
    assert dataset.manifest().classes == ("ant", "bee", "cow")
    held = dataset.source("train").__getitems__(np.arange(11))
    found = {image.tobytes(): int(label) for image, label in zip(held["image"], held["label"], strict=True)}
    assert found == {example["image"].tobytes(): example["label"] for _, example in examples(11)}


def test_validation_stands_in_for_test_and_is_told(tmp_path):
    recipe = tfds_folder.make_recipe(build(tmp_path, second="validation"))
    assert recipe.note == "test is its validation"
    assert recipe.counts == {"train": 11, "test": 4}
    assert len(np.concatenate([batch["label"] for batch in recipe.read("train", 9)])) == 2


def test_another_format_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"prepared as tfrecord; .*file_format='array_record'"):
        tfds_folder.make_recipe(build(tmp_path, "tfrecord"))


def test_a_folder_that_is_none_is_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match=r"has no dataset_info\.json"):
        tfds_folder.make_recipe(tmp_path)


def test_without_the_library_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'diffenc\[tfds\]'"):
        tfds_folder.make_recipe(tmp_path)


def test_the_prepared_folder_must_be_named(tmp_path):
    with pytest.raises(UserError, match="--as=FOLDER"):
        prepare(PrepareArgs("tfds", tmp_path, tmp_path / "data"))
