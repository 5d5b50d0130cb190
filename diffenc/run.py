"""Trains, measures and samples: `python -m diffenc.run --gin_file=FILE`; see `--help`."""

from diffenc.cli.run import main

if __name__ == "__main__":
    main()
