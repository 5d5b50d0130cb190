"""Digests, against hashlib and the tool that prints them."""

import hashlib
import subprocess

import pytest

from diffenc.data import digests
from diffenc.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, content in {"x": b"one", "b/y": b"two!", ".hidden": b"not seen"}.items():
        (tmp_path / "a" / name).write_bytes(content)
    return tmp_path / "a"


def test_a_file_is_told_by_its_bytes(folder):
    held = digests.digest_path(folder / "x")
    printed = subprocess.run(["sha256sum", folder / "x"], capture_output=True, text=True, check=True).stdout
    assert held["bytes"] == 3
    assert held["md5"] == hashlib.md5(b"one").hexdigest()
    assert held["sha256"] == printed.split()[0]


def test_a_folder_is_told_by_the_names_and_contents_of_its_files(folder):
    first = digests.digest_path(folder)
    assert (first["files"], first["bytes"]) == (2, 7)
    (folder / ".hidden").write_bytes(b"still not")
    assert digests.digest_path(folder) == first
    (folder / "x").write_bytes(b"eno")
    assert digests.digest_path(folder)["sha256"] != first["sha256"]
    (folder / "x").write_bytes(b"one")
    assert digests.digest_path(folder) == first
    (folder / "x").rename(folder / "z")
    assert digests.digest_path(folder)["sha256"] != first["sha256"]


def test_two_files_that_change_places_are_seen(folder):
    first = digests.digest_path(folder)
    (folder / "x").write_bytes(b"two!")
    (folder / "b" / "y").write_bytes(b"one")
    assert digests.digest_path(folder)["sha256"] != first["sha256"]


@pytest.mark.parametrize(("part", "total"), [("", 7), ("x", 3)])
def test_the_bar_has_the_bytes_that_there_are(folder, part, total):
    seen = []

    def start(task, total):
        seen.append((task, total))
        return seen.append

    digests.digest_path(folder / part, start)
    assert seen[0] == (f"reading {(folder / part).name}", total)
    assert sum(seen[1:]) == total


def test_what_cannot_be_read_is_named(folder):
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        digests.digest_path(folder / "nowhere")
