"""How fast training itself goes."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Speed(NamedTuple):
    """Over some steps.

    Attributes:
      steps_per_second: their rate.
      data_wait: seconds a step that went by waiting for data.
    """

    steps_per_second: float
    data_wait: float


class Clock:
    """Counts steps and the seconds they took; what happens inside `paused` does not count."""

    def __init__(self):
        self.start()

    def start(self, step: int = 0) -> None:
        """Starts the whole run's time, `step` steps after its first."""
        self._first_step, self._began = step, time.monotonic()
        self.restart()

    def seconds_left(self, step: int, num_steps: int) -> float:
        """How long the steps after `step` will take at the rate since `start`, pauses included."""
        rate = (time.monotonic() - self._began) / (step - self._first_step)
        return rate * (num_steps - step)

    def restart(self) -> None:
        """Count from now on."""
        self._start, self._steps, self._waited = time.monotonic(), 0, 0.0

    def tick(self) -> None:
        """One more step is done."""
        self._steps += 1

    def speed(self) -> Speed:
        """Since the last call or restart. At least one step must have been done."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = Speed(self._steps / seconds, self._waited / self._steps)
        self.restart()
        return speed

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for data."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - began
