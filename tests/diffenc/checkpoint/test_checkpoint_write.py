"""Several processes write one checkpoint; here each is a thread, and the store is in memory."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diffenc.checkpoint import arrays
from diffenc.checkpoint.checkpoint_write import CheckpointWrite, Deadline
from diffenc.files import stores

PART = arrays.pack_arrays([("a", (0,), np.arange(9))])
FILES = ["x/META.json", *(f"x/process_{k}/{file}" for k in (0, 1) for file in ("blocks/c/0", "index.json"))]


@pytest.fixture
def store(tmp_path):
    return stores.open_store(f"memory://{tmp_path}")


def _attempt(store, index: int, count: int = 2, seconds: float = 20.0) -> CheckpointWrite:
    patience = Deadline()
    patience.shorten(seconds)
    return CheckpointWrite(store, "x", index, count, patience)


def _both(store) -> list[BaseException | None]:
    with ThreadPoolExecutor(2) as threads:
        writes = [threads.submit(_attempt(store, index).write, PART, "{}") for index in (0, 1)]
        return [write.exception() for write in writes]


def test_one_alone(store):
    _attempt(store, 0, count=1).write(PART, "{}")
    assert store.files() == ["x/META.json", "x/process_0/blocks/c/0", "x/process_0/index.json"]


def test_all_parts_and_then_the_marker(store):
    assert _both(store) == [None, None]
    assert [name for name in store.files() if not name.endswith(".done")] == FILES


def test_the_first_commits_only_when_the_other_is_done(store):
    first = threading.Thread(target=_attempt(store, 0).write, args=(PART, "{}"))
    first.start()
    time.sleep(0.3)
    assert store.read("x/META.json") is None
    _attempt(store, 1).write(PART, "")
    assert store.read("x/META.json") == b"{}", "the other returns when it is committed"
    first.join()


@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_fails_all_fail_and_nothing_is_left(store, monkeypatch, failing):
    def write(store, folder, part):
        if folder.endswith(str(failing)):
            raise OSError(28, "No space left on device")
        real(store, folder, part)

    real = arrays.write_arrays
    monkeypatch.setattr(arrays, "write_arrays", write)
    told = [str(error) for error in _both(store)]
    assert told[failing] == "[Errno 28] No space left on device"
    other = [
        "process 1: [Errno 28] No space left on device",
        "the main process gave it up; see its log",
    ]
    assert told[1 - failing] == other[failing == 0]
    assert store.files() == []


def test_one_that_never_comes(store):
    with pytest.raises(OSError, match="waited 0 s in vain for process 1"):
        _attempt(store, 0, seconds=0.1).write(PART, "{}")
    assert store.files() == []
    with pytest.raises(OSError, match="in vain for the main process to commit"):
        _attempt(store, 1, seconds=0.1).write(PART, "{}")


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_any_kind_is_told_to_the_other(store, monkeypatch, failing):
    def write(store, folder, part):
        if folder.endswith(str(failing)):
            raise KeyError("a mistake in the program")
        real(store, folder, part)

    real = arrays.write_arrays
    monkeypatch.setattr(arrays, "write_arrays", write)
    told = _both(store)
    assert isinstance(told[failing], KeyError)
    assert isinstance(told[1 - failing], OSError)
    assert "in vain" not in str(told[1 - failing])
    assert store.files() == []


def test_a_marker_that_is_refused_is_told_to_the_first(store, monkeypatch):
    def write(self, name, data):
        if name.endswith(".done"):
            raise OSError(28, "No space left on device")
        real(self, name, data)

    real = stores.Objects.write
    monkeypatch.setattr(stores.Objects, "write", write)
    first, second = map(str, _both(store))
    assert (first, second) == (
        "process 1: [Errno 28] No space left on device",
        "[Errno 28] No space left on device",
    )
    assert store.files() == []


def test_what_the_first_may_have_committed_is_not_removed(store, monkeypatch):
    """The marker is there, and yet the store says that it refused it."""

    def write(self, name, data):
        real(self, name, data)
        if name.endswith(".done"):
            raise OSError(110, "Connection timed out")

    real = stores.Objects.write
    monkeypatch.setattr(stores.Objects, "write", write)
    first, second = _both(store)
    assert first is None
    assert "timed out" in str(second)
    assert [name for name in store.files() if not name.endswith(".done")] == FILES
