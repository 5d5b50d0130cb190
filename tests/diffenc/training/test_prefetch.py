"""Batches are on the device before they are asked for, and the host does not run away from it."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.conditioning import UNCONDITIONAL
from diffenc.interfaces import Batch
from diffenc.parallel.sharding import batch_sharded, data_mesh
from diffenc.training import prefetch
from diffenc.training.clock import Clock


class Source:
    """Batches whose pixels say which they are; each takes so many seconds to make."""

    def __init__(self, seconds: float = 0.0):
        self.made = 0
        self._seconds = seconds

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        time.sleep(self._seconds)
        self.made += 1
        return {"image": np.full((4, 2, 2, 1), self.made, np.uint8), "label": np.zeros(4, np.int32)}


@pytest.fixture
def fed():
    """Makes (a source, its feed, the clock)."""

    def make(seconds: float = 0.0):
        source, clock = Source(seconds), Clock()
        return source, prefetch.Prefetcher(source, UNCONDITIONAL, data_mesh(), clock), clock

    return make


def test_batches_come_in_order_and_on_the_devices(fed):
    _, batches, _ = fed()
    for number in range(1, 8):
        levels, condition = batches.take()
        assert condition is None
        assert isinstance(levels, jax.Array)
        assert levels.sharding == batch_sharded(data_mesh())
        np.testing.assert_array_equal(levels, np.full((4, 2, 2, 1), number))


def test_two_are_ahead_of_the_one_that_is_taken(fed):
    source, batches, _ = fed()
    for number in range(1, 5):
        batches.take()
        assert source.made == number + 2


def _waits(batches, clock, steps: int) -> float:
    clock.restart()
    for _ in range(steps):
        batches.take()
        clock.tick()
    return clock.speed().data_wait


def test_waiting_for_a_slow_source_is_told(fed):
    _, batches, clock = fed(0.03)
    batches.take()
    assert 0.03 <= _waits(batches, clock, 8) < 0.1


def test_filling_the_queue_does_not_count(fed):
    _, batches, clock = fed(0.05)
    clock.restart()
    batches.take()  # makes three
    clock.tick()
    speed = clock.speed()
    assert speed.data_wait == 0
    assert speed.steps_per_second > 1 / 0.05


def test_a_quick_source_is_not_waited_for(fed):
    _, batches, clock = fed()
    batches.take()
    assert 0 < _waits(batches, clock, 20) < 0.015  # half of what a slow source takes, on a busy machine too


def test_steps_are_waited_for_four_later(monkeypatch):
    waited: list[int] = []
    monkeypatch.setattr(prefetch.jax, "block_until_ready", lambda token: waited.append(int(token)))
    in_flight, after = prefetch.InFlightLimiter(), []
    for step in range(1, 9):
        in_flight.add(jnp.asarray(step))
        after.append(list(waited))
    assert after == [[], [], [], [], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
