"""The program: what it prints, what it refuses, and what it leaves where it fails."""

import os
import subprocess
import sys

import pytest

from diffenc.cli import report as program

from .conftest import rendered


def test_it_writes_the_page_and_says_how_large(whole, tmp_path, capsys):
    output = tmp_path / "new" / "folder" / "page.html"
    assert program.main([str(whole), f"--output={output}"]) == 0
    assert output.read_text() == rendered(whole)
    assert capsys.readouterr().out == f"{output}: {output.stat().st_size:,} bytes\n"


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(whole, tmp_path):
    output = tmp_path / "page.html"
    command = [sys.executable, "-m", "diffenc.report", str(whole), f"--output={output}"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "7"}
    subprocess.run(command, check=True, env=env, capture_output=True)
    assert output.read_text() == rendered(whole)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_no_run_is_told_in_a_line_and_nothing_written(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    output = tmp_path / "page.html"
    assert program.main([str(tmp_path / name), f"--output={output}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / name} holds no run")
    assert said.count("\n") == 1
    assert not output.exists()


def test_a_page_stays_as_it_was_if_the_next_fails(whole, tmp_path, monkeypatch):
    output = tmp_path / "page.html"
    output.write_text("old")
    assert program.main([str(whole), str(tmp_path / "missing"), f"--output={output}"]) == 1
    assert output.read_text() == "old"


@pytest.mark.parametrize(
    ("output", "said"), [("folder", "is a folder"), ("file/page.html", "cannot create the folder")]
)
def test_an_output_that_cannot_be_is_refused(whole, tmp_path, capsys, output, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    assert program.main([str(whole), f"--output={tmp_path / output}"]) == 1
    assert said in capsys.readouterr().err


def test_more_runs_than_can_be_told_apart_are_refused(tmp_path, capsys):
    assert program.main([*map(str, range(33)), f"--output={tmp_path / 'a'}"]) == 1
    assert "32 runs" in capsys.readouterr().err


def test_the_options_are_told(capsys):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert "WORKDIR" in capsys.readouterr().out


def test_without_an_output_it_writes_a_page_here_and_replaces_only_such(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert program.main([str(whole)]) == 0
        assert (
            capsys.readouterr().out == f"report.html: {(tmp_path / 'report.html').stat().st_size:,} bytes\n"
        )
    assert (tmp_path / "report.html").read_text() == rendered(whole)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_default_name_that_something_else_has_is_left_alone(kind, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "report.html"
    {"file": lambda: page.write_text("mine"), "folder": page.mkdir, "link": lambda: page.symlink_to("gone")}[
        kind
    ]()
    assert program.main([str(whole)]) == 1
    assert "report.html: exists, and is not a report: name another file" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "whole"]
    assert kind != "file" or page.read_text() == "mine"
