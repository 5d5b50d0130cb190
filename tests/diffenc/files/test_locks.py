"""Locks, and file systems that have none."""

import errno
import fcntl
import os

import pytest

from diffenc.data.workspace import workspace
from diffenc.errors import UserError
from diffenc.files import locks
from diffenc.workdir import claim, mirror

NONE = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP]


@pytest.fixture
def refuse(monkeypatch):
    """refuse(number): has the system call that locks fail."""

    def arrange(number: int):
        def flock(descriptor, operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return arrange


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(locks.logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def test_a_lock_keeps_others_out_until_it_is_closed(tmp_path):
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert locks.try_lock(first)
    with pytest.raises(BlockingIOError):
        locks.try_lock(second)
    os.close(first)
    assert locks.try_lock(second)
    os.close(second)


@pytest.mark.parametrize("number", NONE)
def test_training_where_there_are_no_locks_warns_and_goes_on(tmp_path, refuse, warned, number):
    refuse(number)
    with claim.claim(tmp_path / "run") as claimed:
        claimed.check()
    (line,) = warned
    assert line == (
        f"{tmp_path}/run is on a file system without locks: "
        "nothing keeps a second training from it: start only one there"
    )


@pytest.mark.parametrize("number", [*NONE, errno.EBADF])
def test_preparing_too(tmp_path, refuse, warned, number):
    refuse(number)
    with workspace(tmp_path / "mnist") as folder:
        assert folder.is_dir()
    (line,) = warned
    assert line.startswith(f"{tmp_path}/.mnist.partial is on a file system without locks: ")


def test_a_mirror_is_then_never_swept_up_for_nobody_knows_whose_it_is(tmp_path, refuse, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "diffenc-open-others").mkdir()
    refuse(errno.ENOSYS)
    with mirror.open_workdir("memory://locks/run") as folder:
        assert folder.name.startswith(mirror.NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["diffenc-open-others"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_named(tmp_path, refuse, number):
    refuse(number)
    with pytest.raises(
        UserError, match=rf"^cannot lock {tmp_path}/run/\.lock: {os.strerror(number)}; choose"
    ):
        claim.claim(tmp_path / "run").__enter__()


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    (tmp_path / "run" / ".lock").mkdir(parents=True)  # who is root may write anywhere else
    with pytest.raises(UserError, match=r"/run/\.lock: Is a directory; choose another --workdir$"):
        claim.claim(tmp_path / "run").__enter__()
