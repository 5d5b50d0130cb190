"""Folders on a disk and prefixes of an object store, by the same words."""

import errno
import os

import pytest

from diffenc.errors import UserError
from diffenc.files import stores


@pytest.fixture(params=["", "file://", "memory://"])
def place(request, tmp_path) -> str:
    """A path, a folder as a URL, and memory."""
    return f"{request.param}{tmp_path}/run"


def test_files_by_name(place):
    store = stores.open_store(place)
    assert (store.names(), store.files(), store.read("a/b")) == ({}, [], None)
    for name, data in {"a/b": b"1", "a/c/d": b"2", "a/b2": b"\x00", "e": b"", "a0": b"3"}.items():
        store.write(name, data)
    store.write("a/b", b"anew")
    assert store.files() == ["a/b", "a/b2", "a/c/d", "a0", "e"]
    assert (store.read("a/b"), store.read("e"), store.read("a")) == (b"anew", b"", None)
    assert store.names() == {"a": {"b", "b2", "c"}}
    assert stores.open_store(stores.join_path(place, "a")).files() == ["b", "b2", "c/d"]


def test_removing_takes_a_file_or_a_folder_and_no_namesake(place):
    store = stores.open_store(place)
    for name in ("a/b", "a/c/d", "a0", "a.b", "ab"):
        store.write(name, b"")
    for name in ("a", "ab", "never"):
        store.remove(name)
    assert store.files() == ["a.b", "a0"]


def test_an_empty_folder_on_a_disk_is_seen(tmp_path):
    (tmp_path / "empty").mkdir()
    assert stores.open_store(tmp_path).names() == {"empty": set()}


def test_a_disk_says_what_it_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        stores.open_store(tmp_path / "file").write("a", b"")
    assert os.listdir(tmp_path) == ["file"]


def test_paths_and_urls():
    assert [stores.is_url(text) for text in ("gs://b/x", "s3://b", "runs/a", "/a://b", "a:b")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert stores.join_path("gs://bucket/run/", "checkpoints") == "gs://bucket/run/checkpoints"
    assert str(stores.join_path("runs/a", "checkpoints")) == "runs/a/checkpoints"
    assert stores.open_store("gs://bucket/run").kvstore("a") == {
        "driver": "gcs",
        "bucket": "bucket",
        "path": "run/a/",
    }


@pytest.mark.parametrize("url", ["foo://bar", "gs://", "gs://x"])
def test_no_address_at_all(url):
    with pytest.raises(UserError, match=rf"^{url} is no address of a store \(.*\); use gs://BUCKET/FOLDER$"):
        stores.open_store(url)


def test_a_folder_that_goes_while_it_is_listed_is_not_there(tmp_path, monkeypatch):
    for name in ("goes", "stays"):
        (tmp_path / name).mkdir()
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (_removed(path), real(path))[1])
    assert stores.open_store(tmp_path).names() == {"stays": set()}


def _removed(path) -> None:
    if os.path.basename(path) == "goes":
        os.rmdir(path)


def test_a_file_url_with_a_host_is_refused():
    with pytest.raises(UserError, match=r"^file://runs/a names the host 'runs'; use file:///FOLDER, or a"):
        stores.open_store("file://runs/a")


@pytest.mark.parametrize(
    ("error", "damage"),
    [
        (OSError(errno.EIO, "a bad sector"), True),
        (OSError(errno.ESTALE, "a server that went"), False),
        (ValueError("DATA_LOSS: Digest mismatch"), True),
        (ValueError("UNAVAILABLE: no network"), False),
        (ValueError("UNKNOWN: Failed to read [os_error_code='5']"), True),
        (ValueError("PERMISSION_DENIED: Failed to open [os_error_code='13']"), False),
    ],
)
def test_damage_is_told_from_a_refusal(error, damage):
    assert stores.is_damage(error) == damage
