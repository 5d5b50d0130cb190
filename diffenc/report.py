"""Writes one HTML page on one or several runs: `python -m diffenc.report WORKDIR...`; see `--help`."""

import sys

from diffenc.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
