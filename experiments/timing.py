"""Durations of calls, measured interleaved, A B C A B C, so that a disturbance affects all of them alike."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

Call = Callable[[], Any]  # what it returns is waited for


@dataclasses.dataclass(frozen=True)
class Times:
    """Durations of one call.

    Attributes:
      seconds: seconds of one call, in each round.
      calls: number of calls in a row in each round, between two readings of the clock.
    """

    seconds: Float[np.ndarray, " rounds"]
    calls: int = 1

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def __truediv__(self, number: float) -> "Times":
        return Times(self.seconds / number, self.calls)

    def figures(self) -> dict[str, float]:
        """Returns median, quartiles, and the numbers of rounds and calls."""
        return {**quartiles(self.seconds, "seconds"), "rounds": len(self.seconds), "calls": self.calls}

    def over(self, other: "Times") -> dict[str, float]:
        """Returns the ratio of the medians of `self` and `other`, and quartiles of the ratio round by round."""
        return {**quartiles(self.seconds / other.seconds, "ratio"), "ratio": self.median / other.median}


def quartiles(values: Float[np.ndarray, " rounds"], name: str) -> dict[str, float]:
    """Returns the median as `name`, and quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {name: float(middle), "quartile_1": float(low), "quartile_3": float(high)}


def time_interleaved(calls: Mapping[str, Call], rounds: int, least: float) -> dict[str, Times]:
    """Times each of `calls`, `rounds` times in turn, after warm-up calls.

    Args:
      least: minimal seconds of one timing; shorter calls are repeated within it.
    """
    repeats = {name: choose_repeats(call, least) for name, call in calls.items()}
    rows = [{name: time_call(call, repeats[name]) for name, call in calls.items()} for _ in range(rounds)]
    return {name: Times(np.asarray([row[name] for row in rows]), repeats[name]) for name in calls}


def choose_repeats(call: Call, least: float) -> int:
    """Returns the number of calls that last `least` seconds together, by the faster of two after a warm-up call."""
    time_call(call, 1)
    once = min(time_call(call, 1) for _ in range(2))
    return max(1, math.ceil(least / max(once, 1e-9)))


def time_call(call: Call, repeats: int) -> float:
    """Returns the seconds per call of `repeats` calls in a row, which may overlap, as on an accelerator."""
    began, result = time.perf_counter(), None
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / repeats
