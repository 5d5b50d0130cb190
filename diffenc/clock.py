"""How fast training itself goes."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Counts steps and the seconds they took; what happens inside `paused` does not count."""

    def __init__(self):
        self._start, self._steps = time.monotonic(), 0

    def restart(self) -> float:
        """Count from now on; returns the seconds counted so far."""
        now = time.monotonic()
        seconds = now - self._start
        self._start, self._steps = now, 0
        return seconds

    def tick(self) -> None:
        """One more step is done."""
        self._steps += 1

    def rate(self) -> float:
        """Steps per second since the last call or restart."""
        steps = self._steps
        return steps / max(self.restart(), 1e-9)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - began
