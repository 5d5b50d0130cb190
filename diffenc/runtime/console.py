"""Functions common to all commands: start-up of plugins and logging, messages, and exit statuses."""

import contextlib
import os
import re
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
    """Registers all plugins and sets up JAX and logging, for a program that reads its flags with argparse."""
    from diffenc.runtime import jax_settings  # `diffenc.run` answers some flags without JAX

    registry.discover()
    jax_settings.pass_over_compilers()
    flags.FLAGS.mark_as_parsed()  # argparse reads them here; absl would warn at the first line it logs
    logging.use_absl_handler()
    show_log_lines_plainly()


def describe_os_error(error: OSError) -> str:
    """Returns the reason and the file of an operating system error, as text."""
    return f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)


def exit_status(
    perform: Callable[[], object],
    interrupted: str = "interrupted",
    describe: Callable[[OSError], str] = describe_os_error,
) -> int:
    """Calls `perform` and returns the exit status; user errors and operating system errors become one line on stderr.

    Args:
      interrupted: the message after Ctrl-C or SIGTERM.
      describe: returns the message of an OSError.
    """
    prepare_process()
    try:
        with reliable_ctrl_c():
            perform()
            # Flushed here, so that a broken pipe or a full disk is reported like other errors, not at interpreter exit.
            sys.stdout.flush()
    except Interrupted as stopped:
        print_error(interrupted)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print_error(interrupted)
        return 130
    except UserError as error:
        print_error(f"error: {one_line(str(error))}")
        return 1
    # Before OSError, its base class: a reader that exits, as `| head` does, is not an error to report.
    except BrokenPipeError:
        return close_broken_pipe()
    except OSError as error:
        print_error(f"error: {one_line(printable(describe(error)))}")
        return 1
    return 0


def one_line(text: str) -> str:
    """Returns `text` with a space for every line break and the spaces around it."""
    return re.sub(r"\s*\n\s*", " ", text.strip())


def print_error(text: str) -> None:
    """Prints `text` on standard error; does nothing if that is closed."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def close_broken_pipe() -> int:
    """Discards further output after its reader has exited, as with `| head`; returns the exit status of SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes there when it exits
    return 128 + signal.SIGPIPE


def prepare_process() -> None:
    """Opens closed standard streams and makes UTF-8 the encoding of file names; must be the first call of every program.

    In a locale with another encoding it restarts Python in UTF-8 mode; otherwise file names would be encoded differently.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    if sys.flags.optimize > 1:
        print_error(
            "error: python -OO removes docstrings, without which dm-haiku cannot be imported: use python -O"
        )
        sys.exit(1)
    # PYTHONUTF8 takes effect only at interpreter start, hence the exec with the same arguments.
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


def print_line(text: str) -> None:
    """Prints `text`; exits quietly on a broken pipe (e.g. `| head`)."""
    try:
        sys.stdout.write(f"{text}\n")  # in one call: the reader may leave after its first part
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(close_broken_pipe())
