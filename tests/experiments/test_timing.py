"""Timing side by side, on a clock that the test moves."""

import types

import numpy as np
import pytest

from experiments import timing
from experiments.timing import Times, time_interleaved


class Clock:
    """Stands still, but for the calls made by `lasting`, which are remembered."""

    def __init__(self):
        self.now, self.made = 0.0, []

    def perf_counter(self):
        return self.now

    def lasting(self, name, seconds):
        """A call that takes each of `seconds` in turn, and then the last for ever."""
        left = list(seconds)

        def call():
            self.made.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_calls_take_turns_and_the_first_is_not_timed(clock):
    calls = {"a": clock.lasting("a", [100, 1]), "b": clock.lasting("b", [100, 2])}
    took = time_interleaved(calls, rounds=3, least=0.0)
    assert (
        "".join(clock.made) == "aaa" + "bbb" + "ababab"
    )  # each: once to warm up, twice to see how long it takes
    np.testing.assert_array_equal(took["a"].seconds, [1, 1, 1])
    np.testing.assert_array_equal(took["b"].seconds, [2, 2, 2])


def test_short_calls_are_repeated_within_one_timing(clock):
    # 100 to warm up; 0.4 and 0.3 alone; then rounds of four, which last 0.3 each but for one
    took = time_interleaved(
        {"a": clock.lasting("a", [100, 0.4, 0.3, 0.3, 0.3, 0.3, 1.1, 0.3])}, rounds=2, least=1.0
    )
    assert took["a"].calls == 4
    np.testing.assert_allclose(took["a"].seconds, [0.5, 0.3])


def test_the_ratio_is_of_medians_and_its_spread_is_of_rounds():
    slow, fast = Times(np.asarray([2.0, 8.0, 6.0])), Times(np.asarray([1.0, 2.0, 3.0]))
    found = slow.over(fast)  # by round 2, 4, 2
    assert found["ratio"] == 3
    assert (found["quartile_1"], found["quartile_3"]) == (2, 3)
    figures = (slow / 2).figures()
    assert figures == {"seconds": 3, "quartile_1": 2, "quartile_3": 3.5, "rounds": 3, "calls": 1}
