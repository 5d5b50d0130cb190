"""Folders that are watched while a process works in them."""

import os

import pytest

from diffenc.files import atomic, location, stores
from diffenc.files.location import MovedError


def test_what_stays_is_written_and_what_is_not_watched_too(tmp_path):
    (tmp_path / "run").mkdir()
    with location.watch(tmp_path / "run"), location.watch(tmp_path / "run"):
        atomic.write_text(tmp_path / "run" / "a", "x")
        atomic.write_text(tmp_path / "b", "x")
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    atomic.write_text(tmp_path / "run" / "a", "the next piece of work")


def test_nothing_is_written_below_a_path_that_leads_elsewhere(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with location.watch(run):
        run.rename(tmp_path / "moved")
        for write in (atomic.write_text, atomic.write_json):
            with pytest.raises(MovedError, match=f"which is at {tmp_path}/moved now"):
                write(run / "deep" / "a", "x")
        with pytest.raises(MovedError):
            stores.open_store(run).write("deep/a", b"x")
    assert os.listdir(tmp_path) == ["moved"]


def test_a_move_while_a_file_is_written_is_noticed_too(tmp_path):
    run = tmp_path / "run"
    run.mkdir()

    def move():
        with location.watch(run), atomic.replace_file(run / "a") as temporary:
            temporary.write_text("x")
            run.rename(tmp_path / "moved")
            run.mkdir()
            (run / temporary.name).write_text("another's")

    with pytest.raises(MovedError):
        move()
    assert not (run / "a").exists()


def test_a_disk_that_numbers_its_folders_anew_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    with location.watch(tmp_path):
        location.check(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_yet_is_not_watched(tmp_path):
    with location.watch(tmp_path / "run"):
        (tmp_path / "run").mkdir()
        atomic.write_text(tmp_path / "run" / "a", "x")
