"""The format of the programs' log lines."""

import logging as std_logging

from absl import logging

from diffenc.errors import printable

MOST_LOGGED = 10_000  # characters of a line


class _Printable(std_logging.Formatter):
    """Escapes and bounds the message of a log line, which may contain text from untrusted files; tracebacks are unchanged."""

    def formatMessage(self, record: std_logging.LogRecord) -> str:  # noqa: N802 - its name there
        record.message = printable(record.message, MOST_LOGGED)
        return super().formatMessage(record)


def show_log_lines_plainly() -> None:
    """Sets the format of log lines to `HH:MM:SS message`, on standard error."""
    logging.set_verbosity(logging.INFO)
    std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # it reports every backend that is not there
    logging.get_absl_handler().setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
