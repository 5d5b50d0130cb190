"""The rate of training steps."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Speed(NamedTuple):
    """The rate over some steps.

    Attributes:
      steps_per_second: steps per second.
      data_wait: seconds per step that were spent waiting for data.
    """

    steps_per_second: float
    data_wait: float


class Clock:
    """Counts steps and the seconds they took, except for time within `paused`."""

    def __init__(self):
        self.start()

    def start(self, step: int = 0) -> None:
        """Starts the clock of the whole run, which starts or resumes after `step` steps."""
        self._first_step, self._began = step, time.monotonic()
        self.restart()

    def seconds_left(self, step: int, num_steps: int) -> float:
        """Returns the seconds that the steps after `step` will take at the mean rate since `start`, pauses included."""
        rate = (time.monotonic() - self._began) / (step - self._first_step)
        return rate * (num_steps - step)

    def restart(self) -> None:
        """Starts a new count of steps."""
        self._start, self._steps, self._waited = time.monotonic(), 0, 0.0

    def tick(self) -> None:
        """Counts one step."""
        self._steps += 1

    def speed(self) -> Speed:
        """Returns the speed since the last call or restart, during which at least one step must have been counted."""
        # monotonic: wall-clock time may be set back by NTP.
        # The floor keeps a coarse clock from dividing by 0.
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = Speed(self._steps / seconds, self._waited / self._steps)
        self.restart()
        return speed

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within the context as waiting for data."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time within the context."""
        began = time.monotonic()
        try:
            yield
        finally:
            # Moves the start instead of keeping a sum of pauses, so that `speed` needs no further correction.
            self._start += time.monotonic() - began
