"""SIGTERM and Ctrl-C as a request to finish the step, save and leave."""

import os
import signal
import threading
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """The run was asked to stop. `signum` says by what."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interrupts:
    """While entered, the first SIGTERM or SIGINT is remembered; a second one does what it always did.

    Outside the main thread Python delivers no signals; there it remembers nothing.
    """

    def __init__(self):
        self._signum: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        self._restore()
        # not through logging, whose lock the interrupted code may hold
        os.write(2, b"stopping after this step, and saving; a second time stops at once, without saving\n")

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]
        self._previous = {}
