"""The program of `python -m diffenc.sweep`, also as `python -m experiments.sweep`."""

import sys

from diffenc.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
