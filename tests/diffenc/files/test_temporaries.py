"""Temporary files of killed processes go; those of live ones stay. With real processes and real kills."""

import os
import signal
import subprocess
import sys

import pytest

from diffenc.files import atomic, temporaries

WRITER = """
import sys
from diffenc.files import atomic
with atomic.replace_file(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("half written", flush=True)
    sys.stdin.read()
    temporary.write_bytes(b"whole")
"""


@pytest.fixture
def writer(tmp_path):
    """A process amid writing tmp_path/deep/a.json."""
    (tmp_path / "deep").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "deep" / "a.json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"half written\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def _hidden(folder):
    return sorted(name for _, _, names in os.walk(folder) for name in names if name.startswith("."))


def test_what_a_live_process_writes_is_left_alone(tmp_path, writer):
    (before,) = _hidden(tmp_path)
    temporaries.sweep_folder(tmp_path, "checkpoints")
    atomic.write_bytes(tmp_path / "deep" / "a.json", b"by another")
    assert _hidden(tmp_path) == [before]
    writer.stdin.close()
    assert writer.wait() == 0
    assert (tmp_path / "deep" / "a.json").read_bytes() == b"whole"
    assert _hidden(tmp_path) == []


def test_what_a_killed_process_left_is_swept(tmp_path, writer):
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert len(_hidden(tmp_path)) == 1
    temporaries.sweep_folder(tmp_path, "checkpoints")
    assert _hidden(tmp_path) == []


def test_the_next_writing_of_the_same_name_sweeps(tmp_path, writer):
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    atomic.write_bytes(tmp_path / "deep" / "a.json", b"whole")
    assert os.listdir(tmp_path / "deep") == ["a.json"]


def test_only_temporaries_are_swept(tmp_path):
    kept = [
        ".lock", ".hidden", "a.tmp-0badcafe", ".export.tmp-0badcafe-old", ".a.tmp-xyz", "checkpoints/.META.json.tmp-0badcafe",
    ]  # fmt: skip
    swept = [
        ".config.gin.tmp-0badcafe",
        "evaluations/.0002.json.tmp-0badcafe",
        "fid/ab/.000001.npy.tmp-00000000",
    ]
    for name in (*kept, *swept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".export.tmp-0badcafe").mkdir()
    (tmp_path / ".export.tmp-0badcafe" / "model").write_text("")
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / ".link.tmp-0badcafe").symlink_to(tmp_path / "elsewhere")
    temporaries.sweep_folder(tmp_path, "checkpoints")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()}
    assert found == {*kept, "elsewhere", ".link.tmp-0badcafe"}
    assert not (tmp_path / ".export.tmp-0badcafe").exists()


def test_a_folder_that_is_not_there_is_nothing_to_sweep(tmp_path):
    temporaries.sweep_folder(tmp_path / "absent", "checkpoints")


def test_several_files_take_their_places_together_or_not_at_all(tmp_path):
    paths = [tmp_path / "a.npz", tmp_path / "a.json"]
    for path in paths:
        path.write_bytes(b"old")

    def half():
        with atomic.replace_files(paths) as (first, second):
            first.write_bytes(b"new")
            second.write_bytes(b"ne")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        half()
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    with atomic.replace_files(paths) as (first, second):
        first.write_bytes(b"new")
        second.write_bytes(b"new")
    assert [path.read_bytes() for path in paths] == [b"new", b"new"]
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.npz"]
