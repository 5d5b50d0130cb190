"""SIGTERM and Ctrl-C as a request to finish the step, save and leave."""

import os
import signal
import threading
from types import FrameType
from typing import Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """The run was asked to stop. `signum` says by what."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


MESSAGE = b"stopping after this step, and saving; a second time stops at once, without saving\n"


@runtime_checkable
class Watch(Protocol):
    """Looks out for a request to stop, while entered."""

    def __enter__(self) -> "Watch": ...

    def __exit__(self, *exception: object) -> None: ...

    def check(self) -> None:
        """Raise Interrupted if one came."""
        ...


def interrupts_of_all() -> Watch:
    """What looks out for a request to any process of this run."""
    return SharedInterrupts() if jax.process_count() > 1 else Interrupts()


class Interrupts:
    """While entered, the first SIGTERM or SIGINT is remembered; a second of its kind does what it always did.

    One of the other kind is the same request again: who cannot know whether a SIGTERM reached a run too, since Slurm
    may send it to all processes of a job or to the first alone, passes it on as SIGINT.

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
        for signum in [*self._previous]:
            self._restore(signum)

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._restore(signum)
        if self._signum is None:
            self._signum = signum
            # not through logging, whose lock the interrupted code may hold
            os.write(2, MESSAGE)

    def _restore(self, signum: int) -> None:
        if signum in self._previous:  # not if a signal came, and did this, on the way here
            signal.signal(signum, self._previous[signum])  # pyright: ignore[reportArgumentType]
            self._previous.pop(signum, None)


class SharedInterrupts:
    """The same for several processes: once one is asked to stop, all heed it at the same check.

    JAX's own notice of preemption has SIGTERM, and agrees with the other processes on the check; Ctrl-C becomes one.
    """

    def __init__(self):
        self._checks = 0

    def __enter__(self) -> "SharedInterrupts":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._pass_on)
        return self

    def __exit__(self, *exception: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raise Interrupted if a signal came to any process. All must make the same checks."""
        self._checks += 1
        if multihost_utils.reached_preemption_sync_point(self._checks):
            raise Interrupted(signal.SIGTERM)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, self._previous)
        os.write(2, MESSAGE)
        os.kill(os.getpid(), signal.SIGTERM)
