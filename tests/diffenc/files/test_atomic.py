"""Files that are whole or not there, against real full disks (a limit on the size of files)."""

import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.files import atomic

FULL_DISK = """
import resource, sys
from diffenc.files import atomic
from diffenc.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic.write_bytes(sys.argv[1], b"n" * 5000)
except UserError as error:
    print(error)
"""


def test_replaces_old_content_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    atomic.write_text(target, "täglich\n")
    assert target.read_bytes() == "täglich\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_keeps_the_old_file_whole(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, target], capture_output=True, text=True, check=True
    )
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
    assert done.stdout.count("\n") == 1
    assert str(target) in done.stdout
    assert "File too large" in done.stdout
    assert "free space" in done.stdout


def test_the_target_is_untouched_while_the_body_runs_and_when_it_raises(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted():
        with atomic.replace_file(target) as temporary:
            temporary.write_text("half")
            assert target.read_text() == "old"
            assert temporary.parent == tmp_path
            raise KeyError("stop")

    with pytest.raises(KeyError):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_where_the_folder_should_be_is_the_users_to_fix(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt: Not a directory"):
        atomic.write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (28, "free space there"),
        (122, "free space there"),
        (13, "copy what lies there to a folder that you may write to, name that,"),
        (20, "fix that"),
    ],
)
def test_space_is_blamed_where_it_is_short_alone(number, way_out):
    told = str(atomic.write_error("a", OSError(number, "why")))
    assert told == f"could not write a: why; {way_out} and run the same command again"


def test_everything_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    atomic.write_bytes(tmp_path / "a", b"x")
    assert calls[0].startswith(f"{tmp_path}/.a.tmp-")
    assert calls[1:] == ["rename", str(tmp_path)]


def test_sync_all_reaches_every_file_and_folder(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("x")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    atomic.sync_all(tmp_path)
    assert set(synced) == {str(tmp_path), f"{tmp_path}/inner", f"{tmp_path}/inner/a"}


def test_json_has_no_nan_and_takes_array_scalars(tmp_path):
    value = {
        "a": float("nan"),
        "b": [np.float32("inf"), (1, -np.inf)],
        "c": jnp.float32(0.5),
        "d": np.int64(3),
    }
    atomic.write_json(tmp_path / "a.json", value)

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads((tmp_path / "a.json").read_bytes(), parse_constant=refuse)
    assert read == {"a": None, "b": [None, [1, None]], "c": 0.5, "d": 3}


def test_json_refuses_what_it_cannot_hold():
    with pytest.raises(TypeError):
        atomic.to_json({"a": object()})


KILLED = """
import os, signal, sys
from diffenc.files import atomic
with atomic.replace_file(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_left_of_a_file_is_swept_and_nothing_else(tmp_path):
    for name in ("[1].png", "1.png"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)])
        assert done.returncode == -signal.SIGKILL
    (tmp_path / "[1].png").write_bytes(b"whole")
    assert len([*tmp_path.iterdir()]) == 3
    atomic.write_bytes(tmp_path / "[1].png", b"new")
    assert sorted(path.name.partition(".tmp-")[0] for path in tmp_path.iterdir()) == [".1.png", "[1].png"]
