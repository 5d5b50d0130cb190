"""Progress of long tasks: lines in the log, or bars on standard error."""

import time
from collections.abc import Callable

from absl import logging

from diffenc.runtime import signals

Advance = Callable[[int], None]  # takes how many more are done
StartBar = Callable[[str, int | None], Advance]  # `ProgressBars.start`


class Progress:
    """To be called after each part of a task: logs its progress and the time left, at most every `every` seconds.

    Raises KeyboardInterrupt if Ctrl-C was pressed and its exception was lost.
    """

    def __init__(self, task: str, total: int, every: float = 10.0):
        self._task = task
        self._total = total
        self._every = every
        self._done = 0
        # No line before `every` seconds have passed: short tasks log nothing.
        self._start = self._shown = time.monotonic()

    def __call__(self) -> None:
        signals.raise_lost_interrupt()
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= self._every and self._done < self._total:
            self._shown = now
            left = (now - self._start) * (self._total - self._done) / self._done
            logging.info("%s: %d of %d, %s left", self._task, self._done, self._total, format_duration(left))


class ProgressBars:
    """Bars on standard error, one per task, shown within the context."""

    def __init__(self):
        from rich import progress  # only programs that show bars pay for importing it
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
        )
        self._progress = progress.Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> "ProgressBars":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, task: str, total: int | None) -> Advance:
        """Shows a bar of `total` units (None = unknown); returns the function that advances it."""
        number = self._progress.add_task(task, total=total)
        return lambda count: self._progress.advance(number, count)


def no_bar(task: str, total: int | None) -> Advance:
    """A `StartBar` that shows nothing."""
    del task, total
    return lambda count: None


def format_duration(seconds: float) -> str:
    """Returns a duration in at most two units: 3 d 4 h, 2 h 5 min, 3 min 20 s or 12 s."""
    whole = max(0, round(seconds))
    for (size, unit), (part, part_unit) in (
        ((86400, "d"), (3600, "h")),
        ((3600, "h"), (60, "min")),
        ((60, "min"), (1, "s")),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {part_unit}"
    return f"{whole} s"
