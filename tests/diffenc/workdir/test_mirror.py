"""A workdir's small files in a store, worked on in a local folder."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from diffenc.errors import UserError
from diffenc.files import stores
from diffenc.workdir import mirror as mirrors
from diffenc.workdir.mirror import Mirror


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path) -> str:
    """A fresh place in memory, or on the disk."""
    return f"{request.param}://{tmp_path}/run"


def _content(url: str) -> dict[str, bytes | None]:
    store = stores.open_store(url)
    return {name: store.read(name) for name in store.files()}


def test_what_is_written_here_is_there_and_back_again(url):
    with Mirror(url) as mirror:
        (mirror.folder / "config.gin").write_bytes(b"seed = 1")
        (mirror.folder / "samples").mkdir()
        (mirror.folder / "samples" / "1.png").write_bytes(b"\x89PNG")
    assert _content(url) == {"config.gin": b"seed = 1", "samples/1.png": b"\x89PNG"}
    assert not mirror.folder.exists()
    again = Mirror(url)
    assert (again.folder / "samples" / "1.png").read_bytes() == b"\x89PNG"
    assert sorted(os.listdir(again.folder)) == ["config.gin", "samples"]


def test_only_what_changed_is_pushed(url, monkeypatch):
    mirror, put = Mirror(url), []
    real = Mirror._put
    monkeypatch.setattr(Mirror, "_put", lambda self, name: put.append(name) or real(self, name))
    for name in ("a", "b"):
        (mirror.folder / name).write_text(name)
    assert mirror.push()
    (mirror.folder / "b").write_text("more")
    assert mirror.push()
    assert mirror.push()
    assert sorted(put) == ["a", "b", "b"]
    assert _content(url) == {"a": b"a", "b": b"more"}


def test_checkpoints_and_hidden_files_stay_where_they_are(url):
    stores.open_store(url).write("checkpoints/000000001/META.json", b"large")
    stores.open_store(url).write("metrics.jsonl", b"{}")
    with Mirror(url) as mirror:
        (mirror.folder / ".lock").write_text("17")
        assert sorted(os.listdir(mirror.folder)) == [".lock", "metrics.jsonl"]
    assert sorted(_content(url)) == ["checkpoints/000000001/META.json", "metrics.jsonl"]


def test_a_process_that_does_not_write_pushes_nothing(url):
    with Mirror(url, writes=False) as mirror:
        (mirror.folder / "a").write_text("a")
    assert _content(url) == {}


def test_what_the_store_refuses_is_tried_again_and_never_lost(tmp_path, caplog):
    (tmp_path / "run").write_text("a file in the way")
    with Mirror(f"file://{tmp_path}/run") as mirror:
        (mirror.folder / "a").write_text("precious")
        assert not mirror.push()
        assert f"could not write {tmp_path}/run/a" in caplog.text
    assert (mirror.folder / "a").read_text() == "precious"
    assert str(mirror.folder) in caplog.text
    Path(tmp_path / "run").unlink()
    assert mirror.push()
    assert (tmp_path / "run" / "a").read_text() == "precious"


def test_a_store_that_cannot_be_read_is_one_line():
    with pytest.raises(UserError, match=r"^cannot read http://127.0.0.1:9/run: .*; check the address"):
        Mirror("http://127.0.0.1:9/run")


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a//b", "a/../../outside", "./a"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    store = stores.open_store(f"memory://{tmp_path}/run")
    store.write(name, b"")
    assert store.files() == [name]
    with pytest.raises(
        UserError, match=r"^memory://.*/run holds '.*', which cannot be the name of a file in a folder"
    ):
        Mirror(f"memory://{tmp_path}/run")


def test_placeholders_of_folders_are_passed_over(tmp_path):
    store = stores.open_store(f"memory://{tmp_path}/run")
    for name in ("", "fits/", "fits/a", "checkpoints/"):
        store.write(name, b"")
    assert store.files() == ["", "checkpoints/", "fits/", "fits/a"]
    with Mirror(f"memory://{tmp_path}/run") as mirror:
        assert [path.name for path in mirror.folder.rglob("*")] == ["fits", "a"]


def test_too_much_to_copy_is_refused(url, monkeypatch):
    monkeypatch.setattr(mirrors, "MOST", 10)
    for name in ("a", "b", "c"):
        stores.open_store(url).write(name, b"12345" if name != "c" else b"")
    Mirror(url).__exit__()
    stores.open_store(url).write("c", b"1")
    with pytest.raises(UserError, match=r"holds more than 0\.0 GB beside its checkpoints"):
        Mirror(url)


def test_who_does_not_write_copies_what_it_reads(url):
    for name in (
        "config.gin",
        "fits/T4.json",
        "diagnostics/loss.json",
        "metrics.jsonl",
        "samples/1.png",
        "x",
    ):
        stores.open_store(url).write(name, b"")
    with Mirror(url, writes=False) as mirror:
        assert sorted(os.listdir(mirror.folder)) == ["config.gin", "diagnostics", "fits"]


HELD = """
import sys
from diffenc.workdir.mirror import Mirror
print(Mirror(sys.argv[1]).folder, flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_killed_process_goes_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    kept = Mirror(f"memory://{tmp_path}/kept")
    monkeypatch.setattr(kept, "push", lambda: False)
    kept.__exit__()
    command = [sys.executable, "-c", HELD, f"memory://{tmp_path}/run"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    theirs = Path(child.stdout.readline().strip())
    mine = Mirror(f"memory://{tmp_path}/run")
    assert {mine.folder, theirs, kept.folder} == {*tmp_path.iterdir()}, "it lives"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    with Mirror(f"memory://{tmp_path}/run") as other:
        assert {mine.folder, other.folder, kept.folder} == {*tmp_path.iterdir()}
    mine.__exit__()
    assert [*tmp_path.iterdir()] == [kept.folder]
