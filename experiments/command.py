"""What the programs in this folder share: how they start, and what they tell the shell in the end."""

import sys
from collections.abc import Callable

from absl import flags, logging

from diffenc import registry
from diffenc.devices.interrupts import Interrupted
from diffenc.errors import UserError
from diffenc.run import show_log_lines_plainly

STOPPED = "stopped: the same command goes on"


def start_up() -> None:
    """All plugins registered, log lines plain."""
    registry.discover()
    flags.FLAGS.mark_as_parsed()  # argparse reads them here; absl would warn at the first line it logs
    logging.use_absl_handler()
    show_log_lines_plainly()


def status_of(perform: Callable[[], object], interrupted: str = "interrupted") -> int:
    """The exit status of `perform()`; what stops it is told in one line.

    Args:
      interrupted: what to say after Ctrl-C or SIGTERM.
    """
    try:
        perform()
    except Interrupted as signalled:
        print(interrupted, file=sys.stderr)
        return 128 + signalled.signum
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
