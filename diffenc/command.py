"""What programs tell the shell, and whoever reads them."""

import os
import signal
import sys
from collections.abc import Callable

from diffenc.devices.interrupts import Interrupted
from diffenc.errors import UserError, printable


def status_of(
    perform: Callable[[], object],
    interrupted: str = "interrupted",
    told: Callable[[OSError], str] = str,
) -> int:
    """The exit status of `perform()`; what stops it is told in one line.

    Args:
      interrupted: what to say after Ctrl-C or SIGTERM.
      told: what to say of a disk, or a folder, that refuses.
    """
    try:
        perform()
    except Interrupted as signalled:
        print(interrupted, file=sys.stderr)
        return 128 + signalled.signum
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {printable(told(error))}", file=sys.stderr)
        return 1
    return 0


def say(text: str) -> None:
    """Print `text`. A reader who has enough, as `head` has, ends the program without a word."""
    try:
        sys.stdout.write(f"{text}\n")  # at once: a reader may go after its first part
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes to in the end
        sys.exit(128 + signal.SIGPIPE)
