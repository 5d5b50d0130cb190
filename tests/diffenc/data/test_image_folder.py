import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from diffenc.cli import prepare
from diffenc.data import image_file, image_folder, shard_writing
from diffenc.data.image_folder import Folders
from diffenc.errors import UserError
from diffenc_plugins.datasets import ArrayRecord


def draw(path: Path, seed: int, size=(6, 4), mode="RGB") -> np.ndarray:
    """A lossless image file, and the levels in it."""
    shape = (size[1], size[0], *([3] if mode == "RGB" else []))
    levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return levels


def examples(source: Path, split: str, size=None, first=0) -> tuple[np.ndarray, list[int]]:
    recipe = image_folder.make_recipe(Folders(source, size=size))
    batches = list(recipe.read(split, first))
    labels = np.concatenate([batch["label"] for batch in batches]).tolist()
    return np.concatenate([batch["image"] for batch in batches]), labels


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_folders_are_splits_and_classes(tmp_path, test):
    source = tmp_path / "pets"
    drawn = [draw(source / "train" / "dog" / f"{k}.png", k) for k in range(3)]
    cat = draw(source / "train" / "cat" / "deep" / "a.PNG", 3)
    tested = draw(source / test / "dog" / "x.bmp", 4)
    (source / "train" / "dog" / "notes.txt").write_text("not an image")
    draw(source / "train" / ".thumbs" / "0.png", 5)
    recipe = image_folder.make_recipe(Folders(source))
    assert (recipe.image_shape, recipe.num_classes, recipe.classes) == ((4, 6, 3), 2, ("cat", "dog"))
    note = "" if test == "test" else f"test is {test}/"
    assert (recipe.counts, recipe.note) == ({"train": 4, "test": 1}, note)
    images, labels = examples(source, "train")
    np.testing.assert_array_equal(images, np.stack([cat, *drawn]))
    assert labels == [0, 1, 1, 1]
    images, labels = examples(source, "test")
    np.testing.assert_array_equal(images, tested[None])
    assert labels == [1]
    np.testing.assert_array_equal(examples(source, "train", first=2)[0], np.stack(drawn[1:]))


def test_without_a_test_folder_an_even_tenth_is_held_out_and_noted(tmp_path):
    drawn = [draw(tmp_path / "all" / f"{k:03d}.png", k) for k in range(40)]
    recipe = image_folder.make_recipe(Folders(tmp_path / "all"))
    assert (recipe.counts, recipe.num_classes) == ({"train": 36, "test": 4}, 1)
    assert recipe.note == "4 of the 40 images, evenly spread, are held out for testing"
    tested = examples(tmp_path / "all", "test")[0]
    places = [next(k for k in range(40) if np.array_equal(drawn[k], image)) for image in tested]
    assert [place // 10 for place in places] == [0, 1, 2, 3]
    rest = np.stack([image for k, image in enumerate(drawn) if k not in places])
    np.testing.assert_array_equal(examples(tmp_path / "all", "train")[0], rest)


def test_gray_images_stay_gray_and_with_colour_all_are_rgb(tmp_path):
    gray = [draw(tmp_path / "a" / f"{k}.png", k, mode="L") for k in range(3)]
    images, _ = examples(tmp_path / "a", "train")
    assert images.shape[1:] == (4, 6, 1)
    draw(tmp_path / "a" / "9.png", 9)
    images, _ = examples(tmp_path / "a", "train")
    held = [image.tobytes() for image in images]
    assert sum(np.stack([one] * 3, axis=-1).tobytes() in held for one in gray) >= 2


def test_images_of_several_shapes_need_a_size_and_both_are_named(tmp_path):
    draw(tmp_path / "a" / "0.png", 0, (6, 4))
    draw(tmp_path / "a" / "1.png", 1, (8, 4))
    with pytest.raises(UserError, match=r"\.png is .*, but .*\.png is .*: give --size=N") as caught:
        image_folder.make_recipe(Folders(tmp_path / "a"))
    assert "0.png is 6x4" in str(caught.value)
    assert "1.png is 8x4" in str(caught.value)


def test_size_cuts_the_centre_and_takes_means_of_boxes(tmp_path):
    wide = draw(tmp_path / "a" / "0.png", 0, (10, 4))
    tall = draw(tmp_path / "a" / "1.png", 1, (4, 6))
    found = np.concatenate([examples(tmp_path / "a", split, 2)[0] for split in ("train", "test")])
    for levels in (wide[:, 3:7], tall[1:5]):
        means = levels.astype(float).reshape(2, 2, 2, 2, 3).mean(axis=(1, 3))
        assert min(np.abs(image - means).max() for image in found) <= 1  # rounded along each axis


def test_every_common_format_is_read(tmp_path):
    levels = np.full((4, 6, 3), 77, np.uint8)
    (tmp_path / "a").mkdir()
    for ending in ("png", "jpg", "bmp", "tiff", "webp", "gif", "ppm"):
        Image.fromarray(levels).save(tmp_path / "a" / f"x.{ending}")
    images = np.concatenate([examples(tmp_path / "a", split)[0] for split in ("train", "test")])
    assert len(images) == 7
    assert np.abs(images.astype(int) - 77).max() <= 2


def ghostscript(folder: Path, monkeypatch) -> Path:
    """The path of a file that is there once Pillow has run Ghostscript."""
    trace, program = folder / "ran", folder / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return trace


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize("size", [None, 2])
def test_a_program_under_the_name_of_an_image_is_not_run(tmp_path, monkeypatch, size):
    trace = ghostscript(tmp_path, monkeypatch)
    for k in range(2):
        draw(tmp_path / "a" / f"{k}.png", k)
    (tmp_path / "a" / "2.png").write_bytes(EPS)
    with pytest.raises(UserError, match=r"2\.png: cannot be read"):
        [examples(tmp_path / "a", split, size) for split in ("train", "test")]
    with pytest.raises(UserError, match=r"tar:2\.png: cannot be read"):
        image_file.levels(io.BytesIO(EPS), "tar:2.png", ("PNG",), 3)
    assert not trace.exists()


def test_only_the_formats_asked_for_are_read():
    stream = io.BytesIO()
    Image.new("RGB", (6, 4)).save(stream, "bmp")
    with pytest.raises(UserError, match="cannot be read"):
        image_file.levels(stream, "a.png", ("PNG",), 3)
    assert image_file.levels(stream, "a.png", ("BMP",), 3).shape == (4, 6, 3)


def test_what_could_be_a_program_is_no_image(tmp_path):
    draw(tmp_path / "a" / "0.png", 0)
    draw(tmp_path / "a" / "1.png", 1)
    for ending in ("eps", "ps", "wmf", "pdf", "hdf"):
        (tmp_path / "a" / f"x.{ending}").write_bytes(EPS)
    assert image_folder.make_recipe(Folders(tmp_path / "a")).counts == {"train": 1, "test": 1}


def test_looking_at_many_images_is_seen(tmp_path):
    for k in range(5):
        draw(tmp_path / "a" / f"{k}.png", k)
    bars: dict[str, list[int | None]] = {}

    def start(task, total):
        bars[task] = [total]
        return bars[task].append

    image_folder.make_recipe(Folders(tmp_path / "a"), start)
    assert bars == {"finding images in a": [None, *[1] * 5], "looking at a": [5, *[1] * 5]}


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims these many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (bomb(10_000, 8_000), "claims 10000x8000 pixels, more than"),
        (bomb(60_000, 60_000), "DecompressionBombError"),
        (b"GIF89a", "cannot be read"),
        (b"", "cannot be read"),
        (b"\x00" * 100, "cannot be read"),
    ],
)
@pytest.mark.parametrize("size", [None, 8])
def test_what_is_no_good_image_is_named(tmp_path, content, says, size):
    draw(tmp_path / "a" / "0.png", 0)
    (tmp_path / "a" / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        image_folder.make_recipe(Folders(tmp_path / "a", size=size))
    assert "1.png" in str(caught.value)


def test_an_image_cut_short_is_named_when_it_is_unpacked(tmp_path):
    for k in range(3):
        draw(tmp_path / "a" / f"{k}.png", k, (60, 60))
    content = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"1\.png: cannot be read"):
        [examples(tmp_path / "a", split) for split in ("train", "test")]


def test_sixteen_bits_are_not_made_eight(tmp_path):
    draw(tmp_path / "a" / "1.png", 1, (4, 4), "L")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a" / "0.png")
    with pytest.raises(UserError, match=r"0\.png: has more than 8 bits a channel \(mode I;16"):
        image_folder.make_recipe(Folders(tmp_path / "a"))


def test_folders_that_are_no_data_set_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        image_folder.make_recipe(Folders(tmp_path / "empty"))
    draw(tmp_path / "one" / "0.png", 0)
    with pytest.raises(UserError, match="one image is too few"):
        image_folder.make_recipe(Folders(tmp_path / "one"))
    with pytest.raises(UserError, match="is not a folder"):
        image_folder.make_recipe(Folders(tmp_path / "one" / "0.png"))
    with pytest.raises(UserError, match="--size=0"):
        image_folder.make_recipe(Folders(tmp_path / "one", size=0))
    draw(tmp_path / "mixed" / "0.png", 0)
    draw(tmp_path / "mixed" / "class" / "0.png", 0)
    with pytest.raises(UserError, match=r"0\.png is next to folders of classes \(class"):
        image_folder.make_recipe(Folders(tmp_path / "mixed"))
    draw(tmp_path / "other" / "train" / "cat" / "0.png", 0)
    draw(tmp_path / "other" / "test" / "cow" / "0.png", 0)
    with pytest.raises(UserError, match=r"has classes \['cow'\] that train does not have"):
        image_folder.make_recipe(Folders(tmp_path / "other"))


def test_prepared_it_is_a_data_set_by_the_folders_name(capsys, monkeypatch, tmp_path):
    drawn = [draw(tmp_path / "pets" / "train" / "dog" / f"{k}.png", k) for k in range(3)]
    draw(tmp_path / "pets" / "test" / "dog" / "0.png", 9)
    args = ["folder", f"--source={tmp_path / 'pets'}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare.main(args) == 0
    assert prepare.main([*args, "--as=small", "--size=2"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("prepared")]
    assert said[0].endswith(
        "3 train images, 1 test images in " + f"{tmp_path}/data/pets: images of the folder pets"
    )
    assert said[1].endswith("images of the folder pets at 2x2")
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "data"))
    dataset = ArrayRecord(folder="pets")
    np.testing.assert_array_equal(
        dataset.source("train").__getitems__(np.arange(3))["image"], np.stack(drawn)
    )
    assert (dataset.image_shape, dataset.num_levels, dataset.num_classes) == ((4, 6, 3), 256, 1)
    assert ArrayRecord(folder="small").image_shape == (2, 2, 3)


def test_other_images_in_the_same_place_are_told(capsys, tmp_path):
    draw(tmp_path / "pets" / "0.png", 0)
    draw(tmp_path / "pets" / "1.png", 1)
    args = ["folder", f"--source={tmp_path / 'pets'}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare.main(args) == 0
    assert prepare.main(args) == 0
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "pets" / "2.png")
    assert prepare.main(args) == 1
    assert "already holds other data (images of the folder pets; pets/ differs" in capsys.readouterr().err


def paint(folder: Path, level: int) -> None:
    """Files whose names, sizes and times are the same whatever the level."""
    folder.mkdir(exist_ok=True)
    for k in range(20):
        path = folder / f"{k:02d}.bmp"
        Image.fromarray(np.full((4, 6, 3), level, np.uint8)).save(path)
        os.utime(path, (0, 0))


def test_images_painted_over_are_other_images(capsys, tmp_path):
    args = ["folder", f"--source={tmp_path / 'pets'}", f"--data_dir={tmp_path / 'data'}"]
    paint(tmp_path / "pets", 7)
    assert prepare.main(args) == 0
    paint(tmp_path / "pets", 8)
    assert prepare.main(args) == 1
    assert "pets/ differs" in capsys.readouterr().err


def test_a_conversion_does_not_mix_images_with_those_painted_over_them(monkeypatch, tmp_path):
    args = ["folder", f"--source={tmp_path / 'pets'}", f"--data_dir={tmp_path / 'data'}"]
    monkeypatch.setattr(shard_writing, "SHARD_BYTES", 5 * 76)
    paint(tmp_path / "pets", 7)
    write = shard_writing._write_shard
    with monkeypatch.context() as patch:
        patch.setattr(
            shard_writing,
            "_write_shard",
            lambda path, *more: 1 / 0 if "00002" in path.name else write(path, *more),
        )
        with pytest.raises(ZeroDivisionError):
            prepare.main(args)
    paint(tmp_path / "pets", 8)
    assert prepare.main(args) == 0
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "data"))
    assert (ArrayRecord(folder="pets").source("train").__getitems__(np.arange(18))["image"] == 8).all()


def test_a_conversion_does_not_mix_backgrounds(monkeypatch, tmp_path):
    (tmp_path / "pets").mkdir()
    for k in range(20):
        Image.new("RGBA", (6, 4), (7, 7, 7, 0)).save(tmp_path / "pets" / f"{k:02d}.png")
    args = ["folder", f"--source={tmp_path / 'pets'}", f"--data_dir={tmp_path / 'data'}"]
    monkeypatch.setattr(shard_writing, "SHARD_BYTES", 5 * 76)
    write = shard_writing._write_shard
    with monkeypatch.context() as patch:
        patch.setattr(
            shard_writing,
            "_write_shard",
            lambda path, *more: 1 / 0 if "00002" in path.name else write(path, *more),
        )
        with pytest.raises(ZeroDivisionError):
            prepare.main([*args, "--background=white"])
    assert prepare.main([*args, "--background=black"]) == 0
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "data"))
    assert (ArrayRecord(folder="pets").source("train").__getitems__(np.arange(18))["image"] == 0).all()
