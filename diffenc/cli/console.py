"""What programs tell the shell, and whoever reads them."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from absl import flags, logging

from diffenc import registry
from diffenc.errors import UserError, printable
from diffenc.runtime.log_format import show_log_lines_plainly
from diffenc.runtime.signals import Interrupted, reliable_ctrl_c

STOPPED = "stopped: the same command goes on"


def start_up() -> None:
    """Registers all plugins and sets up logging, for a program that reads its flags with argparse."""
    registry.discover()
    flags.FLAGS.mark_as_parsed()  # argparse reads them here; absl would warn at the first line it logs
    logging.use_absl_handler()
    show_log_lines_plainly()


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
    settle_process()
    try:
        with reliable_ctrl_c():
            perform()
            sys.stdout.flush()
    except Interrupted as signalled:
        complain(interrupted)
        return 128 + signalled.signum
    except KeyboardInterrupt:
        complain(interrupted)
        return 130
    except UserError as error:
        complain(f"error: {' '.join(str(error).splitlines())}")
        return 1
    except BrokenPipeError:
        return unread()
    except OSError as error:
        complain(f"error: {printable(told(error))}")
        return 1
    return 0


def complain(text: str) -> None:
    """Print `text` on standard error, if anybody reads it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def unread() -> int:
    """The exit status of a program whose output nobody reads any more, as of one that is ended by SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes to in the end
    return 128 + signal.SIGPIPE


def settle_process() -> None:
    """Give the process streams that can be written to and file names in UTF-8; the first call of every program.

    In a locale of other characters Python starts again in its UTF-8 mode: names would come out as others on disks.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started it, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    if sys.flags.optimize > 1:
        complain(
            "error: python -OO takes away docstrings, without which dm-haiku cannot be imported: use python -O"
        )
        sys.exit(1)
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


def say(text: str) -> None:
    """Print `text`. A reader who has enough, as `head` has, ends the program without a word."""
    try:
        sys.stdout.write(f"{text}\n")  # at once: a reader may go after its first part
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(unread())
