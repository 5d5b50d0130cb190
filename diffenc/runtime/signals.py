"""SIGTERM, Ctrl-C and the like as a request to finish the step, save and leave."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils

from diffenc.runtime import ctrl_c, signal_handlers


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """The run was asked to stop. `signum` says by what."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


MESSAGE = b"stopping after this step, and saving; a second time stops at once, without saving\n"
NOTICED = b"stopping after this step, and saving\n"  # for what may come twice, see `handlers.NOTICES`


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
    """While entered, the first signal that asks to stop is remembered.

    SIGTERM and SIGINT: a second of its kind does what it did before; in a program it ends the process, also amid native
    code. One of the other kind is the same request again: who cannot know whether a SIGTERM reached a run too, since
    Slurm may send it to all processes of a job or to the first alone, passes it on as SIGINT.

    SIGHUP, SIGUSR1 and SIGUSR2, unless they are ignored or have a handler: however often they come.

    Outside the main thread Python delivers no signals; there it remembers nothing.
    """

    def __init__(self):
        self._signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._terminals = signal_handlers.terminals()

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT, *signal_handlers.unhandled_notices()):
                self._install(signum)
        return self

    def __exit__(self, *exception) -> None:
        for signum, previous in self._previous.items():
            ctrl_c.install(previous) if signum == signal.SIGINT else signal.signal(signum, previous)
        self._previous.clear()

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _install(self, signum: int) -> None:
        previous = self._previous[signum] = signal.signal(signum, self._remember)
        if signum not in signal_handlers.NOTICES and _afterwards(previous) == signal.SIG_DFL:
            signal_handlers.let_a_second_one_end(signum)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum not in signal_handlers.NOTICES and signum in self._previous:
            signal.signal(signum, _afterwards(self._previous.pop(signum)))
        if signum == signal.SIGHUP:
            signal_handlers.leave_dead(self._terminals)
        if self._signum is None:
            self._signum = signum
            _announce(signum)


class SharedInterrupts:
    """The same for several processes: once one is asked to stop, all heed it at the same check.

    JAX's own notice of preemption has SIGTERM, and agrees with the other processes on the check; the others become one.
    """

    def __init__(self):
        self._checks = 0
        self._passed_on = False
        self._previous: dict[int, Any] = {}
        self._terminals = signal_handlers.terminals()

    def __enter__(self) -> "SharedInterrupts":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, *signal_handlers.unhandled_notices()):
                self._previous[signum] = signal.signal(signum, self._pass_on)
            if _afterwards(self._previous[signal.SIGINT]) == signal.SIG_DFL:
                signal_handlers.let_a_second_one_end(signal.SIGINT)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, previous in self._previous.items():
            ctrl_c.install(previous) if signum == signal.SIGINT else signal.signal(signum, previous)
        self._previous.clear()

    def check(self) -> None:
        """Raise Interrupted if a signal came to any process. All must make the same checks."""
        self._checks += 1
        if multihost_utils.reached_preemption_sync_point(self._checks):
            raise Interrupted(signal.SIGTERM)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and signum in self._previous:
            signal.signal(signum, _afterwards(self._previous.pop(signum)))
        if signum == signal.SIGHUP:
            signal_handlers.leave_dead(self._terminals)
        if not self._passed_on:
            self._passed_on = True
            _announce(signum)
            os.kill(os.getpid(), signal.SIGTERM)


def _afterwards(previous: Any) -> Any:
    """What a second signal does, where `previous` was its handler: in a program, where that is `ctrl_c`'s, it ends it."""
    return signal.SIG_DFL if previous is ctrl_c.interrupt else previous


def _announce(signum: int) -> None:
    """Not through logging, whose lock the interrupted code may hold."""
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, NOTICED if signum in signal_handlers.NOTICES else MESSAGE)
