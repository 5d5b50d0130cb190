"""A line now and then from work that takes long."""

import time

from absl import logging

from diffenc.runtime import ctrl_c


class Progress:
    """Call it after each part of a task: it logs how far the task is, `every` seconds at most.

    Raises KeyboardInterrupt if Ctrl-C came and was lost.
    """

    def __init__(self, task: str, total: int, every: float = 10.0):
        self._task = task
        self._total = total
        self._every = every
        self._done = 0
        self._start = self._shown = time.monotonic()

    def __call__(self) -> None:
        ctrl_c.check()
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= self._every and self._done < self._total:
            self._shown = now
            left = (now - self._start) * (self._total - self._done) / self._done
            logging.info("%s: %d of %d, %s left", self._task, self._done, self._total, duration(left))


def duration(seconds: float) -> str:
    """3 d 4 h, 2 h 5 min, 3 min 20 s or 12 s."""
    whole = max(0, round(seconds))
    for (size, unit), (part, part_unit) in (
        ((86400, "d"), (3600, "h")),
        ((3600, "h"), (60, "min")),
        ((60, "min"), (1, "s")),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {part_unit}"
    return f"{whole} s"
