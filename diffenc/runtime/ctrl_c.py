"""Ctrl-C, for programs that it ends at once: also where Python loses the exception that it raises, or never gets to run.

An exception raised in a destructor or in a callback of the garbage collector, of which JAX has one, is printed and
ignored. So the interrupt is raised again until it arrives. A second Ctrl-C ends the process in any case.
"""

import _thread
import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from diffenc.runtime import signal_handlers

AGAIN = 0.05  # seconds after which a lost interrupt is raised again

_noted = threading.Event()


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """While entered Ctrl-C raises KeyboardInterrupt as ever, again where it was lost, and a second one ends the process.

    Where Ctrl-C means something else it stays so.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    show = sys.unraisablehook
    install(interrupt)
    sys.unraisablehook = functools.partial(_show, show)
    try:
        yield
    finally:
        sys.unraisablehook = show
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _noted.clear()  # the one that ended the work, and must not end what this process does next


def install(handler: Any) -> None:
    """Installs a handler of SIGINT. `interrupt` is called once: a second Ctrl-C ends the process."""
    signal.signal(signal.SIGINT, handler)
    if handler is interrupt:
        signal_handlers.let_a_second_one_end(signal.SIGINT)


def check() -> None:
    """Raise KeyboardInterrupt if one was lost."""
    if _noted.is_set():
        _noted.clear()
        raise KeyboardInterrupt


def interrupt(signum: int, frame: FrameType | None) -> None:
    """The handler of SIGINT while `noted` is entered."""
    _noted.set()
    signal.default_int_handler(signum, frame)


def _show(show: Callable[[Any], object], unraisable: Any) -> None:
    """What Python ignored, as before; but no Ctrl-C, which is raised again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        show(unraisable)
        return
    timer = threading.Timer(AGAIN, _raise_again)
    timer.daemon = True
    timer.start()


def _raise_again() -> None:
    if _noted.is_set():
        _thread.interrupt_main()
