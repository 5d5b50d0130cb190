"""The benchmark's parts in which the host takes part."""

import ctypes
import mmap
import time

import jax
import numpy as np
import pytest

from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.data.sources import ArraySource
from experiments.benchmark import formatting, host
from experiments.benchmark.ocdbt import OcdbtSaver
from experiments.benchmark.subject import Settings, Subject


def test_the_pipeline(subject):
    found = host.measure_pipeline(subject)
    assert found["images"] == 40
    assert found["images_per_second"] == pytest.approx(4 / found["batch"]["seconds"])
    assert 0 <= found["share_waited"] < 1
    assert "fed / resident" in dict(formatting.ROWS["input"](found))


class Slow(ArraySource):
    """Takes its time."""

    def __getitems__(self, indices):
        time.sleep(0.1)
        return super().__getitems__(indices)


def test_a_pipeline_that_is_too_slow_is_seen(subject, monkeypatch):
    slow = Subject(subject.experiment, Settings(rounds=6, least=0.0))
    slow.__dict__["source"] = Slow(subject.source.images, subject.source.labels)
    slow.__dict__["stepper"] = subject.stepper
    found = host.measure_pipeline(slow)
    assert found["share_waited"] > 0.5
    assert found["wait_seconds_per_step"] > 0.01


def test_checkpoints(subject, tmp_path):
    found = host.measure_checkpoints(subject, tmp_path)
    assert found["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(subject.stepper.state))
    assert found["save_holds_training_up"]["seconds"] < found["save"]["seconds"]
    assert found["save_holds_training_up"]["rounds"] == 2
    for over, above, below in [
        ("held_up_over_save", "save_holds_training_up", "save"),
        ("save_over_file", "save", "file_write"),
        ("restore_over_file", "restore", "file_read"),
        ("restore_over_file_cached", "restore_cached", "file_read_cached"),
        ("ocdbt_over_save", "ocdbt_save", "save"),
        ("ocdbt_over_restore", "ocdbt_restore", "restore"),
        ("ocdbt_over_restore_cached", "ocdbt_restore_cached", "restore_cached"),
    ]:
        assert found[over]["ratio"] == found[above]["seconds"] / found[below]["seconds"] > 0
    assert list(tmp_path.iterdir()) == []
    assert "restore / np.load" in dict(formatting.ROWS["checkpoint"](found))


def test_a_save_is_timed_until_it_is_on_disk(subject, tmp_path):
    with Checkpoints(tmp_path) as kept:
        host.CheckpointSaver(kept, subject.stepper.state)()
        assert kept.steps() == [1]


def test_ocdbt_holds_the_state(subject, tmp_path):
    ocdbt = OcdbtSaver(tmp_path, subject.stepper.state)
    for _ in range(2):
        ocdbt()
    assert list(tmp_path.iterdir()) == [ocdbt.folder]
    jax.tree.map(np.testing.assert_array_equal, ocdbt.restore(), subject.stepper.state)


def test_a_file_of_its_own_each_time(tmp_path):
    file = host.FileWriter(tmp_path, np.arange(5))
    for _ in range(3):
        file()
    assert list(tmp_path.iterdir()) == [file.path]
    assert np.load(file.path).tolist() == [0, 1, 2, 3, 4]


def test_what_is_forgotten_is_not_in_memory(tmp_path):
    """Told by mincore(2), page by page."""
    path = tmp_path / "inner" / "file"
    path.parent.mkdir()
    host.write_array(path, np.zeros(100_000))
    assert all(_resident(path))
    host.drop_page_cache(tmp_path)
    assert not any(_resident(path))


def _resident(path) -> list[bool]:
    size = path.stat().st_size
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as pages:
        status = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), status) == 0
        return [bool(page & 1) for page in status]
