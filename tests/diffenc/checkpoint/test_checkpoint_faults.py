"""A disk that is really full, or really read-only: the run goes on, and the last good checkpoint stands."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.checkpoint import arrays, meta
from diffenc.checkpoint.checkpoints import Checkpoints, restore_from
from diffenc.errors import UserError
from diffenc.files import atomic

SIZE = 100_000  # numbers, of four bytes
ABSTRACT = {"w": jax.ShapeDtypeStruct((SIZE,), jnp.float32)}


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if _mount("-t", "tmpfs", "-o", "size=1m", "none", folder):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # tensorstore may be closing files still


def _mount(*arguments) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


def _save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, {"w": jnp.full(SIZE, float(step))}, {})


def _value(directory: Path) -> float:
    (value,) = np.unique(Checkpoints(directory).restore(ABSTRACT).tree["w"])
    return float(value)


def _fails(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        act()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_full_disk_costs_a_save_and_not_the_run(disk, caplog):
    checkpoints = Checkpoints(disk / "run", keep_last=9)
    _save(checkpoints, 1)
    checkpoints.wait()
    (disk / "others").write_bytes(bytes(400_000))
    _save(checkpoints, 2)
    _save(checkpoints, 3)  # waits for the one before, and goes on
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told == (
        f"the checkpoint of step 2 was not saved: could not write {disk}/run: No space left on device; free space "
        "there and run the same command again; the last good checkpoint is of step 1, and the run goes on"
    )
    assert "the checkpoint of step 3 was not saved" in _fails(checkpoints.wait)
    assert checkpoints.failed
    assert os.listdir(disk / "run") == ["000000001"], "what was written in vain is gone"
    (disk / "others").unlink()
    _save(checkpoints, 4)
    checkpoints.wait()
    assert (checkpoints.failed, checkpoints.steps(), _value(disk / "run")) == (False, [1, 4], 4)


def test_a_failure_is_told_once_and_not_forgotten(disk, caplog):
    (disk / "others").write_bytes(bytes(800_000))
    checkpoints = Checkpoints(disk / "run")
    _save(checkpoints, 2)
    assert checkpoints._pending is not None
    checkpoints._pending.exception()  # until it is done
    for _ in range(3):
        checkpoints.check()
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "there is no checkpoint yet, and the run goes on" in told
    assert "step 2 was not saved" in _fails(checkpoints.wait), "though it was logged: the run may end here"
    assert "step 2 was not saved" in _fails(checkpoints.wait)


@pytest.mark.parametrize("free", range(0, 400_000, 40_000))
def test_wherever_the_disk_runs_full_all_is_removed(disk, monkeypatch, free):
    monkeypatch.setattr(arrays, "BLOCK", 50_000)
    checkpoints = Checkpoints(disk / "run")
    _save(checkpoints, 1)
    checkpoints.wait()
    stat = os.statvfs(disk)
    (disk / "others").write_bytes(bytes(max(0, stat.f_bavail * stat.f_frsize - free)))
    _save(checkpoints, 2)
    assert "No space left on device" in _fails(checkpoints.wait)
    assert os.listdir(disk / "run") == ["000000001"]
    assert _value(disk / "run") == 1


def test_a_read_only_disk_is_one_line(disk):
    with Checkpoints(disk / "run") as checkpoints:
        _save(checkpoints, 1)
    assert _mount("-o", "remount,ro", disk) == 0
    checkpoints = Checkpoints(disk / "run")
    _save(checkpoints, 2)
    assert f"could not write {disk}/run: Read-only file system" in _fails(checkpoints.wait)
    assert (checkpoints.steps(), _value(disk / "run")) == ([1], 1)


def test_what_could_not_be_removed_either_goes_with_the_next_save(disk, monkeypatch):
    def refuse(path, **_):
        raise OSError(5, "Input/output error")

    (disk / "others").write_bytes(bytes(800_000))
    checkpoints = Checkpoints(disk / "run")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        _save(checkpoints, 2)
        assert "No space left on device" in _fails(checkpoints.wait)
    assert os.listdir(disk / "run") == ["000000002"]
    (disk / "others").unlink()
    _save(checkpoints, 2)
    checkpoints.wait()
    assert os.listdir(disk / "run") == ["000000002-1"]


def test_all_is_on_the_disk_before_the_marker_is(tmp_path, monkeypatch):
    synced, real, place = [], atomic.sync, tmp_path / "run" / "000000001"
    monkeypatch.setattr(atomic, "sync", lambda path: (synced.append(Path(path).resolve()), real(path)))
    with Checkpoints(tmp_path / "run") as checkpoints:
        _save(checkpoints, 1)
    part = [path for path in place.rglob("*") if path.name != "META.json"]
    assert {path.name for path in part} == {"process_0", "blocks", "c", "0", "index.json"}
    (marker,) = [at for at, path in enumerate(synced) if path.name.startswith(".META.json")]
    assert {*part, place, tmp_path / "run", tmp_path} <= set(synced[:marker]), (
        "its name and all names above it"
    )
    assert synced[marker + 1 :] == [place], "the marker's own name"


LIMITED = """
import resource, sys
import numpy as np
from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.errors import UserError
checkpoints = Checkpoints(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
checkpoints.save(2, {"w": np.ones(50_000, np.float32)}, {})
try:
    checkpoints.wait()
except UserError as error:
    print(error)
"""


def test_a_file_that_may_not_grow(tmp_path):
    """Without root too."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True
    )
    assert f"could not write {tmp_path}: File too large; free space there" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_listing_that_is_refused_costs_nothing(tmp_path, monkeypatch, caplog):
    def refuse(_):
        raise OSError(116, "Stale file handle")

    with Checkpoints(tmp_path / "run") as checkpoints:
        _save(checkpoints, 1)
        checkpoints.wait()
        monkeypatch.setattr(meta, "list_checkpoints", refuse)
        _save(checkpoints, 2)
        checkpoints.wait()
        assert "old checkpoints could not be removed: [Errno 116] Stale file handle" in caplog.text
        monkeypatch.setattr(arrays, "write_arrays", lambda *_: refuse(_))
        _save(checkpoints, 3)
        _save(checkpoints, 4)
        assert f"step 3 was not saved: could not write {tmp_path}/run: Stale file handle" in caplog.text
        assert f"cannot read {tmp_path}/run: Stale file handle; check the address" in caplog.text
        assert "step 4 was not saved" in _fails(checkpoints.wait)
        checkpoints._failure = None
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        checkpoints._remove_uncommitted()  # waits for the first, and cannot see whether it is done
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run").found == [1, 2]


@pytest.mark.parametrize("file", ["META.json", "process_0/index.json", "process_0/blocks/c/0"])
def test_a_store_that_refuses_is_no_reason_to_go_back(tmp_path, file):
    """A loop of links: the one refusal that a disk has for root too."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            _save(checkpoints, step)
    path = tmp_path / "000000002" / file
    path.unlink()
    path.symlink_to(path.name)
    told = _fails(lambda: Checkpoints(tmp_path).restore(ABSTRACT))
    assert told == (
        f"cannot read {tmp_path}/000000002: Too many levels of symbolic links; check the address, and your access to it"
    )


class _Forbidding(http.server.SimpleHTTPRequestHandler):
    def send_head(self):
        if self.path.endswith(self.server.forbidden):  # pyright: ignore[reportAttributeAccessIssue]
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, format, *args): ...


@pytest.mark.parametrize("file", ["META.json", "index.json", "blocks/c/0"])
def test_an_address_that_refuses_is_named(tmp_path, file):
    with Checkpoints(tmp_path) as checkpoints:
        _save(checkpoints, 1)
    handler = functools.partial(_Forbidding, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.forbidden = "nothing"  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/000000001"
        assert float(restore_from(url, ABSTRACT).tree["w"][0]) == 1
        server.forbidden = file  # pyright: ignore[reportAttributeAccessIssue]
        told = _fails(lambda: restore_from(url, ABSTRACT))
        server.shutdown()
    assert told.startswith(f"cannot read {url}: ")
    assert "403" in told
