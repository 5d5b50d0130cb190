"""Ctrl-C, for work that it ends at once: noted too, for Python may lose the exception that it raises.

An exception raised in a destructor or in a callback of the garbage collector, of which JAX has one, is printed and
ignored. Who works for long calls `check` now and then.
"""

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_noted = threading.Event()


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """While entered Ctrl-C is noted, and raises KeyboardInterrupt as ever; where it means something else it stays so."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    show = sys.unraisablehook
    signal.signal(signal.SIGINT, _raise)
    sys.unraisablehook = functools.partial(_show, show)
    try:
        yield
    finally:
        sys.unraisablehook = show
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _noted.clear()  # the one that ended the work, and must not end what this process does next


def check() -> None:
    """Raise KeyboardInterrupt if one was lost."""
    if _noted.is_set():
        _noted.clear()
        raise KeyboardInterrupt


def _raise(signum: int, frame: FrameType | None) -> None:
    _noted.set()
    signal.default_int_handler(signum, frame)


def _show(show: Callable[[Any], object], unraisable: Any) -> None:
    """What Python ignored, as before; but no Ctrl-C, which is noted."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        show(unraisable)
