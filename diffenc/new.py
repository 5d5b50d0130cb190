"""Writes the files of a new plugin: `python -m diffenc.new KIND NAME`; see `--help`."""

import sys

from diffenc.cli.new import main

if __name__ == "__main__":
    sys.exit(main())
