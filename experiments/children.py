"""Processes that a program starts and that must not outlive it."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


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


def ends_with_parent() -> Callable[[], None] | None:
    """What a child calls before its program starts, to be killed when this process is gone; None but on Linux."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def tie() -> None:
        prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # gone before it was tied
            os._exit(128 + signal.SIGKILL)

    return tie
