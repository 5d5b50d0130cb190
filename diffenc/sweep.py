"""Trains and compares a grid of variants: `python -m diffenc.sweep --gin_file=FILE`; see `--help`."""

import sys

from diffenc.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
