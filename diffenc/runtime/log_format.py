"""Log lines as the programs print them."""

import logging as std_logging

from absl import logging

from diffenc.errors import printable

MOST_LOGGED = 10_000  # characters of a line


class _Printable(std_logging.Formatter):
    """Log lines may hold a stranger's texts; tracebacks are left whole."""

    def formatMessage(self, record: std_logging.LogRecord) -> str:  # noqa: N802 - its name there
        record.message = printable(record.message, MOST_LOGGED)
        return super().formatMessage(record)


def show_log_lines_plainly() -> None:
    """HH:MM:SS message, on standard error."""
    logging.set_verbosity(logging.INFO)
    std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # it reports every backend that is not there
    logging.get_absl_handler().setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
