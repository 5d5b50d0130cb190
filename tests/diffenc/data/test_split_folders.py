"""Which folders are splits: files on disk, and for every name what is read of it or how the refusal says to say it."""

import itertools
import re
from pathlib import Path

import pytest

from diffenc.cli import prepare
from diffenc.data import image_folder, manifest
from diffenc.data.image_folder import Folders
from diffenc.errors import UserError

from .test_image_folder import draw

SEEDS = itertools.count()


def fill(folder: Path, count: int = 2, classes=("ant", "bee")) -> None:
    for name in classes:
        for k in range(count):
            draw(folder / name / f"{k}.png", next(SEEDS))


def counts(source: Path) -> tuple[int, int, tuple[str, ...]]:
    found = image_folder.make_recipe(Folders(source))
    return found.counts["train"], found.counts["test"], found.classes


def refused(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        image_folder.make_recipe(Folders(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"), ("training", "testing"), ("Train", "Test"), ("TRAIN", "VAL"), ("Training", "Validation"),
        ("train", "eval"), ("train", "dev"), ("trainset", "testset"), ("train_set", "test-set"), ("Training Set", "Test Set"),
    ],
)  # fmt: skip
def test_usual_names_are_splits_in_any_case(tmp_path, train, test):
    fill(tmp_path / train, 3)
    fill(tmp_path / test, 1)
    assert counts(tmp_path) == (6, 2, ("ant", "bee"))


def test_validation_images_beside_both_splits_are_counted_and_not_read(tmp_path):
    fill(tmp_path / "train", 3)
    fill(tmp_path / "val", 2)
    fill(tmp_path / "test", 1)
    found = image_folder.make_recipe(Folders(tmp_path))
    assert found.counts == {"train": 6, "test": 2}
    assert re.search(
        r"skipped +4  images in val/: a run cuts its validation images from train", found.summary
    )


def test_a_train_folder_alone_is_all_there_is(tmp_path):
    fill(tmp_path / "Train", 10)
    assert counts(tmp_path) == (18, 2, ("ant", "bee"))


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (("cifar_train", "cifar_test"), "cifar_train", "cifar_test"),
        (("train2017", "val2017"), "train2017", "val2017"),
        (("trainA", "testA"), "trainA", "testA"),
        (("train_32x32", "valid_32x32"), "train_32x32", "valid_32x32"),
        (("TrainImages", "TestImages"), "TrainImages", "TestImages"),
        (("trainimages", "testimages"), None, None),
        (("imagesTr", "imagesTs"), None, None),
        (("tr", "te"), None, None),
        (("train", "test", "extra"), "train", "test"),
        (("train", "bus", "car"), "train", None),
        (("train", "train2", "test"), None, "test"),
        (("train", "training"), None, None),
        (("train", "eval", "dev"), "train", None),
        (("test",), None, "test"),
        (("test", "ant"), None, "test"),
        (("train_station", "beach"), "train_station", None),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_with_the_way_to_say_it(tmp_path, folders, train, test):
    for name in folders:
        fill(tmp_path / name)
    said = refused(tmp_path)
    options = [
        f"--{key}={tmp_path / name if name else 'DIR'}" for key, name in (("train", train), ("test", test))
    ]
    assert " ".join(options) in said
    assert f"--train={tmp_path} if all of them are classes" in said


def test_images_beside_splits_are_refused(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    draw(tmp_path / "sample.png", 0)
    assert "sample.png" in refused(tmp_path)


@pytest.mark.parametrize("inner", [("train", "test"), ("Train", "VAL"), ("test",)])
def test_splits_deeper_down_are_not_pooled(tmp_path, inner):
    for name in inner:
        fill(tmp_path / "data" / name)
    said = refused(tmp_path)
    assert f"{tmp_path}/data: contains" in said
    assert "--train=" in said


def test_splits_inside_classes_are_not_pooled(tmp_path):
    for split in ("train", "test"):
        draw(tmp_path / "train" / "dog" / split / "0.png", 0)
    draw(tmp_path / "test" / "dog" / "1.png", 1)
    assert f"{tmp_path}/train/dog: contains test, train" in refused(tmp_path)


def test_classes_may_have_any_name_within_a_split(tmp_path):
    fill(tmp_path / "train", 2, ("train", "test_tube", "bus"))
    fill(tmp_path / "test", 1, ("train", "test_tube", "bus"))
    assert counts(tmp_path) == (6, 3, ("bus", "test_tube", "train"))


def test_folders_without_images_are_no_splits(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    (tmp_path / "test_results").mkdir()
    (tmp_path / "test_results" / "log.txt").write_text("")
    assert counts(tmp_path)[:2] == (4, 4)


def test_classes_that_differ_in_case_alone_are_refused(tmp_path):
    fill(tmp_path, 2, ("Dog", "dog", "cat"))
    assert "classes Dog and dog differ only in case; rename or merge them" in refused(tmp_path)


def prepared(capsys, data_dir: Path, *args: str) -> tuple[int, str]:
    status = prepare.main(["folder", f"--data_dir={data_dir}", *args])
    out, err = capsys.readouterr()
    return status, out + err.rpartition("error: ")[2]


def test_splits_are_named_by_the_user(capsys, tmp_path):
    fill(tmp_path / "pets" / "cifar_train", 3)
    fill(tmp_path / "pets" / "cifar_test", 1)
    data_dir, source = tmp_path / "data", tmp_path / "pets"
    status, said = prepared(capsys, data_dir, f"--source={source}")
    (options,) = re.findall(r"(--train=\S+ --test=\S+ --as=)FOLDER", said)
    assert status == 1
    status, said = prepared(capsys, data_dir, *f"{options}pets".split())
    assert (status, "6 train images, 2 test images" in said) == (0, True)
    assert "images of the folders cifar_train and cifar_test" in said
    made = manifest.read(data_dir / "pets")
    assert made is not None
    assert set(made.files) == {"cifar_train/", "cifar_test/"}
    # the same folder as one set of classes
    assert "already holds other data" in prepared(capsys, data_dir, f"--train={source}", "--as=pets")[1]
    status, said = prepared(capsys, data_dir, f"--train={source}", "--as=pooled")
    assert (status, "7 train images, 1 test images" in said) == (0, True)


def test_folders_of_one_name_are_both_listed(capsys, tmp_path):
    fill(tmp_path / "a" / "images", 2)
    fill(tmp_path / "b" / "images", 1)
    args = (f"--train={tmp_path}/a/images", f"--test={tmp_path}/b/images", "--as=pets")
    assert prepared(capsys, tmp_path / "data", *args)[0] == 0
    made = manifest.read(tmp_path / "data" / "pets")
    assert made is not None
    assert set(made.files) == {"train/", "test/"}
    assert "already prepared" in prepared(capsys, tmp_path / "data", *args)[1]


def test_what_cannot_be_named(capsys, tmp_path):
    fill(tmp_path / "pets" / "test")
    pets = tmp_path / "pets"
    for args, says in (
        ((f"--train={pets}", f"--test={pets}/test", "--as=x"), "one contains the other"),
        ((f"--train={pets}", f"--test={pets}", "--as=x"), "one contains the other"),
        ((f"--train={pets}/none", "--as=x"), "is not a folder"),
        ((f"--train={pets}",), "give the prepared folder a name with --as=FOLDER"),
        ((f"--test={pets}",), "give --train=DIR too"),
        ((), "give --source=DIR, or --train=DIR --test=DIR"),
    ):
        status, said = prepared(capsys, tmp_path / "data", *args)
        assert (status, says in said) == (1, True), said
    assert prepare.main(["mnist", f"--train={pets}", f"--data_dir={tmp_path}/data"]) == 1
    assert "--train is for `folder` alone" in capsys.readouterr().err
