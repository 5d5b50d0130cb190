import pytest

from diffenc.data import manifest
from diffenc.data.manifest import Manifest, Split
from diffenc.errors import UserError
from diffenc_plugins.datasets import ArrayRecord


@pytest.fixture(autouse=True)
def data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    split = Split("ab" * 32, ())
    made = Manifest("folder", "mine", (6, 4, 3), 256, 7, (), {"train": split, "test": split}, {}, "", "0")
    manifest.write(made, tmp_path / "mine")
    return tmp_path


def test_it_is_what_its_manifest_says():
    dataset = ArrayRecord(folder="mine")
    assert (dataset.image_shape, dataset.num_levels, dataset.num_classes) == ((6, 4, 3), 256, 7)
    assert (dataset.source_name, dataset.fingerprint("test")) == ("mine", "ab" * 32)


def test_its_folder_must_be_bound(data_dir):
    with pytest.raises(UserError, match=rf"dataset\.array_record\.folder: name the folder in {data_dir}"):
        _ = ArrayRecord().image_shape


def test_a_folder_that_is_not_there_comes_with_the_command(data_dir):
    with pytest.raises(UserError) as caught:
        ArrayRecord(folder="other").source("train")
    command = f"python -m diffenc.prepare folder --source=DIR_OF_IMAGES --as=other --data_dir={data_dir}"
    assert str(caught.value) == f"{data_dir}/other: holds no prepared images; run {command}"
