"""Signals to a program that has processes of its own to pass them on to."""

import signal
from types import FrameType


class Signals:
    """While entered, SIGINT and SIGTERM are gathered; `take` hands them over."""

    def __init__(self):
        self._came: list[int] = []

    def __enter__(self) -> "Signals":
        numbers = signal.SIGINT, signal.SIGTERM
        self._previous = {number: signal.signal(number, self._gather) for number in numbers}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def take(self) -> list[int]:
        came, self._came = self._came, []
        return came

    def _gather(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)
