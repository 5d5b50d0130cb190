"""Rates by a clock that the test moves."""

import pytest

from diffenc import clock


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
        rates.append(measured.rate())
    assert rates == [5.0, 4.0]


def test_what_is_paused_does_not_count(time):
    measured = clock.Clock()
    measured.tick()
    time.now += 1
    with measured.paused():
        time.now += 100
    time.now += 1
    assert measured.rate() == 0.5


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
    assert measured.rate() == 0.25


def test_restart_forgets_steps_and_tells_the_seconds(time):
    measured = clock.Clock()
    measured.tick()
    time.now += 30
    assert measured.restart() == 30
    measured.tick()
    measured.tick()
    time.now += 4
    assert measured.rate() == 0.5


def test_no_time_at_all_is_no_division_by_zero(time):
    measured = clock.Clock()
    assert measured.rate() == 0
    measured.tick()
    assert measured.rate() > 0
