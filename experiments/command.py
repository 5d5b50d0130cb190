"""What the programs in this folder share: how they start, and what they say when they are stopped."""

from absl import flags, logging

from diffenc import registry
from diffenc.log_lines import show_log_lines_plainly

STOPPED = "stopped: the same command goes on"


def start_up() -> None:
    """All plugins registered, log lines plain."""
    registry.discover()
    flags.FLAGS.mark_as_parsed()  # argparse reads them here; absl would warn at the first line it logs
    logging.use_absl_handler()
    show_log_lines_plainly()
