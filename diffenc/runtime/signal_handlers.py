"""Signals at the level of the operating system, where Python's own module does not reach."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Sequence

# A closed connection, and what Slurm sends before a time limit. Each may come more than once for one cause: a closed
# terminal sends SIGHUP itself, and the shell does again.
NOTICES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def unhandled_notices() -> list[signal.Signals]:
    """Those of NOTICES that would end this process; not what is ignored, as by nohup, or has a handler of its user's."""
    return [
        signum
        for signum in NOTICES
        if signal.getsignal(signum) == signal.SIG_DFL and not _native_handler(signum)  # as faulthandler's
    ]


def let_a_second_one_end(signum: int) -> None:
    """Has the kernel put the default action back once the handler installed for `signum` is called.

    Python runs a handler when the native code in hand returns, which may take minutes or never be; the second signal
    then ends the process all the same. Only with glibc; elsewhere it does nothing.
    """
    install = getattr(ctypes.CDLL(None), "sysv_signal", None)
    handler = _native_handler(signum)
    if install is None or not handler:
        return
    install.argtypes, install.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    install(signum, handler)


def terminals() -> list[int]:
    """Which of standard output and error are terminals."""
    return [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]


def leave_dead(terminals: Sequence[int]) -> None:
    """Has what is written to those of `terminals` that were closed go nowhere, rather than fail."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def _native_handler(signum: int) -> int | None:
    """The address of the function that the kernel calls; 0 or None for the default action, and where it is not known."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "sysv_signal"):
        return None
    action = (ctypes.c_void_p * 64)()  # a struct sigaction, which begins with the handler, and room to spare
    libc.sigaction(ctypes.c_int(signum), None, ctypes.byref(action))
    return action[0]
