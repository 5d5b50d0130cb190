"""Remakes the paper's tables: `python -m experiments.tables`; see `--help`."""

import sys

from diffenc.cli.tables import main

if __name__ == "__main__":
    sys.exit(main())
