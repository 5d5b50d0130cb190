"""A disk that is really full for a while, and what the writers of metrics owe it."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffenc.files import buffered_file
from diffenc.workdir import writers


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _scalars(logdir: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars("bpd")]


def _fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as others:
        while True:
            others.write(bytes(512))


def test_what_a_full_disk_is_owed_is_written_when_there_is_room(disk, caplog):
    writer = writers.create_writer(disk, resume_step=None)
    for step in range(400):  # files grow by whole pages of 4096 bytes: the page at hand takes some rows still
        if step == 100:
            _fill(disk / "others")
        if step == 300:
            (disk / "others").unlink()
        if step == 299:
            assert (disk / "metrics.jsonl").read_bytes().endswith(b"}\n")
            assert len(_rows(disk / "metrics.jsonl")) < 299
        writer.write_scalars(step, {"bpd": float(step)})
    assert [row["step"] for row in _rows(disk / "metrics.jsonl")] == list(range(400))
    assert _scalars(disk) == [(step, float(step)) for step in range(400)]
    (first, second) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    for told, name in ((first, "metrics.jsonl"), (second, "events.out.tfevents.")):
        assert told.startswith(f"could not write {disk}/{name}")
        assert "No space left on device" in told
        assert told.endswith("kept in memory, and the run continues")
    assert caplog.text.count("can be written again; nothing is lost") == 2
    writer.close()


def test_of_too_much_that_is_owed_the_oldest_goes(disk, monkeypatch, caplog):
    monkeypatch.setattr(buffered_file, "MAX_BUFFERED", 100)
    writer = writers.JsonlWriter(disk / "m")
    _fill(disk / "others")
    for step in range(10, 30):
        writer.write_scalars(step, {})  # a line of 13 bytes, so seven are kept
    assert _rows(disk / "m") == []
    (disk / "others").unlink()
    writer.flush()
    assert [row["step"] for row in _rows(disk / "m")] == list(range(23, 30))
    assert "13 records exceeded the buffer and are lost" in caplog.text
