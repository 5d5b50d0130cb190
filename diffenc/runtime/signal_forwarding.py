"""Signals to a program that has processes of its own to pass them on to."""

import signal
from types import FrameType

from diffenc.runtime import signal_handlers


class Signals:
    """While entered, what asks to stop is gathered; `take` hands it over.

    SIGINT and SIGTERM count each time. SIGHUP, SIGUSR1 and SIGUSR2, unless ignored or handled, count as the first alone:
    they come more than once for one cause.
    """

    def __init__(self):
        self._came: list[int] = []
        self._asked = False
        self._terminals = signal_handlers.terminals()

    def __enter__(self) -> "Signals":
        numbers = signal.SIGINT, signal.SIGTERM, *signal_handlers.unhandled_notices()
        self._previous = {number: signal.signal(number, self._gather) for number in numbers}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def take(self) -> list[int]:
        came, self._came = self._came, []
        return came

    def _gather(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal_handlers.leave_dead(self._terminals)
        if number not in signal_handlers.NOTICES or not self._asked:
            self._came.append(number)
        self._asked = True
