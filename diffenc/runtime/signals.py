"""Signals that request a program to stop: Ctrl-C, SIGTERM, and the notices sent before a job is ended.

`reliable_ctrl_c` is for programs that stop at once, `Interrupts` and `SharedInterrupts` for training, which first saves,
and `SignalQueue` for programs that forward signals to their child processes.
"""

import _thread
import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

# SIGHUP for a closed connection, SIGUSR1 and SIGUSR2 from Slurm before a time limit. Each may arrive more than once for
# one cause: a closed terminal sends SIGHUP, and then the shell does too.
NOTICES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

STOPPING = b"stopping after this step, and saving; a second time stops at once, without saving\n"
STOPPING_ON_NOTICE = b"stopping after this step, and saving\n"

RAISE_AGAIN_AFTER = 0.05  # seconds after which a lost KeyboardInterrupt is raised again

_ctrl_c_pending = threading.Event()


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """The run was requested to stop, by the signal `signum`."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interrupts:
    """Records the first signal that requests a stop, within the context.

    SIGTERM and SIGINT: a second signal of the same kind invokes the previous handler; in a program it ends the process, even
    during native code. A signal of the other kind counts as the same request: Slurm may send SIGTERM to all processes of a
    job or only to the first, so a parent that cannot know whether the run received it forwards it as SIGINT.

    SIGHUP, SIGUSR1 and SIGUSR2, unless they are ignored or have a handler: any number of them is one request.

    Outside the main thread, where Python cannot install signal handlers, it records nothing.
    """

    stopping: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self._first: int | None = None
        self._previous: dict[int, Any] = {}
        # Recorded on construction: the descriptor of a closed terminal can no longer be recognised as one.
        self._terminals = terminals()

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for signum in (*self.stopping, *unhandled_notices()):
                self._install(signum)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
            if previous is _raise_interrupt:  # the kernel forgot that it is called once
                end_at_second_signal(signum)
        self._previous.clear()

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self._first is not None:
            raise Interrupted(self._first)

    def _install(self, signum: int) -> None:
        previous = self._previous[signum] = signal.signal(signum, self._handle)
        if signum not in NOTICES and _second_handler(previous) == signal.SIG_DFL:
            end_at_second_signal(signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # A second signal of this kind invokes the previous handler, so that a user can always end the process.
        if signum not in NOTICES and signum in self._previous:
            signal.signal(signum, _second_handler(self._previous.pop(signum)))
        if signum == signal.SIGHUP:
            silence_closed(self._terminals)
        if self._first is None:
            self._first = signum
            # Not through logging, whose lock the interrupted code may hold; standard error may be closed.
            with contextlib.suppress(OSError):
                os.write(2, STOPPING_ON_NOTICE if signum in NOTICES else STOPPING)
            self._pass_on()

    def _pass_on(self) -> None:
        """Forwards the first signal; a hook for subclasses."""


class SharedInterrupts(Interrupts):
    """`Interrupts` for several processes: after a request to one of them, all stop at the same check.

    JAX's preemption notifier handles SIGTERM, and agrees with the other processes on the check; other signals are converted to
    SIGTERM.
    """

    stopping = (signal.SIGINT,)

    def __init__(self):
        super().__init__()
        self._checks = 0

    def check(self) -> None:
        """Raises Interrupted if a signal arrived at any process. All processes must make the same checks."""
        from jax.experimental import multihost_utils  # JAX is slow to import, and other programs need none

        self._checks += 1
        # The processes agree on a value of the counter: all stop at the
        # same check, the first that none of them has passed yet.
        if multihost_utils.reached_preemption_sync_point(self._checks):
            raise Interrupted(signal.SIGTERM)

    def _pass_on(self) -> None:
        # JAX's notifier handles SIGTERM and informs the other processes.
        os.kill(os.getpid(), signal.SIGTERM)


def watch_stop_signals() -> Interrupts:
    """Returns the context manager that detects a request to stop in any process of this run."""
    import jax  # see above

    return SharedInterrupts() if jax.process_count() > 1 else Interrupts()


class SignalQueue:
    """Queues the signals that request a stop, within the context; `take` returns them.

    Every SIGINT and SIGTERM is queued. SIGHUP, SIGUSR1 and SIGUSR2, unless ignored or handled, are queued only as the first
    signal: they may arrive more than once for one cause.
    """

    def __init__(self):
        self._pending: list[int] = []
        self._asked = False
        self._terminals = terminals()

    def __enter__(self) -> "SignalQueue":
        numbers = signal.SIGINT, signal.SIGTERM, *unhandled_notices()
        self._previous = {number: signal.signal(number, self._gather) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def take(self) -> list[int]:
        """Returns the signals since the last call."""
        # Swapped, not copied and cleared: a signal between the two operations would be lost.
        pending, self._pending = self._pending, []
        return pending

    def _gather(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            silence_closed(self._terminals)
        if number not in NOTICES or not self._asked:
            self._pending.append(number)
        self._asked = True


@contextlib.contextmanager
def reliable_ctrl_c() -> Iterator[None]:
    """Makes Ctrl-C reliable within the context: a lost KeyboardInterrupt is raised again, and a second Ctrl-C ends the process.

    Python prints and ignores exceptions raised in destructors or in garbage collector callbacks, such as JAX's. Therefore
    the interrupt is raised again until it arrives. A SIGINT handler other than Python's own is kept.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # signal.signal works only in the main thread.
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    show = sys.unraisablehook
    signal.signal(signal.SIGINT, _raise_interrupt)
    end_at_second_signal(signal.SIGINT)
    sys.unraisablehook = functools.partial(_show_unraisable, show)
    try:
        yield
    finally:
        sys.unraisablehook = show
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _ctrl_c_pending.clear()  # it ended this work, and must not end what this process does next


def raise_lost_interrupt() -> None:
    """Raises KeyboardInterrupt if one was lost."""
    if _ctrl_c_pending.is_set():
        _ctrl_c_pending.clear()
        raise KeyboardInterrupt


def _raise_interrupt(signum: int, frame: FrameType | None) -> None:
    """Handles SIGINT within `reliable_ctrl_c`."""
    # Set before the exception is raised: if the exception is swallowed, `raise_lost_interrupt` raises it again.
    _ctrl_c_pending.set()
    signal.default_int_handler(signum, frame)


def _show_unraisable(show: Callable[[Any], object], unraisable: Any) -> None:
    """Shows an exception that Python ignores; for a KeyboardInterrupt, schedules raising it again instead."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        show(unraisable)
        return
    # Later, not here: an exception raised in this hook would be swallowed as well.
    timer = threading.Timer(RAISE_AGAIN_AFTER, _raise_again)
    timer.daemon = True
    timer.start()


def _raise_again() -> None:
    if _ctrl_c_pending.is_set():
        _thread.interrupt_main()


def _second_handler(previous: Any) -> Any:
    """Returns the handler for a second signal, given the `previous` handler.

    It is `previous`, or, if that is the handler of `reliable_ctrl_c`, the default action, which ends the process.
    """
    return signal.SIG_DFL if previous is _raise_interrupt else previous


def unhandled_notices() -> list[signal.Signals]:
    """Returns the NOTICES that would end this process: neither ignored, as by nohup, nor handled."""
    return [
        signum
        for signum in NOTICES
        if signal.getsignal(signum) == signal.SIG_DFL and not _native_handler(signum)  # as faulthandler's
    ]


def end_at_second_signal(signum: int) -> None:
    """Makes the kernel restore the default action of `signum` when its handler is called for the first time.

    Python runs a handler only when the current native code returns, which may take minutes or never happen; with this, a
    second signal ends the process in any case. Only with glibc; elsewhere it does nothing.
    """
    # System V semantics: the handler serves one delivery, then the kernel resets to the default action. The
    # installed handler is Python's own C function, so that the first signal reaches Python as usual.
    install = getattr(ctypes.CDLL(None), "sysv_signal", None)
    handler = _native_handler(signum)
    if install is None or not handler:
        return
    install.argtypes, install.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    install(signum, handler)


def terminals() -> list[int]:
    """Returns the descriptors of standard output and standard error that are terminals."""
    return [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]


def silence_closed(descriptors: Sequence[int]) -> None:
    """Redirects the `descriptors` that are no longer terminals to the null device, so that writing cannot fail."""
    for descriptor in descriptors:
        if not os.isatty(descriptor):
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                # On the same number, so that every holder of the descriptor,
                # in Python or native code, writes to the null device.
                os.dup2(null, descriptor)
                os.close(null)


def _native_handler(signum: int) -> int | None:
    """Returns the address of the C handler of `signum`; 0 or None for the default action, or if it is not known."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "sysv_signal"):
        return None
    action = (ctypes.c_void_p * 64)()  # a struct sigaction, which begins with the handler, and room to spare
    # With no new action sigaction only reads the current one.
    libc.sigaction(ctypes.c_int(signum), None, ctypes.byref(action))
    return action[0]
