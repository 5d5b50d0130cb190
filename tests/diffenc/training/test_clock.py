"""Rates by a clock that the test moves."""

import pytest

from diffenc.training import clock


class Time:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 1e6

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch):
    moved = Time()
    monkeypatch.setattr(clock, "time", moved)
    return moved


def test_the_rate_counts_from_the_last_call(time):
    measured = clock.Clock()
    rates = []
    for seconds, ticks in ((2.0, 10), (5.0, 20)):
        for _ in range(ticks):
            measured.tick()
        time.now += seconds
        rates.append(measured.speed().steps_per_second)
    assert rates == [5.0, 4.0]


def test_what_is_paused_does_not_count(time):
    measured = clock.Clock()
    measured.tick()
    time.now += 1
    with measured.paused():
        time.now += 100
    time.now += 1
    assert measured.speed().steps_per_second == 0.5


def test_a_pause_that_an_error_ends_does_not_count(time):
    measured = clock.Clock()
    measured.tick()

    def fail():
        with measured.paused():
            time.now += 100
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    time.now += 4
    assert measured.speed().steps_per_second == 0.25


def test_restart_forgets_what_was_before(time):
    measured = clock.Clock()
    measured.tick()
    with measured.waiting():
        time.now += 30
    measured.restart()
    measured.tick()
    measured.tick()
    time.now += 4
    assert measured.speed() == (0.5, 0.0)


def test_waiting_is_told_by_the_step_and_counts_as_training(time):
    measured = clock.Clock()
    for seconds in (2.0, 1.0):
        with measured.waiting():
            time.now += seconds
        time.now += 0.5
        measured.tick()
    assert measured.speed() == (0.5, 1.5)
    measured.tick()
    assert measured.speed().data_wait == 0


def test_waiting_that_an_error_ends_was_waiting(time):
    measured = clock.Clock()

    def fail():
        with measured.waiting():
            time.now += 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    measured.tick()
    assert measured.speed().data_wait == 3


def test_no_time_at_all_is_no_division_by_zero(time):
    measured = clock.Clock()
    measured.tick()
    assert measured.speed().steps_per_second > 0


def test_the_time_left_counts_from_the_start_with_pauses(time):
    measured = clock.Clock()
    time.now += 1000
    measured.start(step=4)
    with measured.paused():
        time.now += 20
    for _ in range(6):
        measured.tick()
        time.now += 5
    measured.speed()
    assert measured.seconds_left(10, 13) == 3 * (20 + 30) / 6
