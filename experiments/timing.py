"""Seconds that things take, measured side by side: A B C A B C, so that what disturbs one disturbs all."""

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
    """How long one thing took.

    Attributes:
      seconds: of one call, in each round.
      calls: in a row in each round, between two looks at the clock.
    """

    seconds: Float[np.ndarray, " rounds"]
    calls: int = 1

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def __truediv__(self, number: float) -> "Times":
        return Times(self.seconds / number, self.calls)

    def figures(self) -> dict[str, float]:
        """Median and quartiles, for programs."""
        return {**quartiles(self.seconds, "seconds"), "rounds": len(self.seconds), "calls": self.calls}

    def over(self, other: "Times") -> dict[str, float]:
        """How many times as long this takes: the ratio of medians, and quartiles of the ratio round by round."""
        return {**quartiles(self.seconds / other.seconds, "ratio"), "ratio": self.median / other.median}


def quartiles(values: Float[np.ndarray, " rounds"], name: str) -> dict[str, float]:
    """Median as `name`, and quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {name: float(middle), "quartile_1": float(low), "quartile_3": float(high)}


def time_interleaved(calls: Mapping[str, Call], rounds: int, least: float) -> dict[str, Times]:
    """Time each of `calls`, `rounds` times in turn, after a call that is not timed.

    Args:
      least: seconds that one timing should last; shorter calls are repeated within it.
    """
    repeats = {name: choose_repeats(call, least) for name, call in calls.items()}
    rows = [{name: time_call(call, repeats[name]) for name, call in calls.items()} for _ in range(rounds)]
    return {name: Times(np.asarray([row[name] for row in rows]), repeats[name]) for name in calls}


def choose_repeats(call: Call, least: float) -> int:
    """How many calls last `least` seconds together, by the quicker of two; one before them warms up."""
    time_call(call, 1)
    once = min(time_call(call, 1) for _ in range(2))
    return max(1, math.ceil(least / max(once, 1e-9)))


def time_call(call: Call, repeats: int) -> float:
    """Seconds of one call in a row of `repeats`; they may overlap, as calls of an accelerator do."""
    began, result = time.perf_counter(), None
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / repeats
