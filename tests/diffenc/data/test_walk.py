"""Real folders with links, FIFOs, sockets and hidden files: what is read, and what is left out and counted."""

import os
import re
import socket
from pathlib import Path

import pytest

from diffenc.cli import prepare
from diffenc.data import digests, image_folder, walk
from diffenc.data.image_folder import Folders
from diffenc.errors import UserError
from diffenc_plugins.datasets import Imagenet32Oord

from .test_image_folder import draw


def names(folder: Path) -> tuple[list[str], dict[str, int]]:
    skipped = walk.Skipped()
    found = [str(path.relative_to(folder)) for path in walk.regular_files(folder, skipped)]
    return found, dict(skipped.counts)


def test_files_come_in_the_order_of_names_before_folders(tmp_path):
    for name in ("b/y", "b/x", "a/z", "c", "B"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert names(tmp_path) == (["B", "c", "a/z", "b/x", "b/y"], {})


def test_what_is_no_regular_file_is_never_opened(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert names(tmp_path) == (["file"], {walk.IRREGULAR: 3})
        digests.digest_path(tmp_path)


def test_links_are_followed_and_circles_are_not(tmp_path):
    (tmp_path / "there" / "inner").mkdir(parents=True)
    (tmp_path / "there" / "inner" / "file").write_text("")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "there")
    (tmp_path / "here" / "up").symlink_to(tmp_path)
    (tmp_path / "here" / "self").symlink_to(".")
    (tmp_path / "here" / "gone").symlink_to("nowhere")
    found, skipped = names(tmp_path / "here")
    assert found == ["linked/inner/file"]
    assert skipped == {walk.CIRCULAR: 2, walk.BROKEN: 1}


def test_hidden_files_and_folders_are_counted(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "file").write_text("")
    (tmp_path / "._x.png").write_text("")
    assert names(tmp_path) == ([], {walk.HIDDEN: 2})


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may list all
    with pytest.raises(UserError, match="locked: cannot be listed"):
        names(tmp_path)


def rows(summary: str) -> set[tuple[str, int, str]]:
    lines = [re.fullmatch(r"  (\w+) +([\d,]+)  (.+)", line) for line in summary.splitlines()]
    return {(line[1], int(line[2].replace(",", "")), line[3]) for line in lines if line}


def test_what_became_of_every_file_is_counted(capsys, tmp_path):
    source = tmp_path / "pets"
    for split, count in (("train", 3), ("test", 1)):
        for k in range(count):
            draw(source / split / "dog" / f"{k}.png", k)
            draw(source / split / "cat" / f"{k}.bmp", 10 + k, mode="L")
    (tmp_path / "elsewhere").mkdir()
    draw(tmp_path / "elsewhere" / "0.png", 20, (6, 8))
    (source / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "train" / "empty").mkdir()
    (source / "train" / "dog" / "notes.txt").write_text("")
    (source / "train" / "dog" / "README").write_text("")
    (source / "train" / "dog" / "x.heic").write_text("")
    (source / "train" / "dog" / ".hidden.png").write_text("")
    os.mkfifo(source / "train" / "dog" / "fifo.png")
    args = ["folder", f"--source={source}", f"--data_dir={tmp_path}/data", "--size=2"]
    assert prepare.main(args) == 0
    said = capsys.readouterr().out
    assert "7 train images, 2 test images" in said
    expected = {
        ("read", 5, "PNG"),
        ("read", 4, "BMP"),
        ("altered", 4, "gray copied to three channels"),
        ("altered", 9, "cut to the square in the centre"),
        ("altered", 9, "reduced to 2x2"),
        ("skipped", 1, ".txt: not a supported image format, such as notes.txt"),
        ("skipped", 1, "no suffix: not a supported image format, such as README"),
        ("skipped", 1, ".heic: not a supported image format, such as x.heic"),
        ("skipped", 1, "hidden, such as .hidden.png"),
        ("skipped", 1, f"{walk.IRREGULAR}, such as fifo.png"),
        ("skipped", 1, "folder without images, not a class, such as empty"),
    }
    assert rows(said) == expected
    (source / "train" / "dog" / "README").write_text("edited: no image")
    assert prepare.main(args) == 0
    said = capsys.readouterr().out
    assert "is already prepared" in said
    assert rows(said) == expected


def test_the_table_is_bounded(tmp_path):
    for k in range(2):
        draw(tmp_path / f"{k}.png", k)
    for k in range(50):
        (tmp_path / f"x.e{k}").write_text("")
    found = image_folder.make_recipe(Folders(tmp_path)).summary.splitlines()
    assert len(found) < 30
    assert found[-1].split() == ["skipped", "30", "of", "other", "kinds"]


def test_a_size_above_that_of_images_names_the_largest_that_fits(tmp_path):
    draw(tmp_path / "a" / "0.png", 0, (60, 40))
    draw(tmp_path / "a" / "1.png", 1, (9, 7))
    with pytest.raises(UserError) as caught:
        image_folder.make_recipe(Folders(tmp_path / "a", size=8))
    assert "1 of the 2 images are smaller" in str(caught.value)
    assert "1.png with 9x7; take --size=7 or less, or leave them out" in str(caught.value)


def test_other_background_other_images(capsys, tmp_path):
    draw(tmp_path / "a" / "0.png", 0)
    draw(tmp_path / "a" / "1.png", 1)
    args = ["folder", f"--source={tmp_path}/a", f"--data_dir={tmp_path}/data"]
    assert prepare.main([*args, "--background=white"]) == 0
    assert "images of the folder a on white" in capsys.readouterr().out
    assert prepare.main([*args, "--background=black"]) == 1
    assert prepare.main([*args, "--size=2"]) == 1
    assert "already holds other data" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenet32", "imagenet32_oord", "folder"])
def test_a_fifo_as_source_is_one_line(capsys, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    args = [name, f"--source={tmp_path}/pipe", f"--data_dir={tmp_path}/data", "--as=x"]
    assert prepare.main(args) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: --source={tmp_path}/pipe: ")


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "train_32x32.tar"])
def test_a_fifo_in_the_place_of_an_archive_is_one_line(capsys, tmp_path, name):
    os.mkfifo(tmp_path / name)
    dataset = "cifar10" if name.startswith("cifar") else "imagenet32_oord"
    for source in (tmp_path, tmp_path / name):
        assert prepare.main([dataset, f"--source={source}", f"--data_dir={tmp_path}/data"]) == 1
        assert capsys.readouterr().err.strip().startswith("error: ")


def test_a_fifo_among_official_pngs_is_refused(tmp_path):
    for name in ("train_32x32", "valid_32x32"):
        draw(tmp_path / name / "0.png", 0, (32, 32))
    os.mkfifo(tmp_path / "train_32x32" / "1.png")
    with pytest.raises(UserError, match=r"1\.png: no regular file"):
        list(Imagenet32Oord.read(Imagenet32Oord.files.locate(tmp_path), "train", 0))
