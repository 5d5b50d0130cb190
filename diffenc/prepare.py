"""Converts official dataset files once: `python -m diffenc.prepare NAME --source=DIR`; see `--help`."""

import sys

from diffenc.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main())
